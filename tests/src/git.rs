//! Git as people use it: a working copy, and a remote that is not the farm's.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

/// A working copy in a folder of its own.
#[derive(Debug)]
pub struct Copy {
    folder: TempDir,
}

impl Copy {
    /// An empty repository on branch `main`.
    ///
    /// # Errors
    /// Git is missing.
    pub fn new() -> Result<Copy> {
        let copy = Copy {
            folder: tempfile::Builder::new()
                .prefix("oast-test-git-")
                .tempdir()?,
        };
        copy.git(&["init", "--quiet", "--initial-branch=main"])?;
        Ok(copy)
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes files and commits everything. Returns the commit.
    ///
    /// # Errors
    /// Git refused.
    pub fn commit(&self, message: &str, files: &[(&str, &str)]) -> Result<String> {
        for (path, text) in files {
            let path = self.folder().join(path);
            fs::create_dir_all(path.parent().context("a file is in a folder")?)?;
            fs::write(path, text)?;
        }
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--allow-empty", "--message", message])?;
        Ok(self.git(&["rev-parse", "HEAD"])?.trim().to_owned())
    }

    /// Calls git here; what it says is the error.
    ///
    /// # Errors
    /// It failed.
    pub fn git(&self, words: &[&str]) -> Result<String> {
        let output = git(self.folder(), words).output().context("start git")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("git {}: {}", words.join(" "), said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn git(folder: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("git");
    command
        .args(words)
        .current_dir(folder)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_AUTHOR_NAME", "Ann")
        .env("GIT_AUTHOR_EMAIL", "ann@example.invalid")
        .env("GIT_COMMITTER_NAME", "Ann")
        .env("GIT_COMMITTER_EMAIL", "ann@example.invalid")
        .stdin(Stdio::null());
    command
}

/// Somebody else's Git server on loopback: git's own `http-backend` behind a few lines of HTTP.
/// It can be told to keep clients waiting, which holds a fetch, and so a lease, for as long as a
/// test likes.
#[derive(Debug)]
pub struct Remote {
    folder: TempDir,
    address: String,
    held: Arc<AtomicBool>,
}

impl Remote {
    /// Serves one bare repository, `web.git`.
    ///
    /// # Errors
    /// Git is missing, or no port is to be had.
    pub fn start() -> Result<Remote> {
        let folder = tempfile::Builder::new()
            .prefix("oast-test-remote-")
            .tempdir()?;
        let bare = folder.path().join("web.git");
        let made = git(
            folder.path(),
            &["init", "--quiet", "--bare", "--initial-branch=main"],
        )
        .arg(&bare)
        .status()?;
        ensure!(made.success(), "git init --bare failed");
        // A fetch asks for one commit by its id.
        for key in ["uploadpack.allowAnySHA1InWant", "http.receivepack"] {
            ensure!(git(&bare, &["config", key, "true"]).status()?.success());
        }
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let held = Arc::new(AtomicBool::new(false));
        let (root, hold) = (folder.path().to_owned(), Arc::clone(&held));
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (root, hold) = (root.clone(), Arc::clone(&hold));
                std::thread::spawn(move || answer(&root, &hold, stream));
            }
        });
        Ok(Remote {
            folder,
            address,
            held,
        })
    }

    /// What to push to and to watch.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/web.git", self.address)
    }

    /// The bare repository.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("web.git")
    }

    /// Keeps fetches waiting from now on, or no longer.
    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::SeqCst);
    }
}

/// Errors end the connection, which is what the client sees of them.
fn answer(root: &Path, hold: &AtomicBool, mut stream: TcpStream) -> Option<()> {
    let mut bytes = Vec::new();
    let mut piece = [0_u8; 8192];
    let end = loop {
        let read = stream.read(&mut piece).ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&piece[..read]);
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut body = bytes.split_off(end + 4);
    let header = |name: &str| {
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    };
    let length: usize = header("content-length")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    if header("expect").is_some() {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    while body.len() < length {
        let read = stream.read(&mut piece).ok().filter(|read| *read > 0)?;
        body.extend_from_slice(&piece[..read]);
    }
    let mut words = head.split_whitespace();
    let (method, target) = (words.next()?, words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    // Listing branches is a request of the same kind; only fetching asks for objects.
    let fetches = path.ends_with("upload-pack") && body.windows(5).any(|five| five == b"want ");
    while fetches && hold.load(Ordering::SeqCst) {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let mut backend = git(root, &["http-backend"])
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", header("content-type").unwrap_or_default())
        .env("CONTENT_LENGTH", body.len().to_string())
        .env(
            "HTTP_CONTENT_ENCODING",
            header("content-encoding").unwrap_or_default(),
        )
        .env("GIT_PROTOCOL", header("git-protocol").unwrap_or_default())
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    backend.stdin.take()?.write_all(&body).ok()?;
    let output = backend.wait_with_output().ok()?.stdout;
    let split = output.windows(4).position(|four| four == b"\r\n\r\n")?;
    let cgi = String::from_utf8_lossy(&output[..split]).into_owned();
    let status = cgi
        .lines()
        .find_map(|line| line.strip_prefix("Status: "))
        .unwrap_or("200 OK");
    let kept: Vec<&str> = cgi
        .lines()
        .filter(|line| !line.starts_with("Status: "))
        .collect();
    let answer = &output[split + 4..];
    let head = format!(
        "HTTP/1.1 {status}\r\n{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        kept.join("\r\n"),
        answer.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(answer).ok()
}
