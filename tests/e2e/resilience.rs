//! Bad endpoints among good ones, and a service that fails as a whole.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::io::AsyncWriteExt;

use crate::{
    client::{Answer, Wire},
    mesh::{Mesh, Proxy, until},
    origin::{self, Origin},
};

const GET: &str = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const FAILED: &str = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n";
/// Of the slow one; the others answer at once.
const SLOW: Duration = Duration::from_millis(100);

/// Eight good endpoints, a slow one, one that fails always, and one that is not there.
struct Eleven {
    proxy: Proxy,
    slow: Arc<AtomicUsize>,
    _origins: Vec<Origin>,
}

/// Answers the same after `delay`, and counts.
async fn origin(answer: &'static str, delay: Duration) -> (Origin, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let origin = Origin::raw(move |mut stream, _| {
        let count = counted.clone();
        async move {
            while origin::read_request(&mut stream).await.is_some() {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(delay).await;
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    });
    (origin.await, count)
}

async fn eleven(policy: &str) -> Eleven {
    let (slow, count) = origin(OK, SLOW).await;
    let mut origins = vec![slow, origin(FAILED, Duration::ZERO).await.0];
    for _ in 0..8 {
        origins.push(origin(OK, Duration::ZERO).await.0);
    }
    let mut addresses: Vec<SocketAddr> = origins.iter().map(|origin| origin.address).collect();
    addresses.push(origin::nobody());
    let mut mesh = Mesh::default().service("shop", "http", &addresses);
    if !policy.is_empty() {
        mesh = mesh.policy("shop", policy);
    }
    let proxy = mesh.arguments(&["--workers", "2"]).start().await;
    Eleven { proxy, slow: count, _origins: origins }
}

/// Ten callers, each with so many requests one after the other: how many were not answered with 200.
async fn failures(proxy: &Proxy, each: usize) -> usize {
    let callers = (0..10).map(|_| {
        let outbound = proxy.outbound;
        tokio::spawn(async move {
            let mut wire = Wire::connect(outbound).await;
            let mut failures = 0;
            for _ in 0..each {
                failures += usize::from(wire.ask(GET).await.status != 200);
            }
            failures
        })
    });
    let mut failures = 0;
    for caller in callers.collect::<Vec<_>>() {
        failures += caller.await.unwrap();
    }
    failures
}

/// Sends requests until the one that fails and the one that is not there are ejected.
async fn both_ejected(eleven: &Eleven) {
    until("two endpoints to be ejected", async || {
        failures(&eleven.proxy, 20).await;
        let ejected = eleven.proxy.metric("leno_endpoints_ejected", &[]).await;
        (ejected == Some(2.0)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn one_slow_one_failing_and_one_crashed_of_eleven_are_invisible() {
    let eleven = eleven("").await;
    let mut seen = Vec::new();
    // On a machine that stands still for a while all of them are slow, and who was asked then is avoided for a while.
    until("the slow one to be avoided, and nobody to notice anything", async || {
        both_ejected(&eleven).await;
        let before = eleven.slow.load(Ordering::Relaxed);
        let failures = failures(&eleven.proxy, 200).await;
        let slow = eleven.slow.load(Ordering::Relaxed) - before;
        seen.push((failures, slow));
        eprintln!("of 2000 {failures} failed, and the slow one had {slow}: {seen:?}");
        // Its even share is 222.
        (failures <= 2 && slow <= 60).then_some(())
    })
    .await;

    let cluster = eleven.proxy.cluster("default/shop:80").await;
    assert_eq!(cluster["balancer"], "peakEwma");
    let endpoints = cluster["endpoints"].as_array().unwrap();
    let shown = |number: usize| {
        let workload = format!("default/shop-{number}");
        let found = endpoints.iter().find(|endpoint| endpoint["workload"] == workload);
        &found.unwrap()["health"]
    };
    assert!(shown(0)["ejected"].is_null() && shown(0)["latencyMs"].as_f64().unwrap() >= 50.0);
    assert_eq!(shown(1)["factor"], 0.0);
    assert!(shown(1)["ejected"]["cause"].as_str().unwrap().contains("in a row"), "{cluster}");
    assert!(shown(1)["failures"].as_u64().unwrap() >= 5 && shown(1)["successes"] == 0);
    assert!(shown(2)["factor"] == 1.0 && shown(2)["successes"].as_u64().unwrap() > 20);
    let text = eleven.proxy.page("/clusters").await;
    assert_eq!(text.matches("::health_flags::/failed_outlier_check").count(), 2, "{text}");
    let errors = eleven.proxy.errors();
    assert!(errors.contains("default/shop-1") && errors.contains("is ejected for"), "{errors}");
}

/// The same load without protection: what the test above shows is not the machine's kindness.
#[tokio::test]
async fn plain_round_robin_shows_all_of_them() {
    let policy = "balancer: {roundRobin: {}}\noutlierDetection: {mode: Disabled}";
    let eleven = eleven(policy).await;
    let failures = failures(&eleven.proxy, 60).await;
    // An even share is 54.
    assert!(failures >= 40, "only {failures} of 600 failed");
    let slow = eleven.slow.load(Ordering::Relaxed);
    assert!(slow >= 40, "the slow one had only {slow} of 600");
    assert_eq!(eleven.proxy.metric("leno_outlier_ejections_total", &[]).await, None);
}

#[tokio::test]
async fn other_balancers_skip_the_ejected() {
    for balancer in ["roundRobin", "random", "leastRequest"] {
        let eleven = eleven(&format!("balancer: {{{balancer}: {{}}}}")).await;
        both_ejected(&eleven).await;
        let failures = failures(&eleven.proxy, 20).await;
        assert_eq!(failures, 0, "{balancer}");
    }
}

/// An origin that fails for as long as it is told.
async fn moody() -> (Origin, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (failing, count) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let shared = (failing.clone(), count.clone());
    let origin = Origin::raw(move |mut stream, _| {
        let (failing, count) = shared.clone();
        async move {
            while origin::read_request(&mut stream).await.is_some() {
                count.fetch_add(1, Ordering::Relaxed);
                let answer = if failing.load(Ordering::Relaxed) { FAILED } else { OK };
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    });
    (origin.await, failing, count)
}

#[tokio::test]
async fn a_breaker_opens_says_why_and_closes_again() {
    let (origin, failing, count) = moody().await;
    let policy =
        "breaker: {errorRate: {percent: 50, minimum: 10}, openFor: 2s, maxOpenFor: 2s, probes: 2}";
    let mesh = Mesh::default().service("shop", "http", &[origin.address]).policy("shop", policy);
    let proxy = mesh.start().await;
    let cluster = "default/shop:80";
    until("the breaker to be there", async || {
        (proxy.cluster(cluster).await["circuit"]["state"] == "closed").then_some(())
    })
    .await;
    let mut wire = Wire::connect(proxy.outbound).await;
    let mut asked = 0;
    let rejected: Answer = until("the breaker to open", async || {
        let answer = wire.ask(GET).await;
        asked += 1;
        (answer.status == 503).then_some(answer)
    })
    .await;
    let retry_after: u64 = rejected.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=2).contains(&retry_after), "{retry_after}");
    assert!(count.load(Ordering::Relaxed) < asked, "what is rejected does not reach it");
    let circuit = proxy.cluster(cluster).await["circuit"].clone();
    assert_ne!(circuit["state"], "closed");
    assert!(circuit["cause"].as_str().unwrap().contains("error rate 100 %"), "{circuit}");
    assert!(circuit["rejected"].as_u64().unwrap() >= 1);
    let log = proxy.access_log(asked).await;
    assert_eq!(log[asked - 1]["response_flags"], "UO");
    let line = log[asked - 1].to_string();
    assert!(line.contains("the breaker is open: error rate"), "{line}");
    assert!(proxy.errors().contains("breaker of default/shop:80: open for 2 s"));
    until("rejections to be counted", async || {
        let counted = proxy.metric("leno_circuit_rejected_total", &[("service", cluster)]).await;
        counted.filter(|counted| *counted >= 1.0)
    })
    .await;

    failing.store(false, Ordering::Relaxed);
    until("the breaker to close", async || {
        wire.ask(GET).await;
        (proxy.cluster(cluster).await["circuit"]["state"] == "closed").then_some(())
    })
    .await;
    proxy.counts("leno_circuit_state", &[("service", cluster)], 0.0).await;
    for _ in 0..10 {
        assert_eq!(wire.ask(GET).await.status, 200);
    }
}
