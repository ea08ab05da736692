//! The command's room: arguments in, exit code out. Uses only the library's public items.
//!
//! Exit codes: 0 done; 1 done, but some rows were bad and skipped; 2 an error, said on stderr; 130 stopped by
//! a signal. A reader of stdout that goes away ends the command quietly with 0.

mod args;
mod compute;
mod embed;
mod fetch;
mod info;
mod input;
mod journal;
mod output;
mod provenance;
mod report;

use args::{Args, Command};
use clap::Parser;
use report::Failure;
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
