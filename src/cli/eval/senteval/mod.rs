//! `berthier eval senteval`: what a logistic regression can tell from frozen vectors.

mod files;

use super::super::Outcome;
use super::super::report::{Failure, Report, counted};
use super::args::SentevalArgs;
use super::cache::Cache;
use super::sheet::{Cell, Column, Sheet};
use super::sts::{context, open};
use super::vectors::{Source, Vectors};
use crate::eval::{Classifier, Samples, fit, mean, modulo_folds};
use berthier::Threads;
use files::Set;
use serde_json::json;
use std::num::NonZeroUsize;
use std::time::Instant;

/// C where each outer fold searches for its own: 2⁻², 2¹, 2⁴, 2⁷.
const NESTED_GRID: [f64; 4] = [0.25, 2.0, 16.0, 128.0];
/// C where it is searched for once: 2⁻² to 2⁷.
const GRID: [f64; 10] = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];
/// Of a set without a test part, and of a training part whose C is searched for.
const FOLDS: usize = 10;
/// Of an outer fold's training part.
const INNER_FOLDS: usize = 5;

/// What a set scored.
struct Found {
    accuracy: f64,
    /// Of class 1 of two, on the test part.
    f1: Option<f64>,
    /// On the data that C was picked on.
    validation: f64,
    /// One, or one for each outer fold.
    c: Vec<f64>,
    protocol: &'static str,
}

/// Runs the command.
pub(crate) fn run(args: &SentevalArgs) -> Result<Outcome, Failure> {
    let clock = Instant::now();
    let mut report = Report::new(args.output.quiet);
    let sets = files::load(&args.data, &args.sets)?;
    let embedder = open(&args.model, &args.vectors, &report)?;
    let threads = Threads::new(NonZeroUsize::new(embedder.threads()))?;
    let cache = Cache::new(args.output.no_cache);
    let source = Source::new(&embedder, args.vectors.normalization(), &cache)?;

    let mut sheet = Sheet::new(columns());
    let (mut truncated, mut accuracies) = (0, Vec::new());
    for set in &sets {
        let texts: Vec<Vec<&str>> = set.parts.iter().map(files::Part::texts).collect();
        let vectors = source.vectors(&texts, &cache, &mut report)?;
        truncated += vectors.iter().map(|v| v.truncated).sum::<usize>();
        let clock = Instant::now();
        let found = judge(set, vectors, args.seed, &threads);
        report.note(&format!("{}: classified in {:.1} s", set.name, clock.elapsed().as_secs_f64()));
        accuracies.push(100.0 * found.accuracy);
        let test = set.parts.get(1..).and_then(<[_]>::last);
        let c: Vec<String> = found.c.iter().map(f64::to_string).collect();
        sheet.push(vec![
            set.name.into(),
            Cell::Count(set.parts[0].labels.len()),
            test.map_or(Cell::None, |t| Cell::Count(t.labels.len())),
            Cell::Number(100.0 * found.accuracy),
            found.f1.map_or(Cell::None, |f1| Cell::Number(100.0 * f1)),
            Cell::Number(100.0 * found.validation),
            Cell::Text(c.join(" ")),
            found.protocol.into(),
        ]);
    }
    if sets.len() > 1 {
        let name = format!("average of {}", sets.len());
        let mut row = vec![Cell::Text(name), Cell::None, Cell::None, Cell::Number(mean(accuracies))];
        row.resize(columns().len(), Cell::None);
        sheet.push(row);
    }
    let seconds = clock.elapsed().as_secs_f64();
    report.note(&format!("{} in {seconds:.1} s, loading included", counted(sets.len() as u64, "set")));
    let mut context = context("senteval", &embedder);
    context["seed"] = json!(args.seed);
    context["truncated"] = json!(truncated);
    context["seconds"] = json!(seconds);
    sheet.print(
        &args.output,
        context,
        "\ntimes 100; logistic regression, C picked on the training part\n",
    )?;
    Ok(Outcome::Done)
}

fn columns() -> Vec<Column> {
    vec![
        Column::new("set", "set", 0),
        Column::new("train", "train", 0),
        Column::new("test", "test", 0),
        Column::new("accuracy", "accuracy", 2),
        Column::new("f1", "F1", 2),
        Column::new("validation_accuracy", "validation", 2),
        Column::new("c", "C", 2),
        Column::new("protocol", "protocol", 0),
    ]
}

/// Trains and tests as the set's parts allow.
fn judge(set: &Set, vectors: Vec<Vectors>, seed: Option<u64>, threads: &Threads) -> Found {
    let features: Vec<Vectors> =
        vectors.into_iter().map(|v| if set.pairs { pair_features(&v) } else { v }).collect();
    let samples: Vec<Samples<'_>> = set
        .parts
        .iter()
        .zip(&features)
        .map(|(part, features)| Samples {
            features: &features.data,
            dim: features.dim,
            labels: &part.labels,
            classes: set.classes.len(),
        })
        .collect();
    match samples[..] {
        [train, dev, test] => on_dev(train, dev, test, threads),
        [train, test] => on_folds(train, test, seed, threads),
        _ => cross_validated(samples[0], seed, threads),
    }
}

/// [|u − v|, u v] of vectors `2 i` and `2 i + 1`.
fn pair_features(vectors: &Vectors) -> Vectors {
    let mut data = Vec::with_capacity(vectors.data.len());
    for i in 0..vectors.rows() / 2 {
        let pair = || vectors.row(2 * i).iter().zip(vectors.row(2 * i + 1));
        data.extend(pair().map(|(u, v)| (u - v).abs()));
        data.extend(pair().map(|(u, v)| u * v));
    }
    Vectors { data, dim: 2 * vectors.dim, truncated: vectors.truncated }
}

/// No test part: ten folds, C picked in each by five folds of its training part.
fn cross_validated(all: Samples<'_>, seed: Option<u64>, threads: &Threads) -> Found {
    let fold_of = modulo_folds(all.labels, FOLDS, seed);
    let outer: Vec<usize> = (0..FOLDS).collect();
    let folds = threads.map(&outer, |&fold| {
        let (train, test) = split(&(0..all.labels.len()).collect::<Vec<_>>(), &fold_of, fold);
        let labels: Vec<u32> = train.iter().map(|&i| all.labels[i]).collect();
        let inner_of = modulo_folds(&labels, INNER_FOLDS, seed);
        let inner = (0..INNER_FOLDS).map(|inner| {
            let (train, held_out) = split(&train, &inner_of, inner);
            accuracies(all, &train, &held_out, &NESTED_GRID)
        });
        let (c, validation) = best(&NESTED_GRID, &inner.collect::<Vec<_>>());
        (fit(all, &train, c, None).accuracy(all, &test), validation, c)
    });
    Found {
        accuracy: mean(folds.iter().map(|f| f.0)),
        f1: None,
        validation: mean(folds.iter().map(|f| f.1)),
        c: folds.iter().map(|f| f.2).collect(),
        protocol: "10 folds, C by 5 inner folds",
    }
}

/// C picked by ten folds of the training part.
fn on_folds(train: Samples<'_>, test: Samples<'_>, seed: Option<u64>, threads: &Threads) -> Found {
    let fold_of = modulo_folds(train.labels, FOLDS, seed);
    let rows: Vec<usize> = (0..train.labels.len()).collect();
    let folds: Vec<usize> = (0..FOLDS).collect();
    let found = threads.map(&folds, |&fold| {
        let (train_rows, held_out) = split(&rows, &fold_of, fold);
        accuracies(train, &train_rows, &held_out, &GRID)
    });
    let (c, validation) = best(&GRID, &found);
    let fitted = fit(train, &rows, c, None);
    tested(&fitted, test, validation, c, "test part, C by 10 folds of train")
}

/// C picked on the development part.
fn on_dev(train: Samples<'_>, dev: Samples<'_>, test: Samples<'_>, threads: &Threads) -> Found {
    let rows: Vec<usize> = (0..train.labels.len()).collect();
    let dev_rows: Vec<usize> = (0..dev.labels.len()).collect();
    let fitted = threads.map(&GRID, |&c| fit(train, &rows, c, None));
    let found: Vec<f64> = fitted.iter().map(|f| f.accuracy(dev, &dev_rows)).collect();
    let (c, validation) = best(&GRID, std::slice::from_ref(&found));
    let chosen = GRID.iter().position(|g| *g == c).unwrap_or(0);
    tested(&fitted[chosen], test, validation, c, "test part, C on dev")
}

fn tested(fitted: &Classifier, test: Samples<'_>, validation: f64, c: f64, protocol: &'static str) -> Found {
    let rows: Vec<usize> = (0..test.labels.len()).collect();
    let f1 = (test.classes == 2).then(|| f1(fitted, test));
    Found { accuracy: fitted.accuracy(test, &rows), f1, validation, c: vec![c], protocol }
}

/// Of class 1: the harmonic mean of precision and recall.
fn f1(fitted: &Classifier, test: Samples<'_>) -> f64 {
    let (mut hits, mut predicted, mut there) = (0u32, 0u32, 0u32);
    for (features, &label) in test.features.chunks_exact(test.dim).zip(test.labels) {
        let guess = fitted.predict(features);
        hits += u32::from(guess == 1 && label == 1);
        predicted += u32::from(guess == 1);
        there += u32::from(label == 1);
    }
    2.0 * f64::from(hits) / f64::from(predicted + there)
}

/// The rows outside the fold and those in it; `fold_of` goes with `rows`.
fn split(rows: &[usize], fold_of: &[usize], fold: usize) -> (Vec<usize>, Vec<usize>) {
    let part = |held_out: bool| {
        rows.iter().zip(fold_of).filter(|(_, f)| (**f == fold) == held_out).map(|(&row, _)| row).collect()
    };
    (part(false), part(true))
}

/// For each C the accuracy on `test` rows after training on `train` rows.
fn accuracies(samples: Samples<'_>, train: &[usize], test: &[usize], grid: &[f64]) -> Vec<f64> {
    let mut last: Option<Classifier> = None;
    grid.iter()
        .map(|&c| {
            let fitted = fit(samples, train, c, last.as_ref());
            last.insert(fitted).accuracy(samples, test)
        })
        .collect()
}

/// The C of the best mean over the folds, the first of equals, and that mean.
fn best(grid: &[f64], folds: &[Vec<f64>]) -> (f64, f64) {
    let means = (0..grid.len()).map(|i| mean(folds.iter().map(|fold| fold[i])));
    let mut best = (grid[0], f64::NEG_INFINITY);
    for (&c, mean) in grid.iter().zip(means) {
        if mean > best.1 {
            best = (c, mean);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use files::Part;
    use std::num::NonZeroUsize;

    /// Two clouds of points around (±1, 0), and their classes in turn.
    fn clouds(rows: usize, spread: f32) -> (Vectors, Vec<u32>) {
        let mut random = crate::eval::SplitMix64::new(1);
        let mut noise = || ((random.below(2001) as f32 / 1000.0) - 1.0) * spread;
        let mut data = Vec::new();
        for i in 0..rows {
            let side = if i % 2 == 0 { -1.0 } else { 1.0 };
            data.extend([side + noise(), noise()]);
        }
        (Vectors { data, dim: 2, truncated: 0 }, (0..rows).map(|i| (i % 2) as u32).collect())
    }

    fn set(parts: &[&[u32]]) -> Set {
        let part = |labels: &&[u32]| Part { labels: labels.to_vec(), sentences: Vec::new() };
        let classes = vec!["0".into(), "1".into()];
        Set { name: "toy", pairs: false, classes, parts: parts.iter().map(part).collect() }
    }

    #[test]
    fn every_protocol_tells_clouds_apart() {
        let (vectors, labels) = clouds(120, 0.9);
        let (noisy, _) = clouds(120, 3.0);
        for threads in [1, 2].map(|n| Threads::new(NonZeroUsize::new(n)).unwrap()) {
            for parts in 1..=3 {
                let set = set(&vec![&labels[..]; parts]);
                let found = judge(&set, vec![vectors.clone(); parts], Some(5), &threads);
                assert_eq!((found.accuracy, found.validation), (1.0, 1.0), "{parts} parts");
                assert_eq!(found.f1.is_some(), parts > 1);
                assert_eq!(found.c, vec![0.25; if parts == 1 { 10 } else { 1 }], "the first of equals");
                let found = judge(&set, vec![noisy.clone(); parts], None, &threads);
                assert!((0.5..0.9).contains(&found.accuracy), "{}", found.accuracy);
            }
        }
    }

    #[test]
    fn a_seed_decides_the_result() {
        let (vectors, labels) = clouds(200, 4.0);
        let threads = |n| Threads::new(NonZeroUsize::new(n)).unwrap();
        let run = |seed, n| {
            let found = judge(&set(&[&labels]), vec![vectors.clone()], seed, &threads(n));
            (found.accuracy, found.validation)
        };
        assert_eq!(run(Some(1), 1), run(Some(1), 2));
        assert_eq!(run(None, 1), run(None, 2));
        assert_ne!(run(Some(1), 1), run(Some(2), 1));
    }

    #[test]
    fn pair_features_are_differences_and_products() {
        let vectors = Vectors { data: vec![1.0, 2.0, 3.0, -1.0], dim: 2, truncated: 0 };
        assert_eq!(pair_features(&vectors).data, [2.0, 3.0, 3.0, -2.0]);
    }
}
