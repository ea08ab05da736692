//! `berthier eval sts`: do the vectors of a pair lie as near as people judged it.

mod files;

pub(crate) use files::{Set, load, select};

use super::super::args::{ModelArgs, VectorArgs};
use super::super::report::{Failure, Report, counted};
use super::super::{Outcome, resolve};
use super::args::StsArgs;
use super::cache::Cache;
use super::plot;
use super::sheet::{Cell, Column, Sheet};
use super::vectors::{Source, Vectors};
use crate::eval::{Measure, mean, pearson, spearman};
use berthier::Embedder;
use serde_json::{Value, json};
use std::time::Instant;

/// Runs the command.
pub(crate) fn run(args: &StsArgs) -> Result<Outcome, Failure> {
    let clock = Instant::now();
    let mut report = Report::new(args.output.quiet);
    let sets = select(load(&args.data)?, &args.sets)?;
    let embedder = open(&args.model, &args.vectors, &report)?;
    let cache = Cache::new(args.output.no_cache);
    let source = Source::new(&embedder, args.vectors.normalization(), &cache)?;
    let texts: Vec<Vec<&str>> = sets.iter().map(Set::texts).collect();
    let vectors = source.vectors(&texts, &cache, &mut report)?;

    let mut sheet = Sheet::new(columns());
    let mut averages = vec![Vec::new(); 2 * Measure::ALL.len()];
    let mut panels = Vec::new();
    for (set, vectors) in sets.iter().zip(&vectors) {
        let scores = Measure::ALL.map(|measure| predictions(measure, vectors));
        let all = judge(set, &scores, &mut sheet);
        averages.iter_mut().zip(&all).for_each(|(average, &value)| average.push(value));
        panels.push(plot::Panel {
            title: format!("{} (ρ {:.2})", set.name, all[0]),
            x: set.gold(),
            y: scores[0].clone(),
        });
    }
    if sets.len() > 1 {
        let pairs = sets.iter().map(|s| s.pairs.len()).sum();
        let name = format!("average of {}", sets.len());
        push(&mut sheet, &name, "all", pairs, averages.into_iter().map(mean));
    }
    if let Some(path) = &args.plot {
        let axes = plot::Axes { x: "gold score", y: "cosine of the vectors" };
        plot::write(path, &axes, &panels)?;
        report.note(&format!("drawn in {}", path.display()));
    }
    let seconds = clock.elapsed().as_secs_f64();
    report.note(&format!(
        "{} judged in {seconds:.1} s, loading included",
        counted(sets.iter().map(|s| s.pairs.len() as u64).sum(), "pair")
    ));
    let mut context = context("sts", &embedder);
    context["truncated"] = json!(vectors.iter().map(|v| v.truncated).sum::<usize>());
    context["seconds"] = json!(seconds);
    sheet.print(&args.output, context, "\nρ Spearman, r Pearson, times 100\n")?;
    Ok(Outcome::Done)
}

/// Loads a model and says its warnings.
pub(crate) fn open(model: &ModelArgs, vectors: &VectorArgs, report: &Report) -> Result<Embedder, Failure> {
    let dir = resolve(model, report)?;
    let embedder = Embedder::load(vectors.options(model, &dir)?)?;
    report.warnings(embedder.warnings());
    Ok(embedder)
}

/// What every result in JSON says of where it comes from.
pub(crate) fn context(experiment: &str, embedder: &Embedder) -> Value {
    json!({
        "berthier": env!("CARGO_PKG_VERSION"),
        "experiment": experiment,
        "model_dir": embedder.model_dir().display().to_string(),
        "device": embedder.device_name(),
        "dim": embedder.dim(),
        "max_seq_length": embedder.max_seq_length(),
        "normalized": embedder.normalized(),
        "prompt": embedder.prompt(),
    })
}

/// One score for each pair; vectors `2 i` and `2 i + 1` are pair `i`.
pub(crate) fn predictions(measure: Measure, vectors: &Vectors) -> Vec<f64> {
    (0..vectors.rows() / 2).map(|i| measure.of(vectors.row(2 * i), vectors.row(2 * i + 1))).collect()
}

fn columns() -> Vec<Column> {
    let mut columns = vec![
        Column::new("set", "set", 0),
        Column::new("subset", "subset", 0),
        Column::new("pairs", "pairs", 0),
    ];
    for measure in Measure::ALL {
        let name = measure.name();
        columns.push(Column::new(format!("{name}_spearman"), format!("{name} ρ"), 2));
        columns.push(Column::new(format!("{name}_pearson"), "r", 2));
    }
    columns
}

/// Adds a row for each subset and one for each way to take them together; gives the numbers of all pairs
/// concatenated: Spearman and Pearson, times 100, for each measure.
fn judge(set: &Set, scores: &[Vec<f64>], sheet: &mut Sheet) -> Vec<f64> {
    let gold = set.gold();
    let correlate = |pairs: &[usize]| -> Vec<f64> {
        let pick = |values: &[f64]| pairs.iter().map(|&i| values[i]).collect::<Vec<_>>();
        let gold = pick(&gold);
        let both = |scores: &Vec<f64>| {
            let scores = pick(scores);
            [100.0 * spearman(&scores, &gold), 100.0 * pearson(&scores, &gold)]
        };
        scores.iter().flat_map(both).collect()
    };
    let mut parts = Vec::new();
    for (index, name) in set.subsets.iter().enumerate() {
        let pairs: Vec<usize> = (0..set.pairs.len()).filter(|&i| set.pairs[i].subset == index).collect();
        let values = correlate(&pairs);
        push(sheet, &set.name, name, pairs.len(), values.iter().copied());
        parts.push((pairs.len() as f64, values));
    }
    let all = correlate(&(0..set.pairs.len()).collect::<Vec<_>>());
    push(sheet, &set.name, "all", set.pairs.len(), all.iter().copied());
    let total = set.pairs.len() as f64;
    let value = |i: usize| parts.iter().map(move |(_, values)| values[i]);
    let means = (0..all.len()).map(|i| mean(value(i)));
    push(sheet, &set.name, "mean", set.pairs.len(), means);
    let weighted = (0..all.len()).map(|i| parts.iter().map(|(n, values)| n / total * values[i]).sum());
    push(sheet, &set.name, "weighted mean", set.pairs.len(), weighted);
    all
}

fn push(sheet: &mut Sheet, set: &str, subset: &str, pairs: usize, values: impl Iterator<Item = f64>) {
    let mut row = vec![set.into(), subset.into(), Cell::Count(pairs)];
    row.extend(values.map(Cell::Number));
    sheet.push(row);
}
