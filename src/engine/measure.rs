//! For measurements: what devices took by their own clocks, how kernels were launched, and cold caches.

use super::Embedder;
use crate::backend::{DeviceTime, Launches};
use crate::error::Result;

impl Embedder {
    /// What the devices take for what `call` computes with this embedder, by their own clocks: the sum over its batches; none where
    /// no device has a clock of its own, as the CPU. What other threads have this embedder compute in the meantime counts too.
    ///
    /// Events on the device cost it some of the time that they tell, so that what `call` takes the host is measured without.
    ///
    /// ```no_run
    /// # let embedder = berthier::Embedder::load(berthier::Options::new("model"))?;
    /// let mut vectors = vec![0.0; embedder.dim()];
    /// let ids = [101, 7592, 102];
    /// let time = embedder.device_time(|| embedder.embed_ids_into(&ids, &[0, ids.len()], &mut vectors))?;
    /// println!("{:?}", time.map(|time| time.kernels));
    /// # Ok::<(), berthier::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of `call`; [`Error::DeviceLost`](crate::Error::DeviceLost) if a device fails.
    pub fn device_time(&self, call: impl FnOnce() -> Result<()>) -> Result<Option<DeviceTime>> {
        let crew = &self.shared.crew;
        crew.each(|backend| backend.start_timing())?;
        let called = call();
        let mut sum = None;
        crew.each(|backend| {
            if let Some(time) = backend.stop_timing() {
                *sum.get_or_insert_with(DeviceTime::default) += time;
            }
            Ok(())
        })?;
        called.map(|()| sum)
    }

    /// How the kernels of all batches so far were launched, on the devices that have not failed; none where nothing but the host
    /// computes. What calls add is the difference of two.
    pub fn launches(&self) -> Option<Launches> {
        let mut sum = None;
        let told = self.shared.crew.each(|backend| {
            if let Some(launches) = backend.launches() {
                *sum.get_or_insert_with(Launches::default) += launches;
            }
            Ok(())
        });
        told.ok().and(sum)
    }

    /// Has the devices' own caches forget what they hold, as other work between calls would; says how many bytes were written for
    /// that on the device where these were most, 0 where there are no caches but the host's.
    ///
    /// # Errors
    /// [`Error::DeviceLost`](crate::Error::DeviceLost), [`Error::DeviceMemory`](crate::Error::DeviceMemory).
    pub fn sweep_device_caches(&self) -> Result<usize> {
        let mut most = 0;
        self.shared.crew.each(|backend| {
            most = most.max(backend.sweep_caches()?);
            Ok(())
        })?;
        Ok(most)
    }
}
