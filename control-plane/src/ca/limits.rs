//! How often certificates may be asked for. Pure: the time is an argument.
//!
//! Making a certificate costs about 100 µs (P-256). The whole authority takes half of what a core could do, one identity
//! at most half of that, and one proxy no more than it can need.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    time::{Duration, Instant},
};

/// Certificates a second, of all.
const ALL: Rate = Rate { burst: 1000.0, per_second: 500.0 };
/// Of one identity: a service that scales out, or one whose key was stolen, leaves half to the others.
const IDENTITY: Rate = Rate { burst: 500.0, per_second: 250.0 };
/// Of one proxy of an identity: it renews every few seconds at most, and tries again after failures.
const PROXY: Rate = Rate { burst: 10.0, per_second: 1.0 };
/// Calls from one address before anything is checked: many proxies may share one address.
const ADDRESS: Rate = Rate { burst: 1000.0, per_second: 500.0 };
/// Accounts kept of each kind. Those that are full again are dropped first: they say nothing.
const MAX_BUCKETS: usize = 20_000;

#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: f64,
    per_second: f64,
}

/// Which limit was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    #[error("this address calls too often, wait a second")]
    Address,
    #[error("this proxy asks for certificates too often, wait a second")]
    Proxy,
    #[error("proxies of this identity ask for certificates too often, wait a second")]
    Identity,
    #[error("the authority issues as many certificates as it can, wait a second")]
    All,
}

#[derive(Debug)]
pub struct Limits {
    all: Bucket,
    identities: Buckets<String>,
    proxies: Buckets<(String, String)>,
    addresses: Buckets<IpAddr>,
}

#[derive(Debug)]
struct Buckets<K> {
    rate: Rate,
    buckets: HashMap<K, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Limits {
    pub fn new(now: Instant) -> Self {
        Self {
            all: Bucket::full(ALL, now),
            identities: Buckets::new(IDENTITY),
            proxies: Buckets::new(PROXY),
            addresses: Buckets::new(ADDRESS),
        }
    }

    /// Before anything is known of the caller.
    ///
    /// # Errors
    /// [`Exceeded::Address`].
    pub fn call(&mut self, address: IpAddr, now: Instant) -> Result<(), Exceeded> {
        // Whoever has IPv6 has a whole /64 to call from.
        let bucket = self.addresses.bucket(network(address), now).ok_or(Exceeded::Address)?;
        bucket.take(ADDRESS, now).then_some(()).ok_or(Exceeded::Address)
    }

    /// Before a certificate is made for a proven identity. What is refused costs nothing.
    ///
    /// # Errors
    /// Which limit was met.
    pub fn issue(&mut self, identity: &str, proxy: &str, now: Instant) -> Result<(), Exceeded> {
        let key = (identity.to_owned(), proxy.to_owned());
        let proxy = self.proxies.bucket(key, now).ok_or(Exceeded::All)?;
        let identity = self.identities.bucket(identity.to_owned(), now).ok_or(Exceeded::All)?;
        if !proxy.has(PROXY, now) {
            return Err(Exceeded::Proxy);
        }
        if !identity.has(IDENTITY, now) {
            return Err(Exceeded::Identity);
        }
        if !self.all.take(ALL, now) {
            return Err(Exceeded::All);
        }
        proxy.take(PROXY, now);
        identity.take(IDENTITY, now);
        Ok(())
    }
}

impl<K: Hash + Eq> Buckets<K> {
    fn new(rate: Rate) -> Self {
        Self { rate, buckets: HashMap::new() }
    }

    /// `None` where there are too many that are in use.
    fn bucket(&mut self, key: K, now: Instant) -> Option<&mut Bucket> {
        if self.buckets.len() >= MAX_BUCKETS && !self.buckets.contains_key(&key) {
            let rate = self.rate;
            self.buckets.retain(|_, bucket| !bucket.is_full(rate, now));
            if self.buckets.len() >= MAX_BUCKETS {
                return None;
            }
        }
        Some(self.buckets.entry(key).or_insert_with(|| Bucket::full(self.rate, now)))
    }
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: rate.burst, at: now }
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let since: Duration = now.saturating_duration_since(self.at);
        self.tokens = (self.tokens + since.as_secs_f64() * rate.per_second).min(rate.burst);
        self.at = self.at.max(now);
    }

    fn has(&mut self, rate: Rate, now: Instant) -> bool {
        self.refill(rate, now);
        self.tokens >= 1.0
    }

    fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let has = self.has(rate, now);
        if has {
            self.tokens -= 1.0;
        }
        has
    }

    fn is_full(mut self, rate: Rate, now: Instant) -> bool {
        self.refill(rate, now);
        self.tokens >= rate.burst
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_has_a_burst_and_then_one_a_second() {
        let start = Instant::now();
        let mut limits = Limits::new(start);
        for _ in 0..10 {
            limits.issue("a", "p", start).unwrap();
        }
        assert_eq!(limits.issue("a", "p", start), Err(Exceeded::Proxy));
        limits.issue("a", "q", start).unwrap();
        limits.issue("b", "p", start).unwrap();
        let later = start + Duration::from_secs(2);
        limits.issue("a", "p", later).unwrap();
        limits.issue("a", "p", later).unwrap();
        assert_eq!(limits.issue("a", "p", later), Err(Exceeded::Proxy));
    }

    #[test]
    fn one_identity_with_many_names_leaves_something_to_others() {
        let start = Instant::now();
        let mut limits = Limits::new(start);
        let made = (0..5000).filter(|n| limits.issue("a", &n.to_string(), start).is_ok()).count();
        assert_eq!(made, 500);
        assert_eq!(limits.issue("a", "new", start), Err(Exceeded::Identity));
        limits.issue("b", "new", start).unwrap();
    }

    #[test]
    fn all_together_have_a_limit() {
        let start = Instant::now();
        let mut limits = Limits::new(start);
        let made = (0..3000).filter(|n| limits.issue(&n.to_string(), "p", start).is_ok()).count();
        assert_eq!(made, 1000);
        assert_eq!(limits.issue("one more", "p", start), Err(Exceeded::All));
        limits.issue("one more", "p", start + Duration::from_secs(1)).unwrap();
    }

    #[test]
    fn addresses_are_limited_and_a_v6_network_is_one() {
        let start = Instant::now();
        let mut limits = Limits::new(start);
        let made = (0..2000u32)
            .filter(|n| limits.call(format!("2001:db8::{n:x}").parse().unwrap(), start).is_ok());
        assert_eq!(made.count(), 1000);
        let call = |limits: &mut Limits, a: &str| limits.call(a.parse().unwrap(), start);
        assert_eq!(call(&mut limits, "2001:db8::1"), Err(Exceeded::Address));
        call(&mut limits, "2001:db8:0:1::1").unwrap();
        call(&mut limits, "192.0.2.1").unwrap();
    }

    #[test]
    fn accounts_are_bounded_and_idle_ones_make_room() {
        let start = Instant::now();
        let mut buckets = Buckets::new(PROXY);
        for n in 0..MAX_BUCKETS {
            buckets.bucket(n, start).unwrap().take(PROXY, start);
        }
        assert!(buckets.bucket(MAX_BUCKETS, start).is_none());
        assert!(buckets.bucket(0, start).is_some(), "one that is there");
        let later = start + Duration::from_secs(1);
        assert!(buckets.bucket(MAX_BUCKETS, later).is_some());
        assert_eq!(buckets.buckets.len(), 1);
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing() {
        let start = Instant::now() + Duration::from_secs(100);
        let mut bucket = Bucket::full(PROXY, start);
        for _ in 0..10 {
            assert!(bucket.take(PROXY, start));
        }
        assert!(!bucket.take(PROXY, start - Duration::from_secs(50)));
        assert!(!bucket.take(PROXY, start));
    }
}
