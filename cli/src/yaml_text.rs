//! JSON values as YAML that reads back to the same values.

use leno_api::yaml;
use serde_json::{Map, Value};

const INDENT: &str = "  ";

/// `value` in block style, keys in their order, ending with a line break.
pub fn yaml_text(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(fields) if !fields.is_empty() => mapping(fields, 0, &mut text),
        Value::Array(items) if !items.is_empty() => sequence(items, 0, &mut text),
        leaf => {
            text.push_str(&flow(leaf));
            text.push('\n');
        }
    }
    text
}

fn mapping(fields: &Map<String, Value>, depth: usize, text: &mut String) {
    for (at, (key, value)) in fields.iter().enumerate() {
        // The first field of a list's item stands behind its dash.
        if at > 0 || text.is_empty() || text.ends_with('\n') {
            text.push_str(&INDENT.repeat(depth));
        }
        text.push_str(&string(key));
        text.push(':');
        after_key(value, depth, text);
    }
}

fn after_key(value: &Value, depth: usize, text: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            text.push('\n');
            mapping(fields, depth + 1, text);
        }
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            sequence(items, depth, text);
        }
        leaf => {
            text.push(' ');
            text.push_str(&flow(leaf));
            text.push('\n');
        }
    }
}

fn sequence(items: &[Value], depth: usize, text: &mut String) {
    for (at, item) in items.iter().enumerate() {
        if at > 0 || text.is_empty() || text.ends_with('\n') {
            text.push_str(&INDENT.repeat(depth));
        }
        text.push_str("- ");
        match item {
            Value::Object(fields) if !fields.is_empty() => mapping(fields, depth + 1, text),
            Value::Array(items) if !items.is_empty() => sequence(items, depth + 1, text),
            leaf => {
                text.push_str(&flow(leaf));
                text.push('\n');
            }
        }
    }
}

fn flow(leaf: &Value) -> String {
    match leaf {
        Value::String(text) => string(text),
        // Numbers, booleans, null and empty collections are written alike in both.
        other => other.to_string(),
    }
}

/// Plain where the parser reads it back as this very string, else quoted as JSON does, which YAML understands.
fn string(text: &str) -> String {
    if is_plain(text) {
        return text.to_owned();
    }
    // JSON leaves DEL, the C1 controls and U+2028 as they are; YAML does not print the former.
    let quoted = Value::String(text.to_owned()).to_string();
    let mut escaped = String::with_capacity(quoted.len());
    for c in quoted.chars() {
        match c {
            '\u{7f}'..='\u{9f}'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{feff}'
            | '\u{fffe}'
            | '\u{ffff}' => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => escaped.push(c),
        }
    }
    escaped
}

fn is_plain(text: &str) -> bool {
    let ordinary = |c: char| c.is_ascii_alphanumeric() || " ._-/:@%+(),=<>".contains(c);
    let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/');
    // `yes`, `on` and `null` differ between versions of YAML: quoted, they are strings in all of them.
    let risky = ["yes", "no", "on", "off", "y", "n"].contains(&text.to_ascii_lowercase().as_str());
    if !starts || risky || !text.chars().all(ordinary) {
        return false;
    }
    // Both as a value and as a key: numbers, booleans, `a: b` and the like come back as something else.
    let reads_back = |document: String, read: fn(&Value) -> Option<String>| {
        let documents = yaml::documents(&document).ok();
        documents.and_then(|documents| read(&documents.first()?.value)).as_deref() == Some(text)
    };
    reads_back(format!("- {text}\n"), |value| Some(value.get(0)?.as_str()?.to_owned()))
        && reads_back(format!("{text}: 1\n"), |value| value.as_object()?.keys().next().cloned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn back(value: &Value) -> Value {
        let text = yaml_text(value);
        let mut documents = yaml::documents(&text).unwrap_or_else(|e| panic!("{e}:\n{text}"));
        match documents.len() {
            0 => Value::Null,
            _ => documents.remove(0).value,
        }
    }

    #[test]
    fn reads_like_what_people_write() {
        let value = json!({
            "apiVersion": "leno.dev/v1alpha1",
            "metadata": {"name": "orders", "labels": {}},
            "spec": {"rules": [{"a": 1, "b": ["x", {"c": "10s"}]}, [[1], []]], "on": "yes"},
        });
        let text = "\
apiVersion: leno.dev/v1alpha1
metadata:
  labels: {}
  name: orders
spec:
  \"on\": \"yes\"
  rules:
  - a: 1
    b:
    - x
    - c: 10s
  - - - 1
    - []
";
        assert_eq!(yaml_text(&value), text);
        assert_eq!(back(&value), value);
    }

    fn values() -> impl Strategy<Value = Value> {
        let odd = prop::sample::select(vec![
            "",
            " ",
            "1",
            "0x1f",
            "1e3",
            "null",
            "true",
            "~",
            "-",
            "- a",
            "a: b",
            "a #b",
            "#",
            "'",
            "\"",
            "a:",
            "key",
            "*a",
            "&a",
            "!a",
            "%a",
            "@a",
            "a\nb",
            "a\tb",
            "---",
            "...",
            "2026-01-01",
            "1_000",
            "<<",
            "=",
            ".5",
            "+1",
            "\u{7f}",
            "\u{85}",
            "\u{2028}",
            "é",
            "a ",
            "?",
            "? a",
            "|",
            ">",
        ]);
        let text = prop_oneof![odd.prop_map(str::to_owned), any::<String>(), "[a-z0-9.:/ -]{0,12}"];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            text.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(text.clone(), inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_value_reads_back_the_same(value in values()) {
            prop_assert_eq!(back(&value), value);
        }
    }
}
