//! A JSON schema as Kubernetes wants it in the definition of a resource: "structural", that is a type at every place,
//! nothing but conditions inside alternatives, no keyword that its API server does not know.
//!
//! Objects keep fields that the schema does not know. Kubernetes would drop them without a word, before any webhook
//! could see them, and a policy of which half is not there is a hole; kept, they are refused by name.

use serde_json::{Map, Value, json};

/// Written out, since it is said at every place where it holds.
const KEEP_UNKNOWN: &str = "x-kubernetes-preserve-unknown-fields";
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";
/// Formats that Kubernetes knows; others only make `kubectl` warn.
const FORMATS: [&str; 5] = ["int32", "int64", "float", "double", "date-time"];

/// `schema` (subschemas inlined) in structural form.
pub fn structural(schema: &Value) -> Value {
    let Some(fields) = schema.as_object() else { return anything(None) };
    if let Some(inner) = nullable(fields) {
        let mut result = structural(inner);
        result["nullable"] = true.into();
        if let Some(description) = fields.get("description") {
            result["description"] = described(description, choices(inner));
        }
        return result;
    }
    if fields.get(INT_OR_STRING) == Some(&true.into()) {
        return common(fields, [(INT_OR_STRING, true.into())]);
    }
    if let Some(choices) = choices(schema) {
        return alternatives(fields, choices);
    }
    match fields.get("type").and_then(Value::as_str) {
        Some("object") => object(fields),
        Some("array") => array(fields),
        Some(scalar) => leaf(fields, scalar),
        None => anything(Some(fields)),
    }
}

/// What is said of anything: what it is for, and whether it may be null.
fn common<const N: usize>(fields: &Map<String, Value>, more: [(&str, Value); N]) -> Value {
    let mut result = Map::new();
    for name in ["description", "nullable"] {
        if let Some(value) = fields.get(name) {
            result.insert(name.to_owned(), value.clone());
        }
    }
    result.extend(more.map(|(name, value)| (name.to_owned(), value)));
    Value::Object(result)
}

fn anything(fields: Option<&Map<String, Value>>) -> Value {
    common(fields.unwrap_or(&Map::new()), [(KEEP_UNKNOWN, true.into())])
}

fn leaf(fields: &Map<String, Value>, scalar: &str) -> Value {
    let mut result = common(fields, [("type", scalar.into())]);
    for name in ["enum", "minimum", "maximum", "minLength", "maxLength", "pattern"] {
        if let Some(value) = fields.get(name) {
            result[name] = value.clone();
        }
    }
    if let Some(format) = fields.get("format").filter(|format| FORMATS.iter().any(|f| f == *format))
    {
        result["format"] = format.clone();
    }
    result
}

fn array(fields: &Map<String, Value>) -> Value {
    let items = fields.get("items").map_or_else(|| anything(None), structural);
    let mut result = common(fields, [("type", "array".into()), ("items", items)]);
    for name in ["minItems", "maxItems"] {
        if let Some(value) = fields.get(name) {
            result[name] = value.clone();
        }
    }
    // `uniqueItems` is not taken; for lists of scalars this says the same.
    if fields.get("uniqueItems") == Some(&true.into()) {
        result["x-kubernetes-list-type"] = "set".into();
    }
    result
}

fn object(fields: &Map<String, Value>) -> Value {
    let mut result = common(fields, [("type", "object".into())]);
    // Either a map, or known fields: Kubernetes takes no schema with both, nor `false`.
    if let Some(values) = fields.get("additionalProperties").filter(|values| values.is_object()) {
        result["additionalProperties"] = structural(values);
        return result;
    }
    result[KEEP_UNKNOWN] = true.into();
    if let Some(properties) = fields.get("properties").and_then(Value::as_object) {
        let properties = properties.iter().map(|(name, field)| (name.clone(), structural(field)));
        result["properties"] = Value::Object(properties.collect());
    }
    if let Some(required) = fields.get("required") {
        result["required"] = required.clone();
    }
    result
}

/// What `anyOf: [x, null]` is about.
fn nullable(fields: &Map<String, Value>) -> Option<&Value> {
    match fields.get("anyOf")?.as_array()?.as_slice() {
        [inner, null] if null.get("enum") == Some(&json!([null])) => Some(inner),
        _ => None,
    }
}

/// The strings among which a schema chooses, each with what it means.
fn choices(schema: &Value) -> Option<Vec<(&str, Option<&str>)>> {
    let mut found = Vec::new();
    for alternative in schema.get("oneOf")?.as_array()? {
        let description = alternative.get("description").and_then(Value::as_str);
        for value in alternative.get("enum")?.as_array()? {
            found.push((value.as_str()?, description));
        }
    }
    Some(found)
}

/// One `enum` for them all, with the meanings in the description.
fn alternatives(fields: &Map<String, Value>, choices: Vec<(&str, Option<&str>)>) -> Value {
    let values: Vec<_> = choices.iter().map(|(value, _)| *value).collect();
    let mut result = common(fields, [("type", "string".into()), ("enum", values.into())]);
    let description = fields.get("description").cloned().unwrap_or_default();
    result["description"] = described(&description, Some(choices));
    result
}

fn described(description: &Value, choices: Option<Vec<(&str, Option<&str>)>>) -> Value {
    let meanings = choices.unwrap_or_default().into_iter();
    let meanings = meanings.filter_map(|(value, meaning)| Some(format!("`{value}`: {}", meaning?)));
    let whole: Vec<_> =
        description.as_str().map(str::to_owned).into_iter().chain(meanings).collect();
    whole.join("\n").into()
}
