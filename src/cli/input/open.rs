//! From a name to a stream of bytes: compression by the file's ending.

use super::{Format, Source};
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use std::fs::File;
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Large enough that system calls do not show.
const BUFFER_BYTES: usize = 256 * 1024;

/// How a file's bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Compression and format by the ending of a name; `format` overrules the latter.
///
/// # Errors
/// What to do about an ending whose format is not read.
pub(crate) fn by_name(
    path: &Path,
    format: Option<Format>,
) -> std::result::Result<(Compression, Format), String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let (compression, name) = match (name.strip_suffix(".gz"), name.strip_suffix(".zst")) {
        (Some(name), _) => (Compression::Gzip, name),
        (_, Some(name)) => (Compression::Zstd, name),
        _ => (Compression::None, &name[..]),
    };
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    let by_ending = match ending {
        "jsonl" | "ndjson" => Format::Jsonl,
        "xz" | "bz2" | "lz4" | "zip" | "7z" | "tar" | "tgz" => {
            return Err(format!("'.{ending}' is not read: unpack it, or pipe its text in"));
        }
        "parquet" | "arrow" | "feather" | "npy" => {
            return Err(format!("'.{ending}' is not read: convert it to JSON Lines"));
        }
        "json" | "csv" | "tsv" if format.is_none() => {
            return Err(format!(
                "'.{ending}' is not read as such: convert it to JSON Lines, or say --input-format lines or \
                 jsonl if it is that"
            ));
        }
        _ => Format::Lines,
    };
    Ok((compression, format.unwrap_or(by_ending)))
}

/// Opens a source; `position` counts the bytes read from it, before unpacking.
pub(crate) fn open(source: &Source, position: Arc<AtomicU64>) -> Result<Box<dyn BufRead>> {
    let Some(path) = &source.path else {
        let stdin = Counted { inner: std::io::stdin(), position };
        return Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, stdin)));
    };
    let file = Counted { inner: File::open(path)?, position };
    let file = BufReader::with_capacity(BUFFER_BYTES, file);
    Ok(match source.compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(file))),
        Compression::Zstd => Box::new(BufReader::with_capacity(BUFFER_BYTES, Zstd::new(file))),
    })
}

/// Counts the bytes that go by.
struct Counted<R> {
    inner: R,
    position: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let n = self.inner.read(buffer)?;
        self.position.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// All frames of a zstd file, skippable ones left out, checksums checked.
pub(crate) struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
    frames: u64,
}

impl<R: BufRead> Zstd<R> {
    /// Nothing is read yet.
    pub(crate) fn new(source: R) -> Self {
        Self { source, decoder: FrameDecoder::new(), in_frame: false, frames: 0 }
    }

    /// Whether there was another frame.
    fn next_frame(&mut self) -> Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                // an empty file is not an empty zstd file
                return if self.frames > 0 { Ok(false) } else { Err(truncated()) };
            }
            self.frames += 1;
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    let skipped =
                        std::io::copy(&mut self.source.by_ref().take(length), &mut std::io::sink())?;
                    if skipped < length {
                        return Err(truncated());
                    }
                }
                Err(e) => return Err(broken(&e)),
            }
        }
    }

    fn check_sum(&self) -> Result<()> {
        match (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum()) {
            (Some(stored), Some(found)) if stored != found => {
                Err(Error::new(ErrorKind::InvalidData, "zstd: the checksum does not match the data"))
            }
            _ => Ok(()),
        }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            if !self.in_frame {
                if !self.next_frame()? {
                    return Ok(0);
                }
                self.in_frame = true;
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|e| broken(&e))?;
            }
            let n = self.decoder.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            self.check_sum()?;
            self.in_frame = false;
        }
    }
}

fn truncated() -> Error {
    Error::new(ErrorKind::UnexpectedEof, "zstd: the file ends too early")
}

fn broken(error: &FrameDecoderError) -> Error {
    Error::new(ErrorKind::InvalidData, format!("zstd: {error}"))
}
