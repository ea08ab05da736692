//! What a batch takes by the device's own clock: events around its copies and its kernels.
//!
//! Events that tell the time cost the device about a microsecond each, so that there are none unless batches are timed.

use super::memory::Called;
use crate::backend::DeviceTime;
use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream};
use std::sync::Arc;
use std::time::Duration;

/// On a batch's way.
#[derive(Debug, Clone, Copy)]
pub(super) enum Point {
    /// In front of the copy to the device. Of batches that are not copied there is none of these.
    Begin,
    KernelsBegin,
    KernelsEnd,
    /// Behind the copy from the device.
    End,
}

const POINTS: usize = 4;

pub(super) struct Stopwatch([CudaEvent; POINTS]);

impl Stopwatch {
    pub(super) fn new(context: &Arc<CudaContext>) -> Called<Self> {
        let event = || context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        Ok(Self([event()?, event()?, event()?, event()?]))
    }

    /// The stream comes to this point of its batch next.
    pub(super) fn mark(&self, point: Point, stream: &CudaStream) -> Called<()> {
        self.0[point as usize].record(stream)
    }

    /// Of the batch that was marked last and has been waited for; `copied`: there are all points.
    pub(super) fn read(&self, copied: bool) -> Called<DeviceTime> {
        let between = |from: Point, to: Point| {
            let ms = self.0[from as usize].elapsed_ms(&self.0[to as usize])?;
            // events of several streams may lie in any order, by less than the clock tells
            Called::Ok(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
        };
        let kernels = between(Point::KernelsBegin, Point::KernelsEnd)?;
        let total = if copied { between(Point::Begin, Point::End)? } else { kernels };
        Ok(DeviceTime { total, kernels })
    }
}
