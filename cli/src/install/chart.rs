//! The templates of the Helm chart, made from the same objects. `leno install --chart DIR` writes them; a test compares.

use serde_json::Value;

use super::{Source, When, objects};
use crate::yaml_text::yaml_text;

const HEAD: &str = "\
{{- /* Written by `leno install --chart deploy/helm/leno`; change cli/src/install instead. */ -}}
";
/// Names are fixed: sidecars look for the control plane there, and policies in it are for the whole mesh.
const GUARD: &str = "\
{{- if ne .Release.Namespace \"leno-system\" }}{{ fail \"Leno lives in the namespace leno-system: install it with --namespace leno-system\" }}{{ end }}
{{- if and (gt (int .Values.replicas) 1) (not .Values.ca.secret) }}{{ fail \"replicas: more than one replica needs ca.secret, or each would issue certificates that the others do not trust\" }}{{ end }}
";

/// File name and text of each template, except notes.
pub fn templates() -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = Vec::new();
    for object in objects(&Source::Chart) {
        let name = format!("{}.yaml", object.file);
        let text = template(&object.manifest, object.when);
        match files.iter_mut().find(|(known, _)| *known == name) {
            Some((_, file)) => file.push_str(&text),
            None => {
                let guard = if object.file == "deployment" { GUARD } else { "" };
                files.push((name, format!("{HEAD}{guard}{text}")));
            }
        }
    }
    files
}

fn template(manifest: &Value, when: When) -> String {
    let text = unquoted(&yaml_text(&sorted(manifest)));
    match when {
        When::Always => format!("---\n{text}"),
        When::Set(path) => format!("{{{{- if .Values.{path} }}}}\n---\n{text}{{{{- end }}}}\n"),
        When::Unset(path) => {
            format!("{{{{- if not .Values.{path} }}}}\n---\n{text}{{{{- end }}}}\n")
        }
    }
}

/// So that the files do not depend on how a library keeps its maps.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            let fields = fields.into_iter().map(|(name, value)| (name.clone(), sorted(value)));
            Value::Object(fields.collect())
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        leaf => leaf.clone(),
    }
}

/// Values that are expressions stand without the quotes that YAML would need for them as texts.
fn unquoted(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let Some(at) = line.find("\"{{").filter(|_| line.ends_with("}}\"")) else {
            return line.to_owned();
        };
        let (before, quoted) = line.split_at(at);
        match serde_json::from_str::<String>(quoted) {
            // `a/{{ b }}:{{ c }}` stays text, and so does `{{ a }}/{{ b }}`.
            Ok(expression) if is_one(&expression) => format!("{before}{expression}"),
            _ => line.to_owned(),
        }
    });
    lines.map(|line| line + "\n").collect()
}

fn is_one(expression: &str) -> bool {
    let braces = expression.matches("{{").count();
    expression.starts_with("{{ if ") || (braces == 1 && expression.starts_with("{{ toJson "))
}
