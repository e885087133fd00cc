//! What a layer's key is made of. Pure; the hash itself is [`LayerKey`]'s.
//!
//! Everything that can change a layer's content goes in, and nothing else: a title, a time-out or
//! a number of retries does not. The index digest of the archives is in the base's key and so, by
//! the chain of parents, in every key above it. Secrets enter by name, never by value.

use std::collections::BTreeMap;

use oast_artifacts::{Digest, Tree};
use oast_model::bake::{ENGINE_VERSION, Trust};
use oast_model::pipeline::{Arch, Bake, CopyFiles, Run, SecretDelivery};
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
}

impl State {
    /// Before the first step.
    pub fn of(bake: &Bake) -> State {
        State {
            env: bake.env.clone(),
            workdir: "/".to_owned(),
        }
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

/// The key of a `run` step.
pub fn run(scope: Scope<'_>, parent: Digest, run: &Run, state: &State) -> Digest {
    let secrets: Vec<_> = run
        .secrets
        .iter()
        .map(|secret| {
            let (how, name) = match &secret.delivery {
                SecretDelivery::Env(name) => ("env", name),
                SecretDelivery::File(name) => ("file", name),
            };
            json!([secret.name.as_str(), how, name])
        })
        .collect();
    let step = json!({
        "run": run.command,
        "shell": run.shell,
        "network": run.network.as_str(),
        "secrets": secrets,
        "workdir": state.workdir,
    });
    let trust = scope.trust.to_string();
    digest(scope, Some(parent), &step, &state.env, &[], "", &trust)
}

/// The key of a `copy` step; none when the tree has nothing there. Environment and folder of the
/// commands do not matter to it.
pub fn copy(scope: Scope<'_>, parent: Digest, copy: &CopyFiles, tree: &Tree) -> Option<Digest> {
    let from = normal_path(&copy.from);
    let input = tree.digest_under(from)?;
    // Whether it is one file or a folder decides where it lands.
    let single = tree.get(from).is_some();
    let step = json!({
        "copy": copy.to,
        "mode": copy.mode,
        "owner": copy.owner,
        "file": single.then(|| from.rsplit('/').next()),
    });
    let inputs = [("from".to_owned(), input)];
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
        State {
            env: BTreeMap::new(),
            workdir: "/".to_owned(),
        }
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
        others.push(key);
        others.sort();
        others.dedup();
        assert_eq!(others.len(), 7);
    }
}
