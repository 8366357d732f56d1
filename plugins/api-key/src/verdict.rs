//! What is thought of a key.

use plugin_kit::field::is_value;

/// The answer of the service that knows the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It knows the key; and whose it is, if it says so.
    Accepted(Option<String>),
    /// It does not know the key: 401.
    Unknown,
    /// It knows the key, and its owner may not: 403.
    Forbidden,
}

/// Bytes of a key. Keys in the field have 20 to 100.
const KEY_BYTES: usize = 512;

/// Whether it can be a key at all. What cannot is not worth a question.
pub fn is_key(bytes: &[u8]) -> bool {
    (1..=KEY_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

impl Verdict {
    /// Reads the service's answer: its status, and the header that names the caller. `None` if it is no
    /// answer to the question (5xx, 429, a redirect): then nobody knows.
    ///
    /// A name that cannot be a header's value is none of ours to repair: nobody knows, either.
    pub fn of_answer(status: Option<&[u8]>, caller: Option<&[u8]>) -> Option<Self> {
        match status? {
            b"200" | b"204" => match caller {
                None => Some(Self::Accepted(None)),
                Some(caller) if is_value(caller) && !caller.is_empty() => {
                    String::from_utf8(caller.to_vec()).ok().map(|name| Self::Accepted(Some(name)))
                }
                Some(_) => None,
            },
            b"401" | b"404" => Some(Self::Unknown),
            b"403" => Some(Self::Forbidden),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_a_yes() {
        let of = |status: &str, caller: Option<&str>| {
            Verdict::of_answer(Some(status.as_bytes()), caller.map(str::as_bytes))
        };
        assert_eq!(of("200", Some("ada")), Some(Verdict::Accepted(Some("ada".to_owned()))));
        assert_eq!(of("204", None), Some(Verdict::Accepted(None)));
        assert_eq!(of("401", None), Some(Verdict::Unknown));
        assert_eq!(of("404", None), Some(Verdict::Unknown));
        assert_eq!(of("403", Some("ada")), Some(Verdict::Forbidden));
        for status in ["201", "302", "429", "500", "503", "504", "20", "2000", ""] {
            assert_eq!(of(status, Some("ada")), None, "{status}");
        }
        assert_eq!(of("200", Some("a\r\nx-admin: 1")), None);
        assert_eq!(of("200", Some("")), None);
        assert_eq!(Verdict::of_answer(None, None), None);
    }

    #[test]
    fn keys_are_visible_and_not_endless() {
        assert!(is_key(b"k-123_~"));
        for wrong in [&b""[..], b"a b", b"a\n", "é".as_bytes(), &[b'x'; KEY_BYTES + 1]] {
            assert!(!is_key(wrong), "{wrong:?}");
        }
    }
}
