//! The task of a second tier: connects, writes what is to be written, has forgotten what is void.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, header};
use tokio::{sync::mpsc, time};

use super::{
    Tier, Write,
    codec::{self, Entry},
    keys,
    link::{Failure, Link},
    pending::Void,
    rest::Rest,
    scripts::{self, EPOCH, Entering, LONGEST_FETCH},
};
use crate::cache::store::Stored;

/// What is good for less is not worth a write.
const SHORTEST: Duration = Duration::from_secs(1);
/// Of the names by which a response varies, in bytes; the script that reads knows it, too.
const MOST_NAMES: usize = 2048;

/// For people and figures.
#[derive(Clone, Copy, Debug)]
enum State {
    Used = 0,
    Tried = 1,
    Left = 2,
}

/// Why there is an end to a connection.
enum Ended {
    /// Nobody needs it any more.
    Unneeded,
    /// It was given up.
    GivenUp,
}

/// Runs until nobody can send anything any more.
pub(super) async fn run(tier: Arc<Tier>, writes: mpsc::Receiver<Write>) {
    keep(&tier, writes).await;
    // What it has been told of and has not done is the next one's.
    tier.pending.wake();
}

async fn keep(tier: &Tier, mut writes: mpsc::Receiver<Write>) {
    let mut rest = Rest::default();
    let mut known = None;
    loop {
        tier.set_state(State::Tried);
        match Link::open(&tier.redis).await {
            Ok(link) => {
                let link = Arc::new(link);
                let ended = tier.serve(&link, &mut writes, &mut known).await;
                tier.link.store(None);
                if link.was_useful() {
                    rest.begin_anew();
                }
                if matches!(ended, Ended::Unneeded) {
                    return;
                }
                tier.say(&mut known, false, "it does not answer");
            }
            Err(failure) => {
                tier.note(&failure);
                tier.say(&mut known, false, &failure.to_string());
            }
        }
        tier.set_state(State::Left);
        let until = time::sleep(rest.next(rand::random()));
        tokio::pin!(until);
        loop {
            tokio::select! {
                () = &mut until => break,
                write = writes.recv() => match write {
                    Some(write) => tier.drop_write(&write),
                    None => return,
                }
            }
        }
    }
}

impl Tier {
    async fn serve(
        &self,
        link: &Arc<Link>,
        writes: &mut mpsc::Receiver<Write>,
        known: &mut Option<bool>,
    ) -> Ended {
        // What is void goes first: only then may anybody read.
        let mut used = false;
        loop {
            while let Some(void) = self.pending.first() {
                match link.within(self.redis.timeout, self.forget(link, &void)).await {
                    Ok(()) => self.pending.done(&void),
                    Err(failure) => {
                        self.note(&failure);
                        // Who cannot have anything forgotten must not use it.
                        return Ended::GivenUp;
                    }
                }
            }
            if !used {
                self.link.store(Some(link.clone()));
                self.set_state(State::Used);
                self.say(known, true, "");
                used = true;
            }
            tokio::select! {
                () = link.given_up() => return Ended::GivenUp,
                () = self.pending.added() => {}
                write = writes.recv() => match write {
                    Some(write) => self.put(link, write).await,
                    None => return Ended::Unneeded,
                }
            }
        }
    }

    async fn forget(&self, link: &Link, void: &Void) -> Result<(), Failure> {
        match void {
            Void::Shelf(shelf, _) => scripts::forget(link, &self.keys.shelf(shelf)).await,
            Void::Service(name, _) => scripts::end_epoch(link, &self.keys.epoch(name)).await,
        }
    }

    async fn put(&self, link: &Link, write: Write) {
        self.waiting.fetch_sub(write.bytes, Ordering::Relaxed);
        let Write { key, seen, stored, .. } = write;
        if seen.at.elapsed() > LONGEST_FETCH {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let age = stored.freshness.age(now);
        let lifetime = self.lifetime(&stored, age);
        let Some(names) = names(&stored.headers).filter(|_| lifetime >= SHORTEST) else { return };
        let Some(whole) = stored.body.get() else { return };
        let entry = Entry {
            written: seen.time.saturating_add(seen.at.elapsed()),
            age,
            stamp: seen.stamp,
            status: stored.status,
            headers: stored.headers.clone(),
            trailers: whole.trailers.clone(),
            body: whole.joined(),
        };
        let digest = keys::digest(&key, &stored.selection.to_bytes());
        let Some(bytes) = codec::encode(&entry, &digest) else { return };
        let (keys, field) = (self.keys.of(&key.shelf), keys::names_field(&key));
        let entering = Entering {
            keys: &keys,
            stamp: &entry.stamp,
            names: (&field, &names),
            entry: (&digest, &bytes),
            lifetime,
        };
        let writing = scripts::write(link, entering);
        if let Err(failure) = link.within(self.redis.timeout, writing).await {
            self.note(&failure);
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How long it may be of use: while it is fresh, and as long as it may be used stale.
    fn lifetime(&self, stored: &Stored, age: Duration) -> Duration {
        let fresh = stored.freshness.lifetime.saturating_sub(age);
        let seconds = |said: Option<u64>, default| said.map_or(default, Duration::from_secs);
        let directives = &stored.directives;
        let revalidate =
            seconds(directives.stale_while_revalidate, self.policy.stale_while_revalidate);
        let error = seconds(directives.stale_if_error, self.policy.stale_if_error);
        match fresh.is_zero() {
            true => Duration::ZERO,
            false => fresh.saturating_add(revalidate.max(error)).min(EPOCH),
        }
    }

    fn drop_write(&self, write: &Write) {
        self.waiting.fetch_sub(write.bytes, Ordering::Relaxed);
        self.counters.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn set_state(&self, state: State) {
        self.state.store(state as u64, Ordering::Relaxed);
    }

    /// Once for each change.
    fn say(&self, known: &mut Option<bool>, used: bool, why: &str) {
        if known.replace(used) == Some(used) {
            return;
        }
        let (policy, address) = (&self.policy.name, &self.redis.address);
        match used {
            true => tracing::info!("CachePolicy {policy}: Redis at {address} is in use"),
            false => tracing::warn!(
                "CachePolicy {policy}: Redis at {address} is not used ({why}); going on without it"
            ),
        }
    }
}

/// By which a response varies, as one line; none of what is too long.
fn names(headers: &HeaderMap) -> Option<Vec<u8>> {
    let lines = headers.get_all(header::VARY).iter();
    let lines: Vec<_> = lines.map(http::HeaderValue::as_bytes).collect();
    Some(lines.join(&b","[..])).filter(|names| names.len() <= MOST_NAMES)
}
