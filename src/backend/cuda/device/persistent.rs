//! A small batch in one launch: the kernel's description of a model, made once, and its launch.
//!
//! Blocks wait for each other, so the launch is a cooperative one, which the driver refuses where they do not all fit on the GPU
//! at once. A block that is lost would have the others wait for ever; `patience.rs` notices.
#![allow(unsafe_code, reason = "a launch, behind the checks of its lengths")]

use super::super::persistent::{
    PERSISTENT_ENCODER, PERSISTENT_SHARED, PERSISTENT_TOKENS, QUERY_ROWS, units_at_once,
};
use super::super::work_list::{Entry, entries_of};
use super::driver::Opened;
use super::kernels::{Argument, Epilogue};
use super::memory::{ALIGNMENT, Called, Memory, Slice};
use super::ops::{self, Pending, Queue, Rows, holds, may_hold};
use super::slot::Inputs;
use super::support;
use super::weights::{Layout, Linear, Norm};
use super::workspace::Workspace;
use crate::batch::PackedBatch;
use crate::model::{ModelDesc, Pooling};
use bytemuck::{Pod, Zeroable};

/// `PersistentProduct` of `kernels/persistent_encoder.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Product {
    a: u64,
    w: u64,
    c: u64,
    n: i32,
    k: i32,
    epilogue: Epilogue,
    units_at_once: i32,
    reserved: i32,
}

/// `PersistentModel` of `kernels/persistent_encoder.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Model {
    tables: [u64; 3],
    embeddings_norm: [u64; 2],
    products: u64,
    x: u64,
    qkv: u64,
    attended: u64,
    final_norm: [u64; 2],
    barrier: u64,
    tiles: u64,
    cu_seqlens: u64,
    left_out: u64,
    layers: i32,
    hidden: i32,
    num_heads: i32,
    head_dim: i32,
    embeddings_eps: f32,
    final_eps: f32,
    pooling: i32,
    reserved: i32,
}

/// `PersistentBatch` of `kernels/persistent_encoder.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Batch {
    ids: [u64; 3],
    cu_seqlens: u64,
    left_out: u64,
    tiles: u64,
    vectors: u64,
    tile_count: i32,
    total_tokens: i32,
    batch: i32,
    normalize: i32,
}

const _: () = assert!(size_of::<Product>() == 112 && size_of::<Model>() == 152 && size_of::<Batch>() == 72);

// SAFETY: addresses and numbers without a byte between them that has no value, and which may have any
unsafe impl Pod for Product {}
// SAFETY: all of them may be 0
unsafe impl Zeroable for Product {}

/// One model, as the kernel reads it.
pub(super) struct PersistentEncoder {
    model: Model,
    pooling: Pooling,
    grid: usize,
    /// Of a batch; not more than the workspace holds.
    most_tokens: usize,
    /// What `model` points to beside weights and workspace: the products, a word for each block, and where the kernel keeps a
    /// batch's lists.
    _products: Memory,
    _barrier: Memory,
    _lists: Memory,
}

impl PersistentEncoder {
    /// `desc` is one that the kernel takes, `grid` what `persistent::blocks` says; `most_tokens` are taken at most.
    pub(super) fn new(
        device: &Opened,
        desc: &ModelDesc,
        layout: &Layout,
        workspace: &Workspace,
        [grid, most_tokens]: [usize; 2],
    ) -> Called<Self> {
        let most_tokens = most_tokens.min(PERSISTENT_TOKENS);
        let products = products(desc, layout, workspace, most_tokens);
        let table = Memory::new(&device.context, size_of_val(&products[..]))?;
        table.write(0, &products)?;
        let barrier = Memory::new(&device.context, 4 * grid)?;
        barrier.write(0, &vec![0u32; grid])?;
        let tile_bytes = size_of::<Entry>() * PERSISTENT_TOKENS;
        let ends_bytes = (4 * (PERSISTENT_TOKENS + 1)).next_multiple_of(ALIGNMENT);
        let lists = Memory::new(&device.context, tile_bytes + ends_bytes + 4 * PERSISTENT_TOKENS)?;
        let last = &layout.layers[*layout.layer_order.last().expect("a model has a layer")];
        let address = |norm: &Norm| [norm.gamma.address(), norm.beta.address()];
        let pooling = desc.pooling[0];
        let model = Model {
            tables: [layout.word, layout.position, layout.token_type].map(Slice::address),
            embeddings_norm: address(&layout.embeddings_norm),
            products: table.all::<u8>().address(),
            x: workspace.x.all::<u8>().address(),
            qkv: workspace.wide.all::<u8>().address(),
            attended: workspace.z.all::<u8>().address(),
            final_norm: address(&last.output_norm),
            barrier: barrier.all::<u8>().address(),
            tiles: lists.slice::<Entry>(0, PERSISTENT_TOKENS).address(),
            cu_seqlens: lists.slice::<i32>(tile_bytes, PERSISTENT_TOKENS + 1).address(),
            left_out: lists.slice::<i32>(tile_bytes + ends_bytes, PERSISTENT_TOKENS).address(),
            layers: int(layout.layer_order.len()),
            hidden: int(desc.hidden_size),
            num_heads: int(desc.num_attention_heads),
            head_dim: int(desc.head_dim()),
            embeddings_eps: layout.embeddings_eps,
            final_eps: desc.layer_norm_eps,
            pooling: support::pooling(pooling),
            reserved: 0,
        };
        Ok(Self { model, pooling, grid, most_tokens, _products: table, _barrier: barrier, _lists: lists })
    }

    /// Whether it computes this batch.
    pub(super) fn takes(&self, batch: &PackedBatch) -> bool {
        batch.total_tokens() <= self.most_tokens && batch.len() <= PERSISTENT_TOKENS && !batch.token_vectors
    }

    /// Tokens of a batch at most.
    pub(super) fn most_tokens(&self) -> usize {
        self.most_tokens
    }

    /// From ids to vectors, `[batch, hidden]`.
    pub(super) fn launch(
        &self,
        queue: &Queue<'_>,
        inputs: &Inputs,
        vectors: Slice<f32>,
        normalize: bool,
    ) -> Called<()> {
        let (tokens, rows) = (&inputs.tokens, inputs.total_tokens);
        assert!((1..=self.most_tokens).contains(&rows), "a batch of {rows} tokens");
        let (sequences, tiles) = (inputs.batch, inputs.query_tiles.len());
        assert!(sequences.max(tiles) <= PERSISTENT_TOKENS, "{sequences} sequences, {tiles} tiles");
        for ids in [tokens.ids, tokens.positions, tokens.type_ids] {
            holds("ids", ids, rows);
        }
        let left_out = if self.pooling == Pooling::Cls { inputs.left_out_cls } else { inputs.left_out };
        holds("cu_seqlens", tokens.cu_seqlens, inputs.batch + 1);
        may_hold("left out tokens", left_out, inputs.batch);
        holds("vectors", vectors, inputs.batch * self.model.hidden as usize);
        let batch = Batch {
            ids: [tokens.ids, tokens.positions, tokens.type_ids].map(Slice::address),
            cu_seqlens: tokens.cu_seqlens.address(),
            left_out: left_out.address(),
            tiles: inputs.query_tiles.address(),
            vectors: vectors.address(),
            tile_count: int(inputs.query_tiles.len()),
            total_tokens: int(rows),
            batch: int(inputs.batch),
            normalize: i32::from(normalize),
        };
        let arguments = [Argument::Model(self.model), Argument::Batch(batch)];
        // SAFETY: lengths are checked above and, of the model's arrays, in `products`; tiles were made of the batch's sequences;
        // ids, types and positions are inside their tables, which is the seam's promise. All launches on the barrier's words
        // have this grid, and go into one stream
        unsafe { queue.launch_cooperative(PERSISTENT_ENCODER, self.grid, PERSISTENT_SHARED, &arguments) }
    }
}

/// The entries of attention's work list: one at every 16th query of each sequence.
pub(super) fn query_tiles(cu_seqlens: &[u32], tiles: &mut Vec<Entry>) {
    tiles.clear();
    for ends in cu_seqlens.windows(2) {
        let [start, end] = [ends[0], ends[1]].map(|end| end as usize);
        tiles.extend(entries_of((start, end - start), QUERY_ROWS));
    }
}

/// The products of all layers, as `forward.rs` has them: layernorms are folded, and the kernel keeps their statistics itself.
fn products(desc: &ModelDesc, layout: &Layout, workspace: &Workspace, rows: usize) -> Vec<Product> {
    let (x, y, z, wide) =
        (workspace.x.all(), workspace.y.all(), workspace.z.all(), workspace.wide.all::<u16>());
    let activation = support::activation(desc.hidden_act).expect("`persistent::takes` refused it");
    let eps = desc.layer_norm_eps;
    let pending = |norm| Some(Pending { norm, eps, statistics: Slice::NONE });
    let mut input = Rows::finished(x);
    let mut all = Vec::with_capacity(4 * layout.layer_order.len());
    for &layer in &layout.layer_order {
        let layer = &layout.layers[layer];
        let norm = layer.attention_norm.as_ref().expect("of layers with norms behind, none lacks one");
        let between = Rows { values: y, pending: pending(norm) };
        all.push(product(input, &layer.qkv, 0, Rows::NONE, wide, rows));
        all.push(product(Rows::finished(z), &layer.attention_output, 0, input, y, rows));
        all.push(product(between, &layer.intermediate, activation, Rows::NONE, wide, rows));
        all.push(product(Rows::finished(wide), &layer.output, 0, between, x, rows));
        input = Rows { values: x, pending: pending(&layer.output_norm) };
    }
    all
}

/// One of them, for up to `m` rows.
fn product(
    a: Rows<'_>,
    linear: &Linear,
    activation: i32,
    residual: Rows<'_>,
    c: Slice<u16>,
    m: usize,
) -> Product {
    let (n, k) = (linear.n, linear.k);
    holds("input of a product", a.values, m * k);
    holds("weights", linear.weight, n * k);
    holds("result of a product", c, m * n);
    may_hold("residual", residual.values, m * n);
    Product {
        a: a.values.address(),
        w: linear.weight.address(),
        c: c.address(),
        n: int(n),
        k: int(k),
        epilogue: ops::epilogue(a, linear, activation, residual),
        units_at_once: int(units_at_once(k)),
        reserved: 0,
    }
}

fn int(n: usize) -> i32 {
    i32::try_from(n).expect("`persistent::takes` refused larger sizes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_tiles_are_every_sixteenth_query() {
        let mut tiles = Vec::new();
        query_tiles(&[0, 1, 17, 34], &mut tiles);
        let found: Vec<_> = tiles.iter().map(|t| (t.sequence_start, t.tokens, t.first_query)).collect();
        assert_eq!(found, [(0, 1, 0), (1, 16, 0), (17, 17, 0), (17, 17, 16)]);
    }
}
