//! The control port, on the services that speak HTTP and gRPC.

use crate::setup::{get, post, post_text, service};
use http::{HeaderMap, StatusCode};
use leno_shop::products::GetProductRequest;
use leno_shop::products::products_client::ProductsClient;
use serde_json::json;
use std::time::{Duration, Instant};
use tonic::Code;

#[tokio::test]
async fn state_is_shown_changed_and_kept() {
    let user = service(&["user", "--instance", "user-9"]).await;
    let state = get(user.control, "/").await.body;
    let expected = |delay, percent, version: &str| {
        json!({
            "service": "user", "instance": "user-9",
            "delayMs": delay, "failPercent": percent, "version": version,
        })
    };
    assert_eq!(state, expected(0, 0, "v1"));
    let changed = post(user.control, "/", json!({ "version": "v2", "delayMs": 7 })).await;
    assert_eq!(changed.body, expected(7, 0, "v2"));
    let changed = post(user.control, "/", json!({ "failPercent": 0 })).await;
    assert_eq!(changed.body, expected(7, 0, "v2"), "what is not named stays");
    assert_eq!(get(user.listen, "/users/u1").await.headers["x-shop-version"], "v2");
}

#[tokio::test]
async fn only_order_has_a_use_for_a_sidecar() {
    let user = service(&["user"]).await;
    let answer = post(user.control, "/", json!({ "mesh": "127.0.0.1:1" })).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(answer.body["error"], "mesh: user calls nobody");
}

#[tokio::test]
async fn a_change_that_makes_no_sense_is_refused_whole() {
    let user = service(&["user"]).await;
    for (change, status, message) in [
        (r#"{"version":"v2","failPercent":101}"#, 422, "failPercent"),
        (r#"{"version":"v2","delayMs":60001}"#, 422, "delayMs"),
        (r#"{"version":"v2","delay":1}"#, 422, "unknown field `delay`"),
        (r#"{"version":"v\r\n2"}"#, 422, "letters"),
        ("nonsense", 400, "JSON"),
    ] {
        let answer = post_text(user.control, "/", change.to_owned(), HeaderMap::new()).await;
        assert_eq!(answer.status.as_u16(), status, "{change}");
        let error = answer.body["error"].as_str().unwrap().to_owned();
        assert!(error.contains(message), "{change}: {error}");
    }
    assert_eq!(get(user.control, "/").await.body["version"], "v1");
}

#[tokio::test]
async fn the_asked_share_of_answers_fails_and_is_counted() {
    let user = service(&["user"]).await;
    post(user.control, "/", json!({ "failPercent": 30 })).await;
    let mut failed = 0;
    for _ in 0..100 {
        let answer = get(user.listen, "/users/u1").await;
        assert_eq!(answer.headers["x-shop-instance"], "user-1");
        match answer.status {
            StatusCode::SERVICE_UNAVAILABLE => failed += 1,
            status => assert_eq!(status, StatusCode::OK),
        }
    }
    assert_eq!(failed, 30);
    assert_eq!(get(user.control, "/stats").await.body, json!({ "served": 70, "failed": 30 }));
}

#[tokio::test]
async fn probes_feel_the_faults_and_are_not_counted() {
    for name in ["user", "product"] {
        let running = service(&[name]).await;
        assert_eq!(get(running.listen, "/health").await.status, StatusCode::OK);
        post(running.control, "/", json!({ "failPercent": 100 })).await;
        let probe = get(running.listen, "/health").await;
        assert_eq!(probe.status, StatusCode::SERVICE_UNAVAILABLE);
        let stats = get(running.control, "/stats").await.body;
        assert_eq!(stats, json!({ "served": 0, "failed": 0 }));
    }
}

#[tokio::test]
async fn an_answer_can_be_delayed() {
    let user = service(&["user"]).await;
    post(user.control, "/", json!({ "delayMs": 300 })).await;
    let begun = Instant::now();
    assert_eq!(get(user.listen, "/users").await.body.as_array().unwrap().len(), 5);
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_failing_product_says_unavailable_in_grpc() {
    let product = service(&["product"]).await;
    let mut products = ProductsClient::connect(format!("http://{}", product.listen)).await.unwrap();
    let request = || GetProductRequest { id: "p1".to_owned() };
    let answer = products.get_product(request()).await.unwrap();
    assert_eq!(answer.metadata().get("x-shop-instance").unwrap(), "product-1");

    post(product.control, "/", json!({ "failPercent": 100, "version": "v2" })).await;
    let status = products.get_product(request()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert_eq!(status.metadata().get("x-shop-version").unwrap(), "v2");
    assert_eq!(get(product.control, "/stats").await.body, json!({ "served": 1, "failed": 1 }));
}

#[tokio::test]
async fn a_stop_lets_begun_requests_finish_and_takes_no_new_ones() {
    // Longer where the machine stood still, and the request had not begun.
    for (last, delay) in [(false, 500), (false, 2_000), (true, 4_500)] {
        let user = service(&["user"]).await;
        post(user.control, "/", json!({ "delayMs": delay })).await;
        let listen = user.listen;
        let begun = tokio::spawn(async move { get(listen, "/users/u1").await });
        tokio::time::sleep(Duration::from_millis(delay * 2 / 5)).await;
        user.stop().await;
        assert!(tokio::net::TcpStream::connect(listen).await.is_err());
        match begun.await {
            Ok(answer) => return assert_eq!(answer.status, StatusCode::OK),
            Err(error) => assert!(!last, "{error}"),
        }
    }
}
