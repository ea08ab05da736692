//! What of a model these kernels do not compute: refused by name before anything is allocated.
//!
//! Enums are matched without `_`, so that a new variant stops the compilation here.

use super::super::tiles::ROW_SIZES;
use super::super::work_list::ATTENTION_TILES;
use crate::error::{Error, Result};
use crate::model::{
    Activation, AttentionBias, AttentionSpan, FeedForward, LayerWeights, ModelDesc, Module, Norms, Pooling,
    Positions,
};

/// Tokens of the longest sequence that `kernels/pool.cu` takes.
const LONGEST_SEQUENCE: usize = 16_384;
/// Columns that its normalisation takes at once.
pub(super) const MOST_NORMALIZED_COLUMNS: usize = 2048;
/// Elements of an access of the kernels, which every row is a multiple of.
const VECTOR: usize = 8;

/// # Errors
/// [`Error::Unsupported`] with the first thing that there is no kernel for.
pub(super) fn check(desc: &ModelDesc) -> Result<()> {
    match refusal(desc) {
        None => Ok(()),
        Some(what) => Err(Error::unsupported("device cuda", format!("{what} (--device cpu computes it)"))),
    }
}

fn refusal(desc: &ModelDesc) -> Option<String> {
    let (hidden, heads, head_dim) = (desc.hidden_size, desc.num_attention_heads, desc.head_dim());
    if !ATTENTION_TILES.iter().any(|tile| tile.head_dim == head_dim) || heads * head_dim != hidden {
        return Some(format!("head size {head_dim}: 32, 64 or 128"));
    }
    let mut widths = vec![("hidden size", hidden), ("intermediate size", desc.intermediate_size)];
    widths.extend(desc.embedding_size.map(|width| ("embedding size", width)));
    let mut width = desc.pooled_dim();
    for module in &desc.modules {
        width = module.width(width);
        widths.push(("width of a module", width));
    }
    if let Some((name, width)) = widths.iter().find(|(_, width)| *width == 0 || width % VECTOR != 0) {
        return Some(format!("{name} {width}: a multiple of {VECTOR}"));
    }
    let widest_row = ROW_SIZES.iter().map(|(columns, _)| *columns).max().unwrap_or(0);
    if hidden.max(desc.embedding_width()) > widest_row {
        return Some(format!("hidden size {hidden}: at most {widest_row}"));
    }
    if desc.longest_sequence() > LONGEST_SEQUENCE {
        return Some(format!("sequences of {} tokens: at most {LONGEST_SEQUENCE}", desc.longest_sequence()));
    }
    match desc.positions {
        Positions::FromZero | Positions::AfterPadding { .. } | Positions::None | Positions::Rotary { .. } => {
        }
    }
    match desc.norms {
        Norms::Post | Norms::PostQueryKey | Norms::Pre => {}
    }
    match desc.layer_weights {
        LayerWeights::Own | LayerWeights::Shared(_) => {}
    }
    match desc.attention_bias {
        AttentionBias::None | AttentionBias::RelativeBuckets | AttentionBias::Alibi => {}
    }
    match &desc.attention_span {
        AttentionSpan::Global => {}
        // the kernel takes 0 for "no window"
        AttentionSpan::Mixed { reach: 0, .. } => return Some("attention that reaches no other token".into()),
        AttentionSpan::Mixed { .. } => {}
    }
    if activation(desc.hidden_act).is_none() {
        return Some(format!("the activation {:?}", desc.hidden_act));
    }
    match desc.feed_forward {
        FeedForward::Plain => {}
        FeedForward::Gated if desc.hidden_act == Activation::Tanh => {
            return Some("a gated feed-forward with tanh".into());
        }
        FeedForward::Gated => {}
    }
    if desc.pooled_layers > 1 {
        return Some("the average of several layers".into());
    }
    chain_refusal(desc, widest_row)
}

/// The same of what is behind the pooling.
fn chain_refusal(desc: &ModelDesc, widest_row: usize) -> Option<String> {
    let mut width = desc.pooled_dim();
    for module in &desc.modules {
        match module {
            Module::Dense(dense) => {
                let unknown = dense.activation.filter(|&a| activation(a).is_none());
                if let Some(unknown) = unknown {
                    return Some(format!("a Dense module with the activation {unknown:?}"));
                }
            }
            Module::LayerNorm if width > widest_row => {
                return Some(format!("a LayerNorm module of width {width}: at most {widest_row}"));
            }
            Module::Normalize if width > MOST_NORMALIZED_COLUMNS => {
                return Some(format!(
                    "a Normalize module of width {width}: at most {MOST_NORMALIZED_COLUMNS}"
                ));
            }
            Module::LayerNorm | Module::Normalize => {}
        }
        width = module.width(width);
    }
    None
}

/// `Activation` of `kernels/numeric.cuh`; none if there is no such function.
pub(super) fn activation(activation: Activation) -> Option<i32> {
    match activation {
        Activation::Gelu => Some(1),
        Activation::GeluTanh => Some(2),
        Activation::QuickGelu => Some(3),
        Activation::Relu => Some(4),
        Activation::Silu => Some(5),
        Activation::Tanh => Some(6),
        Activation::Sigmoid => None,
    }
}

/// `Pooling` of `kernels/pool.cu`.
pub(super) fn pooling(pooling: Pooling) -> i32 {
    match pooling {
        Pooling::Mean => 0,
        Pooling::Cls => 1,
        Pooling::Max => 2,
        Pooling::MeanSqrtLen => 3,
        Pooling::WeightedMean => 4,
        Pooling::LastToken => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Dense, LayerGroups};

    fn base() -> ModelDesc {
        ModelDesc { hidden_size: 64, num_attention_heads: 2, intermediate_size: 96, ..ModelDesc::default() }
    }

    #[test]
    fn what_kernels_compute_is_not_refused() {
        let groups = LayerGroups { groups: 1, inner: 1 };
        let local = vec![false; 12];
        let rotary = Positions::Rotary { global_base: 1e4, local_base: 1e4, divisor: 1.0 };
        let dense =
            Dense { out_features: 40, bias: true, activation: Some(Activation::Tanh), use_residual: false };
        for desc in [
            ModelDesc::default(),
            base(),
            ModelDesc { embedding_size: Some(24), layer_weights: LayerWeights::Shared(groups), ..base() },
            ModelDesc { attention_bias: AttentionBias::RelativeBuckets, ..base() },
            ModelDesc { attention_bias: AttentionBias::Alibi, positions: Positions::None, ..base() },
            ModelDesc { attention_span: AttentionSpan::Mixed { reach: 5, local }, ..base() },
            ModelDesc { feed_forward: FeedForward::Gated, ..base() },
            ModelDesc { positions: rotary, ..base() },
            ModelDesc { norms: Norms::Pre, ..base() },
            ModelDesc { norms: Norms::PostQueryKey, ..base() },
            ModelDesc { modules: vec![Module::Dense(dense), Module::LayerNorm, Module::Normalize], ..base() },
            ModelDesc { pooling: vec![Pooling::Mean, Pooling::Max], ..base() },
        ] {
            assert_eq!(refusal(&desc), None, "{desc:?}");
        }
    }

    #[test]
    fn check_rejects_by_name_what_no_kernel_computes() {
        let dense = |out_features, activation| {
            Module::Dense(Dense { out_features, bias: true, activation, use_residual: false })
        };
        let local = vec![true; 12];
        for (desc, name) in [
            (ModelDesc { num_attention_heads: 4, ..base() }, "head size 16"),
            (ModelDesc { hidden_size: 96, num_attention_heads: 1, ..base() }, "head size 96"),
            (ModelDesc { intermediate_size: 100, ..base() }, "intermediate size 100"),
            (ModelDesc { embedding_size: Some(12), ..base() }, "embedding size 12"),
            (ModelDesc { hidden_size: 8320, num_attention_heads: 65, ..base() }, "hidden size 8320"),
            (ModelDesc { max_position_embeddings: 17_000, ..base() }, "sequences of 17000"),
            (
                ModelDesc { attention_span: AttentionSpan::Mixed { reach: 0, local }, ..base() },
                "reaches no other token",
            ),
            (ModelDesc { hidden_act: Activation::Sigmoid, ..base() }, "Sigmoid"),
            (
                ModelDesc { feed_forward: FeedForward::Gated, hidden_act: Activation::Tanh, ..base() },
                "gated feed-forward with tanh",
            ),
            (ModelDesc { pooled_layers: 2, ..base() }, "several layers"),
            (ModelDesc { modules: vec![dense(12, None)], ..base() }, "width of a module 12"),
            (ModelDesc { modules: vec![dense(16, Some(Activation::Sigmoid))], ..base() }, "Dense module"),
            (ModelDesc { modules: vec![dense(4096, None), Module::Normalize], ..base() }, "Normalize module"),
            (
                ModelDesc { modules: vec![dense(16384, None), Module::LayerNorm], ..base() },
                "LayerNorm module",
            ),
        ] {
            let error = check(&desc).expect_err(name).to_string();
            assert!(error.starts_with("device cuda: unsupported: ") && error.contains(name), "{error}");
        }
    }
}
