//! The machine that the command runs on, and what it has taken of it: CPU time and memory.

use std::fs;

/// The machine, as far as it tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) cpu: Option<String>,
    /// Logical processors that this process may use.
    pub(crate) processors: usize,
    pub(crate) os: &'static str,
    pub(crate) arch: &'static str,
}

impl Machine {
    pub(crate) fn this() -> Self {
        Self {
            cpu: fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| cpu_name(&text)),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
        }
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "cpu": self.cpu, "processors": self.processors, "os": self.os, "arch": self.arch,
        })
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cpu = self.cpu.as_deref().unwrap_or("unknown CPU");
        write!(f, "{cpu}, {} processors, {} {}", self.processors, self.os, self.arch)
    }
}

fn cpu_name(cpuinfo: &str) -> Option<String> {
    let value = |key| {
        cpuinfo.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            (found.trim() == key && !value.trim().is_empty()).then(|| value.trim().to_owned())
        })
    };
    value("model name").or_else(|| value("Model"))
}

/// Bytes of the largest cache of the first processor; none where the system does not say.
pub(crate) fn largest_cache_bytes() -> Option<usize> {
    let caches = fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    caches.flatten().filter_map(|c| cache_bytes(&fs::read_to_string(c.path().join("size")).ok()?)).max()
}

/// `2048K`
fn cache_bytes(size: &str) -> Option<usize> {
    let size = size.trim();
    let (digits, unit) = size.split_at(size.find(|c: char| !c.is_ascii_digit()).unwrap_or(size.len()));
    let scale = match unit {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<usize>().ok()?.checked_mul(scale)
}

/// Seconds of CPU time that this process has used on all threads, in the system too. `None` where the system does not say.
#[cfg(any(target_os = "linux", target_os = "macos"))]
pub(crate) fn cpu_seconds() -> Option<f64> {
    use nix::time::{ClockId, clock_gettime};
    let used = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).ok()?;
    Some(std::time::Duration::from(used).as_secs_f64())
}

/// `None` where the system does not say.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub(crate) fn cpu_seconds() -> Option<f64> {
    None
}

/// What `/proc/self/status` says of this process's memory, mapped files included: `VmRSS` now, `VmHWM` at most so far.
/// `None` where there is none.
pub(crate) fn memory_bytes(key: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_name_is_that_of_the_first_processor() {
        let x86 = "processor\t: 0\nmodel name\t: Xeon: a\nmodel name\t: b\n";
        assert_eq!(cpu_name(x86).as_deref(), Some("Xeon: a"));
        assert_eq!(cpu_name("processor\t: 0\nModel\t\t: Raspberry\n").as_deref(), Some("Raspberry"));
        assert_eq!(cpu_name("model name\t:\n"), None);
    }

    #[test]
    fn cache_sizes_have_units() {
        assert_eq!(["2048K", "32M\n", "512"].map(cache_bytes), [Some(2 << 20), Some(32 << 20), Some(512)]);
        assert_eq!(["", "K", "1T"].map(cache_bytes), [None; 3]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_most_memory_so_far_stays_when_it_is_given_back() {
        let before = memory_bytes("VmHWM").unwrap();
        drop(std::hint::black_box(vec![1u8; 64 << 20]));
        assert!(memory_bytes("VmHWM").unwrap() >= before.max(64 << 20));
        assert!(memory_bytes("VmRSS").unwrap() > 0 && memory_bytes("Vm").is_none());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn cpu_time_of_this_process_grows_with_work() {
        let (start, clock) = (cpu_seconds().unwrap(), std::time::Instant::now());
        assert!(!((start * 1e9) as u64).is_multiple_of(1_000_000), "finer than milliseconds");
        while cpu_seconds().unwrap() < start + 0.05 {
            assert!(clock.elapsed().as_secs() < 30, "busy for 30 s and no CPU time counted");
        }
    }
}
