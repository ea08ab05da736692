//! Vectors are those of sentence-transformers in float32, on every backend and instruction set.

#![allow(clippy::print_stdout, reason = "tests show the difference they found")]

#[path = "common/golden.rs"]
mod golden;
#[path = "common/minilm.rs"]
mod minilm;

use berthier::backend::cpu::Isa;
use berthier::backend::{Device, Precision};
use berthier::{Embedder, Error, Options};
use golden::Golden;
use std::path::Path;

/// The largest difference of a component that is allowed. The reference differs from itself by up to 2e-6,
/// alone and in a batch.
const TOLERANCE: f32 = 1e-5;

/// The same for the families' fixtures, whose vectors are not of unit length: components are up to 19.
const FAMILIES_TOLERANCE: f32 = 2e-5;

/// The reference backend sums one product at a time: of the real model it gets the short rows.
const REFERENCE_TOKENS: usize = 24;

fn load(dir: &Path, device: Device, isa: Option<Isa>) -> Embedder {
    let options = Options::new(dir.to_str().expect("a UTF-8 path")).device(device);
    let options = match isa {
        Some(isa) => options.isa(isa),
        None => options,
    };
    Embedder::load(options).unwrap_or_else(|e| panic!("{e}"))
}

/// Embeds the rows in one call and one by one; compares with the goldens and with each other.
fn assert_rows(what: &Path, embedder: &Embedder, golden: &Golden, rows: &[usize], tolerance: f32) {
    let vectors = golden.vectors();
    let texts: Vec<&str> = rows.iter().map(|&i| golden.rows[i].text.as_str()).collect();
    assert_eq!(Some(embedder.dim()), golden.dim, "{}", what.display());
    assert_eq!(embedder.max_seq_length(), golden.max_seq_length, "{}", what.display());
    assert_eq!(embedder.prompt(), golden.prompt, "{}", what.display());
    let all = embedder.embed(&texts).unwrap();
    let mut worst = 0.0_f32;
    for (at, &i) in rows.iter().enumerate() {
        let row = &golden.rows[i];
        let place = format!("{}: {}: {}", what.display(), embedder.device_name(), row.name);
        assert_eq!(all.tokens()[at].used, row.ids.len(), "{place}");
        assert_eq!(all.tokens()[at].total, row.total_tokens, "{place}");
        let difference = all.row(at).iter().zip(&vectors[i]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // before the difference: its maximum passes over NaN
        assert!(all.row(at).iter().all(|v| v.is_finite()), "{place}");
        assert!(difference <= tolerance, "{place}: a component differs by {difference:e}");
        worst = worst.max(difference);

        let alone = embedder.embed(&texts[at..=at]).unwrap();
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(alone.row(0)), bits(all.row(at)), "{place}: alone and in a batch");
    }
    let name = what.file_name().unwrap_or_default().to_string_lossy();
    println!("{name}: {}: {} rows within {worst:.1e}", embedder.device_name(), rows.len());
}

fn small(models: &str, tolerance: f32, device: Device, isa: Option<Isa>) {
    for folder in golden::folders(models) {
        let golden = Golden::read(&folder);
        let embedder = load(&folder.join("model"), device, isa);
        let rows: Vec<usize> = (0..golden.rows.len()).collect();
        assert_rows(&folder, &embedder, &golden, &rows, tolerance);
    }
}

#[test]
fn tiny_models_match_reference_on_reference() {
    small("tiny", TOLERANCE, Device::Reference, None);
}

#[test]
fn families_match_reference_on_reference() {
    small("families", FAMILIES_TOLERANCE, Device::Reference, None);
}

#[test]
fn tiny_models_match_reference_on_cpu() {
    for isa in Isa::available() {
        small("tiny", TOLERANCE, Device::Cpu, Some(isa));
    }
}

#[test]
fn families_match_reference_on_cpu() {
    for isa in Isa::available() {
        small("families", FAMILIES_TOLERANCE, Device::Cpu, Some(isa));
    }
}

#[test]
fn minilm_matches_reference_on_reference() {
    let Some(dir) = minilm::dir() else { return };
    let folder = golden::fixtures().join("minilm");
    let golden = Golden::read(&folder);
    let rows: Vec<usize> =
        (0..golden.rows.len()).filter(|&i| golden.rows[i].ids.len() <= REFERENCE_TOKENS).step_by(3).collect();
    assert_rows(&folder, &load(dir, Device::Reference, None), &golden, &rows, TOLERANCE);
}

#[test]
fn minilm_matches_reference_on_cpu() {
    let Some(dir) = minilm::dir() else { return };
    let folder = golden::fixtures().join("minilm");
    let golden = Golden::read(&folder);
    let rows: Vec<usize> = (0..golden.rows.len()).collect();
    for isa in Isa::available() {
        assert_rows(&folder, &load(dir, Device::Cpu, Some(isa)), &golden, &rows, TOLERANCE);
    }
}

fn has_avx_vnni() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avxvnni");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// int8 changes the vectors, within bounds on their cosine to the reference's: least over all rows, and mean.
#[test]
#[allow(clippy::print_stderr, reason = "a test that skips says so")]
fn minilm_in_int8_is_near_the_reference() {
    let Some(dir) = minilm::dir() else { return };
    let golden = Golden::read(&golden::fixtures().join("minilm"));
    let texts: Vec<&str> = golden.rows.iter().map(|row| row.text.as_str()).collect();
    for isa in Isa::available() {
        let options = Options::new(dir.to_str().expect("a UTF-8 path")).device(Device::Cpu).isa(isa);
        let embedder = match Embedder::load(options.precision(Precision::Int8)) {
            Err(Error::InvalidOption { name: "precision", message }) => {
                eprintln!("SKIP: {message}");
                continue;
            }
            embedder => embedder.unwrap(),
        };
        let all = embedder.embed(&texts).unwrap();
        let cosine = |a: &[f32], b: &[f32]| {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        let cosines: Vec<f64> =
            golden.vectors().iter().enumerate().map(|(i, want)| cosine(all.row(i), want)).collect();
        let (mean, least) = (
            cosines.iter().sum::<f64>() / cosines.len() as f64,
            cosines.iter().copied().fold(f64::INFINITY, f64::min),
        );
        println!("{isa} int8: cosine {mean:.5}, least {least:.5}");
        // without VNNI the weights are coarser
        let bounds = if isa == Isa::Avx2 && !has_avx_vnni() { (0.9955, 0.98) } else { (0.997, 0.99) };
        assert!(mean >= bounds.0 && least >= bounds.1, "{isa}: cosine {mean}, least {least}");
        // and it is int8 that was computed
        assert!(mean < 0.9999, "{isa}: cosine {mean}");
    }
}

/// `embed_ids` with the reference's ids gives the reference's vectors: no tokenizer in between.
#[test]
fn ids_of_the_reference_give_its_vectors() {
    for folder in golden::folders("tiny").into_iter().chain(golden::folders("families")) {
        let golden = Golden::read(&folder);
        let embedder = load(&folder.join("model"), Device::Cpu, None);
        if !embedder.model().include_prompt {
            continue; // ids do not say which of them are the prompt
        }
        let mut ids = Vec::new();
        let mut offsets = vec![0];
        for row in &golden.rows {
            ids.extend_from_slice(&row.ids);
            offsets.push(ids.len());
        }
        let vectors = embedder.embed_ids(&ids, &offsets).unwrap();
        let texts = embedder.embed(&golden.texts()).unwrap();
        assert_eq!(vectors.as_slice(), texts.as_slice(), "{}", folder.display());
    }
}
