//! Buckets by key: one for each caller, or for each value of a header. Whoever calls chooses the keys, so their number
//! is bounded: where there is no room for another, the fullest bucket is forgotten, which is the one whose owner has the
//! least to gain from it.
//!
//! The same type serves twice. All workers together have one, behind a lock that is taken when a worker meets a key for
//! the first time ([`Keys::bucket`]). Each worker keeps what it got there in one of its own ([`Keys::adopt`]), so that
//! from then on only the bucket's own word is shared. A bucket that a worker holds is forgotten only under pressure.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use rustc_hash::FxBuildHasher;

use super::bucket::{Bucket, Rate, nanos};

/// How many buckets a limit has unless told otherwise. A key takes about 100 bytes: 2 MB at most.
pub const MOST_KEYS: usize = 16_384;
/// Full buckets that are looked for whenever a key is added: more than one, so that they become fewer.
const TIDIED: usize = 2;

/// Who or what a bucket is for: a hash of the name under a secret of this process (such as
/// [`RandomState`](std::hash::RandomState)), so that nobody can find two names that share one.
pub type Key = u64;

/// Buckets by key, of bounded number.
#[derive(Debug)]
pub struct Keys {
    capacity: usize,
    buckets: HashMap<Key, Arc<Bucket>, FxBuildHasher>,
    /// One entry for each bucket: when it was going to be full when last looked at. A bucket never becomes fuller than
    /// that says, so the first that still says the truth is the fullest. Looking at it again is paid for by the taking
    /// that made it untrue.
    order: BinaryHeap<Reverse<(u64, Key)>>,
    evicted: u64,
}

impl Keys {
    /// Without any; with room for `capacity`, at least one.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            buckets: HashMap::default(),
            order: BinaryHeap::new(),
            evicted: 0,
        }
    }

    /// The bucket of a key that was met before.
    pub fn find(&self, key: Key) -> Option<&Arc<Bucket>> {
        self.buckets.get(&key)
    }

    /// The bucket of a key; a full one where there was none.
    pub fn bucket(&mut self, key: Key, now: Duration) -> Arc<Bucket> {
        if let Some(bucket) = self.buckets.get(&key) {
            return bucket.clone();
        }
        let bucket = Arc::new(Bucket::default());
        self.adopt(key, bucket.clone(), now);
        bucket
    }

    /// Keeps a bucket that somebody else made.
    pub fn adopt(&mut self, key: Key, bucket: Arc<Bucket>, now: Duration) {
        if let Entry::Occupied(mut known) = self.buckets.entry(key) {
            known.insert(bucket);
            return;
        }
        let now = nanos(now);
        self.tidy(now);
        while self.buckets.len() >= self.capacity {
            self.evict();
        }
        // A new bucket is as full as one that becomes full at this moment.
        self.order.push(Reverse((bucket.full_at().max(now), key)));
        self.buckets.insert(key, bucket);
    }

    /// Room for so many from now on.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity.max(1);
        while self.buckets.len() > self.capacity {
            self.evict();
        }
    }

    /// All go over to another rate. For those of all workers together: a worker's own are the same buckets.
    pub fn change(&mut self, old: &Rate, new: &Rate, now: Duration) {
        for bucket in self.buckets.values() {
            bucket.change(old, new, now);
        }
        // They may be fuller now than `order` says.
        let order = |(key, bucket): (&Key, &Arc<Bucket>)| Reverse((bucket.full_at(), *key));
        self.order = self.buckets.iter().map(order).collect();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// How many were forgotten before they were full: where this grows, `capacity` is too small or somebody invents keys.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Forgets some that are full and that nobody else holds: they are as good as new ones.
    fn tidy(&mut self, now: u64) {
        for _ in 0..TIDIED {
            match self.order.peek() {
                Some(Reverse((then, _))) if *then <= now => {}
                _ => return,
            }
            let Some(Reverse((_, key))) = self.order.pop() else {
                return;
            };
            let Some(bucket) = self.buckets.get(&key) else {
                continue;
            };
            let full_at = bucket.full_at();
            if full_at > now || Arc::strong_count(bucket) > 1 {
                self.order.push(Reverse((full_at.max(now.saturating_add(1)), key)));
            } else {
                self.buckets.remove(&key);
            }
        }
    }

    /// Forgets the fullest.
    fn evict(&mut self) {
        // Others may take from their buckets meanwhile; once round is enough.
        for _ in 0..=self.order.len() {
            let Some(Reverse((then, key))) = self.order.pop() else {
                return;
            };
            match self.buckets.get(&key) {
                Some(bucket) if bucket.full_at() > then => {
                    self.order.push(Reverse((bucket.full_at(), key)));
                }
                Some(_) => {
                    self.buckets.remove(&key);
                    self.evicted += 1;
                    return;
                }
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::filter::rate_limit::bucket::Verdict;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn admits(keys: &mut Keys, rate: &Rate, key: Key, now: Duration) -> bool {
        keys.bucket(key, now).take(rate, now, 1).verdict == Verdict::Admitted
    }

    #[test]
    fn each_key_has_its_own() {
        let rate = Rate::new(1, Duration::from_secs(1), 2);
        let mut keys = Keys::new(10);
        for key in 0..3 {
            let admitted = (0..5).filter(|_| admits(&mut keys, &rate, key, at(1))).count();
            assert_eq!(admitted, 2, "{key}");
        }
        assert_eq!((keys.len(), keys.is_empty(), keys.evicted()), (3, false, 0));
    }

    #[test]
    fn the_fullest_makes_room() {
        let rate = Rate::new(1, Duration::from_secs(100), 10);
        let mut keys = Keys::new(3);
        for (key, count) in [(1, 9), (2, 3), (3, 6)] {
            assert!((0..count).all(|_| admits(&mut keys, &rate, key, at(1))));
        }
        assert!(admits(&mut keys, &rate, 4, at(1)));
        let left: Vec<bool> = (1..=4).map(|key| keys.find(key).is_some()).collect();
        assert_eq!((left, keys.evicted()), (vec![true, false, true, true], 1));
        // A flood of new keys does not make it forget who is at the limit.
        for key in 100..10_000 {
            assert!(admits(&mut keys, &rate, key, at(2)));
        }
        assert!(admits(&mut keys, &rate, 1, at(2)));
        assert!(!admits(&mut keys, &rate, 1, at(2)));
        keys.set_capacity(0);
        assert_eq!(keys.len(), 1);
        assert!(keys.find(1).is_some());
    }

    #[test]
    fn another_rate_is_for_all() {
        let (slow, quick) =
            (Rate::new(1, Duration::from_secs(100), 10), Rate::new(1, Duration::from_secs(1), 10));
        let mut keys = Keys::new(2);
        for (key, count) in [(1, 4), (2, 8)] {
            assert!((0..count).all(|_| admits(&mut keys, &slow, key, at(1))));
        }
        keys.change(&slow, &quick, at(1));
        assert_eq!((0..10).filter(|_| admits(&mut keys, &quick, 1, at(1))).count(), 6);
        // Now the second is the fuller one.
        assert!(admits(&mut keys, &quick, 3, at(1)));
        assert!(keys.find(1).is_some() && keys.find(2).is_none());
    }

    #[test]
    fn full_ones_go_by_themselves() {
        let rate = Rate::new(1, Duration::from_secs(1), 1);
        let mut keys = Keys::new(MOST_KEYS);
        for key in 0..10_000 {
            assert!(admits(&mut keys, &rate, key, at(key)));
        }
        assert!(keys.len() < 1_100, "{} buckets, of which a thousand are not full", keys.len());
        assert_eq!(keys.evicted(), 0);
    }

    #[test]
    fn what_a_worker_holds_stays_one_bucket() {
        let rate = Rate::new(1, Duration::from_secs(1), 1);
        let (mut shared, mut own) = (Keys::new(100), Keys::new(100));
        own.adopt(7, shared.bucket(7, at(1)), at(1));
        for key in 100..150 {
            admits(&mut shared, &rate, key, at(1_000_000 + key * 2_000));
        }
        assert!(Arc::ptr_eq(&shared.bucket(7, at(2_000_000)), own.find(7).unwrap()));
        let other = Arc::new(Bucket::default());
        own.adopt(7, other.clone(), at(2_000_000));
        assert!(Arc::ptr_eq(own.find(7).unwrap(), &other));
        assert_eq!(own.len(), 1);
    }

    proptest! {
        /// Against a model that remembers everything: the number is bounded, a key that is still there is limited
        /// exactly, and what is forgotten under pressure is the fullest.
        #[test]
        fn bounded_and_exact(
            capacity in 1usize..8,
            steps in proptest::collection::vec((0u64..12, 0u64..700), 1..300),
        ) {
            let rate = Rate::new(1, Duration::from_secs(1), 4);
            let mut keys = Keys::new(capacity);
            let mut model: HashMap<Key, Bucket> = HashMap::new();
            let mut now = 0;
            for (key, step) in steps {
                now += step;
                let before: Vec<Key> = keys.buckets.keys().copied().collect();
                let evicted = keys.evicted();
                let known = keys.find(key).is_some();
                let admitted = admits(&mut keys, &rate, key, at(now));
                prop_assert!(keys.len() <= capacity && keys.order.len() == keys.len());
                let gone: Vec<Key> =
                    before.iter().copied().filter(|key| keys.find(*key).is_none()).collect();
                if keys.evicted() > evicted {
                    let level = |key: &Key| model[key].full_at().max(nanos(at(now)));
                    let kept = before.iter().filter(|key| !gone.contains(key)).map(level).min();
                    let last = gone.iter().map(level).max();
                    prop_assert!(kept.is_none() || last <= kept, "{:?} {:?}", last, kept);
                }
                let same = model.entry(key).or_default();
                let full = same.full_at() <= nanos(at(now));
                if known || full {
                    prop_assert_eq!(same.take(&rate, at(now), 1).verdict == Verdict::Admitted, admitted);
                } else {
                    *same = Bucket::default();
                    same.take(&rate, at(now), 1);
                }
            }
        }
    }
}
