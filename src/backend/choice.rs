//! What a caller may ask for of devices: which compute, and in which precision. Knows no device.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// One device, on which one backend computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub enum Device {
    /// The SIMD kernels of this crate.
    #[default]
    Cpu,
    /// Plain loops with f64 sums: slow, and what every other backend is tested against.
    Reference,
    /// A GPU, by its ordinal as the driver counts: from 0, over those that `CUDA_VISIBLE_DEVICES` leaves.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Reference => f.write_str("reference"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// Which devices compute, as a caller asks for them: `auto`, `cpu`, `reference`, `cuda`, `cuda:0`, `cuda:0,2`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceChoice {
    /// The GPUs if there are any that can compute the model, else the CPU. Of GPUs of several kinds, those like the first:
    /// the vectors do not depend on which of them was free.
    Auto,
    /// These, and nothing else in their place; each once, at least one.
    These(Vec<Device>),
    /// All GPUs that can compute; none is an error.
    Cuda,
}

impl Default for DeviceChoice {
    fn default() -> Self {
        Device::default().into()
    }
}

impl From<Device> for DeviceChoice {
    fn from(device: Device) -> Self {
        Self::These(vec![device])
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cuda => f.write_str("cuda"),
            Self::These(devices) => {
                for (i, device) in devices.iter().enumerate() {
                    match device {
                        Device::Cuda(ordinal) if i > 0 => write!(f, ",{ordinal}")?,
                        Device::Cpu | Device::Reference | Device::Cuda(_) => write!(f, "{device}")?,
                    }
                }
                Ok(())
            }
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let refuse = |why: &str| {
            Err(Error::InvalidOption {
                name: "device",
                message: format!("'{s}': {why}auto, cpu, reference, cuda (all GPUs) or cuda:0,1"),
            })
        };
        let ordinals = match s {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Device::Cpu.into()),
            "reference" => return Ok(Device::Reference.into()),
            "cuda" => return Ok(Self::Cuda),
            _ => match s.strip_prefix("cuda:") {
                Some(ordinals) => ordinals,
                None => return refuse("one of "),
            },
        };
        let mut devices = Vec::new();
        for ordinal in ordinals.split(',') {
            // no sign, no blank: usize::from_str takes a plus
            let Some(ordinal) =
                ordinal.bytes().all(|b| b.is_ascii_digit()).then(|| ordinal.parse().ok()).flatten()
            else {
                return refuse("ordinals are numbers from 0; one of ");
            };
            if devices.contains(&Device::Cuda(ordinal)) {
                return refuse("a GPU is named twice; one of ");
            }
            devices.push(Device::Cuda(ordinal));
        }
        Ok(Self::These(devices))
    }
}

/// In which numbers weights and activations are held. Sums are fp32 in all of them but [`Int8`](Self::Int8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub enum Precision {
    /// As the device is fastest without losing the vectors' meaning: fp32 on the CPU; on a GPU fp16, or bf16 where the
    /// model's numbers do not fit fp16.
    #[default]
    Auto,
    /// 32 bits, 24 of them significant.
    Fp32,
    /// 16 bits, 11 of them significant; up to 65504.
    Fp16,
    /// 16 bits, 8 of them significant; the range of fp32.
    Bf16,
    /// The products of the layers in 8 bits, all else in fp32: weights with a scale for each output, activations with a
    /// scale and a zero point for each token. Exact sums in 32-bit integers.
    Int8,
}

impl Precision {
    /// All that can be asked for.
    pub const ALL: [Self; 5] = [Self::Auto, Self::Fp32, Self::Fp16, Self::Bf16, Self::Int8];

    /// The one of `supported` that was asked for, the first for [`Auto`](Self::Auto). `device` is its name in the message.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] with those that there are: nothing is computed in another precision than asked for.
    pub fn choose(self, device: &str, supported: &[Self]) -> Result<Self> {
        match (self, supported) {
            (Self::Auto, [first, ..]) => Ok(*first),
            _ if supported.contains(&self) => Ok(self),
            _ => {
                let names: Vec<_> = supported.iter().map(Self::to_string).collect();
                let message = format!("{self}: {device} computes in {}", names.join(", "));
                Err(Error::InvalidOption { name: "precision", message })
            }
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|p| p.to_string() == s).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(Self::to_string).collect();
            let message = format!("'{s}': one of {}", names.join(", "));
            Error::InvalidOption { name: "precision", message }
        })
    }
}

/// Whether a GPU computes a small batch in one launch, by a kernel whose blocks stay (`kernels/persistent_encoder.cu`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum PersistentKernel {
    /// Up to the tokens of a batch for which it was measured to be faster on such a GPU, else is predicted to be; not where bits may
    /// not depend on the batch.
    #[default]
    Auto,
    /// For every batch that it takes. A model that it does not compute is an error.
    Always,
    /// As `Always`, on all of the GPU whatever the batch: for measurements.
    Grid,
    /// As `Always`, with a cluster of multiprocessors for each share of the texts whatever the batch: for measurements. A GPU without
    /// clusters is an error.
    Clusters,
    /// For none.
    Never,
}

impl PersistentKernel {
    /// All that can be asked for.
    pub const ALL: [Self; 5] = [Self::Auto, Self::Always, Self::Grid, Self::Clusters, Self::Never];
}

impl fmt::Display for PersistentKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Grid => "grid",
            Self::Clusters => "clusters",
            Self::Never => "never",
        })
    }
}

impl FromStr for PersistentKernel {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|p| p.to_string() == s).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(Self::to_string).collect();
            let message = format!("'{s}': one of {}", names.join(", "));
            Error::InvalidOption { name: "persistent_kernel", message }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_choice_comes_back_as_written() {
        for text in ["auto", "cpu", "reference", "cuda", "cuda:0", "cuda:3,0,12"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        let two = DeviceChoice::These(vec![Device::Cuda(1), Device::Cuda(0)]);
        assert_eq!("cuda:1,0".parse::<DeviceChoice>().unwrap(), two);
        assert_eq!(DeviceChoice::default(), DeviceChoice::These(vec![Device::Cpu]));
    }

    #[test]
    fn device_choice_rejects_what_it_does_not_know() {
        for text in [
            "",
            "gpu",
            "cuda:",
            "cuda:x",
            "cuda:0,",
            "cuda:-1",
            "cuda:+1",
            "cuda: 1",
            "cuda:0,1,0",
            "cpu,cuda",
        ] {
            let error = text.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("option device: '{text}'")) && error.contains("cuda:0,1"),
                "{error}"
            );
        }
    }

    #[test]
    fn precision_that_a_device_lacks_is_refused_by_name() {
        let supported = [Precision::Fp16, Precision::Bf16];
        assert_eq!(Precision::Auto.choose("a GPU", &supported).unwrap(), Precision::Fp16);
        assert_eq!(Precision::Bf16.choose("a GPU", &supported).unwrap(), Precision::Bf16);
        let error = Precision::Fp32.choose("a GPU", &supported).unwrap_err().to_string();
        assert_eq!(error, "option precision: fp32: a GPU computes in fp16, bf16");
        for precision in Precision::ALL {
            assert_eq!(precision.to_string().parse::<Precision>().unwrap(), precision);
        }
        for choice in PersistentKernel::ALL {
            assert_eq!(choice.to_string().parse::<PersistentKernel>().unwrap(), choice);
        }
        assert!(
            "often"
                .parse::<PersistentKernel>()
                .unwrap_err()
                .to_string()
                .contains("auto, always, grid, clusters, never")
        );
        assert!("fp8".parse::<Precision>().unwrap_err().to_string().contains("auto, fp32, fp16, bf16, int8"));
    }
}
