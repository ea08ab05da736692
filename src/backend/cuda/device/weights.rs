//! The model's weights on the device: 16 bits where kernels multiply, f32 where they add, one allocation.
//!
//! The layout is walked twice, first to count bytes, then to convert and copy: tensors never are in the host's memory twice
//! as a whole. Values that do not fit f16 are noticed on the way.

use super::super::tiles::Element;
use super::driver::{self, Opened};
use super::memory::{ALIGNMENT, Called, Memory, Slice};
use super::support;
use crate::error::{Error, Result};
use crate::model::{
    self, AttentionBias, FeedForward, ModelDesc, ModuleWeights, Tensor, alibi_slope, relative_bucket,
};
use cudarc::driver::result::DriverError;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Elements that are converted and copied at a time.
const BLOCK: usize = 1 << 20;

/// Everything that the forward pass reads.
pub(super) struct Weights {
    memory: Memory,
    pub(super) model: Layout,
    /// Whether a finite value became infinite.
    pub(super) overflow: bool,
}

/// Where each array is.
pub(super) struct Layout {
    /// `[vocab_size, embedding_width]`
    pub(super) word: Slice<u16>,
    /// `[max_position_embeddings, embedding_width]`
    pub(super) position: Slice<u16>,
    /// `[type_vocab_size, embedding_width]`, or none
    pub(super) token_type: Slice<u16>,
    pub(super) embeddings_norm: Norm,
    pub(super) embeddings_projection: Option<Linear>,
    /// Times log₂ e, at each distance of key and query. `[heads, 2 * radius + 1]`, or none
    pub(super) attention_bias: Slice<f32>,
    pub(super) bias_radius: usize,
    pub(super) layers: Vec<Layer>,
    /// Which of them are computed, in this order.
    pub(super) layer_order: Vec<usize>,
    pub(super) modules: Vec<Module>,
}

/// One encoder layer.
pub(super) struct Layer {
    /// Query, key and value one below the other; log₂(e)/√head_dim is in the query's part. `[3 * hidden, hidden]`
    pub(super) qkv: Linear,
    pub(super) attention_output: Linear,
    pub(super) attention_norm: Norm,
    /// Gated: rows of gate and value in turn.
    pub(super) intermediate: Linear,
    pub(super) output: Linear,
    pub(super) output_norm: Norm,
}

/// y = x Wᵀ + b
#[derive(Clone, Copy)]
pub(super) struct Linear {
    /// `[n, k]`
    pub(super) weight: Slice<u16>,
    /// `[n]`, or none
    pub(super) bias: Slice<f32>,
    pub(super) n: usize,
    pub(super) k: usize,
}

#[derive(Clone, Copy)]
pub(super) struct Norm {
    /// `[width]`
    pub(super) gamma: Slice<f32>,
    /// `[width]`, or none
    pub(super) beta: Slice<f32>,
}

/// A module behind the pooling.
pub(super) enum Module {
    Dense { linear: Linear, activation: i32, residual: Residual },
    LayerNorm(Norm),
    Normalize,
}

/// What a `Dense` module adds.
pub(super) enum Residual {
    None,
    Input,
    Projected(Linear),
}

impl Weights {
    /// Converts and copies. `support::check` has passed the model; `beside` bytes have to fit the memory too.
    pub(super) fn new(
        device: &Opened,
        desc: &ModelDesc,
        weights: &model::Weights,
        element: Element,
        beside: usize,
    ) -> Result<Self> {
        let mut count =
            Sink { at: 0, element, device: None, overflow: false, block: Vec::new(), half: Vec::new() };
        let planned = layout(&mut count, desc, weights);
        planned.map_err(|e| device.failed(e))?;
        let bytes = count.at;
        let memory =
            Memory::new(&device.context, bytes).map_err(|e| out_of_memory(device, e, bytes + beside, 0))?;
        let mut write = Sink { at: 0, device: Some(&memory), ..count };
        let model = layout(&mut write, desc, weights).map_err(|e| device.failed(e))?;
        let overflow = write.overflow;
        Ok(Self { memory, model, overflow })
    }

    pub(super) fn bytes(&self) -> usize {
        self.memory.bytes()
    }
}

/// The error of an allocation: `needed` bytes in all, of which `held` have been had.
pub(super) fn out_of_memory(device: &Opened, e: DriverError, needed: usize, held: usize) -> Error {
    if !driver::is_out_of_memory(e) {
        return device.failed(e);
    }
    let free_bytes = device.context.mem_get_info().map_or(0, |(free, _)| (free + held) as u64);
    Error::DeviceMemory { device: device.name.clone(), needed_bytes: needed as u64, free_bytes }
}

/// Takes arrays one after another: counts them, or converts and copies them.
struct Sink<'a> {
    at: usize,
    element: Element,
    device: Option<&'a Memory>,
    overflow: bool,
    block: Vec<f32>,
    half: Vec<u16>,
}

/// Rows of a tensor, times a factor.
struct Part {
    tensor: Tensor,
    factor: f64,
}

impl Sink<'_> {
    fn place<T>(&mut self, len: usize) -> Slice<T> {
        let offset = self.at.next_multiple_of(ALIGNMENT);
        self.at = offset + len * size_of::<T>();
        match self.device {
            None => Slice::planned(offset, len),
            Some(memory) => memory.slice(offset, len),
        }
    }

    fn floats(&mut self, values: &[f32]) -> Called<Slice<f32>> {
        let slice = self.place::<f32>(values.len());
        if let Some(memory) = self.device {
            memory.write(self.at - size_of_val(values), values)?;
        }
        Ok(slice)
    }

    /// The parts one below the other, in 16 bits.
    fn halves(&mut self, parts: &[Part]) -> Called<Slice<u16>> {
        let len = parts.iter().map(|p| p.tensor.numel()).sum();
        let slice = self.place::<u16>(len);
        let Some(memory) = self.device else { return Ok(slice) };
        let mut offset = self.at - 2 * len;
        self.block.clear();
        for part in parts {
            let mut first = 0;
            while first < part.tensor.numel() {
                let before = self.block.len();
                let n = (part.tensor.numel() - first).min(BLOCK - before);
                self.block.resize(before + n, 0.0);
                let values = &mut self.block[before..];
                part.tensor.read_f32(first, values);
                if part.factor != 1.0 {
                    values.iter_mut().for_each(|v| *v = (f64::from(*v) * part.factor) as f32);
                }
                first += n;
                if self.block.len() == BLOCK {
                    offset = self.flush(memory, offset)?;
                }
            }
        }
        self.flush(memory, offset)?;
        Ok(slice)
    }

    /// Converts what is in the block and copies it to `offset`; says where the next one goes.
    fn flush(&mut self, memory: &Memory, offset: usize) -> Called<usize> {
        self.half.resize(self.block.len(), 0);
        match self.element {
            Element::F16 => {
                let to: &mut [f16] = bytemuck::cast_slice_mut(&mut self.half);
                to.convert_from_f32_slice(&self.block);
                let became_infinite = |(h, v): (&f16, &f32)| h.is_infinite() && v.is_finite();
                self.overflow |= to.iter().zip(&self.block).any(became_infinite);
            }
            Element::Bf16 => {
                let to: &mut [bf16] = bytemuck::cast_slice_mut(&mut self.half);
                to.convert_from_f32_slice(&self.block);
            }
        }
        memory.write(offset, &self.half)?;
        self.block.clear();
        Ok(offset + 2 * self.half.len())
    }

    fn table(&mut self, tensor: &Tensor) -> Called<Slice<u16>> {
        self.halves(&[Part { tensor: tensor.clone(), factor: 1.0 }])
    }

    fn optional_table(&mut self, tensor: Option<&Tensor>) -> Called<Slice<u16>> {
        tensor.map_or(Ok(Slice::NONE), |tensor| self.table(tensor))
    }

    fn norm(&mut self, norm: &model::Norm) -> Called<Norm> {
        let gamma = self.floats(&norm.weight.to_f32())?;
        let beta = norm.bias.as_ref().map_or(Ok(Slice::NONE), |bias| self.floats(&bias.to_f32()))?;
        Ok(Norm { gamma, beta })
    }

    /// Linears of one input, one below the other, each times a factor.
    fn stacked(&mut self, linears: &[(&model::Linear, f64)]) -> Called<Linear> {
        let part = |&(linear, factor): &(&model::Linear, f64)| Part { tensor: linear.weight.clone(), factor };
        let parts: Vec<Part> = linears.iter().map(part).collect();
        let n = linears.iter().map(|(l, _)| l.weight.shape()[0]).sum();
        let mut bias = Vec::with_capacity(n);
        for (linear, factor) in linears {
            match &linear.bias {
                Some(b) => bias.extend(b.to_f32().iter().map(|&v| (f64::from(v) * factor) as f32)),
                None => bias.resize(bias.len() + linear.weight.shape()[0], 0.0),
            }
        }
        let weight = self.halves(&parts)?;
        let bias = match linears.iter().any(|(l, _)| l.bias.is_some()) {
            true => self.floats(&bias)?,
            false => Slice::NONE,
        };
        Ok(Linear { weight, bias, n, k: linears[0].0.weight.shape()[1] })
    }

    fn linear(&mut self, linear: &model::Linear) -> Called<Linear> {
        self.stacked(&[(linear, 1.0)])
    }

    /// The two halves of a gated product with their rows in turn, as the epilogue wants them: what is activated first.
    fn gated(&mut self, linear: &model::Linear) -> Called<Linear> {
        let (n, k) = (linear.weight.shape()[0], linear.weight.shape()[1]);
        let rows = |i: usize| [i, n / 2 + i];
        let part = |row: usize| Part { tensor: linear.weight.rows(row..row + 1), factor: 1.0 };
        let parts: Vec<Part> = (0..n / 2).flat_map(rows).map(part).collect();
        let weight = self.halves(&parts)?;
        let bias = match &linear.bias {
            Some(bias) => {
                let bias = bias.to_f32();
                self.floats(&(0..n / 2).flat_map(rows).map(|row| bias[row]).collect::<Vec<_>>())?
            }
            None => Slice::NONE,
        };
        Ok(Linear { weight, bias, n, k })
    }

    fn module(&mut self, module: &model::Module, weights: &ModuleWeights) -> Called<Module> {
        Ok(match (module, weights) {
            (model::Module::Dense(dense), ModuleWeights::Dense { linear, residual }) => Module::Dense {
                linear: self.linear(linear)?,
                activation: dense.activation.and_then(support::activation).unwrap_or(0),
                residual: match residual {
                    Some(weight) => {
                        let plain = model::Linear { weight: weight.clone(), bias: None };
                        Residual::Projected(self.linear(&plain)?)
                    }
                    None if dense.use_residual => Residual::Input,
                    None => Residual::None,
                },
            },
            (model::Module::LayerNorm, ModuleWeights::LayerNorm(norm)) => Module::LayerNorm(self.norm(norm)?),
            (model::Module::Normalize, ModuleWeights::Normalize) => Module::Normalize,
            (model::Module::Dense(_) | model::Module::LayerNorm | model::Module::Normalize, _) => {
                panic!("the weights are those of the described modules")
            }
        })
    }
}

/// Everything in its order.
fn layout(sink: &mut Sink<'_>, desc: &ModelDesc, weights: &model::Weights) -> Called<Layout> {
    let scale = std::f64::consts::LOG2_E / (desc.head_dim() as f64).sqrt();
    let bias_radius = desc.longest_sequence().saturating_sub(1);
    Ok(Layout {
        word: sink.table(&weights.word_embeddings)?,
        position: sink.optional_table(weights.position_embeddings.as_ref())?,
        token_type: sink.optional_table(weights.token_type_embeddings.as_ref())?,
        embeddings_norm: sink.norm(&weights.embeddings_norm)?,
        embeddings_projection: weights.embeddings_projection.as_ref().map(|l| sink.linear(l)).transpose()?,
        attention_bias: match (desc.attention_bias, &weights.relative_attention_bias) {
            (AttentionBias::None, _) => Slice::NONE,
            (AttentionBias::RelativeBuckets, Some(table)) => {
                let (table, heads) = (table.to_f32(), desc.num_attention_heads);
                let of = |head, distance| table[relative_bucket(distance) * heads + head];
                sink.floats(&bias_lines(of, heads, bias_radius))?
            }
            (AttentionBias::Alibi, _) => {
                let heads = desc.num_attention_heads;
                let of = |head, distance: isize| alibi_slope(head, heads) * distance.unsigned_abs() as f32;
                sink.floats(&bias_lines(of, heads, bias_radius))?
            }
            (AttentionBias::RelativeBuckets, None) => {
                panic!("the weights are those of the described attention")
            }
        },
        bias_radius,
        layers: weights
            .layers
            .iter()
            .map(|l| {
                let no_norm = || panic!("of layers with norms behind, none lacks one");
                Ok(Layer {
                    qkv: sink.stacked(&[(&l.query, scale), (&l.key, 1.0), (&l.value, 1.0)])?,
                    attention_output: sink.linear(&l.attention_output)?,
                    attention_norm: sink.norm(l.attention_norm.as_ref().unwrap_or_else(no_norm))?,
                    intermediate: match desc.feed_forward {
                        FeedForward::Plain => sink.linear(&l.intermediate)?,
                        FeedForward::Gated => sink.gated(&l.intermediate)?,
                    },
                    output: sink.linear(&l.output)?,
                    output_norm: sink.norm(&l.output_norm)?,
                })
            })
            .collect::<Called<_>>()?,
        layer_order: desc.layer_order().collect(),
        modules: desc
            .modules
            .iter()
            .zip(&weights.modules)
            .map(|(module, weights)| sink.module(module, weights))
            .collect::<Called<_>>()?,
    })
}

/// The bias `of` a head and a key at each distance from its query, −radius to radius, for the softmax in base 2.
fn bias_lines(of: impl Fn(usize, isize) -> f32, heads: usize, radius: usize) -> Vec<f32> {
    let at = |head: usize, i: usize| {
        (f64::from(of(head, i as isize - radius as isize)) * std::f64::consts::LOG2_E) as f32
    };
    let at = &at;
    (0..heads).flat_map(|head| (0..=2 * radius).map(move |i| at(head, i))).collect()
}
