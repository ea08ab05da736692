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
