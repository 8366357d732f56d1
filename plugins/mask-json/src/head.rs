//! What a response's head says about whether its body can be masked.

use crate::configuration::{Configuration, Otherwise};

/// What is done with a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: it is no JSON.
    Leave,
    /// Its body is masked.
    Mask,
    /// It goes to nobody, for this reason.
    Withhold(&'static str),
}

/// The fields of a response's head that matter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Head<'a> {
    /// `:status`
    pub status: &'a [u8],
    /// `content-type`
    pub content_type: &'a [u8],
    /// `content-encoding`
    pub content_encoding: &'a [u8],
}

impl Configuration {
    /// Decides on a response.
    pub fn plan(&self, head: Head<'_>) -> Plan {
        let media_type = head.content_type.split(|byte| *byte == b';').next().unwrap_or_default();
        let media_type = media_type.trim_ascii().to_ascii_lowercase();
        if !self.content_types.iter().any(|known| known.as_bytes() == media_type) {
            return Plan::Leave;
        }
        let encoding = head.content_encoding.trim_ascii();
        let reason = if head.status == b"206" {
            "it is a part only"
        } else if !encoding.is_empty() && !encoding.eq_ignore_ascii_case(b"identity") {
            "it is encoded"
        } else {
            return Plan::Mask;
        };
        match self.otherwise {
            Otherwise::Withhold => Plan::Withhold(reason),
            Otherwise::Pass => Plan::Leave,
        }
    }
}

/// An entity tag for a body that was changed: still of use, no longer for bytes. RFC 9110, section 8.8.1.
pub fn weaken(tag: &[u8]) -> Option<Vec<u8>> {
    (tag.starts_with(b"\"")).then(|| [b"W/", tag].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(otherwise: &str, status: &str, content_type: &str, encoding: &str) -> Plan {
        let text = format!(r#"{{"fields":["email"],"otherwise":"{otherwise}"}}"#);
        let configuration: Configuration =
            plugin_kit::configuration::parse(text.as_bytes()).unwrap();
        configuration.plan(Head {
            status: status.as_bytes(),
            content_type: content_type.as_bytes(),
            content_encoding: encoding.as_bytes(),
        })
    }

    #[test]
    fn only_json_is_looked_into() {
        for json in ["application/json", "Application/JSON; charset=utf-8", " application/json ;"] {
            assert_eq!(plan("withhold", "200", json, ""), Plan::Mask, "{json}");
        }
        for other in ["", "text/html", "application/jsonp", "application/problem+json"] {
            assert_eq!(plan("withhold", "200", other, "gzip"), Plan::Leave, "{other}");
        }
    }

    #[test]
    fn what_cannot_be_looked_into_is_withheld_unless_told_otherwise() {
        let json = "application/json";
        assert_eq!(plan("withhold", "200", json, "gzip"), Plan::Withhold("it is encoded"));
        assert_eq!(plan("withhold", "206", json, ""), Plan::Withhold("it is a part only"));
        assert_eq!(plan("withhold", "200", json, "Identity"), Plan::Mask);
        assert_eq!(plan("pass", "200", json, "gzip"), Plan::Leave);
        assert_eq!(plan("pass", "200", json, ""), Plan::Mask);
    }

    #[test]
    fn strong_tags_become_weak() {
        assert_eq!(weaken(b"\"a\""), Some(b"W/\"a\"".to_vec()));
        assert_eq!(weaken(b"W/\"a\""), None);
    }
}
