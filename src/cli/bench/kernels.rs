//! The CPU kernels alone, at the shapes of the model, and their share of what a core can do.

use super::args::KernelsArgs;
use super::stats::{Series, median, sorted};
use super::{BenchError, Report};
use berthier::Embedder;
use berthier::backend::cpu::{Isa, bench};
use berthier::model::{Dtype, ModelDesc, Pooling};
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::Instant;

/// A sample goes on for at least so long, that the clock and a first miss do not count.
const SAMPLE_SECONDS: f64 = 2e-3;
/// A product of up to so many rows waits for its weights and not for its multiply-adds, once no cache holds them.
const FEW_ROWS: usize = 4;
/// Bytes of weights that no cache holds, in no more layers than that: of toys' layers there would be too many.
const UNCACHED_BYTES: usize = 256 << 20;
const MOST_LAYERS: usize = 1024;
/// Rows that the row kernels are measured over, one after another: of 384 columns they fit a second-level cache.
const ROWS: usize = 64;

/// A kernel's samples, and the roof beside it.
struct Measured {
    name: String,
    shape: String,
    /// Work of one call: floating point operations, or bytes.
    work: f64,
    unit: &'static str,
    /// Of one call.
    seconds: Vec<f64>,
    /// GFLOP/s, where the kernel has a share of it.
    roof: Option<f64>,
}

pub(super) fn measure(
    args: &KernelsArgs,
    embedder: &Embedder,
    isa: Option<Isa>,
) -> Result<Report, BenchError> {
    let Some(isa) = isa else {
        return Err(BenchError::Unfit("the kernels of --device cpu are measured, and no others".into()));
    };
    let (desc, samples) = (embedder.model(), args.samples.get());
    let mut all = Vec::new();
    for rows in args.rows.iter().map(|n| n.get()) {
        products(&mut all, isa, desc, rows, samples);
    }
    row_kernels(&mut all, isa, desc, samples);

    let mut table = format!(
        "{isa}, one thread; {samples} samples of {} ms\n\n{:<29} {:>16} {:>9} {:>9} {:>14} {:>7}\n",
        SAMPLE_SECONDS * 1e3,
        "kernel",
        "shape",
        "µs",
        "p90 µs",
        "speed",
        "roof"
    );
    let (mut points, mut series) = (Vec::new(), Vec::new());
    for m in all {
        let seconds = sorted(m.seconds.iter().copied());
        let (middle, p90) = (median(&seconds), crate::eval::quantile(&seconds, 0.9));
        let speed = m.work / middle / 1e9;
        let share = m.roof.map(|roof| speed / roof);
        // a String takes every write
        let _ = writeln!(
            table,
            "{:<29} {:>16} {:>9.2} {:>9.2} {:>14} {:>7}",
            m.name,
            m.shape,
            middle * 1e6,
            p90 * 1e6,
            format!("{speed:.1} {}", m.unit),
            share.map_or(String::new(), |s| format!("{:.0} %", s * 100.0))
        );
        points.push(json!({
            "kernel": m.name, "shape": m.shape, "us": middle * 1e6, "p90_us": p90 * 1e6, "speed": speed,
            "unit": m.unit, "roof": m.roof, "share": share,
        }));
        series.push(Series {
            name: format!("kernel {} {}", m.name, m.shape),
            unit: "us",
            less_is_better: true,
            samples: m.seconds.iter().map(|s| s * 1e6).collect(),
        });
    }
    table.pop();
    let conditions: Value = json!({"isa": isa.to_string()});
    Ok(Report {
        json: json!({"measured": "kernels", "conditions": conditions, "points": points}),
        table,
        series,
    })
}

/// The four products of a layer with what is computed along with them.
fn products(all: &mut Vec<Measured>, isa: Isa, desc: &ModelDesc, m: usize, samples: usize) {
    let (h, i, wide) = (desc.hidden_size, desc.intermediate_size, desc.inner_width());
    let act = (wide == i).then_some(desc.hidden_act);
    for (name, n, k, activation, residual) in [
        ("qkv", 3 * h, h, None, false),
        ("attention output", h, h, None, true),
        ("intermediate", wide, h, act, false),
        ("output", h, i, None, true),
    ] {
        let mut push = |name: String, work: f64, unit, roof: f64, seconds: Vec<f64>| {
            let shape = format!("{m}x{n}x{k}");
            all.push(Measured { name, shape, work, unit, seconds, roof: Some(roof) });
        };
        let mut gemm = bench::Gemm::new(isa, m, n, k, Dtype::F32, 1);
        let roof = bench::peak(|steps| bench::fma_peak(isa, steps));
        let seconds = time(samples, || gemm.run(activation, residual));
        push(name.into(), gemm.flops(), "GFLOP/s", roof, seconds);
        drop(gemm);
        if m <= FEW_ROWS {
            let layers = (UNCACHED_BYTES / (4 * n * k) + 1).min(MOST_LAYERS);
            let mut gemm = bench::Gemm::new(isa, m, n, k, Dtype::F32, layers);
            let bytes = gemm.weight_bytes();
            // the best, as it is a limit
            let roof = time(samples, || gemm.read()).into_iter().map(|s| bytes / s / 1e9).fold(0.0, f64::max);
            let seconds = time(samples, || gemm.run(activation, residual));
            push(format!("{name}, from memory"), bytes, "GB/s", roof, seconds);
        }
        for mut gemm in bench::NarrowGemm::all(isa, m, n, k) {
            let roof = bench::peak(|steps| gemm.peak(steps));
            let seconds = time(samples, || gemm.run(activation, residual));
            push(format!("{name}, {}", gemm.name()), gemm.flops(), "GOP/s", roof, seconds);
        }
    }
}

/// Row by row over [`ROWS`] rows, each a fresh copy, which counts too (a GELU of a GELU ends in subnormals);
/// bytes are those that the kernel reads and writes.
fn row_kernels(all: &mut Vec<Measured>, isa: Isa, desc: &ModelDesc, samples: usize) {
    let (h, inner) = (desc.hidden_size, desc.intermediate_size);
    let (weight, bias) = (vec![1.0; h], vec![0.0; h]);
    let fresh =
        |columns: usize| -> Vec<f32> { (0..ROWS * columns).map(|i| (i % 255) as f32 / 64.0 - 2.0).collect() };
    let mut of_rows = |name: &str, kernel: bench::Row, columns: usize| {
        let (x, mut copy) = (fresh(columns), vec![0.0; columns]);
        let seconds = time(samples, || {
            for row in x.chunks_exact(columns) {
                copy.copy_from_slice(row);
                bench::row(isa, kernel, &mut copy, &weight, &bias);
            }
        });
        all.push(Measured {
            name: name.into(),
            shape: format!("{ROWS}x{columns}"),
            work: (2 * 4 * ROWS * columns) as f64,
            unit: "GB/s",
            seconds,
            roof: None,
        });
    };
    of_rows("layernorm", bench::Row::LayerNorm, h);
    of_rows("softmax", bench::Row::Softmax, 128);
    of_rows(&format!("{:?}", desc.hidden_act).to_lowercase(), bench::Row::Activate(desc.hidden_act), inner);
    let (x, mut out) = (fresh(h), vec![0.0; h]);
    let seconds = time(samples, || bench::pool(isa, Pooling::Mean, &x, &mut out));
    all.push(Measured {
        name: "mean pooling".into(),
        shape: format!("{ROWS}x{h}"),
        work: (4 * (ROWS + 1) * h) as f64,
        unit: "GB/s",
        seconds,
        roof: None,
    });
}

/// Seconds of one call, so many samples, each of as many calls as fill [`SAMPLE_SECONDS`].
fn time(samples: usize, mut call: impl FnMut()) -> Vec<f64> {
    let mut calls = 1usize;
    let mut run = |calls: usize| {
        let clock = Instant::now();
        (0..calls).for_each(|_| call());
        clock.elapsed().as_secs_f64()
    };
    // the first samples find out how many, and warm up
    loop {
        let seconds = run(calls);
        if seconds >= SAMPLE_SECONDS {
            break;
        }
        calls = (calls * 2).max((calls as f64 * SAMPLE_SECONDS / seconds.max(1e-9)).min(1e9) as usize);
    }
    (0..samples).map(|_| run(calls) / calls as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_that_of_one_call() {
        let mut calls = 0u64;
        let seconds = time(3, || {
            calls += 1;
            std::thread::sleep(std::time::Duration::from_micros(100));
        });
        assert_eq!(seconds.len(), 3);
        // of some 20 calls a sample
        assert!(calls >= 3 * 5 && seconds.iter().all(|&s| s >= 100e-6), "{calls} {seconds:?}");
    }
}
