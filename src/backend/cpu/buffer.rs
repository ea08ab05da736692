//! Floats on cache lines, in huge pages where the system has them.
//!
//! A pass over a model reads all its weights, tens of megabytes: in pages of 4 KiB, more of them than the processor keeps
//! translations of. A product's weights alone are less than a huge page, so buffers lie side by side in regions.
#![allow(unsafe_code, reason = "memory shared out by hand")]

use memmap2::MmapMut;
use std::alloc::{Layout, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

const LINE: usize = 64;
/// A huge page: 2 MiB on x86-64 and on arm64 with pages of 4 KiB.
const HUGE_PAGE: usize = 2 << 20;
/// Bytes of a region at least. Those that nobody touches take no memory.
const REGION: usize = 32 << 20;

/// Where buffers are being made.
static CURRENT: Mutex<Current> = Mutex::new(Current { region: Weak::new(), used: 0 });

struct Current {
    /// Lives as long as its buffers do.
    region: Weak<Region>,
    /// Bytes that have been given out, from the front and never twice: what a buffer gets is zero.
    used: usize,
}

/// Fresh pages from the system.
struct Region {
    /// Owns the pages; nobody reads or writes through it.
    _map: MmapMut,
    /// The first huge page.
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the pointer is an address that buffers count from, each to a part of its own
unsafe impl Send for Region {}
// SAFETY: as above
unsafe impl Sync for Region {}

impl Region {
    fn new(len: usize) -> Self {
        let len = len.next_multiple_of(HUGE_PAGE);
        let layout = Layout::from_size_align(len, HUGE_PAGE).expect("a region within the address space");
        let Ok(mut map) = MmapMut::map_anon(len + HUGE_PAGE) else { handle_alloc_error(layout) };
        #[cfg(target_os = "linux")]
        // a system without huge pages refuses, and has its own pages
        let _ = map.advise(memmap2::Advice::HugePage);
        let base = map.as_mut_ptr();
        let start = base.wrapping_add(base.align_offset(HUGE_PAGE));
        let start = NonNull::new(start).expect("a mapping is not at address 0");
        Self { _map: map, start, len }
    }
}

/// A fixed number of floats, aligned to a cache line. Pages that are never touched take no memory, and the others belong
/// to the thread that touches them first.
pub(super) struct Buffer {
    data: NonNull<f32>,
    len: usize,
    /// None if there are no floats.
    _region: Option<Arc<Region>>,
}

// SAFETY: a Buffer owns its floats, as Box<[f32]> does
unsafe impl Send for Buffer {}
// SAFETY: as above
unsafe impl Sync for Buffer {}

impl Buffer {
    pub(super) fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self { data: NonNull::dangling(), len, _region: None };
        }
        let layout = Layout::array::<f32>(len).expect("a buffer within the address space");
        let bytes = layout.size().next_multiple_of(LINE);
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let region = match current.region.upgrade().filter(|region| region.len - current.used >= bytes) {
            Some(region) => region,
            None => {
                let region = Arc::new(Region::new(bytes.max(REGION)));
                *current = Current { region: Arc::downgrade(&region), used: 0 };
                region
            }
        };
        // SAFETY: the region has `bytes` from there on
        let data = unsafe { region.start.add(current.used) };
        current.used += bytes;
        Self { data: data.cast(), len, _region: Some(region) }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `len` floats on lines of their own, zero at the start, ours
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: `len` floats on lines of their own, zero at the start, ours alone
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zero_aligned_and_apart() {
        let sizes = [1, 15, 16, 17, 100_000, REGION / 4 - 8, REGION / 2, 3];
        let mut buffers = sizes.map(Buffer::zeroed);
        for (i, buffer) in buffers.iter_mut().enumerate() {
            assert!(buffer.as_ptr().addr().is_multiple_of(LINE) && buffer.len() == sizes[i]);
            assert!(buffer.iter().all(|&x| x == 0.0), "buffer {i} of {}", sizes[i]);
            buffer.fill(i as f32 + 1.0);
        }
        for (i, buffer) in buffers.iter().enumerate() {
            assert!(buffer.iter().all(|&x| x == i as f32 + 1.0), "buffer {i} is another's too");
        }
        assert!(Buffer::zeroed(0).is_empty());
    }
}
