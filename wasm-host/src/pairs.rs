//! The format in which lists of headers cross between host and guest.
//!
//! Little endian: `u32 count`, `count` times `(u32 key length, u32 value length)`, `count` times
//! `(key, 0, value, 0)`. An empty list is no bytes at all.

/// Bytes that a list from a guest may have. Other hosts have the same bound, so no plugin needs more.
pub const MAX_BYTES: usize = 1 << 20;
/// Pairs that a list from a guest may have, for the same reason.
pub const MAX_PAIRS: usize = 1024;

/// A list as it came from a guest, checked as a whole before anything is taken from it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pairs<'a> {
    count: usize,
    lengths: &'a [u8],
    bytes: &'a [u8],
}

/// Why bytes are no list of pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PairsError {
    /// More than [`MAX_BYTES`] or [`MAX_PAIRS`].
    #[error("more than {MAX_BYTES} bytes or {MAX_PAIRS} pairs")]
    TooLarge,
    /// The bytes end before the list does.
    #[error("the bytes end before the list does")]
    Truncated,
    /// Bytes are left over after the list.
    #[error("bytes are left over after the list")]
    Trailing,
    /// A key or a value does not end in a zero byte.
    #[error("a key or a value does not end in a zero byte")]
    NotTerminated,
}

impl<'a> Pairs<'a> {
    /// Reads a list. The bytes must be exactly one list.
    ///
    /// # Errors
    /// See [`PairsError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, PairsError> {
        if bytes.len() > MAX_BYTES {
            return Err(PairsError::TooLarge);
        }
        if bytes.is_empty() || bytes == [0] {
            return Ok(Self::default());
        }
        let (head, rest) = bytes.split_first_chunk::<4>().ok_or(PairsError::Truncated)?;
        let count = u32::from_le_bytes(*head) as usize;
        if count > MAX_PAIRS {
            return Err(PairsError::TooLarge);
        }
        let (lengths, bytes) = rest.split_at_checked(count * 8).ok_or(PairsError::Truncated)?;
        let pairs = Self { count, lengths, bytes };
        pairs.check()?;
        Ok(pairs)
    }

    fn check(&self) -> Result<(), PairsError> {
        let mut rest = self.bytes;
        for length in self.lengths.chunks_exact(4) {
            let length = read_length(length);
            let (_, tail) = rest.split_at_checked(length).ok_or(PairsError::Truncated)?;
            let (end, tail) = tail.split_first().ok_or(PairsError::Truncated)?;
            if *end != 0 {
                return Err(PairsError::NotTerminated);
            }
            rest = tail;
        }
        if rest.is_empty() { Ok(()) } else { Err(PairsError::Trailing) }
    }

    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The pairs, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut rest = self.bytes;
        self.lengths.chunks_exact(8).map(move |lengths| {
            let (key, value) = lengths.split_at(4);
            (take(&mut rest, read_length(key)), take(&mut rest, read_length(value)))
        })
    }

    /// The first value of a key, compared without case.
    pub fn first(&self, key: &[u8]) -> Option<&'a [u8]> {
        self.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value)
    }
}

fn read_length(bytes: &[u8]) -> usize {
    bytes.first_chunk::<4>().map_or(0, |length| u32::from_le_bytes(*length) as usize)
}

/// The next string and its zero byte; `check` found both there.
fn take<'a>(rest: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (found, tail) = rest.split_at_checked(length).unwrap_or((rest, &[]));
    *rest = tail.get(1..).unwrap_or(&[]);
    found
}

/// Writes lists for guests into one vector that is used again and again.
#[derive(Debug, Default)]
pub struct PairsWriter {
    lengths: Vec<u8>,
    bytes: Vec<u8>,
}

impl PairsWriter {
    /// Appends a pair.
    pub fn push(&mut self, key: &[u8], value: &[u8]) {
        self.lengths.extend_from_slice(&length_of(key));
        self.lengths.extend_from_slice(&length_of(value));
        for part in [key, value] {
            self.bytes.extend_from_slice(part);
            self.bytes.push(0);
        }
    }

    /// Appends the list to `out`; an empty list appends nothing.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        if self.lengths.is_empty() {
            return;
        }
        out.reserve(4 + self.lengths.len() + self.bytes.len());
        out.extend_from_slice(&((self.lengths.len() / 8) as u32).to_le_bytes());
        out.extend_from_slice(&self.lengths);
        out.extend_from_slice(&self.bytes);
    }

    /// Forgets the pairs and keeps the memory.
    pub fn clear(&mut self) {
        self.lengths.clear();
        self.bytes.clear();
    }
}

fn length_of(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes()
}

/// Encodes a list at once.
pub fn encode<'a>(pairs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Vec<u8> {
    let mut writer = PairsWriter::default();
    for (key, value) in pairs {
        writer.push(key, value);
    }
    let mut out = Vec::new();
    writer.write_to(&mut out);
    out
}

#[cfg(test)]
mod tests;
