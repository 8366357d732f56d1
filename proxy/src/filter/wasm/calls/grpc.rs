//! What comes of a call by gRPC: messages, and how it ended (the specification is gRPC's `doc/PROTOCOL-HTTP2.md`).

use std::time::Instant;

use bytes::{Buf as _, BytesMut};
use http::{HeaderMap, StatusCode, response::Parts};
use http_body_util::BodyExt as _;
use leno_wasm_host::CallToken;

use super::{Sending, To, list};
use crate::filter::wasm::{head, pace::Pace};

/// Of one message of gRPC, where its own default is 4 MiB.
const MAX_MESSAGE: usize = 4 << 20;
/// Of a frame of gRPC: whether it is compressed, and its length.
pub(super) const FRAME_HEAD: usize = 5;

/// Status codes of gRPC.
const UNKNOWN: u32 = 2;
pub(super) const DEADLINE_EXCEEDED: u32 = 4;
const PERMISSION_DENIED: u32 = 7;
const RESOURCE_EXHAUSTED: u32 = 8;
const UNIMPLEMENTED: u32 = 12;
pub(super) const INTERNAL: u32 = 13;
const UNAVAILABLE: u32 = 14;
const UNAUTHENTICATED: u32 = 16;

/// How a call of gRPC ended.
pub(super) struct Closed {
    pub(super) status: u32,
    pub(super) message: Vec<u8>,
}

impl Closed {
    pub(super) fn failed(status: u32, message: &str) -> Self {
        Self { status, message: message.as_bytes().to_vec() }
    }

    /// What a head or trailers say, if they say it.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let status = head::find(headers, b"grpc-status")?;
        let status = std::str::from_utf8(status).ok().and_then(|status| status.parse().ok());
        let message = head::find(headers, b"grpc-message").unwrap_or_default();
        let message = percent_encoding::percent_decode(message).collect();
        Some(Self { status: status.unwrap_or(UNKNOWN), message })
    }
}

/// Tells the plugin of everything that comes, up to the end of the call. The `reply` to a unary call is only kept: whether it
/// is an answer shows at the end.
pub(super) async fn follow(
    to: &To,
    token: CallToken,
    sending: Sending,
    mut reply: Option<&mut Option<Vec<u8>>>,
) -> Closed {
    let streams = reply.is_none();
    let response = match sending.await {
        Ok(response) => response,
        Err(error) => return Closed::failed(UNAVAILABLE, &error.detail),
    };
    let (parts, mut body) = response.into_parts();
    if let Some(closed) = begin(to, token, &parts, streams) {
        return closed;
    }
    let mut unread = BytesMut::new();
    let mut pace = Pace::default();
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return Closed::failed(UNAVAILABLE, &error.to_string()),
        };
        match frame.into_data() {
            Ok(data) => {
                unread.extend_from_slice(&data);
                let reply = reply.as_deref_mut();
                if let Err(closed) = messages(to, token, &mut unread, &mut pace, reply).await {
                    return closed;
                }
            }
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                let closed = Closed::of(&trailers);
                if streams {
                    let list = list(&trailers);
                    to.tell(|instance| instance.on_grpc_trailing_metadata(token, list));
                }
                return closed.unwrap_or_else(|| Closed::failed(UNKNOWN, "no grpc-status"));
            }
        }
    }
    Closed::failed(INTERNAL, "the answer ended without trailers")
}

/// What the head of an answer says; `None` if messages may follow.
fn begin(to: &To, token: CallToken, head: &Parts, streams: bool) -> Option<Closed> {
    let metadata = list(&head.headers);
    if let Some(closed) = Closed::of(&head.headers) {
        if streams {
            // A head that says how the call ended is its trailers.
            to.tell(|instance| instance.on_grpc_trailing_metadata(token, metadata));
        }
        return Some(closed);
    }
    if head.status != StatusCode::OK {
        let reason = format!("the service answered {}", head.status);
        return Some(Closed::failed(status_of_http(head.status), &reason));
    }
    let told = !streams || to.tell(|instance| instance.on_grpc_initial_metadata(token, metadata));
    (!told).then(|| Closed::failed(UNAVAILABLE, ""))
}

/// What gRPC makes of an answer by somebody who does not speak it, `doc/http-grpc-status-mapping.md`.
fn status_of_http(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => INTERNAL,
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 => UNIMPLEMENTED,
        429 | 502..=504 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

/// Hands over every message that is complete: to `reply`, or to the plugin. There may be thousands of short ones in what
/// came at once.
async fn messages(
    to: &To,
    token: CallToken,
    unread: &mut BytesMut,
    pace: &mut Pace,
    mut reply: Option<&mut Option<Vec<u8>>>,
) -> Result<(), Closed> {
    while let Some((compressed, length)) = unread.first_chunk::<FRAME_HEAD>().map(frame_head) {
        if compressed {
            return Err(Closed::failed(
                INTERNAL,
                "a message is compressed, which was not asked for",
            ));
        }
        if length > MAX_MESSAGE {
            return Err(Closed::failed(RESOURCE_EXHAUSTED, "a message is larger than 4 MiB"));
        }
        if unread.len() < FRAME_HEAD + length {
            return Ok(());
        }
        unread.advance(FRAME_HEAD);
        let message = unread.split_to(length).to_vec();
        let began = Instant::now();
        match &mut reply {
            Some(reply) if reply.is_some() => {
                return Err(Closed::failed(INTERNAL, "more than one message came"));
            }
            Some(reply) => **reply = Some(message),
            None if !to.tell(|instance| instance.on_grpc_message(token, message)) => {
                return Err(Closed::failed(UNAVAILABLE, ""));
            }
            None => pace.after(began).await,
        }
    }
    Ok(())
}

pub(super) fn frame_head(head: &[u8; FRAME_HEAD]) -> (bool, usize) {
    let [compressed, length @ ..] = *head;
    (compressed != 0, u32::from_be_bytes(length) as usize)
}

pub(super) fn framed_head(message: &[u8]) -> [u8; FRAME_HEAD] {
    let [a, b, c, d] = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    [0, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_speaks_no_grpc_says_something_nevertheless() {
        for (http, grpc) in
            [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (503, 14), (500, 2)]
        {
            assert_eq!(status_of_http(StatusCode::from_u16(http).unwrap()), grpc, "{http}");
        }
    }
}
