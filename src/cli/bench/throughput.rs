//! Texts per second: all texts of a file in one call, from text to vectors, round after round.

use super::machine::cpu_seconds;
use super::{BenchArgs, BenchError, Report, median, sorted};
use berthier::Embedder;
use serde_json::json;
use std::fmt::Write;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Instant;

/// One pass over the texts.
struct Round {
    seconds: f64,
    cpu_seconds: Option<f64>,
}

pub(super) fn measure(args: &BenchArgs, embedder: &Embedder) -> Result<Report, BenchError> {
    let Some(path) = &args.texts else {
        return Err(BenchError::Unfit("--texts FILE is needed: texts, one a line".into()));
    };
    let texts = read_texts(path, args.limit.map_or(usize::MAX, usize::from))?;
    let mut vectors = vec![0.0; texts.len() * embedder.dim()];
    let warmup = args.warmup.unwrap_or(1);
    let mut counts = Vec::new();
    for _ in 0..warmup {
        embedder.embed_into(&texts, &mut vectors)?;
    }
    let mut rounds = Vec::with_capacity(args.repeat.get());
    for _ in 0..args.repeat.get() {
        let (cpu, clock) = (cpu_seconds(), Instant::now());
        counts = embedder.embed_into(&texts, &mut vectors)?;
        let seconds = clock.elapsed().as_secs_f64();
        rounds.push(Round { seconds, cpu_seconds: cpu.and_then(|start| Some(cpu_seconds()? - start)) });
    }

    let rows = texts.len();
    let tokens: usize = counts.iter().map(|count| count.used).sum();
    let truncated = counts.iter().filter(|count| count.truncated()).count();
    let gflop = counts.iter().map(|count| embedder.model().flops(count.used)).sum::<f64>() / 1e9;

    let row = |name: &str, seconds: f64, cpu: Option<f64>| {
        let cpu = cpu.map_or("-".into(), |cpu| format!("{cpu:.2}"));
        format!(
            "{name:>8} {seconds:>10.3} {cpu:>9} {:>10.1} {:>11.0} {:>9.1}\n",
            rows as f64 / seconds,
            tokens as f64 / seconds,
            gflop / seconds
        )
    };
    let seconds = sorted(rounds.iter().map(|round| round.seconds));
    let cpus = sorted(rounds.iter().filter_map(|round| round.cpu_seconds));
    let middle = (median(&seconds), (!cpus.is_empty()).then(|| median(&cpus)));
    let mut table = format!(
        "{}: {rows} texts, {tokens} tokens (mean {:.1}), {truncated} truncated at {}\n\
         text to vectors, {warmup} warm-up, {} counted\n\n\
         {:>8} {:>10} {:>9} {:>10} {:>11} {:>9}\n",
        path.display(),
        tokens as f64 / rows as f64,
        embedder.max_seq_length(),
        rounds.len(),
        "round",
        "seconds",
        "CPU s",
        "texts/s",
        "tokens/s",
        "GFLOP/s"
    );
    for (i, round) in rounds.iter().enumerate() {
        table += &row(&(i + 1).to_string(), round.seconds, round.cpu_seconds);
    }
    table += &row("median", middle.0, middle.1);
    let (fastest, slowest) = (seconds[0], seconds[seconds.len() - 1]);
    // a String takes every write
    let _ = write!(
        table,
        "\ntexts/s: {:.1} ({:.1} to {:.1})",
        rows as f64 / middle.0,
        rows as f64 / slowest,
        rows as f64 / fastest
    );

    let speeds = |seconds: f64, cpu: Option<f64>| {
        json!({
            "seconds": seconds,
            "cpu_seconds": cpu,
            "texts_per_second": rows as f64 / seconds,
            "tokens_per_second": tokens as f64 / seconds,
            "gflop_per_second": gflop / seconds,
        })
    };
    let json = json!({
        "measured": "throughput",
        "texts": path,
        "rows": rows,
        "tokens": tokens,
        "truncated_rows": truncated,
        "max_seq_length": embedder.max_seq_length(),
        "gflop": gflop,
        "warmup_rounds": warmup,
        "rounds": rounds.iter().map(|r| speeds(r.seconds, r.cpu_seconds)).collect::<Vec<_>>(),
        "median": speeds(middle.0, middle.1),
        "min_texts_per_second": rows as f64 / slowest,
        "max_texts_per_second": rows as f64 / fastest,
    });
    Ok(Report { json, table })
}

/// The first `limit` lines of a file.
fn read_texts(path: &Path, limit: usize) -> Result<Vec<String>, BenchError> {
    let refuse = |source| BenchError::Read { path: path.into(), source };
    let mut reader = BufReader::new(File::open(path).map_err(refuse)?);
    let (mut texts, mut line) = (Vec::new(), Vec::new());
    while texts.len() < limit {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(refuse)? == 0 {
            break;
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let text = std::str::from_utf8(text).map_err(|e| {
            BenchError::Unfit(format!("{}:{}: not UTF-8: {e}", path.display(), texts.len() + 1))
        })?;
        texts.push(text.to_owned());
    }
    if texts.is_empty() {
        return Err(BenchError::Unfit(format!("{}: no texts in it", path.display())));
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], limit: usize) -> Result<Vec<String>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read_texts(file.path(), limit).map_err(|e| e.to_string())
    }

    #[test]
    fn texts_are_lines_with_or_without_a_last_newline() {
        assert_eq!(read(b"a\r\n\nb c", 9).unwrap(), ["a", "", "b c"]);
        assert_eq!(read(b"a\nb\n", 9).unwrap(), ["a", "b"]);
        assert_eq!(read(b"a\nb\n", 1).unwrap(), ["a"]);
    }

    #[test]
    fn texts_reject_an_empty_file_a_missing_one_and_other_bytes() {
        assert!(read(b"", 9).unwrap_err().ends_with("no texts in it"));
        let error = read(b"a\n\xff\n", 9).unwrap_err();
        assert!(error.contains(":2: not UTF-8"), "{error}");
        // behind the limit nothing is read
        assert_eq!(read(b"a\n\xff\n", 1).unwrap(), ["a"]);
        let error = read_texts(Path::new("no/such/file"), 1).unwrap_err().to_string();
        assert!(error.starts_with("no/such/file: "), "{error}");
    }
}
