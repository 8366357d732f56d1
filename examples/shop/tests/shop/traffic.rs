//! The load generator, at a shop and at nothing.

use crate::setup::{Shop, post};
use leno_shop::Service;
use leno_shop::traffic::{Snapshot, Traffic};
use serde_json::json;
use std::num::NonZeroU32;
use std::time::Duration;
use tokio::net::TcpSocket;
use tokio::time::{sleep, timeout};

async fn until(traffic: &Traffic, reached: impl Fn(&Snapshot) -> bool) -> Snapshot {
    let polled = async {
        loop {
            let snapshot = traffic.snapshot();
            if reached(&snapshot) {
                return snapshot;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let Ok(snapshot) = timeout(Duration::from_secs(60), polled).await else {
        panic!("not reached: {:?}", traffic.snapshot());
    };
    snapshot
}

#[tokio::test]
async fn orders_are_counted_by_who_served_them_and_why_they_failed() {
    let shop = Shop::open().await;
    let traffic = Traffic::start(shop.order.listen, NonZeroU32::new(100).unwrap());
    let before = until(&traffic, |snapshot| snapshot.ok >= 20).await;
    assert_eq!(before.failures(), 0, "{before:?}");

    post(shop.user.control, "/", json!({ "version": "v2" })).await;
    until(&traffic, |snapshot| {
        snapshot.served_by.keys().any(|server| server.version.as_str() == "v2")
    })
    .await;
    post(shop.product.control, "/", json!({ "failPercent": 100 })).await;
    until(&traffic, |snapshot| snapshot.failures() >= 10).await;
    post(shop.product.control, "/", json!({ "failPercent": 0 })).await;

    let snapshot = traffic.stop().await;
    assert_eq!(snapshot.sent, snapshot.ok + snapshot.failures());
    assert_eq!(snapshot.latency.count(), snapshot.sent);
    assert!(snapshot.latency.p50() <= snapshot.latency.p99());
    assert_eq!(snapshot.failed.keys().collect::<Vec<_>>(), ["502 product"], "{snapshot:?}");
    assert!(snapshot.last_failure.as_ref().unwrap().contains("told by the control port to fail"));

    let calls = |service: Service, version: &str| -> u64 {
        let matching = snapshot
            .served_by
            .iter()
            .filter(|(server, _)| server.service == service && server.version.as_str() == version);
        matching.map(|(_, count)| count).sum()
    };
    assert_eq!(calls(Service::Order, "v1"), snapshot.ok);
    assert_eq!(calls(Service::User, "v1") + calls(Service::User, "v2"), snapshot.ok);
    assert!(calls(Service::User, "v2") > 0);
    assert_eq!(calls(Service::Product, "v3"), 2 * snapshot.ok, "the catalogue and Reserve");

    let later = snapshot.since(&before);
    assert_eq!(later.sent, snapshot.sent - before.sent);
    assert_eq!(later.latency.count(), snapshot.latency.count() - before.latency.count());
}

#[tokio::test]
async fn an_address_where_nobody_listens_is_a_reason() {
    // Bound, so that nobody else gets the port meanwhile.
    let nobody = TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = nobody.local_addr().unwrap();
    let traffic = Traffic::start(address, NonZeroU32::new(100).unwrap());
    let snapshot = until(&traffic, |snapshot| snapshot.failures() >= 5).await;
    assert_eq!(snapshot.ok, 0);
    assert_eq!(snapshot.failed.keys().collect::<Vec<_>>(), ["connection"]);
}

#[tokio::test]
async fn orders_go_on_leaving_while_answers_are_late_up_to_a_bound() {
    let shop = Shop::open().await;
    post(shop.order.control, "/", json!({ "delayMs": 20_000 })).await;
    let traffic = Traffic::start(shop.order.listen, NonZeroU32::new(1_000).unwrap());
    let snapshot = until(&traffic, |snapshot| snapshot.skipped > 0).await;
    assert_eq!(snapshot.ok, 0, "none can have been answered yet");
    assert_eq!(snapshot.sent, 256);
}

/// What was sent before counts, what was sent meanwhile does not: it would never end.
#[tokio::test]
async fn whoever_waits_for_the_orders_under_way_does_not_wait_for_later_ones() {
    let shop = Shop::open().await;
    let traffic = Traffic::start(shop.order.listen, NonZeroU32::new(200).unwrap());
    let before = until(&traffic, |snapshot| snapshot.sent >= 20).await;
    timeout(Duration::from_secs(60), traffic.settle()).await.unwrap();
    let after = traffic.snapshot();
    assert!(after.ok + after.failures() >= before.sent, "{after:?}");
}
