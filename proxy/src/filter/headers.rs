//! Header changes of a route.

use http::HeaderMap;
use leno_api::model::filter::HeaderChanges;

/// `set`, then `add`, then `remove`.
pub fn apply(changes: &HeaderChanges, headers: &mut HeaderMap) {
    for (name, value) in &changes.set {
        headers.insert(name, value.clone());
    }
    for (name, value) in &changes.add {
        headers.append(name, value.clone());
    }
    for name in &changes.remove {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn set_add_remove_in_this_order() {
        let pair = |name: &'static str, value| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let changes = HeaderChanges {
            set: vec![pair("a", "1")],
            add: vec![pair("a", "2"), pair("b", "3")],
            remove: vec![HeaderName::from_static("b")],
        };
        let mut headers = HeaderMap::new();
        headers.append("a", HeaderValue::from_static("0"));
        headers.append("b", HeaderValue::from_static("0"));
        apply(&changes, &mut headers);
        assert_eq!(headers.get_all("a").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert!(!headers.contains_key("b"));
    }
}
