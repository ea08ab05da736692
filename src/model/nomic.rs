//! NomicBERT: BERT's layers with rotary positions and a gated feed-forward, without biases. Its keys are those of
//! transformers' class, or those of the model's own code, which has more choices than are computed here.

use super::encoder::{Names, Qkv, Settings};
use super::{Activation, Family, FeedForward, Layer, Linear, ModelDesc, Positions, Weights, rotary};
use crate::error::Result;

/// Keys of the model's own code: the one value that is computed, and whether it is also the value of an absent key.
const ONLY: [(&str, bool, bool); 12] = [
    ("causal", false, true),
    ("mlp_fc1_bias", false, false),
    ("mlp_fc2_bias", false, false),
    ("norm_mlp", false, true),
    ("parallel_block", false, true),
    ("prenorm", false, true),
    ("qkv_proj_bias", false, false),
    ("rotary_emb_interleaved", false, true),
    ("rotary_head_dim", false, true),
    ("scale_attn_by_inverse_layer_idx", false, true),
    ("scale_attn_weights", true, true),
    ("use_rms_norm", false, true),
];

/// Keys of the model's own code that ask for something if they are there at all.
const NONE: [&str; 6] = [
    "rotary_emb_scale_base",
    "rotary_scaling_factor",
    "moe_every_n_layers",
    "moe_top_k",
    "num_experts",
    "num_heads_kv",
];

pub(super) fn describe(settings: &mut Settings<'_>) -> Result<ModelDesc> {
    let config = settings.config;
    // the file is that of the model's own code, which then has the defaults of that
    let own = config.get("n_embd").is_some() && config.get("hidden_size").is_none();
    refuse_choices(settings, own)?;
    let vocab_size = settings.size("vocab_size", if own { 50257 } else { 30528 })?;
    let hidden_size = either(settings, "hidden_size", "n_embd", own, 768)?;
    let num_hidden_layers = either(settings, "num_hidden_layers", "n_layer", own, 12)?;
    let heads = either(settings, "num_attention_heads", "n_head", own, 12)?;
    let key = if own { "n_head" } else { "num_attention_heads" };
    let width = (if own { "n_embd" } else { "hidden_size" }, hidden_size);
    let num_attention_heads = settings.heads(key, heads, width)?;
    let head_dim = hidden_size / num_attention_heads;
    settings.even_heads(key, head_dim)?;
    settings.check_head_dim(head_dim)?;
    let default = if own { 4 * hidden_size } else { 3072 };
    let intermediate_size = either(settings, "intermediate_size", "n_inner", own, default)?;
    // two limits and no choice of what is computed: they need not agree
    let (key, default) = match config.get("max_position_embeddings") {
        None if own || config.get("n_positions").is_some() => ("n_positions", 1024),
        _ => ("max_position_embeddings", 2048),
    };
    let max_position_embeddings = settings.longest(key, default)?;
    Ok(ModelDesc {
        family: Family::NomicBert,
        vocab_size,
        hidden_size,
        num_hidden_layers,
        num_attention_heads,
        intermediate_size,
        feed_forward: FeedForward::Gated,
        max_position_embeddings,
        positions: positions(settings, own, head_dim)?,
        type_vocab_size: settings.types(2)?,
        layer_norm_eps: eps(settings, own)?,
        hidden_act: activation(settings, own)?,
        max_seq_length: max_position_embeddings,
        ..ModelDesc::default()
    })
}

/// Refuses what the model's own code can and this one cannot.
fn refuse_choices(settings: &Settings<'_>, own: bool) -> Result<()> {
    for (key, only, default) in ONLY {
        settings.only_bool(key, only)?;
        if own && !default && settings.config.bool(key)?.is_none() {
            return Err(settings
                .config
                .unsupported(key, &format!("only {only}, and its default is another")));
        }
    }
    for key in NONE {
        // a mixture of no experts is none
        if settings.config.get(key).is_some_and(|v| v.as_u64() != Some(0)) {
            return Err(settings.config.unsupported(key, "only null or 0"));
        }
    }
    let key = "rotary_emb_fraction";
    match settings.config.number(key)? {
        Some(1.0) => Ok(()),
        None if !own => Ok(()),
        _ => Err(settings.config.unsupported(key, "only 1.0: heads rotated whole")),
    }
}

/// A size with two keys, which agree if both are there.
fn either(settings: &mut Settings<'_>, new: &str, old: &str, own: bool, default: usize) -> Result<usize> {
    match (settings.config.size(new)?, settings.config.size(old)?) {
        (Some(new_value), Some(old_value)) if new_value != old_value => {
            Err(settings.config.wrong(old, &format!("{new_value}, as '{new}' says,")))
        }
        (Some(value), _) | (None, Some(value)) => Ok(value),
        (None, None) => Ok(settings.assumed(if own { old } else { new }, default)),
    }
}

/// From `rope_parameters` or `rotary_emb_base`, which agree if both are there.
fn positions(settings: &mut Settings<'_>, own: bool, head_dim: usize) -> Result<Positions> {
    let key = "rotary_emb_base";
    let config = settings.config;
    let written = ["rope_parameters", "rope_scaling", "rope_theta"].iter().any(|k| config.get(k).is_some());
    let base = match rotary::base(config, key)? {
        Some(base) => base,
        None if written => return rotary::positions(settings, 1000.0, head_dim),
        None if own => settings.assumed(key, 10_000.0),
        None => settings.assumed("rope_theta", 1000.0),
    };
    let positions = Positions::Rotary { global_base: base, local_base: base, divisor: 1.0 };
    if written && rotary::positions(settings, base, head_dim)? != positions {
        return Err(config.wrong(key, "what rope_parameters say, or none of the two,"));
    }
    Ok(positions)
}

fn eps(settings: &mut Settings<'_>, own: bool) -> Result<f32> {
    let (new, old) = ("layer_norm_eps", "layer_norm_epsilon");
    let config = settings.config;
    match (config.get(new).is_some(), config.get(old).is_some()) {
        (true, true) => {
            let eps = settings.eps(new, 1e-12)?;
            if settings.eps(old, 1e-12)? != eps {
                return Err(config.wrong(old, &format!("{eps:e}, as '{new}' says,")));
            }
            Ok(eps)
        }
        (true, false) => settings.eps(new, 1e-12),
        (false, true) => settings.eps(old, 1e-5),
        (false, false) if own => settings.eps(old, 1e-5),
        (false, false) => settings.eps(new, 1e-12),
    }
}

/// `hidden_act`, or `activation_function` in the words of the model's own code; they agree if both are there.
fn activation(settings: &mut Settings<'_>, own: bool) -> Result<Activation> {
    let key = "activation_function";
    let config = settings.config;
    let named = match config.string(key)? {
        Some("swiglu") => Some(Activation::Silu),
        Some("geglu") => Some(Activation::Gelu),
        None if !own => None,
        _ => return Err(config.unsupported(key, "one of swiglu, geglu")),
    };
    if config.get("hidden_act").is_none()
        && let Some(named) = named
    {
        return Ok(named);
    }
    let act = settings.activation("hidden_act", "silu")?;
    match named {
        Some(named) if named != act => Err(config.wrong(key, "the function that 'hidden_act' names, gated,")),
        _ => Ok(act),
    }
}

pub(super) fn weights(names: &mut Names<'_>, desc: &ModelDesc) -> Result<Weights> {
    let (h, i) = (desc.hidden_size, desc.intermediate_size);
    let embeddings = names.embeddings_with_norm(desc, "emb_ln")?;
    let mut layers = Vec::new(); // no capacity: their number is not yet borne out by tensors
    for l in 0..desc.num_hidden_layers {
        let at = |part: &str| format!("encoder.layers.{l}.{part}");
        let Qkv { query, key, value } = names.qkv(&at("attn.Wqkv"), h, false)?;
        let up = names.tensor(&at("mlp.fc11.weight"), &[i, h])?;
        let gate = names.tensor(&at("mlp.fc12.weight"), &[i, h])?;
        layers.push(Layer {
            query,
            key,
            value,
            query_norm: None,
            key_norm: None,
            attention_output: names.bare_linear(&at("attn.out_proj"), h, h)?,
            attention_norm: Some(names.norm(&at("norm1"), h)?),
            intermediate: Linear { weight: gate.above(&up), bias: None },
            output: names.bare_linear(&at("mlp.fc2"), h, i)?,
            output_norm: names.norm(&at("norm2"), h)?,
        });
    }
    Ok(Weights { layers, ..embeddings })
}
