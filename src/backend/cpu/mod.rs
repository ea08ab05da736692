//! The CPU backend: our own SIMD kernels, chosen at run time.

use super::{Backend, BackendOptions, Capacity};
use crate::batch::PackedBatch;
use crate::error::{Error, Result};
use crate::model::{ModelDesc, Weights};
use std::fmt;
use std::str::FromStr;

/// An instruction set that the kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust that the compiler vectorises for the target's baseline.
    Portable,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

impl FromStr for Isa {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "portable" => Ok(Self::Portable),
            "avx2" => Ok(Self::Avx2),
            "avx512" => Ok(Self::Avx512),
            _ => Err(Error::InvalidOption {
                name: "isa",
                message: format!("'{s}': one of portable, avx2, avx512"),
            }),
        }
    }
}

impl Isa {
    /// Those that this machine can run, best last.
    pub fn available() -> Vec<Self> {
        vec![Self::Portable]
    }
}

/// One model on the CPU.
#[derive(Debug)]
pub struct CpuBackend {}

impl CpuBackend {
    /// Packs the weights.
    ///
    /// # Errors
    /// [`Error::DeviceUnavailable`] if the machine lacks the instruction set asked for.
    pub fn new(_desc: &ModelDesc, _weights: &Weights, _options: &BackendOptions) -> Result<Self> {
        Ok(Self {})
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> String {
        "cpu".into()
    }
    fn capacity(&self) -> Capacity {
        Capacity { max_tokens: 0, in_flight: 1, weight_bytes: 0, workspace_bytes: 0 }
    }
    fn submit(&mut self, _batch: PackedBatch) -> Result<()> {
        Ok(())
    }
    fn collect(&mut self, _out: &mut [f32]) -> Result<PackedBatch> {
        Ok(PackedBatch::default())
    }
}
