//! One batch on its way: staged in pinned memory, copied there, computed, copied back; or, where one kernel does it all, read and
//! written by the kernel where it stands.
//!
//! A slot is used by one batch at a time, so that nobody touches its memory while a copy or a kernel is under way.
#![allow(unsafe_code, reason = "copies that go on while the host does something else")]

use super::super::work_list::{AttentionKernels, AttentionTile, Entry, WorkList, WorkLists};
use super::driver::Opened;
use super::graphs::{Graph, Recorded, Shape};
use super::memory::{ALIGNMENT, Called, Memory, Pinned, Slice};
use super::ops::Tokens;
use super::patience;
use super::persistent::query_tiles;
use super::stopwatch::{Point, Stopwatch};
use crate::backend::DeviceTime;
use crate::batch::PackedBatch;
use crate::model::{ModelDesc, Pooling};
use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaEvent, CudaStream};
use std::time::Duration;

/// Entries of the two work lists of a batch beyond one a token: groups of four are filled up.
const SPARE_ENTRIES: usize = 16;
/// Arrays of a batch: ids, positions, types, ends, two of left out tokens, three work lists.
const ARRAYS: usize = 9;

/// How a batch's ids come to the kernels, and its vectors from them. Each event and each stream that waits for another costs the host
/// and the device about a microsecond, which a small batch feels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// The kernels read and write the host's memory. For those that read each id once and write each number once, as every access
    /// goes over the bus; others read a work list once for each layer and head.
    Mapped,
    /// Copies in the stream of the kernels.
    InLine,
    /// Copies in streams of their own, beside other batches' kernels.
    Overlapped,
}

/// Why memory is.
const MAPPED: &str = "only a device that maps the host's memory is given a batch on this route";

pub(super) struct Slot {
    staging: Pinned,
    /// What `staging` is copied to.
    inputs: Memory,
    /// `[tokens, dim]`, or `[tokens, hidden]` for token vectors, f32
    vectors: Memory,
    /// The same on the host.
    results: Pinned,
    lists: WorkLists,
    /// The work list of a batch that goes in one launch.
    query_tiles: Vec<Entry>,
    /// On this slot's memory.
    pub(super) graphs: Recorded<Graph>,
    /// Of the batch that was uploaded last.
    route: Route,
    uploaded: CudaEvent,
    computed: CudaEvent,
    done: CudaEvent,
    /// While batches are timed.
    pub(super) stopwatch: Option<Stopwatch>,
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
        let pinned = |bytes| Pinned::new(context, bytes, device.maps_host_memory);
        Ok(Self {
            inputs: Memory::new(context, input_bytes(tokens))?,
            vectors: Memory::new(context, 4 * tokens * dim)?,
            staging: pinned(input_bytes(tokens))?,
            results: pinned(4 * tokens * dim)?,
            lists: WorkLists::new(attention),
            query_tiles: Vec::new(),
            graphs: Recorded::new(),
            route: Route::Overlapped,
            uploaded: context.new_event(None)?,
            computed: context.new_event(None)?,
            done: context.new_event(None)?,
            stopwatch: None,
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

    /// Stages the batch that was planned, filled up to a shape, and starts its copy if its route has one; what comes into the compute
    /// stream waits for that. What it is filled up with are rows that no sequence has, sequences without tokens, and entries of no
    /// work.
    pub(super) fn upload(
        &mut self,
        device: &Opened,
        batch: &PackedBatch,
        shape: Shape,
        route: Route,
    ) -> Called<Inputs> {
        self.route = route;
        let to = match route {
            Route::Mapped => self.staging.mapped().expect(MAPPED),
            Route::InLine | Route::Overlapped => self.inputs.all(),
        };
        // SAFETY: the batch before has been waited for
        let bytes = unsafe { self.staging.bytes_mut() };
        let mut stage = Stage { bytes, at: 0, to };
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
        if let Some(stream) = self.copies_in(&device.upload, device) {
            self.mark(Point::Begin, stream)?;
            // SAFETY: the slot is left alone until `collect` has waited
            unsafe { self.staging.upload(0..staged, &self.inputs, stream) }?;
            if route == Route::Overlapped {
                self.uploaded.record(stream)?;
                device.compute.wait(&self.uploaded)?;
            }
        }
        self.mark(Point::KernelsBegin, &device.compute)?;
        let (batch, total_tokens) = (shape.batch, shape.tokens);
        Ok(Inputs { batch, total_tokens, tokens, left_out, left_out_cls, attention, query_tiles })
    }

    /// Where kernels are to leave the vectors of the batch that was uploaded.
    pub(super) fn vectors(&self) -> Slice<f32> {
        match self.route {
            Route::Mapped => self.results.mapped().expect(MAPPED),
            Route::InLine | Route::Overlapped => self.vectors.all(),
        }
    }

    /// Starts the copy of so many floats back, if the route has one, behind what is in the compute stream now.
    pub(super) fn download(&mut self, device: &Opened, floats: usize) -> Called<()> {
        self.mark(Point::KernelsEnd, &device.compute)?;
        let Some(stream) = self.copies_in(&device.download, device) else {
            return self.done.record(&device.compute);
        };
        if self.route == Route::Overlapped {
            self.computed.record(&device.compute)?;
            stream.wait(&self.computed)?;
        }
        let vectors = self.vectors.slice::<f32>(0, floats);
        // SAFETY: the slot is left alone until `collect` has waited
        unsafe { self.results.download(vectors, stream) }?;
        self.mark(Point::End, stream)?;
        self.done.record(stream)
    }

    /// The stream of the batch's copies, if it has any; `own` where these have one of their own.
    fn copies_in<'d>(&self, own: &'d CudaStream, device: &'d Opened) -> Option<&'d CudaStream> {
        match self.route {
            Route::Mapped => None,
            Route::InLine => Some(&device.compute),
            Route::Overlapped => Some(own),
        }
    }

    fn mark(&self, point: Point, stream: &CudaStream) -> Called<()> {
        self.stopwatch.as_ref().map_or(Ok(()), |stopwatch| stopwatch.mark(point, stream))
    }

    /// What the batch took that was collected last, if batches are timed.
    pub(super) fn time(&self) -> Called<Option<DeviceTime>> {
        self.stopwatch.as_ref().map(|stopwatch| stopwatch.read(self.route != Route::Mapped)).transpose()
    }

    /// Waits for the batch and hands out its vectors; says no if it is not there in time.
    pub(super) fn collect(&mut self, out: &mut [f32], limit: Duration) -> Called<bool> {
        if !patience::wait(&self.done, limit)? {
            return Ok(false);
        }
        // SAFETY: kernels and copies have been waited for
        let bytes = unsafe { self.results.bytes_mut() };
        out.copy_from_slice(bytemuck::cast_slice(&bytes[..size_of_val(out)]));
        Ok(true)
    }
}

/// Arrays on their way into one copy.
struct Stage<'a> {
    bytes: &'a mut [u8],
    at: usize,
    /// Where kernels will find them.
    to: Slice<u8>,
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
        let slice = self.to.part(offset, len * size_of::<T>() / size_of::<D>());
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
