//! Who an instance is, how it was told to behave, and how many answers it gave.

use crate::{Address, Args, Hop, Label, Service};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const MAX_DELAY_MS: u64 = 60_000;

pub struct Instance {
    pub service: Service,
    pub name: Label,
    behaviour: Mutex<Behaviour>,
    turns: AtomicU64,
    served: AtomicU64,
    failed: AtomicU64,
}

/// What the control port shows and changes.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Behaviour {
    pub delay_ms: u64,
    pub fail_percent: u8,
    pub version: Label,
    /// The sidecar by which order reaches the other services.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh: Option<Address>,
}

/// A change of behaviour; what it does not name stays as it is.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Change {
    delay_ms: Option<u64>,
    fail_percent: Option<u8>,
    version: Option<Label>,
    mesh: Option<Address>,
}

#[derive(Debug, PartialEq, Eq, serde::Serialize)]
pub struct Stats {
    /// Answers given as they should be, whatever they said.
    pub served: u64,
    /// Answers refused because the control port asked for failures.
    pub failed: u64,
}

/// How to treat one request.
pub struct Turn {
    pub delay: Duration,
    pub fails: bool,
    pub version: Label,
}

impl Instance {
    pub fn new(args: &Args) -> Result<Self, String> {
        let name = match &args.instance {
            Some(name) => name.clone(),
            None => format!("{}-1", args.service).parse()?,
        };
        let behaviour = Behaviour {
            delay_ms: 0,
            fail_percent: 0,
            version: args.version.clone(),
            mesh: args.mesh.clone(),
        };
        Ok(Self {
            service: args.service,
            name,
            behaviour: Mutex::new(behaviour),
            turns: AtomicU64::new(0),
            served: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    pub fn behaviour(&self) -> Behaviour {
        self.lock().clone()
    }

    pub fn change(&self, change: Change) -> Result<Behaviour, String> {
        if change.mesh.is_some() && self.service != Service::Order {
            return Err(format!("mesh: {} calls nobody", self.service));
        }
        let mut behaviour = self.lock();
        *behaviour = change.applied_to(&behaviour)?;
        Ok(behaviour.clone())
    }

    pub fn turn(&self) -> Turn {
        let Behaviour { delay_ms, fail_percent, version, .. } = self.behaviour();
        let nth = self.turns.fetch_add(1, Ordering::Relaxed);
        let delay = Duration::from_millis(delay_ms);
        Turn { delay, fails: fails(nth, fail_percent), version }
    }

    pub fn count(&self, turn: &Turn) {
        let counter = if turn.fails { &self.failed } else { &self.served };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub fn stats(&self) -> Stats {
        let [served, failed] =
            [&self.served, &self.failed].map(|counter| counter.load(Ordering::Relaxed));
        Stats { served, failed }
    }

    /// This instance as the one who answered `call`.
    pub fn hop(&self, call: &str) -> Hop {
        Hop {
            call: call.to_owned(),
            service: self.service,
            instance: self.name.clone(),
            version: self.behaviour().version,
            cached: false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Behaviour> {
        // Every change is one assignment, so even a poisoned lock guards a whole value.
        self.behaviour.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Change {
    fn applied_to(self, old: &Behaviour) -> Result<Behaviour, String> {
        let new = Behaviour {
            delay_ms: self.delay_ms.unwrap_or(old.delay_ms),
            fail_percent: self.fail_percent.unwrap_or(old.fail_percent),
            version: self.version.unwrap_or_else(|| old.version.clone()),
            mesh: self.mesh.or_else(|| old.mesh.clone()),
        };
        if new.delay_ms > MAX_DELAY_MS {
            return Err(format!("delayMs: {} must be 0 to {MAX_DELAY_MS}", new.delay_ms));
        }
        if new.fail_percent > 100 {
            return Err(format!("failPercent: {} must be 0 to 100", new.fail_percent));
        }
        Ok(new)
    }
}

/// Does the `nth` request fail? Of any 100 in a row exactly `percent` do, without dice: steps of 37
/// visit every remainder of 100 once, and mix failures with successes rather than bunch them.
fn fails(nth: u64, percent: u8) -> bool {
    (nth % 100) * 37 % 100 < u64::from(percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_any_hundred_requests_exactly_the_percentage_fails() {
        for percent in [0, 1, 30, 50, 99, 100] {
            for start in [0, 1, 57, 1_000_003, u64::MAX - 200] {
                let failed = (start..start + 100).filter(|&nth| fails(nth, percent)).count();
                assert_eq!(failed, usize::from(percent), "from {start}");
            }
        }
    }

    #[test]
    fn at_half_neither_outcome_comes_in_long_runs() {
        let outcomes: Vec<bool> = (0..100).map(|nth| fails(nth, 50)).collect();
        assert!(outcomes.windows(4).all(|run| run.contains(&true) && run.contains(&false)));
        assert!(outcomes.windows(2).any(|pair| pair == [true, true]), "retries can fail too");
    }

    #[test]
    fn a_change_out_of_range_changes_nothing() {
        let version = "v1".parse().unwrap();
        let old = Behaviour { delay_ms: 5, fail_percent: 7, version, mesh: None };
        let change = |text: &str| serde_json::from_str::<Change>(text).unwrap().applied_to(&old);
        assert!(change(r#"{"failPercent":101}"#).unwrap_err().contains("failPercent: 101"));
        assert!(change(r#"{"delayMs":60001}"#).unwrap_err().contains("delayMs: 60001"));
        let new = change(r#"{"version":"v2"}"#).unwrap();
        assert_eq!((new.delay_ms, new.fail_percent, new.version.as_str()), (5, 7, "v2"));
    }
}
