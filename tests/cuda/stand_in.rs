//! Runs a test in a child process whose driver is the stand-in.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Set in the child: the test that it is for.
const CHILD: &str = "BERTHIER_CUDA_TEST";
/// What the child says when it has run: a filter that matches nothing would succeed too.
const RAN: &str = "ran on the stand-in driver";

/// Runs `body` in a process of its own, on the stand-in driver with these switches. `name` is that of the calling test.
pub(crate) fn on_stand_in(name: &str, switches: &[(&str, &str)], body: impl FnOnce()) {
    if env::var(CHILD).is_ok_and(|test| test == name) {
        body();
        println!("{RAN}: {name}");
        return;
    }
    let Some(driver) = driver() else { return };
    run_child(name, switches, Some(driver));
}

/// The same where libcuda cannot be found.
pub(crate) fn without_driver(name: &str, body: impl FnOnce()) {
    if env::var(CHILD).is_ok_and(|test| test == name) {
        body();
        println!("{RAN}: {name}");
        return;
    }
    run_child(name, &[], None);
}

fn run_child(name: &str, switches: &[(&str, &str)], driver: Option<&Path>) {
    let mut command = Command::new("timeout");
    command.arg("3000").arg(env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(CHILD, name);
    for (variable, _) in env::vars().filter(|(variable, _)| variable.starts_with("BERTHIER_EMU_")) {
        command.env_remove(variable);
    }
    command.env_remove("CUDA_VISIBLE_DEVICES");
    if let Some(driver) = driver {
        let path = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let folders = std::iter::once(driver.to_owned()).chain(env::split_paths(&path));
        command.env("LD_LIBRARY_PATH", env::join_paths(folders).unwrap());
    }
    let output = command.envs(switches.iter().copied()).output().unwrap();
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let ran = said.contains(&format!("{RAN}: {name}"));
    assert!(output.status.success() && ran, "{name}: {}\n{said}{complained}", output.status);
    for line in said.lines().filter(|line| line.contains("cosine") || line.starts_with("SKIP")) {
        println!("{line}");
    }
}

/// The folder of the stand-in driver, built if it is not there or of other sources; none without a compiler.
fn driver() -> Option<&'static Path> {
    static DRIVER: OnceLock<Option<PathBuf>> = OnceLock::new();
    DRIVER.get_or_init(build).as_deref()
}

fn build() -> Option<PathBuf> {
    let compiler = env::var("CXX").unwrap_or_else(|_| "g++".into());
    if !Command::new(&compiler).arg("--version").output().is_ok_and(|o| o.status.success()) {
        let required = env::var("BERTHIER_REQUIRE_KERNEL_TESTS").is_ok_and(|v| v == "1");
        assert!(!required, "BERTHIER_REQUIRE_KERNEL_TESTS=1, but there is no C++ compiler ('{compiler}')");
        println!("SKIP: no C++ compiler ('{compiler}'); the CUDA backend is not tested");
        return None;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stand-in-driver");
    let output = Command::new(root.join("tests/emulator/build-driver")).arg(&folder).output().unwrap();
    assert!(output.status.success(), "build-driver: {}", String::from_utf8_lossy(&output.stderr));
    Some(folder)
}
