//! Where objects take what can be set from: settings as they are, or expressions by which Helm puts them in.

use serde_json::Value;

use super::Values;

/// Settings, or the chart that will get them.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    Values(&'a Values),
    /// Strings that begin with `{{` and end with `}}` are expressions; the chart writes them without quotes.
    Chart,
}

impl Source<'_> {
    /// The setting at `path`, whatever it is.
    pub fn value(&self, path: &str) -> Value {
        match self {
            Self::Values(values) => values.at(path).clone(),
            Self::Chart => format!("{{{{ toJson .Values.{path} }}}}").into(),
        }
    }

    /// `text` with each `<path>` replaced by that setting.
    pub fn text(&self, text: &str) -> String {
        let mut result = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('<') {
            let (path, after) = after.split_once('>').unwrap_or((after, ""));
            result.push_str(before);
            result.push_str(&self.inside(path));
            rest = after;
        }
        result + rest
    }

    fn inside(&self, path: &str) -> String {
        match self {
            // The version of the program and that of the chart are one; a test compares them.
            Self::Values(values) if path == "image.tag" && !values.holds(path) => {
                env!("CARGO_PKG_VERSION").to_owned()
            }
            Self::Values(values) => match values.at(path) {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            },
            Self::Chart if path == "image.tag" => {
                "{{ .Values.image.tag | default .Chart.AppVersion }}".to_owned()
            }
            Self::Chart => format!("{{{{ .Values.{path} }}}}"),
        }
    }

    /// One of two, as the setting at `path` holds or not.
    pub fn choose(&self, path: &str, then: Value, otherwise: Value) -> Value {
        match self {
            Self::Values(values) if values.holds(path) => then,
            Self::Values(_) => otherwise,
            Self::Chart => {
                format!("{{{{ if .Values.{path} }}}}{then}{{{{ else }}}}{otherwise}{{{{ end }}}}")
                    .into()
            }
        }
    }
}
