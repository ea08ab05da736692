//! MPNet: BERT's layers without token types, positions as RoBERTa's, and a bias on the attention's scores by the
//! distance of key and query, one table for all layers (rule 41).

use super::encoder::{LayerNames, Names, Settings};
use super::{AttentionBias, Family, ModelDesc, Positions, Weights, bert};
use crate::error::Result;

/// Rule 38.
const LAYER: LayerNames = LayerNames {
    query: "attention.attn.q",
    key: "attention.attn.k",
    value: "attention.attn.v",
    attention_output: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    ..bert::LAYER
};

/// Rows of the table of relative positions, in transformers a number in the code.
pub(super) const RELATIVE_BUCKETS: usize = 32;

/// The least distance of each of the buckets 8 to 15 of one side: below 8 each distance has its own.
const WIDE_BUCKETS: [usize; 8] = [8, 12, 16, 23, 32, 46, 64, 91];

/// The row of the table for a key that stands `relative` tokens behind its query.
///
/// These are the steps of 8 + ⌊8 · ln(n / 8) / ln 16⌋ as transformers rounds it.
pub fn relative_bucket(relative: isize) -> usize {
    let n = relative.unsigned_abs();
    let bucket = if n < 8 { n } else { 7 + WIDE_BUCKETS.iter().filter(|&&least| n >= least).count() };
    if relative > 0 { bucket + RELATIVE_BUCKETS / 2 } else { bucket }
}

pub(super) fn describe(settings: &mut Settings<'_>) -> Result<ModelDesc> {
    let key = "relative_attention_num_buckets";
    if settings.size(key, RELATIVE_BUCKETS)? != RELATIVE_BUCKETS {
        return Err(settings.config.unsupported(key, "only 32, which transformers computes with"));
    }
    let defaults =
        bert::Defaults { vocab_size: 30527, hidden_size: 768, heads: 12, inner: 3072, act: "gelu" };
    let desc = ModelDesc {
        family: Family::MpNet,
        // the padding's id is a number in the code, whatever `pad_token_id` says
        positions: Positions::AfterPadding { pad: 1 },
        attention_bias: AttentionBias::RelativeBuckets,
        ..bert::describe_without_types(settings, &defaults)?
    };
    settings.check_positions("max_position_embeddings", desc)
}

pub(super) fn weights(names: &mut Names<'_>, desc: &ModelDesc) -> Result<Weights> {
    let embeddings = names.embeddings(desc)?;
    let bias = "encoder.relative_attention_bias.weight";
    let relative_attention_bias = Some(names.tensor(bias, &[RELATIVE_BUCKETS, desc.num_attention_heads])?);
    let layers = names.layers("encoder.layer", &LAYER, desc)?;
    Ok(Weights { layers, relative_attention_bias, ..embeddings })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_buckets_match_the_formula() {
        for n in 8..4096 {
            let exact = 8.0 + (f64::from(n) / 8.0).ln() / 16f64.ln() * 8.0;
            let want = (exact as usize).min(15);
            assert_eq!(relative_bucket(-(n as isize)), want, "{n}");
            assert_eq!(relative_bucket(n as isize), want + 16, "{n}");
        }
        assert_eq!([0, -1, 1, -7, 7].map(relative_bucket), [0, 1, 17, 7, 23]);
    }
}
