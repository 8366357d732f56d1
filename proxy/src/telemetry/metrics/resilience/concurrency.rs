//! Of the limit on requests at once that the application beside us is given.

use prometheus::{CounterVec, IntCounterVec, IntGaugeVec, Opts};

use super::New;

/// By service and the application's port: `shop/orders`, `9001`.
const LABELS: [&str; 2] = ["service", "port"];

/// There are none where no policy asks for a limit.
#[derive(Debug)]
pub struct Concurrency {
    /// The limit now, in all workers.
    pub limit: IntGaugeVec,
    /// Requests that the application works at.
    pub running: IntGaugeVec,
    /// Requests that wait.
    pub waiting: IntGaugeVec,
    /// Requests that had to wait, whatever became of them.
    pub waited: IntCounterVec,
    /// Seconds that they waited.
    pub wait: CounterVec,
    /// Requests refused, by priority.
    pub dropped: IntCounterVec,
}

impl Concurrency {
    pub(super) fn register(new: &New<'_>) -> prometheus::Result<Self> {
        let wait = Opts::new(
            "leno_concurrency_wait_seconds_total",
            "How long requests waited for a place, whatever became of them.",
        );
        Ok(Self {
            limit: new.gauges(
                "leno_concurrency_limit",
                "Requests that the application is given at once.",
                &LABELS,
            )?,
            running: new.gauges(
                "leno_concurrency_running",
                "Requests that the application works at.",
                &LABELS,
            )?,
            waiting: new.gauges(
                "leno_concurrency_waiting",
                "Requests that wait for a place.",
                &LABELS,
            )?,
            waited: new.counters(
                "leno_concurrency_waited_total",
                "Requests that had to wait for a place, whatever became of them.",
                &LABELS,
            )?,
            wait: new.add(CounterVec::new(wait, &LABELS)?)?,
            dropped: new.counters(
                "leno_concurrency_dropped_total",
                "Requests refused since the application had enough to do.",
                &["service", "port", "priority"],
            )?,
        })
    }

    /// Takes an application that is no more, or has no limit any more, out of the registry.
    pub fn forget(&self, service: &str, port: &str, priorities: &[&str]) {
        let labels = [service, port];
        for gauges in [&self.limit, &self.running, &self.waiting] {
            let _ = gauges.remove_label_values(&labels);
        }
        let _ = self.waited.remove_label_values(&labels);
        let _ = self.wait.remove_label_values(&labels);
        for priority in priorities {
            let _ = self.dropped.remove_label_values(&[service, port, priority]);
        }
    }
}
