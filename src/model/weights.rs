//! The tensors of an encoder by their place in it. Linear weights are `[out, in]`, as PyTorch stores them.

use super::{ModelDesc, Tensor};

/// All tensors of the encoder, shapes checked against the [`ModelDesc`].
#[derive(Debug, Clone)]
pub struct Weights {
    /// `[vocab_size, hidden_size]`
    pub word_embeddings: Tensor,
    /// `[max_position_embeddings, hidden_size]`
    pub position_embeddings: Tensor,
    /// `[type_vocab_size, hidden_size]`
    pub token_type_embeddings: Tensor,
    /// Over the sum of the three.
    pub embeddings_norm: Norm,
    /// `[num_hidden_layers]`
    pub layers: Vec<Layer>,
}

/// One encoder layer.
#[derive(Debug, Clone)]
pub struct Layer {
    /// `[hidden_size, hidden_size]`
    pub query: Linear,
    /// `[hidden_size, hidden_size]`
    pub key: Linear,
    /// `[hidden_size, hidden_size]`
    pub value: Linear,
    /// `[hidden_size, hidden_size]`
    pub attention_output: Linear,
    /// After the attention's residual.
    pub attention_norm: Norm,
    /// `[intermediate_size, hidden_size]`
    pub intermediate: Linear,
    /// `[hidden_size, intermediate_size]`
    pub output: Linear,
    /// After the feed-forward's residual.
    pub output_norm: Norm,
}

/// y = x Wᵀ + b
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Tensor,
    /// `[out]`
    pub bias: Tensor,
}

/// y = (x − mean) / √(var + eps) · weight + bias
#[derive(Debug, Clone)]
pub struct Norm {
    /// `[hidden_size]`
    pub weight: Tensor,
    /// `[hidden_size]`
    pub bias: Tensor,
}

impl Weights {
    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        self.tensors().map(Tensor::numel).sum()
    }

    /// Every tensor.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [
            &self.word_embeddings,
            &self.position_embeddings,
            &self.token_type_embeddings,
            &self.embeddings_norm.weight,
            &self.embeddings_norm.bias,
        ]
        .into_iter()
        .chain(self.layers.iter().flat_map(|l| {
            [&l.query, &l.key, &l.value, &l.attention_output, &l.intermediate, &l.output]
                .into_iter()
                .flat_map(|x| [&x.weight, &x.bias])
                .chain([&l.attention_norm, &l.output_norm].into_iter().flat_map(|x| [&x.weight, &x.bias]))
        }))
    }

    /// Reproducible random weights with the spread of trained ones (σ = 0.02 to 0.05, norms near 1), for
    /// benches and for tests that need a shape and not a meaning.
    pub fn random(desc: &ModelDesc, seed: u64) -> Self {
        // SplitMix64 (Steele et al. 2014); the sum of four uniforms is close enough to a normal.
        let mut state = seed;
        let mut uniform = move || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let mut tensor = move |name: &str, shape: &[usize], mean: f32, sigma: f32| {
            let n = shape.iter().product();
            let values: Vec<f32> = (0..n)
                .map(|_| mean + sigma * 1.732 * (uniform() + uniform() + uniform() + uniform()))
                .collect();
            Tensor::from_f32(name, shape, &values)
        };
        let (h, i) = (desc.hidden_size, desc.intermediate_size);
        let norm = |name: &str, t: &mut dyn FnMut(&str, &[usize], f32, f32) -> Tensor| Norm {
            weight: t(&format!("{name}.weight"), &[h], 1.0, 0.1),
            bias: t(&format!("{name}.bias"), &[h], 0.0, 0.05),
        };
        let linear =
            |name: &str, n: usize, k: usize, t: &mut dyn FnMut(&str, &[usize], f32, f32) -> Tensor| Linear {
                weight: t(&format!("{name}.weight"), &[n, k], 0.0, 0.05),
                bias: t(&format!("{name}.bias"), &[n], 0.0, 0.05),
            };
        Self {
            word_embeddings: tensor("word_embeddings", &[desc.vocab_size, h], 0.0, 0.05),
            position_embeddings: tensor("position_embeddings", &[desc.max_position_embeddings, h], 0.0, 0.02),
            token_type_embeddings: tensor("token_type_embeddings", &[desc.type_vocab_size, h], 0.0, 0.02),
            embeddings_norm: norm("embeddings.LayerNorm", &mut tensor),
            layers: (0..desc.num_hidden_layers)
                .map(|l| Layer {
                    query: linear(&format!("{l}.query"), h, h, &mut tensor),
                    key: linear(&format!("{l}.key"), h, h, &mut tensor),
                    value: linear(&format!("{l}.value"), h, h, &mut tensor),
                    attention_output: linear(&format!("{l}.attention_output"), h, h, &mut tensor),
                    attention_norm: norm(&format!("{l}.attention_norm"), &mut tensor),
                    intermediate: linear(&format!("{l}.intermediate"), i, h, &mut tensor),
                    output: linear(&format!("{l}.output"), h, i, &mut tensor),
                    output_norm: norm(&format!("{l}.output_norm"), &mut tensor),
                })
                .collect(),
        }
    }
}
