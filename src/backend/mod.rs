//! The device seam: a backend takes one packed batch and gives one vector per sequence.
//!
//! Nothing of a device crosses this line, and `cfg(feature)` for devices appears in `cuda/mod.rs` and nowhere else.

use crate::batch::PackedBatch;
use crate::error::{Error, Result};
use crate::model::{ModelDesc, Weights};
use crate::threads::Threads;
use std::ops::{AddAssign, Sub};
use std::time::Duration;

mod choice;
pub mod cpu;
pub mod cuda;
mod reference;

pub use choice::{Device, DeviceChoice, PersistentKernel, Precision};

/// Tokens of one batch for each thread: enough tiles of a few hundred tokens that no thread waits for long.
const BATCH_TOKENS_PER_THREAD: usize = 4096;
const MIN_BATCH_TOKENS: usize = 8192;
/// Long enough for whatever a driver does at first, and for a machine that is busy with something else.
pub(crate) const DEFAULT_PATIENCE: Duration = Duration::from_secs(60);

/// One loaded model on one device. Owned by one thread at a time.
///
/// `submit` and `collect` go in pairs, in order; up to [`Capacity::in_flight`] batches may be submitted and
/// not yet collected, so that a device can compute one while the host prepares the next. The batch comes
/// back from `collect` for reuse: steady state allocates nothing. After an error the backend is called no more.
pub trait Backend: Send {
    /// For people: `cpu avx512, 2 threads`, `cuda:0 NVIDIA H100`.
    fn name(&self) -> String;

    /// What a vector's bits depend on besides model, text and precision: `cpu avx512`, `cuda sm_90`, with
    /// `batch-invariant` where that changes them. Devices of one kind give the same bits for the same batch, so that the
    /// name holds neither an ordinal nor a number of threads.
    fn kind(&self) -> String;

    /// The precision that was asked for, or the one that was chosen; never [`Precision::Auto`].
    fn precision(&self) -> Precision;

    /// Fixed at load.
    fn capacity(&self) -> Capacity;

    /// Takes a batch of at most [`Capacity::max_tokens`] tokens. Ids, types and positions are in range
    /// (the engine checked them), every sequence has a token.
    ///
    /// # Errors
    /// When the device fails.
    fn submit(&mut self, batch: PackedBatch) -> Result<()>;

    /// Whether batches may ask for [`token_vectors`](PackedBatch::token_vectors).
    fn gives_token_vectors(&self) -> bool {
        false
    }

    /// Waits for the oldest submitted batch and writes its vectors, `[batch, dim]` row-major f32, in the
    /// batch's order; of a batch that asks for token vectors these, `[total_tokens, hidden_size]`.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// If nothing was submitted or `out` has another length.
    fn collect(&mut self, out: &mut [f32]) -> Result<PackedBatch>;

    /// Has each batch timed by the device's own clock from now on, if it has one. Taking the time costs some of it. No batch is in
    /// flight, here and when it ends.
    ///
    /// # Errors
    /// When the device fails.
    fn start_timing(&mut self) -> Result<()> {
        Ok(())
    }

    /// Ends that, and gives the time of all batches that were timed; none of a device that has no clock of its own.
    fn stop_timing(&mut self) -> Option<DeviceTime> {
        None
    }

    /// How the kernels of all its batches so far were launched; none of a device that launches none.
    fn launches(&self) -> Option<Launches> {
        None
    }

    /// Has the device's own caches forget what they hold, and waits for it; says how many bytes were written for that, 0 where
    /// there are none but the host's. No batch is in flight.
    ///
    /// # Errors
    /// When the device fails.
    fn sweep_caches(&mut self) -> Result<usize> {
        Ok(0)
    }
}

/// What devices took for batches, by their own clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceTime {
    /// From the start of the copy of ids to the device to the end of the copy of vectors from it, with all that the device waited
    /// in between. Where kernels read and write the host's memory, as long as `kernels`.
    pub total: Duration,
    /// From the start of the first kernel to the end of the last one.
    pub kernels: Duration,
}

impl AddAssign for DeviceTime {
    fn add_assign(&mut self, other: Self) {
        self.total += other.total;
        self.kernels += other.kernels;
    }
}

/// Batches of GPUs, by how their kernels were launched: not how that was asked for, but how it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Launches {
    /// One kernel behind the other.
    pub kernel_by_kernel: usize,
    /// All kernels as a CUDA graph.
    pub graph: usize,
    /// In one launch, on the whole grid.
    pub grid: usize,
    /// In one launch, in clusters.
    pub clusters: usize,
}

impl AddAssign for Launches {
    fn add_assign(&mut self, other: Self) {
        self.kernel_by_kernel += other.kernel_by_kernel;
        self.graph += other.graph;
        self.grid += other.grid;
        self.clusters += other.clusters;
    }
}

impl Sub for Launches {
    type Output = Self;

    /// Those since `earlier`. A device that has failed in between takes its batches with it: no count is below 0.
    fn sub(self, earlier: Self) -> Self {
        Self {
            kernel_by_kernel: self.kernel_by_kernel.saturating_sub(earlier.kernel_by_kernel),
            graph: self.graph.saturating_sub(earlier.graph),
            grid: self.grid.saturating_sub(earlier.grid),
            clusters: self.clusters.saturating_sub(earlier.clusters),
        }
    }
}

/// What one backend takes at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Tokens of one batch.
    pub max_tokens: usize,
    /// Batches submitted and not yet collected.
    pub in_flight: usize,
    /// Bytes that the backend holds for weights, in its own layout.
    pub weight_bytes: usize,
    /// Bytes that the backend holds for activations.
    pub workspace_bytes: usize,
}

/// What a backend needs to know besides the model.
#[derive(Debug, Clone)]
pub struct BackendOptions {
    /// Threads that may compute.
    pub threads: Threads,
    /// Tokens of one batch, if the caller says; else the backend chooses by its device. One sequence of any length that
    /// the model takes fits either way.
    pub max_tokens: Option<usize>,
    /// The instruction set; none means the best this machine has.
    pub isa: Option<cpu::Isa>,
    /// In which numbers to compute.
    pub precision: Precision,
    /// A text's vector must not depend, to the bit, on its batch, also where a device is faster otherwise.
    pub batch_invariant: bool,
    /// On a GPU, launch a small batch's kernels as one graph. The vectors are the same to the bit.
    pub cuda_graphs: bool,
    /// On a GPU, compute a small batch in one launch.
    pub persistent_kernel: PersistentKernel,
    /// What a GPU may take for a batch beyond a hundred times what it should; then it is taken to hang, and lost.
    pub patience: Duration,
}

impl BackendOptions {
    /// Everything but the threads at its default.
    pub fn new(threads: Threads) -> Self {
        Self {
            threads,
            max_tokens: None,
            isa: None,
            precision: Precision::Auto,
            batch_invariant: false,
            cuda_graphs: true,
            persistent_kernel: PersistentKernel::Auto,
            patience: DEFAULT_PATIENCE,
        }
    }

    /// Tokens of one batch for a backend that computes on the threads.
    fn host_batch_tokens(&self, desc: &ModelDesc) -> usize {
        let default = (BATCH_TOKENS_PER_THREAD * self.threads.count()).max(MIN_BATCH_TOKENS);
        self.max_tokens.unwrap_or(default).max(desc.longest_sequence())
    }
}

/// A GPU of this machine, and whether it can compute.
#[derive(Debug)]
pub struct FoundDevice {
    /// As it is asked for.
    pub device: Device,
    /// As its maker calls it; devices of one name are of one kind.
    pub name: String,
    /// Why it cannot be used, if it cannot.
    pub unusable: Option<Error>,
}

/// The GPUs of this machine, in the order of their ordinals; at least one.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::NoDevice`], [`Error::DeviceUnavailable`].
pub fn cuda_devices() -> Result<Vec<FoundDevice>> {
    cuda::devices()
}

/// Loads the model onto a device.
///
/// # Errors
/// The device variants of [`Error`] if the device is not there or cannot be used,
/// [`Error::DeviceUnavailable`] also if the instruction set is not there; [`Error::InvalidOption`] if it does not compute
/// in the precision asked for; [`Error::Unsupported`] if the backend does not compute what the model asks for.
pub fn open(
    device: Device,
    desc: &ModelDesc,
    weights: &Weights,
    options: &BackendOptions,
) -> Result<Box<dyn Backend>> {
    Ok(match device {
        Device::Cpu => Box::new(cpu::CpuBackend::new(desc, weights, options)?),
        Device::Reference => Box::new(reference::Reference::new(desc, weights, options)?),
        Device::Cuda(ordinal) => cuda::open(ordinal, desc, weights, options)?,
    })
}
