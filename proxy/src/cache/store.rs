//! Stored responses, in memory, within a bound on bytes, shared by all workers.
//!
//! What is stored for one URL is one shelf: all its variants, and those of every audience. So a change at the origin makes
//! all of them void at once, and nobody looks for them. Shelves are never changed, only replaced.

use std::{
    hash::BuildHasher as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, StatusCode};
use quick_cache::{Lifecycle, OptionsBuilder, Weighter, sync::Cache};
use rustc_hash::FxBuildHasher;

use super::{
    body::StoredBody,
    policy::{directives::Directives, freshness::Freshness, variants::Selection},
};

/// Responses for one URL, and those of them for the same parts of the key: variants. The oldest makes room. Each request
/// looks through the first, at two numbers a nanosecond; of the second it compares fields.
const MOST_ON_A_SHELF: usize = 1024;
const MOST_VARIANTS: usize = 64;
/// About what a shelf or a response takes beside its bytes.
const OVERHEAD: usize = 512;
/// The same of a field.
const FIELD: usize = 112;
/// The store expects responses of about this many bytes; a wrong guess costs some memory, nothing else.
const USUAL_SIZE: u64 = 8 * 1024;
/// So many of the largest responses fit into a part of the store, or it would be emptied by one.
const OBJECTS_IN_A_SHARD: u64 = 8;
/// Beyond that more locks are of no use.
const MOST_SHARDS: usize = 64;
const LEAST_IN_A_SHARD: usize = 32;

/// For whom a response may be used.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Audience {
    /// Anybody: the origin says so.
    Everybody,
    /// The workload for which it was fetched.
    Only(Arc<str>),
}

impl Audience {
    /// Whether `identity` is one of them.
    pub fn includes(&self, identity: &str) -> bool {
        match self {
            Self::Everybody => true,
            Self::Only(one) => **one == *identity,
        }
    }
}

/// A response as it is kept.
#[derive(Debug)]
pub struct Stored {
    /// For whom.
    pub audience: Audience,
    /// Parts of requests that the policy adds to the key.
    pub extra: Arc<[u8]>,
    /// Fields of the request that selected it.
    pub selection: Selection,
    /// Its status.
    pub status: StatusCode,
    /// Its fields, without those of the hop.
    pub headers: HeaderMap,
    /// What it says of caches.
    pub directives: Directives,
    /// How long it is good for.
    pub freshness: Freshness,
    /// For purging.
    pub tags: Arc<[Box<str>]>,
    /// All of it is there.
    pub body: Arc<StoredBody>,
}

impl Stored {
    /// Bytes it takes, about.
    pub fn size(&self) -> usize {
        self.body.len() + self.size_of_head()
    }

    /// The same without the body.
    pub fn size_of_head(&self) -> usize {
        let fields: usize = self
            .headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + FIELD)
            .sum();
        let tags: usize = self.tags.iter().map(|tag| tag.len() + 16).sum();
        fields + tags + self.selection.size() + self.extra.len() + OVERHEAD
    }

    /// Whether it takes the place of `other`.
    fn replaces(&self, other: &Self) -> bool {
        self.audience == other.audience
            && self.extra == other.extra
            && self.selection == other.selection
    }
}

/// What is kept for one URL; the newest first. Before each response stands the hash of its `extra`.
#[derive(Clone, Debug, Default)]
pub struct Shelf(Arc<[(u64, Arc<Stored>)]>, Ballast);

/// Bytes that a shelf only pretends to take, so that others make room.
#[derive(Clone, Copy, Debug, Default)]
struct Ballast(u64);

impl Shelf {
    /// Those that a request of `identity` may get and selects, the newest first.
    pub fn select<'a>(
        &'a self,
        identity: &'a str,
        extra: &'a [u8],
        request: &'a HeaderMap,
    ) -> impl Iterator<Item = &'a Arc<Stored>> {
        self.of_audience(identity, extra).filter(|stored| stored.selection.matches(request))
    }

    /// Those that `identity` may get, selected or not: their tags are asked about with the one that is.
    pub fn of_audience<'a>(
        &'a self,
        identity: &'a str,
        extra: &'a [u8],
    ) -> impl Iterator<Item = &'a Arc<Stored>> {
        let sought = hash(extra);
        let same = move |(hash, _): &&(u64, Arc<Stored>)| *hash == sought;
        let for_it = move |stored: &&Arc<Stored>| {
            stored.audience.includes(identity) && *stored.extra == *extra
        };
        self.0.iter().filter(same).map(|(_, stored)| stored).filter(for_it)
    }

    /// Without those that are void.
    fn without(&self, is_void: impl Fn(&Arc<Stored>) -> bool) -> Self {
        let left = self.0.iter().filter(|(_, stored)| !is_void(stored)).cloned().collect();
        Self(left, Ballast::default())
    }

    /// What is more than `most_bytes` with the new one, or too many, goes; the oldest first.
    fn with(&self, new: Arc<Stored>, most_bytes: u64) -> Self {
        let others = self.0.iter().filter(|(_, stored)| !new.replaces(stored));
        let (key, mut same) = (hash(&new.extra), 1);
        let others = others.filter(|(hash, _)| {
            same += usize::from(*hash == key);
            *hash != key || same <= MOST_VARIANTS
        });
        let mut bytes = new.size() as u64;
        let fits = |(_, stored): &&(u64, Arc<Stored>)| {
            bytes = bytes.saturating_add(stored.size() as u64);
            bytes <= most_bytes
        };
        let kept = others.take(MOST_ON_A_SHELF - 1).take_while(fits).cloned();
        Self(std::iter::once((key, new.clone())).chain(kept).collect(), Ballast::default())
    }

    fn size(&self, url: &str) -> u64 {
        let all: usize = self.0.iter().map(|(_, stored)| stored.size()).sum();
        self.1.0 + (all + url.len() + OVERHEAD) as u64
    }
}

/// How much, and how often it was of use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// URLs.
    pub urls: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// Bytes that there may be.
    pub most_bytes: u64,
    /// URLs that had to make room.
    pub evicted: u64,
}

/// All that is kept.
#[derive(Debug)]
pub struct Store {
    shelves: Cache<Arc<str>, Shelf, BySize, FxBuildHasher, Evicted>,
    evicted: Arc<AtomicU64>,
    /// How often room was made, so that it is made everywhere in turn.
    turns: AtomicU64,
}

impl Store {
    /// In how many parts a store is divided, each with a lock and a share of the bytes of its own, such that several of
    /// the largest responses fit into each.
    pub fn shards(most_bytes: u64, most_object_bytes: u64) -> usize {
        let fits = most_bytes / most_object_bytes.max(1) / OBJECTS_IN_A_SHARD;
        usize::try_from(fits).unwrap_or(MOST_SHARDS).clamp(1, MOST_SHARDS).next_power_of_two()
    }

    /// For at most so many bytes.
    pub fn new(most_bytes: u64, shards: usize) -> Self {
        let evicted = Arc::<AtomicU64>::default();
        // A shard for fewer responses than this is merged with another by the library.
        let least = shards.saturating_mul(LEAST_IN_A_SHARD);
        let usual = usize::try_from(most_bytes / USUAL_SIZE).unwrap_or(usize::MAX);
        let options = OptionsBuilder::new()
            .shards(shards)
            .weight_capacity(most_bytes)
            .estimated_items_capacity(usual.clamp(least, 1 << 20))
            .build();
        let on_evict = Evicted(evicted.clone());
        let shelves = match options {
            Ok(options) => Cache::with_options(options, BySize, FxBuildHasher, on_evict),
            // Not without both capacities, which stand above.
            Err(_) => Cache::with(least, most_bytes, BySize, FxBuildHasher, on_evict),
        };
        Self { shelves, evicted, turns: AtomicU64::default() }
    }

    /// Has about so many bytes go, the least wanted ones of a part of the store, for what is arriving. (A lower capacity
    /// for a moment would do the same, but costs the library what it remembers of those that are gone.)
    pub fn make_room(&self, bytes: u64) {
        let parts = self.shelves.num_shards() as u64;
        let unused = self.shelves.capacity().saturating_sub(self.shelves.weight()) / parts.max(1);
        let turn = self.turns.fetch_add(1, Ordering::Relaxed) % (4 * parts);
        // No shelf has such a name. Which part of the store it belongs to is as good as random.
        let name: Arc<str> = format!("\0{turn}").into();
        // What is larger than a part would be refused.
        let most = self.shelves.shard_capacity().saturating_sub(2 * OVERHEAD as u64);
        let ballast = Shelf(Arc::default(), Ballast(bytes.saturating_add(unused).min(most)));
        self.shelves.insert(name.clone(), ballast);
        self.shelves.remove(&*name);
    }

    /// Whether it has so many shards.
    pub fn has_shards(&self, shards: usize) -> bool {
        self.shelves.num_shards() == shards
    }

    /// From now on for at most so many bytes.
    pub fn set_most(&self, most_bytes: u64) {
        if self.shelves.capacity() != most_bytes {
            self.shelves.set_capacity(most_bytes);
        }
    }

    /// What is kept for a URL.
    pub fn look_up(&self, url: &str) -> Option<Shelf> {
        self.shelves.get(url)
    }

    /// Keeps a response in the place of the one that it replaces. What is larger than a share of the store is not kept.
    pub fn keep(&self, url: &Arc<str>, stored: Arc<Stored>) {
        // Not all of a share for one URL: what is larger than its share is not kept at all.
        let most = self.shelves.capacity() / (self.shelves.num_shards() as u64).max(1) / 2;
        let shelf = self.shelves.peek(&**url).unwrap_or_default().with(stored, most);
        self.put(url.clone(), shelf);
    }

    /// Makes everything for a URL void. Says how much that was.
    pub fn remove(&self, url: &str) -> usize {
        self.shelves.remove(url).map_or(0, |(_, shelf)| shelf.0.len())
    }

    /// Makes one response void, if it is still there.
    pub fn discard(&self, url: &Arc<str>, stored: &Arc<Stored>) {
        let Some(shelf) = self.shelves.peek(&**url) else { return };
        let left = shelf.without(|one| Arc::ptr_eq(one, stored));
        match left.0.len() {
            0 => drop(self.shelves.remove(&**url)),
            count if count < shelf.0.len() => self.put(url.clone(), left),
            _ => {}
        }
    }

    /// Makes everything void that `is_void` says, by URL and response. Says how much that was.
    pub fn purge<T>(&self, lock: impl Fn() -> T, is_void: impl Fn(&str, &Stored) -> bool) -> usize {
        let mut count = 0;
        let concerned = self.shelves.iter().filter_map(|(url, shelf)| {
            shelf.0.iter().any(|(_, stored)| is_void(&url, stored)).then_some(url)
        });
        let concerned: Vec<_> = concerned.collect();
        for url in concerned {
            // Nothing is kept between the look and the change.
            let _held = lock();
            let Some(shelf) = self.shelves.peek(&*url) else { continue };
            let kept = shelf.without(|stored| is_void(&url, stored));
            count += shelf.0.len() - kept.0.len();
            match kept.0.is_empty() {
                true => drop(self.shelves.remove(&*url)),
                false => self.put(url, kept),
            }
        }
        count
    }

    fn put(&self, url: Arc<str>, shelf: Shelf) {
        let there = self.shelves.peek(&*url).is_some();
        self.shelves.insert(url, shelf);
        if there {
            // What was replaced counts as evicted for the library.
            self.evicted.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// How much there is.
    pub fn figures(&self) -> Figures {
        Figures {
            urls: self.shelves.len() as u64,
            bytes: self.shelves.weight(),
            most_bytes: self.shelves.capacity(),
            evicted: self.evicted.load(Ordering::Relaxed),
        }
    }

    /// The oldest response that is still good at `now`, for people.
    pub fn oldest(&self, now: Duration) -> Option<Duration> {
        let ages = self.shelves.iter().flat_map(|(_, shelf)| {
            shelf.0.iter().map(|(_, stored)| stored.freshness.age(now)).collect::<Vec<_>>()
        });
        ages.filter(|age| *age != Duration::MAX).max()
    }
}

/// Of the parts of a key: only to look faster, they are compared all the same.
fn hash(extra: &[u8]) -> u64 {
    FxBuildHasher.hash_one(extra)
}

#[derive(Clone, Debug)]
struct BySize;

impl Weighter<Arc<str>, Shelf> for BySize {
    fn weight(&self, url: &Arc<str>, shelf: &Shelf) -> u64 {
        shelf.size(url)
    }
}

#[derive(Clone, Debug)]
struct Evicted(Arc<AtomicU64>);

impl Lifecycle<Arc<str>, Shelf> for Evicted {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), _url: Arc<str>, _shelf: Shelf) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderValue;

    use super::*;
    use crate::cache::policy::freshness::Times;

    fn stored(audience: Audience, extra: &[u8], body: &str, vary: Option<&str>) -> Arc<Stored> {
        let (mut response, mut request) = (HeaderMap::new(), HeaderMap::new());
        if let Some(value) = vary {
            response.insert("vary", HeaderValue::from_static("x-a"));
            request.insert("x-a", value.parse().unwrap());
        }
        let (directives, target) = Directives::of_response(&response);
        let times = Times { requested: Duration::ZERO, received: Duration::ZERO };
        Arc::new(Stored {
            audience,
            extra: extra.into(),
            selection: Selection::of(&response, &request).unwrap(),
            status: StatusCode::OK,
            freshness: super::super::policy::freshness::of_response(
                StatusCode::OK,
                &response,
                &directives,
                target,
                times,
                None,
            ),
            headers: response,
            directives,
            tags: ["a".into()].into(),
            body: Arc::new(StoredBody::whole(Bytes::copy_from_slice(body.as_bytes()), None)),
        })
    }

    fn found(store: &Store, identity: &str, extra: &[u8], x_a: Option<&str>) -> Vec<Bytes> {
        let mut request = HeaderMap::new();
        if let Some(value) = x_a {
            request.insert("x-a", value.parse().unwrap());
        }
        let shelf = store.look_up("u").unwrap_or_default();
        let bodies = shelf.select(identity, extra, &request);
        bodies.map(|stored| stored.body.get().unwrap().joined()).collect()
    }

    #[test]
    fn nobody_gets_what_was_fetched_for_another() {
        let (store, url) = (Store::new(1 << 20, 1), Arc::from("u"));
        store.keep(&url, stored(Audience::Only("a".into()), b"", "of a", None));
        store.keep(&url, stored(Audience::Only("b".into()), b"", "of b", None));
        assert_eq!(found(&store, "a", b"", None), ["of a"]);
        assert_eq!(found(&store, "b", b"", None), ["of b"]);
        assert!(found(&store, "c", b"", None).is_empty());
        assert!(found(&store, "", b"", None).is_empty());
        store.keep(&url, stored(Audience::Everybody, b"", "of all", None));
        assert_eq!(found(&store, "c", b"", None), ["of all"]);
        assert!(found(&store, "c", b"x", None).is_empty());
    }

    #[test]
    fn variants_stand_side_by_side_and_the_newest_first() {
        let (store, url) = (Store::new(1 << 20, 1), Arc::from("u"));
        for (body, vary) in [("1", "one"), ("2", "two"), ("3", "one")] {
            store.keep(&url, stored(Audience::Everybody, b"", body, Some(vary)));
        }
        assert_eq!(found(&store, "a", b"", Some("one")), ["3"]);
        assert_eq!(found(&store, "a", b"", Some("two")), ["2"]);
        assert!(found(&store, "a", b"", None).is_empty());
        for i in 0..2 * MOST_VARIANTS {
            store.keep(&url, stored(Audience::Everybody, b"", "x", Some(&format!("v{i}"))));
        }
        let shelf = store.look_up("u").unwrap();
        assert_eq!(shelf.of_audience("a", b"").count(), MOST_VARIANTS);
        assert_eq!(store.figures().evicted, 0, "who is replaced did not have to make room");
        assert_eq!(store.remove("u"), MOST_VARIANTS);
        assert!(store.look_up("u").is_none());
    }

    /// Of one part of the key there are so many variants; another part's are not counted with them.
    #[test]
    fn parts_of_the_key_do_not_push_each_other_out() {
        let (store, url) = (Store::new(64 << 20, 1), Arc::from("u"));
        let tenant = |number: usize| format!("tenant {number}").into_bytes();
        for number in 0..MOST_ON_A_SHELF + 1 {
            store.keep(&url, stored(Audience::Everybody, &tenant(number), "x", None));
        }
        for i in 0..2 * MOST_VARIANTS {
            let vary = format!("v{i}");
            store.keep(&url, stored(Audience::Everybody, &tenant(7), "x", Some(&vary)));
        }
        let shelf = store.look_up("u").unwrap();
        let count = |number: usize| shelf.of_audience("a", &tenant(number)).count();
        assert_eq!((count(7), count(MOST_ON_A_SHELF)), (MOST_VARIANTS, 1));
        assert_eq!(shelf.0.len(), MOST_ON_A_SHELF);
        assert_eq!(count(0), 0, "the oldest made room");
        assert!((500..MOST_ON_A_SHELF).all(|number| count(number) > 0));
    }

    #[test]
    fn one_alone_can_be_void() {
        let (store, url) = (Store::new(1 << 20, 1), Arc::from("u"));
        for vary in ["one", "two"] {
            store.keep(&url, stored(Audience::Everybody, b"", vary, Some(vary)));
        }
        let one = store.look_up("u").unwrap().0[1].1.clone();
        store.discard(&url, &one);
        assert!(found(&store, "a", b"", Some("one")).is_empty());
        assert_eq!(found(&store, "a", b"", Some("two")), ["two"]);
        store.discard(&url, &one);
        assert_eq!(store.figures().urls, 1);
        let two = store.look_up("u").unwrap().0[0].1.clone();
        store.discard(&url, &two);
        assert_eq!(store.figures().urls, 0);
    }

    #[test]
    fn there_is_never_more_than_fits() {
        let store = Store::new(1 << 20, 1);
        let body = "x".repeat(10_000);
        for i in 0..1_000 {
            let url = Arc::from(format!("u{i}"));
            store.keep(&url, stored(Audience::Everybody, b"", &body, None));
            assert!(store.figures().bytes <= 1 << 20);
        }
        let figures = store.figures();
        assert!(figures.urls > 50 && figures.evicted > 800, "{figures:?}");
        // Larger than all: not kept, and nothing is lost but what it replaces.
        store.keep(&Arc::from("u"), stored(Audience::Everybody, b"", &"x".repeat(2 << 20), None));
        assert!(store.look_up("u").is_none());
    }

    #[test]
    fn room_is_made_by_what_is_least_wanted() {
        for shards in [1, 4] {
            let store = Store::new(4 << 20, shards);
            let body = "x".repeat(10_000);
            for i in 0..1_000 {
                let url = Arc::from(format!("u{i}"));
                store.keep(&url, stored(Audience::Everybody, b"", &body, None));
                store.look_up("u0");
            }
            let before = store.figures();
            (0..10).for_each(|_| store.make_room(50_000));
            let after = store.figures();
            let gone = before.bytes - after.bytes;
            assert!((200_000..1_500_000).contains(&gone), "{gone} bytes of {before:?}");
            assert!(store.look_up("u0").is_some(), "it is wanted");
            assert_eq!(before.urls - after.urls, after.evicted - before.evicted);
        }
        // There is nothing to be had.
        Store::new(1 << 20, 1).make_room(1 << 30);
    }

    #[test]
    fn who_is_asked_for_again_stays_while_others_pass() {
        let store = Store::new(1 << 20, 1);
        let body = "x".repeat(10_000);
        let keep = |url: String| {
            store.keep(&Arc::from(url), stored(Audience::Everybody, b"", &body, None));
        };
        (0..20).for_each(|i| keep(format!("hot{i}")));
        for i in 0..2_000 {
            keep(format!("scan{i}"));
            if i % 10 == 0 {
                (0..20).for_each(|hot| drop(store.look_up(&format!("hot{hot}"))));
            }
        }
        let left = (0..20).filter(|hot| store.look_up(&format!("hot{hot}")).is_some()).count();
        assert!(left >= 18, "{left} of 20");
    }

    #[test]
    fn purging_says_how_much() {
        let (store, url) = (Store::new(1 << 20, 1), Arc::from("u"));
        store.keep(&url, stored(Audience::Everybody, b"", "1", Some("one")));
        store.keep(&url, stored(Audience::Everybody, b"", "2", Some("two")));
        store.keep(&Arc::from("v"), stored(Audience::Everybody, b"", "3", None));
        let tagged = |tag: &'static str| {
            move |_: &str, stored: &Stored| stored.tags.iter().any(|known| **known == *tag)
        };
        assert_eq!(store.purge(|| (), tagged("b")), 0);
        let one = |stored: &Stored| stored.body.get().unwrap().joined() == "1";
        assert_eq!(store.purge(|| (), |url, stored| url == "u" && one(stored)), 1);
        assert_eq!(store.purge(|| (), tagged("a")), 2);
        assert_eq!(store.figures().urls, 0);
    }
}
