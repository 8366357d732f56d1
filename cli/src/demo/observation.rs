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
const TWICE: NonZeroU32 = NonZeroU32::MIN.saturating_add(1);
/// How long it is looked whether the machine carries a rate.
const TRIAL: Duration = Duration::from_millis(500);
/// Half of the orders take a tenth of it when the machine has nothing else to do.
const EASY: Duration = Duration::from_millis(100);

/// From fewer orders nothing can be told.
const ENOUGH: u64 = 20;
/// How much longer they are waited for.
const PATIENCE: Duration = Duration::from_mins(1);

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
        // From below: too many at once would leave a queue that blurs what comes after.
        let mut customer = Self::start(mesh, less(MOST, 4));
        while customer.rate < MOST && customer.is_served_easily().await {
            customer = Self::start(mesh, customer.rate.saturating_mul(TWICE).min(MOST));
        }
        match customer.is_served_easily().await {
            true => customer,
            false => Self::start(mesh, less(customer.rate, 2)),
        }
    }

    async fn is_served_easily(&self) -> bool {
        let before = self.traffic.snapshot();
        sleep(TRIAL).await;
        let seen = self.traffic.snapshot().since(&before);
        let expected = f64::from(self.rate.get()) * TRIAL.as_secs_f64();
        seen.ok as f64 > expected * 0.7 && seen.latency.p50().is_some_and(|half| half < EASY)
    }

    pub fn rate(&self) -> NonZeroU32 {
        self.rate
    }

    pub fn snapshot(&self) -> Snapshot {
        self.traffic.snapshot()
    }

    /// Waits until all orders that are under way have been answered: what changed before has its effect on every
    /// later one.
    pub async fn settle(&self) {
        self.traffic.settle().await;
    }

    /// Watches for `duration`, and longer where hardly any order was answered meanwhile.
    pub async fn observe(&self, duration: Duration) -> Observation {
        self.observe_at_least(duration, ENOUGH).await
    }

    /// The same until there were so many.
    pub async fn observe_at_least(&self, duration: Duration, enough: u64) -> Observation {
        let begin = Instant::now();
        let before = self.traffic.snapshot();
        sleep(duration).await;
        loop {
            let seen = self.traffic.snapshot().since(&before);
            let observed = Observation { seen, lasted: begin.elapsed() };
            if observed.answered() >= enough || observed.lasted > duration + PATIENCE {
                return observed;
            }
            sleep(duration / 10).await;
        }
    }
}

fn less(rate: NonZeroU32, divisor: u32) -> NonZeroU32 {
    NonZeroU32::new(rate.get() / divisor).unwrap_or(NonZeroU32::MIN)
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
