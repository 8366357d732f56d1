//! What `pluginConfig` says.

use plugin_kit::{field::FieldName, period::Period};
use serde::Deserialize;

use crate::quota::Quota;

/// Who is counted, and how much each may.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(try_from = "Raw")]
pub struct Configuration {
    /// What tells callers apart.
    pub caller: Caller,
    /// How much each may.
    pub quota: Quota,
}

/// What tells callers apart. Requests without it share one quota.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub enum Caller {
    /// A header. Something before this plugin has to vouch for it, as `api-key` does.
    Header(FieldName),
    /// A property: its names, joined by dots.
    Property(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    caller: Option<Caller>,
    requests: u32,
    per: Period,
    burst: Option<u32>,
}

/// The identity that the caller's sidecar has proven.
const DEFAULT_PROPERTY: &str = "connection.uri_san_peer_certificate";
/// Paths that name all of something and have no value: everybody would share one quota.
const OBJECTS: [&str; 8] =
    ["request", "response", "source", "destination", "connection", "upstream", "node", "xds"];
/// More than any proxy serves, and few enough to count in nanoseconds.
const MOST_REQUESTS: u32 = 1_000_000_000;

impl TryFrom<Raw> for Configuration {
    type Error = String;

    fn try_from(raw: Raw) -> Result<Self, String> {
        let burst = raw.burst.unwrap_or(raw.requests);
        for (name, value) in [("requests", raw.requests), ("burst", burst)] {
            if !(1..=MOST_REQUESTS).contains(&value) {
                return Err(format!("{name}: must be 1 to {MOST_REQUESTS}"));
            }
        }
        let caller = raw.caller.unwrap_or_else(|| Caller::Property(DEFAULT_PROPERTY.to_owned()));
        if let Caller::Property(path) = &caller
            && (path.split('.').any(str::is_empty) || OBJECTS.contains(&path.as_str()))
        {
            return Err(format!("caller.property: `{path}` is no path: write `source.address`"));
        }
        let quota = Quota::new(raw.requests, raw.per.nanoseconds(), burst);
        let quota = quota.ok_or("per: too short for that many requests".to_owned())?;
        Ok(Self { caller, quota })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Configuration, String> {
        plugin_kit::configuration::parse(text.as_bytes())
    }

    #[test]
    fn callers_are_known_by_identity_unless_told_otherwise() {
        let read = parse(r#"{"requests":10,"per":"1s"}"#).unwrap();
        assert_eq!(read.caller, Caller::Property(DEFAULT_PROPERTY.to_owned()));
        let read = parse(r#"{"requests":10,"per":"1s","caller":{"header":"X-Caller"}}"#).unwrap();
        assert_eq!(read.caller, Caller::Header(FieldName::new("x-caller").unwrap()));
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("", "missing field `requests`"),
            (r#"{"requests":1}"#, "missing field `per`"),
            (r#"{"requests":0,"per":"1s"}"#, "requests: must be 1 to"),
            (r#"{"requests":1,"per":"1s","burst":0}"#, "burst: must be 1 to"),
            (r#"{"requests":1,"per":"soon"}"#, "per: `soon` is no length of time"),
            (r#"{"requests":1000000000,"per":"500ms"}"#, "per: too short"),
            (
                r#"{"requests":1,"per":"1s","caller":{"property":"a..b"}}"#,
                "caller.property: `a..b`",
            ),
            (
                r#"{"requests":1,"per":"1s","caller":{"property":"connection"}}"#,
                "caller.property: `connection`",
            ),
            (r#"{"requests":1,"per":"1s","caller":{"cookie":"a"}}"#, "unknown variant `cookie`"),
            (r#"{"requests":1,"per":"1s","rate":1}"#, "unknown field `rate`"),
        ];
        for (text, expected) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
