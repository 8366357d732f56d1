//! Request bodies: bounded in size, time and depth; JSON or YAML; no field twice.

use std::{fmt, time::Duration};

use axum::body::{Body, Bytes, to_bytes};
use http::{HeaderMap, header};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::Failure;

/// How long a body may take to arrive.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Deepest nesting; resources need about 15.
const MAX_DEPTH: usize = 64;

/// What a body claims to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Yaml,
    MergePatch,
    JsonPatch,
    Apply,
}

impl Format {
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Failure> {
        let header = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = header.unwrap_or("application/json").split(';').next().unwrap_or_default();
        match media_type.trim().to_ascii_lowercase().as_str() {
            "application/json" => Ok(Self::Json),
            "application/yaml" | "application/x-yaml" => Ok(Self::Yaml),
            // Lists in our kinds are replaced as a whole, hence both kinds of merge are one.
            "application/merge-patch+json" | "application/strategic-merge-patch+json" => {
                Ok(Self::MergePatch)
            }
            "application/json-patch+json" => Ok(Self::JsonPatch),
            "application/apply-patch+yaml" | "application/apply-patch+json" => Ok(Self::Apply),
            other => Err(Failure::unsupported_media_type(
                other,
                "application/json, application/yaml or, to PATCH, application/merge-patch+json, application/json-patch+json or application/apply-patch+yaml",
            )),
        }
    }
}

/// A whole resource.
pub(super) async fn resource(
    body: Body,
    headers: &HeaderMap,
    limit: usize,
) -> Result<Value, Failure> {
    let format = Format::of(headers)?;
    let bytes = read(body, headers, limit).await?;
    match format {
        Format::Json => json(&bytes),
        Format::Yaml => yaml(&bytes),
        _ => {
            Err(Failure::unsupported_media_type("a patch", "application/json or application/yaml"))
        }
    }
}

/// A patch, and of which kind it is.
pub(super) async fn patch(
    body: Body,
    headers: &HeaderMap,
    limit: usize,
) -> Result<(Format, Value), Failure> {
    let format = Format::of(headers)?;
    let bytes = read(body, headers, limit).await?;
    let value = match format {
        Format::MergePatch | Format::JsonPatch => json(&bytes)?,
        Format::Apply => yaml(&bytes)?,
        Format::Json | Format::Yaml => {
            return Err(Failure::unsupported_media_type(
                "a resource",
                "a patch: application/merge-patch+json, application/json-patch+json or application/apply-patch+yaml",
            ));
        }
    };
    Ok((format, value))
}

/// The options of a deletion; there need not be any.
pub(super) async fn options(
    body: Body,
    headers: &HeaderMap,
    limit: usize,
) -> Result<Value, Failure> {
    let bytes = read(body, headers, limit).await?;
    if bytes.is_empty() { Ok(Value::Null) } else { json(&bytes) }
}

async fn read(body: Body, headers: &HeaderMap, limit: usize) -> Result<Bytes, Failure> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if announced.and_then(|text| text.parse::<usize>().ok()).is_some_and(|length| length > limit) {
        return Err(Failure::body_too_large(limit));
    }
    match tokio::time::timeout(TIMEOUT, to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_too_long(&error) => Err(Failure::body_too_large(limit)),
        Ok(Err(error)) => Err(Failure::bad_request(format!("the body ended early: {error}"))),
        Err(_) => Err(Failure::body_timeout(TIMEOUT.as_secs())),
    }
}

fn is_too_long(error: &axum::Error) -> bool {
    let source = std::error::Error::source(error);
    source.is_some_and(|source| source.is::<http_body_util::LengthLimitError>())
}

fn json(bytes: &[u8]) -> Result<Value, Failure> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { depth: 0 }.deserialize(&mut reader);
    let value = value.and_then(|value| reader.end().map(|()| value));
    value.map_err(|error| Failure::bad_request(format!("the body is not usable JSON: {error}")))
}

/// Clients send JSON under the name of YAML too; that is read as such, being much faster.
fn yaml(bytes: &[u8]) -> Result<Value, Failure> {
    if bytes.trim_ascii_start().first() == Some(&b'{') {
        return json(bytes);
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Failure::bad_request(format!("the body is not UTF-8: {error}")))?;
    let mut documents = leno_api::yaml::documents(text).map_err(|problem| {
        let line = problem.line.map_or(String::new(), |line| format!("line {line}: "));
        Failure::bad_request(format!("the body is not usable YAML: {line}{problem}"))
    })?;
    match (documents.pop(), documents.len()) {
        (Some(document), 0) => Ok(document.value),
        (_, others) => Err(Failure::bad_request(format!(
            "the body must be one YAML document, not {}",
            if others == 0 { 0 } else { others + 1 }
        ))),
    }
}

/// Reads a JSON value of bounded depth in which no object has a field twice: whichever of the two
/// the writer meant, the other would be dropped silently.
#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.depth > MAX_DEPTH {
            return Err(D::Error::custom(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Strict { depth: self.depth + 1 })? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            if object.contains_key(&name) {
                return Err(A::Error::custom(format!("the field {name:?} stands twice")));
            }
            let value = fields.next_value_seed(Strict { depth: self.depth + 1 })?;
            object.insert(name, value);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(result: Result<Value, Failure>) -> String {
        result.unwrap_err().to_json()["message"].as_str().unwrap().to_owned()
    }

    #[test]
    fn json_is_read_whole_and_strictly() {
        let text = br#"{"a": [1, -2, 3.5, "x", null, true], "b": {"c": {}}}"#;
        let value = super::json(text).unwrap();
        assert_eq!(value, json!({"a": [1, -2, 3.5, "x", null, true], "b": {"c": {}}}));
        assert!(message(super::json(br#"{"a": {"b": 1, "b": 2}}"#)).contains("\"b\" stands twice"));
        assert!(message(super::json(b"{} {}")).contains("trailing"));
        assert!(message(super::json(b"{\"a\": ")).contains("line 1"));
        assert!(message(super::json(b"")).contains("EOF"));
        let deep = format!("{}{}", "[".repeat(70), "]".repeat(70));
        assert!(message(super::json(deep.as_bytes())).contains("64 levels"));
    }

    #[test]
    fn yaml_is_one_document() {
        assert_eq!(yaml(b"a: [1, yes]\n").unwrap(), json!({"a": [1, "yes"]}));
        assert_eq!(yaml(b" {\"a\": 1}").unwrap(), json!({"a": 1}));
        assert!(message(yaml(b"a: 1\n---\nb: 1\n")).contains("not 2"));
        assert!(message(yaml(b"")).contains("not 0"));
        assert!(message(yaml(b"a: [\n")).contains("line"));
        assert!(message(yaml(b"a: \xff")).contains("UTF-8"));
    }

    #[test]
    fn the_format_is_what_the_header_says() {
        let format = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, text.parse().unwrap());
            Format::of(&headers)
        };
        assert_eq!(format("application/json; charset=utf-8").unwrap(), Format::Json);
        assert_eq!(format("application/strategic-merge-patch+json").unwrap(), Format::MergePatch);
        assert_eq!(format("application/apply-patch+yaml").unwrap(), Format::Apply);
        for other in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/vnd.kubernetes.protobuf",
        ] {
            assert!(format(other).is_err(), "{other}");
        }
    }
}
