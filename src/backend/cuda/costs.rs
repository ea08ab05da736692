//! What an encoder costs on a GPU, kernel by kernel: bytes, FLOPs, blocks, waves and a predicted time.
//!
//! The launches come from the same tables as those of the backend; the times are predictions of
//! a model of the hardware (`estimate.rs`), not measurements. Knows no weights and no device.

use super::estimate::Estimate;
use super::gpu::Gpu;
use super::persistent;
use super::tiles::{EpilogueKind, Gemm, TileTable};
use super::work_list;
use crate::model::{Activation, LayerWeights, ModelDesc, Norms};

/// The sizes of an encoder that its cost depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderShape {
    /// For people.
    pub name: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward's inner layer.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Whether the activation costs more than a comparison.
    pub activation: bool,
    /// Whether vectors are normalised.
    pub normalize: bool,
    /// Whether layernorms can be folded into the products around them.
    pub folds_layernorms: bool,
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
            num_hidden_layers,
            num_attention_heads,
            activation: true,
            normalize: true,
            folds_layernorms: true,
            persistent: true,
        })
    }

    /// The shape of a model that was read.
    pub fn of(name: &str, desc: &ModelDesc) -> Self {
        Self {
            name: name.into(),
            hidden_size: desc.hidden_size,
            intermediate_size: desc.intermediate_size,
            num_hidden_layers: desc.num_hidden_layers,
            num_attention_heads: desc.num_attention_heads,
            activation: desc.hidden_act != Activation::Relu,
            normalize: desc.normalize,
            folds_layernorms: folds_layernorms(desc),
            persistent: persistent::takes(desc),
        }
    }

    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Floating point operations to encode a sequence: products with the weights and attention.
    pub fn flops(&self, seqlen: usize) -> f64 {
        let (h, i, n) = (self.hidden_size as f64, self.intermediate_size as f64, seqlen as f64);
        self.num_hidden_layers as f64 * (2.0 * n * (4.0 * h * h + 2.0 * h * i) + 4.0 * n * n * h)
    }

    /// Whether the weights of all layers stay in L2 from one batch to the next, beside a batch's activations.
    pub(super) fn weights_in_l2(&self, gpu: &Gpu, total_tokens: usize) -> bool {
        let live_bytes = 2 * total_tokens * (4 * self.hidden_size + self.intermediate_size);
        self.weight_bytes() + live_bytes <= gpu.l2_bytes / 5 * 4
    }

    /// Bytes of the weights of all layers, 16 bits each.
    fn weight_bytes(&self) -> usize {
        let (h, i) = (self.hidden_size, self.intermediate_size);
        2 * self.num_hidden_layers * (4 * h * h + 2 * h * i)
    }
}

/// What may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Choices {
    /// No split-K: bits do not depend on the number of tokens in a batch.
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
        (Norms::Post, LayerWeights::Own) => true,
        (Norms::Post, LayerWeights::Shared(_)) | (Norms::PostQueryKey | Norms::Pre, _) => false,
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
    // of a product, the kernel's name ends in " / " and the number of parts
    let mut push = |role, kernel: String, of_layer, estimate| {
        let launches = if kernel.contains(" / ") { 2 } else { 1 };
        let times = if of_layer { layers } else { 1 };
        steps.push(Step { role, kernel, times, launches, of_layer, estimate });
    };

    let gemm = |n, k, epilogue| {
        let launch = table.gemm(&Gemm {
            m: total_tokens,
            n,
            k,
            epilogue,
            weights_in_l2: shape.weights_in_l2(table.gpu(), total_tokens),
            batch_invariant: choices.batch_invariant,
        });
        let kernel = match launch.grid[1] {
            1 => launch.tile.name.to_owned(),
            splits => format!("{} / {splits}", launch.tile.name),
        };
        (kernel, launch.estimate)
    };
    // an input that is normalised on the fly; a result whose residual is, and whose statistics are kept
    let input = |activation| EpilogueKind { activation, normalizes: folded, ..EpilogueKind::default() };
    let sum = EpilogueKind { residual: true, normalizes: folded, statistics: folded, activation: false };

    let norm =
        |op: &str, bytes: usize| table.row_kernel(op, total_tokens, h, bytes).map(|l| (l.name, l.estimate));
    let (kernel, estimate) = norm("embed_layernorm", 8 * h)?; // three tables in, one row out
    push("embed", kernel, false, estimate);
    let (kernel, estimate) = gemm(3 * h, h, input(false));
    push("qkv", kernel, true, estimate);
    let cu_seqlens: Vec<u32> =
        (0..=batch).map(|i| u32::try_from(i * seqlen).expect("fewer than 2^32 tokens")).collect();
    for launch in work_list::attention(table, &cu_seqlens, shape.num_attention_heads, shape.head_dim())? {
        push("attention", launch.tile.name.into(), true, launch.estimate);
    }
    let (kernel, estimate) = gemm(h, h, sum);
    push("projection", kernel, true, estimate);
    let (layernorm, layernorm_estimate) = norm("residual_layernorm", 4 * h)?; // the residual is in the sum already
    if !folded {
        push("norm", layernorm.clone(), true, layernorm_estimate);
    }
    let (kernel, estimate) = gemm(inner, h, input(shape.activation));
    push("ffn up", kernel, true, estimate);
    let (kernel, estimate) = gemm(h, inner, sum);
    push("ffn down", kernel, true, estimate);
    if folded {
        push("final norm", "layernorm_from_stats".into(), false, layernorm_estimate);
    } else {
        push("norm", layernorm, true, layernorm_estimate);
    }
    let pool = table.pool(batch, total_tokens, h, shape.normalize)?;
    push("pool", pool.name, false, pool.estimate);
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
