//! ModernBERT: layernorms in front, rotary positions, a gated feed-forward, no biases, and layers whose attention
//! reaches near tokens only.

use super::encoder::{Names, Qkv, Settings};
use super::json::Object;
use super::rotary::base;
use super::{AttentionSpan, Family, FeedForward, Layer, ModelDesc, Norms, Positions, Weights};
use crate::error::Result;

pub(super) fn describe(settings: &mut Settings<'_>) -> Result<ModelDesc> {
    for key in ["norm_bias", "attention_bias", "mlp_bias"] {
        if settings.config.bool(key)? == Some(true) {
            return Err(settings.config.unsupported(key, "no biases in the encoder"));
        }
    }
    let vocab_size = settings.size("vocab_size", 50368)?;
    let hidden_size = settings.size("hidden_size", 768)?;
    let num_hidden_layers = settings.size("num_hidden_layers", 22)?;
    let num_attention_heads = settings.heads("num_attention_heads", 12, ("hidden_size", hidden_size))?;
    settings.even_heads("num_attention_heads", hidden_size / num_attention_heads)?;
    let max_position_embeddings = settings.longest("max_position_embeddings", 8192)?;
    let (global_base, local_base) = rotary_bases(settings.config)?;
    Ok(ModelDesc {
        family: Family::ModernBert,
        vocab_size,
        hidden_size,
        num_hidden_layers,
        num_attention_heads,
        intermediate_size: settings.size("intermediate_size", 1152)?,
        feed_forward: FeedForward::Gated,
        norms: Norms::Pre,
        max_position_embeddings,
        positions: Positions::Rotary { global_base, local_base, divisor: 1.0 },
        attention_span: AttentionSpan::Mixed {
            reach: settings.size("local_attention", 128)? / 2,
            local: local_layers(settings.config, num_hidden_layers)?,
        },
        type_vocab_size: 0,
        layer_norm_eps: settings.eps("norm_eps", 1e-5)?,
        hidden_act: settings.activation("hidden_activation", "gelu")?,
        max_seq_length: max_position_embeddings,
        ..ModelDesc::default()
    })
}

/// Which layers are local: those that `layer_types` lists as such, else all but every nth.
fn local_layers(config: &Object, layers: usize) -> Result<Vec<bool>> {
    let every = config.size("global_attn_every_n_layers")?.unwrap_or(3);
    if layers > MOST_LAYERS {
        // their number is not yet borne out by tensors
        return Err(config.unsupported("num_hidden_layers", &format!("at most {MOST_LAYERS}")));
    }
    let Some(types) = config.get("layer_types") else {
        return Ok((0..layers).map(|l| !l.is_multiple_of(every)).collect());
    };
    let needed = "a list of \"full_attention\" and \"sliding_attention\", one for each layer,";
    let local = types.as_array().and_then(|types| {
        let local = types.iter().map(|t| match t.as_str() {
            Some("full_attention") => Some(false),
            Some("sliding_attention") => Some(true),
            _ => None,
        });
        local.collect::<Option<Vec<bool>>>()
    });
    local.filter(|l| l.len() == layers).ok_or_else(|| config.wrong("layer_types", needed))
}

/// Far above any model's.
const MOST_LAYERS: usize = 1024;

/// The bases of the global and of the local layers: those of `rope_parameters`, else the two keys of old.
fn rotary_bases(config: &Object) -> Result<(f32, f32)> {
    const KEYS: [&str; 2] = ["full_attention", "sliding_attention"];
    if config.get("rope_scaling").is_some() {
        return Err(config.unsupported("rope_scaling", "only the default rotary positions"));
    }
    let parameters = config.object("rope_parameters")?;
    if let Some(parameters) = &parameters
        && let Some((name, _)) = parameters.iter().find(|(name, _)| !KEYS.contains(name))
    {
        return Err(parameters.unsupported(name, "only full_attention and sliding_attention"));
    }
    let bases = |key: &str, old: &str, default: f32| {
        let old = base(config, old)?.unwrap_or(default);
        match parameters.as_ref().map(|p| p.object(key)).transpose()?.flatten() {
            None => Ok(old),
            Some(layers) => {
                if let Some((name, _)) = layers.iter().find(|(n, _)| !["rope_type", "rope_theta"].contains(n))
                {
                    return Err(layers.unsupported(name, "only rope_type and rope_theta"));
                }
                if layers.string("rope_type")?.is_some_and(|t| t != "default") {
                    return Err(layers.unsupported("rope_type", "only \"default\""));
                }
                Ok(base(&layers, "rope_theta")?.unwrap_or(old))
            }
        }
    };
    Ok((bases(KEYS[0], "global_rope_theta", 160_000.0)?, bases(KEYS[1], "local_rope_theta", 10_000.0)?))
}

pub(super) fn weights(names: &mut Names<'_>, desc: &ModelDesc) -> Result<Weights> {
    let (h, i) = (desc.hidden_size, desc.intermediate_size);
    let word_embeddings = names.tensor("embeddings.tok_embeddings.weight", &[desc.vocab_size, h])?;
    let embeddings_norm = names.bare_norm("embeddings.norm", h)?;
    let mut layers = Vec::new(); // no capacity: their number is not yet borne out by tensors
    for l in 0..desc.num_hidden_layers {
        let at = |part: &str| format!("layers.{l}.{part}");
        // the embeddings' norm stands in front of the first layer's attention
        let attention_norm = if l == 0 { None } else { Some(names.bare_norm(&at("attn_norm"), h)?) };
        let Qkv { query, key, value } = names.qkv(&at("attn.Wqkv"), h, false)?;
        layers.push(Layer {
            query,
            key,
            value,
            query_norm: None,
            key_norm: None,
            attention_output: names.bare_linear(&at("attn.Wo"), h, h)?,
            attention_norm,
            intermediate: names.bare_linear(&at("mlp.Wi"), 2 * i, h)?,
            output: names.bare_linear(&at("mlp.Wo"), h, i)?,
            output_norm: names.bare_norm(&at("mlp_norm"), h)?,
        });
    }
    Ok(Weights {
        word_embeddings,
        position_embeddings: None,
        token_type_embeddings: None,
        embeddings_norm,
        embeddings_projection: None,
        relative_attention_bias: None,
        layers,
        final_norm: Some(names.bare_norm("final_norm", h)?),
        modules: Vec::new(),
    })
}
