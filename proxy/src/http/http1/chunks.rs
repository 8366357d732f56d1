//! Bodies in chunks (RFC 9112 section 7.1). Pure.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use httparse::Status;

/// Longest line that says how long a chunk is, its extensions included: nobody uses those.
const MAX_SIZE_LINE: usize = 4 * 1024;
/// Bytes and fields of trailers: as little as for a small head.
const MAX_TRAILER_BYTES: usize = 16 * 1024;
const MAX_TRAILERS: usize = 64;

/// Why what came are no chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ChunkError {
    #[error("the size of a chunk is malformed")]
    Size,
    #[error("a chunk does not end where it said")]
    End,
    #[error("the trailers are malformed")]
    Trailers,
    #[error("the trailers are over {MAX_TRAILER_BYTES} bytes")]
    TooLong,
}

/// What comes next.
#[derive(Debug, PartialEq)]
pub(super) enum Piece {
    Data(Bytes),
    /// The end of the body, with fields where there are any.
    End(Option<HeaderMap>),
}

/// Where in the body we are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Chunks {
    /// A line with a size is due.
    #[default]
    Size,
    /// So much of a chunk is left.
    Data(u64),
    /// The end of the line after a chunk is due.
    DataEnd,
    /// Trailers, or the empty line, are due.
    Trailers,
}

impl Chunks {
    /// Takes the next piece off the front of `read`; `None` when more has to be read for it.
    ///
    /// # Errors
    /// When what came are no chunks.
    pub(super) fn take(&mut self, read: &mut BytesMut) -> Result<Option<Piece>, ChunkError> {
        loop {
            match *self {
                Self::Size => match size(read)? {
                    None => return Ok(None),
                    Some(0) => *self = Self::Trailers,
                    Some(size) => *self = Self::Data(size),
                },
                Self::Data(_) if read.is_empty() => return Ok(None),
                Self::Data(left) => {
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(read.len());
                    let data = read.split_to(length).freeze();
                    let left = left - length as u64;
                    *self = if left == 0 { Self::DataEnd } else { Self::Data(left) };
                    return Ok(Some(Piece::Data(data)));
                }
                Self::DataEnd => match read.get(..2) {
                    None if read.first().is_none_or(|byte| *byte == b'\r') => return Ok(None),
                    Some(b"\r\n") => {
                        read.advance(2);
                        *self = Self::Size;
                    }
                    _ => return Err(ChunkError::End),
                },
                Self::Trailers => return Ok(trailers(read)?.map(Piece::End)),
            }
        }
    }
}

/// Takes a line with a size. Extensions are for nobody here. (`httparse` takes a line without a number for the end.)
fn size(read: &mut BytesMut) -> Result<Option<u64>, ChunkError> {
    let Some(length) = memchr::memchr(b'\n', read) else {
        return match read.len() <= MAX_SIZE_LINE && begins_a_size(read) {
            true => Ok(None),
            false => Err(ChunkError::Size),
        };
    };
    let line = read[..length].strip_suffix(b"\r").ok_or(ChunkError::Size)?;
    let number = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii_end();
    let digits = (1..=16).contains(&number.len()) && number.iter().all(u8::is_ascii_hexdigit);
    if !digits || line.len() > MAX_SIZE_LINE || line.contains(&b'\r') {
        return Err(ChunkError::Size);
    }
    let text = std::str::from_utf8(number).map_err(|_| ChunkError::Size)?;
    let size = u64::from_str_radix(text, 16).map_err(|_| ChunkError::Size)?;
    read.advance(length + 1);
    Ok(Some(size))
}

/// Whether the rest of a line may still make it a size: whoever sends something else need not send a line's end.
fn begins_a_size(line: &[u8]) -> bool {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    match line.get(digits) {
        None => digits <= 16,
        Some(next) => (1..=16).contains(&digits) && matches!(next, b';' | b' ' | b'\t' | b'\r'),
    }
}

/// Takes trailers with the empty line after them.
fn trailers(read: &mut BytesMut) -> Result<Option<Option<HeaderMap>>, ChunkError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILERS];
    let (length, headers) = match httparse::parse_headers(read, &mut fields) {
        Ok(Status::Complete((length, fields))) => (length, collect(fields)?),
        Ok(Status::Partial) if read.len() <= MAX_TRAILER_BYTES => return Ok(None),
        Ok(Status::Partial) => return Err(ChunkError::TooLong),
        Err(_) => return Err(ChunkError::Trailers),
    };
    read.advance(length);
    Ok(Some(headers))
}

fn collect(fields: &[httparse::Header<'_>]) -> Result<Option<HeaderMap>, ChunkError> {
    if fields.is_empty() {
        return Ok(None);
    }
    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let value = HeaderValue::from_bytes(field.value);
        let (Ok(name), Ok(value)) = (name, value) else { return Err(ChunkError::Trailers) };
        headers.append(name, value);
    }
    Ok(Some(headers))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Data, trailers by number, and what is left.
    type Read = Option<(Vec<u8>, usize, Vec<u8>)>;

    fn read(pieces: &[&[u8]]) -> Result<Read, ChunkError> {
        let (mut chunks, mut read, mut data) = (Chunks::default(), BytesMut::new(), Vec::new());
        for piece in pieces {
            read.extend_from_slice(piece);
            while let Some(piece) = chunks.take(&mut read)? {
                match piece {
                    Piece::Data(bytes) => data.extend_from_slice(&bytes),
                    Piece::End(trailers) => {
                        let trailers = trailers.map_or(0, |trailers| trailers.len());
                        return Ok(Some((data, trailers, read.to_vec())));
                    }
                }
            }
        }
        Ok(None)
    }

    #[test]
    fn chunks_are_put_together() {
        let body = b"5\r\nhello\r\nA;ext=1\r\n, worlds!!\r\n0\r\n\r\nHTTP".as_slice();
        assert_eq!(read(&[body]), Ok(Some((b"hello, worlds!!".to_vec(), 0, b"HTTP".to_vec()))));
        let body = b"1\r\nx\r\n0\r\nGrpc-Status: 0\r\na: b\r\n\r\n".as_slice();
        assert_eq!(read(&[body]), Ok(Some((b"x".to_vec(), 2, Vec::new()))));
        assert_eq!(read(&[b"5\r\nhel"]), Ok(None));
        assert_eq!(read(&[b"1\r\nx\r\n0\r\n"]), Ok(None), "the empty line is missing");
    }

    #[test]
    fn what_are_no_chunks_is_refused() {
        for (body, error) in [
            ("x\r\n", ChunkError::Size),
            ("\r\n", ChunkError::Size),
            (";x\r\n", ChunkError::Size),
            ("+1\r\n", ChunkError::Size),
            (" 1\r\n", ChunkError::Size),
            ("1\n", ChunkError::Size),
            ("1;a\rb\r\n", ChunkError::Size),
            ("nonsense", ChunkError::Size),
            ("1x", ChunkError::Size),
            ("11111111111111111", ChunkError::Size),
            ("-1\r\n", ChunkError::Size),
            ("fffffffffffffffff\r\n", ChunkError::Size),
            ("1\r\nxy\r\n", ChunkError::End),
            ("1\r\nx\n0\r\n\r\n", ChunkError::End),
            ("0\r\na b: c\r\n\r\n", ChunkError::Trailers),
        ] {
            assert_eq!(read(&[body.as_bytes()]), Err(error), "{body:?}");
        }
        let long = format!("1;{}", "x".repeat(MAX_SIZE_LINE));
        assert_eq!(read(&[long.as_bytes()]), Err(ChunkError::Size));
        let long = format!("0\r\na: {}", "x".repeat(MAX_TRAILER_BYTES));
        assert_eq!(read(&[long.as_bytes()]), Err(ChunkError::TooLong));
        let many = format!("0\r\n{}\r\n", "a: b\r\n".repeat(MAX_TRAILERS + 1));
        assert_eq!(read(&[many.as_bytes()]), Err(ChunkError::Trailers));
    }

    proptest! {
        /// It makes no difference in which pieces they come.
        #[test]
        fn pieces_say_what_the_whole_says(
            data in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
            size in 1usize..30,
        ) {
            let mut body = Vec::new();
            for chunk in &data {
                body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\nt: u\r\n\r\n");
            let pieces: Vec<&[u8]> = body.chunks(size).collect();
            prop_assert_eq!(read(&pieces), Ok(Some((data.concat(), 1, Vec::new()))));
        }

        #[test]
        fn nothing_panics(bytes: Vec<u8>) {
            let _read = read(&[&bytes]);
        }
    }
}
