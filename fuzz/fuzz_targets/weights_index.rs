//! `model.safetensors.index.json` of a model whose shards are right: the input is the index.
#![no_main]

use berthier::model;
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::LazyLock;

#[path = "../../tests/common/toy.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod toy;

static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a temporary directory").keep();
    let whole = toy::Toy::plain();
    whole.write_without_weights(&dir);
    let (odd, even): (Vec<_>, Vec<_>) = whole.tensors.iter().cloned().enumerate().partition(|(i, _)| i % 2 == 1);
    for (name, part) in [("a.safetensors", odd), ("b.safetensors", even)] {
        let part: Vec<_> = part.into_iter().map(|(_, tensor)| tensor).collect();
        std::fs::write(dir.join(name), toy::safetensors_bytes(&part)).expect("a writable directory");
    }
    dir
});

fuzz_target!(|data: &[u8]| {
    std::fs::write(DIR.join("model.safetensors.index.json"), data).expect("a writable directory");
    if let Ok(model) = model::open(&DIR) {
        let read: usize = model.weights.tensors().map(|t| t.to_f32().len()).sum();
        assert_eq!(read, model.weights.parameters());
    }
});
