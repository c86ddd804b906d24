//! The download itself. A model's folder in the cache is there as a whole or not at all: files are gathered in a folder beside it
//! (`*.partial`; a later try keeps the whole files of the same commit) that is renamed when all are there.

use super::{LOCAL_HINT, Progress, cache_dir};
use crate::model::weights::atomic;
use crate::{Error, Result};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Files that a model may have beside its configuration and weights.
const OPTIONAL: [&str; 5] =
    ["generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];
/// The largest file that is read into memory as a whole.
const MAX_SMALL: u64 = 100 << 20;
/// Notes the commit that a partial download is of.
const COMMIT: &str = ".commit";

/// A hub and where its models are kept.
pub(super) struct Hub {
    pub(super) endpoint: String,
    pub(super) token: Option<String>,
    pub(super) cache: PathBuf,
}

/// A response's body, its length where known, and the commit it is of where the server says so.
struct Download {
    body: ureq::Body,
    commit: Option<String>,
}

impl Hub {
    /// By `HF_ENDPOINT`, `HF_TOKEN` and the cache folder.
    pub(super) fn from_env() -> Self {
        let variable = |name| std::env::var(name).ok().map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        Self {
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()).trim_end_matches('/').to_owned(),
            token: variable("HF_TOKEN"),
            cache: cache_dir(),
        }
    }

    /// The folder of a model.
    pub(super) fn fetch(&self, id: &str, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
        let parent = self.cache.join("hub");
        let name = id.replace('/', "--");
        let done = parent.join(&name);
        if done.is_dir() {
            return Ok(done);
        }
        let partial = parent.join(format!("{name}.partial"));
        let result =
            self.gather(id, &partial, progress).and_then(|()| fs::rename(&partial, &done).map_err(|e| Error::io("write", &done, e)));
        match result {
            // Another process may have been faster with the same model.
            Err(_) if done.is_dir() => Ok(done),
            Err(e) => Err(e),
            Ok(()) => Ok(done),
        }
    }

    /// Downloads what is not in `dir` yet.
    fn gather(&self, id: &str, dir: &Path, progress: &mut dyn FnMut(Progress<'_>)) -> Result<()> {
        let mut config = self.get(id, "main", "config.json")?.ok_or_else(|| {
            Error::input(format!("the hub at {} has no such model (or it has no config.json)", self.endpoint)).at(id).hint(LOCAL_HINT)
        })?;
        // One commit for all files, even if the model is changed meanwhile.
        let commit = config.commit.take();
        let revision = commit.clone().unwrap_or_else(|| "main".to_owned());
        if commit.is_none() || fs::read_to_string(dir.join(COMMIT)).ok() != commit {
            if dir.exists() {
                fs::remove_dir_all(dir).map_err(|e| Error::io("remove", dir, e))?;
            }
            fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
            atomic::write_bytes(&dir.join(COMMIT), revision.as_bytes())?;
        }
        self.store(id, "config.json", config, dir, progress)?;
        for file in OPTIONAL {
            self.fetch_file(id, &revision, file, dir, progress)?;
        }
        const INDEX: &str = "model.safetensors.index.json";
        if self.fetch_file(id, &revision, INDEX, dir, progress)? {
            for shard in shards(&dir.join(INDEX))? {
                if !self.fetch_file(id, &revision, &shard, dir, progress)? {
                    return Err(Error::input(format!("the hub has no file {shard}, which the model's index lists")).at(id));
                }
            }
        } else if !self.fetch_file(id, &revision, "model.safetensors", dir, progress)? {
            return Err(Error::input("the model has no safetensors weights on the hub").at(id).hint(LOCAL_HINT));
        }
        Ok(())
    }

    /// Downloads one file unless it is there; false if the hub has none.
    fn fetch_file(&self, id: &str, revision: &str, file: &str, dir: &Path, progress: &mut dyn FnMut(Progress<'_>)) -> Result<bool> {
        if dir.join(file).is_file() {
            return Ok(true);
        }
        match self.get(id, revision, file)? {
            Some(download) => self.store(id, file, download, dir, progress).map(|()| true),
            None => Ok(false),
        }
    }

    /// Writes a body to its file.
    fn store(&self, id: &str, file: &str, download: Download, dir: &Path, progress: &mut dyn FnMut(Progress<'_>)) -> Result<()> {
        let total = download.body.content_length();
        let mut body = download.body.into_with_config().limit(u64::MAX).reader();
        let path = dir.join(file);
        atomic::write_file(&path, |out| {
            let (mut buffer, mut done) = (vec![0; 1 << 17], 0u64);
            loop {
                let n = body.read(&mut buffer).map_err(|e| self.unreachable(id, &format!("{file}, after {done} bytes: {e}")))?;
                if n == 0 {
                    break;
                }
                out.write_all(&buffer[..n]).map_err(|e| Error::io("write", &path, e))?;
                done += n as u64;
                progress(Progress { file, done, total });
            }
            match total {
                Some(total) if total != done => Err(self.unreachable(id, &format!("{file} ended after {done} of {total} bytes"))),
                _ => Ok(()),
            }
        })
    }

    /// Asks for a file; `None` if there is no such file.
    fn get(&self, id: &str, revision: &str, file: &str) -> Result<Option<Download>> {
        let agent = ureq::Agent::new_with_config(
            ureq::Agent::config_builder()
                .timeout_resolve(Some(Duration::from_secs(10)))
                .timeout_connect(Some(Duration::from_secs(10)))
                .timeout_recv_response(Some(Duration::from_secs(30)))
                .timeout_per_read(Some(Duration::from_secs(30)))
                .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
                .http_status_as_error(false)
                .user_agent(concat!("sorft-native/", env!("CARGO_PKG_VERSION")))
                // Lengths are checked against the file's own.
                .accept_encoding("identity")
                .build(),
        );
        let mut request = agent.get(format!("{}/{id}/resolve/{revision}/{file}", self.endpoint));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = request.call().map_err(|e| self.unreachable(id, &e.to_string()))?;
        match response.status().as_u16() {
            200..=299 => {
                let commit = response.headers().get("x-repo-commit").and_then(|v| v.to_str().ok());
                let commit = commit.filter(|c| !c.is_empty() && c.bytes().all(|b| b.is_ascii_hexdigit())).map(str::to_owned);
                Ok(Some(Download { body: response.into_body(), commit }))
            }
            404 => Ok(None),
            code @ (401 | 403) => Err(Error::input(format!("the hub refuses {file} ({code}): no such model, or it is private or gated"))
                .at(id)
                .hint(format!("set HF_TOKEN to a token that may read it; {LOCAL_HINT}"))),
            code => Err(self.unreachable(id, &format!("{file}: status {code}"))),
        }
    }

    fn unreachable(&self, id: &str, why: &str) -> Error {
        Error::input(format!("no such folder here, and the hub at {} cannot give it: {why}", self.endpoint))
            .at(id)
            .hint(format!("check the network (HF_ENDPOINT names another hub), {LOCAL_HINT}"))
    }
}

/// The shards that an index lists, each once.
fn shards(index: &Path) -> Result<Vec<String>> {
    let text = fs::read(index).map_err(|e| Error::io("read", index, e))?;
    let wrong = || Error::input("expected `weight_map`, an object from tensor names to file names").at_file(index);
    if text.len() as u64 > MAX_SMALL {
        return Err(wrong());
    }
    let json: serde_json::Value = serde_json::from_slice(&text).map_err(|_| wrong())?;
    let map = json.get("weight_map").and_then(|m| m.as_object()).ok_or_else(wrong)?;
    let mut files = Vec::new();
    for file in map.values() {
        let file = file.as_str().filter(|f| !f.starts_with('.') && !f.contains(['/', '\\'])).ok_or_else(wrong)?.to_owned();
        if !files.contains(&file) {
            files.push(file);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};

    type Handler = dyn Fn(&str) -> Option<(String, Vec<u8>)> + Send + Sync;

    /// A hub on this machine: `answer` maps a path to extra headers and a body; every request is noted with its authorization.
    fn serve(answer: Arc<Handler>) -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let seen = log.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let Some(Ok(request)) = lines.next() else { continue };
                let path = request.split(' ').nth(1).unwrap().to_owned();
                let mut auth = String::new();
                for line in lines.map_while(|l| l.ok().filter(|l| !l.is_empty())) {
                    if let Some(value) = line.strip_prefix("authorization: ") {
                        auth = format!(" {value}");
                    }
                }
                seen.lock().unwrap().push(format!("{path}{auth}"));
                let (status, headers, body) = match answer(&path) {
                    Some((headers, body)) => ("200 OK", headers, body),
                    None => ("404 Not Found", String::new(), Vec::new()),
                };
                let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            }
        });
        (endpoint, log)
    }

    fn hub(endpoint: String, cache: &Path) -> Hub {
        Hub { endpoint, token: Some("hf_x".into()), cache: cache.to_owned() }
    }

    #[test]
    fn downloads_one_commit_once() {
        let (endpoint, log) = serve(Arc::new(|path| match path {
            "/a/b/resolve/main/config.json" => Some(("x-repo-commit: abc123\r\n".into(), b"{}".to_vec())),
            "/a/b/resolve/abc123/tokenizer.json" => Some((String::new(), b"tok".to_vec())),
            "/a/b/resolve/abc123/model.safetensors" => Some((String::new(), vec![7; 300_000])),
            _ => None,
        }));
        let cache = tempfile::tempdir().unwrap();
        let hub = hub(endpoint, cache.path());
        let mut last = 0;
        let dir = hub
            .fetch("a/b", &mut |p| {
                if p.file == "model.safetensors" {
                    last = p.done
                }
            })
            .unwrap();
        assert_eq!(last, 300_000);
        assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), vec![7; 300_000]);
        assert!(dir.join("config.json").is_file() && dir.join("tokenizer.json").is_file() && !dir.join("chat_template.jinja").exists());
        let requests = log.lock().unwrap().len();
        assert_eq!(hub.fetch("a/b", &mut |_| {}).unwrap(), dir);
        assert_eq!(log.lock().unwrap().len(), requests, "the second time nothing is asked for");
        assert!(log.lock().unwrap().iter().all(|l| l.ends_with(" Bearer hf_x")));
    }

    #[test]
    fn a_failed_download_leaves_no_model_and_keeps_whole_files() {
        let broken = Arc::new(Mutex::new(true));
        let state = broken.clone();
        let (endpoint, log) = serve(Arc::new(move |path| match path {
            "/a/b/resolve/main/config.json" => Some(("x-repo-commit: abc123\r\n".into(), b"{}".to_vec())),
            "/a/b/resolve/abc123/model.safetensors.index.json" => {
                Some((String::new(), br#"{"weight_map": {"x": "s1.safetensors", "y": "s2.safetensors", "z": "s1.safetensors"}}"#.to_vec()))
            }
            "/a/b/resolve/abc123/s1.safetensors" => Some((String::new(), b"one".to_vec())),
            "/a/b/resolve/abc123/s2.safetensors" if !*state.lock().unwrap() => Some((String::new(), b"two".to_vec())),
            _ => None,
        }));
        let cache = tempfile::tempdir().unwrap();
        let hub = hub(endpoint, cache.path());
        let e = hub.fetch("a/b", &mut |_| {}).unwrap_err().to_string();
        assert!(e.contains("a/b: the hub has no file s2.safetensors"), "{e}");
        assert!(!cache.path().join("hub/a--b").exists());
        *broken.lock().unwrap() = false;
        let dir = hub.fetch("a/b", &mut |_| {}).unwrap();
        assert_eq!(fs::read(dir.join("s2.safetensors")).unwrap(), b"two");
        let asked = log.lock().unwrap().iter().filter(|l| l.contains("s1.safetensors")).count();
        assert_eq!(asked, 1, "a whole file of the same commit is not fetched again");
    }

    #[test]
    fn without_a_network_the_error_says_what_to_do() {
        // A port that nobody listens on: bound, then given back.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let cache = tempfile::tempdir().unwrap();
        let e = hub(format!("http://127.0.0.1:{port}"), cache.path()).fetch("a/b", &mut |_| {}).unwrap_err().to_string();
        assert!(e.contains("a/b: no such folder here, and the hub at") && e.contains("give a local model: --model FOLDER"), "{e}");
        let (endpoint, _) = serve(Arc::new(|_| None));
        let e = hub(endpoint, cache.path()).fetch("a/b", &mut |_| {}).unwrap_err().to_string();
        assert!(e.contains("has no such model"), "{e}");
    }
}
