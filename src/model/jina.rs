//! The encoders of jina-embeddings-v2 (their own code, under BERT's `model_type`) and of jina-embeddings-v3 in
//! transformers' form.

use super::encoder::{LayerNames, Names, Qkv, Settings};
use super::{
    Activation, AttentionBias, Family, FeedForward, Layer, Linear, ModelDesc, Norms, Positions, Weights,
    bert, rotary,
};
use crate::error::Result;

/// v2: BERT without positions, with ALiBi and a gated feed-forward whose function `feed_forward_type` names, whatever
/// `hidden_act` says.
///
/// Those of code and of some languages have norms over queries and keys, and the feed-forward's halves the other way
/// round. No key says so; their tensors have other names, and [`weights_v2`] goes by these.
pub(super) fn describe_v2(settings: &mut Settings<'_>) -> Result<ModelDesc> {
    let config = settings.config;
    let hidden_act = match config.string("feed_forward_type")? {
        Some("geglu") => Activation::Gelu,
        Some("reglu") => Activation::Relu,
        _ => {
            return Err(config.unsupported(
                "feed_forward_type",
                "one of geglu, reglu, where position_embedding_type is \"alibi\"",
            ));
        }
    };
    let defaults =
        bert::Defaults { vocab_size: 30522, hidden_size: 768, heads: 12, inner: 3072, act: "gelu" };
    settings.longest("max_position_embeddings", 512)?;
    let desc = bert::describe_with(settings, &defaults)?;
    Ok(ModelDesc {
        family: Family::JinaBert,
        positions: Positions::None,
        attention_bias: AttentionBias::Alibi,
        feed_forward: FeedForward::Gated,
        hidden_act,
        ..desc
    })
}

/// The names of v2's layers; of the feed-forward's first product the weight alone.
const V2: LayerNames = LayerNames {
    intermediate: "mlp.gated_layers",
    output: "mlp.wo",
    output_norm: "mlp.layernorm",
    ..bert::LAYER
};
const V2_QUERY_KEY: LayerNames = LayerNames {
    attention_norm: "layer_norm_1",
    intermediate: "mlp.up_gated_layer",
    output: "mlp.down_layer",
    output_norm: "layer_norm_2",
    ..bert::LAYER
};

/// Whether queries and keys have norms, which the names of the tensors say.
pub(super) fn has_query_key_norms(names: &Names<'_>) -> bool {
    names.contains("encoder.layer.0.attention.self.layer_norm_q.weight")
}

pub(super) fn weights_v2(names: &mut Names<'_>, desc: &ModelDesc) -> Result<Weights> {
    let (h, i) = (desc.hidden_size, desc.intermediate_size);
    let query_key = match desc.norms {
        Norms::Post | Norms::Pre => false,
        Norms::PostQueryKey => true,
    };
    let embeddings = names.embeddings(desc)?;
    let mut layers = Vec::new(); // no capacity: their number is not yet borne out by tensors
    for l in 0..desc.num_hidden_layers {
        let part = if query_key { &V2_QUERY_KEY } else { &V2 };
        let at = |part: &str| format!("encoder.layer.{l}.{part}");
        let gated = names.tensor(&at(&format!("{}.weight", part.intermediate)), &[2 * i, h])?;
        // what is gated comes first here
        let weight = if query_key { gated.rows(i..2 * i).above(&gated.rows(0..i)) } else { gated };
        let mut norm = |name: &str| query_key.then(|| names.norm(&at(name), h)).transpose();
        layers.push(Layer {
            query_norm: norm("attention.self.layer_norm_q")?,
            key_norm: norm("attention.self.layer_norm_k")?,
            query: names.linear(&at(part.query), h, h)?,
            key: names.linear(&at(part.key), h, h)?,
            value: names.linear(&at(part.value), h, h)?,
            attention_output: names.linear(&at(part.attention_output), h, h)?,
            attention_norm: Some(names.norm(&at(part.attention_norm), h)?),
            intermediate: Linear { weight, bias: None },
            output: names.linear(&at(part.output), h, i)?,
            output_norm: names.norm(&at(part.output_norm), h)?,
        });
    }
    Ok(Weights { layers, ..embeddings })
}

/// v3 in transformers' form; the adapters for tasks are files of their own, which are refused.
pub(super) fn describe_v3(settings: &mut Settings<'_>) -> Result<ModelDesc> {
    let vocab_size = settings.size("vocab_size", 250_002)?;
    let hidden_size = settings.size("hidden_size", 1024)?;
    let num_hidden_layers = settings.size("num_hidden_layers", 24)?;
    let num_attention_heads = settings.heads("num_attention_heads", 16, ("hidden_size", hidden_size))?;
    let head_dim = hidden_size / num_attention_heads;
    settings.even_heads("num_attention_heads", head_dim)?;
    settings.check_head_dim(head_dim)?;
    let max_position_embeddings = settings.longest("max_position_embeddings", 8194)?;
    Ok(ModelDesc {
        family: Family::JinaV3,
        vocab_size,
        hidden_size,
        num_hidden_layers,
        num_attention_heads,
        intermediate_size: settings.size("intermediate_size", 4096)?,
        max_position_embeddings,
        positions: rotary::positions(settings, 20_000.0, head_dim)?,
        type_vocab_size: settings.size("type_vocab_size", 1)?,
        layer_norm_eps: settings.eps("layer_norm_eps", 1e-5)?,
        hidden_act: settings.activation("hidden_act", "gelu")?,
        max_seq_length: max_position_embeddings,
        ..ModelDesc::default()
    })
}

pub(super) fn weights_v3(names: &mut Names<'_>, desc: &ModelDesc) -> Result<Weights> {
    let (h, i) = (desc.hidden_size, desc.intermediate_size);
    let embeddings = names.embeddings_with_norm(desc, "emb_ln")?;
    let mut layers = Vec::new(); // no capacity: their number is not yet borne out by tensors
    for l in 0..desc.num_hidden_layers {
        let at = |part: &str| format!("encoder.layers.{l}.{part}");
        let Qkv { query, key, value } = names.qkv(&at("mixer.Wqkv"), h, true)?;
        layers.push(Layer {
            query,
            key,
            value,
            query_norm: None,
            key_norm: None,
            attention_output: names.linear(&at("mixer.out_proj"), h, h)?,
            attention_norm: Some(names.norm(&at("norm1"), h)?),
            intermediate: names.linear(&at("mlp.fc1"), i, h)?,
            output: names.linear(&at("mlp.fc2"), h, i)?,
            output_norm: names.norm(&at("norm2"), h)?,
        });
    }
    Ok(Weights { layers, ..embeddings })
}
