//! When no more is sent to what fails.

use std::{ops::RangeInclusive, time::Duration};

pub use crate::spec::traffic_policy::Per;
use crate::{
    Path,
    invalid::Problems,
    model::{range::Fields, traffic_policy::MAX_LIMIT},
    spec::traffic_policy as raw,
};

/// Shorter windows hold too little to judge; longer ones remember what is over.
const WINDOW: RangeInclusive<Duration> = Duration::from_secs(1)..=HOUR;
const SLOW: RangeInclusive<Duration> = Duration::from_millis(1)..=HOUR;
const OPEN: RangeInclusive<Duration> = Duration::from_millis(100)..=HOUR;
const HOUR: Duration = Duration::from_secs(3600);
/// More is traffic.
const MAX_PROBES: u8 = 100;

/// The error-rate and slow-call breaker: closed, traffic flows; open, it is rejected; half-open, probes pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circuit {
    /// What is closed and opened as one.
    pub per: Per,
    /// Length of the sliding window.
    pub window: Duration,
    /// Requests in the window below which nothing is judged.
    pub minimum: u32,
    /// Share of failures from which on it opens, 1 to 100; `None`: failures do not open it.
    pub error_percent: Option<u8>,
    /// Slow answers that open it; `None`: they do not.
    pub slow_calls: Option<SlowCalls>,
    /// How long it is open at first; doubled each time in a row.
    pub open_for: Duration,
    /// How long it is open at most; not less than `open_for`, an hour at most.
    pub max_open_for: Duration,
    /// How many requests pass to see whether it may close, 1 to 100.
    pub probes: u8,
}

/// Answers that are too slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowCalls {
    /// What is slow.
    pub threshold: Duration,
    /// Share of slow answers from which on the breaker opens, 1 to 100.
    pub percent: u8,
}

impl Circuit {
    /// Whether anything opens it.
    pub fn is_on(&self) -> bool {
        self.error_percent.is_some() || self.slow_calls.is_some()
    }
}

/// Nothing opens it: what is an error, and how many are too many, only the service's owner knows.
impl Default for Circuit {
    fn default() -> Self {
        Self {
            per: Per::Service,
            window: Duration::from_secs(10),
            minimum: 20,
            error_percent: None,
            slow_calls: None,
            open_for: Duration::from_secs(5),
            max_open_for: Duration::from_secs(60),
            probes: 3,
        }
    }
}

impl Default for SlowCalls {
    fn default() -> Self {
        Self { threshold: Duration::from_secs(1), percent: 50 }
    }
}

pub(super) fn parse_circuit(at: Path<'_>, raw: &raw::Breaker, problems: &mut Problems) -> Circuit {
    let mut circuit = Circuit::default();
    if let Some(raw) = &raw.error_rate {
        let mut fields = Fields::new(at.field("errorRate"), problems);
        let window = raw.window.as_deref();
        circuit.window = fields.duration("window", window, WINDOW, circuit.window);
        circuit.minimum = fields.number("minimum", raw.minimum, 1..=MAX_LIMIT, circuit.minimum);
        circuit.error_percent = Some(fields.number("percent", raw.percent, 1..=100, 50));
    }
    if let Some(raw) = &raw.slow_calls {
        let default = SlowCalls::default();
        let mut fields = Fields::new(at.field("slowCalls"), problems);
        let threshold = raw.threshold.as_deref();
        circuit.slow_calls = Some(SlowCalls {
            threshold: fields.duration("threshold", threshold, SLOW, default.threshold),
            percent: fields.number("percent", raw.percent, 1..=100, default.percent),
        });
    }
    let mut fields = Fields::new(at, problems);
    let open_for = fields.duration("openFor", raw.open_for.as_deref(), OPEN, circuit.open_for);
    let range = open_for..=HOUR;
    let longest = raw.max_open_for.as_deref();
    circuit.max_open_for = fields.duration("maxOpenFor", longest, range, circuit.max_open_for);
    circuit.open_for = open_for;
    circuit.probes = fields.number("probes", raw.probes, 1..=MAX_PROBES, circuit.probes);
    circuit.per = raw.per.unwrap_or_default();
    if !circuit.is_on() {
        refuse_without_effect(&mut fields, raw);
    }
    circuit
}

/// What says how it opens, where nothing opens it.
fn refuse_without_effect(fields: &mut Fields<'_, '_>, raw: &raw::Breaker) {
    let set = [
        ("openFor", raw.open_for.is_some()),
        ("maxOpenFor", raw.max_open_for.is_some()),
        ("probes", raw.probes.is_some()),
        ("per", raw.per.is_some()),
    ];
    for (field, _) in set.iter().filter(|(_, set)| *set) {
        fields.problem(field, "has an effect only beside errorRate or slowCalls");
    }
}
