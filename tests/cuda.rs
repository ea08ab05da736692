//! The CUDA backend where there is no GPU: through cudarc, on the stand-in driver of `tests/emulator/`, which runs the kernels.
//!
//! A driver is chosen when a process starts, so each test runs itself again as a child with the stand-in in front of its
//! library path, and with the switches that make this driver fail (`tests/emulator/README.md`). Without a C++ compiler the
//! tests say so and skip, or fail if `BERTHIER_REQUIRE_KERNEL_TESTS=1`. `BERTHIER_CUDA_TEXTS=all` takes 200 texts through
//! all-MiniLM-L6-v2 instead of a few.

#![cfg(all(target_os = "linux", feature = "cuda"))]
#![allow(clippy::print_stdout, reason = "what skips and what was found is what one wants to read")]

#[path = "common/counting.rs"]
mod counting;
#[path = "cuda/embedder.rs"]
mod embedder;
#[path = "cuda/failures.rs"]
mod failures;
#[path = "cuda/families.rs"]
mod families;
#[path = "common/golden.rs"]
mod golden;
#[path = "cuda/latency.rs"]
mod latency;
#[path = "common/minilm.rs"]
mod minilm;
#[path = "cuda/models.rs"]
mod models;
#[path = "cuda/persistent.rs"]
mod persistent;
#[path = "cuda/recorded.rs"]
mod recorded;
#[path = "cuda/stand_in.rs"]
mod stand_in;

use berthier::backend::{Device, PersistentKernel, Precision};
use berthier::{Embedder, Options};
use golden::Golden;
use stand_in::on_stand_in;

fn load(device: Device, precision: Precision, kernel: PersistentKernel) -> Option<Embedder> {
    let dir = minilm::dir()?.to_str().expect("a UTF-8 path");
    let options = Options::new(dir).device(device).precision(precision).persistent_kernel(kernel);
    Some(Embedder::load(options).unwrap_or_else(|e| panic!("{e}")))
}

/// A few rows of the fixture, on both sides of each border of the attention kernels, or all with the examples' sentences.
fn texts() -> Vec<String> {
    let golden = Golden::read(&golden::fixtures().join("minilm"));
    let all = std::env::var("BERTHIER_CUDA_TEXTS").is_ok_and(|v| v == "all");
    if !all {
        let names =
            ["sentence 2", "empty", "code", "chinese", "superscripts", "10,000 letters", "100-letter word"];
        let row = |name: &str| golden.rows.iter().find(|row| row.name == name).expect("a row of the fixture");
        return names.iter().map(|name| row(name).text.clone()).collect();
    }
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/sentences.txt");
    let examples = std::fs::read_to_string(examples).unwrap();
    let rows = golden.rows.iter().map(|row| row.text.clone());
    rows.chain(examples.lines().map(str::to_owned)).take(200).collect()
}

/// 1 − cosine, without cancellation.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let squares = |x: &[f32]| x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
    let (na, nb) = (squares(a).sqrt(), squares(b).sqrt());
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) / na - f64::from(b) / nb).powi(2)).sum::<f64>() / 2.0
}

fn minilm_is_near_fp32(precision: Precision, kernel: PersistentKernel, most: f64) {
    let Some(cuda) = load(Device::Cuda(0), precision, kernel) else { return };
    let Some(cpu) = load(Device::Cpu, Precision::Auto, PersistentKernel::Auto) else { return };
    let texts = texts();
    let (got, want) = (cuda.embed(&texts).unwrap(), cpu.embed(&texts).unwrap());
    let distances: Vec<f64> = got.rows().zip(want.rows()).map(|(a, b)| distance(a, b)).collect();
    let worst = distances.iter().copied().fold(0.0, f64::max);
    assert!(got.as_slice().iter().all(|v| v.is_finite()));
    let mean = distances.iter().sum::<f64>() / texts.len() as f64;
    println!(
        "{}: {} texts, {} beyond {most:e}, {} tokens: 1 - cosine to fp32 {worst:.1e} at most, {mean:.1e} on average",
        cuda.device_name(),
        texts.len(),
        distances.iter().filter(|&&d| d > most).count(),
        got.tokens().iter().map(|t| t.used).sum::<usize>()
    );
    assert!(worst <= most, "{precision}: {worst:e}");
}

const NEVER: PersistentKernel = PersistentKernel::Never;
const ALWAYS: PersistentKernel = PersistentKernel::Always;

#[test]
fn minilm_in_fp16_is_near_fp32() {
    on_stand_in("minilm_in_fp16_is_near_fp32", &[], || minilm_is_near_fp32(Precision::Auto, NEVER, 1e-5));
}

#[test]
fn minilm_in_bf16_is_near_fp32() {
    on_stand_in("minilm_in_bf16_is_near_fp32", &[], || minilm_is_near_fp32(Precision::Bf16, NEVER, 1e-4));
}

/// The seven texts are one batch of fewer than 256 tokens.
#[test]
fn minilm_in_one_launch_is_near_fp32() {
    let trace = concat!(env!("CARGO_TARGET_TMPDIR"), "/minilm-one-launch.txt");
    on_stand_in("minilm_in_one_launch_is_near_fp32", &[("BERTHIER_EMU_TRACE", trace)], || {
        let _ = std::fs::remove_file(trace);
        minilm_is_near_fp32(Precision::Fp16, ALWAYS, 1e-5);
        minilm_is_near_fp32(Precision::Bf16, ALWAYS, 1e-4);
        let ran = std::fs::read_to_string(trace).unwrap_or_default();
        let all = std::env::var("BERTHIER_CUDA_TEXTS").is_ok_and(|v| v == "all");
        let only = !ran.is_empty() && ran.lines().all(|line| line.starts_with("persistent_encoder"));
        assert!(all || only || minilm::dir().is_none(), "{ran}");
    });
}
