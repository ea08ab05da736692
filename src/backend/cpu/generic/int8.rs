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

    fn vector(self) -> Self::V;
    fn zero(self) -> Self::I;

    /// # Safety
    /// Four readable bytes at `p`.
    unsafe fn row(self, p: *const u8) -> Self::I;

    /// # Safety
    /// 4 · `LANES` readable bytes at `p`.
    unsafe fn columns(self, p: *const u8) -> Self::I;

    /// sums + Σ row · column over the four, a row's bytes unsigned and a column's signed; exact.
    fn dot(self, sums: Self::I, row: Self::I, columns: Self::I) -> Self::I;

    /// Over the first `LANES` of `out`.
    fn store(self, sums: Self::I, out: &mut [i32]);
}

/// Vectors of columns that a tile of sums is wide.
const NV: usize = 2;
/// Rows of a tile of weights: groups of four of k.
const GROUPS: usize = TILE_BYTES / STEP_BYTES;

/// See [`NarrowKernels`](super::super::gemm::NarrowKernels): `MR` rows by two vectors of columns at a time, over all of k.
///
/// Bound by the ports that multiply: MR · 2 products of four bytes a column for MR + 2 loads.
///
/// # Safety
/// The product's contract, over bytes.
#[inline(always)]
pub(in super::super) unsafe fn dot_product<D: Dot, const MR: usize>(d: D, p: &NarrowProduct<'_>) {
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
                let at = [part, part + lanes].map(|c| c / 16 * TILE_BYTES + c % 16 * 4);
                let a = p.a.wrapping_add(first * p.a_stride);
                // SAFETY: MR rows, or as many as a block has, which are there; the panel's tiles
                let tile =
                    unsafe { dot_tile::<D, MR>(d, a, p.a_stride, at.map(|at| b.wrapping_add(at)), p.steps) };
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

/// Sums of `MR` rows of `a` and two vectors of columns.
///
/// # Safety
/// `steps` steps of MR rows, `a_stride` bytes apart, and of the panel's two tiles, in which both of `b` point to the
/// columns.
#[inline(always)]
#[allow(clippy::multiple_unsafe_ops_per_block, reason = "loads of one step share their bounds")]
unsafe fn dot_tile<D: Dot, const MR: usize>(
    d: D,
    a: *const u8,
    a_stride: usize,
    b: [*const u8; NV],
    steps: usize,
) -> [[D::I; NV]; MR] {
    let mut acc = [[d.zero(); NV]; MR];
    for group in 0..steps * GROUPS {
        let (step, line) = (group / GROUPS, group % GROUPS);
        let (at, weights) = (group * 4, step * 2 * TILE_BYTES + line * STEP_BYTES);
        // SAFETY: by the contract
        unsafe {
            let w = [d.columns(b[0].add(weights)), d.columns(b[1].add(weights))];
            each_row!(I, {
                let x = d.row(a.add(I * a_stride + at));
                for j in 0..NV {
                    acc[I][j] = d.dot(acc[I][j], x, w[j]);
                }
            });
        }
    }
    acc
}

/// See [`NarrowKernels`](super::super::gemm::NarrowKernels): a product of four bytes a column in each of the chains.
#[inline(always)]
pub(in super::super) fn dot_peak<D: Dot>(d: D, steps: usize) -> f32 {
    let bytes = std::hint::black_box([3u8; 4 * MAX_LANES]);
    let mut acc = [d.zero(); PEAK_CHAINS];
    let read = || std::hint::black_box(bytes.as_ptr());
    // SAFETY: as many bytes as the most lanes have
    let mut columns = [unsafe { d.columns(read()) }; PEAK_CHAINS];
    for columns in &mut columns {
        // SAFETY: as above
        *columns = unsafe { d.columns(read()) };
    }
    for _ in 0..steps {
        // each time another, as far as the compiler knows: else it would multiply once
        // SAFETY: four bytes
        let row = unsafe { d.row(read()) };
        for (a, columns) in acc.iter_mut().zip(columns) {
            *a = d.dot(*a, row, columns);
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
