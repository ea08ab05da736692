//! Activation buffers, made once at load; the steady state allocates nothing.

use super::buffer::Buffer;
use super::gemm::{Matrix, Narrow, SharedMut};
use crate::model::ModelDesc;
use std::sync::{Mutex, PoisonError};

/// Floats from one row to the next: an odd number of cache lines, so that the rows of a GEMM tile lie in
/// different sets of a level 1 cache (with rows of 4096 bytes all fourteen would fight for one set).
pub(super) fn row_stride(columns: usize) -> usize {
    (columns.div_ceil(16) | 1) * 16
}

/// The activations of one tile of tokens.
pub(super) struct Workspace {
    tokens: usize,
    /// The residual stream, `[tokens, hidden]`
    pub(super) x: Buffer,
    pub(super) x_stride: usize,
    /// Attention's output, `[tokens, hidden]`, rows as in `x`
    pub(super) context: Buffer,
    /// Queries, keys, values `[tokens, 3 * hidden]`; later in the layer the feed-forward's inner
    /// activations `[tokens, inner width]`; before the first layer embeddings `[tokens, embedding_size]`
    /// that are projected
    pub(super) wide: Buffer,
    pub(super) qkv_stride: usize,
    pub(super) inner_stride: usize,
    /// Where several layers are averaged, the sum of their outputs, `[tokens, hidden]`, rows as in `x`;
    /// else empty
    pub(super) sum: Buffer,
    pub(super) embedding_stride: usize,
    /// Rows of a product's input, rounded; empty where products are in f32
    pub(super) narrow: Buffer,
    /// Pooled vectors on their way through the modules behind the pooling, `[tokens, widest]` each: input and
    /// output of a product. Of no size where there is no module.
    pub(super) pooled: [Buffer; 2],
    pub(super) pooled_stride: usize,
}

impl Workspace {
    pub(super) fn new(desc: &ModelDesc, tokens: usize, numbers: Option<Narrow>) -> Self {
        let x_stride = row_stride(desc.hidden_size);
        let qkv_stride = row_stride(3 * desc.hidden_size);
        let inner_stride = row_stride(desc.inner_width());
        let embedding_stride = row_stride(desc.embedding_size.unwrap_or(0));
        let dim = desc.pooled_dim();
        let widest = desc
            .modules
            .iter()
            .scan(dim, |w, m| {
                *w = m.width(*w);
                Some(*w)
            })
            .max();
        let widest = widest.map_or(0, |w| w.max(dim));
        let pooled_stride = row_stride(widest);
        // a tile has as many sequences as tokens at most; pages that are never touched take no memory
        let pooled = || Buffer::zeroed(if widest == 0 { 0 } else { tokens * pooled_stride });
        Self {
            tokens,
            x: Buffer::zeroed(tokens * x_stride),
            x_stride,
            context: Buffer::zeroed(tokens * x_stride),
            wide: Buffer::zeroed(tokens * qkv_stride.max(inner_stride).max(embedding_stride)),
            qkv_stride,
            inner_stride,
            sum: Buffer::zeroed(if desc.pooled_layers > 1 { tokens * x_stride } else { 0 }),
            embedding_stride,
            narrow: Buffer::zeroed(numbers.map_or(0, |numbers| {
                numbers.scratch_floats(tokens, desc.hidden_size.max(desc.intermediate_size))
            })),
            pooled: [pooled(), pooled()],
            pooled_stride,
        }
    }

    /// Bytes of activations of one token.
    pub(super) fn token_bytes(desc: &ModelDesc) -> usize {
        let wide = row_stride(3 * desc.hidden_size)
            .max(row_stride(desc.inner_width()))
            .max(row_stride(desc.embedding_size.unwrap_or(0)));
        let narrow = if desc.pooled_layers > 1 { 3 } else { 2 };
        4 * (narrow * row_stride(desc.hidden_size) + wide)
    }

    /// Tokens that it holds.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    pub(super) fn bytes(&self) -> usize {
        let pooled = 2 * self.pooled[0].len();
        4 * (self.x.len()
            + self.context.len()
            + self.wide.len()
            + self.sum.len()
            + self.narrow.len()
            + pooled)
    }
}

/// Query rows whose scores against all keys are held at a time.
const QUERY_ROWS: usize = 48;

/// What one thread needs for the attention of one head over one sequence.
pub(super) struct HeadScratch {
    /// Panels `[seqlen / nr, head_dim, nr]`
    pub(super) keys: Buffer,
    /// Panels `[head_dim / nr, seqlen, nr]`
    pub(super) values: Buffer,
    /// `[QUERY_ROWS, seqlen to whole panels]`
    pub(super) scores: Buffer,
    /// 1 / Σ exp, `[QUERY_ROWS]`
    pub(super) scales: Buffer,
}

impl HeadScratch {
    pub(super) fn new(head_dim: usize, seqlen: usize, nr: usize) -> Self {
        let padded = seqlen.next_multiple_of(nr);
        Self {
            keys: Buffer::zeroed(padded * head_dim),
            values: Buffer::zeroed(seqlen * head_dim.next_multiple_of(nr)),
            scores: Buffer::zeroed(QUERY_ROWS * row_stride(padded)),
            scales: Buffer::zeroed(QUERY_ROWS),
        }
    }

    /// Query rows at a time for a sequence: blocks of even height, no more than there is room for.
    pub(super) fn query_rows(seqlen: usize) -> usize {
        seqlen.div_ceil(seqlen.div_ceil(QUERY_ROWS))
    }

    pub(super) fn bytes(&self) -> usize {
        4 * (self.keys.len() + self.values.len() + self.scores.len() + self.scales.len())
    }
}

/// One of something for each thread, lent for the length of a task.
pub(super) struct Pool<T>(Mutex<Vec<T>>);

impl<T> Pool<T> {
    pub(super) fn new(items: Vec<T>) -> Self {
        Self(Mutex::new(items))
    }

    /// Calls `f` with one that nobody else has.
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        // a poisoned lock cannot come from us: nothing panics while it is held
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut item = taken.expect("as many as there are threads");
        let result = f(&mut item);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(item);
        result
    }

    pub(super) fn total(&self, f: impl Fn(&T) -> usize) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().map(f).sum()
    }
}

/// The part of a workspace's matrix that a tile of `tokens` uses.
pub(super) fn matrix(buffer: &Buffer, tokens: usize, columns: usize, stride: usize) -> Matrix<'_> {
    Matrix::new(buffer, tokens, columns, stride)
}

/// As `matrix`, to write.
pub(super) fn matrix_mut(buffer: &mut Buffer, tokens: usize, columns: usize, stride: usize) -> SharedMut<'_> {
    SharedMut::new(buffer, tokens, columns, stride)
}
