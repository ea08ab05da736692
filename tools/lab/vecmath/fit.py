"""Coefficients of exp and GELU in src/backend/cpu/generic/math.rs: own minimax fits (Lawson's iteration).

exp(r)  on |r| <= ln(2)/2:   1 + r + r^2 * P(r), P fitted so that the relative error of the sum is least.
GELU(x) = max(x, 0) - t * Q(t),  t = |x|,  Q(t) = Phi(-t) = erfc(t / sqrt 2) / 2, in segments around equally spaced
centres, the last of them 6: a polynomial of the distance from the centre for each. The unit is a segment's width
(z = scale * t), so that the rows are those of Q / scale and GELU(x) = max(x, 0) - z * Q / scale. Or, where no table of
sixteen fits a register, Q(t) / (T - t) on [0, T] by one polynomial of u = 2 t / T - 1, which leaves nothing at T.

Needs numpy and scipy:   python3 tools/lab/vecmath/fit.py
"""
import numpy as np
from numpy.polynomial import chebyshev
from scipy.special import erfc


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


def fit_gelu(segments, degree, longest=6):
    scale = (segments - 1) / longest
    table, worst = [], 0
    for k in range(segments):
        v = nodes(-0.5 if k else 0, 0.5 if k < segments - 1 else 0)
        t = (k + v) / scale
        q = erfc(t / np.sqrt(2)) / 2 / scale
        powers = np.vander(v, degree + 1, increasing=True)
        # at the centre of the last segment, where larger t are clamped to, nothing may be left
        basis = powers[:, 1:] if k == segments - 1 else powers
        _, c = lawson(basis, q, t + 0.01, steps=300)
        c = np.float32(np.concatenate([[0], c]) if k == segments - 1 else c)
        worst = max(worst, (scale * t * np.abs(powers @ c.astype(float) - q)).max())
        table.append(c)
    print(f"gelu: {segments} segments of degree {degree}: max t * error {worst:.3g}; a row for each power, lowest first")
    for row in np.array(table).T:
        print("    [" + ", ".join(f"{v:.8e}" for v in row) + "],")


def fit_gelu_whole(longest, degree):
    u = nodes(-1, 1, 500)
    t = (u + 1) * longest / 2
    q = erfc(t / np.sqrt(2)) / 2
    # powers of u are too much alike at this degree
    err, c = lawson(chebyshev.chebvander(u, degree), q / (longest - t), t * (longest - t) + 1e-9, steps=400)
    show(f"gelu: degree {degree} up to {longest}", err, chebyshev.cheb2poly(c))


if __name__ == "__main__":
    fit_exp(4)
    fit_gelu(16, 5)
    fit_gelu_whole(5.75, 15)
