//! The file with requests: what is sent, what the upstream and the services answer, what is expected.

use std::{collections::BTreeMap, time::Duration};

use leno_api::{Problem, model::duration, yaml};
use serde::{Deserialize, de::Error as _};
use serde_json::{Map, Value};

pub use self::message::{Body, Fields, Values};

mod message;

/// Everything that a module is tried with.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Script {
    /// The plugin's configuration, as in `pluginConfig`.
    pub config: Option<Value>,
    /// What services answer to the plugin's calls; the first that fits.
    #[serde(default)]
    pub services: Vec<Service>,
    /// Properties by their path, as `source.address`.
    #[serde(default)]
    pub properties: BTreeMap<String, Value>,
    /// Sent one after the other.
    #[serde(default)]
    pub requests: Vec<Case>,
    /// Configurations that the plugin must refuse.
    #[serde(default)]
    pub refuses: Vec<Refusal>,
}

/// One request and what becomes of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Case {
    /// What it is called in the output.
    pub name: Option<String>,
    /// How much time passes before it. The clock is the desk's: nobody waits.
    #[serde(default)]
    pub after: Period,
    /// How often it is sent. Each has to be as expected.
    pub times: Option<u16>,
    /// What is sent.
    #[serde(default)]
    pub request: Request,
    /// What the upstream answers, if the plugin lets it come to that.
    #[serde(default)]
    pub upstream: Answer,
    /// Answers of services for this request; they come before those of the whole script.
    #[serde(default)]
    pub services: Vec<Service>,
    /// Properties for this request; they come before those of the whole script.
    #[serde(default)]
    pub properties: BTreeMap<String, Value>,
    /// What has to come of it.
    #[serde(default)]
    pub expect: Expect,
}

/// What is sent.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub authority: String,
    pub scheme: String,
    pub headers: Fields,
    pub body: Body,
    pub trailers: Fields,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            method: "GET".to_owned(),
            path: "/".to_owned(),
            authority: "desk.test".to_owned(),
            scheme: "http".to_owned(),
            headers: Fields::default(),
            body: Body::default(),
            trailers: Fields::default(),
        }
    }
}

/// What somebody answers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Answer {
    pub status: u16,
    pub headers: Fields,
    pub body: Body,
    pub trailers: Fields,
}

impl Default for Answer {
    fn default() -> Self {
        let (headers, trailers) = (Fields::default(), Fields::default());
        Self { status: 200, headers, body: Body::default(), trailers }
    }
}

/// A service that plugins can call. Without a `when` it answers every call.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Service {
    /// The name by which plugins call it.
    pub name: String,
    /// Which calls.
    pub when: When,
    /// How long it takes.
    pub after: Period,
    /// What it answers.
    pub answer: Answer,
    /// The status of gRPC, for calls of gRPC: `answer.body` is the message then.
    pub grpc_status: u32,
    /// It does not answer at all.
    pub fails: Option<Failure>,
}

/// Which calls are meant: all that fit everything that is said.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct When {
    pub method: Option<String>,
    pub path: Option<String>,
    pub headers: Fields,
    pub body: Option<Body>,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Failure {
    /// It takes longer than the plugin waits: 504.
    Timeout,
    /// No connection: 503.
    Unreachable,
}

/// What has to come of a request. What is left out may be as it likes, a fault of the plugin excepted.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Expect {
    pub status: Option<u16>,
    /// `null`: there is none.
    pub headers: BTreeMap<String, Option<Values>>,
    pub body: Option<Body>,
    pub trailers: BTreeMap<String, Option<Values>>,
    pub upstream: Option<Received>,
    /// How many calls the plugin makes.
    pub calls: Option<usize>,
    /// Parts of lines that the plugin logs.
    pub logs: Vec<String>,
    /// A part of the message with which the plugin breaks.
    pub fault: Option<String>,
}

/// A request as the upstream has to see it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Received {
    /// `false`: the plugin does not let it come to that.
    pub reached: Option<bool>,
    pub method: Option<String>,
    pub path: Option<String>,
    pub authority: Option<String>,
    pub headers: BTreeMap<String, Option<Values>>,
    pub body: Option<Body>,
    pub trailers: BTreeMap<String, Option<Values>>,
}

/// A configuration that is wrong.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Refusal {
    pub config: Value,
    /// A part of what the plugin logs about it.
    pub log: String,
}

/// A length of time, as resources have it: `500ms`, `1m30s`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Period(pub Duration);

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        duration::parse(&text).map(Self).map_err(D::Error::custom)
    }
}

impl Script {
    /// Reads a script.
    ///
    /// # Errors
    /// Line and path of the first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let mut documents = yaml::documents(text)?.into_iter();
        let Some(document) = documents.next() else { return Ok(Self::default()) };
        if documents.next().is_some() {
            let message = "one document is enough: all requests stand in a list".to_owned();
            return Err(Problem { path: String::new(), message, line: None });
        }
        serde_path_to_error::deserialize(document.value).map_err(|error| {
            let path = error.path().to_string();
            let line = document.lines.get(&path).copied();
            Problem { path, message: error.into_inner().to_string(), line }
        })
    }
}

/// The bytes of a configuration, as `WasmPlugin` hands them to a plugin: a string is its text, anything else
/// its JSON.
pub fn configuration(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => text.clone().into_bytes(),
        Value::Null => Vec::new(),
        other => other.to_string().into_bytes(),
    }
}

/// The value of a property as the ABI has it: texts as they are, numbers as `i64` little endian, one byte for
/// a truth, pairs for a map of texts. `None`: it cannot be one.
pub fn property(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::String(text) => Some(text.clone().into_bytes()),
        Value::Number(number) => number.as_i64().map(|number| number.to_le_bytes().to_vec()),
        Value::Bool(truth) => Some(vec![u8::from(*truth)]),
        Value::Object(map) => pairs(map),
        Value::Null | Value::Array(_) => None,
    }
}

fn pairs(map: &Map<String, Value>) -> Option<Vec<u8>> {
    let pairs: Option<Vec<_>> = map
        .iter()
        .map(|(name, value)| Some((name.as_bytes(), value.as_str()?.as_bytes())))
        .collect();
    pairs.map(leno_wasm_host::pairs::encode)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn little_is_needed() {
        let script = Script::parse("requests: [{}]").unwrap();
        let case = &script.requests[0];
        assert_eq!((case.request.method.as_str(), case.upstream.status), ("GET", 200));
        assert!(Script::parse("").unwrap().requests.is_empty());
    }

    #[test]
    fn mistakes_have_a_line() {
        let cases = [
            ("requests:\n- request: {verb: GET}\n", Some(2), "unknown field `verb`"),
            ("requests:\n- name: a\n  after: soon\n", Some(3), "requests[0].after: "),
            ("requests:\n- expect:\n    status: ok\n", Some(3), "requests[0].expect.status: "),
            ("a: [", None, ""),
            ("{}\n---\n{}", None, "one document"),
        ];
        for (text, line, part) in cases {
            let problem = Script::parse(text).unwrap_err();
            assert!(line.is_none() || problem.line == line, "{text}: {problem:?}");
            assert!(problem.to_string().contains(part), "{text}: {problem}");
        }
    }

    #[test]
    fn values_are_as_plugins_get_them() {
        assert_eq!(configuration(&json!("plain")), b"plain");
        assert_eq!(configuration(&json!({"a": 1})), br#"{"a":1}"#);
        assert_eq!(property(&json!("a")), Some(b"a".to_vec()));
        assert_eq!(property(&json!(80)), Some(80_i64.to_le_bytes().to_vec()));
        assert_eq!(property(&json!(true)), Some(vec![1]));
        assert_eq!(property(&json!({"a": "b"})).map(|bytes| bytes.len()), Some(16));
        assert_eq!(property(&json!([1])), None);
    }
}
