//! ALBERT: BERT with narrow embeddings, and layers that share their weights in groups.

use super::encoder::{LayerNames, Names, Settings};
use super::{Family, LayerGroups, LayerWeights, ModelDesc, Weights, bert};
use crate::error::Result;

/// Rule 38.
const LAYER: LayerNames = LayerNames {
    query: "attention.query",
    key: "attention.key",
    value: "attention.value",
    attention_output: "attention.dense",
    attention_norm: "attention.LayerNorm",
    intermediate: "ffn",
    output: "ffn_output",
    output_norm: "full_layer_layer_norm",
};

/// Far above any model's.
const MOST_LAYERS: usize = 1024;

pub(super) fn describe(settings: &mut Settings<'_>) -> Result<ModelDesc> {
    let defaults =
        bert::Defaults { vocab_size: 30000, hidden_size: 4096, heads: 64, inner: 16384, act: "gelu_new" };
    let groups = settings.size("num_hidden_groups", 1)?;
    let inner = settings.size("inner_group_num", 1)?;
    let embedding_size = settings.size("embedding_size", 128)?;
    let desc = bert::describe_with(settings, &defaults)?;
    if groups > desc.num_hidden_layers {
        let needed = format!("at most num_hidden_layers {}", desc.num_hidden_layers);
        return Err(settings.config.unsupported("num_hidden_groups", &needed));
    }
    // one layer's tensors would do for any number
    if desc.num_hidden_layers.saturating_mul(inner) > MOST_LAYERS {
        let needed = format!("at most {MOST_LAYERS} layers in all");
        return Err(settings.config.unsupported("num_hidden_layers", &needed));
    }
    Ok(ModelDesc {
        family: Family::Albert,
        embedding_size: Some(embedding_size), // projected even from one width to the same
        layer_weights: LayerWeights::Shared(LayerGroups { groups, inner }),
        ..desc
    })
}

pub(super) fn weights(names: &mut Names<'_>, desc: &ModelDesc) -> Result<Weights> {
    let embeddings = names.embeddings(desc)?;
    let mapping = "encoder.embedding_hidden_mapping_in";
    let projection = names.linear(mapping, desc.hidden_size, desc.embedding_width())?;
    let mut layers = Vec::new(); // no capacity: their number is not yet borne out by tensors
    if let LayerWeights::Shared(LayerGroups { groups, inner }) = desc.layer_weights {
        for (group, k) in (0..groups).flat_map(|group| (0..inner).map(move |k| (group, k))) {
            let at = format!("encoder.albert_layer_groups.{group}.albert_layers.{k}");
            layers.push(names.layer(&at, &LAYER, desc.hidden_size, desc.intermediate_size)?);
        }
    }
    Ok(Weights { embeddings_projection: Some(projection), layers, ..embeddings })
}
