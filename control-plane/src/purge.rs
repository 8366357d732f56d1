//! What the caches of proxies are to forget: orders, who has them, and who waits for them to be carried out.
//!
//! ```text
//! people ─▶ http_api ─▶ Purges ─▶ Subscriber (one per stream) ─▶ proxy
//!                  ◀─ Ticket ◀─ reports ◀───────────────────────╯
//! ```
//!
//! A stream holds its place in the log, not a queue: a proxy that reads slowly costs nothing, and one that comes back gets what
//! it missed. All of it is in memory, and of this one process, as the store is: after a restart there is another epoch, and every
//! proxy forgets everything once.
//!
//! - `log.rs`: the orders (pure); `roster.rs`: who has caches (pure); this file: both together, and who waits

mod log;
mod roster;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, watch};

use self::{
    log::{Log, Next},
    roster::Roster,
};
pub use self::{
    log::{MAX_AGE, MAX_ORDERS, Purge, What},
    roster::{Holder, MAX_LOST},
};
use crate::access::{self, Member};

/// Orders given, proxies known, and whoever waits.
#[derive(Debug)]
pub struct Purges {
    epoch: u64,
    started: Instant,
    /// The number of the last order.
    head: watch::Sender<u64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    log: Log,
    roster: Roster,
    /// By the number of the order.
    waits: BTreeMap<u64, Wait>,
}

/// Somebody waits for an order to be carried out.
#[derive(Debug)]
struct Wait {
    expected: BTreeSet<Holder>,
    missing: BTreeSet<Holder>,
    removed: u64,
    complete: Arc<Notify>,
}

/// Where a proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Of the control plane that gave the order.
    pub epoch: u64,
    /// The last order that was carried out.
    pub sequence: u64,
}

/// What a proxy is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Where it is after that.
    pub position: Position,
    /// `None`: everything of every service.
    pub purge: Option<Arc<Purge>>,
}

/// A proxy says that it has done what it was never told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "report.sequence: {reported} is not that of an order waited for, which are {after} + 1 to {told}"
)]
pub struct Untold {
    reported: u64,
    after: u64,
    told: u64,
}

/// One stream; dropping it without [`Subscriber::finish`] means that it broke, and that its proxy is expected back.
#[derive(Debug)]
pub struct Subscriber {
    purges: Arc<Purges>,
    holder: Holder,
    head: watch::Receiver<u64>,
    /// `None` until it has been told to forget everything.
    told: Option<u64>,
    reported: Option<u64>,
    finished: bool,
}

/// For whoever gave an order; dropping it ends the wait.
#[derive(Debug)]
pub struct Ticket {
    purges: Arc<Purges>,
    sequence: u64,
    complete: Arc<Notify>,
}

/// What has become of an order so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Proxies that are to carry it out.
    pub proxies: usize,
    /// Those that have.
    pub confirmed: usize,
    /// Responses that these keep no longer.
    pub removed: u64,
    /// Those that have not, by name.
    pub waiting: Vec<String>,
}

impl Purges {
    /// Nothing is ordered yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            epoch: rand::random(),
            started: Instant::now(),
            head: watch::Sender::new(0),
            state: Mutex::default(),
        })
    }

    /// Orders a purge from every proxy; of those in `scope` it is waited for the ones that have caches.
    pub fn order(self: &Arc<Self>, purge: Purge, scope: &BTreeSet<Member>) -> Ticket {
        let mut state = self.state();
        let expected = state.roster.among(scope);
        let sequence = state.log.add(purge, self.started.elapsed());
        let complete = Arc::new(Notify::new());
        if expected.is_empty() {
            complete.notify_one();
        }
        let missing = expected.clone();
        state
            .waits
            .insert(sequence, Wait { expected, missing, removed: 0, complete: complete.clone() });
        self.head.send_replace(sequence);
        drop(state);
        Ticket { purges: self.clone(), sequence, complete }
    }

    /// Enters the stream of a proxy that has carried out everything up to `position`.
    pub fn open(self: &Arc<Self>, holder: Holder, position: Option<Position>) -> Subscriber {
        let mut state = self.state();
        let known = position.filter(|position| position.epoch == self.epoch);
        let told = known.map(|position| position.sequence).filter(|at| *at <= state.log.head());
        state.roster.opened(&holder);
        if let Some(sequence) = told {
            // Its last report may not have reached us.
            state.confirm(&holder, sequence, 0);
        }
        drop(state);
        let head = self.head.subscribe();
        Subscriber { purges: self.clone(), holder, head, told, reported: told, finished: false }
    }

    /// Proxies with a stream now.
    pub fn streams(&self) -> usize {
        self.state().roster.open()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A proxy has nothing any more that it could be asked to forget.
    fn leave(&mut self, holder: &Holder) {
        for wait in self.waits.values_mut() {
            wait.expected.remove(holder);
            if wait.missing.remove(holder) && wait.missing.is_empty() {
                wait.complete.notify_one();
            }
        }
    }

    /// A proxy is as far as `sequence`, and that order itself removed so many responses.
    fn confirm(&mut self, holder: &Holder, sequence: u64, removed: u64) {
        for (order, wait) in self.waits.range_mut(..=sequence) {
            if !wait.missing.remove(holder) {
                continue;
            }
            if *order == sequence {
                wait.removed = wait.removed.saturating_add(removed);
            }
            if wait.missing.is_empty() {
                wait.complete.notify_one();
            }
        }
    }
}

impl Subscriber {
    /// What the proxy is to do next; waits until there is something. Safe to cancel.
    pub async fn next(&mut self) -> Order {
        loop {
            self.head.mark_unchanged();
            let next = self.purges.state().log.after(self.told);
            let (sequence, purge) = match next {
                Next::Order(sequence, purge) => (sequence, Some(purge)),
                Next::Everything(sequence) => (sequence, None),
                Next::Nothing => {
                    // The sender is ours, so that there is always somebody who may say more.
                    self.head.changed().await.ok();
                    continue;
                }
            };
            self.told = Some(sequence);
            let position = Position { epoch: self.purges.epoch, sequence };
            return Order { position, purge };
        }
    }

    /// The proxy has carried out the order `sequence`, and all before it.
    ///
    /// # Errors
    /// Where it was not told to, or has said so before.
    pub fn report(&mut self, sequence: u64, removed: u64) -> Result<(), Untold> {
        let new = self.reported.is_none_or(|reported| sequence > reported);
        if !new || self.told.is_none_or(|told| sequence > told) {
            let (after, told) = (self.reported.unwrap_or(0), self.told.unwrap_or(0));
            return Err(Untold { reported: sequence, after, told });
        }
        self.reported = Some(sequence);
        self.purges.state().confirm(&self.holder, sequence, removed);
        Ok(())
    }

    /// The proxy has no caches any more: nobody waits for it.
    pub fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let now = self.purges.started.elapsed();
        let mut state = self.purges.state();
        state.roster.closed(&self.holder, self.finished, now);
        if self.finished && !state.roster.has(&self.holder) {
            state.leave(&self.holder);
        }
    }
}

impl Ticket {
    /// Waits until every proxy has carried it out, for at most `limit`, and says how far it came.
    pub async fn confirmed(&self, limit: Duration) -> Outcome {
        // Running out of time is an outcome like others: it says who is waited for.
        let _ = tokio::time::timeout(limit, self.complete.notified()).await;
        self.outcome()
    }

    fn outcome(&self) -> Outcome {
        let state = self.purges.state();
        let Some(wait) = state.waits.get(&self.sequence) else { return Outcome::default() };
        let all: BTreeSet<Member> =
            wait.expected.iter().map(|holder| holder.member.clone()).collect();
        let missing = wait.missing.iter().map(|holder| &holder.member);
        Outcome {
            proxies: wait.expected.len(),
            confirmed: wait.expected.len() - wait.missing.len(),
            removed: wait.removed,
            waiting: access::shown(missing, &all),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.purges.state().waits.remove(&self.sequence);
    }
}
