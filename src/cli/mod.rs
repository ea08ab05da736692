//! The command's room: arguments in, exit code out. Uses only the library's public items.
//!
//! Exit codes: 0 done; 1 done, but some rows were bad and skipped; 2 an error, said on stderr; 130 stopped by
//! a signal. A reader of stdout that goes away ends the command quietly with 0.

mod args;
mod bench;
mod calibrate;
mod compute;
mod embed;
mod eval;
mod fetch;
mod info;
mod input;
mod journal;
mod npy;
mod output;
mod provenance;
mod report;
mod rerank;
mod search;
mod similarity;
mod tokenize;

use args::{Args, BenchCommand, Command, ModelArgs};
use bench::{BenchError, What, costs};
use berthier::Embedder;
use clap::Parser;
use report::{Failure, Report};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// How a command that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Everything asked for was done.
    Done,
    /// Done, but some rows were bad and skipped.
    BadRows,
}

/// Runs the command line.
pub(crate) fn main() -> ExitCode {
    let args = Args::parse();
    let result = match &args.command {
        Command::Embed(args) => embed::run(args),
        Command::Info(args) => info::run(args),
        Command::Bench(args) => measure(args),
        Command::Eval(args) => eval::run(args),
        Command::Similarity(args) => similarity::run(args),
        Command::Search(args) => search::run(args),
        Command::Rerank(args) => rerank::run(args),
        Command::Tokenize(args) => tokenize::run(args),
    };
    match result {
        Ok(Outcome::Done) | Err(Failure::BrokenPipe) => ExitCode::SUCCESS,
        Ok(Outcome::BadRows) => ExitCode::from(1),
        Err(Failure::Error(message)) => {
            report::say("error", &message);
            ExitCode::from(2)
        }
        Err(Failure::Interrupted(message)) => {
            report::say("interrupted", &message);
            ExitCode::from(130)
        }
    }
}

/// The directory of the model that was asked for, fetched if need be.
fn resolve(args: &ModelArgs, report: &Report) -> Result<PathBuf, Failure> {
    let mut notify = |message: &str| report.note(message);
    fetch::resolve(args.model.as_deref(), args.revision.as_deref(), &mut notify)
        .map_err(|e| Failure::chain(&e))
}

/// Predicts what a model costs: of the model only its configuration is read, and only if one is named.
fn predict(args: &BenchCommand) -> Result<Outcome, Failure> {
    let model = match &args.model.model {
        Some(name) if args.bench.shape.is_empty() => {
            let dir = resolve(&args.model, &Report::new(false))?;
            Some((name.as_str(), berthier::model::open(&dir)?.desc))
        }
        _ => None,
    };
    let model = model.as_ref().map(|(name, desc)| (*name, desc));
    match costs::run(&args.bench, model, &mut std::io::stdout().lock()) {
        Ok(()) => Ok(Outcome::Done),
        Err(BenchError::Write(e)) => Err(Failure::stream("standard output", &e)),
        Err(e) => Err(Failure::chain(&e)),
    }
}

/// Loads a model and lets `bench` measure it.
fn measure(args: &BenchCommand) -> Result<Outcome, Failure> {
    if args.bench.what == What::Costs {
        return predict(args);
    }
    let dir = resolve(&args.model, &Report::new(false))?;
    let clock = Instant::now();
    let embedder = Embedder::load(args.model.options(&dir)?)?;
    let load_seconds = clock.elapsed().as_secs_f64();
    match bench::run(&args.bench, &embedder, load_seconds, &mut std::io::stdout().lock()) {
        Ok(()) => Ok(Outcome::Done),
        Err(BenchError::Write(e)) => Err(Failure::stream("standard output", &e)),
        Err(e) => Err(Failure::chain(&e)),
    }
}
