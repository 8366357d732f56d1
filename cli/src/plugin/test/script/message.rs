//! Headers and bodies, as people write them.

use std::collections::BTreeMap;

use leno_wasm_host::Headers;
use serde::Deserialize;
use serde_json::{Map, Value};

/// Header fields by name.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct Fields(pub BTreeMap<String, Values>);

/// One value, or several of the same name.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum Values {
    One(String),
    Number(i64),
    Several(Vec<String>),
}

/// The bytes of a message.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum Body {
    /// They come at once.
    Text(String),
    /// They come in these portions.
    Portions(Vec<String>),
    /// A JSON object; where a body is expected, one that says the same.
    Json(Map<String, Value>),
}

impl Default for Body {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

impl Fields {
    /// As the ABI has them.
    pub fn headers(&self) -> Headers {
        let of_name = |(name, values): (&String, &Values)| {
            let name = name.to_ascii_lowercase().into_bytes();
            values.texts().into_iter().map(move |value| (name.clone(), value.into_bytes()))
        };
        self.0
            .iter()
            .flat_map(|(name, values)| of_name((name, values)).collect::<Vec<_>>())
            .collect()
    }
}

impl Values {
    /// Each value.
    pub fn texts(&self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text.clone()],
            Self::Number(number) => vec![number.to_string()],
            Self::Several(texts) => texts.clone(),
        }
    }
}

impl Body {
    /// The portions in which it comes; none if it is empty.
    pub fn portions(&self) -> Vec<Vec<u8>> {
        let portions = match self {
            Self::Text(text) => vec![text.clone().into_bytes()],
            Self::Portions(texts) => texts.iter().map(|text| text.clone().into_bytes()).collect(),
            Self::Json(object) => vec![Value::Object(object.clone()).to_string().into_bytes()],
        };
        portions.into_iter().filter(|portion| !portion.is_empty()).collect()
    }

    /// Whether bytes are what is meant here.
    pub fn fits(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Json(object) => serde_json::from_slice::<Map<String, Value>>(bytes)
                .is_ok_and(|found| found == *object),
            other => other.portions().concat() == bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bodies_come_as_they_are_written() {
        let body = |value| serde_json::from_value::<Body>(value).unwrap();
        assert_eq!(body(json!("ab")).portions(), [b"ab"]);
        assert_eq!(body(json!(["a", "b"])).portions(), [b"a", b"b"]);
        assert_eq!(body(json!("")).portions(), Vec::<Vec<u8>>::new());
        assert!(body(json!({"a": 1, "b": 2})).fits(br#" {"b":2, "a":1}"#));
        assert!(!body(json!({"a": 1})).fits(br#"{"a":2}"#));
        assert!(body(json!(["a", "b"])).fits(b"ab"));
        assert!(!body(json!("a")).fits(b"ab"));
    }

    #[test]
    fn names_are_lower_case_and_may_repeat() {
        let fields: Fields = serde_json::from_value(json!({"X-A": ["1", "2"], "n": 3})).unwrap();
        let expected = [("n", "3"), ("x-a", "1"), ("x-a", "2")];
        let mut found = fields.headers();
        found.sort();
        let expected = expected.map(|(name, value)| (name.into(), value.into()));
        assert_eq!(found, expected);
    }
}
