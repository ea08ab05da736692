//! Panels: of weights at load, of keys and values for each head.

use super::super::buffer::Buffer;
use super::super::kernels::Kernels;
use super::super::team::Team;
use super::{Matrix, Panels, SharedMut, Storage};
use crate::model::{self, Dtype};
use half::{bf16, f16};

/// A linear layer, packed.
pub(in super::super) struct Linear {
    panels: Buffer,
    storage: Storage,
    /// What columns are multiplied by, or nothing if none is
    factors: Buffer,
    bias: Buffer,
    n: usize,
    k: usize,
    nr: usize,
}

impl Linear {
    /// Packs linear layers of one width, their outputs side by side, each times its factor; a block of rows
    /// at a time, straight from the checkpoint's bytes. Weights that the checkpoint has in 16 bits stay so; the factors are
    /// for the sums, because the weights times them would not fit.
    pub(in super::super) fn pack(parts: &[(&model::Linear, f64)], kernels: &Kernels, team: Team<'_>) -> Self {
        let (nr, storage) = (kernels.nr, storage(parts, kernels));
        let k = parts[0].0.weight.shape()[1];
        let rows = parts[0].0.weight.shape()[0];
        let n = rows * parts.len();
        let count = n.div_ceil(nr);
        let words = k * nr * storage.bytes() / 4; // of a panel
        let mut panels = Buffer::zeroed(count * words);
        let out = SharedMut::new(&mut panels, count, words, words);
        team.for_each(count, |p| {
            // SAFETY: each panel is written by one call
            let panel = unsafe { out.row(p) };
            let mut row = vec![0.0; k];
            for column in 0..nr.min(n - p * nr) {
                let at = p * nr + column;
                parts[at / rows].0.weight.read_f32(at % rows * k, &mut row);
                match storage {
                    Storage::F32 => spread(&row, panel, nr, column, |w| w),
                    Storage::F16 => {
                        spread(&row, bytemuck::cast_slice_mut(panel), nr, column, f16::from_f32);
                    }
                    Storage::Bf16 => {
                        let (half, first) = (column / (nr / 2), column % (nr / 2));
                        let place = 2 * first + if cfg!(target_endian = "little") { half } else { 1 - half };
                        spread(&row, bytemuck::cast_slice_mut(panel), nr, place, bf16::from_f32);
                    }
                }
            }
        });
        let scaled = parts.iter().any(|&(_, factor)| factor != 1.0);
        let mut factors = Buffer::zeroed(if scaled { count * nr } else { 0 });
        for (factors, &(_, factor)) in factors.chunks_mut(rows).zip(parts) {
            factors.fill(factor as f32);
        }
        Self { panels, storage, factors, bias: bias(parts, rows, count * nr), n, k, nr }
    }

    pub(in super::super) fn panels(&self) -> Panels<'_> {
        let Self { panels, storage, factors, n, k, nr, .. } = self;
        Panels { data: panels, storage: *storage, factors, n: *n, k: *k, nr: *nr, in_cache: false }
    }

    /// Padded to whole panels.
    pub(in super::super) fn bias(&self) -> &[f32] {
        &self.bias
    }

    pub(in super::super) fn bytes(&self) -> usize {
        4 * (self.panels.len() + self.factors.len() + self.bias.len())
    }
}

/// A column of a panel `[k, nr]`.
fn spread<T: Copy>(column: &[f32], panel: &mut [T], nr: usize, place: usize, number: impl Fn(f32) -> T) {
    for (step, &w) in panel.chunks_exact_mut(nr).zip(column) {
        step[place] = number(w);
    }
}

/// How the weights of these layers are kept: as in the checkpoint, if that is the same for all.
fn storage(parts: &[(&model::Linear, f64)], kernels: &Kernels) -> Storage {
    let dtype = parts[0].0.weight.dtype();
    let storage = match dtype {
        Dtype::F32 => Storage::F32,
        Dtype::F16 => Storage::F16,
        Dtype::Bf16 => Storage::Bf16,
    };
    let same = parts.iter().all(|(linear, _)| linear.weight.dtype() == dtype);
    if same && kernels.reads(storage) { storage } else { Storage::F32 }
}

/// The biases of linear layers of `rows` outputs each, side by side, each times its factor, in `len` floats.
pub(super) fn bias(parts: &[(&model::Linear, f64)], rows: usize, len: usize) -> Buffer {
    let mut all = Buffer::zeroed(len);
    for (part, &(linear, factor)) in parts.iter().enumerate() {
        let out = &mut all[part * rows..][..rows];
        if let Some(bias) = &linear.bias {
            bias.read_f32(0, out);
        }
        scale(out, factor);
    }
    all
}

/// Times a factor that need not be an f32, rounded once.
pub(super) fn scale(x: &mut [f32], factor: f64) {
    if factor != 1.0 {
        x.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
    }
}

/// Keys `[seqlen, d]` as the panels of their transpose `[d, seqlen]`, padded to whole panels with keys of 0.
pub(in super::super) fn pack_keys<'a>(keys: Matrix<'_>, nr: usize, out: &'a mut [f32]) -> Panels<'a> {
    let (n, d) = (keys.rows, keys.columns);
    let out = &mut out[..n.next_multiple_of(nr) * d];
    for (p, panel) in out.chunks_exact_mut(nr * d).enumerate() {
        let rows = nr.min(n - p * nr);
        if rows < nr {
            panel.fill(0.0);
        }
        // four keys at a time: one after the other, each waits for a cache line and for as many stores as it has floats
        let fours = rows / 4 * 4;
        for j in (0..fours).step_by(4) {
            let key = |i: usize| keys.row(p * nr + j + i);
            let four = key(0).iter().zip(key(1)).zip(key(2).iter().zip(key(3)));
            for (place, ((&a, &b), (&c, &d))) in panel.chunks_exact_mut(nr).zip(four) {
                place[j..j + 4].copy_from_slice(&[a, b, c, d]);
            }
        }
        for j in fours..rows {
            for (place, &x) in panel.chunks_exact_mut(nr).zip(keys.row(p * nr + j)) {
                place[j] = x;
            }
        }
    }
    Panels::of_f32(out, n.next_multiple_of(nr), d, nr)
}

/// Sixteen floats at a time: a copy of a length that is not known is a call, which for 32 floats costs more than they.
fn copy(from: &[f32], to: &mut [f32]) {
    let (from, from_tail) = from.as_chunks::<16>();
    let (to, to_tail) = to.as_chunks_mut::<16>();
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    to_tail.copy_from_slice(from_tail);
}

/// Values `[seqlen, d]` as their own panels.
pub(in super::super) fn pack_values<'a>(values: Matrix<'_>, nr: usize, out: &'a mut [f32]) -> Panels<'a> {
    let (k, d) = (values.rows, values.columns);
    let out = &mut out[..d.next_multiple_of(nr) * k];
    for (p, panel) in out.chunks_exact_mut(nr * k).enumerate() {
        let columns = p * nr..d.min((p + 1) * nr);
        for (t, place) in panel.chunks_exact_mut(nr).enumerate() {
            let (filled, rest) = place.split_at_mut(columns.len());
            copy(&values.row(t)[columns.clone()], filled);
            rest.fill(0.0);
        }
    }
    Panels::of_f32(out, d, k, nr)
}
