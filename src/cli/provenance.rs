//! What a vector depends on besides its text, as items that can be compared and shown.

use super::journal::Fingerprint;
use super::report::Failure;
use berthier::{DeviceInfo, Embedder, Normalize};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Configuration and tokenizer files are hashed; of larger ones size and time are taken.
const MAX_HASHED_BYTES: u64 = 32 << 20;

/// The model's files, the options that change vectors, and this program.
///
/// # Errors
/// A model file that can no longer be read.
pub(crate) fn of(embedder: &Embedder, normalize: Normalize) -> Result<Fingerprint, Failure> {
    let dir = embedder.model_dir();
    let mut items = options(embedder, normalize);
    let mut add = |name: &str, value: String| items.insert(name.into(), value);
    add("model directory", std::path::absolute(dir).unwrap_or_else(|_| dir.into()).display().to_string());
    for file in files(dir).map_err(|e| Failure::io(dir.display(), &e))? {
        let name = file.strip_prefix(dir).unwrap_or(&file).display().to_string();
        let value = stamp(&file).map_err(|e| Failure::io(file.display(), &e))?;
        add(&format!("model file {name}"), value);
    }
    Ok(items)
}

/// As [`of`], but the model by the content of its files alone: wherever it lies, however old.
///
/// # Errors
/// A model file that can no longer be read.
pub(crate) fn by_content(embedder: &Embedder, normalize: Normalize) -> Result<Fingerprint, Failure> {
    let dir = embedder.model_dir();
    let mut hash = Sha256::new();
    for file in files(dir).map_err(|e| Failure::io(dir.display(), &e))? {
        let name = file.strip_prefix(dir).unwrap_or(&file).to_string_lossy().into_owned();
        let content = sha256(&file).map_err(|e| Failure::io(file.display(), &e))?;
        hash.update(format!("{name}\n{content}\n"));
    }
    let mut items = options(embedder, normalize);
    items.insert("model".into(), hex(&hash.finalize()));
    // a developer's next build has the same version and may have other vectors
    let program = std::env::current_exe().and_then(|path| sha256(&path));
    items.insert("program".into(), program.map_err(|e| Failure::io("this program", &e))?);
    Ok(items)
}

/// What a vector depends on besides text and model.
fn options(embedder: &Embedder, normalize: Normalize) -> Fingerprint {
    let mut items = Fingerprint::new();
    let mut add = |name: &str, value: String| items.insert(name.into(), value);
    add("berthier", env!("CARGO_PKG_VERSION").into());
    // neither the number of devices nor that of threads, on which no vector depends
    let each = |what: fn(&DeviceInfo) -> String| {
        let each: BTreeSet<_> = embedder.devices().iter().map(what).collect();
        each.into_iter().collect::<Vec<_>>().join(" and ")
    };
    add("device", each(|d| d.kind.clone()));
    add("precision", each(|d| d.precision.to_string()));
    add("max_seq_length", embedder.max_seq_length().to_string());
    add("components", embedder.dim().to_string());
    add("prompt", embedder.prompt().to_owned());
    add("normalise", format!("{normalize:?}").to_lowercase());
    add("pooling", format!("{:?} of {} layers", embedder.model().pooling, embedder.model().pooled_layers));
    items
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
    Ok(format!("sha256 {}", sha256(file)?))
}

/// SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
