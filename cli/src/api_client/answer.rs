//! What the API answers: an object with warnings, or a `Status` that says why not.

use std::fmt;

use http::{HeaderMap, Response, StatusCode, header::WARNING};
use hyper::body::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::Error;

/// Most of an answer that is shown when it is not the API's.
const MAX_SHOWN: usize = 300;

/// Success.
#[derive(Debug)]
pub struct Answer {
    pub object: Value,
    /// What is odd about it.
    pub warnings: Vec<String>,
}

/// The API understood and said no.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Refusal {
    pub code: u16,
    pub reason: String,
    pub message: String,
    details: Details,
}

/// One thing that is wrong with what was sent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Cause {
    /// One word for what it is.
    pub reason: String,
    /// `spec.rules[0].name`.
    pub field: String,
    pub message: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    causes: Vec<Cause>,
}

impl Answer {
    pub fn read(server: &str, response: &Response<Bytes>) -> Result<Self, Error> {
        let status = response.status();
        let body: Option<Value> = serde_json::from_slice(response.body()).ok();
        let Some(object) = body else {
            return Err(not_ours(server, status, response.body()));
        };
        if !status.is_success() {
            let refusal = Refusal::read(status, &object);
            return Err(match refusal {
                Some(refusal) => Error::Refused(refusal),
                None => not_ours(server, status, response.body()),
            });
        }
        Ok(Self { object, warnings: warnings(response.headers()) })
    }
}

impl Refusal {
    /// Reads a `Status`; `None` when it is something else.
    pub fn read(status: StatusCode, object: &Value) -> Option<Self> {
        if object.get("kind").and_then(Value::as_str) != Some("Status") {
            return None;
        }
        let mut refusal = Self::deserialize(object).ok()?;
        if refusal.code == 0 {
            refusal.code = status.as_u16();
        }
        Some(refusal)
    }

    /// What is wrong with which field, where the API says so.
    pub fn causes(&self) -> &[Cause] {
        &self.details.causes
    }

    /// Fields belong to somebody else (server-side apply).
    pub fn is_about_owners(&self) -> bool {
        self.causes().iter().any(|cause| cause.reason == "FieldManagerConflict")
    }

    /// The object is not there (but its kind is).
    pub fn is_missing_object(&self) -> bool {
        self.code == StatusCode::NOT_FOUND.as_u16()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            401 => {
                write!(f, "the control plane does not know you: {}; set --token-file", self.message)
            }
            403 => write!(f, "the control plane does not allow it: {}", self.message),
            _ if self.message.is_empty() => {
                write!(f, "refused with {} {}", self.code, self.reason)
            }
            _ => f.write_str(&self.message),
        }
    }
}

fn not_ours(server: &str, status: StatusCode, body: &[u8]) -> Error {
    let text = String::from_utf8_lossy(body);
    let shown: String =
        text.chars().take(MAX_SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let reason = format!("{status}: {}", shown.trim());
    Error::Unreadable { server: server.to_owned(), reason }
}

/// RFC 9111, section 5.5 (as Kubernetes uses it): `299 - "text"`.
fn warnings(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(WARNING).iter();
    values.filter_map(|value| quoted(std::str::from_utf8(value.as_bytes()).ok()?)).collect()
}

fn quoted(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('"')?;
    let mut content = String::new();
    let mut chars = rest.chars();
    loop {
        match chars.next()? {
            '"' => return Some(content),
            '\\' => content.push(chars.next()?),
            c => content.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(status: u16, body: &str) -> Result<Answer, Error> {
        let response = Response::builder()
            .status(status)
            .header(WARNING, r#"299 - "there is no Service \"x\"; beware""#)
            .header(WARNING, r#"299 - "second""#)
            .body(Bytes::copy_from_slice(body.as_bytes()));
        Answer::read("http://here", &response.unwrap())
    }

    #[test]
    fn an_object_comes_with_its_warnings() {
        let answer = read(201, r#"{"metadata": {"resourceVersion": "7"}}"#).unwrap();
        assert_eq!(answer.object["metadata"]["resourceVersion"], "7");
        assert_eq!(answer.warnings, [r#"there is no Service "x"; beware"#, "second"]);
    }

    #[test]
    fn a_refusal_names_fields() {
        let status = json!({
            "kind": "Status", "status": "Failure", "code": 422, "reason": "Invalid", "message": "no",
            "details": {"name": "x", "causes": [{"field": "spec.a", "message": "is wrong"}]},
        });
        let Err(Error::Refused(refusal)) = read(422, &status.to_string()) else { panic!() };
        assert_eq!(refusal.to_string(), "no");
        assert_eq!(refusal.causes()[0].field, "spec.a");
    }

    #[test]
    fn what_is_not_a_control_plane_is_told_so() {
        let error = read(404, "<html>\nnot here").unwrap_err().to_string();
        assert!(
            error.contains("http://here does not speak as a control plane does: 404"),
            "{error}"
        );
        assert!(read(200, "hello").is_err());
        assert!(read(500, "{}").unwrap_err().to_string().contains("500"));
    }
}
