//! exp and the activations over vectors. Coefficients: own minimax fits, `tools/lab/vecmath/fit.py`. Error
//! bounds and the tests that hold them: `docs/numerics.md`.

use super::super::vector::Vector;
use crate::model::Activation;
use std::f32::consts::LOG2_E;

/// ln 2 in two parts; the first has 15 zero bits at its end, so that n · LN2_HIGH is exact for |n| ≤ 128.
const LN2_HIGH: f32 = f32::from_bits(0x3F31_8000);
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Below the first, eˣ is under the least normal f32 and 0 is given; above the second it is infinite.
const EXP_LOW: f32 = -87.336_54;
const EXP_HIGH: f32 = 88.722_84;
/// (eʳ − 1 − r) / r² on |r| ≤ ln 2 / 2, lowest degree first.
const EXP: [f32; 5] = [4.999_999_4e-1, 1.666_652e-1, 4.166_84e-2, 8.368_851e-3, 1.381_432e-3];

/// 1.5 · 2²³, which leaves no fraction bits, and an exponent's bias: the lowest bits of n + this are 2ⁿ's exponent.
const EXP_SHIFT: f32 = 12_582_912.0 + 127.0;

/// eˣ: x = n · ln 2 + r with n an integer and |r| ≤ ln 2 / 2, then 2ⁿ · (1 + r + r² · P(r)).
/// Results below the least normal f32 are 0; NaN stays NaN.
#[inline(always)]
pub(super) fn exp<V: Vector>(v: V, x: V::F) -> V::F {
    // the constant comes first: `max` and `min` return their second argument for NaN
    let c = v.min(v.splat(EXP_HIGH), v.max(v.splat(EXP_LOW), x));
    let (fraction, shifted) = exp_parts(v, c);
    let y = v.scale2(v.add(fraction, v.splat(1.0)), v.sub(shifted, v.splat(EXP_SHIFT)));
    let y = v.select_lt(x, v.splat(EXP_LOW), v.splat(0.0), y);
    v.select_lt(v.splat(EXP_HIGH), x, v.splat(f32::INFINITY), y)
}

/// The bits of `exp` where x is not above 0, for less than two thirds of its instructions; some number or other elsewhere. Where
/// `exp` is 0, this is not above the least normal f32, and 0 from −88 on; without fused multiply-adds the last bit of results
/// under 1e-30 may differ.
#[inline(always)]
pub(super) fn exp_to_1<V: Vector>(v: V, x: V::F) -> V::F {
    let (fraction, shifted) = exp_parts(v, v.max(v.splat(-88.0), x));
    let power = v.power_of_2(shifted); // 0 for n = −127
    v.mul_add(fraction, power, power)
}

/// y and n + `EXP_SHIFT` with eᶜ = (1 + y) · 2ⁿ.
#[inline(always)]
fn exp_parts<V: Vector>(v: V, c: V::F) -> (V::F, V::F) {
    let shifted = v.mul_add(c, v.splat(LOG2_E), v.splat(EXP_SHIFT));
    let n = v.sub(shifted, v.splat(EXP_SHIFT));
    let r = v.neg_mul_add(n, v.splat(LN2_HIGH), c);
    let r = v.neg_mul_add(n, v.splat(LN2_LOW), r);
    let mut p = v.splat(EXP[4]);
    for i in [3, 2, 1, 0] {
        p = v.mul_add(p, r, v.splat(EXP[i]));
    }
    (v.mul_add(v.mul(p, r), r, r), shifted)
}

/// Φ(−t) in sixteen segments, for t from 0 to 6: around each centre a polynomial of the distance from it, a row for each
/// power, lowest first. The unit of length is a segment's width, z = t · 15 / 6, and the rows are divided by that factor.
/// At the last centre, to which greater t are clamped, nothing is left.
const GELU_16: [[f32; 16]; 6] = [
    [
        2e-1,
        1.378_313e-1,
        8.474_216e-2,
        4.602_787e-2,
        2.191_971_6e-2,
        9.100_052e-3,
        3.279_013_8e-3,
        1.022_052_1e-3,
        2.748_553_2e-4,
        6.364_356_5e-5,
        1.266_856_3e-5,
        2.165_041_7e-6,
        3.173_380_2e-7,
        3.985_920_6e-8,
        4.287_306e-9,
        0.0,
    ],
    [
        -6.383_076e-2,
        -5.892_321e-2,
        -4.635_064_3e-2,
        -3.106_976_9e-2,
        -1.774_733_5e-2,
        -8.638_555e-3,
        -3.583_124_8e-3,
        -1.266_472e-3,
        -3.814_539_8e-4,
        -9.790_429e-5,
        -2.141_285_2e-5,
        -3.990_808e-6,
        -6.338_131e-7,
        -8.577_806e-8,
        -9.892_516e-9,
        -4.058_743_4e-8,
    ],
    [
        -6.639_141_5e-8,
        4.713_715_5e-3,
        7.415_941e-3,
        7.456_694_7e-3,
        5.679_203e-3,
        3.455_499e-3,
        1.719_940_5e-3,
        7.092_28e-4,
        2.441_201e-4,
        7.048_173e-5,
        1.712_550_3e-5,
        3.510_164_6e-6,
        6.079_699e-7,
        8.909_972e-8,
        1.105_986_7e-8,
        -6.349_537e-7,
    ],
    [
        1.702_559_8e-3,
        1.319_674_9e-3,
        4.448_964e-4,
        -3.645_300_7e-4,
        -7.382_535e-4,
        -6.910_729e-4,
        -4.548_239e-4,
        -2.310_116_7e-4,
        -9.399_3e-5,
        -3.122_478_7e-5,
        -8.564_425e-6,
        -1.953_467_3e-6,
        -3.723_512e-7,
        -5.952_006_5e-8,
        -7.999_644_5e-9,
        -3.572_791_5e-6,
    ],
    [
        -1.153_754e-6,
        -1.768_801_4e-4,
        -2.315_989_4e-4,
        -1.545_689_4e-4,
        -3.392_301e-5,
        4.524_732e-5,
        6.286_02e-5,
        4.573_085_6e-5,
        2.367_943_3e-5,
        9.461_342e-6,
        3.020_056_7e-6,
        7.845_394e-7,
        1.677_437e-7,
        2.974_011_8e-8,
        4.395_109_6e-9,
        -8.180_659e-6,
    ],
    [
        -3.951_375_8e-5,
        -2.518_868_3e-5,
        4.403_181_3e-6,
        2.342_578_6e-5,
        2.179_899_6e-5,
        9.197_668e-6,
        -1.170_121_8e-6,
        -4.657_573_3e-6,
        -3.764_25e-6,
        -1.951_821_3e-6,
        -7.512_500_7e-7,
        -2.262_478_9e-7,
        -5.471_678e-8,
        -1.078_811_1e-8,
        -1.750_945_5e-9,
        -6.555_844e-6,
    ],
];
/// Φ(−t) / (GELU_LONGEST − t) for t from 0 to `GELU_LONGEST`, a polynomial of u = 2t / GELU_LONGEST − 1, lowest degree
/// first. The divided factor makes what is left nothing at the end, to which greater t are clamped.
const GELU: [f32; 16] = [
    7.026_559_3e-4,
    -5.695_544e-3,
    2.074_687_6e-2,
    -4.328_831_7e-2,
    5.260_882_5e-2,
    -2.661_041_4e-2,
    -2.315_394e-2,
    5.132_636_4e-2,
    -2.890_350_5e-2,
    -1.742_476_4e-2,
    3.319_374_5e-2,
    -7.507_566e-3,
    -1.416_307_9e-2,
    7.552_461e-3,
    2.447_096_2e-3,
    -1.830_557_7e-3,
];
/// t · Φ(−t) is under 3e-8 from there on.
const GELU_LONGEST: f32 = 5.75;

/// x · Φ(x) = max(x, 0) − t · Φ(−t) with t = |x|.
///
/// Not by exp and a division (45 operations and 16 cycles of the divider): between two products the function cost 30 % of
/// one with k = 384. Where a table of sixteen fits a register it takes 19 operations, else 24. Eight segments of degree 7
/// took 18 to 19 clocks for a vector on Zen 3, against 16, and without a permutation 80, against 45; two or four vectors
/// at a time won nothing.
#[inline(always)]
pub(super) fn gelu<V: Vector>(v: V, x: V::F) -> V::F {
    if V::LOOKS_UP { gelu_by_table(v, x) } else { gelu_by_polynomial(v, x) }
}

#[inline(always)]
fn gelu_by_table<V: Vector>(v: V, x: V::F) -> V::F {
    let last = 15.0;
    let z = v.min(v.mul(v.abs(x), v.splat(last / 6.0)), v.splat(last));
    // 1.5 · 2²³ leaves no fraction bits: the sum's lowest bits are the nearest centre
    let shifted = v.add(z, v.splat(12_582_912.0));
    let d = v.sub(z, v.sub(shifted, v.splat(12_582_912.0)));
    let [rows @ .., highest] = &GELU_16;
    let mut p = v.lookup(highest, shifted);
    for row in rows.iter().rev() {
        p = v.mul_add(p, d, v.lookup(row, shifted));
    }
    v.neg_mul_add(z, p, v.max(v.splat(0.0), x))
}

#[inline(always)]
fn gelu_by_polynomial<V: Vector>(v: V, x: V::F) -> V::F {
    let t = v.min(v.abs(x), v.splat(GELU_LONGEST));
    let u = v.mul_add(t, v.splat(2.0 / GELU_LONGEST), v.splat(-1.0));
    let square = v.mul(u, u);
    // even and odd powers apart: chains half as long
    let (mut even, mut odd) = (v.splat(GELU[14]), v.splat(GELU[15]));
    for power in [12, 10, 8, 6, 4, 2, 0] {
        even = v.mul_add(even, square, v.splat(GELU[power]));
        odd = v.mul_add(odd, square, v.splat(GELU[power + 1]));
    }
    let p = v.mul_add(odd, u, even);
    let factor = v.mul(t, v.sub(v.splat(GELU_LONGEST), t));
    v.neg_mul_add(factor, p, v.max(v.splat(0.0), x))
}

/// 1 / (1 + e⁻ˣ)
#[inline(always)]
pub(super) fn sigmoid<V: Vector>(v: V, x: V::F) -> V::F {
    let e = exp(v, v.sub(v.splat(0.0), x));
    v.div(v.splat(1.0), v.add(v.splat(1.0), e))
}

/// tanh x = 2σ(2x) − 1, and x − x³/3 near 0, where that cancels.
#[inline(always)]
pub(super) fn tanh<V: Vector>(v: V, x: V::F) -> V::F {
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
pub(super) fn gelu_tanh<V: Vector>(v: V, x: V::F) -> V::F {
    let square = v.mul(x, x);
    let inner = v.mul_add(v.mul(square, v.splat(0.044_715)), x, x);
    product(v, x, sigmoid(v, v.mul(inner, v.splat(2.0 * SQRT_2_OVER_PI))))
}

#[inline(always)]
pub(super) fn quick_gelu<V: Vector>(v: V, x: V::F) -> V::F {
    product(v, x, sigmoid(v, v.mul(x, v.splat(1.702))))
}

#[inline(always)]
pub(super) fn silu<V: Vector>(v: V, x: V::F) -> V::F {
    product(v, x, sigmoid(v, x))
}

#[inline(always)]
pub(super) fn relu<V: Vector>(v: V, x: V::F) -> V::F {
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
    ($v:ident, $x:ident, $f:ident) => {{
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

/// `$body` with `$kernel` the function of the activation, of the lanes of one vector.
macro_rules! with_activation {
    ($f:expr, $kernel:ident, $body:expr) => {
        with_activation!(@ $f, $kernel, $body,
            Gelu gelu, GeluTanh gelu_tanh, QuickGelu quick_gelu, Relu relu, Silu silu, Tanh tanh, Sigmoid sigmoid)
    };
    (@ $f:expr, $kernel:ident, $body:expr, $($variant:ident $function:ident),*) => {
        match $f {
            $($crate::model::Activation::$variant => {
                use $crate::backend::cpu::generic::math::$function as $kernel;
                $body
            })*
        }
    };
}
pub(super) use with_activation;

/// f of each element of `rows` rows of `columns`, `stride` apart.
///
/// # Safety
/// So many rows at `x`, that nobody else touches.
#[inline(always)]
pub(in super::super) unsafe fn activate<V: Vector>(
    v: V,
    f: Activation,
    x: *mut f32,
    stride: usize,
    rows: usize,
    columns: usize,
) {
    macro_rules! each_row {
        ($f:ident) => {
            for i in 0..rows {
                // SAFETY: by the contract
                let row = unsafe { std::slice::from_raw_parts_mut(x.wrapping_add(i * stride), columns) };
                map!(v, row, $f)
            }
        };
    }
    with_activation!(f, kernel, each_row!(kernel))
}
