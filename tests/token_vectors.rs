//! Token vectors are those of sentence-transformers' `output_value="token_embeddings"`.

#![allow(clippy::print_stdout, reason = "tests show the difference they found")]

use berthier::backend::Device;
use berthier::backend::cpu::Isa;
use berthier::{Embedder, Options};
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};

/// The largest difference of a component that is allowed, if the reference's own rounding is not about as large.
const TOLERANCE: f32 = 2e-5;

#[derive(Deserialize)]
struct Golden {
    model: String,
    /// None: the model's default prompt.
    prompt: Option<String>,
    dim: usize,
    texts: Vec<String>,
    /// The largest difference of the reference in float32 to itself in float64.
    rounding: f32,
    /// Tokens of each text.
    lengths: Vec<usize>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Every golden with its vectors.
fn goldens() -> Vec<(Golden, Vec<f32>)> {
    let paths = fs::read_dir(fixtures().join("token-vectors")).unwrap().map(|e| e.unwrap().path());
    let mut paths: Vec<PathBuf> = paths.filter(|p| p.extension().is_some_and(|e| e == "json")).collect();
    paths.sort();
    assert!(paths.len() > 3);
    let read = |path: PathBuf| {
        let golden: Golden = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let bytes = fs::read(path.with_extension("f32")).unwrap();
        let floats = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        (golden, floats)
    };
    paths.into_iter().map(read).collect()
}

impl Golden {
    fn options(&self) -> Options {
        let options = Options::new(fixtures().join(&self.model).join("model").to_str().unwrap());
        match &self.prompt {
            None => options,
            Some(prompt) => options.prompt(prompt),
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn token_vectors_match_sentence_transformers() {
    let mut cut = 0;
    for (golden, want) in goldens() {
        let mut all = vec![golden.options().device(Device::Reference)];
        all.extend(Isa::available().into_iter().map(|isa| golden.options().device(Device::Cpu).isa(isa)));
        for options in all {
            let embedder = Embedder::load(options).unwrap_or_else(|e| panic!("{e}"));
            let place = format!("{}: {}", golden.model, embedder.device_name());
            let vectors = embedder.embed_tokens(&golden.texts).unwrap();
            let lengths: Vec<usize> = vectors.tokens().iter().map(|t| t.used).collect();
            assert_eq!(lengths, golden.lengths, "{place}");
            assert_eq!((vectors.dim(), embedder.token_dim()), (golden.dim, golden.dim), "{place}");
            assert_eq!(vectors.as_slice().len(), want.len(), "{place}");
            let worst = vectors.as_slice().iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(vectors.as_slice().iter().all(|v| v.is_finite()), "{place}");
            assert!(
                worst <= TOLERANCE.max(1.5 * golden.rounding),
                "{place}: a component differs by {worst:e}"
            );
            println!("{place}: {} vectors within {worst:.1e}", want.len() / golden.dim);
            for (i, text) in golden.texts.iter().enumerate() {
                let alone = embedder.embed_tokens(&[text]).unwrap();
                assert_eq!(
                    bits(alone.matrix(0)),
                    bits(vectors.matrix(i)),
                    "{place}: {i}: alone and in a batch"
                );
            }
            cut += vectors.tokens().iter().filter(|t| t.truncated()).count();
        }
    }
    assert!(cut > 0, "a text is cut");
}

#[test]
fn token_vectors_are_what_is_pooled() {
    let (golden, _) = goldens().into_iter().find(|(g, _)| g.model == "tiny/current-mean").unwrap();
    let options = || golden.options().device(Device::Cpu);
    let embedder = Embedder::load(options().normalize(berthier::Normalize::Never)).unwrap();
    let (tokens, pooled) =
        (embedder.embed_tokens(&golden.texts).unwrap(), embedder.embed(&golden.texts).unwrap());
    for (i, matrix) in tokens.matrices().enumerate() {
        for (c, pooled) in pooled.row(i).iter().enumerate() {
            let n = tokens.tokens()[i].used;
            let mean = matrix.iter().skip(c).step_by(golden.dim).sum::<f32>() / n as f32;
            assert!((mean - pooled).abs() < 1e-5, "{i} {c}: {mean} {pooled}");
        }
    }
    // what is about sentence vectors changes nothing
    let dim = std::num::NonZeroUsize::new(3).unwrap();
    let other = Embedder::load(options().normalize(berthier::Normalize::Always).truncate_dim(dim)).unwrap();
    assert_eq!(other.embed_tokens(&golden.texts).unwrap(), tokens);
}

#[test]
fn many_texts_go_through_several_windows() {
    let (golden, _) = goldens().into_iter().find(|(g, _)| g.model == "tiny/current-mean").unwrap();
    let small = std::num::NonZeroUsize::new(1).unwrap();
    let embedder = Embedder::load(golden.options().device(Device::Cpu).batch_tokens(small)).unwrap();
    let texts: Vec<&str> = golden.texts.iter().map(String::as_str).cycle().take(120).collect();
    assert!(texts.iter().map(|t| t.len()).sum::<usize>() > 2 * embedder.window_bytes());
    let all = embedder.embed_tokens(&texts).unwrap();
    assert_eq!((all.len(), all.offsets().len()), (120, 121));
    let once = embedder.embed_tokens(&golden.texts).unwrap();
    for (i, matrix) in all.matrices().enumerate() {
        assert_eq!(bits(matrix), bits(once.matrix(i % golden.texts.len())), "{i}");
    }
    assert!(embedder.embed_tokens::<&str>(&[]).unwrap().is_empty());
}

#[cfg(feature = "cli")]
mod command {
    use super::*;
    use serde_json::{Value, json};
    use std::process::{Command, Stdio};
    use tempfile::TempDir;

    const DIM: usize = 32;

    fn model() -> PathBuf {
        fixtures().join("tiny/current-mean/model")
    }

    fn embed(dir: &TempDir, args: &[&str]) -> (i32, String, String) {
        let model = model();
        let output = Command::new(env!("CARGO_BIN_EXE_berthier"))
            .current_dir(dir.path())
            .args(["embed", "--device", "cpu", "--token-embeddings", "-m", model.to_str().unwrap()])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    /// 3000 rows of JSON Lines, of which row 2500 is none; and the vectors of the others.
    fn corpus() -> (TempDir, Vec<Option<Vec<f32>>>) {
        let dir = tempfile::tempdir().unwrap();
        let words = ["the", "cat", "sat", "on", "a", "mat", "hello"];
        let line = |i: usize| (0..i % 6).map(|k| words[(i * 3 + k * k) % 7]).collect::<Vec<_>>().join(" ");
        let rows = (0..3000).map(|i| match i {
            2500 => "{\n".into(),
            _ => json!({"text": line(i)}).to_string() + "\n",
        });
        fs::write(dir.path().join("in.jsonl"), rows.collect::<String>()).unwrap();
        let embedder = Embedder::load(Options::new(model().to_str().unwrap()).device(Device::Cpu)).unwrap();
        let texts: Vec<String> = (0..3000).map(line).collect();
        let vectors = embedder.embed_tokens(&texts).unwrap();
        let rows = vectors.matrices().enumerate().map(|(i, m)| (i != 2500).then(|| m.to_vec()));
        (dir, rows.collect())
    }

    #[test]
    fn npy_has_the_vectors_and_where_they_begin() {
        let (dir, want) = corpus();
        let job = ["in.jsonl", "-o", "a.npy", "--on-error"];
        // stopped by the bad row, and gone on with
        let (code, _, stderr) = embed(&dir, &[&job[..], &["stop"]].concat());
        assert_eq!(code, 2, "{stderr}");
        assert!(dir.path().join("a.npy.partial").exists(), "{stderr}");
        let (code, _, stderr) = embed(&dir, &[&job[..], &["skip", "--resume"]].concat());
        assert_eq!(code, 1, "{stderr}");
        assert!(stderr.contains("resuming behind"), "{stderr}");

        let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
        let header = |bytes: &[u8]| String::from_utf8_lossy(&bytes[10..128]).trim().to_owned();
        let (vectors, offsets) = (read("a.npy"), read("a.npy.offsets.npy"));
        assert_eq!(header(&offsets), "{'descr': '<i8', 'fortran_order': False, 'shape': (3001,), }");
        let offsets: Vec<usize> = offsets[128..]
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize)
            .collect();
        let all = offsets[3000];
        assert_eq!(
            header(&vectors),
            format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({all}, {DIM}), }}")
        );
        let floats: Vec<f32> =
            vectors[128..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!((floats.len(), offsets[0], offsets.len()), (all * DIM, 0, 3001));
        for (i, want) in want.iter().enumerate() {
            let found = &floats[offsets[i] * DIM..offsets[i + 1] * DIM];
            assert_eq!(bits(found), bits(want.as_deref().unwrap_or_default()), "{i}");
        }
        // the same bytes without a stop, and in half precision
        let (code, _, stderr) = embed(&dir, &["in.jsonl", "-o", "b.npy", "--on-error", "skip"]);
        assert_eq!(code, 1, "{stderr}");
        assert!(read("b.npy") == vectors && read("b.npy.offsets.npy") == read("a.npy.offsets.npy"));
        let (code, _, stderr) = embed(&dir, &["in.jsonl", "-o", "c.f16", "--on-error", "skip"]);
        assert_eq!(code, 1, "{stderr}");
        let half: Vec<u8> = floats.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect();
        assert!(read("c.f16") == half);
    }

    #[test]
    fn json_lines_have_a_list_of_vectors() {
        let (dir, want) = corpus();
        let (code, stdout, stderr) = embed(&dir, &["in.jsonl", "-o", "-", "--on-error", "skip"]);
        assert_eq!(code, 1, "{stderr}");
        assert_eq!(stdout.lines().count(), 3000);
        for (i, (line, want)) in stdout.lines().zip(&want).enumerate() {
            let row: Value = serde_json::from_str(line).unwrap();
            assert_eq!(row["index"], json!(i));
            match want {
                None => assert!(row["token_embeddings"].is_null() && row["error"].is_string(), "{line}"),
                Some(want) => {
                    let vectors: Vec<Vec<f32>> =
                        serde_json::from_value(row["token_embeddings"].clone()).unwrap();
                    assert!(vectors.iter().all(|v| v.len() == DIM));
                    assert_eq!(bits(&vectors.concat()), bits(want), "{i}");
                }
            }
        }
    }

    #[test]
    fn what_has_no_place_is_refused() {
        let (dir, _) = corpus();
        for (args, why) in [
            (&["-o", "a.npy", "--dtype", "int8"][..], "no quantised numbers"),
            (&["-o", "a.npy", "--normalize"], "--normalize"),
            (&["-o", "a.npy", "--truncate-dim", "3"], "--truncate-dim"),
            (&["-o", "-", "--output-format", "raw"], "where each text's token vectors begin"),
        ] {
            let (code, _, stderr) = embed(&dir, &[&["in.jsonl"], args].concat());
            assert_eq!(code, 2, "{stderr}");
            assert!(stderr.contains(why), "{stderr}");
        }
        // token vectors and sentence vectors are different jobs
        let job = ["in.jsonl", "-o", "a.npy"];
        assert_eq!(embed(&dir, &job).0, 2);
        let model = model();
        let other = Command::new(env!("CARGO_BIN_EXE_berthier"))
            .current_dir(dir.path())
            .args(["embed", "--device", "cpu", "--resume", "-m", model.to_str().unwrap()])
            .args(job)
            .output()
            .unwrap();
        let stderr = String::from_utf8(other.stderr).unwrap();
        assert!(stderr.contains("vectors: was of tokens, is nothing"), "{stderr}");
    }
}
