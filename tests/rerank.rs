//! Scores of pairs are those of sentence-transformers' CrossEncoder, for the head of every family and in every layout; and
//! the command that ranks by them.

#![allow(clippy::print_stdout, reason = "tests show the difference they found")]

#[path = "common/golden.rs"]
mod golden;

use berthier::backend::Device;
use berthier::backend::cpu::Isa;
use berthier::{CrossEncoder, Embedder, Error, Options};
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};

const TOLERANCE: f32 = 2e-5;

#[derive(Deserialize)]
struct Golden {
    max_seq_length: usize,
    labels: usize,
    /// The best nine second texts for the first text of row 3, where there is one label.
    ranked: Option<Vec<usize>>,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    first: String,
    second: String,
    ids: Vec<u32>,
    type_ids: Vec<u32>,
    total_tokens: usize,
}

impl Golden {
    fn read(folder: &Path) -> (Self, Vec<f32>) {
        let golden: Self = serde_json::from_slice(&fs::read(folder.join("golden.json")).unwrap()).unwrap();
        let bytes = fs::read(folder.join("golden.f32")).unwrap();
        let scores: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(scores.len(), golden.rows.len() * golden.labels);
        (golden, scores)
    }

    fn pairs(&self) -> Vec<(&str, &str)> {
        self.rows.iter().map(|r| (&r.first[..], &r.second[..])).collect()
    }
}

fn options(folder: &Path) -> Options {
    Options::new(folder.join("model").to_str().unwrap())
}

/// The reference and the CPU with every instruction set.
fn everywhere(folder: &Path) -> Vec<CrossEncoder> {
    let mut all = vec![options(folder).device(Device::Reference)];
    all.extend(Isa::available().into_iter().map(|isa| options(folder).device(Device::Cpu).isa(isa)));
    all.into_iter().map(|o| CrossEncoder::load(o).unwrap_or_else(|e| panic!("{e}"))).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn scores_match_sentence_transformers() {
    for folder in golden::folders("cross-encoders") {
        let (golden, want) = Golden::read(&folder);
        let pairs = golden.pairs();
        for model in everywhere(&folder) {
            let place = format!("{}: {}", folder.display(), model.device_name());
            assert_eq!(model.labels(), golden.labels, "{place}");
            assert_eq!(model.max_seq_length(), golden.max_seq_length, "{place}");
            let scores = model.predict(&pairs).unwrap();
            assert_eq!((scores.len(), scores.labels()), (pairs.len(), golden.labels));
            let worst = scores.as_slice().iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(scores.as_slice().iter().all(|v| v.is_finite()), "{place}");
            assert!(worst <= TOLERANCE, "{place}: a score differs by {worst:e}");
            println!("{place}: {} pairs within {worst:.1e}", pairs.len());
            for (i, row) in golden.rows.iter().enumerate() {
                assert_eq!(scores.tokens()[i].total, row.total_tokens, "{place}: {i}");
                let alone = model.predict(&pairs[i..=i]).unwrap();
                assert_eq!(bits(alone.row(0)), bits(scores.row(i)), "{place}: {i}: alone and in a batch");
            }
        }
    }
}

#[test]
fn pairs_have_the_ids_of_the_reference() {
    let (mut cut, mut typed) = (0, 0);
    for folder in golden::folders("cross-encoders") {
        let (golden, _) = Golden::read(&folder);
        let model = CrossEncoder::load(options(&folder)).unwrap();
        let encodings = model.tokenize(&golden.pairs()).unwrap();
        // where the model has no types, the reference drops those of its tokenizer
        let types = model.model().type_vocab_size > 1;
        for (i, (row, encoding)) in golden.rows.iter().zip(&encodings).enumerate() {
            let place = format!("{}: {i}", folder.display());
            assert_eq!(encoding.ids, row.ids, "{place}");
            assert_eq!(encoding.total_tokens, row.total_tokens, "{place}");
            if types {
                assert_eq!(encoding.type_ids, row.type_ids, "{place}");
                typed += usize::from(row.type_ids.contains(&1));
            } else {
                assert!(encoding.type_ids.iter().all(|&t| t == 0), "{place}");
            }
            cut += usize::from(encoding.truncated());
        }
    }
    assert!(cut > 30 && typed > 100, "{cut} pairs cut, {typed} with types");
}

#[test]
fn ranking_is_that_of_the_reference() {
    let mut checked = 0;
    for folder in golden::folders("cross-encoders") {
        let (golden, _) = Golden::read(&folder);
        let model = CrossEncoder::load(options(&folder)).unwrap();
        let documents: Vec<&str> = golden.rows.iter().map(|r| &r.second[..]).collect();
        let query = &golden.rows[3].first;
        let Some(want) = golden.ranked else {
            let refused = model.rank(query, &documents, None);
            assert!(matches!(refused, Err(Error::InvalidOption { name: "model", .. })), "{refused:?}");
            continue;
        };
        let ranked = model.rank(query, &documents, Some(9)).unwrap();
        let found: Vec<usize> = ranked.iter().map(|hit| hit.index).collect();
        assert_eq!(found, want, "{}", folder.display());
        let all = model.rank(query, &documents, None).unwrap();
        assert_eq!(all[..9], ranked);
        assert!(all.is_sorted_by(|a, b| a.score > b.score || (a.score == b.score && a.index < b.index)));
        checked += 1;
    }
    assert!(checked > 8);
}

#[test]
fn equal_documents_keep_their_order() {
    let model = CrossEncoder::load(options(&fixture("bert"))).unwrap();
    let ranked = model.rank("hello", &["the cat", "a mat", "the cat", "the cat"], None).unwrap();
    let same: Vec<usize> = ranked.iter().map(|hit| hit.index).filter(|&i| i != 1).collect();
    assert_eq!(same, [0, 2, 3]);
    assert!(model.rank::<&str>("hello", &[], Some(3)).unwrap().is_empty());
}

#[test]
fn logits_are_scores_before_their_function() {
    let folder = fixture("bert");
    let logits = CrossEncoder::load_logits(options(&folder)).unwrap();
    let scores = CrossEncoder::load(options(&folder)).unwrap();
    let pair = [("hello", "the cat sat on the mat")];
    let (x, y) = (logits.predict(&pair).unwrap().row(0)[0], scores.predict(&pair).unwrap().row(0)[0]);
    assert!((1.0 / (1.0 + (-x).exp()) - y).abs() < 1e-6, "{x} {y}");
    assert!((x - y).abs() > 0.1, "{x} {y}");
}

fn fixture(name: &str) -> PathBuf {
    golden::fixtures().join("cross-encoders").join(name)
}

/// A copy of a fixture's model, with some keys of one of its files replaced.
fn changed(name: &str, file: &str, keys: &[(&str, serde_json::Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("model")).unwrap();
    for entry in fs::read_dir(fixture(name).join("model")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join("model").join(path.file_name().unwrap())).unwrap();
    }
    let path = dir.path().join("model").join(file);
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    keys.iter().for_each(|(key, value)| json[*key] = value.clone());
    fs::write(path, json.to_string()).unwrap();
    dir
}

#[track_caller]
fn refused(dir: &Path, why: &str) {
    let error = CrossEncoder::load(options(dir)).unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    for (name, file, key, value) in [
        (
            "bert-saved",
            "config_sentence_transformers.json",
            "activation_fn",
            "torch.nn.modules.activation.Softmax",
        ),
        ("bert-saved", "config_sentence_transformers.json", "model_type", "SparseEncoder"),
        ("bert-saved", "config_sentence_transformers.json", "default_prompt_name", "query"),
        ("bert-saved", "sentence_bert_config.json", "transformer_task", "text-generation"),
        ("bert-saved", "sentence_bert_config.json", "module_output_name", "token_embeddings"),
        ("bert", "config.json", "id2label", "none"),
        ("bert", "config.json", "num_labels", "none"),
        ("modernbert", "config.json", "classifier_pooling", "max"),
        ("modernbert", "config.json", "classifier_activation", "unheard of"),
    ] {
        refused(changed(name, file, &[(key, value.into())]).path(), key);
    }
    refused(changed("bert", "config.json", &[("num_labels", 3.into())]).path(), "num_labels");
    refused(changed("modernbert", "config.json", &[("norm_eps", 1e-6.into())]).path(), "norm_eps");
    let labels = serde_json::json!({"0": "a", "1": "b"});
    refused(changed("bert", "config.json", &[("id2label", labels)]).path(), "'classifier.");
    let code = [("activation_fn", "my_code.Function".into())];
    let dir = changed("bert-saved", "config_sentence_transformers.json", &code);
    let warned = CrossEncoder::load(options(dir.path())).unwrap();
    assert!(warned.warnings().iter().any(|w| w.contains("my_code.Function")), "{:?}", warned.warnings());
}

#[test]
fn sentence_models_and_bare_encoders_are_refused() {
    let sentence = golden::fixtures().join("tiny/current-mean");
    refused(&sentence, "a sentence embedding model");
    let encoder = golden::fixtures().join("tiny/no-modules");
    refused(&encoder, "no classification head");
}

#[test]
fn an_embedder_refuses_cross_encoders() {
    for name in ["bert", "bert-saved", "xlm-roberta"] {
        let error = Embedder::load(options(&fixture(name))).unwrap_err().to_string();
        assert!(error.contains("CrossEncoder"), "{error}");
    }
}

#[test]
fn options_about_vectors_are_refused() {
    let folder = fixture("bert");
    let n = |n: usize| std::num::NonZeroUsize::new(n).unwrap();
    for (options, option) in [
        (options(&folder).truncate_dim(n(1)), "truncate_dim"),
        (options(&folder).prompt("query: "), "prompt"),
        (options(&folder).normalize(berthier::Normalize::Always), "normalize"),
        (options(&folder).max_seq_length(n(4)), "max_seq_length"),
    ] {
        let error = CrossEncoder::load(options).unwrap_err();
        assert!(matches!(&error, Error::InvalidOption { name, .. } if *name == option), "{error}");
    }
}

#[cfg(feature = "cli")]
mod command {
    use super::*;
    use serde_json::{Value, json};
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// Exit code, lines of stdout as JSON, stderr.
    fn rerank(name: &str, args: &[&str], stdin: &str) -> (i32, Vec<Value>, String) {
        let model = fixture(name).join("model");
        run(&[&["rerank", "--device", "cpu", "-m", model.to_str().unwrap()], args].concat(), stdin)
    }

    fn run(args: &[&str], stdin: &str) -> (i32, Vec<Value>, String) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_berthier"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // a command that fails early does not read
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        let output = child.wait_with_output().unwrap();
        let lines = output.stdout.split_inclusive(|&b| b == b'\n');
        let lines = lines.map(|line| serde_json::from_slice(line).unwrap()).collect();
        (output.status.code().unwrap(), lines, String::from_utf8(output.stderr).unwrap())
    }

    #[test]
    fn documents_are_ranked_for_each_query() {
        let (golden, _) = Golden::read(&fixture("bert"));
        let documents: Vec<&str> = golden.rows.iter().map(|r| &r.second[..]).collect();
        let text = documents.iter().map(|d| d.replace('\n', " ") + "\n").collect::<String>();
        let query = &golden.rows[3].first;
        let args = ["-q", query, "-q", "Where?", "-k", "9"];
        let (code, lines, stderr) = rerank("bert", &args, &text);
        assert_eq!((code, lines.len()), (0, 2), "{stderr}");
        assert!(stderr.contains("cut at 40 tokens"), "{stderr}");
        assert_eq!(lines[0]["query"], json!(query));
        let hits = lines[0]["hits"].as_array().unwrap();
        let rows: Vec<usize> = hits.iter().map(|h| h["row"].as_u64().unwrap() as usize).collect();
        assert_eq!(Some(&rows), golden.ranked.as_ref());
        assert_eq!(hits[0]["text"], json!(documents[rows[0]]));
        assert_eq!(rerank("bert", &args, &text).1, lines, "a second run says the same");
    }

    #[test]
    fn queries_come_with_their_documents() {
        let stdin = "{\"query\": \"hello\", \"documents\": [\"the cat\", \"hello hello\", \"a mat\"]}\n\
                     {\"query\": \"none\", \"documents\": []}\n\
                     {\"query\": \"cat\", \"documents\": [\"the cat\", \"a mat\"]}\n";
        let (code, lines, stderr) = rerank("bert-saved", &["--no-text"], stdin);
        assert_eq!((code, lines.len()), (0, 3), "{stderr}");
        assert_eq!(lines[1], json!({"query": "none", "hits": []}));
        // as each alone
        let (_, alone, _) = rerank("bert-saved", &["--no-text", "-q", "cat"], "the cat\na mat\n");
        assert_eq!(lines[2], alone[0]);
        let mut rows: Vec<u64> =
            lines[0]["hits"].as_array().unwrap().iter().map(|h| h["row"].as_u64().unwrap()).collect();
        rows.sort_unstable();
        assert_eq!(rows, [0, 1, 2]);
    }

    #[test]
    fn wrong_input_and_models_are_said() {
        for (name, args, stdin, why) in [
            ("bert", &[][..], "the cat\n", "stdin:1"),
            ("bert", &[], "{\"query\": \"a\"}\n", "no \"documents\""),
            ("bert", &[], "{\"documents\": [\"a\"]}\n", "no \"query\""),
            ("bert", &[], "{\"query\": \"a\", \"documents\": [1]}\n", "a list of strings"),
            ("bert-three-labels", &["-q", "a"], "b\n", "3 labels"),
        ] {
            let (code, lines, stderr) = rerank(name, args, stdin);
            assert_eq!((code, lines.len()), (2, 0), "{stderr}");
            assert!(stderr.contains(why), "{why}: {stderr}");
        }
        let sentence = golden::fixtures().join("tiny/current-mean/model");
        let (code, _, stderr) = run(&["rerank", "-m", sentence.to_str().unwrap(), "-q", "a"], "b\n");
        assert_eq!(code, 2);
        assert!(stderr.contains("a sentence embedding model"), "{stderr}");
        let classifier = fixture("bert").join("model");
        let (code, _, stderr) = run(&["embed", "-m", classifier.to_str().unwrap(), "-o", "-"], "b\n");
        assert_eq!(code, 2);
        assert!(stderr.contains("berthier rerank"), "{stderr}");
    }
}
