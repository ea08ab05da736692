//! The CPU backend: our own SIMD kernels, chosen at run time.
//!
//! A batch is cut at sequence borders into tiles of a few hundred tokens. With about as much for each
//! thread, each thread takes tiles through the whole model while their activations stay in its cache;
//! otherwise (one text, a few short ones, one very long one) the threads share each step of a tile. A
//! vector's bits are the same either way.
#![allow(unsafe_code, reason = "tiles write their own rows of the output")]

use super::{Backend, BackendOptions, Capacity, Precision};
use crate::batch::PackedBatch;
use crate::error::{Error, Result};
use crate::model::{ModelDesc, Weights};
use crate::threads::Threads;
use forward::Forward;
use gemm::{Narrow, SharedMut};
use kernels::Kernels;
use std::ops::Range;
use team::Team;
use weights::Packed;
use workspace::{HeadScratch, Pool, Workspace};

#[doc(hidden)]
pub mod bench;
mod buffer;
mod forward;
mod gemm;
mod generic;
mod isa;
mod kernels;
mod portable;
mod team;
#[cfg(test)]
mod tests;
mod vector;
mod weights;
mod workspace;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use isa::Isa;

/// Tokens of a tile: at least so many that reading all weights once for each tile costs little beside the
/// arithmetic (the weights of all layers come from the level 3 cache or from memory), at most what keeps
/// tiles small beside a batch. With all-MiniLM on a level 2 cache of 2 MiB, 256 tokens take 6% less time than
/// 128, and 384 another 1%, although their activations are 3.6 MB; 512 take as long as 256.
const TILE_TOKENS: Range<usize> = 384..512;
/// Tokens for each thread below which threads share the steps of a tile instead of taking tiles: with fewer,
/// each thread would spend its time on reading all weights for itself.
const LEAST_TILE_TOKENS: usize = 64;
/// Percent of its own time that a batch of a tile or less for each thread may take because some have less to do than
/// others; above, all threads share its tiles instead. That is dearer than it looks: each thread reads the others'
/// activations. (With 120 %, and for batches of several tiles a thread, a corpus took 12% longer on two threads.)
const MOST_TAKEN: usize = 140;
/// Sequences up to this length are tiles for one thread; longer ones are shared by all.
const LONGEST_NARROW: usize = 512;
/// Where the processor does not tell.
const DEFAULT_L2_BYTES: usize = 1 << 20;

/// One model on the CPU.
pub struct CpuBackend {
    desc: ModelDesc,
    isa: Isa,
    precision: Precision,
    kernels: &'static Kernels,
    weights: Packed,
    threads: Threads,
    max_tokens: usize,
    tile_tokens: usize,
    /// One for each thread.
    narrow: Pool<Workspace>,
    narrow_tokens: usize,
    /// Of a tile that all threads share.
    wide: Workspace,
    /// One for each thread.
    heads: Pool<HeadScratch>,
    submitted: Option<PackedBatch>,
    plan: Plan,
}

/// Tiles of a batch, as ranges of sequences. Kept for its memory.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    /// Each for one thread.
    narrow: Vec<Range<usize>>,
    /// Each for all threads, one after another.
    wide: Vec<Range<usize>>,
}

impl std::fmt::Debug for CpuBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuBackend").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl CpuBackend {
    /// Packs the weights and makes the workspaces.
    ///
    /// # Errors
    /// [`Error::DeviceUnavailable`] if the machine lacks the instruction set asked for, [`Error::InvalidOption`] if
    /// `BERTHIER_ISA` is none, or the precision not the CPU's, or int8 and a layer so wide that its sums could overflow.
    pub fn new(desc: &ModelDesc, weights: &Weights, options: &BackendOptions) -> Result<Self> {
        let isa = Isa::choose(options.isa)?;
        let kernels = isa.kernels()?;
        // what is no product with weights of a layer is in f32 whatever the precision
        let narrow = isa.narrow_kernels();
        let mut precisions = vec![Precision::Fp32];
        for precision in [Precision::Bf16, Precision::Int8] {
            precisions.extend(narrow.iter().any(|k| k.numbers.precision() == precision).then_some(precision));
        }
        let precision = options.precision.choose(&format!("{isa} on this CPU"), &precisions)?;
        let narrow = narrow.into_iter().find(|k| k.numbers.precision() == precision);
        let numbers = narrow.map(|k| k.numbers);
        let deepest = desc.hidden_size.max(desc.intermediate_size);
        if let Some(most) = numbers.and_then(Narrow::most_of_k).filter(|&most| deepest > most) {
            let message =
                format!("{precision}: sums over {deepest} numbers may overflow; up to {most} do not");
            return Err(Error::InvalidOption { name: "precision", message });
        }
        let threads = options.threads.clone();
        let longest = desc.longest_sequence();

        let tile_tokens = tile_tokens(l2_bytes(), desc);
        let single = threads.count() == 1;
        let narrow_tokens = tile_tokens.max(if single { longest } else { longest.min(LONGEST_NARROW) });
        let wide_tokens =
            if single { 0 } else { longest.max(narrow_tokens).max(LEAST_TILE_TOKENS * threads.count()) };
        let each = |_| Workspace::new(desc, narrow_tokens, numbers);
        let head = |_| HeadScratch::new(desc.head_dim(), longest, kernels.nr);
        Ok(Self {
            desc: desc.clone(),
            isa,
            precision,
            kernels,
            weights: Packed::new(desc, weights, kernels, narrow, Team::All(&threads)),
            max_tokens: options.host_batch_tokens(desc),
            tile_tokens,
            narrow: Pool::new((0..threads.count()).map(each).collect()),
            narrow_tokens,
            wide: Workspace::new(desc, wide_tokens, numbers),
            heads: Pool::new((0..threads.count()).map(head).collect()),
            submitted: None,
            plan: Plan::default(),
            threads,
        })
    }
}

/// A core's level 2 cache.
fn l2_bytes() -> usize {
    #[cfg(target_arch = "x86_64")]
    let found = x86_64::l2_bytes();
    #[cfg(not(target_arch = "x86_64"))]
    let found = None;
    found.unwrap_or(DEFAULT_L2_BYTES)
}

/// As many tokens as have their activations in half of the cache; the weights stream through the other half.
fn tile_tokens(l2_bytes: usize, desc: &ModelDesc) -> usize {
    (l2_bytes / 2 / Workspace::token_bytes(desc)).clamp(TILE_TOKENS.start, TILE_TOKENS.end)
}

impl Plan {
    /// Cuts sequences of the given ends (`cu_seqlens`) into tiles.
    fn fill(&mut self, cu_seqlens: &[u32], threads: usize, tile_tokens: usize, narrow: usize, wide: usize) {
        let total = cu_seqlens.last().map_or(0, |&end| end as usize);
        if threads > 1 && total < LEAST_TILE_TOKENS * threads {
            return self.cut(cu_seqlens, 1, 0, wide);
        }
        // as many tiles for each thread, all about equal
        self.cut(cu_seqlens, total.div_ceil(tile_tokens * threads) * threads, narrow, narrow);
        let tokens = |tile: &Range<usize>| (cu_seqlens[tile.end] - cu_seqlens[tile.start]) as usize;
        let largest = self.narrow.iter().map(tokens).max().unwrap_or(0);
        let all: usize = self.narrow.iter().map(tokens).sum();
        if threads > 1 && self.narrow.len() <= threads && 100 * largest * threads > MOST_TAKEN * all {
            self.cut(cu_seqlens, 1, 0, wide);
        }
    }

    /// Cuts into about so many tiles of up to `limit` tokens, but for longer sequences; those of up to `narrow` tokens are
    /// for one thread.
    fn cut(&mut self, cu_seqlens: &[u32], tiles: usize, narrow: usize, limit: usize) {
        self.narrow.clear();
        self.wide.clear();
        let end = |i: usize| cu_seqlens[i + 1] as usize;
        let seqs = cu_seqlens.len().saturating_sub(1);
        let total = cu_seqlens.last().map_or(0, |&end| end as usize);
        let (mut first, mut cut) = (0, 1);
        for i in 0..seqs {
            let start = cu_seqlens[first] as usize;
            let last = i + 1 == seqs;
            if !last && end(i) * tiles < cut * total && end(i + 1) - start <= limit {
                continue;
            }
            let list = if end(i) - start > narrow { &mut self.wide } else { &mut self.narrow };
            list.push(first..i + 1);
            first = i + 1;
            while cut * total <= end(i) * tiles {
                cut += 1;
            }
        }
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> String {
        let threads = self.threads.count();
        format!("cpu {}, {threads} {}", self.isa, if threads == 1 { "thread" } else { "threads" })
    }

    fn kind(&self) -> String {
        format!("cpu {}", self.isa)
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn capacity(&self) -> Capacity {
        Capacity {
            max_tokens: self.max_tokens,
            in_flight: 1,
            weight_bytes: self.weights.bytes(),
            workspace_bytes: self.wide.bytes()
                + self.narrow.total(Workspace::bytes)
                + self.heads.total(HeadScratch::bytes),
        }
    }

    fn gives_token_vectors(&self) -> bool {
        true
    }

    fn submit(&mut self, batch: PackedBatch) -> Result<()> {
        assert!(self.submitted.is_none(), "one batch at a time");
        self.submitted = Some(batch);
        Ok(())
    }

    fn collect(&mut self, out: &mut [f32]) -> Result<PackedBatch> {
        let batch = self.submitted.take().expect("a batch was submitted");
        let (rows, dim) = match batch.token_vectors {
            true => (batch.total_tokens(), self.desc.hidden_size),
            false => (batch.len(), self.desc.dim()),
        };
        assert_eq!(out.len(), rows * dim, "one vector per sequence, or per token");
        let (threads, narrow_tokens, wide_tokens) =
            (self.threads.count(), self.narrow_tokens, self.wide.tokens());
        self.plan.fill(&batch.cu_seqlens, threads, self.tile_tokens, narrow_tokens, wide_tokens);

        let out = SharedMut::new(out, rows, dim, dim);
        let forward = Forward {
            desc: &self.desc,
            kernels: self.kernels,
            weights: &self.weights,
            heads: &self.heads,
            batch: &batch,
        };
        for seqs in &self.plan.wide {
            // SAFETY: one tile after another
            unsafe { forward.tile(Team::All(&self.threads), &mut self.wide, seqs.clone(), &out) };
        }
        let tiles = &self.plan.narrow;
        self.threads.for_each(tiles.len(), |i| {
            // SAFETY: tiles have no sequence in common
            self.narrow.with(|ws| unsafe { forward.tile(Team::One, ws, tiles[i].clone(), &out) });
        });
        Ok(batch)
    }
}
