//! The second tier: a Redis that all sidecars share, for responses that are everybody's (`public`).
//!
//! - [`codec`]: a response as bytes (pure); [`keys`]: under what it is there (pure); [`scripts`]: what Redis is asked.
//! - [`link`]: the connection, and when there is none; [`rest`]: how long Redis is left alone (pure).
//! - [`pending`]: what Redis has yet to forget; [`keeper`]: the task that connects, writes and has things forgotten.
//!
//! **It is never in the way.** A request waits no longer than `spec.redis.timeout`, and not at all while there is no
//! connection: one is given up after [`link::MOST_FAILURES`] failures in a row, and the next is tried after a time that
//! grows up to [`rest::LONGEST`], once, by no request. What cannot be written soon is not written.
//!
//! **What is void stays void.** Each response carries what was in force when its fetch began: three epochs (of everything
//! under the policy, of the service, of its port) and the generation of its path, all random. A change at the origin gives
//! the path another generation, a purge one of the epochs another value; readers compare, and Redis itself refuses what
//! was fetched before. Both are read together with the response, so nothing void is used from the moment Redis has been
//! told. Until then (normally a round trip) the sidecar that knows does not read what is concerned, others may. Purges by
//! tag and by prefix make everything of the service void here.
//!
//! **Ages** are told by the clock of Redis alone: clocks of sidecars may differ.

pub mod codec;
pub mod keeper;
pub mod keys;
pub mod link;
pub mod pending;
pub mod rest;
pub mod scripts;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use http::{HeaderMap, HeaderValue, header};
use leno_api::model::cache_policy::{CachePolicy, Redis};
use tokio::{sync::mpsc, time::Instant};

use self::{
    codec::Entry,
    keys::Keys,
    link::{Failure, Link},
    pending::Pending,
    scripts::{Look, Reply},
};
use super::{
    key::{self, Key},
    policy::variants::Selection,
    store::{Audience, Stored},
};

/// Responses that wait to be written; their bodies are in memory as long.
const MOST_WAITING: usize = 64;
/// Their bytes, of what the policy lets be kept in memory: a sixty-fourth.
const SHARE_WAITING: u64 = 64;
/// A clock of Redis that went back so far is taken for right: it is read in microseconds and adjusted now and then.
const CLOCK_ERROR: Duration = Duration::from_secs(5);

/// What a policy's sidecars share.
#[derive(Debug)]
pub struct Remote {
    tier: Arc<Tier>,
    writes: mpsc::Sender<Write>,
    /// Until the keeper is started.
    waiting: Mutex<Option<mpsc::Receiver<Write>>>,
}

/// What requests and the keeper both use.
#[derive(Debug)]
struct Tier {
    policy: Arc<CachePolicy>,
    redis: Redis,
    keys: Keys,
    link: ArcSwapOption<Link>,
    pending: Arc<Pending>,
    counters: Counters,
    /// Bytes of responses that wait to be written.
    waiting: AtomicU64,
    state: AtomicU64,
}

#[derive(Debug, Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    errors: AtomicU64,
    dropped: AtomicU64,
}

/// How much it is of use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Requests for which there was a response.
    pub hits: u64,
    /// Requests for which there was none that could be used.
    pub misses: u64,
    /// Answers that did not come in time, or were none; connections that failed.
    pub errors: u64,
    /// Responses that were not written for want of time or room.
    pub dropped: u64,
    /// Where its breaker is: 0 closed (in use), 1 half-open (being tried), 2 open (left alone).
    pub state: u64,
}

/// What was in force when a fetch began. Its response is written only if it still is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    stamp: codec::Stamp,
    /// By the clock of Redis.
    time: Duration,
    at: Instant,
}

/// What Redis has for a request.
#[derive(Debug, Default)]
pub struct Found {
    /// For [`Remote::write`]; none if Redis was not asked, or did not answer.
    pub seen: Option<Seen>,
    /// A response, with its age now.
    pub entry: Option<Entry>,
}

/// A response to be written.
#[derive(Debug)]
struct Write {
    key: Key,
    seen: Seen,
    stored: Arc<Stored>,
    bytes: u64,
}

impl Remote {
    /// Of a policy that has one. What `previous` of the same policy has yet to have forgotten is taken over.
    pub fn new(policy: &Arc<CachePolicy>, previous: Option<&Self>) -> Option<Self> {
        let redis = policy.redis.clone()?;
        let keys = Keys::new(policy);
        let same = previous.filter(|previous| {
            previous.tier.redis.address == redis.address && previous.tier.keys == keys
        });
        let pending = same.map(|previous| previous.tier.pending.clone()).unwrap_or_default();
        let (writes, waiting) = mpsc::channel(MOST_WAITING);
        let tier = Tier {
            policy: policy.clone(),
            redis,
            keys,
            link: ArcSwapOption::empty(),
            pending,
            counters: Counters::default(),
            waiting: AtomicU64::new(0),
            state: AtomicU64::new(2),
        };
        Some(Self { tier: Arc::new(tier), writes, waiting: Mutex::new(Some(waiting)) })
    }

    /// Connects, by a task of its own that ends with `self`. Only the first call does anything; it needs a runtime.
    pub fn start(&self) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waiting) = waiting {
            drop(tokio::spawn(keeper::run(self.tier.clone(), waiting)));
        }
    }

    /// What there is for a request, as far as Redis says so in time.
    pub async fn ask(&self, key: &Key, request: &HeaderMap) -> Found {
        let tier = &*self.tier;
        let Some(link) = tier.link.load_full() else { return Found::default() };
        if tier.pending.concerns(&key.shelf) {
            return Found::default();
        }
        let result = link.within(tier.redis.timeout, tier.read(&link, key, request)).await;
        match result {
            Ok(found) => {
                let counters = &tier.counters;
                let counter = if found.entry.is_some() { &counters.hits } else { &counters.misses };
                counter.fetch_add(1, Ordering::Relaxed);
                found
            }
            Err(failure) => {
                tier.note(&failure);
                Found::default()
            }
        }
    }

    /// Has a response written soon if it is everybody's.
    pub fn write(&self, key: &Key, seen: Seen, stored: &Arc<Stored>) {
        let tier = &*self.tier;
        if stored.audience != Audience::Everybody || tier.link.load().is_none() {
            return;
        }
        let bytes = stored.size() as u64;
        let most = (tier.policy.max_bytes / SHARE_WAITING).max(2 * tier.policy.max_object_bytes);
        let write = Write { key: key.clone(), seen, stored: stored.clone(), bytes };
        let taken = tier.waiting.fetch_add(bytes, Ordering::Relaxed);
        if taken.saturating_add(bytes) > most || self.writes.try_send(write).is_err() {
            tier.waiting.fetch_sub(bytes, Ordering::Relaxed);
            tier.counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Has everything for a path forgotten.
    pub fn forget(&self, shelf: &str) {
        self.tier.pending.add_shelf(shelf);
    }

    /// Has everything of a service forgotten, with or without its port; without one, of all services.
    pub fn forget_service(&self, service: Option<&str>) {
        self.tier.pending.add_service(service.unwrap_or_default());
    }

    /// How much it is of use.
    pub fn figures(&self) -> Figures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.tier.counters;
        Figures {
            hits: read(&counters.hits),
            misses: read(&counters.misses),
            errors: read(&counters.errors),
            dropped: read(&counters.dropped),
            state: read(&self.tier.state),
        }
    }
}

impl Tier {
    async fn read(&self, link: &Link, key: &Key, request: &HeaderMap) -> Result<Found, Failure> {
        let began = Instant::now();
        let keys = self.keys.of(&key.shelf);
        let nothing = Selection::default().to_bytes();
        let mut digest = keys::digest(key, &nothing);
        let look = Look { keys: &keys, names: &keys::names_field(key), most: self.most_bytes() };
        let mut reply = look.plain(link, &digest).await?;
        let names = std::mem::take(&mut reply.names);
        if !names.is_empty() {
            // It varies: which one is this request's only the names say.
            let Some(selection) = selection_by(&names, request) else {
                return Ok(Found { seen: Some(reply.seen()), entry: None });
            };
            digest = keys::digest(key, &selection.to_bytes());
            reply = look.variant(link, &digest).await?;
        }
        let seen = reply.seen();
        let Some(bytes) = reply.entry.take() else {
            return Ok(Found { seen: Some(seen), entry: None });
        };
        let entry = match codec::decode(bytes, &digest, self.policy.max_object_bytes) {
            Ok(entry) => Some(entry),
            Err(fault) => {
                tracing::debug!("{}: what is in Redis is not used: {fault}", key.shelf);
                self.counters.errors.fetch_add(1, Ordering::Relaxed);
                None
            }
        };
        let entry = entry.filter(|entry| entry.stamp == seen.stamp);
        let entry = entry.filter(|entry| {
            let own = Selection::of(&entry.headers, request);
            own.is_some_and(|own| keys::digest(key, &own.to_bytes()) == digest)
        });
        let entry = entry.and_then(|entry| aged(entry, seen.time, began.elapsed()));
        Ok(Found { seen: Some(seen), entry })
    }

    /// Of a response with all that is written of it.
    fn most_bytes(&self) -> u64 {
        self.policy.max_object_bytes.saturating_add(codec::MOST_HEAD_BYTES)
    }

    fn note(&self, failure: &Failure) {
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        tracing::debug!("Redis at {}: {failure}", self.redis.address);
    }
}

impl Reply {
    /// Redis read its clock before now: what is reckoned from here is never later than what it says itself.
    fn seen(&self) -> Seen {
        Seen { stamp: self.stamp.clone(), time: self.time, at: Instant::now() }
    }
}

/// With its age when `waited` for it has passed; none of a response from the future.
fn aged(mut entry: Entry, time: Duration, waited: Duration) -> Option<Entry> {
    if entry.written > time.saturating_add(CLOCK_ERROR) {
        return None;
    }
    let elapsed = time.saturating_sub(entry.written);
    entry.age = entry.age.saturating_add(elapsed).saturating_add(waited);
    Some(entry)
}

/// Of a request to a URL whose responses vary by `names`.
fn selection_by(names: &[u8], request: &HeaderMap) -> Option<Selection> {
    let mut vary = HeaderMap::new();
    vary.insert(header::VARY, HeaderValue::from_bytes(names).ok()?);
    Selection::of(&vary, request)
}

/// The service with its port, and without, of a shelf.
fn services(shelf: &str) -> (&str, &str) {
    let (port, _) = key::split(shelf);
    (port.rsplit_once(':').map_or(port, |(service, _)| service), port)
}

#[cfg(test)]
mod tests;
