//! STS benchmark, test part: the Spearman correlation that sentence-transformers gets with all-MiniLM-L6-v2.
//!
//! The pairs are not part of the project: `BERTHIER_DATA`, default `../shared/data`, has `sts/stsb-test.tsv`
//! (`subset<TAB>score<TAB>sentence1<TAB>sentence2`).

#![allow(clippy::print_stderr, reason = "a test that skips says so")]

#[path = "common/minilm.rs"]
mod minilm;

use berthier::backend::Precision;
use berthier::{Embedder, Error, Options};
use std::path::PathBuf;

/// Spearman × 100 of the cosines, sentence-transformers 6.2.0 in f32.
const PUBLISHED: f64 = 82.03;

/// Ranks from 1, those of equal values averaged.
fn ranks(x: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|&a, &b| x[a].total_cmp(&x[b]));
    let mut ranks = vec![0.0; x.len()];
    let mut first = 0;
    while first < x.len() {
        let last = (first..x.len()).take_while(|&i| x[order[i]] == x[order[first]]).last().unwrap();
        for &i in &order[first..=last] {
            ranks[i] = (first + last) as f64 / 2.0 + 1.0;
        }
        first = last + 1;
    }
    ranks
}

fn pearson(x: &[f64], y: &[f64]) -> f64 {
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let (mx, my) = (mean(x), mean(y));
    let sum = |f: &dyn Fn(f64, f64) -> f64| x.iter().zip(y).map(|(a, b)| f(a - mx, b - my)).sum::<f64>();
    sum(&|a, b| a * b) / (sum(&|a, _| a * a) * sum(&|_, b| b * b)).sqrt()
}

#[test]
fn stsb_test_has_the_spearman_of_the_reference() {
    check(Precision::Fp32, 0.01);
}

#[test]
fn stsb_test_in_bf16_has_the_spearman_of_fp32() {
    check(Precision::Bf16, 0.05);
}

#[test]
fn stsb_test_in_int8_has_the_spearman_of_fp32() {
    check(Precision::Int8, 0.2);
}

/// Spearman of the test part, as published up to `bound`.
fn check(precision: Precision, bound: f64) {
    let data =
        std::env::var_os("BERTHIER_DATA").map_or_else(|| PathBuf::from("../shared/data"), PathBuf::from);
    let file = data.join("sts/stsb-test.tsv");
    let Ok(text) = std::fs::read_to_string(&file) else {
        eprintln!("SKIP: no {} (BERTHIER_DATA names the folder of the evaluation data)", file.display());
        return;
    };
    let Some(dir) = minilm::dir() else { return };
    let (mut gold, mut texts) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        gold.push(fields[1].parse::<f64>().unwrap());
        texts.extend([fields[2], fields[3]]);
    }
    assert_eq!(gold.len(), 1379, "pairs of the published test part");

    let options = Options::new(dir.to_str().expect("a UTF-8 path")).precision(precision);
    let embedder = match Embedder::load(options) {
        Err(Error::InvalidOption { name: "precision", message }) => {
            eprintln!("SKIP: {message}");
            return;
        }
        embedder => embedder.unwrap(),
    };
    let vectors = embedder.embed(&texts).unwrap();
    let cosine = |i: usize| {
        let (a, b) = (vectors.row(2 * i), vectors.row(2 * i + 1));
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    let cosines: Vec<f64> = (0..gold.len()).map(cosine).collect();
    let spearman = 100.0 * pearson(&ranks(&cosines), &ranks(&gold));
    eprintln!("STSb test, {precision}: Spearman {spearman:.4}");
    assert!((spearman - PUBLISHED).abs() <= bound, "{spearman}, published {PUBLISHED}");
}

#[test]
fn ranks_of_equal_values_are_averaged() {
    assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [3.5, 1.0, 3.5, 2.0]);
    assert_eq!(pearson(&[1.0, 2.0, 4.0], &[-2.0, -4.0, -8.0]), -1.0);
}
