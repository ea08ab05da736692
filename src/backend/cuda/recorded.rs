//! Tiles that were measured to be the quickest, by GPU and shape: what a product takes before any prediction.
//!
//! `tiles.tsv` is written by `tools/gpu-check` from its bench; rows of no GPU are in it until one has run that. Knows nothing of
//! how a tile is launched.

use super::tiles::{GEMM_TILES, GemmTile};
use std::ops::RangeInclusive;

/// The table that ships.
pub(super) const TILES: &str = include_str!("tiles.tsv");

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    n: usize,
    k: usize,
    weights_in_l2: bool,
    rows: RangeInclusive<usize>,
    pub(super) tile: &'static GemmTile,
    pub(super) splits: usize,
}

impl Record {
    /// Whether it is about products `[m, k] × [n, k]ᵀ`.
    pub(super) fn is_about(&self, [m, n, k]: [usize; 3], weights_in_l2: bool) -> bool {
        (self.n, self.k, self.weights_in_l2) == (n, k, weights_in_l2) && self.rows.contains(&m)
    }
}

/// The rows of `table` about a GPU, by the name that its driver has for it. Lines: name, n, k, where the weights are (`memory`,
/// `l2`), rows from and to, tile, splits, between tabs; or `#` and a comment.
///
/// # Errors
/// A line that is none of these, whatever GPU it is about.
pub(super) fn of(table: &str, gpu: &str) -> Result<Vec<Record>, String> {
    let lines = table.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let records = lines.map(|line| record(line).ok_or_else(|| format!("not a row of tiles.tsv: '{line}'")));
    let all: Vec<(&str, Record)> = records.collect::<Result<_, _>>()?;
    Ok(all.into_iter().filter(|(name, _)| *name == gpu).map(|(_, record)| record).collect())
}

fn record(line: &str) -> Option<(&str, Record)> {
    let columns: Vec<&str> = line.split('\t').collect();
    let [gpu, n, k, weights, from, to, tile, splits] = columns[..] else { return None };
    let weights_in_l2 = match weights {
        "memory" => false,
        "l2" => true,
        _ => return None,
    };
    let [n, k, from, to, splits] = [n, k, from, to, splits].map(|number| number.parse().ok());
    let tile = GEMM_TILES.iter().find(|of| of.name == tile)?;
    let record = Record { n: n?, k: k?, weights_in_l2, rows: from?..=to?, tile, splits: splits? };
    Some((gpu, record))
}
