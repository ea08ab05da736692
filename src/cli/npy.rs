//! An `.npy` file of vectors, memory-mapped: a matrix of any size, read where it is used.
#![allow(unsafe_code, reason = "mapping a file")]

use super::report::Failure;
use crate::search::{Data, Matrix};
use half::f16;
use memmap2::Mmap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A two-dimensional array of float32 or float16, C order, little-endian.
#[derive(Debug)]
pub(crate) struct Npy {
    map: Mmap,
    path: PathBuf,
    header: Header,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    /// Bytes before the numbers.
    bytes: usize,
    half: bool,
    rows: usize,
    dim: usize,
}

impl Npy {
    /// Maps a file. It must not be changed meanwhile; `berthier embed` never does so, as its files appear
    /// complete under their names.
    ///
    /// # Errors
    /// What is not such an array, or is shorter than its header says.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let file = File::open(path).map_err(|e| Failure::io(path.display(), &e))?;
        // SAFETY: read-only, and a file that another process changes under us is the caller's, as documented;
        // the numbers have no invalid bit patterns
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Failure::io(path.display(), &e))?;
        let header = Header::parse(&map).map_err(|why| format!("{}: {why}", path.display()))?;
        let npy = Self { map, path: path.into(), header };
        npy.data()?;
        Ok(npy)
    }

    pub(crate) fn rows(&self) -> usize {
        self.header.rows
    }

    pub(crate) fn dim(&self) -> usize {
        self.header.dim
    }

    /// # Errors
    /// Numbers that do not lie at multiples of their size (no writer that we know makes such files).
    pub(crate) fn data(&self) -> Result<Matrix<'_>, Failure> {
        let Header { bytes, half, rows, dim } = self.header;
        let numbers = &self.map[bytes..][..rows * dim * if half { 2 } else { 4 }];
        let misaligned = |_| format!("{}: the numbers are not aligned (write it again)", self.path.display());
        let data = if half {
            Data::F16(bytemuck::try_cast_slice::<u8, f16>(numbers).map_err(misaligned)?)
        } else {
            Data::F32(bytemuck::try_cast_slice::<u8, f32>(numbers).map_err(misaligned)?)
        };
        Ok(Matrix { data, dim })
    }
}

impl Header {
    /// The header of a whole file.
    fn parse(file: &[u8]) -> Result<Self, String> {
        let not_npy = || "not an .npy file".to_owned();
        let (start, len) = match file {
            [0x93, b'N', b'U', b'M', b'P', b'Y', 1, _, a, b, ..] => {
                (10, usize::from(u16::from_le_bytes([*a, *b])))
            }
            [0x93, b'N', b'U', b'M', b'P', b'Y', 2 | 3, _, a, b, c, d, ..] => {
                (12, u32::from_le_bytes([*a, *b, *c, *d]) as usize)
            }
            _ => return Err(not_npy()),
        };
        let dict = file.get(start..start + len).ok_or("the file ends in its header")?;
        let dict = std::str::from_utf8(dict).map_err(|_| not_npy())?;
        let value = |key: &str| -> Option<&str> {
            let (_, rest) = dict.split_once(&format!("'{key}':"))?;
            let rest = rest.trim_start();
            Some(if rest.starts_with('(') {
                rest.split_inclusive(')').next()?
            } else {
                rest.split([',', '}']).next()?
            })
        };
        let half = match value("descr").map(|d| d.trim().trim_matches('\'')) {
            Some("<f4") => false,
            Some("<f2") => true,
            other => {
                let found = other.unwrap_or("none");
                return Err(format!("numbers of type {found}; float32 ('<f4') or float16 ('<f2') needed"));
            }
        };
        if value("fortran_order").map(str::trim) != Some("False") {
            return Err("in Fortran order; C order needed (numpy.ascontiguousarray)".into());
        }
        let shape = value("shape").unwrap_or_default();
        let sizes: Vec<usize> = shape
            .trim_matches(['(', ')', ' '])
            .split(',')
            .map(str::trim)
            .filter(|s| !s.is_empty())
            .map(|s| s.parse().map_err(|_| not_npy()))
            .collect::<Result<_, _>>()?;
        let (Some(&rows), Some(&dim @ 1..), 2) = (sizes.first(), sizes.get(1), sizes.len()) else {
            return Err(format!("of shape {shape}; (rows, components) needed"));
        };
        let bytes = start + len;
        let needed = rows.checked_mul(dim).and_then(|n| n.checked_mul(if half { 2 } else { 4 }));
        match needed {
            Some(needed) if needed <= file.len() - bytes => Ok(Self { bytes, half, rows, dim }),
            _ => Err(format!("the file ends before {rows} rows of {dim} numbers do")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(version: u8, dict: &str, data: usize) -> Vec<u8> {
        let mut bytes = vec![0x93, b'N', b'U', b'M', b'P', b'Y', version, 0];
        match version {
            1 => bytes.extend((dict.len() as u16).to_le_bytes()),
            _ => bytes.extend((dict.len() as u32).to_le_bytes()),
        }
        bytes.extend(dict.bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn dict(descr: &str, order: &str, shape: &str) -> String {
        format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n")
    }

    #[test]
    fn headers_of_every_version_are_read() {
        let parse = |version, dict: &str, data| Header::parse(&file(version, dict, data));
        let ours = parse(1, &dict("<f4", "False", "(3, 2)"), 24).unwrap();
        assert_eq!((ours.rows, ours.dim, ours.half), (3, 2, false));
        let half = parse(2, &dict("<f2", "False", "(0, 5)"), 0).unwrap();
        assert_eq!((half.rows, half.dim, half.half), (0, 5, true));
        assert!(parse(3, "{'shape': (1,4), 'fortran_order': False, 'descr': '<f4'}", 16).is_ok());
    }

    #[test]
    fn what_is_no_matrix_of_vectors_is_refused() {
        let refused = |dict: &str, data, why: &str| {
            let error = Header::parse(&file(1, dict, data)).unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        refused(&dict("<f8", "False", "(3, 2)"), 48, "type <f8");
        refused(&dict(">f4", "False", "(3, 2)"), 48, "type >f4");
        refused(&dict("<f4", "True", "(3, 2)"), 24, "Fortran");
        refused(&dict("<f4", "False", "(6,)"), 24, "shape (6,)");
        refused(&dict("<f4", "False", "(3, 0)"), 24, "shape (3, 0)");
        refused(&dict("<f4", "False", "(3, 2)"), 23, "ends before 3 rows");
        refused(&dict("<f4", "False", "(9223372036854775807, 4)"), 23, "ends before");
        refused(&dict("<f4", "False", "(-1, 4)"), 23, "not an .npy");
        refused("", 0, "type none");
        assert!(Header::parse(b"\x93NUMPY\x01\0\xff\xff{}").is_err());
        assert!(Header::parse(b"").is_err());
    }

    proptest! {
        /// The header is not to be trusted: whatever it says, what is read lies in the file.
        #[test]
        fn prop_any_bytes_are_read_or_refused(
            version in 0u8..5, dict in "[' a-z{}():,<0-9]{0,80}", bytes: Vec<u8>, rows: usize, dim: usize, good: bool
        ) {
            let shape = self::dict("<f4", "False", &format!("({rows}, {dim})"));
            let mut whole = file(version, if good { &shape } else { &dict }, 0);
            whole.extend(&bytes);
            for file in [&whole, &bytes] {
                if let Ok(Header { bytes, half, rows, dim }) = Header::parse(file) {
                    let end = bytes + rows * dim * if half { 2 } else { 4 };
                    prop_assert!(end <= file.len());
                }
            }
        }
    }
}
