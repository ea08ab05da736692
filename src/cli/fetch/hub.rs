//! A model from the Hugging Face hub, into the Hugging Face cache.
//!
//! The cache's own layout (`blobs/`, `snapshots/{commit}/`, `refs/{revision}`) is kept, so that Python
//! programs find the same copy. Every blob is complete and checked before the snapshot is made, and the
//! ref, by which readers find a snapshot, is written last: an interrupted run leaves no broken model.

use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::Agent;
use ureq::config::RedirectAuthHeaders;
use ureq::tls::{RootCerts, TlsConfig};

/// A company network that drops packets must not keep the user waiting for the next place.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Tries for one file; each goes on where the last one broke off.
const ATTEMPTS: usize = 3;

/// Files beside the weights that a model may need, in any of its module folders.
const FILES: &[&str] = &[
    "modules.json",
    "config.json",
    "config_sentence_transformers.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Where the hub is, where its cache is, and who asks.
pub(super) struct Hub {
    endpoint: String,
    /// `None` without a home directory.
    cache: Option<PathBuf>,
    token: Option<String>,
    agent: Agent,
}

/// One file of a repository as the hub's API lists it.
struct Remote {
    path: String,
    /// The blob's name in the cache.
    blob: String,
    size: Option<u64>,
    sha256: Option<String>,
}

/// Why there is no model from the hub.
struct Refusal {
    /// The hub does not know the name, or says so: another name may do.
    absent: bool,
    reason: String,
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self { absent: false, reason }
    }
}

impl From<&str> for Refusal {
    fn from(reason: &str) -> Self {
        reason.to_owned().into()
    }
}

impl Hub {
    /// The environment variables of `huggingface_hub` hold.
    pub(super) fn new(env: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let text = |name: &str| env(name).and_then(|v| v.into_string().ok()).filter(|v| !v.trim().is_empty());
        let home =
            env("HF_HOME").map(PathBuf::from).or_else(|| Some(super::user_cache(env)?.join("huggingface")));
        let cache = env("HF_HUB_CACHE").or_else(|| env("HUGGINGFACE_HUB_CACHE")).map(PathBuf::from);
        let token_file =
            env("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join("token")));
        let token = text("HF_TOKEN")
            .or_else(|| fs::read_to_string(token_file?).ok())
            .map(|token| token.trim().to_owned())
            .filter(|token| !token.is_empty());
        let agent = Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
            .http_status_as_error(false)
            // the token is for the hub, not for the storage that it points to
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(RESPONSE_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .user_agent(concat!("berthier/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Self {
            endpoint: text("HF_ENDPOINT")
                .unwrap_or_else(|| "https://huggingface.co".into())
                .trim_end_matches('/')
                .into(),
            cache: cache.or_else(|| Some(home?.join("hub"))),
            token,
            agent,
        }
    }

    /// Brings the files that a sentence model needs into the cache; the snapshot's directory. The first of
    /// `repos` that the hub has is taken.
    pub(super) fn fetch(
        &self,
        repos: &[String],
        revision: &str,
        notify: &mut dyn FnMut(&str),
    ) -> Result<PathBuf, String> {
        let mut reasons = Vec::new();
        for repo in repos {
            match self.fetch_repo(repo, revision, notify) {
                Ok(dir) => return Ok(dir),
                Err(refusal) => {
                    reasons.push(refusal.reason);
                    if !refusal.absent {
                        break;
                    }
                }
            }
        }
        Err(reasons.join("; "))
    }

    fn fetch_repo(
        &self,
        repo: &str,
        revision: &str,
        notify: &mut dyn FnMut(&str),
    ) -> Result<PathBuf, Refusal> {
        let cache = self.cache.as_deref().ok_or("no home directory to keep it in (set HF_HUB_CACHE)")?;
        if !is_plain(revision) {
            return Err(format!("'{revision}' is not a branch, tag or commit").into());
        }
        let url = format!(
            "{}/api/models/{repo}/revision/{}?blobs=true",
            self.endpoint,
            revision.replace('/', "%2F")
        );
        let body = self
            .get(&url, repo, revision, 0)?
            .into_body()
            .into_with_config()
            .limit(64 << 20)
            .read_to_string()
            .map_err(|e| format!("{url}: {e}"))?;
        let (commit, remotes) = listing(&body).map_err(|e| format!("{url}: {e}"))?;

        let repo_dir = cache.join(format!("models--{}", repo.replace('/', "--")));
        let blobs = repo_dir.join("blobs");
        fs::create_dir_all(&blobs).map_err(|e| format!("{}: {e}", blobs.display()))?;

        // modules.json names the folders; without one the root is all there is
        let mut folders = BTreeSet::from([String::new()]);
        if let Some(modules) = remotes.iter().find(|r| r.path == "modules.json") {
            let blob = self.fetch_blob(repo, &commit, modules, &blobs)?;
            let json = fs::read_to_string(&blob).map_err(|e| format!("{}: {e}", blob.display()))?;
            folders.extend(module_folders(&json).map_err(|e| format!("modules.json: {e}"))?);
        }
        let wanted = wanted(&remotes, &folders);
        if !wanted.iter().any(|r| r.path.ends_with(".safetensors")) {
            return Err(format!(
                "{repo} has no {WEIGHTS} in this revision (convert its weights and use --model DIR)"
            )
            .into());
        }
        let bytes: u64 = wanted.iter().filter_map(|r| r.size).sum();
        notify(&format!("fetching {repo} from {} ({} MB)", self.endpoint, bytes.div_ceil(1_000_000)));
        for remote in &wanted {
            self.fetch_blob(repo, &commit, remote, &blobs)?;
        }

        let snapshot = repo_dir.join("snapshots").join(&commit);
        for remote in &wanted {
            let place = snapshot.join(&remote.path);
            link(&blobs.join(&remote.blob), &remote.blob, &place, remote.path.matches('/').count())
                .map_err(|e| format!("{}: {e}", place.display()))?;
        }
        if revision != commit {
            write_ref(&repo_dir.join("refs"), revision, &commit)
                .map_err(|e| format!("{}: {e}", repo_dir.join("refs").display()))?;
        }
        Ok(snapshot)
    }

    /// One file into `blobs`, unless it is there; its path.
    fn fetch_blob(&self, repo: &str, commit: &str, remote: &Remote, blobs: &Path) -> Result<PathBuf, String> {
        let blob = blobs.join(&remote.blob);
        let there = fs::metadata(&blob).is_ok_and(|m| remote.size.is_none_or(|size| m.len() == size));
        if there {
            return Ok(blob);
        }
        let url = format!("{}/{repo}/resolve/{commit}/{}", self.endpoint, remote.path);
        // of this process alone: two that fetch at once do not write into one file
        let part = blobs.join(format!("{}.{}.incomplete", remote.blob, std::process::id()));
        let done = self.fetch_file(&url, repo, commit, remote, &part).and_then(|()| {
            File::open(&part)
                .and_then(|f| f.sync_all())
                .and_then(|()| fs::rename(&part, &blob))
                .map_err(|e| format!("{}: {e}", blob.display()))
        });
        if done.is_err() {
            let _ = fs::remove_file(&part);
        }
        done.map(|()| blob)
    }

    fn fetch_file(
        &self,
        url: &str,
        repo: &str,
        commit: &str,
        remote: &Remote,
        part: &Path,
    ) -> Result<(), String> {
        let mut file = File::create(part).map_err(|e| format!("{}: {e}", part.display()))?;
        let mut done = 0;
        let mut broken = String::new();
        for _ in 0..ATTEMPTS {
            let response = self.get(url, repo, commit, done).map_err(|refusal| refusal.reason)?;
            if done > 0 && response.status() != 206 {
                // no ranges here: from the beginning
                file = File::create(part).map_err(|e| format!("{}: {e}", part.display()))?;
                done = 0;
            }
            let needed = match response.body().content_length() {
                Some(length) => Some(done + length),
                None => remote.size,
            };
            match copy(&mut response.into_body().into_reader(), &mut file, &mut done) {
                Ok(()) if needed.is_none_or(|needed| needed == done) => return check(remote, done, part),
                Ok(()) => broken = format!("{done} of {} bytes came", needed.unwrap_or(done)),
                Err(Copy::Read(e)) => broken = e.to_string(),
                Err(Copy::Write(e)) => return Err(format!("{}: {e}", part.display())),
            }
        }
        Err(format!("{url}: interrupted {ATTEMPTS} times: {broken} (run it again)"))
    }

    /// A GET whose answer is a success, from byte `from` on if the server can.
    fn get(
        &self,
        url: &str,
        repo: &str,
        revision: &str,
        from: u64,
    ) -> Result<ureq::http::Response<ureq::Body>, Refusal> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        let response = request.call().map_err(|e| format!("{}: {e}", self.endpoint))?;
        let page = format!("{}/{repo}", self.endpoint);
        let status = response.status().as_u16();
        let reason = match (status, &self.token) {
            (200..=299, _) => return Ok(response),
            // the hub says 401 of a name that does not exist, too, to those without a token
            (401, None) => format!("{page}: 401: no such model, or a private or gated one: set HF_TOKEN"),
            (401, Some(_)) => format!("{page}: 401: no such model, or HF_TOKEN is not valid for it"),
            (403, _) => {
                format!("{page}: 403: gated: accept its terms on that page and set HF_TOKEN to your token")
            }
            (404, _) => format!("{page}: 404: no such model, or no revision '{revision}'"),
            (status, _) => format!("{url}: HTTP status {status}"),
        };
        Err(Refusal { absent: matches!(status, 401 | 404), reason })
    }
}

/// The commit and the files of the API's answer.
fn listing(body: &str) -> Result<(String, Vec<Remote>), String> {
    let answer: Value = serde_json::from_str(body).map_err(|e| format!("not the hub's answer: {e}"))?;
    let commit = answer["sha"].as_str().filter(|sha| is_hex(sha)).ok_or("not the hub's answer: no sha")?;
    let siblings = answer["siblings"].as_array().ok_or("not the hub's answer: no siblings")?;
    let remotes = siblings.iter().filter_map(|file| {
        // names become paths and URLs: the odd ones are none that a model needs
        let path = file["rfilename"].as_str().filter(|path| is_plain(path))?;
        let sha256 = file["lfs"]["sha256"].as_str().filter(|s| is_hex(s)).map(str::to_owned);
        let blob_id = file["blobId"].as_str().filter(|s| is_hex(s)).map(str::to_owned);
        Some(Remote {
            path: path.into(),
            // a mirror that leaves ids out still gives a name that is unique
            blob: sha256
                .clone()
                .or(blob_id)
                .unwrap_or_else(|| format!("{commit}-{}", path.replace('/', "-"))),
            size: file["size"].as_u64(),
            sha256,
        })
    });
    Ok((commit.into(), remotes.collect()))
}

fn is_hex(text: &str) -> bool {
    text.len() >= 7 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A relative path of plain names.
fn is_plain(path: &str) -> bool {
    path.split('/').all(|part| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    })
}

fn module_folders(json: &str) -> Result<Vec<String>, String> {
    let modules: Value = serde_json::from_str(json).map_err(|e| e.to_string())?;
    let modules = modules.as_array().ok_or("not a list")?;
    Ok(modules.iter().filter_map(|m| m["path"].as_str()).map(|p| p.trim_matches('/').to_owned()).collect())
}

/// The files that a sentence model needs: configurations, tokenizer and safetensors of each module folder.
fn wanted<'a>(remotes: &'a [Remote], folders: &BTreeSet<String>) -> Vec<&'a Remote> {
    let split = |path: &'a str| path.rsplit_once('/').unwrap_or(("", path));
    let has_whole = |folder: &str| remotes.iter().any(|r| split(&r.path) == (folder, WEIGHTS));
    let is_shard = |name: &str| name.starts_with("model-") && name.ends_with(".safetensors");
    remotes
        .iter()
        .filter(|remote| {
            let (folder, name) = split(&remote.path);
            let sentence_config = name.starts_with("sentence_") && name.ends_with("_config.json");
            let weights = if has_whole(folder) { name == WEIGHTS } else { name == INDEX || is_shard(name) };
            folders.contains(folder) && (FILES.contains(&name) || sentence_config || weights)
        })
        .collect()
}

enum Copy {
    Read(io::Error),
    Write(io::Error),
}

/// `io::copy` that tells which side failed and counts what has arrived.
fn copy(from: &mut impl Read, to: &mut impl Write, done: &mut u64) -> Result<(), Copy> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = from.read(&mut buffer).map_err(Copy::Read)?;
        if n == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..n]).map_err(Copy::Write)?;
        *done += n as u64;
    }
}

/// Whether the file is the one that the API lists.
fn check(remote: &Remote, done: u64, part: &Path) -> Result<(), String> {
    if let Some(size) = remote.size.filter(|&size| size != done) {
        return Err(format!("{}: {done} bytes came, the hub lists {size}", remote.path));
    }
    let Some(expected) = &remote.sha256 else { return Ok(()) };
    let found = super::sha256(part).map_err(|e| format!("{}: {e}", part.display()))?;
    if &found == expected {
        return Ok(());
    }
    Err(format!("{}: SHA-256 {found} came, the hub lists {expected}", remote.path))
}

/// The snapshot's entry for a blob: a relative link, or the file itself where there are no links.
fn link(blob: &Path, name: &str, place: &Path, depth: usize) -> io::Result<()> {
    if place.exists() {
        return Ok(());
    }
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent)?;
    }
    // a link to a blob that is gone
    let _ = fs::remove_file(place);
    #[cfg(unix)]
    {
        let _ = blob;
        let up = "../".repeat(depth + 2);
        match std::os::unix::fs::symlink(format!("{up}blobs/{name}"), place) {
            // another process has just made it
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }
    #[cfg(not(unix))]
    {
        let _ = (name, depth);
        fs::copy(blob, place).map(drop)
    }
}

/// In one step: a reader sees the old commit or the new one.
fn write_ref(refs: &Path, revision: &str, commit: &str) -> io::Result<()> {
    let place = refs.join(revision);
    fs::create_dir_all(place.parent().unwrap_or(refs))?;
    let part = place.with_extension(format!("{}.incomplete", std::process::id()));
    fs::write(&part, commit)?;
    fs::rename(part, place)
}
