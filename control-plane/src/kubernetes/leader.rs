//! Holds the Lease, or waits for it.

use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    chain,
    election::{DEADLINE, Election, LEASE, PERIOD, Record, Step},
    metrics::Metrics,
};
use crate::inject::names;

/// How long one call may take: several fit into [`DEADLINE`].
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) struct Leader {
    api: Api<Lease>,
    identity: String,
    metrics: Metrics,
    leads: watch::Sender<bool>,
}

impl Leader {
    pub(super) fn new(
        client: Client,
        namespace: &str,
        identity: String,
        metrics: Metrics,
        leads: watch::Sender<bool>,
    ) -> Self {
        Self { api: Api::namespaced(client, namespace), identity, metrics, leads }
    }

    /// Never ends.
    pub(super) async fn run(self) {
        let mut election = Election::new(self.identity.clone());
        let mut failing = false;
        loop {
            let looked = timeout(PATIENCE, self.look(&mut election)).await;
            let looked = looked.unwrap_or_else(|_| Err("no answer in time".to_owned()));
            match looked {
                Ok(()) => failing = false,
                Err(reason) if !failing => {
                    failing = true;
                    tracing::warn!(
                        reason,
                        "the Lease of the control plane cannot be read or written; without it no status is written"
                    );
                }
                Err(_) => {}
            }
            self.publish(&election);
            // Not after the end of our own claim: then somebody else may lead.
            let ends = election.ends().map(|end| end.saturating_duration_since(Instant::now()));
            sleep(ends.filter(|rest| !rest.is_zero()).map_or(PERIOD, |rest| rest.min(PERIOD)))
                .await;
            self.publish(&election);
        }
    }

    fn publish(&self, election: &Election) {
        let leads = election.leads(Instant::now());
        self.leads.send_if_modified(|before| {
            let changed = *before != leads;
            *before = leads;
            if changed {
                tracing::info!(
                    leads,
                    identity = self.identity,
                    "leadership changed: whoever leads writes statuses to Kubernetes"
                );
            }
            changed
        });
        self.metrics.leads.set(i64::from(leads));
    }

    async fn look(&self, election: &mut Election) -> Result<(), String> {
        let failed = |error: kube::Error| chain(&error);
        let live = self.api.get_opt(names::CONTROL_PLANE).await.map_err(failed)?;
        let step = election.see(live.as_ref().map(record), Instant::now());
        let Step::Claim { anew } = step else { return Ok(()) };
        let sent = Instant::now();
        let lease = self.claim(live.as_ref(), anew);
        let parameters = PostParams::default();
        let written = match live {
            None => self.api.create(&parameters, &lease).await,
            // With the resourceVersion that was read: of two that claim at once, one gets a conflict.
            Some(_) => self.api.replace(names::CONTROL_PLANE, &parameters, &lease).await,
        };
        match written {
            Ok(_) => {
                election.claimed(sent);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    fn claim(&self, live: Option<&Lease>, anew: bool) -> Lease {
        let now = SystemTime::now();
        let now = k8s_openapi::jiff::Timestamp::try_from(now).ok().map(MicroTime);
        let before = live.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let transitions = before.lease_transitions.unwrap_or(0);
        let metadata = live.map_or_else(
            || ObjectMeta { name: Some(names::CONTROL_PLANE.to_owned()), ..ObjectMeta::default() },
            |lease| lease.metadata.clone(),
        );
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
            renew_time: now.clone(),
            acquire_time: if anew { now } else { before.acquire_time.clone() },
            lease_transitions: Some(transitions.saturating_add(i32::from(anew && live.is_some()))),
            ..before
        };
        Lease { metadata, spec: Some(spec) }
    }
}

/// Several looks must fit before a claim ends.
const _: () = assert!(DEADLINE.as_secs() > PATIENCE.as_secs() + 2 * PERIOD.as_secs());

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    Record {
        holder: spec.holder_identity,
        renewed: spec.renew_time.map(|time| time.0.to_string()),
        transitions: spec.lease_transitions.unwrap_or(0),
    }
}
