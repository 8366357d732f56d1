//! Which endpoint gets a request: by key, by zone, by weight, and past those whose own breaker is open.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{io::AsyncWriteExt, sync::Semaphore};

use crate::{
    client::{self, Answer, Wire},
    mesh::{Mesh, Proxy, until},
    mtls::tunnel,
    origin::{self, Origin},
};

const CLUSTER: &str = "default/shop:80";
const NAMES: [&str; 8] = ["0", "1", "2", "3", "4", "5", "6", "7"];

/// Origins that say who they are.
async fn origins(count: usize) -> Vec<Origin> {
    let mut origins = Vec::new();
    for name in &NAMES[..count] {
        origins.push(Origin::echo(name).await);
    }
    origins
}

fn addresses(origins: &[Origin]) -> Vec<SocketAddr> {
    origins.iter().map(|origin| origin.address).collect()
}

async fn ask(proxy: &Proxy, path: &str, fields: &str) -> Answer {
    let answer = client::get_with(proxy.outbound, "shop", path, fields).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

/// The line of the access log that says so.
async fn logged(proxy: &Proxy, what: &str) -> String {
    until("a line of the access log", async || {
        proxy.access_log_now().lines().find(|line| line.contains(what)).map(str::to_owned)
    })
    .await
}

/// Who answered.
fn name(answer: &Answer) -> String {
    answer.header("x-origin").unwrap().to_owned()
}

/// Who answers each of `count` users.
async fn owners(proxy: &Proxy, count: usize) -> Vec<String> {
    let mut owners = Vec::new();
    for user in 0..count {
        owners.push(name(&ask(proxy, "/", &format!("x-user: user-{user}\r\n")).await));
    }
    owners
}

#[tokio::test]
async fn a_key_stays_with_its_endpoint_and_a_new_one_moves_few() {
    for balancer in ["ringHash", "maglev"] {
        let origins = origins(7).await;
        let addresses = addresses(&origins);
        let policy =
            format!("balancer: {{{balancer}: {{hashOn: [{{header: {{name: x-user}}}}]}}}}");
        let mesh = |count: usize| {
            Mesh::default().service("shop", "http", &addresses[..count]).policy("shop", &policy)
        };
        let after = mesh(7).text().to_owned();
        let proxy = mesh(6).arguments(&["--workers", "2"]).start().await;
        let before = owners(&proxy, 120).await;
        assert_eq!(owners(&proxy, 120).await, before, "{balancer}");
        let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
        before.iter().for_each(|owner| *shares.entry(owner).or_default() += 1);
        assert!(shares.len() == 6 && shares.values().all(|share| *share < 60), "{shares:?}");

        proxy.rewrite(&after);
        until("the seventh endpoint", async || {
            let cluster = proxy.cluster(CLUSTER).await;
            (cluster["endpoints"].as_array().unwrap().len() == 7).then_some(())
        })
        .await;
        let moved = owners(&proxy, 120).await;
        let moved: Vec<_> = before.iter().zip(&moved).filter(|(old, new)| old != new).collect();
        // A seventh of them are 17.
        assert!((1..=34).contains(&moved.len()), "{balancer}: {moved:?}");
        let to_new = moved.iter().filter(|(_, new)| *new == "6").count();
        assert!(to_new * 2 > moved.len(), "{balancer}: {moved:?}");
    }
}

/// That its endpoint ended an idle connection is no reason to ask another one.
#[tokio::test]
async fn a_key_stays_with_its_endpoint_when_a_connection_had_ended() {
    let mut origins = Vec::new();
    for name in &NAMES[..4] {
        let origin = Origin::raw(move |mut stream, _| async move {
            let mut asked = std::time::Instant::now();
            while origin::read_request(&mut stream).await.is_some() {
                // It has given up the connection in the very moment in which it is used again.
                if asked.elapsed() > std::time::Duration::from_secs(1) {
                    return;
                }
                asked = std::time::Instant::now();
                let answer =
                    format!("HTTP/1.1 200 OK\r\nx-origin: {name}\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        origins.push(origin.await);
    }
    let policy = "balancer: {ringHash: {hashOn: [{header: {name: x-user}}]}}";
    let mesh = Mesh::default().service("shop", "http", &addresses(&origins)).policy("shop", policy);
    let proxy = mesh.start().await;
    let first = owners(&proxy, 4).await;
    // A connection that was idle for over a second may have been ended meanwhile.
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    assert_eq!(owners(&proxy, 4).await, first);
}

#[tokio::test]
async fn who_has_no_key_goes_anywhere() {
    let origins = origins(3).await;
    let policy = "balancer: {maglev: {hashOn: [{header: {name: x-user}}, {query: {name: user}}]}}";
    let mesh = Mesh::default().service("shop", "http", &addresses(&origins)).policy("shop", policy);
    let proxy = mesh.start().await;
    let mut seen: Vec<String> = Vec::new();
    for _ in 0..60 {
        seen.push(name(&ask(&proxy, "/", "").await));
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3);
    let owner = name(&ask(&proxy, "/?user=a%20b", "").await);
    for path in ["/?user=a+b", "/x?y=1&user=a%20b&user=c"] {
        assert_eq!(name(&ask(&proxy, path, "").await), owner, "{path}");
    }
}

#[tokio::test]
async fn a_cookie_is_set_once_and_honoured() {
    let origins = origins(4).await;
    let policy = "balancer: {ringHash: {hashOn: [{cookie: {name: at, ttl: 90s, path: /shop}}]}}";
    let mesh = Mesh::default().service("shop", "http", &addresses(&origins)).policy("shop", policy);
    let proxy = mesh.start().await;
    for _ in 0..8 {
        let first = ask(&proxy, "/", "cookie: other=1\r\n").await;
        let set = first.header("set-cookie").unwrap();
        let (cookie, attributes) = set.split_once("; ").unwrap();
        assert_eq!(attributes, "Path=/shop; Max-Age=90; HttpOnly");
        assert!(cookie.strip_prefix("at=").is_some_and(|value| value.len() == 16), "{set}");
        for _ in 0..3 {
            let next = ask(&proxy, "/", &format!("cookie: other=1; {cookie}\r\n")).await;
            assert_eq!((name(&next), next.header("set-cookie")), (name(&first), None));
        }
    }
}

#[tokio::test]
async fn connections_stay_together_by_their_source() {
    let mut origins = Vec::new();
    for greeting in [b"a", b"b", b"c", b"d"] {
        origins.push(crate::mtls::echo_bytes(greeting).await);
    }
    let policy = "balancer: {maglev: {hashOn: [{sourceIp: {}}]}}";
    let mesh = Mesh::default().service("shop", "tcp", &addresses(&origins)).policy("shop", policy);
    let proxy = mesh.start().await;
    for _ in 0..6 {
        let mut wire = tunnel(proxy.outbound, "shop").await;
        assert!(wire.exactly(1).await.is_some());
    }
    let mut accepted: Vec<usize> = origins.iter().map(Origin::accepted).collect();
    accepted.sort_unstable();
    assert_eq!(accepted, [0, 0, 0, 6]);
}

/// Answers nobody before it is told to.
async fn held() -> (Origin, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let shared = gate.clone();
    let origin = Origin::raw(move |mut stream, _| {
        let gate = shared.clone();
        async move {
            while origin::read_request(&mut stream).await.is_some() {
                let _permit = gate.acquire().await;
                let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                if stream.write_all(ok).await.is_err() {
                    return;
                }
            }
        }
    });
    (origin.await, gate)
}

#[tokio::test]
async fn one_key_does_not_drown_an_endpoint() {
    let mut held_origins = Vec::new();
    for _ in 0..3 {
        held_origins.push(held().await);
    }
    let addresses: Vec<_> = held_origins.iter().map(|(origin, _)| origin.address).collect();
    let policy =
        "balancer: {ringHash: {hashOn: [{header: {name: x-user}}]}}\nboundedLoad: {percent: 150}";
    let mesh = Mesh::default().service("shop", "http", &addresses).policy("shop", policy);
    let proxy = mesh.start().await;
    let mut wires = Vec::new();
    for sent in 1..=30u64 {
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.send("GET / HTTP/1.1\r\nHost: shop\r\nx-user: one\r\n\r\n").await;
        wires.push(wire);
        until("it to be under way", async || {
            (proxy.cluster(CLUSTER).await["active"] == sent).then_some(())
        })
        .await;
    }
    let open = until("all to have come to an origin", async || {
        let mut open: Vec<usize> = held_origins.iter().map(|(origin, _)| origin.open()).collect();
        open.sort_unstable();
        (open.iter().sum::<usize>() == 30).then_some(open)
    })
    .await;
    // 1.5 times a third of thirty, at most; the next on the ring has what does not fit.
    assert!(open[2] <= 15 && open[1] >= 8, "{open:?}");
    held_origins.iter().for_each(|(_, gate)| gate.add_permits(100));
    for mut wire in wires {
        assert_eq!(wire.answer().await.status, 200);
    }
}

#[tokio::test]
async fn who_is_not_there_is_passed_over_by_its_keys() {
    let origins = origins(2).await;
    let mut addresses = addresses(&origins);
    addresses.push(origin::nobody());
    let policy = "balancer: {maglev: {hashOn: [{header: {name: x-user}}]}}\n\
        retryBudget: {percent: 100, minimumPerSecond: 1000}";
    let mesh = Mesh::default().service("shop", "http", &addresses).policy("shop", policy);
    let proxy = mesh.start().await;
    let first = owners(&proxy, 60).await;
    until("it to be ejected", async || {
        owners(&proxy, 20).await;
        let ejected = proxy.metric("leno_endpoints_ejected", &[]).await;
        (ejected == Some(1.0)).then_some(())
    })
    .await;
    assert_eq!(owners(&proxy, 60).await, first, "the next on the walk, tried or ejected");
}

/// A service with workloads in zones: name, zone, weight, address.
fn zoned(workloads: &[(&str, &str, u32, SocketAddr)]) -> Mesh {
    let service = "apiVersion: leno.dev/v1alpha1\nkind: Service\n\
        metadata: {name: shop, namespace: default}\n\
        spec: {ports: [{name: main, port: 80, protocol: http}]}";
    workloads.iter().fold(Mesh::default().yaml(service), |mesh, (name, zone, weight, address)| {
        mesh.yaml(&format!(
            "apiVersion: leno.dev/v1alpha1\nkind: Workload\n\
             metadata: {{name: shop-{name}, namespace: default}}\n\
             spec: {{services: [shop], address: {}, ports: {{main: {}}}, zone: {zone}, weight: {weight}}}",
            address.ip(),
            address.port()
        ))
    })
}

async fn shares(proxy: &Proxy, count: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..count {
        *shares.entry(name(&ask(proxy, "/", "").await)).or_default() += 1;
    }
    shares
}

#[tokio::test]
async fn the_own_zone_goes_first_until_what_is_left_of_it_is_too_little() {
    let origins = origins(3).await;
    let [near, far, other] = &origins[..] else { unreachable!() };
    let gone = origin::nobody();
    let workloads = |second: SocketAddr| {
        [
            ("0", "a", 1, near.address),
            ("1", "a", 1, second),
            ("2", "b", 1, far.address),
            ("3", "c", 1, other.address),
        ]
    };
    let check = "healthCheck: {tcp: {}, interval: 100ms, timeout: 100ms}";
    // Its own workload says where it is.
    let own = "apiVersion: leno.dev/v1alpha1\nkind: Workload\n\
        metadata: {name: web-0, namespace: default}\n\
        spec: {services: [web], address: 127.0.0.1, ports: {main: 1}, zone: a}";
    let mesh = |second| {
        zoned(&workloads(second)).policy("shop", check).service("web", "http", &[]).yaml(own)
    };
    let after = mesh(gone).text().to_owned();
    let proxy = mesh(near.address).arguments(&["--name", "web-0"]).start().await;
    assert_eq!(shares(&proxy, 40).await, BTreeMap::from([("0".to_owned(), 40)]));
    assert_eq!(proxy.cluster(CLUSTER).await["localShare"], 1.0);

    proxy.rewrite(&after);
    until("half of the zone to be unhealthy", async || {
        let cluster = proxy.cluster(CLUSTER).await;
        let share = cluster["localShare"].as_f64().unwrap();
        // Half of 100 where 70 are wanted, and less than a third of what there is.
        (share < 0.75).then_some(())
    })
    .await;
    let spilt = shares(&proxy, 120).await;
    assert!(spilt.len() == 3 && spilt["0"] > 50, "{spilt:?}");
}

#[tokio::test]
async fn without_preference_zones_do_not_count() {
    let origins = origins(2).await;
    let workloads = [("0", "a", 1, origins[0].address), ("1", "b", 1, origins[1].address)];
    let preferring = zoned(&workloads).arguments(&["--zone", "a"]).start().await;
    assert_eq!(preferring.cluster(CLUSTER).await["localShare"], 1.0);
    let mesh = zoned(&workloads).policy("shop", "zones: {prefer: false}\nbalancer: {random: {}}");
    let proxy = mesh.arguments(&["--zone", "a"]).start().await;
    assert_eq!(shares(&proxy, 60).await.len(), 2);
    assert!(proxy.cluster(CLUSTER).await["localShare"].is_null());
}

#[tokio::test]
async fn who_weighs_nothing_gets_nothing_even_if_nobody_weighs_anything() {
    let origins = origins(2).await;
    let (one, other) = (origins[0].address, origins[1].address);
    for fields in ["zones: {prefer: false}", "balancer: {maglev: {hashOn: [{sourceIp: {}}]}}"] {
        let policy = |mesh: Mesh| mesh.policy("shop", fields);
        let mesh = policy(zoned(&[("0", "a", 0, one), ("1", "a", 3, other)]));
        let none = policy(zoned(&[("0", "a", 0, one), ("1", "a", 0, other)])).text().to_owned();
        let proxy = mesh.start().await;
        assert_eq!(shares(&proxy, 20).await, BTreeMap::from([("1".to_owned(), 20)]));
        proxy.rewrite(&none);
        until("nobody to be left", async || {
            (client::get(proxy.outbound, "shop", "/").await.status == 503).then_some(())
        })
        .await;
        let line = logged(&proxy, "no endpoint with a weight").await;
        assert!(line.contains("\"response_flags\":\"UH\""), "{line}");
    }
}

/// Fails for as long as it is told.
async fn moody(name: &'static str) -> (Origin, Arc<AtomicBool>) {
    let failing = Arc::new(AtomicBool::new(false));
    let shared = failing.clone();
    let origin = Origin::raw(move |mut stream, _| {
        let failing = shared.clone();
        async move {
            while origin::read_request(&mut stream).await.is_some() {
                let status = if failing.load(Ordering::Relaxed) { "500 Failed" } else { "200 OK" };
                let answer =
                    format!("HTTP/1.1 {status}\r\nx-origin: {name}\r\nContent-Length: 0\r\n\r\n");
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    });
    (origin.await, failing)
}

/// The state of each endpoint's own breaker.
async fn breakers(proxy: &Proxy) -> Vec<String> {
    let cluster = proxy.cluster(CLUSTER).await;
    let state = |endpoint: &serde_json::Value| {
        endpoint["health"]["circuit"]["state"].as_str().unwrap_or("none").to_owned()
    };
    cluster["endpoints"].as_array().unwrap().iter().map(state).collect()
}

#[tokio::test]
async fn an_endpoint_has_a_breaker_of_its_own() {
    let moody = [moody("0").await, moody("1").await, moody("2").await];
    let addresses: Vec<_> = moody.iter().map(|(origin, _)| origin.address).collect();
    let policy = |open_for: &str, minimum: u32| {
        format!(
            "balancer: {{roundRobin: {{}}}}\noutlierDetection: {{mode: Disabled}}\n\
             breaker: {{per: Endpoint, errorRate: {{percent: 50, minimum: {minimum}}}, \
             openFor: {open_for}, maxOpenFor: 1h, probes: 2}}"
        )
    };
    let mesh = |open_for: &str, minimum| {
        let mesh = Mesh::default().service("shop", "http", &addresses);
        mesh.policy("shop", &policy(open_for, minimum))
    };
    let (later, sooner) = (mesh("1h", 6).text().to_owned(), mesh("1s", 5).text().to_owned());
    let proxy = mesh("1h", 5).arguments(&["--workers", "2"]).start().await;
    let mut wire = Wire::connect(proxy.outbound).await;
    const GET: &str = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n";

    moody[1].1.store(true, Ordering::Relaxed);
    until("the second breaker to open", async || {
        wire.ask(GET).await;
        (breakers(&proxy).await[1] == "open").then_some(())
    })
    .await;
    for _ in 0..30 {
        let answer = wire.ask(GET).await;
        assert!(answer.status == 200 && answer.header("x-origin") != Some("1"));
    }
    assert_eq!(breakers(&proxy).await, ["closed", "open", "closed"]);
    proxy.counts("leno_endpoint_circuits_open", &[("service", CLUSTER)], 1.0).await;
    assert!(proxy.errors().contains("breaker of default/shop:80: default/shop-1 ("));

    // A new policy does not close it.
    proxy.rewrite(&later);
    proxy.counts("leno_config_generation", &[], 2.0).await;
    assert_eq!(breakers(&proxy).await, ["closed", "open", "closed"]);

    moody.iter().for_each(|(_, failing)| failing.store(true, Ordering::Relaxed));
    let rejected = until("all to be open", async || {
        let answer = wire.ask(GET).await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    let retry_after: u64 = rejected.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=3600).contains(&retry_after), "{retry_after}");
    logged(&proxy, "every endpoint: the breaker is ").await;

    moody.iter().for_each(|(_, failing)| failing.store(false, Ordering::Relaxed));
    proxy.rewrite(&sooner);
    until("all to close", async || {
        wire.ask(GET).await;
        (breakers(&proxy).await == ["closed"; 3]).then_some(())
    })
    .await;
    assert_eq!(wire.ask(GET).await.status, 200);
}

#[tokio::test]
async fn a_route_sends_to_those_workloads_of_a_service_that_have_a_label() {
    let origins = origins(3).await;
    let workload = |at: usize, version: &str| {
        format!(
            "apiVersion: leno.dev/v1alpha1\nkind: Workload\n\
             metadata: {{name: shop-{at}, namespace: default, labels: {{version: {version}}}}}\n\
             spec: {{services: [shop], address: 127.0.0.1, ports: {{main: {}}}}}",
            origins[at].address.port()
        )
    };
    let part = "apiVersion: leno.dev/v1alpha1\nkind: Service\n\
        metadata: {name: shop-v2, namespace: default}\n\
        spec: {ports: [{name: main, port: 80, protocol: http}], \
        subset: {of: shop, matchLabels: {version: v2}}}";
    let rules = "- matches: [{headers: [{name: x-canary, value: 'yes'}]}]\n  \
        backendRefs: [{name: shop-v2, port: 80}]\n\
        - backendRefs: [{name: shop, port: 80}]";
    let mesh = Mesh::default().service("shop", "http", &[]).yaml(part).http_route("shop", rules);
    let mesh = mesh.yaml(&workload(0, "v1")).yaml(&workload(1, "v2")).yaml(&workload(2, "v1"));
    let proxy = mesh.start().await;
    for _ in 0..10 {
        assert_eq!(name(&ask(&proxy, "/", "x-canary: yes\r\n").await), "1");
    }
    assert_eq!(shares(&proxy, 60).await.len(), 3);
}
