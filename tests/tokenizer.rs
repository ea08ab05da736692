//! Token ids are those of the reference, rule by rule of `docs/loading.md`.
#![allow(clippy::print_stderr, reason = "a test that skips says so")]

#[path = "common/golden.rs"]
mod golden;
#[path = "common/minilm.rs"]
mod minilm;

use berthier::Error;
use berthier::model::TokenizerDesc;
use berthier::tokenize::{Encoding, Tokenizer};
use golden::Golden;
use std::path::{Path, PathBuf};

const BERT_VOCAB: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\nworld\n##s\n";

fn load(dir: &Path, vocab_size: usize) -> berthier::Result<Tokenizer> {
    Tokenizer::load(&TokenizerDesc { dir: dir.into(), do_lower_case: false, vocab_size })
}

fn assert_golden(what: &Path, tokenizer: &Tokenizer, golden: &Golden) {
    for row in &golden.rows {
        let encoding = tokenizer.encode(&golden.prompt, &row.text, golden.max_seq_length).unwrap();
        let place = format!("{}: {}: {:.200?}", what.display(), row.name, row.text);
        assert_eq!(encoding.ids, row.ids, "{place}");
        assert_eq!(encoding.total_tokens, row.total_tokens, "{place}");
        assert_eq!(encoding.type_ids, vec![0; row.ids.len()], "{place}");
    }
}

fn assert_variants(rule_folders: &[&str]) {
    for name in rule_folders {
        let dir = golden::fixtures().join("tokenizers").join(name);
        let golden = Golden::read(&dir);
        let tokenizer = Tokenizer::load(&TokenizerDesc {
            dir: dir.clone(),
            do_lower_case: golden.do_lower_case,
            vocab_size: golden.vocab_size.expect("a variant has a vocab_size"),
        })
        .unwrap();
        assert_golden(&dir, &tokenizer, &golden);
    }
}

/// A directory of tokenizer files.
struct Dir(tempfile::TempDir);

impl Dir {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Self(dir)
    }

    fn load(&self) -> berthier::Result<Tokenizer> {
        load(self.0.path(), 100)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The message of the error that loading gives, without the directory's own path.
    fn message(&self) -> String {
        let message = self.load().expect_err("a broken tokenizer must be refused").to_string();
        message.replace(&self.0.path().display().to_string(), "DIR")
    }
}

#[test]
fn ids_match_reference_on_minilm() {
    let Some(dir) = minilm::dir() else { return };
    let tokenizer = load(dir, 30522).unwrap();
    let folder = golden::fixtures().join("minilm");
    assert_golden(&folder, &tokenizer, &Golden::read(&folder));
    assert_eq!(tokenizer.special_tokens(), 2);
}

/// On the crate's own reading of the model's `tokenizer.json`, which says of all-MiniLM what its class says.
#[test]
fn ids_match_the_crate_on_real_texts() {
    let Some(dir) = minilm::dir() else { return };
    let own = load(dir, 30522).unwrap();
    let mut of_crate = tokenizers::Tokenizer::from_file(dir.join("tokenizer.json")).unwrap();
    of_crate.with_truncation(None).unwrap().with_padding(None);
    let mut texts = vec![include_str!("tokenizer.rs").to_owned()];
    let data =
        std::env::var_os("BERTHIER_DATA").map_or_else(|| PathBuf::from("../shared/data"), PathBuf::from);
    let folders =
        ["corpus", "nli", "retrieval/scifact", "retrieval/cranfield", "sts", "senteval/mr", "senteval/trec"];
    for folder in folders.iter().map(|folder| data.join(folder)) {
        let Ok(files) = std::fs::read_dir(&folder) else {
            eprintln!(
                "SKIP: no {} (BERTHIER_DATA names the folder of the evaluation data)",
                folder.display()
            );
            continue;
        };
        for file in files {
            let text = std::fs::read(file.unwrap().path()).unwrap();
            let text = String::from_utf8_lossy(&text);
            // a part from the middle, too: what is in a file's head is not all that is in it
            let middle = text.char_indices().map(|(at, _)| at).find(|&at| at >= text.len() / 2).unwrap_or(0);
            for part in [&text[..], &text[middle..]] {
                texts.extend(part.lines().take(500).map(String::from));
            }
        }
    }
    for text in &texts {
        let (found, wanted) =
            (own.encode("", text, usize::MAX).unwrap(), of_crate.encode_fast(&text[..], true).unwrap());
        assert_eq!(found.ids, wanted.get_ids(), "{text:.300?}");
        assert_eq!(found.total_tokens, found.ids.len());
    }
    // and a whole file as one text
    let whole = texts.join("\n");
    let whole = &whole[..whole.floor_char_boundary(1 << 20)];
    let found = own.encode("", whole, 512).unwrap();
    let wanted = of_crate.encode_fast(whole, true).unwrap();
    assert_eq!((&found.ids[..511], found.total_tokens), (&wanted.get_ids()[..511], wanted.len()));
}

#[test]
fn ids_match_reference_on_tiny_models() {
    for folder in golden::folders("tiny") {
        let tokenizer = load(&folder.join("model"), 256).unwrap();
        assert_golden(&folder, &tokenizer, &Golden::read(&folder));
    }
}

#[test]
fn ids_match_reference_on_families() {
    for folder in golden::folders("families") {
        let model = berthier::model::open(&folder.join("model")).unwrap();
        assert_golden(&folder, &Tokenizer::load(&model.tokenizer).unwrap(), &Golden::read(&folder));
    }
}

/// So that no folder is without a test.
#[test]
fn ids_match_reference_on_all_variants() {
    let folders = golden::folders("tokenizers");
    let names: Vec<&str> = folders.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
    assert_variants(&names);
}

#[test]
fn rule_10_module_lower_cases_first() {
    assert_variants(&["lower-case-module", "lower-case-module-unchanged", "lower-case-module-twice"]);
}

#[test]
fn rule_12_tokenizer_config_wins() {
    assert_variants(&["config-cased", "config-strips-accents", "config-keeps-accents", "config-no-chinese"]);
}

#[test]
fn rule_13_lower_case_is_the_default() {
    assert_variants(&["config-missing", "config-silent"]);
}

#[test]
fn rule_14_other_classes_take_the_file_unchanged() {
    assert_variants(&["unchanged-fast", "unchanged-backend", "unchanged-left"]);
}

#[test]
fn rule_14_unknown_classes_are_refused() {
    for class in ["T5Tokenizer", "GPT2TokenizerFast", "NoSuchTokenizer"] {
        let config = format!(r#"{{"tokenizer_class": "{class}"}}"#);
        let dir = Dir::new(&[("vocab.txt", BERT_VOCAB), ("tokenizer_config.json", &config)]);
        let error = dir.load().unwrap_err();
        let Error::Unsupported { path, what } = &error else { panic!("{error}") };
        assert_eq!(*path, dir.path("tokenizer_config.json"));
        assert!(what.contains(class), "{what}");
    }
    // config.json names the class where tokenizer_config.json does not
    let dir =
        Dir::new(&[("vocab.txt", BERT_VOCAB), ("config.json", r#"{"tokenizer_class": "T5Tokenizer"}"#)]);
    let error = dir.load().unwrap_err();
    assert!(matches!(&error, Error::Unsupported { path, .. } if *path == dir.path("config.json")), "{error}");
}

#[test]
fn rule_18_classes_that_need_a_json_are_refused_without_one() {
    for class in ["RobertaTokenizer", "XLMRobertaTokenizerFast", "CamembertTokenizer", "AlbertTokenizer"] {
        let config = format!(r#"{{"tokenizer_class": "{class}"}}"#);
        let dir = Dir::new(&[("vocab.txt", BERT_VOCAB), ("tokenizer_config.json", &config)]);
        assert!(matches!(dir.load(), Err(Error::MissingFile { .. })), "{class}");
        // and with a vocabulary of another kind
        let json = r#"{"model": {"type": "WordPiece", "vocab": {"<s>": 0}}}"#;
        let dir = Dir::new(&[("tokenizer.json", json), ("tokenizer_config.json", &config)]);
        assert!(
            dir.message().contains("a WordPiece vocabulary where tokenizer_class has"),
            "{}",
            dir.message()
        );
    }
    // the model's type names the class where nothing else does
    for model_type in ["roberta", "xlm-roberta", "camembert", "albert"] {
        let config = format!(r#"{{"model_type": "{model_type}"}}"#);
        let dir = Dir::new(&[("vocab.txt", BERT_VOCAB), ("config.json", &config)]);
        assert!(matches!(dir.load(), Err(Error::MissingFile { .. })), "{model_type}");
    }
}

/// The special tokens around a text are those of the file's own post-processor.
#[test]
fn rule_14_template_is_the_files() {
    let load_typed = |post_processor: &str, typed: bool| {
        let json = format!(
            r###"{{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": {{"type": "Whitespace"}},
            "post_processor": {post_processor}, "decoder": null, "model": {{"type": "WordPiece", "unk_token": "[UNK]",
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": {{"[UNK]": 0, "<s>": 1, "</s>": 2,
            "hello": 3}}}}}}"###
        );
        let config =
            r#"{"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["token_type_ids"]}"#;
        let config = if typed { config } else { r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"# };
        Dir::new(&[("tokenizer.json", &json), ("tokenizer_config.json", config)]).load()
    };
    let load = |post_processor: &str| load_typed(post_processor, true);
    let template = |single: &str| {
        format!(
            r#"{{"type": "TemplateProcessing", "single": [{single}], "pair": [], "special_tokens":
            {{"<s>": {{"id": "<s>", "ids": [1], "tokens": ["<s>"]}}, "</s>": {{"id": "</s>", "ids": [2], "tokens": ["</s>"]}}}}}}"#
        )
    };
    let bos = r#"{"SpecialToken": {"id": "<s>", "type_id": 0}}"#;
    let eos = r#"{"SpecialToken": {"id": "</s>", "type_id": 2}}"#;
    let text = r#"{"Sequence": {"id": "A", "type_id": 1}}"#;

    let tokenizer = load(&template(&format!("{bos}, {bos}, {text}, {eos}"))).unwrap();
    assert_eq!(tokenizer.special_tokens(), 3);
    let encoding = tokenizer.encode("", "hello hello x", 5).unwrap();
    assert_eq!(encoding.ids, [1, 1, 3, 3, 2]);
    assert_eq!(encoding.type_ids, [0, 0, 1, 1, 2]);
    // the types go into the model only where the tokenizer is said to give them
    let untyped = load_typed(&template(&format!("{bos}, {bos}, {text}, {eos}")), false).unwrap();
    assert_eq!((untyped.highest_type_id(), tokenizer.highest_type_id()), (0, 2));
    assert_eq!(untyped.encode("", "hello hello x", 5).unwrap().type_ids, [0; 5]);
    assert_eq!(encoding.total_tokens, 6);

    let bert = r#"{"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}"#;
    assert_eq!(load(bert).unwrap().encode("", "hello", 8).unwrap().ids, [1, 3, 2]);

    let none = load("null").unwrap();
    assert_eq!(none.special_tokens(), 0);
    assert_eq!(none.encode("", "hello", 8).unwrap().ids, [3]);

    let message = load(&template(&format!("{text}, {text}"))).unwrap_err().to_string();
    assert!(message.contains("puts a text's tokens in 2 times"), "{message}");
    let message = load(&template(bos)).unwrap_err().to_string();
    assert!(message.contains("puts a text's tokens in 0 times"), "{message}");
}

#[test]
fn rule_15_direction_is_kept_and_length_is_not() {
    assert_variants(&["truncation-left", "truncation-right", "truncation-side", "truncation-side-right"]);
}

#[test]
fn rule_16_padding_is_off() {
    assert_variants(&["padding-fixed"]);
}

#[test]
fn rule_18_vocab_txt_will_do() {
    assert_variants(&[
        "vocab-txt",
        "vocab-txt-alone",
        "vocab-txt-cased",
        "vocab-txt-crlf",
        "vocab-txt-repeated",
        "vocab-txt-renamed",
    ]);
}

#[test]
fn rule_19_no_files_are_refused() {
    let dir = Dir::new(&[]);
    let error = dir.load().unwrap_err();
    assert!(
        matches!(&error, Error::MissingFile { path, .. } if *path == dir.path("tokenizer.json")),
        "{error}"
    );
    // a folder that is not there at all
    let error = load(&dir.path("gone"), 100).unwrap_err();
    assert!(matches!(error, Error::MissingFile { .. }), "{error}");
}

#[test]
fn rule_18_other_vocabularies_are_refused_with_a_hint() {
    let dir = Dir::new(&[("sentencepiece.bpe.model", "")]);
    let message = dir.message();
    assert!(message.contains("sentencepiece.bpe.model") && message.contains("save_pretrained"), "{message}");
    let dir = Dir::new(&[
        ("vocab.txt", BERT_VOCAB),
        ("tokenizer_config.json", r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#),
    ]);
    assert!(dir.message().contains("from vocab.txt alone"), "{}", dir.message());
}

#[test]
fn rule_22_added_tokens() {
    assert_variants(&[
        "added-tokens",
        "added-tokens-cased",
        "added-tokens-unchanged",
        "added-tokens-decoder",
        "added-tokens-file",
        "special-tokens-map",
        "extra-special-tokens",
    ]);
}

#[test]
fn rule_23_special_tokens_in_a_text() {
    assert_variants(&["plain", "split-special-tokens"]);
}

#[test]
fn rule_25_an_empty_text_is_its_special_tokens() {
    let tokenizer = Dir::new(&[("vocab.txt", BERT_VOCAB)]).load().unwrap();
    let expected = Encoding { ids: vec![2, 3], type_ids: vec![0, 0], total_tokens: 2 };
    for text in ["", " ", "\0", "\u{feff}"] {
        assert_eq!(tokenizer.encode("", text, 16).unwrap(), expected, "{text:?}");
    }
}

#[test]
fn prompt_is_joined_without_a_separator() {
    let tokenizer = Dir::new(&[("vocab.txt", BERT_VOCAB)]).load().unwrap();
    let ids = |prompt, text| tokenizer.encode(prompt, text, 16).unwrap().ids;
    assert_eq!(ids("hello", " world"), ids("", "hello world"));
    assert_eq!(ids("world", "s"), [2, 6, 7, 3]); // one word: world ##s
    assert_eq!(ids("hello", ""), [2, 5, 3]);
}

#[test]
fn limit_counts_special_tokens() {
    let tokenizer = Dir::new(&[("vocab.txt", BERT_VOCAB)]).load().unwrap();
    let text = "hello world hello world hello";
    for (limit, ids) in [
        (8, vec![2, 5, 6, 5, 6, 5, 3]),
        (7, vec![2, 5, 6, 5, 6, 5, 3]),
        (6, vec![2, 5, 6, 5, 6, 3]),
        (3, vec![2, 5, 3]),
        (2, vec![2, 3]),
        (0, vec![2, 3]),
    ] {
        let encoding = tokenizer.encode("", text, limit).unwrap();
        assert_eq!(encoding.truncated(), limit < 7);
        assert_eq!(encoding.total_tokens, 7);
        assert_eq!(encoding.ids, ids, "limit {limit}");
    }
}

#[test]
fn ids_beyond_the_embedding_table_are_refused() {
    let dir = Dir::new(&[("vocab.txt", BERT_VOCAB)]);
    assert!(load(dir.0.path(), 8).is_ok());
    let message = load(dir.0.path(), 7).unwrap_err().to_string();
    assert!(message.contains("'##s' has id 7") && message.contains("7 rows"), "{message}");
    // an added token counts too
    let config = r#"{"additional_special_tokens": ["<new>"]}"#;
    let dir = Dir::new(&[("vocab.txt", BERT_VOCAB), ("tokenizer_config.json", config)]);
    assert!(load(dir.0.path(), 9).is_ok());
    let message = load(dir.0.path(), 8).unwrap_err().to_string();
    assert!(message.contains("'<new>' has id 8") && message.contains("8 rows"), "{message}");
}

#[test]
fn broken_files_are_named() {
    let vocab = ("vocab.txt", BERT_VOCAB);
    let config = |text| [vocab, ("tokenizer_config.json", text)];
    let cases: [(&[(&str, &str)], &str); 14] = [
        (&config("{"), "DIR/tokenizer_config.json: EOF"),
        (&config("[]"), "DIR/tokenizer_config.json: invalid type: sequence"),
        (&config(r#"{"do_lower_case": null}"#), "do_lower_case is null, true or false needed"),
        (&config(r#"{"strip_accents": 1}"#), "strip_accents is 1, true or false needed"),
        (&config(r#"{"tokenizer_class": 1}"#), "tokenizer_class is 1, a string needed"),
        (&config(r#"{"truncation_side": "middle"}"#), "truncation_side is \"middle\""),
        (&config(r#"{"cls_token": null}"#), "cls_token is null, a token needed"),
        (&config(r#"{"cls_token": 1}"#), "cls_token: invalid type: integer"),
        (&config(r#"{"cls_token": "<s>"}"#), "special token '<s>' is not in the vocabulary"),
        (
            &config(r#"{"added_tokens_decoder": {"50": {"content": "<new>"}}}"#),
            "added token '<new>' is declared with id 50, and gets 8",
        ),
        (
            &[("vocab.txt", "[PAD]\n[CLS]\n[SEP]\n")],
            "DIR/vocab.txt: tokenizer: special token '[UNK]' is not in",
        ),
        (&[("vocab.txt", "")], "DIR/vocab.txt: tokenizer: special token '[UNK]' is not in"),
        (&[("tokenizer.json", "{}")], "DIR/tokenizer.json: missing field `model`"),
        (
            &[("tokenizer.json", r#"{"model": {"type": "BPE", "vocab": {}, "merges": []}}"#)],
            "DIR/tokenizer.json: unsupported: a BPE vocabulary in a BERT tokenizer",
        ),
    ];
    for (files, expected) in cases {
        let message = Dir::new(files).message();
        assert!(message.contains(expected), "{message}\ndoes not contain\n{expected}");
    }

    let dir = Dir::new(&[]);
    std::fs::write(dir.path("vocab.txt"), b"[PAD]\n[UNK]\n\xff\n").unwrap();
    assert!(dir.message().contains("DIR/vocab.txt: tokenizer: line 3 is not UTF-8"), "{}", dir.message());
}

/// Where time or memory grew with the square of the length, this would not end.
#[test]
fn long_lines_are_tokenised_whole() {
    let tokenizer = Dir::new(&[("vocab.txt", BERT_VOCAB)]).load().unwrap();
    let bytes = 1 << 20;
    let tokens_of = |text: &str| tokenizer.encode("", text, 512).unwrap().total_tokens - 2;
    assert_eq!(tokens_of(&"x".repeat(bytes)), 1); // one word beyond 100 letters is one [UNK]
    assert_eq!(tokens_of(&"hello ".repeat(bytes / 6)), bytes / 6);
    assert_eq!(tokens_of(&"中".repeat(bytes / 3)), bytes / 3);
    assert_eq!(tokens_of(&"[SEP]".repeat(bytes / 5)), bytes / 5);
    assert_eq!(tokens_of(&" ".repeat(bytes)), 0);
    assert_eq!(tokens_of(&"\u{301}".repeat(bytes / 2)), 0);
}

/// The crate panics at a character map that is none; here it is an error, at load or at the first text.
#[test]
fn a_broken_character_map_is_an_error_and_no_panic() {
    let source = golden::fixtures().join("families/xlm-roberta/model");
    let text = std::fs::read_to_string(source.join("tokenizer.json")).unwrap();
    let whole: serde_json::Value = serde_json::from_str(&text).unwrap();
    let map = |value: &serde_json::Value| value.pointer("/normalizer/precompiled_charsmap").cloned();
    let place = if map(&whole).is_some() { "/normalizer" } else { "/normalizer/normalizers/0" };
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer_config.json"] {
        std::fs::copy(source.join(name), dir.path().join(name)).unwrap();
    }
    for broken in ["A", "AAAA", "////", ""] {
        let mut json = whole.clone();
        json.pointer_mut(place).unwrap()["precompiled_charsmap"] = broken.into();
        std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
        let desc = TokenizerDesc { dir: dir.path().into(), do_lower_case: false, vocab_size: 1000 };
        match Tokenizer::load(&desc).and_then(|t| t.encode("", "caf\u{e9} \u{ff21}", 40)) {
            Err(Error::Tokenizer { path, .. }) => {
                assert!(path.ends_with("tokenizer.json"), "{}", path.display())
            }
            other => panic!("{broken:?}: {other:?}"),
        }
    }
}
