//! The model's weights on the device: 16 bits where kernels multiply, f32 where they add, one allocation.
//!
//! The layout is walked twice, first to count bytes, then to convert and copy: of the whole model, the host's memory never
//! has a second copy. Values that do not fit f16 are noticed on the way.
//!
//! Products are stored as `kernels/epilogue.cuh` wants them: the layernorm of an input folded in, and what goes through a
//! layernorm freed of its mean, which that would take away anyway: sums then are small beside their spread when they are
//! rounded.

use super::super::costs::folds_layernorms;
use super::super::tiles::Element;
use super::driver::{self, Opened};
use super::memory::{ALIGNMENT, Called, Memory, Slice};
use super::support;
use crate::error::{Error, Result};
use crate::model::{
    self, AttentionBias, FeedForward, ModelDesc, ModuleWeights, Norms, Positions, Tensor, alibi_slope,
    relative_bucket, rotary_angle,
};
use cudarc::driver::result::DriverError;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Elements that are converted and copied at a time.
const BLOCK: usize = 1 << 20;
/// Tables of embeddings reach 2¹⁴ to 2¹⁵: f16 has as many bits of numbers 2²⁸ times smaller, and the sum of three still fits.
const TABLE_TOP_EXPONENT: f32 = 14.0;
/// Of a table's scale: its square still is an f32.
const MOST_EXPONENT: f32 = 60.0;

/// Everything that the forward pass reads.
pub(super) struct Weights {
    memory: Memory,
    pub(super) model: Layout,
    /// Whether a finite value became infinite.
    pub(super) overflow: bool,
}

/// Where each array is.
pub(super) struct Layout {
    /// f16 as all three, times a power of two: see [`table_scale`]. `[vocab_size, embedding_width]`
    pub(super) word: Slice<u16>,
    /// `[max_position_embeddings, embedding_width]`
    pub(super) position: Slice<u16>,
    /// `[type_vocab_size, embedding_width]`, or none
    pub(super) token_type: Slice<u16>,
    pub(super) embeddings_norm: Norm,
    /// The norm's, for tables times that power.
    pub(super) embeddings_eps: f32,
    pub(super) embeddings_projection: Option<Linear>,
    /// Times log₂ e, at each distance of key and query. `[heads, 2 * radius + 1]`, or none
    pub(super) attention_bias: Slice<f32>,
    pub(super) bias_radius: usize,
    /// Of global and of local layers: of each position the cosines of its angles, then their sines; or none.
    /// `[longest, head_dim]` each
    pub(super) rotary: [Slice<f32>; 2],
    pub(super) layers: Vec<Layer>,
    /// Which of them are computed, in this order.
    pub(super) layer_order: Vec<usize>,
    /// Behind the last layer, where the others are in front.
    pub(super) final_norm: Option<Norm>,
    pub(super) modules: Vec<Module>,
}

/// One encoder layer.
pub(super) struct Layer {
    /// Query, key and value one below the other; log₂(e)/√head_dim is in the query's part, or in its norm.
    /// `[3 * hidden, hidden]`
    pub(super) qkv: Linear,
    /// Of queries, then of keys, if there are such norms. `[2, hidden]`
    pub(super) query_key_norms: Option<Norm>,
    pub(super) attention_output: Linear,
    /// None is the identity.
    pub(super) attention_norm: Option<Norm>,
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
    /// Sums of the rows of `weight` where the layernorm of the input is folded in; else none. `[n]`
    pub(super) colsum: Slice<f32>,
    pub(super) n: usize,
    pub(super) k: usize,
}

#[derive(Clone, Copy)]
pub(super) struct Norm {
    /// `[width]`
    pub(super) gamma: Slice<f32>,
    /// `[width]`
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
        let mut count = Sink { at: 0, element, device: None, overflow: false, half: Vec::new() };
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
    half: Vec<u16>,
}

/// What is to become of the weights of a product.
#[derive(Clone, Copy, Default)]
struct Form<'a> {
    /// The two halves have their rows in turn, as the epilogue wants them: what is activated first.
    gated: bool,
    /// The layernorm of the input that is folded in.
    folded: Option<&'a model::Norm>,
    /// Whether a layernorm follows, which takes away what all columns of a row have in common.
    centred: bool,
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

    /// What takes time to make, made only where it is written.
    fn computed(&mut self, len: usize, values: impl FnOnce() -> Vec<f32>) -> Called<Slice<f32>> {
        match self.device {
            None => Ok(self.place(len)),
            Some(_) => self.floats(&values()),
        }
    }

    /// Into `half`, in 16 bits.
    fn convert(&mut self, element: Element, values: &[f32]) {
        self.half.resize(values.len(), 0);
        match element {
            Element::F16 => {
                let to: &mut [f16] = bytemuck::cast_slice_mut(&mut self.half);
                to.convert_from_f32_slice(values);
                let became_infinite = |(h, v): (&f16, &f32)| h.is_infinite() && v.is_finite();
                self.overflow |= to.iter().zip(values).any(became_infinite);
            }
            Element::Bf16 => {
                let to: &mut [bf16] = bytemuck::cast_slice_mut(&mut self.half);
                to.convert_from_f32_slice(values);
            }
        }
    }

    /// A table of embeddings, times `scale`.
    fn table(&mut self, tensor: &Tensor, scale: f32) -> Called<Slice<u16>> {
        let slice = self.place::<u16>(tensor.numel());
        let Some(memory) = self.device else { return Ok(slice) };
        let mut offset = self.at - 2 * tensor.numel();
        for_blocks(tensor, |block| {
            block.iter_mut().for_each(|v| *v *= scale);
            self.convert(Element::F16, block);
            memory.write(offset, &self.half)?;
            offset += size_of_val(&self.half[..]);
            Ok(())
        })?;
        Ok(slice)
    }

    fn optional_table(&mut self, tensor: Option<&Tensor>, scale: f32) -> Called<Slice<u16>> {
        tensor.map_or(Ok(Slice::NONE), |tensor| self.table(tensor, scale))
    }

    fn norm(&mut self, norm: &model::Norm) -> Called<Norm> {
        Ok(Norm { gamma: self.floats(&norm.weight.to_f32())?, beta: self.floats(&beta(norm))? })
    }

    /// Norms of queries, times `scale`, and of keys.
    fn query_key_norms(&mut self, layer: &model::Layer, scale: f64) -> Called<Option<Norm>> {
        let (Some(query), Some(key)) = (&layer.query_norm, &layer.key_norm) else {
            assert!(layer.query_norm.is_none() && layer.key_norm.is_none(), "both are normed or neither");
            return Ok(None);
        };
        let scaled = |values: Vec<f32>| values.into_iter().map(|v| (f64::from(v) * scale) as f32).collect();
        let both = |query: Vec<f32>, key: Vec<f32>| -> Vec<f32> { [scaled(query), key].concat() };
        Ok(Some(Norm {
            gamma: self.floats(&both(query.weight.to_f32(), key.weight.to_f32()))?,
            beta: self.floats(&both(beta(query), beta(key)))?,
        }))
    }

    fn linear(&mut self, linear: &model::Linear, form: Form<'_>) -> Called<Linear> {
        self.stacked(&[(linear, 1.0)], form)
    }

    /// Linears of one input, one below the other, each times a factor.
    fn stacked(&mut self, linears: &[(&model::Linear, f64)], form: Form<'_>) -> Called<Linear> {
        let n: usize = linears.iter().map(|(l, _)| l.weight.shape()[0]).sum();
        let k = linears[0].0.weight.shape()[1];
        let has_bias = form.folded.is_some() || linears.iter().any(|(l, _)| l.bias.is_some());
        let weight = self.place::<u16>(n * k);
        let offset = self.at - 2 * n * k;
        let (mut bias, mut colsum) = (vec![0.0; n], vec![0.0; n]);
        if let Some(memory) = self.device {
            let mut w = vec![0.0; n * k];
            let mut exact_bias = vec![0.0; n];
            stack(linears, &mut w, &mut exact_bias);
            shape(form, k, &mut w, &mut exact_bias);
            self.convert(self.element, &w);
            memory.write(offset, &self.half)?;
            bias = exact_bias.iter().map(|&v| v as f32).collect();
            if form.folded.is_some() {
                colsum = self.row_sums(k);
            }
        }
        Ok(Linear {
            weight,
            bias: if has_bias { self.floats(&bias)? } else { Slice::NONE },
            colsum: if form.folded.is_some() { self.floats(&colsum)? } else { Slice::NONE },
            n,
            k,
        })
    }

    /// Of `half`, which has rows of `k`: of the weights as they were rounded, so that a row's mean cancels.
    fn row_sums(&self, k: usize) -> Vec<f32> {
        let value = |&bits: &u16| match self.element {
            Element::F16 => f16::from_bits(bits).to_f64(),
            Element::Bf16 => bf16::from_bits(bits).to_f64(),
        };
        self.half.chunks_exact(k).map(|row| row.iter().map(value).sum::<f64>() as f32).collect()
    }

    fn module(&mut self, module: &model::Module, weights: &ModuleWeights) -> Called<Module> {
        Ok(match (module, weights) {
            (model::Module::Dense(dense), ModuleWeights::Dense { linear, residual }) => Module::Dense {
                linear: self.linear(linear, Form::default())?,
                activation: dense.activation.and_then(support::activation).unwrap_or(0),
                residual: match residual {
                    Some(weight) => {
                        let plain = model::Linear { weight: weight.clone(), bias: None };
                        Residual::Projected(self.linear(&plain, Form::default())?)
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

/// Every element of a tensor, in blocks.
fn for_blocks(tensor: &Tensor, mut each: impl FnMut(&mut [f32]) -> Called<()>) -> Called<()> {
    let mut block = vec![0.0; BLOCK.min(tensor.numel())];
    let mut first = 0;
    while first < tensor.numel() {
        let n = (tensor.numel() - first).min(BLOCK);
        tensor.read_f32(first, &mut block[..n]);
        each(&mut block[..n])?;
        first += n;
    }
    Ok(())
}

/// The power of two that tables of embeddings are stored with, for their f16 to have its range in the right place: the
/// largest number comes near the top of it. The layernorm over the sum of the three takes it out again.
fn table_scale(tables: &[&Tensor]) -> f32 {
    let mut largest = 0f32;
    for table in tables {
        let found = for_blocks(table, |block| {
            let magnitudes = block.iter().map(|v| v.abs()).filter(|v| v.is_finite());
            largest = magnitudes.fold(largest, f32::max);
            Ok(())
        });
        assert!(found.is_ok(), "nothing is called");
    }
    if largest == 0.0 {
        return 1.0;
    }
    // eps times its square has to stay a number
    let exponent = (TABLE_TOP_EXPONENT - largest.log2().floor()).clamp(-MOST_EXPONENT, MOST_EXPONENT);
    exponent.exp2()
}

/// The linears' weights and biases, one below the other.
fn stack(linears: &[(&model::Linear, f64)], w: &mut [f32], bias: &mut [f64]) {
    let (mut w, mut bias) = (w, bias);
    for (linear, factor) in linears {
        let (rows, k) = (linear.weight.shape()[0], linear.weight.shape()[1]);
        let (of_it, rest) = w.split_at_mut(rows * k);
        let (its_bias, rest_of_bias) = bias.split_at_mut(rows);
        linear.weight.read_f32(0, of_it);
        if *factor != 1.0 {
            of_it.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
        }
        if let Some(b) = &linear.bias {
            for (to, v) in its_bias.iter_mut().zip(b.to_f32()) {
                *to = f64::from(v) * factor;
            }
        }
        (w, bias) = (rest, rest_of_bias);
    }
}

/// Gives weights `[n, k]` and their bias the form.
fn shape(form: Form<'_>, k: usize, w: &mut Vec<f32>, bias: &mut Vec<f64>) {
    let n = bias.len();
    if form.gated {
        let order = || (0..n / 2).flat_map(|i| [i, n / 2 + i]);
        *w = order().flat_map(|row| w[row * k..(row + 1) * k].iter().copied()).collect();
        *bias = order().map(|row| bias[row]).collect();
    }
    if form.centred {
        let mut mean = vec![0f64; k];
        for row in w.chunks_exact(k) {
            mean.iter_mut().zip(row).for_each(|(m, &v)| *m += f64::from(v) / n as f64);
        }
        for row in w.chunks_exact_mut(k) {
            row.iter_mut().zip(&mean).for_each(|(v, m)| *v = (f64::from(*v) - m) as f32);
        }
        let mean = bias.iter().sum::<f64>() / n as f64;
        bias.iter_mut().for_each(|b| *b -= mean);
    }
    if let Some(norm) = form.folded {
        let (gamma, beta) = (norm.weight.to_f32(), beta(norm));
        for (row, bias) in w.chunks_exact_mut(k).zip(bias) {
            for ((v, gamma), beta) in row.iter_mut().zip(&gamma).zip(&beta) {
                *bias += f64::from(*v) * f64::from(*beta);
                *v *= gamma;
            }
        }
    }
}

/// Zeros where the model has none.
fn beta(norm: &model::Norm) -> Vec<f32> {
    norm.bias.as_ref().map_or_else(|| vec![0.0; norm.weight.numel()], Tensor::to_f32)
}

/// Everything in its order.
fn layout(sink: &mut Sink<'_>, desc: &ModelDesc, weights: &model::Weights) -> Called<Layout> {
    let scale = std::f64::consts::LOG2_E / (desc.head_dim() as f64).sqrt();
    let bias_radius = desc.longest_sequence().saturating_sub(1);
    let tables: Vec<&Tensor> = std::iter::once(&weights.word_embeddings)
        .chain(&weights.position_embeddings)
        .chain(&weights.token_type_embeddings)
        .collect();
    let table_scale = if sink.device.is_some() { table_scale(&tables) } else { 1.0 };
    let folded = folds_layernorms(desc);
    let mut below: Option<&model::Norm> = None;
    let (longest, d) = (desc.longest_sequence(), desc.head_dim());
    // what is added to the residual is normalised behind it; or in front of all that reads it, which the first attention does not
    let centred = desc.layer_order().skip(1).all(|l| weights.layers[l].attention_norm.is_some());
    Ok(Layout {
        word: sink.table(&weights.word_embeddings, table_scale)?,
        position: sink.optional_table(weights.position_embeddings.as_ref(), table_scale)?,
        token_type: sink.optional_table(weights.token_type_embeddings.as_ref(), table_scale)?,
        embeddings_norm: sink.norm(&weights.embeddings_norm)?,
        embeddings_eps: desc.layer_norm_eps * table_scale * table_scale,
        embeddings_projection: weights
            .embeddings_projection
            .as_ref()
            .map(|l| sink.linear(l, Form::default()))
            .transpose()?,
        attention_bias: match (desc.attention_bias, &weights.relative_attention_bias) {
            (AttentionBias::None, _) => Slice::NONE,
            (AttentionBias::RelativeBuckets, Some(table)) => {
                let (table, heads) = (table.to_f32(), desc.num_attention_heads);
                let of = |head, distance| table[relative_bucket(distance) * heads + head];
                sink.computed(heads * (2 * bias_radius + 1), || bias_lines(of, heads, bias_radius))?
            }
            (AttentionBias::Alibi, _) => {
                let heads = desc.num_attention_heads;
                let of = |head, distance: isize| alibi_slope(head, heads) * distance.unsigned_abs() as f32;
                sink.computed(heads * (2 * bias_radius + 1), || bias_lines(of, heads, bias_radius))?
            }
            (AttentionBias::RelativeBuckets, None) => {
                panic!("the weights are those of the described attention")
            }
        },
        bias_radius,
        rotary: match desc.positions {
            Positions::FromZero | Positions::AfterPadding { .. } | Positions::None => [Slice::NONE; 2],
            Positions::Rotary { global_base, local_base, divisor } => {
                let mut table = |base| sink.computed(longest * d, || rotary_table(longest, d, base, divisor));
                let global = table(global_base)?;
                [global, if local_base == global_base { global } else { table(local_base)? }]
            }
        },
        layers: weights
            .layers
            .iter()
            .enumerate()
            .map(|(i, l)| {
                let attention_norm = l.attention_norm.as_ref();
                // the norms of what the two halves of a layer read, where products have left the rows' statistics
                let [of_attention, of_feed_forward] = match desc.norms {
                    Norms::Post | Norms::PostQueryKey => [below.replace(&l.output_norm), attention_norm],
                    // the embeddings have no statistics
                    Norms::Pre => [attention_norm.filter(|_| i > 0), Some(&l.output_norm)],
                };
                let plain = Form::default();
                let before_norm = Form { centred, ..plain };
                let gated = desc.feed_forward == FeedForward::Gated;
                let query_scale = if l.query_norm.is_some() { 1.0 } else { scale };
                Ok(Layer {
                    qkv: sink.stacked(
                        &[(&l.query, query_scale), (&l.key, 1.0), (&l.value, 1.0)],
                        Form { folded: of_attention.filter(|_| folded), ..plain },
                    )?,
                    query_key_norms: sink.query_key_norms(l, scale)?,
                    attention_output: sink.linear(&l.attention_output, before_norm)?,
                    attention_norm: attention_norm.map(|norm| sink.norm(norm)).transpose()?,
                    intermediate: sink.linear(
                        &l.intermediate,
                        Form { gated, folded: of_feed_forward.filter(|_| folded), ..plain },
                    )?,
                    output: sink.linear(&l.output, before_norm)?,
                    output_norm: sink.norm(&l.output_norm)?,
                })
            })
            .collect::<Called<_>>()?,
        layer_order: desc.layer_order().collect(),
        final_norm: weights.final_norm.as_ref().map(|norm| sink.norm(norm)).transpose()?,
        modules: desc
            .modules
            .iter()
            .zip(&weights.modules)
            .map(|(module, weights)| sink.module(module, weights))
            .collect::<Called<_>>()?,
    })
}

/// Of each position the cosines of its angles, then their sines, from f64 as everywhere. `[longest, head_dim]`
fn rotary_table(longest: usize, head_dim: usize, base: f32, divisor: f32) -> Vec<f32> {
    let angle = |position: usize, i| f64::from(rotary_angle(position as u32, i, head_dim, base, divisor));
    let mut table = Vec::with_capacity(longest * head_dim);
    for position in 0..longest {
        table.extend((0..head_dim / 2).map(|i| angle(position, i).cos() as f32));
        table.extend((0..head_dim / 2).map(|i| angle(position, i).sin() as f32));
    }
    table
}

/// The bias `of` a head and a key at each distance from its query, −radius to radius, for the softmax in base 2.
fn bias_lines(of: impl Fn(usize, isize) -> f32, heads: usize, radius: usize) -> Vec<f32> {
    let at = |head: usize, i: usize| {
        (f64::from(of(head, i as isize - radius as isize)) * std::f64::consts::LOG2_E) as f32
    };
    let at = &at;
    (0..heads).flat_map(|head| (0..=2 * radius).map(move |i| at(head, i))).collect()
}
