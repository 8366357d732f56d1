//! The properties that follow from a stream's headers, so that no embedder has to write them again: those of
//! `request.` and `response.` that Envoy documents as taken from headers. All others are the embedder's.

use std::collections::HashMap;

use crate::{
    abi::{MapType, Status},
    embedder::Stream,
};

/// Objects that can only be asked for by member. Asking for the whole is an error of its own.
const OBJECTS: [&[u8]; 5] = [b"", b"request", b"response", b"source", b"connection"];

/// Whether a path names a whole object. The empty path is the object of everything, also outside of streams.
pub(crate) fn is_object(path: &[u8], in_stream: bool) -> bool {
    OBJECTS.contains(&path) && (in_stream || path.is_empty())
}

/// Appends the value of a property to `out`, if it is one that follows from headers.
pub(crate) fn of_headers(
    stream: &impl Stream,
    path: &[u8],
    out: &mut Vec<u8>,
) -> Option<Result<(), Status>> {
    let mut segments = path.splitn(3, |byte| *byte == 0);
    let (object, member, key) = (segments.next()?, segments.next()?, segments.next());
    let value = |name: &[u8]| stream.header(MapType::RequestHeaders, name);
    let path = || value(b":path").map(split_query);
    let found = match (object, member, key) {
        (_, b"headers" | b"trailers", key) => {
            return Some(member_of_map(stream, map_of(object, member)?, key, out));
        }
        (b"request", b"path", None) => value(b":path"),
        (b"request", b"url_path", None) => path().map(|(path, _)| path),
        (b"request", b"query", None) => path().map(|(_, query)| query),
        (b"request", b"host", None) => value(b":authority"),
        (b"request", b"scheme", None) => value(b":scheme"),
        (b"request", b"method", None) => value(b":method"),
        (b"request", b"referer", None) => value(b"referer"),
        (b"request", b"useragent", None) => value(b"user-agent"),
        (b"request", b"id", None) => value(b"x-request-id"),
        _ => return None,
    };
    Some(found.map(|found| out.extend_from_slice(found)).ok_or(Status::NotFound))
}

fn split_query(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().position(|byte| *byte == b'?') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (path, &[]),
    }
}

fn map_of(object: &[u8], member: &[u8]) -> Option<MapType> {
    match (object, member) {
        (b"request", b"headers") => Some(MapType::RequestHeaders),
        (b"request", b"trailers") => Some(MapType::RequestTrailers),
        (b"response", b"headers") => Some(MapType::ResponseHeaders),
        (b"response", b"trailers") => Some(MapType::ResponseTrailers),
        _ => None,
    }
}

/// One header, several values joined by commas; or the whole map, in which each name is once. As a
/// property an empty map is the count 0, unlike an empty list of headers, which is no bytes at all.
fn member_of_map(
    stream: &impl Stream,
    map: MapType,
    key: Option<&[u8]>,
    out: &mut Vec<u8>,
) -> Result<(), Status> {
    let mut joined: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    // A caller may send tens of thousands of names, and chooses them.
    let mut places: HashMap<Vec<u8>, usize> = HashMap::new();
    if stream.has_map(map) {
        stream.visit_headers(map, &mut |name, value| {
            if key.is_some_and(|key| !key.eq_ignore_ascii_case(name)) {
                return;
            }
            let known = places.get(name).and_then(|at| joined.get_mut(*at));
            if let Some((_, values)) = known {
                values.push(b',');
                values.extend_from_slice(value);
                return;
            }
            places.insert(name.to_vec(), joined.len());
            joined.push((name.to_vec(), value.to_vec()));
        });
    }
    match (key, joined.first()) {
        (Some(_), Some((_, values))) => out.extend_from_slice(values),
        (Some(_), None) => return Err(Status::NotFound),
        (None, None) => out.extend_from_slice(&0_u32.to_le_bytes()),
        (None, Some(_)) => {
            let pairs = joined.iter().map(|(name, value)| (&name[..], &value[..]));
            out.extend_from_slice(&crate::pairs::encode(pairs));
        }
    }
    Ok(())
}
