//! `Vector` for AVX-512 F, BW, DQ and VL.

use super::super::kernels::{Kernels, instantiate};
use super::super::vector::{HalfVector, Vector};
use std::arch::asm;
use std::arch::x86_64::*;

/// Proof that the machine has AVX-512 F, BW, DQ and VL: only a function compiled for them makes one.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx512(());

impl Avx512 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn new() -> Self {
        Self(())
    }
}

impl Vector for Avx512 {
    type F = __m512;
    const LANES: usize = 16;
    const LOOKS_UP: bool = true;
    const FETCHES_AGAIN: bool = true;

    op!(splat(x: f32) -> __m512, _mm512_set1_ps(x));

    #[inline(always)]
    unsafe fn load_raw(self, p: *const f32) -> __m512 {
        // SAFETY: the token proves AVX-512; sixteen readable floats, by the caller's contract
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store_raw(self, v: __m512, p: *mut f32) {
        // SAFETY: the token proves AVX-512; sixteen writable floats, by the caller's contract
        unsafe { _mm512_storeu_ps(p, v) }
    }

    op!(prefetch(p: *const f32) -> (), _mm_prefetch::<_MM_HINT_T0>(p.cast()));
    op!(prefetch_far(p: *const f32) -> (), _mm_prefetch::<_MM_HINT_T1>(p.cast()));

    opaque!();

    op!(add(a: __m512, b: __m512) -> __m512, _mm512_add_ps(a, b));
    op!(sub(a: __m512, b: __m512) -> __m512, _mm512_sub_ps(a, b));
    op!(mul(a: __m512, b: __m512) -> __m512, _mm512_mul_ps(a, b));
    op!(div(a: __m512, b: __m512) -> __m512, _mm512_div_ps(a, b));
    op!(mul_add(a: __m512, b: __m512, c: __m512) -> __m512, _mm512_fmadd_ps(a, b, c));
    op!(neg_mul_add(a: __m512, b: __m512, c: __m512) -> __m512, _mm512_fnmadd_ps(a, b, c));
    op!(max(a: __m512, b: __m512) -> __m512, _mm512_max_ps(a, b));
    op!(min(a: __m512, b: __m512) -> __m512, _mm512_min_ps(a, b));
    op!(abs(a: __m512) -> __m512, _mm512_abs_ps(a));
    op!(scale2(a: __m512, n: __m512) -> __m512, _mm512_scalef_ps(a, n));
    op!(power_of_2(shifted: __m512) -> __m512,
        _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(shifted))));
    op!(select_lt(a: __m512, b: __m512, x: __m512, y: __m512) -> __m512,
        _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x));
    op!(lookup(table: &[f32; 16], at: __m512) -> __m512,
        _mm512_permutexvar_ps(_mm512_castps_si512(at), _mm512_loadu_ps(table.as_ptr())));
    // spelt out: the reduction intrinsics leave the order of the additions to the compiler
    op!(sum(a: __m512) -> f32, {
        let s = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
        let s = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps::<1>(s));
        let s = _mm_add_ps(s, _mm_movehl_ps(s, s));
        _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)))
    });
    op!(greatest(a: __m512) -> f32, {
        let s = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
        let s = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps::<1>(s));
        let s = _mm_max_ps(s, _mm_movehl_ps(s, s));
        _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)))
    });
}

impl HalfVector for Avx512 {
    #[inline(always)]
    #[allow(clippy::multiple_unsafe_ops_per_block, reason = "intrinsics with one common reason")]
    unsafe fn load_f16(self, p: *const u8) -> __m512 {
        // SAFETY: the token proves AVX-512; sixteen readable numbers, by the caller's contract
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    #[allow(clippy::multiple_unsafe_ops_per_block, reason = "intrinsics with one common reason")]
    unsafe fn load_bf16(self, p: *const u8) -> [__m512; 2] {
        // SAFETY: the token proves AVX-512; sixteen readable words, by the caller's contract
        unsafe {
            let words = _mm512_loadu_si512(p.cast());
            let high = _mm512_and_si512(words, _mm512_set1_epi32(-0x1_0000));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)), _mm512_castsi512_ps(high)]
        }
    }
}

// 14 × 32: twenty-eight accumulators of thirty-two registers, two of weights, two of activations; a step
// of k loads 16 times for 28 multiply-adds, so the load ports keep up with the two multiply-add ports. In 16 bits a row
// less, as on AVX2.
instantiate!(
    Avx512,
    "avx512",
    [
        F32 [1 2 3 4 5 6; 7 8 9 10 11 12 13 14] [1 x 4, 2 x 2, 3 x 2]
        F16 [1 2 3 4 5 6; 7 8 9 10 11 12 13] [1 x 4, 2 x 2, 3 x 2]
        Bf16 [1 2 3 4 5 6; 7 8 9 10 11 12 13] [1 x 4, 2 x 2, 3 x 2]
    ],
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
);
