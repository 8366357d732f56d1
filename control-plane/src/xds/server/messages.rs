//! Messages as the bodies of gRPC's requests and responses have them: each behind its length ("Length-Prefixed-Message" of
//! gRPC over HTTP/2). tonic's own reader and writer keep a buffer of the size of the largest message for as long as the
//! stream is open. Streams of proxies are open for weeks, and their first messages are the largest: here nothing stays of
//! one that has passed.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use http::HeaderMap;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use prost::Message;
use tokio::sync::mpsc;
use tonic::{Code, Status};

/// The largest request; the largest there is names what a reconnecting proxy has.
const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024;
/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// What a proxy says, message by message.
pub(super) struct Requests {
    body: tonic::body::Body,
    /// What has come of the next message, and empty between two.
    partial: BytesMut,
}

/// Why there are no more messages.
#[derive(Debug)]
pub(super) enum Broken {
    /// Its connection is gone, and nobody can be told anything.
    Gone,
    /// What came is no message of ours.
    Malformed(Status),
}

/// What a proxy is told, until the sender is gone or has sent why it ends. Messages are as [`framed`] made them.
pub(super) struct Responses {
    messages: mpsc::Receiver<Result<Bytes, Status>>,
    ended: bool,
}

impl Requests {
    pub(super) fn new(body: tonic::body::Body) -> Self {
        Self { body, partial: BytesMut::new() }
    }

    /// The next message, `None` at the end. Safe to cancel. Boxed, since whoever waits for it has room for it all the time.
    ///
    /// # Errors
    /// Where the stream broke, or does not have messages of ours.
    pub(super) async fn message(&mut self) -> Result<Option<Box<DeltaDiscoveryRequest>>, Broken> {
        loop {
            if let Some(message) = self.take().map_err(Broken::Malformed)? {
                return Ok(Some(message));
            }
            match self.body.frame().await {
                // Trailers have nothing for us: the end comes after them.
                Some(frame) => {
                    let frame = frame.map_err(|_| Broken::Gone)?;
                    let data = frame.into_data().unwrap_or_default();
                    self.partial.extend_from_slice(&data);
                }
                None if self.partial.is_empty() => return Ok(None),
                None => {
                    let status = Status::internal("the stream ended within a message");
                    return Err(Broken::Malformed(status));
                }
            }
        }
    }

    /// The next message, where all of it is here.
    fn take(&mut self) -> Result<Option<Box<DeltaDiscoveryRequest>>, Status> {
        let Some((prefix, rest)) = self.partial.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let [compressed, length @ ..] = *prefix;
        if compressed != 0 {
            return Err(Status::unimplemented("compressed messages are not read: send them plain"));
        }
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_REQUEST_BYTES {
            return Err(Status::out_of_range(format!(
                "a message of {length} bytes, more than {MAX_REQUEST_BYTES}"
            )));
        }
        let Some(message) = rest.get(..length) else { return Ok(None) };
        let message = DeltaDiscoveryRequest::decode(message);
        let message = message.map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.partial.advance(PREFIX + length);
        if self.partial.is_empty() {
            // It would keep its room, however large the message was.
            self.partial = BytesMut::new();
        }
        Ok(Some(Box::new(message)))
    }
}

/// A message with its length before it, in a buffer of its very size.
///
/// # Errors
/// Where it is longer than a length can say: 4 GiB.
pub(super) fn framed(message: &impl Message) -> Result<Bytes, Status> {
    let too_long = |_| Status::internal("a message is too long to be sent");
    let length = message.encoded_len();
    let mut bytes = Vec::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).map_err(too_long)?);
    message.encode(&mut bytes).map_err(|error| Status::internal(error.to_string()))?;
    Ok(bytes.into())
}

impl Responses {
    pub(super) fn new(messages: mpsc::Receiver<Result<Bytes, Status>>) -> Self {
        Self { messages, ended: false }
    }
}

impl Body for Responses {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let status = match ready!(self.messages.poll_recv(context)) {
            Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(message)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.ended = true;
        Poll::Ready(Some(Ok(Frame::trailers(trailers(&status)))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        // Its message cannot be written as a header; what remains is its code.
        trailers = HeaderMap::new();
        trailers.insert(Status::GRPC_STATUS, code(status.code()));
    }
    trailers
}

fn code(code: Code) -> http::HeaderValue {
    i32::from(code).into()
}

#[cfg(test)]
mod tests;
