//! Products in bf16 and int8 through AMX tiles (Sapphire Rapids and later), with the epilogues in AVX-512.
//!
//! C\[32, 32\] += A\[32, d of k\] · B\[d of k, 32\] a step, d = 32 in bf16 and 64 in int8: two tiles of A, two of B, four
//! accumulators, which are all eight. A step is four loads of 1 KiB and four `tdpbf16ps` or `tdpbusd` of sixteen cycles each,
//! so that the multiplier is the bound as long as A and B come from the level 2 cache. In bf16 each element is summed over k
//! in order, two neighbours of k at a time, whatever the rows of the block; denormals count as zero (the instruction's own
//! way). In int8 sums are exact.
//!
//! The block that was computed last gets its bias, activation and residual row by row between the steps of the
//! next: the tile unit works while the vector unit does.
#![allow(unsafe_code, reason = "instructions without intrinsics in stable Rust")]

use super::super::gemm::{BLOCK, Narrow, NarrowKernels, NarrowProduct, PANEL, STEP_BYTES, TILE_BYTES};
use super::super::generic::{finish_rows, quantize_row};
use super::super::vector::Vector;
use super::avx512::Avx512;
use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::OnceLock;

/// Cache lines of a step's two tiles of weights.
const STEP_LINES: usize = 2 * TILE_BYTES / 64;

static BF16: NarrowKernels = NarrowKernels {
    name: "amx-bf16",
    numbers: Narrow::Bf16,
    short_run: 0,
    product: product::<false>,
    narrow,
    peak: peak::<false>,
    peak_operations: 4 * 16 * 16 * 32 * 2,
};
static INT8: NarrowKernels = NarrowKernels {
    name: "amx-int8",
    numbers: Narrow::Int8,
    short_run: 0,
    product: product::<true>,
    narrow: quantize,
    peak: peak::<true>,
    peak_operations: 4 * 16 * 16 * 64 * 2,
};

/// The kernels, where processor and operating system have AMX.
pub(super) fn kernels() -> Vec<&'static NarrowKernels> {
    static PERMITTED: OnceLock<bool> = OnceLock::new();
    const TILES: u32 = 1 << 24;
    let features = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    let amx = if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).edx } else { 0 };
    if !(features && amx & TILES != 0 && *PERMITTED.get_or_init(permission)) {
        return Vec::new();
    }
    let bf16 = amx & 1 << 22 != 0 && is_x86_feature_detected!("avx512bf16");
    let int8 = amx & 1 << 25 != 0;
    [bf16.then_some(&BF16), int8.then_some(&INT8)].into_iter().flatten().collect()
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

/// The accumulators of a block: f32, or the bits of i32.
#[repr(C, align(64))]
struct Sums([[f32; PANEL]; BLOCK]);

/// A block whose epilogue is to come: these rows of a panel, of which `first` was its first.
struct Pending {
    panel: usize,
    rows: Range<usize>,
    first: usize,
}

impl Pending {
    /// Finishes up to `count` rows.
    ///
    /// # Safety
    /// The product's contract; this is a block of it.
    #[inline(always)]
    unsafe fn finish<const INT8: bool>(
        &mut self,
        v: Avx512,
        p: &NarrowProduct<'_>,
        sums: &Sums,
        count: usize,
    ) {
        let end = self.rows.end.min(self.rows.start + count);
        let rows = self.rows.start..end;
        self.rows.start = end;
        if INT8 {
            let sums: &[[i32; PANEL]; BLOCK] = bytemuck::cast_ref(&sums.0);
            // SAFETY: rows and a panel of the product
            unsafe { finish_rows(v, p, self.panel, rows, self.first, sums) };
        } else {
            // SAFETY: rows and a panel of the product
            unsafe { finish_rows(v, p, self.panel, rows, self.first, &sums.0) };
        }
    }
}

/// See [`NarrowKernels`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn product<const INT8: bool>(p: &NarrowProduct<'_>) {
    let v = Avx512::new();
    // SAFETY: `kernels` asked processor and operating system for tiles
    unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly, preserves_flags)) };
    let blocks = p.rows.div_ceil(BLOCK);
    let (share, rows_a_step) = (STEP_LINES.div_ceil(blocks), BLOCK.div_ceil(p.steps));
    let mut sums = [const { Sums([[0.0; PANEL]; BLOCK]) }; 2];
    let [mut now, mut before] = sums.each_mut();
    let mut pending: Option<Pending> = None;
    for panel in 0..p.panels {
        for block in 0..blocks {
            let row = block * BLOCK;
            let rows = BLOCK.min(p.rows - row);
            let mut a = p.a.wrapping_add(row * p.a_stride);
            let mut b = p.b.wrapping_add(panel * p.steps * 2 * TILE_BYTES);
            // of the next panel, a share of each step's lines for each block of rows
            let ahead = p.steps * 2 * TILE_BYTES + block * share * 64;
            // SAFETY: tiles are configured
            unsafe {
                asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    options(nomem, nostack, preserves_flags));
            }
            for _ in 0..p.steps {
                // SAFETY: sixteen rows of `a`, or 32 if there are more, and two tiles of the panel
                unsafe { step::<INT8>(a, p.a_stride, b, rows > 16) };
                for line in 0..share {
                    v.prefetch_far(b.wrapping_add(ahead + line * 64).cast());
                }
                if let Some(pending) = &mut pending {
                    // SAFETY: the block before, by our contract
                    unsafe { pending.finish::<INT8>(v, p, before, rows_a_step) };
                }
                a = a.wrapping_add(STEP_BYTES);
                b = b.wrapping_add(2 * TILE_BYTES);
            }
            // SAFETY: 32 rows of 32 floats
            unsafe { store(now) };
            pending = Some(Pending { panel, rows: row..row + rows, first: row });
            std::mem::swap(&mut now, &mut before); // the references
        }
    }
    if let Some(pending) = &mut pending {
        // SAFETY: the last block, by our contract
        unsafe { pending.finish::<INT8>(v, p, before, BLOCK) };
    }
    // SAFETY: the tiles' values are not needed any more
    unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
}

/// One step of k: accumulators 0 and 1 for the upper sixteen rows, 2 and 3 for the lower ones.
///
/// # Safety
/// Tiles are configured; 16 or 32 rows of 64 bytes at `a`, two tiles at `b`.
#[inline(always)]
unsafe fn step<const INT8: bool>(a: *const u8, a_stride: usize, b: *const u8, both: bool) {
    macro_rules! multiply {
        ($multiply:literal) => {
            // SAFETY: by the contract
            unsafe {
                asm!(
                    "tileloadd tmm6, [{b} + {line}*1]",
                    "tileloadd tmm4, [{a} + {stride}*1]",
                    "tileloadd tmm7, [{b} + {line}*1 + 1024]",
                    concat!($multiply, " tmm0, tmm4, tmm6"),
                    concat!($multiply, " tmm1, tmm4, tmm7"),
                    a = in(reg) a, b = in(reg) b, stride = in(reg) a_stride, line = in(reg) STEP_BYTES,
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    options(readonly, nostack, preserves_flags)
                );
            }
            if both {
                // SAFETY: by the contract
                unsafe {
                    asm!(
                        "tileloadd tmm5, [{a} + {stride}*1]",
                        concat!($multiply, " tmm2, tmm5, tmm6"),
                        concat!($multiply, " tmm3, tmm5, tmm7"),
                        a = in(reg) a.wrapping_add(16 * a_stride), stride = in(reg) a_stride,
                        out("tmm2") _, out("tmm3") _, out("tmm5") _,
                        options(readonly, nostack, preserves_flags)
                    );
                }
            }
        };
    }
    if INT8 {
        multiply!("tdpbusd"); // rows unsigned, columns signed
    } else {
        multiply!("tdpbf16ps");
    }
}

/// See [`NarrowKernels`]: four products of two tiles a step.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn peak<const INT8: bool>(steps: usize) -> f32 {
    let tiles = [[0u8; TILE_BYTES]; 2];
    // SAFETY: `kernels` asked processor and operating system for tiles
    unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly, preserves_flags)) };
    // SAFETY: tiles are configured; sixteen rows and two tiles
    unsafe { step::<INT8>(tiles[0].as_ptr(), STEP_BYTES, tiles[0].as_ptr(), false) };
    for _ in 0..steps {
        macro_rules! multiply {
            ($multiply:literal) => {
                // SAFETY: tiles are configured
                unsafe {
                    asm!(
                        concat!($multiply, " tmm0, tmm4, tmm6"),
                        concat!($multiply, " tmm1, tmm4, tmm7"),
                        concat!($multiply, " tmm2, tmm5, tmm6"),
                        concat!($multiply, " tmm3, tmm5, tmm7"),
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        options(nomem, nostack, preserves_flags)
                    );
                }
            };
        }
        if INT8 { multiply!("tdpbusd") } else { multiply!("tdpbf16ps") }
    }
    // SAFETY: the tiles' values are not needed any more
    unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    0.0
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

/// See [`NarrowKernels`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn quantize(x: &[f32], out: &mut [u8]) {
    quantize_row(Avx512::new(), x, out)
}

/// See [`NarrowKernels`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn narrow(x: &[f32], out: &mut [u8]) {
    let v = Avx512::new();
    let out: &mut [u16] = bytemuck::cast_slice_mut(out);
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
