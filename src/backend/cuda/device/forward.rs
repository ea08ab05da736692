//! The order of the kernels, from ids to vectors. Everything goes into one stream; nothing waits, nothing is allocated.

use super::super::costs::pools_first_rows;
use super::memory::{Called, Slice};
use super::ops::{After, Pending, Pool, Queue, Rows, Vectors};
use super::slot::Inputs;
use super::support::{self, MOST_NORMALIZED_COLUMNS};
use super::weights::{Layer, Layout, Module, Norm, Residual};
use super::workspace::Workspace;
use crate::model::{self, FeedForward, ModelDesc, Pooling, Positions};

/// The rows of `x` behind the last layer.
#[derive(Clone, Copy)]
struct Pooled {
    rows: usize,
    /// `[batch + 1]`
    cu_seqlens: Slice<i32>,
}

/// One batch of one model.
pub(super) struct Forward<'a> {
    pub(super) queue: &'a Queue<'a>,
    pub(super) desc: &'a ModelDesc,
    pub(super) model: &'a Layout,
    pub(super) workspace: &'a Workspace,
    pub(super) inputs: &'a Inputs,
}

impl Forward<'_> {
    /// The batch's vectors, `[batch, dim]`, or those of its tokens, `[total_tokens, hidden]`.
    pub(super) fn run(&self, vectors: Slice<f32>, normalize: bool, token_vectors: bool) -> Called<()> {
        let (inputs, ws) = (self.inputs, self.workspace);
        let first_rows = !token_vectors && inputs.left_out_cls.is_none() && pools_first_rows(self.desc);
        let pooled = match first_rows {
            true => Pooled { rows: inputs.batch, cu_seqlens: ws.ones.all() },
            false => Pooled { rows: inputs.total_tokens, cu_seqlens: inputs.tokens.cu_seqlens },
        };
        self.embed()?;
        let mut x = Rows::finished(ws.x.all());
        for (step, &layer) in self.model.layer_order.iter().enumerate() {
            let last = step + 1 == self.model.layer_order.len();
            x = self.layer(x, &self.model.layers[layer], step, first_rows && last)?;
        }
        if let Some(norm) = &self.model.final_norm {
            x = self.norm(x.values, norm, ws.statistics(0), ws.x.all(), pooled.rows)?;
        }
        if let Some(pending) = x.pending {
            self.queue.apply(x.values, pending, [pooled.rows, self.desc.hidden_size])?;
        }
        match self.model.modules[..] {
            _ if token_vectors => {
                let size = [self.inputs.total_tokens, self.desc.hidden_size];
                self.vectors_of(self.workspace.x.all(), size, false, &Vectors::F32(vectors))
            }
            [] => self.pool(pooled, vectors, normalize),
            _ => self.pool_through_modules(pooled, vectors, normalize),
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
                model.embeddings_eps,
                out,
                size,
            )
        };
        match &model.embeddings_projection {
            None => embed(ws.x.all()),
            Some(projection) => {
                embed(ws.wide.all())?;
                self.queue.product(
                    Rows::finished(ws.wide.all()),
                    projection,
                    After::NOTHING,
                    ws.x.all(),
                    rows,
                )
            }
        }
    }

    /// From rows in `x` to rows in `x`: with norms behind, the last of them may be pending; with norms in front, rows as they
    /// are, as the residual adds them. With `first_rows`, behind its attention those of first tokens alone.
    fn layer<'b>(
        &self,
        input: Rows<'b>,
        layer: &'b Layer,
        step: usize,
        first_rows: bool,
    ) -> Called<Rows<'b>> {
        let (queue, desc, ws) = (self.queue, self.desc, self.workspace);
        let rows = self.inputs.total_tokens;
        let (x, y, z, wide) = (ws.x.all(), ws.y.all(), ws.z.all(), ws.wide.all());
        let bias = (self.model.attention_bias, self.model.bias_radius);
        let window = desc.reach(step).unwrap_or(0);
        let pre = desc.norms.in_front();

        let normed = match &layer.attention_norm {
            Some(norm) if pre => {
                // the embeddings have none, and what reads them is not folded
                let statistics = if layer.qkv.colsum.is_none() { Slice::NONE } else { ws.statistics(0) };
                self.norm(x, norm, statistics, z, rows)?
            }
            _ => input,
        };
        queue.product(normed, &layer.qkv, After::NOTHING, wide, rows)?;
        self.prepare_queries_and_keys(layer, wide, step)?;
        for path in self.inputs.attention.into_iter().filter(|path| path.entries.len() > 0) {
            queue.attention(path, wide, z, [rows, desc.num_attention_heads], bias, window)?;
        }
        let (attended, added, rows) = match first_rows {
            true => self.first_rows(z, input)?,
            false => (z, input, rows),
        };
        let statistics = ws.statistics(1);
        let after = After { statistics, ..After::adding(added) };
        queue.product(Rows::finished(attended), &layer.attention_output, after, y, rows)?;
        let norm = if pre { Some(&layer.output_norm) } else { layer.attention_norm.as_ref() };
        let norm = norm.expect("of layers with norms behind, none lacks one");
        let between = self.norm(y, norm, statistics, z, rows)?;
        let activation = support::activation(desc.hidden_act).expect("`support` refused what has no kernel");
        let gated = desc.feed_forward == FeedForward::Gated;
        queue.product(
            between,
            &layer.intermediate,
            After { activation, gated, ..After::NOTHING },
            wide,
            rows,
        )?;
        let statistics = ws.statistics(0);
        let residual = if pre { Rows::finished(y) } else { between };
        let after = After { statistics, ..After::adding(residual) };
        queue.product(Rows::finished(wide), &layer.output, after, x, rows)?;
        if pre { Ok(Rows::finished(x)) } else { self.norm(x, &layer.output_norm, statistics, x, rows) }
    }

    /// Of attention and what is added to it the rows of first tokens, and how many they are. In `wide`.
    fn first_rows<'b>(
        &self,
        attention: Slice<u16>,
        added: Rows<'b>,
    ) -> Called<(Slice<u16>, Rows<'b>, usize)> {
        let (inputs, hidden) = (self.inputs, self.desc.hidden_size);
        let to = self.workspace.first_rows(inputs.batch, hidden);
        let statistics = added.pending.map_or(Slice::NONE, |pending| pending.statistics);
        let size = [inputs.batch, inputs.total_tokens, hidden];
        let from = [attention, added.values];
        self.queue.first_rows(from, statistics, inputs.tokens.cu_seqlens, to, size)?;
        let [attended, values] = to.rows;
        let pending = added.pending.map(|pending| Pending { statistics: to.statistics, ..pending });
        Ok((attended, Rows { values, pending }, inputs.batch))
    }

    /// What comes between their product and attention: norms, and the turn by their positions.
    fn prepare_queries_and_keys(&self, layer: &Layer, qkv: Slice<u16>, step: usize) -> Called<()> {
        let (desc, model, inputs) = (self.desc, self.model, self.inputs);
        let (rows, hidden) = (inputs.total_tokens, desc.hidden_size);
        if let Some(norms) = &layer.query_key_norms {
            self.queue.layernorm_queries_and_keys(qkv, norms, desc.layer_norm_eps, [rows, hidden])?;
        }
        match desc.positions {
            Positions::FromZero | Positions::AfterPadding { .. } | Positions::None => Ok(()),
            Positions::Rotary { .. } => {
                let table = model.rotary[usize::from(desc.reach(step).is_some())];
                self.queue.rotate(qkv, inputs.tokens.positions, table, [rows, hidden, desc.head_dim()])
            }
        }
    }

    /// The layernorm of sums: left to those who use them, where there are statistics, or computed now, into `out`.
    fn norm<'b>(
        &self,
        sums: Slice<u16>,
        norm: &'b Norm,
        statistics: Slice<f32>,
        out: Slice<u16>,
        rows: usize,
    ) -> Called<Rows<'b>> {
        let eps = self.desc.layer_norm_eps;
        if !statistics.is_none() {
            return Ok(Rows { values: sums, pending: Some(Pending { norm, eps, statistics }) });
        }
        self.queue.layernorm(sums, norm, eps, out, [rows, self.desc.hidden_size])?;
        Ok(Rows::finished(out))
    }

    /// The modes side by side, in `out`'s rows.
    fn pool_modes(&self, pooled: Pooled, out: &Vectors, normalize: bool) -> Called<()> {
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
            let size = [inputs.batch, pooled.rows, desc.hidden_size];
            self.queue.pool(&pool, self.workspace.x.all(), pooled.cu_seqlens, out, size)?;
        }
        Ok(())
    }

    fn pool(&self, pooled: Pooled, vectors: Slice<f32>, normalize: bool) -> Called<()> {
        let at_once = self.desc.pooling.len() == 1 && self.desc.hidden_size <= MOST_NORMALIZED_COLUMNS;
        self.pool_modes(pooled, &Vectors::F32(vectors), normalize && at_once)?;
        if normalize && !at_once {
            self.queue.l2_normalize(vectors, [self.inputs.batch, self.desc.pooled_dim()])?;
        }
        Ok(())
    }

    /// Vectors of 16 bits go from module to module; at the end they are taken for sequences of one token, which pooling
    /// makes f32 and normalises.
    fn pool_through_modules(&self, pooled: Pooled, vectors: Slice<f32>, normalize: bool) -> Called<()> {
        let (queue, ws, rows) = (self.queue, self.workspace, self.inputs.batch);
        self.pool_modes(pooled, &ws.half_vectors(0), false)?;
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
                            let projected = ws.module_vectors(other);
                            queue.product(Rows::finished(x), weight, After::NOTHING, projected, rows)?;
                            projected
                        }
                    };
                    let after = After { activation: *activation, ..After::adding(Rows::finished(residual)) };
                    queue.product(Rows::finished(x), linear, after, out, rows)?;
                }
                Module::LayerNorm(norm) => {
                    queue.layernorm(x, norm, model::Module::LAYER_NORM_EPS, out, [rows, width])?;
                }
                Module::Normalize => self.vectors_of(x, [rows, width], true, &Vectors::Half(out))?,
            }
            width = desc.width(width);
            now = next;
        }
        let at_once = width <= MOST_NORMALIZED_COLUMNS;
        let size = [rows, width];
        self.vectors_of(ws.module_vectors(now), size, normalize && at_once, &Vectors::F32(vectors))?;
        if normalize && !at_once {
            queue.l2_normalize(vectors, [rows, width])?;
        }
        Ok(())
    }

    /// Each row for itself.
    fn vectors_of(
        &self,
        x: Slice<u16>,
        [rows, width]: [usize; 2],
        normalize: bool,
        out: &Vectors,
    ) -> Called<()> {
        let ones = self.workspace.ones.all();
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
