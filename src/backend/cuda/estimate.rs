//! How long a launch should take: a model of the hardware with a dozen numbers, for choosing tiles and for the cost sheet.
//!
//! A block has a time alone on a multiprocessor, and a smaller one that it adds where others hide its latency; the
//! busiest multiprocessor gives the time of the grid, unless memory or L2 takes longer for all its bytes. The numbers
//! are published rates ([`Gpu`]) and estimates, each with its reason; no launch has been timed yet to correct them.

use super::gpu::Gpu;

/// From one kernel's end to the next one's first instruction within a CUDA graph, µs (Hazy Research, "Look Ma, No
/// Bubbles", 2025, on an H100).
pub const LAUNCH_US: f64 = 1.3;
/// Clocks from a request to memory until the data are there: an estimate; microbenchmarks of idle memory have some 450
/// to 550 on these GPUs.
const LATENCY: f64 = 600.0;
/// Bytes a clock of a multiprocessor's shared memory, on all of these GPUs.
const SHARED_BYTES_PER_CLOCK: f64 = 128.0;
/// Exponentials a clock of a multiprocessor, on all of these GPUs (CUDA C++ Programming Guide, "Arithmetic Instructions").
const EXPONENTIALS_PER_CLOCK: f64 = 16.0;
/// What is left of the shorter of two kinds of work where warps or blocks overlap them. With 0.4 an A100 gets about the 190 TFLOP/s
/// that FlashAttention-2 publishes at head size 64.
const NOT_OVERLAPPED: f64 = 0.4;
/// The same of attention on Hopper, with either instruction: with 0.7 an H100 gets 469 of the 497 TFLOP/s that FlashAttention-3
/// publishes for 16,384 tokens at head size 64, and more with mma.sync than FlashAttention-2's 282 at 512 tokens.
const NOT_OVERLAPPED_ON_HOPPER: f64 = 0.7;

/// The power of the mean by which a product's demands on tensor cores, shared memory and L2 are put together: they overlap,
/// but never wholly. 4 costs a resource that is used fully 19 % if a second one is too, 2 % if that is used by half.
/// Without it, where tensor cores are slow, tiles of 16 rows would look as good as those of 128.
const OVERLAP_POWER: f64 = 4.0;

/// What a launch reads, computes and should take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Floating point operations that the result needs; padding does not count.
    pub flops: f64,
    /// Bytes read and written, each once.
    pub bytes: f64,
    /// Blocks of the grid.
    pub blocks: usize,
    /// Blocks that a multiprocessor holds at once.
    pub blocks_per_sm: usize,
    /// Blocks, or of blocks that stay their tiles, as a share of what the GPU holds at once.
    pub waves: f64,
    /// Predicted time in µs, [`LAUNCH_US`] included.
    pub us: f64,
    /// What the time is spent on.
    pub bound: Bound,
}

/// What takes the time of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bound {
    /// Products on the tensor cores.
    Tensor,
    /// Other arithmetic: exponentials, activations, conversions.
    Arithmetic,
    /// Shared memory.
    Shared,
    /// The L2 cache.
    L2,
    /// Device memory.
    Memory,
    /// Waiting: too few blocks, or the launch itself.
    Latency,
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tensor => "tensor",
            Self::Arithmetic => "arithmetic",
            Self::Shared => "shared",
            Self::L2 => "L2",
            Self::Memory => "memory",
            Self::Latency => "latency",
        })
    }
}

/// A block's clocks.
#[derive(Debug, Clone, Copy)]
struct BlockClocks {
    /// With a multiprocessor to itself.
    alone: f64,
    /// That it adds to others.
    added: f64,
    /// What `added` is spent on.
    bound: Bound,
}

/// Bytes of a launch by where they come from.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Traffic {
    /// Read from or written to device memory, each once.
    pub(super) memory: f64,
    /// Read or written where the L2 cache has them.
    pub(super) l2: f64,
}

impl Traffic {
    /// `bytes` that are in L2 or not.
    pub(super) fn of(bytes: f64, in_l2: bool) -> Self {
        if in_l2 { Self { memory: 0.0, l2: bytes } } else { Self { memory: bytes, l2: 0.0 } }
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self { memory: self.memory + other.memory, l2: self.l2 + other.l2 }
    }

    fn bytes(self) -> f64 {
        self.memory + self.l2
    }
}

/// The time of a grid of equal blocks. `l2_bytes`: all that passes between L2 and multiprocessors.
fn grid(
    gpu: &Gpu,
    blocks: usize,
    blocks_per_sm: usize,
    block: BlockClocks,
    flops: f64,
    traffic: Traffic,
    l2_bytes: f64,
) -> Estimate {
    let busiest = blocks.div_ceil(gpu.sm_count) as f64;
    let rounds = (busiest / blocks_per_sm as f64).ceil();
    let added = if blocks_per_sm == 1 { block.alone } else { block.added };
    let clocks = (rounds * block.alone).max(block.alone + (busiest - 1.0) * added);
    // what the multiprocessors work on, without the time in which they only wait
    let working = busiest * block.added;
    let bound = if working > 0.5 * clocks { block.bound } else { Bound::Latency };
    let (us, bound) = with_traffic(gpu, clocks, bound, traffic, l2_bytes);
    Estimate {
        flops,
        bytes: traffic.bytes(),
        blocks,
        blocks_per_sm,
        waves: blocks as f64 / (gpu.sm_count * blocks_per_sm) as f64,
        us,
        bound,
    }
}

/// The time of a launch whose multiprocessors take `clocks`, spent on `bound`, unless its bytes take longer.
fn with_traffic(gpu: &Gpu, clocks: f64, bound: Bound, traffic: Traffic, l2_bytes: f64) -> (f64, Bound) {
    let (us, bound) = longest(&[
        (gpu.us(clocks), bound),
        (traffic.memory / (gpu.memory_gb_per_s * 1e3), Bound::Memory),
        (l2_bytes.max(traffic.bytes()) / (gpu.l2_gb_per_s * 1e3), Bound::L2),
    ]);
    (us + LAUNCH_US, if us < LAUNCH_US { Bound::Latency } else { bound })
}

/// Times that overlap, but never wholly.
fn overlapped(times: &[f64]) -> f64 {
    times.iter().map(|t| t.powf(OVERLAP_POWER)).sum::<f64>().powf(1.0 / OVERLAP_POWER)
}

/// The longest of several times.
fn longest(kinds: &[(f64, Bound)]) -> (f64, Bound) {
    kinds.iter().copied().fold((0.0, Bound::Latency), |a, b| if b.0 > a.0 { b } else { a })
}

/// A product as `gemm.cu` tiles it.
#[derive(Debug, Clone, Copy)]
pub(super) struct GemmWork {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) block: [usize; 3],
    pub(super) stages: usize,
    /// Bytes that all warps of a block read from shared memory for one BLOCK_K.
    pub(super) fragment_bytes: usize,
    pub(super) splits: usize,
    pub(super) blocks_per_sm: usize,
    /// fp32 instructions that the epilogue has for each element of the result.
    pub(super) epilogue_instructions: f64,
    pub(super) traffic: Traffic,
}

/// One GEMM launch, without the reduction of a split one.
pub(super) fn gemm(gpu: &Gpu, w: &GemmWork) -> Estimate {
    let [bm, bn, bk] = w.block;
    let blocks = w.m.div_ceil(bm) * w.n.div_ceil(bn) * w.splits;
    let pieces = w.k.div_ceil(bk).div_ceil(w.splits) as f64;
    let stage_bytes = ((bm + bn) * bk * 2) as f64;
    let tensor = (2 * bm * bn * bk) as f64 / gpu.mma_flops_per_clock();
    let shared = (w.fragment_bytes as f64 + stage_bytes) / SHARED_BYTES_PER_CLOCK;
    let from_l2 = stage_bytes / gpu.l2_bytes_per_clock(blocks);
    let (_, bound) = longest(&[(tensor, Bound::Tensor), (shared, Bound::Shared), (from_l2, Bound::L2)]);
    let piece = overlapped(&[tensor, shared, from_l2]);
    // alone, stages in flight arrive one LATENCY after they were asked for
    let piece_alone = piece.max(LATENCY / (w.stages - 1) as f64);
    let lanes = gpu.multiprocessor().fp32_lanes as f64;
    let epilogue = (bm * bn) as f64 * w.epilogue_instructions / lanes;
    let main = pieces * piece;
    let block = BlockClocks {
        // the first pieces arrive, all are multiplied, the residual arrives, the result is stored
        alone: 2.0 * LATENCY + pieces * piece_alone + epilogue,
        // one block's epilogue beside the other's products, as far as they are apart
        added: main.max(epilogue) + NOT_OVERLAPPED * main.min(epilogue),
        bound: if epilogue > main { Bound::Arithmetic } else { bound },
    };
    let flops = 2.0 * w.m as f64 * w.n as f64 * w.k as f64;
    let l2_bytes = blocks as f64 * pieces * stage_bytes + 2.0 * (w.m * w.n) as f64;
    grid(gpu, blocks, w.blocks_per_sm, block, flops, w.traffic, l2_bytes)
}

/// A product as `gemm_hopper.cu` tiles it: a block a multiprocessor, with one tile after another.
#[derive(Debug, Clone, Copy)]
pub(super) struct PersistentGemmWork {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) block: [usize; 3],
    /// Whether one half of a block multiplies while the other stores.
    pub(super) ping_pong: bool,
    /// Blocks that share the weights' stages.
    pub(super) cluster: usize,
    /// Tiles of whole clusters.
    pub(super) clusters: usize,
    /// Of the launch.
    pub(super) blocks: usize,
    pub(super) epilogue_instructions: f64,
    pub(super) traffic: Traffic,
}

/// What a warpgroup's epilogue takes by itself, as a multiple of what its instructions would take if one could begin every
/// clock: a scheduler has one warp of it, whose instructions wait for each other. An estimate.
const LONE_WARP: f64 = 2.0;

/// One launch of `gemm_hopper.cu`.
pub(super) fn persistent_gemm(gpu: &Gpu, w: &PersistentGemmWork) -> Estimate {
    let [bm, bn, bk] = w.block;
    let of_block = (w.clusters * w.cluster).div_ceil(w.blocks) as f64;
    let pieces = w.k.div_ceil(bk) as f64;
    let stage_bytes = ((bm + bn) * bk * 2) as f64;
    let tensor = (2 * bm * bn * bk) as f64 / gpu.best_flops_per_clock();
    // wgmma of 64 rows reads its rows and all columns; then the stage is written
    let read_bytes = ((bm + bm / 64 * bn) * bk * 2) as f64;
    let shared = (read_bytes + stage_bytes) / SHARED_BYTES_PER_CLOCK;
    let l2_stage_bytes = ((bm + bn / w.cluster) * bk * 2) as f64;
    let from_l2 = l2_stage_bytes / gpu.l2_bytes_per_clock(w.blocks);
    let (_, bound) = longest(&[(tensor, Bound::Tensor), (shared, Bound::Shared), (from_l2, Bound::L2)]);
    let main = pieces * overlapped(&[tensor, shared, from_l2]);
    let epilogue = (bm * bn) as f64 * w.epilogue_instructions / gpu.multiprocessor().fp32_lanes as f64;
    let (tile, exposed, bound) = if w.ping_pong {
        // both halves' turns at multiplying, or a half's own turn and epilogue: whatever is longer takes two tiles' time
        let half = (main + LONE_WARP * epilogue) / 2.0;
        let bound = if half > main { Bound::Arithmetic } else { bound };
        (overlapped(&[main, half]), LONE_WARP * epilogue, bound)
    } else {
        (main + epilogue, 0.0, if epilogue > main { Bound::Arithmetic } else { bound })
    };
    // the first stage arrives, and the last result leaves
    let clocks = 2.0 * LATENCY + of_block * tile + exposed;
    let working = of_block * tile;
    let bound = if working > 0.5 * clocks { bound } else { Bound::Latency };
    let tiles = (w.clusters * w.cluster) as f64;
    let l2_bytes = tiles * pieces * l2_stage_bytes + 2.0 * (w.m * w.n) as f64;
    let (us, bound) = with_traffic(gpu, clocks, bound, w.traffic, l2_bytes);
    Estimate {
        flops: 2.0 * w.m as f64 * w.n as f64 * w.k as f64,
        bytes: w.traffic.bytes(),
        blocks: w.blocks,
        blocks_per_sm: 1,
        waves: tiles / gpu.sm_count as f64,
        us,
        bound,
    }
}

/// A product as `gemm_few_rows.cu` tiles it: the weights' columns on the side of 64, and a cluster for each tile.
#[derive(Debug, Clone, Copy)]
pub(super) struct FewRowsGemmWork {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) block: [usize; 3],
    pub(super) stages: usize,
    /// Blocks of a cluster.
    pub(super) splits: usize,
    pub(super) active_clusters: usize,
    pub(super) blocks_per_sm: usize,
    pub(super) epilogue_instructions: f64,
    pub(super) traffic: Traffic,
}

/// Clocks from a multiprocessor to another of its cluster, and bytes a clock that one reads so: 180, and 3.27 TB/s of all 132 (Luo et
/// al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", 2024).
const CLUSTER_LATENCY: f64 = 180.0;
const CLUSTER_BYTES_PER_CLOCK: f64 = 14.0;
/// Parts whose sums a lane asks for at once.
const PARTS_AT_ONCE: usize = 4;

/// One launch of `gemm_few_rows.cu`.
pub(super) fn few_rows_gemm(gpu: &Gpu, w: &FewRowsGemmWork) -> Estimate {
    let [bm, bn, bk] = w.block;
    let clusters = w.m.div_ceil(bm) * w.n.div_ceil(bn);
    let blocks = clusters * w.splits;
    let pieces = w.k.div_ceil(bk).div_ceil(w.splits) as f64;
    let tensor = (2 * bm * bn * bk) as f64 / gpu.best_flops_per_clock();
    // written, and read by wgmma: both operands once; rows that there are not are zeros, which nobody loads
    let stage_bytes = ((bm + bn) * bk * 2) as f64;
    let shared = 2.0 * stage_bytes / SHARED_BYTES_PER_CLOCK;
    let l2_stage_bytes = ((bm.min(w.m) + bn) * bk * 2) as f64;
    let from_l2 = l2_stage_bytes / gpu.l2_bytes_per_clock(blocks);
    let (_, bound) = longest(&[(tensor, Bound::Tensor), (shared, Bound::Shared), (from_l2, Bound::L2)]);
    let piece = overlapped(&[tensor, shared, from_l2]);
    let piece_alone = piece.max(LATENCY / w.stages as f64);
    // a block finishes its part of the tile's rows
    let rows = (bm.div_ceil(w.splits) * bn) as f64;
    let epilogue = LONE_WARP * rows * w.epilogue_instructions / gpu.multiprocessor().fp32_lanes as f64;
    let exchange = if w.splits == 1 {
        0.0
    } else {
        let batches = w.splits.div_ceil(PARTS_AT_ONCE) as f64;
        let bytes = (w.splits - 1) as f64 * rows * 4.0;
        // a barrier, the parts, and the barrier behind which blocks end
        2.0 * CLUSTER_LATENCY + (batches * CLUSTER_LATENCY).max(bytes / CLUSTER_BYTES_PER_CLOCK)
    };
    let main = pieces * piece;
    // the first stages arrive, all are multiplied, the parts are added, the result is stored
    let alone = 2.0 * LATENCY + pieces * piece_alone + exchange + epilogue;
    let added = main.max(epilogue) + NOT_OVERLAPPED * main.min(epilogue);
    let rounds = clusters.div_ceil(w.active_clusters) as f64;
    let busiest = blocks.div_ceil(gpu.sm_count) as f64;
    let clocks = (rounds * alone).max(alone + (busiest - 1.0) * added);
    let bound = if busiest * added > 0.5 * clocks { bound } else { Bound::Latency };
    let l2_bytes = blocks as f64 * pieces * l2_stage_bytes + 2.0 * (w.m * w.n) as f64;
    let (us, bound) = with_traffic(gpu, clocks, bound, w.traffic, l2_bytes);
    Estimate {
        flops: 2.0 * w.m as f64 * w.n as f64 * w.k as f64,
        bytes: w.traffic.bytes(),
        blocks,
        blocks_per_sm: w.blocks_per_sm,
        waves: clusters as f64 / w.active_clusters as f64,
        us,
        bound,
    }
}

/// Blocks of attention with the same work.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionWork {
    pub(super) blocks: usize,
    pub(super) blocks_per_sm: usize,
    /// Of a block: query rows and keys, rounded to what the kernel computes, times heads.
    pub(super) scores: f64,
    pub(super) head_dim: usize,
    /// Bytes that a block reads and writes.
    pub(super) block_bytes: f64,
    /// Round trips to memory that a block waits for, one after the other.
    pub(super) round_trips: f64,
    /// Of the batch, without padding.
    pub(super) flops: f64,
    pub(super) traffic: Traffic,
}

/// Instructions a score takes beside the products: maximum, subtraction, conversion, their share of masks and addresses.
const SCORE_INSTRUCTIONS: f64 = 5.0;

/// FLOPs a score by which the weights are summed: as a column of ones, which is 8 columns of output.
const SUM_FLOPS: f64 = 16.0;

/// Clocks of what `scores` take beside the products.
fn softmax(gpu: &Gpu, scores: f64) -> f64 {
    let exponentials = scores / EXPONENTIALS_PER_CLOCK;
    exponentials.max(scores * SCORE_INSTRUCTIONS / gpu.multiprocessor().fp32_lanes as f64)
}

/// Products and softmax beside each other.
fn attention_clocks(gpu: &Gpu, tensor: f64, arithmetic: f64) -> (f64, Bound) {
    let (most, bound) = longest(&[(tensor, Bound::Tensor), (arithmetic, Bound::Arithmetic)]);
    let left = if gpu.compute_capability.0 == 9 { NOT_OVERLAPPED_ON_HOPPER } else { NOT_OVERLAPPED };
    (most + left * (tensor + arithmetic - most), bound)
}

/// One launch of `attention.cu`.
pub(super) fn attention(gpu: &Gpu, w: &AttentionWork) -> Estimate {
    let tensor = w.scores * ((4 * w.head_dim) as f64 + SUM_FLOPS) / gpu.mma_flops_per_clock();
    let arithmetic = softmax(gpu, w.scores);
    let (computing, bound) = attention_clocks(gpu, tensor, arithmetic);
    let reading = w.block_bytes / gpu.l2_bytes_per_clock(w.blocks);
    let (added, bound) = longest(&[(computing, bound), (reading, Bound::L2)]);
    let alone = w.round_trips * LATENCY + tensor + arithmetic;
    let block = BlockClocks { alone, added, bound };
    grid(gpu, w.blocks, w.blocks_per_sm, block, w.flops, w.traffic, w.blocks as f64 * w.block_bytes)
}

/// Attention as `attention_hopper.cu` goes about it: a block a multiprocessor, with one item after another.
#[derive(Debug, Clone, Copy)]
pub(super) struct RingAttentionWork {
    pub(super) blocks: usize,
    /// Entries times heads.
    pub(super) items: usize,
    /// Warpgroups of a block that compute.
    pub(super) groups: usize,
    pub(super) head_dim: usize,
    /// Queries, or keys, of a tile.
    pub(super) tile_rows: usize,
    /// Tiles of queries by tiles of keys that the busiest block has.
    pub(super) products: usize,
    /// That a warpgroup has one after another in the longest item.
    pub(super) chain: usize,
    /// Of the batch, without padding.
    pub(super) flops: f64,
    pub(super) l2_bytes: f64,
    pub(super) traffic: Traffic,
}

/// Clocks that a warpgroup waits between the parts of a tile of keys: the row maxima's shuffles, barriers, the tensor cores' first
/// result. An estimate.
const TILE_LATENCY: f64 = 150.0;

/// One launch of `attention_hopper.cu`.
pub(super) fn ring_attention(gpu: &Gpu, w: &RingAttentionWork) -> Estimate {
    let scores = (w.tile_rows * w.tile_rows) as f64;
    let tensor = scores * (4 * w.head_dim) as f64 / gpu.best_flops_per_clock()
        + scores * SUM_FLOPS / gpu.mma_flops_per_clock();
    let arithmetic = softmax(gpu, scores);
    let (computing, bound) = attention_clocks(gpu, tensor, arithmetic);
    let alone = tensor + arithmetic + TILE_LATENCY;
    let working = w.products as f64 * computing.max(alone / w.groups as f64);
    // the entry, the first rows, and the last store
    let clocks = 3.0 * LATENCY + working.max(w.chain as f64 * alone);
    let bound = if working > 0.5 * clocks { bound } else { Bound::Latency };
    let (us, bound) = with_traffic(gpu, clocks, bound, w.traffic, w.l2_bytes);
    Estimate {
        flops: w.flops,
        bytes: w.traffic.bytes(),
        blocks: w.blocks,
        blocks_per_sm: 1,
        waves: w.items as f64 / gpu.sm_count as f64,
        us,
        bound,
    }
}

/// Rows that are read, combined and written.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowWork {
    pub(super) blocks: usize,
    pub(super) blocks_per_sm: usize,
    /// Elements that a block combines.
    pub(super) block_elements: f64,
    /// fp32 instructions an element.
    pub(super) instructions: f64,
    pub(super) round_trips: f64,
    pub(super) traffic: Traffic,
}

/// One launch of a row kernel.
pub(super) fn rows(gpu: &Gpu, w: &RowWork) -> Estimate {
    let added = w.block_elements * w.instructions / gpu.multiprocessor().fp32_lanes as f64;
    let block = BlockClocks { alone: w.round_trips * LATENCY + added, added, bound: Bound::Arithmetic };
    grid(gpu, w.blocks, w.blocks_per_sm, block, 0.0, w.traffic, 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn large(gpu: &Gpu, size: usize) -> Estimate {
        gemm(
            gpu,
            &GemmWork {
                m: size,
                n: size,
                k: size,
                block: [128, 256, 32],
                stages: 4,
                fragment_bytes: 8 * (64 + 64) * 32 * 2,
                splits: 1,
                blocks_per_sm: 1,
                epilogue_instructions: 8.0,
                traffic: Traffic::of(6.0 * (size * size) as f64, false),
            },
        )
    }

    /// 221 to 240 TFLOP/s are published for handwritten kernels of this form on an A100.
    #[test]
    fn large_products_take_about_what_is_published() {
        let gpu = Gpu::known("a100").unwrap();
        let at = |size| {
            let e = large(&gpu, size);
            (e.flops / e.us / 1e6, e.bound)
        };
        let (tflops, bound) = at(8192);
        assert!((215.0..241.0).contains(&tflops) && bound == Bound::Tensor, "{tflops} {bound}");
        assert!(at(1024).0 < at(4096).0);
    }

    #[test]
    fn a_launch_takes_at_least_its_gap_and_its_bytes() {
        let gpu = Gpu::known("h200").unwrap();
        let work = RowWork {
            blocks: 1,
            blocks_per_sm: 8,
            block_elements: 4.0 * 384.0,
            instructions: 10.0,
            round_trips: 2.0,
            traffic: Traffic::of(4.0 * 384.0 * 6.0, false),
        };
        let one = rows(&gpu, &work);
        assert!(one.us > LAUNCH_US && one.us < 2.0 * LAUNCH_US && one.bound == Bound::Latency, "{one:?}");
        let bytes = 6.0 * 768.0 * 65536.0;
        let many = rows(&gpu, &RowWork { blocks: 16384, traffic: Traffic::of(bytes, false), ..work });
        assert!(many.us > bytes / 4320e3 && many.bound == Bound::Memory, "{many:?}");
    }

    /// 763 TFLOP/s at 4096 and 808 at 8192 are published for a handwritten kernel with these tiles and clusters (fast.cu, H100,
    /// bf16); the ceiling of the model is 790.
    #[test]
    fn large_products_on_hopper_take_about_what_is_published() {
        let gpu = Gpu::known("h100").unwrap();
        let at = |size: usize, ping_pong, columns: usize, cluster| {
            let clusters = size.div_ceil(128 * cluster) * size.div_ceil(columns);
            let work = PersistentGemmWork {
                m: size,
                n: size,
                k: size,
                block: [128, columns, 64],
                ping_pong,
                cluster,
                clusters,
                blocks: cluster * clusters.min(gpu.sm_count / cluster),
                epilogue_instructions: 8.0,
                traffic: Traffic::of(6.0 * (size * size) as f64, false),
            };
            let e = persistent_gemm(&gpu, &work);
            e.flops / e.us / 1e6
        };
        let large = at(8192, false, 256, 2);
        assert!((650.0..790.0).contains(&large), "{large}");
        assert!(at(1024, false, 256, 2) < at(4096, false, 256, 2));
        assert!(at(8192, false, 256, 1) < large, "weights that are not shared are read more often");
        assert!(at(8192, true, 128, 2) < large, "so are those of smaller tiles");
    }

    /// FlashAttention-2 on an A100, head size 64, not causal, 2,048 tokens: 190 TFLOP/s published.
    #[test]
    fn attention_takes_about_what_is_published() {
        let gpu = Gpu::known("a100").unwrap();
        let (tokens, heads, batch) = (2048.0, 32.0, 8.0);
        let flops = 4.0 * tokens * tokens * 64.0 * heads * batch;
        let e = attention(
            &gpu,
            &AttentionWork {
                blocks: (tokens / 128.0 * heads * batch) as usize,
                blocks_per_sm: 2,
                scores: 128.0 * tokens,
                head_dim: 64,
                block_bytes: 4.0 * 64.0 * tokens,
                round_trips: 3.0,
                flops,
                traffic: Traffic::of(8.0 * 64.0 * tokens * heads * batch, false),
            },
        );
        let tflops = flops / e.us / 1e6;
        assert!((165.0..215.0).contains(&tflops), "{tflops} {e:?}");
    }

    /// FlashAttention-3 on an H100, head size 64, not causal: 497 TFLOP/s published at 16,384 tokens, 333 at 512.
    #[test]
    fn attention_on_hopper_takes_about_what_is_published() {
        let gpu = Gpu::known("h100").unwrap();
        let at = |tokens: usize, head_dim| {
            let (heads, batch) = (2048 / head_dim, 16384 / tokens);
            let entries = heads * batch * tokens.div_ceil(192);
            let flops = (4 * tokens * tokens * head_dim * heads * batch) as f64;
            let work = RingAttentionWork {
                blocks: gpu.sm_count,
                items: entries,
                groups: 3,
                head_dim,
                tile_rows: 64,
                products: entries.div_ceil(gpu.sm_count) * 3 * tokens.div_ceil(64),
                chain: tokens.div_ceil(64),
                flops,
                l2_bytes: 0.0,
                traffic: Traffic::of((8 * head_dim * tokens * heads * batch) as f64, false),
            };
            flops / ring_attention(&gpu, &work).us / 1e6
        };
        let (long, brief) = (at(16384, 64), at(512, 64));
        assert!((430.0..500.0).contains(&long), "{long}");
        assert!((300.0..420.0).contains(&brief), "{brief}");
        assert!(at(16384, 32) < 0.75 * long, "exponentials cost as much, and there are half the products");
    }
}
