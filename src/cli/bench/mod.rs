//! `berthier bench`: how fast this machine is, measured through the library's public calls; and what the CUDA kernels
//! should cost on a GPU, predicted.

mod args;
mod chart;
mod cold_start;
mod compare;
mod costs;
mod kernels;
mod latency;
mod stats;
mod texts;
mod throughput;

pub(crate) use args::BenchCommand;

use super::args::ModelArgs;
use super::machine::{Machine, memory_bytes};
use super::report::{Failure, Report as Terminal};
use super::{Outcome, resolve};
use args::{CostsArgs, OutputArgs};
use berthier::Embedder;
use compare::Earlier;
use serde_json::{Value, json};
use stats::Series;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

/// Why there is no measurement.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// The library refused a text or failed.
    #[error(transparent)]
    Embed(#[from] berthier::Error),
    /// The texts or an earlier run could not be read.
    #[error("{}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A picture could not be written.
    #[error("{}: {source}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The texts, the model or an earlier run are not fit for the measurement.
    #[error("{0}")]
    Unfit(String),
    /// The results could not be written.
    #[error("cannot write the results: {0}")]
    Write(#[from] io::Error),
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        match error {
            BenchError::Write(e) => Self::stream("standard output", &e),
            BenchError::Embed(_)
            | BenchError::Read { .. }
            | BenchError::File { .. }
            | BenchError::Unfit(_) => Self::chain(&error),
        }
    }
}

/// What a measurement found.
struct Report {
    /// Keys that go into the JSON beside those about model and machine.
    json: Value,
    /// For people.
    table: String,
    /// Every sample, for the JSON and for comparisons.
    series: Vec<Series>,
}

pub(crate) fn run(command: &BenchCommand) -> Result<Outcome, Failure> {
    let out = &mut io::stdout().lock();
    let (model, output) = match command {
        BenchCommand::Throughput(args) => (&args.model, &args.output),
        BenchCommand::Latency(args) => (&args.model, &args.output),
        BenchCommand::ColdStart(args) => (&args.model, &args.output),
        BenchCommand::Kernels(args) => (&args.model, &args.output),
        BenchCommand::Costs(args) => return predict(args, out),
    };
    // what cannot be compared is said before minutes are spent
    let earlier = output.compare.as_deref().map(Earlier::read).transpose()?;
    let (embedder, load_seconds) = load(model)?;
    let report = match command {
        BenchCommand::Throughput(args) => throughput::measure(args, &embedder)?,
        BenchCommand::Latency(args) => latency::measure(args, &embedder)?,
        BenchCommand::ColdStart(args) if args.child => {
            cold_start::child(&embedder, load_seconds, out)?;
            return Ok(Outcome::Done);
        }
        BenchCommand::ColdStart(args) => cold_start::measure(args, &embedder)?,
        BenchCommand::Kernels(args) => kernels::measure(args, &embedder, model.isa_used(&embedder))?,
        BenchCommand::Costs(_) => unreachable!("costs are predicted, above"),
    };
    print(report, output, earlier.as_ref(), &embedder, load_seconds, out)?;
    Ok(Outcome::Done)
}

/// The model, and the seconds that it took.
fn load(args: &ModelArgs) -> Result<(Embedder, f64), Failure> {
    let dir = resolve(args, &Terminal::new(false))?;
    let clock = Instant::now();
    let embedder = Embedder::load(args.options(&dir)?)?;
    Ok((embedder, clock.elapsed().as_secs_f64()))
}

/// Predicts what a model costs: of the model only its configuration is read, and only if one is named.
fn predict(args: &CostsArgs, out: &mut dyn Write) -> Result<Outcome, Failure> {
    let model = match &args.model.model {
        Some(name) if args.shape.is_empty() => {
            let dir = resolve(&args.model, &Terminal::new(false))?;
            Some((name.as_str(), berthier::model::open(&dir)?.desc))
        }
        _ => None,
    };
    let model = model.as_ref().map(|(name, desc)| (*name, desc));
    costs::run(args, model, out)?;
    Ok(Outcome::Done)
}

fn print(
    report: Report,
    args: &OutputArgs,
    earlier: Option<&Earlier>,
    embedder: &Embedder,
    load_seconds: f64,
    out: &mut dyn Write,
) -> Result<(), BenchError> {
    let machine = Machine::this();
    let mut json = json!({
        "berthier": env!("CARGO_PKG_VERSION"),
        "model": embedder.model_dir(),
        "device": embedder.device_name(),
        "threads": embedder.threads(),
        "load_seconds": load_seconds,
        "peak_resident_bytes": memory_bytes("VmHWM"),
        "machine": machine.json(),
        "series": report.series.iter().map(Series::json).collect::<Vec<_>>(),
    });
    if let (Some(json), Value::Object(more)) = (json.as_object_mut(), report.json) {
        json.extend(more);
    }
    let compared = earlier.map(|earlier| earlier.compare(&json, &report.series)).transpose()?;
    if args.json {
        if let Some((_, rows)) = compared {
            json["compared"] = rows;
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
        if let Some((table, _)) = compared {
            writeln!(out, "\n{table}")?;
        }
    }
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(subcommand)]
        bench: BenchCommand,
    }

    fn parse(args: &[&str]) -> Result<BenchCommand, clap::Error> {
        Command::try_parse_from(std::iter::once(&"bench").chain(args)).map(|c| c.bench)
    }

    #[test]
    fn throughput_needs_texts_or_lengths() {
        let error = parse(&["throughput"]).err().unwrap().to_string();
        assert!(error.contains("--texts"), "{error}");
        for good in [
            &["throughput", "--texts", "a"][..],
            &["throughput", "--lengths", "8,32", "--ids", "--json"],
            &["latency"],
            &["latency", "--rate", "0.5"],
            &["latency", "--cold", "--compare", "a.json"],
            &["cold-start"],
            &["kernels", "--rows", "1,8"],
            &["costs"],
        ] {
            assert!(parse(good).is_ok(), "{good:?}");
        }
        for bad in [
            &["costs", "--gpu", "abacus"][..],
            &["costs", "--shape", "round"],
            &["latency", "--samples", "0"],
            &["latency", "--lengths", "0"],
            &["latency", "--rate", "0"],
            &["latency", "--rate", "nan"],
            &["latency", "--rate", "9", "--cold"],
            &["throughput", "--texts", "a", "--plot", "a.svg"],
            &["speed"],
            &[],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
