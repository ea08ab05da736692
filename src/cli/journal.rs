//! How far an unfinished run has come: what `--resume` needs to go on, and to refuse another job's file.

use super::report::Failure;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Raised when the meaning of a field changes.
const FORMAT: u32 = 1;

/// What a vector or its place in the file depends on, by name.
pub(crate) type Fingerprint = BTreeMap<String, String>;

/// Sums over the rows that are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) rows: u64,
    pub(crate) tokens: u64,
    pub(crate) truncated: u64,
    pub(crate) bad: u64,
}

/// The journal beside a partial file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Journal {
    format: u32,
    pub(crate) fingerprint: Fingerprint,
    /// The run may replace an existing file.
    pub(crate) overwrite: bool,
    /// Every byte is written; only the renaming is left.
    pub(crate) complete: bool,
    pub(crate) counts: Counts,
    /// Bytes of the partial files that are whole rows and on the disk, by the name of the part.
    pub(crate) bytes: BTreeMap<String, u64>,
}

impl Journal {
    /// Nothing done yet.
    pub(crate) fn new(fingerprint: Fingerprint, overwrite: bool) -> Self {
        Self {
            format: FORMAT,
            fingerprint,
            overwrite,
            complete: false,
            counts: Counts::default(),
            bytes: BTreeMap::new(),
        }
    }

    /// The journal at `path`, if there is one.
    ///
    /// # Errors
    /// A file that is not a journal of this version.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, Failure> {
        let refuse = |why: String| {
            Err(Failure::Error(format!("{}: {why} (--overwrite starts afresh)", path.display())))
        };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return refuse(e.to_string()),
        };
        match serde_json::from_slice::<Self>(&bytes) {
            Ok(journal) if journal.format == FORMAT => Ok(Some(journal)),
            Ok(journal) => refuse(format!("journal format {}, {FORMAT} needed", journal.format)),
            Err(e) => refuse(format!("not a journal: {e}")),
        }
    }

    /// Puts the journal at `path` in one step: a reader sees the old one or the new one.
    pub(crate) fn write(&self, path: &Path) -> std::io::Result<()> {
        let temporary = super::output::with_suffix(path, ".tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    }

    /// Whether the run that wrote this was the same job.
    ///
    /// # Errors
    /// The items that differ.
    pub(crate) fn check(&self, fingerprint: &Fingerprint, what: &Path) -> Result<(), Failure> {
        let absent = "nothing".to_owned();
        let names = self.fingerprint.keys().chain(fingerprint.keys());
        let mut differ: Vec<String> = names
            .filter(|name| self.fingerprint.get(*name) != fingerprint.get(*name))
            .map(|name| {
                let side = |map: &Fingerprint| map.get(name).unwrap_or(&absent).clone();
                format!("  {name}: was {}, is {}", side(&self.fingerprint), side(fingerprint))
            })
            .collect();
        differ.sort();
        differ.dedup();
        if differ.is_empty() {
            return Ok(());
        }
        Err(Failure::Error(format!(
            "{}: cannot be resumed, as it was begun with something else (--overwrite starts afresh)\n{}",
            what.display(),
            differ.join("\n")
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(items: &[(&str, &str)]) -> Fingerprint {
        items.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn journal_comes_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.npy.partial.json");
        assert_eq!(Journal::read(&path).unwrap(), None);
        let mut journal = Journal::new(fingerprint(&[("prompt", "é\"")]), true);
        journal.counts.rows = 20;
        journal.bytes.insert("main".into(), u64::MAX);
        journal.write(&path).unwrap();
        assert_eq!(Journal::read(&path).unwrap(), Some(journal));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the temporary file is gone");
    }

    #[test]
    fn journal_of_another_job_is_refused_by_item() {
        let journal = Journal::new(fingerprint(&[("dim", "384"), ("isa", "avx2"), ("old", "x")]), false);
        journal.check(&journal.fingerprint, Path::new("o")).unwrap();
        let other = fingerprint(&[("dim", "384"), ("isa", "avx512"), ("new", "y")]);
        let Err(Failure::Error(message)) = journal.check(&other, Path::new("o")) else { panic!("accepted") };
        let lines: Vec<_> = message.lines().skip(1).collect();
        assert_eq!(
            lines,
            ["  isa: was avx2, is avx512", "  new: was nothing, is y", "  old: was x, is nothing"]
        );
    }

    #[test]
    fn journal_that_is_broken_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        for bytes in [&b""[..], b"{", b"[]", b"{\"format\": 1}"] {
            std::fs::write(&path, bytes).unwrap();
            assert!(matches!(Journal::read(&path), Err(Failure::Error(_))));
        }
    }
}
