//! How long a device may take for a batch, and waiting no longer: one that hangs must not hang its caller.

use super::super::gpu::Gpu;
use super::memory::Called;
use cudarc::driver::CudaEvent;
use std::thread;
use std::time::{Duration, Instant};

/// How much slower than it should be a device may be: it may be shared, or hot.
const SLOWER: f64 = 100.0;
/// Until then the host asks again and again: a sleep is longer than a small batch takes.
const AWAKE: Duration = Duration::from_millis(1);
/// Then it sleeps in between, a sixteenth of what it has slept, within these bounds.
const NAP: [Duration; 2] = [Duration::from_micros(50), Duration::from_millis(1)];

/// For a batch of so many FLOPs: a hundred times what they take at the rate of the GPU's products, and `patience` for all else.
pub(super) fn limit(patience: Duration, gpu: &Gpu, flops: f64) -> Duration {
    patience + Duration::from_secs_f64(SLOWER * flops / (gpu.mma_tflops * 1e12))
}

/// Waits until the event has come to pass, or until `limit` is over: then it says no.
pub(super) fn wait(event: &CudaEvent, limit: Duration) -> Called<bool> {
    let start = Instant::now();
    // only what was slept counts: where the host is stopped, or computes for an emulated device, that is not the device's
    let mut slept = Duration::ZERO;
    while !event.try_is_complete()? {
        if slept >= limit {
            return Ok(false);
        }
        if start.elapsed() < AWAKE {
            thread::yield_now();
            continue;
        }
        let nap = (slept / 16).clamp(NAP[0], NAP[1]);
        thread::sleep(nap);
        slept += nap;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_grow_with_the_work_and_shrink_with_the_gpu() {
        let second = Duration::from_secs(1);
        let of = |gpu: &str, flops| limit(second, &Gpu::known(gpu).unwrap(), flops);
        assert_eq!(of("h100", 0.0), second);
        // 16,384 tokens of BERT-large, some 10 TFLOP: an L4 does them in a tenth of a second
        let large = of("l4", 1e13);
        assert!(large > 5 * second && large < 60 * second, "{large:?}");
        assert!(of("h100", 1e13) < large);
    }
}
