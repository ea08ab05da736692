//! The encoder of a small batch in one launch (`kernels/persistent_encoder.cu`): which models and batches it takes, on how many
//! blocks, and what it should cost. The times are predictions; no GPU has confirmed one. Knows no weights and no device.

use super::costs::{Choices, EncoderShape, folds_layernorms, modifies_scores, network};
use super::estimate::LAUNCH_US;
use super::tiles::TileTable;
use crate::model::{Activation, FeedForward, ModelDesc, Norms, Pooling, Positions};

/// The kernel, without the element type's suffix; its line of `ENCODER_TILES`.
pub const PERSISTENT_ENCODER: &str = "persistent_encoder";
/// Threads of a block.
pub const PERSISTENT_THREADS: usize = 256;
/// Bytes of dynamic shared memory of a block.
pub const PERSISTENT_SHARED: usize = 98_304;
/// Tokens of a batch at most: blocks keep a mean and a spread of each.
pub const PERSISTENT_TOKENS: usize = 256;

/// What a warp's registers hold of a row.
const MOST_HIDDEN: usize = 1024;
/// Eight rows of so many weights are what a block's shared memory holds.
const MOST_INTERMEDIATE: usize = 4096;
/// Columns of a unit of a product; units that a block computes side by side; bytes of weights that it holds.
const UNIT: usize = 8;
const MOST_UNITS: usize = 4;
const WEIGHT_BYTES: usize = 64 << 10;
/// Rows that a pass over k sums up.
const PASS_ROWS: usize = 32;
/// Queries of an entry of attention's work list, and keys that pass by at a time where a head is 64 wide.
pub(super) const QUERY_ROWS: usize = 16;
const KEY_BYTES: usize = 4096;
/// Pieces of 32 of k that a warp has on their way beside those that it multiplies, of 8 warps: all of k = 1,024.
const K_OF_ROUND: usize = 2 * 2 * 8 * 32;

/// What a barrier of all blocks takes, µs: assumed, from the 1 to 2 that are published for grid-wide barriers of one block a
/// multiprocessor (Zhang et al., "A study of single and multi-device synchronization methods in Nvidia GPUs", 2020). What it
/// consists of, a fence, a store to L2 and a load from there, two barriers of the block, is some 1,500 clocks.
pub const BARRIER_US: f64 = 1.5;
/// Clocks from a load to its data from L2: assumed; microbenchmarks have 200 to 300 on these GPUs.
const L2_LATENCY: f64 = 300.0;
/// Clocks of a product beside its rounds of loads: sums through shared memory, the epilogue, its loads. Assumed: a round of
/// L2's latency and as much arithmetic.
const EPILOGUE: f64 = 2.0 * L2_LATENCY;
/// Clocks of the means and spreads of two rows a warp: a round of loads, and three chains of five shuffles of some 25.
const NORMS: f64 = L2_LATENCY + 15.0 * 25.0;
/// Clocks of a tile of keys: a round of loads, two products behind one another, maxima, exponentials. Assumed.
const KEY_TILE: f64 = 2.0 * L2_LATENCY;
/// Clocks of the embeddings and of pooling: rounds of loads behind one another, reductions of the block. Assumed.
const ENDS: f64 = 6.0 * L2_LATENCY;

/// Whether the kernel computes this model's batches. Enums are matched without `_`, so that a new variant stops the
/// compilation here.
pub fn takes(desc: &ModelDesc) -> bool {
    let sizes = desc.hidden_size <= MOST_HIDDEN
        && desc.intermediate_size <= MOST_INTERMEDIATE
        && desc.hidden_size.is_multiple_of(UNIT)
        && desc.intermediate_size.is_multiple_of(UNIT)
        && [32, 64, 128].contains(&desc.head_dim())
        && desc.head_dim() * desc.num_attention_heads == desc.hidden_size;
    let positions = match desc.positions {
        Positions::FromZero | Positions::AfterPadding { .. } | Positions::None => true,
        Positions::Rotary { .. } => false,
    };
    let norms = match desc.norms {
        Norms::Post => true,
        Norms::PostQueryKey | Norms::Pre => false,
    };
    let feed_forward = match desc.feed_forward {
        FeedForward::Plain => true,
        FeedForward::Gated => false,
    };
    let activation = match desc.hidden_act {
        Activation::Gelu
        | Activation::GeluTanh
        | Activation::QuickGelu
        | Activation::Relu
        | Activation::Silu
        | Activation::Tanh => true,
        Activation::Sigmoid => false,
    };
    let pooling = match desc.pooling[..] {
        [
            Pooling::Mean | Pooling::Cls | Pooling::MeanSqrtLen | Pooling::WeightedMean | Pooling::LastToken,
        ] => true,
        // the kernel leaves the maximum out, for its size
        [Pooling::Max] | [] | [_, _, ..] => false,
    };
    let ends = desc.embedding_size.is_none() && desc.modules.is_empty() && desc.pooled_layers <= 1;
    let layers = folds_layernorms(desc) && !modifies_scores(desc);
    sizes && positions && norms && layers && feed_forward && activation && pooling && ends
}

/// Units of a product over `k` that a block computes side by side.
pub(super) fn units_at_once(k: usize) -> usize {
    MOST_UNITS.min(WEIGHT_BYTES / (2 * UNIT * k.next_multiple_of(64)))
}

/// A layer's products: columns and k.
fn products(shape: &EncoderShape) -> [[usize; 2]; 4] {
    let (h, inner) = (shape.hidden_size, shape.intermediate_size);
    [[3 * h, h], [h, h], [inner, h], [h, inner]]
}

/// The grid for a model: the fewest blocks, one a multiprocessor at most, of which none has more of a product than it would
/// have on all multiprocessors. 0 where the kernel does not fit.
pub fn blocks(table: &TileTable, shape: &EncoderShape) -> usize {
    if table.blocks_per_sm(PERSISTENT_ENCODER, None) == 0 {
        return 0;
    }
    let needed = products(shape).map(|[n, _]| {
        let units = n / UNIT;
        units.div_ceil(units.div_ceil(table.gpu().sm_count))
    });
    needed.into_iter().max().unwrap_or(1).max(1)
}

/// What a batch should take, and what it is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PersistentEstimate {
    /// Of the grid.
    pub blocks: usize,
    /// Barriers of all blocks.
    pub barriers: usize,
    /// Bytes of weights, each once.
    pub weight_bytes: f64,
    /// Bytes of activations that all blocks together read from L2 for the products.
    pub activation_bytes: f64,
    /// µs that blocks wait for weights alone: beyond the barriers, while which they come.
    pub weights_us: f64,
    /// µs of the barriers.
    pub barriers_us: f64,
    /// Predicted time, µs, the launch included.
    pub us: f64,
}

/// Predicts `batch` sequences of `seqlen` tokens; `None` if the kernel does not take them.
pub fn estimate(
    table: &TileTable,
    shape: &EncoderShape,
    batch: usize,
    seqlen: usize,
) -> Option<PersistentEstimate> {
    let (gpu, tokens, blocks) = (table.gpu(), batch * seqlen, blocks(table, shape));
    if !shape.persistent || blocks == 0 || !(1..=PERSISTENT_TOKENS).contains(&tokens) {
        return None;
    }
    let weight_rate = 1e3
        * match shape.weights_in_l2(gpu, tokens) {
            true => gpu.l2_gb_per_s,
            false => gpu.memory_gb_per_s,
        };
    let l2_rate = 1e3 * gpu.l2_gb_per_s;
    let passes = tokens.div_ceil(PASS_ROWS);
    let (mut layer_us, mut waited, mut weight_bytes, mut activation_bytes) = (0.0, 0.0, 0.0, 0.0);
    for (i, [n, k]) in products(shape).into_iter().enumerate() {
        let units = n / UNIT;
        let (of_block, side_by_side) = (units.div_ceil(blocks), units_at_once(k));
        let jobs = of_block.div_ceil(side_by_side);
        // the busiest block's share, as if all had as much
        let bytes = |units: usize| (2 * UNIT * k * units * blocks.min(n / UNIT)) as f64;
        let (first, rest) = (bytes(of_block.min(side_by_side)), bytes(of_block.saturating_sub(side_by_side)));
        // those of the first job come while the blocks wait, later ones while nobody multiplies
        let waits = (first / weight_rate - BARRIER_US).max(0.0) + rest / weight_rate;
        let read = (jobs * blocks.min(units) * 2 * tokens * k) as f64;
        let mma = (2 * PASS_ROWS.min(tokens.next_multiple_of(16)) * UNIT * k * of_block * passes) as f64;
        let rounds = (jobs * passes * k.div_ceil(K_OF_ROUND)) as f64;
        let clocks =
            (rounds * L2_LATENCY).max(mma / gpu.mma_flops_per_clock()) + (jobs * passes) as f64 * EPILOGUE;
        // qkv and up take means and spreads of all rows, two at a time a warp
        let norms = if i % 2 == 0 { tokens.div_ceil(16) as f64 * NORMS } else { 0.0 };
        layer_us += waits + (read / l2_rate).max(gpu.us(clocks)) + gpu.us(norms);
        waited += waits;
        weight_bytes += (2 * n * k) as f64;
        activation_bytes += read;
    }
    let items = batch * seqlen.div_ceil(QUERY_ROWS) * shape.num_attention_heads;
    let key_tiles = seqlen.div_ceil(KEY_BYTES / (2 * shape.head_dim()));
    // items of one block run on its warps side by side
    layer_us += gpu.us(items.div_ceil(8 * blocks) as f64 * key_tiles as f64 * KEY_TILE + EPILOGUE);
    let layers = shape.num_hidden_layers;
    let barriers = 1 + 5 * layers;
    let barriers_us = barriers as f64 * BARRIER_US;
    Some(PersistentEstimate {
        blocks,
        barriers,
        weight_bytes: layers as f64 * weight_bytes,
        activation_bytes: layers as f64 * activation_bytes,
        weights_us: layers as f64 * waited,
        barriers_us,
        us: LAUNCH_US + gpu.us(2.0 * ENDS) + layers as f64 * layer_us + barriers_us,
    })
}

/// Tokens of the sequences that the limit is predicted for, and steps in which it is looked for.
const USUAL_SEQUENCE: usize = 128;
const TOKEN_STEP: usize = 16;

/// The most tokens of a batch up to which the kernel is predicted to be faster than the network kernel by kernel, launches
/// ahead of the GPU; 0: none.
pub fn most_tokens(table: &TileTable, shape: &EncoderShape) -> usize {
    let is_faster = |tokens: usize| {
        let seqlen = USUAL_SEQUENCE.min(tokens);
        let batch = tokens / seqlen;
        let by_kernels = network(table, shape, batch, seqlen, Choices::default());
        match (estimate(table, shape, batch, seqlen), by_kernels) {
            (Some(persistent), Some(by_kernels)) => persistent.us < by_kernels.us(),
            _ => false,
        }
    };
    let sizes = (TOKEN_STEP..=PERSISTENT_TOKENS).step_by(TOKEN_STEP);
    sizes.take_while(|&tokens| is_faster(tokens)).last().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::{Element, Gpu};
    use crate::model::{AttentionBias, AttentionSpan, LayerGroups, LayerWeights, Module};

    fn table(gpu: &str) -> TileTable {
        TileTable::new(Gpu::known(gpu).unwrap(), Element::F16)
    }

    #[test]
    fn takes_is_what_the_kernel_computes() {
        let base = ModelDesc::default();
        assert!(takes(&base));
        assert!(takes(&ModelDesc {
            positions: Positions::AfterPadding { pad: 1 },
            type_vocab_size: 0,
            ..base.clone()
        }));
        assert!(takes(&ModelDesc {
            hidden_size: 1024,
            num_attention_heads: 8,
            intermediate_size: 4096,
            ..base.clone()
        }));
        for other in [
            ModelDesc { hidden_size: 1280, num_attention_heads: 20, ..base.clone() },
            ModelDesc { intermediate_size: 5120, ..base.clone() },
            ModelDesc { num_attention_heads: 48, ..base.clone() },
            ModelDesc {
                positions: Positions::Rotary { global_base: 1e4, local_base: 1e4, divisor: 1.0 },
                ..base.clone()
            },
            ModelDesc { norms: Norms::Pre, ..base.clone() },
            ModelDesc {
                layer_weights: LayerWeights::Shared(LayerGroups { groups: 1, inner: 1 }),
                ..base.clone()
            },
            ModelDesc { attention_bias: AttentionBias::Alibi, ..base.clone() },
            ModelDesc {
                attention_span: AttentionSpan::Mixed { reach: 5, local: vec![true; 12] },
                ..base.clone()
            },
            ModelDesc { feed_forward: FeedForward::Gated, ..base.clone() },
            ModelDesc { hidden_act: Activation::Sigmoid, ..base.clone() },
            ModelDesc { pooling: vec![Pooling::Max], ..base.clone() },
            ModelDesc { pooling: vec![Pooling::Mean, Pooling::Cls], ..base.clone() },
            ModelDesc { embedding_size: Some(128), ..base.clone() },
            ModelDesc { modules: vec![Module::Normalize], ..base.clone() },
            ModelDesc { pooled_layers: 2, ..base },
        ] {
            assert!(!takes(&other), "{other:?}");
        }
    }

    /// As the kernel's shared memory has room for.
    #[test]
    fn units_fit_their_memory() {
        for k in (8..=MOST_INTERMEDIATE).step_by(8) {
            let units = units_at_once(k);
            let bytes = |units: usize| units * UNIT * 2 * k.next_multiple_of(64);
            assert!((1..=MOST_UNITS).contains(&units) && bytes(units) <= WEIGHT_BYTES, "{k}");
            assert!(units == MOST_UNITS || bytes(units + 1) > WEIGHT_BYTES, "{k}");
        }
    }

    #[test]
    fn a_grid_has_no_more_blocks_than_it_needs() {
        for gpu in Gpu::KNOWN {
            let table = table(gpu);
            for shape in EncoderShape::KNOWN.map(|name| EncoderShape::known(name).unwrap()) {
                let (blocks, sms) = (blocks(&table, &shape), table.gpu().sm_count);
                assert!((1..=sms).contains(&blocks), "{gpu} {shape:?}: {blocks}");
                let busiest = |blocks: usize| products(&shape).map(|[n, _]| (n / UNIT).div_ceil(blocks));
                assert_eq!(busiest(blocks), busiest(sms), "{gpu} {shape:?}");
                assert!(blocks == 1 || busiest(blocks - 1) != busiest(sms), "{gpu} {shape:?}");
            }
        }
    }

    #[test]
    fn estimates_count_what_is_read_and_grow_with_the_batch() {
        for gpu in Gpu::KNOWN {
            let table = table(gpu);
            for name in EncoderShape::KNOWN {
                let shape = EncoderShape::known(name).unwrap();
                let of = |batch, seqlen| estimate(&table, &shape, batch, seqlen).unwrap();
                let (h, inner) = (shape.hidden_size, shape.intermediate_size);
                let bytes = 2 * shape.num_hidden_layers * (4 * h * h + 2 * h * inner);
                assert_eq!(of(1, 16).weight_bytes, bytes as f64);
                assert_eq!(of(1, 16).barriers, 1 + 5 * shape.num_hidden_layers);
                assert!(
                    of(1, 16).us < of(1, 32).us
                        && of(1, 32).us < of(1, 128).us
                        && of(1, 128).us < of(2, 128).us
                );
                // no faster than its weights come, nor than its barriers
                let memory_us =
                    bytes as f64 / (table.gpu().l2_gb_per_s.max(table.gpu().memory_gb_per_s) * 1e3);
                assert!(of(1, 16).us > memory_us && of(1, 16).us > of(1, 16).barriers_us, "{gpu} {name}");
                assert_eq!(estimate(&table, &shape, 3, 128), None, "more tokens than it takes");
            }
        }
    }

    #[test]
    fn the_limit_is_where_the_prediction_turns() {
        for gpu in Gpu::KNOWN {
            let table = table(gpu);
            for name in EncoderShape::KNOWN {
                let shape = EncoderShape::known(name).unwrap();
                let most = most_tokens(&table, &shape);
                let faster = |tokens: usize| {
                    let seqlen = tokens.min(USUAL_SEQUENCE);
                    let kernels =
                        network(&table, &shape, tokens / seqlen, seqlen, Choices::default()).unwrap();
                    estimate(&table, &shape, tokens / seqlen, seqlen).is_some_and(|e| e.us < kernels.us())
                };
                assert!(most == 0 || faster(most), "{gpu} {name}: {most}");
                assert!(!faster(most + TOKEN_STEP), "{gpu} {name}: {most}");
            }
            let shape = EncoderShape { persistent: false, ..EncoderShape::known("base").unwrap() };
            assert_eq!(most_tokens(&table, &shape), 0, "a model that it does not compute");
        }
    }
}
