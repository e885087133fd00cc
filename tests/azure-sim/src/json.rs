//! Reaching into JSON by dotted paths.

use serde_json::{Map, Value};

/// The value at `path`, as `properties.creationData.createOption`.
#[must_use]
pub fn at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.')
        .try_fold(value, |value, key| value.get(key))
        .filter(|value| !value.is_null())
}

/// The text at `path`.
#[must_use]
pub fn text<'v>(value: &'v Value, path: &str) -> Option<&'v str> {
    at(value, path)?.as_str()
}

/// The whole number at `path`.
#[must_use]
pub fn number(value: &Value, path: &str) -> Option<u64> {
    at(value, path)?.as_u64()
}

/// The elements of the array at `path`; none when there is no such array.
#[must_use]
pub fn list<'v>(value: &'v Value, path: &str) -> &'v [Value] {
    at(value, path)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// Puts `new` at `path`; objects on the way are made.
pub fn set(value: &mut Value, path: &str, new: impl Into<Value>) {
    let place = path.split('.').fold(value, |value, key| {
        if !value.is_object() {
            *value = Value::Object(Map::new());
        }
        value
            .as_object_mut()
            .expect("it was made an object")
            .entry(key)
            .or_insert(Value::Null)
    });
    *place = new.into();
}

/// Puts `new` at `path` unless something is there.
pub fn default(value: &mut Value, path: &str, new: impl Into<Value>) {
    if at(value, path).is_none() {
        set(value, path, new);
    }
}

/// Takes what is at `path` away.
pub fn remove(value: &mut Value, path: &str) {
    let (parent, key) = match path.rsplit_once('.') {
        Some((parent, key)) => (
            parent
                .split('.')
                .try_fold(value, |value, key| value.get_mut(key)),
            key,
        ),
        None => (Some(value), path),
    };
    if let Some(object) = parent.and_then(Value::as_object_mut) {
        object.shift_remove(key);
    }
}

/// What a PATCH does: objects are merged, anything else is replaced, null takes away.
pub fn merge(into: &mut Value, patch: &Value) {
    let (Some(object), Some(changes)) = (into.as_object_mut(), patch.as_object()) else {
        *into = patch.clone();
        return;
    };
    for (key, change) in changes {
        if change.is_null() {
            object.shift_remove(key);
        } else if change.is_object() {
            merge(
                object
                    .entry(key.clone())
                    .or_insert_with(|| Value::Object(Map::new())),
                change,
            );
        } else {
            object.insert(key.clone(), change.clone());
        }
    }
}
