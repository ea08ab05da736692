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
    /// In int8, groups of four whose products are added in sixteen bits, two sums for a group's halves; the weights then are
    /// small enough for that. 0 where none are.
    pub(in super::super) short_run: usize,
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
            let (mut row, mut bytes) = (vec![0.0; k], vec![0i8; if int8 { k } else { 0 }]);
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
                        let scale = quantize_column(&row, kernels.short_run, &mut bytes);
                        for (i, bytes) in bytes.chunks(group).enumerate() {
                            panel[at(column, i * group)..][..bytes.len()]
                                .copy_from_slice(bytemuck::cast_slice(bytes));
                        }
                        let sum: i32 = bytes.iter().map(|&byte| i32::from(byte)).sum();
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

/// The most that weights of one sign may add up to where 255 times their sum has to fit sixteen bits.
const MOST_OF_A_SIGN: i32 = i16::MAX as i32 / 255;

/// byte = round(w / scale), and the scale: the greatest |w| becomes 127. Never 0; NaN where a weight is not finite.
///
/// With a `short_run` the weights that share a sum of sixteen bits, those in the first or in the second half of each group
/// of the run, add up to no more than 128 for each sign, so that no sum of them times bytes from 0 to 255 leaves sixteen bits;
/// where rounding makes them more, those that it raised most become one less. With four groups that makes the error of
/// all-MiniLM's weights some 2.0 times as large (1.5 times with two, 1.2 with one), and then it is as large as that of the rows.
fn quantize_column(weights: &[f32], short_run: usize, bytes: &mut [i8]) -> f32 {
    let run = 4 * short_run;
    let mut scale = weights.iter().fold(0f32, |m, w| m.max(w.abs())) / 127.0;
    if run > 0 {
        for weights in weights.chunks(run) {
            let sums = sums_by_sign(weights, |w| w / 128.0); // of the greatest numbers, too, finite
            scale = sums.into_iter().fold(scale, f32::max);
        }
    }
    let broken: f32 = weights.iter().map(|w| w * 0.0).sum();
    let scale = scale.max(f32::MIN_POSITIVE) + broken;
    for (byte, w) in bytes.iter_mut().zip(weights) {
        *byte = nearest(w / scale) as i8; // 0 for NaN
    }
    if run > 0 {
        for (bytes, weights) in bytes.chunks_mut(run).zip(weights.chunks(run)) {
            for (which, sum) in sums_by_sign(bytes, f32::from).into_iter().enumerate() {
                for _ in MOST_OF_A_SIGN..sum as i32 {
                    lower_the_most_raised(bytes, weights, scale, which);
                }
            }
        }
    }
    scale
}

/// Sums of the numbers above 0 and of those below, less their sign, in the first halves of groups of four; then in the second.
fn sums_by_sign<T: Copy>(numbers: &[T], float: impl Fn(T) -> f32) -> [f32; 4] {
    let mut sums = [0.0; 4];
    for (i, &x) in numbers.iter().enumerate() {
        sums[i % 4 / 2 * 2] += float(x).max(0.0);
        sums[i % 4 / 2 * 2 + 1] += (-float(x)).max(0.0);
    }
    sums
}

/// Of the bytes of one of these sums, that which rounding raised most becomes one nearer to 0.
fn lower_the_most_raised(bytes: &mut [i8], weights: &[f32], scale: f32, which: usize) {
    let (half, sign) = (which / 2, if which.is_multiple_of(2) { 1i8 } else { -1 });
    let raised = |bytes: &[i8], i: usize| (f32::from(bytes[i]) - weights[i] / scale) * f32::from(sign);
    let most = (0..bytes.len())
        .filter(|&i| i % 4 / 2 == half && bytes[i].signum() == sign)
        .max_by(|&i, &j| raised(bytes, i).total_cmp(&raised(bytes, j)));
    if let Some(i) = most {
        bytes[i] -= sign;
    }
}

/// The nearest integer, ties to even, of a number below 2²².
fn nearest(x: f32) -> f32 {
    const SHIFT: f32 = 1.5 * (1 << 23) as f32; // above it a float has no fraction
    x + SHIFT - SHIFT
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

#[cfg(test)]
mod tests {
    use super::super::super::tests::random;
    use super::*;

    /// Of weights of many shapes, whatever rounding does to them; and no byte is further from its weight than one.
    #[test]
    fn sums_of_any_weights_fit_sixteen_bits() {
        for round in 0..400 {
            let (k, power, one_sign) = ([384, 70, 16, 3][round % 4], 0.1 * (round / 4) as f32, round % 8 < 4);
            let magnitude = [1.0, 1e-30, 1e38][round / 8 % 3];
            let sign = |w: f32| if one_sign { 1.0 } else { w.signum() };
            let shape = |&w: &f32| sign(w) * w.abs().powf(power) * magnitude;
            let weights: Vec<f32> = random(k, round as u32).iter().map(shape).collect();
            for short_run in [0, 1, 2, 4] {
                let mut bytes = vec![0; k];
                let scale = quantize_column(&weights, short_run, &mut bytes);
                for (byte, w) in bytes.iter().zip(&weights) {
                    assert!(
                        (f32::from(*byte) - w / scale).abs() < 1.0,
                        "round {round}: {w} / {scale}, {byte}"
                    );
                }
                let mut most = bytes.iter().map(|&b| i32::from(b).abs()).max().unwrap();
                for run in bytes.chunks((4 * short_run).max(1)).filter(|_| short_run > 0) {
                    for (half, sign) in [(0, 1), (0, -1), (1, 1), (1, -1)] {
                        let of_half = run.iter().enumerate().filter(|(i, _)| i % 4 / 2 == half);
                        let sum = of_half.map(|(_, &byte)| (i32::from(byte) * sign).max(0)).sum();
                        assert!(sum <= 128, "round {round}, runs of {short_run}: {sum}");
                        most = most.max(sum);
                    }
                }
                assert!(most >= 120, "round {round}, runs of {short_run}: no byte is wasted, {most}");
            }
        }
    }
}
