use leno_api::model::traffic_policy::{self, Settings};
use prometheus::Registry;

use super::*;
use crate::{
    cluster::{
        Refusal, circuit,
        outlier::{Factor, streak::Run},
        window::Batch,
    },
    forward::observed::{Report, tests::cluster},
    telemetry::metrics::Families,
};

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn families() -> Families {
    Families::register(Registry::new()).unwrap()
}

fn snapshot(cluster: &Arc<Cluster>) -> Arc<Snapshot> {
    let mut snapshot = Snapshot::default();
    snapshot.clusters.insert(cluster.key.clone(), cluster.clone());
    Arc::new(snapshot)
}

/// `successes` and `failures` at the endpoint at `place`; the failures came in a row.
fn mail(cluster: &Cluster, place: usize, successes: u64, failures: u64) -> Mail {
    let errors = u32::try_from(failures).unwrap();
    let report = Report {
        batch: Batch { successes, failures, count: successes, ..Batch::default() },
        run: Run { errors, ..Run::default() },
        latency: Some(at(7)),
    };
    let reports = FxHashMap::from_iter([(cluster.endpoints[place].vitals().id, report)]);
    Mail::from_iter([(cluster.state.id, reports)])
}

fn metric(families: &Families, line: &str) -> bool {
    use prometheus::Encoder;
    let mut text = Vec::new();
    let encoder = prometheus::TextEncoder::new();
    encoder.encode(&families.registry().gather(), &mut text).unwrap();
    String::from_utf8(text).unwrap().lines().any(|found| found == line)
}

#[test]
fn who_fails_is_ejected_and_stays_so_under_a_new_configuration() {
    let (mut sampler, families) = (Sampler::default(), families());
    let before = cluster(1..=4, Settings::default(), None);
    sampler.sample(&snapshot(&before), at(100), &Mail::default(), &families.resilience);
    sampler.sample(&snapshot(&before), at(200), &mail(&before, 1, 0, 5), &families.resilience);
    let vitals = &before.endpoints[1].vitals();
    assert_eq!(vitals.factor(), Factor::NONE);
    let (until, cause) = vitals.ejected().unwrap();
    assert_eq!((until, &*cause.to_string()), (at(30_200), "5 failures in a row"));
    assert_eq!(vitals.latency(), Some(at(7)));
    assert!(before.endpoints[0].vitals().factor() == Factor::FULL);
    let counted =
        "leno_outlier_ejections_total{cause=\"consecutive_5xx\",service=\"shop/orders:80\"} 1";
    assert!(metric(&families, counted));
    assert!(metric(&families, "leno_endpoints_ejected{service=\"shop/orders:80\"} 1"));

    let after = cluster(2..=5, Settings::default(), Some(&before));
    sampler.sample(&snapshot(&after), at(300), &Mail::default(), &families.resilience);
    assert_eq!(after.endpoints[0].vitals().ejected().unwrap().0, at(30_200));
    // It comes back by itself, with a part of its share, and then has all of it.
    sampler.sample(&snapshot(&after), at(30_300), &Mail::default(), &families.resilience);
    assert!(vitals.ejected().is_none() && vitals.factor() < Factor(40), "{:?}", vitals.factor());
    assert!(metric(&families, "leno_endpoints_ejected{service=\"shop/orders:80\"} 0"));
    sampler.sample(&snapshot(&after), at(60_300), &Mail::default(), &families.resilience);
    assert_eq!(vitals.factor(), Factor::FULL);
    assert!(!sampler.watched[&after.state.id].is_restless(), "nothing is due any more");
}

#[test]
fn nobody_is_ejected_where_that_is_off_and_all_come_back_when_it_is_switched_off() {
    let mut off = Settings::default();
    off.outlier_detection.enabled = false;
    let (mut sampler, families) = (Sampler::default(), families());
    let on = cluster(1..=4, Settings::default(), None);
    sampler.sample(&snapshot(&on), at(200), &mail(&on, 1, 0, 5), &families.resilience);
    assert_eq!(on.endpoints[1].vitals().factor(), Factor::NONE);
    let off = cluster(1..=4, off, Some(&on));
    for time in [300, 400] {
        sampler.sample(&snapshot(&off), at(time), &mail(&off, 1, 0, 9), &families.resilience);
        let vitals = &off.endpoints[1].vitals();
        assert!(vitals.factor() == Factor::FULL && vitals.ejected().is_none());
    }
    assert!(metric(&families, "leno_endpoints_ejected{service=\"shop/orders:80\"} 0"));
}

fn with_breaker(minimum: u32) -> Settings {
    let mut settings = Settings::default();
    settings.circuit.error_percent = Some(50);
    settings.circuit.minimum = minimum;
    settings.circuit.probes = 1;
    settings
}

#[test]
fn a_breaker_opens_and_closes_and_survives_a_new_configuration() {
    let (mut sampler, families) = (Sampler::default(), families());
    let closed = cluster(1..=1, with_breaker(10), None);
    sampler.sample(&snapshot(&closed), at(100), &mail(&closed, 0, 5, 4), &families.resilience);
    assert!(closed.clone().admit(at(100)).is_ok());
    sampler.sample(&snapshot(&closed), at(200), &mail(&closed, 0, 0, 1), &families.resilience);
    let refusal = |time| closed.clone().admit(at(time)).map(drop).map_err(|(_, why)| why);
    let open = |millis| Err(Refusal::Open { retry_after: at(millis) });
    assert_eq!(refusal(1_200), open(4_000));
    let state = closed.state.circuit.load_full().unwrap();
    assert!(matches!(&*state, circuit::State::Open { since, .. } if *since == at(200)));

    let after = cluster(1..=1, with_breaker(20), Some(&closed));
    sampler.sample(&snapshot(&after), at(1_300), &Mail::default(), &families.resilience);
    assert_eq!(refusal(1_300), open(3_900), "a new policy does not close it");
    assert!(metric(&families, "leno_circuit_state{service=\"shop/orders:80\"} 2"));
    assert!(metric(&families, "leno_circuit_rejected_total{service=\"shop/orders:80\"} 1"));

    sampler.sample(&snapshot(&after), at(5_300), &Mail::default(), &families.resilience);
    assert!(metric(&families, "leno_circuit_state{service=\"shop/orders:80\"} 1"));
    let probe = closed.clone().admit(at(5_300)).unwrap();
    assert!(matches!(refusal(5_300), Err(Refusal::Open { .. })), "there is one probe");
    // Given up, it is there for the next.
    drop(probe);
    let probe = closed.clone().admit(at(5_300)).unwrap();
    probe.pass().settle(crate::cluster::tally::Verdict::Success, false);
    drop(probe);
    sampler.sample(&snapshot(&after), at(5_400), &Mail::default(), &families.resilience);
    assert_eq!(refusal(5_400), Ok(()));
    assert!(metric(&families, "leno_circuit_state{service=\"shop/orders:80\"} 0"));
}

#[test]
fn a_breaker_that_nobody_wants_any_more_lets_everything_pass() {
    let (mut sampler, families) = (Sampler::default(), families());
    let on = cluster(1..=1, with_breaker(1), None);
    sampler.sample(&snapshot(&on), at(100), &mail(&on, 0, 0, 3), &families.resilience);
    assert!(on.clone().admit(at(200)).is_err());
    let off = cluster(1..=1, Settings::default(), Some(&on));
    sampler.sample(&snapshot(&off), at(200), &Mail::default(), &families.resilience);
    assert!(on.clone().admit(at(200)).is_ok() && off.state.circuit.load().is_none());
    assert!(!metric(&families, "leno_circuit_state{service=\"shop/orders:80\"} 0"));
    sampler.sample(&Arc::default(), at(300), &Mail::default(), &families.resilience);
    assert!(sampler.watched.is_empty());
}

#[test]
fn slow_calls_alone_make_a_breaker() {
    let mut settings = Settings::default();
    settings.circuit.slow_calls = Some(traffic_policy::SlowCalls::default());
    settings.circuit.minimum = 4;
    let (mut sampler, families) = (Sampler::default(), families());
    let cluster = cluster(1..=1, settings, None);
    sampler.sample(&snapshot(&cluster), at(100), &mail(&cluster, 0, 0, 50), &families.resilience);
    assert!(cluster.clone().admit(at(100)).is_ok(), "failures do not open it");
    let mut mail = mail(&cluster, 0, 4, 0);
    for report in mail.values_mut().flat_map(FxHashMap::values_mut) {
        report.batch.slow = 2;
    }
    sampler.sample(&snapshot(&cluster), at(200), &mail, &families.resilience);
    assert!(cluster.clone().admit(at(200)).is_err());
}
