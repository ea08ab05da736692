//! The model as data: what a model directory says, checked, with nothing of any device in it.
//!
//! [`open`] turns a directory into a [`Model`]: a [`ModelDesc`] (sizes and choices), [`Weights`] (views
//! into the mapped checkpoint, every shape checked) and what the tokenizer needs. Backends read these and
//! nothing else. The numbered rules that the tests name are those of `docs/loading.md`.

use std::collections::BTreeMap;
use std::path::PathBuf;

mod bert;
mod checkpoint;
mod config;
mod json;
pub mod locate;
mod weights;

pub use checkpoint::{Dtype, Tensor};
pub use config::open;
pub use weights::{Layer, Linear, Norm, Weights};

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
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Encoder layers.
    pub num_hidden_layers: usize,
    /// Attention heads; `hidden_size / num_attention_heads` is the head size.
    pub num_attention_heads: usize,
    /// Width of the feed-forward's inner layer.
    pub intermediate_size: usize,
    /// Rows of the position embedding table.
    pub max_position_embeddings: usize,
    /// Rows of the token type embedding table.
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

    /// Width of the vector that comes out: `hidden_size` for each pooling mode.
    pub fn dim(&self) -> usize {
        self.hidden_size * self.pooling.len()
    }

    /// Floating point operations (two per multiply-add) to encode a sequence of `seqlen` tokens:
    /// the products with the weights and the attention products, without element-wise work.
    pub fn flops(&self, seqlen: usize) -> f64 {
        let (h, i, n) = (self.hidden_size as f64, self.intermediate_size as f64, seqlen as f64);
        self.num_hidden_layers as f64 * (2.0 * n * (4.0 * h * h + 2.0 * h * i) + 4.0 * n * n * h)
    }
}

/// The architectures that can be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// BERT (Devlin et al. 2018): absolute positions, post-layernorm.
    Bert,
}

/// `hidden_act`: the element-wise function inside the feed-forward.
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
}

/// How the token vectors of a sequence become one vector. All tokens count, `[CLS]` and `[SEP]` too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The first token's vector.
    Cls,
    /// The component-wise maximum.
    Max,
    /// Σ / n.
    Mean,
    /// Σ / √n.
    MeanSqrtLen,
}
