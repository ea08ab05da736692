//! From text, through the engine: several GPUs, one that is lost on the way, and what `auto` takes.

use crate::golden::fixtures;
use crate::stand_in::on_stand_in;
use berthier::backend::{Device, DeviceChoice, Precision};
use berthier::{Embedder, Embeddings, Options};
use std::num::NonZeroUsize;
use std::time::Duration;

/// A model of the fixtures with a head of 32, one or two sentences a batch.
fn load(device: impl Into<DeviceChoice>) -> Embedder {
    let dir = fixtures().join("tiny/no-modules/model");
    let options = Options::new(dir.to_str().expect("a UTF-8 path"));
    let options = options.device(device).batch_invariant(true).batch_tokens(NonZeroUsize::MIN);
    let options = options.device_patience(Duration::from_secs(1));
    Embedder::load(options).unwrap_or_else(|e| panic!("{e}"))
}

fn texts() -> Vec<String> {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/sentences.txt");
    std::fs::read_to_string(examples).unwrap().lines().map(str::to_owned).collect()
}

fn assert_near(got: &Embeddings, want: &Embeddings) {
    let largest = want.as_slice().iter().fold(0f32, |a, v| a.max(v.abs()));
    for (row, (got, want)) in got.rows().zip(want.rows()).enumerate() {
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() <= 4e-3 * largest, "row {row}: {g}, {w} on the CPU");
        }
    }
}

#[test]
fn two_devices_give_the_bits_of_one() {
    let switches = [("BERTHIER_EMU_DEVICES", "2")];
    on_stand_in("embedder::two_devices_give_the_bits_of_one", &switches, || {
        let (one, two) = (load(Device::Cuda(0)), load(DeviceChoice::Cuda));
        assert_eq!((one.devices().len(), two.devices().len()), (1, 2));
        assert_eq!(one.warnings(), two.warnings(), "devices of one kind are nothing to warn of");
        let (a, b) = (one.embed(&texts()).unwrap(), two.embed(&texts()).unwrap());
        let bits = |e: &Embeddings| e.as_slice().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&a), bits(&b));
        assert_near(&a, &load(Device::Cpu).embed(&texts()).unwrap());
    });
}

#[test]
fn a_device_lost_on_the_way_leaves_its_batches_to_the_other() {
    let name = "embedder::a_device_lost_on_the_way_leaves_its_batches_to_the_other";
    let switches = [("BERTHIER_EMU_DEVICES", "2"), ("BERTHIER_EMU_LOSE_DEVICE", "100")];
    on_stand_in(name, &switches, || {
        let cuda = load(DeviceChoice::Cuda);
        let got = cuda.embed(&texts()).unwrap();
        let failures = cuda.device_failures();
        assert!(failures.len() == 1 && failures[0].contains("CUDA_ERROR_UNKNOWN"), "{failures:?}");
        assert_near(&got, &load(Device::Cpu).embed(&texts()).unwrap());
        // and goes on without it
        assert_near(&cuda.embed(&texts()).unwrap(), &got);
    });
}

#[test]
fn a_device_that_hangs_leaves_its_batches_to_the_other() {
    let name = "embedder::a_device_that_hangs_leaves_its_batches_to_the_other";
    let switches = [("BERTHIER_EMU_DEVICES", "2"), ("BERTHIER_EMU_HANG_DEVICE", "100")];
    on_stand_in(name, &switches, || {
        let cuda = load(DeviceChoice::Cuda);
        let got = cuda.embed(&texts()).unwrap();
        let failures = cuda.device_failures();
        assert!(failures.len() == 1 && failures[0].contains("it hangs"), "{failures:?}");
        assert_near(&got, &load(Device::Cpu).embed(&texts()).unwrap());
        assert_near(&cuda.embed(&texts()).unwrap(), &got);
    });
}

#[test]
fn auto_takes_gpus_that_can_be_used() {
    let switches = [("BERTHIER_EMU_DEVICES", "2"), ("BERTHIER_EMU_ARCH", "75,90")];
    on_stand_in("embedder::auto_takes_gpus_that_can_be_used", &switches, || {
        let auto = load(DeviceChoice::Auto);
        let devices: Vec<_> = auto.devices().iter().map(|d| (d.device, d.precision)).collect();
        assert_eq!(devices, [(Device::Cuda(1), Precision::Fp16)]);
        assert!(
            auto.warnings().iter().any(|w| w.contains("compute capability 7.5")),
            "{:?}",
            auto.warnings()
        );
    });
}

#[test]
fn auto_takes_the_cpu_where_the_driver_is_old_and_says_so() {
    let switches = [("BERTHIER_EMU_DRIVER_VERSION", "12080")];
    on_stand_in("embedder::auto_takes_the_cpu_where_the_driver_is_old_and_says_so", &switches, || {
        let auto = load(DeviceChoice::Auto);
        assert_eq!(auto.devices().iter().map(|d| d.device).collect::<Vec<_>>(), [Device::Cpu]);
        assert!(auto.warnings().iter().any(|w| w.contains("CUDA 12.8")), "{:?}", auto.warnings());
    });
}
