//! Changes of the configuration file while requests flow (FAULTS 1, 2, 9).

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use crate::{
    client::{self, Wire},
    mesh::{Mesh, Proxy, until},
    origin::{self, Origin},
};

fn split(a: &Origin, b: &Origin, rules: &str) -> String {
    let mesh = Mesh::default()
        .service("shop", "http", &[a.address])
        .service("a", "http", &[a.address])
        .service("b", "http", &[b.address]);
    mesh.http_route("shop", rules).text().to_owned()
}

fn to(backend: &str, stamp: usize) -> String {
    format!(
        "- filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: x-stamp, value: '{stamp}'}}]}}}}]\n  \
         backendRefs: [{{name: {backend}, port: 80}}]"
    )
}

async fn stamp_of(proxy: &Proxy) -> Option<String> {
    let answer = client::get(proxy.outbound, "shop", "/").await;
    assert_eq!(answer.status, 200);
    answer.header("x-stamp").map(str::to_owned)
}

/// Two hundred changes under load: no request fails, no connection is lost, and every change takes effect.
#[tokio::test]
async fn changes_cost_no_request() {
    const CHANGES: usize = 200;
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let mesh = Mesh::default().yaml(split(&a, &b, &to("a", 0)).as_str());
    let proxy = mesh.arguments(&["--workers", "2"]).start().await;
    let (stop, address) = (Arc::new(AtomicBool::new(false)), proxy.outbound);
    let answered = Arc::new(AtomicUsize::new(0));
    let mut callers = Vec::new();
    for _ in 0..4 {
        let (stop, answered) = (stop.clone(), answered.clone());
        callers.push(tokio::spawn(async move {
            // One connection each, for the whole time.
            let mut wire = Wire::connect(address).await;
            while !stop.load(Ordering::Relaxed) {
                let body = "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\nbody";
                let answer = wire.ask(body).await;
                assert_eq!((answer.status, &answer.echo()["body"]), (200, &"body".into()));
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    for stamp in 1..=CHANGES {
        proxy.rewrite(&split(&a, &b, &to(if stamp % 2 == 0 { "a" } else { "b" }, stamp)));
        let before = answered.load(Ordering::Relaxed);
        until("requests between two changes", async || {
            (answered.load(Ordering::Relaxed) >= before + 4).then_some(())
        })
        .await;
        if stamp % 20 == 0 {
            let expected = stamp.to_string();
            until("the change", async || {
                (stamp_of(&proxy).await.as_ref() == Some(&expected)).then_some(())
            })
            .await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    let answered = answered.load(Ordering::Relaxed);
    assert!(!b.requests().is_empty());
    let failed = proxy
        .access_log(answered)
        .await
        .into_iter()
        .filter(|line| line["response_code"] != 200 || line["response_flags"] != "-");
    assert_eq!(failed.count(), 0);
}

/// What does not concern a connection leaves it alone, and what goes away lets its exchanges finish.
#[tokio::test]
async fn exchanges_under_way_outlive_their_service() {
    let (go, gone) = tokio::sync::watch::channel(false);
    let slow = Origin::raw(move |mut stream, _| {
        let mut gone = gone.clone();
        async move {
            if origin::read_request(&mut stream).await.is_some() {
                gone.wait_for(|go| *go).await.unwrap();
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate";
                tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.unwrap();
                origin::drain(&mut stream).await;
            }
        }
    })
    .await;
    let echo = Origin::echo("a").await;
    let with = Mesh::default().service("keep", "http", &[echo.address]);
    let without = with.text().to_owned();
    let proxy = with.service("shop", "http", &[slow.address]).start().await;
    let mut wire = Wire::connect(proxy.outbound).await;
    wire.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    until("the call", async || (slow.open() == 1).then_some(())).await;
    proxy.rewrite(&without);
    until("the service to go", async || {
        let clusters = proxy.page("/clusters?format=json").await;
        (!clusters.contains("default/shop:80")).then_some(())
    })
    .await;
    assert_eq!(client::get(proxy.outbound, "shop", "/").await.status, 404);
    go.send_replace(true);
    assert_eq!(wire.answer().await.text(), "late");
    // The connection itself has survived, too.
    assert_eq!(wire.ask("GET / HTTP/1.1\r\nHost: keep\r\n\r\n").await.status, 200);
    until("the pool of what is gone to close", async || (slow.open() == 0).then_some(())).await;
}

#[tokio::test]
async fn endpoints_come_and_go_without_a_failure() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let only = |endpoints: &[std::net::SocketAddr]| {
        Mesh::default().service("shop", "http", endpoints).text().to_owned()
    };
    let proxy = Mesh::default().service("shop", "http", &[a.address]).start().await;
    for turn in 0..20 {
        let (now, name) = if turn % 2 == 0 { (b.address, "b") } else { (a.address, "a") };
        proxy.rewrite(&only(&[now]));
        until("the new endpoint", async || {
            let answer = client::get(proxy.outbound, "shop", "/").await;
            assert_eq!(answer.status, 200);
            (answer.header("x-origin") == Some(name)).then_some(())
        })
        .await;
    }
    proxy.rewrite(&only(&[]));
    until("no endpoint", async || {
        (client::get(proxy.outbound, "shop", "/").await.status == 503).then_some(())
    })
    .await;
    let page = proxy.page("/stats/prometheus").await;
    let endpoints = page.lines().filter(|line| line.contains("destination_workload=\"shop-0\""));
    assert_eq!(endpoints.count(), 0, "series of an endpoint that is gone");
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_is_reported() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let good = split(&a, &b, &to("a", 1));
    let proxy = Mesh::default().yaml(&good).start().await;
    assert_eq!(stamp_of(&proxy).await.as_deref(), Some("1"));
    for (text, name) in [
        (format!("{good}\n---\nkind: [unclosed"), "no YAML"),
        (String::from("\0\x01binary"), "binary"),
    ] {
        proxy.rewrite(&text);
        until(name, async || {
            let rejected = proxy.json("/config_dump").await["rejected"].to_string();
            rejected.contains("mesh.yaml").then_some(())
        })
        .await;
        proxy.counts("leno_config_rejected_resources", &[("kind", "File")], 1.0).await;
        assert_eq!(stamp_of(&proxy).await.as_deref(), Some("1"), "{name}");
        let rejected = proxy.errors();
        assert!(rejected.contains("mesh.yaml") && rejected.contains("stays"), "{rejected}");
        proxy.rewrite(&good);
        until("it to be forgotten", async || {
            let rejected = proxy.metric("leno_config_rejected_resources", &[]).await;
            (rejected.unwrap_or(0.0) == 0.0).then_some(())
        })
        .await;
    }
}

/// One bad resource is rejected alone: its last good version stays, everything else goes live.
#[tokio::test]
async fn a_bad_resource_is_rejected_alone() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let proxy = Mesh::default().yaml(&split(&a, &b, &to("a", 1))).start().await;
    let bad = split(&a, &b, "- backendRefs: [{name: b, port: 80, weight: -1}]");
    let more = Mesh::default().service("new", "http", &[b.address]);
    proxy.rewrite(&format!("{bad}{}", more.text()));
    until("what is good", async || {
        (client::get(proxy.outbound, "new", "/").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(stamp_of(&proxy).await.as_deref(), Some("1"), "the last good route stays");
    let rejected = proxy.json("/config_dump").await["rejected"].to_string();
    assert!(rejected.contains("default/shop") && rejected.contains("weight"), "{rejected}");
    proxy.counts("leno_config_rejected_resources", &[("kind", "HTTPRoute")], 1.0).await;
    proxy.rewrite(&split(&a, &b, &to("b", 2)));
    until("the better one", async || {
        (stamp_of(&proxy).await.as_deref() == Some("2")).then_some(())
    })
    .await;
}

/// A file that disappears (and comes back) is a file that is being replaced.
#[tokio::test]
async fn a_missing_file_changes_nothing() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let proxy = Mesh::default().yaml(&split(&a, &b, &to("a", 1))).start().await;
    std::fs::remove_file(proxy.config()).unwrap();
    until("the report", async || {
        let rejected = proxy.json("/config_dump").await["rejected"].to_string();
        rejected.contains("mesh.yaml").then_some(())
    })
    .await;
    assert_eq!(stamp_of(&proxy).await.as_deref(), Some("1"));
    proxy.rewrite(&split(&a, &b, &to("a", 2)));
    until("the new file", async || (stamp_of(&proxy).await.as_deref() == Some("2")).then_some(()))
        .await;
}

/// At start everything must be right: a proxy must not run with a part of what was meant.
#[tokio::test]
async fn a_bad_file_at_start_is_refused_with_its_line() {
    for (text, expected) in [
        (
            "apiVersion: leno.dev/v1alpha1\nkind: Service\nmetadata: {name: shop}\nspec: [1\n",
            "mesh.yaml:",
        ),
        (
            "apiVersion: leno.dev/v1alpha1\nkind: Service\nmetadata: {name: shop, namespace: default}\nspec:\n  \
             prots: []\n",
            "prots",
        ),
        (
            "apiVersion: leno.dev/v1alpha1\nkind: Servise\nmetadata: {name: shop, namespace: default}\nspec: {}\n",
            "Servise",
        ),
        (
            "apiVersion: leno.dev/v1alpha1\nkind: Service\nmetadata: {name: shop, namespace: default}\nspec:\n  \
             ports: [{port: eighty}]\n",
            "spec.ports[0].port",
        ),
    ] {
        let (status, errors) = Mesh::default().yaml(text).fail().await;
        assert_eq!(status.code(), Some(1), "{errors}");
        assert!(errors.contains(expected), "{expected} is not in: {errors}");
        let line = errors.lines().find(|line| line.contains("mesh.yaml:")).unwrap_or_default();
        let number = line.split("mesh.yaml:").nth(1).and_then(|rest| rest.split(':').next());
        assert!(number.is_some_and(|number| number.parse::<u32>().is_ok()), "no line: {errors}");
    }
    let (status, errors) =
        Mesh::default().arguments(&["--config", "/nowhere/mesh.yaml"]).fail().await;
    assert!(!status.success() && errors.contains("--config"), "{errors}");
}

/// FAULTS 3: a file that is meant to exhaust the reader.
#[tokio::test]
async fn monstrous_files_are_refused_in_bounded_time() {
    let nested = format!("a: {}", "[".repeat(100_000));
    let deep = format!(
        "apiVersion: leno.dev/v1alpha1\nkind: Service\nmetadata: {{name: a, namespace: default}}\nspec: {}1{}\n",
        "{a: ".repeat(5000),
        "}".repeat(5000)
    );
    // Each anchor doubles the one before: 2^40 elements if they were expanded.
    let laughs: String =
        (1..40).map(|at| format!("a{at}: &a{at} [*a{}, *a{}]\n", at - 1, at - 1)).collect();
    for text in [nested, deep, format!("a0: &a0 [x]\n{laughs}")] {
        let (status, errors) = Mesh::default().yaml(&text).fail().await;
        assert_eq!(status.code(), Some(1), "{errors}");
        assert!(errors.contains("mesh.yaml"), "{errors}");
    }
}

/// FAULTS 3: a large mesh starts, serves, and a change of one object in it takes effect.
#[tokio::test]
async fn a_large_file_is_no_obstacle() {
    let echo = Origin::echo("a").await;
    let mut mesh = Mesh::default();
    for at in 0..2000 {
        mesh = mesh.service(&format!("service-{at}"), "http", &[echo.address]);
    }
    let text = mesh.text().to_owned();
    let proxy = mesh.service("shop", "http", &[echo.address]).start().await;
    for host in ["service-0", "service-1999", "shop"] {
        proxy.serves(host).await;
    }
    let more = Mesh::default().service("late", "http", &[echo.address]);
    proxy.rewrite(&format!("{text}{}", more.text()));
    until("the change", async || {
        (client::get(proxy.outbound, "late", "/").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(client::get(proxy.outbound, "shop", "/").await.status, 404);
}
