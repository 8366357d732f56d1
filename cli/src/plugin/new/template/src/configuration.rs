//! What `pluginConfig` may say.

use serde::Deserialize;

/// The plugin's configuration. What it does not know is an error: a rule that is silently not applied is a hole.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Configuration {
    /// Requests to these paths, and to what is below them, are refused.
    pub refused_paths: Vec<String>,
    /// What upstreams read in `x-checked-by`.
    #[serde(default = "default_label")]
    pub label: String,
}

fn default_label() -> String {
    env!("CARGO_PKG_NAME").to_owned()
}

impl Configuration {
    /// Reads a configuration.
    ///
    /// # Errors
    /// What is wrong with it, for the log.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let read: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if let Some(path) = read.refused_paths.iter().find(|path| !path.starts_with('/')) {
            return Err(format!("refusedPaths: `{path}` must begin with `/`"));
        }
        if !read.label.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("label: visible ASCII only, since it becomes a header".to_owned());
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_knows() {
        let read = Configuration::parse(br#"{"refusedPaths":["/admin"]}"#).unwrap();
        assert_eq!(read.refused_paths, ["/admin"]);
        assert_eq!(read.label, env!("CARGO_PKG_NAME"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("", "EOF"),
            (r#"{"refusedPaths":["admin"]}"#, "must begin with `/`"),
            (r#"{"refusedPath":[]}"#, "unknown field `refusedPath`"),
            (r#"{"refusedPaths":[],"label":"a b"}"#, "label: visible ASCII"),
        ] {
            let error = Configuration::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
