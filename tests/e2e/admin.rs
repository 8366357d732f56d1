//! The admin port: what it shows, and what it refuses (FAULTS 18, 47).

use std::{
    net::SocketAddr,
    process::{Command, Output},
};

use serde_json::json;

use crate::{
    client::{self, Wire},
    mesh::{Mesh, Proxy},
    origin::Origin,
};

async fn running() -> (Proxy, Origin) {
    let echo = Origin::echo("a").await;
    (Mesh::default().service("shop", "http", &[echo.address]).start().await, echo)
}

#[tokio::test]
async fn every_page_shows_what_it_says() {
    let (proxy, echo) = running().await;
    proxy.serves("shop").await;
    assert_eq!(proxy.page("/ready").await, "LIVE\n");
    let listeners = proxy.json("/listeners?format=json").await;
    assert!(listeners.to_string().contains(&proxy.outbound.to_string()), "{listeners}");
    assert!(proxy.page("/listeners").await.contains(&format!("inbound::{}", proxy.inbound)));
    let cluster = proxy.cluster("default/shop:80").await;
    assert_eq!(cluster["endpoints"][0]["address"], echo.address.to_string());
    assert_eq!(cluster["endpoints"][0]["workload"], "default/shop-0");
    assert!(proxy.page("/clusters").await.contains("default/shop:80::rq_active::0"));
    assert!(proxy.json("/config_dump").await.to_string().contains("\"shop\""));
    assert_eq!(proxy.json("/server_info").await["state"], "LIVE");
    assert_eq!(proxy.json("/certs").await["source"], "none");
    let help = proxy.page("/help").await;
    for page in [
        "/ready",
        "/stats/prometheus",
        "/config_dump",
        "/clusters",
        "/listeners",
        "/certs",
        "/logging",
    ] {
        assert!(help.contains(page), "{page}");
        proxy.page(page).await;
    }
    let missing = client::get(proxy.admin, "localhost", "/nothing").await;
    assert!(missing.status == 404 && missing.text().contains("/clusters"));
}

#[tokio::test]
async fn web_pages_cannot_reach_it() {
    let (proxy, _echo) = running().await;
    let own = proxy.admin.to_string();
    for (host, fields, status) in [
        (own.as_str(), "", 200),
        ("localhost", "", 200),
        ("rebound.example", "", 403),
        ("rebound.example:15000", "", 403),
        ("127.0.0.1.rebound.example", "", 403),
        ("localhost.rebound.example", "", 403),
        (own.as_str(), "Origin: http://evil.example\r\n", 403),
        (own.as_str(), "Origin: null\r\n", 403),
        (own.as_str(), "Origin: http://localhost\r\n", 403),
    ] {
        let answer = client::get_with(proxy.admin, host, "/config_dump", fields).await;
        assert_eq!(answer.status, status, "{host} {fields}");
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
}

#[tokio::test]
async fn reading_changes_nothing() {
    let (proxy, _echo) = running().await;
    let host = proxy.admin.to_string();
    for path in ["/quitquitquit", "/drain_listeners"] {
        assert_eq!(client::get(proxy.admin, &host, path).await.status, 405, "{path}");
        for method in ["HEAD", "PUT", "DELETE", "OPTIONS"] {
            let mut wire = Wire::connect(proxy.admin).await;
            wire.send(format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            assert_eq!(wire.head().await.unwrap().status, 405, "{method} {path}");
        }
    }
    let before = proxy.page("/logging").await;
    assert_eq!(proxy.page("/logging?filter=trace").await, before);
    assert_eq!(proxy.page("/ready").await, "LIVE\n");
    proxy.serves("shop").await;
}

#[tokio::test]
async fn the_log_filter_changes_at_run_time() {
    let (proxy, _echo) = running().await;
    let set = async |filter: &str| {
        let post =
            format!("POST /logging?filter={filter} HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.admin);
        client::ask(proxy.admin, post).await
    };
    assert_eq!(set("info%2Cleno_proxy%3Ddebug").await.status, 200);
    let filter = proxy.page("/logging").await;
    assert!(filter.contains("leno_proxy=debug") && filter.contains("info"), "{filter}");
    client::get(proxy.outbound, "nowhere", "/").await;
    crate::mesh::until("a debug line", async || proxy.errors().contains("nowhere").then_some(()))
        .await;
    assert_eq!(set("a%3Db%3Dc").await.status, 400);
    assert_eq!(proxy.page("/logging").await, filter, "a bad filter changes nothing");
}

#[tokio::test]
async fn large_and_slow_requests_do_no_harm() {
    let (proxy, _echo) = running().await;
    let mut wire = Wire::connect(proxy.admin).await;
    let large = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(1 << 20));
    let _ = wire.try_send(large).await;
    if let Ok(answer) = wire.try_answer().await {
        assert!([400, 414, 431].contains(&answer.status), "{}", answer.status);
    }
    // Readers that never finish: connections without a request, and answers nobody takes.
    let mut held = Vec::new();
    for _ in 0..40 {
        let mut slow = Wire::connect(proxy.admin).await;
        slow.send("GET /stats/prometheus HT").await;
        held.push(slow);
    }
    assert_eq!(proxy.page("/ready").await, "LIVE\n");
    proxy.serves("shop").await;
}

/// A hook of a pod, as Kubernetes runs it in the sidecar's container.
async fn hook(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_leno-proxy-under-test");
    let mut command = Command::new(program);
    command.args(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test]
async fn kubelets_and_scrapers_have_ports_of_their_own() {
    let echo = Origin::echo("a").await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let probes = json!({
        "/probe/app/live": {"kind": "httpGet", "port": echo.address.port(), "timeoutSeconds": 20,
            "path": "/live", "scheme": "HTTP", "headers": []},
        "/probe/app/ready": {"kind": "tcpSocket", "port": closed, "timeoutSeconds": 20},
    });
    let any = "127.0.0.1:0";
    let proxy = Mesh::default()
        .service("shop", "http", &[echo.address])
        .arguments(&["--ready", any, "--metrics", any, "--probes", &probes.to_string()])
        .start()
        .await;
    let listeners = proxy.json("/listeners?format=json").await;
    let port = |name: &str| -> SocketAddr {
        let listeners = listeners["listeners"].as_array().unwrap();
        let found = listeners.iter().find(|listener| listener["name"] == name).unwrap();
        found["address"].as_str().unwrap().parse().unwrap()
    };
    let (ready, metrics) = (port("ready"), port("metrics"));
    let status = async |address, path| client::get(address, "pod", path).await.status;
    let waited = hook(&["wait", "--ready", &ready.to_string(), "--time", "20"]).await;
    assert!(waited.status.success(), "{waited:?}");
    assert_eq!(status(ready, "/probe/app/live").await, 200);
    let failed = client::get(ready, "pod", "/probe/app/ready").await;
    assert!(failed.status == 503 && failed.text().contains("connecting to"), "{}", failed.text());
    for path in ["/probe/app/start", "/probe/other/live", "/config_dump", "/metrics", "/"] {
        assert_eq!(status(ready, path).await, 404, "{path}");
    }
    let post = "POST /quitquitquit HTTP/1.1\r\nHost: pod\r\nContent-Length: 0\r\n\r\n";
    for address in [ready, metrics] {
        assert_eq!(client::ask(address, post).await.status, 404);
    }
    assert!(client::get(metrics, "pod", "/metrics").await.text().contains("# TYPE"));
    assert_eq!(status(metrics, "/config_dump").await, 404);

    let drained = hook(&["drain", "--admin", &proxy.admin.to_string(), "--settle", "0"]).await;
    assert!(drained.status.success(), "{drained:?}");
    assert_eq!(status(ready, "/ready").await, 503);
    proxy.serves("shop").await;
    let late = hook(&["wait", "--ready", &ready.to_string(), "--time", "0"]).await;
    assert!(!late.status.success());
    assert!(String::from_utf8_lossy(&late.stderr).contains("503 FAILING"), "{late:?}");
}

#[tokio::test]
async fn probes_that_nobody_could_have_declared_keep_it_from_starting() {
    let echo = Origin::echo("a").await;
    let mesh = Mesh::default().service("shop", "http", &[echo.address]);
    let (_, errors) = mesh.arguments(&["--ready", "127.0.0.1:0", "--probes", "{"]).fail().await;
    assert!(errors.contains("the probes of --probes cannot be used"), "{errors}");
}
