//! A body that comes in over HTTP/2.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::{HeaderMap, header};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::client::Counted;
use crate::http::body::BodyError;

/// The rest of a stream, after its head.
#[derive(Debug)]
pub struct Received {
    stream: RecvStream,
    /// Bytes to come, if the head has said.
    left: Option<u64>,
    /// Whether only trailers may follow.
    data_done: bool,
    /// Of an upstream's: that somebody waits for it.
    _counted: Option<Counted>,
}

impl Received {
    /// What follows `headers`.
    pub(super) fn new(stream: RecvStream, headers: &HeaderMap, counted: Option<Counted>) -> Self {
        let stated = headers.get(header::CONTENT_LENGTH);
        let stated = stated.and_then(|length| length.to_str().ok()?.parse().ok());
        let left = if stream.is_end_stream() { stated.or(Some(0)) } else { stated };
        Self { stream, left, data_done: false, _counted: counted }
    }

    /// Without its body's view: for a tunnel.
    pub(super) fn into_stream(self) -> RecvStream {
        self.stream
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if !this.data_done {
            match ready!(this.stream.poll_data(context)) {
                Some(Ok(data)) => {
                    // Room for as much again: whoever asks for more has passed the last on. It can only fail where more
                    // is given back than was taken.
                    let _ = this.stream.flow_control().release_capacity(data.len());
                    this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(broken(error)))),
                None => this.data_done = true,
            }
        }
        Poll::Ready(match ready!(this.stream.poll_trailers(context)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => Some(Err(broken(error))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// A peer that has answered and wants no more of what it was asked resets the stream with NO_ERROR behind the end of its
/// answer (RFC 9113 section 8.1), and h2 keeps that end. Without END_STREAM a message has not ended, whatever the reset
/// says.
#[cold]
fn broken(error: h2::Error) -> BodyError {
    match error.is_reset() && error.reason() == Some(Reason::NO_ERROR) {
        true => BodyError::Cut,
        false => BodyError::Http2(error),
    }
}
