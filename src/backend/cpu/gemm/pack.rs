//! Panels: of weights at load, of keys and values for each head.

use super::super::buffer::Buffer;
use super::super::team::Team;
use super::{Matrix, Panels, SharedMut};
use crate::model;

/// A linear layer, packed.
pub(in super::super) struct Linear {
    panels: Buffer,
    bias: Buffer,
    n: usize,
    k: usize,
    nr: usize,
}

impl Linear {
    /// Packs linear layers of one width, their outputs side by side, each times its factor; a block of rows
    /// at a time, straight from the checkpoint's bytes.
    pub(in super::super) fn pack(parts: &[(&model::Linear, f64)], nr: usize, team: Team<'_>) -> Self {
        let k = parts[0].0.weight.shape()[1];
        let rows = parts[0].0.weight.shape()[0];
        let n = rows * parts.len();
        let count = n.div_ceil(nr);
        let mut panels = Buffer::zeroed(count * nr * k);
        // one panel a row
        let out = SharedMut::new(&mut panels, count, k * nr, k * nr);
        team.for_each(count, |p| {
            // SAFETY: each panel is written by one call
            let panel = unsafe { out.row(p) };
            let mut row = vec![0.0; k];
            for column in 0..nr.min(n - p * nr) {
                let at = p * nr + column;
                let (linear, factor) = parts[at / rows];
                linear.weight.read_f32(at % rows * k, &mut row);
                scale(&mut row, factor);
                for (place, &w) in panel.chunks_exact_mut(nr).zip(&row) {
                    place[column] = w;
                }
            }
        });
        Self { panels, bias: bias(parts, rows, count * nr), n, k, nr }
    }

    pub(in super::super) fn panels(&self) -> Panels<'_> {
        Panels { data: &self.panels, n: self.n, k: self.k, nr: self.nr }
    }

    /// Padded to whole panels.
    pub(in super::super) fn bias(&self) -> &[f32] {
        &self.bias
    }

    pub(in super::super) fn bytes(&self) -> usize {
        4 * (self.panels.len() + self.bias.len())
    }
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
        for j in 0..rows {
            for (place, &x) in panel.chunks_exact_mut(nr).zip(keys.row(p * nr + j)) {
                place[j] = x;
            }
        }
    }
    Panels { data: out, n: n.next_multiple_of(nr), k: d, nr }
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
    Panels { data: out, n: d, k, nr }
}
