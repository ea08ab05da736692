//! The tokenizer's files: the input is `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`,
//! `added_tokens.json` and `vocab.txt`, each behind a line `--`; one that is empty is not there. What loads
//! encodes a text, with every id below the vocabulary's size.
#![no_main]

use berthier::model::TokenizerDesc;
use berthier::tokenize::Tokenizer;
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::LazyLock;

/// In the order of the input.
const FILES: [&str; 5] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"];
const VOCAB_SIZE: usize = 400;

static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a temporary directory").keep();
    std::fs::write(dir.join("config.json"), r#"{"model_type": "bert"}"#).expect("a writable directory");
    // libfuzzer-sys ends the process in its hook; a panic of the crate that becomes an error must not do so, and one
    // that leaves the target still does
    std::panic::set_hook(Box::new(|_| ()));
    dir
});

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    for file in FILES {
        let end = rest.windows(4).position(|w| w == b"\n--\n");
        let (bytes, behind) = end.map_or((rest, &[][..]), |at| (&rest[..at], &rest[at + 4..]));
        rest = behind;
        let path = DIR.join(file);
        if bytes.is_empty() {
            let _ = std::fs::remove_file(path);
        } else {
            std::fs::write(path, bytes).expect("a writable directory");
        }
    }
    let desc =
        TokenizerDesc { dir: DIR.clone(), do_lower_case: data.len() % 2 == 1, vocab_size: VOCAB_SIZE };
    let Ok(tokenizer) = Tokenizer::load(&desc) else { return };
    for text in ["", "Hello, world! <mask> [SEP] caf\u{e9} \u{4e2d}\u{6587} ", "a\u{0}b\u{301}"] {
        if let Ok(encoding) = tokenizer.encode("query: ", text, 16) {
            assert!(encoding.ids.iter().all(|&id| (id as usize) < VOCAB_SIZE));
            assert_eq!(encoding.ids.len(), encoding.type_ids.len());
            assert!(encoding.ids.len() <= 16.max(tokenizer.special_tokens()));
        }
    }
});
