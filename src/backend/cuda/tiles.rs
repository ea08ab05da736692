//! Which kernel computes a matrix product or a row, and with which grid.
//!
//! A pure function of the shape and the GPU: no device is asked, nothing is timed. Products take the tile and the split
//! that were recorded to be the quickest on this GPU (`recorded.rs`), else those
//! whose time [`estimate`](super::estimate) predicts to be least; the tables repeat those at the ends of the `.cu`
//! files, and a test holds the two together. Attention has its own file, `work_list.rs`.

use super::estimate::{self, Estimate, FewRowsGemmWork, GemmWork, PersistentGemmWork, RowWork, Traffic};
use super::gpu::Gpu;
use super::image::Manifest;
use super::recorded::{OneLaunchRecord, RecordedTables, Records, SHIPPED};
use std::fmt;
use std::ops::Range;

/// 16-bit element types that every kernel is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// How a product's kernel multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Multiplier {
    /// `mma.sync`, on every GPU: a block a tile.
    Mma {
        /// Warps along rows and columns.
        warps: [usize; 2],
        /// Parts that `k` may be cut into.
        max_splits: usize,
    },
    /// `wgmma`, on compute capability 9.0: blocks stay and take one tile after another.
    Wgmma {
        /// Warpgroups that share a tile: 2, or 1 where one multiplies while the other stores.
        groups_of_tile: usize,
        /// Blocks that take row tiles below each other at once, and share the weights.
        cluster: usize,
    },
    /// `wgmma` with the weights' columns as its 64 rows, on compute capability 9.0: a tile a block, or a cluster of as many
    /// blocks as `k` is cut into, which add their sums by themselves.
    FewRows {
        /// Parts that `k` may be cut into.
        max_splits: usize,
    },
}

/// A line of `GEMM_TILES` in `kernels/gemm.cu`, of `HOPPER_TILES` in `kernels/gemm_hopper.cu`, or of `SWAPPED_TILES` in
/// `kernels/gemm_few_rows.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GemmTile {
    /// The kernel, without the element type's suffix.
    pub name: &'static str,
    /// Rows, columns and depth of a block's tile.
    pub block: [usize; 3],
    /// Stages of the copies.
    pub stages: usize,
    /// How it multiplies.
    pub multiplier: Multiplier,
    /// Threads of a block.
    pub threads: usize,
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: usize,
}

impl GemmTile {
    /// Parts that `k` may be cut into.
    pub fn max_splits(&self) -> usize {
        match self.multiplier {
            Multiplier::Mma { max_splits, .. } | Multiplier::FewRows { max_splits } => max_splits,
            Multiplier::Wgmma { .. } => 1,
        }
    }

    /// Blocks that run at once and share the weights; 1 where none do.
    pub fn cluster(&self) -> usize {
        match self.multiplier {
            Multiplier::Mma { .. } | Multiplier::FewRows { .. } => 1,
            Multiplier::Wgmma { cluster, .. } => cluster,
        }
    }

    /// The sizes of the clusters of more than one block that it is launched in.
    pub fn cluster_sizes(&self) -> Range<usize> {
        match self.multiplier {
            Multiplier::Mma { .. } | Multiplier::Wgmma { cluster: 1, .. } => 0..0,
            Multiplier::Wgmma { cluster, .. } => cluster..cluster + 1,
            Multiplier::FewRows { max_splits } => 2..max_splits + 1,
        }
    }

    /// Whether its sums are those of `wgmma`, which may round otherwise than those of `mma.sync`.
    fn is_wgmma(&self) -> bool {
        match self.multiplier {
            Multiplier::Mma { .. } => false,
            Multiplier::Wgmma { .. } | Multiplier::FewRows { .. } => true,
        }
    }
}

const fn tile(
    name: &'static str,
    block: [usize; 3],
    stages: usize,
    warps: [usize; 2],
    max_splits: usize,
    threads: usize,
    dynamic_shared: usize,
) -> GemmTile {
    GemmTile {
        name,
        block,
        stages,
        multiplier: Multiplier::Mma { warps, max_splits },
        threads,
        dynamic_shared,
    }
}

const fn hopper(
    name: &'static str,
    block: [usize; 3],
    stages: usize,
    [groups_of_tile, cluster]: [usize; 2],
    threads: usize,
    dynamic_shared: usize,
) -> GemmTile {
    let multiplier = Multiplier::Wgmma { groups_of_tile, cluster };
    GemmTile { name, block, stages, multiplier, threads, dynamic_shared }
}

const fn few_rows(name: &'static str, rows: usize, stages: usize, dynamic_shared: usize) -> GemmTile {
    let multiplier = Multiplier::FewRows { max_splits: PORTABLE_CLUSTER };
    GemmTile { name, block: [rows, 64, 64], stages, multiplier, threads: 160, dynamic_shared }
}

/// Blocks of a cluster on every GPU that has clusters; more have to be asked for.
pub(super) const PORTABLE_CLUSTER: usize = 8;

/// Every tile; what each is for stands beside it in `kernels/gemm.cu`, `kernels/gemm_hopper.cu` and `kernels/gemm_few_rows.cu`.
pub const GEMM_TILES: [GemmTile; 14] = [
    hopper("gemm_wgmma_128x256x64_s3_c2", [128, 256, 64], 3, [2, 2], 384, 229_488),
    hopper("gemm_wgmma_128x192x64_s4_c2", [128, 192, 64], 4, [2, 2], 384, 229_504),
    hopper("gemm_wgmma_128x128x64_s4_c2", [128, 128, 64], 4, [1, 2], 384, 213_120),
    hopper("gemm_wgmma_128x128x64_s4", [128, 128, 64], 4, [1, 1], 384, 213_120),
    few_rows("gemm_wgmma_64x64x64_s6", 64, 6, 107_104),
    few_rows("gemm_wgmma_32x64x64_s8", 32, 8, 102_784),
    few_rows("gemm_wgmma_16x64x64_s8", 16, 8, 84_224),
    tile("gemm_128x256x32_s4", [128, 256, 32], 4, [2, 4], 1, 256, 98304),
    tile("gemm_256x128x32_s4", [256, 128, 32], 4, [4, 2], 1, 256, 98304),
    tile("gemm_128x128x32_s3", [128, 128, 32], 3, [2, 2], 1, 128, 49152),
    tile("gemm_64x128x32_s4", [64, 128, 32], 4, [2, 2], 1, 128, 49152),
    tile("gemm_64x64x64_s3", [64, 64, 64], 3, [2, 2], 16, 128, 49152),
    tile("gemm_32x64x64_s4", [32, 64, 64], 4, [1, 4], 16, 128, 49152),
    tile("gemm_16x64x64_s4", [16, 64, 64], 4, [1, 4], 16, 128, 40960),
];

/// Predictions that differ by less are taken as equal: where memory bounds a product, those of all tiles are.
pub const TIE: f64 = 1.005;

/// Sums the parts of a split product.
pub const SPLITK_REDUCE: &str = "splitk_reduce";

/// What follows a product before its result is stored, as far as its time depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct EpilogueKind {
    /// An activation other than ReLU.
    pub activation: bool,
    /// A residual is added.
    pub residual: bool,
    /// The input, or the residual, is normalised from its rows' statistics.
    pub normalizes: bool,
    /// Statistics of the rows are stored.
    pub statistics: bool,
}

impl EpilogueKind {
    /// fp32 instructions an element: counted in `kernels/epilogue.cuh`, addresses and conversions included.
    fn instructions(self) -> f64 {
        let parts =
            [(self.activation, 14.0), (self.residual, 2.0), (self.normalizes, 3.0), (self.statistics, 4.0)];
        8.0 + parts.iter().filter(|(on, _)| *on).map(|(_, n)| n).sum::<f64>()
    }
}

/// A product `[m, k] × [n, k]ᵀ` and what is around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gemm {
    /// Rows: tokens.
    pub m: usize,
    /// Columns: rows of the weights.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// What follows.
    pub epilogue: EpilogueKind,
    /// Whether the weights are in L2 already: a small model's are.
    pub weights_in_l2: bool,
    /// Whether bits may not depend on `m`: no split-K, and one instruction for all `m`.
    pub batch_invariant: bool,
}

/// How to launch a product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GemmLaunch {
    /// The tile.
    pub tile: &'static GemmTile,
    /// Blocks: tiles of the result, or as many as take turns at them; splits.
    pub grid: [usize; 2],
    /// The reduction that follows where `k` is split and the kernel leaves the sums of its parts.
    pub reduce: Option<ReduceLaunch>,
    /// What it should take, the reduction included.
    pub estimate: Estimate,
}

/// How to launch the reduction of a split product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReduceLaunch {
    /// Blocks.
    pub grid: usize,
    /// Threads of a block.
    pub threads: usize,
    /// f32 partial sums, `[splits, m, n]`.
    pub partials: usize,
}

/// Variants of the row kernels: columns that one can take, and its suffix. `kernels/rows.cuh`.
pub const ROW_SIZES: [(usize, &str); 3] = [(512, "h512"), (1024, "h1024"), (8192, "h8192")];
/// Rows that a block of the variants of one warp a row works on.
const ROWS_OF_BLOCK: usize = 4;
/// The variant of a block a row.
const WIDE_ROW: usize = 8192;
/// Columns that a block of `pool` takes at least, and a multiple of which it takes.
const POOL_COLUMNS: usize = 128;
/// Columns of a block of `first_rows`.
const FIRST_ROWS_COLUMNS: usize = 1024;
/// Columns that a block of `pool` takes at most.
const POOL_MOST_COLUMNS: usize = 2048;

/// How to launch a row kernel or a pooling.
#[derive(Debug, Clone, PartialEq)]
pub struct RowLaunch {
    /// The kernel, without the element type's suffix.
    pub name: String,
    /// Blocks.
    pub grid: [usize; 2],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: usize,
    /// What it should take.
    pub estimate: Estimate,
}

/// The kernels as they fit on one GPU. Made once for a device.
#[derive(Debug, Clone)]
pub struct TileTable {
    gpu: Gpu,
    element: Element,
    /// Blocks a multiprocessor for each of [`GEMM_TILES`]; 0: it does not fit, or is not for this GPU.
    gemm_blocks: [usize; GEMM_TILES.len()],
    /// Clusters that run at once for each of [`GEMM_TILES`], by their size; 0: none can. Of size 1: blocks.
    active_clusters: [[usize; PORTABLE_CLUSTER + 1]; GEMM_TILES.len()],
    reduce_blocks: usize,
    reduce_threads: usize,
    /// What was measured on this GPU.
    records: Records,
}

impl TileTable {
    /// For a GPU and an element type.
    ///
    /// # Panics
    /// Never: a test reads the tables that ship.
    pub fn new(gpu: Gpu, element: Element) -> Self {
        Self::with_records(gpu, element, SHIPPED).unwrap_or_else(|what| panic!("{what}"))
    }

    /// The same with other tables of what was measured, as `tools/gpu-check` writes them.
    ///
    /// # Errors
    /// A line that is not one of such a table.
    pub fn with_records(gpu: Gpu, element: Element, tables: RecordedTables<'_>) -> Result<Self, String> {
        let records = Records::of(tables, &gpu.name)?;
        let mut table = Self {
            gpu,
            element,
            gemm_blocks: [0; GEMM_TILES.len()],
            active_clusters: [[0; PORTABLE_CLUSTER + 1]; GEMM_TILES.len()],
            reduce_blocks: 1,
            reduce_threads: 1,
            records,
        };
        table.gemm_blocks = GEMM_TILES.map(|tile| table.blocks_per_sm(tile.name, None));
        let sm_count = table.gpu.sm_count;
        // at most: a cluster is on multiprocessors that are near each other, of which only the driver knows
        table.active_clusters = table
            .gemm_blocks
            .map(|blocks| std::array::from_fn(|size| (blocks * sm_count).checked_div(size).unwrap_or(0)));
        table.reduce_blocks = table.blocks_per_sm(SPLITK_REDUCE, None);
        table.reduce_threads = table.kernel(SPLITK_REDUCE).threads;
        Ok(table)
    }

    /// Takes the number of clusters that run at once from who knows it, by tile and size. A size that it has none of is not
    /// launched.
    pub fn ask_clusters(&mut self, mut active: impl FnMut(&'static GemmTile, usize) -> usize) {
        for (i, tile) in GEMM_TILES.iter().enumerate().filter(|(i, _)| self.gemm_blocks[*i] > 0) {
            for size in tile.cluster_sizes() {
                self.active_clusters[i][size] = active(tile, size);
            }
        }
    }

    /// Clusters of 2, 3, … 8 blocks that run at once of a kernel of few rows; none where there is no such kernel. GPUs of a kind may
    /// differ in it, as they have not the same multiprocessors switched off, and with it in what they choose.
    pub fn clusters(&self) -> &[usize] {
        let is_of_few_rows = |tile: &GemmTile| matches!(tile.multiplier, Multiplier::FewRows { .. });
        let index =
            GEMM_TILES.iter().zip(self.gemm_blocks).position(|(t, blocks)| is_of_few_rows(t) && blocks > 0);
        index.map_or(&[], |index| &self.active_clusters[index][2..])
    }

    /// The GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The element type.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Blocks of a kernel (without suffix) that a multiprocessor holds, by the registers and shared memory of the
    /// manifest; `dynamic_shared` in its place where the launch decides. 0: none, or it is not built for this GPU.
    ///
    /// # Panics
    /// If there is no such kernel.
    pub fn blocks_per_sm(&self, name: &str, dynamic_shared: Option<usize>) -> usize {
        let kernel = self.kernel(name);
        let architecture = Manifest::get().architecture(self.gpu.compute_capability);
        let Some(usage) = kernel.on(architecture) else { return 0 }; // built for another architecture only
        let shared = usage.static_shared + dynamic_shared.unwrap_or(kernel.dynamic_shared);
        self.gpu.multiprocessor().resident_blocks(kernel.threads, usage.registers, shared)
    }

    /// Up to how many tokens one launch was quicker, for encoders of these sizes: hidden, intermediate, layers, heads.
    pub(super) fn recorded_one_launch(&self, sizes: [usize; 4]) -> Option<&OneLaunchRecord> {
        self.records.one_launch(sizes)
    }

    fn kernel(&self, name: &str) -> &'static super::image::Kernel {
        let symbol = format!("{name}_{}", self.element);
        Manifest::get().kernels.get(&symbol).unwrap_or_else(|| panic!("{symbol} is not in the image"))
    }

    /// How to compute a product: as was recorded for its shape on this GPU, where that is a candidate; else, of the ways with the
    /// least predicted time (within [`TIE`]), the one that computes the fewest elements beyond the result's edges, and of those the
    /// one with the fewest splits.
    ///
    /// # Panics
    /// If a size is 0.
    pub fn gemm(&self, gemm: &Gemm) -> GemmLaunch {
        assert!(gemm.m > 0 && gemm.n > 0 && gemm.k > 0, "an empty product is not launched: {gemm:?}");
        let candidates: Vec<GemmLaunch> = self.gemm_candidates(gemm).collect();
        let shape = [gemm.m, gemm.n, gemm.k];
        if let Some(record) = self.records.tile(shape, gemm.weights_in_l2) {
            let is_recorded = |c: &&GemmLaunch| c.tile == record.tile && c.grid[1] == record.splits;
            if let Some(launch) = candidates.iter().find(is_recorded) {
                return *launch;
            }
        }
        let least = candidates.iter().map(|c| c.estimate.us).fold(f64::INFINITY, f64::min);
        let elements = |c: &GemmLaunch| {
            let [bm, bn, _] = c.tile.block;
            gemm.m.next_multiple_of(bm * c.tile.cluster()) * gemm.n.next_multiple_of(bn)
        };
        candidates
            .into_iter()
            .filter(|c| c.estimate.us <= TIE * least)
            .min_by_key(|c| (elements(c), c.grid[1])) // the first of equals
            .unwrap_or_else(|| panic!("no tile fits on {}", self.gpu.name))
    }

    /// Every way to compute a product, in the order of the table.
    pub fn gemm_candidates(&self, gemm: &Gemm) -> impl Iterator<Item = GemmLaunch> {
        let gemm = *gemm;
        let fitting =
            || (0..GEMM_TILES.len()).filter(|i| self.active_clusters[*i][GEMM_TILES[*i].cluster()] > 0);
        // wgmma and mma.sync may round their sums differently
        let only_wgmma = gemm.batch_invariant && fitting().any(|i| GEMM_TILES[i].is_wgmma());
        fitting().filter(move |i| GEMM_TILES[*i].is_wgmma() || !only_wgmma).flat_map(move |i| {
            let tile = &GEMM_TILES[i];
            let pieces = gemm.k.div_ceil(tile.block[2]);
            let most = if gemm.batch_invariant { 1 } else { tile.max_splits().min(pieces) };
            let runs = move |splits| match tile.multiplier {
                Multiplier::FewRows { .. } => self.active_clusters[i][splits] > 0,
                Multiplier::Mma { .. } | Multiplier::Wgmma { .. } => true,
            };
            (1..=most)
                // no split without work: the kernel gives each ceil(pieces / splits)
                .filter(move |splits| runs(*splits) && pieces.div_ceil(pieces.div_ceil(*splits)) == *splits)
                .map(move |splits| self.gemm_launch(&gemm, i, splits))
        })
    }

    /// `index` of [`GEMM_TILES`].
    fn gemm_launch(&self, gemm: &Gemm, index: usize, splits: usize) -> GemmLaunch {
        let tile = &GEMM_TILES[index];
        let &Gemm { m, n, k, epilogue, weights_in_l2, .. } = gemm;
        let [bm, bn, bk] = tile.block;
        let in_l2 = self.fits_l2(2 * (m * k + m * n));
        let mut traffic =
            Traffic::of(2.0 * (n * k) as f64, weights_in_l2).and(Traffic::of(2.0 * (m * k) as f64, in_l2));
        let result_bytes = 2.0 * (m * n) as f64 * if epilogue.residual { 2.0 } else { 1.0 };
        let has_partials = splits > 1 && matches!(tile.multiplier, Multiplier::Mma { .. });
        if !has_partials {
            traffic = traffic.and(Traffic::of(result_bytes, in_l2));
        }
        let epilogue_instructions = if has_partials { 4.0 } else { epilogue.instructions() };
        let (blocks, mut estimate) = match tile.multiplier {
            Multiplier::Mma { warps, .. } => {
                let (warp_m, warp_n) = (bm / warps[0], bn / warps[1]);
                let work = GemmWork {
                    m,
                    n,
                    k,
                    block: tile.block,
                    stages: tile.stages,
                    fragment_bytes: warps[0] * warps[1] * (warp_m + warp_n) * bk * 2,
                    splits,
                    blocks_per_sm: self.gemm_blocks[index],
                    epilogue_instructions,
                    traffic,
                };
                (m.div_ceil(bm) * n.div_ceil(bn), estimate::gemm(&self.gpu, &work))
            }
            Multiplier::Wgmma { groups_of_tile, cluster } => {
                let clusters = m.div_ceil(cluster * bm) * n.div_ceil(bn);
                let blocks = cluster * clusters.min(self.active_clusters[index][cluster]);
                let work = PersistentGemmWork {
                    m,
                    n,
                    k,
                    block: tile.block,
                    ping_pong: groups_of_tile == 1,
                    cluster,
                    clusters,
                    blocks,
                    epilogue_instructions,
                    traffic,
                };
                (blocks, estimate::persistent_gemm(&self.gpu, &work))
            }
            Multiplier::FewRows { .. } => {
                let work = FewRowsGemmWork {
                    m,
                    n,
                    k,
                    block: tile.block,
                    stages: tile.stages,
                    splits,
                    active_clusters: self.active_clusters[index][splits],
                    blocks_per_sm: self.gemm_blocks[index],
                    epilogue_instructions,
                    traffic,
                };
                (m.div_ceil(bm) * n.div_ceil(bn), estimate::few_rows_gemm(&self.gpu, &work))
            }
        };
        let reduce = has_partials.then(|| {
            let lanes = m * n.div_ceil(64) * 8; // eight columns each
            ReduceLaunch {
                grid: lanes.div_ceil(self.reduce_threads),
                threads: self.reduce_threads,
                partials: splits * m * n,
            }
        });
        if let Some(reduce) = &reduce {
            // written by the product, read here: L2 has them
            let partial_bytes = 4.0 * reduce.partials as f64;
            let work = RowWork {
                blocks: reduce.grid,
                blocks_per_sm: self.reduce_blocks,
                block_elements: 8.0 * self.reduce_threads as f64,
                instructions: splits as f64 + epilogue.instructions(),
                round_trips: 2.0,
                traffic: Traffic::of(partial_bytes, true).and(Traffic::of(result_bytes, in_l2)),
            };
            let after = estimate::rows(&self.gpu, &work);
            estimate.us += after.us + partial_bytes / (self.gpu.l2_gb_per_s * 1e3);
            estimate.bytes += result_bytes;
        }
        GemmLaunch { tile, grid: [blocks, splits], reduce, estimate }
    }

    /// Whether what one kernel wrote is still in L2 when the next reads it; half of it, as others use it too.
    pub(super) fn fits_l2(&self, bytes: usize) -> bool {
        bytes <= self.gpu.l2_bytes / 2
    }

    /// How to launch `op`, `embed_layernorm` or `residual_layernorm`, on `rows` rows of `hidden` columns, of which it
    /// moves `row_bytes` bytes each; `None` for more columns than there is a kernel for.
    pub fn row_kernel(&self, op: &str, rows: usize, hidden: usize, row_bytes: usize) -> Option<RowLaunch> {
        let (width, suffix) = ROW_SIZES.iter().find(|(width, _)| hidden <= *width)?;
        let name = format!("{op}_{suffix}");
        let rows_of_block = if *width == WIDE_ROW { 1 } else { ROWS_OF_BLOCK };
        let estimate = estimate::rows(
            &self.gpu,
            &RowWork {
                blocks: rows.div_ceil(rows_of_block),
                blocks_per_sm: self.blocks_per_sm(&name, None),
                block_elements: (rows_of_block * hidden) as f64,
                instructions: 12.0,
                round_trips: 3.0, // ids and their rows, or the row and its store; gamma and beta beside it
                traffic: Traffic::of((rows * row_bytes) as f64, self.fits_l2(rows * row_bytes)),
            },
        );
        Some(RowLaunch { name, grid: [rows.div_ceil(rows_of_block), 1], dynamic_shared: 0, estimate })
    }

    /// How to turn the queries and keys of `rows` tokens, all heads of which are `hidden` wide.
    pub fn rotary(&self, rows: usize, hidden: usize, head_dim: usize) -> RowLaunch {
        let name = "rotary".to_owned();
        let threads = self.kernel(&name).threads;
        let blocks = (rows * hidden / 16).div_ceil(threads); // a thread has 16 components of a query, and of its key
        let bytes = 8 * rows * hidden; // queries and keys in, queries and keys out
        let estimate = estimate::rows(
            &self.gpu,
            &RowWork {
                blocks,
                blocks_per_sm: self.blocks_per_sm(&name, None),
                block_elements: (32 * threads) as f64,
                instructions: 4.0,
                round_trips: 3.0, // a position, its angles beside the rows, the store
                traffic: Traffic::of(bytes as f64, self.fits_l2(bytes))
                    .and(Traffic::of((4 * rows * head_dim) as f64, true)),
            },
        );
        RowLaunch { name, grid: [blocks, 1], dynamic_shared: 0, estimate }
    }

    /// How to put the first rows of `batch` sequences, two arrays of them, below each other.
    pub fn first_rows(&self, batch: usize, hidden: usize) -> RowLaunch {
        let name = "first_rows".to_owned();
        let grid = [batch, hidden.div_ceil(FIRST_ROWS_COLUMNS)];
        let estimate = estimate::rows(
            &self.gpu,
            &RowWork {
                blocks: grid[0] * grid[1],
                blocks_per_sm: self.blocks_per_sm(&name, None),
                block_elements: (2 * hidden.min(FIRST_ROWS_COLUMNS)) as f64,
                instructions: 0.5,
                round_trips: 3.0, // where a sequence begins, its row, the store
                traffic: Traffic::of((8 * batch * hidden) as f64, true),
            },
        );
        RowLaunch { name, grid, dynamic_shared: 0, estimate }
    }

    /// How to pool `batch` sequences of `total_tokens` tokens: a block has all columns of a sequence where it also
    /// normalises (then `None` for more than it can take), and few where there would be too few blocks.
    pub fn pool(
        &self,
        batch: usize,
        total_tokens: usize,
        hidden: usize,
        normalizes: bool,
    ) -> Option<RowLaunch> {
        let whole = hidden.next_multiple_of(POOL_COLUMNS);
        if normalizes && whole > POOL_MOST_COLUMNS {
            return None;
        }
        let wanted_of_sequence = if normalizes { 1 } else { self.gpu.sm_count.div_ceil(batch) };
        let columns =
            whole.div_ceil(wanted_of_sequence).next_multiple_of(POOL_COLUMNS).min(POOL_MOST_COLUMNS);
        let slices = hidden.div_ceil(columns);
        let dynamic_shared = 16 * columns;
        let bytes = 2 * total_tokens * hidden + 4 * batch * hidden;
        let tokens = total_tokens.div_ceil(batch);
        let estimate = estimate::rows(
            &self.gpu,
            &RowWork {
                blocks: batch * slices,
                blocks_per_sm: self.blocks_per_sm("pool", Some(dynamic_shared)),
                block_elements: (tokens * columns.min(hidden)) as f64,
                instructions: 2.0,
                round_trips: 2.0 + tokens.div_ceil(32) as f64, // 32 tokens are in flight at once
                traffic: Traffic::of(bytes as f64, self.fits_l2(bytes)),
            },
        );
        Some(RowLaunch { name: "pool".into(), grid: [batch, slices], dynamic_shared, estimate })
    }
}
