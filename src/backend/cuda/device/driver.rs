//! The driver: whether there is one, what GPUs it sees, and their contexts.
//!
//! cudarc panics where libcuda or one of its symbols is missing, so everything begins with [`start`], which asks first
//! for the library, then for its version. Knows nothing of models and kernels.
#![allow(unsafe_code, reason = "calls into the driver")]

use crate::backend::{Device, FoundDevice};
use crate::error::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use cudarc::driver::{CudaContext, CudaStream};
use std::sync::Arc;
use std::time::Duration;

use super::super::gpu::{Attributes, Gpu};
use super::memory::Called;

/// What the image of the kernels needs, as `cuDriverGetVersion` counts: CUDA 13.0.
const LEAST_DRIVER: i32 = 13_000;
/// The first driver that has it, as NVIDIA numbers drivers.
const LEAST_DRIVER_RELEASE: &str = "580";
/// The first GPUs with `cp.async` and the 16-bit products of these kernels.
const LEAST_CAPABILITY: (u32, u32) = (8, 0);

/// Loads and initialises the driver.
fn start() -> Result<()> {
    // SAFETY: opens and closes the driver's library, whose initialisers are made for that
    if !unsafe { sys::is_culib_present() } {
        let name = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
        return Err(Error::NoDriver {
            message: format!("{name} cannot be loaded"),
            needed: LEAST_DRIVER_RELEASE.into(),
        });
    }
    let mut version = 0;
    // SAFETY: writes an integer, and needs no initialisation; every driver has it
    let known = unsafe { sys::cuDriverGetVersion(&raw mut version) } == CUresult::CUDA_SUCCESS;
    if known && version < LEAST_DRIVER {
        return Err(Error::DriverTooOld {
            found: format!("CUDA {}", version_text(version)),
            needed: format!("CUDA {} (driver {LEAST_DRIVER_RELEASE})", version_text(LEAST_DRIVER)),
        });
    }
    result::init().map_err(no_device)
}

/// `13000` as `13.0`.
fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn no_device(e: DriverError) -> Error {
    let hidden = match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(list) => format!(" (CUDA_VISIBLE_DEVICES is '{list}')"),
        Err(_) => String::new(),
    };
    Error::NoDevice { message: format!("{}{hidden}", describe(e)) }
}

/// Every GPU that the driver sees, usable or not; at least one.
pub(crate) fn devices() -> Result<Vec<FoundDevice>> {
    start()?;
    let count = result::device::get_count().map_err(no_device)?;
    if count == 0 {
        return Err(no_device(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)));
    }
    let found = |ordinal: usize| {
        let device = Device::Cuda(ordinal);
        match properties(ordinal) {
            Ok((gpu, _)) => {
                let unusable = check_capability(&full_name(ordinal, &gpu.name), gpu.compute_capability).err();
                FoundDevice { device, name: gpu.name, unusable }
            }
            Err(e) => {
                FoundDevice { device, name: String::new(), unusable: Some(failed(&device.to_string(), e)) }
            }
        }
    };
    Ok((0..usize::try_from(count).unwrap_or(0)).map(found).collect())
}

fn check_capability(device: &str, (major, minor): (u32, u32)) -> Result<()> {
    if (major, minor) >= LEAST_CAPABILITY {
        return Ok(());
    }
    let (least_major, least_minor) = LEAST_CAPABILITY;
    Err(Error::ComputeCapability {
        device: device.into(),
        found: format!("{major}.{minor}"),
        needed: format!("{least_major}.{least_minor}"),
    })
}

fn full_name(ordinal: usize, name: &str) -> String {
    format!("{} {name}", Device::Cuda(ordinal))
}

/// What a GPU is, and the bytes of its memory. The driver is initialised.
fn properties(ordinal: usize) -> Called<(Gpu, usize)> {
    let device = result::device::get(i32::try_from(ordinal).unwrap_or(i32::MAX))?;
    let attribute = |attribute: Attribute| {
        // SAFETY: the handle came from the driver
        let value = unsafe { result::device::get_attribute(device, attribute) }?;
        Ok::<_, DriverError>(value.max(0).unsigned_abs())
    };
    // SAFETY: as above
    let memory_bytes = unsafe { result::device::total_mem(device) }?;
    let gpu = Gpu::of(&Attributes {
        name: result::device::get_name(device)?,
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        sm_count: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
        clock_khz: attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?,
        memory_clock_khz: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?,
        memory_bus_bits: attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
    });
    Ok((gpu, memory_bytes))
}

/// One GPU with its context and streams. Copies to the device, kernels and copies back each have a stream of their own, so
/// that none waits for another batch's.
pub(super) struct Opened {
    /// `cuda:0 NVIDIA H100`
    pub(super) name: String,
    pub(super) gpu: Gpu,
    pub(super) context: Arc<CudaContext>,
    /// Whether kernels reach the host's pinned memory.
    pub(super) maps_host_memory: bool,
    pub(super) upload: Arc<CudaStream>,
    pub(super) compute: Arc<CudaStream>,
    pub(super) download: Arc<CudaStream>,
}

impl Opened {
    pub(super) fn new(ordinal: usize) -> Result<Self> {
        start()?;
        let device = Device::Cuda(ordinal).to_string();
        let count = result::device::get_count().map_err(no_device)?;
        if !i32::try_from(ordinal).is_ok_and(|ordinal| ordinal < count) {
            let message = format!("there are {count} (ordinals count what CUDA_VISIBLE_DEVICES leaves)");
            return Err(Error::DeviceUnavailable { device, message });
        }
        let (gpu, _) = properties(ordinal).map_err(|e| failed(&device, e))?;
        let name = full_name(ordinal, &gpu.name);
        check_capability(&name, gpu.compute_capability)?;
        Self::with_context(ordinal, &name, gpu).map_err(|e| failed(&name, e))
    }

    fn with_context(ordinal: usize, name: &str, gpu: Gpu) -> Called<Self> {
        let context = CudaContext::new(ordinal)?;
        // SAFETY: no memory of cudarc's own types is used; `backend.rs` orders the streams with events
        unsafe { context.disable_event_tracking() };
        let (upload, compute, download) =
            (context.new_stream()?, context.new_stream()?, context.new_stream()?);
        let has = |attribute| Ok::<_, DriverError>(context.attribute(attribute)? != 0);
        let maps_host_memory = has(Attribute::CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY)?
            && has(Attribute::CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING)?;
        Ok(Self { name: name.into(), gpu, context, maps_host_memory, upload, compute, download })
    }

    /// What the driver said, of this device. Out of memory is told apart by those who allocate.
    pub(super) fn failed(&self, e: DriverError) -> Error {
        failed(&self.name, e)
    }

    /// That it has not done something for so long.
    pub(super) fn hangs(&self, what: &str, limit: Duration) -> Error {
        let message = format!("it hangs: {what} is not done after {:.1} s", limit.as_secs_f64());
        Error::DeviceLost { device: self.name.clone(), message }
    }

    /// Waits for all streams; for the end, when nobody wants to know how it went.
    pub(super) fn settle(&self) {
        for stream in [&self.upload, &self.compute, &self.download] {
            let _ = stream.synchronize();
        }
    }
}

fn failed(device: &str, e: DriverError) -> Error {
    Error::DeviceLost { device: device.into(), message: describe(e) }
}

/// Whether it is memory that is wanting.
pub(super) fn is_out_of_memory(e: DriverError) -> bool {
    e.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY
}

/// `out of memory (CUDA_ERROR_OUT_OF_MEMORY)`
pub(super) fn describe(e: DriverError) -> String {
    let text = |found: Called<&std::ffi::CStr>| found.ok().map(|s| s.to_string_lossy().into_owned());
    match (text(e.error_string()), text(e.error_name())) {
        (Some(what), Some(name)) => format!("{} ({name})", what.trim_end_matches('.')),
        _ => format!("CUDA error {}", e.0 as u32),
    }
}
