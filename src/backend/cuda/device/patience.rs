//! How long a device may take for a batch, and waiting no longer: one that hangs must not hang its caller.

use super::super::gpu::Gpu;
use super::memory::Called;
use cudarc::driver::CudaEvent;
use std::hint;
use std::thread;
use std::time::{Duration, Instant};

/// How much slower than it should be a device may be: it may be shared, or hot.
const SLOWER: f64 = 100.0;
/// Until then the host asks again and again, and leaves its processor to nobody: who comes in between may stay for milliseconds.
const SPIN: Duration = Duration::from_micros(200);
/// Until then it asks again and again, and lets others come in between: a sleep is longer than a small batch takes.
const AWAKE: Duration = Duration::from_millis(2);
/// Then it sleeps in between, a thirty-second of what it has slept, within these bounds. The system wakes it some 50 µs late.
const NAP: [Duration; 2] = [Duration::from_micros(50), Duration::from_millis(1)];
const NAPS: u32 = 32;

/// For a batch of so many FLOPs: a hundred times what they take at the rate of the GPU's products, and `patience` for all else.
pub(super) fn limit(patience: Duration, gpu: &Gpu, flops: f64) -> Duration {
    patience + Duration::from_secs_f64(SLOWER * flops / (gpu.mma_tflops * 1e12))
}

/// Waits until the event has come to pass, or until `limit` is over: then it says no.
pub(super) fn wait(event: &CudaEvent, limit: Duration) -> Called<bool> {
    // only what was slept counts: where the host is stopped, or computes for an emulated device, that is not the device's
    let mut slept = Duration::ZERO;
    wait_until(|| event.try_is_complete(), limit, &mut slept)
}

fn wait_until(
    mut is_done: impl FnMut() -> Called<bool>,
    limit: Duration,
    slept: &mut Duration,
) -> Called<bool> {
    let start = Instant::now();
    while !is_done()? {
        if *slept >= limit {
            return Ok(false);
        }
        let waited = start.elapsed();
        if waited < SPIN {
            hint::spin_loop();
        } else if waited < AWAKE {
            thread::yield_now();
        } else {
            let nap = (*slept / NAPS).clamp(NAP[0], NAP[1]);
            thread::sleep(nap);
            *slept += nap;
        }
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

    #[test]
    fn what_is_done_soon_is_not_slept_over() {
        let slept_for = |took: Duration| {
            let (start, mut slept) = (Instant::now(), Duration::ZERO);
            let done = wait_until(|| Ok(start.elapsed() >= took), Duration::from_secs(60), &mut slept);
            assert!(done.unwrap());
            slept
        };
        // a machine that stops this thread for a millisecond makes it sleep, but not ten times in a row
        let soon = Duration::from_micros(900);
        assert!((0..10).any(|_| slept_for(soon) == Duration::ZERO));
        assert!(slept_for(Duration::from_millis(20)) > Duration::ZERO, "whoever waits long sleeps");
    }

    #[test]
    fn what_is_never_done_is_given_up_when_the_time_is_over() {
        let (limit, mut slept) = (Duration::from_millis(30), Duration::ZERO);
        let start = Instant::now();
        assert!(!wait_until(|| Ok(false), limit, &mut slept).unwrap());
        assert!(slept >= limit && start.elapsed() >= limit);
        assert!(slept < limit + NAP[1], "{slept:?}");
    }
}
