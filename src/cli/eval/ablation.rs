//! `berthier eval ablation`: poolings and layers of one encoder, which was trained with one of them.

use super::super::report::{Failure, Report};
use super::super::{Outcome, resolve};
use super::args::AblationArgs;
use super::cache::Cache;
use super::sheet::{Cell, Column, Sheet};
use super::sts::{Set, context, load, predictions, select};
use super::vectors::{Source, Vectors};
use crate::eval::{Measure, pearson, spearman};
use berthier::model::Pooling;
use berthier::{Embedder, Normalize};
use serde_json::json;
use std::num::NonZeroUsize;

/// One pass of the encoder gives all of them, end to end.
const POOLINGS: [(Pooling, &str); 4] = [
    (Pooling::Cls, "cls"),
    (Pooling::Max, "max"),
    (Pooling::Mean, "mean"),
    (Pooling::MeanSqrtLen, "mean_sqrt_len"),
];
/// What the BERT paper's feature-based experiments and Sentence-BERT's predecessors average.
const LAYERS: usize = 4;

/// Runs the command.
pub(crate) fn run(args: &AblationArgs) -> Result<Outcome, Failure> {
    let mut report = Report::new(args.output.quiet);
    let sets = select(load(&args.data)?, &args.sets)?;
    let dir = resolve(&args.model, &report)?;
    let cache = Cache::new(args.output.no_cache);
    let texts: Vec<Vec<&str>> = sets.iter().map(Set::texts).collect();
    let all = berthier::model::open(&dir)?.desc.num_hidden_layers;
    let layers = match (&args.layers[..], NonZeroUsize::new(LAYERS).filter(|n| n.get() <= all)) {
        ([], Some(several)) => vec![NonZeroUsize::MIN, several],
        ([], None) => vec![NonZeroUsize::MIN],
        (given, _) => given.to_vec(),
    };

    let mut sheet = Sheet::new(vec![
        Column::new("set", "set", 0),
        Column::new("layers", "last layers", 0),
        Column::new("pooling", "pooling", 0),
        Column::new("pairs", "pairs", 0),
        Column::new("cosine_spearman", "cosine ρ", 2),
        Column::new("cosine_pearson", "r", 2),
    ]);
    let mut found = Vec::new();
    let mut json = json!({});
    for &layers in &layers {
        let options = args.model.options(&dir)?.pooling(&POOLINGS.map(|p| p.0)).pooled_layers(layers);
        // the cosine needs no normalisation, and all four together would be no use
        let embedder = Embedder::load(options.normalize(Normalize::Never))?;
        let source = Source::new(&embedder, Normalize::Never, &cache)?;
        found.push(source.vectors(&texts, &cache, &mut report)?);
        json = context("ablation", &embedder);
    }
    for (s, set) in sets.iter().enumerate() {
        let gold = set.gold();
        for (layers, vectors) in layers.iter().zip(&found) {
            for (p, (_, pooling)) in POOLINGS.iter().enumerate() {
                let scores = predictions(Measure::Cosine, &part(&vectors[s], p));
                sheet.push(vec![
                    set.name[..].into(),
                    Cell::Count(layers.get()),
                    (*pooling).into(),
                    Cell::Count(gold.len()),
                    Cell::Number(100.0 * spearman(&scores, &gold)),
                    Cell::Number(100.0 * pearson(&scores, &gold)),
                ]);
            }
        }
    }
    sheet.print(
        &args.output,
        json,
        "\nρ Spearman, r Pearson, times 100; token vectors averaged over the last layers\n",
    )?;
    Ok(Outcome::Done)
}

/// The components of one pooling.
fn part(vectors: &Vectors, pooling: usize) -> Vectors {
    let dim = vectors.dim / POOLINGS.len();
    let rows = vectors.data.chunks_exact(vectors.dim);
    let data = rows.flat_map(|row| &row[pooling * dim..(pooling + 1) * dim]).copied().collect();
    Vectors { data, dim, truncated: vectors.truncated }
}
