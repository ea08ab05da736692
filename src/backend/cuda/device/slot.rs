//! One batch on its way: staged in pinned memory, copied there, computed, copied back.
//!
//! A slot is used by one batch at a time, so that nobody touches its memory while a copy is under way.
#![allow(unsafe_code, reason = "copies that go on while the host does something else")]

use super::super::work_list::{AttentionKernels, AttentionTile, Entry, WorkList, WorkLists};
use super::driver::Opened;
use super::graphs::{Graph, Recorded, Shape};
use super::memory::{ALIGNMENT, Called, Memory, Pinned, Slice};
use super::ops::Tokens;
use super::patience;
use super::persistent::query_tiles;
use crate::batch::PackedBatch;
use crate::model::{ModelDesc, Pooling};
use bytemuck::{Pod, Zeroable};
use cudarc::driver::CudaEvent;
use std::time::Duration;

/// Entries of the two work lists of a batch beyond one a token: groups of four are filled up.
const SPARE_ENTRIES: usize = 16;
/// Arrays of a batch: ids, positions, types, ends, two of left out tokens, three work lists.
const ARRAYS: usize = 9;

pub(super) struct Slot {
    staging: Pinned,
    /// What `staging` is copied to.
    inputs: Memory,
    /// `[tokens, dim]`, or `[tokens, hidden]` for token vectors, f32
    pub(super) vectors: Memory,
    results: Pinned,
    lists: WorkLists,
    /// The work list of a batch that goes in one launch.
    query_tiles: Vec<Entry>,
    /// On this slot's memory.
    pub(super) graphs: Recorded<Graph>,
    uploaded: CudaEvent,
    computed: CudaEvent,
    downloaded: CudaEvent,
}

/// A batch as the kernels see it: with the sizes of its shape.
pub(super) struct Inputs {
    pub(super) batch: usize,
    pub(super) total_tokens: usize,
    pub(super) tokens: Tokens,
    /// Tokens at the start of each sequence that the pooling leaves out; none: all of 0. `[batch]`
    pub(super) left_out: Slice<i32>,
    /// The same for the first token's vector: not all of a sequence's tokens. `[batch]`
    pub(super) left_out_cls: Slice<i32>,
    /// What each path computes.
    pub(super) attention: [Attention; 2],
    /// What attention computes in a batch that goes in one launch; else none.
    pub(super) query_tiles: Slice<Entry>,
}

/// The part of a batch's attention that one kernel computes: nothing without entries.
#[derive(Clone, Copy)]
pub(super) struct Attention {
    pub(super) tile: &'static AttentionTile,
    pub(super) entries: Slice<Entry>,
}

/// Bytes of all arrays of a batch.
fn input_bytes(tokens: usize) -> usize {
    6 * 4 * (tokens + 1) + size_of::<Entry>() * (tokens + SPARE_ENTRIES) + ARRAYS * ALIGNMENT
}

/// Floats of a sequence's vector or of a token's, whichever has more.
fn widest(desc: &ModelDesc) -> usize {
    desc.dim().max(desc.hidden_size)
}

impl Slot {
    pub(super) fn new(
        device: &Opened,
        desc: &ModelDesc,
        attention: AttentionKernels,
        tokens: usize,
    ) -> Called<Self> {
        let (context, dim) = (&device.context, widest(desc));
        Ok(Self {
            inputs: Memory::new(context, input_bytes(tokens))?,
            vectors: Memory::new(context, 4 * tokens * dim)?,
            staging: Pinned::new(context, input_bytes(tokens))?,
            results: Pinned::new(context, 4 * tokens * dim)?,
            lists: WorkLists::new(attention),
            query_tiles: Vec::new(),
            graphs: Recorded::new(),
            uploaded: context.new_event(None)?,
            computed: context.new_event(None)?,
            downloaded: context.new_event(None)?,
        })
    }

    /// Bytes on the device.
    pub(super) fn bytes(desc: &ModelDesc, tokens: usize) -> usize {
        input_bytes(tokens) + 4 * tokens * widest(desc)
    }

    /// Makes the work list of the next batch, which goes in one launch; says what shape it has.
    pub(super) fn plan_one_launch(&mut self, batch: &PackedBatch) -> Shape {
        self.lists.fill(&[]);
        query_tiles(&batch.cu_seqlens, &mut self.query_tiles);
        self.shape(batch)
    }

    /// Makes the work lists of the next batch; says what shape it has.
    pub(super) fn plan(&mut self, batch: &PackedBatch) -> Shape {
        self.lists.fill(&batch.cu_seqlens);
        self.query_tiles.clear();
        self.shape(batch)
    }

    fn shape(&self, batch: &PackedBatch) -> Shape {
        Shape {
            tokens: batch.total_tokens(),
            batch: batch.len(),
            entries: self.lists.lists().map(|list| list.entries.len()),
            normalize: batch.normalize,
            token_vectors: batch.token_vectors,
            leaves_out: batch.skip_tokens > 0,
        }
    }

    /// Stages the batch that was planned, filled up to a shape, and starts its copy; what comes into the compute stream waits
    /// for that. What it is filled up with are rows that no sequence has, sequences without tokens, and entries of no work.
    pub(super) fn upload(&mut self, device: &Opened, batch: &PackedBatch, shape: Shape) -> Called<Inputs> {
        // SAFETY: the batch before has been waited for
        let bytes = unsafe { self.staging.bytes_mut() };
        let mut stage = Stage { bytes, at: 0, to: &self.inputs };
        let end = batch.cu_seqlens.last().copied().unwrap_or(0);
        let tokens = Tokens {
            ids: stage.put(&batch.ids, shape.tokens, 0),
            positions: stage.put(&batch.positions, shape.tokens, 0),
            type_ids: stage.put(&batch.type_ids, shape.tokens, 0),
            cu_seqlens: stage.put(&batch.cu_seqlens, shape.batch + 1, end),
        };
        let (mut left_out, mut left_out_cls) = (Slice::NONE, Slice::NONE);
        if shape.leaves_out {
            let skip = u32::try_from(batch.skip_tokens).unwrap_or(u32::MAX);
            left_out = stage.put_lengths(&batch.cu_seqlens, shape.batch, |n| skip.min(n));
            // with no token left, the first of all
            let skip_some = |n| if skip < n { skip } else { 0 };
            left_out_cls = stage.put_lengths(&batch.cu_seqlens, shape.batch, skip_some);
        }
        let [long, brief] = self.lists.lists();
        let mut path = |i: usize, list: WorkList<'_>| Attention {
            tile: list.tile,
            entries: stage.put(list.entries, shape.entries[i], Entry::default()),
        };
        let attention = [path(0, long), path(1, brief)];
        let query_tiles = stage.put(&self.query_tiles, self.query_tiles.len(), Entry::default());
        let staged = stage.at;
        // SAFETY: the slot is left alone until `collect` has waited
        unsafe { self.staging.upload(0..staged, &self.inputs, &device.upload) }?;
        self.uploaded.record(&device.upload)?;
        device.compute.wait(&self.uploaded)?;
        let (batch, total_tokens) = (shape.batch, shape.tokens);
        Ok(Inputs { batch, total_tokens, tokens, left_out, left_out_cls, attention, query_tiles })
    }

    /// Starts the copy of so many floats back, behind what is in the compute stream now.
    pub(super) fn download(&mut self, device: &Opened, floats: usize) -> Called<()> {
        self.computed.record(&device.compute)?;
        device.download.wait(&self.computed)?;
        let vectors = self.vectors.slice::<f32>(0, floats);
        // SAFETY: the slot is left alone until `collect` has waited
        unsafe { self.results.download(vectors, &device.download) }?;
        self.downloaded.record(&device.download)
    }

    /// Waits for the batch and hands out its vectors; says no if it is not there in time.
    pub(super) fn collect(&mut self, out: &mut [f32], limit: Duration) -> Called<bool> {
        if !patience::wait(&self.downloaded, limit)? {
            return Ok(false);
        }
        // SAFETY: the copy has been waited for, and before it all others
        let bytes = unsafe { self.results.bytes_mut() };
        out.copy_from_slice(bytemuck::cast_slice(&bytes[..size_of_val(out)]));
        Ok(true)
    }
}

/// Arrays on their way into one copy.
struct Stage<'a> {
    bytes: &'a mut [u8],
    at: usize,
    to: &'a Memory,
}

impl Stage<'_> {
    /// Stages an array of `len`, which begins with `values` and goes on with `fill`; says where it will be.
    fn put<T: Pod, D>(&mut self, values: &[T], len: usize, fill: T) -> Slice<D> {
        let (to, slice) = self.array(len);
        to[..values.len()].copy_from_slice(values);
        to[values.len()..].fill(fill);
        slice
    }

    /// Stages a function of each sequence's length, and zeros for sequences that there are not.
    fn put_lengths(&mut self, cu_seqlens: &[u32], len: usize, of: impl Fn(u32) -> u32) -> Slice<i32> {
        let (to, slice) = self.array(len);
        to.fill(0);
        for (to, ends) in to.iter_mut().zip(cu_seqlens.windows(2)) {
            *to = of(ends[1] - ends[0]);
        }
        slice
    }

    /// The next array.
    fn array<T: Pod, D>(&mut self, len: usize) -> (&mut [T], Slice<D>) {
        let offset = self.at.next_multiple_of(ALIGNMENT);
        self.at = offset + len * size_of::<T>();
        let slice = self.to.slice(offset, len * size_of::<T>() / size_of::<D>());
        (bytemuck::cast_slice_mut(&mut self.bytes[offset..self.at]), slice)
    }
}

// SAFETY: four i32, no byte of which has no value, and which may have any
unsafe impl Pod for Entry {}
// SAFETY: four i32 may be 0
unsafe impl Zeroable for Entry {}

/// Puts in what the kernel gives no value for: the maximum of no token is −∞; normalised, that is NaN beside zeros.
pub(super) fn maximum_of_none(desc: &ModelDesc, batch: &PackedBatch, out: &mut [f32]) {
    if batch.token_vectors || batch.skip_tokens == 0 || !desc.pooling.contains(&Pooling::Max) {
        return;
    }
    for (i, row) in out.chunks_exact_mut(desc.dim()).enumerate() {
        if batch.seq(i).len() > batch.skip_tokens {
            continue;
        }
        if !desc.modules.is_empty() {
            row.fill(f32::NAN);
            continue;
        }
        for (part, mode) in row.chunks_exact_mut(desc.hidden_size).zip(&desc.pooling) {
            match (*mode == Pooling::Max, batch.normalize) {
                (true, false) => part.fill(f32::NEG_INFINITY),
                (true, true) => part.fill(f32::NAN),
                (false, true) => part.fill(0.0),
                (false, false) => {}
            }
        }
    }
}
