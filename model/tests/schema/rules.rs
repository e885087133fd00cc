//! As much of JSON Schema draft 7 as our schemas use. An unknown keyword is a panic, not a pass.

use oast_model::document::{Node, Value as Yaml, yaml};
use serde_json::{Map, Value};

/// The documents of a YAML text as JSON values, typed as editors type them.
pub fn documents(text: &str) -> Vec<Value> {
    let parsed = yaml::parse("test", text);
    assert_eq!(parsed.problems, []);
    parsed.documents.iter().map(json).collect()
}

fn json(node: &Node) -> Value {
    match &node.value {
        Yaml::Scalar { .. } if node.is_null() => Value::Null,
        Yaml::Scalar { text, plain: true } => match text.as_str() {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            text => match text.parse::<i64>() {
                Ok(number) => Value::from(number),
                Err(_) => Value::from(text),
            },
        },
        Yaml::Scalar { text, .. } => Value::from(text.as_str()),
        Yaml::List(items) => items.iter().map(json).collect(),
        Yaml::Map(entries) => Value::Object(
            entries
                .iter()
                .map(|(key, value)| (key.text.clone(), json(value)))
                .collect(),
        ),
    }
}

/// What in a document breaks the schema.
pub fn breaches(schema: &Value, document: &Value) -> Vec<String> {
    let mut found = Vec::new();
    judge(schema, schema, document, "", &mut found);
    found
}

fn judge(root: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let rules = match schema {
        Value::Bool(true) => return,
        Value::Bool(false) => return found.push(format!("{at}: not allowed")),
        Value::Object(rules) => rules,
        other => panic!("no schema: {other}"),
    };
    for (keyword, rule) in rules {
        let breach = match keyword.as_str() {
            "$schema" | "$id" | "title" | "description" | "definitions" | "default"
            | "examples" | "then" => false,
            "$ref" => {
                let pointer = rule
                    .as_str()
                    .and_then(|r| r.strip_prefix('#'))
                    .expect("a local reference");
                judge(
                    root,
                    root.pointer(pointer).expect("a definition"),
                    value,
                    at,
                    found,
                );
                false
            }
            "allOf" => {
                rule.as_array()
                    .expect("a list")
                    .iter()
                    .for_each(|rule| judge(root, rule, value, at, found));
                false
            }
            "if" => {
                let mut condition = Vec::new();
                judge(root, rule, value, at, &mut condition);
                if condition.is_empty() {
                    judge(root, &rules["then"], value, at, found);
                }
                false
            }
            "const" => value != rule,
            "enum" => !rule.as_array().expect("a list").contains(value),
            "type" => match rule {
                Value::Array(types) => !types.iter().any(|rule| is(value, rule)),
                rule => !is(value, rule),
            },
            "required" => value.as_object().is_some_and(|map| {
                let keys = rule.as_array().expect("a list");
                keys.iter()
                    .any(|key| !map.contains_key(key.as_str().expect("a key")))
            }),
            "properties" => {
                for (key, rule) in rule.as_object().expect("a map") {
                    if let Some(inner) = value.get(key) {
                        judge(root, rule, inner, &format!("{at}/{key}"), found);
                    }
                }
                false
            }
            "additionalProperties" => {
                let none = Map::new();
                let named = rules
                    .get("properties")
                    .and_then(Value::as_object)
                    .unwrap_or(&none);
                for (key, inner) in value.as_object().unwrap_or(&none) {
                    if !named.contains_key(key) {
                        judge(root, rule, inner, &format!("{at}/{key}"), found);
                    }
                }
                false
            }
            "dependencies" => {
                for (key, rule) in rule.as_object().expect("a map") {
                    if value.get(key).is_some() {
                        judge(root, rule, value, at, found);
                    }
                }
                false
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    judge(root, rule, item, &format!("{at}/{index}"), found);
                }
                false
            }
            "minProperties" => value
                .as_object()
                .is_some_and(|map| map.len() < number(rule)),
            "maxProperties" => value
                .as_object()
                .is_some_and(|map| map.len() > number(rule)),
            "minItems" => value
                .as_array()
                .is_some_and(|list| list.len() < number(rule)),
            "maxItems" => value
                .as_array()
                .is_some_and(|list| list.len() > number(rule)),
            "minLength" => value
                .as_str()
                .is_some_and(|text| text.chars().count() < number(rule)),
            "minimum" => value
                .as_i64()
                .is_some_and(|n| n < rule.as_i64().expect("a number")),
            "maximum" => value
                .as_i64()
                .is_some_and(|n| n > rule.as_i64().expect("a number")),
            "pattern" => value.as_str().is_some_and(|text| {
                !regex::Regex::new(rule.as_str().expect("a text"))
                    .expect("a pattern")
                    .is_match(text)
            }),
            other => panic!("the schema uses `{other}`, which is not known here"),
        };
        if breach {
            found.push(format!("{at}: {keyword}"));
        }
    }
}

fn number(rule: &Value) -> usize {
    usize::try_from(rule.as_u64().expect("a number")).expect("a small number")
}

fn is(value: &Value, rule: &Value) -> bool {
    match rule.as_str().expect("a type") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        other => panic!("no type: {other}"),
    }
}
