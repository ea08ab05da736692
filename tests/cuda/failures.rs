//! Everything that can go wrong with a driver and a GPU, injected through the stand-in: an error that says what, no panic.

use crate::models::{self, desc};
use crate::stand_in::{on_stand_in, without_driver};
use berthier::backend::{Backend, BackendOptions, Device, Precision, cuda_devices, open};
use berthier::model::{Activation, ModelDesc, Norms, Tensor, Weights};
use berthier::{Error, Threads};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

fn options() -> BackendOptions {
    BackendOptions::new(Threads::new(NonZeroUsize::new(1)).unwrap())
}

fn open_small(options: &BackendOptions) -> Result<Box<dyn Backend>, Error> {
    let desc = desc();
    open(Device::Cuda(0), &desc, &Weights::random(&desc, 7), options)
}

/// The error of looking for devices, and that opening one anyway says the same.
fn probe_error() -> Error {
    let found = cuda_devices().expect_err("no device can be found");
    let opened = open_small(&options()).err().expect("no device can be opened");
    assert_eq!(found.to_string(), opened.to_string());
    found
}

#[test]
fn no_driver_is_an_error() {
    if std::env::var_os("CUDA_PATH").is_some() || std::path::Path::new("/proc/driver/nvidia/version").exists()
    {
        println!("SKIP: this machine has a driver");
        return;
    }
    without_driver("failures::no_driver_is_an_error", || {
        let error = probe_error();
        assert!(matches!(error, Error::NoDriver { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("libcuda.so.1") && text.contains("580"), "{text}");
    });
}

#[test]
fn an_old_driver_is_an_error_with_both_versions() {
    let switches = [("BERTHIER_EMU_DRIVER_VERSION", "12040")];
    on_stand_in("failures::an_old_driver_is_an_error_with_both_versions", &switches, || {
        let error = probe_error();
        assert!(matches!(error, Error::DriverTooOld { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("CUDA 12.4") && text.contains("CUDA 13.0 (driver 580)"), "{text}");
    });
}

#[test]
fn no_device_is_an_error() {
    let switches = [("BERTHIER_EMU_DEVICES", "0"), ("CUDA_VISIBLE_DEVICES", "")];
    on_stand_in("failures::no_device_is_an_error", &switches, || {
        let error = probe_error();
        assert!(matches!(error, Error::NoDevice { .. }), "{error}");
        assert!(error.to_string().contains("CUDA_VISIBLE_DEVICES is ''"), "{error}");
    });
}

#[test]
fn an_old_gpu_is_named_and_the_others_are_used() {
    let switches = [("BERTHIER_EMU_DEVICES", "3"), ("BERTHIER_EMU_ARCH", "75,80,90")];
    on_stand_in("failures::an_old_gpu_is_named_and_the_others_are_used", &switches, || {
        let found = cuda_devices().unwrap();
        assert_eq!(found.iter().map(|f| f.device).collect::<Vec<_>>(), [0, 1, 2].map(Device::Cuda));
        assert!(found[1].unusable.is_none() && found[2].unusable.is_none());
        let error = open_small(&options()).err().expect("sm_75 has no kernels");
        assert!(matches!(error, Error::ComputeCapability { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("cuda:0") && text.contains("7.5") && text.contains("8.0"), "{text}");
        assert_eq!(found[0].unusable.as_ref().map(Error::to_string), Some(text));
        let desc = desc();
        let absent = open(Device::Cuda(3), &desc, &Weights::random(&desc, 7), &options()).err().unwrap();
        assert!(matches!(absent, Error::DeviceUnavailable { .. }), "{absent}");
    });
}

#[test]
fn a_precision_without_kernels_is_refused() {
    on_stand_in("failures::a_precision_without_kernels_is_refused", &[], || {
        let error = open_small(&BackendOptions { precision: Precision::Fp32, ..options() }).err().unwrap();
        assert!(matches!(error, Error::InvalidOption { name: "precision", .. }), "{error}");
        let desc = ModelDesc { hidden_act: Activation::Sigmoid, ..desc() };
        let error = open(Device::Cuda(0), &desc, &Weights::random(&desc, 7), &options()).err().unwrap();
        assert!(
            matches!(error, Error::Unsupported { .. }) && error.to_string().contains("Sigmoid"),
            "{error}"
        );
    });
}

/// A kernel that does not end: an error when the time is over, not before, and nothing that waits for the device is called
/// afterwards, where the stand-in would end this process.
#[test]
fn a_device_that_hangs_is_an_error() {
    let launches = (models::LAUNCHES + models::LAUNCHES / 2).to_string();
    let switches = [("BERTHIER_EMU_HANG_DEVICE", &launches[..])];
    on_stand_in("failures::a_device_that_hangs_is_an_error", &switches, || {
        let desc = desc();
        let patience = Duration::from_millis(700);
        let options =
            BackendOptions { batch_invariant: true, precision: Precision::Fp16, patience, ..options() };
        let mut backend = open_small(&options).unwrap();
        let batch = || models::batch(&[0, 1], &models::sequences(&[5, 2], &desc));
        let good = models::run(&mut *backend, batch(), desc.dim());
        assert!(good.iter().all(|v| v.is_finite()));
        let mut out = vec![0.0; good.len()];
        let start = Instant::now();
        backend.submit(batch()).unwrap();
        let error = backend.collect(&mut out).expect_err("it never ends");
        assert!(start.elapsed() >= patience, "{:?}", start.elapsed());
        let Error::DeviceLost { device, message } = &error else { panic!("{error}") };
        assert!(device.starts_with("cuda:0") && message.contains("it hangs"), "{error}");
    });
}

/// 24 MB hold this model and some hundred tokens, but not the sixteen thousand that would fill the GPU.
#[test]
fn little_memory_makes_batches_smaller() {
    let switches = [("BERTHIER_EMU_MEMORY_BYTES", "24000000")];
    on_stand_in("failures::little_memory_makes_batches_smaller", &switches, || {
        let wanted = BackendOptions { max_tokens: Some(usize::MAX), ..options() };
        let mut small = open_small(&wanted).unwrap();
        let max_tokens = small.capacity().max_tokens;
        assert!((desc().longest_sequence()..1 << 15).contains(&max_tokens), "{max_tokens} tokens");
        models::matches_reference(&desc(), &mut *small, &[3, 128, 7], 2e-3);
    });
}

#[test]
fn too_little_memory_says_how_much_is_needed() {
    let switches = [("BERTHIER_EMU_MEMORY_BYTES", "8000000")];
    on_stand_in("failures::too_little_memory_says_how_much_is_needed", &switches, || {
        let error = open_small(&options()).err().expect("8 MB do not hold the partial sums");
        let Error::DeviceMemory { device, needed_bytes, free_bytes } = &error else { panic!("{error}") };
        assert!(device.starts_with("cuda:0"), "{device}");
        assert!(*needed_bytes > 8_000_000 && *free_bytes <= 8_000_000, "{error}");
    });
}

/// Whichever allocation of all is the one that fails: an error or a smaller budget, never a panic.
#[test]
fn any_allocation_may_fail() {
    for n in 1..=20 {
        let n = n.to_string();
        on_stand_in("failures::any_allocation_may_fail", &[("BERTHIER_EMU_FAIL_ALLOCATION", &n)], || {
            match open_small(&options()) {
                Ok(mut backend) => {
                    models::matches_reference(&desc(), &mut *backend, &[5, 2], 2e-3);
                }
                Err(error) => assert!(matches!(error, Error::DeviceMemory { .. }), "{error}"),
            }
        });
    }
}

/// A kernel of the third batch fails, or the device is gone: the vectors before are right, then there are errors.
fn fails_at_the_third_batch(name: &str, switch: &str, text: &str) {
    // the probe, two batches, and half of the third: as many launches each where no product is split
    let launches = (3 * models::LAUNCHES + models::LAUNCHES / 2).to_string();
    on_stand_in(name, &[(switch, &launches)], || {
        let desc = desc();
        let mut backend = open_small(&BackendOptions { batch_invariant: true, ..options() }).unwrap();
        models::matches_reference(&desc, &mut *backend, &[5, 2], 2e-3);
        let mut out = vec![f32::NAN; 2 * desc.dim()];
        let batch = || models::batch(&[0, 1], &models::sequences(&[5, 2], &desc));
        let error = backend.submit(batch()).and_then(|()| backend.collect(&mut out)).expect_err("it fails");
        let Error::DeviceLost { device, message } = &error else { panic!("{error}") };
        assert!(device.starts_with("cuda:0") && message.contains(text), "{error}");
        let again = backend.submit(batch()).and_then(|()| backend.collect(&mut out));
        assert!(matches!(again, Err(Error::DeviceLost { .. })), "it stays failed");
    });
}

#[test]
fn a_failed_kernel_is_an_error() {
    let name = "failures::a_failed_kernel_is_an_error";
    fails_at_the_third_batch(name, "BERTHIER_EMU_FAIL_LAUNCH", "CUDA_ERROR_LAUNCH_FAILED");
}

#[test]
fn a_lost_device_is_an_error() {
    let name = "failures::a_lost_device_is_an_error";
    fails_at_the_third_batch(name, "BERTHIER_EMU_LOSE_DEVICE", "CUDA_ERROR_UNKNOWN");
}

/// A weight beyond 65504: bf16 by itself, said; fp16 if asked for is refused.
#[test]
fn weights_beyond_fp16_lead_to_bf16() {
    on_stand_in("failures::weights_beyond_fp16_lead_to_bf16", &[], || {
        let desc = desc();
        let mut weights = Weights::random(&desc, 7);
        let mut values = weights.layers[1].output.weight.to_f32();
        values[3] = 1e5;
        let shape = weights.layers[1].output.weight.shape().to_vec();
        weights.layers[1].output.weight = Tensor::from_f32("output", &shape, &values);
        let backend = open(Device::Cuda(0), &desc, &weights, &options()).unwrap();
        assert_eq!(backend.precision(), Precision::Bf16);
        assert!(backend.name().ends_with("bf16 (fp16 would overflow)"), "{}", backend.name());
        let forced = BackendOptions { precision: Precision::Fp16, ..options() };
        let error = open(Device::Cuda(0), &desc, &weights, &forced).err().expect("it is refused");
        assert!(matches!(error, Error::InvalidOption { name: "precision", .. }), "{error}");
    });
}

/// Activations beyond 65504, of weights that fit: found by the probe. With fp16 forced, the rows are not finite. Inside a
/// feed-forward, and in the residual stream that norms in front leave as it grows.
#[test]
fn activations_beyond_fp16_lead_to_bf16() {
    on_stand_in("failures::activations_beyond_fp16_lead_to_bf16", &[], || {
        for (norms, inner, outer) in [(Norms::Post, 3e5, 1.0), (Norms::Pre, 300.0, 3e3)] {
            let desc = ModelDesc { norms, ..desc() };
            let mut weights = Weights::random(&desc, 7);
            let layer = &mut weights.layers[0];
            for (linear, factor) in [(&mut layer.intermediate, inner), (&mut layer.output, outer)] {
                let shape = linear.weight.shape().to_vec();
                let values: Vec<f32> = linear.weight.to_f32().iter().map(|v| v * factor).collect();
                linear.weight = Tensor::from_f32("a weight", &shape, &values);
            }
            let batch = || models::batch(&[0], &models::sequences(&[9], &desc));
            let mut backend = open(Device::Cuda(0), &desc, &weights, &options()).unwrap();
            assert_eq!(backend.precision(), Precision::Bf16);
            let out = models::run(&mut *backend, batch(), desc.dim());
            assert!(out.iter().all(|v| v.is_finite()), "{out:?}");
            let forced = BackendOptions { precision: Precision::Fp16, ..options() };
            let mut forced = open(Device::Cuda(0), &desc, &weights, &forced).unwrap();
            assert_eq!(forced.precision(), Precision::Fp16);
            let out = models::run(&mut *forced, batch(), desc.dim());
            assert!(out.iter().all(|v| !v.is_finite()), "{norms:?}: {out:?}");
        }
    });
}

/// A NaN in the weights comes out as rows that are not finite: the embedder names them.
#[test]
fn nan_in_the_weights_comes_out() {
    on_stand_in("failures::nan_in_the_weights_comes_out", &[], || {
        let desc = desc();
        let mut weights = Weights::random(&desc, 7);
        let mut values = weights.word_embeddings.to_f32();
        values[5 * desc.hidden_size] = f32::NAN; // of id 5
        let shape = weights.word_embeddings.shape().to_vec();
        weights.word_embeddings = Tensor::from_f32("word", &shape, &values);
        let forced = BackendOptions { precision: Precision::Fp16, ..options() };
        let mut backend = open(Device::Cuda(0), &desc, &weights, &forced).unwrap();
        let seqs = [(vec![1, 5, 2], vec![0; 3]), (vec![1, 6, 2], vec![0; 3])];
        let out = models::run(&mut *backend, models::batch(&[0, 1], &seqs), desc.dim());
        let (bad, good) = out.split_at(desc.dim());
        assert!(bad.iter().all(|v| v.is_nan()) && good.iter().all(|v| v.is_finite()));
    });
}
