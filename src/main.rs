//! The `berthier` command.

mod cli;
mod eval;
mod search;

fn main() -> std::process::ExitCode {
    cli::main()
}
