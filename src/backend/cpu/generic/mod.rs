//! The kernels, each written once over [`Vector`](super::vector::Vector).
//!
//! All functions here are `#[inline(always)]`: they take on the features of the function in an instruction
//! set's module that calls them (see `kernels::instantiate`). They know lengths and pointers, nothing of
//! models or threads.

mod finish;
mod gemm;
mod int8;
mod math;
mod rows;

pub(super) use finish::finish_rows;
pub(super) use gemm::{
    Bf16, F16, F32, Fetch, LINE_BYTES, MOST_ROWS, NV, PEAK_CHAINS, Stored, fma_peak, gemm_tile, part_bytes,
    parts, widen,
};
pub(super) use int8::{Dot, Int8Vector, dot_peak, dot_product, quantize_row};
pub(super) use math::{activate, exp_slice};
pub(super) use rows::{add, embed_layernorm, l2_normalize, layernorm, multiply, pool, rotate, softmax};
