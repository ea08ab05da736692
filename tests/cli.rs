//! The command from outside: exit codes, what goes to stdout and what to stderr, the files it leaves.
#![cfg(feature = "cli")]

mod common;

use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const DIM: usize = common::toy::HIDDEN;
/// Longer than the 12 tokens that the toy takes.
const LONG: &str = "the cat sat on the mat the cat sat on the mat the cat";

/// A folder with the toy model in `model`, and the command run in it.
struct Place {
    dir: TempDir,
}

/// What a command left behind.
struct Ran {
    code: i32,
    stdout: Vec<u8>,
    stderr: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        let stderr = String::from_utf8(output.stderr).unwrap();
        Self { code: output.status.code().unwrap_or(-1), stdout: output.stdout, stderr }
    }

    #[track_caller]
    fn ok(self) -> Self {
        self.code(0, "")
    }

    #[track_caller]
    fn fails(self, stderr: &str) -> Self {
        let ran = self.code(2, stderr);
        assert!(ran.stdout.is_empty(), "an error is no result");
        ran
    }

    #[track_caller]
    fn code(self, code: i32, stderr: &str) -> Self {
        assert_eq!(self.code, code, "{}", self.stderr);
        assert!(self.stderr.contains(stderr), "'{stderr}' is not in: {}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    fn json_lines(&self) -> Vec<Value> {
        self.stdout.split_inclusive(|&b| b == b'\n').map(|l| serde_json::from_slice(l).unwrap()).collect()
    }
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        common::toy::toy_bert(&dir.path().join("model"));
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berthier"));
        command.current_dir(self.dir.path()).args(args.split_whitespace()).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BERTHIER_") {
                command.env_remove(name);
            }
        }
        command.env("BERTHIER_MODEL", "model").env("BERTHIER_THREADS", "1");
        // what is said and computed must not hang on the machine's GPUs
        command.env("BERTHIER_DEVICE", "cpu");
        command
    }

    fn run(&self, args: &str) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }

    fn run_with_stdin(&self, args: &str, stdin: &[u8]) -> Ran {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // a command that refuses does not read all of it
        match child.stdin.take().unwrap().write_all(stdin) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => panic!("{e}"),
            _ => {}
        }
        Ran::of(child.wait_with_output().unwrap())
    }

    /// Names of the files beside the model.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|n| n != "model");
        names.sort();
        names
    }

    /// Shape and numbers of a float32 npy file.
    fn npy(&self, name: &str) -> (usize, Vec<f32>) {
        let bytes = self.read(name);
        let (rows, data) = npy_parts(&bytes, "<f4");
        (rows, data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect())
    }
}

fn npy_parts<'a>(bytes: &'a [u8], descr: &str) -> (usize, &'a [u8]) {
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\0");
    let (header, data) = bytes.split_at(10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]])));
    assert_eq!(header.len() % 64, 0);
    let header = std::str::from_utf8(&header[10..]).unwrap().trim_end();
    let start = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (");
    let shape = header.strip_prefix(&start).unwrap_or_else(|| panic!("{header}"));
    let rows = shape.strip_suffix(&format!(", {DIM}), }}")).unwrap().parse().unwrap();
    (rows, data)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// Lines that differ, of several lengths; one in ten is empty.
fn corpus(lines: usize) -> String {
    let words = ["the", "cat", "sat", "on", "mat", "dog", "hello", "world", "1", "2"];
    let line = |i: usize| {
        (0..i % 10).map(|j| words[(i / 7 + j * (i % 13 + 1)) % words.len()]).collect::<Vec<_>>().join(" ")
    };
    (0..lines).map(|i| line(i) + "\n").collect()
}

#[test]
fn npy_rows_are_the_lines() {
    let place = Place::new();
    place.write("in.txt", "the cat\n\r\nhello world\r\nthe cat");
    let ran = place.run("embed in.txt -o out.npy").ok();
    assert!(ran.stdout.is_empty());
    let summary = ran.stderr.lines().last().unwrap();
    assert!(summary.starts_with("berthier: 4 rows, ") && summary.ends_with("out.npy"), "{summary}");
    let (rows, data) = place.npy("out.npy");
    assert_eq!((rows, data.len()), (4, 4 * DIM));
    assert_eq!(data[..DIM], data[3 * DIM..], "equal texts have equal vectors");
    assert_ne!(data[..DIM], data[DIM..2 * DIM]);
    for row in data.chunks(DIM) {
        assert!((row.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5);
    }
    assert_eq!(place.files(), ["in.txt", "out.npy"]);
}

#[test]
fn formats_hold_the_same_vectors() {
    let place = Place::new();
    place.write("in.txt", corpus(50));
    place.run("embed in.txt -o out.npy -q").ok();
    let (rows, expected) = place.npy("out.npy");
    assert_eq!(rows, 50);
    let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();

    place.run("embed in.txt -o out.f32").ok();
    assert_eq!(place.read("out.f32"), expected.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());

    let half = expected.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect::<Vec<_>>();
    place.run("embed in.txt -o out.f16").ok();
    assert_eq!(place.read("out.f16"), half);
    place.run("embed in.txt -o half.npy --dtype float16").ok();
    assert_eq!(npy_parts(&place.read("half.npy"), "<f2"), (50, &half[..]));

    for ran in [place.run("embed in.txt -o -"), place.run_with_stdin("embed -o -", corpus(50).as_bytes())] {
        let lines = ran.ok().json_lines();
        assert_eq!(lines.len(), 50);
        let read: Vec<f32> = lines
            .iter()
            .enumerate()
            .inspect(|(i, line)| assert_eq!(line["index"], *i))
            .flat_map(|(_, line)| line["embedding"].as_array().unwrap().clone())
            .map(|v| v.as_f64().unwrap() as f32)
            .collect();
        assert_eq!(bits(&read), bits(&expected), "every digit comes back");
    }
}

#[test]
fn compressed_and_several_inputs_equal_plain_ones() {
    let place = Place::new();
    let text = corpus(3000);
    let (head, tail) = text.split_at(text[..20_000].rfind('\n').unwrap() + 1);
    place.write("all.txt", &text);
    place.write("head.txt.gz", gzip(head.as_bytes()));
    place.write("tail.txt.zst", zstd(tail.as_bytes()));
    place.run("embed all.txt -o plain.npy").ok();
    place.run("embed head.txt.gz tail.txt.zst -o packed.npy").ok();
    assert!(place.read("plain.npy") == place.read("packed.npy"));
    place.run_with_stdin("embed head.txt.gz - -o piped.npy", tail.as_bytes()).ok();
    assert!(place.read("plain.npy") == place.read("piped.npy"));
}

#[test]
fn jsonl_ids_go_with_the_vectors() {
    let place = Place::new();
    let row = |id: &str, text: &str| format!("{{\"key\": {id}, \"body\": \"{text}\", \"more\": [{{}}]}}\n");
    place.write("in.jsonl", row("\"x\\\"1\"", "the cat") + &row("7", "") + &row("-1.5", "\\u00e9"));
    let flags = "--field body --id-field key";
    let ran = place.run(&format!("embed in.jsonl {flags} -o -")).ok();
    let ids: Vec<_> = ran.json_lines().iter().map(|l| l["id"].clone()).collect();
    assert_eq!(ids, [Value::from("x\"1"), Value::from(7), Value::from(-1.5)]);
    place.run(&format!("embed in.jsonl {flags} -o out.npy")).ok();
    assert_eq!(place.npy("out.npy").0, 3);
    assert_eq!(place.read("out.npy.ids.jsonl"), b"\"x\\\"1\"\n7\n-1.5\n");
    place.run("embed in.jsonl -o absent.npy").fails("in.jsonl:1: no field 'text' (--field");
    place.run(&format!("embed in.jsonl {flags} -o -  --input-format lines")).fails("--input-format jsonl");
}

#[test]
fn bad_rows_stop_or_are_skipped() {
    let place = Place::new();
    place.write("in.txt", b"the cat\n\xff\xfe\nhello\n0123456789abcdef\ndog\n");
    let flags = "embed in.txt --max-line-bytes 15";
    let ran = place.run(&format!("{flags} -o out.npy")).fails("error: in.txt:2: not UTF-8 at byte 1");
    assert!(ran.stderr.contains("--on-error skip"));
    assert_eq!(place.files(), ["in.txt", "out.npy.partial", "out.npy.partial.json"]);

    // the run that stopped goes on with the very remedy that the error names
    let ran = place.run(&format!("{flags} -o out.npy --on-error skip --resume"));
    let ran = ran.code(1, "skipped: in.txt:2: not UTF-8");
    assert!(ran.stderr.contains("in.txt:4: a line of 16 bytes, at most 15 are read (--max-line-bytes)"));
    assert!(ran.stderr.contains("5 rows") && ran.stderr.contains("2 bad"), "{}", ran.stderr);
    let (rows, data) = place.npy("out.npy");
    assert_eq!(rows, 5);
    for (i, row) in data.chunks(DIM).enumerate() {
        let bad = i == 1 || i == 3;
        assert!(row.iter().all(|v| v.is_nan() == bad), "row {i}: {row:?}");
    }

    let ran = place.run(&format!("{flags} -o - --on-error skip -q")).code(1, "skipped: in.txt:4");
    let lines = ran.json_lines();
    assert_eq!(lines.len(), 5);
    assert!(lines[1]["error"].as_str().unwrap().starts_with("in.txt:2: not UTF-8"));
    assert!(lines[1]["embedding"].is_null() && lines[2]["embedding"].is_array());

    // the good rows are what they are without the bad ones
    place.write("good.txt", "the cat\nhello\ndog\n");
    let good = place.run("embed good.txt -o -").ok().json_lines();
    for (good, mixed) in good.iter().zip([0, 2, 4]) {
        assert_eq!(good["embedding"], lines[mixed]["embedding"]);
    }
}

#[test]
fn bad_rows_are_named_ten_times_and_counted() {
    let place = Place::new();
    place.write("in.jsonl", "{}\n".repeat(40));
    let ran = place.run("embed in.jsonl -o out.npy --on-error skip").code(1, "40 bad");
    assert_eq!(ran.stderr.matches("no field 'text'").count(), 10);
    assert!(ran.stderr.contains("only counted from here on"));
}

#[test]
fn vectors_that_are_not_finite_are_bad_rows() {
    let place = Place::new();
    let toy = common::toy::Toy::new().map_tensors(|t| {
        if t.name == "embeddings.word_embeddings.weight" {
            let dog = common::toy::VOCAB.iter().position(|&w| w == "dog").unwrap();
            t.values[dog * DIM] = f32::NAN;
        }
    });
    toy.write(&place.path("model"));
    place.write("in.txt", format!("the cat\nthe dog\n{LONG}\n"));
    place.run("embed in.txt -o out.npy").fails("in.txt:2: the vector is not finite");
    let ran = place.run("embed in.txt -o out.npy --overwrite --on-error skip").code(1, "1 truncated, 1 bad");
    assert!(ran.stderr.contains("skipped: in.txt:2: the vector is not finite"));
    let (_, data) = place.npy("out.npy");
    let finite: Vec<_> = data.chunks(DIM).map(|r| r.iter().all(|v| v.is_finite())).collect();
    assert_eq!(finite, [true, false, true]);
}

#[test]
fn truncation_is_warned_of_refused_or_marked() {
    let place = Place::new();
    place.write("in.txt", format!("the cat\n{LONG}\ndog\n"));
    let ran = place.run("embed in.txt -o out.npy").ok();
    assert!(ran.stderr.contains("warning: 1 text cut at 12 tokens"), "{}", ran.stderr);
    assert!(ran.stderr.contains("in.txt:2") && ran.stderr.contains("1 truncated"));

    place.run("embed in.txt -o e.npy --on-truncate error").fails("in.txt:2: 16 tokens, of which 12 fit");
    assert!(!place.files().contains(&"e.npy".into()));

    place.run("embed in.txt -o m.npy --on-truncate mark").ok();
    let marks: Value = serde_json::from_slice(&place.read("m.npy.truncated.jsonl")).unwrap();
    let expected = r#"{"row":1,"file":"in.txt","line":2,"tokens_used":12,"tokens_total":16}"#;
    assert_eq!(marks, serde_json::from_str::<Value>(expected).unwrap());
    assert_eq!(place.read("m.npy"), place.read("out.npy"));

    let lines = place.run("embed in.txt -o - --on-truncate mark").ok().json_lines();
    let marked: Vec<_> = lines.iter().map(|l| l["truncated"].as_bool().unwrap()).collect();
    assert_eq!(marked, [false, true, false]);
    assert_eq!((&lines[1]["tokens_used"], &lines[1]["tokens_total"]), (&12.into(), &16.into()));
}

#[test]
fn options_that_change_vectors_do() {
    let place = Place::new();
    place.write("in.txt", "the cat sat\n");
    let vector = |flags: &str| {
        let ran = place.run(&format!("embed in.txt -o - {flags}")).ok();
        ran.json_lines()[0]["embedding"].as_array().unwrap().clone()
    };
    let plain = vector("");
    assert_eq!(vector("--normalize"), plain);
    assert_eq!(vector("--batch-tokens 20 --threads 2"), plain);
    assert_eq!(vector("--truncate-dim 3"), plain[..3]);
    assert_ne!(vector("--no-normalize"), plain);
    assert_ne!(vector("--max-seq-length 4"), plain);
    assert_ne!(vector("--prompt hello"), plain);
    place.run("embed in.txt -o - --prompt-name query").fails("prompt_name");
    place.run("embed in.txt -o - --truncate-dim 9").fails("truncate_dim: 9: 1 to 8");
    place.run("embed in.txt -o - --max-seq-length 17").fails("max_seq_length: 17");
    place.run("embed in.txt -o - --isa vax").fails("portable, avx2, avx512");
}

#[test]
fn empty_input_is_an_array_of_no_rows() {
    let place = Place::new();
    place.write("in.txt", "");
    place.run("embed in.txt -o out.npy").ok();
    assert_eq!(place.npy("out.npy"), (0, vec![]));
    assert_eq!(place.read("out.npy").len(), 128);
    assert!(place.run("embed -o -").ok().stdout.is_empty());
    place.run("embed in.txt -o out.jsonl").ok();
    assert!(place.read("out.jsonl").is_empty());
}

#[test]
fn outputs_are_not_replaced_unless_asked() {
    let place = Place::new();
    place.write("in.txt", "the cat\n");
    place.write("out.npy", "precious");
    // said before the model is looked for
    let ran =
        place.run("embed in.txt -o out.npy -m absent").fails("out.npy: exists (--overwrite replaces it)");
    assert!(!ran.stderr.contains("absent"));
    assert_eq!(place.read("out.npy"), b"precious");
    place.run("embed in.txt -o out.npy --overwrite").ok();
    assert_eq!(place.npy("out.npy").0, 1);
    assert_eq!(place.files(), ["in.txt", "out.npy"]);
}

#[test]
fn outputs_that_cannot_be_written_are_said_before_the_model_is_loaded() {
    let place = Place::new();
    place.write("in.txt", "the cat\n");
    for (out, message) in [
        ("absent/out.npy", "absent"),
        ("in.txt/out.npy", "not a directory"),
        ("model", "is a directory"),
        ("out.bin", "--output-format"),
        ("- --output-format npy", "npy cannot be written to a stream"),
        ("- --resume", "--resume needs an output file"),
    ] {
        let ran = place.run(&format!("embed in.txt -m nowhere -o {out}")).fails(message);
        assert!(!ran.stderr.contains("nowhere"), "{}", ran.stderr);
    }
    // a model that is not there leaves no file behind
    place.run("embed in.txt -m ./nowhere -o out.npy").fails("nowhere");
    assert_eq!(place.files(), ["in.txt"]);
}

#[test]
fn inputs_that_cannot_be_read_are_errors() {
    let place = Place::new();
    place.write("cut.gz", &gzip(corpus(500).as_bytes())[..500]);
    place.run("embed model -o out.npy").fails("model: is a directory: name the files in it");
    place.run("embed absent.txt -o out.npy").fails("absent.txt: No such file");
    place.run("embed - - -o out.npy").fails("only once");
    place.run("embed data.parquet -o out.npy").fails("JSON Lines");
    place.run("embed cut.gz -o out.npy").fails("cut.gz: ");
    assert!(!place.files().contains(&"out.npy".into()));
}

#[test]
fn usage_errors_exit_with_2() {
    let place = Place::new();
    place.run("embed in.txt").fails("--output");
    place.run("embed in.txt -o a.npy --resume --overwrite").fails("cannot be used with");
    place.run("embed in.txt -o a.npy --threads 0").fails("--threads");
    place.run("").code(2, "Usage");
}

#[test]
fn costs_are_predicted_without_model_and_gpu() {
    let place = Place::new();
    let ran = place.run("bench costs --gpu a100 --shape minilm,base --lengths 32 --json").ok();
    let json: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(json["predicted"], true);
    assert_eq!(json["gpus"].as_array().unwrap().len(), 1);
    let networks = json["gpus"][0]["networks"].as_array().unwrap();
    // two shapes, a full batch and one sequence, as it is, with norms apart, batch-invariant
    assert_eq!(networks.len(), 2 * 2 * 3);
    for network in networks {
        let kernels = network["kernels"].as_array().unwrap();
        let us: f64 = kernels.iter().map(|k| k["us"].as_f64().unwrap() * k["times"].as_f64().unwrap()).sum();
        assert!((us / network["us"].as_f64().unwrap() - 1.0).abs() < 1e-9);
        let tokens = network["total_tokens"].as_f64().unwrap();
        assert!((tokens / us * 1e6 / network["tokens_per_s"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    }
    let small = json["gpus"][0]["in_one_launch"].as_array().unwrap();
    // one and eight sequences of each shape
    assert_eq!(small.len(), 2 * 2);
    assert!(
        small
            .iter()
            .all(|s| s["on_grid"]["us"].as_f64().unwrap() > s["on_grid"]["barriers_us"].as_f64().unwrap())
    );
    let text = String::from_utf8(place.run("bench costs --gpu h200 --shape large").ok().stdout).unwrap();
    assert!(text.starts_with("Predictions, not measurements"), "{text}");
    for part in
        ["BERT-large on H200, predicted", "attention_wgmma_d64", "batch-invariant", "in one launch", "512"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    // the shape of a model; the toy's heads have a size that there is no kernel for
    place.run("bench costs --model model").fails("head sizes are 32, 64 and 128");
    place.run("bench costs --gpu abacus").fails("abacus");
}

#[test]
fn bench_measures_and_compares() {
    let place = Place::new();
    let json = |args: &str| -> Value { serde_json::from_slice(&place.run(args).ok().stdout).unwrap() };
    let samples = |series: &Value| series["samples"].as_array().unwrap().len();
    let names = |json: &Value| -> Vec<String> {
        json["series"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap().to_owned()).collect()
    };

    let latency = "bench latency --model model --lengths 4 --batch-sizes 1,2 --samples 20 --warmup 1";
    let closed = json(&format!("{latency} --plot closed.svg --json"));
    assert_eq!(
        names(&closed),
        ["text 4x1", "ids 4x1", "text 4x2", "ids 4x2"].map(|n| format!("latency {n}"))
    );
    assert!(closed["series"].as_array().unwrap().iter().all(|s| samples(s) == 20));
    assert!(
        closed["points"].as_array().unwrap().iter().all(|p| p.get("gpu_us").is_none()),
        "the CPU is no GPU"
    );
    let point = &closed["points"][0]["latency_us"];
    assert!(point["p50"].as_f64().unwrap() <= point["p90"].as_f64().unwrap() && point["p99"].is_null());
    assert!(fs::read_to_string(place.path("closed.svg")).unwrap().starts_with("<svg"));
    assert_eq!(json(&format!("{latency} --rate 5000 --json"))["conditions"]["rate"], 5000.0);
    place.write("calls.txt", b"a b\na b c d\na\n");
    let file = json("bench latency --model model --texts calls.txt --batch-sizes 1,2 --samples 3 --json");
    assert_eq!((names(&file).len(), file["points"][3]["texts"].clone()), (4, 2.into()));
    assert!(file["points"][0]["cpu_us_a_call"].as_f64().is_some_and(|us| us >= 0.0), "{file}");
    place.run("bench latency --model model --texts calls.txt --lengths 4").fails("cannot be used with");
    place.run("bench latency --model model --texts calls.txt --batch-sizes 4").fails("has 3 lines");

    fs::write(place.path("then.json"), closed.to_string()).unwrap();
    let text = String::from_utf8(place.run(&format!("{latency} --compare then.json")).ok().stdout).unwrap();
    assert!(text.contains("now / then (then.json)") && text.contains("latency ids 4x2"), "{text}");
    let throughput = "bench throughput --model model --lengths 4,8 --limit 3 --repeat 2";
    let made = json(&format!("{throughput} --json"));
    assert_eq!(names(&made), ["throughput text 4 tokens", "throughput text 8 tokens"]);
    assert_eq!((made["points"][1]["tokens"].clone(), samples(&made["series"][0])), (24.into(), 2));
    place.run(&format!("{throughput} --compare then.json")).fails("no series in common");
    place.run(&format!("{throughput} --compare no.json")).fails("no.json: ");

    let start = json("bench cold-start --model model --samples 2 --warmup 0 --json");
    assert_eq!(names(&start)[0], "cold-start first vector");
    let first = |i: usize| start["series"][i]["samples"][0].as_f64().unwrap();
    assert!(first(0) > first(1) && first(1) > 0.0, "a process takes longer than its loading: {start}");
    let kernels = json("bench kernels --model model --rows 1,3 --samples 2 --json");
    // products in narrow numbers, and those with weights from memory, say so behind a comma; what there is of them is the machine's
    let fp32 = names(&kernels).into_iter().filter(|name| !name.contains(','));
    assert_eq!(fp32.count(), 2 * 4 + 4, "{kernels}");
    assert_eq!(kernels["points"].as_array().unwrap().len(), names(&kernels).len());
    place.run("bench kernels --model model --device reference").fails("cpu");
}

#[test]
fn help_says_what_matters() {
    let place = Place::new();
    let text = |args: &str| {
        let ran = place.run(args).ok();
        assert!(ran.stderr.is_empty());
        String::from_utf8(ran.stdout).unwrap()
    };
    assert!(["embed", "info", "bench"].iter().all(|c| text("--help").contains(c)));
    let help = text("embed --help");
    for part in [
        "Input:",
        "Output:",
        "Vectors:",
        "Model and device:",
        "--resume",
        "--on-error",
        "--on-truncate",
        "BERTHIER_MODEL",
        "Exit codes: 0 done",
        "an empty line is an empty text",
        "OUT.partial",
    ] {
        assert!(help.contains(part), "{part} is not in the help");
    }
    assert!(
        text("--version")
            .contains(&format!("berthier {}\ninstruction sets here: ", env!("CARGO_PKG_VERSION")))
    );
}

#[test]
fn info_describes_model_and_machine() {
    let place = Place::new();
    let ran = place.run("info --json").ok();
    let info: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(info["model_dir"], "model");
    for (key, value) in [("layers", 2), ("hidden", DIM), ("heads", 2), ("dim", DIM), ("max_seq_length", 12)] {
        assert_eq!(info[key], value, "{key}");
    }
    assert_eq!(info["pooling"], serde_json::json!(["mean"]));
    assert_eq!((&info["normalize"], &info["threads"]), (&true.into(), &1.into()));
    assert!(info["isa_available"].as_array().unwrap().contains(&info["isa"]));
    let text = String::from_utf8(place.run("info").ok().stdout).unwrap();
    assert!(text.contains("pooling mean") && text.contains("instruction set"), "{text}");
}

#[test]
fn devices_and_precisions_are_as_asked_or_refused() {
    let place = Place::new();
    place.write("in.txt", "the cat\n");
    let info: Value = serde_json::from_slice(&place.run("info --json").ok().stdout).unwrap();
    assert_eq!((&info["precision"], &info["devices"][0]["device"]), (&"fp32".into(), &"cpu".into()));
    assert_eq!(info["devices"].as_array().unwrap().len(), 1);
    assert!(info["gpus"].is_array() || info["gpus"].as_str().is_some_and(|why| !why.is_empty()));
    let text = String::from_utf8(place.run("info").ok().stdout).unwrap();
    assert!(text.contains("\nprecision        fp32\n") && text.contains("\ngpus "), "{text}");

    for (flags, why) in [
        ("--device cuda:99", "error: "),
        ("--device tpu", "one of auto, cpu, reference, cuda"),
        ("--device cuda:0,0", "a GPU is named twice"),
        ("--precision fp8", "one of auto, fp32, fp16, bf16, int8"),
        ("--precision fp16", "on this CPU computes in fp32"),
        (
            "--precision bf16 --device reference",
            "option precision: bf16: the reference backend computes in fp32",
        ),
    ] {
        place.run(&format!("embed in.txt -o out.npy {flags}")).fails(why);
        assert_eq!(place.files(), ["in.txt"], "{flags}");
    }
    // auto says in one line what computes, where it was not told to be quiet
    let ran = place.run("embed in.txt -o a.npy --device auto --isa portable").ok();
    assert!(ran.stderr.contains("computing on cpu portable, 1 thread in fp32\n"), "{}", ran.stderr);
    let ran = place
        .run("embed in.txt -o b.npy --device auto --isa portable -q --batch-invariant --precision fp32")
        .ok();
    assert_eq!(ran.stderr, "");
    assert_eq!(place.read("a.npy"), place.read("b.npy"));
    assert!(!place.run("embed in.txt -o c.npy").ok().stderr.contains("computing on"));
    let mut command = place.command("embed in.txt -o d.npy -q");
    assert!(command.env("BERTHIER_BATCH_INVARIANT", "true").status().unwrap().success());
}

#[test]
fn dry_run_counts_and_writes_nothing() {
    let place = Place::new();
    place.write("in.txt", format!("the cat\n{LONG}\n"));
    let ran = place.run("embed in.txt --dry-run").ok();
    let text = String::from_utf8(ran.stdout).unwrap();
    assert!(text.contains("rows            2\n") && text.contains("tokens          16\n"), "{text}");
    assert!(text.contains("longest text    16 tokens") && text.contains("truncated rows  1"), "{text}");
    assert_eq!(place.files(), ["in.txt"]);
}

#[test]
fn quiet_says_nothing() {
    let place = Place::new();
    place.write("in.txt", LONG);
    assert_eq!(place.run("embed in.txt -o out.npy -q").ok().stderr, "");
}

#[test]
#[cfg(unix)]
fn broken_pipe_ends_quietly() {
    let place = Place::new();
    place.write("in.txt", corpus(20_000));
    let mut child =
        place.command("embed in.txt -o -").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 100]).unwrap();
    drop(stdout);
    let ran = Ran::of(child.wait_with_output().unwrap()).ok();
    assert_eq!(ran.stderr, "");
}

#[test]
#[cfg(target_os = "linux")]
fn full_disk_is_an_error() {
    let place = Place::new();
    place.write("in.txt", corpus(100));
    place.run("embed in.txt --output-format raw -o /dev/full").fails("/dev/full: No space left on device");
    let mut command = place.command("embed in.txt -o -");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    Ran::of(command.stdout(full).output().unwrap()).code(2, "standard output: No space left");
}

/// Runs `args` on an input that never ends, until rows are journalled, and ends it with `signal`.
#[cfg(unix)]
fn interrupt(place: &Place, args: &str, stdin: &[u8], journal: &str, signal: &str) -> Ran {
    let mut child = place
        .command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(stdin).unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    while rows_journalled(&place.path(journal)) == 0 {
        assert!(Instant::now() < patience, "no row was journalled");
        std::thread::sleep(Duration::from_millis(5));
    }
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let ran = Ran::of(child.wait_with_output().unwrap());
    drop(pipe);
    ran
}

#[cfg(unix)]
fn rows_journalled(journal: &Path) -> u64 {
    let read = fs::read(journal).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    read.and_then(|journal| journal["counts"]["rows"].as_u64()).unwrap_or(0)
}

#[test]
#[cfg(unix)]
fn killed_runs_resume_to_the_same_bytes() {
    let place = Place::new();
    let text = corpus(4000);
    let rows: String = text
        .lines()
        .enumerate()
        .map(|(i, line)| match i % 7 {
            3 => "{}\n".into(),
            _ => format!("{{\"id\": {i}, \"text\": \"{line} {LONG}\"}}\n"),
        })
        .collect();
    let flags = "--input-format jsonl --id-field id --on-error skip --on-truncate mark -q";
    let command = |out: &str, more: &str| format!("embed - {flags} -o {out} {more}");
    for (name, signal) in [("a.npy", "-KILL"), ("b.f16", "-KILL"), ("c.jsonl", "-KILL"), ("d.npy", "-TERM")] {
        let whole = format!("whole-{name}");
        place.run_with_stdin(&command(&whole, ""), rows.as_bytes()).code(1, "");
        let journal = format!("{name}.partial.json");
        let head = &rows.as_bytes()[..rows.len() / 3];
        let ran = interrupt(&place, &command(name, ""), head, &journal, signal);
        match signal {
            "-TERM" => {
                ran.code(130, "--resume goes on");
            }
            _ => assert_eq!(ran.code, -1, "killed"),
        }
        let left = place.files();
        assert!(!left.contains(&name.into()), "no file looks complete");
        assert!(left.contains(&format!("{name}.partial")) && left.contains(&journal));

        place.run_with_stdin(&command(name, ""), rows.as_bytes()).fails("--resume goes on with it");
        let other = command(name, "--resume --no-normalize");
        let ran = place.run_with_stdin(&other, rows.as_bytes()).fails("begun with something else");
        assert!(ran.stderr.contains("normalise: was model, is never"), "{}", ran.stderr);
        assert!(rows_journalled(&place.path(&journal)) > 0, "a refused resume harms nothing");

        place.run_with_stdin(&command(name, "--resume"), rows.as_bytes()).code(1, "");
        for side in ["", ".ids.jsonl", ".truncated.jsonl"] {
            let (found, expected) =
                (place.path(&format!("{name}{side}")), place.path(&format!("{whole}{side}")));
            assert_eq!(found.exists(), expected.exists(), "{name}{side}");
            if found.exists() {
                assert!(fs::read(found).unwrap() == fs::read(expected).unwrap(), "{name}{side} differs");
            }
        }
        assert!(!place.files().iter().any(|f| f.contains("partial")), "{:?}", place.files());
    }
}

#[test]
fn changed_inputs_and_models_are_not_resumed() {
    let place = Place::new();
    place.write("in.txt", b"the cat\n\xff\n");
    place.run("embed in.txt -o out.npy").fails("in.txt:2");
    let ran = |ran: Ran, item: &str| {
        let ran = ran.fails("begun with something else (--overwrite starts afresh)");
        assert!(ran.stderr.contains(item), "{}", ran.stderr);
    };
    ran(place.run("embed in.txt -o out.npy --resume --max-seq-length 5"), "max_seq_length: was 12, is 5");
    ran(place.run("embed in.txt -o out.npy --resume --isa portable --device reference"), "device: was");
    let config = place.read("model/modules.json");
    place.write("model/modules.json", [&config[..], b"\n"].concat());
    ran(place.run("embed in.txt -o out.npy --resume"), "model file modules.json: was sha256");
    place.write("model/modules.json", config);
    place.write("in.txt", "the cat\nthe dog\n");
    ran(place.run("embed in.txt -o out.npy --resume"), "input 001: was in.txt");
    place.run("embed in.txt -o out.npy --overwrite").ok();
    assert_eq!(place.npy("out.npy").0, 2);
    place.run("embed in.txt -o new.npy --resume").ok();
    assert_eq!(place.files(), ["in.txt", "new.npy", "out.npy"]);
}

#[test]
fn tokenize_writes_the_ids_that_the_model_gets() {
    let place = Place::new();
    let ran = place.run_with_stdin("tokenize -m model -", b"the cat sat\n\nHELLO zzz\n").ok();
    let text = String::from_utf8(ran.stdout).unwrap();
    let rows: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(rows[0]["ids"], serde_json::json!([2, 10, 11, 13, 3]));
    assert_eq!(rows[1]["ids"], serde_json::json!([2, 3]));
    assert_eq!(rows[2]["ids"], serde_json::json!([2, 16, 1, 3]));
    // cut at 12 tokens, and told how many there were
    let long = place.run_with_stdin("tokenize -m model --prompt hello -", LONG.as_bytes()).ok();
    let row: Value = serde_json::from_slice(&long.stdout).unwrap();
    assert_eq!((row["ids"].as_array().unwrap().len(), &row["ids"][1]), (12, &serde_json::json!(1)));
    assert_eq!(row["total_tokens"], 16);
    place.run_with_stdin("tokenize -m model --prompt-name none -", b"a\n").fails("none");
}
