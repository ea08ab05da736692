//! The GEMM microkernel, and the loop that measures what it could reach at most.
#![allow(unsafe_code, reason = "the microkernel works on raw pointers")]

use super::super::gemm::Tile;
use super::super::vector::{HalfVector, Vector};

/// Steps of k between two looks at the loop counter.
const UNROLL: usize = 4;

pub(in super::super) const LINE_BYTES: usize = 64;

/// Cache lines that a part of a panel has for each turn of the loop over k; `row_bytes` are those of a step.
const fn part_lines(row_bytes: usize) -> usize {
    let lines = (UNROLL * row_bytes).div_ceil(LINE_BYTES);
    if lines < 4 { 1 } else { lines / 4 }
}

/// Parts that a panel is fetched in: four, or as many as there are lines in a turn.
pub(in super::super) const fn parts(row_bytes: usize) -> usize {
    (UNROLL * row_bytes).div_ceil(LINE_BYTES * part_lines(row_bytes))
}

/// Bytes of one of them.
pub(in super::super) const fn part_bytes(row_bytes: usize, k: usize) -> usize {
    k.div_ceil(UNROLL) * part_lines(row_bytes) * LINE_BYTES
}

/// Weights that a tile brings near while it computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(in super::super) enum Fetch {
    Nothing,
    /// Parts of a later call's panel.
    Later,
    /// Those of its own panel, where no call before could.
    Own,
    /// All of the next panel, where one block of rows is all there is. (Not measured where each tile fetches its own again.)
    All,
}

impl Fetch {
    pub(in super::super) const COUNT: usize = 4;
}

/// Vectors of a step of k in a panel.
pub(in super::super) const NV: usize = 2;

/// How a tile reads weights that are kept in memory as [`Storage`](super::super::gemm::Storage) says.
pub(in super::super) trait Stored<V: Vector> {
    /// Of a weight.
    const BYTES: usize;

    /// A step of k of a panel, in f32.
    ///
    /// # Safety
    /// `p` points to as many weights as two vectors have lanes.
    unsafe fn load(v: V, p: *const u8) -> [V::F; NV];
}

pub(in super::super) struct F32;
pub(in super::super) struct F16;
pub(in super::super) struct Bf16;

impl<V: Vector> Stored<V> for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    #[allow(clippy::multiple_unsafe_ops_per_block, reason = "loads of one step share their bounds")]
    unsafe fn load(v: V, p: *const u8) -> [V::F; NV] {
        let p = p.cast::<f32>();
        // SAFETY: by the contract; vectors are read from any address
        unsafe { [v.load_raw(p), v.load_raw(p.add(V::LANES))] }
    }
}

impl<V: HalfVector> Stored<V> for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    #[allow(clippy::multiple_unsafe_ops_per_block, reason = "loads of one step share their bounds")]
    unsafe fn load(v: V, p: *const u8) -> [V::F; NV] {
        // SAFETY: by the contract
        unsafe { [v.load_f16(p), v.load_f16(p.add(2 * V::LANES))] }
    }
}

impl<V: HalfVector> Stored<V> for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(v: V, p: *const u8) -> [V::F; NV] {
        // SAFETY: by the contract
        unsafe { v.load_bf16(p) }
    }
}

/// A panel in f32, as the tiles of [`F32`] read it.
///
/// # Safety
/// As many weights at `panel` as `wide` has floats, which are whole steps of k.
#[inline(always)]
pub(in super::super) unsafe fn widen<V: Vector, S: Stored<V>>(v: V, panel: *const u8, wide: &mut [f32]) {
    let nr = NV * V::LANES;
    for (i, step) in wide.chunks_exact_mut(nr).enumerate() {
        let step_of_panel = panel.wrapping_add(i * nr * S::BYTES);
        // SAFETY: the caller's panel has so many steps
        let w = unsafe { S::load(v, step_of_panel) };
        for (w, out) in w.into_iter().zip(step.chunks_exact_mut(V::LANES)) {
            v.store(w, out);
        }
    }
}

/// Places that all of the next panel is fetched in at once. Software has too few lines on their way for what memory gives, but each
/// place is a stream that the processor fetches ahead of (Zen 3, four rows, quiet minutes: 20 GB/s from the panel itself, 23 to 25
/// from two halves of the next, 20 to 25 from four quarters, where reading alone got 28).
const STREAMS: usize = 2;

/// How far ahead a tile fetches its own panel (Zen 3, four rows, weights from memory: 20 GB/s at 2 KiB, 17 at 8).
const OWN_BYTES: usize = 2048;

/// The most rows of a tile on any instruction set.
pub(in super::super) const MOST_ROWS: usize = 14;

/// The body once for each row below `MR`, each copy with its own constant `$i`.
///
/// Not a loop: where the compiler leaves one rolled, the accumulators are indexed by a variable, so they live
/// in memory and each multiply-add is followed by a store (seen with rustc 1.95: 71 GFLOP/s instead of 150).
macro_rules! each_row {
    ($i:ident, $body:block) => {
        each_row!(@ $i, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13)
    };
    (@ $i:ident, $body:block, $($n:literal)*) => {
        $(if $n < MR {
            const $i: usize = $n;
            $body
        })*
    };
}

pub(super) use each_row;

/// c\[MR, columns\] = epilogue(a\[MR, k\] · b\[k, NP · NR\]), NR = two vectors. `FETCH` is a [`Fetch`].
///
/// `a` is read by broadcasts from MR rows `a_stride` apart, `b` is NP panels of packed weights, the MR × NP × 2
/// accumulators stay in registers over all of k. Every element of the product is
/// fma(a_k, b_k, … fma(a_1, b_1, fma(a_0, b_0, 0))): one chain, whatever MR, NP and the storage.
///
/// Bound by the multiply-add ports: MR · NP · 2 of them per step of k, against MR + NP · 2 loads. Weights in 16 bits become
/// f32 on ports that have nothing else to do (with `vcvtph2ps` on Zen 3: ten multiply-adds took as long with four
/// conversions among them as with none). With few rows bound by memory.
///
/// # Safety
/// MR rows of k floats at `a`; NP panels of k · NR weights at `b`, `b_stride` bytes apart; NP · NR at `factors` and at
/// `bias` and MR at `scale` unless null; MR rows of NP · NR floats at `c`, `c_stride` apart, that nobody else touches.
#[inline(always)]
#[allow(clippy::multiple_unsafe_ops_per_block, reason = "loads of one step share their bounds")]
pub(in super::super) unsafe fn gemm_tile<
    V: Vector,
    S: Stored<V>,
    const MR: usize,
    const NP: usize,
    const FETCH: usize,
>(
    v: V,
    t: &Tile,
) {
    const { assert!(MR <= MOST_ROWS, "each_row counts so far") };
    let mut acc = [[[v.splat(0.0); NV]; NP]; MR];
    // Four rows from each of these, at offsets that an address can hold. Opaque, because otherwise the compiler
    // makes itself a pointer for each row and has no registers left: one more pointer in this loop cost 30%.
    let mut a = [
        t.a,
        t.a.wrapping_add(4 * t.a_stride),
        t.a.wrapping_add(8 * t.a_stride),
        t.a.wrapping_add(12 * t.a_stride),
    ];
    let (mut b, b_stride, mut next) = (t.b, t.b_stride, t.next);
    let (stride, stride3) = (t.a_stride, 3 * t.a_stride);
    let nr = NV * V::LANES;
    let row_bytes = nr * S::BYTES;
    let all_parts = t.next_parts * part_lines(row_bytes) * LINE_BYTES; // in a turn
    let second_part = all_parts - part_lines(row_bytes) * LINE_BYTES;

    /// One step of k, `$u` behind `a` and `b`.
    macro_rules! step {
        ($u:expr) => {
            // SAFETY: step k of MR rows of `a` and of the panels; k is below `t.k` where this is used
            unsafe {
                macro_rules! x {
                    ($i:ident) => {{
                        let row = match $i % 4 {
                            0 => a[$i / 4],
                            1 => a[$i / 4].add(stride),
                            2 => a[$i / 4].add(2 * stride),
                            _ => a[$i / 4].add(stride3),
                        };
                        v.splat(*row.add($u))
                    }};
                }
                if MR < 3 || NP == 1 {
                    let mut w = [[v.splat(0.0); NV]; NP];
                    for p in 0..NP {
                        w[p] = S::load(v, b.add(p * b_stride + $u * row_bytes));
                    }
                    each_row!(I, {
                        let x = x!(I);
                        for p in 0..NP {
                            for j in 0..NV {
                                acc[I][p][j] = v.mul_add(x, w[p][j], acc[I][p][j]);
                            }
                        }
                    });
                } else {
                    // the rows stay in registers, and panel follows upon panel: with the weights of both in front, three
                    // rows took one register more than there are, and half of the sums went by way of memory
                    let mut x = [v.splat(0.0); MR];
                    each_row!(I, { x[I] = x!(I) });
                    for p in 0..NP {
                        let w = S::load(v, b.add(p * b_stride + $u * row_bytes));
                        for j in 0..NV {
                            each_row!(I, { acc[I][p][j] = v.mul_add(x[I], w[j], acc[I][p][j]) });
                        }
                    }
                }
            }
        };
    }
    let mut left = t.k;
    while left >= UNROLL {
        for p in &mut a[..MR.div_ceil(4)] {
            *p = v.opaque(*p);
        }
        if NP == 1 && (FETCH == Fetch::Own as usize || V::FETCHES_AGAIN) {
            // a line of each step, or each line: of wider steps the processor fetches the other line itself
            let apart = row_bytes.max(LINE_BYTES);
            for i in 0..UNROLL * row_bytes / apart {
                v.prefetch(b.wrapping_add(OWN_BYTES + i * apart).cast());
            }
        }
        if FETCH == Fetch::Later as usize {
            // of one part the same lines twice
            for i in 0..part_lines(row_bytes) {
                v.prefetch_far(next.wrapping_add(i * LINE_BYTES).cast());
                v.prefetch_far(next.wrapping_add(second_part + i * LINE_BYTES).cast());
            }
            next = next.wrapping_add(all_parts);
        }
        if FETCH == Fetch::All as usize {
            // as many lines as a turn reads
            for i in 0..UNROLL * row_bytes / LINE_BYTES {
                let line = i % STREAMS * (t.b_stride / STREAMS) + i / STREAMS * LINE_BYTES;
                v.prefetch_far(next.wrapping_add(line).cast());
            }
            next = next.wrapping_add(UNROLL * row_bytes / STREAMS);
        }
        step!(0);
        step!(1);
        step!(2);
        step!(3);
        left -= UNROLL;
        for p in &mut a[..MR.div_ceil(4)] {
            *p = p.wrapping_add(UNROLL);
        }
        b = b.wrapping_add(UNROLL * row_bytes);
    }
    while left > 0 {
        step!(0);
        left -= 1;
        for p in &mut a[..MR.div_ceil(4)] {
            *p = p.wrapping_add(1);
        }
        b = b.wrapping_add(row_bytes);
    }

    if !t.factors.is_null() {
        for p in 0..NP {
            for j in 0..NV {
                // SAFETY: NP · NR floats at `factors`
                let factor = unsafe { v.load_raw(t.factors.add(p * nr + j * V::LANES)) };
                each_row!(I, { acc[I][p][j] = v.mul(acc[I][p][j], factor) });
            }
        }
    }
    if !t.bias.is_null() {
        for p in 0..NP {
            for j in 0..NV {
                // SAFETY: NP · NR floats at `bias`
                let bias = unsafe { v.load_raw(t.bias.add(p * nr + j * V::LANES)) };
                each_row!(I, { acc[I][p][j] = v.add(acc[I][p][j], bias) });
            }
        }
    }
    if !t.scale.is_null() {
        each_row!(I, {
            // SAFETY: MR floats at `scale`
            let scale = v.splat(unsafe { *t.scale.add(I) });
            for x in acc[I].as_flattened_mut() {
                *x = v.mul(*x, scale);
            }
        });
    }

    if t.residual {
        each_row!(I, {
            for (j, x) in acc[I].as_flattened_mut().iter_mut().enumerate() {
                // SAFETY: NP · NR columns of row I
                let old = unsafe { v.load_raw(t.c.add(I * t.c_stride + j * V::LANES)) };
                *x = v.add(*x, old);
            }
        });
    }
    each_row!(I, {
        for (j, x) in acc[I].as_flattened().iter().enumerate() {
            // SAFETY: NP · NR columns of row I
            unsafe { v.store_raw(*x, t.c.add(I * t.c_stride + j * V::LANES)) };
        }
    });
}

/// Independent chains of multiply-adds: more than latency times ports of any machine.
pub(in super::super) const PEAK_CHAINS: usize = 12;

/// `steps` multiply-adds in each of the chains, from registers only.
#[inline(always)]
pub(in super::super) fn fma_peak<V: Vector>(v: V, steps: usize) -> f32 {
    let mut acc = [v.splat(1.0); PEAK_CHAINS];
    let (x, y) = (v.splat(std::hint::black_box(0.999)), v.splat(std::hint::black_box(0.001)));
    for _ in 0..steps {
        for a in &mut acc {
            *a = v.mul_add(*a, x, y);
        }
    }
    let mut total = 0.0;
    for a in acc {
        total += v.sum(a);
    }
    total
}
