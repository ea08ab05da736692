//! Lines of bytes with a limit on their length, and plain text rows.

use std::io::{BufRead, Read, Result};

/// The byte order mark that some editors put before UTF-8; no part of the text.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// One line, without its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    Whole(&'a [u8]),
    /// Its length in bytes; it was read past.
    TooLong(u64),
}

/// Splits a stream into lines. `\n` ends a line, `\r\n` too; a last line without an end counts.
pub(crate) struct Lines<R> {
    reader: R,
    line: Vec<u8>,
    max_bytes: usize,
    first: bool,
}

impl<R: BufRead> Lines<R> {
    /// Lines of more than `max_bytes` are read past and not kept.
    pub(crate) fn new(reader: R, max_bytes: usize) -> Self {
        Self { reader, line: Vec::new(), max_bytes, first: true }
    }

    /// The next line; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Line<'_>>> {
        self.line.clear();
        // the line's end and a mark before it do not count
        let limit = self.max_bytes as u64 + 2 + BOM.len() as u64;
        if self.reader.by_ref().take(limit).read_until(b'\n', &mut self.line)? == 0 {
            return Ok(None);
        }
        let first = std::mem::replace(&mut self.first, false);
        let ended = self.line.last() == Some(&b'\n');
        let mut line = &self.line[..];
        line = line.strip_suffix(b"\n").unwrap_or(line);
        line = line.strip_suffix(b"\r").unwrap_or(line);
        if first {
            line = line.strip_prefix(BOM).unwrap_or(line);
        }
        if line.len() <= self.max_bytes {
            return Ok(Some(Line::Whole(line)));
        }
        let mut bytes = line.len() as u64;
        if !ended {
            bytes += skip_line(&mut self.reader)?;
        }
        Ok(Some(Line::TooLong(bytes)))
    }
}

/// Reads past the next line end; gives the bytes before it.
fn skip_line(reader: &mut impl BufRead) -> Result<u64> {
    let mut skipped = 0;
    loop {
        let buffer = match reader.fill_buf() {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            buffer => buffer?,
        };
        if buffer.is_empty() {
            return Ok(skipped);
        }
        let end = buffer.iter().position(|&b| b == b'\n');
        let n = end.unwrap_or(buffer.len());
        skipped += n as u64;
        reader.consume(end.map_or(n, |n| n + 1));
        if end.is_some() {
            return Ok(skipped);
        }
    }
}

/// A plain line as a text.
pub(crate) fn text(line: &[u8]) -> std::result::Result<String, String> {
    utf8(line).map(str::to_owned)
}

/// The line as UTF-8, or where it is not.
pub(crate) fn utf8(line: &[u8]) -> std::result::Result<&str, String> {
    std::str::from_utf8(line).map_err(|e| {
        let remedy = if line.starts_with(b"\xff\xfe") || line.starts_with(b"\xfe\xff") {
            "the file looks like UTF-16; convert it with iconv -f UTF-16 -t UTF-8"
        } else {
            "convert the file with iconv -t UTF-8"
        };
        format!("not UTF-8 at byte {} of the line ({remedy})", e.valid_up_to() + 1)
    })
}
