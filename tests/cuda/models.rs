//! Small random models of every kind that the kernels compute, launched one by one or as graphs, against the reference backend;
//! and bits.

use crate::counting;
use crate::stand_in::on_stand_in;
use berthier::Threads;
use berthier::backend::{Backend, BackendOptions, Device, PersistentKernel, Precision, open};
use berthier::batch::PackedBatch;
use berthier::model::{
    Activation, AttentionBias, AttentionSpan, Dense, FeedForward, LayerGroups, LayerWeights, ModelDesc,
    Module, Norms, Pooling, Positions, Weights,
};
use std::num::NonZeroUsize;

/// Of fp16, and of bf16 in its place: eight times as coarse.
pub(crate) const TOLERANCE: f32 = 4e-3;
pub(crate) const BF16_TOLERANCE: f32 = 8.0 * TOLERANCE;
/// Kernels of a batch of [`desc`] whose sequences are all short: embedding, two layers of five, last layernorm, pooling.
pub(crate) const LAUNCHES: usize = 1 + 2 * 5 + 2;

/// Two layers of width 64, two heads of 32.
pub(crate) fn desc() -> ModelDesc {
    ModelDesc {
        vocab_size: 101,
        hidden_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 96,
        max_position_embeddings: 160,
        max_seq_length: 160,
        ..ModelDesc::default()
    }
}

/// One layer with sums so long that products of few rows are split.
fn deep() -> ModelDesc {
    ModelDesc { intermediate_size: 4096, num_hidden_layers: 1, ..desc() }
}

/// Sequences of the given lengths with ids and types that depend on the row only.
pub(crate) fn sequences(seqlens: &[usize], desc: &ModelDesc) -> Vec<(Vec<u32>, Vec<u32>)> {
    let id = |row: usize, t: usize| ((row * 131 + t * 37 + t * t * 11 + 3) % desc.vocab_size) as u32;
    let of = |(row, &n): (usize, &usize)| {
        let types = (0..n).map(|t| u32::from(desc.type_vocab_size > 1 && t > n / 2)).collect();
        ((0..n).map(|t| id(row, t)).collect(), types)
    };
    seqlens.iter().enumerate().map(of).collect()
}

pub(crate) fn batch(rows: &[usize], seqs: &[(Vec<u32>, Vec<u32>)]) -> PackedBatch {
    let mut batch = PackedBatch::default();
    for &row in rows {
        batch.push(row, &seqs[row].0, &seqs[row].1);
    }
    batch
}

pub(crate) fn run(backend: &mut dyn Backend, batch: PackedBatch, dim: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; batch.len() * dim];
    backend.submit(batch).unwrap();
    backend.collect(&mut out).unwrap();
    out
}

fn backend(
    device: Device,
    desc: &ModelDesc,
    precision: Precision,
    batch_invariant: bool,
) -> Box<dyn Backend> {
    backend_of(device, desc, &Weights::random(desc, 7), precision, batch_invariant)
}

pub(crate) fn backend_of(
    device: Device,
    desc: &ModelDesc,
    weights: &Weights,
    precision: Precision,
    batch_invariant: bool,
) -> Box<dyn Backend> {
    let threads = Threads::new(NonZeroUsize::new(1)).unwrap();
    let options = BackendOptions {
        precision,
        batch_invariant,
        max_tokens: Some(512),
        persistent_kernel: PersistentKernel::Never,
        ..BackendOptions::new(threads)
    };
    open(device, desc, weights, &options).unwrap_or_else(|e| panic!("{desc:?}: {e}"))
}

/// Vectors of a backend that has `Weights::random(desc, 7)`, within `tolerance` times the largest component.
pub(crate) fn matches_reference(desc: &ModelDesc, cuda: &mut dyn Backend, seqlens: &[usize], tolerance: f32) {
    let seqs = sequences(seqlens, desc);
    let rows: Vec<usize> = (0..seqs.len()).collect();
    compare(desc, &Weights::random(desc, 7), cuda, &|| positioned(desc, &rows, &seqs), tolerance);
}

pub(crate) fn positioned(desc: &ModelDesc, rows: &[usize], seqs: &[(Vec<u32>, Vec<u32>)]) -> PackedBatch {
    let mut batch = PackedBatch::default();
    for &row in rows {
        batch.push_at(row, &seqs[row].0, &seqs[row].1, desc.positions.of(&seqs[row].0));
    }
    batch
}

pub(crate) fn compare(
    desc: &ModelDesc,
    weights: &Weights,
    cuda: &mut dyn Backend,
    batch: &dyn Fn() -> PackedBatch,
    tolerance: f32,
) {
    let mut reference = backend_of(Device::Reference, desc, weights, Precision::Auto, false);
    for normalize in [false, true] {
        let make = || PackedBatch { normalize, ..batch() };
        let want = run(&mut *reference, make(), desc.dim());
        let got = run(cuda, make(), desc.dim());
        let largest = want.iter().filter(|v| v.is_finite()).fold(0f32, |a, v| a.max(v.abs()));
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            let close = (g - w).abs() <= tolerance * largest || (!w.is_finite() && !g.is_finite());
            assert!(
                close,
                "component {} of row {}: {g}, reference {w}\n{desc:?}",
                i % desc.dim(),
                i / desc.dim()
            );
        }
    }
}

/// Both precisions against the reference, at lengths on both sides of the attention's borders.
fn check(desc: &ModelDesc) {
    for (precision, tolerance) in [(Precision::Fp16, TOLERANCE), (Precision::Bf16, BF16_TOLERANCE)] {
        let mut cuda = backend(Device::Cuda(0), desc, precision, false);
        assert_eq!(cuda.precision(), precision);
        matches_reference(desc, &mut *cuda, &[1, 16, 17, 64, 65, 130, 2], tolerance);
    }
}

#[test]
fn head_sizes_match_reference() {
    on_stand_in("models::head_sizes_match_reference", &[], || {
        for (hidden_size, num_attention_heads) in [(64, 2), (96, 3), (64, 1), (128, 1), (256, 2)] {
            check(&ModelDesc { hidden_size, num_attention_heads, num_hidden_layers: 1, ..desc() });
        }
    });
}

/// On a GPU of two multiprocessors a few hundred tokens are enough for the kernels of wgmma, whose products then pass their
/// tails, several tiles of a block, and every epilogue of the backend, and whose attention has several items of a block. The trace
/// says which kernels ran.
#[test]
fn wgmma_products_match_reference() {
    let trace = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("wgmma-trace.txt");
    let switches = [
        ("BERTHIER_EMU_MULTIPROCESSORS", "2"),
        ("BERTHIER_EMU_TRACE", trace.to_str().expect("a UTF-8 path")),
    ];
    let _ = std::fs::remove_file(&trace);
    on_stand_in("models::wgmma_products_match_reference", &switches, || {
        let wide = ModelDesc { hidden_size: 192, num_attention_heads: 6, intermediate_size: 328, ..desc() };
        let gated = ModelDesc { feed_forward: FeedForward::Gated, num_hidden_layers: 1, ..wide.clone() };
        // with `batch_invariant` no other product is allowed, so the gated one passes too
        for (desc, precision, batch_invariant, tolerance) in [
            (&wide, Precision::Fp16, false, TOLERANCE),
            (&wide, Precision::Bf16, false, BF16_TOLERANCE),
            (&gated, Precision::Fp16, true, TOLERANCE),
        ] {
            let mut cuda = backend(Device::Cuda(0), desc, precision, batch_invariant);
            // several sizes of batches in turn: their tensor maps are remembered
            for seqlens in [&[130, 17, 100, 64][..], &[160, 160], &[130, 17, 100, 64]] {
                matches_reference(desc, &mut *cuda, seqlens, tolerance);
            }
        }
        let ran = std::fs::read_to_string(std::env::var("BERTHIER_EMU_TRACE").unwrap()).unwrap();
        for element in ["_f16 ", "_bf16 "] {
            for kernel in ["gemm_wgmma_", "attention_wgmma_"] {
                let found = ran.lines().any(|line| line.starts_with(kernel) && line.contains(element));
                assert!(found, "no {kernel}… of{element}ran:\n{ran}");
            }
        }
        assert!(!ran.contains("attention_stream_"), "long sequences of these models take wgmma:\n{ran}");
    });
}

/// The switches of a GPU of so many multiprocessors that says it holds so many clusters, with a trace of the test's name.
fn with_clusters(name: &str, multiprocessors: &str, clusters: &str, run: impl FnOnce(&dyn Fn() -> String)) {
    let file = format!("{}.txt", name.replace("::", "-"));
    let trace = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(file);
    let switches = [
        ("BERTHIER_EMU_MULTIPROCESSORS", multiprocessors),
        ("BERTHIER_EMU_ACTIVE_CLUSTERS", clusters),
        ("BERTHIER_EMU_TRACE", trace.to_str().expect("a UTF-8 path")),
    ];
    let _ = std::fs::remove_file(&trace);
    on_stand_in(name, &switches, || run(&|| std::fs::read_to_string(&trace).unwrap()));
}

/// A short text's products with the parts of their sums in a cluster's blocks, and no more clusters of blocks that stay than the driver
/// says.
#[test]
fn grids_are_whole_clusters_that_the_driver_has_room_for() {
    let name = "models::grids_are_whole_clusters_that_the_driver_has_room_for";
    with_clusters(name, "16", "3", |ran| {
        let desc = ModelDesc { hidden_size: 192, num_attention_heads: 6, intermediate_size: 1024, ..desc() };
        for (precision, tolerance) in [(Precision::Fp16, TOLERANCE), (Precision::Bf16, BF16_TOLERANCE)] {
            let mut cuda = backend(Device::Cuda(0), &desc, precision, false);
            // what a device's choices, and so its bits, depend on
            assert!(
                cuda.kind().ends_with("with 16 multiprocessors, clusters 3 3 3 3 3 3 3"),
                "{}",
                cuda.kind()
            );
            for seqlens in [&[7][..], &[128, 128, 128, 17], &[30, 20], &[16]] {
                matches_reference(&desc, &mut *cuda, seqlens, tolerance);
            }
        }
        let ran = ran();
        let blocks = |line: &str| -> usize {
            let grid = line.split(" grid ").nth(1).and_then(|l| l.split(',').next()).unwrap();
            grid.parse().unwrap()
        };
        let mut pairs = ran.lines().filter(|line| line.contains("_c2_"));
        assert!(pairs.all(|line| blocks(line) <= 6), "{ran}");
        assert!(ran.lines().any(is_split_in_a_cluster), "no product's k was split within a cluster:\n{ran}");
    });
}

/// Whether a line of the trace is a product of few rows whose k is split.
fn is_split_in_a_cluster(line: &str) -> bool {
    line.contains("x64x64_s") && line.contains(" cluster ")
}

/// Where no cluster fits, or the driver does not know, products take what needs none.
fn without_clusters(name: &str, clusters: &str) {
    with_clusters(name, "2", clusters, |ran| {
        let desc = ModelDesc { hidden_size: 192, num_attention_heads: 6, intermediate_size: 328, ..desc() };
        for batch_invariant in [false, true] {
            let mut cuda = backend(Device::Cuda(0), &desc, Precision::Fp16, batch_invariant);
            for seqlens in [&[130, 17, 100, 64][..], &[9]] {
                matches_reference(&desc, &mut *cuda, seqlens, TOLERANCE);
            }
        }
        let ran = ran();
        assert!(ran.contains("gemm_wgmma_") && !ran.contains(" cluster "), "{ran}");
    });
}

#[test]
fn a_gpu_that_has_no_room_for_clusters_computes_without_them() {
    without_clusters("models::a_gpu_that_has_no_room_for_clusters_computes_without_them", "0");
}

#[test]
fn a_driver_that_does_not_say_how_many_clusters_fit_gets_none() {
    without_clusters("models::a_driver_that_does_not_say_how_many_clusters_fit_gets_none", "-2");
}

#[test]
fn poolings_match_reference() {
    let all = [
        Pooling::Cls,
        Pooling::Max,
        Pooling::Mean,
        Pooling::MeanSqrtLen,
        Pooling::WeightedMean,
        Pooling::LastToken,
    ];
    on_stand_in("models::poolings_match_reference", &[], || {
        for pooling in all.map(|p| vec![p]).into_iter().chain([all.to_vec()]) {
            let desc = ModelDesc { pooling, num_hidden_layers: 1, ..desc() };
            let mut cuda = backend(Device::Cuda(0), &desc, Precision::Fp16, false);
            // with a prompt that is not pooled: longer than some of them, and than none
            for skip_tokens in [0, 1, 3] {
                let seqs = sequences(&[2, 9, 70, 3], &desc);
                let make = || PackedBatch { skip_tokens, ..batch(&[0, 1, 2, 3], &seqs) };
                compare(&desc, &Weights::random(&desc, 7), &mut *cuda, &make, TOLERANCE);
            }
        }
    });
}

#[test]
fn architectures_match_reference() {
    on_stand_in("models::architectures_match_reference", &[], || {
        let base = desc();
        for activation in [Activation::GeluTanh, Activation::QuickGelu, Activation::Relu, Activation::Silu] {
            check(&ModelDesc { hidden_act: activation, num_hidden_layers: 1, ..base.clone() });
        }
        // MPNet, RoBERTa, ALBERT, DistilBERT, JinaBERT, and what no family has by itself
        let pad = Positions::AfterPadding { pad: 1 };
        let bias = AttentionBias::RelativeBuckets;
        let groups = LayerWeights::Shared(LayerGroups { groups: 1, inner: 2 });
        let span = AttentionSpan::Mixed { reach: 9, local: vec![true, false] };
        for desc in [
            ModelDesc { positions: pad, attention_bias: bias, type_vocab_size: 0, ..base.clone() },
            ModelDesc { embedding_size: Some(24), layer_weights: groups, ..base.clone() },
            ModelDesc { attention_span: span, ..base.clone() },
            // as large as the variance of what it is added to, so that its scale shows
            ModelDesc { layer_norm_eps: 3e-3, ..base.clone() },
            ModelDesc { attention_bias: AttentionBias::Alibi, positions: Positions::None, ..base.clone() },
            ModelDesc { feed_forward: FeedForward::Gated, ..base.clone() },
            ModelDesc { feed_forward: FeedForward::Gated, hidden_act: Activation::Silu, ..base.clone() },
        ] {
            check(&desc);
        }
    });
}

/// Vectors of all tokens, of a model that has fewer columns behind the pooling, one that has more, one whose layernorms are
/// kernels of their own, and one that has a norm behind its last layer.
#[test]
fn token_vectors_match_reference() {
    on_stand_in("models::token_vectors_match_reference", &[], || {
        let dense = Dense { out_features: 24, bias: true, activation: None, use_residual: false };
        let shared = LayerWeights::Shared(LayerGroups { groups: 1, inner: 1 });
        for desc in [
            ModelDesc { modules: vec![Module::Dense(dense)], ..desc() },
            ModelDesc { pooling: vec![Pooling::Mean, Pooling::Max], ..desc() },
            ModelDesc { layer_weights: shared, ..desc() },
            ModelDesc { norms: Norms::Pre, ..desc() },
        ] {
            let seqs = sequences(&[2, 9, 70, 3], &desc);
            let run_tokens = |device: Device| {
                let mut backend = backend(device, &desc, Precision::Auto, true);
                assert!(backend.gives_token_vectors());
                // sentence vectors before and behind, so that neither is taken for the other
                let sentences = run(&mut *backend, batch(&[0, 1, 2, 3], &seqs), desc.dim());
                let mut found = Vec::new();
                for _ in 0..5 {
                    let tokens =
                        PackedBatch { token_vectors: true, skip_tokens: 3, ..batch(&[0, 1, 2, 3], &seqs) };
                    let mut out = vec![f32::NAN; 84 * desc.hidden_size];
                    backend.submit(tokens).unwrap();
                    backend.collect(&mut out).unwrap();
                    found.push(out);
                }
                assert!(found.iter().all(|other| bits(other) == bits(&found[0])));
                assert_eq!(run(&mut *backend, batch(&[0, 1, 2, 3], &seqs), desc.dim()), sentences);
                found.remove(0)
            };
            let (got, want) = (run_tokens(Device::Cuda(0)), run_tokens(Device::Reference));
            let largest = want.iter().fold(0f32, |a, v| a.max(v.abs()));
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                let (token, column) = (i / desc.hidden_size, i % desc.hidden_size);
                assert!((g - w).abs() <= TOLERANCE * largest, "token {token}, column {column}: {g}, {w}");
            }
        }
    });
}

/// Where only first tokens are pooled, the last layer computes their rows alone, behind its attention: with the bits that they
/// have among all rows, single launches and graphs alike. Not where a prompt is left out, nor for token vectors.
#[test]
fn first_rows_alone_have_the_bits_of_all() {
    let trace = concat!(env!("CARGO_TARGET_TMPDIR"), "/cuda-first-rows.txt");
    let name = "models::first_rows_alone_have_the_bits_of_all";
    on_stand_in(name, &[("BERTHIER_EMU_TRACE", trace)], || {
        let gathers = || std::fs::read_to_string(trace).unwrap_or_default().matches("first_rows").count();
        let shared = LayerWeights::Shared(LayerGroups { groups: 1, inner: 1 });
        for desc in [
            desc(),
            ModelDesc { norms: Norms::Pre, num_hidden_layers: 1, ..desc() },
            ModelDesc { layer_weights: shared, hidden_size: 96, num_attention_heads: 3, ..desc() },
        ] {
            let _ = std::fs::remove_file(trace);
            let (h, both) = (desc.hidden_size, vec![Pooling::Cls, Pooling::Mean]);
            let all = ModelDesc { pooling: both, ..desc.clone() };
            let first = ModelDesc { pooling: vec![Pooling::Cls], ..desc };
            let mut all_rows = backend(Device::Cuda(0), &all, Precision::Fp16, true);
            let mut first_rows = backend(Device::Cuda(0), &first, Precision::Fp16, true);
            let seqs = sequences(&[5, 40, 1, 100, 17], &first);
            for rows in [&[0, 1, 2, 3, 4][..], &[2], &[1, 0, 4]] {
                let want = run(&mut *all_rows, batch(rows, &seqs), 2 * h);
                let want: Vec<u32> = want.chunks(2 * h).flat_map(|row| bits(&row[..h])).collect();
                // again and again: both slots are recorded and replayed
                for _ in 0..6 {
                    assert_eq!(
                        bits(&run(&mut *first_rows, batch(rows, &seqs), h)),
                        want,
                        "{rows:?} of {first:?}"
                    );
                }
            }
            let gathered = gathers();
            assert!(gathered >= 6, "{gathered} batches had their first rows gathered");
            let prompt = || PackedBatch { skip_tokens: 2, ..batch(&[0, 1, 3], &seqs) };
            run(&mut *first_rows, prompt(), h);
            let mut out = vec![f32::NAN; 145 * h];
            first_rows.submit(PackedBatch { token_vectors: true, ..batch(&[0, 1, 3], &seqs) }).unwrap();
            first_rows.collect(&mut out).unwrap();
            assert!(out.iter().all(|v| v.is_finite()));
            assert_eq!(gathers(), gathered, "all rows are needed");
        }
    });
}

#[test]
fn modules_match_reference() {
    let dense = |out_features: usize, activation: Option<Activation>, use_residual: bool| {
        Module::Dense(Dense { out_features, bias: !use_residual, activation, use_residual })
    };
    on_stand_in("models::modules_match_reference", &[], || {
        for modules in [
            vec![dense(40, Some(Activation::Tanh), false)],
            vec![Module::Normalize, dense(64, None, true), Module::LayerNorm],
            vec![Module::LayerNorm, dense(2056, Some(Activation::Gelu), true), dense(16, None, true)],
            vec![dense(2056, None, false)],
        ] {
            check(&ModelDesc { modules, num_hidden_layers: 1, ..desc() });
        }
        let pooling = vec![Pooling::Mean, Pooling::Max];
        check(&ModelDesc { pooling, modules: vec![dense(24, None, false)], num_hidden_layers: 1, ..desc() });
    });
}

pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// Batch-invariant: a row alone, in a batch, at another place, on another device and in another order of the emulator.
#[test]
fn batch_invariant_bits_do_not_depend_on_the_batch() {
    let name = "models::batch_invariant_bits_do_not_depend_on_the_batch";
    let trace = concat!(env!("CARGO_TARGET_TMPDIR"), "/cuda-splits.txt");
    let switches =
        [("BERTHIER_EMU_DEVICES", "2"), ("BERTHIER_EMU_ORDER", "shuffle"), ("BERTHIER_EMU_TRACE", trace)];
    on_stand_in(name, &switches, || {
        let _ = std::fs::remove_file(trace);
        let desc = deep();
        let seqs = sequences(&[5, 40, 1, 100, 17, 64, 2, 33], &desc);
        let rows: Vec<usize> = (0..seqs.len()).collect();
        let (mut a, mut b) = (
            backend(Device::Cuda(0), &desc, Precision::Fp16, true),
            backend(Device::Cuda(1), &desc, Precision::Fp16, true),
        );
        assert_eq!(a.kind(), b.kind());
        let dim = desc.dim();
        let all = run(&mut *a, batch(&rows, &seqs), dim);
        assert_eq!(bits(&all), bits(&run(&mut *b, batch(&rows, &seqs), dim)), "on two devices");
        let backwards: Vec<usize> = rows.iter().rev().copied().collect();
        let other = run(&mut *b, batch(&backwards, &seqs), dim);
        for &row in &rows {
            let want = bits(&all[row * dim..][..dim]);
            assert_eq!(want, bits(&other[(rows.len() - 1 - row) * dim..][..dim]), "row {row}, backwards");
            assert_eq!(want, bits(&run(&mut *a, batch(&[row], &seqs), dim)), "row {row} alone");
        }
        // products that are split seldom show in 16 bits, so the launches are looked at
        let is_split = |line: &&str| line.contains("splitk_reduce") || is_split_in_a_cluster(line);
        let splits = || std::fs::read_to_string(trace).unwrap().lines().filter(is_split).count();
        assert_eq!(splits(), 0, "batch-invariant");
        run(&mut *backend(Device::Cuda(0), &desc, Precision::Fp16, false), batch(&[0], &seqs), dim);
        assert!(splits() > 0, "without the option, a product of five rows is split");
    });
}

/// Every architecture's tiles and limits. From sm_90 on, a kernel that follows another begins early, and the stand-in sees to
/// it that it waits; with the same bits.
#[test]
fn architectures_of_gpus_give_the_same_bits_early_or_not() {
    let trace = concat!(env!("CARGO_TARGET_TMPDIR"), "/cuda-trace.txt");
    let name = "models::architectures_of_gpus_give_the_same_bits_early_or_not";
    let capabilities = [80, 86, 89, 90, 100, 120];
    let listed = capabilities.map(|c| c.to_string()).join(",");
    let devices = capabilities.len().to_string();
    let switches = [
        ("BERTHIER_EMU_DEVICES", &devices[..]),
        ("BERTHIER_EMU_ARCH", &listed),
        ("BERTHIER_EMU_TRACE", trace),
    ];
    on_stand_in(name, &switches, || {
        let desc = ModelDesc { intermediate_size: 512, ..desc() };
        let seqs = sequences(&[5, 40, 100, 17], &desc);
        let mut first = None;
        for (ordinal, capability) in capabilities.into_iter().enumerate() {
            let _ = std::fs::remove_file(trace);
            let mut cuda = backend(Device::Cuda(ordinal), &desc, Precision::Fp16, true);
            let got = bits(&run(&mut *cuda, batch(&[0, 1, 2, 3], &seqs), desc.dim()));
            assert_eq!(*first.get_or_insert_with(|| got.clone()), got, "sm_{capability}");
            let launches = std::fs::read_to_string(trace).unwrap();
            // both attention kernels run: one more a layer
            assert_eq!(launches.lines().count(), LAUNCHES + 2, "{launches}");
            let early: Vec<bool> = launches.lines().map(|line| line.ends_with(" early")).collect();
            let behind_the_copy = !early[0];
            assert!(behind_the_copy && early[1..].iter().all(|&e| e == (capability >= 90)), "{launches}");
        }
    });
}

/// Without it, one sequence has its products split. Two devices of a kind still give the same bits for the same batch.
#[test]
fn devices_of_a_kind_give_the_same_bits() {
    on_stand_in("models::devices_of_a_kind_give_the_same_bits", &[("BERTHIER_EMU_DEVICES", "2")], || {
        let desc = deep();
        let seqs = sequences(&[5, 40, 100], &desc);
        let (mut a, mut b) = (
            backend(Device::Cuda(0), &desc, Precision::Bf16, false),
            backend(Device::Cuda(1), &desc, Precision::Bf16, false),
        );
        assert_eq!(a.kind(), b.kind());
        assert_ne!(a.name(), b.name());
        for rows in [&[0usize][..], &[2, 1, 0]] {
            let got = run(&mut *a, batch(rows, &seqs), desc.dim());
            assert_eq!(bits(&got), bits(&run(&mut *b, batch(rows, &seqs), desc.dim())));
        }
    });
}

/// Small batches that come again are replayed from a graph: with the bits of kernels launched one by one, filled up to a shape
/// or not, whichever of the two slots they meet, and with other batches of the same shape in between.
#[test]
fn graphs_give_the_bits_of_single_launches() {
    let trace = concat!(env!("CARGO_TARGET_TMPDIR"), "/cuda-graphs.txt");
    let name = "models::graphs_give_the_bits_of_single_launches";
    on_stand_in(name, &[("BERTHIER_EMU_TRACE", trace)], || {
        let _ = std::fs::remove_file(trace);
        let graphs = || std::fs::read_to_string(trace).unwrap_or_default().matches("graph of").count();
        let threads = Threads::new(NonZeroUsize::new(1)).unwrap();
        let pooling = vec![Pooling::Mean, Pooling::Cls];
        let modules = vec![Module::Dense(Dense {
            out_features: 24,
            bias: true,
            activation: Some(Activation::Tanh),
            use_residual: false,
        })];
        let positions = Positions::Rotary { global_base: 1e4, local_base: 1e4, divisor: 1.0 };
        let rotary = ModelDesc { positions, norms: Norms::Pre, ..desc() };
        for desc in [deep(), ModelDesc { pooling, modules, ..desc() }, rotary] {
            let open = |cuda_graphs| {
                let precision = Precision::Fp16;
                let max_tokens = Some(512);
                let options = BackendOptions {
                    precision,
                    max_tokens,
                    cuda_graphs,
                    persistent_kernel: PersistentKernel::Never,
                    ..BackendOptions::new(threads.clone())
                };
                open(Device::Cuda(0), &desc, &Weights::random(&desc, 7), &options).unwrap()
            };
            // the first two have one shape; 40, 100 and 17 tokens take both attention kernels
            let seqs = sequences(&[5, 7, 40, 100, 17], &desc);
            let rows: [&[usize]; 4] = [&[0], &[1], &[2, 3, 4], &[4, 0, 1]];
            let make = |i: usize| {
                let skip_tokens = usize::from(i == 3);
                PackedBatch { normalize: i.is_multiple_of(2), skip_tokens, ..batch(rows[i], &seqs) }
            };
            let before = graphs();
            let mut single = open(false);
            let want: Vec<_> = (0..4).map(|i| bits(&run(&mut *single, make(i), desc.dim()))).collect();
            for i in [0, 0, 0, 0] {
                assert_eq!(bits(&run(&mut *single, make(i), desc.dim())), want[i]);
            }
            assert_eq!(graphs(), before, "none was asked for");
            let mut recorded = open(true);
            let mut replayed = Vec::new();
            for i in [0, 0, 1, 1, 0, 0, 2, 3, 2, 3, 2, 3, 1, 0, 2, 3] {
                let before = graphs();
                assert_eq!(bits(&run(&mut *recorded, make(i), desc.dim())), want[i], "batch {i}");
                replayed.push(graphs() > before);
            }
            // each shape in each slot: first met, then recorded and launched
            assert_eq!(replayed[..6], [false, false, false, false, true, true], "{replayed:?}");
            assert!(replayed[8..].iter().all(|&r| r), "{replayed:?}");
        }
    });
}

/// Work lists and all else are made in memory that stays; the batches differ and have one shape.
#[test]
fn replayed_batches_allocate_nothing() {
    on_stand_in("models::replayed_batches_allocate_nothing", &[], || {
        let desc = desc();
        let mut cuda = backend(Device::Cuda(0), &desc, Precision::Fp16, false);
        let seqs = sequences(&[40, 7, 100, 39, 8, 99], &desc);
        let mut out = vec![f32::NAN; 3 * desc.dim()];
        let mut calls = [0; 8];
        for (i, calls) in calls.iter_mut().enumerate() {
            let make = PackedBatch { skip_tokens: 1, ..batch(&[[0, 1, 2], [3, 4, 5]][i / 2 % 2], &seqs) };
            let before = counting::calls();
            cuda.submit(make).unwrap();
            let back = cuda.collect(&mut out).unwrap();
            *calls = counting::calls() - before;
            drop(back);
        }
        assert!(calls[0] > 0 && calls[1] > 0, "the counter counts: each slot's first batch grows");
        assert_eq!(calls[4..], [0; 4], "{calls:?}");
    });
}

/// Two batches in flight, of other sizes, again and again: vectors come back in order and none is another's.
#[test]
fn two_batches_in_flight_do_not_meet() {
    for streams in ["late", "eager"] {
        let name = "models::two_batches_in_flight_do_not_meet";
        on_stand_in(name, &[("BERTHIER_EMU_STREAMS", streams)], || {
            let desc = desc();
            let seqs = sequences(&[5, 40, 1, 100, 17, 64], &desc);
            let mut cuda = backend(Device::Cuda(0), &desc, Precision::Fp16, true);
            assert_eq!(cuda.capacity().in_flight, 2);
            let batches: Vec<Vec<usize>> =
                vec![vec![3, 1], vec![0], vec![], vec![2, 4, 5], vec![5], vec![1, 3]];
            let mut want = Vec::new();
            for rows in &batches {
                want.push(bits(&run(&mut *cuda, batch(rows, &seqs), desc.dim())));
            }
            cuda.submit(batch(&batches[0], &seqs)).unwrap();
            for i in 0..batches.len() {
                if let Some(next) = batches.get(i + 1) {
                    cuda.submit(batch(next, &seqs)).unwrap();
                }
                let mut out = vec![f32::NAN; batches[i].len() * desc.dim()];
                let back = cuda.collect(&mut out).unwrap();
                assert_eq!(back.rows, batches[i], "batches come back in order");
                assert_eq!(bits(&out), want[i], "batch {i}");
            }
        });
    }
}
