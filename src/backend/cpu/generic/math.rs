//! exp and the activations over vectors. Coefficients: own minimax fits, `tools/lab/vecmath/fit.py`. Error
//! bounds and the tests that hold them: `docs/numerics.md`.

use super::super::vector::Vector;
use crate::model::Activation;
use std::f32::consts::{FRAC_1_SQRT_2, LOG2_E};

/// ln 2 in two parts; the first has 15 zero bits at its end, so that n · LN2_HIGH is exact for |n| ≤ 128.
const LN2_HIGH: f32 = f32::from_bits(0x3F31_8000);
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Below the first, eˣ is under the least normal f32 and 0 is given; above the second it is infinite.
const EXP_LOW: f32 = -87.336_54;
const EXP_HIGH: f32 = 88.722_84;
/// (eʳ − 1 − r) / r² on |r| ≤ ln 2 / 2, lowest degree first.
const EXP: [f32; 5] = [4.999_999_4e-1, 1.666_652e-1, 4.166_84e-2, 8.368_851e-3, 1.381_432e-3];

/// eˣ: x = n · ln 2 + r with n an integer and |r| ≤ ln 2 / 2, then 2ⁿ · (1 + r + r² · P(r)).
/// Results below the least normal f32 are 0; NaN stays NaN.
#[inline(always)]
pub(super) fn exp<V: Vector>(v: V, x: V::F) -> V::F {
    // the constant comes first: `max` and `min` return their second argument for NaN
    let c = v.min(v.splat(EXP_HIGH), v.max(v.splat(EXP_LOW), x));
    let n = v.round(v.mul(c, v.splat(LOG2_E)));
    let r = v.neg_mul_add(n, v.splat(LN2_HIGH), c);
    let r = v.neg_mul_add(n, v.splat(LN2_LOW), r);
    let mut p = v.splat(EXP[4]);
    for i in [3, 2, 1, 0] {
        p = v.mul_add(p, r, v.splat(EXP[i]));
    }
    let one_plus = v.add(v.mul_add(v.mul(p, r), r, r), v.splat(1.0));
    let y = v.scale2(one_plus, n);
    let y = v.select_lt(x, v.splat(EXP_LOW), v.splat(0.0), y);
    v.select_lt(v.splat(EXP_HIGH), x, v.splat(f32::INFINITY), y)
}

/// Polynomial of u = 1 / (1 + 0.375 t) for erfcx(t / √2) / 2 on 0 ≤ t ≤ 8, lowest degree first.
const GELU: [f32; 9] = [
    -6.919_838e-5,
    1.509_958_4e-1,
    1.374_778e-1,
    1.883_048_3e-1,
    -9.555_195e-2,
    3.815_444_7e-1,
    -4.184_966e-1,
    1.879_122_7e-1,
    -3.211_743_8e-2,
];

/// x · Φ(x) = max(x, 0) − t · Φ(−t) with t = |x| and Φ(−t) = exp(−t² / 2) · erfcx(t / √2) / 2.
///
/// Written so, the negative tail has no cancellation: `1 + erf` would lose all its digits there.
#[inline(always)]
fn gelu<V: Vector>(v: V, x: V::F) -> V::F {
    let t = v.abs(x);
    let u = v.div(v.splat(1.0), v.mul_add(t, v.splat(0.375), v.splat(1.0)));
    let mut p = v.splat(GELU[8]);
    for i in [7, 6, 5, 4, 3, 2, 1, 0] {
        p = v.mul_add(p, u, v.splat(GELU[i]));
    }
    // −(t/√2)²: one rounding before the square, one after; both shrink with exp
    let z = v.mul(t, v.splat(FRAC_1_SQRT_2));
    let tail = v.mul(t, v.mul(exp(v, v.mul(v.sub(v.splat(0.0), z), z)), p));
    // ∞ · 0 in the tail of an infinite x must not become NaN: beyond 14 the tail is below any f32 that counts
    let tail = v.select_lt(v.splat(14.0), t, v.splat(0.0), tail);
    v.sub(v.max(v.splat(0.0), x), tail)
}

/// 1 / (1 + e⁻ˣ)
#[inline(always)]
fn sigmoid<V: Vector>(v: V, x: V::F) -> V::F {
    let e = exp(v, v.sub(v.splat(0.0), x));
    v.div(v.splat(1.0), v.add(v.splat(1.0), e))
}

/// tanh x = 2σ(2x) − 1, and x − x³/3 near 0, where that cancels.
#[inline(always)]
fn tanh<V: Vector>(v: V, x: V::F) -> V::F {
    let s = sigmoid(v, v.add(x, x));
    let wide = v.sub(v.add(s, s), v.splat(1.0));
    let cube = v.mul(v.mul(x, x), x);
    let near = v.neg_mul_add(cube, v.splat(1.0 / 3.0), x);
    v.select_lt(v.abs(x), v.splat(0.03), near, wide)
}

/// √(2/π)
const SQRT_2_OVER_PI: f32 = 0.797_884_6;

/// ½x(1 + tanh u) = x · σ(2u), u = √(2/π) · (x + 0.044715x³)
#[inline(always)]
fn gelu_tanh<V: Vector>(v: V, x: V::F) -> V::F {
    let square = v.mul(x, x);
    let inner = v.mul_add(v.mul(square, v.splat(0.044_715)), x, x);
    product(v, x, sigmoid(v, v.mul(inner, v.splat(2.0 * SQRT_2_OVER_PI))))
}

#[inline(always)]
fn quick_gelu<V: Vector>(v: V, x: V::F) -> V::F {
    product(v, x, sigmoid(v, v.mul(x, v.splat(1.702))))
}

#[inline(always)]
fn silu<V: Vector>(v: V, x: V::F) -> V::F {
    product(v, x, sigmoid(v, x))
}

#[inline(always)]
fn relu<V: Vector>(v: V, x: V::F) -> V::F {
    v.max(v.splat(0.0), x)
}

/// x · σ, and 0 rather than −∞ · 0 = NaN where σ has vanished.
#[inline(always)]
fn product<V: Vector>(v: V, x: V::F, sigma: V::F) -> V::F {
    let zero = v.splat(0.0);
    v.select_lt(x, v.splat(-1e4), zero, v.mul(x, sigma))
}

/// `$x` = f(`$x`) for each element of a slice.
///
/// Not a function that takes `f`: called through `impl Fn`, it is compiled on its own, without the
/// instruction set's features, and each of its intrinsics becomes a call.
macro_rules! map {
    ($v:ident, $x:ident, $f:path) => {{
        let mut chunks = $x.chunks_exact_mut(V::LANES);
        for c in &mut chunks {
            $v.store($f($v, $v.load(c)), c);
        }
        let tail = chunks.into_remainder();
        if !tail.is_empty() {
            $v.store_tail($f($v, $v.load_tail(tail, 0.0)), tail);
        }
    }};
}

#[inline(always)]
pub(in super::super) fn exp_slice<V: Vector>(v: V, x: &mut [f32]) {
    map!(v, x, exp);
}

/// f of each element.
#[inline(always)]
pub(in super::super) fn activate<V: Vector>(v: V, f: Activation, x: &mut [f32]) {
    match f {
        Activation::Gelu => map!(v, x, gelu),
        Activation::GeluTanh => map!(v, x, gelu_tanh),
        Activation::QuickGelu => map!(v, x, quick_gelu),
        Activation::Relu => map!(v, x, relu),
        Activation::Silu => map!(v, x, silu),
        Activation::Tanh => map!(v, x, tanh),
        Activation::Sigmoid => map!(v, x, sigmoid),
    }
}
