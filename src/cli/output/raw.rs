//! Numbers end to end, little-endian: raw files, and what follows an npy header.

use half::f16;

/// Adds a vector as float32.
pub(crate) fn row_f32(out: &mut Vec<u8>, vector: &[f32]) {
    out.extend(vector.iter().flat_map(|v| v.to_le_bytes()));
}

/// Adds a vector as float16.
pub(crate) fn row_f16(out: &mut Vec<u8>, vector: &[f32]) {
    out.extend(vector.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()));
}

/// The first component that is too large for float16.
pub(crate) fn too_large_for_f16(vector: &[f32]) -> Option<f32> {
    vector.iter().copied().find(|&v| v.is_finite() && !f16::from_f32(v).is_finite())
}
