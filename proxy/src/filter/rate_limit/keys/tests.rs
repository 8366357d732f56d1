use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::filter::rate_limit::bucket::Verdict;

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn admits(keys: &mut Keys, rate: &Rate, key: Key, now: Duration) -> bool {
    keys.bucket(key, Share::WHOLE, now).take(rate, now, 1).verdict == Verdict::Admitted
}

#[test]
fn each_key_has_its_own() {
    let rate = Rate::new(1, Duration::from_secs(1), 2);
    let mut keys = Keys::new(10);
    for key in 0..3 {
        let admitted = (0..5).filter(|_| admits(&mut keys, &rate, key, at(1))).count();
        assert_eq!(admitted, 2, "{key}");
    }
    assert_eq!((keys.count(), keys.evicted()), (3, 0));
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
    assert!(keys.count() < 1_100, "{} buckets, of which a thousand are not full", keys.count());
    assert_eq!(keys.evicted(), 0);
}

#[test]
fn what_is_forgotten_is_forgotten_by_every_worker() {
    let rate = Rate::new(1, Duration::from_secs(1), 1);
    let (mut shared, mut own) = (Keys::new(2), Keys::copies(2));
    own.adopt(7, shared.bucket(7, Share::WHOLE, at(1)), at(1));
    assert!(Arc::ptr_eq(&shared.bucket(7, Share::WHOLE, at(1)), own.find(7).unwrap()));
    for key in 100..103 {
        admits(&mut shared, &rate, key, at(2));
    }
    assert!(shared.find(7).is_none() && own.find(7).is_none(), "the fullest is forgotten by all");
    // What a worker forgets stays with the others.
    let first = shared.bucket(100, Share::WHOLE, at(3));
    own.adopt(100, first.clone(), at(3));
    for key in 200..210 {
        own.adopt(key, Arc::default(), at(3));
    }
    assert!(!first.is_retired());
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
            prop_assert!(keys.count() <= capacity && keys.order.len() == keys.count());
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
