//! Texts to measure with: the lines of a file, or words that make exactly so many tokens.

use super::BenchError;
use berthier::Embedder;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Words to build texts of, most of them one token in an English vocabulary.
const WORDS: &str = "the old house stood at the end of a long road and from its windows one could see the \
    river the fields and far away the first hills of another country every morning a man came down to the \
    water with a small boat he never spoke to us but he always raised his hand and my mother said that he \
    had once been a captain who sailed across the world for many years before the war took his only son";

/// The words of [`WORDS`] that add exactly one token.
pub(super) struct Words(Vec<&'static str>);

impl Words {
    pub(super) fn of(embedder: &Embedder) -> Result<Self, BenchError> {
        // behind another word: some vocabularies tell the first word of a text from the others
        let first = WORDS.split_whitespace().next().unwrap_or_default();
        let pairs: Vec<(&str, String)> =
            WORDS.split_whitespace().map(|word| (word, format!("{first} {word}"))).collect();
        let texts: Vec<&str> =
            std::iter::once(first).chain(pairs.iter().map(|(_, pair)| &pair[..])).collect();
        let lengths: Vec<usize> = embedder.tokenize(&texts)?.iter().map(|e| e.total_tokens).collect();
        let single = |&(i, _): &(usize, _)| lengths[i + 1] == lengths[0] + 1;
        let words: Vec<&str> = pairs.iter().enumerate().filter(single).map(|(_, (word, _))| *word).collect();
        if words.is_empty() {
            return Err(BenchError::Unfit(
                "the vocabulary has none of the English words of this test".into(),
            ));
        }
        Ok(Self(words))
    }

    /// `count` texts of exactly `length` tokens, different from each other as far as the words go.
    pub(super) fn texts(
        &self,
        embedder: &Embedder,
        length: usize,
        count: usize,
    ) -> Result<Vec<String>, BenchError> {
        if length > embedder.max_seq_length() {
            return Err(BenchError::Unfit(format!(
                "--lengths {length}: the model cuts texts at {} tokens (--max-seq-length)",
                embedder.max_seq_length()
            )));
        }
        // special tokens, and those of the prompt
        let empty: usize = embedder.tokenize(&[""])?.iter().map(|e| e.total_tokens).sum();
        let Some(words) = length.checked_sub(empty).filter(|&words| words > 0) else {
            return Err(BenchError::Unfit(format!(
                "--lengths {length}: a text has {empty} tokens before its first word"
            )));
        };
        let all = &self.0;
        let texts: Vec<String> = (0..count)
            .map(|i| {
                all.iter().cycle().skip(i * 7 % all.len()).take(words).copied().collect::<Vec<_>>().join(" ")
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
}

/// The token ids of texts end to end, and where each begins, with the end behind.
pub(super) fn ids_of(embedder: &Embedder, texts: &[String]) -> Result<(Vec<u32>, Vec<usize>), BenchError> {
    let (mut ids, mut offsets) = (Vec::new(), vec![0]);
    for encoding in embedder.tokenize(texts)? {
        ids.extend_from_slice(&encoding.ids);
        offsets.push(ids.len());
    }
    Ok((ids, offsets))
}

/// The first `limit` lines of a file.
pub(super) fn read_lines(path: &Path, limit: usize) -> Result<Vec<String>, BenchError> {
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
        read_lines(file.path(), limit).map_err(|e| e.to_string())
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
        let error = read_lines(Path::new("no/such/file"), 1).unwrap_err().to_string();
        assert!(error.starts_with("no/such/file: "), "{error}");
    }
}
