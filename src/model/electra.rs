//! ELECTRA: BERT with embeddings of a width of their own.

use super::encoder::{Names, Settings};
use super::{Family, ModelDesc, Weights, bert};
use crate::error::Result;

pub(super) fn describe(settings: &mut Settings<'_>) -> Result<ModelDesc> {
    let defaults = bert::Defaults { vocab_size: 30522, hidden_size: 256, heads: 4, inner: 1024, act: "gelu" };
    let embedding_size = settings.size("embedding_size", 128)?;
    let desc = bert::describe_with(settings, &defaults)?;
    // no projection where it would be from one width to the same
    let embedding_size = (embedding_size != desc.hidden_size).then_some(embedding_size);
    Ok(ModelDesc { family: Family::Electra, embedding_size, ..desc })
}

pub(super) fn weights(names: &mut Names<'_>, desc: &ModelDesc) -> Result<Weights> {
    let projection = desc.embedding_size.map(|e| names.linear("embeddings_project", desc.hidden_size, e));
    Ok(Weights { embeddings_projection: projection.transpose()?, ..bert::weights(names, desc)? })
}
