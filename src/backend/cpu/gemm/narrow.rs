//! Products of narrow numbers: the layouts that their kernels work on, and the split over threads.
//!
//! Weights are rounded once at load, activations just before the product. Which instructions multiply is the
//! kernels' business; a row's result does not depend on the rows beside it or on how the product is cut.
//!
//! In int8 a column of weights has one scale, its greatest |w| / 127, and a row of activations has one scale and one
//! zero point, so that its range becomes 0 to 255: with a zero point, vectors of all-MiniLM differ from those in f32 half
//! as much as with −127 to 127, because GELU's outputs and the outliers of a layernorm lie on one side. Sums are exact
//! in i32. What was tried and lost: scales moved from activations into weights by the layernorms' weights
//! (SmoothQuant without data), clipped ranges of activations, weights' scales of least squared error.
#![allow(unsafe_code, reason = "threads write parts of one matrix")]

use super::super::buffer::Buffer;
use super::super::team::Team;
use super::super::workspace::row_stride;
use super::{Matrix, SharedMut, UNITS_PER_THREAD, pack};
use crate::backend::Precision;
use crate::model::{self, Activation};
use half::bf16;

/// Columns of a panel: two tiles.
pub(in super::super) const PANEL: usize = 32;
/// Bytes of a row in one step of k: a row of a tile.
pub(in super::super) const STEP_BYTES: usize = 64;
/// Bytes of a tile of weights: sixteen rows.
pub(in super::super) const TILE_BYTES: usize = 16 * STEP_BYTES;
/// Rows that are multiplied at a time, or half of them: two tiles.
pub(in super::super) const BLOCK: usize = 32;
/// Rows that a thread rounds at a time.
const ROWS_PER_UNIT: usize = 16;
/// Bytes behind a row in int8: a [`RowScale`].
pub(in super::super) const ROW_SCALE_BYTES: usize = size_of::<RowScale>();
/// Of k in int8: no sum of products of up to 255 · 127 leaves an i32.
const MOST_BYTES: usize = i32::MAX as usize / (255 * 127);

/// The numbers that are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Narrow {
    Bf16,
    Int8,
}

impl Narrow {
    pub(in super::super) fn precision(self) -> Precision {
        match self {
            Self::Bf16 => Precision::Bf16,
            Self::Int8 => Precision::Int8,
        }
    }

    /// Neighbours of k that stand side by side for each column of a tile of weights.
    fn group(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::Int8 => 4,
        }
    }

    /// Of k in one step.
    pub(in super::super) fn depth(self) -> usize {
        STEP_BYTES / 4 * self.group()
    }

    /// The most of k whose sums are exact, where there is a limit.
    pub(in super::super) fn most_of_k(self) -> Option<usize> {
        match self {
            Self::Bf16 => None,
            Self::Int8 => Some(MOST_BYTES),
        }
    }

    /// Bytes of a rounded row.
    fn row_bytes(self, k: usize) -> usize {
        let steps = k.div_ceil(self.depth()) * STEP_BYTES;
        match self {
            Self::Bf16 => steps,
            Self::Int8 => steps + ROW_SCALE_BYTES,
        }
    }

    /// f32-sized words from one rounded row to the next.
    fn stride(self, k: usize) -> usize {
        row_stride(self.row_bytes(k) / 4)
    }

    /// Floats of scratch for products of `rows` with up to `k` columns.
    pub(in super::super) fn scratch_floats(self, rows: usize, k: usize) -> usize {
        rows.next_multiple_of(BLOCK) * self.stride(k)
    }
}

/// What a row's bytes in int8 stand for: (byte − zero) · scale.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub(in super::super) struct RowScale {
    /// NaN where the row holds an infinity or a NaN.
    pub(in super::super) scale: f32,
    /// An integer from 0 to 255.
    pub(in super::super) zero: f32,
}

/// One call: a block of rows times a run of panels.
pub(in super::super) struct NarrowProduct<'a> {
    /// `[rows to a multiple of 16, STEP_BYTES · steps]`, rows `a_stride` bytes apart; in int8 a [`RowScale`] behind each
    pub(in super::super) a: *const u8,
    pub(in super::super) a_stride: usize,
    pub(in super::super) rows: usize,
    /// `[panels, steps, 2, 16, 16, 4 bytes]`: for each panel and step of k two tiles, whose rows hold two or four
    /// neighbours of k for each of sixteen columns
    pub(in super::super) b: *const u8,
    pub(in super::super) panels: usize,
    pub(in super::super) steps: usize,
    /// `[panels · PANEL]`
    pub(in super::super) bias: &'a [f32],
    /// In int8, `[panels, 2, PANEL]`: the scales of the columns, then the sums of their bytes
    pub(in super::super) columns_int8: &'a [f32],
    pub(in super::super) activation: Option<Activation>,
    /// Whether `c` is added to.
    pub(in super::super) residual: bool,
    /// `[rows, columns]`, rows `c_stride` apart
    pub(in super::super) c: *mut f32,
    pub(in super::super) c_stride: usize,
    /// At most `panels · PANEL`.
    pub(in super::super) columns: usize,
}

impl NarrowProduct<'_> {
    /// In int8, the scale of a row.
    ///
    /// # Safety
    /// The row is one of the product's, and `a` holds what it says.
    #[inline(always)]
    pub(in super::super) unsafe fn row_scale(&self, row: usize) -> RowScale {
        let behind = self.a.wrapping_add(row * self.a_stride + self.steps * STEP_BYTES);
        // SAFETY: by the contract; rows are whole words apart, so it is aligned
        unsafe { *behind.cast() }
    }

    /// In int8, scales and sums of a panel's columns.
    #[inline(always)]
    pub(in super::super) fn panel_int8(&self, panel: usize) -> (&[f32], &[f32]) {
        self.columns_int8[panel * 2 * PANEL..][..2 * PANEL].split_at(PANEL)
    }
}

/// What can multiply narrow numbers. A table is reachable only on a machine that can run it.
pub(in super::super) struct NarrowKernels {
    pub(in super::super) name: &'static str,
    pub(in super::super) numbers: Narrow,
    /// In int8, whether products of two neighbours are added in sixteen bits: neighbouring weights then are small enough for that.
    pub(in super::super) adds_pairs: bool,
    /// The product.
    ///
    /// Its contract: the pointers hold what [`NarrowProduct`] says, and nobody else touches `c` meanwhile.
    pub(in super::super) product: unsafe fn(&NarrowProduct<'_>),
    /// Rounds a row, zeros behind it, and in int8 a [`RowScale`] behind them. Its contract: the machine has the table's
    /// features.
    pub(in super::super) narrow: unsafe fn(&[f32], &mut [u8]),
    /// Multiplies and adds from registers, so many steps of it; a number that keeps the compiler from dropping them. Its
    /// contract: the machine has the table's features.
    pub(in super::super) peak: unsafe fn(usize) -> f32,
    /// Multiplications and additions of one step.
    pub(in super::super) peak_operations: usize,
}

/// A linear layer in narrow numbers, packed.
pub(in super::super) struct NarrowLinear {
    kernels: &'static NarrowKernels,
    /// `[panels, steps, 2, 16, 16]` words of two or four numbers
    panels: Buffer,
    bias: Buffer,
    /// As [`NarrowProduct::columns_int8`]; empty in bf16
    columns_int8: Buffer,
    n: usize,
    k: usize,
}

impl NarrowLinear {
    /// As `Linear::pack`, rounded behind the factor.
    pub(in super::super) fn pack(
        parts: &[(&model::Linear, f64)],
        kernels: &'static NarrowKernels,
        team: Team<'_>,
    ) -> Self {
        let k = parts[0].0.weight.shape()[1];
        let rows = parts[0].0.weight.shape()[0];
        let n = rows * parts.len();
        let (group, depth) = (kernels.numbers.group(), kernels.numbers.depth());
        let (count, steps) = (n.div_ceil(PANEL), k.div_ceil(depth));
        let words = steps * 2 * TILE_BYTES / 4; // of a panel
        let int8 = kernels.numbers == Narrow::Int8;
        assert!(!int8 || k <= MOST_BYTES, "sums of {k} products would not fit an i32");
        let mut panels = Buffer::zeroed(count * words);
        let mut columns_int8 = Buffer::zeroed(if int8 { count * 2 * PANEL } else { 0 });
        let out = SharedMut::new(&mut panels, count, words, words);
        let columns = SharedMut::new(&mut columns_int8, if int8 { count } else { 0 }, 2 * PANEL, 2 * PANEL);
        team.for_each(count, |p| {
            // SAFETY: each panel is written by one call
            let panel: &mut [u8] = bytemuck::cast_slice_mut(unsafe { out.row(p) });
            // the byte of a number, by its column and its place in k
            let at = |column: usize, i: usize| {
                let tile = (i / depth * 2 + column / 16) * TILE_BYTES;
                tile + (i % depth / group * 16 + column % 16) * 4 + i % group * 4 / group
            };
            let mut row = vec![0.0; k];
            for column in 0..PANEL.min(n - p * PANEL) {
                let (linear, factor) = parts[(p * PANEL + column) / rows];
                linear.weight.read_f32((p * PANEL + column) % rows * k, &mut row);
                pack::scale(&mut row, factor);
                match kernels.numbers {
                    Narrow::Bf16 => {
                        for (i, &w) in row.iter().enumerate() {
                            panel[at(column, i)..][..2].copy_from_slice(&bf16::from_f32(w).to_ne_bytes());
                        }
                    }
                    Narrow::Int8 => {
                        let scale = column_scale(&row, kernels.adds_pairs);
                        let mut sum = 0i32;
                        for (i, &w) in row.iter().enumerate() {
                            let q = (w / scale).round_ties_even() as i8; // 0 for NaN
                            sum += i32::from(q);
                            panel[at(column, i)] = q as u8;
                        }
                        // SAFETY: each panel is written by one call
                        let of_panel = unsafe { columns.row(p) };
                        of_panel[column] = scale;
                        of_panel[PANEL + column] = sum as f32;
                    }
                }
            }
        });
        Self { kernels, panels, bias: pack::bias(parts, rows, count * PANEL), columns_int8, n, k }
    }

    pub(in super::super) fn bytes(&self) -> usize {
        4 * (self.panels.len() + self.bias.len() + self.columns_int8.len())
    }
}

/// What a column of weights is divided by: its greatest |w| becomes 127. Never 0; NaN where a weight is not finite.
///
/// With `adds_pairs` the greatest |w₂ᵢ + w₂ᵢ₊₁| does if that is more, so that 255 times the two, rounded, is no more than
/// 255 · 128 and fits sixteen bits (weights of two signs do anyway). Seven bits for all would double the error of the
/// weights; this makes it some 1.4 times as large.
fn column_scale(weights: &[f32], adds_pairs: bool) -> f32 {
    let mut greatest = weights.iter().fold(0f32, |m, w| m.max(w.abs()));
    if adds_pairs {
        greatest = weights.as_chunks().0.iter().fold(greatest, |m, [a, b]| m.max((a + b).abs()));
    }
    let broken: f32 = weights.iter().map(|w| w * 0.0).sum();
    (greatest / 127.0).max(f32::MIN_POSITIVE) + broken
}

/// out = f(a · w + bias) + out, on all threads of the team. `scratch` takes the rounded rows of `a`.
pub(in super::super) fn narrow_gemm(
    team: Team<'_>,
    a: Matrix<'_>,
    w: &NarrowLinear,
    activation: Option<Activation>,
    residual: bool,
    scratch: &mut Buffer,
    out: &mut [f32],
    out_stride: usize,
) {
    if a.rows == 0 {
        return;
    }
    assert_eq!(a.columns, w.k, "rows as wide as the weights");
    let numbers = w.kernels.numbers;
    let (stride, bytes) = (numbers.stride(w.k), numbers.row_bytes(w.k));
    assert!(scratch.len() >= numbers.scratch_floats(a.rows, w.k), "room for the rounded rows");
    let narrow = SharedMut::new(scratch, a.rows, stride, stride);
    team.for_each(a.rows.div_ceil(ROWS_PER_UNIT), |unit| {
        for i in unit * ROWS_PER_UNIT..a.rows.min((unit + 1) * ROWS_PER_UNIT) {
            // SAFETY: one call for each row
            let row: &mut [u8] = bytemuck::cast_slice_mut(unsafe { narrow.row(i) });
            // SAFETY: whoever has the table has its features
            unsafe { (w.kernels.narrow)(a.row(i), &mut row[..bytes]) };
        }
    });

    let out = SharedMut::new(out, a.rows, w.n, out_stride);
    let (count, panel_words) = (w.n.div_ceil(PANEL), w.k.div_ceil(numbers.depth()) * 2 * TILE_BYTES / 4);
    let blocks = match team.threads() {
        1 => 1,
        threads => (threads * UNITS_PER_THREAD).div_ceil(count),
    };
    let block = a.rows.div_ceil(blocks).next_multiple_of(BLOCK);
    let blocks = a.rows.div_ceil(block);
    let run = if team.threads() == 1 { count } else { 1 }; // panels of a unit
    let rounded = &scratch[..];
    team.for_each(blocks * count.div_ceil(run), |unit| {
        let (panel, row) = (unit / blocks * run, unit % blocks * block);
        let column = panel * PANEL;
        let product = NarrowProduct {
            a: rounded[row * stride..].as_ptr().cast(),
            a_stride: 4 * stride,
            rows: block.min(a.rows - row),
            b: w.panels[panel * panel_words..].as_ptr().cast(),
            panels: run,
            steps: w.k.div_ceil(numbers.depth()),
            bias: &w.bias[column..][..run * PANEL],
            columns_int8: match numbers {
                Narrow::Bf16 => &[],
                Narrow::Int8 => &w.columns_int8[2 * column..][..2 * run * PANEL],
            },
            activation,
            residual,
            c: out.at(row, column),
            c_stride: out.stride(),
            columns: (run * PANEL).min(w.n - column),
        };
        // SAFETY: the scratch holds whole blocks of rows, the panels are those of `w`, units differ in their
        // rows or in their panels
        unsafe { (w.kernels.product)(&product) };
    });
}
