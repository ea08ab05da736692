//! Our tokenizer of the BERT kind beside the crate's. The input is a byte of flags, the vocabulary's pieces up to a line
//! `--`, added tokens up to another (each behind a byte of its flags), and a text.
#![no_main]

use berthier::model::TokenizerDesc;
use berthier::tokenize::Tokenizer;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::sync::LazyLock;

static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a temporary directory").keep();
    // the class that leaves tokenizer.json as it is
    let config = r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#;
    std::fs::write(dir.join("tokenizer_config.json"), config).expect("a writable directory");
    std::fs::write(dir.join("config.json"), r#"{"model_type": "bert"}"#).expect("a writable directory");
    dir
});

fuzz_target!(|data: &[u8]| {
    let Some((&flags, rest)) = data.split_first() else { return };
    let flag = |bit: u8| flags >> bit & 1 == 1;
    let Ok(rest) = std::str::from_utf8(rest) else { return };
    let mut parts = rest.splitn(3, "\n--\n");
    let (pieces, added, text) = (parts.next(), parts.next(), parts.next());
    let (Some(pieces), Some(added), Some(text)) = (pieces, added, text) else { return };
    let mut vocab = Map::from_iter([("[UNK]".into(), json!(0))]);
    for piece in pieces.lines() {
        let id = vocab.len();
        vocab.entry(piece).or_insert(json!(id));
    }
    let mut tokens: Vec<Value> = Vec::new();
    for line in added.lines() {
        let Some(first) = line.chars().next() else { continue };
        let (flag, content) = (|bit: u32| u32::from(first) >> bit & 1 == 1, &line[first.len_utf8()..]);
        if content.is_empty() || tokens.iter().any(|token| token["content"] == content) {
            continue;
        }
        let next = vocab.len()
            + tokens
                .iter()
                .filter(|token| !vocab.contains_key(token["content"].as_str().unwrap_or("")))
                .count();
        let id = vocab.get(content).cloned().unwrap_or_else(|| json!(next));
        tokens.push(json!({
            "id": id, "content": content, "single_word": flag(0), "lstrip": flag(1), "rstrip": flag(2),
            "normalized": flag(3), "special": flag(4),
        }));
    }
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": tokens, "post_processor": null,
        "decoder": null, "pre_tokenizer": {"type": "BertPreTokenizer"},
        "normalizer": {"type": "BertNormalizer", "clean_text": flag(0), "handle_chinese_chars": flag(1),
            "strip_accents": flag(2).then_some(flag(3)), "lowercase": flag(4)},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 1 + (flags >> 5) * 15, "vocab": vocab},
    });
    let json = json.to_string();
    std::fs::write(DIR.join("tokenizer.json"), &json).expect("a writable directory");
    let desc = TokenizerDesc { dir: DIR.clone(), do_lower_case: false, vocab_size: usize::MAX };
    let (Ok(own), Ok(of_crate)) = (Tokenizer::load(&desc), json.parse::<tokenizers::Tokenizer>()) else {
        return;
    };
    let found = own.encode("", text, usize::MAX).expect("ids").ids;
    assert_eq!(found, of_crate.encode_fast(text, false).expect("ids").get_ids());
});
