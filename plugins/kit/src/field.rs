//! Header fields that a plugin may be configured to read or write.

use std::fmt;

use serde::Deserialize;

/// The name of a header field, lower case, as the ABI wants it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(try_from = "String")]
pub struct FieldName(String);

/// Bytes of a name. Real ones have 30.
const NAME_BYTES: usize = 128;
/// Bytes of a value that a plugin writes: servers refuse heads of more than 8 to 64 KiB.
pub const VALUE_BYTES: usize = 4096;

/// Fields by which messages are framed and connections kept: the proxy's own. A plugin that writes them
/// can only break requests.
const RESERVED: [&str; 10] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

impl FieldName {
    /// Checks a name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(name: &str) -> Result<Self, String> {
        if name.is_empty() || name.len() > NAME_BYTES || !name.bytes().all(is_token) {
            return Err(format!(
                "`{name}` is no header name: 1 to {NAME_BYTES} letters, digits and !#$%&'*+-.^_`|~"
            ));
        }
        let name = name.to_ascii_lowercase();
        if RESERVED.contains(&name.as_str()) {
            return Err(format!("`{name}` belongs to the proxy: take another header"));
        }
        Ok(Self(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for FieldName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::new(&name)
    }
}

impl fmt::Display for FieldName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// `tchar` of RFC 9110, section 5.6.2
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether bytes may be the value of a field: visible, with blanks inside only, not too long. RFC 9110,
/// section 5.5; what is not ASCII stays out, since peers disagree about it.
pub fn is_value(bytes: &[u8]) -> bool {
    let visible = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~');
    bytes.len() <= VALUE_BYTES && bytes.iter().all(visible) && bytes.trim_ascii() == bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tokens_and_not_the_proxys() {
        assert_eq!(FieldName::new("X-Caller").map(|name| name.to_string()), Ok("x-caller".into()));
        for wrong in ["", ":path", "a b", "a:", "x\n", "Host", "Content-Length", "é"] {
            assert!(FieldName::new(wrong).is_err(), "{wrong:?}");
        }
        assert!(FieldName::new(&"x".repeat(NAME_BYTES)).is_ok());
        assert!(FieldName::new(&"x".repeat(NAME_BYTES + 1)).is_err());
    }

    #[test]
    fn values_cannot_start_another_line() {
        for good in ["", "a", "a b\tc", "~!"] {
            assert!(is_value(good.as_bytes()), "{good:?}");
        }
        for wrong in ["a\r\nb", "a\0", " a", "a ", "\u{7f}", "é"] {
            assert!(!is_value(wrong.as_bytes()), "{wrong:?}");
        }
        assert!(!is_value(&[b'x'; VALUE_BYTES + 1]));
    }
}
