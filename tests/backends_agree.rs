//! The CPU backend against the reference on random models of awkward shapes, and against itself to the bit
//! whatever the batch and the number of threads. Tolerances: `docs/numerics.md`.

use berthier::backend::cpu::Isa;
use berthier::backend::{Backend, BackendOptions, Device, Precision, open};
use berthier::batch::PackedBatch;
use berthier::model::{
    Activation, AttentionBias, AttentionSpan, Dense, Family, FeedForward, LayerGroups, LayerWeights,
    ModelDesc, Module, Norms, Pooling, Positions, Tensor, Weights,
};
use berthier::{Error, Threads};
use std::num::NonZeroUsize;

/// Of a component, times the largest component of all vectors (at least 1): f32 sums of up to 1536 products
/// against f64 sums, through all layers.
const TOLERANCE: f32 = 4e-6;
/// The same with inputs and weights of the layers' products rounded to bf16, eight bits of mantissa.
const HALF_TOLERANCE: f32 = 4e-2;
/// The same in int8: eight bits of the greatest number of a token, or of an output's weights.
const INT8_TOLERANCE: f32 = 1e-1;

fn desc(hidden: usize, heads: usize, intermediate: usize, layers: usize) -> ModelDesc {
    ModelDesc {
        family: Family::Bert,
        vocab_size: 101,
        hidden_size: hidden,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        intermediate_size: intermediate,
        max_position_embeddings: 128,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        hidden_act: Activation::Gelu,
        pooled_layers: 1,
        pooling: vec![Pooling::Mean],
        normalize: true,
        max_seq_length: 128,
        ..ModelDesc::default()
    }
}

/// Sequences of the given lengths with ids and types that depend on the row only.
fn sequences(seqlens: &[usize], desc: &ModelDesc) -> Vec<(Vec<u32>, Vec<u32>)> {
    seqlens
        .iter()
        .enumerate()
        .map(|(row, &n)| {
            let id = |t: usize| ((row * 131 + t * 37 + t * t * 11) % desc.vocab_size) as u32;
            let ids = (0..n).map(id).collect();
            let types = (0..n).map(|t| u32::from(desc.type_vocab_size > 1 && t > n / 2)).collect();
            (ids, types)
        })
        .collect()
}

fn batch(rows: &[usize], seqs: &[(Vec<u32>, Vec<u32>)], normalize: bool) -> PackedBatch {
    let mut batch = PackedBatch { normalize, ..PackedBatch::default() };
    batch.clear();
    for &row in rows {
        batch.push(row, &seqs[row].0, &seqs[row].1);
    }
    batch
}

fn run(backend: &mut dyn Backend, batch: PackedBatch, dim: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; batch.len() * dim];
    backend.submit(batch).unwrap();
    backend.collect(&mut out).unwrap();
    out
}

fn backend(
    device: Device,
    desc: &ModelDesc,
    weights: &Weights,
    threads: usize,
    isa: Option<Isa>,
) -> Box<dyn Backend> {
    backend_in(Precision::Fp32, device, desc, weights, threads, isa).unwrap()
}

fn backend_in(
    precision: Precision,
    device: Device,
    desc: &ModelDesc,
    weights: &Weights,
    threads: usize,
    isa: Option<Isa>,
) -> Result<Box<dyn Backend>, Error> {
    let threads = Threads::new(NonZeroUsize::new(threads)).unwrap();
    let options = BackendOptions { isa, precision, max_tokens: Some(8192), ..BackendOptions::new(threads) };
    open(device, desc, weights, &options)
}

/// What this machine's CPU computes in, with the tolerances.
fn precisions(desc: &ModelDesc, weights: &Weights) -> Vec<(Isa, Precision, f32)> {
    let mut all: Vec<_> = Isa::available().into_iter().map(|isa| (isa, Precision::Fp32, TOLERANCE)).collect();
    for isa in Isa::available() {
        for (precision, tolerance) in [(Precision::Bf16, HALF_TOLERANCE), (Precision::Int8, INT8_TOLERANCE)] {
            match backend_in(precision, Device::Cpu, desc, weights, 1, Some(isa)) {
                Ok(cpu) => {
                    assert_eq!(cpu.precision(), precision, "what was asked for");
                    all.push((isa, precision, tolerance));
                }
                Err(Error::InvalidOption { name: "precision", .. })
                    if precision == Precision::Bf16 || isa != Isa::Avx2 => {}
                Err(e) => panic!("{isa}: {e}"),
            }
        }
    }
    all
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// One model, one set of sequences: every instruction set near the reference, and one set of bits for each
/// over thread counts, orders and neighbours.
fn check(desc: &ModelDesc, seqlens: &[usize], normalize: bool) {
    let weights = Weights::random(desc, 7);
    let seqs = sequences(seqlens, desc);
    let all: Vec<usize> = (0..seqs.len()).collect();
    let dim = desc.dim();
    let mut reference = backend(Device::Reference, desc, &weights, 1, None);
    let want = run(&mut *reference, batch(&all, &seqs, normalize), dim);
    assert!(want.iter().all(|v| v.is_finite()));
    let largest = want.iter().fold(1f32, |a, v| a.max(v.abs()));

    for (isa, precision, tolerance) in precisions(desc, &weights) {
        let mut first: Option<Vec<u32>> = None;
        for threads in [1, 2, 3] {
            let mut cpu = backend_in(precision, Device::Cpu, desc, &weights, threads, Some(isa)).unwrap();
            let got = run(&mut *cpu, batch(&all, &seqs, normalize), dim);
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                assert!(
                    (g - w).abs() <= tolerance * largest,
                    "{isa} {precision}, {threads} threads, row {}, component {}: {g}, reference {w}",
                    i / dim,
                    i % dim
                );
            }
            let first = first.get_or_insert_with(|| bits(&got));
            assert_eq!(*first, bits(&got), "{isa}: {threads} threads give the bits of one");

            let backwards: Vec<usize> = all.iter().rev().copied().collect();
            let got = run(&mut *cpu, batch(&backwards, &seqs, normalize), dim);
            for (row, got) in backwards.iter().zip(got.chunks_exact(dim)) {
                let first = &first[row * dim..][..dim];
                assert_eq!(first, bits(got), "{isa}, {threads} threads: row {row}, backwards");
            }
            for &row in &all {
                let got = run(&mut *cpu, batch(&[row], &seqs, normalize), dim);
                let first = &first[row * dim..][..dim];
                assert_eq!(first, bits(&got), "{isa}, {threads} threads: row {row} alone");
            }
        }
    }
}

#[test]
fn shapes_match_reference() {
    // (hidden, heads, intermediate): head sizes 8, 10, 24, 32, 64, 1, widths that no panel divides
    for (hidden, heads, intermediate) in
        [(24, 3, 50), (40, 4, 97), (24, 1, 33), (64, 2, 128), (128, 2, 256), (5, 5, 7)]
    {
        check(&desc(hidden, heads, intermediate, 2), &[1, 2, 15, 16, 17, 33, 128], true);
    }
}

#[test]
fn minilm_shape_matches_reference() {
    check(&desc(384, 12, 1536, 2), &[1, 2, 14, 40, 128], true);
}

#[test]
fn activations_match_reference() {
    for hidden_act in [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Relu,
        Activation::Silu,
        Activation::Tanh,
        Activation::Sigmoid,
    ] {
        let desc = ModelDesc { hidden_act, ..desc(40, 5, 61, 2) };
        check(&desc, &[3, 1, 20], true);
    }
}

#[test]
fn poolings_match_reference() {
    for pooling in [
        vec![Pooling::Cls],
        vec![Pooling::Max],
        vec![Pooling::Mean],
        vec![Pooling::MeanSqrtLen],
        vec![Pooling::WeightedMean],
        vec![Pooling::LastToken],
        vec![Pooling::Cls, Pooling::Max, Pooling::Mean, Pooling::MeanSqrtLen],
    ] {
        for normalize in [false, true] {
            let desc = ModelDesc { pooling: pooling.clone(), ..desc(24, 3, 30, 1) };
            check(&desc, &[1, 2, 31, 9], normalize);
        }
    }
}

#[test]
fn averaged_layers_match_reference() {
    let all = vec![Pooling::Cls, Pooling::Max, Pooling::Mean, Pooling::MeanSqrtLen];
    for pooled_layers in [1, 2, 4] {
        let desc = ModelDesc { pooled_layers, pooling: all.clone(), ..desc(24, 3, 30, 4) };
        check(&desc, &[1, 2, 31, 9], false);
        check(&desc, &[1, 2, 31, 9], true);
    }
    // all threads share the steps of a long sequence
    let desc = ModelDesc {
        pooled_layers: 2,
        max_position_embeddings: 700,
        max_seq_length: 700,
        ..desc(24, 3, 30, 2)
    };
    check(&desc, &[650, 3, 40], true);
}

#[test]
fn averaged_layers_are_the_mean_of_shallower_models() {
    // of poolings that are sums over tokens the average of each depth's vector is the pooled average
    let desc = ModelDesc { pooling: vec![Pooling::Cls, Pooling::Mean], ..desc(24, 3, 30, 3) };
    let seqs = sequences(&[7, 20], &desc);
    let vectors = |pooled_layers: usize, depth: usize| {
        let mut weights = Weights::random(&desc, 1);
        weights.layers.truncate(depth);
        let desc = ModelDesc { pooled_layers, num_hidden_layers: depth, ..desc.clone() };
        let mut cpu = backend(Device::Cpu, &desc, &weights, 1, None);
        run(&mut *cpu, batch(&[0, 1], &seqs, false), desc.dim())
    };
    let (two, last, before) = (vectors(2, 3), vectors(1, 3), vectors(1, 2));
    for ((two, last), before) in two.iter().zip(last).zip(before) {
        assert!((two - (last + before) / 2.0).abs() < TOLERANCE, "{two} {last} {before}");
    }
}

#[test]
fn modules_match_reference() {
    let dense = |out_features, activation, bias, use_residual| {
        Module::Dense(Dense { out_features, bias, activation, use_residual })
    };
    for modules in [
        vec![dense(24, Some(Activation::Tanh), true, false)],
        vec![dense(24, Some(Activation::Gelu), false, true), Module::LayerNorm],
        vec![Module::Normalize, dense(65, None, true, true), dense(7, Some(Activation::Sigmoid), true, true)],
        vec![Module::LayerNorm, Module::Normalize, Module::LayerNorm],
    ] {
        for normalize in [false, true] {
            check(&ModelDesc { modules: modules.clone(), ..desc(24, 3, 30, 1) }, &[1, 2, 31, 9], normalize);
        }
    }
}

#[test]
fn families_match_reference() {
    let seqlens = [1, 2, 31, 49, 120];
    let bias = ModelDesc { attention_bias: AttentionBias::RelativeBuckets, ..desc(24, 3, 30, 2) };
    check(&bias, &seqlens, true);
    let padded = ModelDesc { positions: Positions::AfterPadding { pad: 3 }, ..desc(24, 3, 30, 2) };
    check(&padded, &seqlens, true);
    check(&ModelDesc { type_vocab_size: 0, ..desc(24, 3, 30, 2) }, &seqlens, true);
    // narrower and far wider than the layers
    for embedding_size in [7, 24, 200] {
        check(&ModelDesc { embedding_size: Some(embedding_size), ..desc(24, 3, 30, 1) }, &seqlens, true);
    }
    let norms = ModelDesc { norms: Norms::Pre, ..desc(24, 3, 30, 2) };
    check(&norms, &seqlens, true);
    check(&ModelDesc { feed_forward: FeedForward::Gated, ..desc(24, 3, 37, 2) }, &seqlens, true);
    let positions = Positions::Rotary { global_base: 160_000.0, local_base: 10_000.0, divisor: 1.0 };
    check(&ModelDesc { positions, ..desc(24, 3, 30, 2) }, &seqlens, true);
    let scaled = Positions::Rotary { global_base: 4e4, local_base: 4e4, divisor: 1.3 };
    check(&ModelDesc { positions: scaled, ..desc(24, 3, 30, 2) }, &seqlens, true);
    // heads of which a power of two has slopes of the first kind, and six of which two have not
    for heads in [1, 4, 6] {
        let attention_bias = AttentionBias::Alibi;
        let desc = ModelDesc { attention_bias, positions: Positions::None, ..desc(24, heads, 30, 2) };
        check(&desc, &seqlens, true);
        check(&ModelDesc { norms: Norms::PostQueryKey, ..desc }, &seqlens, true);
    }
    for reach in [0, 1, 7, 40, 500] {
        let attention_span = AttentionSpan::Mixed { reach, local: vec![true, false, true] };
        let feed_forward = FeedForward::Gated;
        let local =
            ModelDesc { attention_span, positions, feed_forward, type_vocab_size: 0, ..desc(40, 2, 30, 3) };
        check(&ModelDesc { norms: Norms::Pre, ..local }, &seqlens, true);
    }
    for (groups, inner) in [(1, 1), (2, 1), (2, 2), (3, 1)] {
        let layer_weights = LayerWeights::Shared(LayerGroups { groups, inner });
        check(&ModelDesc { layer_weights, ..desc(24, 3, 30, 3) }, &seqlens, true);
    }
}

#[test]
fn many_tiles_match_reference() {
    // some 2,000 tokens: several tiles for each thread, of one long among many short and of equal lengths
    let mixed: Vec<usize> = std::iter::once(128).chain((0..90).map(|i| 1 + i * 7 % 40)).collect();
    check(&desc(24, 3, 30, 1), &mixed, true);
    check(&desc(24, 3, 30, 1), &[16; 120], true);
}

#[test]
fn sequences_longer_than_a_narrow_tile_match_reference() {
    // above 512 tokens all threads share the steps of one sequence
    let desc = ModelDesc { max_position_embeddings: 1100, max_seq_length: 1100, ..desc(24, 3, 30, 1) };
    check(&desc, &[1100, 513, 512, 3, 600, 40], true);
}

#[test]
fn an_empty_batch_is_no_vectors() {
    let desc = desc(24, 3, 30, 1);
    let weights = Weights::random(&desc, 1);
    for threads in [1, 2] {
        let mut cpu = backend(Device::Cpu, &desc, &weights, threads, None);
        assert!(run(&mut *cpu, batch(&[], &[], true), desc.dim()).is_empty());
    }
}

#[test]
fn broken_weights_give_broken_vectors_and_not_plausible_ones() {
    let desc = desc(24, 3, 30, 2);
    for value in [f32::NAN, f32::INFINITY] {
        let mut weights = Weights::random(&desc, 1);
        let mut values = weights.layers[0].key.weight.to_f32();
        values[5] = value;
        weights.layers[0].key.weight = Tensor::from_f32("key", &[24, 24], &values);
        let seqs = sequences(&[5, 30], &desc);
        for (isa, precision, _) in precisions(&desc, &weights) {
            for pooling in [Pooling::Mean, Pooling::Max, Pooling::Cls] {
                let desc = ModelDesc { pooling: vec![pooling], ..desc.clone() };
                let mut cpu = backend_in(precision, Device::Cpu, &desc, &weights, 1, Some(isa)).unwrap();
                let out = run(&mut *cpu, batch(&[0, 1], &seqs, true), desc.dim());
                assert!(out.iter().all(|v| v.is_nan()), "{isa} {precision} {pooling:?} {value}");
            }
        }
    }
}

#[test]
fn int8_refuses_layers_whose_sums_could_overflow() {
    for isa in Isa::available() {
        // one more than fit: 2³¹ − 1 over 255 · 127
        let open = |intermediate: usize| {
            let desc = desc(16, 1, intermediate, 1);
            let weights = Weights::random(&desc, 1);
            backend_in(Precision::Int8, Device::Cpu, &desc, &weights, 1, Some(isa)).map(drop)
        };
        match (open(66_311), open(66_312)) {
            (Ok(()), Err(Error::InvalidOption { name: "precision", message })) => {
                assert!(message.contains("66312") && message.contains("66311"), "{message}");
            }
            (Err(Error::InvalidOption { .. }), Err(_)) if isa != Isa::Avx2 => {} // has no int8
            other => panic!("{isa}: {other:?}"),
        }
    }
}
