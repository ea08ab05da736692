//! `Vector` in plain Rust: arrays of four, which the compiler turns into the baseline's vectors.

use super::kernels::{Kernels, instantiate};
use super::vector::Vector;

#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Portable {
    fn new() -> Self {
        Self
    }
}

/// `f32::mul_add` is a library call where the baseline has no such instruction.
const FMA: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

#[inline(always)]
fn zip(a: [f32; 4], b: [f32; 4], f: impl Fn(f32, f32) -> f32) -> [f32; 4] {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

#[inline(always)]
fn fma(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// 2ⁿ for n from −126 to 127; some number or other for others.
#[inline(always)]
fn pow2(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

impl Vector for Portable {
    type F = [f32; 4];
    const LANES: usize = 4;
    const FETCHES_AGAIN: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; 4]
    }

    #[inline(always)]
    unsafe fn load_raw(self, p: *const f32) -> Self::F {
        // SAFETY: four readable floats, by the caller's contract
        unsafe { p.cast::<[f32; 4]>().read() }
    }

    #[inline(always)]
    unsafe fn store_raw(self, v: Self::F, p: *mut f32) {
        // SAFETY: four writable floats, by the caller's contract
        unsafe { p.cast::<[f32; 4]>().write(v) }
    }

    #[inline(always)]
    fn prefetch(self, _: *const f32) {}

    #[inline(always)]
    fn prefetch_far(self, _: *const f32) {}

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        [fma(a[0], b[0], c[0]), fma(a[1], b[1], c[1]), fma(a[2], b[2], c[2]), fma(a[3], b[3], c[3])]
    }

    #[inline(always)]
    fn neg_mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        self.mul_add(a.map(|v| -v), b, c)
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        a.map(f32::abs)
    }

    #[inline(always)]
    fn scale2(self, a: Self::F, n: Self::F) -> Self::F {
        // two factors: 2¹²⁸ is no f32
        zip(a, n, |a, n| {
            let n = n as i32;
            let half = n >> 1;
            a * pow2(half) * pow2(n - half)
        })
    }

    #[inline(always)]
    fn power_of_2(self, shifted: Self::F) -> Self::F {
        shifted.map(|shifted| f32::from_bits(shifted.to_bits() << 23))
    }

    #[inline(always)]
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        let pick = |i: usize| if a[i] < b[i] { x[i] } else { y[i] };
        [pick(0), pick(1), pick(2), pick(3)]
    }

    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        (a[0] + a[2]) + (a[1] + a[3])
    }

    #[inline(always)]
    fn greatest(self, a: Self::F) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

// 4 × 8: eight accumulators of the sixteen registers that SSE2 has, two of weights, one of activations, and products on their
// way to a sum. Five and six rows were no faster (Zen 3). Weights are in f32: the baseline has no instruction that reads f16.
instantiate!(Portable, "portable", [F32 [1; 2 3 4] [1 x 4, 2 x 2]],);
