//! No key of a model's configuration is passed over: each is honoured, refused by its name, or changes nothing.

#![allow(clippy::print_stdout, reason = "tests show what they checked")]

#[path = "common/golden.rs"]
mod golden;

use berthier::Error;
use berthier::model::{self, Family, ModelDesc, Norms, Positions};
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

/// The same of one family: dropout and the training's and the kernels' choices of the models' own code, and limits
/// that only another choice, which is refused, looks at. JinaBERT's function is in `feed_forward_type`.
const INERT_OF_FAMILY: [(&str, &[&str]); 3] = [
    ("new", &["logn_attention_clip1", "unpad_inputs", "use_memory_efficient_attention"]),
    (
        "nomic_bert",
        &[
            "attn_pdrop",
            "dense_seq_output",
            "embd_pdrop",
            "fused_bias_fc",
            "fused_dropout_add_ln",
            "max_trained_positions",
            "pad_vocab_size_multiple",
            "parallel_block_tied_norm",
            "reorder_and_upcast_attn",
            "resid_pdrop",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "use_flash_attn",
            "use_xentropy",
        ],
    ),
    ("jina", &["_name_or_path", "attn_implementation", "emb_pooler", "hidden_act"]),
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
                            "the heads' share of the width",
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
    assert_eq!(old.positions, Positions::Rotary { global_base: 5000.0, local_base: 300.0, divisor: 1.0 });
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

/// Opens a fixture with other values of `config.json`; null takes a key away.
fn open_with(name: &str, changes: &Value) -> berthier::Result<model::Model> {
    let dir = fixture(name);
    edit(&dir.path().join("config.json"), |keys| {
        for (key, value) in changes.as_object().unwrap() {
            keys.insert(key.clone(), value.clone());
            if value.is_null() {
                keys.remove(key);
            }
        }
    });
    model::open(dir.path())
}

#[test]
fn rotary_scalings_are_read_and_others_refused() {
    let positions = |name: &str, changes: Value| open_with(name, &changes).unwrap().desc.positions;
    let rotary = |base, divisor| Positions::Rotary { global_base: base, local_base: base, divisor };
    assert_eq!(positions("gte", json!({})), rotary(900.0, 1.0));
    // transformers puts the old key before the new one, and what is in either before the base beside them
    let linear = json!({"type": "linear", "factor": 2.0});
    assert_eq!(positions("gte", json!({"rope_scaling": linear, "rope_theta": 50.0})), rotary(50.0, 2.0));
    assert_eq!(positions("gte", json!({"rope_theta": 50.0})), rotary(900.0, 1.0));
    assert_eq!(positions("gte", json!({"rope_parameters": null})), rotary(160_000.0, 1.0));
    assert_eq!(positions("gte-new", json!({})), rotary(2400.0, 6f64.powf(2.0 / 32.0) as f32));
    assert_eq!(positions("gte-new", json!({"rope_scaling": null})), rotary(400.0, 1.0));
    assert_eq!(positions("gte-new", json!({"rope_scaling": {}, "rope_theta": null})), rotary(10_000.0, 1.0));
    for (changes, named) in [
        (json!({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}), "rope_parameters.rope_type"),
        (json!({"rope_parameters": {"type": "yarn", "factor": 2.0}}), "rope_parameters.type"),
        (json!({"rope_parameters": {"rope_type": "linear"}}), "rope_parameters.factor"),
        (json!({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}), "rope_parameters.factor"),
        (json!({"rope_parameters": {"rope_type": "default", "factor": 2.0}}), "rope_parameters.factor"),
        (json!({"rope_parameters": {"partial_rotary_factor": 0.5}}), "partial_rotary_factor"),
        (json!({"rope_parameters": {"rope_theta": 0.5}}), "rope_theta"),
        (json!({"rope_scaling": {"type": "ntk", "factor": 8.0, "mixed_b": 0.9}}), "rope_scaling.mixed_b"),
        (json!({"max_position_embeddings": 131_073}), "max_position_embeddings"),
        (json!({"num_attention_heads": 16}), "num_attention_heads"), // heads of size 3
    ] {
        let error = open_with("gte", &changes).unwrap_err().to_string();
        assert!(error.contains(named), "{changes}: {error}");
    }
}

#[test]
fn nomic_keys_of_both_kinds_agree_and_choices_are_refused() {
    let old = open_with("nomic-bert-old-keys", &json!({})).unwrap();
    assert_eq!(old.desc.positions, Positions::Rotary { global_base: 300.0, local_base: 300.0, divisor: 1.0 });
    // of two keys for one thing, one is enough, and two must agree
    let both = json!({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 40,
        "layer_norm_eps": 1e-5, "hidden_act": "silu", "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}});
    assert_eq!(open_with("nomic-bert-old-keys", &both).unwrap().desc, old.desc);
    for (key, other, named) in [
        ("num_hidden_layers", json!(1), "n_layer"),
        ("num_attention_heads", json!(2), "n_head"),
        ("intermediate_size", json!(20), "n_inner"),
        ("layer_norm_eps", json!(1e-12), "layer_norm_epsilon"),
        ("hidden_act", json!("gelu"), "activation_function"),
        ("rope_parameters", json!({"rope_theta": 1000.0}), "rotary_emb_base"),
    ] {
        let mut changes = both.clone();
        changes[key] = other;
        let error = open_with("nomic-bert-old-keys", &changes).unwrap_err().to_string();
        assert!(error.contains(&format!("'{named}'")), "{key}: {error}");
    }
    for (key, value) in [
        ("activation_function", json!("gelu")),
        ("activation_function", json!(null)),
        ("causal", json!(true)),
        ("mlp_fc1_bias", json!(null)), // its default is true
        ("moe_every_n_layers", json!(2)),
        ("norm_mlp", json!(true)),
        ("num_experts", json!(8)),
        ("num_heads_kv", json!(1)),
        ("prenorm", json!(true)),
        ("qkv_proj_bias", json!(true)),
        ("qkv_proj_bias", json!(null)),
        ("rotary_emb_fraction", json!(0.5)),
        ("rotary_emb_fraction", json!(null)), // its default is 0
        ("rotary_emb_interleaved", json!(true)),
        ("rotary_emb_scale_base", json!(512)),
        ("rotary_head_dim", json!(true)),
        ("rotary_scaling_factor", json!(2.0)),
        ("use_rms_norm", json!(true)),
    ] {
        let error = open_with("nomic-bert-old-keys", &json!({key: value})).unwrap_err().to_string();
        assert!(error.contains(&format!("'{key}'")), "{error}");
    }
    let none = json!({"num_experts": 0, "moe_top_k": 0});
    assert_eq!(open_with("nomic-bert-old-keys", &none).unwrap().desc, old.desc);
}

#[test]
fn jina_keys_are_those_of_its_own_code() {
    let desc = |name: &str| open_with(name, &json!({})).unwrap().desc;
    assert_eq!(desc("jina-bert-v2").family, Family::JinaBert);
    assert_eq!(
        (desc("jina-bert-v2").norms, desc("jina-bert-v2-qk-norm").norms),
        (Norms::Post, Norms::PostQueryKey)
    );
    // a BERT with ALiBi is no BERT, and a BERT with its other keys has no ALiBi
    for (changes, named) in [
        (json!({"feed_forward_type": "original"}), "feed_forward_type"),
        (json!({"feed_forward_type": null}), "feed_forward_type"),
        (json!({"position_embedding_type": "absolute"}), "position_embeddings"),
        (json!({"position_embedding_type": "rope"}), "position_embedding_type"),
        (json!({"max_position_embeddings": 131_073}), "max_position_embeddings"),
    ] {
        let error = open_with("jina-bert-v2", &changes).unwrap_err().to_string();
        assert!(error.contains(named), "{changes}: {error}");
    }
    let error =
        open_with("bert-modules", &json!({"position_embedding_type": "alibi"})).unwrap_err().to_string();
    assert!(error.contains("feed_forward_type"), "{error}");
}

#[test]
fn rule_08_without_a_table_of_positions_the_limit_may_be_above_them() {
    let dir = fixture("gte");
    let path = dir.path().join("sentence_bert_config.json");
    edit(&path, |keys| drop(keys.insert("max_seq_length".into(), 200.into())));
    let model = model::open(dir.path()).unwrap();
    assert_eq!(
        (model.desc.max_seq_length, model.desc.longest_sequence(), model.warnings),
        (200, 200, vec![])
    );
    edit(&path, |keys| drop(keys.insert("max_seq_length".into(), 131_073.into())));
    let error = model::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("'max_seq_length'"), "{error}");
}

#[test]
fn alibi_slopes_are_those_of_the_paper() {
    let slopes = |heads: usize| (0..heads).map(|h| -model::alibi_slope(h, heads)).collect::<Vec<_>>();
    assert_eq!(slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
    assert_eq!(slopes(1), [0.00390625]);
    // for 12 heads those of 8, and every other one of 16
    assert_eq!(slopes(12)[..8], slopes(8));
    let sixteen = slopes(16);
    assert_eq!(slopes(12)[8..], [sixteen[0], sixteen[2], sixteen[4], sixteen[6]]);
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
        // JinaBERT's `model_type` is that of BERT
        let name = if file.keys.contains_key("feed_forward_type") { "jina" } else { family.as_str() };
        let own = INERT_OF_FAMILY.iter().find(|(family, _)| *family == name).map_or(&[][..], |f| f.1);
        // without a table of positions, and where another file says how long a text may be
        let limited = dir.join("sentence_bert_config.json");
        let limited =
            limited.exists() && read(&limited).contains_key("max_seq_length") && name == "nomic_bert";
        file.check(|key| {
            INERT.contains(&key)
                || own.contains(&key)
                || (key == "pad_token_id" && !padded)
                || (key == "max_position_embeddings" && limited)
        });
        families.insert(name.to_owned());
    }
    println!("families: {families:?}");
    assert!(families.len() >= 14, "{families:?}");
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

#[test]
fn each_key_of_each_entry_of_modules_json_is_honoured_refused_or_changes_nothing() {
    let mut checked = 0;
    for folder in golden::folders("families") {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path();
        copy(&folder.join("model"), dir);
        let path = dir.join("modules.json");
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let entries: Vec<Map<String, Value>> = serde_json::from_str(&text).unwrap();
        let desc = model::open(dir).unwrap().desc;
        for (i, entry) in entries.iter().enumerate() {
            let with = |key: &str, value: Option<Value>| {
                let mut entries = entries.clone();
                match value {
                    Some(value) => drop(entries[i].insert(key.to_owned(), value)),
                    None => drop(entries[i].remove(key)),
                }
                fs::write(&path, serde_json::to_string(&entries).unwrap()).unwrap();
                model::open(dir).map(|m| m.desc)
            };
            let refused = |key: &str, value: Option<Value>| {
                let place = format!("{}: [{i}].{key}: {value:?}", folder.display());
                match with(key, value) {
                    Ok(_) => panic!("{place} is passed over"),
                    Err(error) => {
                        // of two entries with one name, it is the later one's
                        assert!(error.to_string().contains(&format!("].{key}'")), "{place}: {error}")
                    }
                }
            };
            let known = ["idx", "name", "path", "type", "kwargs"];
            assert!(entry.keys().all(|key| known.contains(&key.as_str())), "{entry:?}");
            for key in &known[1..] {
                for value in [json!({"not": "implemented"}), json!(3), json!([1])] {
                    refused(key, Some(value));
                }
            }
            for key in ["name", "path", "type"] {
                refused(key, None);
                refused(key, Some(Value::Null));
            }
            refused("revision", Some(json!("main")));
            refused("name", Some(json!("")));
            refused("name", Some(json!("a.b")));
            refused("name", Some(entries[(i + 1) % entries.len()]["name"].clone()));
            refused("type", Some(json!("sentence_transformers.models.Zzz")));
            refused("path", Some(json!("../elsewhere")));
            // what the reference does not read either, or only when `encode` is given more arguments
            for (key, value) in
                [("idx", json!("x")), ("idx", json!(7)), ("name", json!("z")), ("kwargs", json!(["task"]))]
            {
                assert_eq!(with(key, Some(value)).unwrap(), desc, "{}: {key}", folder.display());
            }
            match with("path", Some(json!("elsewhere"))) {
                Ok(other) => {
                    // its folder may be missing; of two poolings the first has no effect
                    let unread = entry["type"].as_str().unwrap().ends_with("Normalize");
                    assert!(unread || folder.ends_with("bert-pooled-twice"), "{entry:?}");
                    assert_eq!(other, desc);
                }
                Err(error) => assert!(error.to_string().contains("elsewhere"), "{error}"),
            }
            checked += 1;
        }
        fs::write(&path, &text).unwrap();
    }
    assert!(checked > 40, "{checked}");
}
