//! HTTP and gRPC calls to services. They are started here; answers come by callbacks.

use std::time::Duration;

use wasmtime::{Caller, Linker};

use super::{ENV, parts, status, streams::pairs_or_none};
use crate::{
    abi::{CallKind, CallToken, Status},
    embedder::{GrpcCall, Host, HttpCall},
    guest::{GuestPtr, GuestSlice},
    state::State,
};

pub(super) fn link<H: Host>(linker: &mut Linker<State<H>>) -> wasmtime::Result<()> {
    linker
        .func_wrap(ENV, "proxy_http_call", http_call::<H>)?
        .func_wrap(ENV, "proxy_grpc_call", grpc_call::<H>)?
        .func_wrap(ENV, "proxy_grpc_stream", grpc_stream::<H>)?
        .func_wrap(ENV, "proxy_grpc_send", grpc_send::<H>)?
        .func_wrap(ENV, "proxy_grpc_cancel", |caller: Caller<'_, State<H>>, token: u32| {
            grpc_end(caller, token, true)
        })?
        .func_wrap(ENV, "proxy_grpc_close", |caller: Caller<'_, State<H>>, token: u32| {
            grpc_end(caller, token, false)
        })?;
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "the signature is the ABI's")]
fn http_call<H: Host>(
    mut caller: Caller<'_, State<H>>,
    upstream: u32,
    upstream_length: u32,
    headers: u32,
    headers_length: u32,
    body: u32,
    body_length: u32,
    trailers: u32,
    trailers_length: u32,
    timeout: u32,
    result: u32,
) -> u32 {
    let mut start = || {
        let (memory, state) = parts(&mut caller)?;
        let result = GuestPtr::<u32>::new(result);
        // Written also when there is no call: plugins find a zero there elsewhere.
        result.write(memory, 0)?;
        let call = HttpCall {
            upstream: GuestSlice::new(upstream, upstream_length).read(memory)?,
            headers: pairs_or_none(GuestSlice::new(headers, headers_length).read(memory)?),
            body: GuestSlice::new(body, body_length).read(memory)?,
            trailers: pairs_or_none(GuestSlice::new(trailers, trailers_length).read(memory)?),
            timeout: milliseconds(timeout)?,
        };
        let token = start_http(state, call)?;
        result.write(memory, token.number())
    };
    status(start())
}

fn start_http<H: Host>(state: &mut State<H>, call: HttpCall<'_>) -> Result<CallToken, Status> {
    let required = [&b":method"[..], b":path", b":authority"];
    if required.iter().any(|name| call.headers.first(name).is_none()) {
        return Err(Status::BadArgument);
    }
    start(state, CallKind::Http, |host, token| host.http_call(token, call))
}

fn start<H: Host>(
    state: &mut State<H>,
    kind: CallKind,
    start: impl FnOnce(&mut H, CallToken) -> Result<(), Status>,
) -> Result<CallToken, Status> {
    let token = state.calls.open(kind, state.settings.limits.calls)?;
    if let Err(refused) = start(&mut state.host, token) {
        state.calls.close(token);
        return Err(refused);
    }
    Ok(token)
}

/// The ABI's timeouts are signed.
fn milliseconds(number: u32) -> Result<Duration, Status> {
    if number.cast_signed() < 0 {
        return Err(Status::BadArgument);
    }
    Ok(Duration::from_millis(number.into()))
}

#[expect(clippy::too_many_arguments, reason = "the signature is the ABI's")]
fn grpc_call<H: Host>(
    mut caller: Caller<'_, State<H>>,
    upstream: u32,
    upstream_length: u32,
    service: u32,
    service_length: u32,
    method: u32,
    method_length: u32,
    metadata: u32,
    metadata_length: u32,
    message: u32,
    message_length: u32,
    timeout: u32,
    result: u32,
) -> u32 {
    let names = GrpcNames {
        upstream: GuestSlice::new(upstream, upstream_length),
        service: GuestSlice::new(service, service_length),
        method: GuestSlice::new(method, method_length),
        metadata: GuestSlice::new(metadata, metadata_length),
    };
    let start_call = || {
        let (memory, state) = parts(&mut caller)?;
        let result = GuestPtr::<u32>::new(result);
        result.check(memory)?;
        let call = GrpcCall {
            message: GuestSlice::new(message, message_length).read(memory)?,
            timeout: milliseconds(timeout)?,
            ..names.read(memory)?
        };
        let token = start(state, CallKind::GrpcUnary, |host, token| host.grpc_call(token, call))?;
        result.write(memory, token.number())
    };
    status(start_call())
}

#[expect(clippy::too_many_arguments, reason = "the signature is the ABI's")]
fn grpc_stream<H: Host>(
    mut caller: Caller<'_, State<H>>,
    upstream: u32,
    upstream_length: u32,
    service: u32,
    service_length: u32,
    method: u32,
    method_length: u32,
    metadata: u32,
    metadata_length: u32,
    result: u32,
) -> u32 {
    let names = GrpcNames {
        upstream: GuestSlice::new(upstream, upstream_length),
        service: GuestSlice::new(service, service_length),
        method: GuestSlice::new(method, method_length),
        metadata: GuestSlice::new(metadata, metadata_length),
    };
    let start_stream = || {
        let (memory, state) = parts(&mut caller)?;
        let result = GuestPtr::<u32>::new(result);
        result.check(memory)?;
        let call = names.read(memory)?;
        let token =
            start(state, CallKind::GrpcStream, |host, token| host.grpc_stream(token, call))?;
        result.write(memory, token.number())
    };
    status(start_stream())
}

struct GrpcNames {
    upstream: GuestSlice,
    service: GuestSlice,
    method: GuestSlice,
    metadata: GuestSlice,
}

impl GrpcNames {
    fn read(self, memory: &[u8]) -> Result<GrpcCall<'_>, Status> {
        Ok(GrpcCall {
            upstream: self.upstream.read(memory)?,
            service: self.service.read(memory)?,
            method: self.method.read(memory)?,
            metadata: pairs_or_none(self.metadata.read(memory)?),
            message: &[],
            timeout: Duration::ZERO,
        })
    }
}

fn grpc_send<H: Host>(
    mut caller: Caller<'_, State<H>>,
    token: u32,
    message: u32,
    length: u32,
    end: u32,
) -> u32 {
    let mut send = || {
        let (memory, state) = parts(&mut caller)?;
        let message = GuestSlice::new(message, length).read(memory)?;
        let token = CallToken(token);
        if token.kind() != Some(CallKind::GrpcStream) {
            return Err(Status::BadArgument);
        }
        if !state.calls.is_open(token) {
            return Err(Status::NotFound);
        }
        state.host.grpc_send(token, message, end != 0)
    };
    status(send())
}

/// `close` of a unary call abandons it, since its side is closed already; a stream stays open until the
/// service ends it. What is cancelled is not heard of again.
fn grpc_end<H: Host>(mut caller: Caller<'_, State<H>>, token: u32, cancel: bool) -> u32 {
    let mut end = || {
        let (_, state) = parts(&mut caller)?;
        let token = CallToken(token);
        let abandoned = match token.kind() {
            Some(CallKind::GrpcUnary) => true,
            Some(CallKind::GrpcStream) => cancel,
            Some(CallKind::Http) | None => return Err(Status::BadArgument),
        };
        let open = if abandoned { state.calls.close(token) } else { state.calls.is_open(token) };
        if !open {
            return Err(Status::NotFound);
        }
        state.host.grpc_end(token, abandoned);
        Ok(())
    };
    status(end())
}
