//! Several devices, slow ones and ones that fail: the engine over backends that a test holds in its hand.

use berthier::backend::{Backend, BackendOptions, Capacity, Device, Precision, open};
use berthier::batch::PackedBatch;
use berthier::model::{ModelDesc, Weights};
use berthier::{Embedder, Error, Options, Result, Threads};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// Long enough for any machine; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The CPU backend, acting the part of another device.
#[derive(Clone)]
struct Script {
    name: &'static str,
    in_flight: usize,
    precision: Precision,
    delay: Duration,
    /// Called before each batch is computed, with the number of batches that this device has done.
    before: Option<Arc<dyn Fn(usize) + Send + Sync>>,
    /// Fails at this call of `submit` or `collect`, counted from 0.
    fail_submit: Option<usize>,
    fail_collect: Option<usize>,
    panics: bool,
    /// NaN in place of the vector of each sequence that holds this id.
    nan_at: Option<u32>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    computed: AtomicUsize,
    most_in_flight: AtomicUsize,
    threads: Mutex<Vec<ThreadId>>,
}

impl Script {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            in_flight: 1,
            precision: Precision::Fp32,
            delay: Duration::ZERO,
            before: None,
            fail_submit: None,
            fail_collect: None,
            panics: false,
            nan_at: None,
            seen: Arc::default(),
        }
    }

    fn computed(&self) -> usize {
        self.seen.computed.load(SeqCst)
    }
}

struct Actor {
    script: Script,
    inner: Box<dyn Backend>,
    queue: VecDeque<PackedBatch>,
    submitted: usize,
    collected: usize,
}

impl Actor {
    fn fail(&self) -> Result<()> {
        assert!(!self.script.panics, "as the script says");
        let message = "unspecified launch failure".into();
        Err(Error::DeviceLost { device: self.script.name.into(), message })
    }
}

impl Backend for Actor {
    fn name(&self) -> String {
        self.script.name.into()
    }

    fn kind(&self) -> String {
        self.inner.kind()
    }

    fn precision(&self) -> Precision {
        self.script.precision
    }

    fn capacity(&self) -> Capacity {
        Capacity { in_flight: self.script.in_flight, ..self.inner.capacity() }
    }

    fn submit(&mut self, batch: PackedBatch) -> Result<()> {
        self.submitted += 1;
        if self.script.fail_submit == Some(self.submitted - 1) {
            return self.fail();
        }
        assert!(batch.total_tokens() <= self.capacity().max_tokens && !batch.is_empty());
        self.queue.push_back(batch);
        assert!(self.queue.len() <= self.script.in_flight, "more than the capacity says");
        self.script.seen.most_in_flight.fetch_max(self.queue.len(), SeqCst);
        Ok(())
    }

    fn collect(&mut self, out: &mut [f32]) -> Result<PackedBatch> {
        let batch = self.queue.pop_front().expect("a batch was submitted");
        std::thread::sleep(self.script.delay);
        if let Some(before) = &self.script.before {
            before(self.script.computed());
        }
        self.collected += 1;
        if self.script.fail_collect == Some(self.collected - 1) {
            self.fail()?;
        }
        self.script.seen.threads.lock().unwrap().push(std::thread::current().id());
        self.inner.submit(batch)?;
        let batch = self.inner.collect(out)?;
        if let Some(id) = self.script.nan_at {
            let dim = out.len() / batch.len();
            for i in (0..batch.len()).filter(|&i| batch.ids[batch.seq(i)].contains(&id)) {
                out[i * dim + 1] = f32::NAN;
            }
        }
        self.script.seen.computed.fetch_add(1, SeqCst);
        Ok(batch)
    }
}

const TOKENS: usize = 100;

fn options() -> Options {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny/current-mean/model");
    Options::new(model)
        .threads(NonZeroUsize::new(1).unwrap())
        .batch_tokens(NonZeroUsize::new(TOKENS).unwrap())
}

fn plain() -> Embedder {
    Embedder::load(options()).unwrap()
}

fn with(scripts: &[Script]) -> Embedder {
    let open_all = |desc: &ModelDesc, weights: &Weights, options: &BackendOptions| {
        let actor = |script: &Script| {
            let threads = Threads::new(NonZeroUsize::new(1))?;
            let options = BackendOptions { threads, ..options.clone() };
            let inner = open(Device::Cpu, desc, weights, &options)?;
            let queue = VecDeque::new();
            let actor = Actor { script: script.clone(), inner, queue, submitted: 0, collected: 0 };
            Ok(Box::new(actor) as Box<dyn Backend>)
        };
        scripts.iter().map(actor).collect()
    };
    Embedder::load_with(options(), open_all).unwrap()
}

/// Ids and offsets of sequences of these lengths, all different.
fn sequences(embedder: &Embedder, seqlens: &[usize]) -> (Vec<u32>, Vec<usize>) {
    let vocab = embedder.model().vocab_size;
    let (mut ids, mut offsets) = (Vec::new(), vec![0]);
    for (i, &n) in seqlens.iter().enumerate() {
        ids.extend((0..n).map(|t| (6 + (i * 131 + t * 17) % (vocab - 6)) as u32));
        offsets.push(ids.len());
    }
    (ids, offsets)
}

fn bits(vectors: &[f32]) -> Vec<u32> {
    vectors.iter().map(|v| v.to_bits()).collect()
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// 60 sequences of up to 24 tokens: some batches of at most `TOKENS` or the model's length.
fn some(embedder: &Embedder) -> (Vec<u32>, Vec<usize>) {
    let seqlens: Vec<usize> = (0..60).map(|i| 1 + i * 7 % 24).collect();
    sequences(embedder, &seqlens)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn prop_devices_give_the_bits_of_one_in_the_callers_order(
        seqlens in prop::collection::vec(1usize..40, 0..80),
        devices in prop::collection::vec((1usize..4, 0u64..3, prop::option::of(0usize..4)), 1..4),
    ) {
        let embedder = plain();
        let (ids, offsets) = sequences(&embedder, &seqlens);
        let want = embedder.embed_ids(&ids, &offsets).unwrap();
        let mut scripts = Vec::new();
        for (i, (in_flight, delay_ms, failure)) in devices.into_iter().enumerate() {
            // the first device never fails
            let fail_collect = failure.filter(|_| i > 0);
            let delay = Duration::from_millis(delay_ms);
            scripts.push(Script { in_flight, delay, fail_collect, ..Script::new("actor") });
        }
        let embedder = with(&scripts);
        for _ in 0..2 {
            let got = embedder.embed_ids(&ids, &offsets).unwrap();
            prop_assert_eq!(bits(got.as_slice()), bits(want.as_slice()));
        }
    }
}

#[test]
fn slow_device_delays_nobody_else() {
    let fast = Script::new("fast");
    let others = fast.seen.clone();
    let batches = AtomicUsize::new(usize::MAX);
    let batches = Arc::new(batches);
    let all = batches.clone();
    // does not finish its batch before all the others are done
    let slow = Script {
        before: Some(Arc::new(move |_| {
            wait_for("the other device has done all the rest", || {
                others.computed.load(SeqCst) + 1 >= all.load(SeqCst)
            });
        })),
        ..Script::new("slow")
    };
    let one = Script { in_flight: 2, ..Script::new("one") };
    let (ids, offsets) = some(&plain());
    let want = with(std::slice::from_ref(&one)).embed_ids(&ids, &offsets).unwrap();
    assert!(one.computed() > 5, "{} batches", one.computed());
    batches.store(one.computed(), SeqCst);

    let embedder = with(&[slow.clone(), fast.clone()]);
    let got = embedder.embed_ids(&ids, &offsets).unwrap();
    assert_eq!(embedder.device_failures(), [""; 0], "patience was not lost");
    assert_eq!(bits(got.as_slice()), bits(want.as_slice()));
    assert!(slow.computed() <= 1, "{} batches of the slow device", slow.computed());
    assert_eq!(slow.computed() + fast.computed(), one.computed(), "the same batches, each once");
}

#[test]
fn device_that_fails_leaves_its_batches_to_another() {
    let (ids, offsets) = some(&plain());
    let want = plain().embed_ids(&ids, &offsets).unwrap();
    for panics in [false, true] {
        for (fail_submit, fail_collect) in
            [(Some(0), None), (Some(2), None), (None, Some(0)), (None, Some(2))]
        {
            let bad =
                Script { fail_submit, fail_collect, panics, in_flight: 2, ..Script::new("cuda:1 Lemon") };
            // slower, so that the other gets as far as its failure
            let good = Script { delay: Duration::from_millis(3), ..Script::new("cuda:0 Plum") };
            let embedder = with(&[good.clone(), bad.clone()]);
            let got = embedder.embed_ids(&ids, &offsets).unwrap();
            assert_eq!(bits(got.as_slice()), bits(want.as_slice()));
            let failures = embedder.device_failures();
            let why = if panics { "internal: as the script says" } else { "unspecified launch failure" };
            assert_eq!(failures, [format!("cuda:1 Lemon: {why}")]);
            // and is not asked again
            let got = embedder.embed_ids(&ids, &offsets).unwrap();
            assert_eq!(bits(got.as_slice()), bits(want.as_slice()));
            assert_eq!(embedder.device_failures().len(), 1);
        }
    }
}

#[test]
fn all_devices_failing_is_an_error_that_keeps_the_finished_rows() {
    let (ids, offsets) = some(&plain());
    let want = plain().embed_ids(&ids, &offsets).unwrap();
    let dim = want.dim();
    for panics in [false, true] {
        let scripts = ["cuda:0 Plum", "cuda:1 Lemon"].map(|name| Script {
            fail_collect: Some(2),
            in_flight: 2,
            panics,
            ..Script::new(name)
        });
        let embedder = with(&scripts);
        let mut out = vec![0.0; want.as_slice().len()];
        let error = embedder.embed_ids_into(&ids, &offsets, &mut out).unwrap_err();
        assert!(matches!(error, Error::DeviceLost { .. }), "{error}");
        let last = embedder.device_failures().pop().unwrap();
        let (name, why) = last.split_once(": ").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        assert!(error.to_string().starts_with(&name) && error.to_string().contains(&why), "{error}: {last}");

        let mut finished = 0;
        for (got, want) in out.chunks_exact(dim).zip(want.rows()) {
            if got.iter().any(|v| !v.is_nan()) {
                assert_eq!(bits(got), bits(want));
                finished += 1;
            }
        }
        let computed: usize = scripts.iter().map(Script::computed).sum();
        assert_eq!(computed, 4, "two batches of each device");
        assert!(finished >= 4 && finished < want.len(), "{finished} rows");

        // later calls fail alike, and at once
        let error = embedder.embed(&["a"]).unwrap_err();
        assert!(matches!(error, Error::DeviceLost { .. }), "{error}");
        assert_eq!(embedder.embed_ids(&[], &[0]).unwrap().len(), 0, "nothing needs no device");
    }
}

#[test]
fn row_that_is_not_finite_is_named_with_advice_where_precision_may_be_at_fault() {
    let (mut ids, offsets) = some(&plain());
    ids.iter_mut().filter(|id| **id == 7).for_each(|id| *id = 8);
    for row in [3, 41] {
        ids[offsets[row]] = 7;
    }
    for (precision, advice) in [(Precision::Fp16, true), (Precision::Bf16, false), (Precision::Fp32, false)] {
        for count in [1, 2] {
            let script = Script { nan_at: Some(7), precision, in_flight: 2, ..Script::new("cuda:0 Plum") };
            let embedder = with(&vec![script; count]);
            let mut out = vec![0.0; 60 * embedder.dim()];
            let error = embedder.embed_ids_into(&ids, &offsets, &mut out).unwrap_err();
            let Error::NonFinite { rows, .. } = &error else { panic!("{error}") };
            assert_eq!(rows, &[3, 41]);
            assert_eq!(error.to_string().contains("bf16"), advice, "{error}");
            for (row, vector) in out.chunks_exact(embedder.dim()).enumerate() {
                let bad = [3, 41].contains(&row);
                assert!(vector.iter().all(|v| v.is_nan() == bad), "row {row}");
            }
        }
    }
}

#[test]
fn device_computes_one_batch_while_the_next_is_queued() {
    let (ids, offsets) = some(&plain());
    for in_flight in [1, 2, 3] {
        let script = Script { in_flight, delay: Duration::from_millis(2), ..Script::new("cuda:0 Plum") };
        let embedder = with(&[script.clone(), script.clone()]);
        embedder.embed_ids(&ids, &offsets).unwrap();
        assert_eq!(script.seen.most_in_flight.load(SeqCst), in_flight);
    }
}

/// A text that knows whether it was read.
struct Text(String, Arc<AtomicBool>);

impl AsRef<str> for Text {
    fn as_ref(&self) -> &str {
        if self.0.starts_with("last") {
            self.1.store(true, SeqCst);
        }
        &self.0
    }
}

#[test]
fn next_window_is_tokenised_while_the_device_computes() {
    let text = "how do I reset my password";
    let in_window = plain().window_bytes() / (text.len() + 8);
    let read = Arc::new(AtomicBool::new(false));
    let mut texts: Vec<Text> = (0..in_window).map(|_| Text(text.into(), read.clone())).collect();

    let first_window = Script { in_flight: 2, ..Script::new("cuda:0 Plum") };
    with(std::slice::from_ref(&first_window)).embed(&texts).unwrap();
    let last_batch = first_window.computed() - 1;
    let until = read.clone();
    let script = Script {
        before: Some(Arc::new(move |computed| {
            if computed == last_batch {
                wait_for("the second window is read", || until.load(SeqCst));
            }
        })),
        seen: Arc::default(),
        ..first_window
    };
    // weighed and found to be too much for the first window, the last one is not
    texts.push(Text(text.into(), read.clone()));
    texts.push(Text("last".into(), read));
    let got = with(&[script]).embed(&texts).unwrap();
    let plain = plain().embed(&[text, "last"]).unwrap();
    assert_eq!(bits(got.row(0)), bits(plain.row(0)));
    assert_eq!(bits(got.row(in_window + 1)), bits(plain.row(1)));
    assert_eq!(got.tokens().len(), in_window + 2);
}

#[test]
fn single_text_is_computed_on_the_callers_thread() {
    let script = Script { in_flight: 2, ..Script::new("cuda:0 Plum") };
    let embedder = with(&[script.clone(), script.clone()]);
    for _ in 0..3 {
        embedder.embed(&["one text"]).unwrap();
    }
    assert_eq!(*script.seen.threads.lock().unwrap(), [std::thread::current().id(); 3]);
}

#[test]
fn single_text_finds_another_device_when_one_fails() {
    let bad = Script { fail_collect: Some(0), in_flight: 2, ..Script::new("cuda:0 Lemon") };
    let good = Script { in_flight: 2, ..Script::new("cuda:1 Plum") };
    let embedder = with(&[bad, good.clone()]);
    for _ in 0..2 {
        let got = embedder.embed(&["one text"]).unwrap();
        assert_eq!(bits(got.as_slice()), bits(plain().embed(&["one text"]).unwrap().as_slice()));
    }
    assert_eq!((good.computed(), embedder.device_failures().len()), (2, 1));
}

#[test]
fn calls_from_many_threads_get_their_own_rows() {
    let bad = Script { fail_submit: Some(9), in_flight: 3, ..Script::new("cuda:0 Lemon") };
    let good = Script { delay: Duration::from_millis(1), in_flight: 2, ..Script::new("cuda:1 Plum") };
    let (embedder, plain) = (with(&[bad, good]), plain());
    std::thread::scope(|scope| {
        for t in 0..4 {
            let (embedder, plain) = (&embedder, &plain);
            scope.spawn(move || {
                for n in [1, 5, 60] {
                    let seqlens: Vec<usize> = (0..n).map(|i| 1 + (i * 11 + t) % 30).collect();
                    let (ids, offsets) = sequences(plain, &seqlens);
                    let got = embedder.embed_ids(&ids, &offsets).unwrap();
                    let want = plain.embed_ids(&ids, &offsets).unwrap();
                    assert_eq!(bits(got.as_slice()), bits(want.as_slice()));
                }
            });
        }
    });
}

#[test]
fn capacity_is_what_every_device_takes_and_all_have_together() {
    let one = with(&[Script { in_flight: 2, ..Script::new("a") }]);
    let two = with(&[Script { in_flight: 2, ..Script::new("a") }, Script::new("b")]);
    assert_eq!(two.capacity().max_tokens, one.capacity().max_tokens);
    assert_eq!(two.capacity().in_flight, 3);
    assert_eq!(two.capacity().weight_bytes, 2 * one.capacity().weight_bytes);
    assert_eq!(two.device_name(), "a, b");
    assert_eq!(two.window_bytes(), one.window_bytes(), "the batches hang on no number of devices");
    assert_eq!((plain().parallel_calls(), one.parallel_calls()), (1, 2));
    assert!(two.parallel_calls() > 2);
}
