//! Instruction sets: which there are, which this machine has, and the table of kernels of each.

use super::gemm::NarrowKernels;
use super::kernels::Kernels;
use super::portable;
use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// Forces an instruction set where the options name none.
const ENVIRONMENT: &str = "BERTHIER_ISA";

/// An instruction set that the kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust that the compiler vectorises for the target's baseline.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
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
        [Self::Portable, Self::Avx2, Self::Avx512].into_iter().filter(|isa| isa.find().is_some()).collect()
    }

    /// The one to use: as asked for, else as `BERTHIER_ISA` says, else the best.
    pub(super) fn choose(asked: Option<Self>) -> Result<Self> {
        if let Some(isa) = asked {
            return Ok(isa);
        }
        match std::env::var_os(ENVIRONMENT) {
            Some(value) if !value.is_empty() => {
                value.to_string_lossy().parse().map_err(|_| Error::InvalidOption {
                    name: ENVIRONMENT,
                    message: format!("'{}': one of portable, avx2, avx512", value.to_string_lossy()),
                })
            }
            _ => Ok(Self::available().pop().unwrap_or(Self::Portable)),
        }
    }

    /// Its kernels.
    pub(super) fn kernels(self) -> Result<&'static Kernels> {
        self.find().ok_or_else(|| {
            let available: Vec<_> = Self::available().iter().map(ToString::to_string).collect();
            Error::DeviceUnavailable {
                device: self.to_string(),
                message: format!(
                    "this processor or build lacks it; there is {} (option isa or {ENVIRONMENT})",
                    available.join(", ")
                ),
            }
        })
    }

    /// Its kernels for products of narrow numbers that this machine can run, of each sort of number the best first.
    pub(super) fn narrow_kernels(self) -> Vec<&'static NarrowKernels> {
        match self {
            Self::Portable => Vec::new(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::Avx512 => super::x86_64::narrow_kernels(self),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => Vec::new(),
        }
    }

    /// Its kernels if this machine can run them: the one way to a table.
    fn find(self) -> Option<&'static Kernels> {
        match self {
            Self::Portable => Some(&portable::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                let has = is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c");
                has.then_some(&super::x86_64::avx2::KERNELS)
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                let has = is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl");
                has.then_some(&super::x86_64::avx512::KERNELS)
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => None,
        }
    }
}
