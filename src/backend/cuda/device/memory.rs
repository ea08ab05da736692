//! Memory of the device and pinned memory of the host, freed when dropped; typed addresses into it.
#![allow(unsafe_code, reason = "allocations and copies of the driver")]

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use cudarc::driver::{CudaContext, CudaStream};
use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// What a call of the driver gives.
pub(super) type Called<T> = Result<T, DriverError>;

/// What every array in an allocation begins at a multiple of: two lines of the L2 cache, and what kernels ask for 16 times.
pub(super) const ALIGNMENT: usize = 256;

/// Bytes on the device.
pub(super) struct Memory {
    address: u64,
    bytes: usize,
    context: Arc<CudaContext>,
}

impl Memory {
    pub(super) fn new(context: &Arc<CudaContext>, bytes: usize) -> Called<Self> {
        context.bind_to_thread()?;
        // SAFETY: the size is not 0
        let address = unsafe { result::malloc_sync(bytes.max(1)) }?;
        Ok(Self { address, bytes, context: context.clone() })
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// `len` elements that begin `offset` bytes behind its start.
    pub(super) fn slice<T>(&self, offset: usize, len: usize) -> Slice<T> {
        self.all().part(offset, len)
    }

    /// All of it.
    pub(super) fn all<T>(&self) -> Slice<T> {
        Slice { address: self.address, len: self.bytes / size_of::<T>(), element: PhantomData }
    }

    /// Fills it with zeros, when `stream` comes to it.
    ///
    /// # Safety
    /// Nobody else uses it until then, and it lives.
    pub(super) unsafe fn clear(&mut self, stream: &CudaStream) -> Called<()> {
        // SAFETY: allocated by `new`, and left alone, says the caller
        unsafe { result::memset_d8_async(self.address, 0, self.bytes, stream.cu_stream()) }
    }

    /// Copies to it and waits.
    pub(super) fn write<T: bytemuck::NoUninit>(&self, offset: usize, from: &[T]) -> Called<()> {
        let to = self.slice::<T>(offset, from.len());
        self.context.bind_to_thread()?;
        // SAFETY: `slice` checked that there is room
        unsafe { result::memcpy_htod_sync(to.address, from) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // a lost device keeps nothing
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `new`, freed once; the driver waits for work that uses it
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// An array that kernels reach: its address on the device, and its length. Whoever launches a kernel on it holds the [`Memory`], or
/// the [`Pinned`] memory of the host.
pub(super) struct Slice<T> {
    address: u64,
    len: usize,
    element: PhantomData<fn() -> T>,
}

impl<T> Clone for Slice<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slice<T> {}

impl<T> Slice<T> {
    /// No array: what kernels take for "there is none".
    pub(super) const NONE: Self = Self { address: 0, len: 0, element: PhantomData };

    /// Before there is memory: where it will be, from 0.
    pub(super) fn planned(offset: usize, len: usize) -> Self {
        Self { address: offset as u64, len, element: PhantomData }
    }

    pub(super) fn is_none(self) -> bool {
        self.address == 0
    }

    pub(super) fn address(self) -> u64 {
        self.address
    }

    pub(super) fn len(self) -> usize {
        self.len
    }
}

impl Slice<u8> {
    /// `len` elements that begin `offset` bytes behind its start.
    pub(super) fn part<T>(self, offset: usize, len: usize) -> Slice<T> {
        assert!(
            offset.is_multiple_of(16) && offset + len * size_of::<T>() <= self.len,
            "{len} elements at {offset} of {} bytes",
            self.len
        );
        Slice { address: self.address + offset as u64, len, element: PhantomData }
    }
}

/// Pinned memory of the host: the device copies from and to it while the host goes on, and kernels read and write it where they can.
pub(super) struct Pinned {
    start: *mut u8,
    bytes: usize,
    /// Where kernels find it, if they reach it.
    mapped: Option<u64>,
    context: Arc<CudaContext>,
}

// SAFETY: it is memory like any other, owned by this value alone
unsafe impl Send for Pinned {}

impl Pinned {
    /// Zeros. `mapped`: kernels are to reach it, which the device can.
    pub(super) fn new(context: &Arc<CudaContext>, bytes: usize, mapped: bool) -> Called<Self> {
        context.bind_to_thread()?;
        let bytes = bytes.max(1);
        let flags = if mapped { sys::CU_MEMHOSTALLOC_DEVICEMAP } else { 0 };
        // SAFETY: the size is not 0
        let start = unsafe { result::malloc_host(bytes, flags) }?.cast::<u8>();
        // SAFETY: `bytes` bytes were allocated there
        unsafe { start.write_bytes(0, bytes) };
        let mut pinned = Self { start, bytes, mapped: None, context: context.clone() };
        if mapped {
            let mut address = 0;
            // SAFETY: allocated above, to be mapped
            unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut address, start.cast::<c_void>(), 0) }
                .result()?;
            pinned.mapped = Some(address);
        }
        Ok(pinned)
    }

    /// All of it as kernels see it, if they do.
    pub(super) fn mapped<T>(&self) -> Option<Slice<T>> {
        let address = self.mapped?;
        Some(Slice { address, len: self.bytes / size_of::<T>(), element: PhantomData })
    }

    /// All of it.
    ///
    /// # Safety
    /// No copy from or to it is under way, and no kernel that uses it.
    pub(super) unsafe fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: allocated and initialised by `new`; nobody else touches it, says the caller
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }

    /// Copies its bytes `range` to the start of `to`, when `stream` comes to it.
    ///
    /// # Safety
    /// Until then nobody writes to the range, and both live. No other copy to it is under way.
    pub(super) unsafe fn upload(
        &mut self,
        range: Range<usize>,
        to: &Memory,
        stream: &CudaStream,
    ) -> Called<()> {
        let to = to.slice::<u8>(0, range.len());
        // SAFETY: the driver only reads it
        let from = unsafe { &self.bytes_mut()[range] };
        // SAFETY: `slice` checked that there is room, the caller leaves both alone
        unsafe { result::memcpy_htod_async(to.address, from, stream.cu_stream()) }
    }

    /// Copies all of `from` to its start, when `stream` comes to it.
    ///
    /// # Safety
    /// Until then nobody reads or writes here, and both live.
    pub(super) unsafe fn download<T>(&mut self, from: Slice<T>, stream: &CudaStream) -> Called<()> {
        // SAFETY: the caller leaves it alone
        let to = unsafe { &mut self.bytes_mut()[..from.len * size_of::<T>()] };
        // SAFETY: the range above is as long as `from`, the caller leaves both alone
        unsafe { result::memcpy_dtoh_async(to, from.address, stream.cu_stream()) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `new`, freed once
            let _ = unsafe { result::free_host(self.start.cast::<c_void>()) };
        }
    }
}
