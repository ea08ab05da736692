//! From a model's name to its directory, without a network: a directory as it is, a snapshot in the Hugging
//! Face cache (rules 59 and 60), or a model that the `berthier` command has fetched.

use super::checkpoint::{WEIGHTS, WEIGHTS_INDEX, is_inside};
use super::config::not_a_directory;
use super::json::exists;
use crate::error::{Error, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The model used where none is named.
pub const DEFAULT_MODEL: &str = "sentence-transformers/all-MiniLM-L6-v2";

/// The organisation of a name without one (rule 60).
const DEFAULT_ORG: &str = "sentence-transformers";

/// Finds the directory of `model`: a path, `org/name`, or a bare `name` of the sentence-transformers.
///
/// A directory of that name is taken first. A name is then looked up in `$SENTENCE_TRANSFORMERS_HOME`, the
/// Hugging Face cache (`$HF_HUB_CACHE`, else `$HF_HOME/hub`, else `$XDG_CACHE_HOME/huggingface/hub`, else
/// `~/.cache/huggingface/hub`) and among the models that the `berthier` command has fetched
/// ([`fetched_dir`]). `revision` is a branch, tag or commit; none means `main`.
///
/// # Errors
/// [`Error::ModelNotFound`] with each place that was looked at; [`Error::Io`] or [`Error::Config`] for a path
/// that is no directory; [`Error::InvalidOption`] for an empty name.
pub fn locate(model: &str, revision: Option<&str>) -> Result<PathBuf> {
    Env(&|key| std::env::var_os(key)).locate(model, revision)
}

/// Where Berthier keeps what it fetches: `$BERTHIER_CACHE`, else `$XDG_CACHE_HOME/berthier`, else
/// `~/.cache/berthier`. None if there is no home directory either.
pub fn cache_dir() -> Option<PathBuf> {
    Env(&|key| std::env::var_os(key)).cache_dir()
}

/// Where a fetched model is kept: `models/{org}/{name}` in [`cache_dir`]. A bare name is one of the
/// sentence-transformers. None if `name` is not a model's name or there is no cache directory.
pub fn fetched_dir(name: &str) -> Option<PathBuf> {
    Env(&|key| std::env::var_os(key)).fetched_dir(name)
}

/// The environment, so that tests can have their own.
struct Env<'a>(&'a dyn Fn(&str) -> Option<OsString>);

impl Env<'_> {
    fn locate(&self, model: &str, revision: Option<&str>) -> Result<PathBuf> {
        if model.is_empty() {
            return Err(Error::InvalidOption {
                name: "model",
                message: "a directory or a name needed".into(),
            });
        }
        let path = self.expand(model);
        if path.is_dir() {
            return Ok(path);
        }
        if path.is_file() {
            return Err(not_a_directory(&path));
        }
        if looks_like_path(model) {
            // whatever the system says about it: absent, or not ours to read
            let e =
                std::fs::metadata(&path).err().unwrap_or_else(|| std::io::ErrorKind::NotADirectory.into());
            return Err(Error::io(path, e));
        }
        let mut tried = vec![format!("{}: no such directory", path.display())];
        let not_found = |tried| Error::ModelNotFound { name: model.into(), tried };
        let Some(names) = hub_names(model) else {
            tried.push("not the name of a model on the hub ('name' or 'org/name')".into());
            return Err(not_found(tried));
        };
        let revision = revision.unwrap_or("main");
        if revision.is_empty() || !is_inside(revision) {
            tried.push(format!("'{revision}' is not a branch, tag or commit"));
            return Err(not_found(tried));
        }
        for cache in self.hub_caches() {
            for name in &names {
                let repo = cache.join(format!("models--{}", name.replace('/', "--")));
                match snapshot(&repo, revision) {
                    Ok(dir) => return Ok(dir),
                    Err(reason) => tried.push(reason),
                }
            }
        }
        match self.fetched_dir(model) {
            Some(dir) if revision != "main" => {
                tried.push(format!("{}: fetched models have no revisions", dir.display()));
            }
            Some(dir) => match complete(&dir) {
                Ok(()) => return Ok(dir),
                Err(reason) => tried.push(reason),
            },
            None => tried.push("no cache directory: neither BERTHIER_CACHE nor HOME is set".into()),
        }
        Err(not_found(tried))
    }

    /// A variable; set to nothing is as good as not set.
    fn var(&self, key: &str) -> Option<OsString> {
        self.0(key).filter(|v| !v.is_empty())
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        let value = self.var(key)?;
        Some(value.to_str().map_or_else(|| PathBuf::from(&value), |text| self.expand(text)))
    }

    fn home(&self) -> Option<PathBuf> {
        self.var("HOME").or_else(|| self.var("USERPROFILE")).map(PathBuf::from)
    }

    /// `~/x` in the home directory: shells leave it alone in quotes and behind `=`.
    fn expand(&self, path: &str) -> PathBuf {
        let rest = if path == "~" { Some("") } else { path.strip_prefix("~/") };
        match (rest, self.home()) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => path.into(),
        }
    }

    fn user_cache(&self) -> Option<PathBuf> {
        self.path("XDG_CACHE_HOME").or_else(|| Some(self.home()?.join(".cache")))
    }

    /// Folders with `models--org--name` in them (rule 59).
    fn hub_caches(&self) -> Vec<PathBuf> {
        let hub = self
            .path("HF_HUB_CACHE")
            .or_else(|| self.path("HUGGINGFACE_HUB_CACHE")) // the name before 2023, still read by the hub's client
            .or_else(|| Some(self.path("HF_HOME")?.join("hub")))
            .or_else(|| Some(self.user_cache()?.join("huggingface").join("hub")));
        let mut caches: Vec<PathBuf> =
            self.path("SENTENCE_TRANSFORMERS_HOME").into_iter().chain(hub).collect();
        caches.dedup();
        caches
    }

    fn cache_dir(&self) -> Option<PathBuf> {
        self.path("BERTHIER_CACHE").or_else(|| Some(self.user_cache()?.join("berthier")))
    }

    fn fetched_dir(&self, name: &str) -> Option<PathBuf> {
        let name = hub_names(name)?.swap_remove(0);
        Some(self.cache_dir()?.join("models").join(name))
    }
}

/// Names that only a path can have: no hub is asked for them.
fn looks_like_path(model: &str) -> bool {
    let first = model.split('/').next().unwrap_or_default();
    Path::new(model).is_absolute()
        || matches!(first, "" | "." | "..")
        || first.starts_with('~')
        || model.ends_with('/')
        || model.contains('\\')
}

/// The repositories that a name may mean, most likely first; none if it cannot be one. A bare name is one of
/// the sentence-transformers, or one of the few old models without an organisation (`bert-base-uncased`).
fn hub_names(model: &str) -> Option<Vec<String>> {
    let valid = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && !part.contains("..")
            && !part.contains("--") // stands for the slash in the cache
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
    };
    let parts: Vec<&str> = model.split('/').collect();
    match parts[..] {
        [name] if valid(name) => Some(vec![format!("{DEFAULT_ORG}/{name}"), name.into()]),
        [org, name] if valid(org) && valid(name) => Some(vec![model.into()]),
        _ => None,
    }
}

/// The snapshot of a revision in a repository's folder of the Hugging Face cache, or why there is none.
fn snapshot(repo: &Path, revision: &str) -> std::result::Result<PathBuf, String> {
    if !repo.is_dir() {
        return Err(format!("{}: no such directory", repo.display()));
    }
    let snapshots = repo.join("snapshots");
    let reference = repo.join("refs").join(revision);
    let commit = match std::fs::read_to_string(&reference) {
        Ok(commit) => commit.trim().to_owned(),
        Err(_) => revision.to_owned(), // a commit names itself
    };
    let dir = snapshots.join(&commit);
    if commit.is_empty() || !is_inside(&commit) || !dir.is_dir() {
        return Err(format!("{}: no revision '{revision}'", repo.display()));
    }
    complete(&dir).map(|()| dir)
}

/// Whether a cached model has weights, in itself or in the folder of its transformer module. A download that
/// was broken off leaves links to files that are not there, or no file.
fn complete(dir: &Path) -> std::result::Result<(), String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Err(format!("{}: no such directory", dir.display()));
    };
    let folders = entries.flatten().map(|e| e.path()).filter(|p| p.is_dir());
    // a model with other weights is whole: loading it says what to do about them
    let weights = [WEIGHTS, WEIGHTS_INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json"];
    let found = std::iter::once(dir.to_path_buf())
        .chain(folders)
        .any(|folder| weights.iter().any(|name| exists(&folder.join(name)).unwrap_or(false)));
    if found {
        Ok(())
    } else {
        Err(format!("{}: no {WEIGHTS} in it (an unfinished download?)", dir.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::fs;

    const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A machine: a temporary home and the variables set on it.
    struct Machine {
        home: tempfile::TempDir,
        vars: BTreeMap<String, OsString>,
    }

    impl Machine {
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            let vars = BTreeMap::from([("HOME".into(), home.path().into())]);
            Self { home, vars }
        }

        fn set(mut self, key: &str, folder: &str) -> Self {
            self.vars.insert(key.into(), self.dir(folder).into());
            self
        }

        fn dir(&self, folder: &str) -> PathBuf {
            self.home.path().join(folder)
        }

        /// Puts a snapshot into a cache folder.
        fn snapshot(&self, cache: &str, repo: &str, reference: Option<&str>, files: &[&str]) -> PathBuf {
            let repo = self.dir(cache).join(repo);
            let dir = repo.join("snapshots").join(SHA);
            fs::create_dir_all(&dir).unwrap();
            if let Some(reference) = reference {
                let path = repo.join("refs").join(reference);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, format!("{SHA}\n")).unwrap();
            }
            for file in files {
                fs::create_dir_all(dir.join(file).parent().unwrap()).unwrap();
                fs::write(dir.join(file), "x").unwrap();
            }
            dir
        }

        fn locate(&self, model: &str, revision: Option<&str>) -> Result<PathBuf> {
            Env(&|key| self.vars.get(key).cloned()).locate(model, revision)
        }

        fn tried(&self, model: &str, revision: Option<&str>) -> Vec<String> {
            match self.locate(model, revision) {
                Err(Error::ModelNotFound { name, tried }) => {
                    assert_eq!(name, model);
                    tried
                }
                other => panic!("{other:?}"),
            }
        }
    }

    const MINILM: &str = "models--sentence-transformers--all-MiniLM-L6-v2";

    #[test]
    fn rule_59_order_of_the_caches() {
        // each setting hides the ones behind it, and the model in the last is found only without the others
        let places = [
            ("HF_HUB_CACHE", "a", "a"),
            ("HF_HOME", "b", "b/hub"),
            ("XDG_CACHE_HOME", "c", "c/huggingface/hub"),
            ("HOME", "", ".cache/huggingface/hub"),
        ];
        for first in 0..places.len() {
            let mut machine = Machine::new();
            for (key, folder, _) in &places[first..] {
                machine = machine.set(key, folder);
            }
            let dirs: Vec<_> = places
                .iter()
                .map(|p| machine.snapshot(p.2, MINILM, Some("main"), &["model.safetensors"]))
                .collect();
            assert_eq!(machine.locate(DEFAULT_MODEL, None).unwrap(), dirs[first], "{}", places[first].0);
        }
    }

    #[test]
    fn rule_59_sentence_transformers_home_comes_first_and_the_hub_cache_behind_it() {
        let machine = Machine::new().set("SENTENCE_TRANSFORMERS_HOME", "st");
        let hub = machine.snapshot(".cache/huggingface/hub", MINILM, Some("main"), &["model.safetensors"]);
        assert_eq!(machine.locate(DEFAULT_MODEL, None).unwrap(), hub);
        let st = machine.snapshot("st", MINILM, Some("main"), &["model.safetensors"]);
        assert_eq!(machine.locate(DEFAULT_MODEL, None).unwrap(), st);
    }

    #[test]
    fn rule_59_an_empty_variable_and_a_tilde() {
        let mut machine = Machine::new();
        machine.vars.insert("HF_HUB_CACHE".into(), "".into());
        machine.vars.insert("HF_HOME".into(), "~/hf".into());
        let dir = machine.snapshot("hf/hub", MINILM, Some("main"), &["model.safetensors"]);
        assert_eq!(machine.locate(DEFAULT_MODEL, None).unwrap(), dir);
        assert_eq!(machine.locate("~/hf", None).unwrap(), machine.dir("hf"));
    }

    #[test]
    fn rule_59_revisions_are_branches_tags_pull_requests_and_commits() {
        let machine = Machine::new().set("HF_HUB_CACHE", "hub");
        let dir = machine.snapshot("hub", MINILM, Some("refs/pr/1"), &["model.safetensors"]);
        assert_eq!(machine.locate(DEFAULT_MODEL, Some("refs/pr/1")).unwrap(), dir);
        assert_eq!(machine.locate(DEFAULT_MODEL, Some(SHA)).unwrap(), dir);
        let tried = machine.tried(DEFAULT_MODEL, None);
        assert!(tried.iter().any(|t| t.contains("no revision 'main'")), "{tried:?}");
        for hostile in ["../../x", "/etc", ""] {
            let tried = machine.tried(DEFAULT_MODEL, Some(hostile));
            assert!(tried.iter().any(|t| t.contains("is not a branch, tag or commit")), "{tried:?}");
        }
    }

    #[test]
    fn rule_60_a_bare_name_is_of_sentence_transformers() {
        let machine = Machine::new().set("HF_HUB_CACHE", "hub");
        let bert = machine.snapshot("hub", "models--bert-base-uncased", Some("main"), &["pytorch_model.bin"]);
        let minilm = machine.snapshot("hub", MINILM, Some("main"), &["model.safetensors"]);
        assert_eq!(machine.locate("all-MiniLM-L6-v2", None).unwrap(), minilm);
        assert_eq!(machine.locate("bert-base-uncased", None).unwrap(), bert);
    }

    #[test]
    fn an_unfinished_download_is_said_so() {
        let machine = Machine::new().set("HF_HUB_CACHE", "hub");
        machine.snapshot("hub", MINILM, Some("main"), &["config.json", "1_Pooling/config.json"]);
        let tried = machine.tried(DEFAULT_MODEL, None);
        assert!(tried.iter().any(|t| t.contains(SHA) && t.contains("unfinished download")), "{tried:?}");
        // weights in the transformer module's folder are weights
        let dir = machine.snapshot("hub", MINILM, Some("main"), &["0_Transformer/model.safetensors"]);
        assert_eq!(machine.locate(DEFAULT_MODEL, None).unwrap(), dir);
    }

    #[cfg(unix)]
    #[test]
    fn rule_61_links_to_blobs_are_followed_and_dangling_ones_are_unfinished() {
        let machine = Machine::new().set("HF_HUB_CACHE", "hub");
        let dir = machine.snapshot("hub", MINILM, Some("main"), &[]);
        std::os::unix::fs::symlink("../../blobs/abc", dir.join("model.safetensors")).unwrap();
        let tried = machine.tried(DEFAULT_MODEL, None);
        assert!(tried.iter().any(|t| t.contains("unfinished download")), "{tried:?}");
        fs::create_dir(machine.dir("hub").join(MINILM).join("blobs")).unwrap();
        fs::write(machine.dir("hub").join(MINILM).join("blobs/abc"), "x").unwrap();
        assert_eq!(machine.locate(DEFAULT_MODEL, None).unwrap(), dir);
    }

    #[test]
    fn fetched_models_are_found_last() {
        let machine = Machine::new().set("BERTHIER_CACHE", "bc").set("HF_HUB_CACHE", "hub");
        let dir = machine.dir("bc/models/sentence-transformers/all-MiniLM-L6-v2");
        let env = |key: &str| machine.vars.get(key).cloned();
        assert_eq!(Env(&env).fetched_dir("all-MiniLM-L6-v2").unwrap(), dir);
        assert_eq!(Env(&env).fetched_dir("../x"), None);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("model.safetensors"), "x").unwrap();
        assert_eq!(machine.locate("all-MiniLM-L6-v2", None).unwrap(), dir);
        let tried = machine.tried(DEFAULT_MODEL, Some("v1"));
        assert!(tried.iter().any(|t| t.contains("no revisions")), "{tried:?}");
        let hub = machine.snapshot("hub", MINILM, Some("main"), &["model.safetensors"]);
        assert_eq!(machine.locate(DEFAULT_MODEL, None).unwrap(), hub);
    }

    #[test]
    fn the_cache_directory_is_berthiers_own_then_the_users() {
        let machine = Machine::new();
        let cache = |m: &Machine| Env(&|key| m.vars.get(key).cloned()).cache_dir();
        assert_eq!(cache(&machine), Some(machine.dir(".cache/berthier")));
        let machine = machine.set("XDG_CACHE_HOME", "x");
        assert_eq!(cache(&machine), Some(machine.dir("x/berthier")));
        let machine = machine.set("BERTHIER_CACHE", "b");
        assert_eq!(cache(&machine), Some(machine.dir("b")));
        assert_eq!(Env(&|_| None).cache_dir(), None);
    }

    #[test]
    fn nothing_found_lists_every_place_in_order() {
        let machine = Machine::new().set("SENTENCE_TRANSFORMERS_HOME", "st");
        let tried = machine.tried("org/name", None);
        let places = ["org/name", "st", ".cache/huggingface/hub", ".cache/berthier/models/org/name"];
        assert_eq!(tried.len(), places.len(), "{tried:?}");
        for (t, place) in tried.iter().zip(places) {
            assert!(t.contains(place), "{t}: {place}");
        }
    }

    #[test]
    fn a_path_is_not_looked_up_in_a_cache() {
        let machine = Machine::new();
        let missing = machine.dir("missing");
        for model in [
            "./no-such-dir",
            "../no-such-dir",
            "~/no-such-dir",
            "no-such-dir/",
            "a\\b",
            missing.to_str().unwrap(),
        ] {
            assert!(matches!(machine.locate(model, None), Err(Error::Io { .. })), "{model}");
        }
        let file = machine.dir("model.safetensors");
        fs::write(&file, "x").unwrap();
        let error = machine.locate(file.to_str().unwrap(), None).unwrap_err();
        assert!(error.to_string().contains("give the folder that holds config.json"), "{error}");
        assert!(matches!(machine.locate("", None), Err(Error::InvalidOption { name: "model", .. })));
    }

    #[test]
    fn what_cannot_be_a_hub_name_is_said_so() {
        let machine = Machine::new();
        for model in ["a/b/c", "a b", "org/..", "-x", "org/na--me", "é"] {
            let tried = machine.tried(model, None);
            assert!(tried[1].contains("not the name of a model on the hub"), "{model}: {tried:?}");
        }
    }
}
