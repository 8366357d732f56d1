//! Purges from a real control plane to real sidecars.

use serde_json::{Value, json};
use tokio::{io::copy_bidirectional, net::TcpStream, sync::watch};

use super::{
    get, is_hit,
    upstream::{Upstream, response},
};
use crate::{
    control_plane::ControlPlane,
    mesh::{Mesh, Proxy, until},
    origin::Origin,
};

const GROUP: &str = "leno.dev/v1alpha1";

async fn plane(upstream: &Upstream) -> ControlPlane {
    let control_plane = ControlPlane::start(&[]).await;
    let address = upstream.address();
    for (plural, kind, spec) in [
        (
            "services",
            "Service",
            json!({"ports": [{"name": "http", "port": 80, "protocol": "http"}]}),
        ),
        (
            "workloads",
            "Workload",
            json!({"services": ["shop"], "address": address.ip(), "ports": {"http": address.port()}}),
        ),
        (
            "cachepolicies",
            "CachePolicy",
            json!({"targetRefs": [{"kind": "Service", "name": "shop"}]}),
        ),
    ] {
        let object =
            json!({"apiVersion": GROUP, "kind": kind, "metadata": {"name": "shop"}, "spec": spec});
        control_plane.create(GROUP, plural, object).await;
    }
    control_plane
}

/// Everything is fresh, and has tags by its path: `/a/1` has `a` and `all`.
async fn tagged() -> Upstream {
    Upstream::answering(|head, number| {
        let path = super::upstream::path(head);
        let tag = path.split('/').nth(1).unwrap_or_default();
        let tag = tag.split('?').next().unwrap();
        let fields = format!(
            "Cache-Control: max-age=600\r\nSurrogate-Key: {tag} all\r\nCache-Tag: x,{tag}-2\r\n"
        );
        response(&fields, &number.to_string())
    })
    .await
}

async fn purge(control_plane: &ControlPlane, order: Value) -> Value {
    let answer = control_plane.call("POST", "/cache/purge", &order).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_str(&answer.text()).unwrap()
}

const PATHS: [&str; 5] = ["/a/1", "/a/1?x", "/a/2", "/b/1", "/b"];

/// Makes sure that everything is kept; the policy reaches a sidecar a moment after the service.
async fn fill(proxy: &Proxy) {
    for path in PATHS {
        until("it to be kept", async || is_hit(&get(proxy, path).await).then_some(())).await;
    }
}

/// Which of them are kept no longer. Looks without fetching.
async fn gone(proxy: &Proxy) -> Vec<&'static str> {
    let mut gone = Vec::new();
    for path in PATHS {
        let answer = super::get_with(proxy, path, "Cache-Control: only-if-cached\r\n").await;
        match answer.status {
            504 => gone.push(path),
            status => assert_eq!((status, is_hit(&answer)), (200, true), "{path}"),
        }
    }
    gone
}

/// Waits until the control plane counts so many sidecars that keep something of the service. What one kept before it
/// was connected it forgets when it is: it may have missed something.
async fn known(control_plane: &ControlPlane, proxies: u64) {
    until("sidecars that can be told", async || {
        let order = json!({"service": "default/shop", "tag": "none"});
        let answer = purge(control_plane, order).await;
        (answer["proxies"] == proxies && answer["confirmed"] == proxies).then_some(())
    })
    .await;
}

#[tokio::test]
async fn every_sidecar_forgets_what_it_is_told_to() {
    let upstream = tagged().await;
    let mut control_plane = plane(&upstream).await;
    let proxies = [
        Mesh::default().managed(&mut control_plane, "one").start().await,
        Mesh::default().managed(&mut control_plane, "two").start().await,
    ];
    for proxy in &proxies {
        fill(proxy).await;
    }
    known(&control_plane, 2).await;
    let purged = async || {
        let shown = proxies[0].json("/cache?format=json").await;
        shown["caches"][0]["purged"].as_u64().unwrap()
    };
    let before = purged().await;
    for (order, expected) in [
        (json!({"path": "/a/1"}), &["/a/1"][..]),
        (json!({"path": "/a/1?x"}), &["/a/1?x"]),
        (json!({"path": "/a"}), &[]),
        (json!({"prefix": "/a"}), &["/a/1", "/a/1?x", "/a/2"]),
        (json!({"prefix": "/b/"}), &["/b/1"]),
        (json!({"tag": "b"}), &["/b/1", "/b"]),
        (json!({"tag": "a-2"}), &["/a/1", "/a/1?x", "/a/2"]),
        (json!({"tag": "A"}), &[]),
        (json!({"tag": "all"}), &PATHS),
        (json!({}), &PATHS),
    ] {
        for proxy in &proxies {
            fill(proxy).await;
        }
        let mut order = order;
        order["service"] = "default/shop:80".into();
        let answer = purge(&control_plane, order.clone()).await;
        assert_eq!((&answer["proxies"], &answer["confirmed"]), (&2.into(), &2.into()), "{answer}");
        assert_eq!(answer["removed"], 2 * expected.len(), "{order}: {answer}");
        for proxy in &proxies {
            assert_eq!(gone(proxy).await, expected, "{order}");
        }
    }
    assert_eq!(purged().await - before, 21);
    let labels = [("policy", "default/shop")];
    proxies[0].counts("leno_cache_purged_total", &labels, (before + 21) as f64).await;
}

/// A relay before the control plane, whose connections are cut while it is closed.
async fn relay(to: std::net::SocketAddr) -> (Origin, watch::Sender<bool>) {
    let gate = watch::Sender::new(true);
    let doors = gate.clone();
    let relay = Origin::raw(move |mut stream, _| {
        let mut door = doors.subscribe();
        async move {
            if !*door.borrow() {
                return;
            }
            let mut there = TcpStream::connect(to).await.unwrap();
            tokio::select! {
                _ = copy_bidirectional(&mut stream, &mut there) => {}
                _ = door.wait_for(|open| !*open) => {}
            }
        }
    });
    (relay.await, gate)
}

/// A sidecar that cannot be reached gets the order when it can.
#[tokio::test]
async fn who_was_away_is_told_later() {
    let upstream = tagged().await;
    let mut control_plane = plane(&upstream).await;
    let near = Mesh::default().managed(&mut control_plane, "near").start().await;
    let (relay, gate) = relay(control_plane.xds).await;
    control_plane.xds = relay.address;
    let far = Mesh::default().managed(&mut control_plane, "far").start().await;
    for proxy in [&near, &far] {
        fill(proxy).await;
    }
    known(&control_plane, 2).await;
    fill(&far).await;
    gate.send_replace(false);
    far.counts("leno_control_plane_connected", &[], 0.0).await;
    let answer =
        purge(&control_plane, json!({"service": "default/shop", "prefix": "/a", "timeout": "0s"}))
            .await;
    assert!(answer["confirmed"].as_u64() <= Some(1), "{answer}");
    until("the near one", async || (gone(&near).await.len() == 3).then_some(())).await;
    assert!(gone(&far).await.is_empty(), "nobody told it");
    gate.send_replace(true);
    until("the far one", async || (gone(&far).await == ["/a/1", "/a/1?x", "/a/2"]).then_some(()))
        .await;
}

/// What is being fetched while it is purged is not kept either.
#[tokio::test]
async fn what_is_on_its_way_is_void_too() {
    let upstream = tagged().await;
    let mut control_plane = plane(&upstream).await;
    let proxy = Mesh::default().managed(&mut control_plane, "one").start().await;
    fill(&proxy).await;
    known(&control_plane, 1).await;
    for order in
        [json!({}), json!({"path": "/b/9"}), json!({"tag": "b"}), json!({"prefix": "/b/9"})]
    {
        upstream.close();
        let (outbound, before) = (proxy.outbound, upstream.count());
        let fetching =
            tokio::spawn(async move { crate::client::get(outbound, "shop", "/b/9").await });
        upstream.asked(before + 1).await;
        let mut order = order;
        order["service"] = "default/shop".into();
        purge(&control_plane, order.clone()).await;
        upstream.open();
        assert_eq!(fetching.await.unwrap().status, 200);
        let again = get(&proxy, "/b/9").await;
        assert!(!is_hit(&again), "{order}");
        purge(&control_plane, json!({"service": "default/shop"})).await;
    }
}
