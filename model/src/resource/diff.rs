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

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    const FLEET: &str = "apiVersion: oast/v1\nkind: Fleet\nname: web-prod\nspec:\n  team: demo\n  provider: local\n  \
        sets: [{ name: a, count: 3 }, { name: b, count: 3 }]\n  listen: 127.0.0.1:8080\n  serve: { port: 80 }\n  \
        health: { http: { port: 80 } }\n  channel: { image: web, channel: candidate }\n";

    fn fleet(text: &str) -> Resource {
        let checked = parse("farm.yaml", text);
        assert_eq!(checked.problems, []);
        checked
            .value
            .and_then(|mut all| all.pop())
            .expect("one fleet")
    }

    #[test]
    fn the_same_resource_has_no_changes_however_it_is_written() {
        let written_out = file::to_yaml(&fleet(FLEET));
        assert_eq!(diff(Some(&fleet(FLEET)), &fleet(&written_out)), []);
        let same = fleet(FLEET);
        assert_eq!(render(&same, false, &[]), "  Fleet web-prod (unchanged)\n");
    }

    #[test]
    fn changes_are_told_field_by_field_and_sets_by_name() {
        let new = FLEET
            .replace(
                "[{ name: a, count: 3 }",
                "[{ name: c, count: 1 }, { name: a, count: 4 }",
            )
            .replace(", { name: b, count: 3 }", "")
            .replace("channel: candidate", "channel: stable")
            .replace("port: 80 } }", "port: 80, path: /healthz } }");
        let (old, new) = (fleet(FLEET), fleet(&new));
        let expected = "~ Fleet web-prod\n  \
                        + spec.sets[c].name         c\n  \
                        + spec.sets[c].count        1\n  \
                        ~ spec.sets[a].count        3 -> 4\n  \
                        - spec.sets[b]              { name: b, count: 3 }\n  \
                        ~ spec.health.http.path     / -> /healthz\n  \
                        ~ spec.channel.channel      candidate -> stable\n";
        let text = render(&new, false, &diff(Some(&old), &new));
        let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeeze(&text), squeeze(expected), "{text}");
    }

    #[test]
    fn a_new_resource_is_all_additions() {
        let new = fleet(FLEET);
        let changes = diff(None, &new);
        assert!(
            changes
                .iter()
                .all(|change| change.before.is_none() && change.after.is_some()),
            "{changes:#?}"
        );
        assert!(render(&new, true, &changes).starts_with("+ Fleet web-prod (new)\n  + spec.team"));
    }

    #[test]
    fn the_order_of_sets_is_a_change_of_its_own() {
        let swapped = FLEET.replace(
            "[{ name: a, count: 3 }, { name: b, count: 3 }]",
            "[{ name: b, count: 3 }, { name: a, count: 3 }]",
        );
        let changes = diff(Some(&fleet(FLEET)), &fleet(&swapped));
        assert_eq!(
            changes.iter().map(|c| c.path.as_str()).collect::<Vec<_>>(),
            ["spec.sets (order)"]
        );
    }
}
