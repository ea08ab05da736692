//! RoBERTa, XLM-RoBERTa and CamemBERT: BERT's layers and keys; positions count from behind the padding's, and
//! there is one token type, whose row is added all the same (rules 26 and 27).

use super::encoder::Settings;
use super::{Family, ModelDesc, Positions, bert};
use crate::error::Result;

pub(super) fn describe(settings: &mut Settings<'_>, family: Family) -> Result<ModelDesc> {
    let vocab_size = if family == Family::Roberta { 50265 } else { 30522 };
    let defaults = bert::Defaults { vocab_size, hidden_size: 768, heads: 12, inner: 3072, act: "gelu" };
    let pad = settings.index("pad_token_id", 1)?;
    let desc = ModelDesc {
        family,
        positions: Positions::AfterPadding { pad },
        ..bert::describe_with(settings, &defaults)?
    };
    settings.check_positions("pad_token_id", desc)
}
