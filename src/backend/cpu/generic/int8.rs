//! int8: rows to bytes, and products of bytes in registers, exact in i32.
#![allow(unsafe_code, reason = "the microkernel works on raw pointers")]

use super::super::gemm::{NarrowProduct, PANEL, ROW_SCALE_BYTES, RowScale, STEP_BYTES, TILE_BYTES};
use super::super::vector::{MAX_LANES, Vector};
use super::finish_rows;
use super::gemm::{PEAK_CHAINS, each_row};

/// What bytes and their sums need of an instruction set besides.
pub(in super::super) trait Int8Vector: Vector {
    /// The nearest integers, ties to even, of `LANES` floats over the first bytes of `out`, cut to 0 to 255; NaN is 0.
    fn store_bytes(self, x: Self::F, out: &mut [u8]);

    /// The first `LANES` of `x`, as floats.
    fn load_i32(self, x: &[i32]) -> Self::F;
}

/// A row's scale is at least this: its inverse is finite, and so are floats times that.
const LEAST_SCALE: f32 = 1e-30;

/// byte = round(x / scale + zero), so that the row's range with 0 in it becomes 0 to 255; zeros (of the product's, not of
/// the row's) behind them, and behind these the [`RowScale`].
#[inline(always)]
pub(in super::super) fn quantize_row<V: Int8Vector>(v: V, x: &[f32], out: &mut [u8]) {
    let (bytes, scale_bytes) = out.split_at_mut(out.len() - ROW_SCALE_BYTES);
    let (bytes, rest) = bytes.split_at_mut(x.len());
    let (mut least, mut greatest, mut broken) = (v.splat(0.0), v.splat(0.0), v.splat(0.0));
    let mut take = |x: V::F| {
        // the row's number comes first: NaN leaves the second
        least = v.min(x, least);
        greatest = v.max(x, greatest);
        broken = v.mul_add(x, v.splat(0.0), broken);
    };
    let mut chunks = x.chunks_exact(V::LANES);
    for c in &mut chunks {
        take(v.load(c));
    }
    if !chunks.remainder().is_empty() {
        take(v.load_tail(chunks.remainder(), 0.0));
    }
    let below = v.greatest(v.sub(v.splat(0.0), least));
    let scale = ((v.greatest(greatest) + below) / 255.0).max(LEAST_SCALE);
    let inverse = 1.0 / scale;
    let zero = (below * inverse).round_ties_even() + 0.0; // of −0 and 0 always the latter

    let (inverse, shift) = (v.splat(inverse), v.splat(zero));
    let mut out = bytes.chunks_exact_mut(V::LANES);
    let mut chunks = x.chunks_exact(V::LANES);
    for (out, c) in (&mut out).zip(&mut chunks) {
        v.store_bytes(v.mul_add(v.load(c), inverse, shift), out);
    }
    let out = out.into_remainder();
    if !out.is_empty() {
        let mut tail = [0; MAX_LANES];
        v.store_bytes(v.mul_add(v.load_tail(chunks.remainder(), 0.0), inverse, shift), &mut tail);
        out.copy_from_slice(&tail[..out.len()]);
    }
    rest.fill(0);
    let scale = RowScale { scale: scale + v.sum(broken), zero };
    scale_bytes[..4].copy_from_slice(&scale.scale.to_ne_bytes());
    scale_bytes[4..].copy_from_slice(&scale.zero.to_ne_bytes());
}

/// Products of bytes of one instruction set: a token, as [`Vector`] is.
pub(in super::super) trait Dot: Copy {
    /// With sums of as many columns as it has lanes.
    type V: Int8Vector;
    /// A vector of sums, or of four bytes of a row or of each column in each lane.
    type I: Copy;
    /// Groups of four of k that are multiplied at a time; a divisor of [`GROUPS`]. There are too few registers for the columns of
    /// several, so each row reads them again.
    const RUN: usize;

    fn vector(self) -> Self::V;
    fn zero(self) -> Self::I;

    /// # Safety
    /// Four readable bytes at `p`.
    unsafe fn row(self, p: *const u8) -> Self::I;

    /// # Safety
    /// 4 · `LANES` readable bytes at `p`.
    unsafe fn columns(self, p: *const u8) -> Self::I;

    /// sums + Σ row · column over `RUN` groups, a row's bytes unsigned and a column's signed; exact.
    fn dot(self, sums: Self::I, row: &[Self::I], columns: &[Self::I]) -> Self::I;

    /// Over the first `LANES` of `out`.
    fn store(self, sums: Self::I, out: &mut [i32]);
}

/// Rows of a tile of weights: groups of four of k.
const GROUPS: usize = TILE_BYTES / STEP_BYTES;
/// The most that are multiplied at a time.
const MOST_RUN: usize = 4;

/// See [`NarrowKernels`](super::super::gemm::NarrowKernels): `MR` rows by `NV` vectors of columns at a time, over all of k.
///
/// Bound by the ports that multiply, and by how many instructions begin in a cycle.
///
/// # Safety
/// The product's contract, over bytes.
#[inline(always)]
pub(in super::super) unsafe fn dot_product<D: Dot, const MR: usize, const NV: usize>(
    d: D,
    p: &NarrowProduct<'_>,
) {
    let v = d.vector();
    let lanes = D::V::LANES;
    for panel in 0..p.panels {
        let b = p.b.wrapping_add(panel * p.steps * 2 * TILE_BYTES);
        let mut done = 0;
        while done < p.rows {
            // a last tile that would hang over starts earlier; only what it has more is finished
            let first = done.min(p.rows.saturating_sub(MR));
            let mut sums = [[0; PANEL]; MR];
            for part in (0..PANEL).step_by(NV * lanes) {
                let a = p.a.wrapping_add(first * p.a_stride);
                let b = b.wrapping_add(column_offset(part));
                // SAFETY: MR rows, or as many as a block has, which are there; the panel's tiles
                let tile = unsafe { dot_tile::<D, MR, NV>(d, a, p.a_stride, b, p.steps) };
                for (row, tile) in sums.iter_mut().zip(tile) {
                    for (j, sum) in tile.into_iter().enumerate() {
                        d.store(sum, &mut row[part + j * lanes..]);
                    }
                }
            }
            let end = p.rows.min(first + MR);
            // SAFETY: rows and a panel of the product
            unsafe { finish_rows(v, p, panel, done..end, first, &sums) };
            done = end;
        }
    }
}

/// Where the bytes of a column lie in a line of a panel's two tiles.
const fn column_offset(column: usize) -> usize {
    column / 16 * TILE_BYTES + column % 16 * 4
}

/// Sums of `MR` rows of `a` and `NV` vectors of columns.
///
/// # Safety
/// `steps` steps of MR rows, `a_stride` bytes apart, and of the panel's two tiles, in which `b` points to the first of the
/// columns, at a multiple of `NV` vectors.
#[inline(always)]
#[allow(clippy::multiple_unsafe_ops_per_block, reason = "loads of one step share their bounds")]
unsafe fn dot_tile<D: Dot, const MR: usize, const NV: usize>(
    d: D,
    mut a: *const u8,
    a_stride: usize,
    mut b: *const u8,
    steps: usize,
) -> [[D::I; NV]; MR] {
    const { assert!(D::RUN <= MOST_RUN && GROUPS.is_multiple_of(D::RUN), "whole runs of groups") };
    const { assert!((NV * D::V::LANES).is_multiple_of(16), "columns from the first of a tile on") };
    let mut acc = [[d.zero(); NV]; MR];
    let again = D::RUN > 1;

    macro_rules! columns {
        ($j:expr) => {{
            let mut w = [d.zero(); MOST_RUN];
            for u in 0..D::RUN {
                w[u] = d.columns(b.add(column_offset($j * D::V::LANES) + u * STEP_BYTES));
            }
            w
        }};
    }
    for _ in 0..steps {
        for _ in 0..GROUPS / D::RUN {
            // SAFETY: by the contract
            unsafe {
                let mut w = [[d.zero(); MOST_RUN]; NV];
                if !again {
                    for j in 0..NV {
                        w[j] = columns!(j);
                    }
                }
                each_row!(I, {
                    let mut x = [d.zero(); MOST_RUN];
                    for u in 0..D::RUN {
                        x[u] = d.row(a.add(I * a_stride + 4 * u));
                    }
                    if again {
                        // opaque, because otherwise the compiler reads them once and keeps them on the stack
                        b = d.vector().opaque(b.cast()).cast();
                    }
                    for j in 0..NV {
                        let w = if again { columns!(j) } else { w[j] };
                        acc[I][j] = d.dot(acc[I][j], &x[..D::RUN], &w[..D::RUN]);
                    }
                });
            }
            a = a.wrapping_add(4 * D::RUN);
            b = b.wrapping_add(STEP_BYTES * D::RUN);
        }
        b = b.wrapping_add(TILE_BYTES); // the other tile
    }
    acc
}

/// See [`NarrowKernels`](super::super::gemm::NarrowKernels): products of a run of groups in each of the chains.
#[inline(always)]
pub(in super::super) fn dot_peak<D: Dot>(d: D, steps: usize) -> f32 {
    let bytes = std::hint::black_box([3u8; 4 * MAX_LANES]);
    let mut acc = [d.zero(); PEAK_CHAINS];
    let read = || std::hint::black_box(bytes.as_ptr());
    let mut columns = [d.zero(); PEAK_CHAINS + MOST_RUN];
    for columns in &mut columns {
        // SAFETY: as many bytes as the most lanes have
        *columns = unsafe { d.columns(read()) };
    }
    for _ in 0..steps {
        // each time others, as far as the compiler knows: else it would multiply once
        let (mut row, from) = ([d.zero(); MOST_RUN], read());
        for (u, row) in row[..D::RUN].iter_mut().enumerate() {
            // SAFETY: four bytes of as many as the most lanes have
            *row = unsafe { d.row(from.wrapping_add(4 * u)) };
        }
        for (i, a) in acc.iter_mut().enumerate() {
            *a = d.dot(*a, &row[..D::RUN], &columns[i..i + D::RUN]);
        }
    }
    let mut total = 0i32;
    for a in acc {
        let mut sums = [0; MAX_LANES];
        d.store(a, &mut sums);
        total = total.wrapping_add(sums[0]);
    }
    total as f32
}
