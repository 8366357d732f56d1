//! Connections of our own, remembered for a moment: where the kernel leads an application's connections through us and the
//! rules do not except our own, what we connect to comes back to us, round and round.

use std::{
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// How long one is remembered. What comes back does so at once, and later another program may have the same ends.
const REMEMBERED: Duration = Duration::from_secs(1);
/// How many are remembered: 32 KiB. Where there are more, some are forgotten early, and what comes back goes round once
/// more.
const PLACES: usize = 4096;

/// Connections made within the last second.
#[derive(Debug)]
pub struct Dialled {
    started: Instant,
    hasher: RandomState,
    /// By the hash of both ends: the upper half of it, and when it was in milliseconds. 0: none.
    places: Box<[AtomicU64]>,
}

impl Dialled {
    /// None yet; `now` is when time begins.
    pub fn new(now: Instant) -> Self {
        let places = (0..PLACES).map(|_| AtomicU64::new(0)).collect();
        Self { started: now, hasher: RandomState::new(), places }
    }

    /// Remembers a connection made at `now` from `local` to `remote`.
    pub fn note(&self, local: SocketAddr, remote: SocketAddr, now: Instant) {
        let (place, mark) = self.find(local, remote);
        if let Some(place) = place {
            place.store(mark | self.moment(now), Ordering::Relaxed);
        }
    }

    /// Whether a connection from `peer` that was meant for `original` is one of ours.
    pub fn is_ours(&self, peer: SocketAddr, original: SocketAddr, now: Instant) -> bool {
        let (place, mark) = self.find(peer, original);
        let held = place.map_or(0, |place| place.load(Ordering::Relaxed));
        let age = self.moment(now).wrapping_sub(held & TIME) & TIME;
        held != 0 && held & !TIME == mark && u128::from(age) <= REMEMBERED.as_millis()
    }

    fn find(&self, from: SocketAddr, to: SocketAddr) -> (Option<&AtomicU64>, u64) {
        let canonical = |end: SocketAddr| (end.ip().to_canonical(), end.port());
        let hash = self.hasher.hash_one((canonical(from), canonical(to)));
        let place = usize::try_from(hash & TIME).unwrap_or(0) % PLACES;
        (self.places.get(place), hash & !TIME)
    }

    /// Never 0, and around again after seven weeks.
    fn moment(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.started).as_millis() + 1;
        u64::try_from(elapsed).unwrap_or(1) & TIME
    }
}

/// The half that says when.
const TIME: u64 = u32::MAX as u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_are_known_for_a_moment() {
        let now = Instant::now();
        let dialled = Dialled::new(now);
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (local, remote) = (at("10.0.0.1:40000"), at("10.0.0.2:80"));
        assert!(!dialled.is_ours(local, remote, now));
        dialled.note(local, remote, now);
        assert!(dialled.is_ours(local, remote, now));
        assert!(dialled.is_ours(at("[::ffff:10.0.0.1]:40000"), remote, now + REMEMBERED / 2));
        assert!(!dialled.is_ours(remote, local, now), "the other way round");
        assert!(!dialled.is_ours(at("10.0.0.1:40001"), remote, now));
        assert!(!dialled.is_ours(local, remote, now + 2 * REMEMBERED));
        for port in 1..=60_000 {
            dialled.note(SocketAddr::new(local.ip(), port), remote, now);
        }
        assert!(dialled.is_ours(SocketAddr::new(local.ip(), 60_000), remote, now));
    }
}
