//! Label and field selectors.

use serde_json::{Map, Value};

use crate::store::Key;

/// Requirements in one selector; nobody writes more than a handful.
const MAX_REQUIREMENTS: usize = 100;

#[derive(Debug, Default)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldRequirement>,
}

#[derive(Debug, PartialEq, Eq)]
struct Requirement {
    label: String,
    test: Test,
}

#[derive(Debug, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

#[derive(Debug)]
struct FieldRequirement {
    field: Field,
    value: String,
    equal: bool,
}

#[derive(Debug)]
enum Field {
    Name,
    Namespace,
}

impl Selector {
    /// Reads `a=b,c!=d,e in (x,y),f notin (z),g,!h`.
    pub(super) fn labels(&mut self, text: &str) -> Result<(), String> {
        self.labels = split(text)?.into_iter().map(requirement).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Reads `metadata.name=a,metadata.namespace!=b`.
    pub(super) fn fields(&mut self, text: &str) -> Result<(), String> {
        self.fields = split(text)?.into_iter().map(field_requirement).collect::<Result<_, _>>()?;
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(super) fn matches(&self, key: &Key, object: &Value) -> bool {
        self.matches_key(key) && (self.labels.is_empty() || self.matches_labels(object))
    }

    fn matches_key(&self, key: &Key) -> bool {
        self.fields.iter().all(|requirement| {
            let found = match requirement.field {
                Field::Name => &key.name,
                Field::Namespace => &key.namespace,
            };
            (**found == *requirement.value) == requirement.equal
        })
    }

    fn matches_labels(&self, object: &Value) -> bool {
        let none = Map::new();
        let labels = object.get("metadata").and_then(|metadata| metadata.get("labels"));
        let labels = labels.and_then(Value::as_object).unwrap_or(&none);
        self.labels.iter().all(|requirement| {
            let value = labels.get(&requirement.label).and_then(Value::as_str);
            let listed = |values: &[String]| value.is_some_and(|v| values.iter().any(|w| w == v));
            match &requirement.test {
                Test::In(values) => listed(values),
                Test::NotIn(values) => !listed(values),
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
            }
        })
    }
}

/// Splits at commas outside parentheses.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, character) in text.char_indices() {
        match character {
            '(' if inside => return Err(format!("the selector {text:?} has a ( within ( )")),
            '(' => inside = true,
            ')' => inside = false,
            ',' if !inside => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    if parts.len() > MAX_REQUIREMENTS {
        return Err(format!("a selector has at most {MAX_REQUIREMENTS} requirements"));
    }
    Ok(parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect())
}

fn requirement(text: &str) -> Result<Requirement, String> {
    let one = |label: &str, values: Vec<String>, not: bool| {
        let test = if not { Test::NotIn(values) } else { Test::In(values) };
        Ok(Requirement { label: label_name(label)?, test })
    };
    if let Some((head, list)) = text.split_once('(') {
        let list = list.strip_suffix(')').ok_or_else(|| unreadable(text))?;
        let values = list.split(',').map(|value| value.trim().to_owned()).collect();
        let mut words = head.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(label), Some("in"), None) => one(label, values, false),
            (Some(label), Some("notin"), None) => one(label, values, true),
            _ => Err(unreadable(text)),
        };
    }
    if let Some((label, value)) = text.split_once("!=") {
        return one(label, vec![value.trim().to_owned()], true);
    }
    if let Some((label, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return one(label, vec![value.trim().to_owned()], false);
    }
    match text.strip_prefix('!') {
        Some(label) => Ok(Requirement { label: label_name(label)?, test: Test::Absent }),
        None => Ok(Requirement { label: label_name(text)?, test: Test::Exists }),
    }
}

fn field_requirement(text: &str) -> Result<FieldRequirement, String> {
    let (field, value, equal) = if let Some((field, value)) = text.split_once("!=") {
        (field, value, false)
    } else if let Some((field, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        (field, value, true)
    } else {
        return Err(unreadable(text));
    };
    let field = match field.trim() {
        "metadata.name" => Field::Name,
        "metadata.namespace" => Field::Namespace,
        other => {
            return Err(format!(
                "field label not supported: {other}; use metadata.name or metadata.namespace"
            ));
        }
    };
    Ok(FieldRequirement { field, value: value.trim().to_owned(), equal })
}

fn label_name(text: &str) -> Result<String, String> {
    let name = text.trim();
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if name.is_empty() || !name.chars().all(fits) {
        return Err(unreadable(text));
    }
    Ok(name.to_owned())
}

fn unreadable(text: &str) -> String {
    format!(
        "cannot read the requirement {text:?}; write a=b, a!=b, a in (b,c), a notin (b,c), a or !a"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn matches(selector: &str, labels: Value) -> bool {
        let mut parsed = Selector::default();
        parsed.labels(selector).unwrap();
        let key = Key::new("leno.dev", "services", "shop", "orders");
        parsed.matches(&key, &json!({"metadata": {"labels": labels}}))
    }

    #[test]
    fn labels_are_selected_as_in_kubernetes() {
        for (selector, yes, no) in [
            ("a=b", json!({"a": "b"}), json!({"a": "c"})),
            ("a==b", json!({"a": "b"}), json!({})),
            ("a!=b", json!({}), json!({"a": "b"})),
            ("a in (b, c)", json!({"a": "c"}), json!({"a": "d"})),
            ("a notin (b,c)", json!({"a": "d"}), json!({"a": "b"})),
            ("app.io/a", json!({"app.io/a": ""}), json!({"a": ""})),
            ("!a", json!({"b": "a"}), json!({"a": ""})),
            ("a=b,c", json!({"a": "b", "c": ""}), json!({"a": "b"})),
            ("a in (b),!c", json!({"a": "b"}), json!({"a": "b", "c": ""})),
        ] {
            assert!(matches(selector, yes), "{selector}");
            assert!(!matches(selector, no), "{selector}");
        }
        assert!(matches("", json!({})));
    }

    #[test]
    fn fields_select_by_name_and_namespace() {
        let key = Key::new("leno.dev", "services", "shop", "orders");
        let matches = |text: &str| {
            let mut selector = Selector::default();
            selector.fields(text).unwrap();
            selector.matches(&key, &Value::Null)
        };
        assert!(matches("metadata.name=orders,metadata.namespace==shop"));
        assert!(!matches("metadata.name=orders,metadata.namespace!=shop"));
        assert!(!matches("metadata.name=users"));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["=b", "a in b", "a within (b)", "a in (b", "a in ((b))", "a b", "!"] {
            assert!(Selector::default().labels(text).is_err(), "{text}");
        }
        for text in ["metadata.name", "spec.hosts=a"] {
            assert!(Selector::default().fields(text).is_err(), "{text}");
        }
        assert!(Selector::default().labels(&"a,".repeat(200)).is_err());
    }
}
