//! DistilBERT: BERT under keys and tensor names of its own, without token types.

use super::encoder::{LayerNames, Names, Settings};
use super::{Family, ModelDesc, Weights};
use crate::error::Result;

/// Rule 38.
const LAYER: LayerNames = LayerNames {
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    intermediate: "ffn.lin1",
    output: "ffn.lin2",
    output_norm: "output_layer_norm",
};

/// `sinusoidal_pos_embds` does not matter: it says how the table began, and the table is in the checkpoint.
pub(super) fn describe(settings: &mut Settings<'_>) -> Result<ModelDesc> {
    // the general names, which transformers takes for the same keys
    for (general, own) in
        [("hidden_size", "dim"), ("num_attention_heads", "n_heads"), ("num_hidden_layers", "n_layers")]
    {
        if settings.config.get(general).is_some() {
            return Err(settings.config.unsupported(general, &format!("DistilBERT's '{own}' is read")));
        }
    }
    let hidden_size = settings.size("dim", 768)?;
    let max_position_embeddings = settings.size("max_position_embeddings", 512)?;
    Ok(ModelDesc {
        family: Family::DistilBert,
        vocab_size: settings.size("vocab_size", 30522)?,
        hidden_size,
        num_hidden_layers: settings.size("n_layers", 6)?,
        num_attention_heads: settings.heads("n_heads", 12, ("dim", hidden_size))?,
        intermediate_size: settings.size("hidden_dim", 3072)?,
        max_position_embeddings,
        type_vocab_size: 0,
        layer_norm_eps: 1e-12, // written in the code, no key
        hidden_act: settings.activation("activation", "gelu")?,
        max_seq_length: max_position_embeddings,
        ..ModelDesc::default()
    })
}

pub(super) fn weights(names: &mut Names<'_>, desc: &ModelDesc) -> Result<Weights> {
    let embeddings = names.embeddings(desc)?;
    let layers = names.layers("transformer.layer", &LAYER, desc)?;
    Ok(Weights { layers, ..embeddings })
}
