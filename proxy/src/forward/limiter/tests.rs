use leno_api::model::{ObjectName, service::Protocol, traffic_policy::Settings};
use prometheus::{Encoder, Registry, TextEncoder};

use super::*;
use crate::{
    cluster::{
        Endpoint, State,
        admission::{Seat, add},
    },
    telemetry::{
        metrics::Families,
        scope::{Scope, ScopeLabels},
    },
};

fn cluster(state: &Arc<State>, limit: Option<AdaptiveConcurrency>) -> Arc<Cluster> {
    let address = "127.0.0.1:9001".parse().unwrap();
    let scope = Scope::new(ScopeLabels::default());
    Arc::new(Cluster {
        key: ClusterKey::Application(ObjectName::new("shop", "orders"), address),
        name: "inbound:9001".into(),
        destination: None,
        protocol: Protocol::Http,
        settings: Settings { adaptive_concurrency: limit, ..Settings::default() }.into(),
        endpoints: vec![Endpoint::own("orders-1".into(), address, scope.clone())].into(),
        scope,
        state: state.clone(),
    })
}

fn snapshot(cluster: &Arc<Cluster>) -> Arc<Snapshot> {
    let mut snapshot = Snapshot::default();
    snapshot.clusters.insert(cluster.key.clone(), cluster.clone());
    Arc::new(snapshot)
}

fn metrics(families: &Families) -> String {
    let mut text = Vec::new();
    TextEncoder::new().encode(&families.registry().gather(), &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    text.lines().filter(|line| line.starts_with("leno_concurrency")).collect::<Vec<_>>().join("\n")
}

fn busy(seat: &Seat, running: u32, waiting: u32) {
    seat.most_running.store(running, Ordering::Relaxed);
    seat.waiting.store(waiting, Ordering::Relaxed);
}

/// The application answers 50 requests in 100 ms, each after 10 ms.
fn answer(seat: &Seat) {
    add(&seat.answers, 50);
    add(&seat.latency, 50 * 10_000_000);
}

#[test]
fn the_limit_goes_where_it_is_needed_and_is_shown() {
    let families = Families::register(Registry::new()).unwrap();
    let figures = &families.resilience.concurrency;
    let (mut limiters, state) = (Limiters::default(), Arc::new(State::default()));
    let limit = AdaptiveConcurrency { minimum: 20, maximum: 20, ..AdaptiveConcurrency::default() };
    let limited = snapshot(&cluster(&state, Some(limit.clone())));
    let (one, other) = (state.admission.sit_down(), state.admission.sit_down());
    let share = |seat: &Seat| seat.limit.load(Ordering::Relaxed);
    let mut now = Duration::ZERO;
    let mut sample = |snapshot: &Arc<Snapshot>| {
        limiters.sample(snapshot, now, || 0, figures);
        now += Duration::from_millis(100);
    };
    sample(&limited);
    assert_eq!((share(&one), share(&other)), (10, 10));
    for _ in 0..3 {
        busy(&one, 10, 30);
        busy(&other, 2, 0);
        answer(&one);
        add(&one.dropped[3], 2);
        sample(&limited);
        assert_eq!((share(&one), share(&other)), (18, 2));
    }
    let found = state.admission.found.load_full().unwrap();
    assert_eq!((found.limit, found.unloaded), (20, Some(Duration::from_millis(10))));
    assert_eq!(one.unloaded.load(Ordering::Relaxed), 10_000_000);
    let shown = metrics(&families);
    for line in [
        "leno_concurrency_limit{port=\"9001\",service=\"shop/orders\"} 20",
        "leno_concurrency_waiting{port=\"9001\",service=\"shop/orders\"} 30",
        "leno_concurrency_dropped_total{port=\"9001\",priority=\"sheddable\",service=\"shop/orders\"} 6",
        "leno_concurrency_dropped_total{port=\"9001\",priority=\"health\",service=\"shop/orders\"} 0",
    ] {
        assert!(shown.lines().any(|found| found == line), "{line}\n{shown}");
    }
    // Other bounds: what was found out stays.
    let wider = AdaptiveConcurrency { maximum: 40, ..limit };
    sample(&snapshot(&cluster(&state, Some(wider))));
    assert!(state.admission.found.load_full().unwrap().unloaded.is_some());
    sample(&snapshot(&cluster(&state, None)));
    assert!(state.admission.found.load_full().is_none());
    assert_eq!(metrics(&families), "");
}
