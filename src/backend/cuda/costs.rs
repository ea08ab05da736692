//! What an encoder costs on a GPU, kernel by kernel: bytes, FLOPs, blocks, waves and a predicted time.
//!
//! The launches come from the same tables as those of the backend; the times are predictions of
//! a model of the hardware (`estimate.rs`), not measurements. Knows no weights and no device.

use super::estimate::Estimate;
use super::gpu::Gpu;
use super::persistent;
use super::tiles::{EpilogueKind, Gemm, TileTable};
use super::work_list;
use super::work_list::AttentionShape;
use crate::model::{
    Activation, AttentionBias, AttentionSpan, LayerWeights, ModelDesc, Norms, Pooling, Positions,
};

/// The sizes of an encoder that its cost depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderShape {
    /// For people.
    pub name: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward's inner layer.
    pub intermediate_size: usize,
    /// Width of its first product: twice that where it is gated.
    pub inner_width: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads. Attention that reaches near tokens only is taken for one that reaches all.
    pub num_attention_heads: usize,
    /// Whether scores of some layer have a bias or a window.
    pub modified_scores: bool,
    /// Whether the activation costs more than a comparison.
    pub activation: bool,
    /// Whether vectors are normalised.
    pub normalize: bool,
    /// Whether layernorms can be folded into the products around them.
    pub folds_layernorms: bool,
    /// Where they are.
    pub norms: Norms,
    /// Whether queries and keys are turned by their positions.
    pub rotary: bool,
    /// Whether the last layer goes on with first tokens' rows alone, behind its attention.
    pub pools_first_rows: bool,
    /// Whether the kernel of `persistent.rs` computes it, as far as the model goes.
    pub persistent: bool,
}

impl EncoderShape {
    /// The names that [`EncoderShape::known`] takes.
    pub const KNOWN: [&'static str; 3] = ["minilm", "base", "large"];

    /// A shape by its name: all-MiniLM-L6-v2, BERT-base, BERT-large.
    pub fn known(name: &str) -> Option<Self> {
        let (name, [hidden_size, intermediate_size, num_hidden_layers, num_attention_heads]) = match name {
            "minilm" => ("MiniLM-L6", [384, 1536, 6, 12]),
            "base" => ("BERT-base", [768, 3072, 12, 12]),
            "large" => ("BERT-large", [1024, 4096, 24, 16]),
            _ => return None,
        };
        Some(Self {
            name: name.into(),
            hidden_size,
            intermediate_size,
            inner_width: intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            modified_scores: false,
            activation: true,
            normalize: true,
            folds_layernorms: true,
            norms: Norms::Post,
            rotary: false,
            pools_first_rows: false,
            persistent: true,
        })
    }

    /// The shape of a model that was read.
    pub fn of(name: &str, desc: &ModelDesc) -> Self {
        Self {
            name: name.into(),
            hidden_size: desc.hidden_size,
            intermediate_size: desc.intermediate_size,
            inner_width: desc.inner_width(),
            num_hidden_layers: desc.num_hidden_layers,
            num_attention_heads: desc.num_attention_heads,
            modified_scores: modifies_scores(desc),
            activation: desc.hidden_act != Activation::Relu,
            normalize: desc.normalize,
            folds_layernorms: folds_layernorms(desc),
            norms: desc.norms,
            rotary: match desc.positions {
                Positions::FromZero | Positions::AfterPadding { .. } | Positions::None => false,
                Positions::Rotary { .. } => true,
            },
            pools_first_rows: pools_first_rows(desc),
            persistent: persistent::takes(desc),
        }
    }

    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// What its attention's kernels are chosen by.
    pub(super) fn attention(&self, choices: Choices) -> AttentionShape {
        AttentionShape {
            num_heads: self.num_attention_heads,
            head_dim: self.head_dim(),
            modified: self.modified_scores,
            batch_invariant: choices.batch_invariant,
        }
    }

    /// Floating point operations to encode a sequence: products with the weights and attention.
    pub fn flops(&self, seqlen: usize) -> f64 {
        let (h, n, layers) = (self.hidden_size as f64, seqlen as f64, self.num_hidden_layers as f64);
        let i = (self.inner_width + self.intermediate_size) as f64;
        let behind_attention = 2.0 * (h * h + h * i); // of a token
        let spared = if self.pools_first_rows { (n - 1.0) * behind_attention } else { 0.0 };
        layers * (n * (6.0 * h * h + behind_attention) + 4.0 * n * n * h) - spared
    }

    /// Whether the weights of all layers stay in L2 from one batch to the next, beside a batch's activations.
    pub(super) fn weights_in_l2(&self, gpu: &Gpu, total_tokens: usize) -> bool {
        let live_bytes = 2 * total_tokens * (4 * self.hidden_size + self.intermediate_size);
        self.weight_bytes() + live_bytes <= gpu.l2_bytes / 5 * 4
    }

    /// Bytes of the weights of all layers, 16 bits each.
    fn weight_bytes(&self) -> usize {
        let (h, i) = (self.hidden_size, self.inner_width + self.intermediate_size);
        2 * self.num_hidden_layers * (4 * h * h + h * i)
    }
}

/// What may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Choices {
    /// No split-K, and one instruction whatever the GPU's clocks: bits do not depend on the batch, nor on the GPU within a compute
    /// capability.
    pub batch_invariant: bool,
    /// A kernel for each layernorm, also where they could be folded into the products around them.
    pub separate_layernorms: bool,
}

impl Choices {
    /// Whether an encoder's layernorms are folded into the products around them.
    pub fn folds(self, shape: &EncoderShape) -> bool {
        shape.folds_layernorms && !self.separate_layernorms
    }
}

/// Whether layernorms can be folded into the products that follow them. Not where layers share their weights: the first one's
/// input has been normalised, the others' has not, and weights are folded for one or the other.
pub(super) fn folds_layernorms(desc: &ModelDesc) -> bool {
    match (desc.norms, desc.layer_weights) {
        (Norms::Post | Norms::PostQueryKey | Norms::Pre, LayerWeights::Own) => true,
        (Norms::Post | Norms::PostQueryKey | Norms::Pre, LayerWeights::Shared(_)) => false,
    }
}

/// Whether nothing but first tokens' vectors is pooled, so that the last layer needs no others behind its attention: where no
/// vectors of tokens are asked for, and no tokens are left out.
pub(super) fn pools_first_rows(desc: &ModelDesc) -> bool {
    desc.pooling == [Pooling::Cls] && desc.pooled_layers == 1
}

/// Whether the scores of some layer are more than products of queries and keys.
pub(super) fn modifies_scores(desc: &ModelDesc) -> bool {
    let biased = match desc.attention_bias {
        AttentionBias::None => false,
        AttentionBias::RelativeBuckets | AttentionBias::Alibi => true,
    };
    biased
        || match desc.attention_span {
            AttentionSpan::Global => false,
            AttentionSpan::Mixed { .. } => true,
        }
}

/// One kernel of a network.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// What it is for: `qkv`, `attention`, …
    pub role: &'static str,
    /// Which kernel, and into how many parts `k` is split.
    pub kernel: String,
    /// How often the network has it: once for each layer, or once.
    pub times: usize,
    /// Launches each time: a product whose `k` is split has two.
    pub launches: usize,
    /// Whether it is part of a layer.
    pub of_layer: bool,
    /// Of one time.
    pub estimate: Estimate,
}

/// The kernels of a network on one batch, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// Sequences of the batch.
    pub batch: usize,
    /// Tokens of each.
    pub seqlen: usize,
    /// The kernels; those of a layer once.
    pub steps: Vec<Step>,
    /// FLOPs of the batch.
    pub flops: f64,
}

impl Network {
    /// Tokens of the batch.
    pub fn total_tokens(&self) -> usize {
        self.batch * self.seqlen
    }

    /// Predicted time of the batch, µs.
    pub fn us(&self) -> f64 {
        self.steps.iter().map(|s| s.times as f64 * s.estimate.us).sum()
    }

    /// Predicted time of one layer, µs.
    pub fn layer_us(&self) -> f64 {
        self.steps.iter().filter(|s| s.of_layer).map(|s| s.estimate.us).sum()
    }

    /// Kernels that are launched.
    pub fn launches(&self) -> usize {
        self.steps.iter().map(|s| s.times * s.launches).sum()
    }

    /// Predicted tokens a second.
    pub fn tokens_per_s(&self) -> f64 {
        self.total_tokens() as f64 / self.us() * 1e6
    }

    /// The predicted rate as a share of the GPU's ceiling for dense products.
    pub fn share_of_ceiling(&self, gpu: &Gpu) -> f64 {
        self.flops / self.us() / 1e6 / gpu.ceiling_tflops
    }
}

/// The kernels that encode `batch` sequences of `seqlen` tokens; `None` if a size has no kernel (head size, width).
///
/// # Panics
/// If `batch` or `seqlen` is 0.
pub fn network(
    table: &TileTable,
    shape: &EncoderShape,
    batch: usize,
    seqlen: usize,
    choices: Choices,
) -> Option<Network> {
    let (h, inner, layers) = (shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers);
    let total_tokens = batch * seqlen;
    let folded = choices.folds(shape);
    let mut steps = Vec::new();
    // of a product whose parts another launch adds, the kernel's name ends in " / " and their number
    let mut push = |role, kernel: String, times, of_layer, estimate| {
        let launches = if kernel.contains(" / ") { 2 } else { 1 };
        steps.push(Step { role, kernel, times, launches, of_layer, estimate });
    };

    let gemm = |m, n, k, epilogue| {
        let launch = table.gemm(&Gemm {
            m,
            n,
            k,
            epilogue,
            weights_in_l2: shape.weights_in_l2(table.gpu(), total_tokens),
            batch_invariant: choices.batch_invariant,
        });
        let kernel = match (launch.grid[1], launch.reduce) {
            (1, _) => launch.tile.name.to_owned(),
            (splits, Some(_)) => format!("{} / {splits}", launch.tile.name),
            (splits, None) => format!("{} c{splits}", launch.tile.name), // blocks of a cluster
        };
        (kernel, launch.estimate)
    };
    // an input that is normalised on the fly; a result whose residual is, and whose statistics are kept
    let input = |activation| EpilogueKind { activation, normalizes: folded, ..EpilogueKind::default() };
    let normalizes = folded && !shape.norms.in_front(); // with norms in front, what is added is as it is
    let sum = EpilogueKind { residual: true, normalizes, statistics: folded, activation: false };

    let rows = |op: &str, rows: usize, bytes: usize| {
        table.row_kernel(op, rows, h, bytes).map(|l| (l.name, l.estimate))
    };
    let (kernel, estimate) = rows("embed_layernorm", total_tokens, 8 * h)?; // three tables in, one row out
    push("embed", kernel, 1, false, estimate);
    let (kernel, estimate) = gemm(total_tokens, 3 * h, h, input(false));
    push("qkv", kernel, layers, true, estimate);
    if shape.norms == Norms::PostQueryKey {
        let (kernel, estimate) = rows("residual_layernorm", 2 * total_tokens, 4 * h)?;
        push("q, k norms", kernel, layers, true, estimate);
    }
    if shape.rotary {
        let launch = table.rotary(total_tokens, h, shape.head_dim());
        push("rotary", launch.name, layers, true, launch.estimate);
    }
    let cu_seqlens: Vec<u32> =
        (0..=batch).map(|i| u32::try_from(i * seqlen).expect("fewer than 2^32 tokens")).collect();
    for launch in work_list::attention(table, &cu_seqlens, &shape.attention(choices))? {
        push("attention", launch.tile.name.into(), layers, true, launch.estimate);
    }
    // behind its attention a layer computes all rows, and the last one perhaps first tokens' alone
    let last = usize::from(shape.pools_first_rows);
    if last > 0 {
        let launch = table.first_rows(batch, h);
        push("first rows", launch.name, 1, false, launch.estimate);
    }
    let pooled_rows = if last > 0 { batch } else { total_tokens };
    let all = (["projection", "norm", "ffn up", "ffn down"], total_tokens, layers - last, true);
    let of_first_rows = (["last proj", "last norm", "last up", "last down"], batch, last, false);
    for ([projection, norm, up, down], m, times, of_layer) in [all, of_first_rows] {
        if times == 0 {
            continue;
        }
        let (kernel, estimate) = gemm(m, h, h, sum);
        push(projection, kernel, times, of_layer, estimate);
        // the residual is in the sum already; with norms in front the first layer has one fewer, and one is behind the last
        let (layernorm, layernorm_estimate) = rows("residual_layernorm", m, 4 * h)?;
        if !folded {
            push(norm, layernorm.clone(), times, of_layer, layernorm_estimate);
        }
        let (kernel, estimate) = gemm(m, shape.inner_width, h, input(shape.activation));
        push(up, kernel, times, of_layer, estimate);
        let (kernel, estimate) = gemm(m, h, inner, sum);
        push(down, kernel, times, of_layer, estimate);
        if !folded {
            push(norm, layernorm, times, of_layer, layernorm_estimate);
        }
    }
    if folded {
        let (_, estimate) = rows("residual_layernorm", pooled_rows, 4 * h)?;
        push("final norm", "layernorm_from_stats".into(), 1, false, estimate);
    }
    let pool = table.pool(batch, pooled_rows, h, shape.normalize)?;
    push("pool", pool.name, 1, false, pool.estimate);
    Some(Network { batch, seqlen, steps, flops: batch as f64 * shape.flops(seqlen) })
}

/// Tokens that [`whole_waves`] tries at most: the activations of a batch stay near the size of the L2 cache. Room for twice the
/// 8,448 with which every product of width 384 ends with a wave of 132 multiprocessors.
pub const MOST_TOKENS: usize = 17_408;
/// Steps in which it tries: the rows of most tiles, as a wave's end may be at any of them.
const TOKEN_STEP: usize = 128;

/// Sequences of `seqlen` tokens with which the products fill their waves best: of all batches up to [`MOST_TOKENS`] in
/// steps of 128 tokens, the one with most predicted tokens a second, the smaller of equals. At least one sequence.
pub fn whole_waves(
    table: &TileTable,
    shape: &EncoderShape,
    seqlen: usize,
    choices: Choices,
) -> Option<Network> {
    let step = TOKEN_STEP.div_ceil(seqlen);
    let most = (MOST_TOKENS / seqlen).max(step);
    let mut best: Option<Network> = None;
    for batch in (step..=most).step_by(step) {
        let network = network(table, shape, batch, seqlen, choices)?;
        if best.as_ref().is_none_or(|b| network.tokens_per_s() > 1.001 * b.tokens_per_s()) {
            best = Some(network);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::{Element, TIE};

    fn table(gpu: &str) -> TileTable {
        TileTable::new(Gpu::known(gpu).unwrap(), Element::F16)
    }

    #[test]
    fn every_shape_has_a_cost_on_every_gpu() {
        for gpu in Gpu::KNOWN {
            let table = table(gpu);
            for shape in EncoderShape::KNOWN.map(|name| EncoderShape::known(name).unwrap()) {
                for seqlen in [1, 16, 32, 128, 512] {
                    for (batch_invariant, separate_layernorms) in
                        [(false, false), (true, false), (false, true)]
                    {
                        let choices = Choices { batch_invariant, separate_layernorms };
                        let one = network(&table, &shape, 1, seqlen, choices).unwrap();
                        let many = network(&table, &shape, 64, seqlen, choices).unwrap();
                        assert!(
                            one.us() < many.us() && many.us() < 64.0 * one.us(),
                            "{gpu} {shape:?} {seqlen}"
                        );
                        assert!(many.share_of_ceiling(table.gpu()) < 1.0);
                        let names: f64 = many.steps.iter().map(|s| s.times as f64 * s.estimate.flops).sum();
                        assert!(
                            (names / many.flops - 1.0).abs() < 1e-9,
                            "the steps' FLOPs are the network's"
                        );
                    }
                }
            }
        }
    }

    /// What the families add: kernels and their bytes, a feed-forward whose first product is twice as wide.
    #[test]
    fn families_have_the_kernels_that_the_backend_launches() {
        use crate::model::{AttentionSpan, FeedForward};
        let base = ModelDesc::default();
        let steps = |desc: &ModelDesc| {
            let shape = EncoderShape::of("", desc);
            let network = network(&table("h200"), &shape, 4, 128, Choices::default()).unwrap();
            let whole = 4.0 * desc.flops(128);
            match pools_first_rows(desc) {
                // of twelve layers, a token's row of 128 is computed behind the last one's attention
                true => assert!((0.93..0.95).contains(&(network.flops / whole)), "{}", network.flops / whole),
                false => assert!((network.flops / whole - 1.0).abs() < 1e-9, "{desc:?}"),
            }
            let flops: f64 = network.steps.iter().map(|s| s.times as f64 * s.estimate.flops).sum();
            assert!((flops / network.flops - 1.0).abs() < 1e-9, "{desc:?}");
            network.steps
        };
        let names = |steps: &[Step]| steps.iter().map(|s| s.role).collect::<Vec<_>>();
        let plain = names(&steps(&base));
        let with = |role| {
            let mut names = plain.clone();
            names.insert(2, role);
            names
        };
        let positions = Positions::Rotary { global_base: 1e4, local_base: 1e4, divisor: 1.0 };
        let rotary = steps(&ModelDesc { positions, ..base.clone() });
        assert_eq!(names(&rotary), with("rotary"));
        let tokens = 4.0 * 128.0;
        assert_eq!(rotary[2].estimate.bytes, tokens * (8.0 * 768.0 + 4.0 * 64.0));
        assert_eq!((rotary[2].times, rotary[2].estimate.blocks), (12, 4 * 128 * 768 / 16 / 256));
        let query_key = steps(&ModelDesc { norms: Norms::PostQueryKey, ..base.clone() });
        assert_eq!(names(&query_key), with("q, k norms"));
        assert_eq!(query_key[2].estimate.bytes, tokens * 8.0 * 768.0);
        let attention_span = AttentionSpan::Mixed { reach: 64, local: vec![true; 12] };
        let pre = ModelDesc { norms: Norms::Pre, attention_span, ..base.clone() };
        assert_eq!(names(&steps(&pre)), plain);
        steps(&ModelDesc { feed_forward: FeedForward::Gated, ..base.clone() });
        let first = steps(&ModelDesc { pooling: vec![Pooling::Cls], ..base });
        let of = |role: &str| first.iter().find(|s| s.role == role).unwrap_or_else(|| panic!("{role}"));
        assert_eq!((of("ffn up").times, of("last up").times, of("qkv").times), (11, 1, 12));
        assert!(of("last up").estimate.flops * 128.0 == of("ffn up").estimate.flops);
    }

    #[test]
    fn batch_invariance_never_pays() {
        let shape = EncoderShape::known("base").unwrap();
        for gpu in ["a100", "h200"] {
            let table = table(gpu);
            for (batch, seqlen) in [(1, 16), (1, 128), (4, 32), (32, 128)] {
                let us = |batch_invariant| {
                    let choices = Choices { batch_invariant, ..Choices::default() };
                    network(&table, &shape, batch, seqlen, choices).unwrap().us()
                };
                assert!(us(false) <= TIE * us(true));
            }
        }
    }

    #[test]
    fn whole_waves_is_the_best_of_its_candidates() {
        let (table, shape) = (table("h200"), EncoderShape::known("minilm").unwrap());
        let best = whole_waves(&table, &shape, 128, Choices::default()).unwrap();
        assert!(best.total_tokens().is_multiple_of(TOKEN_STEP) && best.total_tokens() <= MOST_TOKENS);
        for batch in [4, 8, 32, 64, 66, 128] {
            let other = network(&table, &shape, batch, 128, Choices::default()).unwrap();
            assert!(other.tokens_per_s() <= 1.001 * best.tokens_per_s(), "{batch}");
        }
    }

    #[test]
    fn network_rejects_head_sizes_without_a_kernel() {
        let shape = EncoderShape { num_attention_heads: 8, ..EncoderShape::known("minilm").unwrap() };
        assert!(network(&table("a100"), &shape, 1, 16, Choices::default()).is_none());
    }
}
