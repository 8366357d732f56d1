//! What `pluginConfig` says.

use plugin_kit::field::{FieldName, is_value};
use serde::Deserialize;

use crate::value::Kind;

/// The tags.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(try_from = "Raw")]
pub struct Configuration {
    /// Those of requests.
    pub request: Vec<Tag>,
    /// Those of responses.
    pub response: Vec<Tag>,
}

/// A header that is written.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(try_from = "RawTag")]
pub struct Tag {
    /// Its name.
    pub name: FieldName,
    /// What is written.
    pub source: Source,
    /// What is done if there is one already.
    pub mode: Mode,
}

/// Where a text comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// The configuration.
    Text(String),
    /// A property of the exchange.
    Property {
        /// Its names.
        path: Vec<String>,
        /// What its bytes are.
        kind: Kind,
        /// The text if there is no such property.
        otherwise: Option<String>,
    },
}

/// What is done with headers of the same name.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// They go, also when there is nothing to write.
    #[default]
    Replace,
    /// They stay, and this is one more.
    Add,
    /// If there is one, it is enough.
    Keep,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    request: Vec<Tag>,
    #[serde(default)]
    response: Vec<Tag>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTag {
    name: FieldName,
    value: Option<String>,
    property: Option<Path>,
    #[serde(rename = "type")]
    kind: Option<Kind>,
    otherwise: Option<String>,
    #[serde(default)]
    mode: Mode,
}

/// `source.address`, or a list where a name has dots.
#[derive(Deserialize)]
#[serde(untagged)]
enum Path {
    Dotted(String),
    Names(Vec<String>),
}

/// Tags of one direction. Servers refuse heads with more than about 100 fields.
const TAGS: usize = 64;

impl TryFrom<Raw> for Configuration {
    type Error = String;

    fn try_from(Raw { request, response }: Raw) -> Result<Self, String> {
        if request.is_empty() && response.is_empty() {
            return Err("name at least one tag, under `request` or `response`".to_owned());
        }
        if request.len().max(response.len()) > TAGS {
            return Err(format!("at most {TAGS} tags in a direction"));
        }
        Ok(Self { request, response })
    }
}

impl TryFrom<RawTag> for Tag {
    type Error = String;

    fn try_from(raw: RawTag) -> Result<Self, String> {
        let source = match (raw.value, raw.property) {
            (Some(text), None) if raw.kind.is_none() && raw.otherwise.is_none() => {
                Source::Text(checked("value", text)?)
            }
            (None, Some(path)) => Source::Property {
                path: names(path)?,
                kind: raw.kind.unwrap_or_default(),
                otherwise: raw.otherwise.map(|text| checked("otherwise", text)).transpose()?,
            },
            (Some(_), None) => {
                return Err(
                    "`type` and `otherwise` go with `property`, not with `value`".to_owned()
                );
            }
            _ => return Err("write either `value` or `property`".to_owned()),
        };
        Ok(Self { name: raw.name, source, mode: raw.mode })
    }
}

fn names(path: Path) -> Result<Vec<String>, String> {
    let names = match path {
        Path::Dotted(text) => text.split('.').map(str::to_owned).collect(),
        Path::Names(names) => names,
    };
    let wrong = |name: &String| name.is_empty() || name.contains('\0');
    if names.is_empty() || names.iter().any(wrong) {
        return Err("property: write names as in `source.address`".to_owned());
    }
    Ok(names)
}

fn checked(name: &str, text: String) -> Result<String, String> {
    if text.is_empty() || !is_value(text.as_bytes()) {
        return Err(format!("{name}: `{}` cannot be a header's value", text.escape_debug()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Configuration, String> {
        plugin_kit::configuration::parse(text.as_bytes())
    }

    #[test]
    fn reads_texts_and_properties() {
        let read = parse(
            r#"{"request":[{"name":"X-Env","value":"test"},
                {"name":"x-port","property":"source.port","type":"integer","otherwise":"none","mode":"keep"}],
                "response":[{"name":"x-id","property":["xds","node","a.b"],"mode":"add"}]}"#,
        )
        .unwrap();
        assert_eq!(read.request[0].source, Source::Text("test".to_owned()));
        assert_eq!(read.request[1].mode, Mode::Keep);
        let Source::Property { path, kind, otherwise } = &read.response[0].source else { panic!() };
        assert_eq!(
            (path.join("|").as_str(), *kind, otherwise),
            ("xds|node|a.b", Kind::Text, &None)
        );
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("", "name at least one tag"),
            (r#"{"request":[{"value":"a"}]}"#, "request[0]: missing field `name`"),
            (r#"{"request":[{"name":"a"}]}"#, "request[0]: write either"),
            (r#"{"request":[{"name":"a","value":"b","property":"c"}]}"#, "write either"),
            (r#"{"request":[{"name":"a","value":"b","type":"integer"}]}"#, "go with `property`"),
            (r#"{"request":[{"name":"a","value":"b\r\nc: d"}]}"#, r"value: `b\r\nc: d` cannot be"),
            (r#"{"request":[{"name":"a","property":"b..c"}]}"#, "property: write names"),
            (r#"{"request":[{"name":"host","value":"b"}]}"#, "request[0].name: `host` belongs"),
            (
                r#"{"response":[{"name":"a","property":"b","type":"float"}]}"#,
                "unknown variant `float`",
            ),
            (r#"{"headers":[]}"#, "unknown field `headers`"),
        ];
        for (text, expected) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
