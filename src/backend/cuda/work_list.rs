//! Which attention kernel each sequence of a batch takes, and the list of tiles that its blocks work through.
//!
//! A sequence's kernel depends on its own length alone, so that its bits do not depend on the batch. The layout of the
//! list is that of `kernels/attention.cu`; lists put long sequences first, so that the last blocks to start are short.

use super::estimate::{self, AttentionWork, Estimate, Traffic};
use super::tiles::TileTable;

/// A line of `ATTENTION_TILES` in `kernels/attention.cu`.
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
    /// Query rows of a block.
    pub query_rows: usize,
    /// Keys that pass by at a time.
    pub key_rows: usize,
    /// Threads of a block.
    pub threads: usize,
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: usize,
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
    }
}

/// Every kernel; what each is for stands in `kernels/attention.cu`.
pub const ATTENTION_TILES: [AttentionTile; 6] = [
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
    /// 0.
    pub reserved: i32,
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
    /// Blocks for so many entries.
    pub(super) fn grid(&self, entries: usize, num_heads: usize) -> usize {
        entries / self.tiles_of_block * num_heads.div_ceil(self.heads)
    }
}

/// The work lists of a batch, and what they are made in: filled again and again without an allocation.
#[derive(Debug)]
pub(super) struct WorkLists {
    /// Start and tokens of each sequence, the longer ones first.
    sequences: Vec<(usize, usize)>,
    /// How many of them are too long for the short path.
    long: usize,
    stream: (&'static AttentionTile, Vec<Entry>),
    short: (&'static AttentionTile, Vec<Entry>),
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
    /// Empty ones; `None` for a head size that there is no kernel for.
    pub(super) fn new(head_dim: usize) -> Option<Self> {
        let kernel =
            |path: &str| ATTENTION_TILES.iter().find(|t| t.head_dim == head_dim && t.name.contains(path));
        let path = |path| kernel(path).map(|tile| (tile, Vec::new()));
        Some(Self { sequences: Vec::new(), long: 0, stream: path("stream")?, short: path("short")? })
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
        let (tile, entries) = &mut self.stream;
        entries.clear();
        entries.extend(long.iter().flat_map(|&sequence| entries_of(sequence, tile.query_rows)));
        self.short.1.clear();
        short_entries(brief, &mut self.short.1);
    }

    /// The path of long sequences, and that of short ones.
    pub(super) fn lists(&self) -> [WorkList<'_>; 2] {
        let (long, brief) = self.sequences.split_at(self.long);
        [
            WorkList { tile: self.stream.0, entries: &self.stream.1, sequences: long },
            WorkList { tile: self.short.0, entries: &self.short.1, sequences: brief },
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
    num_heads: usize,
    head_dim: usize,
) -> Option<Vec<AttentionLaunch>> {
    let mut lists = WorkLists::new(head_dim)?;
    lists.fill(cu_seqlens);
    let used = lists.lists().into_iter().filter(|list| !list.entries.is_empty());
    Some(used.map(|list| launch(table, list, num_heads)).collect())
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

fn entries_of((start, tokens): (usize, usize), query_rows: usize) -> impl Iterator<Item = Entry> {
    (0..tokens).step_by(query_rows).map(move |first_query| Entry {
        sequence_start: start as i32,
        tokens: tokens as i32,
        first_query: first_query as i32,
        reserved: 0,
    })
}

fn launch(table: &TileTable, list: WorkList<'_>, num_heads: usize) -> AttentionLaunch {
    let WorkList { tile, entries, sequences } = list;
    let grid = tile.grid(entries.len(), num_heads);
    let tokens: usize = sequences.iter().map(|s| s.1).sum();
    let squares: f64 = sequences.iter().map(|s| (s.1 * s.1) as f64).sum();
    let hidden = num_heads * tile.head_dim;
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
            flops: 4.0 * squares * hidden as f64,
            traffic: Traffic::of(8.0 * (tokens * hidden) as f64, table.fits_l2(8 * tokens * hidden)),
        },
    );
    AttentionLaunch { tile, grid, entries: entries.to_vec(), estimate }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::{Element, Gpu};
    use proptest::prelude::*;

    fn table() -> TileTable {
        TileTable::new(Gpu::known("a100").unwrap(), Element::F16)
    }

    fn launches(lengths: &[usize], head_dim: usize) -> Vec<AttentionLaunch> {
        let mut cu_seqlens = vec![0u32];
        for tokens in lengths {
            cu_seqlens.push(cu_seqlens.last().unwrap() + *tokens as u32);
        }
        attention(&table(), &cu_seqlens, 12, head_dim).unwrap()
    }

    /// Queries of each sequence that entries are about, as (start, query).
    fn queries(launch: &AttentionLaunch) -> Vec<(i32, i32)> {
        let rows =
            if launch.tile.tiles_of_block == SLOTS { SLOT_ROWS } else { launch.tile.query_rows } as i32;
        let of = |e: &Entry| {
            let start = e.sequence_start;
            (e.first_query..e.tokens.min(e.first_query + rows)).map(move |q| (start, q)).collect::<Vec<_>>()
        };
        launch.entries.iter().flat_map(of).collect()
    }

    proptest! {
        #[test]
        fn prop_every_query_is_computed_once(lengths in prop::collection::vec(1usize..200, 1..60)) {
            let launches = launches(&lengths, 64);
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
                prop_assert_eq!(launch.grid, launch.entries.len() / launch.tile.tiles_of_block * 12);
                let short = launch.tile.tiles_of_block == SLOTS;
                for e in launch.entries.iter().filter(|e| e.tokens > 0) {
                    prop_assert_eq!(short, e.tokens as usize <= SHORT_TOKENS);
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
        let e =
            |sequence_start, tokens, first_query| Entry { sequence_start, tokens, first_query, reserved: 0 };
        let launches = launches(&[3, 130, 40, 64], 64);
        assert_eq!(launches[0].entries, [e(3, 130, 0), e(3, 130, 128)]);
        let none = Entry::default();
        let four = [0, 16, 32, 48].map(|q| e(173, 64, q));
        let group = [e(133, 40, 0), e(133, 40, 16), e(133, 40, 32), e(0, 3, 0)];
        assert_eq!(launches[1].entries, [four, group].concat());
        let mut entries = Vec::new();
        short_entries(&[(0, 20)], &mut entries);
        assert_eq!(entries, [e(0, 20, 0), e(0, 20, 16), none, none]);
    }

    #[test]
    fn attention_rejects_head_sizes_without_a_kernel() {
        assert!(attention(&table(), &[0, 5], 12, 48).is_none());
        assert_eq!(attention(&table(), &[0], 12, 64).unwrap(), []);
    }
}
