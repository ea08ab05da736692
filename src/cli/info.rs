//! `berthier info`: the model, the device and the memory that they take.

use super::args::InfoArgs;
use super::machine::memory_bytes;
use super::report::{Failure, Report, grouped, print};
use super::{Outcome, resolve};
use berthier::backend::cpu::Isa;
use berthier::backend::{FoundDevice, cuda_devices};
use berthier::{DeviceInfo, Embedder};
use serde_json::{Value, json};
use std::fmt::Write;

/// Runs the command.
pub(crate) fn run(args: &InfoArgs) -> Result<Outcome, Failure> {
    let report = Report::new(false);
    let dir = resolve(&args.model, &report)?;
    let embedder = Embedder::load(args.model.options(&dir)?)?;
    report.warnings(embedder.warnings());
    let dtypes = berthier::model::open(&dir)?.weights;
    let mut dtypes: Vec<_> = dtypes.tensors().map(|t| format!("{:?}", t.dtype()).to_lowercase()).collect();
    dtypes.sort();
    dtypes.dedup();

    let model = embedder.model();
    let capacity = embedder.capacity();
    let pooling: Vec<_> = model.pooling.iter().map(|p| format!("{p:?}").to_lowercase()).collect();
    let isa = args.model.isa_used(&embedder);
    let available: Vec<_> = Isa::available().iter().map(Isa::to_string).collect();
    let devices: Vec<_> = embedder.devices().iter().map(device).collect();
    let gpus = match cuda_devices() {
        Ok(found) => found.iter().map(gpu).collect(),
        Err(why) => json!(why.to_string()),
    };
    let info = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model_dir": dir.display().to_string(),
        "family": format!("{:?}", model.family).to_lowercase(),
        "parameters": embedder.parameters(),
        "weights_dtype": dtypes,
        "layers": model.num_hidden_layers,
        "hidden": model.hidden_size,
        "heads": model.num_attention_heads,
        "intermediate": model.intermediate_size,
        "vocab": model.vocab_size,
        "dim": embedder.dim(),
        "pooling": pooling,
        "normalize": embedder.normalized(),
        "max_seq_length": embedder.max_seq_length(),
        "max_position_embeddings": model.max_position_embeddings,
        "prompts": model.prompts,
        "default_prompt_name": model.default_prompt_name,
        "device": embedder.device_name(),
        "devices": devices,
        "precision": embedder.devices()[0].precision.to_string(),
        "gpus": gpus,
        "isa": isa.map(|isa| isa.to_string()),
        "isa_available": available,
        "threads": embedder.threads(),
        "batch_tokens": capacity.max_tokens,
        "weight_bytes": capacity.weight_bytes,
        "workspace_bytes": capacity.workspace_bytes,
        "resident_bytes": memory_bytes("VmRSS"),
    });
    let text = if args.json { format!("{info:#}\n") } else { table(&info) };
    print(&text)?;
    Ok(Outcome::Done)
}

/// The rows that people read, from the same values.
fn table(info: &Value) -> String {
    let text = |key: &str| match &info[key] {
        Value::String(s) => s.clone(),
        Value::Number(n) => n.as_u64().map_or_else(|| n.to_string(), grouped),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        Value::Bool(b) => if *b { "yes" } else { "no" }.into(),
        Value::Null | Value::Object(_) => "none".into(),
    };
    let bytes = |key: &str| {
        info[key].as_u64().map_or("unknown".into(), |n| format!("{:.1} MiB", n as f64 / f64::from(1 << 20)))
    };
    let prompts = info["prompts"].as_object().filter(|p| !p.is_empty()).map_or("none".into(), |prompts| {
        prompts.iter().map(|(name, prompt)| format!("{name}={prompt}")).collect::<Vec<_>>().join(" ")
    });
    let gpus = match info["gpus"].as_array() {
        Some(gpus) => gpus.iter().map(gpu_text).collect::<Vec<_>>().join(", "),
        None => format!("none: {}", text("gpus")),
    };
    let rows = [
        ("model", text("model_dir")),
        ("family", text("family")),
        ("parameters", format!("{}, {} in file", text("parameters"), text("weights_dtype"))),
        ("encoder", format!("{} layers, {} wide, {} heads", text("layers"), text("hidden"), text("heads"))),
        ("vector", format!("{} components, pooling {}", text("dim"), text("pooling"))),
        ("normalised", text("normalize")),
        ("max tokens", text("max_seq_length")),
        ("prompts", prompts),
        ("default prompt", text("default_prompt_name")),
        ("device", text("device")),
        ("precision", text("precision")),
        ("gpus", gpus),
        ("instruction set", format!("{} (here: {})", text("isa"), text("isa_available"))),
        ("threads", text("threads")),
        ("batch", format!("{} tokens", text("batch_tokens"))),
        ("weights", bytes("weight_bytes")),
        ("workspace", bytes("workspace_bytes")),
        ("resident", bytes("resident_bytes")),
        ("berthier", text("version")),
    ];
    rows.iter().fold(String::new(), |mut out, (name, value)| {
        let _ = writeln!(out, "{name:16} {value}");
        out
    })
}

/// A device that computes.
fn device(device: &DeviceInfo) -> Value {
    json!({
        "device": device.device.to_string(),
        "name": device.name,
        "kind": device.kind,
        "precision": device.precision.to_string(),
        "batch_tokens": device.capacity.max_tokens,
        "batches_in_flight": device.capacity.in_flight,
        "weight_bytes": device.capacity.weight_bytes,
        "workspace_bytes": device.capacity.workspace_bytes,
    })
}

/// A GPU that is there, whether or not it computes.
fn gpu(found: &FoundDevice) -> Value {
    json!({
        "device": found.device.to_string(),
        "name": found.name,
        "unusable": found.unusable.as_ref().map(ToString::to_string),
    })
}

fn gpu_text(gpu: &Value) -> String {
    let text = |key: &str| gpu[key].as_str().unwrap_or_default();
    let why = if gpu["unusable"].is_null() { String::new() } else { format!(" ({})", text("unusable")) };
    format!("{} {}{why}", text("device"), text("name"))
}
