//! Throw-away front: enough to build and try `fetch` and `bench`.
mod fetch;
use std::process::ExitCode;
#[allow(clippy::print_stderr, clippy::print_stdout, reason = "throw-away")]
pub(crate) fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let option =
        |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).map(String::as_str);
    match fetch::resolve(option("--model"), option("--revision"), &mut |line| eprintln!("{line}")) {
        Ok(dir) => {
            println!("{}", dir.display());
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("berthier: {e}");
            ExitCode::from(2)
        }
    }
}
