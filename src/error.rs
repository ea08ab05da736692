//! Every way a call into the library can fail.
//!
//! One variant per kind of mistake, carrying the place (file, tensor, row) and the remedy where there is one.
//! Messages are lower case without a full stop, as parts of a chain printed with `{:#}`-like formatting.

use std::path::PathBuf;

/// The result of every fallible call in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to open, read or map a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },

    /// A file that the model cannot do without is absent.
    #[error("{}: no such file: {what}", path.display())]
    MissingFile {
        /// Where it was looked for.
        path: PathBuf,
        /// What the file is for, and the remedy.
        what: String,
    },

    /// No model of that name: every place that was tried, in order.
    #[error("model '{name}' not found\n{}", tried.iter().map(|t| format!("  tried: {t}")).collect::<Vec<_>>().join("\n"))]
    ModelNotFound {
        /// The name as given.
        name: String,
        /// Each place, with what happened there.
        tried: Vec<String>,
    },

    /// A configuration file is not JSON, or not of the expected form.
    #[error("{}: {message}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The key, the value found and the value needed.
        message: String,
    },

    /// The model asks for something this version does not compute. Nothing is substituted.
    #[error("{}: unsupported: {what}", path.display())]
    Unsupported {
        /// The file that asks for it.
        path: PathBuf,
        /// What it asks for.
        what: String,
    },

    /// The container of the weights is broken.
    #[error("{}: {message}", path.display())]
    Checkpoint {
        /// The weights file or index.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },

    /// The weights file ends before the data its header promises.
    #[error("{}: truncated: {found} bytes, {needed} needed (download it again)", path.display())]
    Truncated {
        /// The weights file.
        path: PathBuf,
        /// Bytes in the file.
        found: u64,
        /// Bytes that its header asks for.
        needed: u64,
    },

    /// A tensor that the architecture needs is not in the checkpoint.
    #[error("{}: tensor '{tensor}' is missing", path.display())]
    TensorMissing {
        /// The weights file or index.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
    },

    /// A tensor's shape disagrees with `config.json`.
    #[error("{}: tensor '{tensor}' has shape {found:?}, {needed:?} needed", path.display())]
    TensorShape {
        /// The weights file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape that `config.json` implies.
        needed: Vec<usize>,
    },

    /// A tensor's element type is not one of F32, F16, BF16.
    #[error("{}: tensor '{tensor}' has dtype {found}, one of F32, F16, BF16 needed", path.display())]
    TensorDtype {
        /// The weights file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Its dtype as safetensors names it.
        found: String,
    },

    /// The tokenizer could not be built from its files.
    #[error("{}: tokenizer: {message}", path.display())]
    Tokenizer {
        /// The tokenizer file.
        path: PathBuf,
        /// Why.
        message: String,
    },

    /// An option has a value that cannot be honoured.
    #[error("option {name}: {message}")]
    InvalidOption {
        /// The option.
        name: &'static str,
        /// The value found and the values accepted.
        message: String,
    },

    /// The device or instruction set asked for is not there. Nothing else is used in its place.
    #[error("{device} is not available: {message}")]
    DeviceUnavailable {
        /// As asked for: `cuda:0`, `avx512`.
        device: String,
        /// Why not, and what there is.
        message: String,
    },

    /// There is no CUDA driver, so that no GPU can be used.
    #[error("no CUDA driver: {message} (a GPU needs NVIDIA's driver {needed} or newer)")]
    NoDriver {
        /// What was looked for.
        message: String,
        /// The driver's version as NVIDIA numbers it.
        needed: String,
    },

    /// The CUDA driver is older than the kernels.
    #[error("the CUDA driver is too old: {found}, {needed} or newer needed (update NVIDIA's driver)")]
    DriverTooOld {
        /// What the driver says of itself: `CUDA 12.4`.
        found: String,
        /// What the kernels need: `CUDA 13.0 (driver 580)`.
        needed: String,
    },

    /// The driver is there and sees no GPU.
    #[error("no GPU: {message}")]
    NoDevice {
        /// What the driver says, and whether `CUDA_VISIBLE_DEVICES` hides some.
        message: String,
    },

    /// The kernels do not run on this GPU.
    #[error("{device}: compute capability {found}, {needed} or newer needed")]
    ComputeCapability {
        /// `cuda:0 Tesla T4`.
        device: String,
        /// Its compute capability: `7.5`.
        found: String,
        /// The least that the kernels take: `8.0`.
        needed: String,
    },

    /// The device's memory does not hold the model and its smallest batch.
    #[error("{device}: out of memory: {needed_bytes} bytes needed, {free_bytes} free")]
    DeviceMemory {
        /// `cuda:0 NVIDIA H100`.
        device: String,
        /// For weights and activations of the smallest batch that holds one sequence of the model's length.
        needed_bytes: u64,
        /// As the driver says.
        free_bytes: u64,
    },

    /// A device failed while it computed; what was finished before is kept, other devices have gone on.
    #[error("{device} failed: {message}")]
    DeviceLost {
        /// `cuda:0 NVIDIA H100`; of several that failed, the last.
        device: String,
        /// What the driver says.
        message: String,
    },

    /// A row of the input cannot be embedded.
    #[error("row {row}: {message}")]
    Row {
        /// Index into the caller's slice (from 0).
        row: usize,
        /// What is wrong with it.
        message: String,
    },

    /// A vector came out with NaN or infinity in it; the model's weights or the row's ids are at fault.
    #[error("row {}{}: the vector is not finite (NaN or infinity in the weights, or an overflow)",
        rows[0], if rows.len() > 1 { format!(" and {} more", rows.len() - 1) } else { String::new() })]
    NonFinite {
        /// Indices into the caller's slice (from 0), rising; at least one.
        rows: Vec<usize>,
    },

    /// The caller's output buffer has the wrong length.
    #[error("output buffer has {found} floats, {needed} needed")]
    BufferSize {
        /// Its length.
        found: usize,
        /// rows × dim.
        needed: usize,
    },
}

impl Error {
    /// The same error for a caller whose row 0 lies `first` rows before ours.
    pub(crate) fn with_first_row(self, first: usize) -> Self {
        if let Self::Row { row, message } = self {
            return Self::Row { row: row + first, message };
        }
        if let Self::NonFinite { mut rows } = self {
            rows.iter_mut().for_each(|r| *r += first);
            return Self::NonFinite { rows };
        }
        self
    }

    pub(crate) fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    pub(crate) fn config(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::Config { path: path.into(), message: message.into() }
    }

    pub(crate) fn unsupported(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Unsupported { path: path.into(), what: what.into() }
    }
}
