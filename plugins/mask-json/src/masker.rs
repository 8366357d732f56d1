//! JSON, byte by byte: everything is copied but the values that are masked.
//!
//! It is strict where another reader might see a name or a value that this one does not (RFC 8259): no
//! comments, no bare names, no second document. It is not where nothing can hide: `01` and `nulll` pass.

use std::rc::Rc;

use self::name::Name;
use crate::fields::Fields;

mod name;

/// Reads one document and writes it with its fields masked. Bytes come in any portions.
#[derive(Debug)]
pub struct Masker {
    fields: Rc<Fields>,
    mask: Rc<[u8]>,
    /// What encloses the place, the outermost first.
    open: Vec<Container>,
    state: State,
    /// The depth at which the value began that is being left out.
    hidden: Option<usize>,
}

/// Why a body is not masked any further. Nothing of what follows may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// A byte that JSON does not have there.
    Byte(u8),
    /// It is nested deeper than anything that people write.
    TooDeep,
    /// It ended before it was complete.
    Incomplete,
}

#[derive(Debug)]
enum Container {
    /// An object with the name that was read last.
    Object(Name),
    Array,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A value has to come; in an array that has just begun its end will do.
    Value {
        or_end: bool,
    },
    /// A name has to come; in an object that has just begun its end will do.
    Name {
        or_end: bool,
    },
    Colon,
    /// A value ended within something.
    AfterValue,
    /// In a number, `true`, `false`, `null`.
    Word,
    InString {
        name: bool,
        escape: Escape,
    },
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    None,
    Begun,
    /// Digits of `\u` that are missing.
    Digits(u8),
}

/// Containers in each other. Readers have limits of 100 to 1000.
const DEPTH: usize = 256;

impl Masker {
    /// For one document.
    pub fn new(fields: Rc<Fields>, mask: Rc<[u8]>) -> Self {
        let state = State::Value { or_end: false };
        Self { fields, mask, open: Vec::new(), state, hidden: None }
    }

    /// Reads a portion and appends what of it may be seen.
    ///
    /// # Errors
    /// See [`Malformed`]; what was written before is masked as it should be.
    pub fn read(&mut self, portion: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
        portion.iter().try_for_each(|byte| self.byte(*byte, out))
    }

    /// The document has no more bytes. An empty body is none, and that is fine.
    ///
    /// # Errors
    /// [`Malformed::Incomplete`]
    pub fn finish(&mut self) -> Result<(), Malformed> {
        if self.state == State::Word && self.open.is_empty() {
            self.end_value();
        }
        let untouched = self.state == (State::Value { or_end: false }) && self.open.is_empty();
        if self.state == State::End || untouched { Ok(()) } else { Err(Malformed::Incomplete) }
    }

    fn byte(&mut self, byte: u8, out: &mut Vec<u8>) -> Result<(), Malformed> {
        if let State::InString { name, escape } = self.state {
            return self.string_byte(byte, name, escape, out);
        }
        if self.state == State::Word {
            if is_word(byte) {
                self.copy(byte, out);
                return Ok(());
            }
            self.end_value();
        }
        match (byte, self.state) {
            (b' ' | b'\t' | b'\r' | b'\n', _) => self.copy(byte, out),
            (b':', State::Colon) => {
                self.copy(byte, out);
                self.state = State::Value { or_end: false };
            }
            (b',', State::AfterValue) => {
                self.copy(byte, out);
                self.state = match self.open.last() {
                    Some(Container::Object(_)) => State::Name { or_end: false },
                    _ => State::Value { or_end: false },
                };
            }
            (b'"', State::Name { .. }) => {
                self.copy(byte, out);
                if let Some(Container::Object(name)) = self.open.last_mut() {
                    name.clear();
                }
                self.state = State::InString { name: true, escape: Escape::None };
            }
            (b'}' | b']', _) => return self.close(byte, out),
            (_, State::Value { .. }) => return self.begin_value(byte, out),
            _ => return Err(Malformed::Byte(byte)),
        }
        Ok(())
    }

    fn begin_value(&mut self, byte: u8, out: &mut Vec<u8>) -> Result<(), Malformed> {
        let next = match byte {
            b'"' => State::InString { name: false, escape: Escape::None },
            b'{' => State::Name { or_end: true },
            b'[' => State::Value { or_end: true },
            _ if is_word(byte) => State::Word,
            _ => return Err(Malformed::Byte(byte)),
        };
        if self.hidden.is_none() && self.is_masked() {
            self.hidden = Some(self.open.len());
            out.extend_from_slice(&self.mask);
        }
        self.copy(byte, out);
        match byte {
            b'{' => self.enter(Container::Object(Name::new(self.fields.longest())))?,
            b'[' => self.enter(Container::Array)?,
            _ => {}
        }
        self.state = next;
        Ok(())
    }

    /// Whether the value that begins is a field's own: an element of an array is not asked again, since the
    /// array was masked as a whole.
    fn is_masked(&self) -> bool {
        let Some(Container::Object(_)) = self.open.last() else { return false };
        let names = self.open.iter().rev().filter_map(|container| match container {
            Container::Object(name) => Some(name.bytes()),
            Container::Array => None,
        });
        self.fields.contain(names)
    }

    fn enter(&mut self, container: Container) -> Result<(), Malformed> {
        if self.open.len() == DEPTH {
            return Err(Malformed::TooDeep);
        }
        self.open.push(container);
        Ok(())
    }

    fn close(&mut self, byte: u8, out: &mut Vec<u8>) -> Result<(), Malformed> {
        let fits = match (self.open.last(), self.state) {
            (Some(Container::Object(_)), State::AfterValue | State::Name { or_end: true }) => b'}',
            (Some(Container::Array), State::AfterValue | State::Value { or_end: true }) => b']',
            _ => return Err(Malformed::Byte(byte)),
        };
        if byte != fits {
            return Err(Malformed::Byte(byte));
        }
        self.copy(byte, out);
        self.open.pop();
        self.end_value();
        Ok(())
    }

    fn end_value(&mut self) {
        if self.hidden == Some(self.open.len()) {
            self.hidden = None;
        }
        self.state = if self.open.is_empty() { State::End } else { State::AfterValue };
    }

    fn string_byte(
        &mut self,
        byte: u8,
        name: bool,
        escape: Escape,
        out: &mut Vec<u8>,
    ) -> Result<(), Malformed> {
        let next = match (escape, byte) {
            (Escape::None, b'"') => return self.end_string(name, out),
            (Escape::None, b'\\') => Escape::Begun,
            (Escape::None, 0..=0x1f) => return Err(Malformed::Byte(byte)),
            (Escape::None, _) => Escape::None,
            (Escape::Begun, b'u') => Escape::Digits(4),
            (Escape::Begun, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Escape::None,
            (Escape::Digits(missing), _) if byte.is_ascii_hexdigit() => match missing {
                1 => Escape::None,
                _ => Escape::Digits(missing - 1),
            },
            _ => return Err(Malformed::Byte(byte)),
        };
        if name && let Some(Container::Object(name)) = self.open.last_mut() {
            name.push(byte);
        }
        self.copy(byte, out);
        self.state = State::InString { name, escape: next };
        Ok(())
    }

    fn end_string(&mut self, name: bool, out: &mut Vec<u8>) -> Result<(), Malformed> {
        self.copy(b'"', out);
        if !name {
            self.end_value();
            return Ok(());
        }
        if let Some(Container::Object(name)) = self.open.last_mut() {
            name.end();
        }
        self.state = State::Colon;
        Ok(())
    }

    fn copy(&self, byte: u8, out: &mut Vec<u8>) {
        if self.hidden.is_none() {
            out.push(byte);
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

#[cfg(test)]
mod tests;
