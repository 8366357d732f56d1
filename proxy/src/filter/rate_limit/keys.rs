//! Buckets by key: one for each caller, or for each value of a header. Whoever calls chooses the keys, so their number
//! is bounded: where there is no room for another, the fullest bucket is forgotten, which is the one whose owner has the
//! least to gain from it.
//!
//! The same type serves twice. All workers together have one, behind a lock that is taken when a worker meets a key for
//! the first time ([`Keys::bucket`]). Each worker keeps what it got there in one of its own ([`Keys::adopt`]), so that
//! from then on only the bucket's own word is shared. A bucket that all workers together have forgotten is retired:
//! a worker that still has it does not find it any more ([`Keys::find`]) and asks again, so that a key never has two.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use rustc_hash::FxBuildHasher;

use super::bucket::{Bucket, Rate, Share, nanos};

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
    /// Whether what is forgotten here is to be forgotten everywhere.
    owner: bool,
}

impl Keys {
    /// Without any; with room for `capacity`, at least one.
    pub fn new(capacity: usize) -> Self {
        Self { owner: true, ..Self::copies(capacity) }
    }

    /// For buckets of which somebody else decides.
    pub fn copies(capacity: usize) -> Self {
        Self {
            owner: false,
            capacity: capacity.max(1),
            buckets: HashMap::default(),
            order: BinaryHeap::new(),
            evicted: 0,
        }
    }

    /// The bucket of a key that was met before.
    pub fn find(&self, key: Key) -> Option<&Arc<Bucket>> {
        self.buckets.get(&key).filter(|bucket| !bucket.is_retired())
    }

    /// The bucket of a key; a full one with that share of the limit where there was none.
    pub fn bucket(&mut self, key: Key, share: Share, now: Duration) -> Arc<Bucket> {
        if let Some(bucket) = self.buckets.get(&key) {
            return bucket.clone();
        }
        let bucket = Arc::new(Bucket::with(share));
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
            self.evict(now);
        }
        // A new bucket is as full as one that becomes full at this moment.
        self.order.push(Reverse((bucket.full_at().max(now), key)));
        self.buckets.insert(key, bucket);
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

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &Bucket)> {
        self.buckets.iter().map(|(key, bucket)| (*key, &**bucket))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.buckets.len()
    }

    /// How many were forgotten before they were full: where this grows, `capacity` is too small or somebody invents keys.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Forgets some that are full: they are as good as new ones.
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
            if full_at > now {
                self.order.push(Reverse((full_at, key)));
            } else {
                self.forget(key);
            }
        }
    }

    /// Forgets the fullest.
    fn evict(&mut self, now: u64) {
        // Others may take from their buckets meanwhile; once round is enough.
        for _ in 0..=self.order.len() {
            let Some(Reverse((then, key))) = self.order.pop() else {
                return;
            };
            match self.buckets.get(&key) {
                Some(bucket) if bucket.full_at() > then => {
                    self.order.push(Reverse((bucket.full_at(), key)));
                }
                Some(bucket) => {
                    self.evicted += u64::from(bucket.full_at() > now);
                    self.forget(key);
                    return;
                }
                None => {}
            }
        }
    }

    fn forget(&mut self, key: Key) {
        if let Some(bucket) = self.buckets.remove(&key).filter(|_| self.owner) {
            bucket.retire();
        }
    }
}

#[cfg(test)]
mod tests;
