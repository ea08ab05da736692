//! The texts: files, standard input, compressed or not, as rows with the place each came from.
//!
//! A thread of its own reads and parses, and hands blocks over a bounded channel, so that memory does not
//! grow with the input and reading overlaps with computing. Knows nothing of models or vectors.

mod jsonl;
mod lines;
mod open;

use super::report::Failure;
use clap::ValueEnum;
use lines::{Line, Lines};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// The first block of a run: some 20 sentences, so that the first rows are out at once.
const FIRST_BLOCK_BYTES: usize = 2048;
/// Blocks read ahead of the computation: one to hand over while the next is filled.
const BLOCKS_AHEAD: usize = 1;
/// What a row weighs beside its text, so that blocks of empty lines end too.
const ROW_BYTES: usize = 8;

/// How the texts lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// One text a line.
    Lines,
    /// One JSON object a line.
    Jsonl,
}

/// Where a row came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: Arc<str>,
    /// From 1.
    pub(crate) line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// One row of the input: a text, or what is wrong with it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) place: Place,
    /// The id as JSON, if ids were asked for and the row has one.
    pub(crate) id: Option<String>,
    pub(crate) text: Result<String, String>,
}

/// Rows that follow each other.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) rows: Vec<Row>,
    /// Bytes read of all inputs when the block was filled (compressed bytes of compressed files).
    pub(crate) position: u64,
}

/// What the reading thread sends. A channel that ends without `Ok(None)` was not read to the end.
pub(crate) type Message = Result<Option<Block>, Failure>;

/// Which field is the text, which the id.
#[derive(Debug, Clone)]
pub(crate) struct Fields {
    pub(crate) text: String,
    pub(crate) id: Option<String>,
}

/// Everything that is to be read, in order.
#[derive(Debug, Clone)]
pub(crate) struct Inputs {
    pub(crate) sources: Vec<Source>,
    pub(crate) fields: Fields,
    pub(crate) max_line_bytes: usize,
}

/// One file, or standard input.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// `None` is standard input.
    pub(crate) path: Option<PathBuf>,
    pub(crate) compression: open::Compression,
    pub(crate) format: Format,
    /// Bytes of a regular file.
    pub(crate) size: Option<u64>,
    /// `size` and time of change, to see whether a resumed run reads the same file; of regular files.
    pub(crate) stamp: Option<String>,
}

impl Source {
    /// As messages name it.
    pub(crate) fn name(&self) -> String {
        self.path.as_deref().map_or("stdin".into(), |p| p.display().to_string())
    }
}

impl Inputs {
    /// Looks at every input, so that a wrong name is said before a model is loaded.
    ///
    /// # Errors
    /// A file that cannot be opened, a directory, a format that is not read.
    pub(crate) fn check(
        files: &[PathBuf],
        format: Option<Format>,
        fields: Fields,
        max_line_bytes: usize,
    ) -> Result<Self, Failure> {
        let stdin = [PathBuf::from("-")];
        let files = if files.is_empty() { &stdin[..] } else { files };
        if files.iter().filter(|f| is_stdin(f)).count() > 1 {
            return Err(Failure::Error("standard input ('-') can be read only once".into()));
        }
        let sources: Vec<_> =
            files.iter().map(|file| Source::check(file, format)).collect::<Result<_, _>>()?;
        if fields.id.is_some()
            && let Some(source) = sources.iter().find(|s| s.format == Format::Lines)
        {
            return Err(Failure::Error(format!(
                "{}: --id-field is for JSON Lines, and this is read as plain lines (--input-format jsonl)",
                source.name()
            )));
        }
        Ok(Self { sources, fields, max_line_bytes })
    }

    /// Bytes of all inputs, if each is a regular file.
    pub(crate) fn total_bytes(&self) -> Option<u64> {
        self.sources.iter().map(|s| s.size).sum()
    }

    /// Starts reading behind the first `skip` rows. Blocks grow from a few rows to `block_bytes` of text;
    /// `None` comes last. After an error nothing more comes.
    pub(crate) fn read(self, skip: u64, block_bytes: usize) -> Receiver<Message> {
        let (sender, receiver) = sync_channel(BLOCKS_AHEAD);
        let reader = Reader {
            sender,
            rows: Vec::new(),
            bytes: 0,
            target: FIRST_BLOCK_BYTES.min(block_bytes),
            block_bytes,
            skip,
            position: Arc::default(),
        };
        // not joined: it may be waiting on standard input when the run ends
        std::thread::spawn(move || reader.run(&self));
        receiver
    }

    /// As [`read`](Self::read) from the first row, for those who have nothing else to wait for.
    pub(crate) fn blocks(self, block_bytes: usize) -> impl Iterator<Item = Result<Block, Failure>> {
        let receiver = self.read(0, block_bytes);
        std::iter::from_fn(move || match receiver.recv() {
            Ok(message) => message.transpose(),
            Err(_) => Some(Err(reading_failed())),
        })
    }
}

/// A channel that ended without an end.
pub(crate) fn reading_failed() -> Failure {
    Failure::Error("internal: the reading thread failed".into())
}

impl Source {
    fn check(file: &Path, format: Option<Format>) -> Result<Self, Failure> {
        if is_stdin(file) {
            return Ok(Self {
                path: None,
                compression: open::Compression::None,
                format: format.unwrap_or(Format::Lines),
                size: None,
                stamp: None,
            });
        }
        let (compression, format) =
            open::by_name(file, format).map_err(|e| Failure::Error(format!("{}: {e}", file.display())))?;
        let metadata = std::fs::metadata(file).map_err(|e| Failure::io(file.display(), &e))?;
        if metadata.is_dir() {
            let message = "is a directory: name the files in it, such as";
            return Err(Failure::Error(format!("{0}: {message} {0}/*.txt", file.display())));
        }
        let mut source = Self { path: Some(file.to_owned()), compression, format, size: None, stamp: None };
        // opening a pipe twice would lose what is in it
        if metadata.is_file() {
            std::fs::File::open(file).map_err(|e| Failure::io(file.display(), &e))?;
            let changed = metadata.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
            source.size = Some(metadata.len());
            source.stamp = Some(format!("{} bytes, mtime {:?}", metadata.len(), changed.unwrap_or_default()));
        }
        Ok(source)
    }
}

fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}

/// The reading thread's state.
struct Reader {
    sender: SyncSender<Message>,
    rows: Vec<Row>,
    bytes: usize,
    target: usize,
    block_bytes: usize,
    skip: u64,
    position: Arc<AtomicU64>,
}

/// Nobody wants more blocks.
struct Gone;

impl Reader {
    fn run(mut self, inputs: &Inputs) {
        let asked = self.skip;
        for source in &inputs.sources {
            match self.read_source(source, inputs) {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => {
                    // the rows before the failure are whole
                    if self.send().is_ok() {
                        let _ = self.sender.send(Err(failure));
                    }
                    return;
                }
                Err(Gone) => return,
            }
        }
        if self.skip > 0 {
            let had = asked - self.skip;
            let _ = self.sender.send(Err(Failure::Error(format!(
                "the input has {had} rows and the interrupted run had done {asked}: it is not the same input \
                 (--overwrite starts afresh)"
            ))));
            return;
        }
        if self.send().is_ok() {
            let _ = self.sender.send(Ok(None));
        }
    }

    fn read_source(&mut self, source: &Source, inputs: &Inputs) -> Result<Result<(), Failure>, Gone> {
        let name: Arc<str> = source.name().into();
        let reader = match open::open(source, self.position.clone()) {
            Ok(reader) => reader,
            Err(e) => return Ok(Err(Failure::io(&name, &e))),
        };
        let mut lines = Lines::new(reader, inputs.max_line_bytes);
        let mut line = 0;
        loop {
            let content = match lines.next() {
                Ok(Some(content)) => content,
                Ok(None) => return Ok(Ok(())),
                Err(e) => return Ok(Err(Failure::Error(format!("{name}: {e} (after line {line})")))),
            };
            line += 1;
            if self.skip > 0 {
                self.skip -= 1;
                continue;
            }
            let (id, text) = match content {
                Line::TooLong(bytes) => (
                    None,
                    Err(format!(
                        "a line of {bytes} bytes, at most {} are read (--max-line-bytes)",
                        inputs.max_line_bytes
                    )),
                ),
                Line::Whole(bytes) => match source.format {
                    Format::Lines => (None, lines::text(bytes)),
                    Format::Jsonl => jsonl::parse(bytes, &inputs.fields),
                },
            };
            self.bytes += ROW_BYTES + text.as_ref().map_or(0, String::len);
            self.rows.push(Row { place: Place { file: name.clone(), line }, id, text });
            if self.bytes >= self.target {
                self.send()?;
            }
        }
    }

    fn send(&mut self) -> Result<(), Gone> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        self.target = (self.target * 2).min(self.block_bytes);
        let position = self.position.load(Ordering::Relaxed);
        self.sender.send(Ok(Some(Block { rows, position }))).map_err(|_| Gone)
    }
}

#[cfg(test)]
mod tests;
