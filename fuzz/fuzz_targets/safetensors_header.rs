//! The weights file of a model whose other files are right. An even first byte: the rest is the file. An odd
//! one: the rest is the header, behind a right length and before the tiny model's own data.
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
    toy::Toy::plain().write(&dir);
    dir
});
static TENSOR_BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let whole = toy::safetensors_bytes(&toy::Toy::plain().tensors);
    let (length, rest) = whole.split_first_chunk::<8>().expect("a header");
    rest[u64::from_le_bytes(*length) as usize..].to_vec()
});

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else { return };
    let bytes = if kind % 2 == 0 {
        rest.to_vec()
    } else {
        [&(rest.len() as u64).to_le_bytes(), rest, &TENSOR_BYTES].concat()
    };
    std::fs::write(DIR.join("model.safetensors"), bytes).expect("a writable directory");
    if let Ok(model) = model::open(&DIR) {
        let read: usize = model.weights.tensors().map(|t| t.to_f32().len()).sum();
        assert_eq!(read, model.weights.parameters());
    }
});
