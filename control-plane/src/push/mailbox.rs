//! What waits for one proxy: state, so that it never grows beyond the scope.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

use crate::plan::Delta;

#[derive(Debug, Default)]
pub struct Mailbox {
    pending: Mutex<Pending>,
    filled: Notify,
}

/// Everything that changed since it was last taken.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    pub delta: Delta,
    /// Subscriptions up to this sequence number are planned in.
    pub answered: u64,
    /// The store's revision that this brings the proxy to.
    pub revision: u64,
    /// When the oldest change in here was planned; for measuring.
    pub since: Option<Instant>,
}

impl Mailbox {
    /// Adds what changed, in one step: a reader sees all of it or nothing.
    pub(super) fn put(&self, later: Pending) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.delta.merge(later.delta);
        pending.answered = pending.answered.max(later.answered);
        pending.revision = later.revision;
        pending.since = pending.since.or(later.since);
        drop(pending);
        self.filled.notify_one();
    }

    pub(super) async fn changed(&self) -> Pending {
        loop {
            self.filled.notified().await;
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            if pending.since.is_some() {
                return std::mem::take(&mut *pending);
            }
        }
    }
}
