//! NumPy's format, version 1.0: a header of fixed size, so that the number of rows can be put in at the end.

use super::Dtype;

/// Room for any shape; a multiple of 64, as readers that map the file want it.
pub(crate) const HEADER_BYTES: usize = 128;

/// The header of an array of `rows` vectors.
pub(crate) fn header(dtype: Dtype, rows: u64, dim: usize) -> [u8; HEADER_BYTES] {
    let (descr, columns) = (dtype.descr(), dtype.columns(dim));
    described(descr, &format!("({rows}, {columns})"))
}

/// The header of a list of so many 64-bit whole numbers.
pub(crate) fn header_of_offsets(numbers: u64) -> [u8; HEADER_BYTES] {
    described("<i8", &format!("({numbers},)"))
}

fn described(descr: &str, shape: &str) -> [u8; HEADER_BYTES] {
    let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    let mut header = [b' '; HEADER_BYTES];
    header[..8].copy_from_slice(b"\x93NUMPY\x01\x00");
    header[8..10].copy_from_slice(&(HEADER_BYTES as u16 - 10).to_le_bytes());
    // two numbers of 20 digits leave 11 bytes free
    header[10..10 + dict.len()].copy_from_slice(dict.as_bytes());
    header[HEADER_BYTES - 1] = b'\n';
    header
}
