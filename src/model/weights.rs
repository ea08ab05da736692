//! The tensors of an encoder by their place in it. Linear weights are `[out, in]`, as PyTorch stores them.

use super::mpnet::RELATIVE_BUCKETS;
use super::{AttentionBias, ModelDesc, Module, Norms, Positions, Tensor};

/// All tensors of the encoder, shapes checked against the [`ModelDesc`].
#[derive(Debug, Clone)]
pub struct Weights {
    /// `[vocab_size, embedding_width]`
    pub word_embeddings: Tensor,
    /// `[max_position_embeddings, embedding_width]`, where positions have a table.
    pub position_embeddings: Option<Tensor>,
    /// `[type_vocab_size, embedding_width]`, if there are types.
    pub token_type_embeddings: Option<Tensor>,
    /// Over the sum of the three.
    pub embeddings_norm: Norm,
    /// `[hidden_size, embedding_size]`, if there is an `embedding_size`.
    pub embeddings_projection: Option<Linear>,
    /// `[RELATIVE_BUCKETS, num_attention_heads]`, if the attention has this bias.
    pub relative_attention_bias: Option<Tensor>,
    /// In the order of [`ModelDesc::layer_order`].
    pub layers: Vec<Layer>,
    /// Behind the last layer, where the others are in front.
    pub final_norm: Option<Norm>,
    /// One for each of [`ModelDesc::modules`].
    pub modules: Vec<ModuleWeights>,
}

/// The tensors of a [`Module`].
#[derive(Debug, Clone)]
pub enum ModuleWeights {
    /// Of [`Module::Dense`].
    Dense {
        /// `[out, in]`
        linear: Linear,
        /// `[out, in]`, where there is a residual and out is not in.
        residual: Option<Tensor>,
    },
    /// Of [`Module::LayerNorm`].
    LayerNorm(Norm),
    /// [`Module::Normalize`] has none.
    Normalize,
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
    /// Over a token's query, if there is such a norm.
    pub query_norm: Option<Norm>,
    /// Over a token's key, if there is such a norm.
    pub key_norm: Option<Norm>,
    /// `[hidden_size, hidden_size]`
    pub attention_output: Linear,
    /// Behind the attention's residual, or in front of the attention; there none is the identity.
    pub attention_norm: Option<Norm>,
    /// `[inner_width, hidden_size]`
    pub intermediate: Linear,
    /// `[hidden_size, intermediate_size]`
    pub output: Linear,
    /// Behind the feed-forward's residual, or in front of the feed-forward.
    pub output_norm: Norm,
}

/// y = x Wᵀ + b
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Tensor,
    /// `[out]`; none is 0.
    pub bias: Option<Tensor>,
}

/// y = (x − mean) / √(var + eps) · weight + bias
#[derive(Debug, Clone)]
pub struct Norm {
    /// `[hidden_size]`
    pub weight: Tensor,
    /// `[hidden_size]`; none is 0.
    pub bias: Option<Tensor>,
}

impl Weights {
    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        self.tensors().map(Tensor::numel).sum()
    }

    /// Every tensor.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.word_embeddings)
            .chain(&self.position_embeddings)
            .chain(&self.token_type_embeddings)
            .chain(self.embeddings_norm.tensors())
            .chain(self.embeddings_projection.iter().flat_map(Linear::tensors))
            .chain(&self.relative_attention_bias)
            .chain(self.layers.iter().flat_map(Layer::tensors))
            .chain(self.final_norm.iter().flat_map(Norm::tensors))
            .chain(self.modules.iter().flat_map(ModuleWeights::tensors))
    }

    /// Reproducible random weights with the spread of trained ones (σ = 0.02 to 0.05, norms near 1), for
    /// benches and for tests that need a shape and not a meaning.
    pub fn random(desc: &ModelDesc, seed: u64) -> Self {
        let mut random = Random(seed);
        let (h, i, e) = (desc.hidden_size, desc.intermediate_size, desc.embedding_width());
        let mut table = |name: &str, rows: usize, columns: usize, sigma: f32| {
            random.tensor(name, &[rows, columns], 0.0, sigma)
        };
        let word_embeddings = table("word_embeddings", desc.vocab_size, e, 0.05);
        let position_embeddings = match desc.positions {
            Positions::FromZero | Positions::AfterPadding { .. } => {
                Some(table("position_embeddings", desc.max_position_embeddings, e, 0.02))
            }
            Positions::None | Positions::Rotary { .. } => None,
        };
        let types = desc.type_vocab_size;
        let token_type_embeddings = (types > 0).then(|| table("token_type_embeddings", types, e, 0.02));
        let relative_attention_bias = match desc.attention_bias {
            AttentionBias::None | AttentionBias::Alibi => None,
            AttentionBias::RelativeBuckets => {
                Some(table("relative_attention_bias", RELATIVE_BUCKETS, desc.num_attention_heads, 0.5))
            }
        };
        let query_key = match desc.norms {
            Norms::Post | Norms::Pre => false,
            Norms::PostQueryKey => true,
        };
        Self {
            word_embeddings,
            position_embeddings,
            token_type_embeddings,
            embeddings_norm: random.norm("embeddings.LayerNorm", e),
            embeddings_projection: desc.embedding_size.map(|e| random.linear("embeddings_project", h, e)),
            relative_attention_bias,
            layers: (0..desc.layer_weights.count(desc.num_hidden_layers))
                .map(|l| Layer {
                    query: random.linear(&format!("{l}.query"), h, h),
                    key: random.linear(&format!("{l}.key"), h, h),
                    value: random.linear(&format!("{l}.value"), h, h),
                    query_norm: query_key.then(|| random.norm(&format!("{l}.query_norm"), h)),
                    key_norm: query_key.then(|| random.norm(&format!("{l}.key_norm"), h)),
                    attention_output: random.linear(&format!("{l}.attention_output"), h, h),
                    attention_norm: Some(random.norm(&format!("{l}.attention_norm"), h)),
                    intermediate: random.linear(&format!("{l}.intermediate"), desc.inner_width(), h),
                    output: random.linear(&format!("{l}.output"), h, i),
                    output_norm: random.norm(&format!("{l}.output_norm"), h),
                })
                .collect(),
            final_norm: match desc.norms {
                Norms::Post | Norms::PostQueryKey => None,
                Norms::Pre => Some(random.norm("final_norm", h)),
            },
            modules: random.modules(desc),
        }
    }
}

impl Layer {
    /// Every tensor.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.query, &self.key, &self.value, &self.attention_output, &self.intermediate, &self.output]
            .into_iter()
            .flat_map(Linear::tensors)
            .chain(
                [&self.query_norm, &self.key_norm, &self.attention_norm]
                    .into_iter()
                    .flatten()
                    .chain([&self.output_norm])
                    .flat_map(Norm::tensors),
            )
    }
}

impl Linear {
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.weight).chain(&self.bias)
    }
}

impl Norm {
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.weight).chain(&self.bias)
    }
}

impl ModuleWeights {
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let (linear, residual, norm) = match self {
            Self::Dense { linear, residual } => (Some(linear), residual.as_ref(), None),
            Self::LayerNorm(norm) => (None, None, Some(norm)),
            Self::Normalize => (None, None, None),
        };
        let linear = linear.into_iter().flat_map(Linear::tensors);
        linear.chain(residual).chain(norm.into_iter().flat_map(Norm::tensors))
    }
}

/// SplitMix64 (Steele et al. 2014).
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }

    /// The sum of four uniforms is close enough to a normal.
    fn tensor(&mut self, name: &str, shape: &[usize], mean: f32, sigma: f32) -> Tensor {
        let n = shape.iter().product();
        let mut sum = || self.uniform() + self.uniform() + self.uniform() + self.uniform();
        let values: Vec<f32> = (0..n).map(|_| mean + sigma * 1.732 * sum()).collect();
        Tensor::from_f32(name, shape, &values)
    }

    fn norm(&mut self, name: &str, width: usize) -> Norm {
        Norm {
            weight: self.tensor(&format!("{name}.weight"), &[width], 1.0, 0.1),
            bias: Some(self.tensor(&format!("{name}.bias"), &[width], 0.0, 0.05)),
        }
    }

    fn linear(&mut self, name: &str, n: usize, k: usize) -> Linear {
        Linear {
            weight: self.tensor(&format!("{name}.weight"), &[n, k], 0.0, 0.05),
            bias: Some(self.tensor(&format!("{name}.bias"), &[n], 0.0, 0.05)),
        }
    }

    fn modules(&mut self, desc: &ModelDesc) -> Vec<ModuleWeights> {
        let mut width = desc.pooled_dim();
        let module = |module: &Module| {
            let k = width;
            width = module.width(k);
            match module {
                Module::Dense(dense) => ModuleWeights::Dense {
                    linear: {
                        let linear = self.linear("linear", dense.out_features, k);
                        Linear { bias: linear.bias.filter(|_| dense.bias), ..linear }
                    },
                    residual: (dense.use_residual && dense.out_features != k)
                        .then(|| self.tensor("residual.weight", &[dense.out_features, k], 0.0, 0.05)),
                },
                Module::LayerNorm => ModuleWeights::LayerNorm(self.norm("norm", k)),
                Module::Normalize => ModuleWeights::Normalize,
            }
        };
        desc.modules.iter().map(module).collect()
    }
}
