//! Floats on cache lines.
#![allow(unsafe_code, reason = "aligned allocation")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

const LINE: usize = 64;

/// A fixed number of floats, aligned to a cache line. Pages that are never touched take no memory, and the others belong
/// to the thread that touches them first.
pub(super) struct Buffer {
    /// What was allocated: up to a line in front of the floats.
    base: NonNull<u8>,
    data: NonNull<f32>,
    len: usize,
}

// SAFETY: a Buffer owns its floats, as Box<[f32]> does
unsafe impl Send for Buffer {}
// SAFETY: as above
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Of no more alignment than any allocation has: with more, zeros are written by hand and not had from the system's
    /// fresh pages (a quarter of the time to load all-MiniLM, and workspaces that are resident though never used).
    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len * size_of::<f32>() + LINE, align_of::<f32>())
            .expect("a buffer within the address space")
    }

    pub(super) fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self { base: NonNull::dangling(), data: NonNull::dangling(), len };
        }
        let layout = Self::layout(len);
        // SAFETY: the layout is not of size 0
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else { handle_alloc_error(layout) };
        // SAFETY: the next line's start is less than a line away, and there is a line more than the floats need
        let data = unsafe { base.add(base.align_offset(LINE)) }.cast();
        Self { base, data, len }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: allocated in `zeroed` with this layout
            unsafe { dealloc(self.base.as_ptr(), Self::layout(self.len)) }
        }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `len` floats, zeroed at the start, ours
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: `len` floats, zeroed at the start, ours alone
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}
