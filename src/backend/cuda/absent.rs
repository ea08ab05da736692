//! In place of `device/` where the library is built without the `cuda` feature: says so.

use crate::backend::{Backend, BackendOptions, Device, FoundDevice};
use crate::error::{Error, Result};
use crate::model::{ModelDesc, Weights};

pub(crate) fn devices() -> Result<Vec<FoundDevice>> {
    Err(absent("cuda".into()))
}

pub(crate) fn open(
    ordinal: usize,
    _: &ModelDesc,
    _: &Weights,
    _: &BackendOptions,
) -> Result<Box<dyn Backend>> {
    Err(absent(Device::Cuda(ordinal).to_string()))
}

fn absent(device: String) -> Error {
    let message = "berthier was built without the cuda feature (--device cpu computes)".into();
    Error::DeviceUnavailable { device, message }
}
