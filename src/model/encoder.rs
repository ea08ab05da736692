//! What the families have in common: choices of `config.json` with transformers' defaults, and the tensors of
//! a checkpoint by the names that a family gives them. Knows no family.

use super::checkpoint::Checkpoint;
use super::json::Object;
use super::{Activation, Layer, Linear, ModelDesc, Norm, Positions, Tensor, Weights};
use crate::error::Result;
use std::collections::HashSet;

/// Tensors of heads and buffers that an encoder does without (rule 32), as they begin behind the prefix.
const IGNORED: [&str; 18] = [
    "pooler.",
    "cls.",
    "lm_head.",
    "classifier.",
    "qa_outputs.",
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    // ALBERT
    "predictions.",
    "sop_classifier.",
    // DistilBERT
    "pre_classifier.",
    "vocab_layer_norm.",
    "vocab_projector.",
    "vocab_transform.",
    // ELECTRA
    "discriminator_predictions.",
    "generator_lm_head.",
    "generator_predictions.",
    // ModernBERT
    "decoder.",
    "head.",
];
/// Buffers of rotary positions, in whatever module.
const ROTARY_BUFFERS: &str = "rotary_emb.";
/// Far above any model's.
pub(super) const MOST_POSITIONS: usize = 1 << 17;
/// Unused tensors that a warning names.
const NAMED_LEFTOVERS: usize = 3;

/// `config.json` of an encoder. A key that is absent has the default of the family's configuration class in
/// transformers, and is said in `warnings`.
pub(super) struct Settings<'a> {
    pub(super) config: &'a Object,
    pub(super) warnings: &'a mut Vec<String>,
}

impl Settings<'_> {
    /// Refuses what no family computes, whatever transformers makes of it.
    pub(super) fn refuse_what_no_encoder_has(&self) -> Result<()> {
        let config = self.config;
        // rule 29: transformers 4 computes these, 5 silently does not
        let kind = config.string("position_embedding_type")?;
        // of these families, where the attention has other positions
        let other = [("bert", "alibi"), ("new", "rope"), ("gte", "rope")].iter().any(|(family, other)| {
            config.get("model_type").is_some_and(|t| t == family) && kind == Some(other)
        });
        if !other && kind.is_some_and(|t| t != "absolute") {
            return Err(config.unsupported("position_embedding_type", "only \"absolute\""));
        }
        // rule 30
        for key in ["is_decoder", "is_encoder_decoder"] {
            if config.bool(key)? == Some(true) {
                return Err(config.unsupported(key, "no causal attention: an encoder is needed"));
            }
        }
        if config.object("pruned_heads")?.is_some_and(|heads| heads.iter().next().is_some()) {
            return Err(config.unsupported("pruned_heads", "every head of every layer"));
        }
        if config.object("quantization_config")?.is_some() {
            return Err(config.unsupported("quantization_config", "weights in float32, float16 or bfloat16"));
        }
        Ok(())
    }

    pub(super) fn size(&mut self, key: &str, default: usize) -> Result<usize> {
        let found = self.config.size(key)?;
        Ok(found.unwrap_or_else(|| self.assumed(key, default)))
    }

    /// The longest sequence of a model without a table of positions. Nothing in the checkpoint bears it out, so
    /// there is a limit.
    pub(super) fn longest(&mut self, key: &str, default: usize) -> Result<usize> {
        let longest = self.size(key, default)?;
        if longest > MOST_POSITIONS {
            return Err(self.config.unsupported(key, &format!("at most {MOST_POSITIONS}")));
        }
        Ok(longest)
    }

    /// The number of token types; there may be none.
    pub(super) fn types(&mut self, default: u32) -> Result<usize> {
        Ok(self.index("type_vocab_size", default)? as usize)
    }

    /// Refuses any value but the one that is computed.
    pub(super) fn only_bool(&self, key: &str, value: bool) -> Result<()> {
        if self.config.bool(key)?.is_some_and(|v| v != value) {
            return Err(self.config.unsupported(key, &format!("only {value}")));
        }
        Ok(())
    }

    /// Refuses any value but the one that is computed.
    pub(super) fn only_string(&self, key: &str, value: &str) -> Result<()> {
        if self.config.string(key)?.is_some_and(|v| v != value) {
            return Err(self.config.unsupported(key, &format!("only \"{value}\"")));
        }
        Ok(())
    }

    /// Refuses heads of another size than their share of the width.
    pub(super) fn check_head_dim(&self, head_dim: usize) -> Result<()> {
        if self.config.size("head_dim")?.is_some_and(|d| d != head_dim) {
            return Err(self
                .config
                .unsupported("head_dim", &format!("only {head_dim}, the heads' share of the width")));
        }
        Ok(())
    }

    /// Refuses heads whose components make no pairs.
    pub(super) fn even_heads(&self, key: &str, head_dim: usize) -> Result<()> {
        if head_dim.is_multiple_of(2) {
            return Ok(());
        }
        Err(self.config.unsupported(key, "heads of an even size"))
    }

    /// An id: a whole number from 0.
    pub(super) fn index(&mut self, key: &str, default: u32) -> Result<u32> {
        let found = self.config.index(key)?;
        Ok(found.unwrap_or_else(|| self.assumed(key, default)))
    }

    /// Limits a text to the positions that there are; none is an error of `key`.
    pub(super) fn check_positions(&self, key: &str, desc: ModelDesc) -> Result<ModelDesc> {
        let max_seq_length = desc.longest_sequence();
        if max_seq_length == 0 {
            let rows = desc.max_position_embeddings;
            let needed =
                format!("fewer than max_position_embeddings {rows} by 2 at least, or more of these,");
            return Err(self.config.wrong(key, &needed));
        }
        Ok(ModelDesc { max_seq_length, ..desc })
    }

    /// The number of heads, which divides the width (rule 40).
    pub(super) fn heads(&mut self, key: &str, default: usize, width: (&str, usize)) -> Result<usize> {
        let heads = self.size(key, default)?;
        if width.1.is_multiple_of(heads) {
            return Ok(heads);
        }
        Err(self.config.wrong(key, &format!("a divisor of {} {}", width.0, width.1)))
    }

    pub(super) fn eps(&mut self, key: &str, default: f32) -> Result<f32> {
        match self.config.number(key)? {
            // below the least f32 it would vanish silently
            Some(eps) if eps > 0.0 && eps < 1.0 && eps as f32 > 0.0 => Ok(eps as f32),
            Some(_) => Err(self.config.wrong(key, "a number between 0 and 1")),
            None => {
                self.assumed(key, format!("{default:e}"));
                Ok(default)
            }
        }
    }

    /// Rule 39. `gelu` is the exact one; its tanh approximations are other names, not other spellings.
    pub(super) fn activation(&mut self, key: &str, default: &str) -> Result<Activation> {
        let name = match self.config.string(key)? {
            Some(name) => name,
            None => {
                self.assumed(key, default);
                default
            }
        };
        Ok(match name {
            "gelu" | "gelu_python" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_python_tanh" | "gelu_accurate" => {
                Activation::GeluTanh
            }
            "quick_gelu" => Activation::QuickGelu,
            "relu" => Activation::Relu,
            "silu" | "swish" => Activation::Silu,
            "tanh" => Activation::Tanh,
            "sigmoid" => Activation::Sigmoid,
            _ => {
                return Err(self.config.unsupported(
                    key,
                    "one of gelu, gelu_python, gelu_new, gelu_pytorch_tanh, gelu_fast, gelu_python_tanh, \
                     gelu_accurate, quick_gelu, relu, silu, swish, tanh, sigmoid",
                ));
            }
        })
    }

    pub(super) fn assumed<T: std::fmt::Display>(&mut self, key: &str, value: T) -> T {
        let path = self.config.path().display();
        self.warnings.push(format!("{path}: no '{key}': {value} assumed, as transformers does"));
        value
    }
}

/// The names of a layer's parts, behind the layer's own.
pub(super) struct LayerNames {
    pub(super) query: &'static str,
    pub(super) key: &'static str,
    pub(super) value: &'static str,
    pub(super) attention_output: &'static str,
    pub(super) attention_norm: &'static str,
    pub(super) intermediate: &'static str,
    pub(super) output: &'static str,
    pub(super) output_norm: &'static str,
}

/// The checkpoint's names as the encoder knows them, and which of them were used.
pub(super) struct Names<'c> {
    checkpoint: &'c Checkpoint,
    prefix: &'static str,
    used: HashSet<String>,
}

/// The products of a layer's queries, keys and values.
pub(super) struct Qkv {
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
}

impl<'c> Names<'c> {
    /// `prefixes` are the family's `base_model_prefix` and a dot, which task models put before the encoder's
    /// names. Whether this checkpoint does is decided by the names, not by trial (rule 31).
    pub(super) fn new(checkpoint: &'c Checkpoint, prefixes: &[&'static str]) -> Self {
        let bare =
            checkpoint.names().any(|n| n.starts_with("embeddings.") && n.ends_with("_embeddings.weight"));
        let prefix = prefixes.iter().find(|prefix| checkpoint.names().any(|n| n.starts_with(**prefix)));
        let prefix = prefix.copied().filter(|_| !bare).unwrap_or("");
        Self { checkpoint, prefix, used: HashSet::new() }
    }

    pub(super) fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let full = format!("{}{name}", self.prefix);
        let tensor = self.checkpoint.tensor(&full, shape)?;
        self.used.insert(full);
        Ok(tensor)
    }

    pub(super) fn linear(&mut self, name: &str, out: usize, k: usize) -> Result<Linear> {
        Ok(Linear {
            weight: self.tensor(&format!("{name}.weight"), &[out, k])?, // rule 37
            bias: Some(self.tensor(&format!("{name}.bias"), &[out])?),
        })
    }

    /// Rule 33: checkpoints of TensorFlow's days call weight and bias gamma and beta.
    pub(super) fn norm(&mut self, name: &str, h: usize) -> Result<Norm> {
        let mut either = |new: &str, old: &str| {
            let (new, old) = (format!("{name}.{new}"), format!("{name}.{old}"));
            let legacy = !self.checkpoint.contains(&format!("{}{new}", self.prefix))
                && self.checkpoint.contains(&format!("{}{old}", self.prefix));
            self.tensor(if legacy { &old } else { &new }, &[h])
        };
        Ok(Norm { weight: either("weight", "gamma")?, bias: Some(either("bias", "beta")?) })
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.checkpoint.contains(&format!("{}{name}", self.prefix))
    }

    /// Queries, keys and values from one tensor, in this order.
    pub(super) fn qkv(&mut self, name: &str, h: usize, bias: bool) -> Result<Qkv> {
        let weight = self.tensor(&format!("{name}.weight"), &[3 * h, h])?;
        let bias = if bias { Some(self.tensor(&format!("{name}.bias"), &[3 * h])?) } else { None };
        let part = |which: usize| {
            let rows = which * h..(which + 1) * h;
            Linear { weight: weight.rows(rows.clone()), bias: bias.as_ref().map(|b| b.rows(rows)) }
        };
        Ok(Qkv { query: part(0), key: part(1), value: part(2) })
    }

    /// A norm without bias.
    pub(super) fn bare_norm(&mut self, name: &str, h: usize) -> Result<Norm> {
        Ok(Norm { weight: self.tensor(&format!("{name}.weight"), &[h])?, bias: None })
    }

    /// A linear layer without bias.
    pub(super) fn bare_linear(&mut self, name: &str, out: usize, k: usize) -> Result<Linear> {
        Ok(Linear { weight: self.tensor(&format!("{name}.weight"), &[out, k])?, bias: None })
    }

    /// The three tables and their norm; nothing else is there yet.
    pub(super) fn embeddings(&mut self, desc: &ModelDesc) -> Result<Weights> {
        self.embeddings_with_norm(desc, "embeddings.LayerNorm")
    }

    /// As [`embeddings`](Self::embeddings), with a name of its own for the norm.
    pub(super) fn embeddings_with_norm(&mut self, desc: &ModelDesc, norm: &str) -> Result<Weights> {
        let e = desc.embedding_width();
        let mut table =
            |name: &str, rows: usize| self.tensor(&format!("embeddings.{name}.weight"), &[rows, e]);
        let word_embeddings = table("word_embeddings", desc.vocab_size)?;
        let position_embeddings = match desc.positions {
            Positions::FromZero | Positions::AfterPadding { .. } => {
                Some(table("position_embeddings", desc.max_position_embeddings)?)
            }
            Positions::None | Positions::Rotary { .. } => None,
        };
        let types = Some(desc.type_vocab_size).filter(|&rows| rows > 0);
        let token_type_embeddings = types.map(|rows| table("token_type_embeddings", rows)).transpose()?;
        Ok(Weights {
            word_embeddings,
            position_embeddings,
            token_type_embeddings,
            embeddings_norm: self.norm(norm, e)?,
            embeddings_projection: None,
            relative_attention_bias: None,
            layers: Vec::new(),
            final_norm: None,
            modules: Vec::new(),
        })
    }

    /// The layers `at.0`, `at.1`, … of a model whose layers have their own weights.
    pub(super) fn layers(&mut self, at: &str, names: &LayerNames, desc: &ModelDesc) -> Result<Vec<Layer>> {
        let mut layers = Vec::new(); // no capacity: their number is not yet borne out by tensors
        for l in 0..desc.num_hidden_layers {
            layers.push(self.layer(&format!("{at}.{l}"), names, desc.hidden_size, desc.intermediate_size)?);
        }
        Ok(layers)
    }

    /// The layer `at` of width `h` and inner width `i`.
    pub(super) fn layer(&mut self, at: &str, names: &LayerNames, h: usize, i: usize) -> Result<Layer> {
        let at = |part: &str| format!("{at}.{part}");
        Ok(Layer {
            query: self.linear(&at(names.query), h, h)?,
            key: self.linear(&at(names.key), h, h)?,
            value: self.linear(&at(names.value), h, h)?,
            query_norm: None,
            key_norm: None,
            attention_output: self.linear(&at(names.attention_output), h, h)?,
            attention_norm: Some(self.norm(&at(names.attention_norm), h)?),
            intermediate: self.linear(&at(names.intermediate), i, h)?,
            output: self.linear(&at(names.output), h, i)?,
            output_norm: self.norm(&at(names.output_norm), h)?,
        })
    }

    /// A sentence about tensors that nothing uses, as transformers' "unexpected keys".
    pub(super) fn leftovers(&self) -> Option<String> {
        let left: Vec<&str> = self
            .checkpoint
            .names()
            .filter(|n| !self.used.contains(*n))
            .filter(|n| !n.contains(ROTARY_BUFFERS))
            .filter(|n| !IGNORED.iter().any(|i| n.strip_prefix(self.prefix).unwrap_or(n).starts_with(i)))
            .collect();
        let (first, path) = (left.first()?, self.checkpoint.path().display());
        let mut list = format!("'{first}'");
        left.iter().take(NAMED_LEFTOVERS).skip(1).for_each(|n| list.push_str(&format!(", '{n}'")));
        if left.len() > NAMED_LEFTOVERS {
            list.push_str(&format!(" and {} more", left.len() - NAMED_LEFTOVERS));
        }
        Some(format!("{path}: tensors that the model does not use: {list}"))
    }
}
