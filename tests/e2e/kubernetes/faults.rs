//! What an API server, and whoever writes to it, does wrong.

use serde_json::{Value, json};

use super::{A_WHILE, Cluster, HTTP_ROUTES, answered_by, pod_at, route, service, slice};
use crate::{client, mesh::until, origin::Origin};

const POLICIES: &str = "apis/leno.dev/v1alpha1/trafficpolicies";

fn policy(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "leno.dev/v1alpha1", "kind": "TrafficPolicy",
           "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

#[tokio::test]
async fn an_api_server_that_is_gone_for_a_while_is_not_missed() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let mut cluster = Cluster::start().await;
    cluster.service("orders", &[&a]);
    cluster.service("orders-v2", &[&b]);
    let control_plane = cluster.control_plane(&[]).await;
    let proxy = cluster.sidecar(&control_plane, "caller", "caller-1").start().await;
    answered_by(&proxy, "orders", "a").await;
    cluster.server.stop();
    until("the control plane to notice", async || {
        control_plane.errors().contains("what was read before stays").then_some(())
    })
    .await;
    // What was read before is there also for who asks for it only now.
    answered_by(&proxy, "orders-v2", "b").await;
    answered_by(&proxy, "orders", "a").await;
    cluster.server.put(route("orders", "orders-v2"));
    cluster.server.delete("api/v1/pods", "shop", "orders-0");
    cluster.server.resume().await;
    answered_by(&proxy, "orders", "b").await;
    until("the status to be written", async || {
        cluster.live("orders").filter(|live| live["status"] == "True")
    })
    .await;
}

#[tokio::test]
async fn a_history_that_has_run_out_is_read_anew() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let cluster = Cluster::start().await;
    cluster.service("orders", &[&a]);
    cluster.service("orders-v2", &[&b]);
    let control_plane = cluster.control_plane(&[]).await;
    let proxy = cluster.sidecar(&control_plane, "caller", "caller-1").start().await;
    answered_by(&proxy, "orders", "a").await;
    cluster.server.put_unseen(route("orders", "orders-v2"));
    answered_by(&proxy, "orders", "b").await;
    assert_eq!(client::get(proxy.outbound, "orders-v2", "/").await.status, 200);
}

#[tokio::test]
async fn what_cannot_be_read_is_left_out_alone() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let cluster = Cluster::start().await;
    cluster.service("orders", &[&a]);
    cluster.service("orders-v2", &[&b]);
    // A pod and a service that no API server would let pass, and policies among good ones that cannot be meant.
    let mut odd = pod_at("odd", "127.0.0.1".into(), &["app"]);
    odd["spec"]["containers"] = "none".into();
    cluster.server.put(odd);
    let mut odd = service("odd");
    odd["spec"]["ports"] = json!([{"name": "http", "port": 700_000}]);
    cluster.server.put(odd);
    cluster.server.put(policy("a-wrong", &json!({"targetRefs": [], "typo": 1})));
    cluster.server.put(route("orders", "orders-v2"));
    let control_plane = cluster.control_plane(&[]).await;
    let proxy = cluster.sidecar(&control_plane, "caller", "caller-1").start().await;
    answered_by(&proxy, "orders", "b").await;
    let status = until("what is said of the wrong one", async || {
        let policy = cluster.server.get(POLICIES, "shop", "a-wrong")?;
        policy["status"]["conditions"].as_array().cloned()
    })
    .await;
    assert_eq!((&status[0]["type"], &status[0]["status"]), (&"Accepted".into(), &"False".into()));
    assert!(status[0]["message"].as_str().unwrap().contains("typo"), "{status:?}");
    // A change that is wrong leaves the last good version.
    let mut wrong = route("orders", "orders-v2");
    wrong["spec"]["rules"][0]["matches"] = json!([{"path": {"type": "Wish", "value": "/"}}]);
    cluster.server.put(wrong);
    until("the verdict", async || {
        let accepted = cluster.server.get(HTTP_ROUTES, "shop", "orders")?;
        let accepted = accepted["status"]["parents"][0]["conditions"].as_array()?.clone();
        accepted
            .iter()
            .any(|said| said["type"] == "Accepted" && said["status"] == "False")
            .then_some(())
    })
    .await;
    answered_by(&proxy, "orders", "b").await;
    cluster.server.put(route("orders", "orders"));
    answered_by(&proxy, "orders", "a").await;
}

#[tokio::test]
async fn garbage_in_a_watch_is_survived_and_nothing_missed() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let cluster = Cluster::start().await;
    cluster.service("orders", &[&a]);
    cluster.service("orders-v2", &[&b]);
    let control_plane = cluster.control_plane(&[]).await;
    let proxy = cluster.sidecar(&control_plane, "caller", "caller-1").start().await;
    answered_by(&proxy, "orders", "a").await;
    for line in ["{\"type\": \"MODIFIED\", \"object\": 7}\n", "not json\n", "\u{0}\u{1}\n", "{}\n"]
    {
        cluster.server.garbage(HTTP_ROUTES, line);
        cluster.server.put(route("orders", "orders-v2"));
        answered_by(&proxy, "orders", "b").await;
        cluster.server.delete(HTTP_ROUTES, "shop", "orders");
        answered_by(&proxy, "orders", "a").await;
    }
}

#[tokio::test]
async fn what_may_not_be_read_or_is_not_installed_holds_up_nothing_else() {
    let a = Origin::echo("a").await;
    let cluster = Cluster::start().await;
    cluster.service("orders", &[&a]);
    cluster.server.forbid("api/v1/pods", Some("secret"));
    cluster.server.absent("apis/gateway.networking.k8s.io/v1alpha2/tcproutes");
    cluster.server.absent(POLICIES);
    let control_plane = cluster.control_plane(&["--kubernetes-namespaces", "shop,secret"]).await;
    let proxy = cluster.sidecar(&control_plane, "caller", "caller-1").start().await;
    answered_by(&proxy, "orders", "a").await;
    let said = control_plane.errors();
    for part in ["secret", "does not let us list", "not installed"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // Installed later, it is found.
    cluster.server.put(policy(
        "late",
        &json!({"targetRefs": [{"group": "", "kind": "Service", "name": "orders"}]}),
    ));
    cluster.server.install(POLICIES);
    until("the status of what was installed late", async || {
        let policy = cluster.server.get(POLICIES, "shop", "late")?;
        policy["status"]["conditions"].is_array().then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_api_server_that_does_not_answer_lets_nobody_in_and_says_so() {
    let a = Origin::echo("a").await;
    let cluster = Cluster::start().await;
    cluster.service("orders", &[&a]);
    let control_plane = cluster.control_plane(&[]).await;
    cluster.server.mute(true);
    let proxy = cluster.sidecar(&control_plane, "caller", "caller-1").start().await;
    until("the reason", async || {
        proxy.errors().contains("API server does not answer").then_some(())
    })
    .await;
    cluster.server.mute(false);
    answered_by(&proxy, "orders", "a").await;
}

/// What docs/kubernetes-source.md says of time and memory. 10,000 pods of 100 services as a real cluster writes them: with
/// managed fields, volumes, conditions; 4 KiB each.
#[tokio::test]
#[ignore = "measures, and proves nothing"]
async fn ten_thousand_pods() {
    const PODS: usize = 10_000;
    let cluster = Cluster::start().await;
    let address = "127.0.0.1:9000".parse().unwrap();
    for at in 0..PODS {
        let (pod, of) = (format!("pod-{at}"), format!("service-{}", at % 100));
        let mut object =
            pod_at(&pod, format!("10.{}.{}.{}", at >> 16, at >> 8 & 255, at & 255), &["app"]);
        object["spec"]["volumes"] = json!([{"name": "x".repeat(3000)}]);
        cluster.server.put(object);
        cluster.server.put(slice(&pod, &of, address, json!({"ready": true})));
    }
    for at in 0..100 {
        cluster.server.put(service(&format!("service-{at}")));
    }
    let begun = std::time::Instant::now();
    let control_plane = cluster.control_plane(&[]).await;
    eprintln!("read after {:?}, resident {} KiB", begun.elapsed(), control_plane.resident());
    for round in 0..5 {
        let begun = std::time::Instant::now();
        let name = format!("late-{round}");
        cluster.server.put_unseen(service(&name));
        until("the new list", async || {
            let path = format!("/apis/leno.dev/v1alpha1/namespaces/shop/services/{name}");
            let answer = control_plane.call("GET", &path, &Value::Null).await;
            (answer.status == 200).then_some(())
        })
        .await;
        eprintln!("again after {:?}, resident {} KiB", begun.elapsed(), control_plane.resident());
    }
}

/// Statuses are written when they change, not when they are read.
#[tokio::test]
async fn a_quiet_cluster_is_left_alone() {
    let a = Origin::echo("a").await;
    let cluster = Cluster::start().await;
    cluster.service("orders", &[&a]);
    cluster.server.put(route("orders", "orders"));
    let control_plane = cluster.control_plane(&[]).await;
    let proxy = cluster.sidecar(&control_plane, "caller", "caller-1").start().await;
    answered_by(&proxy, "orders", "a").await;
    until("the status", async || cluster.live("orders").filter(|live| live["status"] == "True"))
        .await;
    tokio::time::sleep(A_WHILE).await;
    let patches = || cluster.server.requests("PATCH /apis/gateway");
    let before = patches();
    // A change of something else, and the same again.
    cluster.server.put(service("other"));
    cluster.server.put(slice("orders-0", "orders", a.address, json!({"ready": true})));
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(patches(), before);
}
