//! `berthier eval`, `search` and `similarity` from outside: on toy data what they read, write and refuse; on the
//! real model and data the published numbers.
//!
//! The cheaper experiments only; docs/evaluation.md has them all, with the commands.
#![cfg(feature = "cli")]
#![allow(clippy::print_stderr, reason = "a test that skips says so")]

mod common;
#[path = "common/minilm.rs"]
mod minilm;

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// A folder with the toy model in `model`, and the command run in it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        common::toy::toy_bert(&dir.path().join("model"));
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berthier"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BERTHIER_") {
                command.env_remove(name);
            }
        }
        command.current_dir(self.0.path()).args(args);
        command.env("BERTHIER_MODEL", "model").env("BERTHIER_CACHE", self.path("cache"));
        // the numbers are those of fp32
        command.env("BERTHIER_DEVICE", "cpu");
        command.output().unwrap()
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    #[track_caller]
    fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "an error is no result");
        String::from_utf8(output.stderr).unwrap()
    }

    /// STS, SentEval and BEIR data that the toy can read.
    fn with_data() -> Self {
        let place = Self::new();
        let words = ["the cat", "a dog", "hello world", "mat", "cat sat", "1 2", "dog ?", "the mat on"];
        let sts = |n: usize| -> String {
            let line =
                |i: usize| format!("s{}\t{}\t{}\t{}\n", i % 2, i % 5, words[i % 8], words[(i * 3 + 1) % 8]);
            (0..n).map(line).collect()
        };
        place.write("sts/sts12.tsv", &sts(30));
        place.write("sts/stsb-test.tsv", &sts(20));
        place.write("sts/sickr-train.tsv", &sts(7));
        let labelled = |n: usize| -> String {
            (0..n).map(|i| format!("{}\t{} {}\n", i % 2, words[i % 2 * 2], words[i % 8])).collect()
        };
        place.write("senteval/mr/all.tsv", &labelled(60));
        place.write("senteval/sst2/train.tsv", &labelled(40));
        place.write("senteval/sst2/dev.tsv", &labelled(12));
        place.write("senteval/sst2/test.tsv", &labelled(16));
        let document = |(i, text): (usize, &&str)| {
            format!("{{\"_id\": \"d{i}\", \"title\": \"a\", \"text\": \"{text}\"}}\n")
        };
        place.write("beir/corpus.jsonl", &words.iter().enumerate().map(document).collect::<String>());
        place.write(
            "beir/queries.jsonl",
            "{\"_id\": \"q1\", \"text\": \"a the cat\"}\n{\"_id\": \"q2\", \"text\": \"mat\"}\n",
        );
        place.write("beir/qrels.tsv", "query-id\tcorpus-id\tscore\nq1\td0\t1\nq2\td3\t2\nq2\td7\t1\n");
        place
    }
}

/// The row whose columns have these values.
#[track_caller]
fn row<'a>(result: &'a Value, wanted: &[(&str, &str)]) -> &'a Value {
    let rows = result["rows"].as_array().unwrap();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let is = |row: &&Value| wanted.iter().all(|(key, value)| text(&row[key]) == *value);
    rows.iter().find(is).unwrap_or_else(|| panic!("{wanted:?} is not in {result:#}"))
}

#[track_caller]
fn near(row: &Value, key: &str, expected: f64, tolerance: f64) {
    let found = row[key].as_f64().unwrap();
    assert!((found - expected).abs() <= tolerance, "{key}: {found}, {expected} expected: {row}");
}

#[test]
fn sts_writes_table_json_csv_and_plot() {
    let place = Place::with_data();
    let json = place.json(&["eval", "sts", "sts", "--json", "--plot", "plot.svg"]);
    assert_eq!(json["experiment"], "sts");
    let all = row(&json, &[("set", "sts12"), ("subset", "all")]);
    assert_eq!(all["pairs"], 30);
    let parts = ["s0", "s1"]
        .map(|s| row(&json, &[("set", "sts12"), ("subset", s)])["cosine_spearman"].as_f64().unwrap());
    let mean = row(&json, &[("set", "sts12"), ("subset", "mean")]);
    near(mean, "cosine_spearman", (parts[0] + parts[1]) / 2.0, 1e-9);
    row(&json, &[("set", "average of 2"), ("subset", "all")]);
    let svg = fs::read_to_string(place.path("plot.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("sts12") && svg.contains("stsb-test"));

    let csv = place.ok(&["eval", "sts", "sts", "--csv"]);
    assert!(csv.starts_with("set,subset,pairs,cosine_spearman,cosine_pearson,manhattan_spearman"), "{csv}");
    assert_eq!(csv.lines().count(), 1 + json["rows"].as_array().unwrap().len());
    let table = place.ok(&["eval", "sts", "sts/sickr-train.tsv"]);
    assert!(table.contains("sickr-train") && table.contains("weighted mean"), "{table}");
}

#[test]
fn the_cache_changes_no_number_and_can_be_broken() {
    let place = Place::with_data();
    let rows =
        |args: &[&str]| place.json(&[&["eval", "sts", "sts", "--json"], args].concat())["rows"].clone();
    let fresh = rows(&["--no-cache"]);
    assert!(!place.path("cache").exists(), "--no-cache leaves nothing");
    assert_eq!(rows(&[]), fresh);
    let files: Vec<PathBuf> =
        fs::read_dir(place.path("cache/vectors")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), 2, "one for each set: {files:?}");
    let cached = place.run(&["eval", "sts", "sts"]);
    assert!(!String::from_utf8_lossy(&cached.stderr).contains("embedded"), "all from the cache");
    for (i, file) in files.iter().enumerate() {
        let bytes = fs::read(file).unwrap();
        fs::write(file, &bytes[..bytes.len() - 1 - i]).unwrap();
    }
    assert_eq!(rows(&[]), fresh, "a torn file is no file");
    assert_ne!(rows(&["--prompt", "hello"]), fresh);
    assert_ne!(rows(&["--max-seq-length", "3"]), fresh);
}

#[test]
fn senteval_is_decided_by_its_seed() {
    let place = Place::with_data();
    let run = |args: &[&str]| place.json(&[&["eval", "senteval", "senteval", "--json"], args].concat());
    let found = run(&[]);
    assert_eq!(row(&found, &[("set", "mr")])["protocol"], "10 folds, C by 5 inner folds");
    assert_eq!(row(&found, &[("set", "sst2")])["test"], 16);
    assert_eq!(run(&["--threads", "1"])["rows"], found["rows"]);
    assert_eq!(run(&["--seed", "3"])["rows"], run(&["--seed", "3", "--threads", "2"])["rows"]);
    assert_eq!(run(&["--sets", "sst2"])["rows"].as_array().unwrap().len(), 1);
}

#[test]
fn retrieval_finds_what_is_there() {
    let place = Place::with_data();
    let found = place.json(&["eval", "retrieval", "beir", "--json"]);
    let scores = row(&found, &[("set", "beir")]);
    assert_eq!((&scores["passages"], &scores["queries"]), (&8.into(), &2.into()));
    // the first query is the first passage, word for word
    assert!(scores["mrr@10"].as_f64().unwrap() >= 50.0, "{scores}");
    assert_eq!(scores["recall@10"], 100.0);
    let prompted = place.json(&["eval", "retrieval", "beir", "--json", "--query-prompt", "hello"]);
    assert_eq!((&prompted["query_prompt"], &prompted["passage_prompt"]), (&"hello".into(), &"".into()));
}

#[test]
fn ablation_has_a_row_for_each_pooling_and_depth() {
    let place = Place::with_data();
    let found = place.json(&["eval", "ablation", "sts", "--layers", "1,2", "--json"]);
    assert_eq!(found["rows"].as_array().unwrap().len(), 8);
    let mean = row(&found, &[("layers", "1"), ("pooling", "mean")]);
    let sts = place.json(&["eval", "sts", "sts", "--sets", "stsb-test", "--json"]);
    let all = row(&sts, &[("subset", "all")]);
    near(mean, "cosine_spearman", all["cosine_spearman"].as_f64().unwrap(), 1e-9);
    // of a mean and of a sum over the root of the length the cosine is one
    let sqrt = row(&found, &[("layers", "2"), ("pooling", "mean_sqrt_len")]);
    let mean = row(&found, &[("layers", "2"), ("pooling", "mean")]);
    near(sqrt, "cosine_pearson", mean["cosine_pearson"].as_f64().unwrap(), 1e-3);
    assert!(place.fails(&["eval", "ablation", "sts", "--layers", "3"]).contains("the model has 2 layers"));
}

#[test]
fn compare_tells_a_side_from_itself_and_from_another() {
    let place = Place::with_data();
    let same =
        place.json(&["eval", "compare", ",", ",isa=portable", "sts", "beir", "--json", "--resamples", "50"]);
    for set in ["sts12", "stsb-test", "beir"] {
        let row = row(&same, &[("set", set), ("verdict", "no difference shown")]);
        near(row, "cosine_min", 1.0, 1e-6);
        near(row, "neighbours_kept", 1.0, 0.2);
    }
    let half = place.json(&["eval", "compare", "model", "model,store=float16", "sts", "--json"]);
    assert_eq!((&half["a"]["store"], &half["b"]["store"]), (&"float32".into(), &"float16".into()));
    let cosine = row(&half, &[("set", "sts12")])["cosine_min"].as_f64().unwrap();
    assert!(0.9999 < cosine && cosine < 1.0, "{cosine}");
    let narrow = place.json(&["eval", "compare", ",", ",truncate-dim=2", "sts", "--json"]);
    assert!(row(&narrow, &[("set", "sts12")]).get("cosine_min").is_none());
    assert!(
        place.fails(&["eval", "compare", ",", ",isa=vax", "sts"]).contains("one of portable, avx2, avx512")
    );
}

#[test]
fn missing_and_malformed_data_are_said_with_where_to_get_them() {
    let place = Place::new();
    let error = place.fails(&["eval", "sts", "absent"]);
    assert!(error.contains("absent") && error.contains("https://ixa2.si.ehu.eus/stswiki"), "{error}");
    place.write("sts/sts12.tsv", "a\t1\tx\ty\na\t1\tx\n");
    let error = place.fails(&["eval", "sts", "sts"]);
    assert!(error.contains("sts/sts12.tsv:2: 3 fields, 4 needed"), "{error}");
    let error = place.fails(&["eval", "retrieval", "sts"]);
    assert!(error.contains("sts/corpus.jsonl: ") && error.contains("beir-cellar"), "{error}");
    let error = place.fails(&["eval", "senteval", "sts"]);
    assert!(error.contains("no set of SentEval") && error.contains("facebookresearch/SentEval"), "{error}");
}

#[test]
fn search_finds_the_texts_of_an_embedded_corpus() {
    let place = Place::new();
    let corpus = "the cat\nhello\tworld\na dog\nhello world\n";
    place.write("corpus.txt", corpus);
    place.ok(&["embed", "corpus.txt", "-o", "corpus.npy"]);
    place.ok(&["embed", "corpus.txt", "-o", "half.npy", "--dtype", "float16"]);
    for file in ["corpus.npy", "half.npy"] {
        let found = place.ok(&["search", file, "--texts", "corpus.txt", "--query", "a dog", "-k", "2"]);
        let fields: Vec<Vec<&str>> = found.lines().map(|l| l.split('\t').collect()).collect();
        assert_eq!(fields.len(), 2);
        assert_eq!((&fields[0][..2], &fields[0][3..]), (&["a dog", "1"][..], &["2", "a dog"][..]));
        assert!(fields[0][2].parse::<f64>().unwrap() > 0.999);
    }
    // vectors as queries, without a model; each text finds itself
    let output = place.ok(&[
        "search",
        "corpus.npy",
        "--query-vectors",
        "corpus.npy",
        "--json",
        "-k",
        "1",
        "-m",
        "absent",
    ]);
    let rows: Vec<Value> =
        output.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["hits"][0]["row"].clone()).collect();
    assert_eq!(rows, [0, 1, 2, 1], "of equals the first");
    place.write("queries.txt", "the cat\na dog\n");
    let output = place.ok(&["search", "corpus.npy", "--queries", "queries.txt", "-k", "1"]);
    assert_eq!(output.lines().map(|l| l.rsplit('\t').next().unwrap()).collect::<Vec<_>>(), ["0", "2"]);

    place.write("short.txt", "the cat\n");
    let error = place.fails(&["search", "corpus.npy", "--texts", "short.txt", "--query", "x"]);
    assert!(error.contains("short.txt: 1 texts, and corpus.npy has 4 rows"), "{error}");
    let error = place.fails(&["search", "corpus.npy", "--query", "x", "--truncate-dim", "3"]);
    assert!(error.contains("corpus.npy: rows of 8 components, the queries have 3"), "{error}");
    assert!(place.fails(&["search", "corpus.txt", "--query", "x"]).contains("not an .npy file"));
    assert!(place.fails(&["search", "corpus.npy"]).contains("--query"));
}

#[test]
fn similarity_scores_pairs() {
    let place = Place::new();
    place.write("pairs.tsv", "the cat\tthe cat\na dog\thello world\n");
    let found = place.ok(&["similarity", "pairs.tsv"]);
    let lines: Vec<&str> = found.lines().collect();
    assert_eq!(lines[0], "1.000000\tthe cat\tthe cat");
    assert!(lines[1].ends_with("\ta dog\thello world") && lines.len() == 2);
    let json: Value = serde_json::from_str(
        place.ok(&["similarity", "pairs.tsv", "--json", "--metric", "euclidean"]).lines().next().unwrap(),
    )
    .unwrap();
    near(&json, "score", 0.0, 1e-6);
    place.write("bad.tsv", "a\tb\nalone\n");
    assert!(place.fails(&["similarity", "bad.tsv"]).contains("bad.tsv:2: 1 fields, 2 needed"));
}

/// The experiment on the real model and data, as JSON; `None` says that it skips.
fn real(args: &[&str], data: &str) -> Option<Value> {
    let root = std::env::var_os("BERTHIER_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), PathBuf::from);
    let path = root.join(data);
    if !path.exists() {
        eprintln!("SKIP: no {} (BERTHIER_DATA names the folder of the data)", path.display());
        return None;
    }
    let model = minilm::dir()?;
    // never the cache: it would test the kernels of an earlier build
    let output = Command::new(env!("CARGO_BIN_EXE_berthier"))
        .arg("eval")
        .args(args)
        .arg(&path)
        .args(["--json", "--no-cache", "--model"])
        .arg(model)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn stsb_matches_sentence_transformers() {
    let Some(found) = real(&["ablation", "--sets", "stsb-test", "--layers", "1"], "sts") else { return };
    for (pooling, spearman, pearson) in
        [("cls", 73.4996, 73.3669), ("mean", 82.0325, 82.7406), ("max", 78.7979, 77.7488)]
    {
        let row = row(&found, &[("layers", "1"), ("pooling", pooling)]);
        near(row, "cosine_spearman", spearman, 0.01);
        near(row, "cosine_pearson", pearson, 0.01);
    }
}

#[test]
fn cr_matches_scikit_learn() {
    let Some(found) = real(&["senteval", "--sets", "cr"], "senteval") else { return };
    near(row(&found, &[("set", "cr")]), "accuracy", 82.7023, 0.5);
}

#[test]
fn cranfield_matches_sentence_transformers() {
    // the passages' beginnings: a third of the time
    let Some(found) = real(&["retrieval", "--max-seq-length", "64"], "retrieval/cranfield") else { return };
    let scores = row(&found, &[("set", "cranfield")]);
    near(scores, "ndcg@10", 37.5099, 0.1);
    near(scores, "mrr@10", 52.1427, 0.1);
    near(scores, "recall@100", 75.9257, 0.1);
}
