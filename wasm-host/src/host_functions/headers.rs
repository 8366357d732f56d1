//! Headers, trailers and metadata.

use wasmtime::{Caller, Linker};

use super::{ENV, Target, give_collected, outcome, parts, status};
use crate::{
    abi::{AbiVersion, MapType, Status},
    embedder::{Host, Stream},
    guest::{GuestPtr, GuestSlice},
    pairs::Pairs,
    state::{State, StreamContext},
};

pub(super) fn link<H: Host>(linker: &mut Linker<State<H>>) -> wasmtime::Result<()> {
    linker
        .func_wrap(ENV, "proxy_get_header_map_size", size::<H>)?
        .func_wrap(ENV, "proxy_get_header_map_pairs", all::<H>)?
        .func_wrap(ENV, "proxy_set_header_map_pairs", set_all::<H>)?
        .func_wrap(ENV, "proxy_get_header_map_value", value::<H>)?
        .func_wrap(ENV, "proxy_add_header_map_value", add::<H>)?
        .func_wrap(ENV, "proxy_replace_header_map_value", replace::<H>)?
        .func_wrap(ENV, "proxy_remove_header_map_value", remove::<H>)?;
    Ok(())
}

/// Bytes of all names and values: neither the count nor the serialised size, whatever the name says.
/// Not known once the stream has ended.
fn size<H: Host>(mut caller: Caller<'_, State<H>>, map: u32, result: u32) -> u32 {
    let mut size = || {
        let map = MapType::from_guest(map)?;
        let (memory, state) = parts(&mut caller)?;
        let mut bytes = 0_usize;
        if map.of_stream() {
            let context = open_map(state, map)?;
            context.stream.visit_headers(map, &mut |name, value| bytes += name.len() + value.len());
        } else {
            let headers = state.answer.map(map).ok_or(Status::BadArgument)?;
            bytes = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        }
        let bytes = u32::try_from(bytes).map_err(|_| Status::InternalFailure)?;
        GuestPtr::new(result).write(memory, bytes)
    };
    status(size())
}

/// A map that is not open is an empty list.
fn all<H: Host>(
    mut caller: Caller<'_, State<H>>,
    map: u32,
    address: u32,
    length: u32,
) -> wasmtime::Result<u32> {
    let Ok(map) = MapType::from_guest(map) else {
        return Ok(Status::BadArgument as u32);
    };
    let target = Target::new(address, length);
    outcome(give_collected(&mut caller, target, |_, state, out| {
        let mut pairs = std::mem::take(&mut state.pairs);
        pairs.clear();
        if !map.of_stream() {
            let headers = state.answer.map(map).map_or(&[][..], |headers| headers);
            headers.iter().for_each(|(name, value)| pairs.push(name, value));
        } else if let Some(context) = readable_map(state, map) {
            context.stream.visit_headers(map, &mut |name, value| pairs.push(name, value));
        }
        pairs.write_to(out);
        state.pairs = pairs;
        Ok(())
    }))
}

/// Bytes that are no list change nothing: elsewhere they remove every header.
fn set_all<H: Host>(mut caller: Caller<'_, State<H>>, map: u32, data: u32, length: u32) -> u32 {
    let mut set = || {
        let map = MapType::from_guest(map)?;
        let (memory, state) = parts(&mut caller)?;
        let bytes = GuestSlice::new(data, length).read(memory)?;
        let limit = state.settings.limits.header_bytes;
        let context = open_map(state, map)?;
        let pairs = Pairs::parse(bytes).map_err(|_| Status::BadArgument)?;
        context.write(bytes.len(), limit)?;
        context.stream.set_headers(map, pairs);
        Ok(())
    };
    status(set())
}

/// The first of several values. An absent or empty one is "not found"; in 0.1.0 it is empty.
fn value<H: Host>(
    mut caller: Caller<'_, State<H>>,
    map: u32,
    key: u32,
    key_length: u32,
    address: u32,
    length: u32,
) -> wasmtime::Result<u32> {
    let Ok(map) = MapType::from_guest(map) else {
        return Ok(Status::BadArgument as u32);
    };
    let target = Target::new(address, length);
    outcome(give_collected(&mut caller, target, |memory, state, out| {
        let key = GuestSlice::new(key, key_length).read(memory)?;
        find(state, map, key, out)?;
        if out.is_empty() && state.abi > AbiVersion::V0_1_0 {
            return Err(Status::NotFound);
        }
        Ok(())
    }))
}

fn find<H: Host>(
    state: &mut State<H>,
    map: MapType,
    key: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Status> {
    if map.of_stream() {
        let context = state.stream().ok_or(Status::BadArgument)?;
        if is_readable(context, map) {
            // Mostly it is written as it is found, and need not be looked at.
            let found = context.stream.header(map, key);
            match found.filter(|_| !is_host(map, key)) {
                Some(value) => out.extend_from_slice(value),
                None => with_name(map, key, |name| {
                    out.extend_from_slice(context.stream.header(map, name).unwrap_or_default());
                }),
            }
        } else if !context.logging {
            return Err(Status::BadArgument);
        }
        return Ok(());
    }
    let logging = state.stream().is_some_and(|context| context.logging);
    match state.answer.map(map) {
        Some(headers) => {
            let found = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(key));
            out.extend_from_slice(found.map_or(&[][..], |(_, value)| value));
        }
        None if logging => {}
        None => return Err(Status::BadArgument),
    }
    Ok(())
}

fn add<H: Host>(
    mut caller: Caller<'_, State<H>>,
    map: u32,
    key: u32,
    key_length: u32,
    value: u32,
    value_length: u32,
) -> u32 {
    let key = GuestSlice::new(key, key_length);
    let value = GuestSlice::new(value, value_length);
    status(change(&mut caller, map, key, value, H::Stream::add_header))
}

fn replace<H: Host>(
    mut caller: Caller<'_, State<H>>,
    map: u32,
    key: u32,
    key_length: u32,
    value: u32,
    value_length: u32,
) -> u32 {
    let key = GuestSlice::new(key, key_length);
    let value = GuestSlice::new(value, value_length);
    status(change(&mut caller, map, key, value, H::Stream::replace_header))
}

fn remove<H: Host>(mut caller: Caller<'_, State<H>>, map: u32, key: u32, key_length: u32) -> u32 {
    let key = GuestSlice::new(key, key_length);
    let none = GuestSlice::new(0, 0);
    status(change(&mut caller, map, key, none, |stream, map, name, _| {
        stream.remove_header(map, name);
    }))
}

fn change<H: Host>(
    caller: &mut Caller<'_, State<H>>,
    map: u32,
    key: GuestSlice,
    value: GuestSlice,
    change: impl FnOnce(&mut H::Stream, MapType, &[u8], &[u8]),
) -> Result<(), Status> {
    let map = MapType::from_guest(map)?;
    let (memory, state) = parts(caller)?;
    let key = key.read(memory)?;
    let value = value.read(memory)?;
    let limit = state.settings.limits.header_bytes;
    let context = open_map(state, map)?;
    context.write(key.len() + value.len(), limit)?;
    with_name(map, key, |name| change(&mut context.stream, map, name, value));
    Ok(())
}

/// A map that the phase lets the guest change.
fn open_map<H: Host>(
    state: &mut State<H>,
    map: MapType,
) -> Result<&mut StreamContext<H::Stream>, Status> {
    state
        .stream()
        .filter(|context| map.of_stream() && context.map_is_open(map))
        .ok_or(Status::BadArgument)
}

/// A map that the phase lets the guest read; all that there were, when the stream is logged.
fn readable_map<H: Host>(
    state: &mut State<H>,
    map: MapType,
) -> Option<&mut StreamContext<H::Stream>> {
    state.stream().filter(|context| is_readable(context, map))
}

fn is_readable<S: Stream>(context: &StreamContext<S>, map: MapType) -> bool {
    context.map_is_open(map) || context.logging && context.stream.has_map(map)
}

/// Names are compared without case, and `host` of a request is its `:authority`.
fn with_name<R>(map: MapType, name: &[u8], run: impl FnOnce(&[u8]) -> R) -> R {
    if is_host(map, name) {
        run(b":authority")
    } else if has_upper_case(name) {
        run(&name.to_ascii_lowercase())
    } else {
        run(name)
    }
}

fn is_host(map: MapType, name: &[u8]) -> bool {
    map == MapType::RequestHeaders && name.eq_ignore_ascii_case(b"host")
}

/// Looks at eight bytes at once: guests write lower case, and this is asked of every name.
fn has_upper_case(name: &[u8]) -> bool {
    /// A byte in all places.
    const fn all(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    let (eights, rest) = name.as_chunks::<8>();
    let upper = eights.iter().any(|eight| {
        let eight = u64::from_ne_bytes(*eight);
        // Adding carries into the top bit of a byte, and no further, where it is large enough.
        let low = eight & all(0x7f);
        let from_a = low + all(0x80 - b'A');
        let after_z = low + all(0x80 - b'Z' - 1);
        from_a & !after_z & !eight & all(0x80) != 0
    });
    upper || rest.iter().any(u8::is_ascii_uppercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upper_case_is_found_wherever_it_is() {
        for byte in 0..=u8::MAX {
            for length in 1..=17_usize {
                for at in 0..length {
                    let mut name = vec![b'-'; length];
                    name[at] = byte;
                    assert_eq!(has_upper_case(&name), byte.is_ascii_uppercase(), "{name:?}");
                }
            }
        }
    }
}
