//! Products in bf16 through AMX tiles (Sapphire Rapids and later), with the epilogues in AVX-512.
//!
//! C\[32, 32\] += A\[32, 32 of k\] · B\[32 of k, 32\] a step: two tiles of A, two of B, four accumulators, which are
//! all eight. A step is four loads of 1 KiB and four `tdpbf16ps` of sixteen cycles each, so that the multiplier is
//! the bound as long as A and B come from the level 2 cache. Each element is summed over k in order, two
//! neighbours of k at a time, whatever the rows of the block; denormals count as zero (the instruction's own way).
//!
//! The block that was computed last gets its bias, activation and residual row by row between the steps of the
//! next: the tile unit works while the vector unit does.
#![allow(unsafe_code, reason = "instructions without intrinsics in stable Rust")]

use super::super::gemm::{BLOCK, DEPTH, HalfKernels, HalfProduct, PANEL};
use super::super::generic::finish_row;
use super::super::vector::Vector;
use super::avx512::Avx512;
use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// 16-bit numbers of a tile.
const TILE: usize = 16 * DEPTH;
/// Cache lines of a step's two tiles of weights.
const STEP_LINES: usize = PANEL * DEPTH * 2 / 64;

static KERNELS: HalfKernels = HalfKernels { product, narrow };

/// The kernels, where processor and operating system have AMX.
pub(in super::super) fn kernels() -> Option<&'static HalfKernels> {
    static PERMITTED: OnceLock<bool> = OnceLock::new();
    let features = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16");
    (features && *PERMITTED.get_or_init(|| has_amx() && permission())).then_some(&KERNELS)
}

/// Whether the processor has tiles and their bf16 products.
fn has_amx() -> bool {
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (BF16 | TILES) == BF16 | TILES
}

/// Asks the kernel for the tiles, which a process must do once: they enlarge what each switch of threads saves.
#[cfg(target_os = "linux")]
fn permission() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let result: i64;
    // SAFETY: this system call touches no memory of ours; where it is unknown it returns an error
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permission() -> bool {
    false
}

/// All eight tiles with sixteen rows of 64 bytes.
#[repr(C, align(64))]
struct Config([u8; 64]);

const CONFIG: Config = {
    let mut bytes = [0; 64];
    bytes[0] = 1; // palette
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64; // bytes of a row
        bytes[48 + tile] = 16; // rows
        tile += 1;
    }
    Config(bytes)
};

/// The accumulators of a block.
#[repr(C, align(64))]
struct Sums([[f32; PANEL]; BLOCK]);

/// A block whose epilogue is to come.
struct Pending {
    row: usize,
    rows: usize,
    /// Where its rows of `c` start, and its bias.
    c: *mut f32,
    columns: usize,
    column: usize,
}

impl Pending {
    /// Finishes up to `count` rows.
    ///
    /// # Safety
    /// The product's contract; this is a block of it.
    #[inline(always)]
    unsafe fn finish(&mut self, v: impl Vector, p: &HalfProduct<'_>, sums: &mut Sums, count: usize) {
        for _ in 0..count.min(self.rows - self.row) {
            // SAFETY: `columns` floats of a row of `c`, which is ours alone
            let c = unsafe {
                std::slice::from_raw_parts_mut(self.c.wrapping_add(self.row * p.c_stride), self.columns)
            };
            let bias = &p.bias[self.column..][..PANEL];
            finish_row(v, &mut sums.0[self.row], bias, p.activation, p.residual, c);
            self.row += 1;
        }
    }
}

/// See [`HalfKernels`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn product(p: &HalfProduct<'_>) {
    let v = Avx512::new();
    // SAFETY: `kernels` asked processor and operating system for tiles
    unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly, preserves_flags)) };
    let blocks = p.rows.div_ceil(BLOCK);
    let (share, rows_a_step) = (STEP_LINES.div_ceil(blocks), BLOCK.div_ceil(p.steps));
    let mut sums = [const { Sums([[0.0; PANEL]; BLOCK]) }; 2];
    let mut pending: Option<Pending> = None;
    for panel in 0..p.panels {
        let column = panel * PANEL;
        for block in 0..blocks {
            let row = block * BLOCK;
            let rows = BLOCK.min(p.rows - row);
            let [now, before] = &mut sums;
            let mut a = p.a.wrapping_add(row * p.a_stride);
            let mut b = p.b.wrapping_add(panel * p.steps * 2 * TILE);
            // of the next panel, a share of each step's lines for each block of rows
            let ahead = p.steps * 2 * TILE + block * share * 32;
            // SAFETY: tiles are configured
            unsafe {
                asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    options(nomem, nostack, preserves_flags));
            }
            for _ in 0..p.steps {
                // SAFETY: sixteen rows of `a`, or 32 if there are more, and two tiles of the panel
                unsafe { step(a, p.a_stride, b, rows > 16) };
                for line in 0..share {
                    v.prefetch_far(b.wrapping_add(ahead + line * 32).cast());
                }
                if let Some(pending) = &mut pending {
                    // SAFETY: the block before, by our contract
                    unsafe { pending.finish(v, p, before, rows_a_step) };
                }
                a = a.wrapping_add(DEPTH);
                b = b.wrapping_add(2 * TILE);
            }
            // SAFETY: 32 rows of 32 floats
            unsafe { store(now) };
            pending = Some(Pending {
                row: 0,
                rows,
                c: p.c.wrapping_add(row * p.c_stride + column),
                columns: PANEL.min(p.columns - column),
                column,
            });
            sums.swap(0, 1);
        }
    }
    if let Some(pending) = &mut pending {
        // SAFETY: the last block, by our contract
        unsafe { pending.finish(v, p, &mut sums[1], BLOCK) };
    }
    // SAFETY: the tiles' values are not needed any more
    unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
}

/// 32 of k: accumulators 0 and 1 for the upper sixteen rows, 2 and 3 for the lower ones.
///
/// # Safety
/// Tiles are configured; 16 or 32 rows of 32 numbers at `a`, two tiles at `b`.
#[inline(always)]
unsafe fn step(a: *const u16, a_stride: usize, b: *const u16, both: bool) {
    // SAFETY: by the contract
    unsafe {
        asm!(
            "tileloadd tmm6, [{b} + {line}*1]",
            "tileloadd tmm4, [{a} + {stride}*1]",
            "tileloadd tmm7, [{b} + {line}*1 + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            a = in(reg) a, b = in(reg) b, stride = in(reg) 2 * a_stride, line = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(readonly, nostack, preserves_flags)
        );
    }
    if both {
        // SAFETY: by the contract
        unsafe {
            asm!(
                "tileloadd tmm5, [{a} + {stride}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                a = in(reg) a.wrapping_add(16 * a_stride), stride = in(reg) 2 * a_stride,
                out("tmm2") _, out("tmm3") _, out("tmm5") _,
                options(readonly, nostack, preserves_flags)
            );
        }
    }
}

/// The four accumulators to their quarters of `sums`.
///
/// # Safety
/// Tiles are configured.
#[inline(always)]
unsafe fn store(sums: &mut Sums) {
    // SAFETY: 32 rows of 128 bytes
    unsafe {
        asm!(
            "tilestored [{c} + {row}*1], tmm0",
            "tilestored [{c} + {row}*1 + 64], tmm1",
            "tilestored [{c} + {row}*1 + 2048], tmm2",
            "tilestored [{c} + {row}*1 + 2112], tmm3",
            c = in(reg) sums, row = in(reg) 128usize,
            options(nostack, preserves_flags)
        );
    }
}

/// See [`HalfKernels`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn narrow(x: &[f32], out: &mut [u16]) {
    let v = Avx512::new();
    let (out, rest) = out.split_at_mut(x.len());
    rest.fill(0);
    let mut chunks = out.chunks_exact_mut(16);
    let mut floats = x.chunks_exact(16);
    for (out, x) in (&mut chunks).zip(&mut floats) {
        let rounded = _mm512_cvtneps_pbh(v.load(x));
        // SAFETY: both are sixteen numbers of 16 bits
        let rounded: [u16; 16] = unsafe { std::mem::transmute(rounded) };
        out.copy_from_slice(&rounded);
    }
    let out = chunks.into_remainder();
    let rounded = _mm512_cvtneps_pbh(v.load_tail(floats.remainder(), 0.0));
    // SAFETY: both are sixteen numbers of 16 bits
    let rounded: [u16; 16] = unsafe { std::mem::transmute(rounded) };
    out.copy_from_slice(&rounded[..out.len()]);
}
