//! Reads what `tools/fixtures.py` wrote.

use serde::Deserialize;
use std::path::{Path, PathBuf};

/// `golden.json`: what the reference gives for some texts.
#[derive(Debug, Deserialize)]
pub(crate) struct Golden {
    pub(crate) max_seq_length: usize,
    pub(crate) rows: Vec<Row>,
    /// Floats of a row of `golden.f32`; absent where there are only ids.
    pub(crate) dim: Option<usize>,
    /// The prompt that is part of each row's ids.
    #[serde(default)]
    pub(crate) prompt: String,
    /// `do_lower_case` of the transformer module.
    #[serde(default)]
    pub(crate) do_lower_case: bool,
    pub(crate) vocab_size: Option<usize>,
    #[serde(skip)]
    dir: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Row {
    #[serde(default)]
    pub(crate) name: String,
    /// Empty in the file where the texts are those of `tiny_texts.json`.
    #[serde(default)]
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    pub(crate) total_tokens: usize,
}

impl Golden {
    /// Reads `golden.json` in a folder of `tests/fixtures`.
    pub(crate) fn read(dir: &Path) -> Self {
        let mut golden: Self = json(&dir.join("golden.json"));
        if golden.rows.iter().all(|r| r.name.is_empty()) {
            let texts: Vec<String> = json(&fixtures().join("tiny_texts.json"));
            assert_eq!(texts.len(), golden.rows.len(), "{}", dir.display());
            for (i, (row, text)) in golden.rows.iter_mut().zip(texts).enumerate() {
                row.name = format!("text {i}");
                row.text = text;
            }
        }
        golden.dir = dir.into();
        golden
    }

    pub(crate) fn texts(&self) -> Vec<&str> {
        self.rows.iter().map(|r| r.text.as_str()).collect()
    }

    /// The reference's vectors, one a row.
    pub(crate) fn vectors(&self) -> Vec<Vec<f32>> {
        let path = self.dir.join("golden.f32");
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let dim = self.dim.expect("vectors have a dim");
        assert_eq!(bytes.len(), self.rows.len() * dim * 4, "{}", path.display());
        let floats: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes"))).collect();
        floats.chunks_exact(dim).map(<[f32]>::to_vec).collect()
    }
}

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The folders in a folder of `tests/fixtures`, by name; at least one.
pub(crate) fn folders(name: &str) -> Vec<PathBuf> {
    let dir = fixtures().join(name);
    let mut folders: Vec<PathBuf> = std::fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    assert!(!folders.is_empty(), "{} is empty", dir.display());
    folders
}

fn json<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
