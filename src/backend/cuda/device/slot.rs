//! One batch on its way: staged in pinned memory, copied there, computed, copied back.
//!
//! A slot is used by one batch at a time, so that nobody touches its memory while a copy is under way.
#![allow(unsafe_code, reason = "copies that go on while the host does something else")]

use super::super::tiles::TileTable;
use super::super::work_list::{self, AttentionLaunch, Entry};
use super::driver::Opened;
use super::memory::{ALIGNMENT, Called, Memory, Pinned, Slice};
use super::ops::Tokens;
use crate::batch::PackedBatch;
use crate::model::{ModelDesc, Pooling};
use cudarc::driver::CudaEvent;

/// Entries of the two work lists of a batch beyond one a token: groups of four are filled up.
const SPARE_ENTRIES: usize = 16;
/// Arrays of a batch: ids, positions, types, ends, two of left out tokens, two work lists.
const ARRAYS: usize = 8;

pub(super) struct Slot {
    staging: Pinned,
    /// What `staging` is copied to.
    inputs: Memory,
    /// `[tokens, dim]` f32
    pub(super) vectors: Memory,
    results: Pinned,
    uploaded: CudaEvent,
    computed: CudaEvent,
    downloaded: CudaEvent,
}

/// A batch as the kernels see it.
pub(super) struct Inputs {
    pub(super) batch: usize,
    pub(super) total_tokens: usize,
    pub(super) tokens: Tokens,
    /// Tokens at the start of each sequence that the pooling leaves out; none: all of 0. `[batch]`
    pub(super) left_out: Slice<i32>,
    /// The same for the first token's vector: not all of a sequence's tokens. `[batch]`
    pub(super) left_out_cls: Slice<i32>,
    /// Each path's launch and its work list.
    pub(super) attention: Vec<(AttentionLaunch, Slice<Entry>)>,
}

/// Bytes of all arrays of a batch.
fn input_bytes(tokens: usize) -> usize {
    6 * 4 * (tokens + 1) + size_of::<Entry>() * (tokens + SPARE_ENTRIES) + ARRAYS * ALIGNMENT
}

impl Slot {
    pub(super) fn new(device: &Opened, tokens: usize, dim: usize) -> Called<Self> {
        let context = &device.context;
        Ok(Self {
            inputs: Memory::new(context, input_bytes(tokens))?,
            vectors: Memory::new(context, 4 * tokens * dim)?,
            staging: Pinned::new(context, input_bytes(tokens))?,
            results: Pinned::new(context, 4 * tokens * dim)?,
            uploaded: context.new_event(None)?,
            computed: context.new_event(None)?,
            downloaded: context.new_event(None)?,
        })
    }

    /// Bytes on the device.
    pub(super) fn bytes(tokens: usize, dim: usize) -> usize {
        input_bytes(tokens) + 4 * tokens * dim
    }

    /// Stages the batch and starts its copy; what comes into the compute stream waits for that.
    pub(super) fn upload(
        &mut self,
        device: &Opened,
        table: &TileTable,
        desc: &ModelDesc,
        batch: &PackedBatch,
    ) -> Called<Inputs> {
        let attention =
            work_list::attention(table, &batch.cu_seqlens, desc.num_attention_heads, desc.head_dim())
                .expect("`support` refused head sizes without a kernel");
        // SAFETY: the batch before has been waited for
        let bytes = unsafe { self.staging.bytes_mut() };
        let mut stage = Stage { bytes, at: 0, to: &self.inputs };
        let tokens = Tokens {
            ids: stage.put(&batch.ids),
            positions: stage.put(&batch.positions),
            type_ids: stage.put(&batch.type_ids),
            cu_seqlens: stage.put(&batch.cu_seqlens),
        };
        let (mut left_out, mut left_out_cls) = (Slice::NONE, Slice::NONE);
        if batch.skip_tokens > 0 {
            let skip = u32::try_from(batch.skip_tokens).unwrap_or(u32::MAX);
            let lengths = || batch.cu_seqlens.windows(2).map(|w| w[1] - w[0]);
            left_out = stage.put(&lengths().map(|n| skip.min(n)).collect::<Vec<_>>());
            // with no token left, the first of all
            left_out_cls = stage.put(&lengths().map(|n| if skip < n { skip } else { 0 }).collect::<Vec<_>>());
        }
        let attention = attention
            .into_iter()
            .map(|launch| {
                let words: Vec<[i32; 4]> = launch
                    .entries
                    .iter()
                    .map(|e| [e.sequence_start, e.tokens, e.first_query, e.reserved])
                    .collect();
                let list = stage.put(&words);
                (launch, list)
            })
            .collect();
        let staged = stage.at;
        // SAFETY: the slot is left alone until `collect` has waited
        unsafe { self.staging.upload(0..staged, &self.inputs, &device.upload) }?;
        self.uploaded.record(&device.upload)?;
        device.compute.wait(&self.uploaded)?;
        let (batch, total_tokens) = (batch.len(), batch.total_tokens());
        Ok(Inputs { batch, total_tokens, tokens, left_out, left_out_cls, attention })
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

    /// Waits for the batch and hands out its vectors.
    pub(super) fn collect(&mut self, out: &mut [f32]) -> Called<()> {
        self.downloaded.synchronize()?;
        // SAFETY: the copy has been waited for, and before it all others
        let bytes = unsafe { self.results.bytes_mut() };
        out.copy_from_slice(bytemuck::cast_slice(&bytes[..size_of_val(out)]));
        Ok(())
    }
}

/// Arrays on their way into one copy.
struct Stage<'a> {
    bytes: &'a mut [u8],
    at: usize,
    to: &'a Memory,
}

impl Stage<'_> {
    /// Stages an array; says where it will be.
    fn put<T: bytemuck::NoUninit, D>(&mut self, values: &[T]) -> Slice<D> {
        let offset = self.at.next_multiple_of(ALIGNMENT);
        let bytes = bytemuck::cast_slice(values);
        self.at = offset + bytes.len();
        self.bytes[offset..self.at].copy_from_slice(bytes);
        self.to.slice(offset, bytes.len() / size_of::<D>())
    }
}

/// Puts in what the kernel gives no value for: the maximum of no token is −∞; normalised, that is NaN beside zeros.
pub(super) fn maximum_of_none(desc: &ModelDesc, batch: &PackedBatch, out: &mut [f32]) {
    if batch.skip_tokens == 0 || !desc.pooling.contains(&Pooling::Max) {
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
