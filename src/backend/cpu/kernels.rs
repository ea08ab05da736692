//! The table of kernels of one instruction set: a function pointer each, and a safe method that checks
//! lengths before it calls.
//!
//! The pointers are to functions compiled for the instruction set's features. Tables are reachable only
//! through [`Isa::kernels`](super::Isa::kernels), which gives out those that this machine can run.
#![allow(unsafe_code, reason = "calls of functions compiled for features that the machine was asked for")]

use super::gemm::{Matrix, Panels, SharedMut, Storage, Tile};
use super::generic::{Fetch, LINE_BYTES, MOST_ROWS, NV, part_bytes, parts};
use super::vector::MAX_LANES;
use crate::model::{Activation, Pooling};
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::Range;

/// What happens to an element of a product before it is stored.
#[derive(Debug, Clone, Copy)]
pub(super) enum Epilogue<'a> {
    /// Nothing.
    None,
    /// + bias\[column\]
    Bias(&'a [f32]),
    /// f(+ bias\[column\])
    BiasActivation(&'a [f32], Activation),
    /// + bias\[column\] + what the output holds
    BiasResidual(&'a [f32]),
    /// · scale\[row\]
    RowScale(&'a [f32]),
}

/// With so many rows and more, panels in 16 bits are made f32 once, in front of their first block of rows, in place of in each.
const ROWS_TO_WIDEN: usize = 48;

/// Rows that an activation function goes over at a time: a call for each tile of six rows cost half of its time more, and so many
/// lines still leave a panel its place in the level 1 cache.
const ROWS_TO_ACTIVATE: usize = 48;

thread_local! {
    /// The memory of a [`WidePanel`] while there is none.
    static WIDE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// A panel that is made f32, in memory that a thread allocates once.
struct WidePanel {
    memory: Vec<f32>,
    len: usize,
}

impl WidePanel {
    fn new(len: usize) -> Self {
        let (mut memory, room) = (WIDE.take(), len + LINE_BYTES / size_of::<f32>());
        if memory.len() < room {
            memory.resize(room, 0.0);
        }
        Self { memory, len }
    }

    /// From the beginning of a cache line, so that no vector crosses one.
    fn floats(&mut self) -> &mut [f32] {
        let first = self.memory.as_ptr().align_offset(LINE_BYTES).min(self.memory.len() - self.len);
        &mut self.memory[first..][..self.len]
    }
}

impl Drop for WidePanel {
    fn drop(&mut self) {
        WIDE.set(std::mem::take(&mut self.memory));
    }
}

/// A tile of a product. Its contract: the pointers hold what `generic::gemm_tile` says, and nobody else touches `c`.
type GemmTile = unsafe fn(&Tile);
/// Makes a panel f32. Its contract: as many weights at the pointer as there are floats, which are whole steps of k.
type Widen = unsafe fn(*const u8, &mut [f32]);

/// The tiles of weights in one storage.
pub(super) struct GemmTiles {
    /// Over one panel, by rows − 1 and [`Fetch`].
    pub(super) one: &'static [[GemmTile; Fetch::COUNT]],
    /// Over so many panels side by side, by rows − 1. One to three rows have too few chains of multiply-adds in one panel,
    /// and memory gives more where it is read in several places: one row took 14 GB/s from one panel at a time, 25 from
    /// four; three rows 18, and 22 from two (Zen 3).
    pub(super) several: &'static [(usize, GemmTile)],
    pub(super) widen: Widen,
}

/// The kernels of one instruction set.
pub(super) struct Kernels {
    pub(super) name: &'static str,
    /// Columns of a panel of weights.
    pub(super) nr: usize,
    /// By [`Storage`]; what is not there is not read.
    pub(super) gemm_tiles: &'static [GemmTiles],
    pub(super) embed_layernorm: unsafe fn(&mut [f32], &[f32], &[f32], &[f32], &[f32], f32),
    pub(super) layernorm: unsafe fn(&mut [f32], &[f32], &[f32], f32),
    pub(super) softmax: unsafe fn(&mut [f32], usize) -> f32,
    /// of rows: the function, where they begin, how far apart they are, how many, and how wide
    pub(super) activate: unsafe fn(Activation, *mut f32, usize, usize, usize),
    pub(super) add: unsafe fn(&mut [f32], &[f32]),
    pub(super) multiply: unsafe fn(&mut [f32], &[f32]),
    pub(super) rotate: unsafe fn(&mut [f32], &[f32], &[f32]),
    pub(super) pool: unsafe fn(Pooling, &[f32], usize, usize, &mut [f32]),
    pub(super) l2_normalize: unsafe fn(&mut [f32]),
    pub(super) exp: unsafe fn(&mut [f32]),
    pub(super) fma_peak: unsafe fn(usize) -> f32,
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernels").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Every kernel's contract is that the machine has the table's features and that the lengths agree; the
/// first is what having a table means, the second is asserted by the method that says so.
impl Kernels {
    /// The most rows of a tile, with weights in f32.
    pub(super) fn mr(&self) -> usize {
        self.gemm_tiles[Storage::F32 as usize].one.len()
    }

    /// Whether weights can be stored so.
    pub(super) fn reads(&self, storage: Storage) -> bool {
        self.gemm_tiles.len() > storage as usize
    }

    /// How many panels are computed side by side for so many rows.
    pub(super) fn panels_at_once(&self, rows: usize) -> usize {
        self.gemm_tiles[Storage::F32 as usize]
            .several
            .get(rows.wrapping_sub(1))
            .map_or(1, |&(panels, _)| panels)
    }

    /// out\[rows, panels\] = epilogue(a\[rows\] · w\[panels\]) for a block of rows and of panels.
    ///
    /// `a` is `[m, k]`; `out` is `[m, n]`; bias is of `panels.end · nr` floats at least, row scales of m.
    /// Each element is one chain of multiply-adds in the order of k, whatever the block.
    ///
    /// # Safety
    /// No other thread touches these rows and columns of `out` meanwhile.
    pub(super) unsafe fn gemm(
        &self,
        a: Matrix<'_>,
        w: &Panels<'_>,
        rows: Range<usize>,
        panels: Range<usize>,
        epilogue: Epilogue<'_>,
        out: &SharedMut<'_>,
    ) {
        if rows.is_empty() || panels.is_empty() {
            return;
        }
        let stored = &self.gemm_tiles[w.storage as usize];
        let widens = w.storage != Storage::F32 && rows.len() >= ROWS_TO_WIDEN;
        let read = if widens { Storage::F32 } else { w.storage };
        let tiles = &self.gemm_tiles[read as usize];
        let (mr, nr, k) = (tiles.one.len(), self.nr, w.k);
        let panel_bytes = k * nr * w.storage.bytes();
        let mut wide = widens.then(|| WidePanel::new(k * nr));
        let columns = panels.start * nr..w.n.min(panels.end * nr);
        assert!(a.columns >= k && rows.end <= a.rows, "the rows of the left matrix");
        assert!(panels.end * nr < w.n + nr && panels.end * panel_bytes <= 4 * w.data.len(), "the panels");
        assert_eq!(w.nr, nr, "panels packed for these kernels");
        assert!(rows.end <= out.rows() && columns.end <= out.columns(), "room for the product");
        let (mut bias, mut scale, mut residual, mut activation): (&[f32], &[f32], _, _) =
            (&[], &[], false, None);
        match epilogue {
            Epilogue::None => {}
            Epilogue::Bias(b) => bias = b,
            Epilogue::BiasActivation(b, f) => (bias, activation) = (b, Some(f)),
            Epilogue::BiasResidual(b) => (bias, residual) = (b, true),
            Epilogue::RowScale(s) => scale = s,
        }
        assert!(w.factors.is_empty() || w.factors.len() >= panels.end * nr, "a factor for each column");
        assert!(bias.is_empty() || bias.len() >= panels.end * nr, "a bias for each column of the panels");
        assert!(scale.is_empty() || scale.len() >= rows.end, "a scale for each row");

        let blocks = rows.len().div_ceil(mr);
        // While one panel is computed the next comes from the level 3 cache or from memory, in parts that the first blocks of
        // rows fetch, line behind line: then the processor sees a stream, and fetches ahead of it itself. On Zen 3, with 16
        // rows and weights from memory, the same lines one of each four at a time took 1.17 times as long.
        let row_bytes = nr * read.bytes();
        let (parts, part_bytes) = (parts(row_bytes), part_bytes(row_bytes, k));
        let fetch = |panel: usize, block: usize| {
            let cold = panel == panels.start; // nobody fetched it: its first block does
            let (nth, fetchers) =
                (block.wrapping_sub(usize::from(cold)), parts.min(blocks - usize::from(cold)));
            if w.in_cache {
                (Fetch::Nothing, 0, 1)
            } else if blocks == 1 && panel + 1 < panels.end {
                (Fetch::All, 0, 1)
            } else if cold && block == 0 {
                (Fetch::Own, 0, 1)
            } else if panel + 1 == panels.end || nth >= fetchers {
                (Fetch::Nothing, 0, 1)
            } else {
                let cut = |nth: usize| (parts * nth) as u32 / fetchers as u32;
                let first = cut(nth) as usize * part_bytes;
                // of panels that are made f32, a part is two of those in memory
                let what = if first < panel_bytes { Fetch::Later } else { Fetch::Nothing };
                (what, first, (cut(nth + 1) - cut(nth)).min(2) as usize)
            }
        };
        let few = tiles.several.get(rows.len() - 1);
        let c_stride = out.stride();
        // of the last panel of a product whose width is no multiple of a panel's
        let mut padded = [MaybeUninit::uninit(); MOST_ROWS * NV * MAX_LANES];
        let mut panel = panels.start;
        while panel < panels.end {
            let column = panel * nr;
            let mut b = w.data.as_ptr().cast::<u8>().wrapping_add(panel * panel_bytes);
            let behind = b.wrapping_add(panel_bytes);
            if let Some(wide) = &mut wide {
                let floats = wide.floats();
                // SAFETY: the panel has k · nr weights (asserted above), as many as there are floats
                unsafe { (stored.widen)(b, floats) };
                b = floats.as_ptr().cast();
            }
            let several = few.filter(|&&(count, _)| column + count * nr <= columns.end);
            let count = several.map_or(1, |&(count, _)| count);
            let width = (count * nr).min(columns.end - column);
            let partial = width < count * nr;
            // blocks of even height: a last block of one row would wait for its own few chains
            let (mut row, mut activated) = (rows.start, rows.start);
            for block in 0..blocks {
                let height = (rows.end - row).div_ceil(blocks - block);
                let (fetched, first_part, next_parts) = fetch(panel, block);
                let c = out.at(row, column);
                let tile = Tile {
                    k,
                    a: a.row(row).as_ptr(),
                    a_stride: a.stride,
                    b,
                    b_stride: panel_bytes,
                    next: behind.wrapping_add(first_part),
                    next_parts,
                    factors: from(w.factors, column),
                    bias: from(bias, column),
                    scale: from(scale, row),
                    residual: residual && !partial,
                    c: if partial { padded.as_mut_ptr().cast() } else { c },
                    c_stride: if partial { nr } else { c_stride },
                };
                let run = several.map_or(tiles.one[height - 1][fetched as usize], |&(_, run)| run);
                // SAFETY: `height` rows of `a` and `out` from `row`, `k · nr` weights of each panel and the
                // epilogue's floats are there (asserted above); the caller keeps others off this part of `out`
                unsafe { run(&tile) };
                if partial {
                    for (i, padded) in padded.chunks_exact(nr).take(height).enumerate() {
                        // SAFETY: `width` floats of a row of the tile's part of `out`
                        let row =
                            unsafe { std::slice::from_raw_parts_mut(c.wrapping_add(i * c_stride), width) };
                        for (c, x) in row.iter_mut().zip(padded) {
                            // SAFETY: the tile has stored `height` rows of a panel's width
                            let x = unsafe { x.assume_init() };
                            *c = if residual { x + *c } else { x };
                        }
                    }
                }
                row += height;
                // A second pass over lines that are still in the level 1 cache: in registers, the accumulators would leave no
                // room for the constants of the function. Nor is it part of the tiles: they would be twice the size.
                if let Some(f) = activation
                    && (row - activated >= ROWS_TO_ACTIVATE || block + 1 == blocks)
                {
                    // SAFETY: the part of `out` of the tiles since then
                    unsafe {
                        (self.activate)(f, out.at(activated, column), c_stride, row - activated, width)
                    };
                    activated = row;
                }
            }
            panel += count;
        }
    }

    /// x = layernorm(x + position + token_type), all of one row.
    pub(super) fn embed_layernorm(
        &self,
        x: &mut [f32],
        position: &[f32],
        token_type: &[f32],
        weight: &[f32],
        bias: &[f32],
        eps: f32,
    ) {
        assert!(
            [position, token_type, weight, bias].iter().all(|v| v.len() == x.len()),
            "vectors of one width"
        );
        // SAFETY: see the impl
        unsafe { (self.embed_layernorm)(x, position, token_type, weight, bias, eps) }
    }

    /// One row to mean 0 and variance 1, times weight, plus bias.
    pub(super) fn layernorm(&self, x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
        assert!(weight.len() == x.len() && bias.len() == x.len(), "vectors of one width");
        // SAFETY: see the impl
        unsafe { (self.layernorm)(x, weight, bias, eps) }
    }

    /// exp(s − max s) of the first `n` scores, in place, and their sum; the others are scratch. `scores` is a
    /// multiple of `nr` floats.
    pub(super) fn softmax(&self, scores: &mut [f32], n: usize) -> f32 {
        assert!(
            scores.len().is_multiple_of(self.nr) && 0 < n && n <= scores.len(),
            "scores padded to panels"
        );
        // SAFETY: see the impl
        unsafe { (self.softmax)(scores, n) }
    }

    /// The element-wise function, in place.
    pub(super) fn activate(&self, f: Activation, x: &mut [f32]) {
        // SAFETY: see the impl
        unsafe { (self.activate)(f, x.as_mut_ptr(), 0, 1, x.len()) }
    }

    /// x += y
    pub(super) fn add(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "vectors of one width");
        // SAFETY: see the impl
        unsafe { (self.add)(x, y) }
    }

    /// x · y, element by element, in place.
    pub(super) fn multiply(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "vectors of one width");
        // SAFETY: see the impl
        unsafe { (self.multiply)(x, y) }
    }

    /// Rotates the first half of `x` against the second by the angles of these cosines and sines.
    pub(super) fn rotate(&self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        assert!(cos.len() == sin.len() && x.len() == 2 * cos.len(), "an angle for each pair");
        // SAFETY: see the impl
        unsafe { (self.rotate)(x, cos, sin) }
    }

    /// One vector from the rows of `x` behind the first `skip`.
    pub(super) fn pool(&self, pooling: Pooling, x: Matrix<'_>, skip: usize, out: &mut [f32]) {
        assert!(x.rows > 0 && out.len() == x.columns, "one vector of the rows' width");
        // SAFETY: see the impl
        unsafe { (self.pool)(pooling, x.data, x.stride, skip, out) }
    }

    /// x / max(‖x‖₂, 1e-12)
    pub(super) fn l2_normalize(&self, x: &mut [f32]) {
        // SAFETY: see the impl
        unsafe { (self.l2_normalize)(x) }
    }

    /// eˣ in place, for tests and benches: elsewhere it is part of other kernels.
    pub(super) fn exp(&self, x: &mut [f32]) {
        // SAFETY: see the impl
        unsafe { (self.exp)(x) }
    }

    /// Multiply-adds from registers, as many as the machine can do; returns how many floating point
    /// operations that were, and a number that keeps the compiler from dropping them.
    pub(super) fn fma_peak(&self, steps: usize) -> (f64, f32) {
        let flops = (steps * super::generic::PEAK_CHAINS * self.lanes() * 2) as f64;
        // SAFETY: see the impl
        (flops, unsafe { (self.fma_peak)(steps) })
    }

    /// Floats of a vector: a panel is two vectors wide.
    fn lanes(&self) -> usize {
        self.nr / 2
    }
}

/// Where the floats from `first` on are; null if there are none at all.
fn from(x: &[f32], first: usize) -> *const f32 {
    if x.is_empty() { std::ptr::null() } else { x[first..].as_ptr() }
}

/// Compiles the generic kernels for one token type and puts them in a table, `KERNELS`.
/// Arguments: the token, the name, how weights can be stored with the heights of the tiles for each and those over several
/// panels (rows x panels), and the attribute that turns the features on.
macro_rules! instantiate {
    ($token:ident, $name:literal, [$($storage:ident $heights:tt $several:tt)*], $(#[$attr:meta])*) => {
        mod compiled {
            #![allow(unsafe_code, reason = "the microkernel works on raw pointers")]
            use super::$token;
            use $crate::backend::cpu::{generic, gemm::Tile};
            use $crate::model::{Activation, Pooling};
            $(#[$attr])*
            pub(super) unsafe fn gemm_tile<
                S: generic::Stored<$token>, const MR: usize, const NP: usize, const FETCH: usize,
            >(tile: &Tile) {
                // SAFETY: the same contract
                unsafe { generic::gemm_tile::<_, S, MR, NP, FETCH>($token::new(), tile) }
            }
            $(#[$attr])*
            pub(super) unsafe fn widen<S: generic::Stored<$token>>(panel: *const u8, wide: &mut [f32]) {
                // SAFETY: the same contract
                unsafe { generic::widen::<_, S>($token::new(), panel, wide) }
            }
            $(#[$attr])*
            pub(super) fn embed_layernorm(
                x: &mut [f32], position: &[f32], token_type: &[f32], weight: &[f32], bias: &[f32], eps: f32,
            ) {
                generic::embed_layernorm($token::new(), x, position, token_type, weight, bias, eps)
            }
            $(#[$attr])*
            pub(super) fn layernorm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
                generic::layernorm($token::new(), x, weight, bias, eps)
            }
            $(#[$attr])*
            pub(super) fn softmax(scores: &mut [f32], n: usize) -> f32 {
                generic::softmax($token::new(), scores, n)
            }
            $(#[$attr])*
            pub(super) unsafe fn activate(f: Activation, x: *mut f32, stride: usize, rows: usize, columns: usize) {
                // SAFETY: the same contract
                unsafe { generic::activate($token::new(), f, x, stride, rows, columns) }
            }
            $(#[$attr])*
            pub(super) fn add(x: &mut [f32], y: &[f32]) {
                generic::add($token::new(), x, y)
            }
            $(#[$attr])*
            pub(super) fn multiply(x: &mut [f32], y: &[f32]) {
                generic::multiply($token::new(), x, y)
            }
            $(#[$attr])*
            pub(super) fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32]) {
                generic::rotate($token::new(), x, cos, sin)
            }
            $(#[$attr])*
            pub(super) fn pool(pooling: Pooling, x: &[f32], stride: usize, skip: usize, out: &mut [f32]) {
                generic::pool($token::new(), pooling, x, stride, skip, out)
            }
            $(#[$attr])*
            pub(super) fn l2_normalize(x: &mut [f32]) {
                generic::l2_normalize($token::new(), x)
            }
            $(#[$attr])*
            pub(super) fn exp(x: &mut [f32]) {
                generic::exp_slice($token::new(), x)
            }
            $(#[$attr])*
            pub(super) fn fma_peak(steps: usize) -> f32 {
                generic::fma_peak($token::new(), steps)
            }
        }

        /// What a tile is compiled for that is asked to fetch so: its own panel, where every tile does that.
        const fn or_own(fetch: $crate::backend::cpu::generic::Fetch) -> usize {
            if <$token as Vector>::FETCHES_AGAIN {
                $crate::backend::cpu::generic::Fetch::Own as usize
            } else {
                fetch as usize
            }
        }

        /// The kernels of this instruction set.
        pub(in $crate::backend::cpu) static KERNELS: Kernels = Kernels {
            name: $name,
            nr: 2 * <$token as Vector>::LANES,
            gemm_tiles: &[$($crate::backend::cpu::kernels::gemm_tiles!($storage $heights $several)),*],
            embed_layernorm: compiled::embed_layernorm,
            layernorm: compiled::layernorm,
            softmax: compiled::softmax,
            activate: compiled::activate,
            add: compiled::add,
            multiply: compiled::multiply,
            rotate: compiled::rotate,
            pool: compiled::pool,
            l2_normalize: compiled::l2_normalize,
            exp: compiled::exp,
            fma_peak: compiled::fma_peak,
        };
    };
}
pub(super) use instantiate;

/// The tiles of one storage, of the heights `$low` and `$mr`, and of `$rows` over `$panels` panels. Heights below half of the
/// greatest stand alone, for blocks are even: they always fetch their own panel.
macro_rules! gemm_tiles {
    ($storage:ident [$($low:literal)*; $($mr:literal)*] [$($rows:literal x $panels:literal),*]) => {{
        use $crate::backend::cpu::generic::{Fetch, $storage};
        $crate::backend::cpu::kernels::GemmTiles {
            one: &[
                $([compiled::gemm_tile::<$storage, $low, 1, { Fetch::Own as usize }>; Fetch::COUNT],)*
                $([
                    compiled::gemm_tile::<$storage, $mr, 1, { or_own(Fetch::Nothing) }>,
                    compiled::gemm_tile::<$storage, $mr, 1, { Fetch::Later as usize }>,
                    compiled::gemm_tile::<$storage, $mr, 1, { Fetch::Own as usize }>,
                    compiled::gemm_tile::<$storage, $mr, 1, { or_own(Fetch::All) }>,
                ]),*
            ],
            several: &[$(($panels, compiled::gemm_tile::<$storage, $rows, $panels, { Fetch::Nothing as usize }>)),*],
            widen: compiled::widen::<$storage>,
        }
    }};
}
pub(super) use gemm_tiles;
