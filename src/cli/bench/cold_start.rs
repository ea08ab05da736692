//! The time from the start of a process to its first vector: this program, started again and again.

use super::args::ColdStartArgs;
use super::chart;
use super::stats::{Series, median, percentile, sorted};
use super::{BenchError, Report};
use berthier::Embedder;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

const TEXT: &str = "How do I reset my password?";

/// What one process took, milliseconds.
struct Start {
    /// From before it was started to its first vector.
    first_vector: f64,
    /// Of that, loading as it measured it itself.
    load: f64,
    /// Of that, its first call.
    call: f64,
}

pub(super) fn measure(args: &ColdStartArgs, embedder: &Embedder) -> Result<Report, BenchError> {
    for _ in 0..args.warmup {
        start()?;
    }
    let starts: Vec<Start> = (0..args.samples.get()).map(|_| start()).collect::<Result<_, _>>()?;
    let reads: Vec<f64> =
        (0..args.samples.get().min(5)).map(|_| read(embedder.model_dir())).collect::<Result<_, _>>()?;

    let mut table = format!(
        "milliseconds from exec to the first vector; {} warm-up, {} counted\n\n\
         {:<14} {:>8} {:>8} {:>8} {:>8}\n",
        args.warmup, args.samples, "", "p50", "p90", "min", "max"
    );
    let mut series = Vec::new();
    let first: Vec<f64> = starts.iter().map(|s| s.first_vector).collect();
    let loads: Vec<f64> = starts.iter().map(|s| s.load).collect();
    let calls: Vec<f64> = starts.iter().map(|s| s.call).collect();
    for (name, samples) in [("first vector", first), ("  load", loads), ("  call", calls), ("read", reads)] {
        let ms = sorted(samples.iter().copied());
        let p90 = percentile(&ms, 0.9).map_or("-".into(), |v| format!("{v:.1}"));
        // a String takes every write
        let _ = writeln!(
            table,
            "{name:<14} {:>8.1} {p90:>8} {:>8.1} {:>8.1}",
            median(&ms),
            ms[0],
            ms[ms.len() - 1]
        );
        series.push(Series {
            name: format!("cold-start {}", name.trim()),
            unit: "ms",
            less_is_better: true,
            samples,
        });
    }
    table.pop();
    if let Some(path) = &args.plot {
        let lines = series.iter().map(|s| (s.name.clone(), s.samples.clone()));
        chart::percentiles(embedder.device_name().to_owned(), "ms", lines).write(path)?;
    }
    Ok(Report { json: json!({"measured": "cold-start", "conditions": {"text": TEXT}}), table, series })
}

/// Embeds one text and says what that took, as the process that is measured.
pub(super) fn child(embedder: &Embedder, load_seconds: f64, out: &mut dyn Write) -> Result<(), BenchError> {
    let clock = Instant::now();
    let vectors = embedder.embed(&[TEXT])?;
    let call_seconds = clock.elapsed().as_secs_f64();
    let line = json!({"load_seconds": load_seconds, "call_seconds": call_seconds, "vector": vectors.row(0)});
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

/// Starts this program with this program's own arguments, and waits for its vector.
fn start() -> Result<Start, BenchError> {
    let failed = |message: String| BenchError::Unfit(format!("a process that was started failed: {message}"));
    let program = std::env::current_exe().map_err(|e| failed(e.to_string()))?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).arg("--child");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let clock = Instant::now();
    let mut process = command.spawn().map_err(|e| failed(e.to_string()))?;
    let mut line = String::new();
    if let Some(out) = process.stdout.take() {
        BufReader::new(out).read_line(&mut line).map_err(|e| failed(e.to_string()))?;
    }
    let first_vector = clock.elapsed().as_secs_f64() * 1e3;
    let ended = process.wait_with_output().map_err(|e| failed(e.to_string()))?;
    if !ended.status.success() {
        return Err(failed(String::from_utf8_lossy(&ended.stderr).trim().to_owned()));
    }
    let json: Value = serde_json::from_str(&line).map_err(|e| failed(e.to_string()))?;
    let ms = |key: &str| json[key].as_f64().map(|s| s * 1e3).ok_or_else(|| failed(format!("no {key}")));
    Ok(Start { first_vector, load: ms("load_seconds")?, call: ms("call_seconds")? })
}

/// Milliseconds to read the weights of a model directory, and nothing else.
fn read(dir: &Path) -> Result<f64, BenchError> {
    let refuse = |source| BenchError::Read { path: dir.into(), source };
    let mut buffer = vec![0; 1 << 20];
    let clock = Instant::now();
    for entry in std::fs::read_dir(dir).map_err(refuse)? {
        let path = entry.map_err(refuse)?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let refuse = |source| BenchError::Read { path: path.clone(), source };
            let mut file = std::fs::File::open(&path).map_err(refuse)?;
            while file.read(&mut buffer).map_err(refuse)? > 0 {}
        }
    }
    Ok(clock.elapsed().as_secs_f64() * 1e3)
}
