//! Keys of issuers, fetched from their `jwksUri` by a task of the side thread and read by workers without a lock.
//!
//! Keys that were good once stay until better ones come: an issuer that is down, or answers nonsense, locks nobody out.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwapOption, Guard};
use futures_util::{StreamExt, stream::FuturesUnordered};
use http::Uri;
use serde::Serialize;
use tokio::{sync::Notify, time::Instant};

use super::verify::KeySet;
use crate::http::fetch::Fetcher;

/// Issuers whose keys are fetched. Each may hold 1 MiB of answer for a moment, and keys for good.
pub const MAX_URIS: usize = 64;

/// How often keys are fetched.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// While all is well; give or take a tenth, so that proxies do not ask together.
    pub refresh: Duration,
    /// At the earliest after the fetch before, whatever tokens name which keys. Also the first pause after a failure; it
    /// doubles up to `refresh`.
    pub at_most: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { refresh: Duration::from_secs(300), at_most: Duration::from_secs(10) }
    }
}

/// All issuers' keys. Those that no rule names any more are forgotten.
#[derive(Debug)]
pub struct KeyCache {
    issuers: Mutex<BTreeMap<Arc<str>, Weak<RemoteKeys>>>,
    timing: Timing,
    /// Something is to be fetched.
    call: Arc<Notify>,
}

/// The keys behind one `jwksUri`.
#[derive(Debug)]
pub struct RemoteKeys {
    uri: Arc<str>,
    keys: ArcSwapOption<KeySet>,
    failure: ArcSwapOption<String>,
    wanted: AtomicBool,
    call: Arc<Notify>,
}

/// For the admin endpoint.
#[derive(Clone, Debug, Serialize)]
pub struct KeyStatus {
    /// Where.
    pub uri: Arc<str>,
    /// Usable keys; none before the first fetch.
    pub keys: usize,
    /// Why the last fetch failed.
    pub last_error: Option<String>,
}

/// When one issuer is asked next.
struct Plan {
    next: Instant,
    last: Option<Instant>,
    failures: u32,
    fetching: bool,
}

impl KeyCache {
    /// Empty; [`KeyCache::run`] fills it.
    pub fn new(timing: Timing) -> Arc<Self> {
        Arc::new(Self { issuers: Mutex::default(), timing, call: Arc::default() })
    }

    /// The keys behind `uri`: those that are there already, or a place into which they will be fetched. `None` when
    /// [`MAX_URIS`] others are in use.
    pub fn keys(&self, uri: &str) -> Option<Arc<RemoteKeys>> {
        let mut issuers = self.issuers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = issuers.get(uri).and_then(Weak::upgrade) {
            return Some(keys);
        }
        issuers.retain(|_, keys| keys.strong_count() > 0);
        if issuers.len() >= MAX_URIS {
            return None;
        }
        let uri: Arc<str> = uri.into();
        let keys = Arc::new(RemoteKeys {
            uri: uri.clone(),
            keys: ArcSwapOption::empty(),
            failure: ArcSwapOption::empty(),
            // Also when its predecessor of the same name was fetched a minute ago.
            wanted: AtomicBool::new(true),
            call: self.call.clone(),
        });
        issuers.insert(uri, Arc::downgrade(&keys));
        self.call.notify_one();
        Some(keys)
    }

    /// What is known of every issuer in use.
    pub fn status(&self) -> Vec<KeyStatus> {
        self.in_use().iter().map(|keys| keys.status()).collect()
    }

    /// Fetches, for ever.
    pub async fn run(self: Arc<Self>, fetcher: Fetcher) {
        let mut plans: BTreeMap<Arc<str>, Plan> = BTreeMap::new();
        let mut fetches = FuturesUnordered::new();
        loop {
            let now = Instant::now();
            let in_use = self.in_use();
            plans.retain(|uri, _| in_use.iter().any(|keys| keys.uri == *uri));
            for keys in in_use {
                let plan = plans.entry(keys.uri.clone()).or_insert_with(|| Plan::new(now));
                if plan.begins(now, &keys, self.timing) {
                    fetches.push(fetch(keys, &fetcher));
                }
            }
            let next = plans.values().filter(|plan| !plan.fetching).map(|plan| plan.next).min();
            tokio::select! {
                () = self.call.notified() => {}
                () = sleep_until(next) => {}
                Some((uri, good)) = fetches.next(), if !fetches.is_empty() => {
                    if let Some(plan) = plans.get_mut(&uri) {
                        plan.ended(Instant::now(), good, self.timing);
                    }
                }
            }
        }
    }

    fn in_use(&self) -> Vec<Arc<RemoteKeys>> {
        let issuers = self.issuers.lock().unwrap_or_else(PoisonError::into_inner);
        issuers.values().filter_map(Weak::upgrade).collect()
    }
}

impl RemoteKeys {
    /// The newest keys; `None` before the first fetch.
    pub fn load(&self) -> Guard<Option<Arc<KeySet>>> {
        self.keys.load()
    }

    /// A token names a key that is not here: perhaps the issuer has new ones.
    pub fn want(&self) {
        if !self.wanted.swap(true, Ordering::Relaxed) {
            self.call.notify_one();
        }
    }

    fn status(&self) -> KeyStatus {
        KeyStatus {
            uri: self.uri.clone(),
            keys: self.load().as_ref().map_or(0, |keys| keys.len()),
            last_error: self.failure.load().as_deref().cloned(),
        }
    }

    /// Takes the answer, or why there is none. Says whether it was good.
    fn take(&self, answer: Result<KeySet, String>) -> bool {
        match answer {
            Ok(keys) => {
                if self.failure.swap(None).is_some() {
                    tracing::info!("keys of {} are fetched again: {}", self.uri, keys.len());
                }
                self.keys.store(Some(Arc::new(keys)));
                true
            }
            Err(reason) => {
                let then = match &*self.load() {
                    Some(_) => "the old ones stay in use",
                    None => "tokens of this issuer are refused",
                };
                tracing::warn!("keys cannot be fetched from {}: {reason}; {then}", self.uri);
                self.failure.store(Some(Arc::new(reason)));
                false
            }
        }
    }
}

impl Plan {
    fn new(now: Instant) -> Self {
        Self { next: now, last: None, failures: 0, fetching: false }
    }

    /// Whether `keys` are to be fetched now; then they count as being fetched.
    fn begins(&mut self, now: Instant, keys: &RemoteKeys, timing: Timing) -> bool {
        if self.fetching {
            return false;
        }
        if keys.wanted.load(Ordering::Relaxed) {
            let earliest = self.last.map_or(now, |last| last + timing.at_most);
            self.next = self.next.min(earliest);
        }
        if self.next > now {
            return false;
        }
        keys.wanted.store(false, Ordering::Relaxed);
        (self.fetching, self.last) = (true, Some(now));
        true
    }

    fn ended(&mut self, now: Instant, good: bool, timing: Timing) {
        self.fetching = false;
        self.failures = if good { 0 } else { self.failures.saturating_add(1) };
        let pause = match self.failures {
            0 => timing.refresh,
            failures => timing.refresh.min(timing.at_most * (1 << (failures - 1).min(8))),
        };
        self.next = now + pause.mul_f64(rand::random_range(0.9..1.1));
    }
}

async fn fetch(keys: Arc<RemoteKeys>, fetcher: &Fetcher) -> (Arc<str>, bool) {
    let answer = async {
        let uri = Uri::try_from(&*keys.uri).map_err(|error| error.to_string())?;
        let text = fetcher.get(&uri).await.map_err(|error| error.to_string())?;
        KeySet::parse(&text).map_err(|error| error.to_string())
    };
    let good = keys.take(answer.await);
    (keys.uri.clone(), good)
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
