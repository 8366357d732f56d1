//! Bodies as they come in, whatever reads them from the wire.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::BodyError;
use crate::http::http1::Download;

/// A body as it comes in.
#[derive(Debug)]
pub enum Incoming {
    /// A caller's over HTTP/1.1, or of an upgrade that was refused.
    Hyper(hyper::body::Incoming),
    /// Over HTTP/2.
    Http2(hyper::body::Incoming),
    /// An upstream's, over HTTP/1.1.
    Http1(Download),
}

impl Incoming {
    /// All of it, if it is here already; for whoever looks at it before it is taken, and puts it back.
    pub fn whole_mut(&mut self) -> Option<&mut Bytes> {
        match self {
            Self::Hyper(_) | Self::Http2(_) => None,
            Self::Http1(download) => download.whole_mut(),
        }
    }

    /// All of it, if it is here already.
    pub fn take_whole(&mut self) -> Option<Bytes> {
        match self {
            Self::Hyper(_) | Self::Http2(_) => None,
            Self::Http1(download) => download.take_whole(),
        }
    }
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Hyper(body) => Pin::new(body)
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map_err(BodyError::Hyper))),
            Self::Http2(body) => match ready!(Pin::new(&mut *body).poll_frame(context)) {
                // hyper takes a stream that was reset without an error for one that has ended. Only END_STREAM ends a
                // message (RFC 9113 section 8.1); whoever is reset after that is at its end all the same.
                None if !body.is_end_stream() => Poll::Ready(Some(Err(BodyError::Cut))),
                frame => Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Hyper))),
            },
            Self::Http1(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Hyper(body) | Self::Http2(body) => body.is_end_stream(),
            Self::Http1(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Hyper(body) | Self::Http2(body) => body.size_hint(),
            Self::Http1(body) => body.size_hint(),
        }
    }
}
