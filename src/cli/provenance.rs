//! What a vector depends on besides its text, as items that can be compared and shown.

use super::journal::Fingerprint;
use super::report::Failure;
use berthier::backend::cpu::Isa;
use berthier::{Embedder, Normalize};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Configuration and tokenizer files are hashed; of larger ones size and time are taken.
const MAX_HASHED_BYTES: u64 = 32 << 20;

/// The model's files, the options that change vectors, and this program.
///
/// # Errors
/// A model file that can no longer be read.
pub(crate) fn of(
    embedder: &Embedder,
    normalize: Normalize,
    isa: Option<Isa>,
) -> Result<Fingerprint, Failure> {
    let dir = embedder.model_dir();
    let mut items = Fingerprint::new();
    let mut add = |name: &str, value: String| items.insert(name.into(), value);
    add("berthier", env!("CARGO_PKG_VERSION").into());
    add("model directory", std::path::absolute(dir).unwrap_or_else(|_| dir.into()).display().to_string());
    // without the number of threads, on which no vector depends
    add("device", embedder.device_name().split(',').next().unwrap_or_default().to_owned());
    add("instruction set", isa.map_or("none".into(), |isa| isa.to_string()));
    add("max_seq_length", embedder.max_seq_length().to_string());
    add("components", embedder.dim().to_string());
    add("prompt", embedder.prompt().to_owned());
    add("normalise", format!("{normalize:?}").to_lowercase());
    for file in files(dir).map_err(|e| Failure::io(dir.display(), &e))? {
        let name = file.strip_prefix(dir).unwrap_or(&file).display().to_string();
        let value = stamp(&file).map_err(|e| Failure::io(file.display(), &e))?;
        add(&format!("model file {name}"), value);
    }
    Ok(items)
}

/// The files of the directory and of its modules' folders that a model can be made of.
fn files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![(dir.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            // follows links: the hub's cache is made of them
            let Ok(metadata) = std::fs::metadata(&path) else { continue };
            let ending = path.extension().unwrap_or_default();
            if metadata.is_dir() && depth < 1 {
                folders.push((path, depth + 1));
            } else if metadata.is_file()
                && ["json", "txt", "safetensors", "model"].iter().any(|e| ending == *e)
            {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn stamp(file: &Path) -> std::io::Result<String> {
    let metadata = std::fs::metadata(file)?;
    if metadata.len() > MAX_HASHED_BYTES || file.extension().is_some_and(|e| e == "safetensors") {
        let changed = metadata.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        return Ok(format!("{} bytes, mtime {changed:?}", metadata.len()));
    }
    let mut hash = String::from("sha256 ");
    for byte in Sha256::digest(std::fs::read(file)?) {
        let _ = write!(hash, "{byte:02x}");
    }
    Ok(hash)
}
