//! `Vector` for AVX2 with FMA and F16C.

use super::super::kernels::{Kernels, instantiate};
use super::super::vector::{HalfVector, Vector};
use std::arch::asm;
use std::arch::x86_64::*;

/// Proof that the machine has AVX2, FMA and F16C: only a function compiled for them makes one.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx2(());

impl Avx2 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn new() -> Self {
        Self(())
    }
}

impl Vector for Avx2 {
    type F = __m256;
    const LANES: usize = 8;
    // where another thread shares the core's front end, these instructions cost 8 % of 60 rows' time (Zen 3)
    const FETCHES_AGAIN: bool = false;

    op!(splat(x: f32) -> __m256, _mm256_set1_ps(x));

    #[inline(always)]
    unsafe fn load_raw(self, p: *const f32) -> __m256 {
        // SAFETY: the token proves AVX2; eight readable floats, by the caller's contract
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store_raw(self, v: __m256, p: *mut f32) {
        // SAFETY: the token proves AVX2; eight writable floats, by the caller's contract
        unsafe { _mm256_storeu_ps(p, v) }
    }

    op!(prefetch(p: *const f32) -> (), _mm_prefetch::<_MM_HINT_T0>(p.cast()));
    op!(prefetch_far(p: *const f32) -> (), _mm_prefetch::<_MM_HINT_T1>(p.cast()));
    opaque!();
    op!(add(a: __m256, b: __m256) -> __m256, _mm256_add_ps(a, b));
    op!(sub(a: __m256, b: __m256) -> __m256, _mm256_sub_ps(a, b));
    op!(mul(a: __m256, b: __m256) -> __m256, _mm256_mul_ps(a, b));
    op!(div(a: __m256, b: __m256) -> __m256, _mm256_div_ps(a, b));
    op!(mul_add(a: __m256, b: __m256, c: __m256) -> __m256, _mm256_fmadd_ps(a, b, c));
    op!(neg_mul_add(a: __m256, b: __m256, c: __m256) -> __m256, _mm256_fnmadd_ps(a, b, c));
    op!(max(a: __m256, b: __m256) -> __m256, _mm256_max_ps(a, b));
    op!(min(a: __m256, b: __m256) -> __m256, _mm256_min_ps(a, b));
    op!(abs(a: __m256) -> __m256, _mm256_andnot_ps(_mm256_set1_ps(-0.0), a));
    // two factors: 2¹²⁸ is no f32
    op!(scale2(a: __m256, n: __m256) -> __m256, {
        let n = _mm256_cvtps_epi32(n);
        let half = _mm256_srai_epi32::<1>(n);
        let bias = _mm256_set1_epi32(127);
        let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias));
        let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias));
        _mm256_mul_ps(_mm256_mul_ps(a, _mm256_castsi256_ps(low)), _mm256_castsi256_ps(high))
    });
    op!(power_of_2(shifted: __m256) -> __m256,
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(shifted))));
    op!(select_lt(a: __m256, b: __m256, x: __m256, y: __m256) -> __m256,
        _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)));
    op!(sum(a: __m256) -> f32, {
        let s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let s = _mm_add_ps(s, _mm_movehl_ps(s, s));
        _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)))
    });
    op!(greatest(a: __m256) -> f32, {
        let s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let s = _mm_max_ps(s, _mm_movehl_ps(s, s));
        _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)))
    });
}

impl HalfVector for Avx2 {
    #[inline(always)]
    #[allow(clippy::multiple_unsafe_ops_per_block, reason = "intrinsics with one common reason")]
    unsafe fn load_f16(self, p: *const u8) -> __m256 {
        // SAFETY: the token proves F16C; eight readable numbers, by the caller's contract
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    #[allow(clippy::multiple_unsafe_ops_per_block, reason = "intrinsics with one common reason")]
    unsafe fn load_bf16(self, p: *const u8) -> [__m256; 2] {
        // SAFETY: the token proves AVX2; eight readable words, by the caller's contract
        unsafe {
            let words = _mm256_loadu_si256(p.cast());
            let high = _mm256_and_si256(words, _mm256_set1_epi32(-0x1_0000));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)), _mm256_castsi256_ps(high)]
        }
    }
}

// 6 × 16: twelve accumulators of sixteen registers, two of weights, one or two of activations; twelve
// chains cover the multiply-add's latency of four or five at two a cycle. With f16 the compiler converts a step's weights
// during the one before, which leaves room for ten: six rows had a sum in memory and took twice as long (rustc 1.95).
// Three rows over two panels have twelve, too, for which 16 bits leave no room again.
instantiate!(
    Avx2,
    "avx2",
    [
        F32 [1 2; 3 4 5 6] [1 x 4, 2 x 2, 3 x 2]
        F16 [1 2; 3 4 5] [1 x 4, 2 x 2]
        Bf16 [1 2; 3 4 5 6] [1 x 4, 2 x 2]
    ],
    #[target_feature(enable = "avx2,fma,f16c")]
);
