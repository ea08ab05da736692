//! The steady state of the CPU backend on one thread allocates nothing.
#![allow(clippy::print_stderr, reason = "a test that skips says so")]

#[path = "common/counting.rs"]
mod counting;

use berthier::Error;
use berthier::Threads;
use berthier::backend::{BackendOptions, Device, Precision, open};
use berthier::batch::PackedBatch;
use berthier::model::{
    Activation, AttentionBias, AttentionSpan, Dense, Family, FeedForward, ModelDesc, Module, Norms, Pooling,
    Positions, Weights,
};
use std::num::NonZeroUsize;

// the only test of this file: another one, running beside it, would be counted too
#[test]
fn steady_state_allocates_nothing() {
    let bert = ModelDesc {
        family: Family::Bert,
        vocab_size: 50,
        hidden_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        intermediate_size: 90,
        max_position_embeddings: 300,
        type_vocab_size: 1,
        layer_norm_eps: 1e-12,
        hidden_act: Activation::Gelu,
        pooled_layers: 1,
        pooling: vec![Pooling::Mean, Pooling::Max],
        attention_bias: AttentionBias::RelativeBuckets,
        embedding_size: Some(20),
        modules: vec![
            Module::Dense(Dense {
                out_features: 100,
                bias: true,
                activation: Some(Activation::Tanh),
                use_residual: true,
            }),
            Module::LayerNorm,
        ],
        normalize: true,
        max_seq_length: 300,
        ..ModelDesc::default()
    };
    // what the families differ in, apart from what is above
    let modern = ModelDesc {
        attention_bias: AttentionBias::None,
        positions: Positions::Rotary { global_base: 1e5, local_base: 1e4, divisor: 1.0 },
        attention_span: AttentionSpan::Mixed { reach: 20, local: vec![false, true] },
        feed_forward: FeedForward::Gated,
        norms: Norms::Pre,
        ..bert.clone()
    };
    let jina = ModelDesc {
        attention_bias: AttentionBias::Alibi,
        positions: Positions::None,
        norms: Norms::PostQueryKey,
        ..bert.clone()
    };
    for precision in [Precision::Fp32, Precision::Bf16] {
        check(&bert, precision);
        check(&modern, precision);
        check(&jina, precision);
    }
}

fn check(desc: &ModelDesc, precision: Precision) {
    let weights = Weights::random(desc, 3);
    let threads = Threads::new(NonZeroUsize::new(1)).unwrap();
    let options = BackendOptions { precision, max_tokens: Some(2000), ..BackendOptions::new(threads) };
    let mut backend = match open(Device::Cpu, desc, &weights, &options) {
        Err(Error::InvalidOption { name: "precision", message }) if precision == Precision::Bf16 => {
            eprintln!("SKIP: {message}");
            return;
        }
        backend => backend.unwrap(),
    };

    let mut batch = PackedBatch { normalize: true, ..PackedBatch::default() };
    let mut out = vec![0f32; 64 * desc.dim()];
    let ids = [7u32; 300];
    let types = [0u32; 300];
    let seqlens = [300, 150, 150, 64, 17, 16, 3, 1, 1];
    let mut calls = Vec::with_capacity(3);
    for _ in 0..3 {
        let before = counting::calls();
        batch.clear();
        for (row, &n) in seqlens.iter().cycle().take(18).enumerate() {
            batch.push(row, &ids[..n], &types[..n]);
        }
        let out = &mut out[..batch.len() * desc.dim()];
        backend.submit(std::mem::take(&mut batch)).unwrap();
        batch = backend.collect(out).unwrap();
        calls.push(counting::calls() - before);
        assert!(out.iter().all(|v| v.is_finite()));
    }
    assert!(calls[0] > 0, "the counter counts: the first batch grows");
    assert_eq!(calls[1..], [0, 0], "allocations of the second and third batch");
}
