//! Bodies as they come in, whatever reads them from the wire.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::BodyError;
use crate::http::{http1::Download, http2::Received};

/// A body as it comes in.
#[derive(Debug)]
pub enum Incoming {
    /// A caller's over HTTP/1.1, or of an upgrade that was refused.
    Hyper(hyper::body::Incoming),
    /// Over HTTP/2.
    Http2(Received),
    /// None at all.
    Empty,
    /// An upstream's, over HTTP/1.1.
    Http1(Download),
}

impl Incoming {
    /// All of it, if it is here already; for whoever looks at it before it is taken, and puts it back.
    pub fn whole_mut(&mut self) -> Option<&mut Bytes> {
        match self {
            Self::Hyper(_) | Self::Http2(_) | Self::Empty => None,
            Self::Http1(download) => download.whole_mut(),
        }
    }

    /// All of it, if it is here already.
    pub fn take_whole(&mut self) -> Option<Bytes> {
        match self {
            Self::Hyper(_) | Self::Http2(_) | Self::Empty => None,
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
            Self::Http2(body) => Pin::new(body).poll_frame(context),
            Self::Empty => Poll::Ready(None),
            Self::Http1(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Hyper(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
            Self::Empty => true,
            Self::Http1(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Hyper(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
            Self::Empty => SizeHint::with_exact(0),
            Self::Http1(body) => body.size_hint(),
        }
    }
}
