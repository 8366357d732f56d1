//! Responses on their way from the origin: one fetch for all who want the same, and none is kept that was made void
//! meanwhile.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use rustc_hash::FxHashMap;
use tokio::sync::watch;

use super::{
    key::Key,
    remote::Seen,
    store::{Store, Stored},
};
use crate::error::Error;

/// What those who wait for somebody else's fetch learn.
#[derive(Clone, Debug, Default)]
pub enum Outcome {
    /// Nothing yet.
    #[default]
    Pending,
    /// The response; its body may still be arriving.
    Here(Arc<Stored>),
    /// It is nobody else's: everybody asks for himself.
    Own,
    /// There was no room to keep it: the next one tries.
    NoRoom,
    /// The origin did not answer, or with an error.
    Failed(Error),
    /// Whoever fetched it went away.
    Abandoned,
}

/// One fetch.
#[derive(Debug)]
pub struct Fill {
    extra: Arc<[u8]>,
    identity: Arc<str>,
    /// Whether others wait for it.
    shared: bool,
    void: AtomicBool,
    outcome: watch::Sender<Outcome>,
}

type ByShelf = FxHashMap<Arc<str>, Vec<Arc<Fill>>>;

/// All that are under way.
#[derive(Debug, Default)]
pub struct Fills(Mutex<ByShelf>);

/// What a request that is not answered from the store does.
#[derive(Debug)]
pub enum Begun {
    /// It fetches, and tells the others.
    Lead(Lead),
    /// It waits for this one.
    Join(watch::Receiver<Outcome>),
}

/// The duty to fetch and to tell. Dropped without a word, others take over.
#[derive(Debug)]
pub struct Lead {
    fills: Arc<Fills>,
    shelf: Arc<str>,
    fill: Arc<Fill>,
    seen: Option<Seen>,
}

impl Fills {
    /// Joins the fetch that is under way for the same, unless there is none or `share` is false: then this is one.
    /// `fits`: whether a response whose head is here already may be the answer; others are for other variants.
    pub fn begin(
        self: &Arc<Self>,
        key: &Key,
        identity: &Arc<str>,
        share: bool,
        fits: impl Fn(&Stored) -> bool,
    ) -> Begun {
        let mut fills = self.lock();
        let here = fills.entry(key.shelf.clone()).or_default();
        let same = |fill: &&Arc<Fill>| {
            fill.shared
                && fill.extra == key.extra
                && fill.identity == *identity
                && !fill.is_void()
                && match &*fill.outcome.borrow() {
                    Outcome::Here(stored) => fits(stored),
                    _ => true,
                }
        };
        if share && let Some(fill) = here.iter().find(same) {
            return Begun::Join(fill.outcome.subscribe());
        }
        let fill = Arc::new(Fill {
            extra: key.extra.clone(),
            identity: identity.clone(),
            shared: share,
            void: AtomicBool::new(false),
            outcome: watch::Sender::default(),
        });
        here.push(fill.clone());
        Begun::Lead(Lead { fills: self.clone(), shelf: key.shelf.clone(), fill, seen: None })
    }

    /// Makes what is stored for the shelf void, and what is on its way there. Says how much was stored.
    pub fn remove(&self, store: &Store, shelf: &str) -> usize {
        let fills = self.lock();
        if let Some(here) = fills.get(shelf) {
            here.iter().for_each(|fill| fill.make_void());
        }
        store.remove(shelf)
    }

    /// Makes one stored response void.
    pub fn discard(&self, store: &Store, shelf: &Arc<str>, stored: &Arc<Stored>) {
        // Nothing is kept between the look and the change.
        let _held = self.lock();
        store.discard(shelf, stored);
    }

    /// Makes void what `is_void` says; of what is on its way, everything on shelves that `may_be` says: nobody knows yet
    /// what it will be. Says how much was stored.
    pub fn purge(
        &self,
        store: &Store,
        may_be: impl Fn(&str) -> bool,
        is_void: impl Fn(&str, &Stored) -> bool,
    ) -> usize {
        let fills = self.lock();
        let here = fills.iter().filter(|(shelf, _)| may_be(shelf));
        here.flat_map(|(_, here)| here).for_each(|fill| fill.make_void());
        drop(fills);
        // What begins from here on is newer than the purge. Requests do not wait for all of a store to be looked through.
        store.purge(|| self.lock(), is_void)
    }

    fn lock(&self) -> MutexGuard<'_, ByShelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fill {
    fn is_void(&self) -> bool {
        self.void.load(Ordering::Relaxed)
    }

    fn make_void(&self) {
        self.void.store(true, Ordering::Relaxed);
    }
}

impl Lead {
    /// Tells those who wait.
    pub fn tell(&self, outcome: Outcome) {
        self.fill.outcome.send_replace(outcome);
    }

    /// Notes what was in force in the second tier before the origin was asked.
    pub fn note(&mut self, seen: Option<Seen>) {
        self.seen = seen;
    }

    /// Where its response is kept.
    pub fn shelf(&self) -> &Arc<str> {
        &self.shelf
    }

    /// Whether what it fetches was made void meanwhile.
    pub fn is_void(&self) -> bool {
        self.fill.is_void()
    }

    /// Keeps a whole response, unless it was made void while it was fetched: then nothing is said. Otherwise, what was
    /// noted is.
    pub fn keep(mut self, store: &Store, stored: Arc<Stored>) -> Option<Seen> {
        // Under the lock: nobody makes the shelf void between the look and the keeping.
        let fills = self.fills.lock();
        let is_void = self.fill.is_void();
        if !is_void {
            store.keep(&self.shelf, stored.clone());
        }
        drop(fills);
        self.tell(Outcome::Here(stored));
        self.seen.take().filter(|_| !is_void)
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        let mut fills = self.fills.lock();
        if let Some(here) = fills.get_mut(&self.shelf) {
            here.retain(|fill| !Arc::ptr_eq(fill, &self.fill));
            if here.is_empty() {
                fills.remove(&self.shelf);
            }
        }
        drop(fills);
        self.fill.outcome.send_if_modified(|outcome| {
            let pending = matches!(outcome, Outcome::Pending);
            if pending {
                *outcome = Outcome::Abandoned;
            }
            pending
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(shelf: &str, extra: &str) -> Key {
        Key { shelf: shelf.into(), extra: extra.as_bytes().into() }
    }

    proptest! {
        /// Whoever joins a fetch asked for the same, as the same, with the same right to share.
        #[test]
        fn nobody_joins_a_fetch_for_another(
            asked in prop::collection::vec(("[ab]{0,2}", "[ab]{0,2}", "[ab]{0,2}", any::<bool>()), 2..40),
        ) {
            let fills = Arc::<Fills>::default();
            let mut leads: Vec<(Lead, (String, String, String))> = Vec::new();
            for (shelf, extra, identity, share) in asked {
                let (key, who) = (key(&shelf, &extra), Arc::from(&*identity));
                let same = (shelf, extra, identity);
                match fills.begin(&key, &who, share, |_| true) {
                    Begun::Lead(lead) => {
                        let known = leads.iter().any(|(lead, other)| lead.fill.shared && *other == same);
                        prop_assert!(!share || !known, "{same:?}: two fetches");
                        leads.push((lead, same));
                    }
                    Begun::Join(waiting) => {
                        prop_assert!(share);
                        let (lead, _) = leads
                            .iter()
                            .find(|(lead, other)| lead.fill.shared && *other == same)
                            .expect("a fetch for the same by the same");
                        lead.tell(Outcome::Own);
                        prop_assert!(matches!(&*waiting.borrow(), Outcome::Own), "{same:?}: another's");
                        lead.tell(Outcome::Pending);
                    }
                }
            }
            drop(leads);
            prop_assert!(fills.lock().is_empty(), "nothing is left behind");
        }
    }
}
