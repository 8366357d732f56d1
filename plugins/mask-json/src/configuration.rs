//! What `pluginConfig` says.

use plugin_kit::field::VALUE_BYTES;
use serde::Deserialize;

use crate::fields::Fields;

/// What is masked, and where.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(try_from = "Raw")]
pub struct Configuration {
    /// The fields.
    pub fields: Fields,
    /// What stands in the place of a value, as JSON.
    pub mask: Vec<u8>,
    /// Media types that are looked into, lower case.
    pub content_types: Vec<String>,
    /// What becomes of a response that cannot be looked into.
    pub otherwise: Otherwise,
}

/// What becomes of a response that says it is JSON and cannot be looked into: encoded, or a part only.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Otherwise {
    /// The caller gets a 502 instead.
    #[default]
    Withhold,
    /// The caller gets it as it is.
    Pass,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Raw {
    fields: Vec<String>,
    mask: Option<String>,
    content_types: Option<Vec<String>>,
    otherwise: Option<Otherwise>,
}

impl TryFrom<Raw> for Configuration {
    type Error = String;

    fn try_from(raw: Raw) -> Result<Self, String> {
        let fields = Fields::new(&raw.fields)?;
        let mask = raw.mask.as_deref().unwrap_or("***");
        if mask.len() > VALUE_BYTES
            || mask.chars().any(|c| c.is_control() || matches!(c, '"' | '\\'))
        {
            return Err(
                "mask: a text without quotes, backslashes and control characters".to_owned()
            );
        }
        let content_types = match raw.content_types {
            Some(types) => types.iter().map(|name| name.to_ascii_lowercase()).collect(),
            None => vec!["application/json".to_owned()],
        };
        if let Some(wrong) = content_types.iter().find(|name| !is_media_type(name)) {
            return Err(format!("contentTypes: `{wrong}` is no media type as application/json"));
        }
        Ok(Self {
            fields,
            mask: format!("\"{mask}\"").into_bytes(),
            content_types,
            otherwise: raw.otherwise.unwrap_or_default(),
        })
    }
}

fn is_media_type(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&^_.+-".contains(&b))
    };
    name.split_once('/').is_some_and(|(kind, subtype)| part(kind) && part(subtype))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Configuration, String> {
        plugin_kit::configuration::parse(text.as_bytes())
    }

    #[test]
    fn fields_are_enough() {
        let read = parse(r#"{"fields":["email"]}"#).unwrap();
        assert_eq!(read.mask, br#""***""#);
        assert_eq!(read.content_types, ["application/json"]);
        assert_eq!(read.otherwise, Otherwise::Withhold);
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("", "missing field `fields`"),
            (r#"{"fields":[]}"#, "fields: name at least one"),
            (r#"{"fields":["a..b"]}"#, "fields: `a..b`"),
            (r#"{"fields":["a"],"mask":"\""}"#, "mask: a text without"),
            (r#"{"fields":["a"],"contentTypes":["json"]}"#, "contentTypes: `json`"),
            (r#"{"fields":["a"],"otherwise":"drop"}"#, "unknown variant `drop`"),
            (r#"{"fields":["a"],"maxBytes":1}"#, "unknown field `maxBytes`"),
        ];
        for (text, expected) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
