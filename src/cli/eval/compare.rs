//! `berthier eval compare`: two models, precisions or devices on the same data. What a faster way to compute
//! must pass before it is recommended.

use super::super::Outcome;
use super::super::args::{ModelArgs, VectorArgs};
use super::super::report::{Failure, Report};
use super::args::{CompareArgs, PromptArgs};
use super::cache::Cache;
use super::retrieval::{self, Collection};
use super::sheet::{Cell, Column, Sheet};
use super::sts::{self, Set, context, open, predictions};
use super::vectors::{Source, Vectors};
use crate::eval::{Interval, Measure, Ranked, mean, paired_interval, pearson_counted, quantile, spearman};
use crate::search::{Matrix, Score, top_k};
use berthier::Threads;
use half::f16;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

/// Neighbours that are compared.
const NEIGHBOURS: usize = 10;

/// One side of the comparison, as the user wrote it.
#[derive(Debug, Clone)]
struct Side {
    model: ModelArgs,
    vectors: VectorArgs,
    /// Round to half precision, as `embed --dtype float16` does.
    half: bool,
}

/// The vectors of one side: of each STS set, of each collection's passages and of its queries.
struct Embedded {
    sets: Vec<Vectors>,
    passages: Vec<Vectors>,
    queries: Vec<Vectors>,
    context: Value,
}

/// A set's scores under both, and how far they may differ by chance.
struct Scores {
    a: f64,
    b: f64,
    difference: Interval,
}

/// How alike the vectors themselves are.
struct Agreement {
    /// Rising; none if the sides differ in width.
    cosines: Option<Vec<f64>>,
    /// Of the ten nearest under A, how many are among the ten nearest under B.
    kept: f64,
}

/// Runs the command.
pub(crate) fn run(args: &CompareArgs) -> Result<Outcome, Failure> {
    let mut report = Report::new(args.output.quiet);
    let sides = [Side::parse(&args.a, &args.model)?, Side::parse(&args.b, &args.model)?];
    let (beir, sts): (Vec<PathBuf>, Vec<PathBuf>) =
        args.data.iter().cloned().partition(|dir| dir.join("corpus.jsonl").is_file());
    let collections: Vec<Collection> =
        beir.iter().map(|dir| Collection::read(dir, "test")).collect::<Result<_, _>>()?;
    let sets = if sts.is_empty() { Vec::new() } else { sts::select(sts::load(&sts)?, &args.sets)? };

    let cache = Cache::new(args.output.no_cache);
    // one after another: two large models need not fit beside each other
    let [a, b] = sides.map(|side| side.embed(&sets, &collections, &cache, &mut report));
    let (a, b) = (a?, b?);
    let threads = Threads::new(args.model.threads)?;
    let bootstrap =
        Bootstrap { resamples: args.resamples.get() as usize, seed: args.seed, threads: &threads };

    let mut sheet = Sheet::new(columns());
    for (i, set) in sets.iter().enumerate() {
        let scores = bootstrap.sts(set, &a.sets[i], &b.sets[i]);
        let unique = first_of_each(&set.texts());
        let (a, b) = (pick(&a.sets[i], &unique), pick(&b.sets[i], &unique));
        let agreement = Agreement::among(&a, &b, args.probes, &threads);
        push(&mut sheet, &set.name, "spearman", set.pairs.len(), &scores, &agreement);
    }
    for (i, collection) in collections.iter().enumerate() {
        let judge = |e: &Embedded| {
            let scores = collection.judge(&e.passages[i], &e.queries[i], Score::Cosine, false, &threads);
            scores.iter().map(|s| s.ndcg).collect::<Vec<_>>()
        };
        let scores = bootstrap.retrieval(&judge(&a), &judge(&b));
        let agreement =
            Agreement::between([&a.queries[i], &a.passages[i]], [&b.queries[i], &b.passages[i]], &threads);
        push(&mut sheet, &collection.name, "ndcg@10", collection.queries.len(), &scores, &agreement);
    }
    let context = json!({
        "berthier": env!("CARGO_PKG_VERSION"),
        "experiment": "compare",
        "a": a.context,
        "b": b.context,
        "resamples": args.resamples,
        "seed": args.seed,
    });
    let note = format!(
        "\nscores times 100; B − A with the middle 95 % of {} paired resamples; cosine of A's and B's vectors of \
         a text; share of the {NEIGHBOURS} nearest that both have\n",
        args.resamples
    );
    sheet.print(&args.output, context, &note)?;
    Ok(Outcome::Done)
}

impl Side {
    /// `MODEL[,KEY=VALUE]…`
    ///
    /// # Errors
    /// A key that there is not, or a value that it does not take.
    fn parse(text: &str, defaults: &ModelArgs) -> Result<Self, Failure> {
        let mut parts = text.split(',');
        let model = parts.next().unwrap_or_default();
        let mut side = Self { model: defaults.clone(), vectors: VectorArgs::default(), half: false };
        if !model.is_empty() {
            side.model.model = Some(model.into());
        }
        for part in parts.filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match key {
                "device" => side.model.device = parsed(text, key, value)?,
                "precision" => side.model.precision = parsed(text, key, value)?,
                "isa" => side.model.isa = Some(parsed(text, key, value)?),
                "max-seq-length" => side.vectors.max_seq_length = Some(parsed(text, key, value)?),
                "truncate-dim" => side.vectors.truncate_dim = Some(parsed(text, key, value)?),
                "prompt" => side.vectors.prompt = Some(value.into()),
                "store" if value == "float16" => side.half = true,
                "store" if value == "float32" => side.half = false,
                "store" => return Err(bad(text, key, &format!("'{value}': one of float32, float16"))),
                _ => {
                    let known = "device, precision, isa, max-seq-length, truncate-dim, prompt, store";
                    return Err(bad(text, key, &format!("not known: one of {known}")));
                }
            }
        }
        Ok(side)
    }

    fn embed(
        &self,
        sets: &[Set],
        collections: &[Collection],
        cache: &Cache,
        report: &mut Report,
    ) -> Result<Embedded, Failure> {
        let embedder = open(&self.model, &self.vectors, report)?;
        let source = |embedder| Source::new(embedder, self.vectors.normalization(), cache);
        let lists: Vec<Vec<&str>> = sets.iter().map(Set::texts).collect();
        let mut embedded = Embedded {
            sets: source(&embedder)?.vectors(&lists, cache, report)?,
            passages: Vec::new(),
            queries: Vec::new(),
            context: context("compare", &embedder),
        };
        let [for_queries, for_passages] = match self.vectors.prompt {
            Some(_) => [embedder.clone(), embedder.clone()],
            None => retrieval::prompted(&embedder, &PromptArgs::default())?,
        };
        let (for_queries, for_passages) = (source(&for_queries)?, source(&for_passages)?);
        for collection in collections {
            let passages = retrieval::texts(&collection.passages);
            embedded.passages.extend(for_passages.vectors(&passages, cache, report)?);
            let queries = retrieval::texts(&collection.queries);
            embedded.queries.extend(for_queries.vectors(&queries, cache, report)?);
        }
        if self.half {
            let all = embedded.sets.iter_mut().chain(&mut embedded.passages).chain(&mut embedded.queries);
            for vectors in all {
                vectors.data.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
            }
        }
        embedded.context["store"] = json!(if self.half { "float16" } else { "float32" });
        Ok(embedded)
    }
}

fn parsed<T: FromStr<Err: std::fmt::Display>>(side: &str, key: &str, value: &str) -> Result<T, Failure> {
    value.parse().map_err(|e: T::Err| bad(side, key, &e.to_string()))
}

fn bad(side: &str, key: &str, why: &str) -> Failure {
    Failure::Error(format!("'{side}': {key}: {why}"))
}

/// How differences are judged.
struct Bootstrap<'a> {
    resamples: usize,
    seed: u64,
    threads: &'a Threads,
}

impl Bootstrap<'_> {
    fn sts(&self, set: &Set, a: &Vectors, b: &Vectors) -> Scores {
        let (gold, [a, b]) = (set.gold(), [a, b].map(|vectors| predictions(Measure::Cosine, vectors)));
        let [gold_ranked, a_ranked, b_ranked] = [&gold, &a, &b].map(|values| Ranked::new(values));
        let difference = self.interval(gold.len(), |counts| {
            let [gold, a, b] = [&gold_ranked, &a_ranked, &b_ranked].map(|r| r.ranks_counted(counts));
            pearson_counted(&b, &gold, counts) - pearson_counted(&a, &gold, counts)
        });
        Scores { a: 100.0 * spearman(&a, &gold), b: 100.0 * spearman(&b, &gold), difference }
    }

    /// Of a score that is a mean over queries.
    fn retrieval(&self, a: &[f64], b: &[f64]) -> Scores {
        let difference = self.interval(a.len(), |counts| {
            let sum: f64 =
                counts.iter().zip(a.iter().zip(b)).map(|(&n, (a, b))| f64::from(n) * (b - a)).sum();
            sum / a.len() as f64
        });
        let mean = |values: &[f64]| 100.0 * mean(values.iter().copied());
        Scores { a: mean(a), b: mean(b), difference }
    }

    fn interval(&self, n: usize, difference: impl Fn(&[u32]) -> f64 + Send + Sync) -> Interval {
        let Interval { low, high } = paired_interval(n, self.resamples, self.seed, self.threads, difference);
        Interval { low: 100.0 * low, high: 100.0 * high }
    }
}

impl Agreement {
    /// Of texts among themselves: the neighbours of some of them, spread evenly.
    fn among(a: &Vectors, b: &Vectors, probes: NonZeroUsize, threads: &Threads) -> Self {
        let (rows, probes) = (a.rows(), probes.get().min(a.rows()));
        let probes: Vec<usize> = (0..probes).map(|i| i * rows / probes).collect();
        // a text is its own nearest; one more is asked for and it is left out
        let neighbours = |vectors: &Vectors| -> Vec<Vec<usize>> {
            let queries = pick(vectors, &probes);
            let matrix = Matrix::f32(&vectors.data, vectors.dim);
            let hits = top_k(matrix, &queries.data, NEIGHBOURS + 1, Score::Cosine, threads);
            let others = hits.iter().zip(&probes).map(|(hits, probe)| {
                let rows = hits.iter().map(|hit| hit.row).filter(|row| row != probe);
                rows.take(NEIGHBOURS).collect()
            });
            others.collect()
        };
        Self { cosines: cosines([(a, b)]), kept: kept(&neighbours(a), &neighbours(b)) }
    }

    /// Of queries and passages: the passages nearest to each query.
    fn between(a: [&Vectors; 2], b: [&Vectors; 2], threads: &Threads) -> Self {
        let neighbours = |[queries, passages]: [&Vectors; 2]| -> Vec<Vec<usize>> {
            let matrix = Matrix::f32(&passages.data, passages.dim);
            let hits = top_k(matrix, &queries.data, NEIGHBOURS, Score::Cosine, threads);
            hits.iter().map(|hits| hits.iter().map(|hit| hit.row).collect()).collect()
        };
        Self { cosines: cosines([(a[0], b[0]), (a[1], b[1])]), kept: kept(&neighbours(a), &neighbours(b)) }
    }
}

/// Of each row of A with the same row of B, rising.
fn cosines<const N: usize>(sides: [(&Vectors, &Vectors); N]) -> Option<Vec<f64>> {
    let mut cosines = Vec::new();
    for (a, b) in sides {
        if a.dim != b.dim {
            return None;
        }
        cosines.extend((0..a.rows()).map(|i| Measure::Cosine.of(a.row(i), b.row(i))));
    }
    cosines.sort_by(f64::total_cmp);
    Some(cosines)
}

/// The mean share of A's neighbours that are B's, too.
fn kept(a: &[Vec<usize>], b: &[Vec<usize>]) -> f64 {
    let share = |(a, b): (&Vec<usize>, &Vec<usize>)| {
        a.iter().filter(|row| b.contains(row)).count() as f64 / a.len().max(1) as f64
    };
    mean(a.iter().zip(b).map(share))
}

/// Index of the first of each different text.
fn first_of_each(texts: &[&str]) -> Vec<usize> {
    let mut first: HashMap<&str, usize> = HashMap::new();
    for (i, text) in texts.iter().enumerate() {
        first.entry(text).or_insert(i);
    }
    let mut rows: Vec<usize> = first.into_values().collect();
    rows.sort_unstable();
    rows
}

fn pick(vectors: &Vectors, rows: &[usize]) -> Vectors {
    let data = rows.iter().flat_map(|&i| vectors.row(i)).copied().collect();
    Vectors { data, ..*vectors }
}

fn columns() -> Vec<Column> {
    let column = |key: &str, title: &str, decimals| Column::new(key, title, decimals);
    vec![
        column("set", "set", 0),
        column("measure", "measure", 0),
        column("items", "items", 0),
        column("a", "A", 2),
        column("b", "B", 2),
        column("difference", "B − A", 3),
        column("low", "from", 3),
        column("high", "to", 3),
        column("verdict", "verdict", 0),
        column("cosine_min", "cos min", 8),
        column("cosine_p01", "1 %", 8),
        column("cosine_p50", "50 %", 8),
        column("cosine_mean", "mean", 8),
        column("neighbours_kept", "kept", 4),
    ]
}

fn push(sheet: &mut Sheet, set: &str, measure: &str, items: usize, scores: &Scores, agreement: &Agreement) {
    let Interval { low, high } = scores.difference;
    let verdict = match () {
        () if low > 0.0 => "B better",
        () if high < 0.0 => "A better",
        () => "no difference shown",
    };
    let cosine = |value: &dyn Fn(&[f64]) -> f64| {
        agreement.cosines.as_ref().map_or(Cell::None, |cosines| Cell::Number(value(cosines)))
    };
    sheet.push(vec![
        set.into(),
        measure.into(),
        Cell::Count(items),
        Cell::Number(scores.a),
        Cell::Number(scores.b),
        Cell::Number(scores.b - scores.a),
        Cell::Number(low),
        Cell::Number(high),
        verdict.into(),
        cosine(&|c| quantile(c, 0.0)),
        cosine(&|c| quantile(c, 0.01)),
        cosine(&|c| quantile(c, 0.5)),
        cosine(&|c| mean(c.iter().copied())),
        Cell::Number(agreement.kept),
    ]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::SplitMix64;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        model: ModelArgs,
    }

    fn parse(text: &str) -> Result<Side, Failure> {
        Side::parse(text, &Command::try_parse_from(["x", "--model", "m"]).unwrap().model)
    }

    #[test]
    fn sides_are_a_model_and_what_differs() {
        let side = parse("dir/x,isa=portable,prompt=query: a=b,store=float16,truncate-dim=8").unwrap();
        assert_eq!(side.model.model.as_deref(), Some("dir/x"));
        assert_eq!(side.model.isa.unwrap().to_string(), "portable");
        assert_eq!(side.vectors.prompt.as_deref(), Some("query: a=b"));
        assert!(side.half && side.vectors.truncate_dim.unwrap().get() == 8);
        for default in ["", ",", ",store=float32"] {
            let side = parse(default).unwrap();
            assert_eq!((side.model.model.as_deref(), side.half), (Some("m"), false));
        }
        for (wrong, why) in [
            ("x,isa=vax", "portable, avx2, avx512"),
            ("x,device=tpu", "one of cpu, reference"),
            ("x,store=int8", "one of float32, float16"),
            ("x,truncate-dim=0", "truncate-dim"),
            ("x,dtype=f16", "dtype: not known: one of device, precision, isa"),
        ] {
            let Err(Failure::Error(message)) = parse(wrong) else { panic!("{wrong}") };
            assert!(message.contains(why), "{message}");
        }
    }

    fn vectors(rows: usize, seed: u64) -> Vectors {
        let mut random = SplitMix64::new(seed);
        let data = (0..rows * 6).map(|_| random.below(2001) as f32 / 1000.0 - 1.0).collect();
        Vectors { data, dim: 6, truncated: 0 }
    }

    #[test]
    fn a_side_agrees_with_itself_and_not_with_noise() {
        let threads = Threads::new(NonZeroUsize::new(1)).unwrap();
        let probes = NonZeroUsize::new(50).unwrap();
        let (a, noise) = (vectors(300, 1), vectors(300, 2));
        let same = Agreement::among(&a, &a, probes, &threads);
        assert_eq!(same.kept, 1.0);
        assert!(same.cosines.unwrap().iter().all(|c| (c - 1.0).abs() < 1e-12));
        let other = Agreement::among(&a, &noise, probes, &threads);
        assert!(other.kept < 0.2, "{}", other.kept);
        let narrow = Vectors { dim: 3, ..vectors(300, 1) };
        assert!(cosines([(&a, &narrow)]).is_none());
        assert_eq!(Agreement::between([&a, &noise], [&a, &noise], &threads).kept, 1.0);
    }

    #[test]
    fn bootstrap_tells_a_worse_side() {
        let threads = Threads::new(NonZeroUsize::new(1)).unwrap();
        let bootstrap = Bootstrap { resamples: 200, seed: 1, threads: &threads };
        let good: Vec<f64> = (0..200).map(|i| f64::from(i % 10) / 10.0).collect();
        let worse: Vec<f64> = good.iter().enumerate().map(|(i, v)| v - 0.05 * (i % 3) as f64).collect();
        let found = bootstrap.retrieval(&good, &worse);
        assert!(found.difference.high < 0.0, "{:?}", found.difference);
        assert!((found.b - found.a + 5.0).abs() < 0.1);
        let same = bootstrap.retrieval(&good, &good);
        assert_eq!(same.difference, Interval { low: 0.0, high: 0.0 });
    }
}
