//! A GPU in numbers: what decides how a kernel is launched on it, and how fast that can be.
//!
//! The launcher fills these in from what the driver says; the cost sheet takes them from [`Gpu::known`]. Every figure of
//! a known GPU is published (source beside it) or marked as an estimate. Knows nothing of kernels.

/// One GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpu {
    /// For people.
    pub name: String,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Multiprocessors.
    pub sm_count: usize,
    /// Clock of the multiprocessors under load, GHz.
    pub clock_ghz: f64,
    /// TFLOP/s, dense, 16-bit with fp32 sums, of the best instructions that the GPU has: what a share of the ceiling is
    /// a share of.
    pub ceiling_tflops: f64,
    /// TFLOP/s of `mma.sync`, the instruction of these kernels, at the rate that a loop of it keeps up.
    pub mma_tflops: f64,
    /// GB/s of device memory that a kernel gets.
    pub memory_gb_per_s: f64,
    /// GB/s from the L2 cache, all multiprocessors reading.
    pub l2_gb_per_s: f64,
    /// Bytes of the L2 cache.
    pub l2_bytes: usize,
}

/// What a driver says of a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// As its maker calls it.
    pub name: String,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Multiprocessors.
    pub sm_count: usize,
    /// The highest clock of the multiprocessors, kHz.
    pub clock_khz: u32,
    /// The memory's clock, kHz, at which it moves two words of the bus; 0 where the driver keeps it to itself.
    pub memory_clock_khz: u32,
    /// Width of the memory's bus.
    pub memory_bus_bits: u32,
    /// Bytes of the L2 cache.
    pub l2_bytes: usize,
}

/// What a multiprocessor has of each thing that blocks take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Multiprocessor {
    /// Resident threads.
    pub threads: usize,
    /// Resident blocks.
    pub blocks: usize,
    /// Bytes of shared memory for all blocks.
    pub shared_bytes: usize,
    /// Bytes of shared memory that one block may have, static and dynamic, where it opts in.
    pub shared_bytes_of_block: usize,
    /// 32-bit registers.
    pub registers: usize,
    /// Additions or multiplications of fp32 a clock.
    pub fp32_lanes: usize,
}

/// What a loop of `mma.sync` keeps of its peak if nothing else is in its way: with it, an A100 gets 235 of its 312 TFLOP/s on
/// large products, and 221 to 240 are published for handwritten kernels (cuBLAS: 244 to 262). An estimate for all others.
const SUSTAINED_MMA: f64 = 0.8;
/// What a kernel that copies gets of published bandwidth: 4.3 of 4.8 TB/s, measured on an H200.
const SUSTAINED_MEMORY: f64 = 0.9;

impl Gpu {
    /// A GPU by the name that the command takes: one of [`Gpu::KNOWN`].
    pub fn known(name: &str) -> Option<Self> {
        let gpu =
            |name: &str, compute_capability, sm_count, clock_ghz: f64, ceiling_tflops: f64, mma_peak: f64| {
                Self {
                    name: name.to_owned(),
                    compute_capability,
                    sm_count,
                    clock_ghz,
                    ceiling_tflops,
                    mma_tflops: mma_peak * SUSTAINED_MMA,
                    memory_gb_per_s: 0.0,
                    l2_gb_per_s: 0.0,
                    l2_bytes: 0,
                }
            };
        let memory = |gpu: Self, published_gb_per_s: f64, l2_bytes_per_clock: f64, l2_mb: usize| Self {
            memory_gb_per_s: published_gb_per_s * SUSTAINED_MEMORY,
            l2_gb_per_s: l2_bytes_per_clock * gpu.clock_ghz,
            l2_bytes: l2_mb << 20,
            ..gpu
        };
        // L2 bytes a clock: 5,120 is published for the A100, of which three quarters are taken as what kernels get; for
        // Hopper DeepGEMM's cost model has 6,100; 64 a multiprocessor, the width of its port, as an upper bound and half
        // of it as an estimate for the others.
        Some(match name {
            // NVIDIA A100 Tensor Core GPU Architecture whitepaper 1.0 (SM count, clock, 312 TFLOP/s, L2); A100 datasheet
            // (SXM 80 GB: 2,039 GB/s)
            "a100" => {
                memory(gpu("A100 SXM 80GB", (8, 0), 108, 1.41, 312.0, 312.0), 2039.0, 0.75 * 5120.0, 40)
            }
            // H100 datasheet (SXM: 1,979 TFLOP/s with sparsity, 3.35 TB/s) and whitepaper (132 SMs, 50 MB). Ceiling: 790,
            // as measured on an H200 with random data, power-limited. mma.sync reaches 62.9% of what wgmma does: Luo et
            // al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", 2024
            "h100" => memory(gpu("H100 SXM", (9, 0), 132, 1.83, 790.0, 0.629 * 989.4), 3350.0, 6100.0, 50),
            // H200 datasheet (4.8 TB/s); the rest is the H100's
            "h200" => memory(gpu("H200", (9, 0), 132, 1.83, 790.0, 0.629 * 989.4), 4800.0, 6100.0, 50),
            // B200 datasheet (2.25 PFLOP/s dense, 8 TB/s), 148 SMs. mma.sync is not published: an SM is taken to do as
            // an A100's. FlashAttention-2, which uses it, gets 381 TFLOP/s out of a B200 (its issue 1589)
            "b200" => memory(
                gpu("B200", (10, 0), 148, 1.85, 2250.0, 148.0 * 2048.0 * 1.85e-3),
                8000.0,
                32.0 * 148.0,
                126,
            ),
            // L4 datasheet (121 TFLOP/s dense, 300 GB/s). At 72 W it does not hold this clock under tensor load
            "l4" => memory(gpu("L4", (8, 9), 58, 2.04, 121.0, 121.0), 300.0, 32.0 * 58.0, 48),
            // NVIDIA Ada GPU Architecture whitepaper: 165.2 TFLOP/s with fp32 sums (330.3 with fp16 sums)
            "rtx4090" => memory(gpu("RTX 4090", (8, 9), 128, 2.52, 165.2, 165.2), 1008.0, 32.0 * 128.0, 72),
            _ => return None,
        })
    }

    /// A GPU by what its driver says; what a driver does not say is taken to be as it is of the known ones of its
    /// compute capability.
    pub fn of(a: &Attributes) -> Self {
        // FLOPs of 16-bit products with fp32 sums a clock and multiprocessor, of the best instructions and of mma.sync.
        // The same sources as in `known`. GeForce cards halve them from 8.6 on; told apart by their names
        let geforce = a.name.contains("GeForce") || a.name.contains("RTX 30") || a.name.contains("RTX 40");
        let (best, mma) = match (a.compute_capability, geforce) {
            ((8, 0), _) => (2048.0, 2048.0),
            ((8 | 12.., _), true) => (512.0, 512.0),
            ((8, _), false) => (1024.0, 1024.0),
            ((9, _), _) => (4096.0, 0.629 * 4096.0),
            ((10 | 11, _), _) => (8192.0, 2048.0),
            _ => (1024.0, 1024.0),
        };
        // a driver that says 0 is asked no further: the predictions then only rank the tiles
        let clock_ghz = f64::from(if a.clock_khz == 0 { 1_500_000 } else { a.clock_khz }) / 1e6;
        let sms = a.sm_count.max(1) as f64;
        let tflops = |flops: f64| flops * sms * clock_ghz / 1e3;
        let memory = 2.0 * f64::from(a.memory_clock_khz) * f64::from(a.memory_bus_bits) / 8e6;
        let l2_bytes_per_clock = match a.compute_capability {
            (8, 0) => 0.75 * 5120.0 / 108.0,
            (9, _) => 6100.0 / 132.0,
            _ => 32.0,
        };
        let l2_gb_per_s = l2_bytes_per_clock * sms * clock_ghz;
        let memory = if memory > 0.0 { memory * SUSTAINED_MEMORY } else { l2_gb_per_s / 3.0 };
        Self {
            name: a.name.clone(),
            compute_capability: a.compute_capability,
            sm_count: a.sm_count.max(1),
            clock_ghz,
            ceiling_tflops: tflops(best),
            mma_tflops: tflops(mma) * SUSTAINED_MMA,
            memory_gb_per_s: memory.min(l2_gb_per_s),
            l2_gb_per_s,
            l2_bytes: a.l2_bytes,
        }
    }

    /// The names that [`Gpu::known`] takes.
    pub const KNOWN: [&'static str; 6] = ["a100", "h100", "h200", "b200", "l4", "rtx4090"];

    /// What each multiprocessor has, by the compute capability; what is not known yet is taken to be as the newest.
    ///
    /// CUDA C++ Programming Guide 13.0, "Compute Capabilities".
    pub fn multiprocessor(&self) -> Multiprocessor {
        let (threads, blocks, shared_kib, fp32_lanes) = match self.compute_capability {
            (8, 0) => (2048, 32, 164, 64),
            (8, 6) => (1536, 16, 100, 128),
            (8, 7) => (1536, 16, 164, 128),
            (8, _) => (1536, 24, 100, 128),
            (9, _) | (10, _) => (2048, 32, 228, 128),
            (11, _) => (1536, 24, 228, 128),
            _ => (1536, 24, 100, 128),
        };
        Multiprocessor {
            threads,
            blocks,
            shared_bytes: shared_kib << 10,
            shared_bytes_of_block: (shared_kib - 1) << 10,
            registers: 64 << 10,
            fp32_lanes,
        }
    }

    /// FLOPs of `mma.sync` a clock and multiprocessor.
    pub(super) fn mma_flops_per_clock(&self) -> f64 {
        self.mma_tflops * 1e3 / (self.clock_ghz * self.sm_count as f64)
    }

    /// FLOPs of the best instructions a clock and multiprocessor.
    pub(super) fn best_flops_per_clock(&self) -> f64 {
        self.ceiling_tflops * 1e3 / (self.clock_ghz * self.sm_count as f64)
    }

    /// Bytes from L2 a clock and multiprocessor where `blocks` blocks read; one's port is 64 bytes wide.
    pub(super) fn l2_bytes_per_clock(&self, blocks: usize) -> f64 {
        (self.l2_gb_per_s / (self.clock_ghz * self.sm_count.min(blocks) as f64)).min(64.0)
    }

    /// Microseconds of `clocks`.
    pub(super) fn us(&self, clocks: f64) -> f64 {
        clocks / (self.clock_ghz * 1e3)
    }
}

impl Multiprocessor {
    /// Blocks that are resident at once; 0 if not even one fits.
    ///
    /// Registers are given to whole warps, in units of 256 and to four warps at a time (one a scheduler). The system
    /// takes 1 KiB of shared memory for each block; it is given in units of 128 bytes.
    pub fn resident_blocks(&self, threads: usize, registers: usize, shared_bytes: usize) -> usize {
        let warps = threads.div_ceil(32);
        let register_warps = self.registers / (registers * 32).next_multiple_of(256) / 4 * 4;
        let shared = (shared_bytes + 1024).next_multiple_of(128);
        if shared_bytes > self.shared_bytes_of_block {
            return 0;
        }
        (self.threads / (warps * 32))
            .min(self.blocks)
            .min(register_warps / warps)
            .min(self.shared_bytes / shared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_gpus_have_every_figure() {
        for name in Gpu::KNOWN {
            let gpu = Gpu::known(name).unwrap();
            for figure in
                [gpu.clock_ghz, gpu.ceiling_tflops, gpu.mma_tflops, gpu.memory_gb_per_s, gpu.l2_gb_per_s]
            {
                assert!(figure.is_finite() && figure > 0.0, "{name}: {gpu:?}");
            }
            assert!(gpu.mma_tflops < gpu.ceiling_tflops && gpu.l2_gb_per_s > gpu.memory_gb_per_s, "{gpu:?}");
            assert!(gpu.l2_bytes >= 40 << 20 && gpu.sm_count >= 58, "{gpu:?}");
        }
        assert!(Gpu::known("abacus").is_none());
    }

    /// What drivers say of the known ones leads to about the same figures.
    #[test]
    fn attributes_lead_to_the_figures_of_known_gpus() {
        for (name, product, clock_khz, memory_clock_khz, memory_bus_bits) in [
            ("a100", "NVIDIA A100-SXM4-80GB", 1_410_000, 1_593_000, 5120),
            ("h200", "NVIDIA H200", 1_980_000, 3_201_000, 6144),
            ("l4", "NVIDIA L4", 2_040_000, 6_251_000, 192),
            ("rtx4090", "NVIDIA GeForce RTX 4090", 2_520_000, 10_501_000, 384),
        ] {
            let known = Gpu::known(name).unwrap();
            let gpu = Gpu::of(&Attributes {
                name: product.into(),
                compute_capability: known.compute_capability,
                sm_count: known.sm_count,
                clock_khz,
                memory_clock_khz,
                memory_bus_bits,
                l2_bytes: known.l2_bytes,
            });
            let near = |a: f64, b: f64| (a / b - 1.0).abs() < 0.12;
            assert!(near(gpu.mma_tflops, known.mma_tflops), "{gpu:?}, known {known:?}");
            assert!(near(gpu.memory_gb_per_s, known.memory_gb_per_s), "{gpu:?}, known {known:?}");
            assert!(near(gpu.l2_gb_per_s, known.l2_gb_per_s), "{gpu:?}, known {known:?}");
        }
    }

    #[test]
    fn a_driver_that_says_little_still_gives_figures() {
        let silent = Attributes {
            name: String::new(),
            compute_capability: (13, 0),
            sm_count: 0,
            clock_khz: 0,
            memory_clock_khz: 0,
            memory_bus_bits: 0,
            l2_bytes: 0,
        };
        let gpu = Gpu::of(&silent);
        for figure in [gpu.clock_ghz, gpu.mma_tflops, gpu.memory_gb_per_s, gpu.l2_gb_per_s] {
            assert!(figure.is_finite() && figure > 0.0, "{gpu:?}");
        }
    }

    /// As NVIDIA's occupancy calculator gives them.
    #[test]
    fn resident_blocks_match_the_occupancy_calculator() {
        let sm80 = Gpu::known("a100").unwrap().multiprocessor();
        assert_eq!(sm80.resident_blocks(128, 64, 0), 8);
        assert_eq!(sm80.resident_blocks(128, 65, 0), 7); // 72 registers a thread, 28 warps
        assert_eq!(sm80.resident_blocks(256, 255, 0), 1);
        assert_eq!(sm80.resident_blocks(32, 16, 0), 32);
        assert_eq!(sm80.resident_blocks(1024, 32, 0), 2);
        assert_eq!(sm80.resident_blocks(128, 32, 48 << 10), 3);
        assert_eq!(sm80.resident_blocks(128, 32, 163 << 10), 1);
        assert_eq!(sm80.resident_blocks(128, 32, 164 << 10), 0);
        let sm89 = Gpu::known("l4").unwrap().multiprocessor();
        assert_eq!(sm89.resident_blocks(128, 32, 49 << 10), 2);
        assert_eq!(sm89.resident_blocks(128, 32, 50 << 10), 1);
        assert_eq!(sm89.resident_blocks(512, 32, 0), 3);
    }
}
