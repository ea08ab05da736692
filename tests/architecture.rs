//! The rules of ARCHITECTURE.md that a compiler does not hold: who may import whom, and where `unsafe`,
//! intrinsics and serde may stand. They are checked on the text of `src/`, comments and strings left out.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A room (a folder or file right under `src/`) and the rooms that it may name.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("threads", &["error"]),
    ("quantize", &["error"]),
    ("batch", &["error"]),
    ("model", &["error"]),
    ("tokenize", &["error", "model"]),
    ("backend", &["batch", "error", "model", "threads"]),
    ("options", &["backend", "error", "model"]),
    ("engine", &["backend", "batch", "error", "model", "options", "threads", "tokenize"]),
    ("lib", &["backend", "batch", "engine", "error", "model", "options", "quantize", "threads", "tokenize"]),
    // the command is a user of the library like any other: it names `berthier::…` and its own rooms only
    ("cli", &["eval", "search"]),
    // the maths of evaluation and exact search know neither the command nor, but for `Threads`, the library
    ("eval", &[]),
    ("search", &[]),
    ("main", &["cli", "eval", "search"]),
];

/// Devices do not know each other.
const DEVICES: &[&str] = &["cpu", "cuda", "reference"];

/// Where `unsafe` may stand.
const UNSAFE: &[&str] =
    &["backend/cpu/", "backend/cuda/", "model/checkpoint.rs", "threads.rs", "cli/npy.rs", "capi.rs"];

/// Where an instruction set may be named.
const INTRINSICS: &[&str] = &["backend/cpu/x86_64/", "backend/cpu/aarch64/"];

/// Where the CUDA driver may be talked to.
const DRIVER: &[&str] = &["backend/cuda/device/"];

/// Where JSON may be read or written.
const SERDE: &[&str] = &[
    "model/json.rs",
    "model/checkpoint.rs",
    "tokenize/config.rs",
    "tokenize/vocabulary.rs",
    "backend/cuda/image.rs",
    "cli/",
];

struct Source {
    /// Relative to `src/`, with `/`.
    path: String,
    /// Without comments and strings.
    code: String,
}

impl Source {
    fn room(&self) -> &str {
        self.path.split('/').next().unwrap().trim_end_matches(".rs")
    }

    fn is_under(&self, places: &[&str]) -> bool {
        places.iter().any(|p| self.path.starts_with(p))
    }

    /// The identifiers that follow `prefix` (`crate::`), of a list in braces too.
    fn paths_after(&self, prefix: &str) -> BTreeSet<String> {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let mut found = BTreeSet::new();
        for (at, _) in self.code.match_indices(prefix) {
            if self.code[..at].ends_with(|c: char| is_word(c) || c == '$') {
                continue;
            }
            let rest = &self.code[at + prefix.len()..];
            let word = |s: &str| s.trim_start().chars().take_while(|&c| is_word(c)).collect::<String>();
            if let Some(list) = rest.strip_prefix('{') {
                let (mut depth, mut item) = (1, String::new());
                for c in list.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        _ => {}
                    }
                    if depth == 0 || (depth == 1 && c == ',') {
                        found.insert(word(&item));
                        item.clear();
                    } else {
                        item.push(c);
                    }
                    if depth == 0 {
                        break;
                    }
                }
            } else {
                found.insert(word(rest));
            }
        }
        found.remove("");
        found
    }
}

/// The text without comments, strings and character literals.
fn strip(text: &str) -> String {
    let b: Vec<char> = text.chars().collect();
    let (mut out, mut i) = (String::new(), 0);
    while i < b.len() {
        let two = (b[i], b.get(i + 1).copied().unwrap_or(' '));
        if two == ('/', '/') {
            while i < b.len() && b[i] != '\n' {
                i += 1;
            }
        } else if two == ('/', '*') {
            while i < b.len() && (b[i], b.get(i + 1).copied().unwrap_or('/')) != ('*', '/') {
                i += 1;
            }
            i += 2;
        } else if b[i] == 'r' && (two.1 == '"' || two.1 == '#') && !out.ends_with(char::is_alphanumeric) {
            let hashes = b[i + 1..].iter().take_while(|&&c| c == '#').count();
            if b.get(i + 1 + hashes) != Some(&'"') {
                out.push(b[i]);
                i += 1;
                continue;
            }
            i += 2 + hashes;
            while i < b.len()
                && !(b[i] == '"' && b[i + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes)
            {
                i += 1;
            }
            i += 1 + hashes;
        } else if b[i] == '"' {
            i += 1;
            while i < b.len() && b[i] != '"' {
                i += if b[i] == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if b[i] == '\'' && (two.1 == '\\' || b.get(i + 2) == Some(&'\'')) {
            i += 2;
            while i < b.len() && b[i] != '\'' {
                i += 1;
            }
            i += 1;
        } else {
            out.push(b[i]);
            i += 1;
        }
    }
    out
}

fn sources() -> Vec<Source> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    assert!(files.len() > 10, "the sources were not found under {}", root.display());
    files
        .into_iter()
        .map(|file| Source {
            path: file.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/"),
            code: strip(&fs::read_to_string(&file).unwrap()),
        })
        .collect()
}

#[test]
fn rooms_import_only_what_they_may() {
    let rooms: BTreeSet<&str> = MAY_IMPORT.iter().map(|(room, _)| *room).collect();
    let mut wrong = Vec::new();
    for source in sources() {
        let Some((_, may)) = MAY_IMPORT.iter().find(|(room, _)| *room == source.room()) else {
            wrong.push(format!(
                "{}: '{}' is a room that tests/architecture.rs does not know",
                source.path,
                source.room()
            ));
            continue;
        };
        for named in source.paths_after("crate::") {
            if rooms.contains(&named[..]) && named != source.room() && !may.contains(&&named[..]) {
                wrong.push(format!("{}: names crate::{named}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "imports against ARCHITECTURE.md:\n{}", wrong.join("\n"));
}

#[test]
fn rooms_of_numbers_name_only_threads_of_the_library_and_no_files() {
    for source in sources().iter().filter(|s| ["eval", "search"].contains(&s.room())) {
        let named = source.paths_after("berthier::");
        assert!(named.iter().all(|n| n == "Threads"), "{}: names {named:?}", source.path);
        for foreign in ["std::fs", "std::io", "std::path", "serde", "clap"] {
            assert!(!source.code.contains(foreign), "{}: names {foreign}", source.path);
        }
    }
}

#[test]
fn types_reexported_at_the_root_are_imported_from_their_room() {
    // `crate::Embedder` would slip past the table above
    for source in sources().iter().filter(|s| !["lib", "main"].contains(&s.room())) {
        for named in source.paths_after("crate::") {
            assert!(
                named.starts_with(char::is_lowercase) || named == "Result" || named == "Error",
                "{}: crate::{named}: name its room",
                source.path
            );
        }
    }
}

#[test]
fn devices_do_not_know_each_other() {
    for source in sources() {
        let Some(rest) = source.path.strip_prefix("backend/") else { continue };
        let device = rest.split('/').next().unwrap().trim_end_matches(".rs");
        if !DEVICES.contains(&device) || source.path.ends_with("tests.rs") {
            continue; // backend/mod.rs opens them all; tests compare with the reference
        }
        for prefix in ["crate::backend::", "super::super::", "super::"] {
            for named in source.paths_after(prefix) {
                assert!(
                    named == device || !DEVICES.contains(&&named[..]),
                    "{}: names the device {named}",
                    source.path
                );
            }
        }
    }
}

#[test]
fn unsafe_stands_only_where_allowed() {
    for source in sources() {
        let has = source.code.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|w| w == "unsafe");
        assert!(!has || source.is_under(UNSAFE), "{}: unsafe code outside {UNSAFE:?}", source.path);
    }
}

#[test]
fn intrinsics_stand_only_with_their_isa() {
    for source in sources() {
        for needle in
            ["std::arch::x86_64", "core::arch::x86_64", "std::arch::aarch64", "target_feature(enable"]
        {
            assert!(
                !source.code.contains(needle) || source.is_under(INTRINSICS),
                "{}: {needle} outside {INTRINSICS:?}",
                source.path
            );
        }
    }
}

#[test]
fn the_driver_is_called_only_by_its_backend() {
    let callers: Vec<_> = sources().into_iter().filter(|s| s.code.contains("cudarc")).collect();
    assert!(!callers.is_empty(), "cudarc was not found under {DRIVER:?}");
    for source in callers {
        assert!(source.is_under(DRIVER), "{}: cudarc outside {DRIVER:?}", source.path);
    }
}

#[test]
fn serde_stands_only_where_files_are_read() {
    for source in sources() {
        assert!(
            !source.code.contains("serde") || source.is_under(SERDE),
            "{}: serde outside {SERDE:?}",
            source.path
        );
    }
}

#[test]
fn strip_leaves_code_only() {
    let text =
        "let a = \"unsafe\"; // unsafe\nlet b = r#\"un\"safe\"#; let c = '\"'; /* unsafe */ fn d<'a>() {}";
    assert_eq!(strip(text), "let a = ; \nlet b = ; let c = ;  fn d<'a>() {}");
}

#[test]
fn paths_after_reads_lists() {
    let source =
        Source { path: "x.rs".into(), code: "use crate::{a::{b, c}, d}; $crate::e; crate::f::g".into() };
    assert_eq!(source.paths_after("crate::"), ["a", "d", "f"].map(String::from).into());
}
