//! BERT: `config.json` to [`ModelDesc`](super::ModelDesc), tensor names to [`Weights`](super::Weights).

use super::encoder::{LayerNames, Names, Settings};
use super::{ModelDesc, Weights};
use crate::error::Result;

/// Rule 38.
pub(super) const LAYER: LayerNames = LayerNames {
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    intermediate: "intermediate.dense",
    output: "output.dense",
    output_norm: "output.LayerNorm",
};

/// The keys of a BERT, with the defaults of `BertConfig`; without the family and its own keys.
pub(super) fn describe(settings: &mut Settings<'_>) -> Result<ModelDesc> {
    describe_with(
        settings,
        &Defaults { vocab_size: 30522, hidden_size: 768, heads: 12, inner: 3072, act: "gelu" },
    )
}

/// Where the families that have BERT's keys differ in what they assume.
pub(super) struct Defaults {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) heads: usize,
    pub(super) inner: usize,
    pub(super) act: &'static str,
}

/// Reads `config.json`: the encoder alone, with the mean pooling of a plain transformers directory (rule 3).
pub(super) fn describe_with(settings: &mut Settings<'_>, defaults: &Defaults) -> Result<ModelDesc> {
    let type_vocab_size = settings.size("type_vocab_size", 2)?;
    Ok(ModelDesc { type_vocab_size, ..describe_without_types(settings, defaults)? })
}

/// As [`describe_with`], for a family that knows no token types.
pub(super) fn describe_without_types(settings: &mut Settings<'_>, defaults: &Defaults) -> Result<ModelDesc> {
    let vocab_size = settings.size("vocab_size", defaults.vocab_size)?;
    let hidden_size = settings.size("hidden_size", defaults.hidden_size)?;
    let num_hidden_layers = settings.size("num_hidden_layers", 12)?;
    let num_attention_heads =
        settings.heads("num_attention_heads", defaults.heads, ("hidden_size", hidden_size))?;
    let intermediate_size = settings.size("intermediate_size", defaults.inner)?;
    let max_position_embeddings = settings.size("max_position_embeddings", 512)?;
    Ok(ModelDesc {
        vocab_size,
        hidden_size,
        num_hidden_layers,
        num_attention_heads,
        intermediate_size,
        max_position_embeddings,
        type_vocab_size: 0,
        layer_norm_eps: settings.eps("layer_norm_eps", 1e-12)?,
        hidden_act: settings.activation("hidden_act", defaults.act)?,
        max_seq_length: max_position_embeddings,
        ..ModelDesc::default()
    })
}

/// Finds every tensor of the encoder and checks its shape.
pub(super) fn weights(names: &mut Names<'_>, desc: &ModelDesc) -> Result<Weights> {
    let embeddings = names.embeddings(desc)?;
    let layers = names.layers("encoder.layer", &LAYER, desc)?;
    Ok(Weights { layers, ..embeddings })
}
