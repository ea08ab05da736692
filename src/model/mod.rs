//! The model as data: what a model directory says, checked, with nothing of any device in it.
//!
//! [`open`] turns a directory into a [`Model`]: a [`ModelDesc`] (sizes and choices), [`Weights`] (views
//! into the mapped checkpoint, every shape checked) and what the tokenizer needs. Backends read these and
//! nothing else. The numbered rules that the tests name are those of `docs/loading.md`.

use std::collections::BTreeMap;
use std::path::PathBuf;

mod albert;
mod bert;
mod chain;
mod checkpoint;
mod classifier;
mod config;
mod distilbert;
mod electra;
mod encoder;
mod gte;
mod jina;
mod json;
pub mod locate;
mod modernbert;
mod mpnet;
mod nomic;
mod roberta;
mod rotary;
mod weights;

pub use checkpoint::{Dtype, Tensor};
pub(crate) use classifier::{Scores, open_classifier};
pub use config::open;
pub use mpnet::relative_bucket;
pub use rotary::rotary_angle;
pub use weights::{Layer, Linear, ModuleWeights, Norm, Weights};

/// A model directory, read and checked.
#[derive(Debug)]
pub struct Model {
    /// Sizes and choices.
    pub desc: ModelDesc,
    /// Every tensor that the encoder needs, shapes checked against `desc`.
    pub weights: Weights,
    /// What the tokenizer's loader needs to know.
    pub tokenizer: TokenizerDesc,
    /// What was assumed where the directory is silent, one sentence each; for the user to see.
    pub warnings: Vec<String>,
}

/// Where the tokenizer's files are and what the transformer module says about text.
#[derive(Debug, Clone)]
pub struct TokenizerDesc {
    /// The folder of `tokenizer.json` or `vocab.txt` (module 0's folder).
    pub dir: PathBuf,
    /// `do_lower_case` of `sentence_bert_config.json`: lower-case before the tokenizer's own normalizer.
    pub do_lower_case: bool,
    /// `vocab_size` of `config.json`: no id may reach it.
    pub vocab_size: usize,
}

/// Everything about a model but its weights.
///
/// Closed enums are matched without `_` arms, so that a new variant stops every backend from compiling
/// until it computes it or refuses it at load.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelDesc {
    /// The architecture, `model_type` of `config.json`.
    pub family: Family,
    /// Rows of the word embedding table.
    pub vocab_size: usize,
    /// Width of the embedding tables, where a projection from there to `hidden_size` comes behind the
    /// embeddings' norm; none: they are `hidden_size` wide.
    pub embedding_size: Option<usize>,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Encoder layers; of groups, where there are any.
    pub num_hidden_layers: usize,
    /// Whether layers have weights of their own.
    pub layer_weights: LayerWeights,
    /// Attention heads; `hidden_size / num_attention_heads` is the head size.
    pub num_attention_heads: usize,
    /// Width of the feed-forward's inner layer.
    pub intermediate_size: usize,
    /// What happens between the feed-forward's products.
    pub feed_forward: FeedForward,
    /// Where the layernorms are.
    pub norms: Norms,
    /// Rows of the position embedding table; where there is none, the longest sequence.
    pub max_position_embeddings: usize,
    /// Which of these rows a token has, or how its position is told otherwise.
    pub positions: Positions,
    /// What is added to the attention's scores.
    pub attention_bias: AttentionBias,
    /// How far the attention of each layer reaches.
    pub attention_span: AttentionSpan,
    /// Rows of the token type embedding table; 0: there is none.
    pub type_vocab_size: usize,
    /// Added to the variance in every layernorm.
    pub layer_norm_eps: f32,
    /// Between the two feed-forward products.
    pub hidden_act: Activation,
    /// How many of the last layers have their token vectors averaged before they are pooled, 1 to
    /// `num_hidden_layers`. No model directory asks for more than 1; an experiment may.
    pub pooled_layers: usize,
    /// How token vectors become one vector; several are concatenated in this order.
    pub pooling: Vec<Pooling>,
    /// What the pooled vector goes through, in this order, before a last `Normalize`.
    pub modules: Vec<Module>,
    /// Whether the module chain ends in `Normalize`.
    pub normalize: bool,
    /// The longest sequence in tokens, specials and prompt included; longer texts are cut.
    pub max_seq_length: usize,
    /// `prompts` of `config_sentence_transformers.json`.
    pub prompts: BTreeMap<String, String>,
    /// The prompt used when the caller names none.
    pub default_prompt_name: Option<String>,
    /// `include_prompt` of the pooling module: whether the prompt's tokens are pooled.
    pub include_prompt: bool,
    /// `truncate_dim` of `config_sentence_transformers.json`.
    pub truncate_dim: Option<usize>,
}

impl ModelDesc {
    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Width of the embedding tables.
    pub fn embedding_width(&self) -> usize {
        self.embedding_size.unwrap_or(self.hidden_size)
    }

    /// Tokens of the longest sequence that has positions.
    pub fn longest_sequence(&self) -> usize {
        match self.positions {
            Positions::FromZero | Positions::None | Positions::Rotary { .. } => self.max_position_embeddings,
            Positions::AfterPadding { pad } => self.max_position_embeddings.saturating_sub(pad as usize + 1),
        }
    }

    /// Width of the feed-forward's first product.
    pub fn inner_width(&self) -> usize {
        match self.feed_forward {
            FeedForward::Plain => self.intermediate_size,
            FeedForward::Gated => 2 * self.intermediate_size,
        }
    }

    /// Tokens to either side that a query of this layer sees; none: all.
    pub fn reach(&self, layer: usize) -> Option<usize> {
        match &self.attention_span {
            AttentionSpan::Global => None,
            AttentionSpan::Mixed { reach, local } => local[layer].then_some(*reach),
        }
    }

    /// Which of [`Weights::layers`] are computed, in this order.
    pub fn layer_order(&self) -> impl Iterator<Item = usize> {
        let (layers, LayerGroups { groups, inner }) = (
            self.num_hidden_layers,
            match self.layer_weights {
                LayerWeights::Own => LayerGroups { groups: self.num_hidden_layers, inner: 1 },
                LayerWeights::Shared(groups) => groups,
            },
        );
        (0..layers).flat_map(move |l| {
            // as ALBERT computes it, in floating point
            let group = (l as f64 / (layers as f64 / groups as f64)) as usize;
            group * inner..(group + 1) * inner
        })
    }

    /// Width of the pooled vector: `hidden_size` for each pooling mode.
    pub fn pooled_dim(&self) -> usize {
        self.hidden_size * self.pooling.len()
    }

    /// Width of the vector that comes out: that of the last `Dense`, else of the pooled vector.
    pub fn dim(&self) -> usize {
        self.modules.iter().fold(self.pooled_dim(), |width, module| module.width(width))
    }

    /// Floating point operations (two per multiply-add) to encode a sequence of `seqlen` tokens:
    /// the products with the weights and the attention products, without element-wise work.
    pub fn flops(&self, seqlen: usize) -> f64 {
        // the two products of the feed-forward are as much as one of this width
        let i = (self.inner_width() + self.intermediate_size) as f64 / 2.0;
        let (h, n) = (self.hidden_size as f64, seqlen as f64);
        self.layer_order().count() as f64 * (2.0 * n * (4.0 * h * h + 2.0 * h * i) + 4.0 * n * n * h)
    }
}

impl Default for ModelDesc {
    /// A BERT with the sizes of transformers' `BertConfig` (bert-base) and mean pooling, for code that makes
    /// a model and does not read one.
    fn default() -> Self {
        Self {
            family: Family::Bert,
            vocab_size: 30522,
            embedding_size: None,
            hidden_size: 768,
            num_hidden_layers: 12,
            layer_weights: LayerWeights::Own,
            num_attention_heads: 12,
            intermediate_size: 3072,
            feed_forward: FeedForward::Plain,
            norms: Norms::Post,
            max_position_embeddings: 512,
            positions: Positions::FromZero,
            attention_bias: AttentionBias::None,
            attention_span: AttentionSpan::Global,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            hidden_act: Activation::Gelu,
            pooled_layers: 1,
            pooling: vec![Pooling::Mean],
            modules: Vec::new(),
            normalize: false,
            max_seq_length: 512,
            prompts: BTreeMap::new(),
            default_prompt_name: None,
            include_prompt: true,
            truncate_dim: None,
        }
    }
}

/// The architectures that can be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// ALBERT (Lan et al. 2019): BERT with narrow embeddings and layers that share their weights.
    Albert,
    /// BERT (Devlin et al. 2018): absolute positions, post-layernorm.
    Bert,
    /// CamemBERT (Martin et al. 2019): RoBERTa with a Unigram tokenizer.
    Camembert,
    /// DistilBERT (Sanh et al. 2019): BERT without token types.
    DistilBert,
    /// ELECTRA (Clark et al. 2020): BERT with narrow embeddings.
    Electra,
    /// The encoder of gte-en-v1.5, gte-multilingual and arctic-embed-v2 (Zhang et al. 2024): BERT with rotary
    /// positions and a gated feed-forward.
    Gte,
    /// The encoder of jina-embeddings-v2 (Günther et al. 2023): BERT without positions, with ALiBi's bias in the
    /// attention, and a gated feed-forward.
    JinaBert,
    /// The encoder of jina-embeddings-v3 (Sturua et al. 2024) in transformers' form, without adapters: XLM-RoBERTa
    /// with rotary positions.
    JinaV3,
    /// ModernBERT (Warner et al. 2024): rotary positions, gated feed-forward, layernorms in front, layers whose
    /// attention is local.
    ModernBert,
    /// MPNet (Song et al. 2020): BERT without token types, with relative positions in the attention.
    MpNet,
    /// NomicBERT (Nussbaum et al. 2024): BERT with rotary positions and a gated feed-forward, without biases.
    NomicBert,
    /// RoBERTa (Liu et al. 2019): BERT with positions that count from behind the padding's.
    Roberta,
    /// XLM-RoBERTa (Conneau et al. 2019): RoBERTa with a Unigram tokenizer.
    XlmRoberta,
}

/// How a sequence's tokens get their positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Positions {
    /// 0, 1, 2, …
    FromZero,
    /// pad + 1, pad + 2, …; a token whose id is `pad` (written in a text) has row `pad` and is not counted.
    AfterPadding {
        /// The id of the padding token.
        pad: u32,
    },
    /// No table, and nothing in its place: the attention's bias alone tells tokens apart.
    None,
    /// No table: queries and keys are rotated (Su et al. 2021) by [`rotary_angle`], component i with component
    /// i + head_dim / 2.
    Rotary {
        /// Of layers whose attention reaches all tokens.
        global_base: f32,
        /// Of layers whose attention does not.
        local_base: f32,
        /// All angles are divided by it: 1 where positions are not scaled.
        divisor: f32,
    },
}

/// What happens between the feed-forward's two products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedForward {
    /// f(x), `intermediate_size` wide.
    Plain,
    /// f(x) · y, where the first product is `[x, y]`.
    Gated,
}

/// Where the layernorms are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norms {
    /// Behind each residual.
    Post,
    /// As `Post`, and over each token's queries and keys, all heads at once, before they meet.
    PostQueryKey,
    /// In front of attention and feed-forward, outside of the residual, and one behind the last layer.
    Pre,
}

impl Norms {
    /// Whether they are in front of attention and feed-forward.
    pub fn in_front(self) -> bool {
        match self {
            Self::Post | Self::PostQueryKey => false,
            Self::Pre => true,
        }
    }
}

/// How far the attention of each layer reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttentionSpan {
    /// To all tokens.
    Global,
    /// In some layers to near tokens only.
    Mixed {
        /// Tokens to either side that a local layer's query sees.
        reach: usize,
        /// Whether a layer is local, `[num_hidden_layers]`.
        local: Vec<bool>,
    },
}

impl Positions {
    /// The row of each token of a sequence.
    pub fn of(self, ids: &[u32]) -> impl Iterator<Item = u32> {
        let mut count = 0;
        ids.iter().map(move |&id| {
            let row = match self {
                Self::FromZero | Self::None | Self::Rotary { .. } => count,
                Self::AfterPadding { pad } if id == pad => return pad,
                Self::AfterPadding { pad } => pad + 1 + count,
            };
            count += 1;
            row
        })
    }
}

/// What is added to the attention's scaled scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionBias {
    /// Nothing.
    None,
    /// A number for each head and [`relative_bucket`] of key and query, the same in all layers.
    RelativeBuckets,
    /// The distance of key and query times the head's [`alibi_slope`] (Press et al. 2022, on both sides).
    Alibi,
}

/// What ALiBi multiplies distances with, negative: −2^(−8(h + 1) / n) for the heads `h` of the greatest power of two
/// n that there are heads for, and for those beyond every other slope of 2n heads.
pub fn alibi_slope(head: usize, heads: usize) -> f32 {
    let whole = 1 << heads.ilog2();
    let slope = |place: usize, of: usize| -(-8.0 * place as f64 / of as f64).exp2() as f32;
    if head < whole { slope(head + 1, whole) } else { slope(2 * (head - whole) + 1, 2 * whole) }
}

/// Whether layers have weights of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerWeights {
    /// Each.
    Own,
    /// In groups.
    Shared(LayerGroups),
}

/// Layers that share weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerGroups {
    /// Groups, each of which serves an equal number of successive layers.
    pub groups: usize,
    /// Transformer layers of a group; a layer of the model runs through all of its group.
    pub inner: usize,
}

impl LayerWeights {
    /// How many layers have tensors, in a model of `layers`.
    pub fn count(self, layers: usize) -> usize {
        match self {
            Self::Own => layers,
            Self::Shared(LayerGroups { groups, inner }) => groups * inner,
        }
    }
}

/// An element-wise function: `hidden_act` inside the feed-forward, or that of a `Dense` module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · Φ(x) with the exact error function: `gelu`, `gelu_python`.
    Gelu,
    /// 0.5x(1 + tanh(√(2/π)(x + 0.044715x³))): `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`, …
    GeluTanh,
    /// x · σ(1.702x): `quick_gelu`.
    QuickGelu,
    /// max(x, 0): `relu`.
    Relu,
    /// x · σ(x): `silu`, `swish`.
    Silu,
    /// tanh(x): `tanh`.
    Tanh,
    /// σ(x): `sigmoid`.
    Sigmoid,
}

/// How the token vectors of a sequence become one vector. All tokens count, `[CLS]` and `[SEP]` too, but for
/// those of the prompt where `include_prompt` is false: n tokens, the first of them the sequence's p + 1st.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The first token's vector.
    Cls,
    /// The component-wise maximum; −∞ of no token.
    Max,
    /// Σ / n; 0 of no token.
    Mean,
    /// Σ / √n; 0 of no token.
    MeanSqrtLen,
    /// Σ iₜ xₜ / Σ iₜ with iₜ = p + 1 to p + n, the token's place in the sequence; 0 of no token.
    WeightedMean,
    /// The last token's vector; 0 of no token.
    LastToken,
}

/// A module behind the pooling, vector to vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// y = f(x Wᵀ + b), plus x or x Rᵀ where there is a residual.
    Dense(Dense),
    /// Mean 0 and variance 1 (+ 1e-5, PyTorch's own constant), times weight, plus bias.
    LayerNorm,
    /// x / max(‖x‖₂, 1e-12)
    Normalize,
}

impl Module {
    /// Added to the variance by [`LayerNorm`](Self::LayerNorm): what `torch.nn.LayerNorm` has by default.
    pub const LAYER_NORM_EPS: f32 = 1e-5;

    /// Width of its vector for one of `width`.
    pub fn width(self, width: usize) -> usize {
        match self {
            Self::Dense(dense) => dense.out_features,
            Self::LayerNorm | Self::Normalize => width,
        }
    }
}

/// The choices of a `Dense` module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dense {
    /// Width of its vector.
    pub out_features: usize,
    /// Whether there is b.
    pub bias: bool,
    /// f; none is the identity.
    pub activation: Option<Activation>,
    /// `use_residual`: added behind the activation; through weights of its own where the widths differ.
    pub use_residual: bool,
}
