"""Coefficients of exp and GELU in src/backend/cpu/generic/math.rs: own minimax fits (Lawson's iteration).

exp(r)  on |r| <= ln(2)/2:   1 + r + r^2 * P(r), P fitted so that the relative error of the sum is least.
GELU(x) = max(x, 0) - t * exp(-t^2/2) * R(t),  t = |x|,  R(t) = erfcx(t / sqrt 2) / 2.

Needs numpy and scipy:   python3 tools/lab/vecmath/fit.py
"""
import numpy as np
from scipy.special import erfcx


def lawson(basis, target, weight, steps=3000):
    """Least maximum of weight * |basis @ c - target|, by least squares reweighted with the residuals."""
    w = np.full(len(target), 1.0 / len(target))
    best = (np.inf, None)
    for _ in range(steps):
        s = np.sqrt(w) * weight
        c, *_ = np.linalg.lstsq(basis * s[:, None], target * s, rcond=None)
        e = np.abs(basis @ c - target) * weight
        if e.max() < best[0]:
            best = (e.max(), c)
        w *= e / e.max() + 1e-12
        w /= w.sum()
    return best


def nodes(a, b, n=2000):
    return (a + b) / 2 - (b - a) / 2 * np.cos(np.pi * (np.arange(n) + 0.5) / n)


def show(name, err, c):
    print(f"{name}: max weighted error {err:.3g}")
    print("   ", ", ".join(f"{np.float32(v):.9e}" for v in c))


def fit_exp(degree):
    r = nodes(-np.log(2) / 2 * 1.002, np.log(2) / 2 * 1.002)
    target = (np.expm1(r) - r) / r**2
    err, c = lawson(np.vander(r, degree + 1, increasing=True), target, r**2 / np.exp(r))
    show(f"exp, P of degree {degree}, lowest first", err, c)


def fit_gelu(degree, p=0.375, longest=8):
    t = nodes(0, longest)
    r = erfcx(t / np.sqrt(2)) / 2
    u = 1 / (1 + p * t)
    err, c = lawson(np.vander(u, degree + 1, increasing=True), r, 1 / r)
    show(f"gelu, R as a polynomial of degree {degree} in u = 1/(1 + {p}t), lowest first", err, c)


if __name__ == "__main__":
    fit_exp(4)
    fit_gelu(8)
