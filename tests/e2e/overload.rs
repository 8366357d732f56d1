//! An application that is asked for twice of what it can do, behind its own sidecar.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::AsyncWriteExt,
    sync::Semaphore,
    task::JoinSet,
    time::{MissedTickBehavior, timeout},
};

use crate::{
    client::{self, Wire},
    mesh::{Mesh, Proxy, until},
    origin::{self, Origin},
};

/// What the application does at once, and how long each takes: 80 a second.
const THREADS: usize = 8;
const SERVICE: Duration = Duration::from_millis(100);
/// Twice as many.
const EVERY: Duration = Duration::from_micros(6_250);
/// After this a caller gives up, and what the application does for it is in vain.
const CALLERS_WAIT: Duration = Duration::from_millis(700);
const LIMITED: &str = "adaptiveConcurrency: {}\n\
    priorities: [{header: {name: x-tier, exact: gold}, priority: Critical}, {pathPrefix: /batch, priority: Sheddable}]";

/// An application with so many threads and a queue of its own before them, in which requests stay that nobody waits
/// for any more: it cannot know. Counts what it did.
async fn application() -> (Origin, Arc<AtomicUsize>) {
    let (threads, done) = (Arc::new(Semaphore::new(THREADS)), Arc::new(AtomicUsize::new(0)));
    let shared = (threads, done.clone());
    let origin = Origin::raw(move |mut stream, _| {
        let (threads, done) = shared.clone();
        async move {
            while let Some((head, _)) = origin::read_request(&mut stream).await {
                if !head.starts_with("get /healthz ") {
                    let _thread = threads.acquire().await.unwrap();
                    tokio::time::sleep(SERVICE).await;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    });
    (origin.await, done)
}

/// The application's sidecar.
async fn beside(application: &Origin, policy: &str, workers: &str) -> Proxy {
    let mut mesh = Mesh::default().service("shop", "http", &[application.address]);
    if !policy.is_empty() {
        mesh = mesh.policy("shop", policy);
    }
    mesh.arguments(&["--name", "shop-0", "--workers", workers]).start().await
}

/// One request on a connection of its own, from a caller that waits only so long.
async fn call(inbound: SocketAddr, path: &str) -> Option<u16> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n");
    let answer = async { Wire::connect(inbound).await.ask(request).await.status };
    timeout(CALLERS_WAIT, answer).await.ok()
}

/// How many requests were answered in time while twice as many came as can be served.
async fn overload(inbound: SocketAddr, path: &'static str, time: Duration) -> usize {
    let began = Instant::now();
    overload_while(inbound, path, || began.elapsed() < time).await
}

/// The same for as long as it goes on.
async fn overload_while(
    inbound: SocketAddr,
    path: &'static str,
    goes_on: impl Fn() -> bool,
) -> usize {
    let (mut callers, mut good) = (JoinSet::new(), 0);
    let mut ticks = tokio::time::interval(EVERY);
    // Whoever stood still for a while does not send all at once what was due meanwhile.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while goes_on() {
        ticks.tick().await;
        callers.spawn(call(inbound, path));
        while let Some(ended) = callers.try_join_next() {
            good += usize::from(ended.unwrap() == Some(200));
        }
    }
    while let Some(ended) = callers.join_next().await {
        good += usize::from(ended.unwrap() == Some(200));
    }
    good
}

/// Which share of what the application does under an overload that lasts is of use to anybody, and how much it does.
async fn useful(policy: &str) -> (f64, usize) {
    let (application, done) = application().await;
    let proxy = beside(&application, policy, "2").await;
    // Until what goes on has come into its own.
    overload(proxy.inbound, "/", Duration::from_secs(4)).await;
    let before = done.load(Ordering::Relaxed);
    let good = overload(proxy.inbound, "/", Duration::from_secs(4)).await;
    let done = done.load(Ordering::Relaxed) - before;
    (good as f64 / done as f64, done)
}

/// Where a machine that has no time for a second adds an overload of its own, it is looked again.
#[tokio::test]
async fn what_is_done_under_an_overload_is_of_use() {
    const LOOKS: usize = 12;
    let mut seen = Vec::new();
    for _ in 0..LOOKS {
        let (protected, protected_done) = useful(LIMITED).await;
        let (bare, bare_done) = useful("").await;
        // The same application on the same machine, never idle: the limit must not leave it with nothing to do.
        let idle = 1.0 - protected_done as f64 / bare_done as f64;
        if protected >= 0.9 && idle <= 0.15 && bare <= 0.5 {
            return;
        }
        seen.push(format!(
            "with a limit {protected} of {protected_done} was of use, without {bare} of {bare_done}"
        ));
    }
    panic!("{seen:#?}");
}

#[tokio::test]
async fn who_matters_more_goes_first() {
    let (application, _) = application().await;
    let policy = format!("{LIMITED}\nhealthCheck: {{http: {{path: /healthz}}}}");
    let proxy = beside(&application, &policy, "1").await;
    let inbound = proxy.inbound;
    let over = Arc::new(AtomicBool::new(false));
    let goes_on = {
        let over = over.clone();
        move || !over.load(Ordering::Relaxed)
    };
    let flood = tokio::spawn(overload_while(inbound, "/batch/1", goes_on));
    let labels = [("service", "default/shop"), ("priority", "sheddable")];
    until("something to be dropped", async || {
        let dropped = proxy.metric("leno_concurrency_dropped_total", &labels).await;
        dropped.filter(|dropped| *dropped > 10.0)
    })
    .await;
    for _ in 0..10 {
        let answer = client::get_with(inbound, "shop", "/pay", "x-tier: gold\r\n").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(client::get(inbound, "shop", "/healthz").await.status, 200);
    }
    let refused = until("a request to be refused", async || {
        let answer = client::get(inbound, "shop", "/batch/2").await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert_eq!(
        (refused.header("retry-after"), refused.text().trim_end().ends_with("(UO)")),
        (Some("1"), true)
    );
    assert_eq!(refused.header("x-leno-overloaded"), Some("true"));
    let shown = proxy.cluster(&format!("inbound:{}", application.address.port())).await;
    let found = &shown["concurrency"];
    assert!((3..=100).contains(&found["limit"].as_u64().unwrap()), "{found}");
    assert!(found["dropped"]["sheddable"].as_u64().unwrap() > 10, "{found}");
    assert_eq!(
        (&found["dropped"]["critical"], &found["dropped"]["health"]),
        (&0.into(), &0.into())
    );
    assert_eq!(shown["endpoints"][0]["health"]["failures"], 0, "what is refused is not its doing");
    let text = proxy.page("/clusters").await;
    assert!(text.contains("::concurrency::limit::"), "{text}");
    over.store(true, Ordering::Relaxed);
    assert!(flood.await.unwrap() > 0);
    // Nobody is left in the queue, and nobody counted who is gone.
    until("all to be gone", async || {
        let now = proxy.metric("leno_concurrency_running", &[]).await;
        (now == Some(0.0)).then_some(())
    })
    .await;
    proxy.counts("leno_concurrency_waiting", &[], 0.0).await;
}

#[tokio::test]
async fn a_limit_comes_and_goes_with_its_policy() {
    let (application, _) = application().await;
    let mesh = || Mesh::default().service("shop", "http", &[application.address]);
    let limited = mesh().policy("shop", LIMITED);
    let proxy = mesh().arguments(&["--name", "shop-0"]).start().await;
    let cluster = format!("inbound:{}", application.address.port());
    assert!(proxy.cluster(&cluster).await["concurrency"].is_null());
    for (text, there) in [(limited.text(), true), (mesh().text(), false)] {
        proxy.rewrite(text);
        until("the limit to come or go", async || {
            let shown = proxy.cluster(&cluster).await;
            (shown["concurrency"].is_null() != there).then_some(())
        })
        .await;
        assert_eq!(client::get(proxy.inbound, "shop", "/").await.status, 200);
        let limit = proxy.metric("leno_concurrency_limit", &[]).await;
        assert_eq!(limit.is_some(), there);
    }
}

const BROKEN: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 60\r\n\
                    X-Leno-Overloaded: true\r\n\r\n";

#[tokio::test]
async fn who_has_enough_to_do_is_not_ejected_and_another_is_asked() {
    let (busy, free) = (Origin::canned(BUSY).await, Origin::echo("free").await);
    let broken = Origin::canned(BROKEN).await;
    let policy = "balancer: {roundRobin: {}}\noutlierDetection: {consecutive5xx: 2}\n\
                  retry: {on: [gateway-error]}\n\
                  retryBudget: {percent: 100, minimumPerSecond: 100}";
    let proxy = Mesh::default()
        .service("shop", "http", &[busy.address, free.address])
        .policy("shop", policy)
        .service("broken", "http", &[broken.address, free.address])
        .policy("broken", policy)
        .start()
        .await;
    let mut wire = Wire::connect(proxy.outbound).await;
    for _ in 0..20 {
        // However long it wants to be left alone: that says nothing about the other.
        assert_eq!(wire.ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.status, 200);
    }
    assert!(busy.accepted() > 0, "the busy one was never asked");
    // What is judged later than that was judged, too.
    until("the broken one is ejected", async || {
        wire.ask("GET / HTTP/1.1\r\nHost: broken\r\n\r\n").await;
        let cluster = proxy.cluster("default/broken:80").await;
        let endpoints = cluster["endpoints"].as_array().unwrap().clone();
        endpoints.iter().any(|endpoint| !endpoint["health"]["ejected"].is_null()).then_some(())
    })
    .await;
    let cluster = proxy.cluster("default/shop:80").await;
    for endpoint in cluster["endpoints"].as_array().unwrap() {
        assert!(endpoint["health"]["ejected"].is_null(), "{cluster}");
        assert_eq!(endpoint["health"]["failures"], 0, "{cluster}");
    }
}

#[tokio::test]
async fn where_all_have_enough_to_do_the_caller_hears_it_and_no_breaker_opens() {
    let (busy, broken) = (Origin::canned(BUSY).await, Origin::canned(BROKEN).await);
    let policy = "retry: {mode: Disabled}\nbreaker: {errorRate: {minimum: 5, percent: 20}}";
    let proxy = Mesh::default()
        .service("shop", "http", &[busy.address])
        .policy("shop", policy)
        .service("broken", "http", &[broken.address])
        .policy("broken", policy)
        .start()
        .await;
    let mut wire = Wire::connect(proxy.outbound).await;
    for _ in 0..20 {
        let answer = wire.ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("60")));
        assert_eq!(answer.header("x-leno-overloaded"), None, "an application would pass it on");
    }
    until("the breaker of the broken one is open", async || {
        wire.ask("GET / HTTP/1.1\r\nHost: broken\r\n\r\n").await;
        (proxy.cluster("default/broken:80").await["circuit"]["state"] == "open").then_some(())
    })
    .await;
    assert_eq!(proxy.cluster("default/shop:80").await["circuit"]["state"], "closed");
}
