//! What plugins of a proxy have together: shared data and queues; and what they are told of the exchange.

use super::*;

/// The probe at `orders`, and once more at `others`.
async fn two(more: &str, others_more: &str) -> (Running, Origin) {
    let others = Origin::echo("others").await;
    let address = others.address;
    let running = Running::of(more, |mesh| {
        let mesh = mesh.service("others", "http", &[address]);
        mesh.yaml(&plugin("other", "others", others_more))
    })
    .await;
    until("the other plugin to be loaded", async || {
        (client::get(running.proxy.outbound, "others", "/").await.status == 200).then_some(())
    })
    .await;
    (running, others)
}

async fn at_others(running: &Running, operations: &str) -> serde_json::Value {
    let fields = format!("x-req-headers: {operations}\r\n");
    let answer = client::get_with(running.proxy.outbound, "others", "/", &fields).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.echo()["headers"].clone()
}

#[tokio::test]
async fn an_item_of_one_plugin_comes_to_another() {
    let consumer = "vmConfig: {vmId: consumer}\npluginConfig: queue\n";
    let (running, _others) = two(consumer, "").await;
    at_others(&running, "enqueue=consumer/probe_queue:item").await;
    running.logged("dequeue => 0 \"item\"").await;
    // Each space has its own.
    at_others(&running, "enqueue=probe_queue:item").await;
    running.logged("op enqueue=probe_queue:item => 1").await;
}

#[tokio::test]
async fn shared_data_is_seen_by_others_until_it_is_deleted_or_expires() {
    let (running, _others) = two("", "").await;
    let set = async |operations: &str| {
        let fields = format!("x-req-headers: {operations}\r\n");
        assert_eq!(running.get("/", &fields).await.status, 200);
    };
    set("set-shared=k:v").await;
    assert_eq!(at_others(&running, "get-shared=k").await["x-shared"][0], "v");
    assert_eq!(at_others(&running, "delete-shared=k,get-shared=k").await["x-shared"][0], "");
    running.logged("op delete-shared=k => 0").await;
    running.logged("op get-shared=k => 1").await;
    set("set-shared=l:v,expire-shared=l:3600000").await;
    assert_eq!(at_others(&running, "get-shared=l").await["x-shared"][0], "v");
    set("expire-shared=l:1").await;
    until("the value to expire", async || {
        (at_others(&running, "get-shared=l").await["x-shared"][0] == "").then_some(())
    })
    .await;
    set("expire-shared=l:1,delete-shared=l").await;
    running.logged("op expire-shared=l:1 => 1").await;
    running.logged("op delete-shared=l => 1").await;
}

/// What follows from the exchange, under both names where there are two. Their values are in tests of the proxy.
#[tokio::test]
async fn a_plugin_is_told_of_the_exchange() {
    let running = Running::with("").await;
    let request = [
        "request.path",
        "request.url_path",
        "request.host",
        "request.scheme",
        "request.method",
        "request.headers",
        "request.query",
        "request.time",
        "request.protocol",
        "request.size",
        "request.total_size",
        "source.address",
        "source.port",
        "connection.id",
        "connection.mtls",
        "node.id",
        "xds.node.id",
        "node.cluster",
        "node.metadata",
        "plugin_name",
        "plugin_root_id",
        "plugin_vm_id",
        "cluster_name",
        "xds.cluster_name",
        "route_name",
        "xds.route_name",
        "listener_direction",
        "xds.listener_direction",
        "xds.virtual_host_name",
    ];
    let log = [
        "request.duration",
        "response.code",
        "response.code_details",
        "response.flags",
        "response.headers",
        "response.size",
        "response.total_size",
        "upstream.address",
        "upstream.port",
        "upstream.request_attempt_count",
    ];
    let asked = |paths: &[&str]| {
        let asked: Vec<_> = paths.iter().map(|path| format!("getprop={path}")).collect();
        asked.join(",")
    };
    let fields = format!("x-req-headers: {}\r\nx-log: {}\r\n", asked(&request), asked(&log));
    assert_eq!(running.get("/a?b=c", &fields).await.status, 200);
    for path in request.iter().chain(&log) {
        running.logged(&format!("getprop {path} => 0 ")).await;
    }
    let upstream =
        format!("getprop upstream.address => 0 {:?}", running.orders.address.to_string());
    running.logged(&upstream).await;
    running.logged("getprop request.query => 0 \"b=c\"").await;
}
