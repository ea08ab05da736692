//! candle's BERT as its example uses it, speaking the lines of `worker.py`: `berthier-peer-candle MODEL`.

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use serde_json::{Value, json};
use std::io::{BufRead, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;
use tokenizers::{Tokenizer, TruncationParams};

const BATCH_SIZES: [usize; 5] = [8, 16, 32, 64, 128];
/// The sweep runs on this many of the texts, evenly spread.
const SWEEP_TEXTS: usize = 512;

struct Engine {
    model: BertModel,
    tokenizer: Tokenizer,
}

impl Engine {
    fn load(dir: &Path) -> Result<Self> {
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).context(name.to_owned());
        let config: Config = serde_json::from_str(&read("config.json")?)?;
        let limits: Value = serde_json::from_str(&read("sentence_bert_config.json")?)?;
        let max_length = limits["max_seq_length"].as_u64().context("max_seq_length")? as usize;
        let mut tokenizer = Tokenizer::from_file(dir.join("tokenizer.json")).map_err(anyhow::Error::msg)?;
        let truncation = TruncationParams { max_length, ..Default::default() };
        tokenizer.with_padding(None).with_truncation(Some(truncation)).map_err(anyhow::Error::msg)?;
        let weights = [dir.join("model.safetensors")];
        // SAFETY: nobody changes the file meanwhile
        let vb = unsafe { VarBuilder::from_mmaped_safetensors(&weights, DType::F32, &Device::Cpu)? };
        Ok(Self { model: BertModel::load(vb, &config)?, tokenizer })
    }

    fn ids(&self, texts: &[String]) -> Result<Vec<Vec<u32>>> {
        let encodings = self.tokenizer.encode_batch_fast(texts.to_vec(), true).map_err(anyhow::Error::msg)?;
        Ok(encodings.iter().map(|e| e.get_ids().to_vec()).collect())
    }

    /// Normalised means, `[texts, dim]`: batches of texts sorted by length, padded to the longest.
    fn embed(&self, texts: &[String], batch_size: usize) -> Result<Vec<Vec<f32>>> {
        let ids = self.ids(texts)?;
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(ids[i].len()));
        let mut out = vec![Vec::new(); texts.len()];
        for rows in order.chunks(batch_size) {
            let length = ids[rows[0]].len();
            let (mut padded, mut mask) = (Vec::new(), Vec::new());
            for ids in rows.iter().map(|&i| &ids[i]) {
                padded.extend(ids.iter().copied().chain(std::iter::repeat_n(0, length - ids.len())));
                mask.extend((0..length).map(|t| if t < ids.len() { 1f32 } else { 0. }));
            }
            let shape = (rows.len(), length);
            let padded = Tensor::from_vec(padded, shape, &Device::Cpu)?;
            let mask = Tensor::from_vec(mask, shape, &Device::Cpu)?;
            let hidden = self.model.forward(&padded, &padded.zeros_like()?, Some(&mask))?;
            let mean =
                (hidden.broadcast_mul(&mask.unsqueeze(2)?)?.sum(1)?).broadcast_div(&mask.sum_keepdim(1)?)?;
            let vectors = mean.broadcast_div(&mean.sqr()?.sum_keepdim(1)?.sqrt()?)?.to_vec2::<f32>()?;
            rows.iter().zip(vectors).for_each(|(&i, vector)| out[i] = vector);
        }
        Ok(out)
    }
}

/// Seconds of CPU time so far.
fn cpu_seconds() -> f64 {
    // SAFETY: all zeros is a value of this struct of numbers, which the call then fills
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn peak_resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    Ok(1024 * line.trim().trim_end_matches(" kB").parse::<u64>()?)
}

fn read_texts(path: &Value) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path.as_str().context("a path")?)?;
    Ok(text.strip_suffix('\n').unwrap_or(&text).split('\n').map(str::to_owned).collect())
}

/// A `.npy` file of format 1.0.
fn save(path: &str, vectors: &[Vec<f32>]) -> Result<()> {
    let shape = format!("({}, {})", vectors.len(), vectors[0].len());
    let head = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    let head = format!("{head:<117}\n"); // 10 bytes before it: 128 in all
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((head.len() as u16).to_le_bytes());
    bytes.extend(head.as_bytes());
    vectors.iter().flatten().for_each(|v| bytes.extend(v.to_le_bytes()));
    Ok(std::fs::write(path, bytes)?)
}

fn main() -> ExitCode {
    let Err(error) = run() else { return ExitCode::SUCCESS };
    println!("{}", json!({"failed": format!("{error:#}")}));
    ExitCode::FAILURE
}

fn run() -> Result<()> {
    let dir = std::env::args().nth(1).context("the model's directory")?;
    let engine = Engine::load(Path::new(&dir))?;
    let (mut texts, mut batch_size) = (Vec::new(), BATCH_SIZES[0]);
    for line in std::io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line?)?;
        let (cpu, clock) = (cpu_seconds(), Instant::now());
        let answer = match request["do"].as_str() {
            Some("load") => {
                texts = read_texts(&request["texts"])?;
                json!({})
            }
            Some("tune") => {
                let step = (texts.len() / SWEEP_TEXTS).max(1);
                let sample: Vec<String> = texts.iter().step_by(step).take(SWEEP_TEXTS).cloned().collect();
                let mut best = f64::INFINITY;
                for size in BATCH_SIZES {
                    for _ in 0..2 {
                        let clock = Instant::now();
                        engine.embed(&sample, size)?;
                        let seconds = clock.elapsed().as_secs_f64();
                        if seconds < best {
                            (best, batch_size) = (seconds, size);
                        }
                    }
                }
                let tokens: usize = engine.ids(&texts)?.iter().map(Vec::len).sum();
                let setting = format!("f32, batch {batch_size}");
                json!({"version": env!("CARGO_PKG_VERSION"), "setting": setting, "tokens": tokens})
            }
            Some("round") => {
                engine.embed(&texts, batch_size)?;
                json!({"seconds": clock.elapsed().as_secs_f64(), "cpu_seconds": cpu_seconds() - cpu})
            }
            Some("calls") => {
                let texts = read_texts(&request["texts"])?;
                let number = |key: &str| request[key].as_u64().map(|n| n as usize).context(key.to_owned());
                let (batch, samples) = (number("batch")?, number("samples")?);
                let mut us = Vec::with_capacity(samples);
                for call in texts.chunks_exact(batch).cycle().take(samples) {
                    let clock = Instant::now();
                    engine.embed(call, batch)?;
                    us.push(clock.elapsed().as_secs_f64() * 1e6);
                }
                json!({"us": us, "cpu_us_a_call": (cpu_seconds() - cpu) * 1e6 / samples as f64})
            }
            Some("vectors") => {
                save(request["path"].as_str().context("a path")?, &engine.embed(&texts, batch_size)?)?;
                json!({})
            }
            Some("memory") => json!({"peak_resident_bytes": peak_resident_bytes()?}),
            other => anyhow::bail!("unknown request {other:?}"),
        };
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}
