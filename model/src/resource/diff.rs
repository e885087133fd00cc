//! What `oast apply` is about to change, field by field.
//!
//! Both sides are taken in the form of the file, so the paths are those that the
//! user wrote. Items of lists with a `name` (or `user`) are matched by it: a new
//! scale set in front is one addition, not a change of all the others.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::definition::Resource;
use super::file;

/// One field that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldChange {
    /// Such as `spec.sets[web-a].count`; empty when the whole resource is new or gone.
    pub path: String,
    /// The value now, if there is one.
    pub before: Option<Value>,
    /// The value then, if there will be one.
    pub after: Option<Value>,
}

/// What differs between what is stored, if anything, and what is wanted.
pub fn diff(old: Option<&Resource>, new: &Resource) -> Vec<FieldChange> {
    let before = old.map_or(Value::Null, |old| body(file::to_value(old)));
    let mut changes = Vec::new();
    compare(
        "",
        Some(&before),
        Some(&body(file::to_value(new))),
        &mut changes,
    );
    changes
}

/// Kind and name identify a resource; they are no fields that change.
fn body(mut value: Value) -> Value {
    if let Value::Object(map) = &mut value {
        map.retain(|key, _| key == "spec");
    }
    value
}

fn compare(
    path: &str,
    before: Option<&Value>,
    after: Option<&Value>,
    changes: &mut Vec<FieldChange>,
) {
    match (before, after) {
        (before, after) if before == after => {}
        (Some(Value::Object(a)), Some(Value::Object(b))) => maps(path, a, b, changes),
        (Some(Value::Null) | None, Some(Value::Object(b))) if !b.is_empty() => {
            maps(path, &Map::new(), b, changes)
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => match (keyed(a), keyed(b)) {
            (Some(a), Some(b)) => lists(path, &a, &b, changes),
            _ => changes.push(change(path, before, after)),
        },
        (None | Some(Value::Null), Some(Value::Array(b))) if !b.is_empty() => match keyed(b) {
            Some(b) => lists(path, &[], &b, changes),
            None => changes.push(change(path, before, after)),
        },
        _ => changes.push(change(path, before, after)),
    }
}

fn change(path: &str, before: Option<&Value>, after: Option<&Value>) -> FieldChange {
    let some = |value: Option<&Value>| value.filter(|v| !v.is_null()).cloned();
    FieldChange {
        path: path.to_owned(),
        before: some(before),
        after: some(after),
    }
}

fn maps(
    path: &str,
    a: &Map<String, Value>,
    b: &Map<String, Value>,
    changes: &mut Vec<FieldChange>,
) {
    let at = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    };
    for (key, after) in b {
        compare(&at(key), a.get(key), Some(after), changes);
    }
    for (key, before) in a.iter().filter(|(key, _)| !b.contains_key(*key)) {
        compare(&at(key), Some(before), None, changes);
    }
}

type Keyed<'v> = Vec<(&'v str, &'v Value)>;

/// The items by name, when every item has one.
fn keyed(items: &[Value]) -> Option<Keyed<'_>> {
    let name =
        |item: &Value| -> Option<()> { item.get("name").or_else(|| item.get("user")).map(|_| ()) };
    if items.is_empty() || !items.iter().all(|item| name(item).is_some()) {
        return None;
    }
    items
        .iter()
        .map(|item| {
            Some((
                item.get("name").or_else(|| item.get("user"))?.as_str()?,
                item,
            ))
        })
        .collect()
}

fn lists(path: &str, a: &[(&str, &Value)], b: &[(&str, &Value)], changes: &mut Vec<FieldChange>) {
    for (name, after) in b {
        let before = a.iter().find(|(n, _)| n == name).map(|(_, value)| *value);
        compare(&format!("{path}[{name}]"), before, Some(after), changes);
    }
    for (name, before) in a
        .iter()
        .filter(|(name, _)| !b.iter().any(|(n, _)| n == name))
    {
        changes.push(change(&format!("{path}[{name}]"), Some(before), None));
    }
    let order = |list: &[(&str, &Value)]| {
        list.iter()
            .map(|(n, _)| (*n).to_owned())
            .collect::<Vec<_>>()
    };
    let (a, b) = (order(a), order(b));
    let same_members = a.len() == b.len() && a.iter().all(|name| b.contains(name));
    if same_members && a != b {
        let list = |names: Vec<String>| Value::from(names);
        changes.push(FieldChange {
            path: format!("{path} (order)"),
            before: Some(list(a)),
            after: Some(list(b)),
        });
    }
}

/// The changes as people read them: `+` new, `-` gone, `~` changed, the values in columns.
pub fn render(resource: &Resource, is_new: bool, changes: &[FieldChange]) -> String {
    let (kind, name) = (resource.kind().as_str(), resource.name());
    let mut out = String::new();
    let line = if is_new {
        format!("+ {kind} {name} (new)")
    } else if changes.is_empty() {
        format!("  {kind} {name} (unchanged)")
    } else {
        format!("~ {kind} {name}")
    };
    out.push_str(&line);
    out.push('\n');
    let width = changes
        .iter()
        .map(|change| change.path.chars().count())
        .max()
        .unwrap_or(0);
    for FieldChange {
        path,
        before,
        after,
    } in changes
    {
        let pad = " ".repeat(width - path.chars().count());
        let text = match (before, after) {
            (Some(before), Some(after)) => {
                format!("  ~ {path}{pad}  {} -> {}", show(before), show(after))
            }
            (None, Some(after)) => format!("  + {path}{pad}  {}", show(after)),
            (Some(before), None) => format!("  - {path}{pad}  {}", show(before)),
            (None, None) => continue,
        };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{text}");
    }
    out
}

fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => format!(
            "[{}]",
            items.iter().map(show).collect::<Vec<_>>().join(", ")
        ),
        Value::Object(map) => {
            let entries: Vec<String> = map
                .iter()
                .map(|(key, value)| format!("{key}: {}", show(value)))
                .collect();
            format!("{{ {} }}", entries.join(", "))
        }
        other => other.to_string(),
    }
}
