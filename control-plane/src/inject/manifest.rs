//! Reading JSON objects as far as they are known, with the place of what is not as it must be.

use leno_api::Invalid;
use serde_json::{Map, Value};

pub(super) type Fields = Map<String, Value>;

/// Whether a list was there, and as what: an empty one is told from none when all is undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Absent {
    Missing,
    Null,
}

/// The object in a field. `None` where there is none.
pub(super) fn object<'a>(
    fields: &'a Fields,
    key: &str,
    path: &str,
) -> Result<Option<&'a Fields>, Invalid> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(fields)) => Ok(Some(fields)),
        Some(_) => Err(Invalid::one(join(path, key), "must be an object")),
    }
}

/// The list in a field. Empty where there is none.
pub(super) fn list<'a>(fields: &'a Fields, key: &str, path: &str) -> Result<&'a [Value], Invalid> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(_) => Err(Invalid::one(join(path, key), "must be a list")),
    }
}

/// The objects of a list, each with its place.
pub(super) fn objects<'a>(
    fields: &'a Fields,
    key: &str,
    path: &str,
) -> Result<Vec<(String, &'a Fields)>, Invalid> {
    let items = list(fields, key, path)?.iter().enumerate();
    items
        .map(|(at, item)| {
            let path = format!("{}[{at}]", join(path, key));
            match item {
                Value::Object(fields) => Ok((path, fields)),
                _ => Err(Invalid::one(path, "must be an object")),
            }
        })
        .collect()
}

/// The truth in a field. `None` where there is none. Kubernetes knows only `true` and `false`, and so do we: `yes` in
/// a manifest is a text.
pub(super) fn boolean(fields: &Fields, key: &str, path: &str) -> Result<Option<bool>, Invalid> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(truth)) => Ok(Some(*truth)),
        Some(_) => Err(Invalid::one(join(path, key), "must be true or false")),
    }
}

/// The text in a field. `None` where there is none.
pub(super) fn text<'a>(
    fields: &'a Fields,
    key: &str,
    path: &str,
) -> Result<Option<&'a str>, Invalid> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Invalid::one(
            join(path, key),
            "must be text: put numbers and true or false into quotes",
        )),
    }
}

/// The list in a field, made where there is none; with what there was instead.
pub(super) fn made_list<'a>(
    fields: &'a mut Fields,
    key: &str,
    path: &str,
) -> Result<(&'a mut Vec<Value>, Option<Absent>), Invalid> {
    let absent = absent(fields, key);
    if absent.is_some() {
        fields.insert(key.to_owned(), Value::Array(Vec::new()));
    }
    match fields.get_mut(key) {
        Some(Value::Array(items)) => Ok((items, absent)),
        _ => Err(Invalid::one(join(path, key), "must be a list")),
    }
}

/// The object in a field, made where there is none; with what there was instead.
pub(super) fn made_object<'a>(
    fields: &'a mut Fields,
    key: &str,
    path: &str,
) -> Result<(&'a mut Fields, Option<Absent>), Invalid> {
    let absent = absent(fields, key);
    if absent.is_some() {
        fields.insert(key.to_owned(), Value::Object(Map::new()));
    }
    match fields.get_mut(key) {
        Some(Value::Object(inner)) => Ok((inner, absent)),
        _ => Err(Invalid::one(join(path, key), "must be an object")),
    }
}

/// Puts back what there was instead of a list or object, where it is empty now.
pub(super) fn unmake(fields: &mut Fields, key: &str, absent: Option<Absent>) {
    let empty = match fields.get(key) {
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(inner)) => inner.is_empty(),
        _ => false,
    };
    match absent.filter(|_| empty) {
        Some(Absent::Missing) => drop(fields.remove(key)),
        Some(Absent::Null) => drop(fields.insert(key.to_owned(), Value::Null)),
        None => {}
    }
}

fn absent(fields: &Fields, key: &str) -> Option<Absent> {
    match fields.get(key) {
        None => Some(Absent::Missing),
        Some(Value::Null) => Some(Absent::Null),
        Some(_) => None,
    }
}

/// A field's place.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
