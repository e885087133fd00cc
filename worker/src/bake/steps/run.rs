//! `run`: commands inside the image, in a sandbox over the layers below.
//!
//! The script is a file in the sandbox's memory, so nothing of it stays in the layer and commands
//! that read their standard input find it empty. Each try starts from the parent layer.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use oast_artifacts::LogStream;
use oast_daemon::clock::{SharedClock, timeout};
use oast_daemon::telemetry::chain;
use oast_model::pipeline::{Network, Run, SecretDelivery};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::bake::key::State;
use crate::runner::{Attempt, Halt};
use crate::sandbox::proxy::{self, Proxy};
use crate::sandbox::{self, Exit, Launcher, Output, Overlay, Root, Sandbox, SecretFile, Spec};

/// Where the script is inside.
const SCRIPT: &str = "/run/oast-step";
/// Where secrets are inside, one file each.
const SECRETS: &str = "/run";
/// A longer line of output is cut into several.
const LINE_MAX: usize = 16 << 10;
/// Goes to the working folder (made when missing), then becomes the step's shell.
const ENTER: &str = "mkdir -p -- \"$1\" && cd -- \"$1\" && shift && exec \"$@\"";

/// What running steps needs.
#[derive(Clone, Debug)]
pub struct Kitchen {
    /// Starts sandboxes.
    pub launcher: Launcher,
    /// The way out of them.
    pub proxy: Proxy,
    /// For time-outs.
    pub clock: SharedClock,
    /// Lines of output that a failure shows.
    pub failure_lines: usize,
}

/// One step to run.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// Its place, for the log.
    pub step: u16,
    /// What people see.
    pub title: &'a str,
    /// The commands.
    pub run: &'a Run,
    /// What the steps before have set.
    pub state: &'a State,
    /// Folders of the layers below, the top one first.
    pub lowers: &'a [Utf8PathBuf],
    /// Where the upper folder is made; must not exist.
    pub folder: &'a Utf8Path,
}

impl Kitchen {
    /// Runs the step and returns its upper folder.
    pub async fn run(&self, attempt: &Attempt, order: Order<'_>) -> Result<Utf8PathBuf, Halt> {
        let tries = order.run.retries + 1;
        let mut failure = Halt::errored("the step was never tried");
        for number in 1..=tries {
            if number > 1 {
                attempt.log.engine(
                    order.step,
                    format!("try {number} of {tries}, from the layer below"),
                );
            }
            let folder = order.folder.join(number.to_string());
            match self.once(attempt, order, &folder).await {
                Ok(upper) => return Ok(upper),
                Err(halt @ Halt::Failed { .. }) => failure = halt,
                Err(halt) => return Err(halt),
            }
        }
        Err(failure)
    }

    async fn once(
        &self,
        attempt: &Attempt,
        order: Order<'_>,
        folder: &Utf8Path,
    ) -> Result<Utf8PathBuf, Halt> {
        let lowers: Vec<PathBuf> = order
            .lowers
            .iter()
            .map(|lower| lower.as_std_path().to_owned())
            .collect();
        let overlay = Overlay::prepare(folder.as_std_path(), lowers, self.launcher.idmap())
            .map_err(|fault| Halt::errored(format!("prepare the step's folders: {fault}")))?;
        let spec = self.spec(attempt, order, overlay)?;
        let mut sandbox = match self.launcher.spawn(spec, Output::Pipes).await {
            Ok(sandbox) => sandbox,
            Err(err @ sandbox::SandboxError::HostNetwork) => {
                return Err(Halt::failed(chain(&err).to_string()));
            }
            Err(err) => {
                return Err(Halt::errored(format!(
                    "start {}: {}",
                    order.title,
                    chain(&err)
                )));
            }
        };
        let egress = match sandbox.listener.take() {
            Some(listener) => Some(
                self.proxy
                    .serve(listener)
                    .map_err(|err| Halt::errored(format!("serve the step's proxy: {err}")))?,
            ),
            None => None,
        };
        let mut tail = Tail::new(self.failure_lines);
        let limit = order.run.timeout.duration();
        let ended = timeout(
            &*self.clock,
            limit,
            follow(attempt, order.step, &mut sandbox, &mut tail),
        )
        .await;
        let exit = match ended {
            Ok(exit) => Some(exit?),
            Err(_) => {
                sandbox.kill();
                // What it left behind must be gone before the folder is used or removed.
                sandbox.wait().await.map_err(|err| Halt::error(&err))?;
                None
            }
        };
        let mut details = tail.lines;
        for refused in egress.iter().flat_map(proxy::Egress::refusals) {
            let line = format!(
                "the proxy refused {}:{}: {} is {}",
                refused.destination.host, refused.destination.port, refused.address, refused.why
            );
            attempt.log.engine(order.step, &line);
            details.push_back(line);
        }
        drop(egress);
        match exit {
            Some(exit) if exit.success() => Ok(folder.join("upper")),
            exit => Err(Halt::Failed {
                reason: format!("step {} ({}) {}", order.step, order.title, how(exit, limit)),
                details: details.into(),
            }),
        }
    }

    fn spec(&self, attempt: &Attempt, order: Order<'_>, overlay: Overlay) -> Result<Spec, Halt> {
        let mut argv: Vec<String> = Vec::new();
        if order.state.workdir != "/" {
            argv.extend(["/bin/sh", "-c", ENTER, "oast"].map(str::to_owned));
            argv.push(order.state.workdir.clone());
        }
        argv.extend(order.run.shell.split_whitespace().map(str::to_owned));
        argv.push(SCRIPT.to_owned());
        let mut spec = Spec::step(Root::Overlay(overlay), argv);
        spec.network = match order.run.network {
            Network::None => sandbox::Network::None,
            Network::Proxy => sandbox::Network::Proxy,
            Network::Host => sandbox::Network::Host,
        };
        spec.env
            .insert("DEBIAN_FRONTEND".to_owned(), "noninteractive".to_owned());
        if order.run.network == Network::Proxy {
            spec.env.extend(proxy::environment());
        }
        spec.env.extend(
            order
                .state
                .env
                .iter()
                .map(|(name, value)| (name.clone(), value.clone())),
        );
        spec.secrets.push(SecretFile {
            target: SCRIPT.into(),
            mode: 0o500,
            data: order.run.command.clone().into_bytes(),
        });
        for wanted in &order.run.secrets {
            let Some(value) = attempt.secrets.0.get(wanted.name.as_str()) else {
                return Err(Halt::failed(format!(
                    "step {} needs the secret {}, which team {} does not have; set it with `oast secret set`",
                    order.step, wanted.name, attempt.team
                )));
            };
            match &wanted.delivery {
                SecretDelivery::Env(name) => {
                    spec.env.insert(name.clone(), value.clone());
                }
                SecretDelivery::File(name) => spec.secrets.push(SecretFile {
                    target: if name.starts_with('/') {
                        name.into()
                    } else {
                        PathBuf::from(SECRETS).join(name)
                    },
                    mode: 0o400,
                    data: value.clone().into_bytes(),
                }),
            }
        }
        Ok(spec)
    }
}

fn how(exit: Option<Exit>, limit: Duration) -> String {
    match exit {
        None => format!("took longer than {} s and was ended", limit.as_secs()),
        Some(Exit::Code(127)) => "ended with exit code 127: a command was not found".to_owned(),
        Some(exit) => format!("ended with {exit}"),
    }
}

/// The last lines of output, for a failure's details.
struct Tail {
    lines: VecDeque<String>,
    most: usize,
}

impl Tail {
    fn new(most: usize) -> Tail {
        Tail {
            lines: VecDeque::new(),
            most,
        }
    }

    fn push(&mut self, line: &[u8]) {
        if self.lines.len() >= self.most {
            self.lines.pop_front();
        }
        if self.most > 0 {
            self.lines
                .push_back(String::from_utf8_lossy(line).trim_end().to_owned());
        }
    }
}

/// Copies output to the log until the command has ended.
async fn follow(
    attempt: &Attempt,
    step: u16,
    sandbox: &mut Sandbox,
    tail: &mut Tail,
) -> Result<Exit, Halt> {
    let mut stdout = Lines::new(sandbox.stdout.take());
    let mut stderr = Lines::new(sandbox.stderr.take());
    let read = |err: std::io::Error| Halt::errored(format!("read the step's output: {err}"));
    loop {
        let (stream, line) = tokio::select! {
            line = stdout.next(), if !stdout.ended() => (LogStream::Stdout, line),
            line = stderr.next(), if !stderr.ended() => (LogStream::Stderr, line),
            else => break,
        };
        if let Some(line) = line.map_err(read)? {
            attempt.log.line(step, stream, &line);
            tail.push(&line);
        }
    }
    sandbox.wait().await.map_err(|err| Halt::error(&err))
}

/// Lines of a stream of any bytes, each of bounded length. Cancel-safe.
struct Lines<R> {
    stream: Option<R>,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn new(stream: Option<R>) -> Self {
        Lines {
            stream,
            buffer: Vec::new(),
        }
    }

    fn ended(&self) -> bool {
        self.stream.is_none() && self.buffer.is_empty()
    }

    /// The next line without its end; none when there is none left.
    async fn next(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(Some(line));
            }
            let Some(stream) = &mut self.stream else {
                let rest = std::mem::take(&mut self.buffer);
                return Ok((!rest.is_empty()).then_some(rest));
            };
            if self.buffer.len() >= LINE_MAX {
                return Ok(Some(std::mem::take(&mut self.buffer)));
            }
            // `read_buf` loses nothing when it is dropped before it is ready.
            if stream.read_buf(&mut self.buffer).await? == 0 {
                self.stream = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_comes_line_by_line_and_its_rest_at_the_end() {
        let text: &[u8] = b"one\r\ntwo\n\nrest";
        let mut lines = Lines::new(Some(text));
        let mut seen = Vec::new();
        while !lines.ended() {
            seen.extend(lines.next().await.unwrap());
        }
        assert_eq!(seen, [&b"one"[..], b"two", b"", b"rest"]);
    }
}
