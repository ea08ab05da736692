//! Tensor maps: what the copies of the kernels for compute capability 9.0 are told of a matrix.
//!
//! Made by the driver without asking the device, in well under a microsecond; kept, because a batch of the same size has the
//! same ones.
#![allow(unsafe_code, reason = "a call into the driver")]

use super::super::tiles::Element;
use super::memory::{Called, Slice};
use cudarc::driver::sys::{self, CUtensorMap};
use std::cell::RefCell;
use std::collections::HashMap;
use std::mem::MaybeUninit;

/// Tensor maps that are remembered: some ten a layer, of as many sizes of batches as products have.
const MOST_REMEMBERED: usize = 16_384;

/// The maps of one device's matrices.
pub(super) struct TensorMaps {
    element: Element,
    made: RefCell<HashMap<Matrix, CUtensorMap>>,
}

/// A row-major matrix of 16-bit elements, and the boxes in which it is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Matrix {
    address: u64,
    rows: usize,
    columns: usize,
    /// Rows and columns.
    boxes: [u32; 2],
}

impl TensorMaps {
    pub(super) fn new(element: Element) -> Self {
        Self { element, made: RefCell::default() }
    }

    /// The map of `[rows, columns]`, in boxes of so many rows and 32 or 64 columns, which lie in shared memory with the
    /// swizzle of their width.
    ///
    /// # Panics
    /// If the array is shorter.
    pub(super) fn of(
        &self,
        matrix: Slice<u16>,
        [rows, columns]: [usize; 2],
        boxes: [u32; 2],
    ) -> Called<CUtensorMap> {
        assert!(matrix.len() >= rows * columns, "a matrix of {rows} by {columns} in {}", matrix.len());
        let matrix = Matrix { address: matrix.address(), rows, columns, boxes };
        let mut made = self.made.borrow_mut();
        if let Some(map) = made.get(&matrix) {
            return Ok(*map);
        }
        if made.len() >= MOST_REMEMBERED {
            made.clear();
        }
        let map = encode(matrix, self.element)?;
        made.insert(matrix, map);
        Ok(map)
    }
}

fn encode(matrix: Matrix, element: Element) -> Called<CUtensorMap> {
    let Matrix { address, rows, columns, boxes: [box_rows, box_columns] } = matrix;
    let swizzle = match box_columns {
        64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        _ => panic!("boxes of {box_columns} columns have no swizzle of their width"),
    };
    let data_type = match element {
        Element::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        Element::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    };
    // columns first
    let (dimensions, row_bytes) = ([columns as u64, rows as u64], [2 * columns as u64]);
    let (boxes, steps) = ([box_columns, box_rows], [1, 1]);
    let mut map = MaybeUninit::<CUtensorMap>::uninit();
    // SAFETY: the arrays are as long as a tensor of two dimensions needs, and are read before the call returns
    unsafe {
        sys::cuTensorMapEncodeTiled(
            map.as_mut_ptr(),
            data_type,
            2,
            address as *mut _,
            dimensions.as_ptr(),
            row_bytes.as_ptr(),
            boxes.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()?;
    // SAFETY: the call succeeded, so it has written the map
    Ok(unsafe { map.assume_init() })
}
