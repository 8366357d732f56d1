//! Active health checks of a cluster's endpoints: when each is asked, and what the answers make of it. Pure: `now` is the
//! time since any fixed start. What follows for an endpoint is decided with everything else that is known of it, by the
//! [detector](super::outlier::Detector).

use std::{fmt, sync::Arc, time::Duration};

use leno_api::model::traffic_policy::HealthCheck;
use rustc_hash::FxHashMap;

use super::probe::Failure;

/// A new endpoint is asked within this time: before much is sent there, but not all of a large service at one moment.
const FIRST: Duration = Duration::from_secs(1);
/// By how much intervals differ, so that proxies that started together do not go on asking together.
const JITTER: f64 = 0.1;

/// How an endpoint's checks go, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Whether it gets requests, as far as checks go.
    pub healthy: bool,
    /// Since when.
    pub since: Duration,
    /// When it last answered, or failed to.
    pub at: Duration,
    /// Why the last check failed; `None` where it did not.
    pub error: Option<Arc<str>>,
}

/// An endpoint changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is out.
    Unhealthy {
        /// How often in a row it failed.
        failures: u32,
        /// How last.
        error: Arc<str>,
    },
    /// It is back.
    Healthy {
        /// For how long it was out.
        after: Duration,
    },
}

/// Of one cluster.
#[derive(Debug)]
pub struct Checks {
    policy: HealthCheck,
    endpoints: FxHashMap<u64, Check>,
    /// Nobody is to be asked before.
    next: Duration,
}

#[derive(Clone, Debug)]
struct Check {
    due: Duration,
    /// A check is under way.
    asking: bool,
    /// Answers in a row that say otherwise than `healthy`.
    run: u32,
    /// `None` before the first answer.
    checked: Option<Checked>,
}

impl Checks {
    /// Without endpoints.
    pub fn new(policy: HealthCheck) -> Self {
        Self { policy, endpoints: FxHashMap::default(), next: Duration::ZERO }
    }

    /// Takes another policy over. What is known of endpoints stays until they are asked in the new way.
    pub fn reconfigure(&mut self, now: Duration, policy: &HealthCheck) {
        if self.policy == *policy {
            return;
        }
        self.policy = policy.clone();
        for check in self.endpoints.values_mut() {
            check.run = 0;
            check.due = check.due.min(now.saturating_add(self.policy.interval));
        }
        self.next = now;
    }

    /// Takes the present endpoints over; `random` has 64 uniform bits.
    pub fn reconcile(
        &mut self,
        now: Duration,
        endpoints: impl IntoIterator<Item = u64>,
        random: &mut dyn FnMut() -> u64,
    ) {
        let mut before = std::mem::take(&mut self.endpoints);
        for endpoint in endpoints {
            let check = before.remove(&endpoint).unwrap_or_else(|| {
                let due =
                    now.saturating_add(FIRST.min(self.policy.interval).mul_f64(share(random)));
                Check { due, asking: false, run: 0, checked: None }
            });
            self.endpoints.insert(endpoint, check);
        }
        self.next = now;
    }

    /// Those to be asked now; each has to be [answered](Self::answered).
    pub fn due(&mut self, now: Duration) -> Vec<u64> {
        if now < self.next {
            return Vec::new();
        }
        let mut due = Vec::new();
        let mut next = Duration::MAX;
        for (endpoint, check) in self.endpoints.iter_mut().filter(|(_, check)| !check.asking) {
            if check.due <= now {
                check.asking = true;
                due.push(*endpoint);
            } else {
                next = next.min(check.due);
            }
        }
        self.next = next;
        due
    }

    /// Takes in how a check ended. Of who is gone nothing is known, and who could not be asked is as before.
    pub fn answered(
        &mut self,
        endpoint: u64,
        now: Duration,
        answer: Result<(), Failure>,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Change> {
        let check = self.endpoints.get_mut(&endpoint)?;
        check.asking = false;
        let unasked = matches!(answer, Err(Failure::Unasked(_)));
        // Who could not be asked is asked soon.
        let interval = if unasked { FIRST.min(self.policy.interval) } else { self.policy.interval };
        let jittered = interval.mul_f64(1.0 + JITTER * (2.0 * share(random) - 1.0));
        check.due = now.saturating_add(jittered);
        self.next = self.next.min(check.due);
        match answer {
            Ok(()) => check.take_in(now, None, &self.policy),
            Err(Failure::Unwell(why)) => check.take_in(now, Some(why.into()), &self.policy),
            Err(Failure::Unasked(_)) => None,
        }
    }

    /// How its checks go; `None` before the first has ended.
    pub fn state(&self, endpoint: u64) -> Option<&Checked> {
        self.endpoints.get(&endpoint)?.checked.as_ref()
    }

    /// How many fail theirs.
    pub fn unhealthy(&self) -> usize {
        let unhealthy =
            |check: &&Check| check.checked.as_ref().is_some_and(|checked| !checked.healthy);
        self.endpoints.values().filter(unhealthy).count()
    }
}

impl Check {
    /// The first answer decides at once: nothing speaks against it.
    fn take_in(
        &mut self,
        now: Duration,
        error: Option<Arc<str>>,
        policy: &HealthCheck,
    ) -> Option<Change> {
        let good = error.is_none();
        let first = self.checked.is_none();
        let checked =
            self.checked.get_or_insert(Checked { healthy: true, since: now, at: now, error: None });
        (checked.at, checked.error) = (now, error.clone());
        if good == checked.healthy {
            self.run = 0;
            return None;
        }
        self.run = self.run.saturating_add(1);
        let needed = if good { policy.healthy } else { policy.unhealthy };
        if self.run < needed && !first {
            return None;
        }
        let (run, since) = (std::mem::take(&mut self.run), checked.since);
        (checked.healthy, checked.since) = (good, now);
        Some(match error {
            Some(error) => Change::Unhealthy { failures: run, error },
            None => Change::Healthy { after: now.saturating_sub(since) },
        })
    }
}

/// 0 to 1.
fn share(random: &mut dyn FnMut() -> u64) -> f64 {
    random() as f64 / 2f64.powi(64)
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unhealthy { failures: 1, error } => write!(f, "fails its health check: {error}"),
            Self::Unhealthy { failures, error } => {
                write!(f, "failed {failures} health checks in a row: {error}")
            }
            Self::Healthy { after } => {
                write!(f, "passes its health checks again after {}", super::window::Span(*after))
            }
        }
    }
}

#[cfg(test)]
mod tests;
