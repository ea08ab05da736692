//! The CUDA kernels where there is no GPU: builds the C++ tests of `tests/kernels/` with g++ over the emulator of
//! `tests/emulator/` and runs them. Knows nothing of the library.
//!
//! `BERTHIER_KERNEL_CHECKS` selects what runs, in words: `plain` (the default), `asan`, `tsan`, `bugs` (the emulator's own
//! test), `driver` (the stand-in for libcuda), `gpu-check` (`tools/gpu-check` on it). Without a C++ compiler the tests say so and skip, or fail if
//! `BERTHIER_REQUIRE_KERNEL_TESTS=1`.

#![cfg(target_os = "linux")]
#![allow(clippy::print_stdout, reason = "what skips and what ran is what one wants to read")]

use std::cmp::Reverse;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// A test that hangs is stopped after this long; the longest takes a tenth of it.
const TIME_LIMIT: Duration = Duration::from_secs(900);

/// Each check uses every processor, so they take turns.
static TURN: Mutex<()> = Mutex::new(());

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Whether `check` was asked for and can run.
fn selected(check: &str) -> bool {
    let checks = env::var("BERTHIER_KERNEL_CHECKS").unwrap_or_else(|_| "plain".into());
    if !checks.split_whitespace().any(|c| c == check) {
        println!("SKIP: '{check}' is not in BERTHIER_KERNEL_CHECKS ({checks})");
        return false;
    }
    let compiler = env::var("CXX").unwrap_or_else(|_| "g++".into());
    let found = Command::new(&compiler).arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        let required = env::var("BERTHIER_REQUIRE_KERNEL_TESTS").is_ok_and(|v| v == "1");
        assert!(!required, "BERTHIER_REQUIRE_KERNEL_TESTS=1, but there is no C++ compiler ('{compiler}')");
        println!("SKIP: no C++ compiler ('{compiler}'); the kernels are not tested");
    }
    found
}

fn output_folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels").join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// What is compiled once for all checks.
fn objects() -> PathBuf {
    output_folder("objects")
}

/// Where tests/cuda looks for it too.
fn stand_in_driver() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("stand-in-driver")
}

/// The newest change below `folder`.
fn newest(folder: &Path) -> SystemTime {
    let mut latest = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let changed =
            if path.is_dir() { newest(&path) } else { fs::metadata(&path).unwrap().modified().unwrap() };
        latest = latest.max(changed);
    }
    latest
}

/// Runs to the end. The error is what was printed, without the cases that are fine.
fn run(command: &Command, what: &str) -> Result<(), String> {
    let started = Instant::now();
    let mut limited = Command::new("timeout");
    limited.arg(TIME_LIMIT.as_secs().to_string()).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        limited.env(name, value.unwrap_or_default());
    }
    let output = limited.output().map_err(|e| format!("{what}: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let wrong: String =
            text.lines().filter(|l| !l.starts_with("ok ")).map(|l| format!("{l}\n")).collect();
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{what}: {}\n{wrong}{said}", output.status));
    }
    println!("{what}: {} ({:.1} s)", text.lines().last().unwrap_or(""), started.elapsed().as_secs_f64());
    for skipped in text.lines().filter(|l| l.starts_with("SKIP")) {
        println!("  {skipped}");
    }
    Ok(())
}

/// The tests' real weights: what `BERTHIER_TEST_WEIGHTS` says, or the default model where it is already in the cache.
fn weights() -> Option<PathBuf> {
    if let Some(path) = env::var_os("BERTHIER_TEST_WEIGHTS") {
        return Some(path.into());
    }
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))?;
    let model = cache.join("berthier/models/sentence-transformers/all-MiniLM-L6-v2/model.safetensors");
    model.is_file().then_some(model)
}

/// Builds every test but some in `mode` and runs it once for each list of arguments.
fn run_all(mode: &str, but: &[&str], runs: &[&[&str]]) {
    let sources = root().join("tests/kernels");
    let folder = output_folder(mode);
    let changed = [root().join("kernels"), sources.clone(), root().join("tests/emulator")]
        .iter()
        .map(|f| newest(f))
        .max()
        .unwrap();
    let mut programs: Vec<String> = fs::read_dir(&sources)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "cpp"))
        .map(|p| p.file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|p| !but.contains(&p.as_str()))
        .collect();
    assert!(!programs.is_empty(), "no tests in {}", sources.display());
    // the longest first, so that no processor waits for one at the end
    programs.sort_by_key(|p| Reverse(fs::metadata(sources.join(p).with_extension("cpp")).unwrap().len()));
    let build = |program: &str| {
        let binary = folder.join(program);
        if fs::metadata(&binary).and_then(|m| m.modified()).is_ok_and(|built| built > changed) {
            return Ok(());
        }
        let mut command = Command::new(sources.join("build.sh"));
        command.arg(mode).arg(sources.join(program).with_extension("cpp")).arg(&binary);
        run(command.env("OBJECTS", objects()), &format!("{mode} build of {program}"))
    };
    build(programs.last().unwrap()).unwrap_or_else(|e| panic!("{e}")); // alone, so that the emulator is built once
    let jobs: Vec<&str> = programs.iter().map(String::as_str).collect();
    in_parallel(&jobs, |program| build(program));
    let jobs: Vec<(&str, &[&str])> =
        programs.iter().flat_map(|p| runs.iter().map(move |r| (p.as_str(), *r))).collect();
    let weights = weights();
    in_parallel(&jobs, |(program, arguments)| {
        let mut command = Command::new(folder.join(program));
        command.args(*arguments);
        if let Some(weights) = &weights {
            command.env("BERTHIER_TEST_WEIGHTS", weights);
        }
        run(&command, &format!("{mode} {program} {}", arguments.join(" ")))
    });
}

/// Every job, on as many threads as there are processors; one failure does not hide the others.
fn in_parallel<J: Sync>(jobs: &[J], work: impl Fn(&J) -> Result<(), String> + Sync) {
    let next = AtomicUsize::new(0);
    let workers = thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(failure) = work(job) {
                        failures.lock().unwrap().push(failure);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn kernels_match_their_references() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    if selected("plain") {
        run_all("plain", &[], &[&["late"], &["quick", "late", "reverse"]]);
    }
}

#[test]
fn kernels_are_clean_under_address_sanitizer() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    if selected("asan") {
        // not of the whole forward pass, which takes as long to compile as all others: its kernels are theirs
        run_all("asan", &["forward"], &[&["quick", "late"]]);
    }
}

#[test]
fn kernels_are_clean_under_thread_sanitizer() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    if selected("tsan") {
        // one order: what a race is does not hang on which side of it runs first
        run_all("tsan", &[], &[&["quick", "late", "reverse"]]);
    }
}

#[test]
fn planted_bugs_are_found() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    if selected("bugs") {
        let mut command = Command::new(root().join("tests/emulator/bugs/run"));
        command.arg(output_folder("bugs")).env("OBJECTS", objects());
        run(&command, "planted bugs").unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn stand_in_driver_runs_kernels() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    if selected("driver") {
        let mut command = Command::new(root().join("tests/emulator/driver/test"));
        command.arg(stand_in_driver());
        run(&command, "stand-in driver").unwrap_or_else(|e| panic!("{e}"));
    }
}

/// Packed and unpacked, on the stand-in for libcuda: the kernels' tests through the driver API, conformance recorded and
/// compared. And once with a launch that fails, which the exit code and the report have to say.
#[test]
fn gpu_check_runs_on_the_stand_in_driver() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    if !selected("gpu-check") {
        return;
    }
    let folder = output_folder("gpu-check");
    let (driver, archive) = (stand_in_driver(), folder.join("pack.tar"));
    let must = |command: &Command, what: &str| run(command, what).unwrap_or_else(|e| panic!("{e}"));
    must(Command::new(root().join("tests/emulator/build-driver")).arg(&driver), "stand-in driver, build");
    let mut pack = Command::new(root().join("tools/gpu-check/gpu-check"));
    pack.arg("--pack").arg(&archive).args(["--without", "model,texts,berthier"]);
    must(pack.env("OBJECTS", objects()), "gpu-check, pack");
    must(Command::new("tar").arg("xf").arg(&archive).arg("-C").arg(&folder), "gpu-check, unpack");

    let check = |out: &Path| {
        let mut command = Command::new(folder.join("gpu-check/gpu-check"));
        command.arg("--out").arg(out).arg("--driver").arg(&driver).args(["--quick", "--seconds", "300"]);
        command
    };
    let report = |out: &Path| fs::read_to_string(out.join("report.md")).unwrap();
    let good = folder.join("good");
    must(check(&good).args(["--only", "conformance,kernels,sanitizer"]), "gpu-check");
    let text = report(&good);
    assert!(text.contains("| conformance | ok |") && text.contains("| kernels | ok |"), "{text}");
    assert!(text.contains("40 records compared"), "{text}");

    let bad = folder.join("bad");
    let mut failing = check(&bad);
    failing.args(["--only", "conformance,kernels"]).env("BERTHIER_EMU_FAIL_LAUNCH", "3");
    assert!(run(&failing, "gpu-check, a launch fails").is_err(), "a failed launch was not in the exit code");
    let text = report(&bad);
    assert!(text.contains("| conformance | FAILED |") && text.contains("| kernels | FAILED |"), "{text}");
    assert!(text.contains("CUDA_ERROR_LAUNCH_FAILED"), "{text}");
}
