//! What is odd about a resource beside the others, as `Warning` headers: the other resource may be on its way.

use axum::response::Response;
use http::{HeaderName, HeaderValue};
use leno_api::Resource;

use super::Api;

const WARNING: HeaderName = HeaderName::from_static("warning");
/// More helps nobody and would outgrow what clients accept as headers.
const MAX_WARNINGS: usize = 10;
const MAX_BYTES: usize = 400;

/// What is odd about a resource that has been, or would be, written: `spec.rules[0]: message`.
pub(super) fn about(api: &Api, resource: &Resource) -> Vec<String> {
    about_many(api, &[resource]).pop().unwrap_or_default()
}

/// The same for resources written together, which see each other.
pub(super) fn about_many(api: &Api, resources: &[&Resource]) -> Vec<Vec<String>> {
    let line = |(path, message): (String, String)| format!("{path}: {message}");
    let all = api.findings.about(resources).into_iter();
    all.map(|said| said.into_iter().map(line).collect()).collect()
}

pub(super) fn attach(response: &mut Response, warnings: &[String]) {
    let more = warnings.len().saturating_sub(MAX_WARNINGS);
    let rest = (more > 0).then(|| format!("{more} more warnings are not shown"));
    for warning in warnings.iter().take(MAX_WARNINGS).chain(&rest) {
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{}\"", quoted(warning))) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

/// As RFC 9110 wants a quoted string, in ASCII.
fn quoted(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            ' '..='~' => out.push(character),
            _ => out.push('?'),
        }
        if out.len() >= MAX_BYTES {
            break;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_one_quoted_line() {
        assert_eq!(quoted("a \"b\"\nc\\é"), "a \\\"b\\\"?c\\\\?");
        assert!(quoted(&"x".repeat(1000)).len() <= MAX_BYTES);
    }
}
