//! The catalogue: what caches are told of it, and what order makes of what they say.

use crate::setup::{Shop, basket, get, get_with, put, service};
use axum::Router;
use http::{HeaderName, StatusCode};
use serde_json::json;
use tokio::net::TcpListener;

#[tokio::test]
async fn answers_say_how_long_they_are_good_and_by_what_they_are_purged() {
    let product = service(&["product"]).await;
    let one = get(product.listen, "/products/p1").await;
    let expected = json!({"id": "p1", "name": "Bobbin of linen thread", "priceCents": 350});
    assert_eq!((one.status, &one.body), (StatusCode::OK, &expected), "without its stock");
    let header = |name: &str| one.headers[name].to_str().unwrap();
    assert_eq!(header("cache-control"), "public, max-age=60");
    assert_eq!((header("etag"), header("surrogate-key")), ("\"350\"", "product-p1"));

    let all = get(product.listen, "/products").await;
    assert_eq!(all.body.as_array().unwrap().len(), 5);
    assert_eq!(all.headers["cache-control"], "public, max-age=1");
    let keys = "product-p1 product-p2 product-p3 product-p4 product-p5";
    assert_eq!(all.headers["surrogate-key"], keys);

    let missing = get(product.listen, "/products/p9").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    assert!(!missing.headers.contains_key("cache-control"), "{missing:?}");
    let reads = get(product.control, "/reads").await.body;
    assert_eq!(reads, json!({"/products": 1, "/products/p1": 1}));
}

#[tokio::test]
async fn a_new_price_is_a_new_entity() {
    let product = service(&["product"]).await;
    for (tag, status) in [("\"350\"", 304), ("W/\"350\"", 304), ("\"1\", \"350\"", 304), ("*", 304)]
    {
        let answer = get_with(product.listen, "/products/p1", ("if-none-match", tag)).await;
        assert_eq!(answer.status.as_u16(), status, "{tag}");
        assert_eq!(answer.headers["etag"], "\"350\"");
    }
    let changed = put(product.listen, "/products/p1", json!({"priceCents": 400})).await;
    assert_eq!((changed.status, &changed.body["priceCents"]), (StatusCode::OK, &json!(400)));
    let answer = get_with(product.listen, "/products/p1", ("if-none-match", "\"350\"")).await;
    assert_eq!((answer.status, &answer.body["priceCents"]), (StatusCode::OK, &json!(400)));
    for (path, body, status) in [
        ("/products/p9", json!({"priceCents": 1}), 404),
        ("/products/p1", json!({"priceCents": -1}), 422),
        ("/products/p1", json!({"stock": 1}), 422),
    ] {
        assert_eq!(put(product.listen, path, body).await.status.as_u16(), status);
    }
}

#[tokio::test]
async fn customers_see_what_there_is() {
    let shop = Shop::open().await;
    shop.order(basket()).await;
    let window = get(shop.order.listen, "/products").await;
    assert_eq!(window.status, StatusCode::OK, "{window:?}");
    assert_eq!(window.body["products"][1]["name"], "Weaver's shuttle");
    assert_eq!(window.body["catalogue"], json!({"reads": 2, "fromCache": 0, "hitRatio": 0.0}));
    put(shop.product.listen, "/products/p1", json!({"priceCents": 400})).await;
    let order = shop.order(basket()).await.body;
    assert_eq!(order["totalCents"], 2 * 400, "{order}");
}

/// Beside a sidecar that has the answer.
#[tokio::test]
async fn order_knows_what_came_from_a_cache() {
    let kept = async || {
        let name = HeaderName::from_static;
        let headers = [
            (name("x-shop-instance"), "product-1"),
            (name("x-shop-version"), "v1"),
            (name("cache-status"), "leno; hit; ttl=3"),
        ];
        (headers, json!([{"id": "p1", "name": "Bobbin", "priceCents": 1}]).to_string())
    };
    let sidecar = Router::new().route("/products", axum::routing::get(kept));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, sidecar).await });
    let order = service(&["order", "--mesh", &address]).await;
    let window = get(order.listen, "/products").await;
    assert_eq!(window.headers["cache-status"], "leno; hit; ttl=3", "{window:?}");
    assert_eq!(window.body["catalogue"], json!({"reads": 1, "fromCache": 1, "hitRatio": 1.0}));
}
