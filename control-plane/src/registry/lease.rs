//! Leases, by a clock that is handed in.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use crate::store::Key;

/// Who is here, and until when unless renewed.
#[derive(Debug, Default)]
pub(super) struct Leases {
    leases: HashMap<Key, Lease>,
    /// Held leases by their end, the next one first.
    ends: BTreeSet<(Instant, Key)>,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    /// `None` once it has lapsed and until its object is gone: it cannot be renewed any more, only
    /// granted anew.
    end: Option<Instant>,
    /// The revision of the object for which it was granted.
    content: u64,
}

impl Leases {
    /// Holds an object, as written at revision `content`, for `ttl` from now.
    pub(super) fn grant(&mut self, key: &Key, ttl: Duration, content: u64, now: Instant) {
        let earlier = self.leases.remove(key);
        if let Some(end) = earlier.as_ref().and_then(|lease| lease.end) {
            self.ends.remove(&(end, key.clone()));
        }
        let content = content.max(earlier.map_or(0, |lease| lease.content));
        let end = now + ttl;
        self.ends.insert((end, key.clone()));
        self.leases.insert(key.clone(), Lease { ttl, end: Some(end), content });
    }

    /// Extends a held lease to its full length from now; `false` where there is none.
    pub(super) fn renew(&mut self, key: &Key, now: Instant) -> bool {
        let held = self.leases.get(key).filter(|lease| lease.end.is_some_and(|end| end > now));
        let Some(Lease { ttl, content, .. }) = held else { return false };
        let (ttl, content) = (*ttl, *content);
        self.grant(key, ttl, content, now);
        true
    }

    /// Forgets a lease: its object is gone, or is to stay for good.
    pub(super) fn release(&mut self, key: &Key) {
        if let Some(end) = self.leases.remove(key).and_then(|lease| lease.end) {
            self.ends.remove(&(end, key.clone()));
        }
    }

    /// The leases that have ended by now. Each is told once; it then waits for [`Self::release`],
    /// or to be granted anew.
    pub(super) fn lapse(&mut self, now: Instant) -> Vec<Key> {
        let mut lapsed = Vec::new();
        while self.next_end().is_some_and(|end| end <= now) {
            let Some((_, key)) = self.ends.pop_first() else { break };
            if let Some(lease) = self.leases.get_mut(&key) {
                lease.end = None;
            }
            lapsed.push(key);
        }
        lapsed
    }

    /// Moves the end of every held lease: for as long as nobody could have renewed one.
    pub(super) fn extend_all(&mut self, by: Duration) {
        self.ends.clear();
        for (key, lease) in &mut self.leases {
            if let Some(end) = &mut lease.end {
                *end += by;
                self.ends.insert((*end, key.clone()));
            }
        }
    }

    /// Whether the lease has lapsed and its object is about to go.
    pub(super) fn is_lapsing(&self, key: &Key) -> bool {
        self.leases.get(key).is_some_and(|lease| lease.end.is_none())
    }

    /// The revision for which a lapsed lease had been granted: an object written later is not the
    /// one that lapsed.
    pub(super) fn lapsing_content(&self, key: &Key) -> Option<u64> {
        self.leases.get(key).filter(|lease| lease.end.is_none()).map(|lease| lease.content)
    }

    pub(super) fn next_end(&self) -> Option<Instant> {
        self.ends.first().map(|(end, _)| *end)
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.leases.keys()
    }
}

/// Notices when this process did not run for a while (suspended, starved, stopped by a signal):
/// renewals could not be heard in that time, and their lack says nothing about the workloads.
#[derive(Debug)]
pub(super) struct Heartbeat {
    last: Instant,
}

impl Heartbeat {
    /// How often the process must ask.
    pub(super) const EVERY: Duration = Duration::from_millis(500);
    /// Longer silence than this is a stall and not just a late wake-up.
    const STALL: Duration = Duration::from_secs(2);

    pub(super) fn new(now: Instant) -> Self {
        Self { last: now }
    }

    /// When to ask next.
    pub(super) fn next(&self) -> Instant {
        self.last + Self::EVERY
    }

    /// How long the process has not been running; zero where all is well.
    pub(super) fn beat(&mut self, now: Instant) -> Duration {
        let silence = now.saturating_duration_since(self.last);
        self.last = now;
        if silence > Self::STALL { silence } else { Duration::ZERO }
    }
}
