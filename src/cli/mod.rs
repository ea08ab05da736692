//! Throw-away front: enough to build and try `fetch` and `bench`.
mod bench;
mod fetch;
use clap::Parser;
use std::io::Write;
use std::process::ExitCode;
#[derive(Parser)]
enum Command {
    Info {
        #[arg(long)]
        model: Option<String>,
        #[arg(long)]
        revision: Option<String>,
    },
    Bench {
        #[arg(long)]
        model: Option<String>,
        #[arg(long)]
        threads: Option<std::num::NonZeroUsize>,
        #[command(flatten)]
        bench: bench::BenchArgs,
    },
}
#[allow(clippy::print_stderr, clippy::print_stdout, reason = "throw-away")]
pub(crate) fn main() -> ExitCode {
    let run = || -> Result<(), Box<dyn std::error::Error>> {
        let mut notify = |line: &str| eprintln!("{line}");
        match Command::parse() {
            Command::Info { model, revision } => {
                println!("{}", fetch::resolve(model.as_deref(), revision.as_deref(), &mut notify)?.display())
            }
            Command::Bench { model, threads, bench } => {
                let dir = fetch::resolve(model.as_deref(), None, &mut notify)?;
                let clock = std::time::Instant::now();
                let mut options = berthier::Options::new(dir.to_string_lossy());
                if let Some(t) = threads {
                    options = options.threads(t);
                }
                let embedder = berthier::Embedder::load(options)?;
                bench::run(&bench, &embedder, clock.elapsed().as_secs_f64(), &mut std::io::stdout().lock())?;
                std::io::stdout().flush()?;
            }
        }
        Ok(())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("berthier: {e}");
            ExitCode::from(2)
        }
    }
}
