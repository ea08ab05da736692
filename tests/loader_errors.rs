//! One malformed thing in a model directory, one [`Error`] that names it; and no panic whatever the bytes.

mod common;

use berthier::Error;
use berthier::model;
use common::toy::{self, HIDDEN, Toy, ToyTensor};
use proptest::prelude::*;
use safetensors::Dtype;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// The error of the directory, after `f` has been at it.
fn error(toy: &Toy, f: impl FnOnce(&Path)) -> Error {
    let dir = tempfile::tempdir().unwrap();
    toy.write(dir.path());
    f(dir.path());
    let error = model::open(dir.path()).expect_err("a malformed directory");
    assert!(error.to_string().contains(&*dir.path().to_string_lossy()), "no file named: {error}");
    error
}

/// The error is about this file and says this.
fn assert_config(error: &Error, file: &str, parts: &[&str]) {
    let Error::Config { path, message } = error else { panic!("{error:?}") };
    assert!(path.ends_with(file), "{}: {file}", path.display());
    parts.iter().for_each(|part| assert!(message.contains(part), "{message}: {part}"));
}

fn assert_checkpoint(error: &Error, file: &str, part: &str) {
    let Error::Checkpoint { path, message } = error else { panic!("{error:?}") };
    assert!(path.ends_with(file), "{}: {file}", path.display());
    assert!(message.contains(part), "{message}: {part}");
}

fn assert_missing_file(error: &Error, file: &str, part: &str) {
    let Error::MissingFile { path, what } = error else { panic!("{error:?}") };
    assert!(path.ends_with(file), "{}: {file}", path.display());
    assert!(what.contains(part), "{what}: {part}");
}

/// The error of these bytes as `model.safetensors`.
fn weights_error(bytes: &[u8]) -> Error {
    error(&Toy::new(), |dir| toy::write(&dir.join("model.safetensors"), bytes))
}

#[test]
fn no_such_directory() {
    let dir = tempfile::tempdir().unwrap();
    let error = model::open(&dir.path().join("absent")).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("absent")), "{error:?}");
}

#[test]
fn a_file_instead_of_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    toy::toy_bert(dir.path());
    let error = model::open(&dir.path().join("model.safetensors")).unwrap_err();
    assert_config(&error, "model.safetensors", &["give the folder that holds config.json"]);
}

#[test]
fn no_config() {
    let error = error(&Toy::new(), |dir| fs::remove_file(dir.join("config.json")).unwrap());
    assert_missing_file(&error, "config.json", "a model directory holds config.json, model.safetensors");
}

#[test]
fn rule_34_no_weights() {
    let remove = |dir: &Path| fs::remove_file(dir.join("model.safetensors")).unwrap();
    assert_missing_file(&error(&Toy::new(), remove), "model.safetensors", "model.safetensors.index.json");
    let toy = Toy::new().file("pytorch_model.bin", "PK");
    assert_missing_file(&error(&toy, remove), "model.safetensors", "AutoModel.from_pretrained");
}

#[cfg(unix)]
#[test]
fn a_dangling_link_is_not_an_absent_file() {
    // without the error, the model would load with another pooling
    for file in ["modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "model.safetensors"] {
        let error = error(&Toy::new(), |dir| {
            fs::remove_file(dir.join(file)).unwrap();
            std::os::unix::fs::symlink("nowhere", dir.join(file)).unwrap();
        });
        assert_missing_file(&error, file, "a link to a file that is not there");
    }
}

#[test]
fn files_that_are_folders() {
    for file in ["config.json", "modules.json", "1_Pooling/config.json", "tokenizer_config.json"] {
        let toy = Toy::new().file("sentence_bert_config.json", "{}");
        let error = error(&toy, |dir| {
            fs::remove_file(dir.join(file)).unwrap();
            fs::create_dir(dir.join(file)).unwrap();
        });
        assert_config(&error, file, &["not a file"]);
    }
    let error = error(&Toy::new(), |dir| {
        fs::remove_file(dir.join("model.safetensors")).unwrap();
        fs::create_dir(dir.join("model.safetensors")).unwrap();
    });
    assert_checkpoint(&error, "model.safetensors", "not a file");
}

#[test]
fn json_that_is_none() {
    for file in [
        "config.json",
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
        "tokenizer_config.json",
        "config_sentence_transformers.json",
    ] {
        let put = |bytes: &[u8]| {
            // the tokenizer's file is only read where the transformer module's is silent
            let toy = Toy::new().file("sentence_bert_config.json", "{}");
            error(&toy, |dir| toy::write(&dir.join(file), bytes))
        };
        assert_config(&put(b""), file, &["not valid JSON"]);
        assert_config(&put(b"{"), file, &["not valid JSON", "line 1"]);
        assert_config(&put(br#"{"a": NaN}"#), file, &["not valid JSON"]);
        assert_config(&put(b"\xEF\xBB\xBF{}"), file, &["byte order mark", "save it as UTF-8 without one"]);
        assert_config(&put(b"\xff\xfe{\0}\0"), file, &["not valid JSON"]);
        assert_config(&put(b"version https://git-lfs.github.com/spec/v1\n"), file, &["git lfs pull"]);
        assert_config(&put(b"3"), file, &["3 found", "needed"]);
        assert_config(&put("[".repeat(100_000).as_bytes()), file, &["not valid JSON"]);
    }
}

#[test]
fn config_values_of_the_wrong_kind() {
    for key in [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "type_vocab_size",
    ] {
        for bad in [
            json!("8"),
            json!(0),
            json!(-1),
            json!(8.5),
            json!([8]),
            json!(true),
            json!(1u64 << 31),
            json!(u64::MAX),
        ] {
            let error = error(&Toy::new().config(key, bad.clone()), |_| ());
            let quoted = format!("'{key}': {bad} found");
            assert_config(&error, "config.json", &[&quoted, "a whole number from 1 to 2147483647 needed"]);
        }
    }
    for (key, bad, needed) in [
        ("layer_norm_eps", json!("1e-5"), "a number needed"),
        ("layer_norm_eps", json!(0.0), "a number between 0 and 1 needed"),
        ("layer_norm_eps", json!(-1e-5), "a number between 0 and 1 needed"),
        ("layer_norm_eps", json!(1.0), "a number between 0 and 1 needed"),
        ("hidden_act", json!(1), "a string needed"),
        ("model_type", json!({}), "a string needed"),
        ("position_embedding_type", json!(1), "a string needed"),
        ("is_decoder", json!("no"), "true or false needed"),
        ("auto_map", json!("x"), "an object needed"),
    ] {
        let quoted = format!("'{key}': {bad} found");
        let error = error(&Toy::new().config(key, bad), |_| ());
        assert_config(&error, "config.json", &[&quoted, needed]);
    }
}

#[test]
fn no_model_type() {
    let error = error(&Toy::new().without_config("model_type"), |_| ());
    assert_config(&error, "config.json", &["'model_type': nothing found, one of \"albert\", \"bert\""]);
}

#[test]
fn rule_40_heads_that_do_not_divide_the_width() {
    let error = error(&Toy::new().config("num_attention_heads", 3), |_| ());
    assert_config(&error, "config.json", &["'num_attention_heads': 3 found", "a divisor of hidden_size 8"]);
}

#[test]
fn other_files_with_values_of_the_wrong_kind() {
    let tokenizer = |config: Value| ("tokenizer_config.json", config);
    let bert = |config: Value| ("sentence_bert_config.json", config);
    let st = |config: Value| ("config_sentence_transformers.json", config);
    let pooling = |config: Value| ("1_Pooling/config.json", config);
    let modules = |config: Value| ("modules.json", config);
    for ((file, config), parts) in [
        (bert(json!({"max_seq_length": "256"})), ["'max_seq_length': \"256\" found", "a whole number"]),
        (bert(json!({"max_seq_length": 0})), ["'max_seq_length': 0 found", "from 1"]),
        (bert(json!({"do_lower_case": 1})), ["'do_lower_case': 1 found", "true or false"]),
        (bert(json!({"transformer_task": 1})), ["'transformer_task': 1 found", "a string"]),
        (bert(json!({"modality_config": {"text": 1}})), ["'modality_config.text': 1 found", "an object"]),
        (tokenizer(json!({"model_max_length": "512"})), ["'model_max_length': \"512\" found", "a number"]),
        (tokenizer(json!({"model_max_length": 0})), ["'model_max_length': 0 found", "a number from 1"]),
        (tokenizer(json!({"max_len": -1})), ["'max_len': -1 found", "a number from 1"]),
        (pooling(json!({"pooling_mode": 1})), ["'pooling_mode': 1 found", "or a list of these"]),
        (pooling(json!({"pooling_mode": []})), ["'pooling_mode': [] found", "or a list of these"]),
        (pooling(json!({"pooling_mode": "average"})), ["'pooling_mode': \"average\" found", "\"mean\""]),
        (pooling(json!({"pooling_mode": ["cls", 1]})), ["'pooling_mode': [\"cls\",1] found", "\"mean\""]),
        (
            pooling(json!({"pooling_mode_cls_token": 1})),
            ["'pooling_mode_cls_token': 1 found", "true or false"],
        ),
        (pooling(json!({"include_prompt": "no"})), ["'include_prompt': \"no\" found", "true or false"]),
        (st(json!({"prompts": []})), ["'prompts': [] found", "an object"]),
        (st(json!({"prompts": {"q": 1}})), ["'prompts.q': 1 found", "a string"]),
        (st(json!({"default_prompt_name": "q"})), ["'default_prompt_name': \"q\" found", "which has none"]),
        (
            st(json!({"default_prompt_name": "q", "prompts": {"a": "", "b": ""}})),
            ["'default_prompt_name': \"q\" found", "one of \"a\", \"b\" needed"],
        ),
        (st(json!({"truncate_dim": -1})), ["'truncate_dim': -1 found", "from 1"]),
        (modules(json!({})), ["{} found", "a list of objects needed"]),
        (modules(json!([1])), ["'[0]': 1 found", "an object needed"]),
        (modules(json!([{"path": ""}])), ["'[0].type': nothing found", "the name of a module"]),
        (modules(json!([])), ["no Transformer module", ""]),
    ] {
        let toy = Toy::new().file("sentence_bert_config.json", "{}").file(file, config);
        assert_config(&error(&toy, |_| ()), file, &parts);
    }
}

#[test]
fn a_chain_without_pooling() {
    let chain = json!([{"name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]);
    let error = error(&Toy::new().file("modules.json", chain), |_| ());
    assert_config(&error, "modules.json", &["no Pooling module"]);
}

#[test]
fn module_folders_stay_inside_the_directory() {
    for folder in ["../x", "/etc", "a/../../b", "./x", "a\\b"] {
        let chain =
            json!([{"name": "0", "path": folder, "type": "sentence_transformers.models.Transformer"}]);
        let error = error(&Toy::new().file("modules.json", chain), |_| ());
        assert_config(&error, "modules.json", &["'[0].path'", "a folder inside the model directory needed"]);
    }
}

#[test]
fn no_pooling_file() {
    let error = error(&Toy::new().without_file("1_Pooling/config.json"), |_| ());
    assert_missing_file(&error, "1_Pooling/config.json", "Pooling module");
}

#[test]
fn truncated_weights() {
    let whole = toy::safetensors_bytes(&Toy::new().tensors);
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for (keep, expected) in [
        (1, 8),
        (7, 8),
        (8, 8 + length),
        (8 + length - 1, 8 + length),
        (8 + length, whole.len()),
        (whole.len() / 2, whole.len()),
        (whole.len() - 1, whole.len()),
    ] {
        let error = weights_error(&whole[..keep]);
        let Error::Truncated { path, found, needed } = &error else { panic!("{keep}: {error:?}") };
        assert!(path.ends_with("model.safetensors"));
        assert_eq!((*found, *needed), (keep as u64, expected as u64), "{keep}");
        assert!(error.to_string().contains("download it again"), "{error}");
    }
}

#[test]
fn weights_that_are_something_else() {
    assert_checkpoint(&weights_error(b""), "model.safetensors", "the file is empty");
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 90868376\n";
    assert_checkpoint(&weights_error(lfs), "model.safetensors", "git lfs pull");
    let pickle = b"PK\x03\x04\x00\x00\x08\x08\x00\x00\x00\x00\x00\x00";
    assert_checkpoint(&weights_error(pickle), "model.safetensors", "not a safetensors file?");
    assert_checkpoint(
        &weights_error(b"<!DOCTYPE html><html>"),
        "model.safetensors",
        "not a safetensors file?",
    );
}

#[test]
fn rule_36_hostile_headers() {
    let header = |header: &str, data: &[u8]| weights_error(&toy::safetensors_raw(header, data));
    let name = "model.safetensors";
    for length in [100_000_001, u64::MAX, u64::MAX - 7, 1 << 63] {
        let error = weights_error(&[&u64::to_le_bytes(length)[..], b"{}"].concat());
        assert_checkpoint(&error, name, &format!("header of {length} bytes, at most 100000000 allowed"));
    }
    for not_a_header in ["", "[]", "{", "null", r#"{"a": 1}"#, r#"{"a": {"dtype": "F32"}}"#, "\u{0}"] {
        assert_checkpoint(&header(not_a_header, b""), name, "the header is not a safetensors header");
    }
    let error = weights_error(&[&8u64.to_le_bytes()[..], b"\xff\xff\xff\xff\xff\xff\xff\xff"].concat());
    assert_checkpoint(&error, name, "the header is not a safetensors header");
    let unknown = r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#;
    assert_checkpoint(&header(unknown, &[0; 4]), name, "F99");
    let negative = r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#;
    assert_checkpoint(&header(negative, &[0; 4]), name, "the header is not a safetensors header");
    let nested = format!(r#"{{"__metadata__":{}}}"#, "[".repeat(100_000));
    assert_checkpoint(&header(&nested, b""), name, "the header is not a safetensors header");
}

#[test]
fn rule_36_offsets_that_do_not_fit() {
    let tensor = |name: &str, shape: &str, start: u64, end: u64| {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let header = |tensors: &[String], data: usize| {
        weights_error(&toy::safetensors_raw(&format!("{{{}}}", tensors.join(",")), &vec![0; data]))
    };
    let name = "model.safetensors";
    let max = u64::MAX;
    let does_not_fit = "does not fit its bytes";
    assert_checkpoint(
        &header(&[tensor("a", "[2]", 0, 4)], 4),
        name,
        "tensor 'a': F32 [2] does not fit its bytes 0..4",
    );
    assert_checkpoint(&header(&[tensor("a", &format!("[{max},{max}]"), 0, 4)], 4), name, does_not_fit);
    assert_checkpoint(&header(&[tensor("a", &format!("[{}]", 1u64 << 62), 0, 0)], 0), name, does_not_fit);
    let overlap = "tensor 'b': its bytes overlap another tensor's or leave a gap";
    assert_checkpoint(&header(&[tensor("a", "[2]", 0, 8), tensor("b", "[1]", 4, 8)], 8), name, overlap);
    assert_checkpoint(&header(&[tensor("a", "[1]", 0, 4), tensor("b", "[1]", 8, 12)], 12), name, overlap);
    assert_checkpoint(&header(&[tensor("b", "[1]", 4, 0)], 4), name, overlap);
    let twice = [tensor("a", "[1]", 0, 4), tensor("a", "[1]", 4, 8)];
    assert_checkpoint(&header(&twice, 8), name, "tensor 'a' is there twice");
    assert_checkpoint(&header(&[tensor("a", "[1]", 0, 4)], 7), name, "3 bytes behind the last tensor");
    // beyond the file, also where adding up overflows
    for end in [8, 1 << 62, max] {
        let bytes = tensor("a", &format!("[{}]", end / 4), 0, end);
        assert!(matches!(header(&[bytes], 4), Error::Truncated { .. }), "{end}");
    }
    let byte = format!(r#"{{"a":{{"dtype":"U8","shape":[{max}],"data_offsets":[0,{max}]}}}}"#);
    let Error::Truncated { needed, .. } = weights_error(&toy::safetensors_raw(&byte, &[0; 4])) else {
        panic!("not truncated")
    };
    assert_eq!(needed, max);
}

#[test]
fn rule_31_every_tensor_is_needed() {
    for prefix in ["", "bert."] {
        let whole = Toy::new().map_tensors(|t| t.name.insert_str(0, prefix));
        for i in 0..whole.tensors.len() {
            let mut toy = whole.clone();
            let name = toy.tensors.remove(i).name;
            let error = error(&toy, |_| ());
            let Error::TensorMissing { path, tensor } = &error else { panic!("{name}: {error:?}") };
            assert!(path.ends_with("model.safetensors"));
            // without its first table there is no telling the prefix but by the other names
            assert_eq!(*tensor, name);
        }
    }
}

#[test]
fn more_layers_than_there_are_tensors() {
    let error = error(&Toy::new().config("num_hidden_layers", i32::MAX), |_| ());
    let Error::TensorMissing { tensor, .. } = error else { panic!("{error:?}") };
    assert_eq!(tensor, "encoder.layer.2.attention.self.query.weight");
}

#[test]
fn every_shape_is_checked() {
    let whole = Toy::new();
    for i in 0..whole.tensors.len() {
        let mut toy = whole.clone();
        let old = toy.tensors[i].clone();
        let mut shape = old.shape.clone();
        shape[0] += 1;
        toy.tensors[i] = ToyTensor::new(&old.name, &shape);
        let error = error(&toy, |_| ());
        let Error::TensorShape { path, tensor, found, needed } = &error else { panic!("{error:?}") };
        assert!(path.ends_with("model.safetensors"));
        assert_eq!((tensor, found, needed), (&old.name, &shape, &old.shape));
    }
}

#[test]
fn sizes_that_do_not_match_the_tensors() {
    for (key, value) in [
        ("vocab_size", 33),
        ("hidden_size", 16),
        ("intermediate_size", 8),
        ("max_position_embeddings", 512),
        ("type_vocab_size", 1),
        ("hidden_size", 2_147_483_646),
        ("vocab_size", i32::MAX),
    ] {
        let error = error(&Toy::new().config(key, value), |_| ());
        assert!(matches!(error, Error::TensorShape { .. }), "{key}: {error:?}");
    }
}

#[test]
fn rule_35_other_element_types() {
    let mut toy = Toy::new();
    toy.tensors[3].dtype = Dtype::F64;
    let name = toy.tensors[3].name.clone();
    let error = error(&toy, |_| ());
    let Error::TensorDtype { path, tensor, found } = &error else { panic!("{error:?}") };
    assert!(path.ends_with("model.safetensors"));
    assert_eq!((tensor.as_str(), found.as_str()), (name.as_str(), "F64"));
}

/// The error of an index with the toy's weights beside it as `a.safetensors`.
fn index_error(index: impl ToString) -> Error {
    error(&Toy::new(), |dir| {
        fs::rename(dir.join("model.safetensors"), dir.join("a.safetensors")).unwrap();
        toy::write(&dir.join("model.safetensors.index.json"), index.to_string());
    })
}

#[test]
fn rule_34_malformed_indexes() {
    let name = "model.safetensors.index.json";
    assert_config(&index_error("{"), name, &["not valid JSON"]);
    assert_config(&index_error("{}"), name, &["'weight_map': nothing found, an object of tensor names"]);
    assert_config(&index_error(r#"{"weight_map": []}"#), name, &["'weight_map': [] found, an object"]);
    assert_config(&index_error(r#"{"weight_map": {"x": 1}}"#), name, &["'weight_map.x': 1 found, a string"]);
    assert_config(&index_error(r#"{"weight_map": {"x": null}}"#), name, &["the name of a shard file"]);
    for shard in ["../a.safetensors", "/etc/passwd", "x/../../y", "a\\b"] {
        let error = index_error(json!({"weight_map": {"x": shard}}));
        assert_checkpoint(&error, name, &format!("shard '{shard}' is not a file of the model's own folder"));
    }
    assert_checkpoint(&index_error(r#"{"weight_map": {"x": ""}}"#), "", "not a file");
    let error = index_error(r#"{"weight_map": {"x": "b.safetensors"}}"#);
    assert_missing_file(&error, "b.safetensors", "a shard that model.safetensors.index.json lists");
    let error = index_error(r#"{"weight_map": {"x": "a.safetensors"}}"#);
    let Error::TensorMissing { path, tensor } = &error else { panic!("{error:?}") };
    assert!(path.ends_with("a.safetensors"));
    assert_eq!(tensor, "x");
    // an index that lists nothing, or not all
    let Error::TensorMissing { path, tensor } = index_error(r#"{"weight_map": {}}"#) else { panic!() };
    assert!(path.ends_with(name));
    assert_eq!(tensor, "embeddings.word_embeddings.weight");
}

#[test]
fn rule_34_a_broken_shard_is_named() {
    let error = error(&Toy::new(), |dir| {
        let whole = fs::read(dir.join("model.safetensors")).unwrap();
        fs::remove_file(dir.join("model.safetensors")).unwrap();
        toy::write(&dir.join("a.safetensors"), &whole[..whole.len() - 1]);
        let index = json!({"weight_map": {"embeddings.LayerNorm.bias": "a.safetensors"}});
        toy::write(&dir.join("model.safetensors.index.json"), index.to_string());
    });
    assert!(matches!(&error, Error::Truncated { path, .. } if path.ends_with("a.safetensors")), "{error:?}");
}

/// One change to a file.
#[derive(Debug, Clone)]
enum Mutation {
    Truncate(usize),
    Overwrite(usize, Vec<u8>),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
}

impl Mutation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        match self {
            Self::Truncate(at) => bytes.truncate(at % (len + 1)),
            Self::Overwrite(at, new) => {
                let at = at % (len + 1);
                let end = (at + new.len()).min(len);
                bytes[at..end].copy_from_slice(&new[..end - at]);
            }
            Self::Insert(at, new) => drop(bytes.splice(at % (len + 1)..at % (len + 1), new.iter().copied())),
            Self::Remove(at, n) => {
                let at = at % (len + 1);
                drop(bytes.drain(at..(at + n).min(len)));
            }
        }
    }
}

/// What a JSON file is made of.
const TOKENS: [&str; 15] = [
    "0",
    "-1",
    "9",
    "1e99",
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    ",",
    ":",
    "}",
    "]",
    "\"a\":",
    "18446744073709551615",
];

/// Bytes, or tokens: the latter get further into the loader.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 1..9),
        prop::sample::select(TOKENS.as_slice()).prop_map(|t| t.as_bytes().to_vec()),
    ]
}

fn mutation() -> impl Strategy<Value = Mutation> {
    // most of the toy's bytes are weights: half of the places are in the header, where it matters
    let at = || prop_oneof![0usize..2000, any::<usize>()];
    prop_oneof![
        at().prop_map(Mutation::Truncate),
        (at(), bytes()).prop_map(|(at, b)| Mutation::Overwrite(at, b)),
        (at(), bytes()).prop_map(|(at, b)| Mutation::Insert(at, b)),
        (at(), 1usize..20).prop_map(|(at, n)| Mutation::Remove(at, n)),
    ]
}

const FILES: [&str; 7] = [
    "model.safetensors",
    "config.json",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
    "config_sentence_transformers.json",
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn prop_mutated_directories_do_not_panic(
        file in prop::sample::select(FILES.as_slice()),
        mutations in prop::collection::vec(mutation(), 1..4),
    ) {
        let config = json!({"prompts": {"query": "q: "}, "default_prompt_name": "query", "truncate_dim": 4});
        let dir = tempfile::tempdir().unwrap();
        Toy::new().file("config_sentence_transformers.json", config).write(dir.path());
        let path = dir.path().join(file);
        let mut bytes = fs::read(&path).unwrap();
        mutations.iter().for_each(|m| m.apply(&mut bytes));
        fs::write(&path, bytes).unwrap();
        match model::open(dir.path()) {
            // what loads can be read to its last byte, and is of the sizes that it says
            Ok(model) => {
                let read: usize = model.weights.tensors().map(|t| t.to_f32().len()).sum();
                prop_assert_eq!(read, model.weights.parameters());
                prop_assert_eq!(model.desc.hidden_size, HIDDEN);
                prop_assert!((1..=model.desc.max_position_embeddings).contains(&model.desc.max_seq_length));
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}
