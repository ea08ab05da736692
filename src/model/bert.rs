//! BERT: `config.json` to [`ModelDesc`](super::ModelDesc), tensor names to [`Weights`](super::Weights).

use super::checkpoint::Checkpoint;
use super::json::Object;
use super::{Activation, Family, Layer, Linear, ModelDesc, Norm, Pooling, Tensor, Weights};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, HashSet};

/// Tensors of heads and buffers that an encoder does without (rule 32), as they begin behind the prefix.
const IGNORED: [&str; 6] =
    ["pooler.", "cls.", "lm_head.", "classifier.", "qa_outputs.", "embeddings.position_ids"];
/// `base_model_prefix`: what task models put before the encoder's names (rule 31).
const PREFIX: &str = "bert.";
/// Unused tensors that a warning names.
const NAMED_LEFTOVERS: usize = 3;

/// Reads `config.json`: the encoder alone, with the mean pooling of a plain transformers directory (rule 3).
///
/// A key that is absent has the default of transformers' `BertConfig`, and is said in `warnings`.
pub(super) fn describe(config: &Object, warnings: &mut Vec<String>) -> Result<ModelDesc> {
    // rule 29: transformers 4 computes these, 5 silently does not
    if config.string("position_embedding_type")?.is_some_and(|t| t != "absolute") {
        return Err(config.unsupported("position_embedding_type", "only \"absolute\""));
    }
    // rule 30
    if config.bool("is_decoder")? == Some(true) {
        return Err(config.unsupported("is_decoder", "no causal attention: an encoder is needed"));
    }
    let mut size = |key: &str, default: usize| {
        Ok::<_, Error>(config.size(key)?.unwrap_or_else(|| {
            warnings.push(assumed(config, key, &default.to_string()));
            default
        }))
    };
    let vocab_size = size("vocab_size", 30522)?;
    let hidden_size = size("hidden_size", 768)?;
    let num_hidden_layers = size("num_hidden_layers", 12)?;
    let num_attention_heads = size("num_attention_heads", 12)?;
    let intermediate_size = size("intermediate_size", 3072)?;
    let max_position_embeddings = size("max_position_embeddings", 512)?;
    let type_vocab_size = size("type_vocab_size", 2)?;
    // rule 40
    if !hidden_size.is_multiple_of(num_attention_heads) {
        return Err(config.wrong("num_attention_heads", &format!("a divisor of hidden_size {hidden_size}")));
    }
    let layer_norm_eps = match config.number("layer_norm_eps")? {
        // below the least f32 it would vanish silently
        Some(eps) if eps > 0.0 && eps < 1.0 && eps as f32 > 0.0 => eps as f32,
        Some(_) => return Err(config.wrong("layer_norm_eps", "a number between 0 and 1")),
        None => {
            warnings.push(assumed(config, "layer_norm_eps", "1e-12"));
            1e-12
        }
    };
    let hidden_act = match config.string("hidden_act")? {
        Some(name) => activation(name).ok_or_else(|| config.unsupported("hidden_act", ACTIVATIONS))?,
        None => {
            warnings.push(assumed(config, "hidden_act", "gelu"));
            Activation::Gelu
        }
    };
    Ok(ModelDesc {
        family: Family::Bert,
        vocab_size,
        hidden_size,
        num_hidden_layers,
        num_attention_heads,
        intermediate_size,
        max_position_embeddings,
        type_vocab_size,
        layer_norm_eps,
        hidden_act,
        pooled_layers: 1,
        pooling: vec![Pooling::Mean],
        normalize: false,
        max_seq_length: max_position_embeddings,
        prompts: BTreeMap::new(),
        default_prompt_name: None,
        include_prompt: true,
        truncate_dim: None,
    })
}

fn assumed(config: &Object, key: &str, value: &str) -> String {
    format!("{}: no '{key}': {value} assumed, as transformers does", config.path().display())
}

const ACTIVATIONS: &str = "one of gelu, gelu_python, gelu_new, gelu_pytorch_tanh, gelu_fast, \
    gelu_python_tanh, gelu_accurate, quick_gelu, relu, silu, swish, tanh";

/// Rule 39. `gelu` is the exact one; its tanh approximations are other names, not other spellings.
fn activation(name: &str) -> Option<Activation> {
    Some(match name {
        "gelu" | "gelu_python" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_python_tanh" | "gelu_accurate" => {
            Activation::GeluTanh
        }
        "quick_gelu" => Activation::QuickGelu,
        "relu" => Activation::Relu,
        "silu" | "swish" => Activation::Silu,
        "tanh" => Activation::Tanh,
        _ => return None,
    })
}

/// Finds every tensor of the encoder (rule 38) and checks its shape. What is left over and is no known head
/// is said in `warnings`.
pub(super) fn weights(
    checkpoint: &Checkpoint,
    desc: &ModelDesc,
    warnings: &mut Vec<String>,
) -> Result<Weights> {
    let mut names = Names::new(checkpoint);
    let (h, i) = (desc.hidden_size, desc.intermediate_size);
    let word_embeddings = names.tensor("embeddings.word_embeddings.weight", &[desc.vocab_size, h])?;
    let position_embeddings =
        names.tensor("embeddings.position_embeddings.weight", &[desc.max_position_embeddings, h])?;
    let token_type_embeddings =
        names.tensor("embeddings.token_type_embeddings.weight", &[desc.type_vocab_size, h])?;
    let embeddings_norm = names.norm("embeddings.LayerNorm", h)?;
    let mut layers = Vec::new(); // no capacity: the number of layers is not yet borne out by tensors
    for l in 0..desc.num_hidden_layers {
        let at = |part: &str| format!("encoder.layer.{l}.{part}");
        layers.push(Layer {
            query: names.linear(&at("attention.self.query"), h, h)?,
            key: names.linear(&at("attention.self.key"), h, h)?,
            value: names.linear(&at("attention.self.value"), h, h)?,
            attention_output: names.linear(&at("attention.output.dense"), h, h)?,
            attention_norm: names.norm(&at("attention.output.LayerNorm"), h)?,
            intermediate: names.linear(&at("intermediate.dense"), i, h)?,
            output: names.linear(&at("output.dense"), h, i)?,
            output_norm: names.norm(&at("output.LayerNorm"), h)?,
        });
    }
    warnings.extend(names.leftovers());
    Ok(Weights { word_embeddings, position_embeddings, token_type_embeddings, embeddings_norm, layers })
}

/// The checkpoint's names as the encoder knows them, and which of them were used.
struct Names<'c> {
    checkpoint: &'c Checkpoint,
    prefix: &'static str,
    used: HashSet<String>,
}

impl<'c> Names<'c> {
    /// Decides on the prefix by the names, not by trial (rule 31).
    fn new(checkpoint: &'c Checkpoint) -> Self {
        let bare = checkpoint.contains("embeddings.word_embeddings.weight");
        let prefixed = checkpoint.names().any(|n| n.starts_with(PREFIX));
        Self { checkpoint, prefix: if prefixed && !bare { PREFIX } else { "" }, used: HashSet::new() }
    }

    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let full = format!("{}{name}", self.prefix);
        let tensor = self.checkpoint.tensor(&full, shape)?;
        self.used.insert(full);
        Ok(tensor)
    }

    fn linear(&mut self, name: &str, out: usize, k: usize) -> Result<Linear> {
        Ok(Linear {
            weight: self.tensor(&format!("{name}.weight"), &[out, k])?, // rule 37
            bias: self.tensor(&format!("{name}.bias"), &[out])?,
        })
    }

    /// Rule 33: checkpoints of TensorFlow's days call weight and bias gamma and beta.
    fn norm(&mut self, name: &str, h: usize) -> Result<Norm> {
        let mut either = |new: &str, old: &str| {
            let (new, old) = (format!("{name}.{new}"), format!("{name}.{old}"));
            let legacy = !self.checkpoint.contains(&format!("{}{new}", self.prefix))
                && self.checkpoint.contains(&format!("{}{old}", self.prefix));
            self.tensor(if legacy { &old } else { &new }, &[h])
        };
        Ok(Norm { weight: either("weight", "gamma")?, bias: either("bias", "beta")? })
    }

    /// A sentence about tensors that nothing uses, as transformers' "unexpected keys".
    fn leftovers(&self) -> Option<String> {
        let left: Vec<&str> = self
            .checkpoint
            .names()
            .filter(|n| !self.used.contains(*n))
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
