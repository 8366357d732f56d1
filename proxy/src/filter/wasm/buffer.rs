//! Bytes that a plugin holds or looks at. What only passes is not copied. Pure.

use bytes::Bytes;
use leno_wasm_host::BufferEdit;

/// A part of a body.
#[derive(Debug)]
pub(super) enum Buffer {
    /// As it came.
    Shared(Bytes),
    /// Put together or changed.
    Owned(Vec<u8>),
}

impl Default for Buffer {
    fn default() -> Self {
        Self::Shared(Bytes::new())
    }
}

impl Buffer {
    /// All of it.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }

    /// How much there is.
    pub(super) fn len(&self) -> usize {
        self.bytes().len()
    }

    /// Puts more behind it.
    pub(super) fn push(&mut self, more: Bytes) {
        if self.len() == 0 {
            *self = Self::Shared(more);
        } else if !more.is_empty() {
            self.owned().extend_from_slice(&more);
        }
    }

    /// Takes everything out.
    pub(super) fn take(&mut self) -> Bytes {
        match std::mem::take(self) {
            Self::Shared(bytes) => bytes,
            Self::Owned(bytes) => bytes.into(),
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        if self.len() > 0 {
            *self = Self::default();
        }
    }

    /// What a plugin does to it.
    pub(super) fn edit(&mut self, edit: BufferEdit<'_>) {
        match edit {
            BufferEdit::Append(bytes) => self.owned().extend_from_slice(bytes),
            BufferEdit::Front { dropped, bytes } => {
                let rest = self.bytes().get(dropped..).unwrap_or_default();
                let mut whole = Vec::with_capacity(bytes.len() + rest.len());
                whole.extend_from_slice(bytes);
                whole.extend_from_slice(rest);
                *self = Self::Owned(whole);
            }
        }
    }

    fn owned(&mut self) -> &mut Vec<u8> {
        loop {
            match self {
                Self::Owned(bytes) => return bytes,
                Self::Shared(bytes) => *self = Self::Owned(bytes.to_vec()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_not_copied() {
        let came = Bytes::from_static(b"hello");
        let mut buffer = Buffer::default();
        buffer.push(came.clone());
        assert_eq!(buffer.take().as_ptr(), came.as_ptr());
        assert_eq!(buffer.len(), 0);
    }

    #[test]
    fn edits_are_those_of_the_abi() {
        let front = |dropped, bytes| BufferEdit::Front { dropped, bytes };
        for (edit, after) in [
            (front(0, &b"XX"[..]), &b"XXhello"[..]),
            (front(2, b"XX"), b"XXllo"),
            (front(5, b""), b""),
            (front(9, b"X"), b"X"),
            (BufferEdit::Append(b"!"), b"hello!"),
        ] {
            let mut buffer = Buffer::default();
            buffer.push(Bytes::from_static(b"hel"));
            buffer.push(Bytes::from_static(b"lo"));
            buffer.edit(edit);
            assert_eq!(buffer.bytes(), after);
        }
    }
}
