//! How much a cache was of use.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::store;

/// Of one policy at this proxy. What is counted is counted since the proxy first had the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Requests answered with what was kept and fresh, those that a fetch under way answered not included.
    pub hits: u64,
    /// Requests that went to the origin for want of an answer that could be used.
    pub misses: u64,
    /// Requests answered with what was kept though it was not fresh any more.
    pub stale: u64,
    /// Requests that waited for another one's fetch and were answered by it.
    pub collapsed: u64,
    /// Answers of an origin (304) that what was kept is still good.
    pub validated: u64,
    /// Responses that were purged.
    pub purged: u64,
    /// Of bodies that were delivered without the origin sending them.
    pub saved_bytes: u64,
    /// Bytes that are kept.
    pub bytes: u64,
    /// Bytes that may be kept.
    pub most_bytes: u64,
    /// URLs for which there is something.
    pub urls: u64,
    /// URLs that had to make room.
    pub evicted: u64,
    /// Age of the oldest response (RFC 9111 section 4.2.3); none where nothing is kept.
    pub oldest: Option<Duration>,
}

impl Figures {
    /// Requests answered without a request to the origin of their own, of all: 0 to 1. None before the first.
    pub fn hit_ratio(&self) -> Option<f64> {
        let answered = self.hits.saturating_add(self.stale).saturating_add(self.collapsed);
        let all = answered.saturating_add(self.misses).saturating_add(self.validated);
        #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
        (all > 0).then(|| answered as f64 / all as f64)
    }
}

/// What is counted while requests pass. All workers have one together: an increment is one relaxed addition.
#[derive(Debug, Default)]
pub struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    stale: AtomicU64,
    collapsed: AtomicU64,
    validated: AtomicU64,
    purged: AtomicU64,
    saved_bytes: AtomicU64,
}

impl Counters {
    /// A request was answered with what is kept and fresh.
    pub fn hit(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
    }

    /// A request went to the origin.
    pub fn miss(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
    }

    /// A request was answered with what is kept and not fresh.
    pub fn stale(&self) {
        self.stale.fetch_add(1, Ordering::Relaxed);
    }

    /// A request was answered by another one's fetch.
    pub fn collapsed(&self) {
        self.collapsed.fetch_add(1, Ordering::Relaxed);
    }

    /// The origin says that what is kept is still good. Each request is one of these: hit, miss, stale, collapsed, validated.
    pub fn validated(&self) {
        self.validated.fetch_add(1, Ordering::Relaxed);
    }

    /// So many responses were purged.
    pub fn purged(&self, responses: u64) {
        self.purged.fetch_add(responses, Ordering::Relaxed);
    }

    /// So many bytes were delivered that the origin did not send.
    pub fn saved(&self, bytes: u64) {
        self.saved_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// All of them, with what the store says of itself.
    pub fn figures(&self, store: &store::Figures, oldest: Option<Duration>) -> Figures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            hits: read(&self.hits),
            misses: read(&self.misses),
            stale: read(&self.stale),
            collapsed: read(&self.collapsed),
            validated: read(&self.validated),
            purged: read(&self.purged),
            saved_bytes: read(&self.saved_bytes),
            bytes: store.bytes,
            most_bytes: store.most_bytes,
            urls: store.urls,
            evicted: store.evicted,
            oldest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_counts_once() {
        let counters = Counters::default();
        let none = counters.figures(&store::Figures::default(), None);
        assert_eq!((none, none.hit_ratio()), (Figures::default(), None));
        (0..4).for_each(|_| counters.hit());
        counters.miss();
        counters.stale();
        counters.collapsed();
        counters.validated();
        counters.purged(7);
        counters.saved(100);
        counters.saved(11);
        let kept = store::Figures { urls: 2, bytes: 3, most_bytes: 4, evicted: 5 };
        let figures = counters.figures(&kept, Some(Duration::from_secs(9)));
        assert_eq!(figures.hit_ratio(), Some(0.75));
        let expected = Figures {
            hits: 4,
            misses: 1,
            stale: 1,
            collapsed: 1,
            validated: 1,
            purged: 7,
            saved_bytes: 111,
            bytes: 3,
            most_bytes: 4,
            urls: 2,
            evicted: 5,
            oldest: Some(Duration::from_secs(9)),
        };
        assert_eq!(figures, expected);
    }
}
