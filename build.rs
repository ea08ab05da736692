//! Says where the image of the CUDA kernels is: the committed one, or with `NVCC=/path` one that is compiled now.
//!
//! No compiler is looked for. `NVCC` is for those who change a kernel and for other compilers than the pinned one; the
//! flags are `kernels/nvcc.flags` either way, and `tools/build-kernels` is what makes the committed image.

#![allow(clippy::print_stdout, reason = "cargo reads it")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let kernels = root.join("kernels");
    println!("cargo::rerun-if-env-changed=NVCC");
    println!("cargo::rerun-if-changed=build.rs");
    let image = match env::var_os("NVCC").filter(|nvcc| !nvcc.is_empty()) {
        Some(nvcc) => {
            println!("cargo::rerun-if-changed={}", kernels.display());
            let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("berthier.fatbin");
            compile(Path::new(&nvcc), &kernels, &out);
            out
        }
        None => {
            let image = kernels.join("prebuilt/berthier.fatbin");
            println!("cargo::rerun-if-changed={}", image.display());
            image
        }
    };
    println!("cargo::rustc-env=BERTHIER_FATBIN={}", image.display());
}

/// Runs `nvcc` in `kernels`, on the translation unit that includes all others.
fn compile(nvcc: &Path, kernels: &Path, out: &Path) {
    let flags = fs::read_to_string(kernels.join("nvcc.flags"))
        .unwrap_or_else(|e| panic!("{}: {e}", kernels.join("nvcc.flags").display()));
    let flags = flags.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let status = Command::new(nvcc)
        .args(flags)
        .args(["--threads", "0", "-fatbin", "-o"])
        .arg(out)
        .arg("all.cu")
        .current_dir(kernels)
        .status()
        .unwrap_or_else(|e| {
            panic!("NVCC={}: {e} (unset NVCC to use the image that comes along)", nvcc.display())
        });
    assert!(status.success(), "NVCC={}: {status}", nvcc.display());
}
