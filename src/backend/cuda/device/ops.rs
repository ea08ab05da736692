//! Each kernel as a call: lengths are checked, the launch is the one that the tables choose.
//!
//! Knows one operation at a time, and nothing of their order. As long as there are kernels.
#![allow(unsafe_code, reason = "launches, each behind the checks of its lengths")]

use super::super::costs::EncoderShape;
use super::super::tiles::{
    Element, EpilogueKind, Gemm, GemmLaunch, Multiplier, RowLaunch, SPLITK_REDUCE, TileTable,
};
use super::kernels::{Argument, Begin, Epilogue, Grid, Kernels};
use super::memory::{Called, Slice};
use super::slot::Attention;
use super::tensor_maps::TensorMaps;
use super::weights::{Linear, Norm};
use cudarc::driver::CudaStream;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

/// `RowNormKind` of `kernels/rows.cuh`.
const LAYERNORM: i32 = 1;
/// Rows of a block of `layernorm_from_stats`.
const FROM_STATS_ROWS: usize = 8;
/// Products whose launches are remembered; a service sees as many batch sizes.
const MOST_REMEMBERED: usize = 4096;

/// A stream, and what launches into it depend on.
pub(super) struct Queue<'a> {
    pub(super) stream: &'a CudaStream,
    pub(super) kernels: &'a Kernels,
    pub(super) table: &'a TileTable,
    pub(super) products: &'a Products,
    /// Partial sums of split products.
    pub(super) partials: Slice<f32>,
    /// Whether the last thing in the stream is a kernel; not at first, when the stream waits for a copy.
    pub(super) follows_kernel: Cell<bool>,
}

/// How products are launched: chosen once for each shape.
pub(super) struct Products {
    shape: EncoderShape,
    batch_invariant: bool,
    chosen: RefCell<HashMap<([usize; 3], EpilogueKind), GemmLaunch>>,
    maps: TensorMaps,
}

impl Products {
    pub(super) fn new(shape: EncoderShape, element: Element, batch_invariant: bool) -> Self {
        Self { shape, batch_invariant, chosen: RefCell::default(), maps: TensorMaps::new(element) }
    }

    /// Of the table's choices, one whose partial sums fit.
    fn launch(
        &self,
        table: &TileTable,
        [m, n, k]: [usize; 3],
        epilogue: EpilogueKind,
        partials: usize,
    ) -> GemmLaunch {
        let mut chosen = self.chosen.borrow_mut();
        if chosen.len() >= MOST_REMEMBERED {
            chosen.clear();
        }
        *chosen.entry(([m, n, k], epilogue)).or_insert_with(|| {
            let gemm = Gemm {
                m,
                n,
                k,
                epilogue,
                weights_in_l2: self.shape.weights_in_l2(table.gpu(), m),
                batch_invariant: self.batch_invariant,
            };
            let launch = table.gemm(&gemm);
            match launch.reduce {
                Some(reduce) if reduce.partials > partials => {
                    table.gemm(&Gemm { batch_invariant: true, ..gemm })
                }
                _ => launch,
            }
        })
    }
}

/// Rows `[rows, width]`, finished or as sums whose layernorm is left to those who use them.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) values: Slice<u16>,
    pub(super) pending: Option<Pending<'a>>,
}

impl Rows<'_> {
    pub(super) const NONE: Self = Self::finished(Slice::NONE);

    pub(super) const fn finished(values: Slice<u16>) -> Self {
        Self { values, pending: None }
    }
}

/// A layernorm that is still to be applied.
#[derive(Clone, Copy)]
pub(super) struct Pending<'a> {
    pub(super) norm: &'a Norm,
    pub(super) eps: f32,
    /// Of the rows, as the product that made them left them. `[rows, ceil(width / 64), 2]`
    pub(super) statistics: Slice<f32>,
}

/// `NormTarget` of `kernels/epilogue.cuh`.
const NORM_INPUT: i32 = 1;
const NORM_RESIDUAL: i32 = 2;
/// Columns that `SEGMENT` of `kernels/epilogue.cuh` keeps statistics of.
pub(super) const STATISTICS_COLUMNS: usize = 64;

/// What follows a product.
#[derive(Clone, Copy)]
pub(super) struct After<'a> {
    /// As `support::activation` numbers it; 0: none.
    pub(super) activation: i32,
    pub(super) gated: bool,
    /// `[m, n]`, or none
    pub(super) residual: Rows<'a>,
    /// Where statistics of the result go, or none. `[m, ceil(n / 64), 2]`
    pub(super) statistics: Slice<f32>,
}

impl<'a> After<'a> {
    pub(super) const NOTHING: Self =
        Self { activation: 0, gated: false, residual: Rows::NONE, statistics: Slice::NONE };

    pub(super) fn adding(residual: Rows<'a>) -> Self {
        Self { residual, ..Self::NOTHING }
    }
}

/// The tokens of a batch on the device.
#[derive(Clone, Copy)]
pub(super) struct Tokens {
    /// `[total_tokens]` each
    pub(super) ids: Slice<i32>,
    pub(super) positions: Slice<i32>,
    pub(super) type_ids: Slice<i32>,
    /// `[batch + 1]`
    pub(super) cu_seqlens: Slice<i32>,
}

/// What is pooled, and where it goes.
pub(super) struct Pool {
    /// As `support::pooling` numbers it.
    pub(super) mode: i32,
    pub(super) normalize: bool,
    /// `[batch]`, or none
    pub(super) left_out: Slice<i32>,
    /// Columns of the output, and the first of them that is written.
    pub(super) stride: usize,
    pub(super) column: usize,
}

/// Where rows of first tokens go, and their statistics.
#[derive(Clone, Copy)]
pub(super) struct FirstRows {
    /// `[batch, hidden]` each
    pub(super) rows: [Slice<u16>; 2],
    /// `[batch, ceil(hidden / 64), 2]`
    pub(super) statistics: Slice<f32>,
}

/// Vectors, f32 at the end or 16 bits if modules follow.
pub(super) enum Vectors {
    F32(Slice<f32>),
    Half(Slice<u16>),
}

pub(super) fn holds<T>(what: &str, slice: Slice<T>, len: usize) {
    assert!(slice.len() >= len, "{what}: {} elements, {len} needed", slice.len());
}

/// None, or as long.
pub(super) fn may_hold<T>(what: &str, slice: Slice<T>, len: usize) {
    assert!(slice.is_none() || slice.len() >= len, "{what}: {} elements, {len} needed", slice.len());
}

impl Queue<'_> {
    /// # Safety
    /// As [`Kernels::launch`].
    unsafe fn launch(
        &self,
        name: &str,
        grid: impl Into<Grid>,
        dynamic_shared: usize,
        arguments: &[Argument],
    ) -> Called<()> {
        let follows_kernel = self.follows_kernel.replace(true);
        // SAFETY: the caller's promise
        unsafe {
            let begin = if follows_kernel { Begin::WithPredecessor } else { Begin::AfterPredecessor };
            self.kernels.launch(self.stream, begin, name, grid.into(), dynamic_shared, arguments)
        }
    }

    /// A launch whose blocks all run at once, or those of each cluster, or none.
    ///
    /// # Safety
    /// As [`Kernels::launch`].
    pub(super) unsafe fn launch_together(
        &self,
        name: &str,
        grid: Grid,
        dynamic_shared: usize,
        arguments: &[Argument],
    ) -> Called<()> {
        self.follows_kernel.set(true);
        let begin = if grid.cluster > 1 { Begin::AfterPredecessor } else { Begin::AllBlocks };
        // SAFETY: the caller's promise
        unsafe { self.kernels.launch(self.stream, begin, name, grid, dynamic_shared, arguments) }
    }

    /// Three tables' rows, added and normalised. `out` `[total_tokens, width]`
    pub(super) fn embed(
        &self,
        [word, position, token_type]: [Slice<u16>; 3],
        tokens: &Tokens,
        norm: &Norm,
        eps: f32,
        out: Slice<u16>,
        [rows, width]: [usize; 2],
    ) -> Called<()> {
        let launch = self.row_kernel("embed_layernorm", rows, width, 8 * width);
        for ids in [tokens.ids, tokens.positions, tokens.type_ids] {
            holds("ids", ids, rows);
        }
        holds("embeddings", out, rows * width);
        check_norm(norm, width);
        // SAFETY: lengths are checked above; ids, types and positions are inside their tables, which is the seam's promise
        unsafe {
            self.launch(
                &launch.name,
                launch.grid,
                launch.dynamic_shared,
                &[
                    word.into(),
                    position.into(),
                    token_type.into(),
                    tokens.ids.into(),
                    tokens.positions.into(),
                    tokens.type_ids.into(),
                    norm.gamma.into(),
                    norm.beta.into(),
                    out.into(),
                    rows.into(),
                    width.into(),
                    Argument::Float(eps),
                    Argument::Int(LAYERNORM),
                ],
            )
        }
    }

    /// Layernorm of each row. `x`, `out` `[rows, width]`
    pub(super) fn layernorm(
        &self,
        x: Slice<u16>,
        norm: &Norm,
        eps: f32,
        out: Slice<u16>,
        [rows, width]: [usize; 2],
    ) -> Called<()> {
        self.layernorm_of_parts(x, norm, eps, out, [rows, width], [1, width])
    }

    /// Layernorms of queries and of keys, each over all heads, in place. `qkv` `[rows, 3 * width]`, the norm `[2, width]`
    pub(super) fn layernorm_queries_and_keys(
        &self,
        qkv: Slice<u16>,
        norm: &Norm,
        eps: f32,
        [rows, width]: [usize; 2],
    ) -> Called<()> {
        self.layernorm_of_parts(qkv, norm, eps, qkv, [rows, width], [2, 3 * width])
    }

    /// Layernorms of the first `parts * width` columns, each part with its own. `x`, `out` `[rows, stride]`
    fn layernorm_of_parts(
        &self,
        x: Slice<u16>,
        norm: &Norm,
        eps: f32,
        out: Slice<u16>,
        [rows, width]: [usize; 2],
        [parts, stride]: [usize; 2],
    ) -> Called<()> {
        let launch = self.row_kernel("residual_layernorm", parts * rows, width, 4 * width);
        holds("rows", x, rows * stride);
        holds("normalised rows", out, rows * stride);
        check_norm(norm, parts * width);
        // SAFETY: lengths are checked above
        unsafe {
            self.launch(
                &launch.name,
                launch.grid,
                launch.dynamic_shared,
                &[
                    x.into(),
                    Slice::<u16>::NONE.into(),
                    norm.gamma.into(),
                    norm.beta.into(),
                    out.into(),
                    (parts * rows).into(),
                    width.into(),
                    parts.into(),
                    stride.into(),
                    Argument::Float(eps),
                    Argument::Int(LAYERNORM),
                ],
            )
        }
    }

    /// Turns queries and keys by their tokens' positions, in place. `qkv` `[rows, 3 * hidden]`, `table` `[longest, head_dim]`
    pub(super) fn rotate(
        &self,
        qkv: Slice<u16>,
        positions: Slice<i32>,
        table: Slice<f32>,
        [rows, hidden, head_dim]: [usize; 3],
    ) -> Called<()> {
        let launch = self.table.rotary(rows, hidden, head_dim);
        holds("queries, keys and values", qkv, 3 * rows * hidden);
        holds("positions", positions, rows);
        holds("a position's angles", table, head_dim);
        let arguments =
            [qkv.into(), positions.into(), table.into(), rows.into(), hidden.into(), head_dim.into()];
        // SAFETY: lengths are checked above; positions are inside the table, which is the seam's promise
        unsafe { self.launch(&launch.name, launch.grid, launch.dynamic_shared, &arguments) }
    }

    /// The first token's rows of each sequence, of both `from`, and their statistics if there are some, below each other in `to`.
    pub(super) fn first_rows(
        &self,
        from: [Slice<u16>; 2],
        statistics: Slice<f32>,
        cu_seqlens: Slice<i32>,
        to: FirstRows,
        [batch, total_tokens, hidden]: [usize; 3],
    ) -> Called<()> {
        let launch = self.table.first_rows(batch, hidden);
        let statistics_len = |rows: usize| 2 * rows * hidden.div_ceil(STATISTICS_COLUMNS);
        for (from, to) in from.into_iter().zip(to.rows) {
            holds("rows", from, total_tokens * hidden);
            holds("first rows", to, batch * hidden);
        }
        may_hold("statistics", statistics, statistics_len(total_tokens));
        holds("statistics of first rows", to.statistics, statistics_len(batch));
        holds("cu_seqlens", cu_seqlens, batch + 1);
        let ([x, y], [x_out, y_out]) = (from, to.rows);
        let arguments = [
            x.into(),
            y.into(),
            statistics.into(),
            cu_seqlens.into(),
            x_out.into(),
            y_out.into(),
            to.statistics.into(),
            hidden.into(),
        ];
        // SAFETY: lengths are checked above; sequences are within total_tokens
        unsafe { self.launch(&launch.name, launch.grid, launch.dynamic_shared, &arguments) }
    }

    /// The layernorm that no product applies, in place. `[rows, width]`
    pub(super) fn apply(&self, x: Slice<u16>, pending: Pending<'_>, [rows, width]: [usize; 2]) -> Called<()> {
        holds("rows", x, rows * width);
        holds("statistics", pending.statistics, 2 * rows * width.div_ceil(STATISTICS_COLUMNS));
        check_norm(pending.norm, width);
        let arguments = [
            x.into(),
            pending.statistics.into(),
            pending.norm.gamma.into(),
            pending.norm.beta.into(),
            x.into(),
            rows.into(),
            width.into(),
            Argument::Float(pending.eps),
        ];
        // SAFETY: lengths are checked above; a row is read and written by one warp
        unsafe { self.launch("layernorm_from_stats", [rows.div_ceil(FROM_STATS_ROWS), 1], 0, &arguments) }
    }

    fn row_kernel(&self, op: &str, rows: usize, width: usize, row_bytes: usize) -> RowLaunch {
        self.table.row_kernel(op, rows, width, row_bytes).expect("`support` refused wider rows")
    }

    /// x Wᵀ + b and what follows. `x` `[m, k]`, `out` `[m, n]`, gated `[m, n / 2]`
    pub(super) fn product(
        &self,
        x: Rows<'_>,
        linear: &Linear,
        after: After<'_>,
        out: Slice<u16>,
        m: usize,
    ) -> Called<()> {
        let (n, k) = (linear.n, linear.k);
        let residual = after.residual;
        let kind = EpilogueKind {
            activation: ![0, 4].contains(&after.activation), // none, and ReLU
            residual: !residual.values.is_none(),
            normalizes: x.pending.is_some() || residual.pending.is_some(),
            statistics: !after.statistics.is_none(),
        };
        let launch = self.products.launch(self.table, [m, n, k], kind, self.partials.len());
        assert!(
            n.is_multiple_of(if after.gated { 16 } else { 8 }) && k.is_multiple_of(8),
            "a product of [{n}, {k}]"
        );
        assert!(
            !after.gated || (residual.values.is_none() && after.statistics.is_none()),
            "a gated product adds no residual and keeps no statistics"
        );
        holds("input of a product", x.values, m * k);
        holds("weights", linear.weight, n * k);
        holds("result of a product", out, m * if after.gated { n / 2 } else { n });
        may_hold("residual", residual.values, m * n);
        may_hold("statistics", after.statistics, 2 * m * n.div_ceil(STATISTICS_COLUMNS));
        for (rows, width) in [(x, k), (residual, n)] {
            if let Some(pending) = rows.pending {
                let len = 2 * m * width.div_ceil(STATISTICS_COLUMNS);
                holds("statistics", pending.statistics, len);
            }
        }
        let epilogue = Argument::Epilogue(Epilogue {
            row_stats: after.statistics.address(),
            gated: i32::from(after.gated),
            ..epilogue(x, linear, after.activation, residual)
        });
        let tile = launch.tile;
        let maps = &self.products.maps;
        let mapped_inputs = || {
            let [rows, columns, _] = tile.block;
            let columns = columns / tile.cluster(); // each block of a cluster loads its part of the weights
            let x = maps.of(x.values, [m, k], [rows as u32, 64])?;
            let weight = maps.of(linear.weight, [n, k], [columns as u32, 64])?;
            Called::Ok([x, weight].map(Argument::TensorMap))
        };
        if let Multiplier::Wgmma { .. } = tile.multiplier {
            let [x, weight] = mapped_inputs()?;
            let out_columns = if after.gated { n / 2 } else { n };
            let map_out = maps.of(out, [m, out_columns], [16, if after.gated { 32 } else { 64 }])?;
            let map_residual = match residual.values.is_none() {
                true => map_out,
                false => maps.of(residual.values, [m, n], [16, 64])?,
            };
            let arguments = [
                x,
                weight,
                Argument::TensorMap(map_residual),
                Argument::TensorMap(map_out),
                m.into(),
                n.into(),
                k.into(),
                epilogue,
            ];
            // SAFETY: lengths are checked above
            return unsafe { self.launch(tile.name, launch.grid, tile.dynamic_shared, &arguments) };
        }
        if let Multiplier::FewRows { .. } = tile.multiplier {
            let [x, weight] = mapped_inputs()?;
            let [tiles, splits] = launch.grid;
            let arguments = [x, weight, out.into(), m.into(), n.into(), k.into(), splits.into(), epilogue];
            let grid = Grid { blocks: [tiles * splits, 1], cluster: splits };
            // SAFETY: lengths are checked above
            return unsafe { self.launch(tile.name, grid, tile.dynamic_shared, &arguments) };
        }
        let partials = match launch.reduce {
            Some(reduce) => {
                holds("partial sums", self.partials, reduce.partials);
                self.partials
            }
            None => Slice::NONE,
        };
        let arguments = [
            x.values.into(),
            linear.weight.into(),
            out.into(),
            partials.into(),
            m.into(),
            n.into(),
            k.into(),
            epilogue,
        ];
        // SAFETY: lengths are checked above, those of split products too
        unsafe { self.launch(tile.name, launch.grid, tile.dynamic_shared, &arguments) }?;
        let Some(reduce) = launch.reduce else { return Ok(()) };
        let splits = launch.grid[1];
        let arguments = [partials.into(), out.into(), m.into(), n.into(), splits.into(), epilogue];
        // SAFETY: as above
        unsafe { self.launch(SPLITK_REDUCE, [reduce.grid, 1], 0, &arguments) }
    }

    /// One path's sequences. `qkv` `[total_tokens, 3 * hidden]`, `out` `[total_tokens, hidden]`
    pub(super) fn attention(
        &self,
        path: Attention,
        qkv: Slice<u16>,
        out: Slice<u16>,
        [total_tokens, heads]: [usize; 2],
        (bias, bias_radius): (Slice<f32>, usize),
        window: usize,
    ) -> Called<()> {
        let Attention { tile, entries } = path;
        let hidden = heads * tile.head_dim;
        assert!(entries.len().is_multiple_of(tile.tiles_of_block), "a list of {}", entries.len());
        holds("queries, keys and values", qkv, total_tokens * 3 * hidden);
        holds("attention", out, total_tokens * hidden);
        may_hold("attention bias", bias, heads * (2 * bias_radius + 1));
        let grid = [tile.grid(entries.len(), heads, self.table.gpu().sm_count), 1];
        if tile.stays() {
            assert!(bias.is_none() && window == 0, "{} computes plain scores", tile.name);
            let boxes = [tile.key_rows as u32, tile.head_dim.min(64) as u32];
            let map = self.products.maps.of(qkv, [total_tokens, 3 * hidden], boxes)?;
            let arguments =
                [Argument::TensorMap(map), out.into(), entries.into(), entries.len().into(), heads.into()];
            // SAFETY: as below
            return unsafe { self.launch(tile.name, grid, tile.dynamic_shared, &arguments) };
        }
        let arguments = [
            qkv.into(),
            out.into(),
            entries.into(),
            heads.into(),
            bias.into(),
            bias_radius.into(),
            window.into(),
        ];
        // SAFETY: lengths are checked above; the entries were made of the batch's sequences, which are within total_tokens
        unsafe { self.launch(tile.name, grid, tile.dynamic_shared, &arguments) }
    }

    /// Token vectors to vectors. `x` `[total_tokens, hidden]`, `out` `[batch, stride]`
    pub(super) fn pool(
        &self,
        pool: &Pool,
        x: Slice<u16>,
        cu_seqlens: Slice<i32>,
        out: &Vectors,
        [batch, total_tokens, hidden]: [usize; 3],
    ) -> Called<()> {
        let launch = self
            .table
            .pool(batch, total_tokens, hidden, pool.normalize)
            .expect("`forward` asks for fewer columns");
        holds("token vectors", x, total_tokens * hidden);
        holds("cu_seqlens", cu_seqlens, batch + 1);
        may_hold("left out tokens", pool.left_out, batch);
        assert!(pool.column + hidden <= pool.stride, "columns of a pooled vector");
        let (out, half) = match out {
            Vectors::F32(out) => {
                holds("vectors", *out, batch * pool.stride);
                (Argument::from(*out), false)
            }
            Vectors::Half(out) => {
                holds("vectors", *out, batch * pool.stride);
                (Argument::from(*out), true)
            }
        };
        // SAFETY: lengths are checked above; sequences are within total_tokens
        unsafe {
            self.launch(
                &launch.name,
                launch.grid,
                launch.dynamic_shared,
                &[
                    x.into(),
                    cu_seqlens.into(),
                    pool.left_out.into(),
                    out,
                    Slice::<i32>::NONE.into(),
                    hidden.into(),
                    (launch.dynamic_shared / 16).into(),
                    Argument::Int(pool.mode),
                    pool.normalize.into(),
                    half.into(),
                    pool.stride.into(),
                    pool.column.into(),
                ],
            )
        }
    }

    /// Vectors to length 1, in place. `[rows, width]`
    pub(super) fn l2_normalize(&self, vectors: Slice<f32>, [rows, width]: [usize; 2]) -> Called<()> {
        holds("vectors", vectors, rows * width);
        let arguments = [
            vectors.into(),
            vectors.into(),
            Slice::<i32>::NONE.into(),
            rows.into(),
            width.into(),
            width.into(),
            width.into(),
            false.into(),
        ];
        // SAFETY: the length is checked above; a row is read and written by one warp
        unsafe { self.launch("l2_normalize", [rows.div_ceil(4), 1], 0, &arguments) }
    }
}

fn check_norm(norm: &Norm, width: usize) {
    holds("gamma", norm.gamma, width);
    holds("beta", norm.beta, width);
}

/// What follows a product: bias, activation, residual, and the one layernorm that is left to it. Of the arrays, those with an element
/// for each row are checked by the caller.
pub(super) fn epilogue(x: Rows<'_>, linear: &Linear, activation: i32, residual: Rows<'_>) -> Epilogue {
    let (n, k) = (linear.n, linear.k);
    assert_eq!(x.pending.is_none(), linear.colsum.is_none(), "weights are folded where the input is raw");
    may_hold("bias", linear.bias, n);
    may_hold("sums of weights", linear.colsum, n);
    let (target, pending, [scale, shift], width) = match (x.pending, residual.pending) {
        (None, None) => (0, None, [Slice::NONE; 2], 0),
        (Some(pending), None) => (NORM_INPUT, Some(pending), [linear.colsum, Slice::NONE], k),
        (None, Some(pending)) => {
            check_norm(pending.norm, n);
            (NORM_RESIDUAL, Some(pending), [pending.norm.gamma, pending.norm.beta], n)
        }
        (Some(_), Some(_)) => panic!("an epilogue applies one layernorm"),
    };
    Epilogue {
        bias: linear.bias.address(),
        residual: residual.values.address(),
        norm_stats: pending.map_or(0, |pending| pending.statistics.address()),
        norm_scale: scale.address(),
        norm_shift: shift.address(),
        norm_eps: pending.map_or(0.0, |pending| pending.eps),
        norm_columns: i32::try_from(width).expect("`support` refused wider rows"),
        norm_target: target,
        activation,
        ..Epilogue::default()
    }
}
