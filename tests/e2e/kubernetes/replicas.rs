//! Several control planes: all serve, one writes.

use super::{Cluster, answered_by, route};
use crate::{client, mesh::until, origin::Origin};

async fn leads(control_plane: &crate::control_plane::ControlPlane) -> bool {
    let answer = client::get(control_plane.metrics, "127.0.0.1", "/metrics").await;
    answer.text().lines().any(|line| line == "leno_kubernetes_leader 1")
}

#[tokio::test]
async fn leadership_moves_to_the_other_replica_when_the_first_is_gone() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let cluster = Cluster::start().await;
    cluster.service("orders", &[&a]);
    cluster.service("orders-v2", &[&b]);
    cluster.server.put(route("orders", "orders"));
    let first = cluster.control_plane(&[]).await;
    until("a leader", async || leads(&first).await.then_some(())).await;
    let second = cluster.control_plane(&[]).await;
    let proxy = cluster.sidecar(&second, "caller", "caller-1").start().await;
    answered_by(&proxy, "orders", "a").await;
    assert!(!leads(&second).await, "there is one leader");
    // Nobody but the leader writes, and it knows only of its own proxies.
    until("the leader's word", async || {
        cluster.live("orders").filter(|live| live["reason"] == "NotUsed")
    })
    .await;
    drop(first);
    until("the other to take over", async || leads(&second).await.then_some(())).await;
    cluster.server.put(route("orders", "orders-v2"));
    answered_by(&proxy, "orders", "b").await;
    until("the new leader's word", async || {
        cluster.live("orders").filter(|live| live["status"] == "True")
    })
    .await;
}
