use std::time::Instant;

use leno_api::model::traffic_policy::{self, Settings};
use prometheus::Registry;

use super::*;
use crate::{
    cluster::{
        Refusal, circuit,
        outlier::{Factor, streak::Run},
        probe::Failure,
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
    assert!(closed.clone().admit(|| at(100)).is_ok());
    sampler.sample(&snapshot(&closed), at(200), &mail(&closed, 0, 0, 1), &families.resilience);
    let refusal = |time| closed.clone().admit(|| at(time)).map(drop).map_err(|(_, why)| why);
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
    let probe = closed.clone().admit(|| at(5_300)).unwrap();
    assert!(matches!(refusal(5_300), Err(Refusal::Open { .. })), "there is one probe");
    // Given up, it is there for the next.
    drop(probe);
    let probe = closed.clone().admit(|| at(5_300)).unwrap();
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
    assert!(on.clone().admit(|| at(200)).is_err());
    let off = cluster(1..=1, Settings::default(), Some(&on));
    sampler.sample(&snapshot(&off), at(200), &Mail::default(), &families.resilience);
    assert!(on.clone().admit(|| at(200)).is_ok() && off.state.circuit.load().is_none());
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
    assert!(cluster.clone().admit(|| at(100)).is_ok(), "failures do not open it");
    let mut mail = mail(&cluster, 0, 4, 0);
    for report in mail.values_mut().flat_map(FxHashMap::values_mut) {
        report.batch.slow = 2;
    }
    sampler.sample(&snapshot(&cluster), at(200), &mail, &families.resilience);
    assert!(cluster.clone().admit(|| at(200)).is_err());
}

fn with_breakers(minimum: u32) -> Settings {
    let mut settings = with_breaker(minimum);
    settings.circuit.per = traffic_policy::Per::Endpoint;
    settings.outlier_detection.enabled = false;
    settings
}

fn lets_through(cluster: &Cluster, place: usize) -> bool {
    cluster.endpoints[place].vitals().breaker().is_none_or(|breaker| breaker.gate.lets_through())
}

#[test]
fn each_endpoint_has_its_own_breaker_that_survives_a_new_configuration() {
    let (mut sampler, families) = (Sampler::default(), families());
    let before = cluster(1..=3, with_breakers(5), None);
    sampler.sample(&snapshot(&before), at(100), &mail(&before, 1, 0, 9), &families.resilience);
    sampler.sample(&snapshot(&before), at(200), &mail(&before, 0, 9, 0), &families.resilience);
    assert!(lets_through(&before, 0) && !lets_through(&before, 1) && lets_through(&before, 2));
    assert!(before.clone().admit(|| at(200)).is_ok(), "the service has none");
    let open = "leno_endpoint_circuits_open{service=\"shop/orders:80\"} 1";
    assert!(metric(&families, open));
    // Its lease says so, too, and so does the cluster when nobody is left.
    assert!(matches!(
        before.lease(1, Instant::now(), || at(300)),
        Err(crate::cluster::Unleased::Open)
    ));

    let after = cluster(2..=4, with_breakers(6), Some(&before));
    sampler.sample(&snapshot(&after), at(300), &Mail::default(), &families.resilience);
    assert!(!lets_through(&after, 0) && lets_through(&after, 1) && metric(&families, open));
    sampler.sample(&snapshot(&after), at(5_200), &Mail::default(), &families.resilience);
    let probe = after.lease(0, Instant::now(), || at(5_200)).unwrap();
    assert!(after.lease(0, Instant::now(), || at(5_200)).is_err(), "there is one probe");
    probe.settle(crate::cluster::tally::Verdict::Success, false);
    sampler.sample(&snapshot(&after), at(5_300), &Mail::default(), &families.resilience);
    assert!(lets_through(&after, 0));
    assert!(metric(&families, "leno_endpoint_circuits_open{service=\"shop/orders:80\"} 0"));

    sampler.sample(&snapshot(&after), at(5_400), &mail(&after, 2, 0, 9), &families.resilience);
    assert!(!lets_through(&after, 2));
    let off = cluster(2..=4, Settings::default(), Some(&after));
    sampler.sample(&snapshot(&off), at(5_500), &Mail::default(), &families.resilience);
    assert!(lets_through(&off, 2), "nobody wants it any more");
}

fn with_checks(enabled: bool) -> Settings {
    let mut settings = Settings::default();
    settings.outlier_detection.enabled = enabled;
    settings.health_check = Some(traffic_policy::HealthCheck::default());
    settings
}

/// Ends a check of the endpoint at `place`.
fn answer(sampler: &mut Sampler, cluster: &Cluster, place: usize, millis: u64, good: bool) {
    let families = families();
    let answer = Answer {
        cluster: cluster.state.id,
        endpoint: cluster.endpoints[place].vitals().id,
        answer: if good { Ok(()) } else { Err(Failure::Unwell("refused".to_owned())) },
    };
    sampler.answered(at(millis), vec![answer], &families.resilience);
}

#[test]
fn who_fails_its_checks_gets_nothing_with_and_without_outlier_detection() {
    for enabled in [true, false] {
        let (mut sampler, families) = (Sampler::default(), families());
        let before = cluster(1..=4, with_checks(enabled), None);
        let tick = |sampler: &mut Sampler, cluster: &Arc<Cluster>, millis| {
            sampler.sample(&snapshot(cluster), at(millis), &Mail::default(), &families.resilience);
            sampler.ask(at(millis)).len()
        };
        let asked = (0..=10).map(|tenth| tick(&mut sampler, &before, tenth * 100)).sum::<usize>();
        assert_eq!(asked, 4, "each once, though nobody has called it");
        answer(&mut sampler, &before, 1, 1_100, false);
        tick(&mut sampler, &before, 1_200);
        assert_eq!(before.endpoints[1].factor(), Factor::NONE);
        assert!(before.endpoints[1].vitals().checked().is_some_and(|checked| !checked.healthy));
        // It stays out under a new configuration, and whoever is new is asked.
        let after = cluster(2..=5, with_checks(!enabled), Some(&before));
        tick(&mut sampler, &after, 1_300);
        assert_eq!(after.endpoints[0].factor(), Factor::NONE);
        answer(&mut sampler, &after, 0, 1_400, true);
        answer(&mut sampler, &after, 0, 1_500, true);
        tick(&mut sampler, &after, 1_600);
        let back = after.endpoints[0].factor();
        assert!(back != Factor::NONE && back < Factor(40), "on its ramp: {back:?}");
        answer(&mut sampler, &after, 1, 1_700, false);
        let off = cluster(2..=5, Settings::default(), Some(&after));
        tick(&mut sampler, &off, 1_800);
        assert!(off.endpoints[1].factor() != Factor::NONE);
        assert!(off.endpoints[1].vitals().checked().is_none());
        assert_eq!(tick(&mut sampler, &off, 60_000), 0);
    }
}

#[test]
fn who_was_never_called_is_not_watched() {
    let (mut sampler, families) = (Sampler::default(), families());
    let idle = cluster(1..=200, with_breaker(1), None);
    sampler.sample(&snapshot(&idle), at(100), &Mail::default(), &families.resilience);
    assert!(sampler.watched.is_empty());
    assert!(idle.endpoints.iter().all(|endpoint| endpoint.known_vitals().is_none()));
    let large = cluster(1..=101, with_checks(true), Some(&idle));
    sampler.sample(&snapshot(&large), at(200), &Mail::default(), &families.resilience);
    assert!(sampler.ask(at(5_000)).is_empty(), "too many to ask for nothing");
    sampler.sample(&snapshot(&large), at(5_000), &mail(&large, 0, 1, 0), &families.resilience);
    assert_eq!(sampler.ask(at(6_000)).len(), 101);
}
