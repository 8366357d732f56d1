//! Which endpoint gets a request, and how often another one is tried (FAULTS 10, 23).

use std::{collections::HashMap, net::SocketAddr};

use crate::{
    client::Wire,
    mesh::{Mesh, Proxy, until},
    origin::{self, Origin},
};

/// A service with three workloads of these weights, and a policy.
async fn three(policy: &str, weights: [u32; 3]) -> (Proxy, [Origin; 3]) {
    let origins = [Origin::echo("a").await, Origin::echo("b").await, Origin::echo("c").await];
    let mut mesh = Mesh::default().service("shop", "http", &[]);
    for (origin, (weight, name)) in origins.iter().zip(weights.into_iter().zip(["a", "b", "c"])) {
        mesh = mesh.yaml(&format!(
            "apiVersion: leno.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, namespace: default}}\n\
             spec: {{services: [shop], address: 127.0.0.1, ports: {{main: {}}}, weight: {weight}}}",
            origin.address.port()
        ));
    }
    if !policy.is_empty() {
        mesh = mesh.policy("shop", policy);
    }
    (mesh.start().await, origins)
}

async fn shares(proxy: &Proxy, requests: usize) -> HashMap<String, usize> {
    let mut wire = Wire::connect(proxy.outbound).await;
    let mut shares = HashMap::new();
    for _ in 0..requests {
        let answer = wire.ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        *shares.entry(answer.header("x-origin").unwrap().to_owned()).or_default() += 1;
    }
    shares
}

#[tokio::test]
async fn round_robin_is_exact() {
    let (proxy, _origins) = three("balancer: {roundRobin: {}}", [1, 1, 1]).await;
    let shares = shares(&proxy, 90).await;
    assert_eq!((shares["a"], shares["b"], shares["c"]), (30, 30, 30));
}

#[tokio::test]
async fn weights_count_and_zero_is_none() {
    for policy in
        ["balancer: {random: {}}", "balancer: {leastRequest: {}}", "balancer: {roundRobin: {}}"]
    {
        let (proxy, origins) = three(policy, [3, 1, 0]).await;
        let shares = shares(&proxy, 400).await;
        // As in routes: six standard deviations.
        assert!((247..=353).contains(&shares["a"]), "{policy}: {shares:?}");
        assert_eq!((shares["a"] + shares["b"], origins[2].accepted()), (400, 0), "{policy}");
    }
}

/// A call that is still under way makes its endpoint the busier one of two.
#[tokio::test]
async fn least_request_avoids_the_busy() {
    let slow = Origin::raw(|mut stream, _| async move {
        origin::drain(&mut stream).await;
    })
    .await;
    let fast = Origin::echo("fast").await;
    let mesh = Mesh::default().service("shop", "http", &[slow.address, fast.address]);
    let proxy = mesh.policy("shop", "balancer: {leastRequest: {}}").start().await;
    let stuck = loop {
        let mut wire = Wire::connect(proxy.outbound).await;
        wire.send("GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").await;
        // One or the other has it.
        let held = until("the slow one to have it", async || (slow.accepted() > 0).then_some(()));
        tokio::select! {
            () = held => break wire,
            answer = wire.try_answer() => assert_eq!(answer.unwrap().status, 200),
        }
    };
    assert_eq!(shares(&proxy, 50).await["fast"], 50);
    drop(stuck);
}

#[tokio::test]
async fn retries_are_bounded() {
    let dead: Vec<SocketAddr> = (0..6).map(|_| origin::nobody()).collect();
    let proxy = Mesh::default().service("shop", "http", &dead).start().await;
    let mut wire = Wire::connect(proxy.outbound).await;
    for _ in 0..5 {
        assert_eq!(wire.ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.status, 503);
    }
    for line in proxy.access_log(5).await {
        assert!(line["attempts"].as_u64().unwrap() <= 3, "{line}");
        assert!(line["response_flags"].as_str().unwrap().starts_with("UF"), "{line}");
    }
}

/// The same address twice is one address: nothing breaks, and it gets both shares.
#[tokio::test]
async fn an_endpoint_may_stand_twice() {
    let echo = Origin::echo("a").await;
    let proxy =
        Mesh::default().service("shop", "http", &[echo.address, echo.address]).start().await;
    assert_eq!(shares(&proxy, 20).await["a"], 20);
}
