//! A directory that differs in a key of the files about text gives what sentence-transformers makes of it, or is
//! refused by the key's name. The reference's outcomes are those of `tools/mutations.py`.

#![allow(clippy::print_stdout, reason = "tests show what they checked")]

#[path = "common/golden.rs"]
mod golden;

use berthier::{Embedder, Error, Options};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;

const TOLERANCE: f32 = 2e-5;

/// Where the reference fails and we go on, with the reason why that gives no wrong vector.
const WE_GO_ON: &[(&str, &str)] = &[
    ("pad_token", "nothing is padded"),
    ("padding_side", "nothing is padded"),
    ("max_seq_length", "clamped to the positions, with a warning (rule 8)"),
    ("model_max_length", "clamped to the positions, with a warning (rule 9)"),
    ("trim_offsets", "no offsets are given out"),
    ("__version__", "who wrote the file; not read"),
];

struct Outcome {
    ids: Vec<Vec<u32>>,
    vectors: Vec<Vec<f32>>,
}

fn open(dir: &Path, texts: &[&str]) -> berthier::Result<Outcome> {
    let options = Options::new(dir.to_str().unwrap()).threads(NonZeroUsize::MIN);
    let embedder = Embedder::load(options)?;
    let ids = embedder.tokenize(texts)?.into_iter().map(|e| e.ids).collect();
    let vectors = embedder.embed(texts)?.rows().map(<[f32]>::to_vec).collect();
    Ok(Outcome { ids, vectors })
}

fn ids(value: &Value) -> Vec<Vec<u32>> {
    serde_json::from_value(value.clone()).unwrap()
}

/// NaN where the reference's is not finite.
fn vectors(value: &Value) -> Vec<Vec<f32>> {
    let rows: Vec<Vec<Option<f32>>> = serde_json::from_value(value.clone()).unwrap();
    rows.into_iter().map(|row| row.into_iter().map(|v| v.unwrap_or(f32::NAN)).collect()).collect()
}

/// Why two outcomes are not the same.
fn difference(found: &Outcome, ids: &[Vec<u32>], vectors: &[Vec<f32>]) -> Option<String> {
    if found.ids != ids {
        let at = (0..ids.len()).find(|&i| found.ids[i] != ids[i]).unwrap();
        return Some(format!("ids of text {at}: {:?}, {:?} of the reference", found.ids[at], ids[at]));
    }
    for (i, (a, b)) in found.vectors.iter().zip(vectors).enumerate() {
        if a.len() != b.len() {
            return Some(format!("{} components, {} of the reference", a.len(), b.len()));
        }
        let largest = b.iter().fold(1f32, |m, v| m.max(v.abs()));
        let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        if worst.is_nan() || worst > TOLERANCE * largest {
            return Some(format!("text {i} differs by {worst:e}"));
        }
    }
    None
}

/// The strings in a value.
fn strings(value: &Value) -> Vec<&str> {
    match value {
        Value::String(s) => vec![s],
        Value::Array(list) => list.iter().flat_map(strings).collect(),
        Value::Object(keys) => keys.values().flat_map(strings).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => vec![],
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target)
        } else {
            let _ = fs::copy(&path, &target).unwrap();
        }
    }
}

/// The file with the change: a key with a value, or taken away.
fn changed(before: Option<&str>, change: &Value) -> String {
    let mut keys: Map<String, Value> = before.map_or_else(Map::new, |b| serde_json::from_str(b).unwrap());
    let key = change["key"].as_str().unwrap().to_owned();
    match change.get("value") {
        Some(value) => drop(keys.insert(key, value.clone())),
        None => drop(keys.remove(&key)),
    }
    Value::Object(keys).to_string()
}

#[test]
fn each_key_of_each_file_about_text_is_as_the_reference_or_refused() {
    let mut wrong = Vec::new();
    let mut counts = BTreeMap::new();
    let mut files: Vec<_> =
        fs::read_dir(golden::fixtures().join("mutations")).unwrap().collect::<Result<_, _>>().unwrap();
    files.sort_by_key(std::fs::DirEntry::file_name);
    for file in files {
        let golden: Value = serde_json::from_str(&fs::read_to_string(file.path()).unwrap()).unwrap();
        let texts: Vec<&str> =
            golden["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path();
        copy(&golden::fixtures().join(golden["model"].as_str().unwrap()), dir);
        let (base_ids, base_vectors) = (ids(&golden["ids"]), vectors(&golden["vectors"]));
        assert_eq!(difference(&open(dir, &texts).unwrap(), &base_ids, &base_vectors), None, "{golden:.200}");

        for change in golden["changes"].as_array().unwrap() {
            let (name, key) = (change["file"].as_str().unwrap(), change["key"].as_str().unwrap());
            let path = dir.join(name);
            let before = fs::read_to_string(&path).ok();
            fs::write(&path, changed(before.as_deref(), change)).unwrap();
            let outcome = open(dir, &texts);
            match &before {
                Some(before) => fs::write(&path, before).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let reference_fails = change.get("error").is_some();
            let problem = match outcome {
                Err(error) => {
                    let kind = if reference_fails { "refused by both" } else { "refused by us" };
                    *counts.entry(kind).or_insert(0) += 1;
                    let text = error.to_string();
                    // a special token that is not in the vocabulary is named by its content
                    let content = |v: &Value| strings(v).iter().any(|s| text.contains(&format!("'{s}'")));
                    let named = text.contains(key) || change.get("value").is_some_and(content);
                    // a vector that is not finite is no vector
                    let finite = change
                        .get("vectors")
                        .is_none_or(|v| vectors(v).iter().flatten().all(|v| v.is_finite()));
                    let named = named || (!finite && matches!(error, Error::NonFinite { .. }));
                    // a class that this directory has no file for
                    let file = key == "tokenizer_class" && matches!(error, Error::MissingFile { .. });
                    let named = named || file;
                    (!named).then(|| format!("refused without its name: {text}"))
                }
                Ok(_) if reference_fails => {
                    *counts.entry("refused by the reference alone").or_insert(0) += 1;
                    let known = WE_GO_ON.iter().any(|(k, _)| *k == key);
                    (!known).then(|| format!("the reference fails: {}", change["error"]))
                }
                Ok(found) => {
                    let seen = change.get("ids").is_some() || change.get("vectors").is_some();
                    *counts.entry(if seen { "another outcome" } else { "the same outcome" }).or_insert(0) +=
                        1;
                    let ids = change.get("ids").map_or_else(|| base_ids.clone(), ids);
                    let vectors = change.get("vectors").map_or_else(|| base_vectors.clone(), vectors);
                    difference(&found, &ids, &vectors)
                }
            };
            if let Some(problem) = problem {
                let value = change.get("value").map_or_else(|| "taken away".into(), Value::to_string);
                wrong.push(format!("{}: {name}: {key} {value}: {problem}", file.file_name().display()));
            }
        }
    }
    println!("{counts:?}");
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));
    assert!(counts.values().sum::<usize>() > 1000, "{counts:?}");
}
