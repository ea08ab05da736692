//! No key of a model's configuration is passed over: each is honoured, refused by its name, or changes nothing.

#![allow(clippy::print_stdout, reason = "tests show what they checked")]

#[path = "common/golden.rs"]
mod golden;

use berthier::Error;
use berthier::model::{self, ModelDesc, Positions};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Keys of `config.json` that say nothing of what an encoder computes: training, heads, other libraries, what the
/// decoder would have. `sinusoidal_pos_embds` says how a table began that is in the checkpoint.
const INERT: [&str; 35] = [
    "add_cross_attention",
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "bos_token_id",
    "classifier_activation",
    "classifier_bias",
    "classifier_dropout",
    "classifier_dropout_prob",
    "classifier_pooling",
    "cls_token_id",
    "decoder_bias",
    "deterministic_flash_attn",
    "dropout",
    "dtype",
    "embedding_dropout",
    "eos_token_id",
    "hidden_dropout_prob",
    "initializer_cutoff_factor",
    "initializer_range",
    "mlp_dropout",
    "qa_dropout",
    "sep_token_id",
    "seq_classif_dropout",
    "sinusoidal_pos_embds",
    "sparse_pred_ignore_index",
    "sparse_prediction",
    "summary_activation",
    "summary_last_dropout",
    "summary_type",
    "summary_use_proj",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

/// Keys of the modules' files that change nothing: the reference reads this width and does not compute with it.
const INERT_OF_MODULES: [&str; 1] = ["embedding_dimension"];

/// The padding's id counts for the positions of these alone.
const PADDED: [&str; 3] = ["camembert", "roberta", "xlm-roberta"];

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Other values than the one that is there, of its own kind and of others.
fn others(value: &Value) -> Vec<Value> {
    let mut others = vec![json!("not implemented"), json!(-3), json!(0.25), json!([7])];
    match value {
        Value::Bool(b) => others.push((!b).into()),
        // by two: of a window of local attention, the half counts
        Value::Number(n) => others.extend(n.as_u64().map(|n| (n + 2).into())),
        Value::String(_) => others.extend(["gelu", "relu", "max", "t5"].map(Value::from)),
        Value::Null | Value::Array(_) | Value::Object(_) => {}
    }
    others.retain(|o| o != value);
    others
}

/// A file of a model and what is known of its keys.
struct File<'a> {
    dir: &'a Path,
    path: &'a Path,
    keys: Map<String, Value>,
    desc: ModelDesc,
}

impl File<'_> {
    /// The description, and whether there is a warning.
    fn open_with(&self, key: &str, value: Value) -> berthier::Result<(ModelDesc, bool)> {
        let mut keys = self.keys.clone();
        keys.insert(key.into(), value);
        fs::write(self.path, Value::Object(keys).to_string()).unwrap();
        let opened = model::open(self.dir).map(|m| (m.desc, !m.warnings.is_empty()));
        fs::write(self.path, Value::Object(self.keys.clone()).to_string()).unwrap();
        opened
    }

    fn check(&self, inert: impl Fn(&str) -> bool) {
        for (key, value) in &self.keys {
            let place = format!("{}: {key}", self.path.display());
            match self.open_with(key, json!({"not": "implemented"})) {
                Ok((desc, _)) => {
                    assert!(inert(key) && desc == self.desc, "{place}: an object is passed over")
                }
                Err(error) => assert!(error.to_string().contains(key), "{place}: {error}"),
            }
            for other in others(value) {
                match self.open_with(key, other.clone()) {
                    Ok((desc, _)) if inert(key) => assert_eq!(desc, self.desc, "{place}: {other}"),
                    // the function of a Dense that is not PyTorch's is Tanh in the reference, which is said
                    Ok((desc, warned)) => {
                        let said = warned && key == "activation_function";
                        assert!(said || desc != self.desc, "{place}: {other} is passed over");
                    }
                    // a size that the tensors contradict
                    Err(Error::TensorShape { .. } | Error::TensorMissing { .. }) => {}
                    Err(Error::Config { message: what, .. } | Error::Unsupported { what, .. }) => {
                        // a size that another key, or the next module, no longer fits
                        let sizes = [
                            "a divisor of",
                            "the width of its input",
                            "heads of an even size",
                            "one for each layer",
                        ];
                        let named = what.contains(key.as_str()) || sizes.iter().any(|w| what.contains(w));
                        assert!(named, "{place}: {what}");
                    }
                    Err(error) => panic!("{place}: {other}: {error}"),
                }
            }
        }
    }
}

fn read(path: &Path) -> Map<String, Value> {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A copy of a fixture's model.
fn fixture(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(&golden::fixtures().join("families").join(name).join("model"), dir.path());
    dir
}

fn edit(path: &Path, f: impl FnOnce(&mut Map<String, Value>)) {
    let mut keys = read(path);
    f(&mut keys);
    fs::write(path, Value::Object(keys).to_string()).unwrap();
}

#[test]
fn rule_09_limits_beyond_the_positions_are_clamped_with_a_warning() {
    for (name, positions) in [("roberta", 40), ("xlm-roberta", 40), ("camembert", 40), ("mpnet", 130)] {
        let dir = fixture(name);
        let open = || {
            let model = model::open(dir.path()).unwrap();
            (model.desc.max_seq_length, model.warnings)
        };
        assert_eq!(open(), (positions, vec![]), "{name}");
        let tokenizer = dir.path().join("tokenizer_config.json");
        edit(&tokenizer, |keys| drop(keys.insert("model_max_length".into(), (positions + 1).into())));
        let (length, warnings) = open();
        assert_eq!((length, warnings.len()), (positions, 1), "{name}: {warnings:?}");
        assert!(warnings[0].contains("'model_max_length'"), "{warnings:?}");
        edit(&tokenizer, |keys| drop(keys.remove("model_max_length")));
        let (length, warnings) = open();
        assert_eq!((length, warnings.len()), (positions, 1), "{name}: {warnings:?}");
        assert!(warnings[0].contains("'max_position_embeddings'"), "{warnings:?}");
    }
}

#[test]
fn rule_27_positions_count_from_behind_the_padding() {
    let of = |name: &str, ids: &[u32]| {
        model::open(fixture(name).path()).unwrap().desc.positions.of(ids).collect::<Vec<_>>()
    };
    assert_eq!(of("bert-modules", &[5, 1, 0, 7]), [0, 1, 2, 3]);
    assert_eq!(of("roberta", &[0, 5, 1, 7, 1, 1, 2]), [2, 3, 1, 4, 1, 1, 5]);
    assert_eq!(of("mpnet", &[0, 1, 2]), [2, 1, 3]);
    let dir = fixture("roberta");
    edit(&dir.path().join("config.json"), |keys| drop(keys.insert("pad_token_id".into(), 41.into())));
    let error = model::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("'pad_token_id': 41 found"), "{error}");
}

#[test]
fn modernbert_keys_of_old_and_new_are_read_and_others_refused() {
    let dir = fixture("modernbert");
    let config = dir.path().join("config.json");
    let desc = model::open(dir.path()).unwrap().desc;
    assert_eq!((desc.reach(0), desc.reach(1), desc.reach(2), desc.reach(3)), (None, Some(8), Some(8), None));
    let old = model::open(fixture("modernbert-old-keys").path()).unwrap().desc;
    assert_eq!(old.positions, Positions::Rotary { global_base: 5000.0, local_base: 300.0 });
    assert_eq!((old.reach(0), old.reach(1), old.reach(2), old.reach(3)), (None, Some(3), None, Some(3)));

    let whole = read(&config);
    for (key, value, named) in [
        ("norm_bias", json!(true), "norm_bias"),
        ("attention_bias", json!(true), "attention_bias"),
        ("mlp_bias", json!(true), "mlp_bias"),
        ("rope_scaling", json!({"type": "linear"}), "rope_scaling"),
        ("local_rope_theta", json!(null), "local_rope_theta"),
        ("rope_parameters", json!({"full_attention": {"rope_type": "yarn"}}), "rope_type"),
        ("rope_parameters", json!({"full_attention": {"factor": 2}}), "factor"),
        ("rope_parameters", json!({"rope_theta": 1e4}), "rope_theta"),
        ("rope_parameters", json!({"full_attention": {"rope_theta": 0}}), "rope_theta"),
        ("layer_types", json!(["full_attention"]), "layer_types"),
        (
            "layer_types",
            json!(["full_attention", "full_attention", "full_attention", "chunked"]),
            "layer_types",
        ),
        ("num_attention_heads", json!(32), "num_attention_heads"), // heads of size 1
        ("num_hidden_layers", json!(i32::MAX), "num_hidden_layers"),
    ] {
        edit(&config, |keys| drop(keys.insert(key.into(), value)));
        let error = model::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(named), "{key}: {error}");
        edit(&config, |keys| *keys = whole.clone());
    }
}

#[test]
fn each_key_of_each_config_is_honoured_refused_or_changes_nothing() {
    let mut families = BTreeSet::new();
    for folder in golden::folders("families") {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path();
        copy(&folder.join("model"), dir);
        let path = &dir.join("config.json");
        let file = File { dir, path, keys: read(path), desc: model::open(dir).unwrap().desc };
        let family = file.keys["model_type"].as_str().unwrap().to_owned();
        let padded = PADDED.contains(&family.as_str());
        file.check(|key| INERT.contains(&key) || (key == "pad_token_id" && !padded));
        families.insert(family);
    }
    println!("families: {families:?}");
    assert!(families.len() >= 9, "{families:?}");
}

#[test]
fn each_key_of_each_module_is_honoured_refused_or_changes_nothing() {
    let mut checked = 0;
    for folder in golden::folders("families") {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path();
        copy(&folder.join("model"), dir);
        for entry in fs::read_dir(dir).unwrap() {
            let path = &entry.unwrap().path().join("config.json");
            if !path.is_file() {
                continue;
            }
            let (name, keys) = (path.parent().unwrap().file_name().unwrap().to_string_lossy(), read(path));
            // of two poolings the first has no effect, nor has what stands between them
            if folder.ends_with("bert-pooled-twice") && (name == "1_Pooling" || name == "2_Normalize") {
                continue;
            }
            File { dir, path, keys, desc: model::open(dir).unwrap().desc }
                .check(|key| INERT_OF_MODULES.contains(&key));
            checked += 1;
        }
    }
    assert!(checked > 20, "{checked}");
}
