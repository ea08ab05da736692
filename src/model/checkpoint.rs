//! safetensors files, memory-mapped: names to checked views. Untrusted input.
#![allow(unsafe_code, reason = "memory mapping")]

use super::json::{Object, exists};
use crate::error::{Error, Result};
use half::slice::HalfFloatSliceExt;
use safetensors::tensor::TensorInfo;
use safetensors::{SafeTensorError, SafeTensors};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// The file of the weights.
pub(super) const WEIGHTS: &str = "model.safetensors";
/// The list of the weights' files, where they are several.
pub(super) const WEIGHTS_INDEX: &str = "model.safetensors.index.json";
/// What the safetensors format allows.
const MAX_HEADER_BYTES: u64 = 100_000_000;

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

    /// Its elements in another type, rounded to nearest, in memory of their own.
    pub(crate) fn rounded(&self, dtype: Dtype) -> Self {
        let values = self.to_f32();
        let bytes: Vec<u8> = match dtype {
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
            Dtype::Bf16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
        };
        let range = 0..bytes.len();
        Self { dtype, bytes: Arc::new(Bytes::Owned(bytes)), range, ..self.clone() }
    }

    /// The rows `rows` of a matrix, or the elements of a vector, as a tensor of their own.
    ///
    /// # Panics
    /// If the tensor is neither or does not have these rows.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let place = &self.name;
        assert!(
            (1..=2).contains(&self.shape.len()) && rows.end <= self.shape[0],
            "{place}: rows of a matrix"
        );
        let row_bytes = self.shape[1..].iter().product::<usize>() * self.dtype.size();
        let start = self.range.start + rows.start * row_bytes;
        Self {
            shape: [&[rows.len()], &self.shape[1..]].concat(),
            range: start..start + rows.len() * row_bytes,
            ..self.clone()
        }
    }

    /// The rows of `self` and behind them those of `below`, in memory of their own. In the element type of both, else
    /// in f32, which is as exact.
    ///
    /// # Panics
    /// If the two are not of one width.
    pub fn above(&self, below: &Self) -> Self {
        assert_eq!(self.shape[1..], below.shape[1..], "{}: rows of one width", self.name);
        let mut shape = self.shape.clone();
        shape[0] += below.shape[0];
        if self.dtype != below.dtype {
            return Self::from_f32(&self.name, &shape, &[self.to_f32(), below.to_f32()].concat());
        }
        let bytes = [self.bytes(), below.bytes()].concat();
        let range = 0..bytes.len();
        Self { shape, bytes: Arc::new(Bytes::Owned(bytes)), range, ..self.clone() }
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

    /// Gives its pages of a mapped file back to the system, for bytes that are not needed soon. They stay readable: the
    /// system then reads them again, most often from its own cache.
    pub(crate) fn release(&self) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = &*self.bytes {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the mapping is of a file and never written to, so what is read later is what was there before
            let released = unsafe { map.unchecked_advise_range(advice, self.range.start, self.range.len()) };
            // advice only: where the system does not take it, the pages stay
            let _ = released;
        }
    }

    /// Writes the elements `first..first + out.len()` as f32; exact for all three types.
    ///
    /// # Panics
    /// If the range exceeds the tensor.
    pub fn read_f32(&self, first: usize, out: &mut [f32]) {
        let size = self.dtype.size();
        let bytes = &self.bytes()[first * size..(first + out.len()) * size];
        // the aligned case is a plain copy, or a conversion that `half` does with the machine's own instructions;
        // a file of an old writer may have its data at any address (rule 36)
        match self.dtype {
            Dtype::F32 => match bytemuck::try_cast_slice::<u8, f32>(bytes) {
                Ok(values) if LITTLE_ENDIAN => out.copy_from_slice(values),
                _ => convert(bytes, out, f32::from_le_bytes),
            },
            Dtype::F16 => match bytemuck::try_cast_slice::<u8, half::f16>(bytes) {
                Ok(values) if LITTLE_ENDIAN => values.convert_to_f32_slice(out),
                _ => convert(bytes, out, |b| half::f16::from_le_bytes(b).to_f32()),
            },
            Dtype::Bf16 => match bytemuck::try_cast_slice::<u8, half::bf16>(bytes) {
                Ok(values) if LITTLE_ENDIAN => values.convert_to_f32_slice(out),
                _ => convert(bytes, out, |b| half::bf16::from_le_bytes(b).to_f32()),
            },
        }
    }

    /// All elements as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.numel()];
        self.read_f32(0, &mut out);
        out
    }
}

const LITTLE_ENDIAN: bool = cfg!(target_endian = "little");

/// Element by element, for bytes at any address.
fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn([u8; N]) -> f32) {
    for (o, b) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *o = f(*b);
    }
}

/// The weights of a model directory: one file, or the shards of an index.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// The weights file or the index.
    path: PathBuf,
    files: Vec<(PathBuf, Arc<Bytes>)>,
    tensors: BTreeMap<String, Entry>,
}

/// Where a tensor is.
#[derive(Debug)]
struct Entry {
    /// Index into [`Checkpoint::files`].
    file: usize,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    /// Bytes of the file.
    range: Range<usize>,
}

impl Checkpoint {
    /// Maps `model.safetensors` or the shards of `model.safetensors.index.json` in `dir` (rule 34).
    ///
    /// `convert` is the Python that makes the file of a pickle in the folder `DIR`, for the message.
    pub(crate) fn open(dir: &Path, convert: &str) -> Result<Self> {
        let (single, index) = (dir.join(WEIGHTS), dir.join(WEIGHTS_INDEX));
        if exists(&single)? {
            let (bytes, tensors) = open_file(&single, 0)?;
            return Ok(Self { path: single.clone(), files: vec![(single, bytes)], tensors });
        }
        if exists(&index)? {
            return Self::open_index(index, dir);
        }
        let what = if dir.join("pytorch_model.bin").exists()
            || dir.join("pytorch_model.bin.index.json").exists()
        {
            let python = convert.replace("DIR", &dir.display().to_string());
            format!(
                "the weights are in pytorch_model.bin, which can run code when read; convert them once:\n  \
                 python -c \"{python}\""
            )
        } else {
            format!("the weights of the model, as {WEIGHTS} or {WEIGHTS_INDEX} with its shards")
        };
        Err(Error::MissingFile { path: single, what })
    }

    fn open_index(path: PathBuf, dir: &Path) -> Result<Self> {
        let index = Object::read(&path)?;
        let Some(map) = index.object("weight_map")? else {
            return Err(index.wrong("weight_map", "an object of tensor names and shard files"));
        };
        let mut shards = BTreeMap::<&str, Vec<&str>>::new();
        for (tensor, _) in map.iter() {
            let Some(shard) = map.string(tensor)? else {
                return Err(map.wrong(tensor, "the name of a shard file"));
            };
            shards.entry(shard).or_default().push(tensor);
        }
        let (mut files, mut tensors) = (Vec::new(), BTreeMap::new());
        for (shard, names) in shards {
            if !is_inside(shard) {
                return Err(Error::Checkpoint {
                    path,
                    message: format!("shard '{shard}' is not a file of the model's own folder"),
                });
            }
            let shard_path = dir.join(shard);
            if !exists(&shard_path)? {
                let what = format!("a shard that {WEIGHTS_INDEX} lists (download it again)");
                return Err(Error::MissingFile { path: shard_path, what });
            }
            let (bytes, mut entries) = open_file(&shard_path, files.len())?;
            for name in names {
                let Some(entry) = entries.remove(name) else {
                    return Err(Error::TensorMissing { path: shard_path, tensor: name.into() });
                };
                tensors.insert(name.to_owned(), entry);
            }
            files.push((shard_path, bytes));
        }
        Ok(Self { path, files, tensors })
    }

    /// The weights file or the index.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// All tensor names, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of that name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor of the shape needed.
    pub(crate) fn tensor(&self, name: &str, needed: &[usize]) -> Result<Tensor> {
        let tensor = name.to_owned();
        let Some(entry) = self.tensors.get(name) else {
            return Err(Error::TensorMissing { path: self.path.clone(), tensor });
        };
        let (path, bytes) = &self.files[entry.file];
        let dtype = if entry.dtype == safetensors::Dtype::F32 {
            Dtype::F32
        } else if entry.dtype == safetensors::Dtype::F16 {
            Dtype::F16
        } else if entry.dtype == safetensors::Dtype::BF16 {
            Dtype::Bf16
        } else {
            return Err(Error::TensorDtype {
                path: path.clone(),
                tensor,
                found: format!("{:?}", entry.dtype),
            });
        };
        if entry.shape != needed {
            return Err(Error::TensorShape {
                path: path.clone(),
                tensor,
                found: entry.shape.clone(),
                needed: needed.into(),
            });
        }
        Ok(Tensor {
            name: tensor,
            shape: entry.shape.clone(),
            dtype,
            bytes: Arc::clone(bytes),
            range: entry.range.clone(),
        })
    }
}

/// Whether a relative path of the model directory's files stays inside it.
pub(super) fn is_inside(path: &str) -> bool {
    // a backslash is a separator on one system and a letter on others: neither is wanted
    !path.contains('\\') && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)))
}

/// Whether a file is what `git clone` leaves where Git LFS is not installed.
pub(super) fn is_git_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs")
}

/// Maps a safetensors file and reads its header.
fn open_file(path: &Path, file: usize) -> Result<(Arc<Bytes>, BTreeMap<String, Entry>)> {
    let io = |e| Error::io(path, e);
    let meta = std::fs::metadata(path).map_err(io)?;
    if !meta.is_file() {
        return Err(Error::Checkpoint { path: path.into(), message: "not a file".into() }); // a pipe would block
    }
    let bytes = if meta.len() == 0 {
        Bytes::Owned(Vec::new()) // cannot be mapped everywhere
    } else {
        let handle = std::fs::File::open(path).map_err(io)?;
        // SAFETY: the mapping is read-only and private to this process. Nobody may write to or shorten the
        // file while the model is loaded: docs/loading.md says so, and caches replace files, never edit them.
        Bytes::Mapped(unsafe { memmap2::Mmap::map(&handle) }.map_err(io)?)
    };
    let (data, header) = read_header(path, bytes.as_slice())?;
    let tensors = header
        .0
        .into_iter()
        .map(|(name, info)| {
            let (start, end) = info.data_offsets;
            let entry = Entry { file, dtype: info.dtype, shape: info.shape, range: data + start..data + end };
            (name, entry)
        })
        .collect();
    Ok((Arc::new(bytes), tensors))
}

/// The tensors of a header as written, duplicates included; `__metadata__` is passed over.
struct Header(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Header;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        tensors.push((name, map.next_value()?));
                    }
                }
                Ok(Header(tensors))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

/// Reads and checks a header; returns where the data begins and the tensors, sorted by name, whose offsets
/// (from there) lie in the file, adjoin one another and fit shape and dtype.
fn read_header(path: &Path, bytes: &[u8]) -> Result<(usize, Header)> {
    let broken = |message: String| Error::Checkpoint { path: path.into(), message };
    let truncated = |needed: u64| Error::Truncated { path: path.into(), found: bytes.len() as u64, needed };
    if bytes.is_empty() {
        return Err(broken("the file is empty (download it again)".into()));
    }
    if is_git_lfs_pointer(bytes) {
        return Err(broken("a Git LFS pointer, not the weights themselves (run `git lfs pull`)".into()));
    }
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(truncated(8));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(broken(format!(
            "header of {length} bytes, at most {MAX_HEADER_BYTES} allowed (not a safetensors file?)"
        )));
    }
    let header_end = 8 + length;
    let Some((header, data)) = rest.split_at_checked(length as usize) else {
        return Err(truncated(header_end));
    };
    let mut tensors = serde_json::from_slice::<Header>(header)
        .map_err(|e| broken(format!("the header is not a safetensors header: {e}")))?;

    // before safetensors adds up the same numbers without a check of its own
    let end = tensors.0.iter().map(|(_, info)| info.data_offsets.1 as u64).max().unwrap_or(0);
    if end > data.len() as u64 {
        return Err(truncated(header_end.saturating_add(end)));
    }
    tensors.0.sort_by(|a, b| a.0.cmp(&b.0));
    if let Some(pair) = tensors.0.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(broken(format!("tensor '{}' is there twice", pair[0].0)));
    }
    if let Some((name, info)) = tensors.0.iter().find(|(_, info)| !fits(info)) {
        let (start, end) = info.data_offsets;
        return Err(broken(format!(
            "tensor '{name}': {:?} {:?} does not fit its bytes {start}..{end}",
            info.dtype, info.shape
        )));
    }
    match SafeTensors::read_metadata(bytes) {
        Ok(_) => Ok((header_end as usize, tensors)),
        Err(SafeTensorError::InvalidOffset(name)) => {
            Err(broken(format!("tensor '{name}': its bytes overlap another tensor's or leave a gap")))
        }
        Err(SafeTensorError::MetadataIncompleteBuffer) => {
            Err(broken(format!("{} bytes behind the last tensor", data.len() as u64 - end)))
        }
        Err(other) => Err(broken(other.to_string())),
    }
}

/// Whether a tensor's shape and dtype make up its bytes.
fn fits(info: &TensorInfo) -> bool {
    let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |n, &d| n.checked_mul(d));
    let (start, end) = info.data_offsets;
    // a range that runs backwards is left to `read_metadata`, which says so
    bits.is_some_and(|bits| end < start || Some(bits) == (end - start).checked_mul(8))
}
