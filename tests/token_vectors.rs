//! Token vectors are those of sentence-transformers' `output_value="token_embeddings"`.

#![allow(clippy::print_stdout, reason = "tests show the difference they found")]

use berthier::backend::Device;
use berthier::backend::cpu::Isa;
use berthier::{Embedder, Options};
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};

/// Components of the random models are up to 19.
const TOLERANCE: f32 = 2e-5;

#[derive(Deserialize)]
struct Golden {
    model: String,
    /// None: the model's default prompt.
    prompt: Option<String>,
    dim: usize,
    texts: Vec<String>,
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
            assert!(worst <= TOLERANCE, "{place}: a component differs by {worst:e}");
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
