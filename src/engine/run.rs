//! Packs windows of sequences into batches, has them computed, and puts the vectors into the caller's rows.

use super::pool::{Buffers, Call, Done, Pool};
use super::{Embedder, WINDOW_BATCHES};
use crate::backend::{Backend, Precision};
use crate::batch::Plan;
use crate::error::{Error, Result};
use crate::options::Normalize;
use crate::tokenize::Encoding;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Why a vector is not finite, by the precision that it was computed in.
const NOT_FINITE: &str = "the vector is not finite (NaN or infinity in the weights, or an overflow)";
const NOT_FINITE_FP16: &str = "the vector is not finite (NaN or infinity in the weights, or an overflow: fp16 ends at \
                               65504, precision bf16 has the range of fp32)";

/// Who computes.
pub(super) enum Crew {
    /// One device that takes one batch at a time, such as the CPU: on the callers' own threads, in turns, with no way to
    /// another thread and back.
    Single(Box<Mutex<Single>>),
    /// Several devices, or one that can compute while its next batch is packed.
    Pool(Pool),
}

/// The backend, and memory of its one batch and of a window's plan.
pub(super) struct Single {
    backend: Box<dyn Backend>,
    buffers: Buffers,
}

/// Tokenised sequences that are packed together.
pub(super) trait Sequences {
    /// How many.
    fn count(&self) -> usize;
    /// Ids and types of sequence `i`.
    fn get(&self, i: usize) -> (&[u32], &[u32]);
}

impl Sequences for Vec<Encoding> {
    fn count(&self) -> usize {
        self.len()
    }

    fn get(&self, i: usize) -> (&[u32], &[u32]) {
        (&self[i].ids, &self[i].type_ids)
    }
}

/// Sequence `i` is `ids[offsets[i]..offsets[i + 1]]`.
pub(super) struct Ids<'a> {
    pub(super) ids: &'a [u32],
    pub(super) offsets: &'a [usize],
    /// Token types, for the longest sequence at least.
    pub(super) zeros: &'a [u32],
}

impl Sequences for Ids<'_> {
    fn count(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    fn get(&self, i: usize) -> (&[u32], &[u32]) {
        let (start, end) = (self.offsets[i], self.offsets[i + 1]);
        (&self.ids[start..end], &self.zeros[..end - start])
    }
}

/// Sequences with the batches that they are cut into. It hangs on their lengths alone, not on who computes them: so a
/// row's vector has the same bits on one device as on several of its kind.
struct Window<S> {
    sequences: S,
    plan: Plan,
    /// The caller's row of sequence 0.
    first: usize,
}

impl<S: Sequences> Window<S> {
    /// Plans in the memory of `plan`.
    fn new(sequences: S, first: usize, max_tokens: usize, mut plan: Plan) -> Self {
        plan.pack(sequences.count(), |i| sequences.get(i).0.len(), max_tokens);
        Self { plan, sequences, first }
    }

    /// The sequences of a batch.
    fn batch(&self, i: usize) -> &[usize] {
        &self.plan.order[self.plan.batches[i].clone()]
    }
}

impl Crew {
    pub(super) fn new(mut backends: Vec<Box<dyn Backend>>) -> Result<Self> {
        if backends.len() == 1
            && let Some(backend) = backends.pop_if(|backend| backend.capacity().in_flight <= 1)
        {
            let buffers = Buffers::default();
            return Ok(Self::Single(Box::new(Mutex::new(Single { backend, buffers }))));
        }
        Ok(Self::Pool(Pool::new(backends)?))
    }

    /// Each backend that has not failed, when it is free.
    pub(super) fn each(&self, mut f: impl FnMut(&mut dyn Backend) -> Result<()>) -> Result<()> {
        match self {
            Self::Single(single) => f(&mut *single.lock().unwrap_or_else(PoisonError::into_inner).backend),
            Self::Pool(pool) => pool.each(f),
        }
    }

    pub(super) fn failures(&self) -> Vec<String> {
        match self {
            Self::Single(_) => Vec::new(),
            Self::Pool(pool) => pool.failures(),
        }
    }

    /// Windows whose batches are computed or next in the queue, and one that is tokenised.
    pub(super) fn parallel_calls(&self) -> usize {
        match self {
            Self::Single(_) => 1,
            Self::Pool(pool) => 1 + (2 * pool.in_flight()).div_ceil(WINDOW_BATCHES),
        }
    }
}

impl Embedder {
    /// Computes the rows of `out`, a window at a time. `window` gives the sequences of the rows from the given one on, at
    /// least one; with a pool it is called while batches of the windows before are computed. The pooling leaves out the
    /// first `skip_tokens`.
    pub(super) fn run<S: Sequences>(
        &self,
        skip_tokens: usize,
        out: &mut [f32],
        window: impl FnMut(usize) -> Result<S>,
    ) -> Result<()> {
        let output = Output { embedder: self, skip_tokens, out, tokens: None, non_finite: Vec::new() };
        output.run(window)
    }

    /// Computes the token vectors of one window: those of sequence `i` go to rows `offsets[i]` to `offsets[i + 1]` of
    /// `out`, `[offsets.last(), hidden_size]`. Numbers of rows in errors are those of sequences.
    pub(super) fn run_tokens(
        &self,
        sequences: Vec<Encoding>,
        offsets: &[usize],
        out: &mut [f32],
    ) -> Result<()> {
        let tokens = Some(offsets);
        let output = Output { embedder: self, skip_tokens: 0, out, tokens, non_finite: Vec::new() };
        let mut window = Some(sequences);
        output.run(|_| Ok(window.take().unwrap_or_default()))
    }
}

/// Where one call's vectors go.
struct Output<'e, 'o> {
    embedder: &'e Embedder,
    skip_tokens: usize,
    out: &'o mut [f32],
    /// Where each row's token vectors begin, in vectors, and the end; none: there is one vector a row.
    tokens: Option<&'o [usize]>,
    /// The caller's rows that came out as NaN or infinity.
    non_finite: Vec<usize>,
}

impl Output<'_, '_> {
    fn run<S: Sequences>(mut self, window: impl FnMut(usize) -> Result<S>) -> Result<()> {
        match &self.embedder.shared.crew {
            Crew::Single(single) => self.run_single(single, window)?,
            Crew::Pool(pool) => Pumped::new(pool, &mut self).run(window)?,
        }
        self.finish()
    }

    fn rows(&self) -> usize {
        self.tokens.map_or_else(|| self.out.len() / self.embedder.dim(), |offsets| offsets.len() - 1)
    }

    /// The floats of a row.
    fn span(&self, row: usize) -> Range<usize> {
        match self.tokens {
            None => {
                let dim = self.embedder.dim();
                row * dim..(row + 1) * dim
            }
            Some(offsets) => {
                let h = self.embedder.shared.desc.hidden_size;
                offsets[row] * h..offsets[row + 1] * h
            }
        }
    }

    fn window<S: Sequences>(&self, sequences: S, first: usize, plan: Plan) -> Window<S> {
        Window::new(sequences, first, self.embedder.shared.capacity.max_tokens, plan)
    }

    fn run_single<S: Sequences>(
        &mut self,
        single: &Mutex<Single>,
        mut next: impl FnMut(usize) -> Result<S>,
    ) -> Result<()> {
        // a poisoned lock only says that another caller's batch failed: every batch starts afresh
        let lock = || single.lock().unwrap_or_else(PoisonError::into_inner);
        let mut plan = std::mem::take(&mut lock().buffers.plan);
        let mut first = 0;
        while first < self.rows() {
            let window = self.window(next(first)?, first, plan);
            for i in 0..window.plan.batches.len() {
                let Single { backend, buffers } = &mut *lock();
                self.pack(&window, i, buffers);
                backend.submit(std::mem::take(&mut buffers.batch))?;
                buffers.batch = backend.collect(&mut buffers.vectors)?;
                self.place(&window, i, &buffers.vectors);
            }
            first += window.sequences.count();
            plan = window.plan;
        }
        lock().buffers.plan = plan;
        Ok(())
    }

    /// Packs a batch of the window.
    fn pack<S: Sequences>(&self, window: &Window<S>, i: usize, buffers: &mut Buffers) {
        let desc = &self.embedder.shared.desc;
        let (dim, full) = (self.embedder.dim(), desc.dim());
        let Buffers { batch, vectors, .. } = buffers;
        batch.clear();
        batch.skip_tokens = self.skip_tokens;
        batch.token_vectors = self.tokens.is_some();
        batch.normalize = match self.embedder.normalize {
            Normalize::Model => desc.normalize,
            Normalize::Always => dim == full,
            Normalize::Never => false,
        };
        let rows = window.batch(i);
        for &row in rows {
            let (ids, type_ids) = window.sequences.get(row);
            batch.push_at(row, ids, type_ids, desc.positions.of(ids));
        }
        let floats =
            if self.tokens.is_some() { batch.total_tokens() * desc.hidden_size } else { rows.len() * full };
        vectors.resize(floats, 0.0);
    }

    /// Puts a batch's vectors into the caller's rows.
    fn place<S: Sequences>(&mut self, window: &Window<S>, i: usize, vectors: &[f32]) {
        let (dim, full) = (self.embedder.dim(), self.embedder.shared.desc.dim());
        let mut rest = vectors;
        for &row in window.batch(i) {
            let row = window.first + row;
            let span = self.span(row);
            let (vector, behind) = rest.split_at(if self.tokens.is_some() { span.len() } else { full });
            rest = behind;
            let place = &mut self.out[span];
            place.copy_from_slice(&vector[..place.len()]);
            if self.tokens.is_none() && self.embedder.normalize == Normalize::Always && dim < full {
                l2_normalize(place);
            }
            // to the end, as stopping early keeps the loop scalar: a quarter of what a small call on a GPU has the host do
            if !place.iter().fold(true, |finite, v| finite & v.is_finite()) {
                place.fill(f32::NAN);
                self.non_finite.push(row);
            }
        }
    }

    fn finish(self) -> Result<()> {
        let mut rows = self.non_finite;
        if rows.is_empty() {
            return Ok(());
        }
        rows.sort_unstable();
        let fp16 = self.embedder.devices().iter().any(|d| d.precision == Precision::Fp16);
        Err(Error::NonFinite { rows, why: if fp16 { NOT_FINITE_FP16 } else { NOT_FINITE } })
    }
}

/// A call on a pool: windows are opened, cut and queued on this thread, and their batches come back in any order.
struct Pumped<'a, 'e, 'o, S> {
    pool: &'a Pool,
    call: Call<'a>,
    output: &'a mut Output<'e, 'o>,
    /// Those that are not finished, from number `closed` on.
    windows: VecDeque<OpenWindow<S>>,
    closed: usize,
    /// Batches that came back from a device that failed.
    again: Vec<Tag>,
    /// The first row that no window holds yet.
    next_row: usize,
}

/// Number of a window, and of a batch in it.
type Tag = (usize, usize);

struct OpenWindow<S> {
    window: Window<S>,
    /// Batches before this one were queued.
    next: usize,
    /// Of each batch, whether its vectors are in the caller's rows.
    finished: Vec<bool>,
}

impl<'a, 'e, 'o, S: Sequences> Pumped<'a, 'e, 'o, S> {
    fn new(pool: &'a Pool, output: &'a mut Output<'e, 'o>) -> Self {
        let (windows, again) = (VecDeque::new(), Vec::new());
        Self { pool, call: pool.call(), output, windows, closed: 0, again, next_row: 0 }
    }

    fn run(mut self, mut next: impl FnMut(usize) -> Result<S>) -> Result<()> {
        let result = match self.at_once(&mut next) {
            Ok(false) => self.pump(&mut next),
            other => other.map(drop),
        };
        if let Err(Error::DeviceLost { .. }) = result {
            // with the last device, all that was queued has come back
            while self.call.outstanding() > 0 {
                let done = self.call.take();
                self.take_back(done);
            }
            self.blank_unfinished();
        }
        result
    }

    /// Computes the first window if it is all and one batch, and a device is free; otherwise leaves it to [`pump`](Self::pump).
    /// Allocates nothing once calls as large have been made.
    fn at_once(&mut self, next: &mut impl FnMut(usize) -> Result<S>) -> Result<bool> {
        let rows = self.output.rows();
        if rows == 0 {
            return Ok(true);
        }
        let mut buffers = self.pool.spare();
        let window = self.output.window(next(0)?, 0, std::mem::take(&mut buffers.plan));
        let mut computed = false;
        if window.batch(0).len() == rows {
            self.output.pack(&window, 0, &mut buffers);
            (buffers, computed) = self.pool.try_now(buffers);
        }
        if computed {
            self.output.place(&window, 0, &buffers.vectors);
            buffers.plan = window.plan;
        } else {
            self.open(window);
        }
        self.pool.give_back(buffers);
        Ok(computed)
    }

    fn open(&mut self, window: Window<S>) {
        self.next_row += window.sequences.count();
        let finished = vec![false; window.plan.batches.len()];
        self.windows.push_back(OpenWindow { window, next: 0, finished });
    }

    fn pump(&mut self, next: &mut impl FnMut(usize) -> Result<S>) -> Result<()> {
        // a window more than the devices have: they stay busy while the next one is tokenised
        let limit = 2 * self.pool.in_flight() + WINDOW_BATCHES;
        loop {
            while let Some(done) = self.call.try_take() {
                self.take_back(done);
            }
            let room = self.call.outstanding() < limit;
            if let Some(tag) = self.again.pop() {
                self.push(tag)?;
            } else if room && let Some(tag) = self.unqueued() {
                self.push(tag)?;
            } else if room && self.next_row < self.output.rows() {
                let window = self.output.window(next(self.next_row)?, self.next_row, Plan::default());
                self.open(window);
            } else if self.call.outstanding() > 0 {
                let done = self.call.take();
                self.take_back(done);
            } else {
                return Ok(());
            }
        }
    }

    fn window(&self, number: usize) -> &Window<S> {
        &self.windows[number - self.closed].window
    }

    /// The next batch that was never queued; it counts as queued now.
    fn unqueued(&mut self) -> Option<Tag> {
        let (i, open) = self.windows.iter_mut().enumerate().find(|(_, w)| w.next < w.finished.len())?;
        open.next += 1;
        Some((self.closed + i, open.next - 1))
    }

    fn push(&mut self, tag: Tag) -> Result<()> {
        let mut buffers = self.pool.spare();
        self.output.pack(self.window(tag.0), tag.1, &mut buffers);
        self.call.push(tag, buffers)
    }

    /// Places the vectors of a batch that has come back, or notes that it is to be computed again.
    fn take_back(&mut self, Done { tag, buffers, computed }: Done) {
        if computed {
            let open = &mut self.windows[tag.0 - self.closed];
            self.output.place(&open.window, tag.1, &buffers.vectors);
            open.finished[tag.1] = true;
            while self.windows.front().is_some_and(|w| w.finished.iter().all(|&f| f)) {
                self.windows.pop_front();
                self.closed += 1;
            }
        } else {
            self.again.push(tag);
        }
        self.pool.give_back(buffers);
    }

    /// NaN in the rows that have no vector.
    fn blank_unfinished(&mut self) {
        for OpenWindow { window, finished, .. } in &self.windows {
            for i in (0..finished.len()).filter(|&i| !finished[i]) {
                for &row in window.batch(i) {
                    let span = self.output.span(window.first + row);
                    self.output.out[span].fill(f32::NAN);
                }
            }
        }
        for row in self.next_row..self.output.rows() {
            let span = self.output.span(row);
            self.output.out[span].fill(f32::NAN);
        }
    }
}

/// x / max(‖x‖₂, 1e-12), with the sum in f64.
fn l2_normalize(x: &mut [f32]) {
    let norm = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt().max(1e-12);
    x.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
}
