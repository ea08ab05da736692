//! Quantised numbers: which ranges they are made with, and the file that keeps these beside the output.

use super::npy;
use super::writer::Computed;
use super::{Dtype, Format};
use berthier::{Quantizer, Ranges};

/// Where the ranges of int8 and uint8 come from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Calibration {
    /// The first rows of the input, which wait in memory until their ranges are known.
    FirstRows(usize),
    /// The caller.
    Known(Ranges),
}

impl Dtype {
    /// Whether ranges are needed.
    pub(crate) fn has_ranges(self) -> bool {
        match self {
            Self::Int8 | Self::Uint8 => true,
            Self::Float32 | Self::Float16 | Self::Binary | Self::Ubinary => false,
        }
    }

    /// Whether the numbers are not those of the vector.
    pub(crate) fn is_quantized(self) -> bool {
        match self {
            Self::Int8 | Self::Uint8 | Self::Binary | Self::Ubinary => true,
            Self::Float32 | Self::Float16 => false,
        }
    }

    /// NumPy's name.
    pub(super) fn descr(self) -> &'static str {
        match self {
            Self::Float32 => "<f4",
            Self::Float16 => "<f2",
            Self::Int8 | Self::Binary => "|i1",
            Self::Uint8 | Self::Ubinary => "|u1",
        }
    }

    /// Numbers of a vector of `dim` components.
    pub(super) fn columns(self, dim: usize) -> usize {
        match self {
            Self::Float32 | Self::Float16 | Self::Int8 | Self::Uint8 => dim,
            Self::Binary | Self::Ubinary => dim.div_ceil(8),
        }
    }

    /// What makes the numbers, if they are quantised.
    pub(super) fn quantizer(self, ranges: Ranges) -> Option<Quantizer> {
        match self {
            Self::Float32 | Self::Float16 => None,
            Self::Int8 => Some(Quantizer::int8(ranges)),
            Self::Uint8 => Some(Quantizer::uint8(ranges)),
            Self::Binary => Some(Quantizer::binary()),
            Self::Ubinary => Some(Quantizer::ubinary()),
        }
    }
}

/// Blocks that wait until the ranges are known.
pub(super) struct Waiting {
    pub(super) ranges: Ranges,
    /// Rows of the input that still count.
    pub(super) rows_left: usize,
    pub(super) held: Vec<Computed>,
}

impl Waiting {
    /// Keeps a block. The ranges are those of so many rows, wherever blocks end. Gives whether they are known now.
    pub(super) fn hold(&mut self, block: Computed) -> bool {
        let dim = self.ranges.dim();
        let counted = block.rows.iter().zip(block.vectors.chunks_exact(dim)).take(self.rows_left);
        for (row, vector) in counted {
            if row.text.is_ok() {
                self.ranges.include(vector);
            }
        }
        self.rows_left -= block.rows.len().min(self.rows_left);
        self.held.push(block);
        self.rows_left == 0
    }
}

/// An npy file `[2, dim]`, lower bounds first: the `ranges` of sentence-transformers.
pub(crate) fn ranges_file(ranges: &Ranges) -> Vec<u8> {
    let mut bytes = npy::header(Dtype::Float32, 2, ranges.dim()).to_vec();
    bytes.extend(ranges.low().iter().chain(ranges.high()).flat_map(|v| v.to_le_bytes()));
    bytes
}

/// Reads what [`ranges_file`] wrote.
pub(super) fn read_ranges(bytes: &[u8], dim: usize) -> Result<Ranges, String> {
    let floats: Vec<f32> = bytes
        .get(npy::HEADER_BYTES..)
        .unwrap_or_default()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    if floats.len() != 2 * dim {
        return Err(format!("{} bounds, {} needed", floats.len(), 2 * dim));
    }
    let (low, high) = floats.split_at(dim);
    Ranges::from_bounds(low.to_vec(), high.to_vec()).map_err(|e| e.to_string())
}

/// Why rows that cannot be embedded have no place in the output.
pub(crate) fn no_place_for_bad_rows(format: Format, dtype: Dtype) -> Option<String> {
    match format {
        Format::Npy | Format::Raw if dtype.is_quantized() => Some(format!(
            "--on-error skip: {dtype:?} has no NaN that marks a skipped row (use jsonl output, or --on-error stop)"
        )),
        Format::Npy | Format::Raw | Format::Jsonl => None,
    }
}
