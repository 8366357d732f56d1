//! A document as YAML, its keys in the order in which somebody wrote them, so that what was added is all that differs.

use std::collections::HashMap;

use leno_api::yaml::Document;
use serde_json::{Map, Value};

use crate::yaml_text;

const INDENT: &str = "  ";
/// What people write first.
const FIRST: [&str; 8] =
    ["apiVersion", "kind", "metadata", "name", "namespace", "image", "args", "spec"];

/// `after` as text; what it has in common with `before` in the order of that.
pub fn print(after: &Value, before: &Document) -> String {
    let order = Order { lines: &before.lines };
    let mut text = String::new();
    order.write(after, Some((&before.value, String::new())), 0, &mut text);
    text
}

/// What a value was made of, and where that stood.
type Origin<'a> = Option<(&'a Value, String)>;

struct Order<'a> {
    lines: &'a HashMap<String, u32>,
}

impl Order<'_> {
    fn write(&self, value: &Value, origin: Origin<'_>, depth: usize, text: &mut String) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                self.mapping(fields, origin, depth, text)
            }
            Value::Array(items) if !items.is_empty() => self.sequence(items, origin, depth, text),
            leaf => text.push_str(&yaml_text::yaml_text(leaf)),
        }
    }

    fn mapping(
        &self,
        fields: &Map<String, Value>,
        origin: Origin<'_>,
        depth: usize,
        text: &mut String,
    ) {
        let at = |key: &str| {
            origin.as_ref().map(|(_, path)| match path.is_empty() {
                true => key.to_owned(),
                false => format!("{path}.{key}"),
            })
        };
        let mut keys: Vec<&String> = fields.keys().collect();
        keys.sort_by_cached_key(|key| {
            let line = at(key).and_then(|path| self.lines.get(&path).copied());
            let usual = FIRST.iter().position(|first| first == key).unwrap_or(FIRST.len());
            (line.unwrap_or(u32::MAX), usual)
        });
        for (number, key) in keys.into_iter().enumerate() {
            let Some(value) = fields.get(key) else { continue };
            // The first field of a list's item stands behind its dash.
            if number > 0 || text.is_empty() || text.ends_with('\n') {
                text.push_str(&INDENT.repeat(depth));
            }
            // A key is written as a text is, which ends with a line break there.
            text.push_str(yaml_text::yaml_text(&Value::String(key.clone())).trim_end());
            text.push(':');
            let origin = origin.as_ref().and_then(|(value, _)| value.get(key));
            let origin = origin.and_then(|value| Some((value, at(key)?)));
            match value {
                Value::Object(inner) if !inner.is_empty() => {
                    text.push('\n');
                    self.mapping(inner, origin, depth + 1, text);
                }
                Value::Array(items) if !items.is_empty() => {
                    text.push('\n');
                    self.sequence(items, origin, depth, text);
                }
                leaf => {
                    text.push(' ');
                    text.push_str(&yaml_text::yaml_text(leaf));
                }
            }
        }
    }

    fn sequence(&self, items: &[Value], origin: Origin<'_>, depth: usize, text: &mut String) {
        for (number, item) in items.iter().enumerate() {
            if number > 0 || text.is_empty() || text.ends_with('\n') {
                text.push_str(&INDENT.repeat(depth));
            }
            text.push_str("- ");
            let origin = origin.as_ref().and_then(|(list, path)| {
                let list = list.as_array()?;
                let more = items.len().saturating_sub(list.len());
                let at = made_of(item, number, more, list)?;
                Some((list.get(at)?, format!("{path}[{at}]")))
            });
            self.write(item, origin, depth + 1, text);
        }
    }
}

/// Which item of the list before became this one: that of the same name, and where items have none that of its place.
/// `more` have been added, mostly in front.
fn made_of(item: &Value, number: usize, more: usize, before: &[Value]) -> Option<usize> {
    let Some(own) = name(item) else { return (number < before.len()).then_some(number) };
    let is_it = |at: &usize| before.get(*at).and_then(name) == Some(own);
    // Lists can be long: all of it is looked through only where the item is at neither place.
    let near = [number, number.saturating_sub(more)].into_iter().find(is_it);
    near.or_else(|| (more > 0).then(|| (0..before.len()).find(is_it)).flatten())
}

fn name(item: &Value) -> Option<&str> {
    item.get("name").and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use leno_api::yaml;
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_stay_where_they_were() {
        let text = "\
kind: Pod
apiVersion: v1
spec:
  volumes:
  - name: z
    emptyDir: {}
  containers:
  - name: app
    image: a
    args:
    - \"yes\"
    - - 1
      - x: 1
        b: 2
metadata:
  name: a
  annotations:
    z/a: \"1\"
    a/z: \"2\"
";
        let document = yaml::documents(text).unwrap().remove(0);
        assert_eq!(print(&document.value, &document), text);
        let mut changed = document.value.clone();
        let added = json!({"name": "leno", "image": "x", "env": [], "ports": [{"name": "p"}]});
        changed["spec"]["containers"].as_array_mut().unwrap().insert(0, added);
        let with = text.replace(
            "  containers:\n",
            "  containers:\n  - name: leno\n    image: x\n    env: []\n    ports:\n    - name: p\n",
        );
        assert_eq!(print(&changed, &document), with);
    }
}
