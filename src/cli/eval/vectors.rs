//! From lists of texts to vectors: from the cache, or computed, each different text once.

use super::super::journal::Fingerprint;
use super::super::provenance;
use super::super::report::{Failure, Report, Speed, counted};
use super::cache::Cache;
use berthier::{Embedder, Error, Normalize};
use std::collections::HashMap;
use std::time::Instant;

/// Vectors of a list of texts, `[rows, dim]`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Vectors {
    pub(crate) data: Vec<f32>,
    pub(crate) dim: usize,
    /// Texts that were longer than the model takes.
    pub(crate) truncated: usize,
}

impl Vectors {
    pub(crate) fn rows(&self) -> usize {
        self.data.len() / self.dim
    }

    pub(crate) fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.dim..(i + 1) * self.dim]
    }
}

/// A loaded model, with what its vectors depend on.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    pub(crate) embedder: &'a Embedder,
    fingerprint: Fingerprint,
}

impl<'a> Source<'a> {
    /// # Errors
    /// A model file that can no longer be read.
    pub(crate) fn new(embedder: &'a Embedder, normalize: Normalize, cache: &Cache) -> Result<Self, Failure> {
        // hashing a large model takes a while
        let fingerprint =
            if cache.is_on() { provenance::by_content(embedder, normalize)? } else { Fingerprint::new() };
        Ok(Self { embedder, fingerprint })
    }

    /// The vectors of each list. Lists are cached one by one; what is not there is computed in one go, so that
    /// a text that several lists share is computed once.
    ///
    /// # Errors
    /// A text without a vector, by its first words.
    pub(crate) fn vectors(
        &self,
        lists: &[Vec<&str>],
        cache: &Cache,
        report: &mut Report,
    ) -> Result<Vec<Vectors>, Failure> {
        let keys: Vec<String> = lists.iter().map(|texts| self.key(texts, cache)).collect();
        let mut found: Vec<Option<Vectors>> =
            keys.iter().zip(lists).map(|(key, texts)| cache.read(key, texts.len())).collect();

        let mut index: HashMap<&str, usize> = HashMap::new();
        let mut unique: Vec<&str> = Vec::new();
        for (texts, _) in lists.iter().zip(&found).filter(|(_, found)| found.is_none()) {
            for &text in texts {
                index.entry(text).or_insert_with(|| {
                    unique.push(text);
                    unique.len() - 1
                });
            }
        }
        let (computed, truncated) = self.compute(&unique, report)?;
        let dim = self.embedder.dim();
        for ((key, texts), found) in keys.iter().zip(lists).zip(&mut found) {
            if found.is_some() {
                continue;
            }
            let mut vectors = Vectors { data: Vec::with_capacity(texts.len() * dim), dim, truncated: 0 };
            for text in texts {
                let i = index[text];
                vectors.data.extend_from_slice(&computed[i * dim..(i + 1) * dim]);
                vectors.truncated += usize::from(truncated[i]);
            }
            cache.write(key, &self.fingerprint, &vectors, report);
            *found = Some(vectors);
        }
        let vectors: Vec<Vectors> = found.into_iter().flatten().collect();
        let cut: usize = vectors.iter().map(|v| v.truncated).sum();
        if cut > 0 {
            let limit = self.embedder.max_seq_length();
            report.note(&format!("{} cut at {limit} tokens", counted(cut as u64, "text")));
        }
        Ok(vectors)
    }

    fn key(&self, texts: &[&str], cache: &Cache) -> String {
        if cache.is_on() { Cache::key(&self.fingerprint, texts) } else { String::new() }
    }

    /// Vectors end to end, and whether each text was cut.
    fn compute(&self, texts: &[&str], report: &mut Report) -> Result<(Vec<f32>, Vec<bool>), Failure> {
        let embedder = self.embedder;
        let bytes: usize = texts.iter().map(|t| t.len()).sum();
        let mut vectors = vec![0.0; texts.len() * embedder.dim()];
        let (mut cut, mut counts) = (Vec::with_capacity(texts.len()), Vec::new());
        let (mut done, mut position) = (0, 0);
        let clock = Instant::now();
        let mut speed = Speed { rows: 0, tokens: 0, seconds: 0.0 };
        if !texts.is_empty() {
            report.start(Some(bytes as u64));
        }
        while done < texts.len() {
            let block = block(&texts[done..], embedder.window_bytes());
            let out = &mut vectors[done * embedder.dim()..][..block.len() * embedder.dim()];
            embedder.embed_into(block, out, &mut counts).map_err(|e| {
                report.clear();
                explain(e, block)
            })?;
            cut.extend(counts.iter().map(berthier::TokenCount::truncated));
            position += block.iter().map(|t| t.len()).sum::<usize>();
            done += block.len();
            speed.rows += block.len() as u64;
            speed.tokens += counts.iter().map(|c| c.used as u64).sum::<u64>();
            speed.seconds = clock.elapsed().as_secs_f64();
            report.progress(position as u64, done as u64, &speed);
        }
        report.clear();
        if !texts.is_empty() {
            let texts = counted(texts.len() as u64, "text");
            report.note(&format!("{texts} embedded in {:.1} s, {speed}", speed.seconds));
        }
        Ok((vectors, cut))
    }
}

/// As many texts as fill a window; at least one.
fn block<'a, 'b>(texts: &'a [&'b str], limit: usize) -> &'a [&'b str] {
    let mut bytes = 0;
    let end = texts.iter().position(|text| {
        bytes += text.len() + 8;
        bytes > limit
    });
    &texts[..end.unwrap_or(texts.len()).max(1)]
}

/// The error with the text at fault in place of its row.
fn explain(error: Error, block: &[&str]) -> Failure {
    let start = |text: &&str| format!("the text '{}'", text.chars().take(60).collect::<String>());
    Failure::at_row(error, |row| block.get(row).map(start))
}
