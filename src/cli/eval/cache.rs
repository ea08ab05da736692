//! Vectors of earlier runs, by what they depend on: the model's files, the options, the texts.
//!
//! A set of vectors is one file, `<Berthier's cache>/vectors/<key>.f32`: a JSON line that says what it is, and
//! the numbers. It gets its name when it is complete; a reader that finds anything else than what the key
//! promises takes it for absent. Nothing is ever removed: the folder may be deleted at any time.

use super::super::fetch;
use super::super::journal::Fingerprint;
use super::super::provenance::hex;
use super::super::report::Report;
use super::vectors::Vectors;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Raised when a file's meaning changes.
const FORMAT: u32 = 1;
/// Unfinished files older than this belong to runs that were killed.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// The folder, or none with `--no-cache` or without a home directory.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: Option<PathBuf>,
}

/// The first line of a file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Head {
    format: u32,
    rows: usize,
    dim: usize,
    truncated: usize,
    /// SHA-256 of the numbers.
    sha256: String,
    fingerprint: Fingerprint,
}

impl Cache {
    pub(crate) fn new(off: bool) -> Self {
        Self { dir: if off { None } else { fetch::cache().map(|cache| cache.join("vectors")) } }
    }

    #[cfg(test)]
    pub(crate) fn at(dir: &Path) -> Self {
        Self { dir: Some(dir.into()) }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.dir.is_some()
    }

    /// The name of the vectors that `fingerprint` makes of `texts`.
    pub(crate) fn key(fingerprint: &Fingerprint, texts: &[&str]) -> String {
        let mut hash = Sha256::new();
        for (name, value) in fingerprint {
            hash.update(format!("{}:{name}{}:{value}", name.len(), value.len()));
        }
        for text in texts {
            // with lengths, so that no two lists are alike
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        hex(&hash.finalize())
    }

    /// The vectors of an earlier run, if they are whole.
    pub(crate) fn read(&self, key: &str, rows: usize) -> Option<Vectors> {
        let mut file = BufReader::new(File::open(self.path(key)?).ok()?);
        let mut head = String::new();
        file.read_line(&mut head).ok()?;
        let head: Head = serde_json::from_str(&head).ok()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).ok()?;
        let whole = head.format == FORMAT
            && head.rows == rows
            && Some(bytes.len()) == rows.checked_mul(head.dim).and_then(|n| n.checked_mul(4))
            && head.sha256 == hex(&Sha256::digest(&bytes));
        let data = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        whole.then_some(Vectors { data, dim: head.dim, truncated: head.truncated })
    }

    /// Keeps vectors. What goes wrong is a warning: the result is there all the same.
    pub(crate) fn write(&self, key: &str, fingerprint: &Fingerprint, vectors: &Vectors, report: &Report) {
        let Some(path) = self.path(key) else { return };
        if let Err(e) = Self::write_file(&path, fingerprint, vectors) {
            report.warn(&format!("{}: the vectors are not kept: {e}", path.display()));
        }
    }

    fn write_file(path: &Path, fingerprint: &Fingerprint, vectors: &Vectors) -> std::io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir)?;
        sweep(dir);
        let bytes: Vec<u8> = vectors.data.iter().flat_map(|v| v.to_le_bytes()).collect();
        let head = Head {
            format: FORMAT,
            rows: vectors.rows(),
            dim: vectors.dim,
            truncated: vectors.truncated,
            sha256: hex(&Sha256::digest(&bytes)),
            fingerprint: fingerprint.clone(),
        };
        let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
        let written = File::create(&temporary).and_then(|mut file| {
            file.write_all(serde_json::to_string(&head)?.as_bytes())?;
            file.write_all(b"\n")?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)
        });
        if written.is_err() {
            // best effort; a later run sweeps it
            let _ = std::fs::remove_file(&temporary);
        }
        written
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.join(format!("{key}.f32")))
    }
}

/// Removes what killed runs left, best effort.
fn sweep(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let unfinished = entry.path().extension().is_some_and(|e| e.to_string_lossy().starts_with("tmp-"));
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        if unfinished && age.is_some_and(|age| age > STALE) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(prompt: &str) -> Fingerprint {
        Fingerprint::from([("prompt".into(), prompt.into()), ("model".into(), "abc".into())])
    }

    #[test]
    fn vectors_come_back_and_broken_files_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let report = Report::new(true);
        let vectors = Vectors { data: vec![1.0, -0.0, f32::MIN_POSITIVE, 3.5], dim: 2, truncated: 1 };
        let key = Cache::key(&fingerprint(""), &["a", "b"]);
        assert_eq!(cache.read(&key, 2), None);
        cache.write(&key, &fingerprint(""), &vectors, &report);
        assert_eq!(cache.read(&key, 2), Some(vectors));
        assert_eq!(cache.read(&key, 1), None);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");

        let path = cache.path(&key).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for cut in [0, 10, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert_eq!(cache.read(&key, 2), None, "cut at {cut}");
        }
        let mut flipped = bytes.clone();
        *flipped.last_mut().unwrap() ^= 1;
        std::fs::write(&path, flipped).unwrap();
        assert_eq!(cache.read(&key, 2), None);
    }

    #[test]
    fn keys_tell_texts_and_options_apart() {
        let keys = [
            Cache::key(&fingerprint(""), &["ab", "c"]),
            Cache::key(&fingerprint(""), &["a", "bc"]),
            Cache::key(&fingerprint(""), &["abc"]),
            Cache::key(&fingerprint("x"), &["abc"]),
        ];
        for (i, key) in keys.iter().enumerate() {
            assert!(!keys[..i].contains(key));
        }
    }
}
