//! A small batch in one launch: the kernel's description of a model, made once, and its launch.
//!
//! Blocks wait for each other, so the launch is a cooperative one or in clusters, which the driver refuses where they do not all fit
//! on the GPU at once; from then on, batches go kernel by kernel. A block that is lost would have the others wait for ever;
//! `patience.rs` notices.
#![allow(unsafe_code, reason = "a launch, behind the checks of its lengths")]

use super::super::persistent::{
    CLUSTER_BLOCKS, Clusters, MOST_CLUSTERS, PERSISTENT_ENCODER, PERSISTENT_TOKENS, PersistentLimits,
    QUERY_ROWS, units_held,
};
use super::super::work_list::{Entry, entries_of};
use super::driver::Opened;
use super::kernels::{Argument, Epilogue, Grid, Kernels};
use super::memory::{Called, Memory, Slice};
use super::ops::{self, Pending, Queue, Rows, holds, may_hold};
use super::slot::Inputs;
use super::support;
use super::weights::{Layout, Linear, Norm};
use super::workspace::Workspace;
use crate::batch::PackedBatch;
use crate::model::{ModelDesc, Pooling};
use bytemuck::{Pod, Zeroable};
use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;
use std::cell::Cell;

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
    units_held: i32,
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
    ends: u64,
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
    normalize: i32,
    parts: i32,
    in_clusters: i32,
    reserved: i32,
    begin: [Part; MOST_CLUSTERS + 1],
}

/// `PersistentPart` of `kernels/persistent_encoder.cu`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Part {
    sequence: i32,
    token: i32,
    tile: i32,
    reserved: i32,
}

const _: () = assert!(size_of::<Product>() == 112 && size_of::<Model>() == 152 && size_of::<Batch>() == 216);

// SAFETY: addresses and numbers without a byte between them that has no value, and which may have any
unsafe impl Pod for Product {}
// SAFETY: all of them may be 0
unsafe impl Zeroable for Product {}

/// One model, as the kernel reads it.
pub(super) struct PersistentEncoder {
    model: Model,
    pooling: Pooling,
    grid: usize,
    /// Of a block, dynamic.
    shared_bytes: usize,
    clusters: Clusters,
    limits: PersistentLimits,
    /// Of a batch: what the workspace holds.
    most_tokens: usize,
    /// Whether the driver has refused a launch.
    refused: Cell<bool>,
    /// What `model` points to beside weights and workspace: the products, a word for each block, where the kernel keeps a
    /// batch's lists, and queries, keys and values.
    _products: Memory,
    _barrier: Memory,
    _lists: Memory,
    _qkv: Memory,
}

impl PersistentEncoder {
    /// `desc` is one that the kernel takes, `grid` what `persistent::blocks` says; the workspace holds `most_tokens`.
    pub(super) fn new(
        device: &Opened,
        desc: &ModelDesc,
        layout: &Layout,
        workspace: &Workspace,
        [grid, shared_bytes, most_tokens]: [usize; 3],
        (clusters, limits): (Clusters, PersistentLimits),
    ) -> Called<Self> {
        let rows = most_tokens.min(PERSISTENT_TOKENS);
        // not the workspace's wide rows: some clusters may be at their qkv while others have the feed-forward's there
        let qkv = Memory::new(&device.context, 2 * rows * 3 * desc.hidden_size)?;
        let products = products(desc, layout, workspace, qkv.all(), [rows, shared_bytes]);
        let table = Memory::new(&device.context, size_of_val(&products[..]))?;
        table.write(0, &products)?;
        let barrier = Memory::new(&device.context, 4 * grid)?;
        barrier.write(0, &vec![0u32; grid])?;
        let tile_bytes = size_of::<Entry>() * PERSISTENT_TOKENS;
        let word_bytes = 4 * PERSISTENT_TOKENS;
        let lists = Memory::new(&device.context, tile_bytes + 2 * word_bytes)?;
        let last = &layout.layers[*layout.layer_order.last().expect("a model has a layer")];
        let address = |norm: &Norm| [norm.gamma.address(), norm.beta.address()];
        let pooling = desc.pooling[0];
        let model = Model {
            tables: [layout.word, layout.position, layout.token_type].map(Slice::address),
            embeddings_norm: address(&layout.embeddings_norm),
            products: table.all::<u8>().address(),
            x: workspace.x.all::<u8>().address(),
            qkv: qkv.all::<u8>().address(),
            attended: workspace.z.all::<u8>().address(),
            final_norm: address(&last.output_norm),
            barrier: barrier.all::<u8>().address(),
            tiles: lists.slice::<Entry>(0, PERSISTENT_TOKENS).address(),
            ends: lists.slice::<i32>(tile_bytes, PERSISTENT_TOKENS).address(),
            left_out: lists.slice::<i32>(tile_bytes + word_bytes, PERSISTENT_TOKENS).address(),
            layers: int(layout.layer_order.len()),
            hidden: int(desc.hidden_size),
            num_heads: int(desc.num_attention_heads),
            head_dim: int(desc.head_dim()),
            embeddings_eps: layout.embeddings_eps,
            final_eps: desc.layer_norm_eps,
            pooling: support::pooling(pooling),
            reserved: 0,
        };
        let (refused, most_tokens) = (Cell::new(false), rows);
        let (_products, _barrier, _lists, _qkv) = (table, barrier, lists, qkv);
        Ok(Self {
            model,
            pooling,
            grid,
            shared_bytes,
            clusters,
            limits,
            most_tokens,
            refused,
            _products,
            _barrier,
            _lists,
            _qkv,
        })
    }

    /// Who computes this batch; none: the kernel does not.
    pub(super) fn team(&self, batch: &PackedBatch) -> Option<Team> {
        let fits = batch.total_tokens() <= self.most_tokens && batch.len() <= PERSISTENT_TOKENS;
        if self.refused.get() || batch.token_vectors || !fits {
            return None;
        }
        let parts = Parts::new(&batch.cu_seqlens, self.clusters.most);
        if parts.most_tokens(&batch.cu_seqlens) <= self.limits.cluster {
            return Some(Team::Clusters(parts));
        }
        (batch.total_tokens() <= self.limits.grid).then_some(Team::Grid)
    }

    /// What it takes, for people and as what tells devices apart.
    pub(super) fn describe(&self) -> String {
        let PersistentLimits { grid, cluster, recorded } = self.limits;
        let Clusters { blocks, most } = self.clusters;
        let measured = if recorded { " as measured" } else { "" };
        match cluster {
            0 => format!("up to {grid} tokens in one launch{measured}"),
            _ => {
                format!(
                    "up to {grid} tokens in one launch, {cluster} on each of {most} clusters of {blocks}{measured}"
                )
            }
        }
    }

    /// From ids to vectors, `[batch, hidden]`. No: the driver refuses the launch, and nothing was done.
    pub(super) fn launch(
        &self,
        queue: &Queue<'_>,
        team: Team,
        cu_seqlens: &[u32],
        inputs: &Inputs,
        vectors: Slice<f32>,
        normalize: bool,
    ) -> Called<bool> {
        let (tokens, rows) = (&inputs.tokens, inputs.total_tokens);
        assert!((1..=self.most_tokens).contains(&rows), "a batch of {rows} tokens");
        let (sequences, tiles) = (inputs.batch, inputs.query_tiles.len());
        assert!(sequences.max(tiles) <= PERSISTENT_TOKENS, "{sequences} sequences, {tiles} tiles");
        for ids in [tokens.ids, tokens.positions, tokens.type_ids] {
            holds("ids", ids, rows);
        }
        let left_out = if self.pooling == Pooling::Cls { inputs.left_out_cls } else { inputs.left_out };
        holds("cu_seqlens", tokens.cu_seqlens, sequences + 1);
        may_hold("left out tokens", left_out, sequences);
        holds("vectors", vectors, sequences * self.model.hidden as usize);
        let (parts, grid) = match team {
            Team::Grid => (Parts::one(cu_seqlens), [self.grid, 1].into()),
            Team::Clusters(parts) => {
                let cluster = self.clusters.blocks;
                let blocks = [parts.count * cluster, 1];
                (parts, Grid { blocks, cluster })
            }
        };
        let batch = Batch {
            ids: [tokens.ids, tokens.positions, tokens.type_ids].map(Slice::address),
            cu_seqlens: tokens.cu_seqlens.address(),
            left_out: left_out.address(),
            tiles: inputs.query_tiles.address(),
            vectors: vectors.address(),
            normalize: i32::from(normalize),
            parts: int(parts.count),
            in_clusters: i32::from(grid.cluster > 1),
            reserved: 0,
            begin: parts.begin.map(|sequence| part(sequence, cu_seqlens)),
        };
        let arguments = [Argument::Model(self.model), Argument::Batch(batch)];
        // SAFETY: lengths are checked above and, of the model's arrays, in `products`; tiles and parts were made of the batch's
        // sequences; ids, types and positions are inside their tables, which is the seam's promise. All launches on the barrier's
        // words have this grid, and go into one stream
        let launched =
            unsafe { queue.launch_together(PERSISTENT_ENCODER, grid, self.shared_bytes, &arguments) };
        match launched {
            Err(DriverError(
                CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE
                | CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE
                | CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
                | CUresult::CUDA_ERROR_NOT_SUPPORTED,
            )) => {
                self.refused.set(true);
                Ok(false)
            }
            launched => launched.map(|()| true),
        }
    }
}

/// Blocks that compute a batch.
pub(super) enum Team {
    Grid,
    /// A cluster for each part.
    Clusters(Parts),
}

/// Where the sequences of each part begin, and where those of the last one end.
pub(super) struct Parts {
    count: usize,
    begin: [usize; MOST_CLUSTERS + 1],
}

impl Parts {
    /// All sequences, as one part.
    fn one(cu_seqlens: &[u32]) -> Self {
        Self::of_at_most(u32::MAX, cu_seqlens).expect("one part has room for all")
    }

    /// Cuts a batch between sequences, into `most` parts or fewer, so that the largest one is as small as it can be.
    fn new(cu_seqlens: &[u32], most: usize) -> Self {
        let most = most.clamp(1, MOST_CLUSTERS);
        let total = cu_seqlens.last().copied().unwrap_or(0);
        let longest = cu_seqlens.windows(2).map(|ends| ends[1] - ends[0]).max().unwrap_or(0);
        let least = total.div_ceil(most as u32).max(longest);
        (least..total)
            .find_map(|tokens| Self::of_at_most(tokens, cu_seqlens).filter(|parts| parts.count <= most))
            .unwrap_or_else(|| Self::one(cu_seqlens))
    }

    /// Each as large as so many tokens allow, no sequence having more; none if there would be too many parts.
    fn of_at_most(tokens: u32, cu_seqlens: &[u32]) -> Option<Self> {
        let mut parts = Self { count: 1, begin: [0; MOST_CLUSTERS + 1] };
        for (i, ends) in cu_seqlens.windows(2).enumerate() {
            if ends[1] - cu_seqlens[parts.begin[parts.count - 1]] > tokens {
                if parts.count == MOST_CLUSTERS {
                    return None;
                }
                parts.begin[parts.count] = i;
                parts.count += 1;
            }
        }
        parts.begin[parts.count] = cu_seqlens.len().saturating_sub(1);
        Some(parts)
    }

    /// Tokens of the largest part.
    fn most_tokens(&self, cu_seqlens: &[u32]) -> usize {
        let tokens = |ends: &[usize]| cu_seqlens[ends[1]] - cu_seqlens[ends[0]];
        self.begin[..=self.count].windows(2).map(tokens).max().unwrap_or(0) as usize
    }
}

/// The clusters that the driver has for the kernel: of the first size of which there is one.
pub(super) fn clusters(kernels: &Kernels) -> Clusters {
    let of_size = |blocks| {
        let most = kernels.active_clusters(PERSISTENT_ENCODER, blocks).min(MOST_CLUSTERS);
        Clusters { blocks, most }
    };
    CLUSTER_BLOCKS.into_iter().map(of_size).find(|clusters| clusters.most > 0).unwrap_or(Clusters::NONE)
}

/// Where a part begins whose first sequence this is.
fn part(sequence: usize, cu_seqlens: &[u32]) -> Part {
    let tiles = |ends: &[u32]| (ends[1] - ends[0]).div_ceil(QUERY_ROWS as u32);
    Part {
        sequence: int(sequence),
        token: int(cu_seqlens[sequence] as usize),
        tile: int(cu_seqlens[..=sequence].windows(2).map(tiles).sum::<u32>() as usize),
        reserved: 0,
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
fn products(
    desc: &ModelDesc,
    layout: &Layout,
    workspace: &Workspace,
    qkv: Slice<u16>,
    [rows, shared_bytes]: [usize; 2],
) -> Vec<Product> {
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
        all.push(product(input, &layer.qkv, 0, Rows::NONE, qkv, [rows, shared_bytes]));
        all.push(product(Rows::finished(z), &layer.attention_output, 0, input, y, [rows, shared_bytes]));
        all.push(product(between, &layer.intermediate, activation, Rows::NONE, wide, [rows, shared_bytes]));
        all.push(product(Rows::finished(wide), &layer.output, 0, between, x, [rows, shared_bytes]));
        input = Rows { values: x, pending: pending(&layer.output_norm) };
    }
    all
}

/// One of them, for up to `m` rows, of blocks with so much shared memory.
fn product(
    a: Rows<'_>,
    linear: &Linear,
    activation: i32,
    residual: Rows<'_>,
    c: Slice<u16>,
    [m, shared_bytes]: [usize; 2],
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
        units_held: int(units_held(k, shared_bytes)),
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

    #[test]
    fn parts_are_whole_sequences_and_as_even_as_these_allow() {
        let parts = |lengths: &[u32], most| {
            let mut cu_seqlens = vec![0];
            cu_seqlens.extend(lengths.iter().scan(0, |end, n| {
                *end += n;
                Some(*end)
            }));
            let parts = Parts::new(&cu_seqlens, most);
            assert!(parts.count <= most.max(1) && parts.begin[..=parts.count].is_sorted_by(|a, b| a < b));
            (parts.begin[..=parts.count].to_vec(), parts.most_tokens(&cu_seqlens))
        };
        assert_eq!(parts(&[7], 8), (vec![0, 1], 7));
        assert_eq!(parts(&[7, 9], 0), (vec![0, 2], 16));
        assert_eq!(parts(&[7, 9], 1), (vec![0, 2], 16));
        assert_eq!(parts(&[7, 9], 8), (vec![0, 1, 2], 9));
        assert_eq!(parts(&[10, 1, 1, 10], 3), (vec![0, 1, 3, 4], 10));
        assert_eq!(parts(&[4, 4, 4, 4, 4], 2), (vec![0, 3, 5], 12));
        assert_eq!(parts(&[0, 5, 0], 2).1, 5);
        assert_eq!(parts(&[3; 80], 8), ((0..=8).map(|i| 10 * i).collect(), 30));
    }
}
