//! The time of single calls, at given numbers of tokens and texts: from text, and from token ids.

use super::super::machine::{cpu_seconds, largest_cache_bytes};
use super::args::LatencyArgs;
use super::chart;
use super::stats::{Series, percentile, sorted};
use super::texts::{Words, ids_of, read_lines};
use super::{BenchError, Report};
use berthier::Embedder;
use berthier::backend::Launches;
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Percentiles that are told.
const SHARES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];
/// A sleeping thread may wake so much too late; the rest of a wait is spent awake.
const SLEEP_MARGIN: Duration = Duration::from_micros(500);
/// Swept where the system does not say how large its caches are.
const SWEEP_BYTES: usize = 64 << 20;
/// Nor is more than this swept before each call.
const MAX_SWEEP_BYTES: usize = 1 << 30;

/// How calls follow each other.
enum Arrivals<'e> {
    /// Each when the last one has ended.
    Closed,
    /// As `Closed`, with caches swept before each call.
    Cold(Sweep<'e>),
    /// One every so often.
    Open(Duration),
}

/// What is swept before each call.
struct Sweep<'e> {
    memory: Vec<u64>,
    embedder: &'e Embedder,
}

/// Microseconds of each counted call.
#[derive(Debug, Default)]
struct Times {
    /// From when the call was due.
    latency: Vec<f64>,
    /// From when it began.
    service: Vec<f64>,
    seconds: f64,
    /// Of all threads, over all counted calls and the waits between them.
    cpu_seconds: Option<f64>,
    /// Of the counted calls' batches.
    launches: Option<Launches>,
}

/// The texts of one call, and their token ids end to end.
struct Call {
    texts: Vec<String>,
    ids: Vec<u32>,
    offsets: Vec<usize>,
}

/// What is measured under one name: calls that take turns, alike in their number of texts.
struct Point {
    /// Of a text; the mean where they differ.
    tokens: usize,
    batch: usize,
    calls: Vec<Call>,
}

impl Point {
    fn new<'t>(
        embedder: &Embedder,
        batch: usize,
        calls: impl Iterator<Item = &'t [String]>,
    ) -> Result<Self, BenchError> {
        let call = |texts: &[String]| -> Result<Call, BenchError> {
            let (ids, offsets) = ids_of(embedder, texts)?;
            Ok(Call { texts: texts.to_vec(), ids, offsets })
        };
        let calls: Vec<Call> = calls.map(call).collect::<Result<_, _>>()?;
        let tokens: usize = calls.iter().map(|call| call.ids.len()).sum();
        Ok(Self { tokens: tokens / (batch * calls.len()), batch, calls })
    }

    fn all(args: &LatencyArgs, embedder: &Embedder) -> Result<Vec<Self>, BenchError> {
        let batches = || args.batch_sizes.iter().map(|n| n.get());
        if let Some(path) = &args.texts {
            let lines = read_lines(path, usize::MAX)?;
            if let Some(batch) = batches().find(|&batch| batch > lines.len()) {
                let message = format!("--batch-sizes {batch}: {} has {} lines", path.display(), lines.len());
                return Err(BenchError::Unfit(message));
            }
            return batches().map(|n| Self::new(embedder, n, lines.chunks_exact(n))).collect();
        }
        let words = Words::of(embedder)?;
        let mut points = Vec::new();
        for length in args.lengths.iter().map(|n| n.get()) {
            for batch in batches() {
                let texts = words.texts(embedder, length, batch)?;
                points.push(Self::new(embedder, batch, std::iter::once(&texts[..]))?);
            }
        }
        Ok(points)
    }
}

pub(super) fn measure(args: &LatencyArgs, embedder: &Embedder) -> Result<Report, BenchError> {
    let samples = args.samples.map_or(if args.cold { 30 } else { 200 }, |n| n.get());
    let mut arrivals = match args.rate {
        Some(rate) => Arrivals::Open(Duration::from_secs_f64(1.0 / rate)),
        None if args.cold => {
            let bytes = largest_cache_bytes().unwrap_or(SWEEP_BYTES).clamp(SWEEP_BYTES, MAX_SWEEP_BYTES);
            Arrivals::Cold(Sweep { memory: vec![0; bytes / 8], embedder })
        }
        None => Arrivals::Closed,
    };
    let how = match &mut arrivals {
        Arrivals::Closed => "a closed loop".into(),
        Arrivals::Cold(sweep) => {
            let on_device = match sweep.run()? {
                0 => String::new(),
                bytes => format!(" and {} MiB on the GPU", bytes >> 20),
            };
            format!("a closed loop, {} MiB{on_device} swept before each call", sweep.memory.len() >> 17)
        }
        Arrivals::Open(interval) => {
            format!("an open loop, a call due every {:.0} µs", interval.as_secs_f64() * 1e6)
        }
    };
    let mut table = format!(
        "microseconds of one call in {how}; {} warm-up, {samples} counted\n\n{:<6} {:>6} {:>6}",
        args.warmup, "from", "tokens", "texts"
    );
    SHARES.iter().for_each(|(name, _)| table += &format!(" {name:>10}"));
    let launched = if embedder.launches().is_some() { "  launched" } else { "" };
    table += &format!(" {:>10} {:>10}{launched}\n", "min", "max");

    let (mut points, mut series) = (Vec::new(), Vec::new());
    for Point { tokens, batch, calls } in Point::all(args, embedder)? {
        let (mut vectors, mut counts) = (vec![0.0; batch * embedder.dim()], Vec::new());
        for from in ["text", "ids"] {
            let mut turns = calls.iter().cycle();
            let launches = || embedder.launches();
            let times = time(&mut arrivals, args.warmup, samples, launches, || match turns.next() {
                Some(call) if from == "ids" => {
                    embedder.embed_ids_into(&call.ids, &call.offsets, &mut vectors)
                }
                Some(call) => embedder.embed_into(&call.texts, &mut vectors, &mut counts),
                None => Ok(()),
            })?;
            let launched = times.launches.map(ways);
            row(&mut table, &format!("{from:<6} {tokens:>6} {batch:>6}"), &times.latency, &told(&launched));
            if let Arrivals::Open(interval) = arrivals {
                row(&mut table, "       service      ", &times.service, "");
                keeping_up(&mut table, &times, interval);
            }
            let mut point = json!({
                "from": from, "tokens": tokens, "texts": batch, "warmup": args.warmup, "samples": samples,
                "latency_us": summary(&times.latency),
                "service_us": summary(&times.service),
                "calls_per_second": samples as f64 / times.seconds,
                "cpu_us_a_call": times.cpu_seconds.map(|cpu| cpu * 1e6 / samples as f64),
            });
            if let Some(ways) = launched {
                point["launches"] = json_of(&ways);
            }
            points.push(point);
            series.push(Series {
                name: format!("latency {from} {tokens}x{batch}"),
                unit: "us",
                less_is_better: true,
                samples: times.latency,
            });
        }
        // last, and apart: events that tell the time cost some
        let mut turns = calls.iter().cycle();
        let gpu = gpu_times(&mut arrivals, args.warmup, samples, embedder, || match turns.next() {
            Some(call) => embedder.embed_ids_into(&call.ids, &call.offsets, &mut vectors),
            None => Ok(()),
        })?;
        if let (Some(gpu), Some(point)) = (gpu, points.last_mut()) {
            let launched = gpu.launches.map(ways);
            point["gpu_launches"] = json_of(launched.as_deref().unwrap_or_default());
            for (name, key, us) in
                [("gpu", "gpu_us", gpu.total), ("gpu-kernels", "gpu_kernels_us", gpu.kernels)]
            {
                row(&mut table, &format!("{name:<20}"), &us, &told(&launched));
                point[key] = summary(&us);
                let name = format!("{name} {tokens}x{batch}");
                series.push(Series { name, unit: "us", less_is_better: true, samples: us });
            }
        }
    }
    table.pop();
    if let Some(path) = &args.plot {
        let lines = series.iter().map(|s| (s.name.replace("latency ", ""), s.samples.clone()));
        chart::percentiles(format!("{}, {how}", embedder.device_name()), "µs of a call", lines)
            .write(path)?;
    }
    let conditions = json!({"loop": how, "rate": args.rate, "cold": args.cold});
    Ok(Report {
        json: json!({"measured": "latency", "conditions": conditions, "points": points}),
        table,
        series,
    })
}

/// `launched`: behind the numbers.
fn row(table: &mut String, point: &str, us: &[f64], launched: &str) {
    let us = sorted(us.iter().copied());
    table.push_str(point);
    for (_, share) in SHARES {
        let value = percentile(&us, share).map_or("-".into(), microseconds);
        // a String takes every write
        let _ = write!(table, " {value:>10}");
    }
    let (least, most) = (microseconds(us[0]), microseconds(us[us.len() - 1]));
    let _ = writeln!(table, " {least:>10} {most:>10}{launched}");
}

/// How batches were launched, and how many in each way that there was.
type Ways = Vec<(&'static str, usize)>;

fn ways(launches: Launches) -> Ways {
    let Launches { kernel_by_kernel, graph, grid, clusters } = launches;
    let all =
        [("kernel by kernel", kernel_by_kernel), ("graph", graph), ("grid", grid), ("clusters", clusters)];
    all.into_iter().filter(|(_, batches)| *batches > 0).collect()
}

/// For the table: one way's name, several with their batches.
fn told(launched: &Option<Ways>) -> String {
    match launched.as_deref() {
        None => String::new(),
        Some([(way, _)]) => format!("  {way}"),
        Some(ways) => {
            let each: Vec<_> = ways.iter().map(|(way, batches)| format!("{way} {batches}")).collect();
            format!("  {}", each.join(", "))
        }
    }
}

/// For the JSON.
fn json_of(ways: &[(&str, usize)]) -> Value {
    ways.iter().map(|(way, batches)| (way.replace(' ', "_"), Value::from(*batches))).collect()
}

/// With a tenth where that is a hundredth of it.
fn microseconds(us: f64) -> String {
    if us < 100.0 { format!("{us:.1}") } else { format!("{us:.0}") }
}

/// Says where calls came faster than they could be served: latency then grows with the length of the run.
fn keeping_up(table: &mut String, times: &Times, interval: Duration) {
    let served = times.service.iter().sum::<f64>() / times.service.len() as f64 / 1e6;
    if served > interval.as_secs_f64() {
        let _ = writeln!(
            table,
            "       more than can be served: {:.0} calls a second came, {:.0} can be served",
            1.0 / interval.as_secs_f64(),
            1.0 / served
        );
    }
}

fn summary(us: &[f64]) -> Value {
    let us = sorted(us.iter().copied());
    let mut json = json!({"min": us[0], "max": us[us.len() - 1]});
    SHARES.iter().for_each(|(name, share)| json[*name] = percentile(&us, *share).into());
    json
}

fn time(
    arrivals: &mut Arrivals<'_>,
    warmup: usize,
    samples: usize,
    launches: impl Fn() -> Option<Launches>,
    mut call: impl FnMut() -> berthier::Result<()>,
) -> berthier::Result<Times> {
    for _ in 0..warmup {
        call()?;
    }
    let mut times = Times {
        latency: Vec::with_capacity(samples),
        service: Vec::with_capacity(samples),
        ..Times::default()
    };
    let us = |from: Instant| from.elapsed().as_secs_f64() * 1e6;
    let launched = launches();
    let (cpu, first) = (cpu_seconds(), Instant::now());
    for i in 0..samples {
        let due = match arrivals {
            Arrivals::Closed => Instant::now(),
            Arrivals::Cold(sweep) => {
                sweep.run()?;
                Instant::now()
            }
            Arrivals::Open(interval) => {
                let due = first + interval.mul_f64(i as f64);
                wait_until(due);
                due
            }
        };
        let begin = Instant::now();
        call()?;
        times.service.push(us(begin));
        times.latency.push(us(due));
    }
    times.seconds = first.elapsed().as_secs_f64();
    times.cpu_seconds = cpu.and_then(|start| Some(cpu_seconds()? - start));
    times.launches = launched.and_then(|before| Some(launches()? - before));
    Ok(times)
}

impl Sweep<'_> {
    /// Writes to every line, so that whatever else was in the caches no longer is: the GPUs', then the processor's. Says how many bytes
    /// were the GPU's.
    fn run(&mut self) -> berthier::Result<usize> {
        let bytes = self.embedder.sweep_device_caches()?;
        self.memory.iter_mut().step_by(8).for_each(|word| *word = word.wrapping_add(1));
        std::hint::black_box(&mut self.memory);
        Ok(bytes)
    }
}

/// Microseconds of each counted call, by the GPU's clock.
#[derive(Debug, Default)]
struct GpuTimes {
    /// Copies included.
    total: Vec<f64>,
    kernels: Vec<f64>,
    launches: Option<Launches>,
}

/// Calls that follow each other as `time` has them; none where nothing but the host computes.
fn gpu_times(
    arrivals: &mut Arrivals<'_>,
    warmup: usize,
    samples: usize,
    embedder: &Embedder,
    mut call: impl FnMut() -> berthier::Result<()>,
) -> berthier::Result<Option<GpuTimes>> {
    if embedder.device_time(|| Ok(()))?.is_none() {
        return Ok(None);
    }
    let (mut times, mut calls) = (GpuTimes::default(), 0);
    let timed = time(
        arrivals,
        warmup,
        samples,
        || embedder.launches(),
        || {
            let time = embedder.device_time(&mut call)?.unwrap_or_default();
            calls += 1;
            if calls > warmup {
                times.total.push(time.total.as_secs_f64() * 1e6);
                times.kernels.push(time.kernels.as_secs_f64() * 1e6);
            }
            Ok(())
        },
    )?;
    times.launches = timed.launches;
    Ok(Some(times))
}

fn wait_until(due: Instant) {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        match left.checked_sub(SLEEP_MARGIN) {
            Some(sleep) if !sleep.is_zero() => std::thread::sleep(sleep),
            _ => std::hint::spin_loop(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    /// Nothing is launched.
    fn host() -> Option<Launches> {
        None
    }

    #[test]
    fn time_counts_the_samples_and_not_the_warm_up() {
        let mut calls = 0;
        let times = time(&mut Arrivals::Closed, 3, 5, host, || {
            calls += 1;
            sleep(Duration::from_millis(if calls <= 3 { 50 } else { 1 }));
            Ok(())
        })
        .unwrap();
        assert_eq!((calls, times.latency.len()), (8, 5));
        assert!(times.latency.iter().all(|&us| us >= 1000.0), "{times:?}");
        assert!(times.seconds < 0.15 || times.latency.iter().sum::<f64>() > 1e5);
    }

    #[test]
    fn time_ends_with_the_first_error() {
        let refuse = || Err(berthier::Error::BufferSize { found: 0, needed: 1 });
        assert!(time(&mut Arrivals::Closed, 0, 5, host, refuse).is_err());
        assert!(time(&mut Arrivals::Closed, 1, 5, host, refuse).is_err());
    }

    #[test]
    fn open_loop_counts_from_when_a_call_was_due() {
        // one call of 30 ms among calls of none, one due every 10 ms: the two behind it wait 20 and 10 ms
        let mut calls = 0;
        let mut arrivals = Arrivals::Open(Duration::from_millis(10));
        let times = time(&mut arrivals, 0, 6, host, || {
            calls += 1;
            if calls == 2 {
                sleep(Duration::from_millis(30));
            }
            Ok(())
        })
        .unwrap();
        assert!(times.latency[1] >= 30_000.0, "{times:?}");
        assert!(times.latency[2] >= 20_000.0 && times.latency[3] >= 10_000.0, "{times:?}");
        assert!(times.service[2] < times.latency[2], "{times:?}");
        assert!(times.seconds >= 0.05, "{times:?}");
    }

    #[test]
    fn a_rate_that_cannot_be_served_is_said() {
        let times =
            Times { latency: vec![9.0; 3], service: vec![2000.0; 3], seconds: 1.0, ..Times::default() };
        let mut table = String::new();
        keeping_up(&mut table, &times, Duration::from_millis(1));
        assert!(table.contains("1000 calls a second came, 500 can be served"), "{table}");
        keeping_up(&mut String::new(), &times, Duration::from_millis(3));
        let mut table = String::new();
        keeping_up(&mut table, &times, Duration::from_millis(3));
        assert!(table.is_empty());
    }

    #[test]
    fn rows_leave_out_what_samples_do_not_tell() {
        let mut table = String::new();
        row(&mut table, "", &(1..=100).map(f64::from).collect::<Vec<_>>(), "");
        assert_eq!(table.split_whitespace().collect::<Vec<_>>(), ["50.0", "90.0", "99.0", "-", "1.0", "100"]);
    }

    #[test]
    fn launches_are_told_of_the_counted_calls_alone() {
        let calls = std::cell::Cell::new(0);
        let launches = || Some(Launches { graph: calls.get(), grid: calls.get() / 4, ..Launches::default() });
        let times = time(&mut Arrivals::Closed, 3, 5, launches, || {
            calls.set(calls.get() + 1);
            Ok(())
        })
        .unwrap();
        let launched = times.launches.map(ways);
        assert_eq!(told(&launched), "  graph 5, grid 2");
        assert_eq!(json_of(&launched.unwrap()), json!({"graph": 5, "grid": 2}));
        let alone = ways(Launches { kernel_by_kernel: 7, ..Launches::default() });
        assert_eq!(json_of(&alone), json!({"kernel_by_kernel": 7}));
        assert_eq!((told(&Some(alone)), told(&None)), ("  kernel by kernel".into(), String::new()));
    }
}
