//! Files that get their name when they are complete: `OUT.partial` and a journal until then.

use super::super::journal::Journal;
use super::super::report::Failure;
use super::{Plan, Target, folder, npy, with_suffix};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The output of a run, reserved before anything costly is done.
pub(crate) enum Claim {
    Stream(Box<dyn Write + Send>),
    Files(Box<Files>),
    /// An earlier run had written everything and only the renaming was left, which is done now.
    Completed {
        rows: u64,
    },
}

/// The partial files of one run.
pub(crate) struct Files {
    pub(crate) main: Part,
    pub(crate) ids: Option<Part>,
    pub(crate) truncated: Option<Part>,
    pub(crate) ranges: Option<Part>,
    pub(crate) offsets: Option<Part>,
    pub(crate) journal: PathBuf,
    /// What an interrupted run left, to be checked by the caller.
    pub(crate) resumed: Option<Journal>,
    pub(crate) overwrite: bool,
    /// Side files of an earlier run with other options, which must not stay beside the new file.
    stale: Vec<PathBuf>,
}

/// One file, under its partial name.
pub(crate) struct Part {
    /// Its key in the journal.
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) partial: PathBuf,
    file: File,
    pub(crate) bytes: u64,
}

impl Claim {
    /// Checks that the output may be written and creates its partial files.
    ///
    /// # Errors
    /// A file that exists, a partial file of an interrupted run, a run that is still going on, a folder that
    /// cannot be written to.
    pub(crate) fn new(plan: &Plan, resume: bool, overwrite: bool) -> Result<Self, Failure> {
        let out = match &plan.target {
            Target::Stdout | Target::Device(_) if resume => {
                return Err(Failure::Error(format!(
                    "--resume needs an output file, and {} is a stream",
                    plan.name()
                )));
            }
            Target::Stdout => return Ok(Self::Stream(Box::new(std::io::stdout()))),
            Target::Device(path) => {
                let device = OpenOptions::new().write(true).open(path);
                let device = device.map_err(|e| Failure::io(path.display(), &e))?;
                return Ok(Self::Stream(Box::new(device)));
            }
            Target::File(out) => out,
        };
        let (ids, truncated) = (with_suffix(out, ".ids.jsonl"), with_suffix(out, ".truncated.jsonl"));
        let (ranges, offsets) = (with_suffix(out, ".ranges.npy"), with_suffix(out, ".offsets.npy"));
        let (with_ids, with_truncated) = (plan.ids_aside(), plan.truncated_aside());
        let (with_ranges, with_offsets) = (plan.ranges_aside(), plan.offsets_aside());
        let journal = with_suffix(out, ".partial.json");
        let partial = with_suffix(out, ".partial");

        let resumed = if resume { Journal::read(&journal)? } else { None };
        if let Some(resumed) = resumed.as_ref().filter(|j| j.complete) {
            for path in [&ids, &truncated, &ranges, &offsets, out] {
                let partial = with_suffix(path, ".partial");
                if partial.exists() {
                    rename(&partial, path)?;
                }
            }
            remove(&journal)?;
            return Ok(Self::Completed { rows: resumed.counts.rows });
        }
        let overwrite = overwrite || resumed.as_ref().is_some_and(|j| j.overwrite);
        if !overwrite {
            let sides = [
                (with_ids, &ids),
                (with_truncated, &truncated),
                (with_ranges, &ranges),
                (with_offsets, &offsets),
            ];
            let new = [Some(out)].into_iter().chain(sides.map(|(wanted, path)| wanted.then_some(path)));
            if let Some(path) = new.flatten().find(|p| p.exists()) {
                return Err(Failure::Error(format!("{}: exists (--overwrite replaces it)", path.display())));
            }
        }
        let main = Part::open("main", out)?;
        if !resume && !overwrite && left_by_a_run(&partial, &journal) {
            return Err(Failure::Error(format!(
                "{}: left by an interrupted run (--resume goes on with it, --overwrite starts afresh)",
                partial.display()
            )));
        }
        let open = |wanted: bool, name, path: &Path| wanted.then(|| Part::open(name, path)).transpose();
        let files = Box::new(Files {
            main,
            ids: open(with_ids, "ids", &ids)?,
            truncated: open(with_truncated, "truncated", &truncated)?,
            ranges: open(with_ranges, "ranges", &ranges)?,
            offsets: open(with_offsets, "offsets", &offsets)?,
            journal,
            resumed,
            overwrite,
            stale: [
                (with_ids, ids),
                (with_truncated, truncated),
                (with_ranges, ranges),
                (with_offsets, offsets),
            ]
            .into_iter()
            .filter_map(|(wanted, path)| (!wanted).then_some(path))
            .collect(),
        });
        if files.resumed.is_none() {
            remove(&files.journal)?;
        }
        Ok(Self::Files(files))
    }

    /// Takes back what [`new`](Self::new) created; an interrupted run's rows stay.
    pub(crate) fn abandon(self) {
        match self {
            Self::Files(files) if files.resumed.is_none() => files.discard(),
            Self::Files(_) | Self::Stream(_) | Self::Completed { .. } => {}
        }
    }
}

/// Whether rows of an interrupted run would be lost by starting afresh.
fn left_by_a_run(partial: &Path, journal: &Path) -> bool {
    match Journal::read(journal) {
        Ok(Some(journal)) => journal.counts.rows > 0,
        Ok(None) => std::fs::metadata(partial).is_ok_and(|m| m.len() > npy::HEADER_BYTES as u64),
        Err(_) => true,
    }
}

impl Files {
    /// Every part, the main one last.
    pub(crate) fn parts(&mut self) -> impl Iterator<Item = &mut Part> {
        self.ids
            .iter_mut()
            .chain(&mut self.truncated)
            .chain(&mut self.ranges)
            .chain(&mut self.offsets)
            .chain([&mut self.main])
    }

    /// Gives the complete files their names, the main one last, and takes the journal away.
    pub(crate) fn publish(mut self) -> Result<(), Failure> {
        for part in self.parts() {
            rename(&part.partial, &part.path)?;
        }
        if self.overwrite {
            for path in &self.stale {
                remove(path)?;
                remove(&with_suffix(path, ".partial"))?;
            }
        }
        sync_folder(&self.main.path);
        remove(&self.journal)
    }

    /// Takes the partial files away. Best effort: the caller has an error to say already.
    pub(crate) fn discard(mut self) {
        for part in self.parts() {
            let _ = remove(&part.partial);
        }
        let _ = remove(&self.journal);
    }
}

impl Part {
    fn open(name: &'static str, path: &Path) -> Result<Self, Failure> {
        let partial = with_suffix(path, ".partial");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&partial);
        let file = file.map_err(|e| Failure::io(partial.display(), &e))?;
        // where the file system has no locks there is no protection, and no harm for a single run
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(Failure::Error(format!("{}: another run is writing it", partial.display())));
        }
        Ok(Self { name, path: path.to_owned(), partial, file, bytes: 0 })
    }

    /// Cuts the file to `bytes` and goes on from there.
    pub(crate) fn cut(&mut self, bytes: u64) -> Result<(), Failure> {
        let found = self.io(|p| Ok(p.file.metadata()?.len()))?;
        if found < bytes {
            return Err(Failure::Error(format!(
                "{}: {found} bytes, and its journal says {bytes} (--overwrite starts afresh)",
                self.partial.display()
            )));
        }
        self.bytes = bytes;
        self.io(|p| {
            p.file.set_len(bytes)?;
            p.file.seek(SeekFrom::Start(bytes)).map(drop)
        })
    }

    /// Adds bytes.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.io(|p| p.file.write_all(bytes))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// What is there.
    pub(crate) fn read(&mut self) -> Result<Vec<u8>, Failure> {
        self.io(|p| {
            let mut bytes = Vec::new();
            p.file.rewind()?;
            p.file.read_to_end(&mut bytes)?;
            Ok(bytes)
        })
    }

    /// Puts bytes over the beginning.
    pub(crate) fn patch(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.io(|p| {
            p.file.rewind()?;
            p.file.write_all(bytes)
        })
    }

    /// Waits until the bytes are on the disk.
    pub(crate) fn sync(&mut self) -> Result<(), Failure> {
        self.io(|p| p.file.sync_data())
    }

    fn io<T>(&mut self, f: impl FnOnce(&mut Self) -> std::io::Result<T>) -> Result<T, Failure> {
        f(self).map_err(|e| Failure::io(self.partial.display(), &e))
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), Failure> {
    std::fs::rename(from, to).map_err(|e| Failure::io(format!("{} to {}", from.display(), to.display()), &e))
}

fn remove(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Failure::io(path.display(), &e)),
        _ => Ok(()),
    }
}

/// Makes a rename last. Best effort: some file systems refuse to sync a folder.
fn sync_folder(path: &Path) {
    let _ = File::open(folder(path)).and_then(|f| f.sync_all());
}
