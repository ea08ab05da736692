//! The encoder of gte-en-v1.5, gte-multilingual and arctic-embed-v2: BERT's layers with rotary positions and a gated
//! feed-forward. `model_type` is `new` (its own code) or `gte` (transformers' class, the same computation).

use super::encoder::{Names, Qkv, Settings};
use super::{Family, FeedForward, Layer, Linear, ModelDesc, Weights, rotary};
use crate::error::Result;

pub(super) fn describe(settings: &mut Settings<'_>) -> Result<ModelDesc> {
    settings.only_string("layer_norm_type", "layer_norm")?;
    settings.only_string("position_embedding_type", "rope")?;
    settings.only_bool("logn_attention_scale", false)?;
    // else queries, keys and values are tensors of their own
    settings.only_bool("pack_qkv", true)?;
    let own_code = settings.config.string("model_type")? == Some("new");
    let (vocab, longest, base) = if own_code { (30528, 2048, 10_000.0) } else { (250_048, 8192, 160_000.0) };
    let vocab_size = settings.size("vocab_size", vocab)?;
    let hidden_size = settings.size("hidden_size", 768)?;
    let num_hidden_layers = settings.size("num_hidden_layers", 12)?;
    let num_attention_heads = settings.heads("num_attention_heads", 12, ("hidden_size", hidden_size))?;
    let head_dim = hidden_size / num_attention_heads;
    settings.even_heads("num_attention_heads", head_dim)?;
    settings.check_head_dim(head_dim)?;
    let max_position_embeddings = settings.longest("max_position_embeddings", longest)?;
    Ok(ModelDesc {
        family: Family::Gte,
        vocab_size,
        hidden_size,
        num_hidden_layers,
        num_attention_heads,
        intermediate_size: settings.size("intermediate_size", 3072)?,
        feed_forward: FeedForward::Gated,
        max_position_embeddings,
        positions: rotary::positions(settings, base, head_dim)?,
        type_vocab_size: settings.types(1)?,
        layer_norm_eps: settings.eps("layer_norm_eps", 1e-12)?,
        hidden_act: settings.activation("hidden_act", "gelu")?,
        max_seq_length: max_position_embeddings,
        ..ModelDesc::default()
    })
}

pub(super) fn weights(names: &mut Names<'_>, desc: &ModelDesc) -> Result<Weights> {
    let (h, i) = (desc.hidden_size, desc.intermediate_size);
    let embeddings = names.embeddings(desc)?;
    let mut layers = Vec::new(); // no capacity: their number is not yet borne out by tensors
    for l in 0..desc.num_hidden_layers {
        let at = |part: &str| format!("encoder.layer.{l}.{part}");
        let Qkv { query, key, value } = names.qkv(&at("attention.qkv_proj"), h, true)?;
        // what is gated comes first here
        let up_gate = names.tensor(&at("mlp.up_gate_proj.weight"), &[2 * i, h])?;
        let weight = up_gate.rows(i..2 * i).above(&up_gate.rows(0..i));
        layers.push(Layer {
            query,
            key,
            value,
            query_norm: None,
            key_norm: None,
            attention_output: names.linear(&at("attention.o_proj"), h, h)?,
            attention_norm: Some(names.norm(&at("attn_ln"), h)?),
            intermediate: Linear { weight, bias: None },
            output: names.linear(&at("mlp.down_proj"), h, i)?,
            output_norm: names.norm(&at("mlp_ln"), h)?,
        });
    }
    Ok(Weights { layers, ..embeddings })
}
