//! The kernels for `benches/cpu_kernels.rs` and `berthier bench kernels`. No part of the library's interface.
#![allow(missing_docs, reason = "for the benches only")]
#![allow(unsafe_code, reason = "calls of functions compiled for features that the machine was asked for")]

use super::Isa;
use super::buffer::Buffer;
use super::gemm::{Linear, Matrix, NarrowKernels, NarrowLinear, gemm, narrow_gemm};
use super::kernels::Kernels;
use super::team::Team;
use super::workspace::row_stride;
use crate::model::{self, Activation, Dtype, Pooling, Tensor};
use std::time::Instant;

/// A product `[m, k] · [k, n]` with packed weights, of one layer or of several in turn.
pub struct Gemm {
    kernels: &'static Kernels,
    w: Vec<Linear>,
    a: Vec<f32>,
    c: Vec<f32>,
    m: usize,
    n: usize,
    k: usize,
    next: usize,
}

/// A layer whose weights are some numbers or other.
fn linear(n: usize, k: usize) -> model::Linear {
    let values: Vec<f32> = (0..n * k).map(|i| (i % 255) as f32 / 255.0 - 0.5).collect();
    model::Linear {
        weight: Tensor::from_f32("w", &[n, k], &values),
        bias: Some(Tensor::from_f32("b", &[n], &vec![0.1; n])),
    }
}

/// As `Gemm`, in narrow numbers.
pub struct NarrowGemm {
    kernels: &'static NarrowKernels,
    w: NarrowLinear,
    a: Vec<f32>,
    scratch: Buffer,
    c: Vec<f32>,
    m: usize,
    n: usize,
    k: usize,
}

impl NarrowGemm {
    /// One for each of the instruction set's kernels that the machine can run.
    pub fn all(isa: Isa, m: usize, n: usize, k: usize) -> Vec<Self> {
        let each = |kernels| {
            let w = NarrowLinear::pack(&[(&linear(n, k), 1.0)], kernels, Team::One);
            let scratch = Buffer::zeroed(kernels.numbers.scratch_floats(m, k));
            let (a, c) = (vec![0.5; m * row_stride(k)], vec![0.0; m * row_stride(n)]);
            Self { kernels, w, a, scratch, c, m, n, k }
        };
        isa.narrow_kernels().into_iter().map(each).collect()
    }

    /// Of its kernels, with the numbers: `amx-int8`.
    pub fn name(&self) -> &'static str {
        self.kernels.name
    }

    /// Operations of `steps` steps of the loop that does nothing but multiply and add.
    pub fn peak(&self, steps: usize) -> f64 {
        // SAFETY: whoever has the table has its features
        std::hint::black_box(unsafe { (self.kernels.peak)(steps) });
        (steps * self.kernels.peak_operations) as f64
    }

    pub fn flops(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64
    }

    pub fn run(&mut self, activation: Option<Activation>, residual: bool) {
        let a = Matrix::new(&self.a, self.m, self.k, row_stride(self.k));
        let (scratch, stride) = (&mut self.scratch, row_stride(self.n));
        narrow_gemm(Team::One, a, &self.w, activation, residual, scratch, &mut self.c, stride);
    }
}

impl Gemm {
    /// Of `layers` layers in turn: with so many that no cache holds them, their weights come from memory each time.
    ///
    /// Their checkpoint's type is `dtype`.
    pub fn new(isa: Isa, m: usize, n: usize, k: usize, dtype: Dtype, layers: usize) -> Self {
        let kernels = isa.kernels().expect("one of Isa::available");
        let mut linear = linear(n, k);
        linear.weight = linear.weight.rounded(dtype);
        let w = (0..layers).map(|_| Linear::pack(&[(&linear, 1.0)], kernels, Team::One)).collect();
        let (a, c) = (vec![0.5; m * row_stride(k)], vec![0.0; m * row_stride(n)]);
        Self { kernels, w, a, c, m, n, k, next: 0 }
    }

    pub fn flops(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64
    }

    /// Of one layer's weights, which one call reads.
    pub fn weight_bytes(&self) -> f64 {
        self.w[0].bytes() as f64
    }

    pub fn run(&mut self, activation: Option<Activation>, residual: bool) {
        let a = Matrix::new(&self.a, self.m, self.k, row_stride(self.k));
        let (w, stride) = (&self.w[self.next], row_stride(self.n));
        gemm(self.kernels, Team::One, a, w, activation, residual, &mut self.c, stride);
        self.next = (self.next + 1) % self.w.len();
    }

    /// Reads a layer's weights and does nothing with them but what makes the compiler read them: what a product of few
    /// rows could reach at most.
    pub fn read(&mut self) {
        let data = self.w[self.next].panels().data;
        // from four places at a time, as one alone gives less
        let quarter = data.len() / 4;
        let mut sums = [[0u32; 16]; 4];
        for at in (0..quarter / 16 * 16).step_by(16) {
            for (i, sums) in sums.iter_mut().enumerate() {
                let line = &data[i * quarter + at..][..16];
                sums.iter_mut().zip(line).for_each(|(sum, x)| *sum ^= x.to_bits());
            }
        }
        std::hint::black_box(sums);
        self.next = (self.next + 1) % self.w.len();
    }
}

/// Steps of the loops in registers of a sample of the peak.
const PEAK_STEPS: usize = 100_000;

/// 10⁹ operations a second of a loop in registers that does so many steps and returns its operations, [`fma_peak`] or
/// [`NarrowGemm::peak`]: the best of a few samples, as it is a limit.
pub fn peak(operations: impl Fn(usize) -> f64) -> f64 {
    let run = || {
        let clock = Instant::now();
        operations(PEAK_STEPS) / clock.elapsed().as_secs_f64() / 1e9
    };
    (0..5).map(|_| run()).fold(0.0, f64::max)
}

/// Floating point operations of `steps` steps of the loop that does nothing but multiply-adds.
pub fn fma_peak(isa: Isa, steps: usize) -> f64 {
    let (flops, sum) = isa.kernels().expect("one of Isa::available").fma_peak(steps);
    std::hint::black_box(sum);
    flops
}

/// The row kernels, on one row.
#[derive(Debug, Clone, Copy)]
pub enum Row {
    LayerNorm,
    Softmax,
    Exp,
    Activate(Activation),
    L2Normalize,
}

pub fn row(isa: Isa, kernel: Row, x: &mut [f32], weight: &[f32], bias: &[f32]) {
    let kernels = isa.kernels().expect("one of Isa::available");
    match kernel {
        Row::LayerNorm => kernels.layernorm(x, weight, bias, 1e-12),
        Row::Softmax => {
            let n = x.len();
            std::hint::black_box(kernels.softmax(x, n));
        }
        Row::Exp => kernels.exp(x),
        Row::Activate(f) => kernels.activate(f, x),
        Row::L2Normalize => kernels.l2_normalize(x),
    }
}

pub fn pool(isa: Isa, pooling: Pooling, x: &[f32], out: &mut [f32]) {
    let columns = out.len();
    let x = Matrix::new(x, x.len() / columns, columns, columns);
    isa.kernels().expect("one of Isa::available").pool(pooling, x, 0, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peak_is_a_speed() {
        for &isa in &Isa::available() {
            let peak = peak(|steps| fma_peak(isa, steps));
            assert!(peak > 0.01 && peak < 1e5, "{isa}: {peak}");
        }
    }
}
