//! A small batch alone: what the host calls for it, that kernels may reach the host's memory or not, and the time by the GPU's clock.

use crate::counting;
use crate::golden::fixtures;
use crate::models::{LAUNCHES, batch, desc, matches_reference, run, sequences};
use crate::recorded::rows_of;
use crate::stand_in::on_stand_in;
use berthier::backend::{Backend, BackendOptions, Device, DeviceTime, PersistentKernel, Precision, open};
use berthier::model::Weights;
use berthier::{Embedder, Error, Options, Threads};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::process::Command;
use std::time::Duration;

/// What the driver is told not to do: let kernels reach the host's memory.
const MAPS: &str = "BERTHIER_EMU_MAPS_HOST_MEMORY";

fn options(persistent_kernel: PersistentKernel) -> BackendOptions {
    let threads = Threads::new(NonZeroUsize::new(1)).unwrap();
    let (precision, max_tokens) = (Precision::Fp16, Some(512));
    BackendOptions { precision, max_tokens, persistent_kernel, ..BackendOptions::new(threads) }
}

fn small(options: &BackendOptions) -> Box<dyn Backend> {
    let desc = desc();
    open(Device::Cuda(0), &desc, &Weights::random(&desc, 7), options).unwrap_or_else(|e| panic!("{e}"))
}

/// How often each call of the driver is in the file, from its line `from` on; but for asking which context is current.
fn calls(file: &str, from: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in std::fs::read_to_string(file).unwrap().lines().skip(from) {
        if line != "cuCtxGetCurrent" {
            *counts.entry(line.to_owned()).or_default() += 1;
        }
    }
    counts
}

fn lines(file: &str) -> usize {
    std::fs::read_to_string(file).unwrap_or_default().lines().count()
}

fn counted(counts: &[(&str, usize)]) -> BTreeMap<String, usize> {
    counts.iter().map(|&(name, count)| (name.to_owned(), count)).collect()
}

/// The calls of a batch that others like it came before.
fn calls_of_a_batch(cuda: &mut dyn Backend, file: &str) -> BTreeMap<String, usize> {
    let desc = desc();
    let seqs = sequences(&[9, 17], &desc);
    // each slot meets its shape, and records it
    for _ in 0..4 {
        run(cuda, batch(&[0, 1], &seqs), desc.dim());
    }
    let before = lines(file);
    run(cuda, batch(&[1, 0], &seqs), desc.dim());
    calls(file, before)
}

/// What the host calls for a batch in one launch; `maps`: whether kernels reach the host's memory.
fn one_launch_is(name: &str, maps: &str, want: &[(&str, usize)]) {
    let file = format!("{}/calls-one-launch-{maps}.txt", env!("CARGO_TARGET_TMPDIR"));
    on_stand_in(name, &[&counting_calls(&file)[..], &[(MAPS, maps)]].concat(), || {
        let found = calls_of_a_batch(&mut *small(&options(PersistentKernel::Always)), &file);
        assert_eq!(found, counted(want));
    });
}

/// Switches: calls are written to a file, batches are done when they are asked for, and a launch has three blocks.
fn counting_calls(file: &str) -> [(&str, &str); 3] {
    [("BERTHIER_EMU_CALLS", file), ("BERTHIER_EMU_STREAMS", "eager"), ("BERTHIER_EMU_MULTIPROCESSORS", "3")]
}

#[test]
fn a_batch_in_one_launch_is_a_launch_and_an_event() {
    let name = "latency::a_batch_in_one_launch_is_a_launch_and_an_event";
    one_launch_is(name, "1", &[("cuLaunchKernelEx", 1), ("cuEventRecord", 1), ("cuEventQuery", 1)]);
}

#[test]
fn where_kernels_do_not_reach_the_host_a_batch_in_one_launch_is_copied() {
    let name = "latency::where_kernels_do_not_reach_the_host_a_batch_in_one_launch_is_copied";
    let copies = [("cuMemcpyHtoDAsync_v2", 1), ("cuMemcpyDtoHAsync_v2", 1)];
    let rest = [("cuLaunchKernelEx", 1), ("cuEventRecord", 1), ("cuEventQuery", 1)];
    one_launch_is(name, "0", &[&copies[..], &rest].concat());
}

/// Kernel by kernel: one stream if it is alone, else one for each kind of work.
#[test]
fn a_batch_in_a_graph_is_a_launch_and_two_copies() {
    let file = concat!(env!("CARGO_TARGET_TMPDIR"), "/calls-graph.txt");
    let name = "latency::a_batch_in_a_graph_is_a_launch_and_two_copies";
    let switches = [("BERTHIER_EMU_CALLS", file), ("BERTHIER_EMU_STREAMS", "eager")];
    on_stand_in(name, &switches, || {
        let mut cuda = small(&options(PersistentKernel::Never));
        let copies = [("cuMemcpyHtoDAsync_v2", 1), ("cuMemcpyDtoHAsync_v2", 1), ("cuGraphLaunch", 1)];
        let mut want = counted(&copies);
        want.extend(counted(&[("cuEventRecord", 1), ("cuEventQuery", 1)]));
        assert_eq!(calls_of_a_batch(&mut *cuda, file), want);

        let desc = desc();
        let seqs = sequences(&[9, 17], &desc);
        let mut out = vec![f32::NAN; 2 * desc.dim()];
        cuda.submit(batch(&[0, 1], &seqs)).unwrap();
        let before = lines(file);
        cuda.submit(batch(&[1, 0], &seqs)).unwrap();
        let mut want = counted(&copies);
        want.extend(counted(&[("cuEventRecord", 3), ("cuStreamWaitEvent", 2)]));
        assert_eq!(calls(file, before), want);
        cuda.collect(&mut out).unwrap();
        cuda.collect(&mut out).unwrap();
        assert!(out.iter().all(|v| v.is_finite()));
    });
}

/// Single calls through the library, of an embedder whose GPU is free.
#[test]
fn a_call_from_ids_is_a_launch_and_an_event_and_allocates_nothing() {
    let file = concat!(env!("CARGO_TARGET_TMPDIR"), "/calls-embedder.txt");
    let name = "latency::a_call_from_ids_is_a_launch_and_an_event_and_allocates_nothing";
    on_stand_in(name, &counting_calls(file), || {
        let dir = fixtures().join("tiny/no-modules/model");
        let options = Options::new(dir.to_str().expect("a UTF-8 path")).device(Device::Cuda(0));
        let options = options.persistent_kernel(PersistentKernel::Always).precision(Precision::Fp16);
        let embedder = Embedder::load(options).unwrap_or_else(|e| panic!("{e}"));
        let (ids, offsets) = ([5, 6, 7, 8, 9], [0, 2, 5]);
        let mut vectors = vec![f32::NAN; 2 * embedder.dim()];
        let (mut counts, mut allocations) = (BTreeMap::new(), usize::MAX);
        for i in 0..3 {
            let (before, allocated) = (lines(file), counting::calls());
            embedder.embed_ids_into(&ids, &offsets, &mut vectors).unwrap();
            allocations = counting::calls() - allocated;
            counts = calls(file, before);
            assert!(i > 0 || allocations > 0, "the counter counts: memory grows at first");
        }
        assert_eq!(allocations, 0);
        let want = counted(&[("cuLaunchKernelEx", 1), ("cuEventRecord", 1), ("cuEventQuery", 1)]);
        assert_eq!(counts, want);
        assert!(vectors.iter().all(|v| v.is_finite()));
    });
}

/// Batches of one launch, alone and two in flight, in both ways; once more where streams run at the call.
#[test]
fn vectors_have_the_same_bits_with_and_without_copies() {
    let name = "latency::vectors_have_the_same_bits_with_and_without_copies";
    let folder = env!("CARGO_TARGET_TMPDIR");
    let file = |maps: &str, streams: &str| format!("{folder}/mapped-{maps}-{streams}.bits");
    let ways = [("1", "late"), ("0", "late"), ("1", "eager")];
    let child = std::env::var_os("BERTHIER_CUDA_TEST").is_some();
    if !child {
        ways.iter().for_each(|(maps, streams)| drop(std::fs::remove_file(file(maps, streams))));
    }
    for (maps, streams) in ways {
        let switches =
            [(MAPS, maps), ("BERTHIER_EMU_STREAMS", streams), ("BERTHIER_EMU_MULTIPROCESSORS", "3")];
        on_stand_in(name, &switches, || {
            let desc = desc();
            let mut cuda = small(&options(PersistentKernel::Always));
            let seqs = sequences(&[5, 40, 1, 33, 130], &desc);
            let batches: [&[usize]; 5] = [&[0], &[1, 2], &[4], &[3], &[2, 0]];
            let alone = batches.map(|rows| run(&mut *cuda, batch(rows, &seqs), desc.dim()));
            matches_reference(&desc, &mut *cuda, &[5, 40, 1], 4e-3);
            cuda.submit(batch(batches[0], &seqs)).unwrap();
            for (i, want) in alone.iter().enumerate() {
                if let Some(next) = batches.get(i + 1) {
                    cuda.submit(batch(next, &seqs)).unwrap();
                }
                let mut out = vec![f32::NAN; want.len()];
                cuda.collect(&mut out).unwrap();
                assert_eq!(&out, want, "batch {i}");
            }
            let bits: Vec<u8> = alone.iter().flatten().flat_map(|v| v.to_le_bytes()).collect();
            let [maps, streams] = [MAPS, "BERTHIER_EMU_STREAMS"].map(|name| std::env::var(name).unwrap());
            std::fs::write(file(&maps, &streams), bits).unwrap();
        });
    }
    // without a compiler there are none
    let bits = ways.map(|(maps, streams)| std::fs::read(file(maps, streams)).ok());
    if !child {
        assert!(bits.iter().all(|b| *b == bits[0] && b.as_ref().is_none_or(|b| !b.is_empty())));
    }
}

/// The second of the batches in one launch fails, or the device is gone: the first one's vectors are right, then there are errors, and
/// the end comes all the same.
fn fails_in_the_second_launch(name: &str, switch: &str, maps: &str) {
    let switches = [(switch, "2"), (MAPS, maps), ("BERTHIER_EMU_MULTIPROCESSORS", "3")];
    on_stand_in(name, &switches, || {
        let desc = desc();
        let mut cuda = small(&options(PersistentKernel::Always));
        let make = || batch(&[0], &sequences(&[5], &desc));
        let good = run(&mut *cuda, make(), desc.dim());
        assert!(good.iter().all(|v| v.is_finite()));
        let mut out = vec![f32::NAN; desc.dim()];
        // both are on their way when the first of them fails
        let both = cuda.submit(make()).and_then(|()| cuda.submit(make()));
        let error = both.and_then(|()| cuda.collect(&mut out)).expect_err("it fails");
        assert!(
            matches!(&error, Error::DeviceLost { device, .. } if device.starts_with("cuda:0")),
            "{error}"
        );
        let again = cuda.collect(&mut out);
        assert!(matches!(again, Err(Error::DeviceLost { .. })), "it stays failed");
    });
}

#[test]
fn a_failed_launch_that_writes_to_the_host_is_an_error() {
    let name = "latency::a_failed_launch_that_writes_to_the_host_is_an_error";
    fails_in_the_second_launch(name, "BERTHIER_EMU_FAIL_LAUNCH", "1");
}

#[test]
fn a_device_lost_while_it_writes_to_the_host_is_an_error() {
    let name = "latency::a_device_lost_while_it_writes_to_the_host_is_an_error";
    fails_in_the_second_launch(name, "BERTHIER_EMU_LOSE_DEVICE", "1");
}

#[test]
fn a_failed_launch_between_copies_is_an_error() {
    let name = "latency::a_failed_launch_between_copies_is_an_error";
    fails_in_the_second_launch(name, "BERTHIER_EMU_FAIL_LAUNCH", "0");
}

/// What two batches of one sequence take, by kernels of 10 µs and copies of 3.
fn time_of_two(options: &BackendOptions, in_flight: bool) -> DeviceTime {
    let desc = desc();
    let mut cuda = small(options);
    let make = || batch(&[0], &sequences(&[9], &desc));
    let mut out = vec![f32::NAN; desc.dim()];
    run(&mut *cuda, make(), desc.dim());
    assert_eq!(cuda.stop_timing(), None, "nobody has started");
    cuda.start_timing().unwrap();
    cuda.submit(make()).unwrap();
    if !in_flight {
        cuda.collect(&mut out).unwrap();
    }
    cuda.submit(make()).unwrap();
    if in_flight {
        cuda.collect(&mut out).unwrap();
    }
    cuda.collect(&mut out).unwrap();
    let time = cuda.stop_timing().expect("a GPU has a clock");
    run(&mut *cuda, make(), desc.dim());
    assert_eq!(cuda.stop_timing(), None);
    time
}

fn us(total: usize, kernels: usize) -> DeviceTime {
    let us = |us: usize| Duration::from_micros(us as u64);
    DeviceTime { total: us(total), kernels: us(kernels) }
}

/// The clock's floats of milliseconds hold a millionth.
fn near(found: DeviceTime, want: DeviceTime) {
    let near = |a: Duration, b: Duration| a.abs_diff(b) < Duration::from_nanos(100);
    assert!(near(found.total, want.total) && near(found.kernels, want.kernels), "{found:?}, not {want:?}");
}

#[test]
fn time_is_that_of_the_gpus_clock() {
    let name = "latency::time_is_that_of_the_gpus_clock";
    let kernel_by_kernel = || BackendOptions { cuda_graphs: false, ..options(PersistentKernel::Never) };
    for maps in ["1", "0"] {
        // in the child both turns are as it was started
        let switches = [
            ("BERTHIER_EMU_KERNEL_US", "10"),
            ("BERTHIER_EMU_COPY_US", "3"),
            ("BERTHIER_EMU_MULTIPROCESSORS", "3"),
            (MAPS, maps),
        ];
        on_stand_in(name, &switches, || {
            // the persistent kernel alone, or with both copies
            let copies = if std::env::var(MAPS).unwrap() == "1" { 0 } else { 2 * 6 };
            near(time_of_two(&options(PersistentKernel::Always), false), us(20 + copies, 20));
            let invariant = BackendOptions { batch_invariant: true, ..kernel_by_kernel() };
            let kernels = 2 * 10 * LAUNCHES;
            near(time_of_two(&invariant, false), us(kernels + 2 * 6, kernels));
        });
    }
}

/// Copies in streams of their own, beside another batch.
#[test]
fn time_of_batches_in_flight_counts_their_kernels_once() {
    let name = "latency::time_of_batches_in_flight_counts_their_kernels_once";
    let switches = [("BERTHIER_EMU_KERNEL_US", "10"), ("BERTHIER_EMU_COPY_US", "3")];
    on_stand_in(name, &switches, || {
        let options =
            BackendOptions { batch_invariant: true, cuda_graphs: false, ..options(PersistentKernel::Never) };
        let found = time_of_two(&options, true);
        let kernels = 2 * 10 * LAUNCHES;
        near(DeviceTime { total: found.kernels, ..found }, us(kernels, kernels));
        assert!(found.total >= Duration::from_micros(kernels as u64 + 2 * 6), "{found:?}");
    });
}

/// Twice the 50 MiB of the stand-in's L2, in memory that stays.
#[test]
fn caches_are_swept_by_writing_more_than_they_hold() {
    let file = concat!(env!("CARGO_TARGET_TMPDIR"), "/calls-sweep.txt");
    let name = "latency::caches_are_swept_by_writing_more_than_they_hold";
    on_stand_in(name, &[("BERTHIER_EMU_CALLS", file)], || {
        let mut cuda = small(&options(PersistentKernel::Never));
        let before = lines(file);
        for _ in 0..2 {
            assert_eq!(cuda.sweep_caches().unwrap(), 100 << 20);
        }
        let calls = calls(file, before);
        assert_eq!([calls["cuMemAlloc_v2"], calls["cuMemsetD8Async"]], [1, 2]);
        matches_reference(&desc(), &mut *cuda, &[5, 2], 4e-3);
    });
}

#[test]
fn a_sweep_without_memory_is_an_error() {
    let name = "latency::a_sweep_without_memory_is_an_error";
    on_stand_in(name, &[("BERTHIER_EMU_MEMORY_BYTES", "90000000")], || {
        let error = small(&options(PersistentKernel::Never)).sweep_caches().expect_err("100 MiB of 90 MB");
        assert!(matches!(&error, Error::DeviceMemory { needed_bytes, .. } if *needed_bytes == 100 << 20));
    });
}

/// What `berthier bench latency` prints of the small model in fp16, behind one warm-up call.
fn bench(more: &[&str]) -> String {
    let model = fixtures().join("tiny/no-modules/model");
    let mut command = Command::new(env!("CARGO_BIN_EXE_berthier"));
    command.args(["bench", "latency", "--device", "cuda:0", "--precision", "fp16"]);
    command.args(["--warmup", "1", "--model"]).arg(&model).args(more);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Its words of the table's line that begins with these.
fn row<'t>(table: &'t str, begin: &str) -> Vec<&'t str> {
    let of = |line: &'t str| line.split_whitespace().collect::<Vec<_>>();
    let found = table.lines().map(of).find(|words| words.join(" ").starts_with(begin));
    found.unwrap_or_else(|| panic!("no {begin} in {table}"))
}

/// `berthier bench latency`: the GPU's time beside the host's, in the table, the JSON, the plot and a comparison.
#[test]
fn bench_tells_the_gpus_time_and_the_hosts() {
    let name = "latency::bench_tells_the_gpus_time_and_the_hosts";
    let switches = [
        ("BERTHIER_EMU_KERNEL_US", "10"),
        ("BERTHIER_EMU_COPY_US", "3"),
        ("BERTHIER_EMU_MULTIPROCESSORS", "3"),
        (MAPS, "0"),
    ];
    on_stand_in(name, &switches, || {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let what =
            ["--persistent-kernel", "always", "--lengths", "6", "--batch-sizes", "1", "--samples", "10"];
        let bench = |more: &[&str]| bench(&[&what, more].concat());
        let text = bench(&["--json", "--plot", path("a.svg").to_str().unwrap()]);
        let json: Value = serde_json::from_str(&text).unwrap();
        let names: Vec<_> = json["series"].as_array().unwrap().iter().map(|s| &s["name"]).collect();
        assert_eq!(names, ["latency text 6x1", "latency ids 6x1", "gpu 6x1", "gpu-kernels 6x1"]);
        let close = |value: &Value, want: f64| (value.as_f64().unwrap() - want).abs() < 0.1;
        for (i, want) in [(2, 16.0), (3, 10.0)] {
            let samples = json["series"][i]["samples"].as_array().unwrap();
            assert!(samples.len() == 10 && samples.iter().all(|s| close(s, want)), "{samples:?}");
        }
        let point = &json["points"][1];
        assert!(close(&point["gpu_us"]["p50"], 16.0) && close(&point["gpu_kernels_us"]["p90"], 10.0));
        assert!(point["gpu_us"]["p99"].is_null(), "ten samples do not tell");
        assert!(json["points"][0].get("gpu_us").is_none(), "from text the GPU does the same");
        let svg = std::fs::read_to_string(path("a.svg")).unwrap();
        assert!(svg.contains("gpu-kernels 6x1"), "{svg}");

        std::fs::write(path("then.json"), text).unwrap();
        let table = bench(&["--cold", "--compare", path("then.json").to_str().unwrap()]);
        let of_gpu = ["gpu", "16.0", "16.0", "-", "-", "16.0", "16.0", "grid"];
        assert_eq!(row(&table, "gpu "), of_gpu);
        let of_kernels = ["gpu-kernels", "10.0", "10.0", "-", "-", "10.0", "10.0", "grid"];
        assert_eq!(row(&table, "gpu-kernels "), of_kernels);
        assert!(table.contains("and 100 MiB on the GPU swept"), "{table}");
        let compared = table.lines().find(|line| line.starts_with("gpu-kernels 6x1 ")).unwrap();
        assert!(compared.contains("1.000") && compared.contains("no difference shown"), "{compared}");
    });
}

/// `berthier bench latency --json` of two texts of 6 tokens, and of eight of 40: more tokens than one launch takes.
fn bench_of_two_sizes(more: &[&str]) -> Value {
    let text =
        bench(&[&["--json", "--lengths", "6,40", "--batch-sizes", "2,8", "--samples", "3"], more].concat());
    serde_json::from_str(&text).unwrap()
}

/// How the batches of so many texts and tokens were launched: from text, from ids, and by the GPU's clock.
fn launches(said: &Value, texts: usize, tokens: usize) -> [&Value; 3] {
    let of = |from: &str| {
        let is = |p: &&Value| p["from"] == from && p["texts"] == texts && p["tokens"] == tokens;
        said["points"].as_array().unwrap().iter().find(is).expect("a point of this size")
    };
    [&of("text")["launches"], &of("ids")["launches"], &of("ids")["gpu_launches"]]
}

/// What `recorded.py` makes of these measurements, in a log with the GPU's name; none without Python.
fn recorded_rows(name: &str, ways: &[(&str, &Value)]) -> Option<String> {
    let lines = ways.iter().map(|(way, said)| {
        let said = json!({"points": said["points"]});
        format!("{}\n", json!({"sizes": [32, 72, 1, 1], "one_launch": way, "said": said}))
    });
    rows_of("one_launch", name, &format!("{{\"device\": \"Invented 9\"}}\n{}", lines.collect::<String>()))
}

#[test]
fn bench_tells_how_batches_were_launched() {
    let name = "latency::bench_tells_how_batches_were_launched";
    on_stand_in(name, &[("BERTHIER_EMU_MULTIPROCESSORS", "36")], || {
        let way = |asked| bench_of_two_sizes(&["--persistent-kernel", asked]);
        let [never, grid, clusters] = ["never", "grid", "clusters"].map(way);
        // the warm-up is the first slot's; the second one meets its shape in the first call that counts
        let all = json!({"graph": 3});
        assert_eq!(launches(&never, 2, 6), [&json!({"graph": 2, "kernel_by_kernel": 1}), &all, &all]);
        for (said, asked) in [(&grid, "grid"), (&clusters, "clusters")] {
            assert_eq!(launches(said, 2, 6), [&json!({asked: 3}); 3], "{asked}");
            assert_eq!(launches(said, 8, 40), launches(&never, 8, 40), "320 tokens");
        }
        let alone = bench_of_two_sizes(&["--persistent-kernel", "never", "--no-cuda-graphs"]);
        assert_eq!(launches(&alone, 2, 6), [&json!({"kernel_by_kernel": 3}); 3]);
        let of_table = ["--lengths", "6", "--batch-sizes", "2", "--samples", "3"];
        let table = bench(&[&of_table[..], &["--persistent-kernel", "never"]].concat());
        assert!(table.lines().any(|line| line.ends_with("max  launched")), "{table}");
        assert!(
            row(&table, "text 6 2").ends_with(&["kernel", "by", "kernel", "1,", "graph", "2"]),
            "{table}"
        );
        assert_eq!(row(&table, "gpu ").last(), Some(&"graph"), "{table}");

        let ways = [("never", &never), ("grid", &grid), ("clusters", &clusters)];
        let Some(rows) = recorded_rows("launched", &ways) else { return };
        assert!(rows.starts_with("Invented 9\t32\t72\t1\t1\t") && rows.lines().count() == 1, "{rows}");
        let swapped = [("never", &never), ("grid", &clusters), ("clusters", &clusters)];
        assert_eq!(recorded_rows("swapped", &swapped).as_deref(), Some("\n"));
    });
}

/// The driver refuses to run all blocks at once: what is measured is not what was asked for, which is told and not recorded.
#[test]
fn bench_tells_that_one_launch_was_refused() {
    let name = "latency::bench_tells_that_one_launch_was_refused";
    let switches = [("BERTHIER_EMU_MULTIPROCESSORS", "36"), ("BERTHIER_EMU_REFUSE_TOGETHER", "1")];
    on_stand_in(name, &switches, || {
        let way = |asked| bench_of_two_sizes(&["--persistent-kernel", asked]);
        let [never, grid, clusters] = ["never", "grid", "clusters"].map(way);
        for said in [&grid, &clusters] {
            assert_eq!(launches(said, 2, 6), launches(&never, 2, 6));
        }
        let ways = [("never", &never), ("grid", &grid), ("clusters", &clusters)];
        assert!(recorded_rows("refused", &ways).is_none_or(|rows| rows == "\n"));
    });
}
