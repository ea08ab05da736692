//! The vectors: formats, the files they go into, and what keeps an unfinished file from looking complete.
//!
//! Knows rows and vectors; nothing of models.

mod jsonl;
mod npy;
mod partial;
mod raw;
mod small;
mod writer;

pub(crate) use partial::Claim;
pub(crate) use small::{Calibration, no_place_for_bad_rows, ranges_file};
pub(crate) use writer::{Computed, Writer, storable};

use super::report::Failure;
use clap::ValueEnum;
use std::path::{Path, PathBuf};

/// How the vectors lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// NumPy array, `[rows, dim]`.
    Npy,
    /// One JSON object a line.
    Jsonl,
    /// The numbers end to end, little-endian.
    Raw,
}

/// Rows of the input that ranges come from where nobody says otherwise: of all but the smallest corpora enough, and of
/// 1024 components 40 MB that wait in memory.
pub(crate) const CALIBRATION_ROWS: usize = 10_000;

/// The numbers of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    /// 4 bytes a component.
    #[value(alias = "f32")]
    Float32,
    /// 2 bytes a component, rounded to nearest.
    #[value(alias = "f16")]
    Float16,
    /// 1 byte a component: its place between the least and the greatest, −128 to 127.
    #[value(alias = "i8")]
    Int8,
    /// As int8, 0 to 255.
    #[value(alias = "u8")]
    Uint8,
    /// 1 bit a component, whether it is above 0; eight to a byte, less 128.
    Binary,
    /// As binary, the bytes 0 to 255.
    Ubinary,
}

/// Where to, and how.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) target: Target,
    pub(crate) format: Format,
    pub(crate) dtype: Dtype,
    /// Ids go with the rows: in them, or into a side file.
    pub(crate) ids: bool,
    /// Cut rows are marked: in them, or in a side file.
    pub(crate) mark_truncated: bool,
    /// The vectors are those of tokens, any number a row.
    pub(crate) token_vectors: bool,
    /// Of int8 and uint8.
    pub(crate) calibration: Calibration,
}

/// What is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Stdout,
    /// A device or a pipe: written to as it is.
    Device(PathBuf),
    /// A file that appears when it is complete.
    File(PathBuf),
}

impl Plan {
    /// Decides format and files from what the user said; nothing is touched.
    ///
    /// # Errors
    /// What contradicts itself, with the remedy.
    pub(crate) fn new(
        out: &Path,
        format: Option<Format>,
        dtype: Option<Dtype>,
        ids: bool,
        mark_truncated: bool,
    ) -> Result<Self, Failure> {
        let refuse = |message: String| Err(Failure::Error(message));
        let target = Target::of(out)?;
        let ending = out.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        let by_name = match &ending[..] {
            "npy" => Some((Format::Npy, None)),
            "jsonl" | "ndjson" => Some((Format::Jsonl, None)),
            "f32" => Some((Format::Raw, Some(Dtype::Float32))),
            "f16" => Some((Format::Raw, Some(Dtype::Float16))),
            _ if target == Target::Stdout => Some((Format::Jsonl, None)),
            _ => None,
        };
        let (format, named_dtype) = match (format, by_name) {
            (Some(format), Some((named, dtype))) if format == named => (format, dtype),
            (Some(format), _) => (format, None),
            (None, Some(named)) => named,
            (None, None) => {
                return refuse(format!(
                    "{}: the name does not say the format: end it in .npy, .jsonl, .f32 or .f16, or use \
                     --output-format",
                    out.display()
                ));
            }
        };
        let dtype = match (dtype, named_dtype) {
            (Some(dtype), Some(named)) if dtype != named => {
                return refuse(format!(
                    "{}: --dtype says otherwise than the name's ending (.f32 or .f16)",
                    out.display()
                ));
            }
            (Some(dtype), _) if format == Format::Jsonl && !dtype.is_quantized() => {
                return refuse(
                    "--dtype float32 and float16 are for npy and raw output; JSON numbers have no type"
                        .into(),
                );
            }
            (dtype, named) => dtype.or(named).unwrap_or(Dtype::Float32),
        };
        let stream = !matches!(target, Target::File(_));
        if stream && format == Format::Npy {
            return refuse(
                "npy cannot be written to a stream, as the number of rows stands at its beginning: use -o \
                 OUT.npy, or --output-format jsonl or raw"
                    .into(),
            );
        }
        if stream && format == Format::Raw && ids {
            return refuse("raw output to a stream has no place for ids: use --output-format jsonl".into());
        }
        if stream && format == Format::Raw && mark_truncated {
            return refuse(
                "raw output to a stream has no place for marks: use --output-format jsonl, or --on-truncate \
                 warn or error"
                    .into(),
            );
        }
        let calibration = Calibration::FirstRows(CALIBRATION_ROWS);
        Ok(Self { target, format, dtype, ids, mark_truncated, token_vectors: false, calibration })
    }

    /// Whether the vectors are those of tokens.
    ///
    /// # Errors
    /// An output that has no place for where each row begins.
    pub(crate) fn set_token_vectors(&mut self, token_vectors: bool) -> Result<(), Failure> {
        self.token_vectors = token_vectors;
        if self.offsets_aside() && !matches!(self.target, Target::File(_)) {
            return Err(Failure::Error(
                "raw output to a stream has no place for where each text's token vectors begin: use \
                 --output-format jsonl, or -o FILE"
                    .into(),
            ));
        }
        Ok(())
    }

    /// As messages name it.
    pub(crate) fn name(&self) -> String {
        match &self.target {
            Target::Stdout => "standard output".into(),
            Target::Device(path) | Target::File(path) => path.display().to_string(),
        }
    }

    fn ids_aside(&self) -> bool {
        self.ids && self.format != Format::Jsonl
    }

    /// Ranges go into a side file, without which the numbers mean nothing.
    fn ranges_aside(&self) -> bool {
        self.dtype.has_ranges()
    }

    /// Where each row's token vectors begin goes into a side file.
    fn offsets_aside(&self) -> bool {
        self.token_vectors && self.format != Format::Jsonl
    }

    fn truncated_aside(&self) -> bool {
        self.mark_truncated && self.format != Format::Jsonl
    }
}

impl Target {
    fn of(out: &Path) -> Result<Self, Failure> {
        if out.as_os_str() == "-" {
            return Ok(Self::Stdout);
        }
        match std::fs::metadata(out) {
            Ok(m) if m.is_dir() => Err(Failure::Error(format!("{}: is a directory", out.display()))),
            Ok(m) if !m.is_file() => Ok(Self::Device(out.to_owned())),
            Ok(_) | Err(_) => {
                let folder = folder(out);
                match std::fs::metadata(folder) {
                    Ok(m) if m.is_dir() => Ok(Self::File(out.to_owned())),
                    Ok(_) => Err(Failure::Error(format!("{}: not a directory", folder.display()))),
                    Err(e) => Err(Failure::io(format!("{}: {}", out.display(), folder.display()), &e)),
                }
            }
        }
    }
}

/// The directory that a file lies in.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// `out.npy` and `.partial` give `out.npy.partial`.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests;
