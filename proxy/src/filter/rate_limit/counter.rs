//! What of a limit outlives a change of its numbers: its buckets. All workers share one [`Counter`]; each has a
//! [`Tables`] of its own with the buckets that it has met, so that no request waits for another worker's.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use rustc_hash::FxHashMap;
use sha2::{Digest, Sha256};

use super::{
    bucket::{Bucket, Rate, Share},
    keys::{Key, Keys, MOST_KEYS},
    lease::FIRST_SHARE,
};

/// The key of a limit that has only one bucket.
pub const ONLY: Key = 0;

/// The buckets of one limit on one service.
#[derive(Debug)]
pub struct Counter {
    /// Unique in this process.
    id: u64,
    /// Keys are hashed under it; of a limit that all proxies have together every proxy must come to the same key.
    secret: Option<RandomState>,
    /// At which rate the buckets are now.
    rate: Mutex<Rate>,
    /// The bucket of a limit without keys.
    only: Bucket,
    /// `None` for a limit without keys.
    keys: Option<Mutex<Keys>>,
    /// What a new bucket gets of the limit, in millionths.
    first_share: AtomicU32,
}

/// What a worker has met, by counter.
#[derive(Debug, Default)]
pub struct Tables(FxHashMap<u64, Table>);

#[derive(Debug)]
struct Table {
    counter: Weak<Counter>,
    keys: Keys,
}

impl Counter {
    /// Full buckets. `global`: of a limit that all proxies have together.
    pub fn new(rate: Rate, keyed: bool, global: bool) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let share = if global { FIRST_SHARE } else { Share::WHOLE };
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            secret: (!global).then(RandomState::new),
            rate: Mutex::new(rate),
            only: Bucket::with(share),
            keys: keyed.then(|| Mutex::new(Keys::new(MOST_KEYS))),
            first_share: AtomicU32::new(share.millionths()),
        }
    }

    /// Whether it can go on for a limit of that kind.
    pub fn fits(&self, keyed: bool, global: bool) -> bool {
        self.keys.is_some() == keyed && self.is_global() == global
    }

    /// Goes over to another rate, where it is not there already.
    pub fn change(&self, rate: &Rate, now: Duration) {
        let mut current = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        if *current == *rate {
            return;
        }
        self.only.change(&current, rate, now);
        if let Some(mut keys) = self.keys() {
            keys.change(&current, rate, now);
        }
        *current = *rate;
    }

    /// The key of what `parts` writes.
    pub fn key(&self, parts: impl FnOnce(&mut dyn Hasher)) -> Key {
        match &self.secret {
            Some(secret) => {
                let mut hasher = secret.build_hasher();
                parts(&mut hasher);
                hasher.finish()
            }
            None => {
                let mut hasher = Everywhere(Sha256::new());
                parts(&mut hasher);
                hasher.finish()
            }
        }
    }

    /// Uses the bucket of a key.
    pub fn with<T>(
        self: &Arc<Self>,
        key: Key,
        tables: &mut Tables,
        now: Duration,
        use_it: impl FnOnce(&Bucket) -> T,
    ) -> T {
        let Some(shared) = &self.keys else { return use_it(&self.only) };
        let table = tables.0.entry(self.id).or_insert_with(|| Table {
            counter: Arc::downgrade(self),
            keys: Keys::copies(MOST_KEYS),
        });
        if let Some(bucket) = table.keys.find(key) {
            return use_it(bucket);
        }
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = shared.bucket(key, self.first_share(), now);
        drop(shared);
        let result = use_it(&bucket);
        table.keys.adopt(key, bucket, now);
        result
    }

    /// Whether all proxies have this limit together.
    pub fn is_global(&self) -> bool {
        self.secret.is_none()
    }

    /// Every bucket, in no order.
    pub fn visit(&self, mut visit: impl FnMut(Key, &Bucket)) {
        match self.keys() {
            None => visit(ONLY, &self.only),
            Some(keys) => keys.iter().for_each(|(key, bucket)| visit(key, bucket)),
        }
    }

    /// What a new bucket gets of the limit.
    pub fn first_share(&self) -> Share {
        Share::of_millionths(self.first_share.load(Ordering::Relaxed))
    }

    /// The same from now on.
    pub fn set_first_share(&self, share: Share) {
        self.first_share.store(share.millionths(), Ordering::Relaxed);
    }

    /// How many keys there are, and how many were forgotten before their buckets were full.
    pub fn sizes(&self) -> (usize, u64) {
        self.keys().map_or((0, 0), |keys| (keys.count(), keys.evicted()))
    }

    fn keys(&self) -> Option<std::sync::MutexGuard<'_, Keys>> {
        self.keys.as_ref().map(|keys| keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Tables {
    /// Forgets the tables of limits that are no more.
    pub fn sweep(&mut self) {
        self.0.retain(|_, table| table.counter.strong_count() > 0);
    }
}

/// The first 64 bits of a SHA-256: nobody finds a value that has the key of somebody else's.
struct Everywhere(Sha256);

impl Hasher for Everywhere {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest = self.0.clone().finalize();
        digest.iter().take(8).fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
    }
}

/// Writes a part of a key so that no two lists of parts are the same bytes.
pub fn write_part(hasher: &mut dyn Hasher, part: &[u8]) {
    let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
    hasher.write(&length.to_le_bytes());
    hasher.write(part);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::rate_limit::bucket::Verdict;

    const SECOND: Duration = Duration::from_secs(1);

    fn admits(counter: &Arc<Counter>, tables: &mut Tables, rate: &Rate, key: Key) -> bool {
        let take = |bucket: &Bucket| bucket.take(rate, SECOND, 1).verdict;
        counter.with(key, tables, SECOND, take) == Verdict::Admitted
    }

    #[test]
    fn workers_share_the_bucket_of_a_key_and_nothing_else() {
        let rate = Rate::new(1, SECOND, 5);
        let counter = Arc::new(Counter::new(rate, true, false));
        let (mut one, mut other) = (Tables::default(), Tables::default());
        for key in 1..4 {
            let by_one = (0..3).filter(|_| admits(&counter, &mut one, &rate, key)).count();
            let by_other = (0..9).filter(|_| admits(&counter, &mut other, &rate, key)).count();
            assert_eq!((by_one, by_other), (3, 2));
        }
        assert_eq!(counter.sizes(), (3, 0));
        drop(counter);
        one.sweep();
        assert!(one.0.is_empty());
    }

    #[test]
    fn a_flood_of_keys_is_bounded_and_leaves_the_busy_ones_alone() {
        let rate = Rate::new(1, 100 * SECOND, 5);
        let counter = Arc::new(Counter::new(rate, true, false));
        let mut tables = Tables::default();
        assert!((0..5).all(|_| admits(&counter, &mut tables, &rate, 7)));
        for key in 1_000..101_000 {
            assert!(admits(&counter, &mut tables, &rate, key));
        }
        let (keys, evicted) = counter.sizes();
        assert!(keys <= MOST_KEYS && evicted > 80_000, "{keys} {evicted}");
        assert!(!admits(&counter, &mut tables, &rate, 7), "it is at its limit still");
    }

    #[test]
    fn another_rate_takes_effect_once_and_keeps_what_is_used() {
        let slow = Rate::new(10, 3600 * SECOND, 10);
        let counter = Arc::new(Counter::new(slow, false, false));
        let mut tables = Tables::default();
        assert!((0..10).all(|_| admits(&counter, &mut tables, &slow, ONLY)));
        let quick = Rate::new(100, SECOND, 100);
        counter.change(&quick, SECOND);
        counter.change(&quick, SECOND);
        assert!(!admits(&counter, &mut tables, &quick, ONLY), "empty stays empty");
        let take = |bucket: &Bucket| bucket.take(&quick, 2 * SECOND, 1).verdict;
        let admitted = (0..200)
            .filter(|_| counter.with(ONLY, &mut tables, SECOND, take) == Verdict::Admitted)
            .count();
        assert_eq!(admitted, 100, "a second later it is full, not an hour later");
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        for global in [false, true] {
            let rate = Rate::new(1, SECOND, 1);
            let counter = Counter::new(rate, true, global);
            let key = |parts: &[&str]| {
                counter.key(|hasher| {
                    parts.iter().for_each(|part| write_part(hasher, part.as_bytes()));
                })
            };
            assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
            assert_ne!(key(&["a", "b"]), key(&["ab", ""]));
            assert_ne!(key(&["a", "b"]), key(&["b", "a"]));
        }
    }

    #[test]
    fn every_proxy_comes_to_the_same_key_of_a_common_limit() {
        let rate = Rate::new(1, SECOND, 1);
        let key = |global| Counter::new(rate, true, global).key(|hasher| write_part(hasher, b"x"));
        assert_eq!(key(true), key(true));
        assert_ne!(key(false), key(false), "a secret of the process");
    }
}
