//! The encoder of a small batch in one launch (`kernels/persistent_encoder.cu`): which models and batches it takes, on the whole grid
//! or in clusters, on how many blocks, and what it should cost. The times are predictions; no GPU has confirmed one. What
//! was recorded of a GPU (`recorded.rs`) comes before them. Knows no weights and no device.

use super::costs::{Choices, EncoderShape, folds_layernorms, modifies_scores, network};
use super::estimate::LAUNCH_US;
use super::tiles::TileTable;
use crate::model::{Activation, FeedForward, ModelDesc, Norms, Pooling, Positions};

/// The kernel, without the element type's suffix; its line of `ENCODER_TILES`.
pub const PERSISTENT_ENCODER: &str = "persistent_encoder";
/// Threads of a block.
pub const PERSISTENT_THREADS: usize = 256;
/// Bytes of dynamic shared memory of a block at least; [`shared_bytes`] has what a GPU's get.
pub const PERSISTENT_SHARED: usize = 98_304;
/// Tokens of a batch at most: blocks keep a mean and a spread of each.
pub const PERSISTENT_TOKENS: usize = 256;

/// What a warp's registers hold of a row.
const MOST_HIDDEN: usize = 1024;
/// Eight rows of so many weights are what every block's shared memory holds.
const MOST_INTERMEDIATE: usize = 4096;
/// Columns of a unit of a product; units that a block computes side by side.
const UNIT: usize = 8;
const MOST_UNITS: usize = 4;
/// Bytes of a block's shared memory beside weights: sums of its warps.
const SUM_BYTES: usize = 32 << 10;
/// Bytes of weights where a block may have them: a cluster's share of a product of all-MiniLM-L6-v2 is 72 KiB at most.
const MOST_WEIGHT_BYTES: usize = 96 << 10;
/// Rows that a pass over k sums up.
const PASS_ROWS: usize = 32;
/// Queries of an entry of attention's work list, and keys that pass by at a time where a head is 64 wide.
pub(super) const QUERY_ROWS: usize = 16;
const KEY_BYTES: usize = 4096;
/// Pieces of 32 of k that a warp has on their way beside those that it multiplies, of 8 warps: all of k = 1,024.
const K_OF_ROUND: usize = 2 * 2 * 8 * 32;
/// Those that it keeps, from compute capability 9.0 on: `KEEPS_ROWS`.
const K_OF_REGISTERS: usize = K_OF_ROUND / 2;

/// What a barrier of all blocks takes, µs: assumed, from the 1 to 2 that are published for grid-wide barriers of one block a
/// multiprocessor (Zhang et al., "A study of single and multi-device synchronization methods in Nvidia GPUs", 2020). What it
/// consists of, a fence, a store to L2 and a load from there, two barriers of the block, is some 1,500 clocks.
pub const BARRIER_US: f64 = 1.5;
/// What a barrier of a cluster takes, µs: assumed. 180 clocks from one multiprocessor of it to another (Luo et al., "Benchmarking and
/// Dissecting the Nvidia Hopper GPU Architecture via Microbenchmarking", 2024), before that the way of the last store to L2 and back.
pub const CLUSTER_BARRIER_US: f64 = 0.4;
/// Bytes that a multiprocessor gets from L2 a clock where few ask: the width of its port.
const L2_PORT_BYTES: f64 = 64.0;
/// Multiprocessors of a GPC, of which a cluster takes its blocks' from one: 18 of a whole H100 or B200.
const GPC_SMS: usize = 18;
/// Sizes of clusters, the best first; whether a GPU has those of 16 blocks, its driver says.
pub(super) const CLUSTER_BLOCKS: [usize; 2] = [16, 8];
/// `PERSISTENT_PARTS` of the kernel.
pub(super) const MOST_CLUSTERS: usize = 8;
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

/// Bytes of dynamic shared memory of a block.
pub fn shared_bytes(table: &TileTable) -> usize {
    let most = SUM_BYTES + MOST_WEIGHT_BYTES;
    if table.blocks_per_sm(PERSISTENT_ENCODER, Some(most)) > 0 { most } else { PERSISTENT_SHARED }
}

/// Units of a product over `k` of which a block of so much shared memory holds the weights.
pub(super) fn units_held(k: usize, shared_bytes: usize) -> usize {
    (shared_bytes - SUM_BYTES) / (2 * UNIT * k.next_multiple_of(64))
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

/// Clusters that run side by side on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clusters {
    /// Of each.
    pub blocks: usize,
    /// How many; 0: the GPU has none.
    pub most: usize,
}

impl Clusters {
    /// The whole grid.
    pub const NONE: Self = Self { blocks: 0, most: 0 };

    /// Of a GPU whose driver cannot be asked: one a whole GPC, on datacenter GPUs from compute capability 9.0 on.
    pub fn assumed(table: &TileTable) -> Self {
        let gpu = table.gpu();
        match gpu.compute_capability.0 {
            9 | 10 => Self { blocks: CLUSTER_BLOCKS[0], most: (gpu.sm_count / GPC_SMS).min(MOST_CLUSTERS) },
            _ => Self::NONE,
        }
    }
}

/// What a batch should take, and what it is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PersistentEstimate {
    /// Of the grid, or of each cluster.
    pub blocks: usize,
    /// 0: the whole grid.
    pub clusters: usize,
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

/// Predicts `batch` sequences of `seqlen` tokens, on the grid or, where there are any, dealt to clusters; `None` if the kernel does not
/// take them.
pub fn estimate(
    table: &TileTable,
    shape: &EncoderShape,
    batch: usize,
    seqlen: usize,
    available: Clusters,
) -> Option<PersistentEstimate> {
    let (gpu, grid) = (table.gpu(), blocks(table, shape));
    if !shape.persistent || grid == 0 || !(1..=PERSISTENT_TOKENS).contains(&(batch * seqlen)) {
        return None;
    }
    let clusters = available.most.min(batch);
    let (blocks, barrier_us) = match clusters {
        0 => (grid, BARRIER_US),
        _ => (available.blocks, CLUSTER_BARRIER_US),
    };
    // from here on, of one cluster with the largest share, and its share of what all get
    let sharers = clusters.max(1);
    let all_tokens = batch * seqlen;
    let (batch, shares) = (batch.div_ceil(sharers), sharers as f64);
    let tokens = batch * seqlen;
    let ports = L2_PORT_BYTES * gpu.clock_ghz * (blocks * sharers) as f64;
    let l2_rate = 1e3 * gpu.l2_gb_per_s.min(ports) / shares;
    let weight_rate = match shape.weights_in_l2(gpu, all_tokens) {
        true => l2_rate,
        false => l2_rate.min(1e3 * gpu.memory_gb_per_s / shares),
    };
    let passes = tokens.div_ceil(PASS_ROWS);
    let (mut layer_us, mut waited, mut weight_bytes, mut activation_bytes) = (0.0, 0.0, 0.0, 0.0);
    for (i, [n, k]) in products(shape).into_iter().enumerate() {
        let units = n / UNIT;
        let (of_block, held) = (units.div_ceil(blocks), units_held(k, shared_bytes(table)));
        let jobs = of_block / held * held.div_ceil(MOST_UNITS) + (of_block % held).div_ceil(MOST_UNITS);
        // rows stay in registers as long as weights stay in shared memory, or are read for each job
        let keeps = k <= K_OF_REGISTERS && gpu.compute_capability >= (9, 0);
        let reads = if keeps { of_block.div_ceil(held) } else { jobs };
        // the busiest block's share, as if all had as much
        let bytes = |units: usize| (2 * UNIT * k * units * blocks.min(n / UNIT)) as f64;
        let (first, rest) = (bytes(of_block.min(held)), bytes(of_block.saturating_sub(held)));
        // the first come while the blocks wait, later ones while nobody multiplies
        let waits = (first / weight_rate - barrier_us).max(0.0) + rest / weight_rate;
        let read = (reads * blocks.min(units) * 2 * tokens * k) as f64;
        let mma = (2 * PASS_ROWS.min(tokens.next_multiple_of(16)) * UNIT * k * of_block * passes) as f64;
        let rounds = (reads * passes * k.div_ceil(K_OF_ROUND)) as f64;
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
    let barriers_us = barriers as f64 * barrier_us;
    Some(PersistentEstimate {
        blocks,
        clusters,
        barriers,
        weight_bytes: layers as f64 * weight_bytes * shares,
        activation_bytes: layers as f64 * activation_bytes * shares,
        weights_us: layers as f64 * waited,
        barriers_us,
        us: LAUNCH_US + gpu.us(2.0 * ENDS) + layers as f64 * layer_us + barriers_us,
    })
}

/// Tokens of the sequences that the limit is predicted for, and steps in which it is looked for.
const USUAL_SEQUENCE: usize = 128;
const TOKEN_STEP: usize = 16;

/// The most tokens up to which the kernel is used; 0: it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PersistentLimits {
    /// Of a batch, on the whole grid.
    pub grid: usize,
    /// Of what one cluster computes.
    pub cluster: usize,
    /// Whether they were measured on a GPU of this name.
    pub recorded: bool,
}

impl PersistentLimits {
    /// None of any size.
    pub const NONE: Self = Self { grid: 0, cluster: 0, recorded: false };
}

/// Up to which sizes the kernel is faster than the network kernel by kernel, launches ahead of the GPU, and a cluster faster than
/// the grid as well: as was recorded for the shape on this GPU, else by prediction. `always`: by prediction, and whatever the network
/// takes kernel by kernel.
pub fn limits(table: &TileTable, shape: &EncoderShape, clusters: Clusters, always: bool) -> PersistentLimits {
    let most = |is_faster: &dyn Fn(usize, usize) -> bool| {
        let sizes = (TOKEN_STEP..=PERSISTENT_TOKENS).step_by(TOKEN_STEP);
        let one_size = |tokens: &usize| {
            let seqlen = USUAL_SEQUENCE.min(*tokens);
            is_faster(tokens / seqlen, seqlen)
        };
        sizes.take_while(one_size).last().unwrap_or(0)
    };
    let by_kernels = |batch, seqlen| {
        let network = network(table, shape, batch, seqlen, Choices::default());
        network.map_or(f64::INFINITY, |network| network.us())
    };
    let in_one_launch = |batch, seqlen, clusters| {
        estimate(table, shape, batch, seqlen, clusters).map_or(f64::INFINITY, |estimate| estimate.us)
    };
    let possible = shape.persistent && blocks(table, shape) > 0;
    let sizes =
        [shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers, shape.num_attention_heads];
    if possible
        && !always
        && let Some(record) = table.recorded_one_launch(sizes)
    {
        // the driver may have none of them here
        let cluster = if clusters.most > 0 { record.cluster } else { 0 };
        return PersistentLimits { grid: record.grid, cluster, recorded: true };
    }
    let on_grid = |batch, seqlen| in_one_launch(batch, seqlen, Clusters::NONE);
    let grid = match (possible, always) {
        (true, true) => PERSISTENT_TOKENS,
        _ => most(&|batch, seqlen| on_grid(batch, seqlen) < by_kernels(batch, seqlen)),
    };
    let one_cluster = Clusters { most: clusters.most.min(1), ..clusters };
    let cluster = most(&|batch, seqlen| {
        let us = in_one_launch(batch, seqlen, one_cluster);
        one_cluster.most > 0 && us < on_grid(batch, seqlen) && (always || us < by_kernels(batch, seqlen))
    });
    PersistentLimits { grid, cluster, recorded: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::{Element, Gpu, RecordedTables};
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
            for shared in [PERSISTENT_SHARED, SUM_BYTES + MOST_WEIGHT_BYTES] {
                let units = units_held(k, shared);
                let bytes = |units: usize| SUM_BYTES + units * UNIT * 2 * k.next_multiple_of(64);
                assert!(units >= 1 && bytes(units) <= shared && bytes(units + 1) > shared, "{k}");
            }
        }
        assert_eq!(["h200", "a100", "l4"].map(|gpu| shared_bytes(&table(gpu)) >> 10), [128, 128, 96]);
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
                let of = |batch, seqlen| estimate(&table, &shape, batch, seqlen, Clusters::NONE).unwrap();
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
                assert_eq!(
                    estimate(&table, &shape, 3, 128, Clusters::NONE),
                    None,
                    "more tokens than it takes"
                );
            }
        }
    }

    /// A cluster reads its own weights, and has barriers of its own.
    #[test]
    fn estimates_of_clusters_are_of_the_largest_share() {
        for gpu in ["h100", "h200", "b200"] {
            let table = table(gpu);
            let clusters = Clusters::assumed(&table);
            assert!(clusters.most > 1 && clusters.blocks * clusters.most <= table.gpu().sm_count);
            let shape = EncoderShape::known("minilm").unwrap();
            let of =
                |batch, most| estimate(&table, &shape, batch, 32, Clusters { most, ..clusters }).unwrap();
            assert_eq!(of(1, 1).barriers_us, of(1, 0).barriers as f64 * CLUSTER_BARRIER_US);
            assert_eq!(of(4, 4).weight_bytes, 4.0 * of(1, 0).weight_bytes);
            assert!(of(4, 4).us < of(4, 2).us && of(4, 2).us < of(4, 1).us, "{gpu}");
            assert!(of(2, 2).us < 1.05 * of(1, 1).us, "{gpu}: side by side");
        }
        assert_eq!(Clusters::assumed(&table("a100")), Clusters::NONE);
    }

    /// For encoders of these sizes on this GPU; not where all batches are asked for, nor clusters that there are none of.
    #[test]
    fn recorded_limits_come_before_predictions() {
        let rows = "H200\t384\t1536\t6\t12\t128\t16\nL4\t768\t3072\t12\t12\t0\t0";
        let tables = RecordedTables { one_launch: rows, ..RecordedTables::default() };
        let of = |gpu: &str, tables| {
            TileTable::with_records(Gpu::known(gpu).unwrap(), Element::F16, tables).unwrap()
        };
        let (measured, predicted) = (of("h200", tables), of("h200", RecordedTables::default()));
        let shape = |name| EncoderShape::known(name).unwrap();
        let clusters = Clusters::assumed(&measured);
        let taken = |table: &TileTable, name, clusters, always| limits(table, &shape(name), clusters, always);
        let found = taken(&measured, "minilm", clusters, false);
        assert_eq!(found, PersistentLimits { grid: 128, cluster: 16, recorded: true });
        let otherwise = taken(&predicted, "minilm", clusters, false);
        assert!(
            otherwise.grid != 128 && otherwise.cluster != 16 && !otherwise.recorded,
            "the test shows nothing"
        );
        assert_eq!(
            taken(&measured, "minilm", Clusters::NONE, false),
            PersistentLimits { cluster: 0, ..found }
        );
        for (name, always) in [("minilm", true), ("base", false), ("large", false)] {
            let [a, b] = [&measured, &predicted].map(|table| taken(table, name, clusters, always));
            assert_eq!(a, b, "{name}");
        }
        let gated = EncoderShape { persistent: false, ..shape("minilm") };
        assert_eq!(limits(&measured, &gated, clusters, false), PersistentLimits::NONE);
        assert!(!taken(&of("a100", tables), "minilm", Clusters::NONE, false).recorded, "another GPU");
        let never = PersistentLimits { recorded: true, ..PersistentLimits::NONE };
        assert_eq!(taken(&of("l4", tables), "base", Clusters::NONE, false), never);
    }

    #[test]
    fn the_limits_are_where_the_predictions_turn() {
        for gpu in Gpu::KNOWN {
            let table = table(gpu);
            let clusters = Clusters::assumed(&table);
            let one = Clusters { most: clusters.most.min(1), ..clusters };
            for name in EncoderShape::KNOWN {
                let shape = EncoderShape::known(name).unwrap();
                let found = limits(&table, &shape, clusters, false);
                let us = |tokens: usize, clusters: Clusters| {
                    let seqlen = tokens.min(USUAL_SEQUENCE);
                    estimate(&table, &shape, tokens / seqlen, seqlen, clusters)
                        .map_or(f64::INFINITY, |e| e.us)
                };
                let by_kernels = |tokens: usize| {
                    let seqlen = tokens.min(USUAL_SEQUENCE);
                    network(&table, &shape, tokens / seqlen, seqlen, Choices::default()).unwrap().us()
                };
                let on_grid = |tokens| us(tokens, Clusters::NONE) < by_kernels(tokens);
                let in_cluster = |tokens| {
                    one.most > 0 && us(tokens, one) < by_kernels(tokens).min(us(tokens, Clusters::NONE))
                };
                for (most, is_faster) in
                    [(found.grid, &on_grid as &dyn Fn(usize) -> bool), (found.cluster, &in_cluster)]
                {
                    assert!(most == 0 || is_faster(most), "{gpu} {name}: {found:?}");
                    assert!(!is_faster(most + TOKEN_STEP), "{gpu} {name}: {found:?}");
                }
                let always = limits(&table, &shape, clusters, true);
                assert!(always.grid == PERSISTENT_TOKENS && always.cluster >= found.cluster);
            }
            let shape = EncoderShape { persistent: false, ..EncoderShape::known("base").unwrap() };
            assert_eq!(
                limits(&table, &shape, clusters, true),
                PersistentLimits::NONE,
                "a model that it does not compute"
            );
        }
    }
}
