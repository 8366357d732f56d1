//! The ledger that readers see, and the watches that follow it.
//!
//! A watch has no queue: it keeps the revision up to which it has seen everything and reads on
//! from the shared history when woken. A slow watcher therefore costs no memory; one that falls
//! behind the history is told so and starts over.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::watch;

use super::{Error, Event, Selection, ledger::Ledger};

/// How many events a watch hands over at a time.
const BATCH_EVENTS: usize = 512;

pub(super) struct Feed {
    ledger: RwLock<Ledger>,
    tip: watch::Sender<Tip>,
}

#[derive(Debug, Clone, Copy)]
struct Tip {
    revision: u64,
    closed: bool,
}

/// Changes that a watch has found, in order.
#[derive(Debug, Clone)]
pub struct Batch {
    pub events: Vec<Arc<Event>>,
    /// Nothing up to this revision is missing.
    pub revision: u64,
}

/// The changes after a revision, as they come.
pub struct Watch {
    feed: Arc<Feed>,
    tip: watch::Receiver<Tip>,
    selection: Selection,
    seen: u64,
}

impl Feed {
    pub(super) fn new(ledger: Ledger) -> Arc<Self> {
        let tip = watch::Sender::new(Tip { revision: ledger.revision(), closed: false });
        Arc::new(Self { ledger: RwLock::new(ledger), tip })
    }

    /// The ledger to read from. Nothing that holds it can leave it half changed (`apply` does not
    /// fail), hence a poisoned lock is used as it is.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Ledger> {
        self.ledger.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the ledger, then wakes the watches.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut ledger = self.ledger.write().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut ledger);
        let revision = ledger.revision();
        drop(ledger);
        // Two changes may arrive here in the other order: the tip never goes back.
        self.tip.send_if_modified(|tip| {
            let newer = revision > tip.revision;
            tip.revision = tip.revision.max(revision);
            newer
        });
        result
    }

    /// Ends every watch: no further change will come.
    pub(super) fn close(&self) {
        self.tip.send_modify(|tip| tip.closed = true);
    }

    pub(super) fn watch(self: &Arc<Self>, from: u64, selection: Selection) -> Result<Watch, Error> {
        self.read().watchable(from)?;
        Ok(Watch { feed: self.clone(), tip: self.tip.subscribe(), selection, seen: from })
    }
}

impl Watch {
    /// The next changes; waits until there are some. Safe to cancel.
    ///
    /// # Errors
    /// [`Error::TooOld`] where the watch fell behind the history, [`Error::Closed`] at shutdown.
    pub async fn next(&mut self) -> Result<Batch, Error> {
        loop {
            // Marked as seen before reading, so that a change in between wakes us again.
            let closed = self.tip.borrow_and_update().closed;
            if let Some(batch) = self.ready()? {
                return Ok(batch);
            }
            if closed {
                return Err(Error::Closed);
            }
            self.tip.changed().await.map_err(|_| Error::Closed)?;
        }
    }

    /// The next changes, where there are some already.
    pub fn ready(&mut self) -> Result<Option<Batch>, Error> {
        let (events, revision) =
            self.feed.read().events_after(self.seen, BATCH_EVENTS, &self.selection)?;
        self.seen = revision;
        Ok((!events.is_empty()).then_some(Batch { events, revision }))
    }

    /// The revision up to which this watch has reported everything: what a bookmark says.
    pub fn seen(&self) -> u64 {
        self.seen
    }
}
