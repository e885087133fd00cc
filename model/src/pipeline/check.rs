//! From the text of a pipeline file to a checked [`Pipeline`], or to all that is wrong with it.
//!
//! One function a section, in the order of the file; each reads all its keys
//! before it gives up. What concerns several sections is checked at the end here.

mod bake;
mod policy;
mod release;
mod step;
mod trigger;

use std::collections::BTreeMap;

use crate::document::{Checked, Code, Node, Place, Reader};
use crate::names::{PipelineName, TeamName};
use crate::pipeline::definition::{
    ApiVersion, Concurrency, Input, InputKind, InputValue, Pipeline,
};
use crate::pipeline::inputs;
use crate::priority::Priority;

pub use policy::parse_policies;
pub(crate) use trigger::globs;

/// The most inputs of a pipeline.
pub const INPUTS_MAX: usize = 64;
/// The most runs of a concurrency group side by side.
pub const CONCURRENCY_MAX: u32 = 1_000;

/// Reads a pipeline file. `file` is what the problems call it.
pub fn parse(file: &str, text: &str) -> Checked<Pipeline> {
    let (mut reader, documents) = Reader::open(file, text);
    let start = Place {
        line: 1,
        column: 1,
        ..Place::default()
    };
    let value = match documents.as_slice() {
        [] if reader.failed() => None,
        [] => {
            let hint = "`oast init` writes a first pipeline";
            reader.error_hint(Code::Documents, start, "the file is empty", hint);
            None
        }
        [document] => pipeline(&mut reader, document),
        [document, second, ..] => {
            let hint = "one file holds one pipeline; resources for `oast apply` stand in files of their own";
            reader.error_hint(
                Code::Documents,
                second.place,
                "a second document begins here",
                hint,
            );
            pipeline(&mut reader, document)
        }
    };
    let value = value.filter(|_| !reader.failed());
    Checked {
        value,
        problems: reader.finish(),
    }
}

fn pipeline(reader: &mut Reader, node: &Node) -> Option<Pipeline> {
    let mut map = reader.map(node, "a pipeline")?;
    let api_version = map.required(reader, "apiVersion", api_version);
    let name = map.required(reader, "name", |r, n| {
        r.name::<PipelineName>(n, "a pipeline's name")
    });
    let team = map.required(reader, "team", |r, n| {
        r.name::<TeamName>(n, "a team's name")
    });
    // First of the sections, wherever it stands: the others name inputs.
    let declared = map.or(reader, "inputs", BTreeMap::new(), declarations);
    let triggers = map.or(reader, "triggers", Vec::new(), trigger::triggers);
    let bake = map.required(reader, "bake", bake::bake);
    let test = map.or(reader, "test", Vec::new(), release::tests);
    let publish = map.required(reader, "publish", release::publish);
    let rollout = map.or(reader, "rollout", Vec::new(), release::rollouts);
    let priority = map.optional(reader, "priority", |r, n| {
        r.choice(n, "a priority", &PRIORITIES)
    });
    let concurrency = map.optional(reader, "concurrency", concurrency);
    map.done(reader, |key| match key {
        "on" | "trigger" | "true" => {
            Some("the key is `triggers`: tools of YAML 1.1 read `on` as the truth value true")
        }
        "steps" | "from" | "packages" => Some("it belongs inside `bake:`"),
        "fleet" | "strategy" | "gates" => Some("it belongs into an item of `rollout:`"),
        "group" | "max" | "cancelInProgress" => {
            Some("write `concurrency: { group: deploy-prod, max: 1 }`")
        }
        "kind" | "spec" | "metadata" => {
            Some("a pipeline has no kind; resources are made by `oast apply -f`")
        }
        _ => None,
    });
    Some(Pipeline {
        api_version: api_version?,
        name: name?,
        team: team?,
        inputs: declared?,
        triggers: triggers?,
        bake: bake?,
        test: test?,
        publish: publish?,
        rollout: rollout?,
        priority: priority?,
        concurrency: concurrency?,
    })
}

/// `apiVersion: oast/v1`
pub(crate) fn api_version(reader: &mut Reader, node: &Node) -> Option<ApiVersion> {
    reader.choice(
        node,
        "a version of the format",
        &[("oast/v1", ApiVersion::V1)],
    )
}

const PRIORITIES: [(&str, Priority); 3] = [
    (Priority::Interactive.as_str(), Priority::Interactive),
    (Priority::Normal.as_str(), Priority::Normal),
    (Priority::Batch.as_str(), Priority::Batch),
];

/// `concurrency: { group: deploy-prod, max: 1, cancelInProgress: false }`
fn concurrency(reader: &mut Reader, node: &Node) -> Option<Concurrency> {
    if let Some(group) = node.scalar() {
        let hint = format!(
            "write `concurrency: {{ group: {} }}`",
            crate::document::reader::shorten(group)
        );
        reader.error_hint(
            Code::WrongType,
            node.place,
            "a concurrency group is a map with the key `group`",
            hint,
        );
        return None;
    }
    let mut map = reader.map(node, "`concurrency`")?;
    let group = map.required(reader, "group", |r, n| {
        let group = r.fixed(n, "a concurrency group")?;
        match crate::names::check(group) {
            Ok(()) => Some(group.to_owned()),
            Err(error) => {
                let shown = crate::document::reader::shorten(group);
                let message = format!("`{shown}` is not a concurrency group: {error}");
                r.error(Code::Name, n.place, message);
                None
            }
        }
    });
    let max = map.or(reader, "max", 1, |r, n| {
        r.number(n, "the number of runs side by side", 1, CONCURRENCY_MAX)
    });
    let cancel_in_progress = map.or(reader, "cancelInProgress", false, Reader::truth);
    map.done(reader, |_| None);
    let (max, cancel_in_progress) = (max?, cancel_in_progress?);
    if cancel_in_progress && max > 1 {
        reader.error_hint(
            Code::Contradiction,
            node.place,
            "`cancelInProgress` ends every older run, so `max` above 1 has no meaning",
            "leave `max` out, or let runs wait",
        );
    }
    Some(Concurrency {
        group: group?,
        max,
        cancel_in_progress,
    })
}

const KINDS: [(&str, InputKind); 3] = [
    ("string", InputKind::String),
    ("bool", InputKind::Bool),
    ("number", InputKind::Number),
];

fn declarations(reader: &mut Reader, node: &Node) -> Option<BTreeMap<String, Input>> {
    let declared = reader.table(node, "`inputs`", |r, key, node| {
        if !inputs::is_name(&key.text) {
            let message = format!(
                "`{}` cannot name an input: letters, digits, `_` and `-`, a letter first",
                key.text
            );
            r.error(Code::InputDeclaration, key.place, message);
        }
        let input = declaration(r, node);
        // A bad declaration still declares, or each use would be a second problem.
        let kind = input.as_ref().map_or(InputKind::Number, |input| input.kind);
        r.scope.declared.insert(key.text.clone(), kind);
        input
    })?;
    if declared.len() > INPUTS_MAX {
        reader.error(
            Code::OutOfRange,
            node.place,
            format!("a pipeline has at most {INPUTS_MAX} inputs"),
        );
    }
    Some(declared)
}

fn declaration(reader: &mut Reader, node: &Node) -> Option<Input> {
    let mut map = reader.map(node, "an input")?;
    let kind = map.or(reader, "type", InputKind::String, |r, n| {
        r.choice(n, "a type of input", &KINDS)
    });
    let required = map.or(reader, "required", false, Reader::truth);
    let description = map.optional(reader, "description", |r, n| {
        r.fixed(n, "a description").map(str::to_owned)
    });
    let default = map.optional(reader, "default", |r, n| default_value(r, n, kind?));
    map.done(reader, |_| None);
    let (required, default) = (required?, default?);
    if required && default.is_some() {
        let hint = "remove `required`, or the default";
        reader.error_hint(
            Code::InputDeclaration,
            node.place,
            "an input with a default cannot be required",
            hint,
        );
    }
    Some(Input {
        kind: kind?,
        default,
        required,
        description: description?,
    })
}

fn default_value(reader: &mut Reader, node: &Node, kind: InputKind) -> Option<InputValue> {
    let empty = matches!(&node.value, crate::document::Value::Scalar { text, plain: false } if text.is_empty());
    let text = if empty {
        ""
    } else {
        reader.fixed(node, "a default")?
    };
    match inputs::read_value("default", kind, text) {
        Ok(value) => Some(value),
        Err(_) => {
            let message = format!(
                "the default of a {} cannot be `{}`",
                kind.as_str(),
                crate::document::reader::shorten(text)
            );
            reader.error(Code::InputDeclaration, node.place, message);
            None
        }
    }
}
