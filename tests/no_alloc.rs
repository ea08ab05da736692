//! The steady state of the CPU allocates nothing: of the backend, and of an embedder from ids and from text.
#![allow(clippy::print_stderr, reason = "a test that skips says so")]

mod common;
#[path = "common/counting.rs"]
mod counting;

use berthier::backend::{BackendOptions, Device, Precision, open};
use berthier::batch::PackedBatch;
use berthier::model::{
    Activation, AttentionBias, AttentionSpan, Dense, Family, FeedForward, ModelDesc, Module, Norms, Pooling,
    Positions, Weights,
};
use berthier::{Embedder, Error, Options, Threads};
use common::toy::{Toy, VOCAB, toy_bert};
use std::num::NonZeroUsize;
use std::time::Duration;

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
    for threads in [1, 2] {
        for precision in [Precision::Fp32, Precision::Bf16, Precision::Int8] {
            check(&bert, precision, threads);
            check(&modern, precision, threads);
            check(&jina, precision, threads);
        }
        embedder_allocates_nothing(threads);
        embedder_allocates_nothing_from_text(threads);
    }
}

/// Allocations of each of some calls, of which the first ones grow what the others need.
fn allocations(mut call: impl FnMut()) -> [usize; 6] {
    // threads that have just been made may allocate when they start
    std::thread::sleep(Duration::from_millis(20));
    [(); 6].map(|()| {
        let before = counting::calls();
        call();
        counting::calls() - before
    })
}

fn embedder_allocates_nothing(threads: usize) {
    let dir = tempfile::tempdir().unwrap();
    toy_bert(dir.path());
    let options = Options::new(dir.path().to_str().unwrap()).device(Device::Cpu);
    let embedder = Embedder::load(options.threads(NonZeroUsize::new(threads).unwrap())).unwrap();

    // more sequences than a sort keeps on its stack, of all lengths, in several batches and in one
    let offsets: Vec<usize> =
        (0..200).scan(0, |at, i| Some(std::mem::replace(at, *at + 1 + i % 12))).collect();
    let ids: Vec<u32> = (0..offsets[199] as u32).map(|i| i % 32).collect();
    let mut out = vec![0.0; 199 * embedder.dim()];
    let calls = allocations(|| embedder.embed_ids_into(&ids, &offsets, &mut out).unwrap());
    assert!(calls[0] > 0, "the counter counts");
    assert_eq!(calls[2..], [0; 4], "{threads} threads: 199 sequences");
    let one = &mut out[..embedder.dim()];
    let calls = allocations(|| embedder.embed_ids_into(&ids, &offsets[..2], one).unwrap());
    assert_eq!(calls[1..], [0; 5], "{threads} threads: one sequence");
}

/// Of no words to more than the limit of 12 tokens lets pass, and one that is longer than the pieces that long texts are read
/// in and shorter than what is not kept; with what each way of the tokenizer is for.
fn texts() -> Vec<String> {
    let words = [
        "the",
        "Cat",
        "sat.",
        "on",
        "a\u{301}",
        "mats",
        "\u{4e2d}\u{6587}",
        "\u{c9}\u{302e}\u{316}",
        "[SEP]",
        "<New>",
        "unknown",
        "abcabc",
    ];
    let text = |n: usize| words.iter().cycle().skip(n).take(n % 23).copied().collect::<Vec<_>>().join(" ");
    let mut texts: Vec<String> = (0..150).map(|i| text(i * 7)).collect();
    texts.push(words.join(" ").repeat(1500));
    texts.push("x".repeat(5000));
    texts
}

fn embedder_allocates_nothing_from_text(threads: usize) {
    let left = r#"{"do_lower_case": true, "truncation_side": "left"}"#;
    // one that is looked for in normalised text, which takes another way
    let added = r#"{"added_tokens_decoder": {"31": {"content": "<new>", "normalized": true}}}"#;
    for (what, config) in [("plain", None), ("left", Some(left)), ("added", Some(added))] {
        let dir = tempfile::tempdir().unwrap();
        let vocab = VOCAB.join("\n").replace("\u{e9}", "<new>");
        let toy = Toy::new().file("vocab.txt", vocab);
        config.map_or(toy.clone(), |config| toy.file("tokenizer_config.json", config)).write(dir.path());
        let options = Options::new(dir.path().to_str().unwrap()).device(Device::Cpu);
        let plain = Embedder::load(options.threads(NonZeroUsize::new(threads).unwrap())).unwrap();
        let prompted = plain.with_prompt("the dog: ").unwrap();

        let unsorted = texts();
        let mut sorted = unsorted.clone();
        sorted.sort_by_key(String::len);
        let mut out = vec![0.0; unsorted.len() * plain.dim()];
        let mut tokens = Vec::new();
        for (how, embedder) in [("", &plain), ("prompted", &prompted)] {
            for (order, texts) in [("unsorted", &unsorted), ("sorted", &sorted)] {
                let calls = allocations(|| embedder.embed_into(texts, &mut out, &mut tokens).unwrap());
                assert_eq!(calls[2..], [0; 4], "{threads} threads: {what} {how}, {order}");
                assert!(tokens.iter().any(|t| t.truncated()) && tokens.iter().any(|t| !t.truncated()));
            }
            for text in &unsorted[unsorted.len() - 20..] {
                let one = &mut out[..embedder.dim()];
                let calls = allocations(|| embedder.embed_into(&[text], one, &mut tokens).unwrap());
                assert_eq!(calls[2..], [0; 4], "{threads} threads: {what} {how}, one text");
            }
        }
    }
}

fn check(desc: &ModelDesc, precision: Precision, threads: usize) {
    let weights = Weights::random(desc, 3);
    let threads = Threads::new(NonZeroUsize::new(threads)).unwrap();
    let options = BackendOptions { precision, max_tokens: Some(2000), ..BackendOptions::new(threads) };
    let mut backend = match open(Device::Cpu, desc, &weights, &options) {
        Err(Error::InvalidOption { name: "precision", message }) if precision != Precision::Fp32 => {
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
    let calls = allocations(|| {
        batch.clear();
        for (row, &n) in seqlens.iter().cycle().take(18).enumerate() {
            batch.push(row, &ids[..n], &types[..n]);
        }
        let out = &mut out[..batch.len() * desc.dim()];
        backend.submit(std::mem::take(&mut batch)).unwrap();
        batch = backend.collect(out).unwrap();
        assert!(out.iter().all(|v| v.is_finite()));
    });
    assert!(calls[0] > 0, "the counter counts: the first batch grows");
    assert_eq!(calls[2..], [0; 4], "allocations of the third batch and of those behind it");
}
