//! Rows into the output: encoded, counted, and journalled after they are on the disk.

use super::super::input::{Place, Row};
use super::super::journal::{Counts, Fingerprint, Journal};
use super::super::report::Failure;
use super::partial::{Claim, Files, Part};
use super::small::{self, Calibration, Waiting};
use super::{Dtype, Format, Plan, jsonl, npy, raw};
use berthier::{Quantizer, Ranges, TokenCount};
use std::io::Write;
use std::time::{Duration, Instant};

/// Work that a kill can cost. Each journal waits for the disk, so not every block writes one.
const JOURNAL_EVERY: Duration = Duration::from_secs(3);
/// Encoded bytes are handed to the system in pieces of about this size.
const FLUSH_BYTES: usize = 1 << 20;

/// Rows with their vectors.
#[derive(Debug)]
pub(crate) struct Computed {
    pub(crate) rows: Vec<Row>,
    /// `[rows.len(), dim]`; NaN for rows without a text. Or the vectors of tokens, `tokens[i].used` for row `i`.
    pub(crate) vectors: Vec<f32>,
    /// `[rows.len()]`; zeros for rows without a text.
    pub(crate) tokens: Vec<TokenCount>,
}

/// One row as the formats see it.
pub(crate) struct Record<'a> {
    pub(crate) index: u64,
    pub(crate) place: &'a Place,
    /// As JSON.
    pub(crate) id: Option<&'a str>,
    pub(crate) vector: Result<&'a [f32], &'a str>,
    pub(crate) tokens: TokenCount,
    /// Of vectors of tokens, the width of one; else 0.
    pub(crate) token_dim: usize,
}

/// The writing end of a run.
pub(crate) struct Writer {
    plan: Plan,
    dim: usize,
    out: Out,
    counts: Counts,
    /// What makes the numbers, if they are quantised; int8 and uint8: once the ranges are known.
    quantizer: Option<Quantizer>,
    /// Until then.
    waiting: Option<Waiting>,
    main: Vec<u8>,
    ids: Vec<u8>,
    truncated: Vec<u8>,
    offsets: Vec<u8>,
}

enum Out {
    Stream(Box<dyn Write + Send>),
    Files { files: Box<Files>, journal: Box<Journal>, written: Option<Instant> },
}

impl Writer {
    /// Begins a run, or goes on with the one that was claimed.
    ///
    /// # Errors
    /// An interrupted run that was another job; the disk.
    pub(crate) fn begin(
        claim: Claim,
        plan: &Plan,
        dim: usize,
        fingerprint: Fingerprint,
    ) -> Result<Self, Failure> {
        let mut counts = Counts::default();
        let out = match claim {
            Claim::Completed { .. } => return Err(Failure::Error("internal: the run is complete".into())),
            Claim::Stream(stream) => Out::Stream(stream),
            Claim::Files(mut files) => {
                let journal = match files.resumed.take() {
                    Some(journal) => {
                        journal.check(&fingerprint, &files.main.partial)?;
                        for part in files.parts() {
                            part.cut(journal.bytes.get(part.name).copied().unwrap_or(0))?;
                        }
                        journal
                    }
                    None => {
                        for part in files.parts() {
                            part.cut(0)?;
                        }
                        Journal::new(fingerprint, files.overwrite)
                    }
                };
                if plan.format == Format::Npy && files.main.bytes == 0 {
                    // no reader takes zeros for a header
                    files.main.append(&[0; npy::HEADER_BYTES])?;
                }
                if let Some(offsets) = files.offsets.as_mut().filter(|part| part.bytes == 0) {
                    offsets.append(&[0; npy::HEADER_BYTES])?;
                    offsets.append(&0i64.to_le_bytes())?;
                }
                counts = journal.counts;
                Out::Files { files, journal: Box::new(journal), written: None }
            }
        };
        let (main, ids, truncated, offsets) = Default::default();
        let (quantizer, waiting) = (None, None);
        let mut writer =
            Self { plan: plan.clone(), dim, out, counts, quantizer, waiting, main, ids, truncated, offsets };
        writer.calibrate()?;
        writer.journal(false)?;
        if let Out::Files { written, .. } = &mut writer.out {
            // the first block's rows are journalled at once
            *written = None;
        }
        Ok(writer)
    }

    /// Sums over all rows written, an interrupted run's included.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Adds rows.
    ///
    /// # Errors
    /// The disk, or nobody reading the stream.
    pub(crate) fn write(&mut self, block: Computed) -> Result<(), Failure> {
        let Some(waiting) = &mut self.waiting else { return self.write_rows(&block) };
        if waiting.hold(block) { self.write_held() } else { Ok(()) }
    }

    /// Decides what makes the numbers: of a run that goes on, what made them before.
    fn calibrate(&mut self) -> Result<(), Failure> {
        if !self.plan.dtype.has_ranges() {
            self.quantizer = self.plan.dtype.quantizer(Ranges::new(self.dim));
            return Ok(());
        }
        if let Out::Files { files, .. } = &mut self.out
            && let Some(part) = files.ranges.as_mut().filter(|part| part.bytes > 0)
        {
            let ranges = small::read_ranges(&part.read()?, self.dim)
                .map_err(|why| format!("{}: {why} (--overwrite starts afresh)", part.partial.display()))?;
            self.quantizer = self.plan.dtype.quantizer(ranges);
            return Ok(());
        }
        match self.plan.calibration.clone() {
            Calibration::Known(ranges) => self.set_ranges(ranges),
            Calibration::FirstRows(rows_left) => {
                let ranges = Ranges::new(self.dim);
                self.waiting = Some(Waiting { ranges, rows_left, held: Vec::new() });
                Ok(())
            }
        }
    }

    fn set_ranges(&mut self, ranges: Ranges) -> Result<(), Failure> {
        if let Out::Files { files, .. } = &mut self.out
            && let Some(part) = &mut files.ranges
        {
            part.append(&small::ranges_file(&ranges))?;
        }
        self.quantizer = self.plan.dtype.quantizer(ranges);
        Ok(())
    }

    /// Writes the rows that have waited for their ranges.
    fn write_held(&mut self) -> Result<(), Failure> {
        let Some(Waiting { ranges, held, .. }) = self.waiting.take() else { return Ok(()) };
        self.set_ranges(ranges)?;
        held.iter().try_for_each(|block| self.write_rows(block))
    }

    fn write_rows(&mut self, block: &Computed) -> Result<(), Failure> {
        let mut rest = &block.vectors[..];
        for (i, row) in block.rows.iter().enumerate() {
            let floats = if self.plan.token_vectors { block.tokens[i].used * self.dim } else { self.dim };
            let (vector, behind) = rest.split_at(floats);
            rest = behind;
            let record = Record {
                index: self.counts.rows,
                place: &row.place,
                id: row.id.as_deref(),
                vector: match &row.text {
                    Ok(_) => Ok(vector),
                    Err(message) => Err(message),
                },
                tokens: block.tokens[i],
                token_dim: if self.plan.token_vectors { self.dim } else { 0 },
            };
            self.encode(&record);
            self.counts.rows += 1;
            self.counts.tokens += record.tokens.used as u64;
            if self.plan.offsets_aside() {
                // a row without a text has no tokens
                self.offsets.extend(self.counts.tokens.to_le_bytes());
            }
            self.counts.truncated += u64::from(record.tokens.truncated());
            self.counts.bad += u64::from(record.vector.is_err());
            if self.main.len() >= FLUSH_BYTES {
                self.flush()?;
            }
        }
        self.flush()?;
        match &mut self.out {
            Out::Stream(stream) => stream.flush().map_err(|e| Failure::stream(self.plan.name(), &e)),
            Out::Files { written, .. } if written.is_none_or(|t| t.elapsed() >= JOURNAL_EVERY) => {
                self.journal(false)
            }
            Out::Files { .. } => Ok(()),
        }
    }

    /// The end of a run that is not complete: keeps what is there for `--resume`. Gives the rows kept.
    pub(crate) fn suspend(mut self) -> Result<u64, Failure> {
        if self.counts.rows > 0 {
            self.journal(false)?;
        } else if let Out::Files { files, .. } = self.out {
            files.discard();
        }
        Ok(self.counts.rows)
    }

    /// The end of a complete run: the files get their names.
    pub(crate) fn finish(mut self) -> Result<Counts, Failure> {
        self.write_held()?;
        if let Out::Files { files, .. } = &mut self.out
            && self.plan.format == Format::Npy
        {
            let rows = if self.plan.token_vectors { self.counts.tokens } else { self.counts.rows };
            files.main.patch(&npy::header(self.plan.dtype, rows, self.dim))?;
        }
        if let Out::Files { files, .. } = &mut self.out
            && let Some(offsets) = &mut files.offsets
        {
            offsets.patch(&npy::header_of_offsets(self.counts.rows + 1))?;
        }
        self.journal(true)?;
        match self.out {
            Out::Stream(_) => {}
            Out::Files { files, .. } => files.publish()?,
        }
        Ok(self.counts)
    }

    fn encode(&mut self, record: &Record<'_>) {
        let plan = &self.plan;
        match plan.format {
            Format::Jsonl => {
                let quantizer = self.quantizer.as_ref();
                jsonl::row(&mut self.main, record, quantizer, plan.ids, plan.mark_truncated);
            }
            Format::Npy | Format::Raw => {
                let nan;
                let vector = match record.vector {
                    Ok(vector) => vector,
                    Err(_) if plan.token_vectors => &[],
                    Err(_) => {
                        nan = vec![f32::NAN; self.dim];
                        &nan
                    }
                };
                match (&self.quantizer, plan.dtype) {
                    (Some(quantizer), _) => quantizer.quantize_into(vector, self.dim, &mut self.main),
                    (None, Dtype::Float16) => raw::row_f16(&mut self.main, vector),
                    (None, _) => raw::row_f32(&mut self.main, vector),
                }
            }
        }
        if plan.ids_aside() {
            self.ids.extend(record.id.unwrap_or("null").as_bytes());
            self.ids.push(b'\n');
        }
        if plan.truncated_aside() && record.tokens.truncated() {
            jsonl::truncated(&mut self.truncated, record);
        }
    }

    fn flush(&mut self) -> Result<(), Failure> {
        match &mut self.out {
            Out::Stream(stream) => {
                stream.write_all(&self.main).map_err(|e| Failure::stream(self.plan.name(), &e))?;
            }
            Out::Files { files, .. } => {
                let append = |part: &mut Option<Part>, bytes: &[u8]| match part {
                    Some(part) => part.append(bytes),
                    None => Ok(()),
                };
                files.main.append(&self.main)?;
                append(&mut files.ids, &self.ids)?;
                append(&mut files.truncated, &self.truncated)?;
                append(&mut files.offsets, &self.offsets)?;
            }
        }
        self.main.clear();
        self.ids.clear();
        self.truncated.clear();
        self.offsets.clear();
        Ok(())
    }

    /// Data first, then the journal that speaks of it.
    fn journal(&mut self, complete: bool) -> Result<(), Failure> {
        let Out::Files { files, journal, written } = &mut self.out else { return Ok(()) };
        for part in files.parts() {
            part.sync()?;
            journal.bytes.insert(part.name.into(), part.bytes);
        }
        journal.counts = self.counts;
        journal.complete = complete;
        journal.write(&files.journal).map_err(|e| Failure::io(files.journal.display(), &e))?;
        *written = Some(Instant::now());
        Ok(())
    }
}

/// Why a vector cannot be stored as `dtype`.
pub(crate) fn storable(dtype: Dtype, vector: &[f32]) -> Result<(), String> {
    match dtype {
        Dtype::Float32 | Dtype::Int8 | Dtype::Uint8 | Dtype::Binary | Dtype::Ubinary => Ok(()),
        Dtype::Float16 => match raw::too_large_for_f16(vector) {
            Some(v) => Err(format!("component {v} is too large for float16 (use float32, or --normalize)")),
            None => Ok(()),
        },
    }
}
