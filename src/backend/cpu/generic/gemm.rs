//! The GEMM microkernel, and the loop that measures what it could reach at most.
#![allow(unsafe_code, reason = "the microkernel works on raw pointers")]

use super::super::gemm::Tile;
use super::super::vector::{MAX_LANES, Vector};
use super::activate;

/// Steps of k between two looks at the loop counter.
const UNROLL: usize = 4;

/// Floats of a cache line.
pub(in super::super) const LINE_FLOATS: usize = 16;

/// Cache lines of a panel between two looks at the loop counter, on the widest instruction set.
pub(in super::super) const LINES_A_TURN: usize = UNROLL * 2 * MAX_LANES / LINE_FLOATS;

/// The most rows of a tile on any instruction set.
const MOST_ROWS: usize = 14;

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

/// c\[MR, columns\] = epilogue(a\[MR, k\] · b\[k, NR\]), NR = NV vectors.
///
/// `a` is read by broadcasts from MR rows `a_stride` apart, `b` is one panel of packed weights, the MR × NV
/// accumulators stay in registers over all of k. Every element of the product is
/// fma(a_k, b_k, … fma(a_1, b_1, fma(a_0, b_0, 0))): one chain, whatever MR.
///
/// Bound by the multiply-add ports: MR · NV of them per step of k, against MR + NV loads.
///
/// # Safety
/// MR rows of k floats at `a`; k · NR at `b`; NR at `bias` and MR at `scale` unless null; MR rows of
/// `columns` ≤ NR floats at `c`, `c_stride` apart, that nobody else touches.
#[inline(always)]
#[allow(clippy::multiple_unsafe_ops_per_block, reason = "loads of one step share their bounds")]
pub(in super::super) unsafe fn gemm_tile<V: Vector, const MR: usize, const NV: usize>(v: V, t: &Tile) {
    const { assert!(MR <= MOST_ROWS, "each_row counts so far") };
    let mut acc = [[v.splat(0.0); NV]; MR];
    // Four rows from each of these, at offsets that an address can hold. Opaque, because otherwise the compiler
    // makes itself a pointer for each row and has no registers left: one more pointer in this loop cost 30%.
    let mut a = [
        t.a,
        t.a.wrapping_add(4 * t.a_stride),
        t.a.wrapping_add(8 * t.a_stride),
        t.a.wrapping_add(12 * t.a_stride),
    ];
    let (mut b, ahead) = (t.b, t.ahead);
    let (stride, stride3) = (t.a_stride, 3 * t.a_stride);
    let nr = NV * V::LANES;

    /// One step of k, `$u` behind `a` and `b`.
    macro_rules! step {
        ($u:expr) => {
            // SAFETY: step k of MR rows of `a` and of the panel; k is below `t.k` where this is used
            unsafe {
                let mut w = [v.splat(0.0); NV];
                for j in 0..NV {
                    w[j] = v.load_raw(b.add($u * nr + j * V::LANES));
                }
                each_row!(I, {
                    let row = match I % 4 {
                        0 => a[I / 4],
                        1 => a[I / 4].add(stride),
                        2 => a[I / 4].add(2 * stride),
                        _ => a[I / 4].add(stride3),
                    };
                    let x = v.splat(*row.add($u));
                    for j in 0..NV {
                        acc[I][j] = v.mul_add(x, w[j], acc[I][j]);
                    }
                });
            }
        };
    }
    let mut left = t.k;
    while left >= UNROLL {
        for p in &mut a[..MR.div_ceil(4)] {
            *p = v.opaque(*p);
        }
        // 2 KiB ahead in the panel: some 16 steps, the latency of the level 2 cache and more
        v.prefetch(b.wrapping_add(512));
        v.prefetch(b.wrapping_add(512 + nr));
        v.prefetch(b.wrapping_add(512 + 2 * nr));
        v.prefetch(b.wrapping_add(512 + 3 * nr));
        // one line of a turn's: fewer blocks than that leave some of the next panel out, more repeat some. Four lines
        // for tiles of up to eight rows, which would fetch all of it, cost 7% with one text of 16 tokens.
        v.prefetch_far(b.wrapping_add(ahead));
        step!(0);
        step!(1);
        step!(2);
        step!(3);
        left -= UNROLL;
        for p in &mut a[..MR.div_ceil(4)] {
            *p = p.wrapping_add(UNROLL);
        }
        b = b.wrapping_add(UNROLL * nr);
    }
    while left > 0 {
        step!(0);
        left -= 1;
        for p in &mut a[..MR.div_ceil(4)] {
            *p = p.wrapping_add(1);
        }
        b = b.wrapping_add(nr);
    }

    if !t.bias.is_null() {
        for j in 0..NV {
            // SAFETY: NR floats at `bias`
            let bias = unsafe { v.load_raw(t.bias.add(j * V::LANES)) };
            each_row!(I, { acc[I][j] = v.add(acc[I][j], bias) });
        }
    }
    if !t.scale.is_null() {
        each_row!(I, {
            // SAFETY: MR floats at `scale`
            let scale = v.splat(unsafe { *t.scale.add(I) });
            for j in 0..NV {
                acc[I][j] = v.mul(acc[I][j], scale);
            }
        });
    }

    if t.columns == nr {
        if t.residual {
            each_row!(I, {
                for j in 0..NV {
                    // SAFETY: NR columns of row I
                    let old = unsafe { v.load_raw(t.c.add(I * t.c_stride + j * V::LANES)) };
                    acc[I][j] = v.add(acc[I][j], old);
                }
            });
        }
        each_row!(I, {
            for j in 0..NV {
                // SAFETY: NR columns of row I
                unsafe { v.store_raw(acc[I][j], t.c.add(I * t.c_stride + j * V::LANES)) };
            }
        });
        // a second pass over lines that are still in the level 1 cache: in registers, the accumulators
        // would leave no room for the constants of the function
        if let Some(f) = t.activation {
            for i in 0..MR {
                // SAFETY: NR columns of row i, which are ours alone
                let row = unsafe { std::slice::from_raw_parts_mut(t.c.add(i * t.c_stride), nr) };
                activate(v, f, row);
            }
        }
        return;
    }

    // the last panel of a product whose width is no multiple of NR: by way of the stack
    let mut padded = [[0.0; 2 * MAX_LANES]; MR];
    each_row!(I, {
        for j in 0..NV {
            v.store(acc[I][j], &mut padded[I][j * V::LANES..]);
        }
    });
    for (i, padded) in padded.iter_mut().enumerate() {
        // SAFETY: `columns` floats of row i, which are ours alone
        let row = unsafe { std::slice::from_raw_parts_mut(t.c.add(i * t.c_stride), t.columns) };
        if t.residual {
            for (p, &old) in padded.iter_mut().zip(row.iter()) {
                *p += old;
            }
        }
        if let Some(f) = t.activation {
            activate(v, f, &mut padded[..nr]);
        }
        row.copy_from_slice(&padded[..t.columns]);
    }
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
