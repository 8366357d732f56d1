//! What one worker may send beside its requests: the budgets of services, and the limit of retries that all workers
//! share. Kept by the cluster's state, so that a change of configuration does not make a new budget.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, Weak},
    time::Duration,
};

use rustc_hash::FxHashMap;

use super::{
    budget::{Budget, Settings},
    quantile::Latencies,
    retry::Reason,
    worker::Worker,
};
use crate::cluster::{
    Admitted, Cluster, State,
    breaker::{Permit, Resource},
};

/// The share of answers after which a hedged attempt is made where no time is given.
const HEDGE_PERCENT: u32 = 95;

/// After an instance refused a request, the next ones are kept so that another can have them. To keep all of them
/// always would cost every request a copy of its head.
const BUSY_FOR: Duration = Duration::from_secs(10);

/// Of all services that this worker has called.
#[derive(Debug, Default)]
pub struct Allowances {
    services: RefCell<FxHashMap<u64, Allowance>>,
}

#[derive(Debug)]
struct Allowance {
    /// Gone when the cluster is.
    state: Weak<State>,
    settings: Settings,
    budget: Budget,
    /// Until the heads of its answers; empty where nobody asks for it.
    latencies: Option<Latencies>,
    /// Until when its requests are kept for another instance.
    busy_until: Duration,
}

/// A retry or hedged attempt that may be made; its end is counted when dropped.
#[derive(Debug)]
pub(super) struct Granted {
    worker: Rc<Worker>,
    /// Whose budget it is out of.
    cluster: Option<u64>,
    #[expect(dead_code, reason = "counts until dropped")]
    permit: Permit,
}

impl Allowances {
    /// Counts a request of `cluster`, before its first attempt. Says whether instances have refused requests of late.
    pub(super) fn begin(&self, cluster: &Cluster, workers: u32, now: Duration) -> bool {
        self.with(cluster, workers, |allowance| {
            allowance.budget.deposit(now);
            now < allowance.busy_until
        })
    }

    /// Takes in that an instance refused a request since it has enough to do.
    pub(super) fn refused(&self, cluster: &Cluster, workers: u32, now: Duration) {
        self.with(cluster, workers, |allowance| {
            allowance.busy_until = now.saturating_add(BUSY_FOR);
        });
    }

    /// Takes in after which time an answer began.
    pub(super) fn answered(&self, cluster: &Cluster, workers: u32, latency: Duration) {
        self.with(cluster, workers, |allowance| {
            allowance.latencies.get_or_insert_default().observe(latency);
        });
    }

    /// The time within which 95 % of the answers began; `None` while too few were seen.
    pub(super) fn usual(&self, cluster: &Cluster, workers: u32) -> Option<Duration> {
        self.with(cluster, workers, |allowance| allowance.latencies.as_ref()?.within(HEDGE_PERCENT))
    }

    fn withdraw(&self, cluster: &Cluster, workers: u32, now: Duration) -> bool {
        // Those of one worker are not counted apart; connections spread evenly.
        let active = cluster.state.limits.exchanges().div_ceil(workers.max(1));
        self.with(cluster, workers, |allowance| allowance.budget.withdraw(now, active))
    }

    fn end(&self, cluster: u64) {
        if let Some(allowance) = self.services.borrow_mut().get_mut(&cluster) {
            allowance.budget.end();
        }
    }

    fn with<T>(
        &self,
        cluster: &Cluster,
        workers: u32,
        use_it: impl FnOnce(&mut Allowance) -> T,
    ) -> T {
        let budget = cluster.settings.retry_budget;
        let settings = Settings { percent: budget.percent, per_second: budget.minimum_per_second };
        let mut services = self.services.borrow_mut();
        if let Some(allowance) = services.get_mut(&cluster.state.id) {
            if allowance.settings != settings {
                allowance.settings = settings;
                allowance.budget.reconfigure(settings, workers);
            }
            return use_it(allowance);
        }
        services.retain(|_, allowance| allowance.state.strong_count() > 0);
        let allowance = services.entry(cluster.state.id).or_insert(Allowance {
            state: Arc::downgrade(&cluster.state),
            settings,
            budget: Budget::new(settings, workers),
            latencies: None,
            busy_until: Duration::ZERO,
        });
        use_it(allowance)
    }
}

impl Granted {
    /// Asks for one more attempt of an exchange that failed or waits. One that only could not connect is not `budgeted`:
    /// nobody has worked for it yet, and the next attempt is the first that somebody works for.
    ///
    /// # Errors
    /// Why there may not be one.
    pub(super) fn take(
        worker: &Rc<Worker>,
        cluster: &Admitted,
        budgeted: bool,
    ) -> Result<Self, Reason> {
        let now = worker.shared.now();
        let permit = cluster
            .state
            .limits
            .take(Resource::Retries, cluster.settings.max_retries)
            .ok_or(Reason::Limit)?;
        cluster.pass_again(now).map_err(|_| Reason::Breaker)?;
        if budgeted && !worker.allowances.withdraw(cluster, worker.shared.workers, now) {
            return Err(Reason::Budget);
        }
        let cluster = budgeted.then_some(cluster.state.id);
        Ok(Self { worker: worker.clone(), cluster, permit })
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        if let Some(cluster) = self.cluster {
            self.worker.allowances.end(cluster);
        }
    }
}
