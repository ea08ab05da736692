//! Products with packed weights: the shapes that the kernels work on, and the split over threads.
//!
//! All of k is summed in registers, so the result of an element does not depend on how rows and columns are
//! cut: any split over threads gives the same bits.
#![allow(unsafe_code, reason = "threads write parts of one matrix")]

mod narrow;
mod pack;

pub(super) use narrow::{
    BLOCK, Narrow, NarrowKernels, NarrowLinear, NarrowProduct, PANEL, ROW_SCALE_BYTES, RowScale, STEP_BYTES,
    TILE_BYTES, narrow_gemm,
};
pub(super) use pack::{Linear, pack_keys, pack_values};

use super::kernels::{Epilogue, Kernels};
use super::team::Team;
use crate::model::Activation;
use std::marker::PhantomData;

/// One call of a microkernel; see `generic::gemm_tile` for what each pointer must hold.
pub(super) struct Tile {
    pub(super) k: usize,
    /// `[rows, k]`, rows `a_stride` apart
    pub(super) a: *const f32,
    pub(super) a_stride: usize,
    /// Panels `[k, NR]`, as they are stored
    pub(super) b: *const u8,
    /// Bytes from one panel to the next.
    pub(super) b_stride: usize,
    /// Where the parts of a later call's panel lie that the tile fetches, if it does; anywhere
    pub(super) next: *const u8,
    /// One or two of them, one behind the other.
    pub(super) next_parts: usize,
    /// `[columns]`, to whole panels, or null
    pub(super) factors: *const f32,
    /// As the factors
    pub(super) bias: *const f32,
    /// `[rows]` or null
    pub(super) scale: *const f32,
    /// Whether `c` is added to.
    pub(super) residual: bool,
    /// `[rows, columns of whole panels]`, rows `c_stride` apart
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
}

/// A row-major matrix to read.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Floats from one row to the next.
    pub(super) stride: usize,
}

impl<'a> Matrix<'a> {
    /// # Panics
    /// If `data` is too short.
    pub(super) fn new(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert_fits(data.len(), rows, columns, stride);
        Self { data: &data[..extent(rows, columns, stride)], rows, columns, stride }
    }

    /// `rows` and `columns` of this one.
    pub(super) fn part(self, row: usize, rows: usize, column: usize, columns: usize) -> Self {
        assert!(row + rows <= self.rows && column + columns <= self.columns, "a part of the matrix");
        let first = if rows == 0 { 0 } else { row * self.stride + column };
        Self::new(&self.data[first..], rows, columns, self.stride)
    }

    pub(super) fn row(self, row: usize) -> &'a [f32] {
        &self.data[row * self.stride..][..self.columns]
    }
}

/// Floats that a matrix spans.
fn extent(rows: usize, columns: usize, stride: usize) -> usize {
    if rows == 0 { 0 } else { (rows - 1) * stride + columns }
}

fn assert_fits(len: usize, rows: usize, columns: usize, stride: usize) {
    assert!(columns <= stride || rows <= 1, "rows do not overlap");
    assert!(extent(rows, columns, stride) <= len, "the buffer holds the matrix");
}

/// A row-major matrix that several threads write, each its own part.
pub(super) struct SharedMut<'a> {
    data: *mut f32,
    rows: usize,
    columns: usize,
    stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer is followed by unsafe functions only, whose callers keep threads off each other's parts
unsafe impl Send for SharedMut<'_> {}
// SAFETY: as above
unsafe impl Sync for SharedMut<'_> {}

impl<'a> SharedMut<'a> {
    /// # Panics
    /// If `data` is too short.
    pub(super) fn new(data: &'a mut [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert_fits(data.len(), rows, columns, stride);
        Self { data: data.as_mut_ptr(), rows, columns, stride, borrow: PhantomData }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// `rows` and `columns` of this one.
    pub(super) fn part(&self, row: usize, rows: usize, column: usize, columns: usize) -> SharedMut<'a> {
        assert!(row + rows <= self.rows && column + columns <= self.columns, "a part of the matrix");
        Self { data: self.at(row, column), rows, columns, ..*self }
    }

    /// Where an element is. Within the matrix for a row and column of it.
    pub(super) fn at(&self, row: usize, column: usize) -> *mut f32 {
        self.data.wrapping_add(row * self.stride + column)
    }

    /// One row.
    ///
    /// # Safety
    /// No one else has this row, or a part of it, while the slice lives.
    #[allow(clippy::mut_from_ref, reason = "that is what the contract is about")]
    pub(super) unsafe fn row(&self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "a row of the matrix");
        // SAFETY: `new` checked that the row lies in the buffer, the caller that it is ours
        unsafe { std::slice::from_raw_parts_mut(self.at(row, 0), self.columns) }
    }
}

/// How weights are kept in memory. They are f32 when they are multiplied, whatever this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Storage {
    F32,
    F16,
    /// In words of two: a column of the first half of a panel, and one of the second.
    Bf16,
}

impl Storage {
    /// Of a weight.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A matrix `[k, n]` in panels of `nr` columns, each `[k, nr]`, the last filled with zeros.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    /// Words of 32 bits, of one weight or of two
    pub(super) data: &'a [f32],
    pub(super) storage: Storage,
    /// What the sums of columns are multiplied by, to whole panels; or nothing
    pub(super) factors: &'a [f32],
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) nr: usize,
    /// Whether they were written just now, so that nothing has to be fetched ahead.
    pub(super) in_cache: bool,
}

impl<'a> Panels<'a> {
    /// That were packed for one use.
    pub(super) fn of_f32(data: &'a [f32], n: usize, k: usize, nr: usize) -> Self {
        Self { data, storage: Storage::F32, factors: &[], n, k, nr, in_cache: true }
    }
}

/// Units of work that a product is cut into for each thread: enough that the last one does not make the
/// others wait for long.
const UNITS_PER_THREAD: usize = 4;

/// out = epilogue(a · w), on all threads of the team.
pub(super) fn gemm(
    kernels: &Kernels,
    team: Team<'_>,
    a: Matrix<'_>,
    w: &Linear,
    activation: Option<Activation>,
    residual: bool,
    out: &mut [f32],
    out_stride: usize,
) {
    let panels = w.panels();
    let out = SharedMut::new(out, a.rows, panels.n, out_stride);
    let epilogue = match (activation, residual) {
        (Some(f), _) => Epilogue::BiasActivation(w.bias(), f),
        (None, true) => Epilogue::BiasResidual(w.bias()),
        (None, false) => Epilogue::Bias(w.bias()),
    };
    let columns = panels.n.div_ceil(kernels.nr);
    if team.threads() == 1 {
        // SAFETY: `out` is borrowed for this call, which is alone
        unsafe { kernels.gemm(a, &panels, 0..a.rows, 0..columns, epilogue, &out) };
        return;
    }
    // a run of panels, whose weights stream; with few panels, by a block of rows: whole tiles as far as possible
    let units = team.threads() * UNITS_PER_THREAD;
    let at_once = kernels.panels_at_once(a.rows);
    let groups = columns.div_ceil(at_once);
    let runs = units.min(groups);
    let block = a.rows.div_ceil(units.div_ceil(columns)).next_multiple_of(kernels.mr());
    let blocks = a.rows.div_ceil(block);
    team.for_each(blocks * runs, |unit| {
        let (run, row) = (unit / blocks, unit % blocks * block);
        let rows = row..a.rows.min(row + block);
        let panels_of_run = run * groups / runs * at_once..columns.min((run + 1) * groups / runs * at_once);
        // SAFETY: units differ in their rows or in their panels
        unsafe { kernels.gemm(a, &panels, rows, panels_of_run, epilogue, &out) };
    });
}
