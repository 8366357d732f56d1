//! Starts the services of a shop and talks to them.

use axum::body::Body;
use clap::Parser;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use leno_shop::{Args, Running, start};
use serde_json::{Value, json};
use std::net::SocketAddr;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

pub fn args(words: &[&str]) -> Args {
    Cli::try_parse_from([&["leno-shop"], words].concat()).unwrap().args
}

pub async fn service(words: &[&str]) -> Running {
    start(args(words)).await.unwrap()
}

pub struct Shop {
    pub user: Running,
    pub product: Running,
    pub notification: Running,
    pub order: Running,
}

impl Shop {
    pub async fn open() -> Self {
        Self::open_with(&[]).await
    }

    /// With more flags for order.
    pub async fn open_with(flags: &[&str]) -> Self {
        let user = service(&["user"]).await;
        let product = service(&["product", "--version", "v3"]).await;
        let notification = service(&["notification"]).await;
        let [user_addr, product_addr, notification_addr] =
            [&user, &product, &notification].map(|running| running.listen.to_string());
        let ways = [
            "order",
            "--instance",
            "order-a",
            "--user-addr",
            &user_addr,
            "--product-addr",
            &product_addr,
            "--notification-addr",
            &notification_addr,
        ];
        let order = service(&[&ways, flags].concat()).await;
        Self { user, product, notification, order }
    }

    pub async fn order(&self, basket: Value) -> Answer {
        post(self.order.listen, "/orders", basket).await
    }
}

pub fn basket() -> Value {
    json!({ "user": "u1", "items": [{ "product": "p1", "quantity": 2 }] })
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
}

pub async fn get(address: SocketAddr, path: &str) -> Answer {
    send(address, Method::GET, path, HeaderMap::new(), Body::empty()).await
}

pub async fn post(address: SocketAddr, path: &str, body: Value) -> Answer {
    post_text(address, path, body.to_string(), HeaderMap::new()).await
}

pub async fn post_text(
    address: SocketAddr,
    path: &str,
    body: String,
    mut headers: HeaderMap,
) -> Answer {
    headers.insert("content-type", "application/json".parse().unwrap());
    send(address, Method::POST, path, headers, Body::from(body)).await
}

pub async fn put(address: SocketAddr, path: &str, body: Value) -> Answer {
    let headers = fields(&[("content-type", "application/json")]);
    send(address, Method::PUT, path, headers, Body::from(body.to_string())).await
}

pub async fn get_with(address: SocketAddr, path: &str, header: (&'static str, &str)) -> Answer {
    send(address, Method::GET, path, fields(&[header]), Body::empty()).await
}

fn fields(fields: &[(&'static str, &str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

async fn send(
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let uri = format!("http://{address}{path}");
    let mut request = Request::builder().method(method).uri(uri).body(body).unwrap();
    *request.headers_mut() = headers;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let (head, body) = client.request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&body)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
    Answer { status: head.status, headers: head.headers, body }
}
