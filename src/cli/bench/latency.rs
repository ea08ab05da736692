//! The time of single calls, at given numbers of tokens and texts: from text, and from token ids.

use super::{BenchArgs, BenchError, Report, percentile, sorted};
use berthier::Embedder;
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::Instant;

/// Words to build texts of, most of them one token in an English vocabulary.
const WORDS: &str = "the old house stood at the end of a long road and from its windows one could see the \
    river the fields and far away the first hills of another country every morning a man came down to the \
    water with a small boat he never spoke to us but he always raised his hand and my mother said that he \
    had once been a captain who sailed across the world for many years before the war took his only son";

pub(super) fn measure(args: &BenchArgs, embedder: &Embedder) -> Result<Report, BenchError> {
    let words = words(embedder)?;
    let warmup = args.warmup.unwrap_or(10);
    let samples = args.samples.get();
    let mut table = format!(
        "microseconds of one call; {warmup} warm-up, {samples} counted\n\n\
         {:<6} {:>6} {:>6} {:>10} {:>10} {:>10} {:>10} {:>10}\n",
        "from", "tokens", "texts", "p50", "p90", "p99", "min", "max"
    );
    let mut points: Vec<Value> = Vec::new();
    for length in args.lengths_or(&[16, 64, 256]) {
        for batch in args.batch_sizes.iter().map(|n| n.get()) {
            let texts = texts(embedder, &words, length, batch)?;
            let (mut ids, mut offsets) = (Vec::new(), vec![0]);
            for encoding in embedder.tokenize(&texts)? {
                ids.extend_from_slice(&encoding.ids);
                offsets.push(ids.len());
            }
            let mut vectors = vec![0.0; batch * embedder.dim()];
            let text = time(warmup, samples, || embedder.embed_into(&texts, &mut vectors).map(drop))?;
            let id = time(warmup, samples, || embedder.embed_ids_into(&ids, &offsets, &mut vectors))?;
            for (from, us) in [("text", text), ("ids", id)] {
                let [p50, p90, p99] = [50.0, 90.0, 99.0].map(|p| percentile(&us, p));
                let (min, max) = (us[0], us[us.len() - 1]);
                // a String takes every write
                let _ = writeln!(
                    table,
                    "{from:<6} {length:>6} {batch:>6} {p50:>10.0} {p90:>10.0} {p99:>10.0} {min:>10.0} {max:>10.0}"
                );
                points.push(json!({
                    "from": from, "tokens": length, "texts": batch, "warmup": warmup, "samples": us.len(),
                    "p50_us": p50, "p90_us": p90, "p99_us": p99, "min_us": min, "max_us": max,
                }));
            }
        }
    }
    table.pop();
    Ok(Report { json: json!({"measured": "latency", "points": points}), table })
}

/// Microseconds of each counted call, rising.
fn time(
    warmup: usize,
    samples: usize,
    mut call: impl FnMut() -> berthier::Result<()>,
) -> berthier::Result<Vec<f64>> {
    for _ in 0..warmup {
        call()?;
    }
    let mut us = Vec::with_capacity(samples);
    for _ in 0..samples {
        let clock = Instant::now();
        call()?;
        us.push(clock.elapsed().as_secs_f64() * 1e6);
    }
    Ok(sorted(us))
}

/// Those of [`WORDS`] that add exactly one token.
fn words(embedder: &Embedder) -> Result<Vec<&'static str>, BenchError> {
    // behind another word: some vocabularies tell the first word of a text from the others
    let first = WORDS.split_whitespace().next().unwrap_or_default();
    let pairs: Vec<(&str, String)> =
        WORDS.split_whitespace().map(|word| (word, format!("{first} {word}"))).collect();
    let texts: Vec<&str> = std::iter::once(first).chain(pairs.iter().map(|(_, pair)| &pair[..])).collect();
    let lengths: Vec<usize> = embedder.tokenize(&texts)?.iter().map(|e| e.total_tokens).collect();
    let single = |&(i, _): &(usize, _)| lengths[i + 1] == lengths[0] + 1;
    let words: Vec<&str> = pairs.iter().enumerate().filter(single).map(|(_, (word, _))| *word).collect();
    if words.is_empty() {
        return Err(BenchError::Unfit("the vocabulary has none of the English words of this test".into()));
    }
    Ok(words)
}

/// `batch` different texts of exactly `length` tokens.
fn texts(
    embedder: &Embedder,
    words: &[&str],
    length: usize,
    batch: usize,
) -> Result<Vec<String>, BenchError> {
    if length > embedder.max_seq_length() {
        return Err(BenchError::Unfit(format!(
            "--lengths {length}: the model cuts texts at {} tokens (--max-seq-length)",
            embedder.max_seq_length()
        )));
    }
    // special tokens, and those of the prompt
    let empty: usize = embedder.tokenize(&[""])?.iter().map(|e| e.total_tokens).sum();
    let Some(count) = length.checked_sub(empty).filter(|&count| count > 0) else {
        return Err(BenchError::Unfit(format!(
            "--lengths {length}: a text has {empty} tokens before its first word"
        )));
    };
    let texts: Vec<String> = (0..batch)
        .map(|i| {
            words.iter().cycle().skip(i * 7 % words.len()).take(count).copied().collect::<Vec<_>>().join(" ")
        })
        .collect();
    match embedder.tokenize(&texts)?.iter().find(|encoding| encoding.ids.len() != length) {
        Some(encoding) => Err(BenchError::Unfit(format!(
            "cannot build a text of {length} tokens for this tokenizer: {} came out",
            encoding.ids.len()
        ))),
        None => Ok(texts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_the_samples_and_not_the_warm_up() {
        let mut calls = 0;
        let us = time(3, 5, || {
            calls += 1;
            std::thread::sleep(std::time::Duration::from_millis(if calls <= 3 { 50 } else { 1 }));
            Ok(())
        })
        .unwrap();
        assert_eq!((calls, us.len()), (8, 5));
        assert!(us[0] >= 1000.0 && us.is_sorted(), "{us:?}");
    }

    #[test]
    fn time_ends_with_the_first_error() {
        let refuse = || Err(berthier::Error::BufferSize { found: 0, needed: 1 });
        assert!(time(0, 5, refuse).is_err());
        assert!(time(1, 5, refuse).is_err());
    }
}
