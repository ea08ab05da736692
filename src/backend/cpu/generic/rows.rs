//! Kernels over one row: layernorm, softmax, pooling, normalisation. Bound by the caches, not by arithmetic.

use super::super::vector::Vector;
use super::math::exp_to_1;
use crate::model::Pooling;

/// Σ x, in four interleaved partial sums: an order that depends on the length only.
#[inline(always)]
fn sum<V: Vector>(v: V, x: &[f32]) -> f32 {
    let mut acc = [v.splat(0.0); 4];
    let mut chunks = x.chunks_exact(4 * V::LANES);
    for c in &mut chunks {
        for i in 0..4 {
            acc[i] = v.add(acc[i], v.load(&c[i * V::LANES..]));
        }
    }
    let mut rest = chunks.remainder().chunks_exact(V::LANES);
    for c in &mut rest {
        acc[0] = v.add(acc[0], v.load(c));
    }
    if !rest.remainder().is_empty() {
        acc[1] = v.add(acc[1], v.load_tail(rest.remainder(), 0.0));
    }
    v.sum(v.add(v.add(acc[0], acc[1]), v.add(acc[2], acc[3])))
}

/// Σ (x − mean)², in the order of `sum`.
#[inline(always)]
fn sum_squares<V: Vector>(v: V, x: &[f32], mean: f32) -> f32 {
    let m = v.splat(mean);
    let mut acc = [v.splat(0.0); 4];
    let mut chunks = x.chunks_exact(4 * V::LANES);
    for c in &mut chunks {
        for i in 0..4 {
            let d = v.sub(v.load(&c[i * V::LANES..]), m);
            acc[i] = v.mul_add(d, d, acc[i]);
        }
    }
    let mut rest = chunks.remainder().chunks_exact(V::LANES);
    for c in &mut rest {
        let d = v.sub(v.load(c), m);
        acc[0] = v.mul_add(d, d, acc[0]);
    }
    if !rest.remainder().is_empty() {
        // lanes beyond the row hold the mean, so they add nothing
        let d = v.sub(v.load_tail(rest.remainder(), mean), m);
        acc[1] = v.mul_add(d, d, acc[1]);
    }
    v.sum(v.add(v.add(acc[0], acc[1]), v.add(acc[2], acc[3])))
}

/// (x − mean) / √(var + eps) · weight + bias, in two passes: the one-pass formula cancels.
#[inline(always)]
pub(in super::super) fn layernorm<V: Vector>(v: V, x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let n = x.len() as f32;
    let mean = sum(v, x) / n;
    let scale = 1.0 / (sum_squares(v, x, mean) / n + eps).sqrt();
    let (m, s) = (v.splat(mean), v.splat(scale));
    let mut at = 0;
    while at + V::LANES <= x.len() {
        let unit = v.mul(v.sub(v.load(&x[at..]), m), s);
        v.store(v.mul_add(unit, v.load(&weight[at..]), v.load(&bias[at..])), &mut x[at..]);
        at += V::LANES;
    }
    if at < x.len() {
        let unit = v.mul(v.sub(v.load_tail(&x[at..], mean), m), s);
        let y = v.mul_add(unit, v.load_tail(&weight[at..], 0.0), v.load_tail(&bias[at..], 0.0));
        v.store_tail(y, &mut x[at..]);
    }
}

/// layernorm(x + position + token_type)
#[inline(always)]
pub(in super::super) fn embed_layernorm<V: Vector>(
    v: V,
    x: &mut [f32],
    position: &[f32],
    token_type: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
) {
    for ((x, p), t) in x.iter_mut().zip(position).zip(token_type) {
        *x = *x + p + t;
    }
    layernorm(v, x, weight, bias, eps);
}

/// x += y
#[inline(always)]
pub(in super::super) fn add<V: Vector>(_: V, x: &mut [f32], y: &[f32]) {
    // element-wise: the compiler's vectors are those of the caller's features
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// x · y, element by element
#[inline(always)]
pub(in super::super) fn multiply<V: Vector>(_: V, x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x *= y);
}

/// (a, b) to (a cos − b sin, b cos + a sin), a the first half of `x` and b the second
#[inline(always)]
pub(in super::super) fn rotate<V: Vector>(_: V, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = x.split_at_mut(cos.len());
    for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
    }
}

/// exp(s − max s) in place over the first `n` scores, 0 in the others; the sum.
#[inline(always)]
pub(in super::super) fn softmax<V: Vector>(v: V, scores: &mut [f32], n: usize) -> f32 {
    scores[n..].fill(f32::NEG_INFINITY); // e^−∞ = 0
    let mut greatest = v.splat(f32::NEG_INFINITY);
    for c in scores.chunks_exact(V::LANES) {
        greatest = v.max(greatest, v.load(c));
    }
    let m = v.splat(v.greatest(greatest));
    let mut acc = [v.splat(0.0); 2];
    for c in scores.chunks_exact_mut(2 * V::LANES) {
        for i in 0..2 {
            let c = &mut c[i * V::LANES..];
            let e = exp_to_1(v, v.sub(v.load(c), m));
            acc[i] = v.add(acc[i], e);
            v.store(e, c);
        }
    }
    v.sum(v.add(acc[0], acc[1]))
}

/// One vector from rows of `out.len()` floats, `stride` apart, behind the first `skip`, in the order of the rows.
#[inline(always)]
pub(in super::super) fn pool<V: Vector>(
    _: V,
    pooling: Pooling,
    x: &[f32],
    stride: usize,
    skip: usize,
    out: &mut [f32],
) {
    let h = out.len();
    let rows = x.len().div_ceil(stride);
    if skip >= rows {
        match pooling {
            Pooling::Cls => out.copy_from_slice(&x[..h]),
            Pooling::Max => out.fill(f32::NEG_INFINITY),
            Pooling::Mean | Pooling::MeanSqrtLen | Pooling::WeightedMean | Pooling::LastToken => {
                out.fill(0.0)
            }
        }
        return;
    }
    let first = skip * stride;
    out.copy_from_slice(&x[first..first + h]);
    let others = || x[first..].chunks(stride).skip(1);
    match pooling {
        Pooling::Cls => {}
        Pooling::LastToken => out.copy_from_slice(&x[(rows - 1) * stride..][..h]),
        Pooling::Max => {
            for row in others() {
                // NaN, once there, stays: a broken vector must not look whole
                out.iter_mut().zip(row).for_each(|(o, &x)| *o = if *o > x || o.is_nan() { *o } else { x });
            }
        }
        Pooling::Mean | Pooling::MeanSqrtLen => {
            for row in others() {
                out.iter_mut().zip(row).for_each(|(o, &x)| *o += x);
            }
            let n = (rows - skip) as f64;
            let count = if pooling == Pooling::Mean { n } else { n.sqrt() };
            out.iter_mut().for_each(|o| *o = (f64::from(*o) / count) as f32);
        }
        Pooling::WeightedMean => {
            let place = (skip + 1) as f32;
            out.iter_mut().for_each(|o| *o *= place);
            for (i, row) in others().enumerate() {
                let place = (skip + 2 + i) as f32;
                out.iter_mut().zip(row).for_each(|(o, &x)| *o += place * x);
            }
            // skip + 1 to rows, exactly
            let places = (rows * (rows + 1) - skip * (skip + 1)) as f64 / 2.0;
            out.iter_mut().for_each(|o| *o = (f64::from(*o) / places) as f32);
        }
    }
}

/// x / max(‖x‖₂, 1e-12), summed in f64: squares of f32 do not overflow there.
#[inline(always)]
pub(in super::super) fn l2_normalize<V: Vector>(_: V, x: &mut [f32]) {
    let mut acc = [0f64; 8];
    for c in x.chunks(8) {
        for (a, &x) in acc.iter_mut().zip(c) {
            *a += f64::from(x) * f64::from(x);
        }
    }
    let norm = acc.iter().sum::<f64>().sqrt().max(1e-12);
    x.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
}
