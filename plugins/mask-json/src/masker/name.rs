//! The name of a field as it is read, with its escapes undone.

/// A name, known as far as it can matter.
#[derive(Debug, Default)]
pub struct Name {
    /// As it is written, escapes and all.
    raw: Vec<u8>,
    decoded: Vec<u8>,
    /// Bytes of `raw` that can still be a field's name.
    limit: usize,
    too_long: bool,
}

/// A byte takes at most six to write: `\u0061`. A character outside of the basic plane takes twelve for four bytes.
const ESCAPED: usize = 6;

impl Name {
    /// `longest`: bytes of the longest name that matters.
    pub fn new(longest: usize) -> Self {
        Self { limit: longest * ESCAPED, ..Self::default() }
    }

    /// Another name begins.
    pub fn clear(&mut self) {
        self.raw.clear();
        self.decoded.clear();
        self.too_long = false;
    }

    /// The next byte, as it is written.
    pub fn push(&mut self, byte: u8) {
        if self.raw.len() < self.limit {
            self.raw.push(byte);
        } else {
            self.too_long = true;
        }
    }

    /// The name is complete.
    pub fn end(&mut self) {
        if !self.too_long {
            decode(&self.raw, &mut self.decoded);
        }
    }

    /// What it says. Nothing if it is too long to matter: no field has an empty name.
    pub fn bytes(&self) -> &[u8] {
        &self.decoded
    }
}

/// Undoes escapes. They are complete: the reader saw to it.
fn decode(raw: &[u8], out: &mut Vec<u8>) {
    let mut rest = raw;
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        if *byte != b'\\' {
            out.push(*byte);
            continue;
        }
        let Some((kind, tail)) = rest.split_first() else { return };
        rest = tail;
        let decoded = match kind {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => unicode(&mut rest),
            other => char::from(*other),
        };
        out.extend_from_slice(decoded.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

/// The character of `\u`, whose digits come next; half a pair alone is no character.
fn unicode(rest: &mut &[u8]) -> char {
    let first = digits(rest);
    if (0xd800..0xdc00).contains(&first)
        && let Some(mut second) = rest.strip_prefix(b"\\u")
    {
        let low = digits(&mut second);
        if (0xdc00..0xe000).contains(&low) {
            *rest = second;
            let code = 0x10000 + ((first - 0xd800) << 10) + (low - 0xdc00);
            return char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
        }
    }
    char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn digits(rest: &mut &[u8]) -> u32 {
    let (four, tail) = rest.split_at(rest.len().min(4));
    *rest = tail;
    four.iter().fold(0, |code, digit| code * 16 + char::from(*digit).to_digit(16).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_do_not_hide_a_name() {
        for (raw, expected) in [
            ("email", "email"),
            (r"\u0065mail", "email"),
            (r"\u0065\u006D\u0061\u0069\u006c", "email"),
            (r#"a\"\\\/\b\f\n\r\t"#, "a\"\\/\u{8}\u{c}\n\r\t"),
            (r"\ud83d\ude00", "\u{1f600}"),
            (r"\ud83dx", "\u{fffd}x"),
            (r"\ud83d\u0041", "\u{fffd}A"),
            (r"\udc00", "\u{fffd}"),
        ] {
            let mut name = Name::new(64);
            raw.bytes().for_each(|byte| name.push(byte));
            name.end();
            assert_eq!(name.bytes(), expected.as_bytes(), "{raw}");
        }
    }

    #[test]
    fn long_names_are_not_kept() {
        let mut name = Name::new(2);
        (0..1000).for_each(|_| name.push(b'x'));
        name.end();
        assert_eq!(name.bytes(), b"");
        assert!(name.raw.len() <= 12);
        name.clear();
        name.push(b'x');
        name.end();
        assert_eq!(name.bytes(), b"x");
    }
}
