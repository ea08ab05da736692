//! What a batch needs on the device beside the weights, sized once for a number of tokens.

use super::super::costs::{Choices, EncoderShape, folds_layernorms, whole_waves};
use super::super::tiles::TileTable;
use super::driver::Opened;
use super::memory::{Called, Memory, Slice};
use super::ops::{FirstRows, STATISTICS_COLUMNS, Vectors};
use crate::model::ModelDesc;

/// Floats of the partial sums of split products. Splits are for some ten rows: 64 rows of 4,096 columns in 16 parts.
const PARTIALS: usize = 4 << 20;
/// The length of the sequences that the budget is chosen for: natural text is about that long.
const USUAL_SEQUENCE: usize = 128;
/// Tokens of a batch where no shape is predicted.
const DEFAULT_TOKENS: usize = 8192;

/// Arrays of activations. All batches share them: they are computed one after another.
pub(super) struct Workspace {
    /// The residual stream. `[tokens, hidden]`
    pub(super) x: Memory,
    /// A sum before its norm. `[tokens, hidden]`
    pub(super) y: Memory,
    /// Attention, then the stream between a layer's halves. `[tokens, hidden]`
    pub(super) z: Memory,
    /// Queries, keys and values, then the feed-forward's inner layer; first of all narrow embeddings.
    pub(super) wide: Memory,
    pub(super) partials: Memory,
    /// Statistics of the rows of `x` and of `y`, where layernorms are folded: mean and squares for every 64 columns.
    /// `[tokens, ceil(hidden / 64), 2]` each
    pub(super) statistics: Option<[Memory; 2]>,
    /// What modules read and write. `[tokens, widest]` each; none without modules
    pub(super) modules: Vec<Memory>,
    /// 0, 1, 2, …: as many sequences of one token. `[tokens + 1]`
    pub(super) ones: Memory,
}

/// Elements of 16 bits that a token takes in [`Workspace::wide`].
fn wide_columns(desc: &ModelDesc) -> usize {
    (3 * desc.hidden_size).max(desc.intermediate_size).max(desc.embedding_width())
}

/// Bytes of one array of [`Workspace::statistics`].
fn statistics_bytes(desc: &ModelDesc, tokens: usize) -> usize {
    8 * tokens * desc.hidden_size.div_ceil(STATISTICS_COLUMNS)
}

/// Columns of the widest vector on the way through the modules.
fn widest_vector(desc: &ModelDesc) -> usize {
    let mut width = desc.pooled_dim();
    desc.modules.iter().fold(width, |widest, module| {
        width = module.width(width);
        widest.max(width)
    })
}

impl Workspace {
    pub(super) fn new(device: &Opened, desc: &ModelDesc, tokens: usize) -> Called<Self> {
        let bytes = |columns: usize| 2 * tokens * columns;
        let memory = |bytes: usize| Memory::new(&device.context, bytes);
        let h = desc.hidden_size;
        let mut modules = Vec::new();
        if !desc.modules.is_empty() {
            for _ in 0..3 {
                modules.push(memory(bytes(widest_vector(desc)))?);
            }
        }
        let counting: Vec<i32> = (0..=tokens).map(|i| i as i32).collect();
        let ones = memory(4 * counting.len())?;
        ones.write(0, &counting)?;
        Ok(Self {
            x: memory(bytes(h))?,
            y: memory(bytes(h))?,
            z: memory(bytes(h))?,
            wide: memory(bytes(wide_columns(desc)))?,
            partials: memory(4 * PARTIALS)?,
            statistics: match folds_layernorms(desc) {
                true => {
                    let bytes = statistics_bytes(desc, tokens);
                    Some([memory(bytes)?, memory(bytes)?])
                }
                false => None,
            },
            modules,
            ones,
        })
    }

    /// What [`new`](Self::new) allocates.
    pub(super) fn bytes(desc: &ModelDesc, tokens: usize) -> usize {
        let modules = if desc.modules.is_empty() { 0 } else { 3 * 2 * widest_vector(desc) * tokens };
        let statistics = if folds_layernorms(desc) { 2 * statistics_bytes(desc, tokens) } else { 0 };
        2 * tokens * (3 * desc.hidden_size + wide_columns(desc))
            + 4 * PARTIALS
            + statistics
            + modules
            + 4 * (tokens + 1)
    }

    /// For the statistics of the rows of `x` (0) or `y` (1); none where layernorms are not folded.
    pub(super) fn statistics(&self, i: usize) -> Slice<f32> {
        self.statistics.as_ref().map_or(Slice::NONE, |both| both[i].all())
    }

    /// Within `wide`, when attention has read its queries, keys and values: all of it is half as wide as those.
    pub(super) fn first_rows(&self, batch: usize, hidden: usize) -> FirstRows {
        let (len, statistics) = (batch * hidden, 2 * batch * hidden.div_ceil(STATISTICS_COLUMNS));
        FirstRows {
            rows: [self.wide.slice(0, len), self.wide.slice(2 * len, len)],
            statistics: self.wide.slice(4 * len, statistics),
        }
    }

    /// The vectors that modules read, write and may add.
    pub(super) fn module_vectors(&self, i: usize) -> Slice<u16> {
        self.modules[i].all()
    }

    pub(super) fn half_vectors(&self, i: usize) -> Vectors {
        Vectors::Half(self.module_vectors(i))
    }
}

/// Tokens of a batch that fill the GPU's waves best, at least one sequence of the model's length.
pub(super) fn budget(table: &TileTable, shape: &EncoderShape, desc: &ModelDesc, choices: Choices) -> usize {
    let seqlen = USUAL_SEQUENCE.min(desc.longest_sequence());
    let best =
        whole_waves(table, shape, seqlen, choices).map_or(DEFAULT_TOKENS, |network| network.total_tokens());
    best.max(desc.longest_sequence())
}
