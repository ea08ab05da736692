//! The device seam: a backend takes one packed batch and gives one vector per sequence.
//!
//! Nothing of a device crosses this line, and `cfg(feature)` for devices appears here and nowhere else.

use crate::batch::PackedBatch;
use crate::error::{Error, Result};
use crate::model::{ModelDesc, Weights};
use crate::threads::Threads;
use std::fmt;
use std::str::FromStr;

pub mod cpu;
pub mod cuda;
mod reference;

/// One loaded model on one device. Owned by one thread at a time.
///
/// `submit` and `collect` go in pairs, in order; up to [`Capacity::in_flight`] batches may be submitted and
/// not yet collected, so that a device can compute one while the host prepares the next. The batch comes
/// back from `collect` for reuse: steady state allocates nothing.
pub trait Backend: Send {
    /// For people: `cpu avx512, 2 threads`.
    fn name(&self) -> String;

    /// Fixed at load.
    fn capacity(&self) -> Capacity;

    /// Takes a batch of at most [`Capacity::max_tokens`] tokens. Ids, types and positions are in range
    /// (the engine checked them), every sequence has a token.
    ///
    /// # Errors
    /// When the device fails.
    fn submit(&mut self, batch: PackedBatch) -> Result<()>;

    /// Waits for the oldest submitted batch and writes its vectors, `[batch, dim]` row-major f32, in the
    /// batch's order.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// If nothing was submitted or `out` has another length than `batch * dim`.
    fn collect(&mut self, out: &mut [f32]) -> Result<PackedBatch>;
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

/// Which device computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Device {
    /// The SIMD kernels of this crate.
    #[default]
    Cpu,
    /// Plain loops with f64 sums: slow, and what every other backend is tested against.
    Reference,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Reference => "reference",
        })
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "cpu" => Ok(Self::Cpu),
            "reference" => Ok(Self::Reference),
            _ => {
                Err(Error::InvalidOption { name: "device", message: format!("'{s}': one of cpu, reference") })
            }
        }
    }
}

/// What a backend needs to know besides the model.
#[derive(Debug, Clone)]
pub struct BackendOptions {
    /// Threads that may compute.
    pub threads: Threads,
    /// Tokens of one batch; at least the model's `max_seq_length`.
    pub max_tokens: usize,
    /// The instruction set; none means the best this machine has.
    pub isa: Option<cpu::Isa>,
}

/// Loads the model onto a device.
///
/// # Errors
/// [`Error::DeviceUnavailable`] if the device or instruction set is not there, [`Error::Unsupported`] if the
/// backend does not compute what the model asks for.
pub fn open(
    device: Device,
    desc: &ModelDesc,
    weights: &Weights,
    options: &BackendOptions,
) -> Result<Box<dyn Backend>> {
    Ok(match device {
        Device::Cpu => Box::new(cpu::CpuBackend::new(desc, weights, options)?),
        Device::Reference => Box::new(reference::Reference::new(desc, weights, options)),
    })
}
