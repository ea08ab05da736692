//! STS benchmark: the Spearman correlation that the published model reaches.

#[path = "common/minilm.rs"]
mod minilm;

use berthier::{Embedder, Normalize, Options};
use std::path::{Path, PathBuf};

/// Spearman × 100 of sentence-transformers with all-MiniLM-L6-v2 on the test part.
const EXPECTED: f64 = 82.03;
const TOLERANCE: f64 = 0.01;
const PAIRS: usize = 1379;

#[test]
fn stsb_spearman_matches_reference() {
    let path = data().join("sts/stsb-test.tsv");
    if !path.is_file() {
        eprintln!("SKIP: no {} (BERTHIER_DATA names the folder of the data)", path.display());
        return;
    }
    let Some(model) = minilm::dir() else { return };

    let text = std::fs::read_to_string(&path).unwrap();
    let mut scores = Vec::new();
    let mut texts = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [_, score, first, second] = fields[..] else {
            panic!("{}:{}: {} fields, 4 needed", path.display(), i + 1, fields.len());
        };
        match score.parse::<f64>() {
            Ok(score) => scores.push(score),
            Err(_) if i == 0 => continue, // a header
            Err(e) => panic!("{}:{}: {e}", path.display(), i + 1),
        }
        texts.extend([first, second]);
    }
    assert_eq!(scores.len(), PAIRS, "{}", path.display());

    let options = Options::new(model.to_str().expect("a UTF-8 path")).normalize(Normalize::Always);
    let vectors = Embedder::load(options).unwrap().embed(&texts).unwrap();
    let cosines: Vec<f64> = (0..scores.len())
        .map(|i| {
            let (a, b) = (vectors.row(2 * i), vectors.row(2 * i + 1));
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        })
        .collect();
    let spearman = 100.0 * pearson(&ranks(&cosines), &ranks(&scores));
    println!("STSb test: Spearman {spearman:.3}");
    assert!((spearman - EXPECTED).abs() <= TOLERANCE, "Spearman {spearman}, {EXPECTED} expected");
}

#[test]
fn ranks_of_ties_are_averaged() {
    assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [3.5, 1.0, 3.5, 2.0]);
    assert_eq!(ranks(&[5.0, 5.0, 5.0]), [2.0, 2.0, 2.0]);
    let (x, y) = ([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 40.0, 30.0]);
    assert!((pearson(&ranks(&x), &ranks(&y)) - 0.8).abs() < 1e-12);
}

/// Where the shared data lies.
fn data() -> PathBuf {
    std::env::var_os("BERTHIER_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), PathBuf::from)
}

/// Ranks from 1; equal values share the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for tie in order.chunk_by(|&a, &b| values[a] == values[b]) {
        // ranks start + 1 to start + len
        let mean = start as f64 + (tie.len() as f64 + 1.0) / 2.0;
        tie.iter().for_each(|&i| ranks[i] = mean);
        start += tie.len();
    }
    ranks
}

fn pearson(x: &[f64], y: &[f64]) -> f64 {
    let n = x.len() as f64;
    let (mx, my) = (x.iter().sum::<f64>() / n, y.iter().sum::<f64>() / n);
    let covariance: f64 = x.iter().zip(y).map(|(x, y)| (x - mx) * (y - my)).sum();
    let spread = |v: &[f64], m: f64| v.iter().map(|v| (v - m).powi(2)).sum::<f64>().sqrt();
    covariance / (spread(x, mx) * spread(y, my))
}
