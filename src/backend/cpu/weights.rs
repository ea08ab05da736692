//! The model's weights in the kernels' layout.

use super::buffer::Buffer;
use super::gemm::{Linear, NarrowKernels, NarrowLinear};
use super::kernels::Kernels;
use super::team::Team;
use crate::model::{
    self, Activation, AttentionBias, ModelDesc, ModuleWeights, Positions, Tensor, alibi_slope,
    relative_bucket, rotary_angle,
};

/// Everything that the forward pass reads.
pub(super) struct Packed {
    /// In the checkpoint, read row by row.
    pub(super) word: Tensor,
    /// `[max_position_embeddings, embedding width]`; one row of zeros where there is no table
    pub(super) position: Buffer,
    /// Of global and of local layers; empty where positions are not rotary.
    pub(super) rotary: [Rotary; 2],
    /// `[type_vocab_size, embedding width]`; one row of zeros where there are no types
    pub(super) token_type: Buffer,
    pub(super) embeddings_norm: Norm,
    pub(super) embeddings_projection: Option<Linear>,
    /// For each head the bias of a key at each distance from its query, −(longest − 1) to longest − 1;
    /// empty where there is none. `[heads, 2 * longest - 1]`
    pub(super) attention_bias: Buffer,
    pub(super) layers: Vec<Layer>,
    /// Which of them are computed, in this order.
    pub(super) layer_order: Vec<usize>,
    pub(super) final_norm: Option<Norm>,
    pub(super) modules: Vec<Module>,
}

/// A module behind the pooling.
pub(super) enum Module {
    Dense(Dense),
    LayerNorm(Norm),
    Normalize,
}

/// y = f(x Wᵀ + b) + residual
pub(super) struct Dense {
    pub(super) linear: Linear,
    pub(super) activation: Option<Activation>,
    pub(super) residual: Residual,
    pub(super) out_features: usize,
}

pub(super) enum Residual {
    None,
    /// The module's input.
    Input,
    /// Its input times weights.
    Projected(Linear),
}

impl Module {
    fn new(module: &model::Module, weights: &ModuleWeights, kernels: &Kernels, team: Team<'_>) -> Self {
        let pack = |l: &model::Linear| Linear::pack(&[(l, 1.0)], kernels, team);
        match (module, weights) {
            (model::Module::Dense(dense), ModuleWeights::Dense { linear, residual }) => Self::Dense(Dense {
                linear: pack(linear),
                activation: dense.activation,
                residual: match residual {
                    Some(weight) => {
                        Residual::Projected(pack(&model::Linear { weight: weight.clone(), bias: None }))
                    }
                    None if dense.use_residual => Residual::Input,
                    None => Residual::None,
                },
                out_features: dense.out_features,
            }),
            (model::Module::LayerNorm, ModuleWeights::LayerNorm(norm)) => Self::LayerNorm(Norm::new(norm)),
            (model::Module::Normalize, ModuleWeights::Normalize) => Self::Normalize,
            (model::Module::Dense(_) | model::Module::LayerNorm | model::Module::Normalize, _) => {
                panic!("the weights are those of the described modules")
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Dense(dense) => {
                dense.linear.bytes()
                    + match &dense.residual {
                        Residual::None | Residual::Input => 0,
                        Residual::Projected(linear) => linear.bytes(),
                    }
            }
            Self::LayerNorm(norm) => norm.bytes(),
            Self::Normalize => 0,
        }
    }
}

/// A product of a layer.
pub(super) enum Product {
    F32(Linear),
    Narrow(NarrowLinear),
}

impl Product {
    fn pack(
        parts: &[(&model::Linear, f64)],
        kernels: &Kernels,
        narrow: Option<&'static NarrowKernels>,
        team: Team<'_>,
    ) -> Self {
        match narrow {
            None => Self::F32(Linear::pack(parts, kernels, team)),
            Some(narrow) => Self::Narrow(NarrowLinear::pack(parts, narrow, team)),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F32(linear) => linear.bytes(),
            Self::Narrow(linear) => linear.bytes(),
        }
    }
}

/// One encoder layer.
pub(super) struct Layer {
    /// Query, key and value side by side, `[3 * hidden, hidden]`; 1/√head_dim is in the query's part, or in its norm.
    pub(super) qkv: Product,
    /// Of queries and keys.
    pub(super) query_key_norms: Option<[Norm; 2]>,
    pub(super) attention_output: Product,
    /// None is the identity.
    pub(super) attention_norm: Option<Norm>,
    pub(super) intermediate: Product,
    pub(super) output: Product,
    pub(super) output_norm: Norm,
}

/// A layernorm's weight and bias, `[hidden]` each.
pub(super) struct Norm {
    pub(super) weight: Buffer,
    pub(super) bias: Buffer,
}

impl Norm {
    fn new(norm: &model::Norm) -> Self {
        let zeros = || Buffer::zeroed(norm.weight.numel());
        Self { weight: copy(&norm.weight), bias: norm.bias.as_ref().map_or_else(zeros, copy) }
    }

    /// Its output times `scale`.
    fn scaled(norm: &model::Norm, scale: f64) -> Self {
        let mut norm = Self::new(norm);
        norm.weight.iter_mut().chain(norm.bias.iter_mut()).for_each(|v| *v = (f64::from(*v) * scale) as f32);
        norm
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

/// cos and sin of the rotary angles, `[longest, head_dim / 2]` each.
pub(super) struct Rotary {
    pub(super) cos: Buffer,
    pub(super) sin: Buffer,
}

impl Rotary {
    fn none() -> Self {
        Self { cos: Buffer::zeroed(0), sin: Buffer::zeroed(0) }
    }

    fn new(desc: &ModelDesc, base: f32, divisor: f32) -> Self {
        let (longest, d) = (desc.longest_sequence(), desc.head_dim());
        let half = d / 2;
        let (mut cos, mut sin) = (Buffer::zeroed(longest * half), Buffer::zeroed(longest * half));
        for position in 0..longest {
            for i in 0..half {
                let angle = f64::from(rotary_angle(position as u32, i, d, base, divisor));
                cos[position * half + i] = angle.cos() as f32;
                sin[position * half + i] = angle.sin() as f32;
            }
        }
        Self { cos, sin }
    }
}

/// The lines of `Packed::attention_bias`.
fn attention_bias(desc: &ModelDesc, weights: &model::Weights) -> Buffer {
    let (heads, longest) = (desc.num_attention_heads, desc.longest_sequence());
    match (desc.attention_bias, &weights.relative_attention_bias) {
        (AttentionBias::None, _) => Buffer::zeroed(0),
        (AttentionBias::Alibi, _) => {
            let mut lines = Buffer::zeroed(heads * (2 * longest - 1));
            for (head, line) in lines.chunks_exact_mut(2 * longest - 1).enumerate() {
                let slope = alibi_slope(head, heads);
                for (at, bias) in line.iter_mut().enumerate() {
                    *bias = slope * at.abs_diff(longest - 1) as f32;
                }
            }
            lines
        }
        (AttentionBias::RelativeBuckets, None) => panic!("the weights are those of the described attention"),
        (AttentionBias::RelativeBuckets, Some(table)) => {
            let table = table.to_f32(); // [RELATIVE_BUCKETS, heads]
            let mut lines = Buffer::zeroed(heads * (2 * longest - 1));
            for (head, line) in lines.chunks_exact_mut(2 * longest - 1).enumerate() {
                for (at, bias) in line.iter_mut().enumerate() {
                    *bias = table[relative_bucket(at as isize + 1 - longest as isize) * heads + head];
                }
            }
            lines
        }
    }
}

impl Packed {
    /// Packs the layers' products for `narrow` kernels where there are some; all others are in f32.
    pub(super) fn new(
        desc: &ModelDesc,
        weights: &model::Weights,
        kernels: &Kernels,
        narrow: Option<&'static NarrowKernels>,
        team: Team<'_>,
    ) -> Self {
        let scale = 1.0 / (desc.head_dim() as f64).sqrt();
        let linear = |l: &model::Linear| Linear::pack(&[(l, 1.0)], kernels, team);
        let product = |l: &model::Linear| Product::pack(&[(l, 1.0)], kernels, narrow, team);
        let layer = |l: &model::Layer| {
            let layer = Layer {
                qkv: {
                    let scale = if l.query_norm.is_some() { 1.0 } else { scale };
                    Product::pack(&[(&l.query, scale), (&l.key, 1.0), (&l.value, 1.0)], kernels, narrow, team)
                },
                query_key_norms: match (&l.query_norm, &l.key_norm) {
                    (Some(query), Some(key)) => Some([Norm::scaled(query, scale), Norm::new(key)]),
                    (None, None) => None,
                    (Some(_), None) | (None, Some(_)) => {
                        panic!("queries and keys are both normed or neither")
                    }
                },
                attention_output: product(&l.attention_output),
                attention_norm: l.attention_norm.as_ref().map(Norm::new),
                intermediate: product(&l.intermediate),
                output: product(&l.output),
                output_norm: Norm::new(&l.output_norm),
            };
            // packed weights and the file's pages would take twice the memory
            l.tensors().for_each(Tensor::release);
            layer
        };
        Self {
            word: weights.word_embeddings.clone(),
            position: weights
                .position_embeddings
                .as_ref()
                .map_or_else(|| Buffer::zeroed(desc.embedding_width()), copy),
            rotary: match desc.positions {
                Positions::FromZero | Positions::None | Positions::AfterPadding { .. } => {
                    [Rotary::none(), Rotary::none()]
                }
                Positions::Rotary { global_base, local_base, divisor } => {
                    [global_base, local_base].map(|base| Rotary::new(desc, base, divisor))
                }
            },
            token_type: weights
                .token_type_embeddings
                .as_ref()
                .map_or_else(|| Buffer::zeroed(desc.embedding_width()), copy),
            embeddings_norm: Norm::new(&weights.embeddings_norm),
            embeddings_projection: weights.embeddings_projection.as_ref().map(linear),
            attention_bias: attention_bias(desc, weights),
            layers: weights.layers.iter().map(layer).collect(),
            layer_order: desc.layer_order().collect(),
            final_norm: weights.final_norm.as_ref().map(Norm::new),
            modules: desc
                .modules
                .iter()
                .zip(&weights.modules)
                .map(|(module, weights)| Module::new(module, weights, kernels, team))
                .collect(),
        }
    }

    /// Bytes held here; the word embeddings stay in the checkpoint.
    pub(super) fn bytes(&self) -> usize {
        let layers: usize = self
            .layers
            .iter()
            .map(|l| {
                [&l.qkv, &l.attention_output, &l.intermediate, &l.output]
                    .map(Product::bytes)
                    .iter()
                    .sum::<usize>()
                    + l.query_key_norms.iter().flatten().map(Norm::bytes).sum::<usize>()
                    + l.attention_norm.as_ref().map_or(0, Norm::bytes)
                    + l.output_norm.bytes()
            })
            .sum();
        let modules: usize = self.modules.iter().map(Module::bytes).sum();
        let rotary: usize = self.rotary.iter().map(|r| r.cos.len() + r.sin.len()).sum();
        let tables = rotary + self.position.len() + self.token_type.len() + self.attention_bias.len();
        let projection = self.embeddings_projection.as_ref().map_or(0, Linear::bytes);
        let norm = self.final_norm.as_ref().map_or(0, Norm::bytes);
        layers + modules + norm + 4 * tables + self.embeddings_norm.bytes() + projection
    }
}
