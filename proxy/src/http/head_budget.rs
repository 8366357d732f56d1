//! A bound on what an upstream may send before its response has a head.
//!
//! Interim responses (RFC 9110 section 15.2) are read and forgotten one after the other, without a limit: an upstream
//! that sends nothing else would keep its worker parsing, and with it every other exchange there waiting.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::watched::{Watch, Watched};

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
pub(super) type Bounded<S> = Watched<S, HeadBudget>;

impl<S> Bounded<S> {
    /// Unbounded until the budget says otherwise.
    pub(super) fn new(inner: S) -> (Self, HeadBudget) {
        let budget = HeadBudget(Arc::new(AtomicUsize::new(UNBOUNDED)));
        (Self::by(budget.clone(), inner), budget)
    }
}

impl Watch for HeadBudget {
    fn before(&mut self) -> io::Result<()> {
        match self.0.load(Ordering::Relaxed) {
            0 => {
                let error = "too much before the head of the response";
                Err(io::Error::new(io::ErrorKind::InvalidData, error))
            }
            _ => Ok(()),
        }
    }

    fn after(&mut self, read: &[u8]) {
        let left = self.0.load(Ordering::Relaxed);
        if left != UNBOUNDED {
            self.begin(left.saturating_sub(read.len()));
        }
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
