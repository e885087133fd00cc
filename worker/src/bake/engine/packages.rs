//! Steps that take something from the image's distribution: packages, and the tool of playbooks.

use camino::{Utf8Path, Utf8PathBuf};
use oast_daemon::telemetry::chain;
use oast_model::pipeline::{Ansible, Base, Packages};

use super::{Baking, base_halt};
use crate::bake::base::{self, BaseContext, BaseRequest, apt, distribution::Distribution};
use crate::bake::key::State;
use crate::bake::layer::UnpackedLayer;
use crate::bake::steps::run::{Label, Order};
use crate::bake::steps::{ansible, packages, view};
use crate::runner::Halt;
use crate::source::normal_path;

/// The most that apt prints of what it asks for: some ten thousand packages.
const ASKED_BYTES_MAX: usize = 4 << 20;
/// The distribution whose tools are used with an image of none that is known.
const TOOLS_OF: &str = "debian-12";
/// Milliseconds.
const DAY: u64 = 24 * 60 * 60 * 1000;

impl Baking<'_> {
    /// What must not change while a layer of distribution packages may be taken from the cache: an
    /// update in the archive must not be hidden. The base's key has the digest of the indices in
    /// it, and so has every key above; a base that is made of no indices allows a day.
    pub(super) fn freshness(&self) -> String {
        match self.request.bake.from {
            Base::Distribution { .. } => String::new(),
            Base::Image { .. } | Base::File(_) => {
                format!("day {}", self.engine.clock.wall().0 / DAY)
            }
        }
    }

    /// How the image's distribution is asked for packages. None when it is none that is known.
    pub(super) fn distribution(
        &self,
        below: &[UnpackedLayer],
    ) -> Result<Result<BaseRequest, String>, Halt> {
        if let Base::Distribution { .. } = self.request.bake.from {
            return self.base_request().map(Ok);
        }
        let name = view::distribution(below).map_err(|err| Halt::error(&err))?;
        if Distribution::find(&name).is_none() {
            return Ok(Err(name));
        }
        self.request_of(&name).map(Ok)
    }

    /// How a distribution's tools are asked for beside the image.
    pub(super) fn tools_request(&self, below: &[UnpackedLayer]) -> Result<BaseRequest, Halt> {
        match self.distribution(below)? {
            Ok(request) => Ok(request),
            Err(_) => self.request_of(TOOLS_OF),
        }
    }

    pub(super) async fn install(
        &self,
        label: &Label,
        wanted: &Packages,
        below: &[UnpackedLayer],
        folder: &Utf8Path,
        context: &BaseContext,
    ) -> Result<Utf8PathBuf, Halt> {
        let request = self.distribution(below)?.map_err(|name| {
            let known: Vec<&str> = Distribution::names().collect();
            Halt::failed(format!(
                "{label}: the image is {name}, and packages are installed on {}; use `run` with its own package manager",
                known.join(", ")
            ))
        })?;
        let failed = |err| named(label, base_halt(&err));
        let lists = self.path(&format!("apt-{}", label.number))?;
        let index = apt::lists(&request, context, &lists)
            .await
            .map_err(failed)?;
        let found = packages::found(&lists);
        let question = packages::question(wanted);
        let asking = self.path(&format!("ask-{}", label.number))?;
        let order = Order {
            label,
            run: &question,
            state: &State::fresh(),
            owner: "",
            below,
            found: &found,
            folder: &asking,
        };
        let asked = self
            .engine
            .kitchen
            .ask(self.attempt, order, ASKED_BYTES_MAX)
            .await?;
        // Its upper folder is worth nothing.
        let _ = std::fs::remove_dir_all(&asking);
        let files = apt::asked(&String::from_utf8_lossy(&asked))
            .map_err(|err| Halt::errored(format!("{label}: {err}")))?;
        let bytes: u64 = files.iter().map(|file| file.size).sum();
        self.attempt.log.engine(
            label.number,
            format!(
                "{} packages of {bytes} bytes, from indices {}",
                files.len(),
                short(&index)
            ),
        );
        apt::packages(&request, context, files, &lists)
            .await
            .map_err(failed)?;
        let install = packages::install(wanted);
        let made = self
            .cook(label, &install, &State::fresh(), &found, below, folder)
            .await;
        let _ = std::fs::remove_dir_all(&lists);
        made
    }

    pub(super) async fn play(
        &self,
        label: &Label,
        at: usize,
        play: &Ansible,
        below: &[UnpackedLayer],
        folder: &Utf8Path,
        context: &BaseContext,
    ) -> Result<Utf8PathBuf, Halt> {
        let request = self.tools_request(below)?;
        let tool = base::toolbox(&request, context, &ansible::PACKAGES).await;
        let tool = tool.map_err(|err| {
            let why = chain(&err).to_string();
            match base_halt(&err) {
                Halt::Failed { .. } => Halt::failed(format!(
                    "{label} needs Ansible from the packages of {}: {why}; give the worker an archive and component that has it (bake.mirrors, such as with the component universe), or install Ansible in the image and call it by `run`",
                    request.distribution
                )),
                halt => named(label, halt),
            }
        })?;
        let sources = self.path(&format!("play-{}", label.number))?;
        let store = self.engine.store.clone();
        let tree = self.tree.clone();
        let prefix = normal_path(play.folder()).to_owned();
        let (of, target) = (prefix.clone(), sources.clone());
        let writing = move || store.checkout(&tree, &of, &target);
        let written = self
            .engine
            .tasks
            .blocking("check-out-play", writing)
            .await?;
        written.map_err(|err| Halt::error(&err))?;
        let playbook = normal_path(&play.playbook);
        let inner = playbook
            .strip_prefix(prefix.as_str())
            .map_or(playbook, |rest| rest.trim_start_matches('/'));
        let folders = ansible::Folders {
            tool: &tool,
            play: &sources,
        };
        let (run, found) = ansible::command(play, inner, folders);
        let state = State {
            env: State::at(&self.request.bake, at).env,
            ..State::fresh()
        };
        let made = self.cook(label, &run, &state, &found, below, folder).await;
        let _ = std::fs::remove_dir_all(&sources);
        made
    }
}

/// The failure of something below, said of a step.
fn named(label: &Label, halt: Halt) -> Halt {
    match halt {
        Halt::Failed { reason, details } => Halt::Failed {
            reason: format!("{label}: {reason}"),
            details,
        },
        Halt::Errored { reason } => Halt::errored(format!("{label}: {reason}")),
        skipped => skipped,
    }
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}
