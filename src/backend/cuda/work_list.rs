//! Which attention kernel each sequence of a batch takes, and the list of tiles that its blocks work through.
//!
//! A sequence's kernel depends on its own length and the model alone, so that its bits do not depend on the batch. The layout of
//! the list is that of `kernels/attention.cu` and `kernels/attention_hopper.cu`; lists put long sequences first, so that the last
//! blocks to start, or the last turns of blocks that stay, are short.

use super::estimate::{self, AttentionWork, Estimate, RingAttentionWork, Traffic};
use super::tiles::TileTable;

/// A line of `ATTENTION_TILES` in `kernels/attention.cu`, or of `RING_TILES` in `kernels/attention_hopper.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionTile {
    /// The kernel, without the element type's suffix.
    pub name: &'static str,
    /// Width of a head.
    pub head_dim: usize,
    /// Heads of a block.
    pub heads: usize,
    /// Entries of the work list that a block takes.
    pub tiles_of_block: usize,
    /// Query rows of a block; where blocks stay, those that pass its keys at once.
    pub query_rows: usize,
    /// Keys that pass by at a time.
    pub key_rows: usize,
    /// Threads of a block.
    pub threads: usize,
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: usize,
    /// Tiles of keys, and as many of values, that shared memory has room for: of the kernels whose blocks stay and multiply with
    /// wgmma, on compute capability 9.0. 0 of the others.
    pub pairs: usize,
}

const fn tile(
    name: &'static str,
    head_dim: usize,
    heads: usize,
    [tiles_of_block, query_rows, key_rows]: [usize; 3],
    dynamic_shared: usize,
) -> AttentionTile {
    AttentionTile {
        name,
        head_dim,
        heads,
        tiles_of_block,
        query_rows,
        key_rows,
        threads: 128,
        dynamic_shared,
        pairs: 0,
    }
}

const fn ring(
    name: &'static str,
    head_dim: usize,
    groups: usize,
    pairs: usize,
    dynamic_shared: usize,
) -> AttentionTile {
    AttentionTile {
        name,
        head_dim,
        heads: 1,
        tiles_of_block: 1,
        query_rows: groups * RING_ROWS,
        key_rows: RING_ROWS,
        threads: 128 * (1 + groups),
        dynamic_shared,
        pairs,
    }
}

/// Every kernel; what each is for stands in `kernels/attention.cu` and `kernels/attention_hopper.cu`.
pub const ATTENTION_TILES: [AttentionTile; 9] = [
    ring("attention_wgmma_d32", 32, 3, 25, 230_472),
    ring("attention_wgmma_d64", 64, 3, 11, 229_912),
    ring("attention_wgmma_d128", 128, 2, 5, 229_640),
    tile("attention_short_d32", 32, 2, [SLOTS, 64, 64], 25600),
    tile("attention_short_d64", 64, 1, [SLOTS, 64, 64], 25088),
    tile("attention_short_d128", 128, 1, [SLOTS, 64, 64], 49664),
    tile("attention_stream_d32", 32, 1, [1, 128, 64], 18432),
    tile("attention_stream_d64", 64, 1, [1, 128, 64], 34816),
    tile("attention_stream_d128", 128, 1, [1, 64, 32], 34816),
];

/// The longest sequence of the short path.
pub const SHORT_TOKENS: usize = 64;
/// Entries of a block of the short path, one a warp.
const SLOTS: usize = 4;
/// Query rows of an entry of the short path; keys are rounded to as many.
const SLOT_ROWS: usize = 16;
/// Queries, or keys, of a tile of the kernels for compute capability 9.0.
const RING_ROWS: usize = 64;
/// Tokens of the sequences at which the kernels for long ones are compared: the most that many models take, where attention has
/// the largest share of the time.
const COMPARED_TOKENS: usize = 512;

/// An entry of a work list, as the kernel reads it. No tokens: nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C, align(16))]
pub struct Entry {
    /// First row of the sequence in the batch.
    pub sequence_start: i32,
    /// Tokens of the sequence.
    pub tokens: i32,
    /// The first of the queries that this entry is about, from the sequence's start.
    pub first_query: i32,
    /// Its queries, to the sequence's end at most.
    pub queries: i32,
}

/// What decides which kernels the attention of a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Heads.
    pub num_heads: usize,
    /// Width of each.
    pub head_dim: usize,
    /// Whether scores of some layer have a bias or a window.
    pub modified: bool,
    /// Whether GPUs of one compute capability have to take the same kernels.
    pub batch_invariant: bool,
}

/// The kernels of a model's attention on one GPU, and how their work is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AttentionKernels {
    /// For sequences of more than [`SHORT_TOKENS`], and for the others.
    long: &'static AttentionTile,
    short: &'static AttentionTile,
    num_heads: usize,
    sm_count: usize,
}

impl AttentionKernels {
    /// Long sequences take the kernel with wgmma where there is one that computes the model's scores and it is predicted to be
    /// faster. Where bits have to be those of every other GPU of this compute capability, it is taken without the prediction,
    /// which would depend on its clocks. `None` for a head size that there is no kernel for.
    pub(super) fn choose(table: &TileTable, shape: &AttentionShape) -> Option<Self> {
        let of = |path: &str| {
            ATTENTION_TILES.iter().find(|t| t.head_dim == shape.head_dim && t.name.contains(path))
        };
        let with = |long| {
            Some(Self {
                long,
                short: of("short")?,
                num_heads: shape.num_heads,
                sm_count: table.gpu().sm_count,
            })
        };
        let stream = with(of("stream")?)?;
        if shape.modified {
            return Some(stream);
        }
        let Some(ring) = of("wgmma").filter(|tile| table.blocks_per_sm(tile.name, None) > 0) else {
            return Some(stream);
        };
        let ring = with(ring)?;
        let us = |kernels: Self| {
            let sequences = 4 * kernels.sm_count; // so that blocks are busy to the end
            let ends: Vec<u32> = (0..=sequences).map(|i| (i * COMPARED_TOKENS) as u32).collect();
            let mut lists = WorkLists::new(kernels);
            lists.fill(&ends);
            launch(table, lists.lists()[0], kernels).estimate.us
        };
        let wins = shape.batch_invariant || us(ring) < us(stream);
        Some(if wins { ring } else { stream })
    }
}

/// How to launch attention on the sequences of one path.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionLaunch {
    /// The kernel.
    pub tile: &'static AttentionTile,
    /// Blocks.
    pub grid: usize,
    /// The work list, a multiple of `tiles_of_block` long.
    pub entries: Vec<Entry>,
    /// What it should take.
    pub estimate: Estimate,
}

impl AttentionTile {
    /// Whether its blocks stay, and take one entry and head after another.
    pub(super) fn stays(&self) -> bool {
        self.pairs > 0
    }

    /// Blocks for so many entries.
    pub(super) fn grid(&self, entries: usize, num_heads: usize, sm_count: usize) -> usize {
        let items = entries / self.tiles_of_block * num_heads.div_ceil(self.heads);
        if self.stays() { items.min(sm_count) } else { items }
    }

    /// Queries of an entry of each of `sequences`. Where blocks stay, a sequence whose keys fit is one entry, so that they are read
    /// once, if the last turn then leaves multiprocessors idle for no more than a tenth of the time; else an entry has as many
    /// queries as pass the keys at once; and if those are too few for all multiprocessors, one tile.
    fn rows_of_entry(&self, sequences: &[(usize, usize)], num_heads: usize, sm_count: usize) -> RowsOfEntry {
        if !self.stays() {
            return RowsOfEntry { most: self.query_rows, whole_up_to: 0 };
        }
        let whole = sequences.len() * num_heads;
        let whole_up_to =
            if 10 * whole >= 9 * whole.next_multiple_of(sm_count) { self.pairs * RING_ROWS } else { 0 };
        let cut = sequences.iter().map(|s| s.1.div_ceil(self.query_rows)).sum::<usize>() * num_heads;
        RowsOfEntry { most: if cut >= sm_count { self.query_rows } else { RING_ROWS }, whole_up_to }
    }
}

/// How sequences are cut into entries.
#[derive(Clone, Copy)]
struct RowsOfEntry {
    /// Queries of an entry.
    most: usize,
    /// Sequences of up to so many tokens are not cut.
    whole_up_to: usize,
}

impl RowsOfEntry {
    fn of(self, tokens: usize) -> usize {
        if tokens <= self.whole_up_to { tokens } else { self.most }
    }
}

/// The work lists of a batch, and what they are made in: filled again and again without an allocation.
#[derive(Debug)]
pub(super) struct WorkLists {
    kernels: AttentionKernels,
    /// Start and tokens of each sequence, the longer ones first.
    sequences: Vec<(usize, usize)>,
    /// How many of them are too long for the short path.
    long: usize,
    long_entries: Vec<Entry>,
    short_entries: Vec<Entry>,
}

/// The part of a batch that one path computes; nothing if it has no entries.
#[derive(Debug, Clone, Copy)]
pub(super) struct WorkList<'a> {
    pub(super) tile: &'static AttentionTile,
    /// A multiple of `tiles_of_block` long.
    pub(super) entries: &'a [Entry],
    sequences: &'a [(usize, usize)],
}

impl WorkLists {
    /// Empty ones.
    pub(super) fn new(kernels: AttentionKernels) -> Self {
        let (long_entries, short_entries) = (Vec::new(), Vec::new());
        Self { kernels, sequences: Vec::new(), long: 0, long_entries, short_entries }
    }

    /// Makes them those of a batch.
    ///
    /// # Panics
    /// As [`attention`].
    pub(super) fn fill(&mut self, cu_seqlens: &[u32]) {
        self.sequences.clear();
        self.sequences.extend(cu_seqlens.windows(2).map(|pair| {
            assert!(pair[0] < pair[1] && pair[1] <= i32::MAX as u32, "a sequence has a token: {pair:?}");
            (pair[0] as usize, (pair[1] - pair[0]) as usize)
        }));
        self.sequences.sort_unstable_by_key(|&(start, tokens)| (std::cmp::Reverse(tokens), start));
        self.long = self.sequences.partition_point(|&(_, tokens)| tokens > SHORT_TOKENS);
        let (long, brief) = self.sequences.split_at(self.long);
        let AttentionKernels { long: tile, num_heads, sm_count, .. } = self.kernels;
        let rows = tile.rows_of_entry(long, num_heads, sm_count);
        self.long_entries.clear();
        self.long_entries.extend(long.iter().flat_map(|&sequence| entries_of(sequence, rows.of(sequence.1))));
        self.short_entries.clear();
        short_entries(brief, &mut self.short_entries);
    }

    /// The path of long sequences, and that of short ones.
    pub(super) fn lists(&self) -> [WorkList<'_>; 2] {
        let (long, brief) = self.sequences.split_at(self.long);
        [
            WorkList { tile: self.kernels.long, entries: &self.long_entries, sequences: long },
            WorkList { tile: self.kernels.short, entries: &self.short_entries, sequences: brief },
        ]
    }
}

/// The launches for a batch: one for each path that has a sequence, the longer sequences first. `None` for a head size
/// that there is no kernel for.
///
/// # Panics
/// If `cu_seqlens` does not rise from one sequence to the next, or exceeds what an `i32` holds.
pub fn attention(
    table: &TileTable,
    cu_seqlens: &[u32],
    shape: &AttentionShape,
) -> Option<Vec<AttentionLaunch>> {
    let kernels = AttentionKernels::choose(table, shape)?;
    let mut lists = WorkLists::new(kernels);
    lists.fill(cu_seqlens);
    let used = lists.lists().into_iter().filter(|list| !list.entries.is_empty());
    Some(used.map(|list| launch(table, list, kernels)).collect())
}

/// Appends an entry at every 16th query, a sequence's side by side in one group of four: the longest sequence that is left,
/// then whatever longest ones fit beside it. `sequences` fall in length.
fn short_entries(sequences: &[(usize, usize)], entries: &mut Vec<Entry>) {
    // by the entries that they take: four, three, two, one
    let mut by_slots: [&[(usize, usize)]; SLOTS] = [&[]; SLOTS];
    let mut left = sequences;
    for (slots, queue) in by_slots.iter_mut().enumerate().rev() {
        let end = left.partition_point(|&(_, tokens)| tokens > slots * SLOT_ROWS);
        (*queue, left) = left.split_at(end);
    }
    loop {
        let mut free = SLOTS;
        while let Some(slots) = (1..=free).rev().find(|slots| !by_slots[slots - 1].is_empty()) {
            let queue = &mut by_slots[slots - 1];
            entries.extend(entries_of(queue[0], SLOT_ROWS));
            *queue = &queue[1..];
            free -= slots;
        }
        if free == SLOTS {
            return;
        }
        entries.resize(entries.len().next_multiple_of(SLOTS), Entry::default());
    }
}

pub(super) fn entries_of((start, tokens): (usize, usize), query_rows: usize) -> impl Iterator<Item = Entry> {
    (0..tokens).step_by(query_rows).map(move |first_query| Entry {
        sequence_start: start as i32,
        tokens: tokens as i32,
        first_query: first_query as i32,
        queries: query_rows.min(tokens - first_query) as i32,
    })
}

fn launch(table: &TileTable, list: WorkList<'_>, kernels: AttentionKernels) -> AttentionLaunch {
    let AttentionKernels { num_heads, sm_count, .. } = kernels;
    let WorkList { tile, entries, sequences } = list;
    let grid = tile.grid(entries.len(), num_heads, sm_count);
    let tokens: usize = sequences.iter().map(|s| s.1).sum();
    let squares: f64 = sequences.iter().map(|s| (s.1 * s.1) as f64).sum();
    let hidden = num_heads * tile.head_dim;
    let flops = 4.0 * squares * hidden as f64;
    let traffic = Traffic::of(8.0 * (tokens * hidden) as f64, table.fits_l2(8 * tokens * hidden));
    if tile.stays() {
        let tiles = |rows: i32| (rows as usize).div_ceil(RING_ROWS);
        let products = |e: &Entry| tiles(e.queries) * tiles(e.tokens);
        // the first block has the longest item of each turn
        let of_first =
            (0..entries.len() * num_heads).step_by(grid).map(|item| products(&entries[item / num_heads]));
        let groups = tile.query_rows / RING_ROWS;
        let chain = |e: &Entry| tiles(e.queries).div_ceil(groups) * tiles(e.tokens);
        let loaded: usize = entries.iter().map(|e| tiles(e.queries) + 2 * tiles(e.tokens)).sum();
        let work = RingAttentionWork {
            blocks: grid,
            items: entries.len() * num_heads,
            groups,
            head_dim: tile.head_dim,
            tile_rows: RING_ROWS,
            products: of_first.sum(),
            chain: entries.iter().map(chain).max().unwrap_or(0),
            flops,
            l2_bytes: 2.0 * ((loaded * RING_ROWS + tokens) * hidden) as f64,
            traffic,
        };
        let estimate = estimate::ring_attention(table.gpu(), &work);
        return AttentionLaunch { tile, grid, entries: entries.to_vec(), estimate };
    }
    // what an entry computes: its rows against its sequence's keys, both rounded up
    let (rows, keys) =
        if tile.tiles_of_block == SLOTS { (SLOT_ROWS, SLOT_ROWS) } else { (tile.query_rows, tile.key_rows) };
    let scores: f64 =
        entries.iter().map(|e| (rows * (e.tokens as usize).next_multiple_of(keys)) as f64).sum::<f64>()
            * num_heads as f64;
    // from L2: each entry's queries and outputs, and its sequence's keys and values, which short entries share
    let read: f64 = if tile.tiles_of_block == SLOTS {
        8.0 * (tokens * hidden) as f64
    } else {
        entries.iter().map(|e| (4 * (rows + e.tokens as usize) * hidden) as f64).sum()
    };
    let longest = sequences.first().map_or(0, |s| s.1);
    let estimate = estimate::attention(
        table.gpu(),
        &AttentionWork {
            blocks: grid,
            blocks_per_sm: table.blocks_per_sm(tile.name, None),
            scores: scores / grid as f64,
            head_dim: tile.head_dim,
            block_bytes: read / grid as f64,
            // the entry, then its rows, then the store; the stream path waits for each tile of keys but overlaps the next
            round_trips: 3.0 + longest as f64 / tile.key_rows as f64 * 0.25,
            flops,
            traffic,
        },
    );
    AttentionLaunch { tile, grid, entries: entries.to_vec(), estimate }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::{Element, Gpu};
    use proptest::prelude::*;

    fn table(gpu: &str) -> TileTable {
        TileTable::new(Gpu::known(gpu).unwrap(), Element::F16)
    }

    const PLAIN: AttentionShape =
        AttentionShape { num_heads: 12, head_dim: 64, modified: false, batch_invariant: false };

    fn launches_on(gpu: &str, lengths: &[usize], head_dim: usize) -> Vec<AttentionLaunch> {
        let mut cu_seqlens = vec![0u32];
        for tokens in lengths {
            cu_seqlens.push(cu_seqlens.last().unwrap() + *tokens as u32);
        }
        attention(&table(gpu), &cu_seqlens, &AttentionShape { head_dim, ..PLAIN }).unwrap()
    }

    fn launches(lengths: &[usize], head_dim: usize) -> Vec<AttentionLaunch> {
        launches_on("a100", lengths, head_dim)
    }

    /// Queries of each sequence that entries are about, as (start, query).
    fn queries(launch: &AttentionLaunch) -> Vec<(i32, i32)> {
        let of = |e: &Entry| {
            let start = e.sequence_start;
            (e.first_query..e.first_query + e.queries).map(move |q| (start, q)).collect::<Vec<_>>()
        };
        launch.entries.iter().flat_map(of).collect()
    }

    proptest! {
        #[test]
        fn prop_every_query_is_computed_once(
            lengths in prop::collection::vec(1usize..900, 1..60),
            gpu in prop::sample::select(vec!["a100", "h200"]),
        ) {
            let launches = launches_on(gpu, &lengths, 64);
            let mut found: Vec<_> = launches.iter().flat_map(queries).collect();
            let mut start = 0;
            let mut wanted = Vec::new();
            for &tokens in &lengths {
                wanted.extend((0..tokens as i32).map(|q| (start, q)));
                start += tokens as i32;
            }
            found.sort_unstable();
            wanted.sort_unstable();
            prop_assert_eq!(found, wanted);
            for launch in &launches {
                prop_assert_eq!(launch.entries.len() % launch.tile.tiles_of_block, 0);
                let items = launch.entries.len() / launch.tile.tiles_of_block * 12;
                prop_assert_eq!(launch.grid, if launch.tile.stays() { items.min(132) } else { items });
                let short = launch.tile.tiles_of_block == SLOTS;
                prop_assert_eq!(launch.tile.stays(), gpu == "h200" && !short);
                for e in launch.entries.iter().filter(|e| e.tokens > 0) {
                    prop_assert_eq!(short, e.tokens as usize <= SHORT_TOKENS);
                    if launch.tile.stays() {
                        // what more queries pass than the warpgroups take at once has to fit
                        let fits = e.tokens as usize <= launch.tile.pairs * RING_ROWS;
                        prop_assert!(e.queries as usize <= launch.tile.query_rows || fits);
                        prop_assert!((e.first_query as usize).is_multiple_of(RING_ROWS));
                    } else {
                        prop_assert!(e.queries as usize <= launch.tile.query_rows / launch.tile.tiles_of_block);
                    }
                }
            }
        }

        /// A warp finds its sequence's keys in its block: the entries stand side by side, in order.
        #[test]
        fn prop_a_short_sequence_stays_in_one_block(lengths in prop::collection::vec(1usize..=64, 1..60)) {
            let launches = launches(&lengths, 32);
            let entries = &launches[0].entries;
            for group in entries.chunks(SLOTS) {
                for (slot, e) in group.iter().enumerate().filter(|(_, e)| e.tokens > 0) {
                    let first = slot - e.first_query as usize / SLOT_ROWS;
                    for (i, own) in group[first..].iter().take((e.tokens as usize).div_ceil(SLOT_ROWS)).enumerate() {
                        prop_assert_eq!(own.sequence_start, e.sequence_start);
                        prop_assert_eq!(own.first_query as usize, i * SLOT_ROWS);
                    }
                    prop_assert!(first + (e.tokens as usize).div_ceil(SLOT_ROWS) <= SLOTS);
                }
            }
            // no more blocks than a perfect packing of threes with ones needs
            let count = |slots| lengths.iter().filter(|t| t.div_ceil(SLOT_ROWS) == slots).count();
            let (ones, twos) = (count(1), count(2));
            let rest = (twos % 2 * 2 + ones.saturating_sub(count(3))).div_ceil(4);
            prop_assert_eq!(entries.len() / SLOTS, count(4) + count(3) + twos / 2 + rest);
        }
    }

    #[test]
    fn entries_are_sixteen_bytes_as_the_kernel_reads_them() {
        assert_eq!((size_of::<Entry>(), align_of::<Entry>()), (16, 16));
        let e = |sequence_start, tokens, first_query, queries| Entry {
            sequence_start,
            tokens,
            first_query,
            queries,
        };
        let launches = launches(&[3, 130, 40, 64], 64);
        assert_eq!(launches[0].entries, [e(3, 130, 0, 128), e(3, 130, 128, 2)]);
        let none = Entry::default();
        let four = [0, 16, 32, 48].map(|q| e(173, 64, q, 16));
        let group = [e(133, 40, 0, 16), e(133, 40, 16, 16), e(133, 40, 32, 8), e(0, 3, 0, 3)];
        assert_eq!(launches[1].entries, [four, group].concat());
        let mut entries = Vec::new();
        short_entries(&[(0, 20)], &mut entries);
        assert_eq!(entries, [e(0, 20, 0, 16), e(0, 20, 16, 4), none, none]);
    }

    #[test]
    fn long_sequences_take_wgmma_where_it_computes_them() {
        let long = |gpu: &str, shape| AttentionKernels::choose(&table(gpu), &shape).unwrap().long.name;
        for head_dim in [32, 64, 128] {
            let shape = AttentionShape { head_dim, ..PLAIN };
            assert_eq!(long("h200", shape), format!("attention_wgmma_d{head_dim}"));
            assert_eq!(long("h100", shape), format!("attention_wgmma_d{head_dim}"));
            let stream = format!("attention_stream_d{head_dim}");
            for gpu in ["a100", "b200", "l4", "rtx4090"] {
                assert_eq!(long(gpu, shape), stream, "built for sm_90a alone");
            }
            assert_eq!(long("h200", AttentionShape { modified: true, ..shape }), stream);
            // a Hopper on which mma.sync would win: other GPUs' bits are not for its clocks to decide
            let mut gpu = Gpu::known("h200").unwrap();
            gpu.mma_tflops = 10.0 * gpu.ceiling_tflops;
            let table = TileTable::new(gpu, Element::F16);
            let choose = |shape| AttentionKernels::choose(&table, &shape).unwrap().long.name;
            assert_eq!(choose(shape), stream);
            let invariant = AttentionShape { batch_invariant: true, ..shape };
            assert_eq!(choose(invariant), format!("attention_wgmma_d{head_dim}"));
            assert_eq!(choose(AttentionShape { modified: true, ..invariant }), stream);
        }
    }

    /// Which kernel a sequence takes depends on nothing but its length, however its queries are cut.
    #[test]
    fn queries_are_cut_where_blocks_would_idle() {
        let longest = |lengths: &[usize]| {
            launches_on("h200", lengths, 64)[0].entries.iter().map(|e| e.queries as usize).max().unwrap()
        };
        assert_eq!(longest(&[512]), 64); // 12 heads, 8 tiles: 96 items
        assert_eq!(longest(&[512; 8]), 192); // 96 heads of 3 entries
        assert_eq!(longest(&[512; 33]), 512); // 3 items for each of 132 multiprocessors
        assert_eq!(longest(&[512; 34]), 192); // a fourth for some
        assert_eq!(longest(&[8192; 33]), 192); // more keys than fit
    }

    #[test]
    fn attention_rejects_head_sizes_without_a_kernel() {
        assert!(attention(&table("a100"), &[0, 5], &AttentionShape { head_dim: 48, ..PLAIN }).is_none());
        assert_eq!(attention(&table("a100"), &[0], &PLAIN).unwrap(), []);
    }
}
