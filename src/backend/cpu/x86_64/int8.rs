//! Products of bytes with `vpdpbusd` (AVX-512 VNNI, AVX-VNNI), and where that is not there with `vpmaddubsw`, which adds the
//! products of two neighbours in sixteen bits. None of them saturates: for the latter weights are scaled so that none can.
//!
//! Without VNNI a sum of sixteen bits costs a second multiplication to become one of 32. So the sums of four groups are added
//! first: five multiplications in place of eight. On Zen 3 a tile alone took 0.71 to 0.74 of the time (0.80 with two groups);
//! the weights have to be smaller for it (see `narrow.rs`).

use super::super::Isa;
use super::super::gemm::{Narrow, NarrowKernels};
use super::super::generic::{Dot, Int8Vector, PEAK_CHAINS, dot_peak, dot_product, quantize_row};
use super::avx2::Avx2;
use super::avx512::Avx512;
use std::arch::x86_64::*;

impl Int8Vector for Avx512 {
    op!(store_bytes(x: __m512, out: &mut [u8]) -> (), {
        assert!(out.len() >= 16, "room for a vector");
        let q = _mm512_max_epi32(_mm512_cvtps_epi32(x), _mm512_setzero_si512());
        _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtusepi32_epi8(q))
    });
    op!(load_i32(x: &[i32]) -> __m512, {
        assert!(x.len() >= 16, "a vector's worth of integers");
        _mm512_cvtepi32_ps(_mm512_loadu_si512(x.as_ptr().cast()))
    });
}

impl Int8Vector for Avx2 {
    op!(store_bytes(x: __m256, out: &mut [u8]) -> (), {
        assert!(out.len() >= 8, "room for a vector");
        let q = _mm256_cvtps_epi32(x);
        let q = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256::<1>(q));
        _mm_storel_epi64(out.as_mut_ptr().cast(), _mm_packus_epi16(q, q))
    });
    op!(load_i32(x: &[i32]) -> __m256, {
        assert!(x.len() >= 8, "a vector's worth of integers");
        _mm256_cvtepi32_ps(_mm256_loadu_si256(x.as_ptr().cast()))
    });
}

/// A token around a vector's, with the functions that a table takes: the features; the sums, rows and columns; how four
/// bytes of a row and of columns are read from memory and multiplied, so many groups at a time; rows and vectors of a tile.
macro_rules! dot {
    (
        $token:ident($vector:ident), $table:ident, $name:literal, $features:literal, tile $mr:literal x $nv:literal, run $run:literal,
        $vectors:ty,
        zero $zero:expr, row |$row:ident| $read_row:expr, columns |$columns:ident| $read_columns:expr,
        dot |$acc:ident, $x:ident, $w:ident| $dot:expr, store |$sum:ident, $out:ident| $store:expr
    ) => {
        #[doc = concat!("Proof that the machine has ", $features, ".")]
        #[derive(Clone, Copy)]
        struct $token($vector);

        impl Dot for $token {
            type V = $vector;
            type I = $vectors;
            const RUN: usize = $run;

            #[inline(always)]
            fn vector(self) -> $vector {
                self.0
            }

            #[inline(always)]
            #[allow(clippy::multiple_unsafe_ops_per_block, reason = "intrinsics with one common reason")]
            unsafe fn row(self, $row: *const u8) -> $vectors {
                // SAFETY: the token proves the features; readable bytes, by the caller's contract
                unsafe { $read_row }
            }

            #[inline(always)]
            #[allow(clippy::multiple_unsafe_ops_per_block, reason = "intrinsics with one common reason")]
            unsafe fn columns(self, $columns: *const u8) -> $vectors {
                // SAFETY: as in `row`
                unsafe { $read_columns }
            }

            op!(zero() -> $vectors, $zero);
            op!(dot($acc: $vectors, $x: &[$vectors], $w: &[$vectors]) -> $vectors, $dot);
            op!(store($sum: $vectors, $out: &mut [i32]) -> (), {
                assert!($out.len() >= size_of::<$vectors>() / 4, "room for a vector");
                $store
            });
        }

        static $table: NarrowKernels = {
            #[target_feature(enable = $features)]
            unsafe fn product(p: &super::super::gemm::NarrowProduct<'_>) {
                // SAFETY: the same contract
                unsafe { dot_product::<_, $mr, $nv>($token($vector::new()), p) }
            }
            #[target_feature(enable = $features)]
            fn narrow(x: &[f32], out: &mut [u8]) {
                quantize_row($vector::new(), x, out)
            }
            #[target_feature(enable = $features)]
            fn peak(steps: usize) -> f32 {
                dot_peak($token($vector::new()), steps)
            }
            // four multiplications and four additions for each sum and group
            let peak_operations = PEAK_CHAINS * $run * size_of::<$vectors>() / 4 * 8;
            NarrowKernels {
                name: $name,
                numbers: Narrow::Int8,
                // several at a time only where their sums are of sixteen bits
                short_run: if $run > 1 { $run } else { 0 },
                product,
                narrow,
                peak,
                peak_operations,
            }
        };
    };
}

// 12 × 2 vectors of 32 registers, two of columns and one of a row
dot!(
    Vnni512(Avx512), VNNI_512, "avx512-vnni", "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
    tile 12 x 2, run 1, __m512i,
    zero _mm512_setzero_si512(),
    row |p| _mm512_set1_epi32(p.cast::<i32>().read_unaligned()),
    columns |p| _mm512_loadu_si512(p.cast()),
    dot |acc, x, w| _mm512_dpbusd_epi32(acc, x[0], w[0]),
    store |sums, out| _mm512_storeu_si512(out.as_mut_ptr().cast(), sums)
);

// 6 × 2 of sixteen registers
dot!(
    Vnni256(Avx2), VNNI_256, "avx-vnni", "avx2,fma,f16c,avxvnni", tile 6 x 2, run 1, __m256i,
    zero _mm256_setzero_si256(),
    row |p| _mm256_set1_epi32(p.cast::<i32>().read_unaligned()),
    columns |p| _mm256_loadu_si256(p.cast()),
    dot |acc, x, w| _mm256_dpbusd_avx_epi32(acc, x[0], w[0]),
    store |sums, out| _mm256_storeu_si256(out.as_mut_ptr().cast(), sums)
);

// 2 × 4: a run of a row stays in four registers, and multiplications read the columns from memory themselves, so that fewer
// instructions begin (8 × 1 with columns in registers took 1.11 times as long)
dot!(
    Pairs256(Avx2), PAIRS_256, "avx2-maddubs", "avx2,fma,f16c", tile 2 x 4, run 4, __m256i,
    zero _mm256_setzero_si256(),
    row |p| _mm256_set1_epi32(p.cast::<i32>().read_unaligned()),
    columns |p| _mm256_loadu_si256(p.cast()),
    dot |acc, x, w| {
        let pairs = |u: usize| _mm256_maddubs_epi16(x[u], w[u]);
        let pairs = _mm256_add_epi16(_mm256_add_epi16(pairs(0), pairs(1)), _mm256_add_epi16(pairs(2), pairs(3)));
        _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    },
    store |sums, out| _mm256_storeu_si256(out.as_mut_ptr().cast(), sums)
);

/// The kernels of an instruction set that the machine has, best first.
pub(super) fn kernels(isa: Isa) -> Vec<&'static NarrowKernels> {
    match isa {
        Isa::Portable => Vec::new(),
        Isa::Avx2 if is_x86_feature_detected!("avxvnni") => vec![&VNNI_256, &PAIRS_256],
        Isa::Avx2 => vec![&PAIRS_256],
        Isa::Avx512 if is_x86_feature_detected!("avx512vnni") => vec![&VNNI_512],
        // with products of sixteen bits (`vpmaddwd`), whose sums go through the same two ports, it was slower than f32
        Isa::Avx512 => Vec::new(),
    }
}
