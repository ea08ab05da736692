//! `berthier bench`: how fast this machine is, measured through the library's public calls; and what the CUDA kernels
//! should cost on a GPU, predicted.

mod args;
pub(crate) mod costs;
mod latency;
mod machine;
mod throughput;

pub(crate) use args::{BenchArgs, What};

use berthier::Embedder;
use machine::Machine;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::PathBuf;

/// Why there is no measurement.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// The library refused a text or failed.
    #[error(transparent)]
    Embed(#[from] berthier::Error),
    /// The texts could not be read.
    #[error("{}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The texts or the model are not fit for the measurement.
    #[error("{0}")]
    Unfit(String),
    /// The results could not be written.
    #[error("cannot write the results: {0}")]
    Write(#[from] io::Error),
}

/// What a measurement found.
struct Report {
    /// Keys that go into the JSON beside those about model and machine.
    json: Value,
    /// For people.
    table: String,
}

/// Measures and writes a table or JSON to `out`. `load_seconds` is what [`Embedder::load`] took.
///
/// # Errors
/// [`BenchError`].
pub(crate) fn run(
    args: &BenchArgs,
    embedder: &Embedder,
    load_seconds: f64,
    out: &mut dyn Write,
) -> Result<(), BenchError> {
    let report = match args.what {
        What::Throughput => throughput::measure(args, embedder)?,
        What::Latency => latency::measure(args, embedder)?,
        What::Costs => unreachable!("costs are predicted without a model: costs::run"),
    };
    let machine = Machine::this();
    if args.json {
        let mut json = json!({
            "berthier": env!("CARGO_PKG_VERSION"),
            "model": embedder.model_dir(),
            "device": embedder.device_name(),
            "threads": embedder.threads(),
            "load_seconds": load_seconds,
            "machine": machine.json(),
        });
        if let (Some(json), Value::Object(more)) = (json.as_object_mut(), report.json) {
            json.extend(more);
        }
        writeln!(out, "{json:#}")?;
    } else {
        writeln!(
            out,
            "berthier {} · {} · {}\n{machine}\nloaded in {load_seconds:.2} s\n\n{}",
            env!("CARGO_PKG_VERSION"),
            embedder.model_dir().display(),
            embedder.device_name(),
            report.table
        )?;
    }
    out.flush()?;
    Ok(())
}

/// The value that `percent` of the values do not exceed (nearest rank). `sorted` rises and is not empty.
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// The middle value, or the mean of the two in the middle. `sorted` rises and is not empty.
fn median(sorted: &[f64]) -> f64 {
    let n = sorted.len();
    (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0
}

fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn parse(args: &[&str]) -> Result<BenchArgs, clap::Error> {
        Command::try_parse_from(std::iter::once(&"bench").chain(args)).map(|c| c.bench)
    }

    #[test]
    fn throughput_needs_texts_and_latency_does_not() {
        let error = parse(&["throughput"]).err().unwrap().to_string();
        assert!(error.contains("--texts"), "{error}");
        assert_eq!(parse(&["throughput", "--texts", "a"]).unwrap().texts, Some("a".into()));
        let args = parse(&["latency", "--lengths", "8,32", "--json"]).unwrap();
        assert_eq!(args.lengths.iter().map(|n| n.get()).collect::<Vec<_>>(), [8, 32]);
        assert!(args.json);
        assert_eq!(parse(&["latency"]).unwrap().lengths_or(&[1, 2]), [1, 2]);
        assert_eq!(parse(&["costs"]).unwrap().gpu, ["h200", "a100"]);
        for bad in [
            &["costs", "--gpu", "abacus"][..],
            &["costs", "--shape", "round"],
            &["latency", "--samples", "0"],
            &["latency", "--lengths", "0"],
            &["speed"],
            &[],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn percentile_is_the_nearest_rank() {
        let values = sorted((1..=100).rev().map(f64::from));
        assert_eq!([50.0, 90.0, 99.0, 100.0].map(|p| percentile(&values, p)), [50.0, 90.0, 99.0, 100.0]);
        assert_eq!(percentile(&[7.0], 50.0), 7.0);
        assert_eq!(percentile(&[1.0, 2.0], 50.0), 1.0);
        assert_eq!(percentile(&[1.0, 2.0], 99.0), 2.0);
    }

    #[test]
    fn median_of_an_even_number_is_the_mean_of_two() {
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
    }
}
