//! Each CPU kernel at the shapes of all-MiniLM-L6-v2, on each instruction set, one thread: GFLOP/s (as
//! criterion's elements a second) or bytes a second. Products and `forward`, a whole batch, also print their share of
//! the peak, a loop of multiply-adds in registers (bf16, int8: of their own) measured right before in the same process.
//! Weights and activations are warm in the cache, as they are within a tile.

use berthier::Threads;
use berthier::backend::cpu::Isa;
use berthier::backend::cpu::bench::{Gemm, NarrowGemm, Row, fma_peak, peak, pool, row};
use berthier::backend::{BackendOptions, Device, open};
use berthier::batch::PackedBatch;
use berthier::model::{Activation, Dtype, Family, ModelDesc, Pooling, Weights};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

/// A bench of so many floating point operations a call, that prints its median share of the peak, in GFLOP/s.
#[allow(clippy::print_stdout, reason = "beside criterion's own lines, which have no room for it")]
fn bench_share(
    group: &mut BenchmarkGroup<'_, WallTime>,
    function: &str,
    parameter: &str,
    operations: f64,
    peak: f64,
    mut call: impl FnMut(),
) {
    let mut seconds = Vec::new(); // of a call, by samples
    group.throughput(Throughput::Elements(operations as u64));
    group.bench_function(BenchmarkId::new(function, parameter), |b| {
        b.iter_custom(|calls| {
            let clock = Instant::now();
            (0..calls).for_each(|_| call());
            let time = clock.elapsed();
            seconds.push(time.as_secs_f64() / calls as f64);
            time
        });
    });
    if seconds.is_empty() {
        return; // not among those that were asked for
    }
    seconds.sort_by(f64::total_cmp);
    let speed = operations / seconds[seconds.len() / 2] / 1e9;
    println!(
        "{function}/{parameter}: {speed:.1} of {peak:.1} GFLOP/s, {:.0} % of the peak",
        100.0 * speed / peak
    );
}

fn roof(c: &mut Criterion) {
    let mut group = c.benchmark_group("fma_peak");
    for isa in Isa::available() {
        group.throughput(Throughput::Elements(fma_peak(isa, 10_000) as u64));
        group.bench_function(isa.to_string(), |b| b.iter(|| fma_peak(isa, black_box(10_000))));
    }
}

fn gemms(c: &mut Criterion) {
    let mut group = c.benchmark_group("gemm");
    for isa in Isa::available() {
        for (n, k, activation, residual) in [
            (1152, 384, None, false),
            (384, 384, None, true),
            (1536, 384, Some(Activation::Gelu), false),
            (384, 1536, None, true),
        ] {
            for m in [1, 2, 3, 4, 8, 16, 128] {
                let shape = format!("{m}x{n}x{k}");
                for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                    let mut gemm = Gemm::new(isa, m, n, k, dtype, 1);
                    let peak = peak(|steps| fma_peak(isa, steps));
                    let (name, flops) = (format!("{isa} {dtype:?}"), gemm.flops());
                    bench_share(&mut group, &name, &shape, flops, peak, || gemm.run(activation, residual));
                }
                for mut gemm in NarrowGemm::all(isa, m, n, k) {
                    let peak = peak(|steps| gemm.peak(steps));
                    let (name, flops) = (format!("{isa} {}", gemm.name()), gemm.flops());
                    bench_share(&mut group, &name, &shape, flops, peak, || gemm.run(activation, residual));
                }
            }
        }
    }
}

fn rows(c: &mut Criterion) {
    let mut group = c.benchmark_group("rows");
    let kernels = [
        ("layernorm", Row::LayerNorm, 384),
        ("softmax", Row::Softmax, 128),
        ("exp", Row::Exp, 1536),
        ("gelu", Row::Activate(Activation::Gelu), 1536),
        ("gelu_tanh", Row::Activate(Activation::GeluTanh), 1536),
        ("quick_gelu", Row::Activate(Activation::QuickGelu), 1536),
        ("relu", Row::Activate(Activation::Relu), 1536),
        ("silu", Row::Activate(Activation::Silu), 1536),
        ("tanh", Row::Activate(Activation::Tanh), 1536),
        ("l2_normalize", Row::L2Normalize, 384),
    ];
    for isa in Isa::available() {
        for (name, kernel, n) in kernels {
            let values: Vec<f32> = (0..n).map(|i| (i % 17) as f32 / 4.0 - 2.0).collect();
            let (weight, bias) = (vec![1.0; n], vec![0.1; n]);
            let mut x = values.clone();
            group.throughput(Throughput::Bytes(4 * n as u64));
            group.bench_function(BenchmarkId::new(name, isa), |b| {
                b.iter(|| {
                    x.copy_from_slice(&values); // or the values would run away; some 2% of the time
                    row(isa, kernel, black_box(&mut x), &weight, &bias);
                });
            });
        }
        for pooling in [Pooling::Mean, Pooling::Max] {
            let (x, mut out) = (vec![0.5; 64 * 384], vec![0.0; 384]);
            group.throughput(Throughput::Bytes(4 * x.len() as u64));
            group.bench_function(BenchmarkId::new(format!("pool_{pooling:?}"), isa), |b| {
                b.iter(|| pool(isa, pooling, black_box(&x), &mut out));
            });
        }
    }
}

/// all-MiniLM-L6-v2 with random weights.
fn minilm() -> ModelDesc {
    ModelDesc {
        family: Family::Bert,
        vocab_size: 30522,
        hidden_size: 384,
        num_hidden_layers: 6,
        num_attention_heads: 12,
        intermediate_size: 1536,
        max_position_embeddings: 512,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        hidden_act: Activation::Gelu,
        pooled_layers: 1,
        pooling: vec![Pooling::Mean],
        normalize: true,
        max_seq_length: 256,
        ..ModelDesc::default()
    }
}

fn forward(c: &mut Criterion) {
    let desc = minilm();
    let weights = Weights::random(&desc, 1);
    let mut group = c.benchmark_group("forward");
    group.sample_size(10);
    for isa in Isa::available() {
        for (seqlen, count) in [(16, 1), (64, 1), (256, 1), (32, 64), (256, 8)] {
            let threads = Threads::new(NonZeroUsize::new(1)).expect("one thread");
            let options = BackendOptions { isa: Some(isa), ..BackendOptions::new(threads) };
            let mut backend = open(Device::Cpu, &desc, &weights, &options).expect("an available ISA");
            let mut batch = PackedBatch { normalize: true, ..PackedBatch::default() };
            for i in 0..count {
                let ids: Vec<u32> = (0..seqlen).map(|t| ((t * 7919 + i * 31) % 30522) as u32).collect();
                batch.push(i, &ids, &vec![0; seqlen]);
            }
            let mut out = vec![0.0; count * desc.dim()];
            let flops = count as f64 * desc.flops(seqlen);
            let peak = peak(|steps| fma_peak(isa, steps));
            bench_share(&mut group, &isa.to_string(), &format!("{count}x{seqlen}"), flops, peak, || {
                backend.submit(std::mem::take(&mut batch)).expect("room for a batch");
                batch = backend.collect(&mut out).expect("a batch");
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800));
    targets = roof, gemms, rows, forward
}
criterion_main!(benches);
