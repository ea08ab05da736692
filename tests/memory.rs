//! What a loaded model takes of the machine's memory, as Linux counts it.
#![cfg(target_os = "linux")]
#![allow(clippy::print_stdout, reason = "tests show what they found")]

mod common;

use berthier::backend::Device;
use berthier::{Embedder, Options};
use common::toy::{HIDDEN, INTERMEDIATE, LAYERS, Toy};
use std::fs;
use std::num::NonZeroUsize;

const WIDTH: usize = 384;
const DEPTH: usize = 8;

/// A toy as wide as all-MiniLM: 57 MB of weights in its layers.
fn wide() -> Toy {
    let mut toy = Toy::new();
    let layer = |name: &str, l: usize| name.strip_prefix(&format!("encoder.layer.{l}.")).map(str::to_owned);
    for l in LAYERS..DEPTH {
        let mut more = toy.tensors.clone();
        more.retain_mut(|t| match layer(&t.name, 0) {
            Some(part) => {
                t.name = format!("encoder.layer.{l}.{part}");
                true
            }
            None => false,
        });
        toy.tensors.extend(more);
    }
    let pooling = toy.files["1_Pooling/config.json"].replace(&format!(":{HIDDEN},"), &format!(":{WIDTH},"));
    toy.file("1_Pooling/config.json", pooling)
        .config("hidden_size", WIDTH)
        .config("intermediate_size", 4 * WIDTH)
        .config("num_attention_heads", 12)
        .config("num_hidden_layers", DEPTH)
        .map_tensors(|t| {
            let widen = |size: usize| match size {
                HIDDEN => WIDTH,
                INTERMEDIATE => 4 * WIDTH,
                other => other,
            };
            let first = if t.name.contains("embeddings.") && t.shape.len() == 2 { 1 } else { 0 };
            t.shape[first..].iter_mut().for_each(|size| *size = widen(*size));
            t.values = vec![0.01; t.shape.iter().product()];
        })
}

/// A figure of `/proc/self/status`, in bytes.
fn status(key: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10
}

// the only test of this file: the memory of another one would be counted too
#[test]
fn a_loaded_model_takes_its_packed_weights_and_little_more() {
    let dir = tempfile::tempdir().unwrap();
    wide().write(dir.path());
    let before = status("VmRSS");
    fs::write("/proc/self/clear_refs", "5").unwrap(); // the peak starts here
    let options = Options::new(dir.path().to_str().unwrap()).device(Device::Cpu);
    let embedder = Embedder::load(options.threads(NonZeroUsize::new(2).unwrap())).unwrap();
    let loaded = status("VmRSS") - before;
    let _ = embedder.embed(&["the cat sat on the mat"; 100]).unwrap();
    let (resident, peak) = (status("VmRSS") - before, status("VmHWM") - before);
    let packed = embedder.capacity().weight_bytes;
    println!("packed {packed}, loaded {loaded}, resident {resident}, peak {peak}");
    assert!(packed > 50 << 20);
    // the workspace is not touched yet
    assert!(loaded <= packed * 11 / 10, "{loaded} bytes for {packed} of weights");
    let workspace = embedder.capacity().workspace_bytes;
    for bytes in [resident, peak] {
        assert!(bytes <= packed * 13 / 10 + workspace, "{bytes} bytes for {packed} and {workspace}");
    }
}
