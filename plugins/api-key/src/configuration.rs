//! What `pluginConfig` says.

use plugin_kit::{field::FieldName, period::Period};
use serde::Deserialize;

/// How keys are checked.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(try_from = "Raw")]
pub struct Configuration {
    /// The service that knows the keys, as the mesh calls it: `user.shop`.
    pub service: String,
    /// What to ask there, with GET; the key goes along in `header`.
    pub path: String,
    /// Where requests carry the key. It is not passed on.
    pub header: FieldName,
    /// The header in which the service says who the caller is, and in which the application is told.
    /// What callers send by that name is dropped.
    pub caller_header: FieldName,
    /// How long the service may take.
    pub timeout: Period,
    /// How long "yes" is remembered: so long a revoked key goes on to work.
    pub remember_accepted: Period,
    /// How long "no" is remembered.
    pub remember_refused: Period,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Raw {
    service: String,
    path: String,
    header: Option<FieldName>,
    caller_header: Option<FieldName>,
    timeout: Option<Period>,
    remember_accepted: Option<Period>,
    remember_refused: Option<Period>,
}

/// A proxy gives up on a call after that anyway.
const LONGEST_TIMEOUT: Period = Period::seconds(60);

impl TryFrom<Raw> for Configuration {
    type Error = String;

    fn try_from(raw: Raw) -> Result<Self, String> {
        let header = raw.header.map_or_else(|| FieldName::new("x-api-key"), Ok)?;
        let caller_header = raw.caller_header.map_or_else(|| FieldName::new("x-caller"), Ok)?;
        let timeout = raw.timeout.unwrap_or(Period::seconds(1));
        if raw.service.is_empty() || !raw.service.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("service: write the name of a service, as in `user.shop`".to_owned());
        }
        if !raw.path.starts_with('/') || !raw.path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("path: must begin with `/` and have no blanks".to_owned());
        }
        if header == caller_header {
            return Err("callerHeader: must be another header than that of the key".to_owned());
        }
        if timeout > LONGEST_TIMEOUT {
            return Err("timeout: must be at most 60s".to_owned());
        }
        Ok(Self {
            service: raw.service,
            path: raw.path,
            header,
            caller_header,
            timeout,
            remember_accepted: raw.remember_accepted.unwrap_or(Period::seconds(60)),
            remember_refused: raw.remember_refused.unwrap_or(Period::seconds(10)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Configuration, String> {
        plugin_kit::configuration::parse(text.as_bytes())
    }

    #[test]
    fn little_is_needed() {
        let read = parse(r#"{"service":"user.shop","path":"/keys"}"#).unwrap();
        assert_eq!((read.header.as_str(), read.caller_header.as_str()), ("x-api-key", "x-caller"));
        assert_eq!(read.timeout, Period::seconds(1));
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("", "missing field `service`"),
            (r#"{"service":"","path":"/"}"#, "service: write the name"),
            (r#"{"service":"u","path":"keys"}"#, "path: must begin"),
            (r#"{"service":"u","path":"/k","header":"a b"}"#, "header: `a b` is no header name"),
            (r#"{"service":"u","path":"/k","header":"x-caller"}"#, "callerHeader: must be another"),
            (r#"{"service":"u","path":"/k","timeout":"2m"}"#, "timeout: must be at most 60s"),
            (r#"{"service":"u","path":"/k","key":"a"}"#, "unknown field `key`"),
        ];
        for (text, expected) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
