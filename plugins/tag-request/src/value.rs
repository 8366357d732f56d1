//! The bytes of a property as the text of a header.

use plugin_kit::field::is_value;
use serde::Deserialize;

/// What the bytes of a property are. The ABI does not say: the documentation of the property does.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// A text.
    #[default]
    Text,
    /// A number of 64 bits: ports, codes, sizes.
    Integer,
    /// One byte: `connection.mtls`.
    Boolean,
    /// A time or a duration in nanoseconds; written in milliseconds.
    Milliseconds,
}

impl Kind {
    /// The text, unless the bytes are something else or no header can carry them.
    pub fn text(self, bytes: &[u8]) -> Option<String> {
        let number = || bytes.try_into().ok().map(i64::from_le_bytes);
        match self {
            Self::Text if bytes.is_empty() || !is_value(bytes) => None,
            Self::Text => String::from_utf8(bytes.to_vec()).ok(),
            Self::Integer => number().map(|number| number.to_string()),
            Self::Milliseconds => number().map(|number| (number / 1_000_000).to_string()),
            Self::Boolean => match bytes {
                [0] => Some("false".to_owned()),
                [1] => Some("true".to_owned()),
                _ => None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_what_they_are() {
        let text = |kind: Kind, bytes: &[u8]| kind.text(bytes);
        assert_eq!(text(Kind::Text, b"127.0.0.1:80"), Some("127.0.0.1:80".to_owned()));
        assert_eq!(text(Kind::Integer, &8080_i64.to_le_bytes()), Some("8080".to_owned()));
        assert_eq!(text(Kind::Integer, &(-1_i64).to_le_bytes()), Some("-1".to_owned()));
        assert_eq!(text(Kind::Milliseconds, &2_500_000_i64.to_le_bytes()), Some("2".to_owned()));
        assert_eq!(text(Kind::Boolean, &[1]), Some("true".to_owned()));
        assert_eq!(text(Kind::Boolean, &[0]), Some("false".to_owned()));
    }

    #[test]
    fn what_no_header_can_carry_is_nothing() {
        assert_eq!(Kind::Text.text(b"a\r\nb: c"), None);
        assert_eq!(Kind::Text.text(b""), None);
        assert_eq!(Kind::Text.text(&[255]), None);
        assert_eq!(Kind::Integer.text(b"8080"), None);
        assert_eq!(Kind::Boolean.text(b"true"), None);
    }
}
