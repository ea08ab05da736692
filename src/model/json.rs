//! JSON files of a model directory, read value by value: every refusal names the file, the key, the value
//! found and the value needed. Untrusted input.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// No configuration comes near this; it bounds what a hostile directory makes us read.
const MAX_BYTES: u64 = 64 << 20;
/// Sizes above this are nonsense, and their products would overflow.
const MAX_SIZE: u64 = i32::MAX as u64;
/// How much of a wrong value an error shows.
const SHOWN_CHARS: usize = 120;

/// An object of a JSON file, and where it stands in the file.
#[derive(Debug)]
pub(super) struct Object {
    path: PathBuf,
    /// Prefix of the keys in messages: empty, or `modality_config.text.`.
    prefix: String,
    map: Map<String, Value>,
}

impl Object {
    /// Reads a file that holds an object.
    pub(super) fn read(path: &Path) -> Result<Self> {
        Self::new(path, String::new(), read(path)?)
    }

    fn new(path: &Path, prefix: String, value: Value) -> Result<Self> {
        if let Value::Object(map) = value {
            return Ok(Self { path: path.into(), prefix, map });
        }
        let place =
            if prefix.is_empty() { String::new() } else { format!("'{}': ", prefix.trim_end_matches('.')) };
        Err(Error::config(path, format!("{place}{} found, an object needed", show(&value))))
    }

    /// As [`read`](Self::read); an absent file is an empty object.
    pub(super) fn read_or_empty(path: &Path) -> Result<Self> {
        if exists(path)? {
            return Self::read(path);
        }
        Ok(Self::empty(path))
    }

    /// What a file without a key says.
    pub(super) fn empty(path: &Path) -> Self {
        Self { path: path.into(), prefix: String::new(), map: Map::new() }
    }

    /// A file that holds a list of objects.
    pub(super) fn read_list(path: &Path) -> Result<Vec<Self>> {
        let value = read(path)?;
        let Value::Array(list) = value else {
            return Err(Error::config(path, format!("{} found, a list of objects needed", show(&value))));
        };
        list.into_iter().enumerate().map(|(i, value)| Self::new(path, format!("[{i}]."), value)).collect()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The value of a key; an absent key and null are the same.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Refuses null where the reference takes it for a value, and fails.
    pub(super) fn not_null(&self, key: &str, needed: &str) -> Result<()> {
        if self.map.get(key).is_some_and(Value::is_null) {
            let place = format!("'{}{key}'", self.prefix);
            return Err(Error::config(&self.path, format!("{place}: null found, {needed} needed")));
        }
        Ok(())
    }

    /// Whether the value of a key is `{}`.
    pub(super) fn is_empty_object(&self, key: &str) -> bool {
        self.get(key).and_then(Value::as_object).is_some_and(Map::is_empty)
    }

    /// Keys and values in the file's or in alphabetical order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.map.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// A size: a whole number from 1 to 2³¹ − 1.
    pub(super) fn size(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number from 1 to 2147483647", |v| {
            v.as_u64().filter(|n| (1..=MAX_SIZE).contains(n)).map(|n| n as usize)
        })
    }

    /// An id: a whole number from 0 to 2³¹ − 1.
    pub(super) fn index(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a whole number from 0 to 2147483647", |v| {
            v.as_u64().filter(|&n| n <= MAX_SIZE).map(|n| n as u32)
        })
    }

    /// A finite number.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |v| v.as_f64().filter(|n| n.is_finite()))
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(super) fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.typed(key, "a list of strings", |v| v.as_array()?.iter().map(Value::as_str).collect())
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<Self>> {
        self.typed(key, "an object", |v| {
            v.as_object().map(|map| Self {
                path: self.path.clone(),
                prefix: format!("{}{key}.", self.prefix),
                map: map.clone(),
            })
        })
    }

    /// The error of a key whose value cannot be used.
    pub(super) fn wrong(&self, key: &str, needed: &str) -> Error {
        let found = self.get(key).map_or_else(|| "nothing".into(), show);
        Error::config(&self.path, format!("'{}{key}': {found} found, {needed} needed", self.prefix))
    }

    /// The error of a key that asks for what this version does not compute.
    pub(super) fn unsupported(&self, key: &str, needed: &str) -> Error {
        let found = self.get(key).map_or_else(|| "nothing".into(), show);
        Error::unsupported(&self.path, format!("'{}{key}' is {found} ({needed})", self.prefix))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        needed: &str,
        f: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => f(value).map(Some).ok_or_else(|| self.wrong(key, needed)),
        }
    }
}

/// A value as an error shows it: JSON, shortened.
fn show(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Whether a file is there. A link to nothing is an error and not an absent file: what an unfinished download
/// lacks must not pass for what the model does without.
pub(super) fn exists(path: &Path) -> Result<bool> {
    match std::fs::metadata(path) {
        Ok(_) => Ok(true),
        Err(_) if path.symlink_metadata().is_ok_and(|m| m.is_symlink()) => Err(Error::MissingFile {
            path: path.into(),
            what: "a link to a file that is not there (an unfinished download: start it again)".into(),
        }),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(e) => Err(Error::io(path, e)),
    }
}

fn read(path: &Path) -> Result<Value> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !meta.is_file() {
        return Err(Error::config(path, "not a file")); // a pipe would block
    }
    if meta.len() > MAX_BYTES {
        return Err(Error::config(path, format!("{} bytes: too large for a configuration", meta.len())));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    if bytes.starts_with(b"\xEF\xBB\xBF") {
        return Err(Error::config(path, "starts with a byte order mark (save it as UTF-8 without one)"));
    }
    if super::checkpoint::is_git_lfs_pointer(&bytes) {
        return Err(Error::config(path, "a Git LFS pointer, not the file itself (run `git lfs pull`)"));
    }
    serde_json::from_slice(&bytes).map_err(|e| Error::config(path, format!("not valid JSON: {e}")))
}
