//! A share in a limit that all proxies have together. A proxy tells the control plane how much of the limit its callers
//! ask for and is granted a share for a short time; between two answers nobody waits for anybody: a share is a limit
//! of its own, in a bucket of this process. Where a limit has keys, the busiest are leased one by one; all others have
//! the local share, the limit divided by the number of proxies, as has everything while the control plane is away.
//!
//! What is exceeded: before the control plane has answered for the first time a proxy takes [`FIRST_SHARE`], and a key
//! that nobody had leased begins with a local share's burst on each proxy.

use std::time::Duration;

use rustc_hash::FxHashMap;

use super::{
    bucket::{Rate, Share},
    counter::Counter,
    keys::Key,
};

/// Of a limit, as long as nothing is known of the other proxies: a tenth, so that a few of them do not exceed it.
pub const FIRST_SHARE: Share = Share::of_millionths(100_000);
/// Keys of a limit that a proxy leases: the busiest.
pub const MOST_LEASED: usize = 256;
/// Demand is smoothed over this long when it falls. More is believed at once: too little would be refused.
const MEMORY: Duration = Duration::from_secs(1);
/// A key nobody asks for any more is let go when its demand has fallen to so many millionths of the limit.
const FORGOTTEN: u32 = 1_000;

/// The accounting of one limit, on the side thread.
#[derive(Debug, Default)]
pub struct Lease {
    /// By key: units a second that were asked for, admitted or not.
    demand: FxHashMap<Key, f64>,
    measured_at: Option<Duration>,
    /// Until when the last grant holds.
    until: Option<Duration>,
    /// That have a share in this limit, as last known; 0 before the first answer.
    proxies: u32,
}

/// How much of a limit is asked for, under one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Which one.
    pub key: Key,
    /// In millionths of the limit; may be more than all of it.
    pub demand: u32,
}

/// What the control plane answered.
#[derive(Clone, Debug, Default)]
pub struct Granted {
    /// That have a share in this limit, this one included.
    pub proxies: u32,
    /// For how long it holds.
    pub valid_for: Duration,
    /// By key, in millionths of the limit.
    pub shares: FxHashMap<Key, u32>,
}

impl Lease {
    /// What to ask for, the busiest first: at most [`MOST_LEASED`]. To be called regularly.
    pub fn wishes(&mut self, counter: &Counter, rate: &Rate, now: Duration) -> Vec<Wish> {
        let passed = self.measured_at.map_or(MEMORY, |at| now.saturating_sub(at));
        self.measured_at = Some(now);
        let passed = passed.max(Duration::from_millis(1)).as_secs_f64();
        let kept = (-passed / MEMORY.as_secs_f64()).exp();
        let mut demand = FxHashMap::default();
        counter.visit(|key, bucket| {
            let seen = f64::from(bucket.take_wanted()) / passed;
            let before = self.demand.get(&key).copied().unwrap_or(0.0);
            let smoothed = seen.max(seen + (before - seen) * kept);
            if smoothed > 0.0 {
                demand.insert(key, smoothed);
            }
        });
        let wish =
            |(key, demand): (&Key, &f64)| Wish { key: *key, demand: rate.millionths(*demand) };
        let mut wishes: Vec<Wish> = demand.iter().map(wish).collect();
        wishes.retain(|wish| wish.demand > FORGOTTEN);
        wishes.sort_unstable_by_key(|wish| (std::cmp::Reverse(wish.demand), wish.key));
        wishes.truncate(MOST_LEASED);
        // Lower ones are small enough to be met anew.
        demand.retain(|_, demand| rate.millionths(*demand) > FORGOTTEN);
        self.demand = demand;
        wishes
    }

    /// Takes up what was granted; whatever is not in it has the local share.
    pub fn grant(&mut self, counter: &Counter, rate: &Rate, granted: &Granted, now: Duration) {
        self.proxies = granted.proxies.max(1);
        self.until = Some(now.saturating_add(granted.valid_for));
        let local = self.local_share();
        counter.set_first_share(local);
        counter.visit(|key, bucket| {
            let share = granted.shares.get(&key);
            let share = share.map_or(local, |share| Share::of_millionths(*share));
            bucket.set_share(rate, share, now);
        });
    }

    /// Goes back to the local share where the grant has run out. Whether it did just now.
    pub fn expire(&mut self, counter: &Counter, rate: &Rate, now: Duration) -> bool {
        if self.until.is_none_or(|until| now < until) {
            return false;
        }
        self.until = None;
        let local = self.local_share();
        counter.set_first_share(local);
        counter.visit(|_, bucket| bucket.set_share(rate, local, now));
        true
    }

    /// Whether a grant holds.
    pub fn is_granted(&self) -> bool {
        self.until.is_some()
    }

    /// What this proxy takes without being granted more: never nothing, never everything unless it is alone.
    fn local_share(&self) -> Share {
        if self.proxies == 0 { FIRST_SHARE } else { Share::among(self.proxies) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::filter::rate_limit::{
        bucket::{Bucket, Verdict},
        counter::{ONLY, Tables},
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn granted(proxies: u32, shares: &[(Key, u32)]) -> Granted {
        Granted { proxies, valid_for: 2 * SECOND, shares: shares.iter().copied().collect() }
    }

    /// Asks so often at a time: how many were admitted.
    fn admitted(counter: &Arc<Counter>, rate: &Rate, key: Key, now: Duration, times: u32) -> usize {
        let mut tables = Tables::default();
        let take = |bucket: &Bucket| {
            bucket.want();
            let rate = rate.part(bucket.share());
            bucket.take(&rate, now, 1).verdict == Verdict::Admitted
        };
        (0..times).filter(|_| counter.with(key, &mut tables, now, take)).count()
    }

    #[test]
    fn from_first_to_granted_to_local() {
        let rate = Rate::new(100, SECOND, 100);
        let counter = Arc::new(Counter::new(rate, false, true));
        let mut lease = Lease::default();
        assert_eq!(lease.wishes(&counter, &rate, SECOND), []);
        assert_eq!(admitted(&counter, &rate, ONLY, SECOND, 200), 10, "a tenth");
        let wishes = lease.wishes(&counter, &rate, 2 * SECOND);
        assert_eq!(wishes, [Wish { key: ONLY, demand: 2_000_000 }], "twice the limit");
        lease.grant(&counter, &rate, &granted(4, &[(ONLY, 700_000)]), 2 * SECOND);
        // What there was stays as many units: ten came back in the second before.
        assert_eq!(admitted(&counter, &rate, ONLY, 2 * SECOND, 200), 10);
        assert_eq!(admitted(&counter, &rate, ONLY, 3 * SECOND, 200), 70);
        assert!(!lease.expire(&counter, &rate, 3 * SECOND) && lease.is_granted());
        assert!(lease.expire(&counter, &rate, 4 * SECOND) && !lease.is_granted());
        assert!(!lease.expire(&counter, &rate, 5 * SECOND), "only once");
        admitted(&counter, &rate, ONLY, 5 * SECOND, 200);
        assert_eq!(admitted(&counter, &rate, ONLY, 6 * SECOND, 200), 25, "a quarter");
    }

    #[test]
    fn the_busiest_keys_are_leased_and_the_others_have_the_local_share() {
        let rate = Rate::new(10, SECOND, 10);
        let counter = Arc::new(Counter::new(rate, true, true));
        let mut lease = Lease::default();
        lease.grant(&counter, &rate, &granted(2, &[]), SECOND);
        lease.wishes(&counter, &rate, SECOND);
        for key in 1..=1_000 {
            let times = if key % 10 == 0 { 8 } else { 1 };
            assert!(admitted(&counter, &rate, key, SECOND, times) <= 5, "half of ten");
        }
        let wishes = lease.wishes(&counter, &rate, 2 * SECOND);
        assert_eq!(wishes.len(), MOST_LEASED);
        assert!(wishes[..100].iter().all(|wish| wish.key % 10 == 0 && wish.demand == 800_000));
        lease.grant(&counter, &rate, &granted(2, &[(10, 900_000)]), 2 * SECOND);
        let share = |wanted: Key| {
            let mut share = None;
            counter.visit(|key, bucket| {
                if key == wanted {
                    share = Some(bucket.share());
                }
            });
            share
        };
        assert_eq!(share(10), Some(Share::of_millionths(900_000)));
        assert_eq!(share(20), Some(Share::among(2)));
        // Nobody asks any more.
        let quiet = (3..20).map(|second| lease.wishes(&counter, &rate, second * SECOND));
        assert_eq!(quiet.last().map(|wishes| wishes.len()), Some(0));
        assert!(lease.demand.is_empty());
    }

    #[test]
    fn shares_going_to_and_fro_make_no_requests() {
        let rate = Rate::new(100, SECOND, 100);
        let counters: Vec<_> = (0..2).map(|_| Arc::new(Counter::new(rate, false, true))).collect();
        let mut leases = [Lease::default(), Lease::default()];
        let mut all = 0;
        for step in 0..400_u32 {
            let now = SECOND + step * Duration::from_millis(50);
            let shares = if step % 2 == 0 { [900_000, 100_000] } else { [100_000, 900_000] };
            for (at, lease) in leases.iter_mut().enumerate() {
                lease.grant(&counters[at], &rate, &granted(2, &[(ONLY, shares[at])]), now);
            }
            for counter in &counters {
                all += admitted(counter, &rate, ONLY, now, 20);
            }
        }
        // Twenty seconds, and what there was at first.
        assert!((1_800..=2_120).contains(&all), "{all}");
    }
}
