//! A response as bytes. Pure.
//!
//! `LENO`, a version, a checksum (half a SHA-256 of which response it is and of all that follows), then when it was
//! written and how old it was then (milliseconds, by the clock of Redis), what was in force, status, fields, trailers and
//! body. Numbers are big-endian; whatever has a length has it before it. What is not exactly so is not used.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use sha2::{Digest as _, Sha256};

use super::keys::Digest;

const MAGIC: &[u8; 4] = b"LENO";
/// Who changes anything below counts on: older readers then miss, and newer ones miss what is older.
const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 16;
const PREFIX_BYTES: usize = MAGIC.len() + 1 + CHECKSUM_BYTES;
/// Of an epoch or generation.
pub const MOST_TOKEN_BYTES: usize = 16;
/// Fields of a response, and of its trailers.
const MOST_FIELDS: usize = 1024;
/// All that is not the body.
pub const MOST_HEAD_BYTES: u64 = 256 * 1024;

/// What was in force when the fetch of a response began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Of everything, the service, its port.
    pub epochs: [Vec<u8>; 3],
    /// Of the path; empty where it has none.
    pub generation: Vec<u8>,
}

/// A response as it is in Redis.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// When it was written, by the clock of Redis since the Unix epoch.
    pub written: Duration,
    /// How old it was then (RFC 9111 section 4.2.3).
    pub age: Duration,
    /// What was in force.
    pub stamp: Stamp,
    /// Its status.
    pub status: StatusCode,
    /// Its fields as they were stored.
    pub headers: HeaderMap,
    /// What came after the body.
    pub trailers: Option<HeaderMap>,
    /// All of it.
    pub body: Bytes,
}

/// Why bytes are not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Somebody else's.
    #[error("it is not ours")]
    NotOurs,
    /// By another version of us.
    #[error("it was written by another version")]
    Version,
    /// Damaged, cut off, or another response.
    #[error("its checksum is wrong")]
    Checksum,
    /// Not what the layout says.
    #[error("it is malformed")]
    Malformed,
    /// Larger than the policy lets be kept.
    #[error("it is too large")]
    TooLarge,
}

/// As bytes; none of what is too large to be read again.
pub fn encode(entry: &Entry, which: &Digest) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(PREFIX_BYTES + 1024 + entry.body.len());
    out.extend_from_slice(MAGIC);
    out.push(VERSION);
    out.extend_from_slice(&[0; CHECKSUM_BYTES]);
    for time in [entry.written, entry.age] {
        out.extend_from_slice(&u64::try_from(time.as_millis()).ok()?.to_be_bytes());
    }
    for token in entry.stamp.epochs.iter().chain([&entry.stamp.generation]) {
        out.push(u8::try_from(token.len()).ok()?);
        out.extend_from_slice(token);
    }
    out.extend_from_slice(&entry.status.as_u16().to_be_bytes());
    put_fields(&mut out, &entry.headers)?;
    out.push(u8::from(entry.trailers.is_some()));
    if let Some(trailers) = &entry.trailers {
        put_fields(&mut out, trailers)?;
    }
    out.extend_from_slice(&(entry.body.len() as u64).to_be_bytes());
    if out.len() as u64 > MOST_HEAD_BYTES {
        return None;
    }
    out.extend_from_slice(&entry.body);
    let checksum = checksum(which, &out[PREFIX_BYTES..]);
    out[PREFIX_BYTES - CHECKSUM_BYTES..PREFIX_BYTES].copy_from_slice(&checksum);
    Some(out)
}

/// From bytes that claim to be the response `which`, with a body of at most `most_bytes`.
///
/// # Errors
/// Anything else.
pub fn decode(bytes: Bytes, which: &Digest, most_bytes: u64) -> Result<Entry, Fault> {
    if bytes.len() < PREFIX_BYTES || !bytes.starts_with(MAGIC) {
        return Err(Fault::NotOurs);
    }
    if bytes[MAGIC.len()] != VERSION {
        return Err(Fault::Version);
    }
    if bytes.len() as u64 > most_bytes.saturating_add(MOST_HEAD_BYTES) {
        return Err(Fault::TooLarge);
    }
    let payload = bytes.slice(PREFIX_BYTES..);
    if checksum(which, &payload) != bytes[PREFIX_BYTES - CHECKSUM_BYTES..PREFIX_BYTES] {
        return Err(Fault::Checksum);
    }
    read(payload, most_bytes).ok_or(Fault::Malformed).and_then(|entry| {
        match entry.body.len() as u64 > most_bytes {
            true => Err(Fault::TooLarge),
            false => Ok(entry),
        }
    })
}

fn checksum(which: &Digest, payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let digest = Sha256::new().chain_update(which).chain_update(payload).finalize();
    let mut half = [0; CHECKSUM_BYTES];
    half.copy_from_slice(&digest[..CHECKSUM_BYTES]);
    half
}

fn put_fields(out: &mut Vec<u8>, fields: &HeaderMap) -> Option<()> {
    if fields.len() > MOST_FIELDS {
        return None;
    }
    out.extend_from_slice(&u32::try_from(fields.len()).ok()?.to_be_bytes());
    for (name, value) in fields {
        for part in [name.as_str().as_bytes(), value.as_bytes()] {
            out.extend_from_slice(&u32::try_from(part.len()).ok()?.to_be_bytes());
            out.extend_from_slice(part);
        }
    }
    Some(())
}

fn read(mut payload: Bytes, most_bytes: u64) -> Option<Entry> {
    let payload = &mut payload;
    let written = Duration::from_millis(number(payload, 8)?);
    let age = Duration::from_millis(number(payload, 8)?);
    let mut stamp = Stamp::default();
    for token in stamp.epochs.iter_mut().chain([&mut stamp.generation]) {
        let length = number(payload, 1)?;
        if length > MOST_TOKEN_BYTES as u64 {
            return None;
        }
        *token = take(payload, length)?.to_vec();
    }
    let status = StatusCode::from_u16(u16::try_from(number(payload, 2)?).ok()?).ok()?;
    let headers = fields(payload)?;
    let trailers = match number(payload, 1)? {
        0 => None,
        1 => Some(fields(payload)?),
        _ => return None,
    };
    let length = number(payload, 8)?;
    if length != payload.len() as u64 || length > most_bytes.saturating_add(MOST_HEAD_BYTES) {
        return None;
    }
    // What is passed on says its length once: both must agree.
    let mut said = headers.get_all(header::CONTENT_LENGTH).iter();
    let agrees = |value: &HeaderValue| value.as_bytes() == length.to_string().as_bytes();
    if !said.all(agrees) || !(200..=599).contains(&status.as_u16()) {
        return None;
    }
    let body = std::mem::take(payload);
    Some(Entry { written, age, stamp, status, headers, trailers, body })
}

fn fields(payload: &mut Bytes) -> Option<HeaderMap> {
    let count = number(payload, 4)?;
    if count > MOST_FIELDS as u64 {
        return None;
    }
    let mut fields = HeaderMap::new();
    for _ in 0..count {
        let length = number(payload, 4)?;
        let name = HeaderName::from_bytes(&take(payload, length)?).ok()?;
        let length = number(payload, 4)?;
        let value = HeaderValue::from_maybe_shared(take(payload, length)?).ok()?;
        fields.try_append(name, value).ok()?;
    }
    Some(fields)
}

fn number(payload: &mut Bytes, bytes: u64) -> Option<u64> {
    let taken = take(payload, bytes)?;
    Some(taken.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn take(payload: &mut Bytes, bytes: u64) -> Option<Bytes> {
    let bytes = usize::try_from(bytes).ok()?;
    (bytes <= payload.len()).then(|| payload.split_to(bytes))
}

#[cfg(test)]
mod tests;
