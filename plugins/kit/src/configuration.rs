//! A plugin's configuration: JSON, read strictly.

use serde::de::DeserializeOwned;

/// Reads a configuration. None at all counts as `{}`.
///
/// # Errors
/// A sentence that names the place: ``headers[1].name: a header name has only letters, …``.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(explain)?;
    deserializer.end().map_err(|error| format!("after the configuration: {error}"))?;
    Ok(parsed)
}

fn explain(error: serde_path_to_error::Error<serde_json::Error>) -> String {
    let path = error.path().to_string();
    // The whole document has the path "."
    if path == "." { error.into_inner().to_string() } else { format!("{path}: {}", error.inner()) }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        #[serde(default)]
        limits: Vec<Limit>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Limit {
        count: u8,
    }

    #[test]
    fn nothing_is_an_empty_object() {
        assert_eq!(parse::<Settings>(b""), Ok(Settings { limits: Vec::new() }));
    }

    #[test]
    fn errors_name_the_place() {
        let cases = [
            (r#"{"limits":[{"count":1},{"count":"x"}]}"#, "limits[1].count: invalid type"),
            (r#"{"limits":[{"count":256}]}"#, "limits[0].count: invalid value: integer `256`"),
            (r#"{"limits":[{}]}"#, "limits[0]: missing field `count`"),
            (r#"{"limit":[]}"#, "unknown field `limit`, expected `limits`"),
            ("{} x", "after the configuration: trailing characters"),
            ("{", "EOF"),
        ];
        for (text, start) in cases {
            let error = parse::<Settings>(text.as_bytes()).unwrap_err();
            assert!(error.contains(start), "{text}: {error}");
        }
    }
}
