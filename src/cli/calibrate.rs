//! Where the ranges of `berthier embed --dtype int8` come from, and what cannot be quantised.

use super::args::{EmbedArgs, OnError};
use super::compute::{Limits, Want, compute};
use super::input::{Fields, Inputs};
use super::npy::Npy;
use super::output::{CALIBRATION_ROWS, Calibration, Dtype, Plan, Target, no_place_for_bad_rows};
use super::report::Failure;
use crate::search::Data;
use berthier::{Embedder, Ranges};
use std::num::NonZeroUsize;

/// Refuses what the output has no place for.
pub(super) fn check(args: &EmbedArgs, plan: &Plan) -> Result<(), Failure> {
    let given = args.calibration_rows.is_some() || args.calibration.is_some() || args.ranges.is_some();
    if given && !plan.dtype.has_ranges() {
        return Err(Failure::Error(
            "--calibration, --calibration-rows and --ranges are for --dtype int8 and uint8".into(),
        ));
    }
    if args.on_error == OnError::Skip
        && let Some(why) = no_place_for_bad_rows(plan.format, plan.dtype)
    {
        return Err(Failure::Error(why));
    }
    if plan.token_vectors && plan.dtype.is_quantized() {
        return Err(Failure::Error(
            "--token-embeddings: float32 and float16 only, no quantised numbers".into(),
        ));
    }
    if plan.dtype.has_ranges() && args.ranges.is_none() && !matches!(plan.target, Target::File(_)) {
        return Err(Failure::Error(
            "a stream has no place for the ranges that the numbers are made with: use -o FILE, or --ranges"
                .into(),
        ));
    }
    Ok(())
}

/// Where the ranges of int8 and uint8 come from.
pub(super) fn calibration(args: &EmbedArgs, embedder: &Embedder) -> Result<Calibration, Failure> {
    let dim = embedder.dim();
    if let Some(path) = &args.ranges {
        let wrong = |why: String| Failure::Error(format!("{}: {why}", path.display()));
        let npy = Npy::open(path)?;
        let matrix = npy.data()?;
        let bounds = match matrix.data {
            Data::F32(bounds) if (npy.rows(), npy.dim()) == (2, dim) => bounds,
            Data::F32(_) | Data::F16(_) => {
                let (rows, columns) = (npy.rows(), npy.dim());
                return Err(wrong(format!("({rows}, {columns}) numbers, (2, {dim}) of float32 needed")));
            }
        };
        let (low, high) = bounds.split_at(dim);
        let ranges = Ranges::from_bounds(low.to_vec(), high.to_vec()).map_err(|e| wrong(e.to_string()))?;
        return Ok(Calibration::Known(ranges));
    }
    if let Some(path) = &args.calibration {
        let fields = Fields { text: args.field.clone(), id: None };
        let files = std::slice::from_ref(path);
        let inputs = Inputs::check(files, args.input_format, fields, args.max_line_bytes.get())?;
        let (mut ranges, mut rows) = (Ranges::new(dim), 0);
        let limits = Limits { stop_at_bad: true, stop_at_cut: false, dtype: Dtype::Float32 };
        for block in inputs.blocks(embedder.window_bytes()) {
            let (computed, failure) = compute(embedder, block?.rows, limits, Want::Vector)?;
            if let Some(failure) = failure {
                return Err(failure);
            }
            ranges.include(&computed.vectors);
            rows += computed.rows.len();
        }
        return match rows {
            0 => Err(Failure::Error(format!("{}: no text to calibrate with", path.display()))),
            _ => Ok(Calibration::Known(ranges)),
        };
    }
    Ok(Calibration::FirstRows(args.calibration_rows.map_or(CALIBRATION_ROWS, NonZeroUsize::get)))
}
