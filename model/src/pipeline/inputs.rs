//! `${{ inputs.NAME }}`: the values that a run is given, put into the pipeline's texts.
//!
//! ```yaml
//! inputs:
//!   version: { type: string, default: "1.27" }
//! bake:
//!   steps:
//!     - env: { VERSION: "${{ inputs.version }}" }
//!     - run: fetch-release "$VERSION"
//! ```
//!
//! - Spaces inside the braces do not matter. `$${{` stands for `${{` itself.
//! - Texts may hold inputs: commands, env, paths, packages, sources, addresses,
//!   checks. Names, durations, sizes and strategies may not, so that what a run
//!   can touch is known from the file alone.
//! - A `string` input may not stand in a command: its value would be read by the
//!   shell as program text. It goes through `env`, and `"$NAME"` in the command.
//!
//! The file is checked against the declarations by [`check`]; [`resolve`] makes
//! the pipeline of one run. A pipeline is resolved once.

use std::collections::BTreeMap;

use crate::document::reader::shorten;
use crate::document::{Code, Node, Reader};
use crate::pipeline::definition::{
    Action, Bake, Base, Check, CopySource, FilePlace, Gate, HttpCheck, InputKind, InputValue,
    Pipeline, Test,
};
use crate::pipeline::rules::Rule;

/// The longest value of an input.
pub const VALUE_BYTES_MAX: usize = 16 << 10;

const OPEN: &str = "${{";
const CLOSE: &str = "}}";
const ESCAPED: &str = "$${{";

/// The declared inputs, and whether string inputs may stand in the text being read.
#[derive(Debug, Default)]
pub struct Scope {
    /// By name; nothing is declared in files that have no inputs.
    pub declared: BTreeMap<String, InputKind>,
    /// Set while a command is read.
    pub in_command: bool,
}

/// Why a pipeline cannot be made for the values that a run was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// A value is required.
    #[error("the input `{name}` is required{}: give --input {name}=...", described(.description))]
    Missing {
        /// The input.
        name: String,
        /// Its description.
        description: Option<String>,
    },
    /// The pipeline declares no such input.
    #[error("the pipeline has no input `{name}`{}", meant(.nearest))]
    Unknown {
        /// What was given.
        name: String,
        /// What was probably meant.
        nearest: Option<String>,
    },
    /// The value has another type.
    #[error("the input `{name}` takes a {}, not {given:?}", .kind.as_str())]
    Type {
        /// The input.
        name: String,
        /// What it takes.
        kind: InputKind,
        /// What was given.
        given: String,
    },
    /// The value is too long.
    #[error(
        "the value of the input `{name}` has {length} bytes, at most {VALUE_BYTES_MAX} are taken"
    )]
    TooLong {
        /// The input.
        name: String,
        /// Its length.
        length: usize,
    },
    /// A text is not good with the values in it, such as a path that leaves the repository.
    #[error("at {place}: {reason}")]
    Expression {
        /// Where in the pipeline, such as `bake.steps[2].run`.
        place: String,
        /// What is wrong.
        reason: String,
    },
}

fn described(description: &Option<String>) -> String {
    description
        .as_ref()
        .map(|text| format!(" ({text})"))
        .unwrap_or_default()
}

fn meant(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map(|name| format!(", did you mean `{name}`?"))
        .unwrap_or_default()
}

/// Reads a value for an input as it is written on a command line.
pub fn read_value(name: &str, kind: InputKind, text: &str) -> Result<InputValue, InputError> {
    if text.len() > VALUE_BYTES_MAX {
        return Err(InputError::TooLong {
            name: name.to_owned(),
            length: text.len(),
        });
    }
    let value = match kind {
        InputKind::String => Some(InputValue::String(text.to_owned())),
        InputKind::Bool => text.parse().ok().map(InputValue::Bool),
        InputKind::Number => text.parse().ok().map(InputValue::Number),
    };
    value.ok_or_else(|| InputError::Type {
        name: name.to_owned(),
        kind,
        given: text.to_owned(),
    })
}

/// A text, cut into what is literal and what is an input's name.
enum Piece<'t> {
    Literal(&'t str),
    Input(&'t str),
}

fn pieces(text: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(OPEN) {
        if at > 0 && rest.as_bytes()[at - 1] == b'$' {
            // `$${{`: the literal keeps one dollar.
            pieces.push(Piece::Literal(&rest[..at - 1]));
            pieces.push(Piece::Literal(OPEN));
            rest = &rest[at + OPEN.len()..];
            continue;
        }
        pieces.push(Piece::Literal(&rest[..at]));
        let inner = &rest[at + OPEN.len()..];
        let end = inner
            .find(CLOSE)
            .ok_or_else(|| format!("`{OPEN}` has no `{CLOSE}` after it"))?;
        let expression = inner[..end].trim();
        let name = expression
            .strip_prefix("inputs.")
            .filter(|name| is_name(name))
            .ok_or_else(|| {
                format!(
                    "`{expression}` is not an input: only `{OPEN} inputs.NAME {CLOSE}` is known"
                )
            })?;
        pieces.push(Piece::Input(name));
        rest = &inner[end + CLOSE.len()..];
    }
    pieces.push(Piece::Literal(rest));
    Ok(pieces)
}

/// The rule of an input's name: a letter or `_`, then letters, digits, `_` and `-`.
pub fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Whether a text has something to be replaced or unescaped in it.
pub fn mentions(text: &str) -> bool {
    text.contains(OPEN)
}

/// Reports what is wrong with the inputs that a text names.
pub fn check(reader: &mut Reader, node: &Node, text: &str) {
    if !mentions(text) {
        return;
    }
    let pieces = match pieces(text) {
        Ok(pieces) => pieces,
        Err(reason) => {
            let hint = format!("write `{ESCAPED}` for `{OPEN}` itself");
            reader.error_hint(Code::Expression, node.place, reason, hint);
            return;
        }
    };
    for piece in pieces {
        let Piece::Input(name) = piece else { continue };
        match reader.scope.declared.get(name) {
            None => {
                let message = format!("there is no input `{name}`");
                let known = reader.scope.declared.keys().map(String::as_str);
                let hint = match crate::document::suggest::nearest(name, known) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!(
                        "declare it under `inputs:` as `{name}: {{ type: string, required: true }}`"
                    ),
                };
                reader.error_hint(Code::UnknownInput, node.place, message, hint);
            }
            Some(InputKind::String) if reader.scope.in_command => {
                let message = format!(
                    "the text input `{name}` cannot stand in a command, where the shell would run what is in it"
                );
                let variable = name.to_ascii_uppercase().replace('-', "_");
                let hint = format!(
                    "give it to the step before: `- env: {{ {variable}: \"{OPEN} inputs.{name} {CLOSE}\" }}`, and write \"${variable}\" here"
                );
                reader.error_hint(Code::InputInCommand, node.place, message, hint);
            }
            Some(_) => {}
        }
    }
}

/// The pipeline of one run: every input replaced by its value or default.
///
/// All problems with the given values are returned together.
pub fn resolve(
    pipeline: &Pipeline,
    given: &BTreeMap<String, String>,
) -> Result<Pipeline, Vec<InputError>> {
    let mut errors = Vec::new();
    let mut values: BTreeMap<&str, String> = BTreeMap::new();
    for (name, text) in given {
        match pipeline.inputs.get(name) {
            Some(input) => match read_value(name, input.kind, text) {
                Ok(value) => drop(values.insert(name, value.to_string())),
                Err(error) => errors.push(error),
            },
            None => {
                let known = pipeline.inputs.keys().map(String::as_str);
                let nearest = crate::document::suggest::nearest(name, known).map(str::to_owned);
                errors.push(InputError::Unknown {
                    name: name.clone(),
                    nearest,
                });
            }
        }
    }
    for (name, input) in &pipeline.inputs {
        if given.contains_key(name) {
            continue;
        }
        match (&input.default, input.required) {
            (Some(default), _) => drop(values.insert(name, default.to_string())),
            (None, true) => errors.push(InputError::Missing {
                name: name.clone(),
                description: input.description.clone(),
            }),
            // Neither required nor defaulted: the type's nothing.
            (None, false) => {
                let empty = match input.kind {
                    InputKind::String => "",
                    InputKind::Bool => "false",
                    InputKind::Number => "0",
                };
                values.insert(name, empty.to_owned());
            }
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut resolved = pipeline.clone();
    for_each_text(&mut resolved, &mut |place, rule, text| {
        if !mentions(text) {
            return;
        }
        let judged = fill(text, &values).and_then(|filled| match rule.judge(&filled) {
            Ok(()) => Ok(filled),
            Err(wrong) => Err(format!("`{}` {wrong}", shorten(&filled))),
        });
        match judged {
            Ok(filled) => *text = filled,
            Err(reason) => errors.push(InputError::Expression {
                place: place.to_owned(),
                reason,
            }),
        }
    });
    if errors.is_empty() {
        Ok(resolved)
    } else {
        Err(errors)
    }
}

fn fill(text: &str, values: &BTreeMap<&str, String>) -> Result<String, String> {
    let mut filled = String::with_capacity(text.len());
    for piece in pieces(text)? {
        match piece {
            Piece::Literal(literal) => filled.push_str(literal),
            Piece::Input(name) => {
                filled.push_str(
                    values
                        .get(name)
                        .ok_or_else(|| format!("there is no input `{name}`"))?,
                );
            }
        }
    }
    Ok(filled)
}

/// What is done with each text: its place, its rule, itself.
type Visit<'v> = dyn FnMut(&str, Rule, &mut String) + 'v;

/// Every text of a pipeline in which inputs may stand.
///
/// The one list of them: a text that the file's checker reads with
/// `Reader::ruled` and that is not here would keep its `${{`, and a property
/// test says so.
pub(crate) fn for_each_text(pipeline: &mut Pipeline, visit: &mut Visit<'_>) {
    let Bake {
        from,
        mirror,
        sources,
        packages,
        env,
        steps,
        engine: _,
        arch: _,
        disk: _,
    } = &mut pipeline.bake;
    if let Base::File(file) = from {
        let place = format!("bake.from.{}", file.format.as_str());
        match &mut file.place {
            FilePlace::Path(path) => visit(&format!("{place}.path"), Rule::Source, path),
            FilePlace::Url { url, .. } => visit(&format!("{place}.url"), Rule::Web, url),
        }
    }
    if let Some(mirror) = mirror {
        visit("bake.mirror.url", Rule::Archive, &mut mirror.url);
        if let Some(keyring) = &mut mirror.keyring {
            visit("bake.mirror.keyring", Rule::Source, keyring);
        }
    }
    for (index, source) in sources.iter_mut().enumerate() {
        visit(&format!("bake.sources[{index}]"), Rule::SourceLine, source);
    }
    for (index, package) in packages.iter_mut().enumerate() {
        visit(&format!("bake.packages[{index}]"), Rule::Package, package);
    }
    for (name, value) in env {
        visit(&format!("bake.env.{name}"), Rule::Any, value);
    }
    for (index, step) in steps.iter_mut().enumerate() {
        let place = format!("bake.steps[{index}]");
        if let Some(name) = &mut step.name {
            visit(&format!("{place}.name"), Rule::Filled, name);
        }
        visit_action(&place, &mut step.action, visit);
    }
    for (index, test) in pipeline.test.iter_mut().enumerate() {
        let Test::Boot(boot) = test else { continue };
        for (number, check) in boot.checks.iter_mut().enumerate() {
            let place = format!("test[{index}].boot.checks[{number}]");
            match check {
                Check::Http(http) => visit_http(&format!("{place}.http"), http, visit),
                Check::Tcp { .. } => {}
                Check::Command(command) => {
                    visit(&format!("{place}.command"), Rule::Command, command)
                }
                Check::SystemdUnit(unit) => {
                    visit(&format!("{place}.systemdUnit"), Rule::Unit, unit)
                }
                Check::File { path, contains } => {
                    visit(&format!("{place}.file.path"), Rule::Target, path);
                    if let Some(text) = contains {
                        visit(&format!("{place}.file.contains"), Rule::Filled, text);
                    }
                }
            }
        }
    }
    for (index, rollout) in pipeline.rollout.iter_mut().enumerate() {
        for (number, gate) in rollout.gates.iter_mut().enumerate() {
            let place = format!("rollout[{index}].gates[{number}]");
            match gate {
                Gate::Http(http) => visit_http(&format!("{place}.http"), http, visit),
                Gate::Prometheus(prometheus) => {
                    if let Some(url) = &mut prometheus.url {
                        visit(&format!("{place}.prometheus.url"), Rule::Web, url);
                    }
                    let place = format!("{place}.prometheus.query");
                    visit(&place, Rule::Filled, &mut prometheus.query);
                }
            }
        }
    }
}

fn visit_action(place: &str, action: &mut Action, visit: &mut Visit<'_>) {
    let mut list = |key: &str, rule: Rule, texts: &mut [String]| {
        for (index, text) in texts.iter_mut().enumerate() {
            visit(&format!("{place}.{key}[{index}]"), rule, text);
        }
    };
    match action {
        Action::Run(run) => {
            list("run.args", Rule::Any, &mut run.args);
            match &mut run.script {
                Some(script) => visit(&format!("{place}.run.script"), Rule::Source, script),
                None => visit(&format!("{place}.run"), Rule::Command, &mut run.command),
            }
        }
        Action::Copy(copy) => {
            let (key, rule) = match copy.source {
                CopySource::Commit => ("from", Rule::Source),
                CopySource::Url { .. } => ("url", Rule::Web),
                CopySource::Image { .. } => ("from", Rule::Target),
            };
            visit(&format!("{place}.copy.{key}"), rule, &mut copy.from);
            visit(&format!("{place}.copy.to"), Rule::Target, &mut copy.to);
        }
        Action::Env(env) => {
            for (name, value) in env {
                visit(&format!("{place}.env.{name}"), Rule::Any, value);
            }
        }
        Action::Workdir(path) => visit(&format!("{place}.workdir"), Rule::Target, path),
        Action::User(_) => {}
        Action::Packages(packages) => list("packages", Rule::Package, &mut packages.install),
        Action::Systemd(systemd) => {
            list("systemd.install", Rule::Source, &mut systemd.install);
            list("systemd.enable", Rule::Unit, &mut systemd.enable);
            list("systemd.disable", Rule::Unit, &mut systemd.disable);
            list("systemd.mask", Rule::Unit, &mut systemd.mask);
            list("systemd.unmask", Rule::Unit, &mut systemd.unmask);
            if let Some(target) = &mut systemd.default {
                visit(&format!("{place}.systemd.default"), Rule::Unit, target);
            }
        }
        Action::Ansible(play) => {
            visit(
                &format!("{place}.ansible.playbook"),
                Rule::Source,
                &mut play.playbook,
            );
            if let Some(folder) = &mut play.folder {
                visit(&format!("{place}.ansible.folder"), Rule::Source, folder);
            }
            for (name, value) in &mut play.variables {
                visit(
                    &format!("{place}.ansible.variables.{name}"),
                    Rule::Any,
                    value,
                );
            }
        }
    }
}

fn visit_http(place: &str, http: &mut HttpCheck, visit: &mut Visit<'_>) {
    visit(&format!("{place}.path"), Rule::Request, &mut http.path);
    if let Some(text) = &mut http.contains {
        visit(&format!("{place}.contains"), Rule::Filled, text);
    }
}
