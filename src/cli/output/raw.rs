//! Numbers end to end, little-endian: raw files, and what follows an npy header.

use super::Dtype;
use half::f16;

/// Adds a vector.
pub(crate) fn row(out: &mut Vec<u8>, dtype: Dtype, vector: &[f32]) {
    match dtype {
        Dtype::Float32 => out.extend(vector.iter().flat_map(|v| v.to_le_bytes())),
        Dtype::Float16 => out.extend(vector.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())),
    }
}

/// The first component that is too large for float16.
pub(crate) fn too_large_for_f16(vector: &[f32]) -> Option<f32> {
    vector.iter().copied().find(|&v| v.is_finite() && !f16::from_f32(v).is_finite())
}
