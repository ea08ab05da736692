//! Sweeping the GPU's L2 cache, for measurements: whatever a batch left there is gone.
#![allow(unsafe_code, reason = "memory that the device fills while the host goes on")]

use super::driver::Opened;
use super::memory::{Called, Memory};
use super::patience;
use cudarc::driver::CudaEvent;
use std::time::Duration;

/// Of the cache's size: lines are not replaced strictly in turn.
const TIMES: usize = 2;

pub(super) struct Sweep {
    memory: Memory,
    done: CudaEvent,
}

impl Sweep {
    pub(super) fn new(device: &Opened) -> Called<Self> {
        let memory = Memory::new(&device.context, Self::bytes(device))?;
        Ok(Self { memory, done: device.context.new_event(None)? })
    }

    pub(super) fn bytes(device: &Opened) -> usize {
        TIMES * device.gpu.l2_bytes
    }

    /// Writes more than the cache holds, and waits for it; says no if that takes longer than `limit`.
    pub(super) fn run(&mut self, device: &Opened, limit: Duration) -> Called<bool> {
        // SAFETY: nobody else uses it, and a device that hangs keeps it
        unsafe { self.memory.clear(&device.compute) }?;
        self.done.record(&device.compute)?;
        patience::wait(&self.done, limit)
    }
}
