//! The forward pass of one tile of tokens: embed, the layers, pool.
//!
//! A tile is a run of whole sequences. One thread takes it through all layers while its activations stay in
//! that core's cache, or all threads share each step. Both give the same bits: no step's result for a row
//! depends on how the step is cut.
#![allow(unsafe_code, reason = "threads write rows of one matrix")]

use super::buffer::Buffer;
use super::gemm::{Matrix, Panels, SharedMut, gemm, narrow_gemm, pack_keys, pack_values};
use super::kernels::{Epilogue, Kernels};
use super::team::Team;
use super::weights::{Module, Norm, Packed, Product, Residual, Rotary};
use super::workspace::{HeadScratch, Pool, Workspace, matrix, matrix_mut, row_stride};
use crate::batch::PackedBatch;
use crate::model::{self, Activation, AttentionBias, FeedForward, ModelDesc, Positions};
use std::ops::Range;

/// What every tile reads.
pub(super) struct Forward<'a> {
    pub(super) desc: &'a ModelDesc,
    pub(super) kernels: &'static Kernels,
    pub(super) weights: &'a Packed,
    pub(super) heads: &'a Pool<HeadScratch>,
    pub(super) batch: &'a PackedBatch,
}

impl Forward<'_> {
    /// Computes the sequences `seqs` and writes their vectors to their rows of `out`, `[batch, dim]`; or those of their
    /// tokens to theirs, `[total_tokens, hidden]`.
    ///
    /// # Safety
    /// No one else touches these rows of `out` meanwhile.
    pub(super) unsafe fn tile(
        &self,
        team: Team<'_>,
        ws: &mut Workspace,
        seqs: Range<usize>,
        out: &SharedMut<'_>,
    ) {
        let (h, kernels) = (self.desc.hidden_size, self.kernels);
        let tokens = self.batch.seq(seqs.start).start..self.batch.seq(seqs.end - 1).end;
        let m = tokens.len();
        assert!(m <= ws.tokens(), "a tile of {m} tokens in a workspace for {}", ws.tokens());
        let (x_stride, qkv_stride, inner_stride) = (ws.x_stride, ws.qkv_stride, ws.inner_stride);

        match (&self.weights.embeddings_projection, self.desc.embedding_width()) {
            (None, _) => self.embed(team, tokens.clone(), &matrix_mut(&mut ws.x, m, h, x_stride)),
            (Some(projection), e) => {
                let stride = ws.embedding_stride;
                self.embed(team, tokens.clone(), &matrix_mut(&mut ws.wide, m, e, stride));
                let narrow = matrix(&ws.wide, m, e, stride);
                gemm(kernels, team, narrow, projection, None, false, &mut ws.x, x_stride);
            }
        }
        let (i, wide) = (self.desc.intermediate_size, self.desc.inner_width());
        let (steps, averaged) = (self.weights.layer_order.len(), self.desc.pooled_layers);
        let layers = self.weights.layer_order.iter().map(|&l| &self.weights.layers[l]);
        for (step, layer) in layers.enumerate() {
            let pre = self.desc.norms.in_front();
            // with the norms in front, `context` holds the normed rows until attention's output comes there
            let normed = layer.attention_norm.as_ref().filter(|_| pre);
            if let Some(norm) = normed {
                let from = matrix(&ws.x, m, h, x_stride);
                self.normed(team, norm, from, &matrix_mut(&mut ws.context, m, h, x_stride));
            }
            let input = matrix(if normed.is_some() { &ws.context } else { &ws.x }, m, h, x_stride);
            product(kernels, team, input, &layer.qkv, None, false, &mut ws.narrow, &mut ws.wide, qkv_stride);
            if let Some(norms) = &layer.query_key_norms {
                let eps = self.desc.layer_norm_eps;
                each_row(team, &matrix_mut(&mut ws.wide, m, 3 * h, qkv_stride), |_, row| {
                    for (part, norm) in row.chunks_exact_mut(h).zip(norms) {
                        kernels.layernorm(part, &norm.weight, &norm.bias, eps);
                    }
                });
            }
            let reach = self.desc.reach(step);
            match self.desc.positions {
                Positions::FromZero | Positions::None | Positions::AfterPadding { .. } => {}
                Positions::Rotary { .. } => {
                    let rotary = &self.weights.rotary[usize::from(reach.is_some())];
                    self.rotate(team, rotary, tokens.start, &matrix_mut(&mut ws.wide, m, 3 * h, qkv_stride));
                }
            }
            let qkv = matrix(&ws.wide, m, 3 * h, qkv_stride);
            let context = matrix_mut(&mut ws.context, m, h, x_stride);
            self.attention(team, seqs.clone(), reach, qkv, &context);
            let context = matrix(&ws.context, m, h, x_stride);
            product(
                kernels,
                team,
                context,
                &layer.attention_output,
                None,
                true,
                &mut ws.narrow,
                &mut ws.x,
                x_stride,
            );

            if pre {
                let from = matrix(&ws.x, m, h, x_stride);
                let to = matrix_mut(&mut ws.context, m, h, x_stride);
                self.normed(team, &layer.output_norm, from, &to);
            } else if let Some(norm) = &layer.attention_norm {
                self.layernorm(team, norm, &matrix_mut(&mut ws.x, m, h, x_stride));
            }
            let input = matrix(if pre { &ws.context } else { &ws.x }, m, h, x_stride);
            let act = match self.desc.feed_forward {
                FeedForward::Plain => Some(self.desc.hidden_act),
                FeedForward::Gated => None,
            };
            product(
                kernels,
                team,
                input,
                &layer.intermediate,
                act,
                false,
                &mut ws.narrow,
                &mut ws.wide,
                inner_stride,
            );
            match self.desc.feed_forward {
                FeedForward::Plain => {}
                FeedForward::Gated => {
                    each_row(team, &matrix_mut(&mut ws.wide, m, wide, inner_stride), |_, row| {
                        let (x, gate) = row.split_at_mut(i);
                        kernels.activate(self.desc.hidden_act, x);
                        kernels.multiply(x, gate);
                    });
                }
            }
            let inner = matrix(&ws.wide, m, i, inner_stride);
            product(kernels, team, inner, &layer.output, None, true, &mut ws.narrow, &mut ws.x, x_stride);
            if !pre {
                self.layernorm(team, &layer.output_norm, &matrix_mut(&mut ws.x, m, h, x_stride));
            }
            if averaged > 1 && step + averaged >= steps {
                let x = matrix(&ws.x, m, h, x_stride);
                let nth = step + averaged - steps + 1;
                average(team, nth, averaged, x, &matrix_mut(&mut ws.sum, m, h, x_stride));
            }
        }
        if let Some(norm) = &self.weights.final_norm {
            self.layernorm(team, norm, &matrix_mut(&mut ws.x, m, h, x_stride));
        }

        let token_vectors = if averaged > 1 { &ws.sum } else { &ws.x };
        let x = matrix(token_vectors, m, h, x_stride);
        if self.batch.token_vectors {
            team.for_each(m, |i| {
                // SAFETY: one call for each row, which the caller leaves to us
                let vector = unsafe { out.row(tokens.start + i) };
                vector.copy_from_slice(x.row(i));
            });
            return;
        }
        let pool = |i: usize, vector: &mut [f32]| {
            let seq = self.batch.seq(seqs.start + i);
            let x = x.part(seq.start - tokens.start, seq.len(), 0, h);
            for (&pooling, part) in self.desc.pooling.iter().zip(vector.chunks_exact_mut(h)) {
                kernels.pool(pooling, x, self.batch.skip_tokens, part);
            }
        };
        let finish = |vector: &mut [f32]| {
            if self.batch.normalize {
                kernels.l2_normalize(vector);
            }
        };
        if self.weights.modules.is_empty() {
            team.for_each(seqs.len(), |i| {
                // SAFETY: one call for each row, which the caller leaves to us
                let vector = unsafe { out.row(seqs.start + i) };
                pool(i, vector);
                finish(vector);
            });
            return;
        }
        let (width, stride) = (self.desc.pooled_dim(), ws.pooled_stride);
        each_row(team, &matrix_mut(&mut ws.pooled[0], seqs.len(), width, stride), pool);
        let vectors = self.modules(team, &mut ws.pooled, seqs.len(), width, stride);
        team.for_each(seqs.len(), |i| {
            // SAFETY: one call for each row, which the caller leaves to us
            let vector = unsafe { out.row(seqs.start + i) };
            vector.copy_from_slice(vectors.row(i));
            finish(vector);
        });
    }

    /// Takes `rows` vectors of `width` in the first buffer through the modules behind the pooling.
    fn modules<'b>(
        &self,
        team: Team<'_>,
        buffers: &'b mut [Buffer; 2],
        rows: usize,
        mut width: usize,
        stride: usize,
    ) -> Matrix<'b> {
        let kernels = self.kernels;
        let [mut x, mut y] = buffers.each_mut();
        for module in &self.weights.modules {
            match module {
                Module::Dense(dense) => {
                    let input = matrix(x, rows, width, stride);
                    gemm(kernels, team, input, &dense.linear, dense.activation, false, y, stride);
                    match &dense.residual {
                        Residual::None => {}
                        Residual::Input => each_row(team, &matrix_mut(y, rows, width, stride), |i, row| {
                            row.iter_mut().zip(input.row(i)).for_each(|(y, x)| *y += x);
                        }),
                        Residual::Projected(linear) => {
                            gemm(kernels, team, input, linear, None, true, y, stride);
                        }
                    }
                    width = dense.out_features;
                    std::mem::swap(&mut x, &mut y);
                }
                Module::LayerNorm(norm) => {
                    each_row(team, &matrix_mut(x, rows, width, stride), |_, row| {
                        kernels.layernorm(row, &norm.weight, &norm.bias, model::Module::LAYER_NORM_EPS);
                    });
                }
                Module::Normalize => {
                    let x = matrix_mut(x, rows, width, stride);
                    each_row(team, &x, |_, row| kernels.l2_normalize(row));
                }
            }
        }
        matrix(x, rows, width, stride)
    }

    /// x = layernorm(word + position + type), row by row.
    fn embed(&self, team: Team<'_>, tokens: Range<usize>, x: &SharedMut<'_>) {
        let e = self.desc.embedding_width();
        let norm = &self.weights.embeddings_norm;
        each_row(team, x, |i, row| {
            let t = tokens.start + i;
            let at = |i: u32| i as usize * e..(i as usize + 1) * e;
            self.weights.word.read_f32(at(self.batch.ids[t]).start, row);
            let position = match self.desc.positions {
                Positions::FromZero | Positions::AfterPadding { .. } => self.batch.positions[t],
                Positions::None | Positions::Rotary { .. } => 0,
            };
            let position = &self.weights.position[at(position)];
            let token_type = &self.weights.token_type[at(self.batch.type_ids[t])];
            let eps = self.desc.layer_norm_eps;
            self.kernels.embed_layernorm(row, position, token_type, &norm.weight, &norm.bias, eps);
        });
    }

    fn layernorm(&self, team: Team<'_>, norm: &Norm, x: &SharedMut<'_>) {
        let eps = self.desc.layer_norm_eps;
        each_row(team, x, |_, row| self.kernels.layernorm(row, &norm.weight, &norm.bias, eps));
    }

    /// y = layernorm(x), row by row.
    fn normed(&self, team: Team<'_>, norm: &Norm, x: Matrix<'_>, y: &SharedMut<'_>) {
        let eps = self.desc.layer_norm_eps;
        each_row(team, y, |i, row| {
            row.copy_from_slice(x.row(i));
            self.kernels.layernorm(row, &norm.weight, &norm.bias, eps);
        });
    }

    /// Rotates queries and keys, `[m, 3 * hidden]` with the values, by their positions.
    fn rotate(&self, team: Team<'_>, rotary: &Rotary, first: usize, qkv: &SharedMut<'_>) {
        let (h, d) = (self.desc.hidden_size, self.desc.head_dim());
        let half = d / 2;
        each_row(team, qkv, |i, row| {
            let at = self.batch.positions[first + i] as usize * half;
            let (cos, sin) = (&rotary.cos[at..at + half], &rotary.sin[at..at + half]);
            row[..2 * h].chunks_exact_mut(d).for_each(|head| self.kernels.rotate(head, cos, sin));
        });
    }

    /// context = softmax(Q Kᵀ + bias) V for each sequence and head; a query sees keys that far only.
    fn attention(
        &self,
        team: Team<'_>,
        seqs: Range<usize>,
        reach: Option<usize>,
        qkv: Matrix<'_>,
        context: &SharedMut<'_>,
    ) {
        let heads = self.desc.num_attention_heads;
        let first = self.batch.seq(seqs.start).start;
        team.for_each_with(seqs.len() * heads, self.heads, |unit, scratch| {
            let seq = self.batch.seq(seqs.start + unit / heads);
            // SAFETY: units differ in their sequence or in their head
            unsafe { self.head(seq.start - first, seq.len(), unit % heads, reach, qkv, context, scratch) };
        });
    }

    /// One head over one sequence: `seqlen` rows from `row`. The scores of a block of query rows against all
    /// keys that the block sees are held at a time.
    ///
    /// # Safety
    /// No one else touches this head's columns of these rows of `context` meanwhile.
    unsafe fn head(
        &self,
        row: usize,
        seqlen: usize,
        head: usize,
        reach: Option<usize>,
        qkv: Matrix<'_>,
        context: &SharedMut<'_>,
        scratch: &mut HeadScratch,
    ) {
        let (h, d, nr) = (self.desc.hidden_size, self.desc.head_dim(), self.kernels.nr);
        let part = |which: usize| qkv.part(row, seqlen, which * h + head * d, d);
        let (queries, keys, values) = (part(0), part(1), part(2));
        let value_panels = d.div_ceil(nr);
        let longest = self.desc.longest_sequence();
        let bias: &[f32] = match self.desc.attention_bias {
            AttentionBias::None => &[],
            AttentionBias::RelativeBuckets | AttentionBias::Alibi => {
                &self.weights.attention_bias[head * (2 * longest - 1)..][..2 * longest - 1]
            }
        };

        let block = HeadScratch::query_rows(seqlen);
        let mut packed = 0..0;
        for first in (0..seqlen).step_by(block) {
            let rows = block.min(seqlen - first);
            // the same for a sequence wherever it stands, so its bits are too
            let seen = match reach {
                None => 0..seqlen,
                Some(reach) => first.saturating_sub(reach)..(first + rows + reach).min(seqlen),
            };
            if packed != seen {
                pack_keys(keys.part(seen.start, seen.len(), 0, d), nr, &mut scratch.keys);
                pack_values(values.part(seen.start, seen.len(), 0, d), nr, &mut scratch.values);
                packed = seen.clone();
            }
            let n = seen.len();
            let keys = Panels::of_f32(&scratch.keys, n.next_multiple_of(nr), d, nr);
            let values = Panels::of_f32(&scratch.values, d, n, nr);
            let (panels, stride) = (keys.n / nr, row_stride(keys.n));

            let q = queries.part(first, rows, 0, d);
            let scores = SharedMut::new(&mut scratch.scores, rows, keys.n, stride);
            // SAFETY: the scores are this thread's scratch
            unsafe { self.kernels.gemm(q, &keys, 0..rows, 0..panels, Epilogue::None, &scores) };
            let scores = scratch.scores.chunks_mut(stride).zip(&mut scratch.scales[..rows]);
            for (query, (scores, scale)) in (first..).zip(scores) {
                if !bias.is_empty() {
                    // from the key `seen.start`, so many tokens before the query, on
                    let line = &bias[longest - 1 + seen.start - query..][..n];
                    self.kernels.add(&mut scores[..n], line);
                }
                if let Some(reach) = reach {
                    scores[..query.saturating_sub(reach).saturating_sub(seen.start)].fill(f32::NEG_INFINITY);
                    scores[(query + reach + 1 - seen.start).min(n)..n].fill(f32::NEG_INFINITY);
                }
                *scale = 1.0 / self.kernels.softmax(&mut scores[..keys.n], n);
            }
            let p = Matrix::new(&scratch.scores, rows, n, stride);
            let out = context.part(row + first, rows, head * d, d);
            let epilogue = Epilogue::RowScale(&scratch.scales);
            // SAFETY: the caller leaves these rows and columns to us
            unsafe { self.kernels.gemm(p, &values, 0..rows, 0..value_panels, epilogue, &out) };
        }
    }
}

/// out = f(a · w + bias) or that plus out, as the layer's weights were packed; `narrow` is scratch.
fn product(
    kernels: &Kernels,
    team: Team<'_>,
    a: Matrix<'_>,
    w: &Product,
    activation: Option<Activation>,
    residual: bool,
    narrow: &mut Buffer,
    out: &mut [f32],
    stride: usize,
) {
    match w {
        Product::F32(w) => gemm(kernels, team, a, w, activation, residual, out, stride),
        Product::Narrow(w) => narrow_gemm(team, a, w, activation, residual, narrow, out, stride),
    }
}

/// Adds the `nth` of `count` matrices to their sum, row by row; the last makes it their mean. An experiment's
/// need, so plain loops do.
fn average(team: Team<'_>, nth: usize, count: usize, x: Matrix<'_>, sum: &SharedMut<'_>) {
    each_row(team, sum, |i, row| {
        let x = x.row(i);
        if nth == 1 {
            row.copy_from_slice(x);
        } else {
            row.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
        }
        if nth == count {
            row.iter_mut().for_each(|sum| *sum /= count as f32);
        }
    });
}

/// Rows that a thread takes at a time.
const ROWS_PER_UNIT: usize = 16;

/// Calls `f` with each row of `x`, which the caller has borrowed for this alone.
fn each_row(team: Team<'_>, x: &SharedMut<'_>, f: impl Fn(usize, &mut [f32]) + Send + Sync) {
    team.for_each(x.rows().div_ceil(ROWS_PER_UNIT), |unit| {
        for i in unit * ROWS_PER_UNIT..x.rows().min((unit + 1) * ROWS_PER_UNIT) {
            // SAFETY: one call for each row
            f(i, unsafe { x.row(i) });
        }
    });
}
