//! A small web server on loopback that serves a folder and misbehaves where it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::Result;

/// What to do wrong with a path.
#[derive(Clone, Copy)]
pub enum Fault {
    /// Close the connection after this many bytes of the body, once.
    TruncateOnce(usize),
    /// Flip a byte in the middle of the body.
    Damage,
    Status(u16),
}

#[derive(Default)]
pub struct State {
    pub faults: BTreeMap<String, Fault>,
    /// Paths in the order in which they were asked for, with the range.
    pub requests: Vec<(String, Option<String>)>,
    pub connections: usize,
}

pub struct Server {
    pub url: String,
    pub state: Arc<Mutex<State>>,
}

impl Server {
    /// Serves `folder` until the process ends.
    pub fn start(folder: PathBuf) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}", listener.local_addr()?);
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (folder, state) = (folder.clone(), shared.clone());
                state.lock().unwrap().connections += 1;
                std::thread::spawn(move || serve(connection, &folder, &state));
            }
        });
        Ok(Self { url, state })
    }

    pub fn fault(&self, path: &str, fault: Fault) {
        self.state
            .lock()
            .unwrap()
            .faults
            .insert(path.to_owned(), fault);
    }

    pub fn clear(&self) {
        *self.state.lock().unwrap() = State::default();
    }

    pub fn asked(&self) -> BTreeSet<String> {
        self.state
            .lock()
            .unwrap()
            .requests
            .iter()
            .map(|(path, _)| path.clone())
            .collect()
    }
}

fn serve(connection: TcpStream, folder: &std::path::Path, state: &Mutex<State>) -> Option<()> {
    let mut out = connection.try_clone().ok()?;
    let mut input = BufReader::new(connection);
    loop {
        let mut line = String::new();
        if input.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let path = line.split_whitespace().nth(1)?.to_owned();
        let mut range = None;
        loop {
            let mut header = String::new();
            input.read_line(&mut header).ok()?;
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("range: ") {
                range = Some(value.to_owned());
            }
        }
        let fault = {
            let mut state = state.lock().unwrap();
            state.requests.push((path.clone(), range.clone()));
            let fault = state.faults.get(&path).copied();
            if matches!(fault, Some(Fault::TruncateOnce(_))) {
                state.faults.remove(&path);
            }
            fault
        };
        if let Some(Fault::Status(status)) = fault {
            write!(out, "HTTP/1.1 {status} Broken\r\nContent-Length: 0\r\n\r\n").ok()?;
            continue;
        }
        let Ok(mut body) = std::fs::read(folder.join(path.trim_start_matches('/'))) else {
            write!(out, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").ok()?;
            continue;
        };
        if matches!(fault, Some(Fault::Damage)) {
            let middle = body.len() / 2;
            body[middle] ^= 1;
        }
        let start = range
            .and_then(|range| {
                range
                    .strip_prefix("bytes=")?
                    .strip_suffix('-')?
                    .parse()
                    .ok()
            })
            .unwrap_or(0);
        let body = &body[start..];
        let status = if start > 0 {
            "206 Partial Content"
        } else {
            "200 OK"
        };
        write!(
            out,
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .ok()?;
        if let Some(Fault::TruncateOnce(length)) = fault {
            out.write_all(&body[..length]).ok()?;
            return None;
        }
        out.write_all(body).ok()?;
    }
}
