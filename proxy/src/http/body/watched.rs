//! Bodies that are made here, watched like those that pass through.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::{Body, BodyError, End, Watch, dropped};

/// A body that is not passing through, with somebody who sees it pass.
pub(super) struct Watched {
    inner: Body,
    /// Bytes to come, where the receiver knows: it does not ask beyond them.
    left: Option<u64>,
    watch: Option<Box<dyn Watch>>,
}

impl Watched {
    /// `length` is what the receiver was told that the body has.
    pub(super) fn new(inner: Body, length: Option<u64>, watch: Box<dyn Watch>) -> Self {
        Self { inner, left: length, watch: Some(watch) }
    }

    fn finish(&mut self, end: End) {
        if let Some(mut watch) = self.watch.take() {
            watch.end(end);
        }
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(watch) = &mut self.watch {
                    if let Some(data) = frame.data_ref() {
                        watch.data(data);
                    } else if let Some(trailers) = frame.trailers_ref() {
                        watch.trailers(trailers);
                    }
                }
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                self.left = self.left.map(|left| left.saturating_sub(length));
                if self.left == Some(0) || self.inner.is_end_stream() {
                    self.finish(End::Complete);
                }
            }
            Poll::Ready(Some(Err(_))) => self.finish(End::SenderFailed),
            Poll::Ready(None) => self.finish(End::Complete),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let complete = self.left == Some(0) || self.inner.is_end_stream();
        let end = if complete { End::Complete } else { dropped() };
        self.finish(end);
    }
}
