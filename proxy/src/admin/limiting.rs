//! Rate limits and faults as `/clusters` shows them.

use leno_api::model::rate_limit_policy::LimitScope;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, ClusterKey},
    filter::rate_limit::counter::ONLY,
    snapshot::{HeldLimit, LimitId, Snapshot},
};

/// What a service takes, under our own application's port.
pub(super) fn rate_limits(snapshot: &Snapshot, cluster: &Cluster) -> Vec<Value> {
    of(snapshot, cluster).map(|(id, held)| rate_limit(id, held)).collect()
}

/// Which policy makes the cluster fail on purpose.
pub(super) fn faults(snapshot: &Snapshot, cluster: &Cluster) -> Option<String> {
    snapshot.faults.get(&cluster.key).map(|policy| policy.name.to_string())
}

/// The same as lines of the text form, without the cluster's name.
pub(super) fn lines(snapshot: &Snapshot, cluster: &Cluster) -> Vec<String> {
    let limits = of(snapshot, cluster).map(|(id, held)| {
        let model = &held.limit.model;
        format!(
            "rate_limit::{}/{}::{} per {:?}, {:?}",
            id.policy, id.name, model.requests, model.per, model.scope
        )
    });
    let faults = faults(snapshot, cluster).map(|policy| format!("faults::{policy}"));
    limits.chain(faults).collect()
}

fn of<'a>(
    snapshot: &'a Snapshot,
    cluster: &'a Cluster,
) -> impl Iterator<Item = (&'a LimitId, &'a HeldLimit)> {
    let service = match &cluster.key {
        ClusterKey::Application(service, _) => Some(service),
        ClusterKey::Service(..) | ClusterKey::Passthrough(_) => None,
    };
    snapshot.inbound.limits.iter().filter(move |(id, _)| Some(&id.service) == service)
}

fn rate_limit(id: &LimitId, held: &HeldLimit) -> Value {
    let (model, counter) = (&held.limit.model, &held.limit.counter);
    let (keys, forgotten) = counter.sizes();
    let mut share = None;
    if model.scope == LimitScope::Global && model.by.is_empty() {
        counter.visit(|key, bucket| {
            share = (key == ONLY).then(|| f64::from(bucket.share().millionths()) / 10_000.0);
        });
    }
    json!({
        "policy": id.policy.to_string(), "limit": &*id.name,
        "requests": model.requests, "perMs": u64::try_from(model.per.as_millis()).unwrap_or(u64::MAX),
        "burst": model.burst, "scope": format!("{:?}", model.scope),
        "keys": keys, "keysForgotten": forgotten, "sharePercent": share,
    })
}
