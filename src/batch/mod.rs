//! Ragged sequences packed end to end: no padding anywhere.
//!
//! Knows token ids and lengths; knows nothing of text, models or devices.

mod packer;

pub use packer::{Plan, pack};

/// Several sequences, end to end. Sequence `i` is tokens `cu_seqlens[i]..cu_seqlens[i + 1]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackedBatch {
    /// Token ids, `[total_tokens]`.
    pub ids: Vec<u32>,
    /// Token types, `[total_tokens]`.
    pub type_ids: Vec<u32>,
    /// Rows of the position table, `[total_tokens]`.
    pub positions: Vec<u32>,
    /// Where each sequence starts, and the total: `[batch + 1]`, first 0.
    pub cu_seqlens: Vec<u32>,
    /// The longest sequence.
    pub max_seqlen: usize,
    /// The caller's row of each sequence, `[batch]`.
    pub rows: Vec<usize>,
    /// Whether the vectors are divided by their L2 norm.
    pub normalize: bool,
    /// Tokens at the start of every sequence that the pooling leaves out.
    pub skip_tokens: usize,
    /// Whether the vectors of all tokens are wanted, before pooling, in place of one vector a sequence.
    pub token_vectors: bool,
}

impl PackedBatch {
    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Number of tokens of all sequences.
    pub fn total_tokens(&self) -> usize {
        self.ids.len()
    }

    /// The token range of sequence `i`.
    pub fn seq(&self, i: usize) -> std::ops::Range<usize> {
        self.cu_seqlens[i] as usize..self.cu_seqlens[i + 1] as usize
    }

    /// Removes all sequences and keeps the memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.type_ids.clear();
        self.positions.clear();
        self.cu_seqlens.clear();
        self.cu_seqlens.push(0);
        self.max_seqlen = 0;
        self.rows.clear();
    }

    /// Appends a sequence for the caller's `row`; positions count from 0.
    ///
    /// # Panics
    /// If `type_ids` and `ids` differ in length, or 2³² tokens are exceeded.
    pub fn push(&mut self, row: usize, ids: &[u32], type_ids: &[u32]) {
        self.push_at(row, ids, type_ids, 0..ids.len() as u32);
    }

    /// As [`push`](Self::push), with positions of the model's own.
    ///
    /// # Panics
    /// As [`push`](Self::push), and if there is not one position per token.
    pub fn push_at(
        &mut self,
        row: usize,
        ids: &[u32],
        type_ids: &[u32],
        positions: impl IntoIterator<Item = u32>,
    ) {
        assert_eq!(ids.len(), type_ids.len(), "one type per token");
        if self.cu_seqlens.is_empty() {
            self.cu_seqlens.push(0);
        }
        self.ids.extend_from_slice(ids);
        self.type_ids.extend_from_slice(type_ids);
        self.positions.extend(positions);
        assert_eq!(self.positions.len(), self.ids.len(), "one position per token");
        self.cu_seqlens.push(u32::try_from(self.ids.len()).expect("a batch holds fewer than 2^32 tokens"));
        self.max_seqlen = self.max_seqlen.max(ids.len());
        self.rows.push(row);
    }
}
