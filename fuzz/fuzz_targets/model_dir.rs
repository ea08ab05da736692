//! A whole model directory: the input is its files, one after another, each behind a line `--`. A file that
//! is empty is that of the tiny model in `tests/common/toy.rs`, so that the loader gets behind it.
#![no_main]

use berthier::model;
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::LazyLock;

#[path = "../../tests/common/toy.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod toy;

/// In the order of the input.
const FILES: [&str; 7] = [
    "config.json",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer_config.json",
    "model.safetensors",
];

static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a temporary directory").keep();
    toy::Toy::new().file(FILES[4], "{}").write(&dir);
    dir
});
static WHOLE: LazyLock<Vec<Vec<u8>>> =
    LazyLock::new(|| FILES.iter().map(|f| std::fs::read(DIR.join(f)).expect("a file of the toy")).collect());

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    for (file, whole) in FILES.iter().zip(WHOLE.iter()) {
        let end = rest.windows(4).position(|w| w == b"\n--\n");
        let (bytes, behind) = end.map_or((rest, &[][..]), |at| (&rest[..at], &rest[at + 4..]));
        rest = behind;
        let bytes = if bytes.is_empty() { whole } else { bytes };
        std::fs::write(DIR.join(file), bytes).expect("a writable directory");
    }
    if let Ok(model) = model::open(&DIR) {
        let read: usize = model.weights.tensors().map(|t| t.to_f32().len()).sum();
        assert_eq!(read, model.weights.parameters());
        assert!((1..=model.desc.max_position_embeddings).contains(&model.desc.max_seq_length));
    }
});
