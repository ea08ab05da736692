//! What was measured to be the quickest, by GPU and shape, and is taken before any prediction: the tiles of products, and up to how many
//! tokens a small batch goes in one launch.
//!
//! Both tables are written by `tools/gpu-check` from its bench; rows of no GPU are in them until one has run that. Knows nothing of
//! how anything is launched.

use super::persistent::PERSISTENT_TOKENS;
use super::tiles::{GEMM_TILES, GemmTile};
use std::ops::RangeInclusive;

/// Tables of what was measured. Lines: the GPU's name, as its driver has it, and columns that the table's own comment names, between
/// tabs; or `#` and a comment.
#[derive(Debug, Clone, Copy, Default)]
pub struct RecordedTables<'t> {
    /// `tiles.tsv`: the quickest tile of each product.
    pub tiles: &'t str,
    /// `one_launch.tsv`: up to how many tokens one launch was quicker than kernels one by one.
    pub one_launch: &'t str,
}

/// Those that ship.
pub(super) const SHIPPED: RecordedTables<'static> =
    RecordedTables { tiles: include_str!("tiles.tsv"), one_launch: include_str!("one_launch.tsv") };

/// Rows of both tables about one GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Records {
    tiles: Vec<TileRecord>,
    one_launch: Vec<OneLaunchRecord>,
}

/// A row about products.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TileRecord {
    n: usize,
    k: usize,
    weights_in_l2: bool,
    rows: RangeInclusive<usize>,
    pub(super) tile: &'static GemmTile,
    pub(super) splits: usize,
}

/// A row about encoders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OneLaunchRecord {
    sizes: [usize; 4],
    /// Tokens of a batch, up to which the whole grid was quicker than kernels one by one.
    pub(super) grid: usize,
    /// Tokens, up to which one cluster was quicker than both.
    pub(super) cluster: usize,
}

impl Records {
    /// Those of `tables` about a GPU.
    ///
    /// # Errors
    /// A line that is not one of its table, whatever GPU it is about.
    pub(super) fn of(tables: RecordedTables<'_>, gpu: &str) -> Result<Self, String> {
        Ok(Self {
            tiles: rows("tiles.tsv", tables.tiles, gpu, tile)?,
            one_launch: rows("one_launch.tsv", tables.one_launch, gpu, one_launch)?,
        })
    }

    /// The tile of products `[m, k] × [n, k]ᵀ`.
    pub(super) fn tile(&self, [m, n, k]: [usize; 3], weights_in_l2: bool) -> Option<&TileRecord> {
        let is_about =
            |r: &&TileRecord| (r.n, r.k, r.weights_in_l2) == (n, k, weights_in_l2) && r.rows.contains(&m);
        self.tiles.iter().find(is_about)
    }

    /// The limits of encoders of these sizes: hidden, intermediate, layers, heads.
    pub(super) fn one_launch(&self, sizes: [usize; 4]) -> Option<&OneLaunchRecord> {
        self.one_launch.iter().find(|record| record.sizes == sizes)
    }
}

fn rows<R>(name: &str, table: &str, gpu: &str, row: impl Fn(&[&str]) -> Option<R>) -> Result<Vec<R>, String> {
    let mut of_gpu = Vec::new();
    for line in table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let columns: Vec<&str> = line.split('\t').collect();
        let record = row(&columns[1..]).ok_or_else(|| format!("not a row of {name}: '{line}'"))?;
        if columns[0] == gpu {
            of_gpu.push(record);
        }
    }
    Ok(of_gpu)
}

fn tile(columns: &[&str]) -> Option<TileRecord> {
    let [n, k, weights, from, to, tile, splits] = *columns else { return None };
    let weights_in_l2 = match weights {
        "memory" => false,
        "l2" => true,
        _ => return None,
    };
    let [n, k, from, to, splits] = numbers([n, k, from, to, splits])?;
    let tile = GEMM_TILES.iter().find(|of| of.name == tile)?;
    Some(TileRecord { n, k, weights_in_l2, rows: from..=to, tile, splits })
}

fn one_launch(columns: &[&str]) -> Option<OneLaunchRecord> {
    let columns: [&str; 6] = columns.try_into().ok()?;
    let [hidden, intermediate, layers, heads, grid, cluster] = numbers(columns)?;
    let sizes = [hidden, intermediate, layers, heads];
    (grid.max(cluster) <= PERSISTENT_TOKENS).then_some(OneLaunchRecord { sizes, grid, cluster })
}

fn numbers<const N: usize>(columns: [&str; N]) -> Option<[usize; N]> {
    let mut found = [0; N];
    for (number, column) in found.iter_mut().zip(columns) {
        *number = column.parse().ok()?;
    }
    Some(found)
}
