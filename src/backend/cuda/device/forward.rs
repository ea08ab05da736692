//! The order of the kernels, from ids to vectors. Everything goes into one stream; nothing waits, nothing is allocated.

use super::memory::{Called, Slice};
use super::ops::{After, Pool, Queue, Vectors};
use super::slot::Inputs;
use super::support::{self, MOST_NORMALIZED_COLUMNS};
use super::weights::{Layer, Layout, Module, Residual};
use super::workspace::Workspace;
use crate::model::{self, FeedForward, ModelDesc, Pooling};

/// One batch of one model.
pub(super) struct Forward<'a> {
    pub(super) queue: &'a Queue<'a>,
    pub(super) desc: &'a ModelDesc,
    pub(super) model: &'a Layout,
    pub(super) workspace: &'a Workspace,
    pub(super) inputs: &'a Inputs,
}

impl Forward<'_> {
    /// The batch's vectors, `[batch, dim]`.
    pub(super) fn run(&self, vectors: Slice<f32>, normalize: bool) -> Called<()> {
        self.embed()?;
        for (step, &layer) in self.model.layer_order.iter().enumerate() {
            self.layer(&self.model.layers[layer], step)?;
        }
        match self.model.modules[..] {
            [] => self.pool(vectors, normalize),
            _ => self.pool_through_modules(vectors, normalize),
        }
    }

    /// Into `x`.
    fn embed(&self) -> Called<()> {
        let (desc, model, ws) = (self.desc, self.model, self.workspace);
        let rows = self.inputs.total_tokens;
        let tables = [model.word, model.position, model.token_type];
        let embed = |out| {
            let size = [rows, desc.embedding_width()];
            self.queue.embed(
                tables,
                &self.inputs.tokens,
                &model.embeddings_norm,
                desc.layer_norm_eps,
                out,
                size,
            )
        };
        match &model.embeddings_projection {
            None => embed(ws.x.all()),
            Some(projection) => {
                embed(ws.wide.all())?;
                self.queue.product(ws.wide.all(), projection, After::NOTHING, ws.x.all(), rows)
            }
        }
    }

    /// From `x` to `x`.
    fn layer(&self, layer: &Layer, step: usize) -> Called<()> {
        let (queue, desc, ws) = (self.queue, self.desc, self.workspace);
        let rows = self.inputs.total_tokens;
        let (x, y, z, wide) = (ws.x.all(), ws.y.all(), ws.z.all(), ws.wide.all());
        let (eps, size) = (desc.layer_norm_eps, [rows, desc.hidden_size]);
        let bias = (self.model.attention_bias, self.model.bias_radius);
        let window = desc.reach(step).unwrap_or(0);

        queue.product(x, &layer.qkv, After::NOTHING, wide, rows)?;
        for (launch, entries) in &self.inputs.attention {
            queue.attention(launch, *entries, wide, z, [rows, desc.num_attention_heads], bias, window)?;
        }
        queue.product(z, &layer.attention_output, After::adding(x), y, rows)?;
        queue.layernorm(y, &layer.attention_norm, eps, z, size)?;
        let activation = support::activation(desc.hidden_act).expect("`support` refused what has no kernel");
        let gated = desc.feed_forward == FeedForward::Gated;
        queue.product(z, &layer.intermediate, After { activation, gated, ..After::NOTHING }, wide, rows)?;
        queue.product(wide, &layer.output, After::adding(z), y, rows)?;
        queue.layernorm(y, &layer.output_norm, eps, x, size)
    }

    /// The modes side by side, in `out`'s rows.
    fn pool_modes(&self, out: &Vectors, normalize: bool) -> Called<()> {
        let (desc, inputs) = (self.desc, self.inputs);
        for (i, &mode) in desc.pooling.iter().enumerate() {
            let left_out = if mode == Pooling::Cls { inputs.left_out_cls } else { inputs.left_out };
            let pool = Pool {
                mode: support::pooling(mode),
                normalize,
                left_out,
                stride: desc.pooled_dim(),
                column: i * desc.hidden_size,
            };
            let size = [inputs.batch, inputs.total_tokens, desc.hidden_size];
            self.queue.pool(&pool, self.workspace.x.all(), inputs.tokens.cu_seqlens, out, size)?;
        }
        Ok(())
    }

    fn pool(&self, vectors: Slice<f32>, normalize: bool) -> Called<()> {
        let at_once = self.desc.pooling.len() == 1 && self.desc.hidden_size <= MOST_NORMALIZED_COLUMNS;
        self.pool_modes(&Vectors::F32(vectors), normalize && at_once)?;
        if normalize && !at_once {
            self.queue.l2_normalize(vectors, [self.inputs.batch, self.desc.pooled_dim()])?;
        }
        Ok(())
    }

    /// Vectors of 16 bits go from module to module; at the end they are taken for sequences of one token, which pooling
    /// makes f32 and normalises.
    fn pool_through_modules(&self, vectors: Slice<f32>, normalize: bool) -> Called<()> {
        let (queue, ws, rows) = (self.queue, self.workspace, self.inputs.batch);
        self.pool_modes(&ws.half_vectors(0), false)?;
        let mut now = 0; // which of the three arrays has the vectors
        let mut width = self.desc.pooled_dim();
        for (module, desc) in self.model.modules.iter().zip(&self.desc.modules) {
            let (next, other) = ((now + 1) % 3, (now + 2) % 3);
            let (x, out) = (ws.module_vectors(now), ws.module_vectors(next));
            match module {
                Module::Dense { linear, activation, residual } => {
                    let residual = match residual {
                        Residual::None => Slice::NONE,
                        Residual::Input => x,
                        Residual::Projected(weight) => {
                            queue.product(x, weight, After::NOTHING, ws.module_vectors(other), rows)?;
                            ws.module_vectors(other)
                        }
                    };
                    let after = After { activation: *activation, gated: false, residual };
                    queue.product(x, linear, after, out, rows)?;
                }
                Module::LayerNorm(norm) => {
                    queue.layernorm(x, norm, model::Module::LAYER_NORM_EPS, out, [rows, width])?;
                }
                Module::Normalize => self.vectors_of(x, width, true, &Vectors::Half(out))?,
            }
            width = desc.width(width);
            now = next;
        }
        let at_once = width <= MOST_NORMALIZED_COLUMNS;
        self.vectors_of(ws.module_vectors(now), width, normalize && at_once, &Vectors::F32(vectors))?;
        if normalize && !at_once {
            queue.l2_normalize(vectors, [rows, width])?;
        }
        Ok(())
    }

    /// Each row for itself.
    fn vectors_of(&self, x: Slice<u16>, width: usize, normalize: bool, out: &Vectors) -> Called<()> {
        let rows = self.inputs.batch;
        let ones = self.workspace.ones.as_ref().map_or(Slice::NONE, |ones| ones.all());
        let pool = Pool {
            mode: support::pooling(Pooling::Cls),
            normalize,
            left_out: Slice::NONE,
            stride: width,
            column: 0,
        };
        self.queue.pool(&pool, x, ones, out, [rows, rows, width])
    }
}
