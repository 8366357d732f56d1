//! A bound on what an upstream may send before its response has a head.
//!
//! Interim responses (RFC 9110 section 15.2) are read and forgotten one after the other, without a limit: an upstream
//! that sends nothing else would keep its worker parsing, and with it every other exchange there waiting.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// No head is waited for.
const UNBOUNDED: usize = usize::MAX;

/// What is left until the head must be there. Connection and sender live on one thread; atomics only because a stream
/// that may be upgraded must be `Send`.
#[derive(Clone, Debug)]
pub struct HeadBudget(Arc<AtomicUsize>);

impl HeadBudget {
    /// The next head may be preceded by this many bytes, itself included.
    pub(super) fn begin(&self, bytes: usize) {
        self.0.store(bytes, Ordering::Relaxed);
    }

    /// The head is there.
    pub(super) fn end(&self) {
        self.0.store(UNBOUNDED, Ordering::Relaxed);
    }
}

/// A connection on which heads are bounded.
#[derive(Debug)]
pub(super) struct Bounded<S> {
    inner: S,
    budget: HeadBudget,
}

impl<S> Bounded<S> {
    /// Unbounded until the budget says otherwise.
    pub(super) fn new(inner: S) -> (Self, HeadBudget) {
        let budget = HeadBudget(Arc::new(AtomicUsize::new(UNBOUNDED)));
        (Self { inner, budget: budget.clone() }, budget)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let left = this.budget.0.load(Ordering::Relaxed);
        if left == 0 {
            let error = "too much before the head of the response";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(context, buffer))?;
        if left != UNBOUNDED {
            let read = buffer.filled().len() - before;
            this.budget.begin(left.saturating_sub(read));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn reading_ends_with_the_budget_and_goes_on_without_one() {
        let (near, mut far) = tokio::io::duplex(64);
        let (mut bounded, budget) = Bounded::new(near);
        far.write_all(&[7; 30]).await.unwrap();
        let mut bytes = [0; 10];
        assert_eq!(bounded.read(&mut bytes).await.unwrap(), 10);
        budget.begin(15);
        assert_eq!(bounded.read(&mut bytes).await.unwrap(), 10);
        // What comes in one read is not cut: the bound is on memory and time, not a framing.
        assert_eq!(bounded.read(&mut bytes).await.unwrap(), 10);
        far.write_all(&[7; 10]).await.unwrap();
        let error = bounded.read(&mut bytes).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        budget.end();
        assert_eq!(bounded.read(&mut bytes).await.unwrap(), 10);
    }
}
