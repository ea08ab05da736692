//! Tokenising: our own tokenizer of the BERT kind beside the crate's, on one thread, in tokens a second (criterion's elements),
//! and building it from its files.
//!
//! `BERTHIER_TEST_MODEL` is the directory of all-MiniLM-L6-v2 or of another model of the kind, `BERTHIER_DATA` the folder of
//! the corpora (default: `../shared/data`); the bench says which of them it lacks.
#![allow(clippy::print_stderr, reason = "a bench that skips says so")]

use berthier::model::TokenizerDesc;
use berthier::tokenize::Tokenizer;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Of each corpus.
const LINES: usize = 2000;

/// A folder that a variable names.
fn folder(variable: &str, default: Option<&str>) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from).or_else(|| default.map(PathBuf::from));
    let there = path.filter(|path| path.is_dir());
    if there.is_none() {
        eprintln!("SKIP: {variable} names no folder");
    }
    there
}

fn own(dir: &Path) -> Tokenizer {
    let desc = TokenizerDesc { dir: dir.into(), do_lower_case: false, vocab_size: usize::MAX };
    Tokenizer::load(&desc).expect("a tokenizer")
}

fn of_crate(dir: &Path) -> tokenizers::Tokenizer {
    let mut tokenizer = tokenizers::Tokenizer::from_file(dir.join("tokenizer.json")).expect("tokenizer.json");
    tokenizer.with_truncation(None).expect("no truncation").with_padding(None);
    tokenizer
}

fn tokenize(c: &mut Criterion) {
    let (Some(model), Some(data)) =
        (folder("BERTHIER_TEST_MODEL", None), folder("BERTHIER_DATA", Some("../shared/data")))
    else {
        return;
    };
    let (own, of_crate) = (own(&model), of_crate(&model));
    for file in [
        "corpus/wikitext2-valid-test.txt",
        "corpus/gutenberg-135-les-mis-rables.txt",
        "nli/snli-test.tsv",
        "retrieval/scifact/corpus.jsonl",
    ] {
        let text = std::fs::read_to_string(data.join(file)).expect("a corpus");
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).take(LINES).collect();
        let ids = |line: &&str| own.encode("", line, usize::MAX).expect("ids").ids;
        let tokens: usize = lines.iter().map(|line| ids(line).len()).sum();
        for line in &lines {
            let wanted = of_crate.encode_fast(*line, true).expect("ids");
            assert_eq!(ids(line), wanted.get_ids(), "{line}");
        }
        let mut group = c.benchmark_group(format!("tokenize/{file}"));
        group.throughput(Throughput::Elements(tokens as u64));
        group.bench_function("own", |b| {
            b.iter(|| lines.iter().for_each(|line| drop(black_box(own.encode("", line, 512)))));
        });
        group.bench_function("crate", |b| {
            b.iter(|| lines.iter().for_each(|line| drop(black_box(of_crate.encode_fast(*line, true)))));
        });
        group.finish();
    }
    let mut group = c.benchmark_group("load");
    group.bench_function("own", |b| b.iter(|| self::own(&model)));
    group.bench_function("crate", |b| b.iter(|| self::of_crate(&model)));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    targets = tokenize
}
criterion_main!(benches);
