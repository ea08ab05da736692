//! Every kernel on every instruction set that this machine has, against plain loops in f64.
//! Outputs start as NaN between NaN guard bands. Bounds: `docs/numerics.md`.

use super::super::reference;
use super::buffer::Buffer;
use super::gemm::{
    BLOCK, Linear, Matrix, Narrow, NarrowKernels, NarrowLinear, PANEL, ROW_SCALE_BYTES, STEP_BYTES,
    SharedMut, Storage, narrow_gemm, pack_keys, pack_values,
};
use super::kernels::{Epilogue, Kernels};
use super::team::Team;
use super::workspace::row_stride;
use super::{CpuBackend, Isa, Plan, tile_tokens};
use crate::backend::{Backend, BackendOptions};
use crate::batch::PackedBatch;
use crate::model::{self, Activation, Dtype, Pooling, Tensor};
use crate::threads::Threads;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;

const ACTIVATIONS: [Activation; 7] = [
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::QuickGelu,
    Activation::Relu,
    Activation::Silu,
    Activation::Tanh,
    Activation::Sigmoid,
];

fn each_isa(mut f: impl FnMut(Isa, &'static Kernels)) {
    for isa in Isa::available() {
        f(isa, isa.kernels().unwrap());
    }
}

/// Reproducible numbers in [−1, 1).
pub(super) fn random(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(1);
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Floats between bands of NaN; whoever drops it has left the bands alone.
struct Guarded {
    data: Vec<f32>,
    len: usize,
}

const BAND: usize = 64;

impl Guarded {
    fn new(values: &[f32]) -> Self {
        let mut data = vec![f32::NAN; values.len() + 2 * BAND];
        data[BAND..BAND + values.len()].copy_from_slice(values);
        Self { data, len: values.len() }
    }

    fn nan(len: usize) -> Self {
        Self::new(&vec![f32::NAN; len])
    }

    fn get(&mut self) -> &mut [f32] {
        &mut self.data[BAND..BAND + self.len]
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let bands = self.data[..BAND].iter().chain(&self.data[BAND + self.len..]);
            assert!(bands.into_iter().all(|v| v.is_nan()), "a kernel wrote outside of its output");
        }
    }
}

/// |got − want| in units of the last place of `want` as an f32.
fn ulps(got: f32, want: f64) -> f64 {
    let w = want.abs().max(f64::from(f32::MIN_POSITIVE)) as f32;
    (f64::from(got) - want).abs() / f64::from(f32::from_bits(w.to_bits() + 1) - w)
}

/// Every 97th f32 of a range of positive ones, and its negative.
fn sweep(low: f32, high: f32) -> impl Iterator<Item = f32> {
    (low.to_bits()..=high.to_bits()).step_by(97).map(f32::from_bits).flat_map(|x| [x, -x])
}

/// The greatest of `error(x, f(x))` over a sweep.
fn worst(kernel: impl Fn(&mut [f32]), x: &[f32], error: impl Fn(f32, f32) -> f64) -> (f64, f32) {
    let mut y = x.to_vec();
    kernel(&mut y);
    x.iter().zip(&y).map(|(&x, &y)| (error(x, y), x)).fold((0.0, 0.0), |a, b| if b.0 > a.0 { b } else { a })
}

#[test]
fn exp_matches_reference() {
    let x: Vec<f32> = sweep(1e-10, 90.0).filter(|&x| x > -87.3365 && x < 88.7228).collect();
    each_isa(|isa, k| {
        let (error, at) = worst(|y| k.exp(y), &x, |x, y| ulps(y, f64::from(x).exp()));
        assert!(error <= 1.5, "{isa}: {error} ULP at {at}");
    });
}

#[test]
fn exp_at_edges() {
    each_isa(|isa, k| {
        let mut y =
            [0.0, -0.0, f32::NEG_INFINITY, f32::INFINITY, f32::NAN, -88.0, -1e30, 89.0, 1e30, f32::MIN];
        k.exp(&mut y);
        assert_eq!(y[..4], [1.0, 1.0, 0.0, f32::INFINITY], "{isa}");
        assert!(y[4].is_nan(), "{isa}");
        assert_eq!(y[5..], [0.0, 0.0, f32::INFINITY, f32::INFINITY, 0.0], "{isa}");
    });
}

#[test]
fn activations_match_reference() {
    let x: Vec<f32> = sweep(1e-12, 30.0).chain([0.0, -0.0]).collect();
    for f in ACTIVATIONS {
        // absolute near 0 and in the tails, relative for large results
        let bound = match f {
            Activation::Gelu => 1.5e-7,
            Activation::Relu => 0.0,
            Activation::GeluTanh
            | Activation::QuickGelu
            | Activation::Silu
            | Activation::Tanh
            | Activation::Sigmoid => 2.5e-7,
        };
        each_isa(|isa, k| {
            let error = |x: f32, y: f32| {
                let want = f64::from(reference::activation(f, x));
                (f64::from(y) - want).abs() / want.abs().max(1.0)
            };
            let (error, at) = worst(|y| k.activate(f, y), &x, error);
            assert!(error <= bound, "{isa} {f:?}: {error:.3e} at {at}");
        });
    }
}

#[test]
fn activations_at_edges() {
    each_isa(|isa, k| {
        for f in ACTIVATIONS {
            let mut y = [f32::NAN, f32::INFINITY, f32::MAX, f32::MIN, f32::NEG_INFINITY];
            k.activate(f, &mut y);
            assert!(y[0].is_nan(), "{isa} {f:?}");
            let want = match f {
                Activation::Tanh => [1.0, 1.0, -1.0, -1.0],
                Activation::Sigmoid => [1.0, 1.0, 0.0, 0.0],
                Activation::Gelu
                | Activation::GeluTanh
                | Activation::QuickGelu
                | Activation::Relu
                | Activation::Silu => [f32::INFINITY, f32::MAX, 0.0, 0.0],
            };
            assert_eq!(y[1..], want, "{isa} {f:?}");
        }
    });
}

#[test]
fn activations_at_every_length() {
    // an element's value does not depend on its place, in a vector or in a tail
    each_isa(|isa, k| {
        for f in ACTIVATIONS {
            for n in 0..40 {
                let x = random(n, 3);
                let mut y = Guarded::new(&x);
                k.activate(f, y.get());
                for (i, &x) in x.iter().enumerate() {
                    let mut alone = [x];
                    k.activate(f, &mut alone);
                    assert_eq!(y.get()[i].to_bits(), alone[0].to_bits(), "{isa} {f:?} {n} {i}");
                }
            }
        }
    });
}

fn linear(n: usize, k: usize, seed: u32) -> model::Linear {
    model::Linear {
        weight: Tensor::from_f32("weight", &[n, k], &random(n * k, seed)),
        bias: Some(Tensor::from_f32("bias", &[n], &random(n, seed + 1))),
    }
}

/// Sizes around the edges of tiles of `edge`.
fn around(edge: usize) -> Vec<usize> {
    vec![1, 2, edge - 1, edge, edge + 1, 2 * edge + 3]
}

/// Bound of |error| of a chain of k products: k roundings at most, each of half an ULP of what has been
/// summed so far, which is below Σ|a·b|.
fn chain_bound(a: &[f32], w: &[f32]) -> f64 {
    let total: f64 = a.iter().zip(w).map(|(a, w)| (f64::from(*a) * f64::from(*w)).abs()).sum();
    (a.len() as f64 + 2.0) * f64::from(f32::EPSILON) * (total + 1.0)
}

fn check_gemm(isa: Isa, kernels: &Kernels, m: usize, n: usize, k: usize, threads: &Threads) {
    let l = linear(n, k, 5);
    let (weight, bias) = (l.weight.to_f32(), l.bias.as_ref().unwrap().to_f32());
    let packed = Linear::pack(&[(&l, 1.0)], kernels, Team::One);
    let (a_stride, c_stride) = (row_stride(k), row_stride(n));
    let mut a = vec![f32::NAN; m * a_stride];
    for (row, values) in a.chunks_exact_mut(a_stride).zip(random(m * k, 9).chunks_exact(k)) {
        row[..k].copy_from_slice(values);
    }
    let a = Matrix::new(&a, m, k, a_stride);
    let old = random(m * n, 11);

    let epilogues =
        [(None, false), (None, true), (Some(Activation::Relu), false), (Some(Activation::Gelu), false)];
    for (activation, residual) in epilogues {
        let mut c = vec![f32::NAN; m * c_stride];
        if residual {
            for (row, old) in c.chunks_exact_mut(c_stride).zip(old.chunks_exact(n)) {
                row[..n].copy_from_slice(old);
            }
        }
        let mut shared = Guarded::new(&c);
        let mut c = Guarded::new(&c);
        super::gemm::gemm(kernels, Team::One, a, &packed, activation, residual, c.get(), c_stride);
        super::gemm::gemm(
            kernels,
            Team::All(threads),
            a,
            &packed,
            activation,
            residual,
            shared.get(),
            c_stride,
        );
        for i in 0..m {
            let row = &c.get()[i * c_stride..][..c_stride];
            assert!(row[n..].iter().all(|v| v.is_nan()), "{isa}: nothing is written beside row {i}");
            for j in 0..n {
                let w = &weight[j * k..][..k];
                let dot: f64 = a.row(i).iter().zip(w).map(|(a, w)| f64::from(*a) * f64::from(*w)).sum();
                let mut want = dot + f64::from(bias[j]);
                if residual {
                    want += f64::from(old[i * n + j]);
                }
                if let Some(f) = activation {
                    want = f64::from(reference::activation(f, want as f32));
                }
                let error = (f64::from(row[j]) - want).abs();
                // no activation here stretches an error by more than 1.13
                let bound = 1.2 * chain_bound(a.row(i), w);
                assert!(error <= bound, "{isa} {m}x{n}x{k} {activation:?} {residual} at {i},{j}: {error:e}");
            }
            let again = &shared.get()[i * c_stride..][..n];
            assert!(
                row[..n].iter().zip(again).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{isa} {m}x{n}x{k}: threads change no bit of row {i}"
            );
        }
    }
}

#[test]
fn gemm_matches_reference() {
    let threads = Threads::new(NonZeroUsize::new(3)).unwrap();
    each_isa(|isa, kernels| {
        for m in around(kernels.mr()) {
            for n in around(kernels.nr) {
                for k in [1, 3, 4, 16, 37] {
                    check_gemm(isa, kernels, m, n, k, &threads);
                }
            }
        }
        for (m, n, k) in [(29, 384, 384), (15, 1536, 384), (16, 384, 1536), (3, 768, 768), (50, 1152, 384)] {
            check_gemm(isa, kernels, m, n, k, &threads);
        }
    });
}

/// Every kernel for these numbers that the machine can run, not only those that it would use.
#[allow(clippy::print_stderr, reason = "a test that skips says so")]
fn each_narrow(numbers: Narrow, mut f: impl FnMut(Isa, &'static NarrowKernels)) {
    let mut any = false;
    for isa in Isa::available() {
        for kernels in isa.narrow_kernels().into_iter().filter(|k| k.numbers == numbers) {
            any = true;
            f(isa, kernels);
        }
    }
    if !any {
        eprintln!("SKIP: no products in {numbers:?} on this machine");
    }
}

/// The nearest bf16, as an f32.
fn rounded(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect()
}

/// `narrow_gemm` over whole rows of `n`; scratch and output start as NaN.
fn run_narrow(
    numbers: Narrow,
    team: Team<'_>,
    a: Matrix<'_>,
    w: &NarrowLinear,
    f: Option<Activation>,
    old: Option<&[f32]>,
    n: usize,
) -> Vec<f32> {
    let mut scratch = Buffer::zeroed(numbers.scratch_floats(a.rows, a.columns));
    scratch.fill(f32::NAN);
    let mut c = old.map_or_else(|| Guarded::nan(a.rows * n), Guarded::new);
    narrow_gemm(team, a, w, f, old.is_some(), &mut scratch, c.get(), n);
    c.get().to_vec()
}

/// Calls `f` with (m, n, k) around the edges of blocks, panels and steps, and with some of the models' own.
fn narrow_shapes(numbers: Narrow, mut f: impl FnMut(usize, usize, usize)) {
    let depth = numbers.depth();
    for m in [1, 5, 15, 16, 17, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3] {
        for n in [1, PANEL - 1, PANEL, PANEL + 1, 3 * PANEL + 17] {
            for k in [1, 2, 3, depth - 1, depth, depth + 1, 2 * depth + 5] {
                f(m, n, k);
            }
        }
    }
    for (m, n, k) in [(50, 1152, 384), (33, 384, 1536), (3, 768, 768)] {
        f(m, n, k);
    }
}

const NARROW_EPILOGUES: [(Option<Activation>, bool); 3] =
    [(None, false), (None, true), (Some(Activation::Gelu), false)];

#[test]
fn bf16_gemm_matches_reference() {
    let threads = Threads::new(NonZeroUsize::new(3)).unwrap();
    each_narrow(Narrow::Bf16, |isa, kernels| {
        narrow_shapes(Narrow::Bf16, |m, n, k| {
            let l = linear(n, k, 5);
            let packed = NarrowLinear::pack(&[(&l, 1.0)], kernels, Team::One);
            let (weight, bias) = (rounded(&l.weight.to_f32()), l.bias.as_ref().unwrap().to_f32());
            let (a, old) = (random(m * k, 9), random(m * n, 11));
            let exact = rounded(&a);
            let a = Matrix::new(&a, m, k, k);
            for (f, residual) in NARROW_EPILOGUES {
                let old = residual.then_some(&old[..]);
                let one = run_narrow(Narrow::Bf16, Team::One, a, &packed, f, old, n);
                let all = run_narrow(Narrow::Bf16, Team::All(&threads), a, &packed, f, old, n);
                for i in 0..m {
                    for j in 0..n {
                        let (x, w) = (&exact[i * k..][..k], &weight[j * k..][..k]);
                        let dot: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                        let mut want =
                            dot + f64::from(bias[j]) + old.map_or(0.0, |o| f64::from(o[i * n + j]));
                        if let Some(f) = f {
                            want = f64::from(reference::activation(f, want as f32));
                        }
                        let (got, bound) = (one[i * n + j], 1.2 * chain_bound(x, w));
                        let error = (f64::from(got) - want).abs();
                        assert!(error <= bound, "{isa} {m}x{n}x{k} {f:?} {residual} at {i},{j}: {error:e}");
                    }
                }
                assert_eq!(bits(&one), bits(&all), "{isa} {m}x{n}x{k}: threads");
            }
        });
    });
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// What a row becomes in int8: bytes, scale and zero point.
fn quantized(row: &[f32]) -> (Vec<i32>, f32, f32) {
    let least = row.iter().fold(0f32, |a, &x| a.min(x));
    let greatest = row.iter().fold(0f32, |a, &x| a.max(x));
    let scale = ((greatest - least) / 255.0).max(1e-30);
    let zero = (-least * (1.0 / scale)).round_ties_even() + 0.0;
    let byte = |&x: &f32| x.mul_add(1.0 / scale, zero).round_ties_even().clamp(0.0, 255.0) as i32;
    (row.iter().map(byte).collect(), scale, zero)
}

/// What a column of weights becomes: bytes and scale; with a `short_run`, such that what is added in sixteen bits fits.
fn quantized_column(weights: &[f32], short_run: usize) -> (Vec<i32>, f32) {
    // places in the run of `i` whose weights share a sum of sixteen bits with it: those of its sign in the same half of a group
    let run = 4 * short_run;
    let together = |i: usize| {
        let places = if run > 0 { i - i % run..weights.len().min(i - i % run + run) } else { 0..0 };
        places.filter(move |&j| i % 4 / 2 == j % 4 / 2 && weights[i] * weights[j] > 0.0)
    };
    let mut scale = weights.iter().fold(0f32, |a, w| a.max(w.abs())) / 127.0;
    for i in 0..weights.len() {
        scale = scale.max(together(i).map(|j| weights[j].abs()).sum::<f32>() / 128.0);
    }
    let mut bytes: Vec<i32> = weights.iter().map(|w| (w / scale).round_ties_even() as i32).collect();
    for i in 0..weights.len() {
        while together(i).map(|j| bytes[j].abs()).sum::<i32>() > 128 {
            let raised = |j: usize| bytes[j].abs() as f32 - (weights[j] / scale).abs();
            let most = together(i).max_by(|&j, &k| raised(j).total_cmp(&raised(k))).unwrap();
            bytes[most] -= bytes[most].signum();
        }
    }
    (bytes, scale)
}

/// The product in int8 with sums in i32, as plain as it can be said; no activation.
fn int8_product(a: Matrix<'_>, l: &model::Linear, old: Option<&[f32]>, short_run: usize) -> Vec<f32> {
    let (n, k) = (l.weight.shape()[0], l.weight.shape()[1]);
    let columns: Vec<_> =
        l.weight.to_f32().chunks_exact(k).map(|column| quantized_column(column, short_run)).collect();
    let bias = l.bias.as_ref().unwrap().to_f32();
    let mut out = Vec::new();
    for i in 0..a.rows {
        let (row, scale, zero) = quantized(a.row(i));
        for (j, (column, column_scale)) in columns.iter().enumerate() {
            let sum: i32 = row.iter().zip(column).map(|(x, w)| x * w).sum();
            let of_column: i32 = column.iter().sum();
            let centred = (-zero).mul_add(of_column as f32, sum as f32);
            let value = centred * (scale * column_scale) + bias[j];
            out.push(value + old.map_or(0.0, |old| old[i * n + j]));
        }
    }
    out
}

#[test]
fn int8_gemm_is_exact_and_the_same_on_all() {
    let threads = Threads::new(NonZeroUsize::new(3)).unwrap();
    narrow_shapes(Narrow::Int8, |m, n, k| {
        let l = linear(n, k, 5);
        // rows of one sign, of both, of great and of small numbers
        let mut a = random(m * k, 9);
        for (i, row) in a.chunks_exact_mut(k).enumerate() {
            let (factor, shift) = [(1.0, 0.0), (100.0, 90.0), (1e-3, -2e-3), (0.0, 0.0)][i % 4];
            row.iter_mut().for_each(|x| *x = *x * factor + shift);
        }
        let (a, old) = (Matrix::new(&a, m, k, k), random(m * n, 11));
        for (f, residual) in NARROW_EPILOGUES {
            let old = residual.then_some(&old[..]);
            let mut plain = BTreeMap::new();
            each_narrow(Narrow::Int8, |isa, kernels| {
                let name = kernels.name;
                let packed = NarrowLinear::pack(&[(&l, 1.0)], kernels, Team::One);
                let one = run_narrow(Narrow::Int8, Team::One, a, &packed, f, old, n);
                let all = run_narrow(Narrow::Int8, Team::All(&threads), a, &packed, f, old, n);
                let plain = plain
                    .entry(kernels.short_run)
                    .or_insert_with(|| int8_product(a, &l, old, kernels.short_run));
                let mut want = plain.clone();
                if let Some(f) = f {
                    isa.kernels().unwrap().activate(f, &mut want);
                }
                assert_eq!(bits(&one), bits(&want), "{name} {m}x{n}x{k} {f:?} {residual}");
                assert_eq!(bits(&one), bits(&all), "{name} {m}x{n}x{k}: threads");
            });
        }
    });
}

#[test]
fn int8_gemm_at_the_greatest_sums() {
    // bytes of 255 and of 0 against weights of ±127, all alike: what would saturate sums of sixteen bits, where weights are not as
    // small as they have to be, and their scale as large
    let k = 4096;
    let weight: Vec<f32> = (0..2 * k).map(|i| if i < k { 1.0 } else { -1.0 }).collect();
    let bias = Some(Tensor::from_f32("bias", &[2], &[0.0; 2]));
    let l = model::Linear { weight: Tensor::from_f32("weight", &[2, k], &weight), bias };
    let a: Vec<f32> = (0..2 * k).map(|i| if i < k { 255.0 } else { -255.0 }).collect();
    let a = Matrix::new(&a, 2, k, k);
    each_narrow(Narrow::Int8, |_, kernels| {
        let packed = NarrowLinear::pack(&[(&l, 1.0)], kernels, Team::One);
        let c = run_narrow(Narrow::Int8, Team::One, a, &packed, None, None, 2);
        let (weight, scale) = match kernels.short_run {
            0 => (127, 1.0 / 127.0),
            run => (64 / run, run as f32 / 64.0),
        };
        let most = (255 * weight * k) as f32 * scale;
        assert_eq!(c, [most, -most, -most, most], "{}", kernels.name);
    });
}

#[test]
fn int8_rows_at_edges() {
    each_narrow(Narrow::Int8, |_, kernels| {
        let name = kernels.name;
        let numbers = |bytes: &[u8]| bytes.iter().map(|&b| i32::from(b)).collect::<Vec<_>>();
        for n in [1, 7, 8, 15, 16, 17, 63, 64, 65, 384] {
            for (factor, shift) in
                [(1.0, 0.0), (0.0, 0.0), (1.0, 3.0), (1e-38, 0.0), (1e37, -1e37), (-5.0, -7.0)]
            {
                let x: Vec<f32> = random(n, 4).iter().map(|x| x * factor + shift).collect();
                let steps = n.next_multiple_of(STEP_BYTES);
                let mut out = vec![0xaa; steps + ROW_SCALE_BYTES];
                // SAFETY: the machine has the table's features
                unsafe { (kernels.narrow)(&x, &mut out) };
                let (want, scale, zero) = quantized(&x);
                assert_eq!(numbers(&out[..n]), want, "{name} {n} {factor} {shift}");
                assert!(out[n..steps].iter().all(|&b| b == 0), "{name} {n}: zeros behind the row");
                assert_eq!(out[steps..steps + 4], scale.to_ne_bytes(), "{name} {n} {factor} {shift}");
                assert_eq!(out[steps + 4..], zero.to_ne_bytes(), "{name} {n} {factor} {shift}");
            }
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, n / 2, n - 1] {
                    let mut x = random(n, 4);
                    x[at] = bad;
                    let mut out = vec![0; n.next_multiple_of(STEP_BYTES) + ROW_SCALE_BYTES];
                    // SAFETY: the machine has the table's features
                    unsafe { (kernels.narrow)(&x, &mut out) };
                    let scale = &out[out.len() - ROW_SCALE_BYTES..][..4];
                    assert!(
                        f32::from_ne_bytes(scale.try_into().unwrap()).is_nan(),
                        "{name}: {bad} at {at} of {n}"
                    );
                }
            }
        }
    });
}

#[test]
fn int8_weights_that_are_not_finite_give_nan() {
    each_narrow(Narrow::Int8, |_, kernels| {
        let (n, k) = (5, 70);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut weight = random(n * k, 6);
            weight[2 * k + 69] = bad;
            weight[3 * k..4 * k].fill(0.0);
            let l = model::Linear { weight: Tensor::from_f32("weight", &[n, k], &weight), bias: None };
            let packed = NarrowLinear::pack(&[(&l, 1.0)], kernels, Team::One);
            let a = random(k, 7);
            let c = run_narrow(Narrow::Int8, Team::One, Matrix::new(&a, 1, k, k), &packed, None, None, n);
            let nan: Vec<bool> = c.iter().map(|v| v.is_nan()).collect();
            assert_eq!(nan, [false, false, true, false, false], "{}", kernels.name);
            assert_eq!(c[3], 0.0, "{}: weights of 0", kernels.name);
        }
    });
}

#[test]
fn narrow_gemm_rows_do_not_depend_on_their_neighbours() {
    for numbers in [Narrow::Bf16, Narrow::Int8] {
        each_narrow(numbers, |_, kernels| {
            let (n, k) = (2 * PANEL + 3, 3 * numbers.depth() + 7);
            let packed = NarrowLinear::pack(&[(&linear(n, k, 2), 1.0)], kernels, Team::One);
            let (row, mut want) = (random(k, 21), None);
            for m in 1..=2 * BLOCK + 1 {
                for place in [0, m / 2, m - 1] {
                    // NaN around it: nothing of another row comes in
                    let mut a = vec![f32::NAN; m * k];
                    a[place * k..][..k].copy_from_slice(&row);
                    let a = Matrix::new(&a, m, k, k);
                    let c = run_narrow(numbers, Team::One, a, &packed, Some(Activation::Gelu), None, n);
                    let got = bits(&c[place * n..][..n]);
                    let want = want.get_or_insert_with(|| got.clone());
                    assert_eq!(*want, got, "{}: row {place} of {m}", kernels.name);
                }
            }
        });
    }
}

#[test]
fn narrow_gemm_of_parts_is_scaled_before_it_is_rounded() {
    for numbers in [Narrow::Bf16, Narrow::Int8] {
        each_narrow(numbers, |_, kernels| {
            let (h, k, m) = (21, 40, 5);
            let parts = [linear(h, k, 1), linear(h, k, 3)];
            let fused = NarrowLinear::pack(&[(&parts[0], 0.3), (&parts[1], 1.0)], kernels, Team::One);
            let a = random(m * k, 9);
            let a = Matrix::new(&a, m, k, k);
            let c = run_narrow(numbers, Team::One, a, &fused, None, None, 2 * h);
            for (at, (part, factor)) in parts.iter().zip([0.3, 1.0]).enumerate() {
                let scaled = |t: &Tensor| -> Vec<f32> {
                    t.to_f32().iter().map(|&x| (f64::from(x) * factor) as f32).collect()
                };
                let one = model::Linear {
                    weight: Tensor::from_f32("w", &[h, k], &scaled(&part.weight)),
                    bias: Some(Tensor::from_f32("b", &[h], &scaled(part.bias.as_ref().unwrap()))),
                };
                let one = NarrowLinear::pack(&[(&one, 1.0)], kernels, Team::One);
                let want = run_narrow(numbers, Team::One, a, &one, None, None, h);
                for i in 0..m {
                    let got = &c[i * 2 * h + at * h..][..h];
                    assert_eq!(got, &want[i * h..][..h], "{}: part {at}, row {i}", kernels.name);
                }
            }
        });
    }
}

#[test]
fn gemm_at_zero_rows_does_nothing() {
    each_isa(|_, kernels| {
        let packed = Linear::pack(&[(&linear(5, 4, 1), 1.0)], kernels, Team::One);
        let a = Matrix::new(&[], 0, 4, 16);
        super::gemm::gemm(kernels, Team::One, a, &packed, None, false, Guarded::nan(0).get(), 16);
    });
}

#[test]
fn gemm_rows_do_not_depend_on_their_neighbours() {
    each_isa(|isa, kernels| {
        for (n, k) in [(2 * kernels.nr + 3, 37), (kernels.nr, 384)] {
            let packed = Linear::pack(&[(&linear(n, k, 2), 1.0)], kernels, Team::One);
            let row = random(k, 21);
            let f = Some(Activation::Gelu);
            let mut want: Option<Vec<u32>> = None;
            for m in 1..=2 * kernels.mr() + 1 {
                for place in 0..m {
                    let mut a = random(m * k, m as u32);
                    a[place * k..][..k].copy_from_slice(&row);
                    let mut c = vec![f32::NAN; m * n];
                    let a = Matrix::new(&a, m, k, k);
                    super::gemm::gemm(kernels, Team::One, a, &packed, f, false, &mut c, n);
                    let bits: Vec<u32> = c[place * n..][..n].iter().map(|v| v.to_bits()).collect();
                    let want = want.get_or_insert_with(|| bits.clone());
                    assert_eq!(*want, bits, "{isa} {n}x{k}: row {place} of {m}");
                }
            }
        }
    });
}

#[test]
fn gemm_of_parts_is_fused_and_scaled() {
    each_isa(|isa, kernels| {
        let (h, k) = (19, 8);
        let parts = [linear(h, k, 1), linear(h, k, 3), linear(h, k, 5)];
        let fused = Linear::pack(&[(&parts[0], 0.5), (&parts[1], 1.0), (&parts[2], 1.0)], kernels, Team::One);
        let x = random(k, 8);
        let run = |l: &Linear, n: usize| {
            let mut out = vec![f32::NAN; n];
            super::gemm::gemm(kernels, Team::One, Matrix::new(&x, 1, k, k), l, None, false, &mut out, n);
            out
        };
        let got = run(&fused, 3 * h);
        for (p, part) in parts.iter().enumerate() {
            let want = run(&Linear::pack(&[(part, 1.0)], kernels, Team::One), h);
            // a half is exact
            let want: Vec<f32> = want.iter().map(|v| if p == 0 { v * 0.5 } else { *v }).collect();
            assert_eq!(got[p * h..][..h], want, "{isa}: part {p}");
        }
    });
}

/// The same numbers, stored in f32.
fn widened(linear: &model::Linear) -> model::Linear {
    model::Linear { weight: linear.weight.rounded(Dtype::F32), bias: linear.bias.clone() }
}

#[test]
fn gemm_of_weights_in_16_bits_has_the_bits_of_f32() {
    let threads = Threads::new(NonZeroUsize::new(3)).unwrap();
    each_isa(|isa, kernels| {
        for (dtype, storage) in [(Dtype::F16, Storage::F16), (Dtype::Bf16, Storage::Bf16)] {
            for n in [1, kernels.nr - 1, 2 * kernels.nr, 9 * kernels.nr, 9 * kernels.nr + 5] {
                for k in [1, 4, 7, 37] {
                    let mut values = random(n * k, 5);
                    // subnormal and the greatest in f16; both are exact in f32
                    values.iter_mut().zip([6e-8, -3e-5, 65504.0, 0.0]).for_each(|(v, edge)| *v = edge);
                    let mut l = linear(n, k, 5);
                    l.weight = Tensor::from_f32("weight", &[n, k], &values).rounded(dtype);
                    let narrow = Linear::pack(&[(&l, 0.3)], kernels, Team::One);
                    let wide = Linear::pack(&[(&widened(&l), 0.3)], kernels, Team::One);
                    let reads = kernels.reads(storage);
                    assert_eq!(narrow.panels().storage, if reads { storage } else { Storage::F32 }, "{isa}");
                    assert_eq!(wide.panels().storage, Storage::F32, "{isa}");
                    for m in (1..=kernels.mr() + 2).chain([3 * kernels.mr(), 47, 48, 61]) {
                        let (a, old) = (random(m * k, 9), random(m * n, 11));
                        let a = Matrix::new(&a, m, k, k);
                        for (f, residual) in [(None, true), (Some(Activation::Gelu), false)] {
                            let run = |w: &Linear, team: Team<'_>| {
                                let mut c = if residual { Guarded::new(&old) } else { Guarded::nan(m * n) };
                                super::gemm::gemm(kernels, team, a, w, f, residual, c.get(), n);
                                bits(c.get())
                            };
                            let want = run(&wide, Team::One);
                            for team in [Team::One, Team::All(&threads)] {
                                assert_eq!(run(&narrow, team), want, "{isa} {dtype:?} {m}x{n}x{k} {f:?}");
                            }
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn gemm_of_parts_of_different_types_is_in_f32() {
    each_isa(|isa, kernels| {
        let wide = linear(5, 8, 3);
        let of = |dtype| model::Linear { weight: wide.weight.rounded(dtype), bias: None };
        for (first, second) in
            [(Dtype::F16, Dtype::F32), (Dtype::F32, Dtype::Bf16), (Dtype::F16, Dtype::Bf16)]
        {
            let packed = Linear::pack(&[(&of(first), 1.0), (&of(second), 1.0)], kernels, Team::One);
            assert_eq!(packed.panels().storage, Storage::F32, "{isa} {first:?} {second:?}");
        }
    });
}

#[test]
fn a_model_in_16_bits_takes_half_the_memory_and_has_the_bits_of_f32() {
    for (head_dim, heads) in [(64, 2), (32, 4)] {
        let desc = model::ModelDesc {
            vocab_size: 50,
            hidden_size: head_dim * heads,
            num_hidden_layers: 2,
            num_attention_heads: heads,
            intermediate_size: 4 * head_dim * heads,
            max_position_embeddings: 64,
            type_vocab_size: 1,
            layer_norm_eps: 1e-12,
            pooling: vec![Pooling::Mean],
            max_seq_length: 64,
            ..model::ModelDesc::default()
        };
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let stored = |dtype: &[Dtype]| {
                let mut weights = model::Weights::random(&desc, 3);
                let of_layer = |l: &mut model::Layer| {
                    for linear in [
                        &mut l.query,
                        &mut l.key,
                        &mut l.value,
                        &mut l.attention_output,
                        &mut l.intermediate,
                        &mut l.output,
                    ] {
                        linear.weight =
                            dtype.iter().fold(linear.weight.clone(), |weight, &dtype| weight.rounded(dtype));
                    }
                };
                weights.layers.iter_mut().for_each(of_layer);
                weights
            };
            for isa in Isa::available() {
                let run = |weights: &model::Weights| {
                    let threads = Threads::new(NonZeroUsize::new(2)).unwrap();
                    let options = BackendOptions { isa: Some(isa), ..BackendOptions::new(threads) };
                    let mut cpu = CpuBackend::new(&desc, weights, &options).unwrap();
                    let mut batch = PackedBatch::default();
                    for (row, seqlen) in [1, 3, 17].into_iter().enumerate() {
                        batch.push(row, &vec![7 * row as u32; seqlen], &vec![0; seqlen]);
                    }
                    let mut out = vec![f32::NAN; 3 * desc.dim()];
                    cpu.submit(batch).unwrap();
                    cpu.collect(&mut out).unwrap();
                    (bits(&out), cpu.capacity().weight_bytes)
                };
                let (narrow, narrow_bytes) = run(&stored(&[dtype]));
                let (wide, wide_bytes) = run(&stored(&[dtype, Dtype::F32]));
                assert_eq!(narrow, wide, "{isa} {dtype:?} {head_dim}");
                let percent = if isa == Isa::Portable { 100..=100 } else { 50..=55 };
                let got = 100 * narrow_bytes / wide_bytes;
                assert!(percent.contains(&got), "{isa} {dtype:?} {head_dim}: {got} %");
            }
        }
    }
}

#[test]
fn packed_keys_and_values_are_the_head_and_zeros() {
    for (n, d) in [(1usize, 1usize), (7, 10), (16, 32), (17, 24), (33, 64)] {
        for nr in [8usize, 16, 32] {
            let x = random(n * d, 4);
            let x = Matrix::new(&x, n, d, d);
            let mut buffer = Guarded::nan(n.next_multiple_of(nr) * d);
            let keys = pack_keys(x, nr, buffer.get());
            assert_eq!(keys.n, n.next_multiple_of(nr));
            for j in 0..keys.n {
                for c in 0..d {
                    let want = if j < n { x.row(j)[c] } else { 0.0 };
                    assert_eq!(keys.data[j / nr * nr * d + c * nr + j % nr], want);
                }
            }
            let mut buffer = Guarded::nan(d.next_multiple_of(nr) * n);
            let values = pack_values(x, nr, buffer.get());
            for t in 0..n {
                for c in 0..d.next_multiple_of(nr) {
                    let want = if c < d { x.row(t)[c] } else { 0.0 };
                    assert_eq!(values.data[c / nr * nr * n + t * nr + c % nr], want);
                }
            }
        }
    }
}

#[test]
fn softmax_matches_reference() {
    each_isa(|isa, kernels| {
        for n in (1usize..70).chain([127, 128, 129, 512, 8192]) {
            let padded = n.next_multiple_of(kernels.nr);
            let x: Vec<f32> = random(n, n as u32).iter().map(|v| v * 20.0).collect();
            let mut y = Guarded::nan(padded);
            y.get()[..n].copy_from_slice(&x);
            let sum = kernels.softmax(y.get(), n);
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let want: Vec<f64> = x.iter().map(|v| f64::from(v - max).exp()).collect();
            let total: f64 = want.iter().sum();
            assert!((f64::from(sum) / total - 1.0).abs() < 1e-6, "{isa} {n}: {sum}, {total}");
            for (y, w) in y.get().iter().zip(&want) {
                assert!(ulps(*y, *w) <= 1.5, "{isa} {n}: {y}, {w}");
            }
            assert!(y.get()[n..].iter().all(|v| *v == 0.0), "{isa} {n}: 0 beyond the scores");
        }
    });
}

/// Of all numbers that are not above 0, softmax takes the exponentials that `exp` gives, but for what `exp_to_1` says of the least.
#[test]
fn softmax_has_the_bits_of_exp() {
    let edges = [0.0, -0.0, f32::NEG_INFINITY, f32::MIN, -87.336_54, -87.336_55, -88.0];
    let x: Vec<f32> = sweep(1e-10, 1e3).filter(|&x| x < 0.0).chain(edges).collect();
    each_isa(|isa, kernels| {
        let mut want = x.clone();
        kernels.exp(&mut want);
        let mut y = x.clone();
        y.resize(x.len().next_multiple_of(kernels.nr), 0.0);
        kernels.softmax(&mut y, x.len());
        for ((x, y), want) in x.iter().zip(&y).zip(&want) {
            if *want == 0.0 && *x > -88.0 {
                assert!((0.0..=f32::MIN_POSITIVE).contains(y), "{isa} {x}: {y}");
            } else {
                let apart = y.to_bits().abs_diff(want.to_bits());
                let bound = u32::from(isa == Isa::Portable && *want < 1e-30);
                assert!(apart <= bound, "{isa} {x}: {y}, {want}");
            }
        }
    });
}

#[test]
fn softmax_rows_of_nan_stay_nan() {
    each_isa(|isa, kernels| {
        let mut y = vec![1.0; kernels.nr];
        y[3] = f32::NAN;
        assert!(kernels.softmax(&mut y, 5).is_nan(), "{isa}");
    });
}

#[test]
fn layernorm_matches_reference() {
    each_isa(|isa, kernels| {
        for h in (1..70).chain([127, 128, 384, 768, 1024]) {
            for (offset, spread) in [(0.0, 1.0), (100.0, 1.0), (0.0, 1e-3)] {
                let x: Vec<f32> = random(h, 6).iter().map(|v| offset + spread * v).collect();
                let (weight, bias) = (random(h, 7), random(h, 8));
                let (position, token_type) = (random(h, 9), random(h, 10));
                let mut plain = Guarded::new(&x);
                kernels.layernorm(plain.get(), &weight, &bias, 1e-5);
                let mut embedded = Guarded::new(&x);
                kernels.embed_layernorm(embedded.get(), &position, &token_type, &weight, &bias, 1e-5);

                let sums: Vec<f32> = (0..h).map(|i| x[i] + position[i] + token_type[i]).collect();
                for (x, got) in [(&x, plain.get()), (&sums, embedded.get())] {
                    let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / h as f64;
                    let var = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / h as f64;
                    for i in 0..h {
                        let unit = (f64::from(x[i]) - mean) / (var + 1e-5).sqrt();
                        let want = unit * f64::from(weight[i]) + f64::from(bias[i]);
                        let error = (f64::from(got[i]) - want).abs();
                        // the mean is an f32: an offset costs as many digits as it has beyond the spread
                        let bound = 2e-6 * (1.0 + unit.abs()) * (1.0 + mean.abs() / (var + 1e-5).sqrt());
                        assert!(error <= bound, "{isa} {h} {offset} {spread} at {i}: {error:e}");
                    }
                }
            }
        }
    });
}

#[test]
fn add_multiply_and_rotate_match_reference() {
    each_isa(|isa, kernels| {
        for half in [0, 1, 3, 4, 7, 8, 12, 15, 16, 17, 33, 64] {
            let (x, y) = (random(2 * half, 1), random(2 * half, 2));
            let apply = |f: &dyn Fn(&mut [f32])| {
                let mut out = Guarded::nan(2 * half);
                out.get().copy_from_slice(&x);
                f(out.get());
                out.get().to_vec()
            };
            let sums: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
            assert_eq!(apply(&|out| kernels.add(out, &y)), sums, "{isa} {half}");
            let products: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x * y).collect();
            assert_eq!(apply(&|out| kernels.multiply(out, &y)), products, "{isa} {half}");
            let (cos, sin) = y.split_at(half);
            let rotated = apply(&|out| kernels.rotate(out, cos, sin));
            for i in 0..half {
                let (a, b) = (f64::from(x[i]), f64::from(x[half + i]));
                let (c, s) = (f64::from(cos[i]), f64::from(sin[i]));
                for (got, want) in [(rotated[i], a * c - b * s), (rotated[half + i], b * c + a * s)] {
                    assert!((f64::from(got) - want).abs() <= 2e-7, "{isa} {half} at {i}: {got}, {want}");
                }
            }
        }
    });
}

#[test]
fn pool_matches_reference() {
    each_isa(|isa, kernels| {
        for h in [1, 7, 16, 33, 384] {
            for rows in [1, 2, 3, 128, 513] {
                let stride = row_stride(h);
                let mut x = vec![f32::NAN; rows * stride];
                for (row, values) in x.chunks_exact_mut(stride).zip(random(rows * h, 3).chunks_exact(h)) {
                    row[..h].copy_from_slice(values);
                }
                let x = Matrix::new(&x, rows, h, stride);
                for (pooling, skip) in POOLINGS.into_iter().flat_map(|p| [0, 1, 2, rows].map(|s| (p, s))) {
                    let mut out = Guarded::nan(h);
                    kernels.pool(pooling, x, skip, out.get());
                    for c in 0..h {
                        let want = pooled(
                            pooling,
                            skip.min(rows),
                            &(0..rows).map(|r| x.row(r)[c]).collect::<Vec<_>>(),
                        );
                        let got = f64::from(out.get()[c]);
                        let error = if got == want { 0.0 } else { (got - want).abs() };
                        assert!(
                            error <= 2e-6,
                            "{isa} {pooling:?} {rows}x{h}, {skip} skipped, at {c}: {error:e}"
                        );
                    }
                }
            }
        }
    });
}

const POOLINGS: [Pooling; 6] = [
    Pooling::Cls,
    Pooling::Max,
    Pooling::Mean,
    Pooling::MeanSqrtLen,
    Pooling::WeightedMean,
    Pooling::LastToken,
];

/// Of one column.
fn pooled(pooling: Pooling, skip: usize, x: &[f32]) -> f64 {
    let rest: Vec<f64> = x[skip..].iter().map(|&v| f64::from(v)).collect();
    let n = rest.len() as f64;
    let place = |i: usize| (skip + i + 1) as f64;
    match pooling {
        Pooling::Cls => f64::from(x[if rest.is_empty() { 0 } else { skip }]),
        Pooling::Max => rest.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        Pooling::Mean => rest.iter().sum::<f64>() / n.max(1.0),
        Pooling::MeanSqrtLen => rest.iter().sum::<f64>() / n.max(1.0).sqrt(),
        Pooling::WeightedMean => {
            let sum: f64 = rest.iter().enumerate().map(|(i, v)| place(i) * v).sum();
            sum / (0..rest.len()).map(place).sum::<f64>().max(1.0)
        }
        Pooling::LastToken => rest.last().copied().unwrap_or(0.0),
    }
}

#[test]
fn l2_normalize_matches_reference() {
    each_isa(|isa, kernels| {
        for (n, spread) in [(1, 1.0), (7, 1.0), (384, 1.0), (384, 1e30), (384, 1e-30), (3, 0.0)] {
            let x: Vec<f32> = random(n, 3).iter().map(|v| v * spread).collect();
            let mut y = Guarded::new(&x);
            kernels.l2_normalize(y.get());
            let norm = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt().max(1e-12);
            for (y, x) in y.get().iter().zip(&x) {
                assert!(ulps(*y, f64::from(*x) / norm) <= 0.51, "{isa} {n} {spread}: {y}");
            }
        }
    });
}

fn plan(seqlens: &[usize], threads: usize, tile: usize, narrow: usize, wide: usize) -> Plan {
    let mut ends = vec![0u32];
    for n in seqlens {
        ends.push(ends.last().unwrap() + *n as u32);
    }
    let mut plan = Plan::default();
    plan.fill(&ends, threads, tile, narrow, wide);
    let mut all: Vec<_> = plan.narrow.iter().chain(&plan.wide).cloned().collect();
    all.sort_by_key(|r| r.start);
    let mut next = 0;
    for range in &all {
        assert_eq!(range.start, next, "each sequence once: {all:?}");
        next = range.end;
    }
    assert_eq!(next, seqlens.len());
    let tokens = |r: &std::ops::Range<usize>| seqlens[r.clone()].iter().sum::<usize>();
    assert!(plan.narrow.iter().all(|r| tokens(r) <= narrow), "{plan:?}");
    assert!(plan.wide.iter().all(|r| tokens(r) <= wide.max(narrow)), "{plan:?}");
    plan
}

#[test]
fn plan_gives_each_thread_as_many_tiles() {
    assert_eq!(plan(&[16; 64], 2, 128, 512, 512).narrow.len(), 8);
    assert_eq!(plan(&[16; 65], 2, 128, 512, 512).narrow.len(), 10);
    assert_eq!(plan(&[16; 64], 3, 128, 512, 512).narrow.len(), 9);
}

/// The one range of a list of one.
fn only(ranges: &[std::ops::Range<usize>]) -> std::ops::Range<usize> {
    assert_eq!(ranges.len(), 1, "{ranges:?}");
    ranges[0].clone()
}

#[test]
fn plan_shares_small_batches_and_long_sequences() {
    assert_eq!(only(&plan(&[20, 20], 2, 128, 512, 600).wide), 0..2);
    assert!(plan(&[20, 20], 1, 128, 512, 512).wide.is_empty());
    assert!(plan(&[300, 20, 20], 1, 128, 512, 0).wide.is_empty(), "there is nobody to share with");
    assert_eq!(only(&plan(&[256], 2, 384, 512, 600).wide), 0..1, "no thread looks on");
    assert_eq!(only(&plan(&[300, 100], 2, 384, 512, 600).wide), 0..2);
    assert_eq!(plan(&[300, 250], 2, 384, 512, 600).narrow, [0..1, 1..2]);
    assert_eq!(plan(&[300; 3], 2, 300, 512, 600).narrow, [0..1, 1..2, 2..3], "a tile for whoever is free");
    assert_eq!(plan(&[200; 4], 2, 512, 512, 600).narrow, [0..2, 2..4]);
    let long = plan(&[600, 400, 400], 2, 128, 512, 600);
    assert_eq!((only(&long.wide), long.narrow.len()), (0..1, 2));
    assert_eq!(plan(&[], 2, 128, 512, 512), Plan::default());
}

#[test]
fn plan_holds_its_promises_for_any_lengths() {
    for seed in 0..200 {
        let n = 1 + seed as usize % 60;
        let seqlens: Vec<usize> = random(n, seed).iter().map(|v| 1 + (v.abs() * 511.0) as usize).collect();
        for threads in [1, 2, 7] {
            plan(&seqlens, threads, 128, 512, 512);
        }
    }
}

#[test]
fn tiles_fit_the_cache_within_limits() {
    let desc = crate::model::ModelDesc {
        family: crate::model::Family::Bert,
        vocab_size: 10,
        hidden_size: 384,
        num_hidden_layers: 1,
        num_attention_heads: 12,
        intermediate_size: 1536,
        max_position_embeddings: 512,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        hidden_act: Activation::Gelu,
        pooling: vec![Pooling::Mean],
        normalize: true,
        max_seq_length: 256,
        ..crate::model::ModelDesc::default()
    };
    assert_eq!(tile_tokens(512 << 10, &desc), super::TILE_TOKENS.start);
    assert_eq!(tile_tokens(1 << 40, &desc), super::TILE_TOKENS.end);
}

#[test]
fn isa_is_refused_by_name_and_listed() {
    assert!("sse2".parse::<Isa>().unwrap_err().to_string().contains("one of portable, avx2, avx512"));
    assert_eq!(Isa::available()[0], Isa::Portable);
    for isa in Isa::available() {
        assert_eq!(isa.to_string().parse::<Isa>().unwrap(), isa);
        assert_eq!(isa.kernels().unwrap().name, isa.to_string());
    }
}

#[test]
fn row_scale_multiplies_rows() {
    each_isa(|isa, kernels| {
        let (m, k) = (2 * kernels.mr() + 1, 5);
        let n = kernels.nr + 1;
        let packed = Linear::pack(&[(&linear(n, k, 2), 1.0)], kernels, Team::One);
        let (a, scale) = (random(m * k, 1), random(m, 2));
        let a = Matrix::new(&a, m, k, k);
        let run = |epilogue: Epilogue<'_>| {
            let mut c = Guarded::nan(m * n);
            let out = SharedMut::new(c.get(), m, n, n);
            // SAFETY: nobody else has the buffer
            unsafe { kernels.gemm(a, &packed.panels(), 0..m, 0..2, epilogue, &out) };
            c.get().to_vec()
        };
        let (plain, scaled) = (run(Epilogue::None), run(Epilogue::RowScale(&scale)));
        for i in 0..m * n {
            assert_eq!(scaled[i], plain[i] * scale[i / n], "{isa} at {i}");
        }
    });
}
