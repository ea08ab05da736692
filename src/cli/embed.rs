//! `berthier embed`: a reading thread, the computation on this one, a writing thread.

use super::args::{EmbedArgs, OnError, OnTruncate};
use super::compute::{Limits, compute};
use super::input::{Block, Fields, Inputs, Message};
use super::journal::{Counts, Fingerprint};
use super::output::{Claim, Computed, Dtype, Plan, Target, Writer};
use super::provenance;
use super::report::{Failure, Report, Speed, counted, grouped, print};
use super::{Outcome, resolve};
use berthier::Embedder;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Computed blocks that wait for the disk.
const BLOCKS_TO_WRITE: usize = 1;
/// How soon a signal is seen while the input is silent.
const SIGNAL_POLL: Duration = Duration::from_millis(100);
/// Bad or cut rows that are named one by one.
const NAMED_ROWS: usize = 10;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Runs the command.
pub(crate) fn run(args: &EmbedArgs) -> Result<Outcome, Failure> {
    let mut report = Report::new(args.quiet);
    if args.files.is_empty() && std::io::stdin().is_terminal() {
        return Err(Failure::Error(
            "no input: name files, or pipe text in ('-' reads from the terminal)".into(),
        ));
    }
    let fields = Fields { text: args.field.clone(), id: args.id_field.clone() };
    let inputs = Inputs::check(&args.files, args.input_format, fields, args.max_line_bytes.get())?;
    let Some(out) = args.output.as_ref().filter(|_| !args.dry_run) else {
        return dry_run(args, inputs, &mut report);
    };

    // everything that can be wrong with the output is said before the model is loaded
    let mark = args.on_truncate == OnTruncate::Mark;
    let plan = Plan::new(out, args.output_format, args.dtype, args.id_field.is_some(), mark)?;
    let claim = Claim::new(&plan, args.resume, args.overwrite)?;
    if let Claim::Completed { rows } = claim {
        report.note(&format!("{} in {}, complete", counted(rows, "row"), plan.name()));
        return Ok(Outcome::Done);
    }
    let prepared = load(args, &report).and_then(|embedder| {
        let fingerprint = fingerprint(args, &embedder, &inputs, &plan)?;
        Ok((embedder, fingerprint))
    });
    let (embedder, fingerprint) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => {
            claim.abandon();
            return Err(failure);
        }
    };
    let writer = Writer::begin(claim, &plan, embedder.dim(), fingerprint)?;
    catch_signals(&plan);

    let before = writer.counts();
    if before.rows > 0 {
        report.note(&format!("resuming behind {}", counted(before.rows, "row")));
    }
    report.start(inputs.total_bytes());
    let mut session = Session::new(args, plan.dtype, &embedder, &mut report, before);
    let blocks = inputs.read(before.rows, embedder.window_bytes());
    let (to_writer, computed) = sync_channel(BLOCKS_TO_WRITE);
    let writing = std::thread::spawn(move || write(writer, computed));
    let outcome = session.run(&blocks, |block| send(&to_writer, block));
    drop(to_writer);
    let (started, cut) = (session.started, session.cut);
    report.clear();
    let writer = writing
        .join()
        .unwrap_or_else(|_| Err(Failure::Error("internal: the writing thread failed".into())))?;

    if let Err(failure) = outcome {
        return Err(stopped(writer, failure, &plan, &report));
    }
    let counts = writer.finish()?;
    let seconds = started.elapsed().as_secs_f64();
    warn_of_cut_rows(&report, &counts, &cut, &embedder, plan.mark_truncated);
    let speed = Speed { rows: counts.rows - before.rows, tokens: counts.tokens - before.tokens, seconds };
    report.note(&format!(
        "{}, {}, {} truncated, {} bad, {seconds:.1} s, {speed}, {}",
        counted(counts.rows, "row"),
        counted(counts.tokens, "token"),
        grouped(counts.truncated),
        grouped(counts.bad),
        plan.name()
    ));
    Ok(if counts.bad > 0 { Outcome::BadRows } else { Outcome::Done })
}

fn load(args: &EmbedArgs, report: &Report) -> Result<Embedder, Failure> {
    let dir = resolve(&args.model, report)?;
    let embedder = Embedder::load(args.vectors.options(&args.model, &dir)?)?;
    for warning in embedder.warnings() {
        report.warn(warning);
    }
    Ok(embedder)
}

/// Everything that the output's bytes depend on. What only decides whether a run stops is left out, so that
/// a run that stopped at a bad row can go on with `--on-error skip`.
fn fingerprint(
    args: &EmbedArgs,
    embedder: &Embedder,
    inputs: &Inputs,
    plan: &Plan,
) -> Result<Fingerprint, Failure> {
    let mut items = provenance::of(embedder, args.vectors.normalization())?;
    let mut add = |name: &str, value: String| items.insert(name.into(), value);
    add("output format", format!("{:?} {:?}", plan.format, plan.dtype));
    add("marks of cut rows", plan.mark_truncated.to_string());
    add("field", args.field.clone());
    add("id field", format!("{:?}", args.id_field));
    for (i, source) in inputs.sources.iter().enumerate() {
        let stamp = source.stamp.as_deref().unwrap_or("a stream");
        add(&format!("input {:03}", i + 1), format!("{} ({:?}, {stamp})", source.name(), source.format));
    }
    Ok(items)
}

/// Makes the first signal end the run between two blocks, and the second at once.
fn catch_signals(plan: &Plan) {
    if !matches!(plan.target, Target::File(_)) {
        return;
    }
    // without a handler a signal kills, which the journal makes harmless
    let _ = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    });
}

/// Why nothing more is computed.
enum Stop {
    Failure(Failure),
    /// The writing thread ended; it knows why.
    WriterGone,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

fn send(sender: &SyncSender<Computed>, block: Computed) -> Result<(), Stop> {
    sender.send(block).map_err(|_| Stop::WriterGone)
}

fn write(mut writer: Writer, blocks: Receiver<Computed>) -> Result<Writer, Failure> {
    for block in blocks {
        writer.write(&block)?;
    }
    Ok(writer)
}

/// Keeps the rows that are done; gives the failure with how to go on.
fn stopped(writer: Writer, stop: Stop, plan: &Plan, report: &Report) -> Failure {
    let kept = match writer.suspend() {
        Ok(kept) => kept,
        Err(failure) => return failure,
    };
    let failure = match stop {
        Stop::Failure(failure) => failure,
        Stop::WriterGone => Failure::Error("internal: the writing thread ended early".into()),
    };
    if kept == 0 || !matches!(plan.target, Target::File(_)) {
        return failure;
    }
    let kept = format!("after {}; --resume goes on, --overwrite starts afresh", counted(kept, "row"));
    match failure {
        Failure::Interrupted(_) => Failure::Interrupted(kept),
        Failure::Error(message) => {
            report.note(&format!("stopped {kept}"));
            Failure::Error(message)
        }
        Failure::BrokenPipe => Failure::BrokenPipe,
    }
}

fn warn_of_cut_rows(report: &Report, counts: &Counts, cut: &[String], embedder: &Embedder, marked: bool) {
    if counts.truncated > 0 {
        let first = if cut.is_empty() { String::new() } else { format!(": {}", cut.join(", ")) };
        let more = if counts.truncated > cut.len() as u64 && !cut.is_empty() { ", ..." } else { "" };
        let hint = if marked { "" } else { " (--on-truncate mark lists them)" };
        report.warn(&format!(
            "{} cut at {} tokens{hint}{first}{more}",
            counted(counts.truncated, "text"),
            embedder.max_seq_length()
        ));
    }
}

/// One walk over the input.
struct Session<'a> {
    embedder: &'a Embedder,
    report: &'a mut Report,
    limits: Limits,
    compute_vectors: bool,
    before: Counts,
    counts: Counts,
    longest: usize,
    /// Places of the first cut rows.
    cut: Vec<String>,
    started: Instant,
}

impl<'a> Session<'a> {
    fn new(
        args: &EmbedArgs,
        dtype: Dtype,
        embedder: &'a Embedder,
        report: &'a mut Report,
        before: Counts,
    ) -> Self {
        Self {
            embedder,
            report,
            limits: Limits {
                stop_at_bad: args.on_error == OnError::Stop,
                stop_at_cut: args.on_truncate == OnTruncate::Error,
                dtype,
            },
            compute_vectors: !args.dry_run,
            before,
            counts: before,
            longest: 0,
            cut: Vec::new(),
            started: Instant::now(),
        }
    }

    /// Computes every block and gives it to `sink`, until the input ends.
    fn run(
        &mut self,
        blocks: &Receiver<Message>,
        mut sink: impl FnMut(Computed) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        while let Some(Block { rows, position }) = next_block(blocks)? {
            let (computed, failure) = compute(self.embedder, rows, self.limits, self.compute_vectors)?;
            self.count(&computed);
            sink(computed)?;
            if let Some(failure) = failure {
                return Err(failure.into());
            }
            let speed = Speed {
                rows: self.counts.rows - self.before.rows,
                tokens: self.counts.tokens - self.before.tokens,
                seconds: self.started.elapsed().as_secs_f64(),
            };
            self.report.progress(position, self.counts.rows, &speed);
        }
        Ok(())
    }

    fn count(&mut self, block: &Computed) {
        for (row, tokens) in block.rows.iter().zip(&block.tokens) {
            self.counts.rows += 1;
            self.counts.tokens += tokens.used as u64;
            self.longest = self.longest.max(tokens.total);
            if tokens.truncated() {
                self.counts.truncated += 1;
                if self.cut.len() < NAMED_ROWS {
                    self.cut.push(row.place.to_string());
                }
            }
            if let Err(message) = &row.text {
                self.counts.bad += 1;
                if self.counts.bad - self.before.bad <= NAMED_ROWS as u64 {
                    self.report.bad_row(&format!("{}: {message}", row.place));
                } else if self.counts.bad - self.before.bad == NAMED_ROWS as u64 + 1 {
                    self.report.bad_row("more rows, which are only counted from here on");
                }
            }
        }
    }
}

fn next_block(blocks: &Receiver<Message>) -> Result<Option<Block>, Failure> {
    loop {
        if INTERRUPTED.load(Ordering::Relaxed) {
            return Err(Failure::Interrupted("no row was done".into()));
        }
        match blocks.recv_timeout(SIGNAL_POLL) {
            Ok(message) => return message,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Failure::Error("internal: the reading thread failed".into()));
            }
        }
    }
}

/// Counts on stdout what a run would do.
fn dry_run(args: &EmbedArgs, inputs: Inputs, report: &mut Report) -> Result<Outcome, Failure> {
    let embedder = load(args, report)?;
    report.start(inputs.total_bytes());
    let mut session = Session::new(args, Dtype::Float32, &embedder, report, Counts::default());
    let blocks = inputs.read(0, embedder.window_bytes());
    let result = session.run(&blocks, |_| Ok(()));
    let (counts, longest, cut) = (session.counts, session.longest, session.cut);
    report.clear();
    match result {
        Err(Stop::Failure(failure)) => return Err(failure),
        Err(Stop::WriterGone) | Ok(()) => {}
    }
    warn_of_cut_rows(report, &counts, &cut, &embedder, false);
    print(&format!(
        "rows            {}\nbad rows        {}\ntokens          {}\nlongest text    {longest} tokens\n\
         truncated rows  {} (at {} tokens)\nvector          {} components\n",
        counts.rows,
        counts.bad,
        counts.tokens,
        counts.truncated,
        embedder.max_seq_length(),
        embedder.dim()
    ))?;
    Ok(if counts.bad > 0 { Outcome::BadRows } else { Outcome::Done })
}
