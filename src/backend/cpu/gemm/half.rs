//! Products in bf16 with f32 sums: the layout that kernels of 16-bit pairs work on, and the split over threads.
//!
//! Weights are rounded once at load, activations just before the product. Which instructions multiply is the
//! kernels' business; a row's result does not depend on the rows beside it or on how the product is cut.
#![allow(unsafe_code, reason = "threads write parts of one matrix")]

use super::super::buffer::Buffer;
use super::super::team::Team;
use super::super::workspace::row_stride;
use super::{Matrix, SharedMut, UNITS_PER_THREAD, pack};
use crate::model::{self, Activation};
use half::bf16;

/// Columns of a panel: two tiles.
pub(in super::super) const PANEL: usize = 32;
/// Of k in one step: a tile's row of 64 bytes.
pub(in super::super) const DEPTH: usize = 32;
/// Rows that are multiplied at a time, or half of them: two tiles.
pub(in super::super) const BLOCK: usize = 32;
/// Rows that a thread rounds at a time.
const ROWS_PER_UNIT: usize = 16;

/// One call: a block of rows times a run of panels.
pub(in super::super) struct HalfProduct<'a> {
    /// `[rows to a multiple of 16, DEPTH · steps]`, rows `a_stride` apart
    pub(in super::super) a: *const u16,
    pub(in super::super) a_stride: usize,
    pub(in super::super) rows: usize,
    /// `[panels, steps, 2, 16, 16, 2]`: for each panel and step of k two tiles, whose rows hold two neighbours of
    /// k for each of sixteen columns
    pub(in super::super) b: *const u16,
    pub(in super::super) panels: usize,
    pub(in super::super) steps: usize,
    /// `[panels · PANEL]`
    pub(in super::super) bias: &'a [f32],
    pub(in super::super) activation: Option<Activation>,
    /// Whether `c` is added to.
    pub(in super::super) residual: bool,
    /// `[rows, columns]`, rows `c_stride` apart
    pub(in super::super) c: *mut f32,
    pub(in super::super) c_stride: usize,
    /// At most `panels · PANEL`.
    pub(in super::super) columns: usize,
}

/// What can multiply in bf16. A table is reachable only on a machine that can run it.
pub(in super::super) struct HalfKernels {
    /// The product.
    ///
    /// Its contract: the pointers hold what [`HalfProduct`] says, and nobody else touches `c` meanwhile.
    pub(in super::super) product: unsafe fn(&HalfProduct<'_>),
    /// Rounds a row to bf16, zeros behind it. Its contract: the machine has the table's features.
    pub(in super::super) narrow: unsafe fn(&[f32], &mut [u16]),
}

/// A linear layer in bf16, packed.
pub(in super::super) struct HalfLinear {
    /// bf16 in pairs, `[panels, steps, 2, 16, 16]`
    panels: Buffer,
    bias: Buffer,
    n: usize,
    k: usize,
}

impl HalfLinear {
    /// As `Linear::pack`, rounded to bf16 behind the factor.
    pub(in super::super) fn pack(parts: &[(&model::Linear, f64)], team: Team<'_>) -> Self {
        let k = parts[0].0.weight.shape()[1];
        let rows = parts[0].0.weight.shape()[0];
        let n = rows * parts.len();
        let (count, steps) = (n.div_ceil(PANEL), k.div_ceil(DEPTH));
        let words = steps * PANEL * DEPTH / 2; // f32-sized words of a panel
        let mut panels = Buffer::zeroed(count * words);
        let out = SharedMut::new(&mut panels, count, words, words);
        team.for_each(count, |p| {
            // SAFETY: each panel is written by one call
            let panel: &mut [u16] = bytemuck::cast_slice_mut(unsafe { out.row(p) });
            let mut row = vec![0.0; k];
            for column in 0..PANEL.min(n - p * PANEL) {
                let at = p * PANEL + column;
                let (linear, factor) = parts[at / rows];
                linear.weight.read_f32(at % rows * k, &mut row);
                pack::scale(&mut row, factor);
                for (i, &w) in row.iter().enumerate() {
                    let (step, pair) = (i / DEPTH, i % DEPTH / 2);
                    let tile = (step * 2 + column / 16) * 16 + pair;
                    panel[(tile * 16 + column % 16) * 2 + i % 2] = bf16::from_f32(w).to_bits();
                }
            }
        });
        Self { panels, bias: pack::bias(parts, rows, count * PANEL), n, k }
    }

    pub(in super::super) fn bytes(&self) -> usize {
        4 * (self.panels.len() + self.bias.len())
    }
}

/// Floats of scratch for products of `rows` with up to `k` columns.
pub(in super::super) fn scratch_floats(rows: usize, k: usize) -> usize {
    rows.next_multiple_of(BLOCK) * narrow_stride(k)
}

/// f32-sized words from one rounded row to the next.
fn narrow_stride(k: usize) -> usize {
    row_stride(k.div_ceil(DEPTH) * DEPTH / 2)
}

/// out = f(a · w + bias) + out, on all threads of the team. `scratch` takes the rounded rows of `a`.
pub(in super::super) fn half_gemm(
    kernels: &HalfKernels,
    team: Team<'_>,
    a: Matrix<'_>,
    w: &HalfLinear,
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
    let (stride, steps) = (narrow_stride(w.k), w.k.div_ceil(DEPTH));
    assert!(scratch.len() >= scratch_floats(a.rows, w.k), "room for the rounded rows");
    let narrow = SharedMut::new(scratch, a.rows, stride, stride);
    team.for_each(a.rows.div_ceil(ROWS_PER_UNIT), |unit| {
        for i in unit * ROWS_PER_UNIT..a.rows.min((unit + 1) * ROWS_PER_UNIT) {
            // SAFETY: one call for each row
            let row = bytemuck::cast_slice_mut(unsafe { narrow.row(i) });
            // SAFETY: whoever has the table has its features
            unsafe { (kernels.narrow)(a.row(i), row) };
        }
    });

    let narrow: &[u16] = bytemuck::cast_slice(scratch);
    let panels: &[u16] = bytemuck::cast_slice(&w.panels);
    let out = SharedMut::new(out, a.rows, w.n, out_stride);
    let count = w.n.div_ceil(PANEL);
    let blocks = match team.threads() {
        1 => 1,
        threads => (threads * UNITS_PER_THREAD).div_ceil(count),
    };
    let block = a.rows.div_ceil(blocks).next_multiple_of(BLOCK);
    let blocks = a.rows.div_ceil(block);
    let run = if team.threads() == 1 { count } else { 1 }; // panels of a unit
    team.for_each(blocks * count.div_ceil(run), |unit| {
        let (panel, row) = (unit / blocks * run, unit % blocks * block);
        let column = panel * PANEL;
        let product = HalfProduct {
            a: narrow[row * 2 * stride..].as_ptr(),
            a_stride: 2 * stride,
            rows: block.min(a.rows - row),
            b: panels[panel * steps * PANEL * DEPTH..].as_ptr(),
            panels: run,
            steps,
            bias: &w.bias[column..][..run * PANEL],
            activation,
            residual,
            c: out.at(row, column),
            c_stride: out.stride(),
            columns: (run * PANEL).min(w.n - column),
        };
        // SAFETY: the scratch holds whole blocks of rows, the panels are those of `w`, units differ in their
        // rows or in their panels
        unsafe { (kernels.product)(&product) };
    });
}
