//! `berthier embed`: a reading thread, the computation on this one (with GPUs: and on some that wait for them), a writing
//! thread.

use super::args::{EmbedArgs, OnError, OnTruncate};
use super::compute::{Limits, Want, compute};
use super::input::{self, Block, Fields, Inputs, Message};
use super::journal::{Counts, Fingerprint};
use super::output::{Calibration, Claim, Computed, Dtype, Plan, Target, Writer, ranges_file};
use super::provenance;
use super::report::{Failure, Report, Speed, counted, grouped, print};
use super::{Outcome, calibrate, resolve};
use berthier::Embedder;
use berthier::backend::DeviceChoice;
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::ScopedJoinHandle;
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
    run_with(args, load)
}

/// [`run`] with the model that `load` gives.
fn run_with(
    args: &EmbedArgs,
    load: impl FnOnce(&EmbedArgs, &Report) -> Result<Embedder, Failure>,
) -> Result<Outcome, Failure> {
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
    let mut plan = Plan::new(out, args.output_format, args.dtype, args.id_field.is_some(), mark)?;
    plan.set_token_vectors(args.token_embeddings)?;
    calibrate::check(args, &plan)?;
    let claim = Claim::new(&plan, args.resume, args.overwrite)?;
    if let Claim::Completed { rows } = claim {
        report.note(&format!("{} in {}, complete", counted(rows, "row"), plan.name()));
        return Ok(Outcome::Done);
    }
    let prepared = load(args, &report).and_then(|embedder| {
        plan.calibration = calibrate::calibration(args, &embedder)?;
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
    let dim = if plan.token_vectors { embedder.token_dim() } else { embedder.dim() };
    let writer = Writer::begin(claim, &plan, dim, fingerprint)?;
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
    report.warnings(embedder.warnings());
    if args.model.device == DeviceChoice::Auto {
        let precision = embedder.devices()[0].precision;
        report.note(&format!("computing on {} in {precision}", embedder.device_name()));
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
    if plan.token_vectors {
        add("vectors", "of tokens".into());
    }
    if plan.dtype.has_ranges() {
        add(
            "ranges",
            match &plan.calibration {
                Calibration::FirstRows(rows) => format!("of the first {}", counted(*rows as u64, "row")),
                Calibration::Known(ranges) => {
                    format!("sha256 {}", provenance::hex(&Sha256::digest(ranges_file(ranges))))
                }
            },
        );
    }
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
        writer.write(block)?;
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
    want: Want,
    before: Counts,
    counts: Counts,
    longest: usize,
    /// Places of the first cut rows.
    cut: Vec<String>,
    /// Those that were said.
    failed_devices: usize,
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
            want: match (args.dry_run, args.token_embeddings) {
                (true, _) => Want::Counts,
                (false, true) => Want::TokenVectors,
                (false, false) => Want::Vector,
            },
            before,
            counts: before,
            longest: 0,
            cut: Vec::new(),
            failed_devices: 0,
            started: Instant::now(),
        }
    }

    /// Computes every block and gives it to `sink` in the input's order, until the input ends. As many blocks are computed
    /// at a time as keep the devices busy.
    fn run(
        &mut self,
        blocks: &Receiver<Message>,
        mut sink: impl FnMut(Computed) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let (embedder, limits, want) = (self.embedder, self.limits, self.want);
        let calls = embedder.parallel_calls();
        std::thread::scope(|scope| {
            let mut ahead: VecDeque<(u64, Task<'_>)> = VecDeque::new();
            let mut ended = false;
            loop {
                while !ended && ahead.len() < calls {
                    // a block that is done does not wait for input that is slow to come
                    let done = || ahead.front().is_some_and(|(_, task)| task.is_done());
                    match next_block(blocks, done)? {
                        Next::Block(Block { rows, position }) if calls == 1 => {
                            ahead.push_back((position, Task::Done(compute(embedder, rows, limits, want))));
                        }
                        Next::Block(Block { rows, position }) => {
                            let task = scope.spawn(move || compute(embedder, rows, limits, want));
                            ahead.push_back((position, Task::Running(task)));
                        }
                        Next::Nothing => break,
                        Next::End => ended = true,
                    }
                }
                let Some((position, task)) = ahead.pop_front() else { return Ok(()) };
                let (computed, failure) = task.wait()?;
                self.say_failed_devices();
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
        })
    }

    fn say_failed_devices(&mut self) {
        let failures = self.embedder.device_failures();
        for failure in &failures[self.failed_devices..] {
            self.report.warn(&format!("{failure}; the other devices go on"));
        }
        self.failed_devices = failures.len();
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

/// A block that is computed.
enum Task<'s> {
    Done(Result<(Computed, Option<Failure>), Failure>),
    Running(ScopedJoinHandle<'s, Result<(Computed, Option<Failure>), Failure>>),
}

impl Task<'_> {
    fn is_done(&self) -> bool {
        match self {
            Self::Done(_) => true,
            Self::Running(thread) => thread.is_finished(),
        }
    }

    fn wait(self) -> Result<(Computed, Option<Failure>), Failure> {
        match self {
            Self::Done(result) => result,
            Self::Running(thread) => thread
                .join()
                .unwrap_or_else(|_| Err(Failure::Error("internal: a computing thread failed".into()))),
        }
    }
}

/// What comes of the input.
enum Next {
    Block(Block),
    /// Nothing yet, and something else can be done.
    Nothing,
    End,
}

/// Waits for the next block, until `done`.
fn next_block(blocks: &Receiver<Message>, done: impl Fn() -> bool) -> Result<Next, Failure> {
    loop {
        if INTERRUPTED.load(Ordering::Relaxed) {
            return Err(Failure::Interrupted("no row was done".into()));
        }
        match blocks.recv_timeout(SIGNAL_POLL) {
            Ok(message) => return Ok(message?.map_or(Next::End, Next::Block)),
            Err(RecvTimeoutError::Timeout) if done() => return Ok(Next::Nothing),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(input::reading_failed()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Args, Command};
    use berthier::backend::{Backend, Capacity, Device, Precision, open};
    use berthier::batch::PackedBatch;
    use clap::Parser;
    use std::collections::VecDeque;
    use std::path::Path;

    /// The CPU, as a GPU that takes two batches at a time and fails after some.
    struct Failing {
        inner: Box<dyn Backend>,
        queue: VecDeque<PackedBatch>,
        left: usize,
        precision: Precision,
    }

    impl Backend for Failing {
        fn name(&self) -> String {
            "cuda:0 Lemon".into()
        }
        fn kind(&self) -> String {
            self.inner.kind()
        }
        fn precision(&self) -> Precision {
            self.precision
        }
        fn capacity(&self) -> Capacity {
            Capacity { in_flight: 2, ..self.inner.capacity() }
        }
        fn submit(&mut self, batch: PackedBatch) -> berthier::Result<()> {
            self.queue.push_back(batch);
            Ok(())
        }
        fn collect(&mut self, out: &mut [f32]) -> berthier::Result<PackedBatch> {
            if self.left == 0 {
                let (device, message) = (self.name(), "it fell off the bus".into());
                return Err(berthier::Error::DeviceLost { device, message });
            }
            self.left -= 1;
            std::thread::sleep(Duration::from_millis(1));
            self.inner.submit(self.queue.pop_front().expect("a batch was submitted"))?;
            self.inner.collect(out)
        }
    }

    fn args(dir: &Path, out: &str, more: &[&str]) -> EmbedArgs {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny/current-mean/model");
        let path = |name: &str| dir.join(name).display().to_string();
        let (input, out) = (path("in.txt"), path(out));
        let words =
            ["berthier", "embed", &input, "-o", &out, "-m", model, "--threads", "1", "--batch-tokens", "100"];
        let args = Args::try_parse_from(words.iter().chain(&["--device", "cpu", "-q"]).chain(more)).unwrap();
        let Command::Embed(args) = args.command else { panic!("not embed") };
        args
    }

    /// Runs on devices that compute so many batches each before they fail.
    fn run_on(args: &EmbedArgs, precision: Precision, batches: &[usize]) -> Result<Outcome, Failure> {
        run_with(args, |args, _| {
            let options = args.vectors.options(&args.model, args.model.model.as_deref().unwrap().as_ref())?;
            Ok(Embedder::load_with(options, |desc, weights, options| {
                let device = |&left: &usize| {
                    let inner = open(Device::Cpu, desc, weights, options)?;
                    Ok(Box::new(Failing { inner, queue: VecDeque::new(), left, precision })
                        as Box<dyn Backend>)
                };
                batches.iter().map(device).collect()
            })?)
        })
    }

    /// Processes that other tests start hold the lock of our file between their fork and their exec.
    fn unlocked(run: impl Fn() -> Result<Outcome, Failure>) -> Result<Outcome, Failure> {
        let start = Instant::now();
        loop {
            match run() {
                Err(Failure::Error(m)) if m.contains("another run") && start.elapsed().as_secs() < 30 => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                result => return result,
            }
        }
    }

    #[test]
    fn rows_before_a_lost_device_are_kept_and_another_device_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
        let texts: String = (0..600).map(|i| format!("text {i} {}\n", "of words ".repeat(i % 5))).collect();
        std::fs::write(dir.path().join("in.txt"), texts).unwrap();
        run(&args(dir.path(), "want.npy", &[])).unwrap();

        // one of two fails
        run_on(&args(dir.path(), "two.npy", &[]), Precision::Fp32, &[usize::MAX, 5]).unwrap();
        assert_eq!(read("two.npy"), read("want.npy"));

        // the last one fails: the error names it, and the rest is for --resume
        let failure = run_on(&args(dir.path(), "lost.npy", &[]), Precision::Fp32, &[60]).unwrap_err();
        let Failure::Error(message) = failure else { panic!("{failure:?}") };
        assert!(message.contains("cuda:0 Lemon failed: it fell off the bus"), "{message}");
        assert!(!dir.path().join("lost.npy").exists());
        let kept = read("lost.npy.partial").len();
        assert!(kept > 1000 && kept < read("want.npy").len(), "{kept} bytes are kept");
        let resume = args(dir.path(), "lost.npy", &["--resume"]);
        let failure = unlocked(|| run_on(&resume, Precision::Bf16, &[usize::MAX])).unwrap_err();
        let Failure::Error(message) = failure else { panic!("{failure:?}") };
        assert!(message.contains("precision: was fp32, is bf16"), "{message}");
        unlocked(|| run(&resume)).unwrap();
        assert_eq!(read("lost.npy"), read("want.npy"));
    }
}
