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
mod machine;
mod npy;
mod output;
mod provenance;
mod report;
mod rerank;
mod search;
mod similarity;
mod svg;
mod tokenize;

use args::{Args, Command, ModelArgs};
use clap::Parser;
use report::{Failure, Report};
use std::path::PathBuf;
use std::process::ExitCode;

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
        Command::Bench(command) => bench::run(command),
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
