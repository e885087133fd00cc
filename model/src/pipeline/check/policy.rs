//! The file of an operator's policies: one document for each.

use super::bake::STEPS_MAX;
use super::{api_version, step};
use crate::document::{Checked, Code, Node, Reader};
use crate::names::{PipelineName, TeamName};
use crate::pipeline::definition::Step;
use crate::pipeline::policy::Policy;

/// Reads a file of policies. `file` is what the problems call it.
pub fn parse_policies(file: &str, text: &str) -> Checked<Vec<Policy>> {
    let (mut reader, documents) = Reader::open(file, text);
    let policies: Option<Vec<Policy>> = documents
        .iter()
        .map(|document| policy(&mut reader, document))
        // All documents are read, also behind a bad one.
        .collect::<Vec<_>>()
        .into_iter()
        .collect();
    let value = policies.filter(|_| !reader.failed());
    Checked {
        value,
        problems: reader.finish(),
    }
}

fn policy(reader: &mut Reader, node: &Node) -> Option<Policy> {
    let mut map = reader.map(node, "a policy")?;
    let version = map.required(reader, "apiVersion", api_version);
    let kind = map.required(reader, "kind", |r, n| {
        r.choice(n, "a kind", &[("Policy", ())])
    });
    // Names of policies follow the rule of all names.
    let name = map.required(reader, "name", |r, n| {
        r.name::<PipelineName>(n, "a policy's name")
    });
    let teams = map.or(reader, "teams", Vec::new(), |r, n| {
        r.list(n, |r, n| r.name::<TeamName>(n, "a team's name"))
    });
    let before = map.or(reader, "before", Vec::new(), steps);
    let after = map.or(reader, "after", Vec::new(), steps);
    map.done(reader, |key| match key {
        "steps" => Some("name the place: `before` or `after` the pipeline's own steps"),
        _ => None,
    });
    version?;
    kind?;
    let name = name?.to_string();
    let named = |steps: Vec<Step>| -> Vec<Step> {
        let named = steps.into_iter().map(|step| Step {
            policy: Some(name.clone()),
            ..step
        });
        named.collect()
    };
    let (before, after) = (named(before?), named(after?));
    Some(Policy {
        name,
        teams: teams?,
        before,
        after,
    })
}

fn steps(reader: &mut Reader, node: &Node) -> Option<Vec<Step>> {
    let steps = reader.list(node, |r, n| {
        let step = step::step(r, n)?;
        if step.action.is_setting() {
            let message = format!("a policy sets no `{}`", step.action.key());
            let hint = "it would not reach another step: put it into the command";
            r.error_hint(Code::Contradiction, n.place, message, hint);
        }
        if let Some(path) = step.action.sources().first() {
            let message = format!("a policy has no repository, so there is no {path}");
            let hint = "write the command into the policy, or copy from a `url`";
            r.error_hint(Code::Path, n.place, message, hint);
        }
        if !step.action.secrets().is_empty() {
            r.error(
                Code::Secret,
                n.place,
                "a step of a policy gets no secrets: they are a team's",
            );
        }
        Some(step)
    })?;
    if steps.len() > STEPS_MAX {
        let message = format!("a policy has at most {STEPS_MAX} steps");
        reader.error(Code::OutOfRange, node.place, message);
    }
    Some(steps)
}
