//! The load generator. It runs on the rig's own thread, on the core that the proxy does not have.
//!
//! `http1` drives keep-alive connections with plain epoll, because a generator dearer than the
//! proxy would measure itself; `http2` drives the `h2` client, for HTTP/2 and gRPC; `tls` drives
//! rustls, for handshakes and bulk under mutual TLS. All fill in one [`Sample`]. `proxies` are sidecars of a control plane
//! that do nothing but stay.

pub mod http1;
pub mod http2;
pub mod proxies;
pub mod response;
pub mod tls;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;

/// How long exchanges still in flight at the end of a phase may take before they count as errors.
const DRAIN: Duration = Duration::from_secs(3);
/// Latencies are recorded in nanoseconds up to a minute, with three significant digits.
const HIGHEST_LATENCY: u64 = 60_000_000_000;

/// What to ask, of whom.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    /// The authority requests carry; proxies route by it.
    pub host: String,
    pub path: String,
    /// A tunnel to ask for before anything else (`CONNECT` to this authority).
    pub tunnel: Option<String>,
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pacing {
    /// Each connection sends the next request when the last is answered: finds the capacity.
    Closed,
    /// So many requests a second are due at fixed times, whatever became of the earlier ones, and
    /// latency counts from the time a request was due. A stalled proxy thus cannot hide the
    /// requests it kept from being sent (coordinated omission).
    Open { rate: f64 },
}

/// What a phase of load saw.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Exchanges answered with success, drained ones included.
    pub completed: u64,
    /// Those answered before the phase was over: what throughput counts.
    pub completed_in_time: u64,
    /// Failed exchanges and lost connections.
    pub errors: u64,
    pub first_error: Option<String>,
    /// Requests that were due but never sent, because no connection was free.
    pub unsent: u64,
    pub duration: Duration,
    latency: Histogram<u64>,
    /// Of those drained: throughput and goodput leave them out.
    late: Histogram<u64>,
}

impl Sample {
    fn new(duration: Duration) -> Result<Self> {
        let latency =
            Histogram::new_with_bounds(1, HIGHEST_LATENCY, 3).context("create a histogram")?;
        Ok(Sample {
            late: latency.clone(),
            completed: 0,
            completed_in_time: 0,
            errors: 0,
            first_error: None,
            unsent: 0,
            duration,
            latency,
        })
    }

    fn answered(&mut self, due: Instant, now: Instant, stop: Instant) {
        let nanoseconds = u64::try_from((now - due).as_nanos()).unwrap_or(HIGHEST_LATENCY);
        self.latency.saturating_record(nanoseconds);
        self.completed += 1;
        self.completed_in_time += u64::from(now <= stop);
        if now > stop {
            self.late.saturating_record(nanoseconds);
        }
    }

    fn failure(&mut self, reason: impl FnOnce() -> String) {
        self.errors += 1;
        self.first_error.get_or_insert_with(reason);
    }

    /// Answers per second.
    pub fn throughput(&self) -> f64 {
        self.completed_in_time as f64 / self.duration.as_secs_f64()
    }

    /// Latency at `quantile` (0 to 1), in microseconds.
    pub fn latency(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1000.0
    }

    /// Share of the requests that were due that succeeded, in per cent.
    pub fn success(&self) -> f64 {
        let asked = self.completed + self.errors + self.unsent;
        self.completed as f64 * 100.0 / asked.max(1) as f64
    }

    /// Requests that were due, whatever became of them.
    pub fn asked(&self) -> u64 {
        self.completed + self.errors + self.unsent
    }

    /// Answers per second that came within `patience` of when their request was due, before the phase was over: the
    /// second after it would make a proxy with a queue look faster than what is behind it.
    pub fn goodput(&self, patience: Duration) -> f64 {
        let patience = u64::try_from(patience.as_nanos()).unwrap_or(HIGHEST_LATENCY);
        let useful = |answers: &Histogram<u64>| answers.count_between(0, patience);
        let useful = useful(&self.latency).saturating_sub(useful(&self.late));
        useful as f64 / self.duration.as_secs_f64()
    }

    /// An error where more than one request in ten thousand failed, or where a fixed rate was not
    /// reached: a figure from such a phase would compare different work.
    pub fn check(&self) -> Result<()> {
        let asked = self.completed + self.errors + self.unsent;
        anyhow::ensure!(self.completed > 0, "no request succeeded: {}", self.reason());
        anyhow::ensure!(
            self.errors * 10_000 <= asked,
            "{} of {asked} requests failed; the first: {}",
            self.errors,
            self.reason()
        );
        anyhow::ensure!(
            self.unsent * 100 <= asked,
            "the rate was too high: {} of {asked} requests could not be sent",
            self.unsent
        );
        Ok(())
    }

    fn reason(&self) -> &str {
        self.first_error.as_deref().unwrap_or("none was sent")
    }
}

/// Measures again where it was the machine that stood still: what a phase shows is the machine's doing, too.
#[cfg(test)]
fn calm(what: &str, mut phase: impl FnMut() -> Sample, holds: impl Fn(&Sample) -> bool) -> Sample {
    const PHASES: usize = 100;
    let mut sample = phase();
    for _ in 1..PHASES {
        if holds(&sample) {
            return sample;
        }
        sample = phase();
    }
    assert!(holds(&sample), "{what}: {sample:?}");
    sample
}

/// The requests of a phase: which is due when.
#[derive(Debug)]
struct Schedule {
    start: Instant,
    stop: Instant,
    pacing: Pacing,
    sent: u64,
}

impl Schedule {
    fn new(pacing: Pacing, start: Instant, duration: Duration) -> Self {
        Schedule { start, stop: start + duration, pacing, sent: 0 }
    }

    /// When the next request is due; none once the phase is over.
    fn next_due(&self, now: Instant) -> Option<Instant> {
        let due = match self.pacing {
            Pacing::Closed => now,
            Pacing::Open { rate } => {
                self.start + Duration::from_secs_f64(self.sent as f64 / rate.max(f64::MIN_POSITIVE))
            }
        };
        (due < self.stop && now < self.stop).then_some(due)
    }

    /// Takes the next request if it is due by `now`.
    fn take(&mut self, now: Instant) -> Option<Instant> {
        let due = self.next_due(now).filter(|due| *due <= now)?;
        self.sent += 1;
        Some(due)
    }

    /// How many requests fell due within the phase without being taken.
    fn left(&self) -> u64 {
        match self.pacing {
            Pacing::Closed => 0,
            Pacing::Open { rate } => {
                let due = ((self.stop - self.start).as_secs_f64() * rate).floor() as u64;
                due.saturating_sub(self.sent)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_schedule_does_not_wait_for_answers() {
        let start = Instant::now();
        let mut schedule =
            Schedule::new(Pacing::Open { rate: 1000.0 }, start, Duration::from_millis(10));
        assert_eq!(schedule.take(start), Some(start));
        assert_eq!(schedule.take(start), None);
        // Nothing was sent for three milliseconds: the requests missed are due at their own times.
        let late = start + Duration::from_millis(3);
        let due: Vec<_> = std::iter::from_fn(|| schedule.take(late)).collect();
        let millisecond = Duration::from_millis(1);
        assert_eq!(
            due,
            vec![start + millisecond, start + 2 * millisecond, start + 3 * millisecond]
        );
        assert_eq!(schedule.left(), 6);
        assert_eq!(schedule.take(start + Duration::from_millis(10)), None);
    }

    #[test]
    fn a_closed_schedule_is_always_due_until_it_ends() {
        let start = Instant::now();
        let mut schedule = Schedule::new(Pacing::Closed, start, Duration::from_millis(1));
        assert_eq!(schedule.take(start), Some(start));
        assert_eq!(schedule.take(start), Some(start));
        assert_eq!(schedule.take(start + Duration::from_millis(1)), None);
        assert_eq!(schedule.left(), 0);
    }

    #[test]
    fn latency_counts_from_when_a_request_was_due() {
        let start = Instant::now();
        let mut sample = Sample::new(Duration::from_secs(1)).unwrap();
        let stop = start + Duration::from_secs(1);
        sample.answered(start, start + Duration::from_millis(5), stop);
        assert!((sample.latency(0.5) - 5000.0).abs() < 10.0);
        sample.answered(start, stop + Duration::from_millis(1), stop);
        assert_eq!((sample.completed, sample.completed_in_time), (2, 1));
        assert!((sample.goodput(Duration::from_secs(2)) - 1.0).abs() < 1e-9);
        assert!(sample.goodput(Duration::from_millis(1)) < 1e-9);
    }

    #[test]
    fn a_phase_with_failures_or_without_its_rate_is_no_result() {
        let mut sample = Sample::new(Duration::from_secs(1)).unwrap();
        assert!(sample.check().is_err());
        sample.completed = 100;
        assert!(sample.check().is_ok());
        sample.unsent = 2;
        assert!(sample.check().unwrap_err().to_string().contains("rate was too high"));
        sample.unsent = 0;
        sample.failure(|| "refused".to_owned());
        assert!(sample.check().unwrap_err().to_string().contains("refused"));
    }
}
