use std::net::SocketAddr;

use leno_api::model::{ObjectName, service::Protocol, traffic_policy::Settings};

use super::*;
use crate::{
    cluster::{ClusterKey, Endpoint},
    telemetry::scope::{Scope, ScopeLabels},
};

/// A cluster of `count` endpoints that differ by port, from 1; those of `old` with its vitals and its state.
pub(in crate::forward) fn cluster(
    ports: std::ops::RangeInclusive<u16>,
    settings: Settings,
    old: Option<&Cluster>,
) -> Arc<Cluster> {
    let scope = Scope::new(ScopeLabels::default());
    let endpoint = |port| {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let known = old
            .into_iter()
            .flat_map(|old| old.endpoints.iter())
            .find(|known| known.address() == address);
        let endpoint = Endpoint::own(format!("shop/orders-{port}").into(), address, scope.clone());
        match known {
            Some(known) => endpoint.with_vitals(known.vitals().clone()),
            None => endpoint,
        }
    };
    Arc::new(Cluster {
        key: ClusterKey::Service(ObjectName::new("shop", "orders"), 80),
        name: "shop/orders:80".into(),
        destination: None,
        protocol: Protocol::Auto,
        settings: settings.into(),
        endpoints: ports.map(endpoint).collect::<Vec<_>>().into(),
        scope: scope.clone(),
        state: old.map_or_else(Arc::default, |old| old.state.clone()),
    })
}

fn attempted(kind: Kind, millis: u64) -> Attempted {
    Attempted { kind, latency: Duration::from_millis(millis), timed: kind != Kind::Local }
}

const NOW: Duration = Duration::from_secs(1);

fn id(cluster: &Cluster, place: usize) -> u64 {
    cluster.endpoints[place].vitals().id
}

#[test]
fn what_workers_saw_comes_together_once() {
    let cluster = cluster(1..=2, Settings::default(), None);
    let (mut one, mut other) = (Observed::default(), Observed::default());
    let mailbox = Mailbox::default();
    let first = |observed: &mut Observed, place, kind, millis| {
        observed.record(&cluster, 0, (place, id(&cluster, place)), NOW, attempted(kind, millis))
    };
    assert!(first(&mut one, 0, Kind::Success, 10), "somebody has to be woken");
    assert!(!first(&mut one, 0, Kind::Gateway, 20), "somebody is awake");
    first(&mut one, 0, Kind::Gateway, 30);
    first(&mut other, 0, Kind::Local, 1);
    first(&mut other, 1, Kind::Success, 5);
    for observed in [&mut one, &mut other] {
        assert!(!observed.is_told());
        observed.tell(NOW, &mailbox);
        assert!(observed.is_told());
        observed.tell(NOW, &mailbox);
    }
    let mail = mailbox.take();
    assert!(mailbox.take().is_empty());
    let reports = &mail[&cluster.state.id];
    let report = &reports[&id(&cluster, 0)];
    let expected = Batch {
        successes: 1,
        failures: 3,
        gateway: 2,
        local: 1,
        latency_sum: Duration::from_millis(60),
        count: 3,
        ..Batch::default()
    };
    assert_eq!(report.batch, expected);
    assert_eq!((report.run.errors, report.run.gateway, report.run.local), (2, 2, 1));
    assert_eq!(reports[&id(&cluster, 1)].latency, Some(Duration::from_millis(5)));
}

#[test]
fn slow_answers_are_those_beyond_the_threshold() {
    let slow_calls = leno_api::model::traffic_policy::SlowCalls {
        threshold: Duration::from_millis(15),
        percent: 50,
    };
    let mut settings = Settings::default();
    settings.circuit.slow_calls = Some(slow_calls);
    let cluster = cluster(1..=1, settings, None);
    let (mut observed, mailbox) = (Observed::default(), Mailbox::default());
    for millis in [14, 15, 16, 17] {
        observed.record(&cluster, 0, (0, id(&cluster, 0)), NOW, attempted(Kind::Success, millis));
    }
    observed.tell(NOW, &mailbox);
    assert_eq!(mailbox.take()[&cluster.state.id][&id(&cluster, 0)].batch.slow, 2);
}

#[test]
fn what_is_known_of_endpoints_outlives_a_new_list() {
    let before = cluster(1..=3, Settings::default(), None);
    let (mut observed, mailbox) = (Observed::default(), Mailbox::default());
    for (place, millis) in [(0, 10), (1, 20), (2, 30)] {
        let id = id(&before, place);
        observed.record(&before, 0, (place, id), NOW, attempted(Kind::Success, millis));
    }
    // The first goes, a fourth comes.
    let after = cluster(2..=4, Settings::default(), Some(&before));
    assert_eq!(id(&after, 0), id(&before, 1));
    let latency = |observed: &mut Observed, cluster: &Cluster, place| {
        observed.latencies(cluster).0.estimate(place).map(|latency| latency.as_millis())
    };
    let known = [0, 1, 2].map(|place| latency(&mut observed, &after, place));
    assert_eq!(known, [Some(20), Some(30), None]);
    // An exchange under the older configuration neither brings its list back nor is lost.
    observed.record(&before, 7, (1, id(&before, 1)), NOW, attempted(Kind::Success, 40));
    observed.record(&before, 0, (0, id(&before, 0)), NOW, attempted(Kind::Success, 50));
    let known = [0, 1, 2].map(|place| latency(&mut observed, &after, place));
    assert_eq!(known, [Some(40), Some(30), None]);
    observed.tell(NOW, &mailbox);
    let mail = mailbox.take();
    let reports = &mail[&after.state.id];
    assert!(!reports.contains_key(&id(&before, 0)), "who is gone is not reported");
    assert_eq!(reports[&id(&after, 0)].batch.successes, 2);
    assert_eq!(reports[&id(&after, 1)].batch.successes, 1);
}

#[test]
fn clusters_that_are_gone_are_forgotten() {
    let gone = cluster(1..=1, Settings::default(), None);
    let (mut observed, mailbox) = (Observed::default(), Mailbox::default());
    observed.record(&gone, 0, (0, id(&gone, 0)), NOW, attempted(Kind::Success, 1));
    observed.tell(NOW, &mailbox);
    assert_eq!((observed.slots.len(), observed.clusters.iter().flatten().count()), (1, 1));
    drop(gone);
    observed.tell(NOW, &mailbox);
    assert_eq!((observed.slots.len(), observed.clusters.iter().flatten().count()), (0, 0));
    // Its place is taken by another, and whoever still has its number is not mixed up with that.
    let (one, other) =
        (cluster(1..=1, Settings::default(), None), cluster(1..=1, Settings::default(), None));
    observed.record(&one, 0, (0, id(&one, 0)), NOW, attempted(Kind::Success, 1));
    observed.record(&other, 0, (0, id(&other, 0)), NOW, attempted(Kind::Local, 1));
    observed.tell(NOW, &mailbox);
    let mail = mailbox.take();
    assert_eq!(mail[&one.state.id][&id(&one, 0)].batch.failures, 0);
    assert_eq!(mail[&other.state.id][&id(&other, 0)].batch.failures, 1);
    assert_eq!(observed.clusters.len(), 2);
}
