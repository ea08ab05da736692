//! Texts per second: all texts in one call, from text or token ids to vectors, round after round.

use super::super::machine::cpu_seconds;
use super::args::ThroughputArgs;
use super::chart::{Chart, Line, Scale};
use super::stats::{Series, median, sorted};
use super::texts::{Words, ids_of, read_lines};
use super::{BenchError, Report};
use berthier::Embedder;
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::Instant;

/// Tokens of the texts that are made: some hundred milliseconds on a core.
const MADE_TOKENS: usize = 32_768;

/// Texts that are measured together.
struct Load {
    /// `corpus.txt`, or `128 tokens`.
    name: String,
    /// Of texts of one length, that.
    length: Option<usize>,
    texts: Vec<String>,
}

/// One pass over the texts.
struct Round {
    seconds: f64,
    cpu_seconds: Option<f64>,
}

/// What a load is, and its rounds.
struct Measured<'a> {
    load: &'a Load,
    tokens: usize,
    truncated: usize,
    gflop: f64,
    rounds: Vec<Round>,
}

pub(super) fn measure(args: &ThroughputArgs, embedder: &Embedder) -> Result<Report, BenchError> {
    let loads = loads(args, embedder)?;
    let measured: Vec<Measured> =
        loads.iter().map(|load| Measured::new(load, args, embedder)).collect::<Result<_, _>>()?;

    let from = if args.ids { "ids" } else { "text" };
    let mut table = format!(
        "{from} to vectors; {} warm-up, {} counted; cut at {} tokens\n",
        args.warmup,
        args.repeat,
        embedder.max_seq_length()
    );
    let (mut points, mut series) = (Vec::new(), Vec::new());
    for m in &measured {
        m.describe(&mut table);
        points.push(m.json());
        series.push(Series {
            name: format!("throughput {from} {}", m.load.name),
            unit: "texts/s",
            less_is_better: false,
            samples: m.rounds.iter().map(|r| m.load.texts.len() as f64 / r.seconds).collect(),
        });
    }
    table.pop();
    if let Some(path) = &args.plot {
        chart(&measured, format!("{}, from {from}", embedder.device_name())).write(path)?;
    }
    let conditions = json!({"from": from, "max_seq_length": embedder.max_seq_length()});
    Ok(Report {
        json: json!({"measured": "throughput", "conditions": conditions, "points": points}),
        table,
        series,
    })
}

fn loads(args: &ThroughputArgs, embedder: &Embedder) -> Result<Vec<Load>, BenchError> {
    let mut loads = Vec::new();
    if let Some(path) = &args.texts {
        let texts = read_lines(path, args.limit.map_or(usize::MAX, usize::from))?;
        loads.push(Load { name: path.display().to_string(), length: None, texts });
    }
    if !args.lengths.is_empty() {
        let words = Words::of(embedder)?;
        for length in args.lengths.iter().map(|n| n.get()) {
            let count = args.limit.map_or(MADE_TOKENS.div_ceil(length), usize::from);
            let texts = words.texts(embedder, length, count)?;
            loads.push(Load { name: format!("{length} tokens"), length: Some(length), texts });
        }
    }
    Ok(loads)
}

impl<'a> Measured<'a> {
    fn new(load: &'a Load, args: &ThroughputArgs, embedder: &Embedder) -> Result<Self, BenchError> {
        let texts = &load.texts;
        let mut vectors = vec![0.0; texts.len() * embedder.dim()];
        let mut counts = Vec::new();
        let ids = args.ids.then(|| ids_of(embedder, texts)).transpose()?;
        let mut pass = || -> Result<(), BenchError> {
            match &ids {
                Some((ids, offsets)) => embedder.embed_ids_into(ids, offsets, &mut vectors)?,
                None => embedder.embed_into(texts, &mut vectors, &mut counts)?,
            }
            Ok(())
        };
        for _ in 0..args.warmup {
            pass()?;
        }
        let mut rounds = Vec::with_capacity(args.repeat.get());
        for _ in 0..args.repeat.get() {
            let (cpu, clock) = (cpu_seconds(), Instant::now());
            pass()?;
            let seconds = clock.elapsed().as_secs_f64();
            rounds.push(Round { seconds, cpu_seconds: cpu.and_then(|start| Some(cpu_seconds()? - start)) });
        }
        let (used, truncated): (Vec<usize>, usize) = match &ids {
            Some((_, offsets)) => (offsets.windows(2).map(|w| w[1] - w[0]).collect(), 0),
            None => {
                (counts.iter().map(|c| c.used).collect(), counts.iter().filter(|c| c.truncated()).count())
            }
        };
        Ok(Self {
            load,
            tokens: used.iter().sum(),
            truncated,
            gflop: used.iter().map(|&n| embedder.model().flops(n)).sum::<f64>() / 1e9,
            rounds,
        })
    }

    /// Rising.
    fn seconds(&self) -> Vec<f64> {
        sorted(self.rounds.iter().map(|round| round.seconds))
    }

    fn median_cpu(&self) -> Option<f64> {
        let cpus = sorted(self.rounds.iter().filter_map(|round| round.cpu_seconds));
        (!cpus.is_empty()).then(|| median(&cpus))
    }

    fn describe(&self, table: &mut String) {
        let (rows, seconds) = (self.load.texts.len() as f64, self.seconds());
        let row = |name: &str, seconds: f64, cpu: Option<f64>| {
            let cpu = cpu.map_or("-".into(), |cpu| format!("{cpu:.2}"));
            format!(
                "{name:>8} {seconds:>10.3} {cpu:>9} {:>10.1} {:>11.0} {:>9.1}\n",
                rows / seconds,
                self.tokens as f64 / seconds,
                self.gflop / seconds
            )
        };
        // a String takes every write
        let _ = write!(
            table,
            "\n{}: {rows} texts, {} tokens (mean {:.1}), {} truncated\n\
             {:>8} {:>10} {:>9} {:>10} {:>11} {:>9}\n",
            self.load.name,
            self.tokens,
            self.tokens as f64 / rows,
            self.truncated,
            "round",
            "seconds",
            "CPU s",
            "texts/s",
            "tokens/s",
            "GFLOP/s"
        );
        for (i, round) in self.rounds.iter().enumerate() {
            *table += &row(&(i + 1).to_string(), round.seconds, round.cpu_seconds);
        }
        *table += &row("median", median(&seconds), self.median_cpu());
        let _ = writeln!(
            table,
            "texts/s: {:.1} ({:.1} to {:.1})",
            rows / median(&seconds),
            rows / seconds[seconds.len() - 1],
            rows / seconds[0]
        );
    }

    fn json(&self) -> Value {
        let (rows, seconds) = (self.load.texts.len(), self.seconds());
        let speeds = |seconds: f64, cpu: Option<f64>| {
            json!({
                "seconds": seconds,
                "cpu_seconds": cpu,
                "texts_per_second": rows as f64 / seconds,
                "tokens_per_second": self.tokens as f64 / seconds,
                "gflop_per_second": self.gflop / seconds,
            })
        };
        json!({
            "texts": self.load.name,
            "length": self.load.length,
            "rows": rows,
            "tokens": self.tokens,
            "truncated_rows": self.truncated,
            "gflop": self.gflop,
            "rounds": self.rounds.iter().map(|r| speeds(r.seconds, r.cpu_seconds)).collect::<Vec<_>>(),
            "median": speeds(median(&seconds), self.median_cpu()),
            "min_texts_per_second": rows as f64 / seconds[seconds.len() - 1],
            "max_texts_per_second": rows as f64 / seconds[0],
        })
    }
}

/// Tokens per second of the median, the slowest and the fastest round, against length.
fn chart(measured: &[Measured], title: String) -> Chart {
    let mut points: Vec<(f64, usize, Vec<f64>)> = measured
        .iter()
        .filter_map(|m| m.load.length.map(|length| ((length as f64).log2(), length, m)))
        .map(|(x, length, m)| (x, length, m.seconds().iter().map(|s| m.tokens as f64 / s).collect()))
        .collect();
    points.sort_by_key(|p| p.1);
    let line = |name: &str, of: fn(&[f64]) -> f64| Line {
        name: name.into(),
        points: points.iter().map(|(x, _, speeds)| (*x, of(speeds))).collect(),
    };
    Chart {
        title,
        x: "tokens of a text",
        y: "tokens per second",
        x_ticks: points.iter().map(|(x, length, _)| (*x, length.to_string())).collect(),
        y_scale: Scale::Linear,
        // by rising seconds: the first round is the fastest
        lines: vec![
            line("median round", median),
            line("slowest round", |speeds| speeds[speeds.len() - 1]),
            line("fastest round", |speeds| speeds[0]),
        ],
    }
}
