//! Continuing, closing and answering streams.

use wasmtime::{Caller, Linker};

use super::{ENV, parts, status};
use crate::{
    abi::{LogLevel, Status, StreamType},
    embedder::{Host, LocalResponse, Stream},
    guest::GuestSlice,
    pairs::Pairs,
    state::State,
};

pub(super) fn link<H: Host>(linker: &mut Linker<State<H>>) -> wasmtime::Result<()> {
    linker
        .func_wrap(ENV, "proxy_continue_stream", continue_stream::<H>)?
        .func_wrap(ENV, "proxy_continue_request", |mut caller: Caller<'_, State<H>>| {
            status(go_on(&mut caller, StreamType::Request))
        })?
        .func_wrap(ENV, "proxy_continue_response", |mut caller: Caller<'_, State<H>>| {
            status(go_on(&mut caller, StreamType::Response))
        })?
        .func_wrap(ENV, "proxy_clear_route_cache", clear_route_cache::<H>)?
        .func_wrap(ENV, "proxy_close_stream", close_stream::<H>)?
        .func_wrap(ENV, "proxy_send_local_response", send_local_response::<H>)?;
    Ok(())
}

fn continue_stream<H: Host>(mut caller: Caller<'_, State<H>>, direction: u32) -> u32 {
    status(StreamType::from_guest(direction).and_then(|direction| go_on(&mut caller, direction)))
}

/// Without a stream, or without a pause, there is nothing to do, and that is no error.
fn go_on<H: Host>(caller: &mut Caller<'_, State<H>>, direction: StreamType) -> Result<(), Status> {
    let (_, state) = parts(caller)?;
    if direction == StreamType::Upstream {
        return Err(Status::Unimplemented);
    }
    if let Some(context) = state.stream() {
        context.continue_stream(direction);
    }
    Ok(())
}

fn clear_route_cache<H: Host>(mut caller: Caller<'_, State<H>>) -> u32 {
    status(parts(&mut caller).map(|(_, state)| {
        if let Some(context) = state.stream() {
            context.stream.clear_route_cache();
        }
    }))
}

fn close_stream<H: Host>(mut caller: Caller<'_, State<H>>, direction: u32) -> u32 {
    let mut close = || {
        let direction = StreamType::from_guest(direction)?;
        let (_, state) = parts(&mut caller)?;
        if let Some(context) = state.stream().filter(|context| !context.ended) {
            context.stream.close_stream(direction);
        }
        stop_row(&mut caller);
        Ok(())
    };
    status(close())
}

/// The first answer of a stream counts. Later ones, and those to a stream whose end was told, do nothing.
#[expect(clippy::too_many_arguments, reason = "the signature is the ABI's")]
fn send_local_response<H: Host>(
    mut caller: Caller<'_, State<H>>,
    code: u32,
    details: u32,
    details_length: u32,
    body: u32,
    body_length: u32,
    headers: u32,
    headers_length: u32,
    grpc_status: u32,
) -> u32 {
    let mut send = || {
        let (memory, state) = parts(&mut caller)?;
        let limits = &state.settings.limits;
        if body_length as usize > limits.buffer_bytes {
            return Err(Status::InternalFailure);
        }
        // They are for the log.
        let details = GuestSlice::new(details, details_length).read(memory)?;
        let details = details.get(..limits.log_line_bytes).unwrap_or(details);
        let response = LocalResponse {
            status: code,
            details,
            body: GuestSlice::new(body, body_length).read(memory)?,
            headers: pairs_or_none(GuestSlice::new(headers, headers_length).read(memory)?),
            grpc_status: (grpc_status.cast_signed() >= 0).then_some(grpc_status),
        };
        let Some(context) = state.stream() else { return Ok(()) };
        if context.answer() {
            context.stream.send_local_response(response);
        }
        let ended = context.ended;
        if ended {
            let text = b"proxy_send_local_response after the stream ended does nothing";
            super::runtime::write_line(state, LogLevel::Warn, text);
        }
        stop_row(&mut caller);
        Ok(())
    };
    status(send())
}

/// Something was done to a stream that the embedder has to see before its next callback is called.
fn stop_row<H: Host>(caller: &mut Caller<'_, State<H>>) {
    if let Some(running) = caller.data().running {
        running.stop(caller);
    }
}

/// A list that cannot be read counts as empty, as plugins find it elsewhere.
pub(super) fn pairs_or_none(bytes: &[u8]) -> Pairs<'_> {
    Pairs::parse(bytes).unwrap_or_default()
}
