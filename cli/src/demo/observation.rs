//! What the customer sees of the mesh over a while.

use std::{net::SocketAddr, num::NonZeroU32, time::Duration};

use leno_shop::{
    Service,
    traffic::{Snapshot, Traffic},
};
use tokio::time::{Instant, sleep};

/// Each order passes ten sidecars. An unoptimised build would only measure its own slowness with more.
const MOST: NonZeroU32 = match NonZeroU32::new(if cfg!(debug_assertions) { 40 } else { 200 }) {
    Some(rate) => rate,
    None => NonZeroU32::MIN,
};
/// With fewer there is nothing to see.
const LEAST: u32 = 10;
/// How long it is looked whether the machine carries a rate.
const TRIAL: Duration = Duration::from_millis(800);
/// Half of the orders take a tenth of it when the machine has nothing else to do.
const EASY: Duration = Duration::from_millis(200);

/// A customer who orders at a steady rate.
pub struct Customer {
    traffic: Traffic,
    rate: NonZeroU32,
}

/// A stretch of time.
pub struct Observation {
    pub seen: Snapshot,
    pub lasted: Duration,
}

impl Customer {
    pub fn start(mesh: SocketAddr, rate: NonZeroU32) -> Self {
        Self { traffic: Traffic::start(mesh, rate), rate }
    }

    /// Orders as often as the machine carries easily: the figures are to be the mesh's, not those of a queue
    /// for the processor.
    pub async fn start_easily(mesh: SocketAddr) -> Self {
        let mut rate = MOST;
        loop {
            let customer = Self::start(mesh, rate);
            let seen = customer.observe(TRIAL).await;
            let expected = f64::from(rate.get()) * TRIAL.as_secs_f64();
            let kept_up = seen.answered() as f64 > expected * 0.7 && seen.latencies().0 < EASY;
            match NonZeroU32::new(rate.get() / 2).filter(|less| less.get() >= LEAST) {
                Some(less) if !kept_up => rate = less,
                _ => return customer,
            }
        }
    }

    pub fn rate(&self) -> NonZeroU32 {
        self.rate
    }

    pub fn snapshot(&self) -> Snapshot {
        self.traffic.snapshot()
    }

    /// Watches for `duration`.
    pub async fn observe(&self, duration: Duration) -> Observation {
        let begin = Instant::now();
        let before = self.traffic.snapshot();
        sleep(duration).await;
        let seen = self.traffic.snapshot().since(&before);
        Observation { seen, lasted: begin.elapsed() }
    }
}

impl Observation {
    /// Orders answered in any way.
    pub fn answered(&self) -> u64 {
        self.seen.ok + self.seen.failures()
    }

    pub fn per_second(&self) -> f64 {
        self.answered() as f64 / self.lasted.as_secs_f64().max(0.001)
    }

    /// Of the orders that were placed, how many `version` of order took, and how many anyone did.
    pub fn orders_by_version(&self, version: &str) -> (u64, u64) {
        let orders =
            self.seen.served_by.iter().filter(|(server, _)| server.service == Service::Order);
        orders.fold((0, 0), |(own, all), (server, count)| {
            match server.version.as_str() == version {
                true => (own + count, all + count),
                false => (own, all + count),
            }
        })
    }

    /// How many calls `instance` answered.
    pub fn served_by(&self, instance: &str) -> u64 {
        let own =
            self.seen.served_by.iter().filter(|(server, _)| server.instance.as_str() == instance);
        own.map(|(_, count)| count).sum()
    }

    /// The latency of orders that half of them, and 99 of 100, did not exceed.
    pub fn latencies(&self) -> (Duration, Duration) {
        let latency = &self.seen.latency;
        (latency.p50().unwrap_or_default(), latency.p99().unwrap_or_default())
    }

    /// `"502 user" 31 times, ...`; empty when nothing failed.
    pub fn reasons(&self) -> String {
        let reasons = self.seen.failed.iter().map(|(reason, count)| format!("{count} × {reason}"));
        reasons.collect::<Vec<_>>().join(", ")
    }
}
