//! The epilogue of products of narrow numbers, whose sums lie in memory.
#![allow(unsafe_code, reason = "rows of a matrix that threads share")]

use super::super::gemm::{NarrowProduct, PANEL};
use super::super::vector::Vector;
use super::Int8Vector;
use super::math::with_activation;
use std::ops::Range;

/// A sum of a product.
pub(in super::super) trait Sum: Copy {
    /// Whether it is one of bytes, with scales.
    const INT8: bool;

    /// The first `LANES` of `sums`.
    fn load<V: Int8Vector>(v: V, sums: &[Self]) -> V::F;
}

impl Sum for f32 {
    const INT8: bool = false;

    #[inline(always)]
    fn load<V: Int8Vector>(v: V, sums: &[Self]) -> V::F {
        v.load(sums)
    }
}

impl Sum for i32 {
    const INT8: bool = true;

    #[inline(always)]
    fn load<V: Int8Vector>(v: V, sums: &[Self]) -> V::F {
        v.load_i32(sums)
    }
}

#[inline(always)]
fn identity<V: Vector>(_: V, x: V::F) -> V::F {
    x
}

/// c = f(sums + bias), or f(sums + bias + c) where there is a residual, for `rows` of the product and one panel. `sums` are
/// those from the row `first` on; sums of bytes become (sum − zero · column's sum) · (row's scale · column's scale).
///
/// # Safety
/// The product's contract; these are rows and a panel of it.
#[inline(always)]
pub(in super::super) unsafe fn finish_rows<V: Int8Vector, S: Sum>(
    v: V,
    p: &NarrowProduct<'_>,
    panel: usize,
    rows: Range<usize>,
    first: usize,
    sums: &[[S; PANEL]],
) {
    let column = panel * PANEL;
    let columns = PANEL.min(p.columns - column);
    let bias = &p.bias[column..][..PANEL];
    let (scales, column_sums) = if S::INT8 { p.panel_int8(panel) } else { (bias, bias) };

    // chosen once for all rows, and no closure: that would be compiled without the instruction set's features
    macro_rules! finish {
        ($f:ident) => {
            for row in rows {
                // SAFETY: `columns` floats of a row of `c`, which is ours alone
                let c = unsafe {
                    std::slice::from_raw_parts_mut(p.c.wrapping_add(row * p.c_stride + column), columns)
                };
                let sums = &sums[row - first];
                let (scale, zero) = if S::INT8 {
                    // SAFETY: a row of the product
                    let row = unsafe { p.row_scale(row) };
                    (v.splat(row.scale), v.splat(row.zero))
                } else {
                    (v.splat(1.0), v.splat(0.0))
                };
                // the last panel of a product whose width is no multiple of it: by way of the stack
                let mut padded = [0.0; PANEL];
                let whole = columns == PANEL;
                if !whole && p.residual {
                    padded[..columns].copy_from_slice(c);
                }
                let out = if whole { &mut *c } else { &mut padded[..] };
                for at in (0..PANEL).step_by(V::LANES) {
                    let mut x = S::load(v, &sums[at..]);
                    if S::INT8 {
                        x = v.neg_mul_add(zero, v.load(&column_sums[at..]), x);
                        x = v.mul(x, v.mul(scale, v.load(&scales[at..])));
                    }
                    x = v.add(x, v.load(&bias[at..]));
                    if p.residual {
                        x = v.add(x, v.load(&out[at..]));
                    }
                    v.store($f(v, x), &mut out[at..]);
                }
                if !whole {
                    c.copy_from_slice(&padded[..columns]);
                }
            }
        };
    }
    match p.activation {
        None => finish!(identity),
        Some(f) => with_activation!(f, kernel, finish!(kernel)),
    }
}
