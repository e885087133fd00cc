//! Commands inside the image, in a sandbox over the layers below: `run`, and what other steps run.
//!
//! The script is a file in the sandbox's memory, so nothing of it stays in the layer and commands
//! that read their standard input find it empty. Each try starts from the parent layer. Secrets
//! are files in memory, too, or variables; what they hold is masked in the log.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use oast_artifacts::LogStream;
use oast_daemon::clock::{SharedClock, timeout};
use oast_daemon::telemetry::chain;
use oast_model::pipeline::{Network, Run, SHELL, SecretDelivery, SecretUse};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::account;
use super::cache::StepCaches;
use crate::bake::key::State;
use crate::bake::layer::UnpackedLayer;
use crate::runner::{Attempt, Halt};
use crate::sandbox::proxy::{self, Proxy};
use crate::sandbox::{
    self, Bind, Exit, Launcher, Output, Overlay, Root, Sandbox, SecretFile, Spec,
};

/// Where the script is inside.
const SCRIPT: &str = "/run/oast-step";
/// Where secrets are inside, one file each; the value of [`SECRETS_VARIABLE`].
const SECRETS: &str = "/run/secrets";
/// Tells a step where its secrets are.
const SECRETS_VARIABLE: &str = "OAST_SECRETS";
/// A longer line of output is cut into several.
const LINE_MAX: usize = 16 << 10;
/// Goes to the working folder (made when missing), then becomes the step's shell.
const ENTER: &str =
    "{ [ -d \"$1\" ] || mkdir -p -- \"$1\"; } && cd -- \"$1\" && shift && exec \"$@\"";

/// What running steps needs.
#[derive(Clone, Debug)]
pub struct Kitchen {
    /// Starts sandboxes.
    pub launcher: Launcher,
    /// The way out of them.
    pub proxy: Proxy,
    /// Folders that steps keep.
    pub caches: Arc<StepCaches>,
    /// For time-outs.
    pub clock: SharedClock,
    /// Lines of output that a failure shows.
    pub failure_lines: usize,
}

/// A step as people know it: `step 3 (site, line 14 of the pipeline file)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its place among the steps; 0 is the base.
    pub number: u16,
    /// What people see.
    pub title: String,
    /// Where it stands, when that is known.
    pub place: Option<String>,
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "step {} ({}", self.number, self.title)?;
        if let Some(place) = &self.place {
            write!(f, ", {place}")?;
        }
        f.write_str(")")
    }
}

/// What a command finds besides the image.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The text of the script in place of the command.
    pub script: Option<Vec<u8>>,
    /// Folders and files of this machine.
    pub binds: Vec<Bind>,
    /// Files in memory.
    pub files: Vec<SecretFile>,
    /// Variables that the pipeline cannot change.
    pub env: Vec<(String, String)>,
}

/// One command to run.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// The step.
    pub label: &'a Label,
    /// The commands.
    pub run: &'a Run,
    /// What the steps before have set.
    pub state: &'a State,
    /// Whose the kept folders are.
    pub owner: &'a str,
    /// The layers below, the base first.
    pub below: &'a [UnpackedLayer],
    /// What it finds besides the image.
    pub found: &'a Found,
    /// Where the upper folder is made; must not exist.
    pub folder: &'a Utf8Path,
}

impl Kitchen {
    /// Runs the step and returns its upper folder.
    pub async fn run(&self, attempt: &Attempt, order: Order<'_>) -> Result<Utf8PathBuf, Halt> {
        let number = order.label.number;
        let kept = self.caches.take(order.owner, &order.run.caches);
        let kept = kept.await.map_err(|err| Halt::error(&err))?;
        let tries = order.run.retries + 1;
        let mut failure = Halt::errored("the step was never tried");
        for nth in 1..=tries {
            if nth > 1 {
                let text = format!("try {nth} of {tries}, from the layer below");
                attempt.log.engine(number, text);
            }
            let folder = order.folder.join(nth.to_string());
            let overlay = self.overlay(order, &folder)?;
            let mut spec = self.spec(attempt, order, overlay)?;
            spec.binds.extend(kept.binds.iter().cloned());
            match self.once(attempt, order, spec).await {
                Ok(()) => return Ok(folder.join("upper")),
                Err(halt @ Halt::Failed { .. }) => failure = halt,
                Err(halt) => return Err(halt),
            }
        }
        Err(failure)
    }

    /// Runs a command whose changes are thrown away, and returns what it printed, at most `keep` bytes.
    pub async fn ask(
        &self,
        attempt: &Attempt,
        order: Order<'_>,
        keep: usize,
    ) -> Result<Vec<u8>, Halt> {
        let overlay = self.overlay(order, order.folder)?;
        let spec = self.spec(attempt, order, overlay)?;
        let limit = order.run.timeout.duration();
        let asked = timeout(&*self.clock, limit, self.launcher.run(spec, keep)).await;
        let Ok(finished) = asked else {
            let why = how(None, limit);
            return Err(Halt::failed(format!("{} {why}", order.label)));
        };
        let finished = finished.map_err(|err| Halt::error(&err))?;
        if finished.exit.success() {
            return Ok(finished.stdout);
        }
        let mut tail = Tail::new(self.failure_lines);
        for line in finished.stderr.split(|byte| *byte == b'\n') {
            if !line.is_empty() {
                tail.push(line);
            }
        }
        Err(Halt::Failed {
            reason: format!("{} {}", order.label, how(Some(finished.exit), limit)),
            details: tail.lines.into(),
        })
    }

    fn overlay(&self, order: Order<'_>, folder: &Utf8Path) -> Result<Overlay, Halt> {
        let lowers = order.below.iter().rev();
        let lowers: Vec<PathBuf> = lowers
            .map(|layer| layer.root.as_std_path().to_owned())
            .collect();
        Overlay::prepare(folder.as_std_path(), lowers, self.launcher.idmap())
            .map_err(|fault| Halt::errored(format!("prepare the step's folders: {fault}")))
    }

    async fn once(&self, attempt: &Attempt, order: Order<'_>, spec: Spec) -> Result<(), Halt> {
        let number = order.label.number;
        let mut sandbox = match self.launcher.spawn(spec, Output::Pipes).await {
            Ok(sandbox) => sandbox,
            Err(err @ sandbox::SandboxError::HostNetwork) => {
                let why = chain(&err);
                return Err(Halt::failed(format!("{}: {why}", order.label)));
            }
            Err(err) => {
                let why = chain(&err);
                return Err(Halt::errored(format!("start {}: {why}", order.label)));
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
            follow(attempt, number, &mut sandbox, &mut tail),
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
            attempt.log.engine(number, &line);
            details.push_back(line);
        }
        drop(egress);
        match exit {
            Some(exit) if exit.success() => Ok(()),
            exit => Err(Halt::Failed {
                reason: format!("{} {}", order.label, how(exit, limit)),
                details: details.into(),
            }),
        }
    }

    fn spec(&self, attempt: &Attempt, order: Order<'_>, overlay: Overlay) -> Result<Spec, Halt> {
        let mut spec = Spec::step(Root::Overlay(overlay), argv(order));
        spec.network = match order.run.network {
            Network::None => sandbox::Network::None,
            Network::Proxy => sandbox::Network::Proxy,
            Network::Host => sandbox::Network::Host,
        };
        spec.env
            .insert("DEBIAN_FRONTEND".to_owned(), "noninteractive".to_owned());
        if let Some(user) = &order.state.user {
            let account = account::find(order.below, user)
                .map_err(|err| Halt::failed(format!("{}: {}", order.label, chain(&err))))?;
            spec.uid = account.uid;
            spec.gid = account.gid;
            spec.env.insert("HOME".to_owned(), account.home);
        }
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
        spec.env.extend(order.found.env.iter().cloned());
        let script = match &order.found.script {
            Some(script) => script.clone(),
            None => order.run.command.clone().into_bytes(),
        };
        spec.secrets.push(SecretFile {
            target: SCRIPT.into(),
            mode: 0o500,
            data: script,
        });
        spec.secrets.extend(order.found.files.iter().cloned());
        spec.binds.extend(order.found.binds.iter().cloned());
        for wanted in &order.run.secrets {
            give(attempt, order.label, wanted, &mut spec)?;
        }
        Ok(spec)
    }
}

/// The step's program with its arguments, in the working folder.
fn argv(order: Order<'_>) -> Vec<String> {
    let mut argv: Vec<String> = Vec::new();
    if order.state.workdir != "/" {
        argv.extend(["/bin/sh", "-c", ENTER, "oast"].map(str::to_owned));
        argv.push(order.state.workdir.clone());
    }
    let script = order.found.script.as_deref();
    let own = script.is_some_and(|script| script.starts_with(b"#!")) && order.run.shell == SHELL;
    if !own {
        argv.extend(order.run.shell.split_whitespace().map(str::to_owned));
    }
    argv.push(SCRIPT.to_owned());
    argv.extend(order.run.args.iter().cloned());
    argv
}

/// Gives the step one of its secrets.
fn give(attempt: &Attempt, label: &Label, wanted: &SecretUse, spec: &mut Spec) -> Result<(), Halt> {
    let Some(value) = attempt.secrets.0.get(wanted.name.as_str()) else {
        return Err(Halt::failed(format!(
            "{label} needs the secret {}, which team {} does not have; set it with `oast secret set`",
            wanted.name, attempt.team
        )));
    };
    match &wanted.delivery {
        SecretDelivery::Env(name) => {
            spec.env.insert(name.clone(), value.clone());
        }
        SecretDelivery::File(name) => {
            spec.env
                .insert(SECRETS_VARIABLE.to_owned(), SECRETS.to_owned());
            spec.secrets.push(SecretFile {
                target: PathBuf::from(SECRETS).join(name),
                mode: 0o400,
                data: value.clone().into_bytes(),
            });
        }
    }
    Ok(())
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
