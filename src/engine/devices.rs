//! From what the caller asked for to opened backends: which devices there are, which are taken, what is said of the others.

use crate::backend::{Backend, BackendOptions, Capacity, Device, DeviceChoice, FoundDevice, Precision};
use crate::error::{Error, Result};

/// One device that computes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// As it is asked for.
    pub device: Device,
    /// For people: `cpu avx512, 2 threads`, `cuda:0 NVIDIA H100`.
    pub name: String,
    /// What a vector's bits depend on besides model, text and precision; equal for devices of one kind.
    pub kind: String,
    /// The precision that was asked for or chosen.
    pub precision: Precision,
    /// Its limits and memory.
    pub capacity: Capacity,
}

/// Backends that hold the model, with what is known of them, in the same order; at least one.
pub(super) struct Opened {
    pub(super) backends: Vec<Box<dyn Backend>>,
    pub(super) devices: Vec<DeviceInfo>,
    /// What was left out, and why; one sentence each.
    pub(super) warnings: Vec<String>,
}

impl Opened {
    fn new(opened: Vec<(Device, Box<dyn Backend>)>, warnings: Vec<String>) -> Self {
        let info = |(device, backend): &(Device, Box<dyn Backend>)| DeviceInfo {
            device: *device,
            name: backend.name(),
            kind: backend.kind(),
            precision: backend.precision(),
            capacity: backend.capacity(),
        };
        let devices = opened.iter().map(info).collect();
        Self { backends: opened.into_iter().map(|(_, backend)| backend).collect(), devices, warnings }
    }

    /// The caller's own.
    pub(super) fn given(backends: Vec<Box<dyn Backend>>) -> Self {
        assert!(!backends.is_empty(), "at least one backend");
        Self::new(backends.into_iter().map(|backend| (Device::Cpu, backend)).collect(), Vec::new())
    }

    /// For all devices together. Batches are cut for the device that takes the least: so they are the same ones, and with
    /// them their vectors' bits, whoever computes them and however many devices there are.
    pub(super) fn capacity(&self) -> Capacity {
        let each = || self.devices.iter().map(|d| d.capacity);
        Capacity {
            max_tokens: each().map(|c| c.max_tokens).min().unwrap_or(0),
            in_flight: each().map(|c| c.in_flight).sum(),
            weight_bytes: each().map(|c| c.weight_bytes).sum(),
            workspace_bytes: each().map(|c| c.workspace_bytes).sum(),
        }
    }

    /// Several kinds of devices differ in the last bits of a vector, which is said, or refused if the caller asked for more.
    fn check_kinds(mut self, batch_invariant: bool) -> Result<Self> {
        let Some((first, other)) =
            self.devices.iter().find(|d| d.kind != self.devices[0].kind).map(|d| (&self.devices[0], d))
        else {
            return Ok(self);
        };
        let differ = format!(
            "{} and {} are of different kinds ({}, {}): the last bits of a vector depend on which of them computes it",
            first.name, other.name, first.kind, other.kind
        );
        if batch_invariant {
            return Err(Error::InvalidOption { name: "batch_invariant", message: differ });
        }
        self.warnings.push(differ);
        Ok(self)
    }
}

/// Opens the devices of the choice. `found` finds the GPUs, `open` loads the model onto a device.
pub(super) fn open(
    choice: &DeviceChoice,
    options: &BackendOptions,
    found: impl FnOnce() -> Result<Vec<FoundDevice>>,
    open: impl Fn(Device, &BackendOptions) -> Result<Box<dyn Backend>> + Sync,
) -> Result<Opened> {
    match choice {
        DeviceChoice::Auto => auto(options, found, open),
        DeviceChoice::Cuda => {
            let mut warnings = Vec::new();
            let usable = usable(found()?, &mut warnings)?;
            let devices: Vec<_> = usable.into_iter().map(|(device, _)| device).collect();
            all(open_each(&devices, options, open), warnings)?.check_kinds(options.batch_invariant)
        }
        DeviceChoice::These(devices) => {
            if devices.is_empty() {
                return Err(Error::InvalidOption { name: "device", message: "none is named".into() });
            }
            if devices.iter().any(|d| matches!(d, Device::Cuda(_))) {
                check_named(devices, found()?)?;
            }
            all(open_each(devices, options, open), Vec::new())?.check_kinds(options.batch_invariant)
        }
    }
}

/// The GPUs like the first that can be used and opened, else the CPU. That a GPU is passed over is said; that there is none
/// is not.
fn auto(
    options: &BackendOptions,
    found: impl FnOnce() -> Result<Vec<FoundDevice>>,
    open: impl Fn(Device, &BackendOptions) -> Result<Box<dyn Backend>> + Sync,
) -> Result<Opened> {
    let mut warnings = Vec::new();
    // an instruction set asks for the CPU
    let found = if options.isa.is_some() { Ok(Vec::new()) } else { found() };
    let on_cpu = |why: &Error| format!("the CPU computes, and not the GPU: {why}");
    let usable = match found {
        Ok(found) if found.is_empty() => Vec::new(),
        Ok(found) => usable(found, &mut warnings).unwrap_or_else(|why| {
            warnings = vec![on_cpu(&why)];
            Vec::new()
        }),
        Err(why) => {
            let none = matches!(
                why,
                Error::NoDriver { .. } | Error::NoDevice { .. } | Error::DeviceUnavailable { .. }
            );
            if !none {
                warnings.push(on_cpu(&why));
            }
            Vec::new()
        }
    };
    if let Some((_, kind)) = usable.first().cloned() {
        let (like, unlike): (Vec<_>, Vec<_>) = usable.into_iter().partition(|(_, name)| *name == kind);
        for (device, name) in unlike {
            warnings.push(format!(
                "{device} {name} is not used: it is not like the first GPU (--device cuda takes all)"
            ));
        }
        let devices: Vec<_> = like.into_iter().map(|(device, _)| device).collect();
        let (mut opened, mut first_failure) = (Vec::new(), None);
        for (device, result) in open_each(&devices, options, &open) {
            match result {
                Ok(backend) => opened.push((device, backend)),
                Err(why) => {
                    warnings.push(format!("{device} is not used: {why}"));
                    first_failure.get_or_insert(why);
                }
            }
        }
        match first_failure {
            Some(why) if opened.is_empty() => warnings = vec![on_cpu(&why)],
            _ => return Opened::new(opened, warnings).check_kinds(options.batch_invariant),
        }
    }
    Ok(Opened::new(vec![(Device::Cpu, open(Device::Cpu, options)?)], warnings))
}

/// The usable ones with their names; the others' reasons go to `warnings`.
///
/// # Errors
/// The first one's reason, if none is usable.
fn usable(found: Vec<FoundDevice>, warnings: &mut Vec<String>) -> Result<Vec<(Device, String)>> {
    let (mut usable, mut first_reason) = (Vec::new(), None);
    for FoundDevice { device, name, unusable } in found {
        match unusable {
            None => usable.push((device, name)),
            Some(why) => {
                warnings.push(format!("{device} {name} is not used: {why}"));
                first_reason.get_or_insert(why);
            }
        }
    }
    match first_reason {
        Some(why) if usable.is_empty() => Err(why),
        _ => Ok(usable),
    }
}

/// Every GPU that was named is there and can be used.
fn check_named(named: &[Device], found: Vec<FoundDevice>) -> Result<()> {
    let there: Vec<_> = found.iter().map(|f| format!("{} {}", f.device, f.name)).collect();
    for device in named.iter().filter(|d| matches!(d, Device::Cuda(_))) {
        if !found.iter().any(|f| f.device == *device) {
            let message =
                format!("there is {} (ordinals count what CUDA_VISIBLE_DEVICES leaves)", there.join(", "));
            return Err(Error::DeviceUnavailable { device: device.to_string(), message });
        }
    }
    let unusable = found.into_iter().filter(|f| named.contains(&f.device)).find_map(|f| f.unusable);
    unusable.map_or(Ok(()), Err)
}

/// Opens the first device, then the others at the same time and in the precision that the first one chose.
fn open_each(
    devices: &[Device],
    options: &BackendOptions,
    open: impl Fn(Device, &BackendOptions) -> Result<Box<dyn Backend>> + Sync,
) -> Vec<(Device, Result<Box<dyn Backend>>)> {
    let mut options = options.clone();
    let mut opened = Vec::new();
    let mut rest = devices;
    // where one fails, the next is the first
    while let [first, others @ ..] = rest {
        let result = open(*first, &options);
        let precision = result.as_ref().ok().map(|backend| backend.precision());
        opened.push((*first, result));
        rest = others;
        if let Some(precision) = precision {
            options.precision = precision;
            break;
        }
    }
    std::thread::scope(|scope| {
        let (open, options) = (&open, &options);
        let threads: Vec<_> = rest.iter().map(|&d| (d, scope.spawn(move || open(d, options)))).collect();
        for (device, thread) in threads {
            opened.push((device, thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))));
        }
    });
    opened
}

/// All of them, or the first failure.
fn all(opened: Vec<(Device, Result<Box<dyn Backend>>)>, warnings: Vec<String>) -> Result<Opened> {
    let opened: Result<Vec<_>> = opened.into_iter().map(|(device, result)| Ok((device, result?))).collect();
    Ok(Opened::new(opened?, warnings))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::PackedBatch;
    use crate::threads::Threads;
    use std::num::NonZeroUsize;
    use std::sync::Mutex;

    /// A device that was opened, and computes nothing.
    struct Stub(Device, &'static str, Precision);

    impl Backend for Stub {
        fn name(&self) -> String {
            format!("{} {}", self.0, self.1)
        }
        fn kind(&self) -> String {
            self.1.into()
        }
        fn precision(&self) -> Precision {
            self.2
        }
        fn capacity(&self) -> Capacity {
            let n = if let Device::Cuda(n) = self.0 { n } else { 0 };
            Capacity { max_tokens: 1000 - n, in_flight: 2, weight_bytes: 3, workspace_bytes: 4 }
        }
        fn submit(&mut self, _: PackedBatch) -> Result<()> {
            unreachable!("it only opens")
        }
        fn collect(&mut self, _: &mut [f32]) -> Result<PackedBatch> {
            unreachable!("it only opens")
        }
    }

    /// A machine's GPUs: name, and why it cannot be used or opened.
    #[derive(Clone, Copy)]
    enum Gpu {
        Good(&'static str),
        Unusable(&'static str),
        Full(&'static str),
    }
    use Gpu::{Full, Good, Unusable};

    fn old(device: &str) -> Error {
        let (found, needed) = ("7.5".into(), "8.0".into());
        Error::ComputeCapability { device: device.into(), found, needed }
    }

    fn options() -> BackendOptions {
        BackendOptions::new(Threads::new(NonZeroUsize::new(1)).unwrap())
    }

    fn opened(choice: &str, gpus: &[Gpu], options: &BackendOptions) -> Result<Opened> {
        let found = || {
            let each = gpus.iter().enumerate().map(|(i, gpu)| {
                let (name, unusable) = match gpu {
                    Good(name) | Full(name) => (name, None),
                    Unusable(name) => (name, Some(old(name))),
                };
                FoundDevice { device: Device::Cuda(i), name: (*name).into(), unusable }
            });
            let found: Vec<_> = each.collect();
            if found.is_empty() {
                Err(Error::NoDriver { message: "none".into(), needed: "580".into() })
            } else {
                Ok(found)
            }
        };
        super::open(&choice.parse()?, options, found, |device, options| {
            let precision =
                options.precision.choose("stub", &[Precision::Bf16, Precision::Fp16, Precision::Fp32])?;
            let name = match device {
                Device::Cpu => "cpu",
                Device::Reference => "reference",
                Device::Cuda(i) => match gpus[i] {
                    Good(name) => name,
                    Full(name) => {
                        return Err(Error::DeviceMemory {
                            device: name.into(),
                            needed_bytes: 9,
                            free_bytes: 1,
                        });
                    }
                    Unusable(name) => panic!("{name} is opened"),
                },
            };
            Ok(Box::new(Stub(device, name, precision)))
        })
    }

    fn names(opened: &Opened) -> Vec<&str> {
        opened.devices.iter().map(|d| d.name.as_str()).collect()
    }

    #[test]
    fn auto_takes_gpus_like_the_first_else_the_cpu() {
        let cases: &[(&[Gpu], &[&str], &[&str])] = &[
            (&[], &["cpu cpu"], &[]),
            (&[Good("H100"), Good("H100")], &["cuda:0 H100", "cuda:1 H100"], &[]),
            (
                &[Good("H100"), Good("L4"), Good("H100")],
                &["cuda:0 H100", "cuda:2 H100"],
                &["cuda:1 L4 is not used: it is"],
            ),
            (
                &[Unusable("T4"), Good("L4")],
                &["cuda:1 L4"],
                &["cuda:0 T4 is not used: T4: compute capability 7.5, 8.0"],
            ),
            (
                &[Full("L4"), Good("L4")],
                &["cuda:1 L4"],
                &["cuda:0 is not used: L4: out of memory: 9 bytes needed, 1 free"],
            ),
            (
                &[Unusable("T4"), Unusable("V100")],
                &["cpu cpu"],
                &["the CPU computes, and not the GPU: T4: compute"],
            ),
            (
                &[Full("L4"), Full("L4")],
                &["cpu cpu"],
                &["the CPU computes, and not the GPU: L4: out of memory"],
            ),
        ];
        for (gpus, want, warnings) in cases {
            let opened = opened("auto", gpus, &options()).unwrap();
            assert_eq!(&names(&opened), want);
            assert_eq!(opened.warnings.len(), warnings.len(), "{:?}", opened.warnings);
            for (found, want) in opened.warnings.iter().zip(*warnings) {
                assert!(found.starts_with(want), "{found}: {want}");
            }
        }
    }

    #[test]
    fn auto_says_why_a_driver_is_no_use_and_is_silent_without_one() {
        let cpu = |_: Device, _: &BackendOptions| -> Result<Box<dyn Backend>> {
            Ok(Box::new(Stub(Device::Cpu, "cpu", Precision::Fp32)))
        };
        let old = || Err(Error::DriverTooOld { found: "CUDA 12.4".into(), needed: "CUDA 13.0".into() });
        let opened = super::open(&DeviceChoice::Auto, &options(), old, cpu).unwrap();
        assert_eq!(opened.warnings.len(), 1);
        assert!(opened.warnings[0].contains("CUDA 12.4, CUDA 13.0 or newer"), "{:?}", opened.warnings);
        let none = || Err(Error::NoDevice { message: "none".into() });
        assert_eq!(super::open(&DeviceChoice::Auto, &options(), none, cpu).unwrap().warnings.len(), 0);
        // an instruction set asks for the CPU: nobody looks for GPUs
        let options = BackendOptions { isa: Some(crate::backend::cpu::Isa::Portable), ..options() };
        let looked = || panic!("looked for GPUs");
        assert_eq!(
            super::open(&DeviceChoice::Auto, &options, looked, cpu).unwrap().devices[0].device,
            Device::Cpu
        );
    }

    #[test]
    fn named_device_that_is_absent_is_an_error() {
        let refused = |choice: &str, gpus: &[Gpu]| match opened(choice, gpus, &options()) {
            Ok(opened) => panic!("{choice}: {:?}", names(&opened)),
            Err(error) => error.to_string(),
        };
        let error = refused("cuda:0,3", &[Good("H100"), Good("H100")]);
        assert!(error.contains("cuda:3 is not available: there is cuda:0 H100, cuda:1 H100"), "{error}");
        assert!(refused("cuda:1", &[Good("H100"), Unusable("T4")]).contains("T4: compute capability 7.5"));
        assert!(refused("cuda:1", &[Good("H100"), Full("H100")]).contains("out of memory"));
        assert!(refused("cuda", &[Good("H100"), Full("H100")]).contains("out of memory"));
        assert!(refused("cuda", &[Unusable("T4")]).contains("T4: compute capability 7.5"));
        for choice in ["cuda", "cuda:0"] {
            assert!(refused(choice, &[]).starts_with("no CUDA driver"));
        }
        let none = super::open(
            &DeviceChoice::These(Vec::new()),
            &options(),
            || unreachable!(),
            |_, _| unreachable!(),
        );
        assert!(none.is_err_and(|e| e.to_string().contains("none is named")));
    }

    #[test]
    fn cuda_takes_all_that_can_compute_and_names_the_others() {
        let all = opened("cuda", &[Good("H100"), Unusable("T4"), Good("H100")], &options()).unwrap();
        assert_eq!(names(&all), ["cuda:0 H100", "cuda:2 H100"]);
        assert!(
            all.warnings.len() == 1 && all.warnings[0].starts_with("cuda:1 T4 is not used"),
            "{:?}",
            all.warnings
        );
        assert_eq!(
            all.capacity(),
            Capacity { max_tokens: 998, in_flight: 4, weight_bytes: 6, workspace_bytes: 8 }
        );
        let named = opened("cuda:2,0", &[Good("H100"), Unusable("T4"), Good("H100")], &options()).unwrap();
        assert_eq!(names(&named), ["cuda:2 H100", "cuda:0 H100"]);
        assert!(named.warnings.is_empty());
    }

    #[test]
    fn devices_of_several_kinds_are_said_or_refused() {
        let gpus = [Good("H100"), Good("L4")];
        let warnings = opened("cuda", &gpus, &options()).unwrap().warnings;
        assert!(
            warnings.len() == 1 && warnings[0].contains("cuda:0 H100 and cuda:1 L4 are of different kinds")
        );
        let options = BackendOptions { batch_invariant: true, ..options() };
        assert!(matches!(
            opened("cuda", &gpus, &options),
            Err(Error::InvalidOption { name: "batch_invariant", .. })
        ));
        assert_eq!(opened("auto", &gpus, &options).unwrap().devices.len(), 1);
    }

    #[test]
    fn all_devices_compute_in_the_precision_that_the_first_one_chose() {
        let asked = Mutex::new(Vec::new());
        let found = || {
            let gpu = |i| FoundDevice { device: Device::Cuda(i), name: "L4".into(), unusable: None };
            Ok((0..3).map(gpu).collect())
        };
        let opened = super::open(&DeviceChoice::Cuda, &options(), found, |device, options| {
            asked.lock().unwrap().push((device, options.precision));
            let chosen = options.precision.choose("stub", &[Precision::Bf16, Precision::Fp16])?;
            Ok(Box::new(Stub(device, "L4", chosen)))
        });
        assert!(opened.unwrap().devices.iter().all(|d| d.precision == Precision::Bf16));
        let mut asked = asked.into_inner().unwrap();
        asked.sort();
        let want = [(0, Precision::Auto), (1, Precision::Bf16), (2, Precision::Bf16)];
        assert_eq!(asked, want.map(|(i, precision)| (Device::Cuda(i), precision)));
    }
}
