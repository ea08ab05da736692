//! The model's weights in the kernels' layout.

use super::buffer::Buffer;
use super::gemm::Linear;
use super::team::Team;
use crate::model::{self, ModelDesc, Tensor};

/// Everything that the forward pass reads.
pub(super) struct Packed {
    /// In the checkpoint, read row by row.
    pub(super) word: Tensor,
    /// `[max_position_embeddings, hidden]`
    pub(super) position: Buffer,
    /// `[type_vocab_size, hidden]`
    pub(super) token_type: Buffer,
    pub(super) embeddings_norm: Norm,
    pub(super) layers: Vec<Layer>,
}

/// One encoder layer.
pub(super) struct Layer {
    /// Query, key and value side by side, `[3 * hidden, hidden]`; 1/√head_dim is in the query's part.
    pub(super) qkv: Linear,
    pub(super) attention_output: Linear,
    pub(super) attention_norm: Norm,
    pub(super) intermediate: Linear,
    pub(super) output: Linear,
    pub(super) output_norm: Norm,
}

/// A layernorm's weight and bias, `[hidden]` each.
pub(super) struct Norm {
    pub(super) weight: Buffer,
    pub(super) bias: Buffer,
}

impl Norm {
    fn new(norm: &model::Norm) -> Self {
        Self { weight: copy(&norm.weight), bias: copy(&norm.bias) }
    }

    fn bytes(&self) -> usize {
        4 * (self.weight.len() + self.bias.len())
    }
}

fn copy(tensor: &Tensor) -> Buffer {
    let mut buffer = Buffer::zeroed(tensor.numel());
    tensor.read_f32(0, &mut buffer);
    buffer
}

impl Packed {
    pub(super) fn new(desc: &ModelDesc, weights: &model::Weights, nr: usize, team: Team<'_>) -> Self {
        let scale = 1.0 / (desc.head_dim() as f64).sqrt();
        let linear = |l: &model::Linear| Linear::pack(&[(l, 1.0)], nr, team);
        let layers = weights
            .layers
            .iter()
            .map(|l| Layer {
                qkv: Linear::pack(&[(&l.query, scale), (&l.key, 1.0), (&l.value, 1.0)], nr, team),
                attention_output: linear(&l.attention_output),
                attention_norm: Norm::new(&l.attention_norm),
                intermediate: linear(&l.intermediate),
                output: linear(&l.output),
                output_norm: Norm::new(&l.output_norm),
            })
            .collect();
        Self {
            word: weights.word_embeddings.clone(),
            position: copy(&weights.position_embeddings),
            token_type: copy(&weights.token_type_embeddings),
            embeddings_norm: Norm::new(&weights.embeddings_norm),
            layers,
        }
    }

    /// Bytes held here; the word embeddings stay in the checkpoint.
    pub(super) fn bytes(&self) -> usize {
        let layers: usize = self
            .layers
            .iter()
            .map(|l| {
                [&l.qkv, &l.attention_output, &l.intermediate, &l.output]
                    .map(Linear::bytes)
                    .iter()
                    .sum::<usize>()
                    + l.attention_norm.bytes()
                    + l.output_norm.bytes()
            })
            .sum();
        layers + 4 * (self.position.len() + self.token_type.len()) + self.embeddings_norm.bytes()
    }
}
