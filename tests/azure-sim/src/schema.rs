//! The published body types (`contract/schema.json`): what a request may say, what an answer must be.
//!
//! Compute refuses members that its types do not have and ignores those that only it may set, so
//! both directions are judged by the same table. Enumerations that are open in the types take any
//! text; closed ones take their members only, in their case.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::problem::Problem;

const TYPES: &str = include_str!("../contract/schema.json");

const REQUIRED: u64 = 1;
const READ_ONLY: u64 = 2;
const WRITE_ONLY: u64 = 4;

/// What Azure sends although its own types do not have it (seen in recorded traffic).
const UNDECLARED: [&str; 2] = ["isArmResource", "faultDomain"];
/// Kept by the service: no answer ever repeats them.
pub(crate) const SECRETS: [&str; 5] = [
    "adminPassword",
    "customData",
    "userData",
    "protectedSettings",
    "protectedParameters",
];
/// The envelope of a resource, which a request may repeat and nobody looks at.
const ENVELOPE: [&str; 4] = ["id", "name", "type", "apiVersion"];

#[derive(Debug)]
enum Shape {
    Text,
    Flag,
    Any,
    Whole { min: Option<i64>, max: Option<i64> },
    Literal(String),
    List(usize),
    Either(Vec<usize>),
    Object(Object),
}

#[derive(Debug)]
struct Object {
    name: String,
    fields: BTreeMap<String, (usize, u64)>,
    rest: Option<usize>,
}

/// All types.
#[derive(Debug)]
pub struct Schema {
    shapes: Vec<Shape>,
    resources: BTreeMap<String, usize>,
}

impl Default for Schema {
    fn default() -> Schema {
        let whole: Value = serde_json::from_str(TYPES).expect("contract/schema.json is JSON");
        let shapes = whole["types"].as_array().expect("it has types");
        let resources = whole["resources"].as_object().expect("it has resources");
        Schema {
            shapes: shapes.iter().map(shape).collect(),
            resources: resources
                .iter()
                .map(|(name, at)| (name.clone(), index(at)))
                .collect(),
        }
    }
}

fn index(value: &Value) -> usize {
    usize::try_from(value.as_u64().expect("a type's number")).expect("a small number")
}

fn shape(value: &Value) -> Shape {
    let plain = value.as_array().map_or(value, |pair| &pair[0]);
    let limit = |name: &str| value.get(1).and_then(|limits| limits[name].as_i64());
    match plain.as_str() {
        Some("s") => return Shape::Text,
        Some("b") => return Shape::Flag,
        Some("any") => return Shape::Any,
        Some("n") => {
            return Shape::Whole {
                min: limit("minValue"),
                max: limit("maxValue"),
            };
        }
        _ => {}
    }
    if let Some(literal) = value["l"].as_str() {
        return Shape::Literal(literal.to_owned());
    }
    if let Some(elements) = value["u"].as_array() {
        return Shape::Either(elements.iter().map(index).collect());
    }
    if value.get("i").is_some() {
        return Shape::List(index(&value["i"]));
    }
    let fields = value["p"].as_object().expect("an object has properties");
    let field = |(name, pair): (&String, &Value)| {
        let flags = pair[1].as_u64().expect("flags are a number");
        (name.clone(), (index(&pair[0]), flags))
    };
    Shape::Object(Object {
        name: value["n"].as_str().unwrap_or_default().to_owned(),
        fields: fields.iter().map(field).collect(),
        rest: value.get("a").map(index),
    })
}

/// A request that creates needs what is required; one that changes does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// PUT.
    Whole,
    /// PATCH.
    Part,
}

impl Schema {
    /// The body of a request without what only the service may set.
    ///
    /// # Errors
    /// It says something that the type does not have, in Azure's words.
    pub fn accept(&self, resource: &str, body: &Value, need: Need) -> Result<Value, Problem> {
        let Some(Shape::Object(top)) = self.resources.get(resource).map(|at| &self.shapes[*at])
        else {
            return Ok(body.clone());
        };
        let Value::Object(given) = body else {
            return Err(Problem::new(
                400,
                "InvalidRequestContent",
                "The request content was invalid and could not be deserialized.",
            ));
        };
        let mut given = given.clone();
        for key in ENVELOPE {
            given.shift_remove(key);
        }
        let mut out = Map::new();
        for (key, value) in &given {
            self.field(top, key, value, key, need, &mut out)?;
        }
        if need == Need::Whole {
            for (key, (_, flags)) in &top.fields {
                let wanted = flags & REQUIRED != 0 && !ENVELOPE.contains(&key.as_str());
                if wanted && !out.contains_key(key) {
                    return Err(match key.as_str() {
                        "location" => Problem::new(
                            400,
                            "LocationRequired",
                            "The location property is required for this definition.",
                        ),
                        _ => Problem::required(key),
                    });
                }
            }
        }
        Ok(Value::Object(out))
    }

    fn field(
        &self,
        object: &Object,
        key: &str,
        value: &Value,
        path: &str,
        need: Need,
        out: &mut Map<String, Value>,
    ) -> Result<(), Problem> {
        let (at, flags) = match (object.fields.get(key), object.rest) {
            (Some(field), _) => *field,
            (None, Some(rest)) => (rest, 0),
            (None, None) if UNDECLARED.contains(&key) => return Ok(()),
            (None, None) => {
                return Err(Problem::bad_request(format!(
                    "Could not find member '{key}' on object of type '{}'. Path '{path}', line 1, position 1.",
                    object.name.rsplit('/').next().unwrap_or_default()
                ))
                .about(path));
            }
        };
        if flags & READ_ONLY != 0 {
            return Ok(());
        }
        if value.is_null() {
            // In a PATCH null means "take it away"; in a PUT it means "not given".
            if need == Need::Part {
                out.insert(key.to_owned(), Value::Null);
            }
            return Ok(());
        }
        let value = self.value(at, value, path, need)?;
        out.insert(key.to_owned(), value);
        Ok(())
    }

    fn value(&self, at: usize, value: &Value, path: &str, need: Need) -> Result<Value, Problem> {
        let wrong = || {
            Problem::bad_request(format!(
                "Error converting value {value} to type of '{path}'. Path '{path}', line 1, position 1."
            ))
            .about(path)
        };
        match &self.shapes[at] {
            Shape::List(of) => {
                let elements = value.as_array().ok_or_else(wrong)?.iter().enumerate();
                // An element is given whole, also in a PATCH.
                let need = if need == Need::Part {
                    need
                } else {
                    Need::Whole
                };
                elements
                    .map(|(n, one)| self.value(*of, one, &format!("{path}[{n}]"), need))
                    .collect()
            }
            Shape::Object(object) => {
                let given = value.as_object().ok_or_else(wrong)?;
                let mut out = Map::new();
                for (key, value) in given {
                    self.field(object, key, value, &format!("{path}.{key}"), need, &mut out)?;
                }
                let absent = object
                    .fields
                    .iter()
                    .find(|(key, (_, flags))| flags & REQUIRED != 0 && !out.contains_key(*key));
                match absent {
                    Some((key, _)) if need == Need::Whole => {
                        Err(Problem::required(&format!("{path}.{key}")))
                    }
                    _ => Ok(Value::Object(out)),
                }
            }
            _ if self.fits(at, value) => Ok(value.clone()),
            Shape::Whole { min, max } if value.is_i64() => Err(Problem::parameter(
                path,
                format!(
                    "The value of parameter {path} is invalid: {value} is outside of [{}, {}].",
                    min.map_or_else(String::new, |min| min.to_string()),
                    max.map_or_else(String::new, |max| max.to_string())
                ),
            )),
            _ => Err(wrong()),
        }
    }

    /// Whether a value without members is what the type says.
    fn fits(&self, at: usize, value: &Value) -> bool {
        match &self.shapes[at] {
            Shape::Any => true,
            Shape::Text => value.is_string(),
            Shape::Flag => value.is_boolean(),
            // Prices are declared whole and sent broken.
            Shape::Whole { min, max } => match value.as_i64() {
                Some(n) => min.is_none_or(|min| n >= min) && max.is_none_or(|max| n <= max),
                None => value.is_number(),
            },
            Shape::Literal(literal) => value.as_str() == Some(literal),
            Shape::Either(of) => of.iter().any(|at| self.fits(*at, value)),
            Shape::List(_) | Shape::Object(_) => false,
        }
    }

    /// What is wrong with the body of an answer; nothing when the type is not known.
    #[must_use]
    pub fn faults(&self, resource: &str, body: &Value) -> Vec<String> {
        let mut found = Vec::new();
        if let Some(at) = self.resources.get(resource) {
            self.judge(*at, body, resource, &mut found);
        }
        found
    }

    /// Whether bodies of this resource can be judged.
    #[must_use]
    pub fn knows(&self, resource: &str) -> bool {
        self.resources.contains_key(resource)
    }

    fn judge(&self, at: usize, value: &Value, path: &str, found: &mut Vec<String>) {
        match (&self.shapes[at], value) {
            (Shape::Object(object), Value::Object(given)) => {
                for (key, value) in given {
                    let path = format!("{path}.{key}");
                    if SECRETS.contains(&key.as_str()) {
                        found.push(format!("{path} is a secret"));
                    }
                    match (object.fields.get(key), object.rest) {
                        (Some((_, flags)), _) if flags & WRITE_ONLY != 0 => {
                            found.push(format!("{path} is only ever written"));
                        }
                        (Some((at, _)), _) => self.judge(*at, value, &path, found),
                        (None, Some(rest)) => self.judge(rest, value, &path, found),
                        (None, None) if UNDECLARED.contains(&key.as_str()) => {}
                        (None, None) => found.push(format!("{path} is not in the type")),
                    }
                }
                let absent = |(key, (_, flags)): &(&String, &(usize, u64))| {
                    flags & REQUIRED != 0 && !given.contains_key(*key)
                };
                for (key, _) in object.fields.iter().filter(absent) {
                    found.push(format!("{path}.{key} is required"));
                }
            }
            (Shape::List(of), Value::Array(elements)) => {
                for (n, one) in elements.iter().enumerate() {
                    self.judge(*of, one, &format!("{path}[{n}]"), found);
                }
            }
            _ if self.fits(at, value) => {}
            _ => found.push(format!("{path} may not be {value}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn disk() -> Value {
        json!({"location": "westeurope", "properties": {
            "creationData": {"createOption": "Empty"}, "diskSizeGB": 4, "timeCreated": "ignored"}})
    }

    #[test]
    fn what_only_the_service_sets_is_dropped_from_a_request() {
        let schema = Schema::default();
        let body = schema
            .accept("disks", &disk(), Need::Whole)
            .expect("a disk");
        assert_eq!(body["properties"]["diskSizeGB"], 4);
        assert_eq!(body["properties"].get("timeCreated"), None);
    }

    #[test]
    fn unknown_members_wrong_types_closed_enumerations_and_ranges_are_refused() {
        let schema = Schema::default();
        let wrong = [
            (
                "disks",
                "/properties/colour",
                json!("red"),
                "Could not find member 'colour'",
            ),
            (
                "disks",
                "/properties/diskSizeGB",
                json!("4"),
                "Error converting value",
            ),
            (
                "disks",
                "/properties/osType",
                json!("linux"),
                "Error converting value",
            ),
            (
                "virtualmachinescalesets",
                "/properties/upgradePolicy",
                json!({"rollingUpgradePolicy": {"maxBatchInstancePercent": 120}}),
                "outside of [5, 100]",
            ),
        ];
        for (resource, pointer, value, said) in wrong {
            let mut body = json!({"location": "x", "properties": {}});
            if resource == "disks" {
                body = disk();
            }
            let (parent, key) = pointer.rsplit_once('/').expect("a path");
            body.pointer_mut(parent).expect("it is there")[key] = value;
            let problem = schema
                .accept(resource, &body, Need::Whole)
                .expect_err(pointer);
            assert_eq!(problem.status, 400, "{problem:?}");
            assert!(problem.message.contains(said), "{problem:?}");
        }
        let nowhere = schema.accept("disks", &json!({"properties": {}}), Need::Whole);
        assert_eq!(nowhere.expect_err("no location").code, "InvalidParameter");
    }

    #[test]
    fn an_answer_is_judged_by_required_unknown_and_secret_members() {
        let schema = Schema::default();
        let mut answer = disk();
        answer["name"] = json!("d");
        answer["properties"]["provisioningState"] = json!("Succeeded");
        assert_eq!(schema.faults("disks", &answer), Vec::<String>::new());
        answer["properties"]["adminPassword"] = json!("x");
        answer["properties"]["diskState"] = json!(5);
        answer
            .as_object_mut()
            .expect("an object")
            .remove("location");
        let found = schema.faults("disks", &answer);
        assert_eq!(found.len(), 4, "{found:?}");
    }
}
