//! From what `--model` says to a model directory.

use std::path::PathBuf;

/// The directory of `model`, or of the default model.
///
/// # Errors
/// [`berthier::Error::ModelNotFound`] with each place that was looked at.
pub(crate) fn resolve(model: Option<&str>, revision: Option<&str>) -> berthier::Result<PathBuf> {
    berthier::model::locate::locate(model.unwrap_or(berthier::model::locate::DEFAULT_MODEL), revision)
}
