//! Answers from our own memory: RFC 9111.
//!
//! - [`policy`]: what the RFC says (pure); [`key`]: under what a response is kept (pure).
//! - [`candidate`]: what of it a policy lets be kept (pure).
//! - [`store`]: what is kept, within bounds; [`body`]: bytes that are read while they arrive.
//! - [`fills`]: one fetch for many who want the same.
//! - [`status`]: what is said of it (`Cache-Status`); [`purge`]: what people want forgotten; [`figures`]: how much all this was of use.
//! - [`remote`]: what sidecars share, if the policy says where.

pub mod body;
pub mod candidate;
pub mod figures;
pub mod fills;
pub mod key;
pub mod policy;
pub mod purge;
pub mod remote;
pub mod status;
pub mod store;

use std::{
    hash::BuildHasher as _,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use http::HeaderMap;
use leno_api::model::cache_policy::CachePolicy;
use rustc_hash::FxBuildHasher;

use self::{
    body::{Room, StoredBody},
    figures::{Counters, Figures},
    fills::{Begun, Fills, Lead},
    key::{Key, Parts},
    purge::{Purge, What},
    remote::Remote,
    store::{Audience, Store, Stored},
};

/// For so long nobody waits for another's fetch of what turned out to be everybody's own.
const APART: Duration = Duration::from_secs(30);
/// So many such URLs are remembered.
const MOST_APART: usize = 4096;
/// What is arriving may drive out what is kept, but takes no more than this part of all: half.
const SHARE_OF_ARRIVING: u64 = 2;
/// So often room is made for one piece: what goes may still be read by somebody, and takes its room until then.
const MOST_TURNS: u32 = 4;
/// After so many answers to POST that could not have been answers to GET none is expected, until one comes.
const MOST_PLAIN_POSTS: u32 = 64;

/// What this proxy keeps under one policy.
#[derive(Debug)]
pub struct Cache {
    policy: Arc<CachePolicy>,
    parts: Parts,
    kept: Arc<Kept>,
    remote: Option<Remote>,
}

/// What survives a change of the policy.
#[derive(Debug)]
struct Kept {
    store: Store,
    fills: Arc<Fills>,
    room: Arc<Room>,
    counters: Counters,
    /// Answers to POST in a row, up to a bound, that could not have been answers to GET.
    plain_posts: AtomicU32,
    /// Until when (on our own clock) nobody waits for others, by the hash of the key.
    apart: quick_cache::sync::Cache<u64, Duration>,
}

/// How the requests of one port, or of one rule of its routes, are cached.
#[derive(Clone, Debug)]
pub struct Rules {
    /// By which policy, and where.
    pub cache: Arc<Cache>,
    /// The port that callers address: `shop/products:80`.
    pub service: Arc<str>,
}

impl Cache {
    /// For a policy that is new, or another version of that of `previous`: what that one has kept stays.
    pub fn new(policy: Arc<CachePolicy>, previous: Option<&Self>) -> Self {
        let shards = Store::shards(policy.max_bytes, policy.max_object_bytes);
        let kept = previous.map(|previous| &previous.kept);
        let kept = kept.filter(|kept| kept.store.has_shards(shards)).cloned();
        let kept = kept.unwrap_or_else(|| {
            Arc::new(Kept {
                store: Store::new(share_of_store(policy.max_bytes), shards),
                fills: Arc::default(),
                room: Arc::default(),
                counters: Counters::default(),
                plain_posts: AtomicU32::default(),
                apart: quick_cache::sync::Cache::new(MOST_APART),
            })
        });
        kept.store.set_most(share_of_store(policy.max_bytes));
        kept.room.set_store(policy.max_bytes);
        let parts = Parts::new(policy.key.clone());
        let remote = Remote::new(&policy, previous.and_then(|previous| previous.remote.as_ref()));
        Self { policy, parts, kept, remote }
    }

    /// By which it works.
    pub fn policy(&self) -> &Arc<CachePolicy> {
        &self.policy
    }

    /// What keys are made by.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// What is kept.
    pub fn store(&self) -> &Store {
        &self.kept.store
    }

    /// What sidecars share.
    pub fn remote(&self) -> Option<&Remote> {
        self.remote.as_ref()
    }

    /// Keeps a whole response from the origin, also where others find it.
    pub fn keep(&self, lead: Lead, stored: Arc<Stored>) {
        // Without what only parts fetches: readers ask for it as they look it up here.
        let key = Key { shelf: lead.shelf().clone(), extra: stored.extra.clone() };
        let seen = lead.keep(self.store(), stored.clone());
        if let (Some(remote), Some(seen)) = (&self.remote, seen) {
            remote.write(&key, seen, &stored);
        }
    }

    /// For bodies that arrive.
    pub fn room(&self) -> &Arc<Room> {
        &self.kept.room
    }

    /// Makes room for so many bytes more of a body that arrives, if need be by what is least wanted of what is kept. False
    /// if there is none.
    pub fn reserve(&self, body: &StoredBody, bytes: u64) -> bool {
        if body.reserve(bytes) {
            return true;
        }
        let (store, room) = (&self.kept.store, &self.kept.room);
        (0..MOST_TURNS).any(|_| {
            let arriving = room.taken().saturating_sub(store.figures().bytes);
            if arriving.saturating_add(bytes) > self.policy.max_bytes / SHARE_OF_ARRIVING {
                return false;
            }
            store.make_room(bytes);
            body.reserve(bytes)
        })
    }

    /// Whether the answer to a POST may turn out to be worth keeping: it costs a copy of the request to find out.
    pub fn expects_posts(&self) -> bool {
        self.kept.plain_posts.load(Ordering::Relaxed) < MOST_PLAIN_POSTS
    }

    /// An answer to a POST came, and says where what it brings can be had by GET, or does not.
    pub fn note_post(&self, brings: bool) {
        let plain = &self.kept.plain_posts;
        match brings {
            true => plain.store(0, Ordering::Relaxed),
            false if self.expects_posts() => drop(plain.fetch_add(1, Ordering::Relaxed)),
            false => {}
        }
    }

    /// Makes one response void: the origin has another answer now, which may not be kept.
    pub fn discard(&self, shelf: &Arc<str>, stored: &Arc<Stored>) {
        if let Some(remote) =
            self.remote.as_ref().filter(|_| stored.audience == Audience::Everybody)
        {
            remote.forget(shelf);
        }
        self.kept.fills.discard(&self.kept.store, shelf, stored);
    }

    /// What is counted.
    pub fn counters(&self) -> &Counters {
        &self.kept.counters
    }

    /// Begins a fetch, or joins one for the same key and identity that is not known to be for other requests than one
    /// with these fields. `now` is the time since the proxy began.
    pub fn begin(
        &self,
        key: &Key,
        identity: &Arc<str>,
        request: &HeaderMap,
        now: Duration,
    ) -> Begun {
        let share = !self.policy.collapse_wait.is_zero() && !self.is_apart(key, now);
        let fits = |stored: &store::Stored| stored.selection.matches(request);
        self.kept.fills.begin(key, identity, share, fits)
    }

    /// Begins a fetch for which nobody waits.
    pub fn begin_alone(&self, key: &Key, identity: &Arc<str>) -> Begun {
        self.kept.fills.begin(key, identity, false, |_| true)
    }

    /// Begins a fetch for which nobody waits yet, unless one is under way.
    pub fn begin_aside(&self, key: &Key, identity: &Arc<str>) -> Begun {
        self.kept.fills.begin(key, identity, true, |_| true)
    }

    /// What is behind this key was of use to nobody but whoever fetched it: for a while nobody waits for it.
    pub fn set_apart(&self, key: &Key, now: Duration) {
        self.kept.apart.insert(hash(key), now.saturating_add(APART));
    }

    fn is_apart(&self, key: &Key, now: Duration) -> bool {
        self.kept.apart.get(&hash(key)).is_some_and(|until| now < until)
    }

    /// Makes void what is kept, and what is on its way, for a path of a service's port.
    pub fn remove(&self, service: &str, target: &str) {
        let shelf = self.parts.shelf(service, target);
        // First where others look: who begins a fetch in between must not find it there again.
        if let Some(remote) = &self.remote {
            remote.forget(&shelf);
        }
        self.kept.fills.remove(&self.kept.store, &shelf);
    }

    /// Forgets what people want forgotten, here and where sidecars share. Says how many responses that were here.
    pub fn purge(&self, purge: &Purge) -> u64 {
        if let Some(remote) = &self.remote {
            match (self.as_kept(&purge.what), &purge.service) {
                (What::Path(path), Some(port)) if port.contains(':') => {
                    remote.forget(&format!("{port}{path}"));
                }
                // Where a prefix or a tag stands is not known there.
                (_, service) => remote.forget_service(service.as_deref()),
            }
        }
        self.purge_here(purge)
    }

    /// The same here alone.
    pub fn purge_here(&self, purge: &Purge) -> u64 {
        let path = self.as_kept(&purge.what);
        // Which tags a response on its way will have nobody knows.
        let may_be = |shelf: &str| {
            let (service, target) = key::split(shelf);
            purge.concerns(service) && (matches!(path, What::Tag(_)) || path.includes(target, &[]))
        };
        let is_void = |shelf: &str, stored: &store::Stored| {
            let (service, target) = key::split(shelf);
            purge.concerns(service) && path.includes(target, &stored.tags)
        };
        let count = self.kept.fills.purge(&self.kept.store, may_be, is_void) as u64;
        self.kept.counters.purged(count);
        count
    }

    /// A path as far as its query counts.
    fn as_kept(&self, what: &What) -> What {
        match what {
            What::Path(path) => What::Path(self.parts.shelf("", path)),
            what => what.clone(),
        }
    }

    /// How much there is and how much it was of use; `now` is the time since the Unix epoch.
    pub fn figures(&self, now: Duration) -> Figures {
        let mut store = self.kept.store.figures();
        store.most_bytes = self.policy.max_bytes;
        self.kept.counters.figures(&store, self.kept.store.oldest(now))
    }
}

/// What is arriving needs room while the store is full, at least for one of the largest responses, which are an eighth
/// of all: this tenth, and the tenth that there may be more.
fn share_of_store(most_bytes: u64) -> u64 {
    most_bytes - most_bytes / 10
}

fn hash(key: &Key) -> u64 {
    FxBuildHasher.hash_one((&key.shelf, &key.extra))
}
