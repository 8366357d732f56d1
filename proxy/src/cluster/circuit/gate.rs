//! The side of a breaker that every worker sees: one word that says whether requests pass, and that hands out the
//! probes of a half-open breaker.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::cluster::tally::Verdict;

/// When to come back if all probes are under way: nobody knows how long they take.
const WHILE_PROBED: Duration = Duration::from_secs(1);

const CLOSED: u64 = 0;
const OPEN: u64 = 1;
const HALF_OPEN: u64 = 2;
const PHASE: u32 = 0;
const ROUND: u32 = 8;
const LEFT: u32 = 24;
const SUCCEEDED: u32 = 32;
const FAILED: u32 = 40;
const SLOW: u32 = 48;
const OF: u32 = 56;

/// Whether requests pass. A closed one costs a request a single load.
#[derive(Debug, Default)]
pub struct Gate {
    /// Bits 0..8 the phase, 8..24 the number of the round of probes, then a byte each: probes left, succeeded, failed,
    /// slow, and how many there were.
    word: AtomicU64,
    /// Until when it is open, in milliseconds.
    until: AtomicU64,
    rejected: AtomicU64,
}

/// What is to be done with a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Admit {
    /// It passes, and nothing more is to be done for the breaker.
    Pass,
    /// It passes as a probe, which has to be given to [`Gate::finish`].
    Probe(Probe),
    /// It is rejected, and is counted nowhere but here.
    Reject {
        /// After which time another request may pass.
        retry_after: Duration,
    },
}

/// The right to one request through a half-open breaker.
#[derive(Debug, PartialEq, Eq)]
pub struct Probe {
    round: u16,
}

/// How the probes of the present round stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    /// How many there are.
    pub of: u8,
    /// Those nobody took yet.
    pub left: u8,
    /// Those that succeeded.
    pub succeeded: u8,
    /// Those that failed.
    pub failed: u8,
    /// Those that took too long, whether they succeeded or not.
    pub slow: u8,
}

impl Gate {
    /// Whether a request passes at `now`, and as what.
    pub fn admit(&self, now: Duration) -> Admit {
        let word = self.word.load(Ordering::Acquire);
        match phase(word) {
            CLOSED => Admit::Pass,
            OPEN => self.reject(self.until().saturating_sub(now)),
            _ => self.take(),
        }
    }

    /// Whether every request passes.
    pub fn is_closed(&self) -> bool {
        phase(self.word.load(Ordering::Acquire)) == CLOSED
    }

    /// Whether a request would pass, without asking for one: a balancer looks for an endpoint with it and then
    /// [admits](Self::admit) there.
    pub fn lets_through(&self) -> bool {
        let word = self.word.load(Ordering::Acquire);
        phase(word) == CLOSED || (word >> LEFT) as u8 > 0
    }

    /// After which time a request may pass where none does now.
    pub fn opens_in(&self, now: Duration) -> Option<Duration> {
        match phase(self.word.load(Ordering::Acquire)) {
            CLOSED => None,
            OPEN => Some(self.until().saturating_sub(now)),
            _ if self.lets_through() => None,
            _ => Some(WHILE_PROBED),
        }
    }

    /// Counts a request that was rejected without being asked for here.
    pub fn note_rejected(&self) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
    }

    /// Says how a probe ended. Those that have no verdict are given to the next request; those of an earlier round are
    /// forgotten.
    pub fn finish(&self, probe: Probe, verdict: Verdict, slow: bool) {
        let change = |word: u64| {
            let current = phase(word) == HALF_OPEN && round(word) == probe.round;
            let counted = match verdict {
                Verdict::Neither => return current.then_some(word + (1 << LEFT)),
                Verdict::Success => 1 << SUCCEEDED,
                Verdict::Failure => 1 << FAILED,
            };
            current.then_some(word + counted + (u64::from(slow) << SLOW))
        };
        // That it was of an earlier round is no error.
        let _ = self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
    }

    /// Requests rejected so far.
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    /// The probes of the present round; all zero unless half-open.
    pub fn probes(&self) -> Probes {
        let word = self.word.load(Ordering::Acquire);
        let byte = |shift: u32| (word >> shift) as u8;
        Probes {
            of: byte(OF),
            left: byte(LEFT),
            succeeded: byte(SUCCEEDED),
            failed: byte(FAILED),
            slow: byte(SLOW),
        }
    }

    pub(super) fn close(&self) {
        self.publish(|word| (u64::from(round(word)) << ROUND) | (CLOSED << PHASE));
    }

    pub(super) fn open(&self, until: Duration) {
        let millis = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.until.store(millis, Ordering::Relaxed);
        self.publish(|word| (u64::from(round(word)) << ROUND) | (OPEN << PHASE));
    }

    /// Begins a new round of probes.
    pub(super) fn half_open(&self, of: u8) {
        self.publish(|word| {
            let round = u64::from(round(word).wrapping_add(1));
            let of = u64::from(of);
            (of << OF) | (of << LEFT) | (round << ROUND) | (HALF_OPEN << PHASE)
        });
    }

    /// Only the breaker itself publishes, so nothing but a probe's end can come between load and store.
    fn publish(&self, next: impl Fn(u64) -> u64) {
        let word = self.word.load(Ordering::Acquire);
        self.word.store(next(word), Ordering::Release);
    }

    fn until(&self) -> Duration {
        Duration::from_millis(self.until.load(Ordering::Relaxed))
    }

    fn take(&self) -> Admit {
        let one_less = |word: u64| {
            (phase(word) == HALF_OPEN && (word >> LEFT) as u8 > 0).then(|| word - (1 << LEFT))
        };
        match self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less) {
            Ok(word) => Admit::Probe(Probe { round: round(word) }),
            // Closed in between.
            Err(word) if phase(word) == CLOSED => Admit::Pass,
            Err(_) => self.reject(WHILE_PROBED),
        }
    }

    fn reject(&self, retry_after: Duration) -> Admit {
        self.note_rejected();
        Admit::Reject { retry_after }
    }
}

impl Probes {
    /// Those under way.
    pub fn under_way(&self) -> u8 {
        self.of - self.left - self.succeeded - self.failed
    }
}

fn phase(word: u64) -> u64 {
    (word >> PHASE) & 0xff
}

fn round(word: u64) -> u16 {
    (word >> ROUND) as u16
}
