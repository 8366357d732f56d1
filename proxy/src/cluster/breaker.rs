//! Limits on what one proxy may have under way to one service port. Closed means traffic flows; at a limit the next
//! one is rejected at once. Pure but for the counters.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Open connections.
    Connections,
    /// Requests waiting for a connection.
    Pending,
    /// Retries and hedged attempts.
    Retries,
}

/// How much is in use, and how often more was refused.
#[derive(Debug, Default)]
pub struct Limits {
    connections: Arc<AtomicU32>,
    pending: Arc<AtomicU32>,
    retries: Arc<AtomicU32>,
    exchanges: AtomicU32,
    rejected: AtomicU64,
}

/// One unit in use, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    counter: Arc<AtomicU32>,
}

impl Limits {
    /// Takes one unit unless `limit` are in use. A refusal is not counted as rejected here: the caller may wait.
    pub fn take(&self, resource: Resource, limit: u32) -> Option<Permit> {
        let counter = self.counter(resource);
        let before = counter.fetch_add(1, Ordering::Relaxed);
        let permit = Permit { counter: counter.clone() };
        (before < limit).then_some(permit)
    }

    /// Begins an exchange unless `limit` are under way; what began must [`leave`](Self::leave).
    pub fn enter(&self, limit: u32) -> bool {
        let entered = self.exchanges.fetch_add(1, Ordering::Relaxed) < limit;
        if !entered {
            self.leave();
        }
        entered
    }

    /// Ends an exchange.
    pub fn leave(&self) {
        self.exchanges.fetch_sub(1, Ordering::Relaxed);
    }

    /// Exchanges under way.
    pub fn exchanges(&self) -> u32 {
        self.exchanges.load(Ordering::Relaxed)
    }

    /// Notes that a request was rejected.
    pub fn reject(&self) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
    }

    /// In use now.
    pub fn in_use(&self, resource: Resource) -> u32 {
        self.counter(resource).load(Ordering::Relaxed)
    }

    /// Requests rejected so far.
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    fn counter(&self, resource: Resource) -> &Arc<AtomicU32> {
        match resource {
            Resource::Connections => &self.connections,
            Resource::Pending => &self.pending,
            Resource::Retries => &self.retries,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.counter.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn exchanges_beyond_the_limit_do_not_begin() {
        let limits = Limits::default();
        assert!(limits.enter(2) && limits.enter(2) && !limits.enter(2));
        limits.leave();
        assert!(limits.enter(2) && !limits.enter(2));
        assert_eq!(limits.exchanges(), 2);
    }

    proptest! {
        /// However permits come and go, no more than the limit are out, and none is lost.
        #[test]
        fn the_limit_holds(limit in 0u32..5, takes in proptest::collection::vec(any::<bool>(), 0..60)) {
            let limits = Limits::default();
            let mut out = Vec::new();
            for take in takes {
                if take {
                    let room = out.len() < limit as usize;
                    let permit = limits.take(Resource::Connections, limit);
                    prop_assert_eq!(permit.is_some(), room);
                    out.extend(permit);
                } else {
                    out.pop();
                }
                prop_assert_eq!(limits.in_use(Resource::Connections) as usize, out.len());
            }
            drop(out);
            prop_assert_eq!(limits.in_use(Resource::Connections), 0);
            prop_assert_eq!(limits.in_use(Resource::Pending), 0);
        }
    }
}
