//! A store that lives as long as its process: for tests and for trying things out.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{
    Committed, Error, Key, Listing, Selection, Store, Stored, Transaction, Watch,
    feed::Feed,
    ledger::{Decision, Ledger},
};

pub struct MemoryStore {
    feed: Arc<Feed>,
}

impl MemoryStore {
    pub fn new() -> Self {
        Self { feed: Feed::new(Ledger::empty()) }
    }

    /// With a history shorter than usual, where a test wants it to run out.
    pub fn with_history(max_events: usize, max_bytes: usize) -> Self {
        Self { feed: Feed::new(Ledger::with_history(max_events, max_bytes)) }
    }

    fn commit_now(&self, transaction: &Transaction) -> Result<Committed, Error> {
        self.feed.change(|ledger| {
            let decision = ledger.decide(transaction)?;
            ledger.apply(&decision.events);
            Ok(decision.committed(ledger.revision()))
        })
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.feed.close();
    }
}

impl Store for MemoryStore {
    fn revision(&self) -> u64 {
        self.feed.read().revision()
    }

    fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.feed.read().get(key)
    }

    fn list(&self, selection: &Selection) -> Listing {
        self.feed.read().list(selection)
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Committed, Error>> {
        Box::pin(async move { self.commit_now(&transaction) })
    }

    fn watch(&self, from: u64, selection: Selection) -> Result<Watch, Error> {
        self.feed.watch(from, selection)
    }

    fn compact(&self, through: u64) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.feed.change(|ledger| ledger.compact(through));
            Ok(())
        })
    }
}

impl Decision {
    pub(super) fn committed(&self, revision: u64) -> Committed {
        let object = |event: &Option<usize>| {
            event.and_then(|at| self.events.get(at)).map(|event| event.object.clone())
        };
        Committed { revision, objects: self.results.iter().map(object).collect() }
    }
}
