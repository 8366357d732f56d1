//! What can be set: the chart's `values.yaml`, with what people change of it, checked by the chart's schema.

use leno_api::yaml;
use serde_json::{Map, Value};

const DEFAULTS: &str = include_str!("../../../deploy/helm/leno/values.yaml");
const SCHEMA: &str = include_str!("../../../deploy/helm/leno/values.schema.json");

/// Settings of an installation, complete and each of its right type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values(Value);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}: is not YAML: {1}")]
    NotYaml(String, String),
    #[error("{0}: must be one document of settings, as deploy/helm/leno/values.yaml is")]
    NotSettings(String),
    #[error("--set {0}: must be NAME=VALUE, such as webhook.failurePolicy=Ignore")]
    NotAPair(String),
    #[error("{path}: there is no such setting; {known}")]
    Unknown { path: String, known: String },
    #[error("{path}: {problem}")]
    Wrong { path: String, problem: String },
    #[error(
        "replicas: more than one replica needs ca.secret, or each would issue certificates that the others do not trust"
    )]
    ReplicasWithoutSecret,
}

impl Values {
    /// The chart's own settings with those of `files` (name and text) and of `sets` (`a.b=c`), later ones first.
    ///
    /// # Errors
    /// The first thing that is wrong, by its path.
    pub fn new(files: &[(String, String)], sets: &[String]) -> Result<Self, Error> {
        let mut values = document("values.yaml", DEFAULTS)?;
        for (name, text) in files {
            merge(&mut values, document(name, text)?);
        }
        for set in sets {
            merge(&mut values, assignment(set)?);
        }
        check(&values, &schema(), "")?;
        let values = Self(values);
        let replicas = values.at("replicas").as_u64().unwrap_or(1);
        if replicas > 1 && !values.holds("ca.secret") {
            return Err(Error::ReplicasWithoutSecret);
        }
        Ok(values)
    }

    /// The setting at `a.b`; null where there is none.
    pub fn at(&self, path: &str) -> &Value {
        path.split('.').fold(&self.0, |value, name| &value[name])
    }

    /// Whether it is on: true, or text that is not empty.
    pub fn holds(&self, path: &str) -> bool {
        match self.at(path) {
            Value::Bool(on) => *on,
            Value::String(text) => !text.is_empty(),
            _ => false,
        }
    }
}

fn schema() -> Value {
    // Part of the program; a test reads it.
    serde_json::from_str(SCHEMA).unwrap_or_default()
}

fn document(name: &str, text: &str) -> Result<Value, Error> {
    let read = yaml::documents(text);
    let mut documents = read.map_err(|error| Error::NotYaml(name.to_owned(), error.to_string()))?;
    match (documents.pop(), documents.is_empty()) {
        (Some(document), true) if document.value.is_object() => Ok(document.value),
        (None, _) => Ok(Value::Object(Map::new())),
        _ => Err(Error::NotSettings(name.to_owned())),
    }
}

/// `a.b=c` as `{a: {b: c}}`; the value is read as YAML, so that numbers are numbers.
fn assignment(set: &str) -> Result<Value, Error> {
    let wrong = || Error::NotAPair(set.to_owned());
    let (path, text) = set.split_once('=').ok_or_else(wrong)?;
    if path.split('.').any(str::is_empty) {
        return Err(wrong());
    }
    let read = yaml::documents(&format!("- {text}\n"));
    let value = match read.ok().and_then(|mut documents| documents.pop()) {
        _ if text.is_empty() => Value::String(String::new()),
        Some(document) => document.value.get(0).cloned().unwrap_or_default(),
        None => Value::String(text.to_owned()),
    };
    let names = path.rsplit('.');
    Ok(names
        .fold(value, |value, name| Value::Object([(name.to_owned(), value)].into_iter().collect())))
}

/// As Helm does: objects are merged, everything else is replaced.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(fields), Value::Object(more)) => {
            for (name, value) in more {
                merge(fields.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// As far as the schema says it in words that the command can explain; the rest the control plane's own flags say.
fn check(value: &Value, schema: &Value, path: &str) -> Result<(), Error> {
    let wrong = |problem: String| Error::Wrong { path: path.to_owned(), problem };
    let kinds = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        kind => kind.as_str().into_iter().collect::<Vec<_>>(),
    };
    if !kinds.is_empty() && !kinds.iter().any(|kind| is(value, kind)) {
        return Err(wrong(format!("{value} is not {}", kinds.join(" or "))));
    }
    if let Some(choices) = schema["enum"].as_array().filter(|choices| !choices.contains(value)) {
        let choices: Vec<_> = choices.iter().filter_map(Value::as_str).collect();
        return Err(wrong(format!("must be one of {}", choices.join(", "))));
    }
    for (bound, over) in [("minimum", false), ("maximum", true)] {
        let limit = schema[bound].as_i64().zip(value.as_i64());
        if let Some((limit, _)) =
            limit.filter(|(limit, value)| if over { value > limit } else { value < limit })
        {
            return Err(wrong(format!(
                "must be {} {limit}",
                if over { "at most" } else { "at least" }
            )));
        }
    }
    let Some(fields) = value.as_object() else { return Ok(()) };
    for (name, field) in fields {
        let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Null, Value::Bool(false)) => return Err(unknown(at, schema)),
            (Value::Null, _) => {}
            (known, _) => check(field, known, &at)?,
        }
    }
    Ok(())
}

fn is(value: &Value, kind: &str) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        _ => false,
    }
}

fn unknown(path: String, schema: &Value) -> Error {
    let names = schema["properties"].as_object().into_iter().flat_map(Map::keys);
    let names: Vec<_> = names.map(String::as_str).collect();
    Error::Unknown { path, known: format!("here there are {}", names.join(", ")) }
}
