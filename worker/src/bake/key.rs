//! What a layer's key is made of. Pure; the hash itself is [`LayerKey`]'s.
//!
//! Everything that can change a layer's content goes in, and nothing else: a title, a time-out or
//! a number of retries does not. The index digest of the archives is in the base's key and so, by
//! the chain of parents, in every key above it. Secrets enter by name, never by value.

use std::collections::BTreeMap;

use oast_artifacts::{Digest, Tree};
use oast_model::bake::{ENGINE_VERSION, Trust};
use oast_model::pipeline::{
    Action, Ansible, Arch, Bake, CopyFiles, CopySource, FileFormat, Packages, Run, SecretDelivery,
    SecretUse, Systemd,
};
use serde_json::json;

use super::layer::LayerKey;
use crate::source::normal_path;

/// Whose bakes may share a base. Its packages are signed by an archive that the operator trusts
/// and chosen by us, so everybody may, unless the pipeline brings an archive of its own.
const EVERYBODY: &str = "everybody";

/// What is the same for all steps of a bake.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// The machine.
    pub arch: Arch,
    /// Whose work the layers may feed.
    pub trust: &'a Trust,
}

/// What the steps before a step have set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Environment variables of the pipeline.
    pub env: BTreeMap<String, String>,
    /// The folder in which commands run.
    pub workdir: String,
    /// Who runs them; root unless a step said so.
    pub user: Option<String>,
}

impl State {
    /// Before the first step.
    pub fn of(bake: &Bake) -> State {
        State {
            env: bake.env.clone(),
            ..State::fresh()
        }
    }

    /// Nothing set: that of a policy's steps.
    pub fn fresh() -> State {
        State {
            env: BTreeMap::new(),
            workdir: "/".to_owned(),
            user: None,
        }
    }

    /// Takes what a step sets for those after it.
    pub fn set(&mut self, action: &Action) {
        match action {
            Action::Env(env) => self.env.extend(env.clone()),
            Action::Workdir(path) => self.workdir.clone_from(path),
            Action::User(user) => self.user = Some(user.clone()),
            _ => {}
        }
    }

    /// What holds for a step of the bake.
    pub fn at(bake: &Bake, step: usize) -> State {
        if bake.steps[step].policy.is_some() {
            return State::fresh();
        }
        let mut state = State::of(bake);
        for before in &bake.steps[..step] {
            state.set(&before.action);
        }
        state
    }
}

fn digest(
    scope: Scope<'_>,
    parent: Option<Digest>,
    step: &serde_json::Value,
    env: &BTreeMap<String, String>,
    inputs: &[(String, Digest)],
    packages: &str,
    trust: &str,
) -> Digest {
    let step = step.to_string();
    LayerKey {
        parent,
        engine: ENGINE_VERSION,
        arch: scope.arch.as_str(),
        step: step.as_bytes(),
        env,
        args: &BTreeMap::new(),
        inputs,
        packages,
        trust_scope: trust,
    }
    .digest()
}

/// The key of a base. `index` is the digest of the verified package indices.
pub fn base(scope: Scope<'_>, bake: &Bake, keyring: Option<Digest>, index: &str) -> Digest {
    let mirror = bake.mirror.as_ref();
    let step = json!({
        "base": bake.from.to_string(),
        "packages": bake.packages,
        "sources": bake.sources,
        "mirror": mirror.map(|mirror| json!({
            "url": mirror.url,
            "components": mirror.components,
        })),
    });
    let trust = match mirror {
        Some(_) => scope.trust.to_string(),
        None => EVERYBODY.to_owned(),
    };
    let inputs: Vec<_> = keyring
        .map(|digest| ("keyring".to_owned(), digest))
        .into_iter()
        .collect();
    digest(scope, None, &step, &BTreeMap::new(), &inputs, index, &trust)
}

/// The key of a base that is a file with this content. Everybody may share it: it is what its
/// digest says, and nothing else entered it.
pub fn file(scope: Scope<'_>, format: FileFormat, content: &str) -> Digest {
    let step = json!({ "base": format.as_str(), "content": content });
    digest(scope, None, &step, &BTreeMap::new(), &[], "", EVERYBODY)
}

/// Secrets by name and by how the step finds them.
fn secrets(secrets: &[SecretUse]) -> Vec<serde_json::Value> {
    secrets
        .iter()
        .map(|secret| {
            let (how, name) = match &secret.delivery {
                SecretDelivery::Env(name) => ("env", name),
                SecretDelivery::File(name) => ("file", name),
            };
            json!([secret.name.as_str(), how, name])
        })
        .collect()
}

/// The key of a `run` step. `files` has its script, when it has one.
pub fn run(
    scope: Scope<'_>,
    parent: Digest,
    run: &Run,
    state: &State,
    files: &[(String, Digest)],
) -> Digest {
    let mut step = json!({
        "run": run.command,
        "shell": run.shell,
        "network": run.network.as_str(),
        "secrets": secrets(&run.secrets),
        "workdir": state.workdir,
    });
    // What a step does not use leaves its key as it was before there was such a thing.
    if let Some(user) = &state.user {
        step["user"] = json!(user);
    }
    if !run.caches.is_empty() {
        step["caches"] = json!(run.caches);
    }
    if run.script.is_some() {
        step["args"] = json!(run.args);
    }
    let trust = scope.trust.to_string();
    digest(scope, Some(parent), &step, &state.env, files, "", &trust)
}

/// The key of a `systemd` step with its unit files.
pub fn systemd(
    scope: Scope<'_>,
    parent: Digest,
    units: &Systemd,
    files: &[(String, Digest)],
) -> Digest {
    let step = json!({ "systemd": units.verbs() });
    let trust = scope.trust.to_string();
    digest(
        scope,
        Some(parent),
        &step,
        &BTreeMap::new(),
        files,
        "",
        &trust,
    )
}

/// The key of a `packages` step. `index` is the digest of the indices that it installs from, or
/// the day on which it may be taken from the cache: an update in the archive is another key.
pub fn packages(scope: Scope<'_>, parent: Digest, packages: &Packages, index: &str) -> Digest {
    let step = json!({
        "packages": packages.install,
        "recommends": packages.recommends,
    });
    let trust = scope.trust.to_string();
    digest(
        scope,
        Some(parent),
        &step,
        &BTreeMap::new(),
        &[],
        index,
        &trust,
    )
}

/// The key of an `ansible` step with its folder. `index` as for packages: Ansible comes from there.
pub fn ansible(
    scope: Scope<'_>,
    parent: Digest,
    play: &Ansible,
    state: &State,
    files: &[(String, Digest)],
    index: &str,
) -> Digest {
    let step = json!({
        "ansible": play.playbook,
        "variables": play.variables,
        "tags": play.tags,
        "network": play.network.as_str(),
        "secrets": secrets(&play.secrets),
    });
    let trust = scope.trust.to_string();
    digest(scope, Some(parent), &step, &state.env, files, index, &trust)
}

/// The last part of a path or address.
pub fn last(path: &str) -> &str {
    let path = path.split(['?', '#']).next().unwrap_or(path);
    path.trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or(path)
}

/// The key of a `copy` step; none when the tree has nothing there. `image` is the digest of the
/// layers that it copies from. Environment and folder of the commands do not matter to it.
pub fn copy(
    scope: Scope<'_>,
    parent: Digest,
    copy: &CopyFiles,
    tree: &Tree,
    image: Option<Digest>,
) -> Option<Digest> {
    let from = normal_path(&copy.from);
    let mut step = json!({
        "copy": copy.to,
        "mode": copy.mode,
        "owner": copy.owner,
    });
    let mut inputs = Vec::new();
    match &copy.source {
        CopySource::Commit => {
            inputs.push(("from".to_owned(), tree.digest_under(from)?));
            // Whether it is one file or a folder decides where it lands.
            let single = tree.get(from).is_some();
            step["file"] = json!(single.then(|| from.rsplit('/').next()));
        }
        // The content counts, not where it is fetched from.
        CopySource::Url { sha256 } => {
            step["sha256"] = json!(sha256);
            step["file"] = json!(last(&copy.from));
        }
        CopySource::Image { .. } => {
            step["image"] = json!(copy.from);
            inputs.push(("image".to_owned(), image?));
        }
    }
    let trust = scope.trust.to_string();
    Some(digest(
        scope,
        Some(parent),
        &step,
        &BTreeMap::new(),
        &inputs,
        "",
        &trust,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROTECTED: Scope<'_> = Scope {
        arch: Arch::Amd64,
        trust: &Trust::Protected,
    };

    fn state() -> State {
        State { ..State::fresh() }
    }

    fn run(scope: Scope<'_>, parent: Digest, step: &Run, state: &State) -> Digest {
        super::run(scope, parent, step, state, &[])
    }

    #[test]
    fn what_changes_a_layer_changes_its_key_and_nothing_else_does() {
        let parent = Digest::of(b"parent");
        let step = Run::new("make");
        let key = run(PROTECTED, parent, &step, &state());
        let mut patient = step.clone();
        patient.timeout = oast_model::units::TimeSpan::from_secs(5);
        patient.retries = 3;
        assert_eq!(run(PROTECTED, parent, &patient, &state()), key);

        let mut others = vec![
            run(PROTECTED, Digest::of(b"other"), &step, &state()),
            run(PROTECTED, parent, &Run::new("make all"), &state()),
        ];
        let mut online = step.clone();
        online.network = oast_model::pipeline::Network::None;
        others.push(run(PROTECTED, parent, &online, &state()));
        let upload = Trust::Upload("shop".to_owned());
        let scope = Scope {
            trust: &upload,
            ..PROTECTED
        };
        others.push(run(scope, parent, &step, &state()));
        let mut elsewhere = state();
        elsewhere.workdir = "/srv".to_owned();
        others.push(run(PROTECTED, parent, &step, &elsewhere));
        let mut with_env = state();
        with_env.env.insert("A".to_owned(), "1".to_owned());
        others.push(run(PROTECTED, parent, &step, &with_env));
        let mut somebody = state();
        somebody.user = Some("app".to_owned());
        others.push(run(PROTECTED, parent, &step, &somebody));
        let mut cached = step.clone();
        cached.caches.push("/root/.cache".to_owned());
        others.push(run(PROTECTED, parent, &cached, &state()));
        others.push(key);
        others.sort();
        others.dedup();
        assert_eq!(others.len(), 9);
    }
}
