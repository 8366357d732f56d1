//! Which endpoint gets the next request.

use std::{ops::RangeInclusive, time::Duration};

use crate::{Path, invalid::Problems, model::range::Fields, spec::traffic_policy as raw};

/// A shorter average is noise, a longer one does not follow an endpoint that recovers.
const DECAY: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(600);

/// Which endpoint gets the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balancer {
    /// The cheaper of two chosen at random: cost is latency times load, by weight.
    PeakEwma {
        /// Time constant of the average of latencies.
        decay: Duration,
    },
    /// The less busy of two chosen at random, by weight.
    LeastRequest,
    /// In turn, by weight.
    RoundRobin,
    /// At random, by weight.
    Random,
}

impl Balancer {
    /// As people write it: `peakEwma`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::PeakEwma { .. } => "peakEwma",
            Self::LeastRequest => "leastRequest",
            Self::RoundRobin => "roundRobin",
            Self::Random => "random",
        }
    }
}

impl Default for Balancer {
    fn default() -> Self {
        Self::PeakEwma { decay: Duration::from_secs(10) }
    }
}

pub(super) fn parse_balancer(
    at: Path<'_>,
    raw: raw::Balancer,
    problems: &mut Problems,
) -> Balancer {
    let mut fields = Fields::new(at, problems);
    fields.exactly_one(&[
        ("peakEwma", raw.peak_ewma.is_some()),
        ("leastRequest", raw.least_request.is_some()),
        ("roundRobin", raw.round_robin.is_some()),
        ("random", raw.random.is_some()),
    ]);
    if raw.least_request.is_some() {
        Balancer::LeastRequest
    } else if raw.round_robin.is_some() {
        Balancer::RoundRobin
    } else if raw.random.is_some() {
        Balancer::Random
    } else {
        let decay = raw.peak_ewma.and_then(|ewma| ewma.decay);
        let mut fields = Fields::new(at.field("peakEwma"), problems);
        let decay = fields.duration("decay", decay.as_deref(), DECAY, Duration::from_secs(10));
        Balancer::PeakEwma { decay }
    }
}
