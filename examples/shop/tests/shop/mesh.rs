//! How order talks to its sidecar, seen by a stand-in that writes down what it is asked.

use crate::setup::{basket, post_text, service};
use axum::body::Body;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

#[derive(Default)]
struct Sidecar {
    /// By authority.
    services: Vec<(&'static str, SocketAddr)>,
    /// Method, authority, path, `traceparent` and `x-request-id` of each request.
    seen: Mutex<Vec<String>>,
}

impl Sidecar {
    async fn start(self: &Arc<Self>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let sidecar = self.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let sidecar = sidecar.clone();
                tokio::spawn(async move {
                    let service = service_fn(|request| sidecar.clone().forward(request));
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let stream = TokioIo::new(stream);
                    let _ = builder.serve_connection_with_upgrades(stream, service).await;
                });
            }
        });
        address
    }

    async fn forward(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, hyper_util::client::legacy::Error> {
        let authority = authority(&request);
        let header = |name: &str| match request.headers().get(name) {
            Some(value) => value.to_str().unwrap().to_owned(),
            None => "-".to_owned(),
        };
        self.seen.lock().unwrap().push(format!(
            "{} {authority} {} {} {}",
            request.method(),
            request.uri().path(),
            header("traceparent"),
            header("x-request-id")
        ));
        match self.services.iter().find(|(name, _)| *name == authority) {
            None => Ok(answer(StatusCode::NOT_FOUND)),
            Some((_, service)) if request.method() == Method::CONNECT => {
                Ok(tunnel(request, *service))
            }
            Some((_, service)) => pass_on(request, *service).await,
        }
    }
}

fn authority(request: &Request<Incoming>) -> String {
    match request.uri().authority() {
        Some(authority) => authority.to_string(),
        None => request.headers()["host"].to_str().unwrap().to_owned(),
    }
}

fn answer(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn tunnel(request: Request<Incoming>, service: SocketAddr) -> Response<Body> {
    tokio::spawn(async move {
        let mut downstream = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
        let mut upstream = TcpStream::connect(service).await.unwrap();
        copy_bidirectional(&mut downstream, &mut upstream).await.unwrap();
    });
    answer(StatusCode::OK)
}

async fn pass_on(
    request: Request<Incoming>,
    service: SocketAddr,
) -> Result<Response<Body>, hyper_util::client::legacy::Error> {
    let (mut head, body) = request.into_parts();
    let http2 = head.version == http::Version::HTTP_2;
    head.uri = format!("http://{service}{}", head.uri.path()).parse().unwrap();
    let client = Client::builder(TokioExecutor::new()).http2_only(http2).build_http();
    let response = client.request(Request::from_parts(head, Body::new(body))).await?;
    Ok(response.map(Body::new))
}

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[tokio::test]
async fn each_protocol_names_the_service_in_its_own_way() {
    let user = service(&["user"]).await;
    let product = service(&["product"]).await;
    let notification = service(&["notification"]).await;
    let sidecar = Arc::new(Sidecar {
        services: vec![
            ("user", user.listen),
            ("catalogue", product.listen),
            ("product", product.listen),
            ("notification:7000", notification.listen),
        ],
        ..Sidecar::default()
    });
    let mesh = sidecar.start().await.to_string();
    let order = service(&["order", "--mesh", &mesh]).await;

    let mut headers = HeaderMap::new();
    headers.insert("traceparent", TRACE.parse().unwrap());
    headers.insert("x-request-id", "abc".parse().unwrap());
    headers.insert("cookie", "secret=1".parse().unwrap());
    let answer = post_text(order.listen, "/orders", basket().to_string(), headers).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    let expected = [
        format!("GET user /users/u1 {TRACE} abc"),
        format!("GET catalogue /products/p1 {TRACE} abc"),
        format!("POST product /shop.v1.Products/Reserve {TRACE} abc"),
        format!("CONNECT notification:7000  {TRACE} abc"),
    ];
    assert_eq!(*sidecar.seen.lock().unwrap(), expected);
}

#[tokio::test]
async fn a_proxys_404_is_not_taken_for_the_services() {
    let sidecar = Arc::new(Sidecar::default());
    let mesh = sidecar.start().await.to_string();
    let user = service(&["user"]).await;
    let user_addr = user.listen.to_string();
    for (flags, name) in [(&[][..], "user"), (&["--user-addr", &user_addr], "product")] {
        let order = service(&[&["order", "--mesh", &mesh], flags].concat()).await;
        let answer =
            post_text(order.listen, "/orders", basket().to_string(), HeaderMap::new()).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{answer:?}");
        assert_eq!(answer.body["service"], name, "{answer:?}");
    }
}

#[tokio::test]
async fn a_refused_tunnel_is_told() {
    let user = service(&["user"]).await;
    let product = service(&["product"]).await;
    let sidecar = Arc::new(Sidecar {
        services: vec![
            ("users.shop", user.listen),
            ("goods.shop", product.listen),
            ("products.shop", product.listen),
        ],
        ..Sidecar::default()
    });
    let mesh = sidecar.start().await.to_string();
    let names = ["--user-name", "users.shop", "--catalogue-name", "goods.shop"];
    let names = [&names[..], &["--product-name", "products.shop"]].concat();
    let order = service(&[&["order", "--mesh", &mesh], &names[..]].concat()).await;
    let answer = post_text(order.listen, "/orders", basket().to_string(), HeaderMap::new()).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{answer:?}");
    let error = answer.body["error"].as_str().unwrap();
    assert_eq!(error, "CONNECT notification:7000 was answered 404 Not Found");
}

#[tokio::test]
async fn the_sidecar_can_be_told_later() {
    let user = service(&["user"]).await;
    let user_addr = user.listen.to_string();
    let order = service(&["order", "--await-mesh", "--user-addr", &user_addr]).await;
    let place = || post_text(order.listen, "/orders", basket().to_string(), HeaderMap::new());
    let answer = place().await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
    assert!(answer.body["error"].as_str().unwrap().contains("--mesh"), "{answer:?}");

    let sidecar = Arc::new(Sidecar::default());
    let mesh = sidecar.start().await.to_string();
    let told = crate::setup::post(order.control, "/", serde_json::json!({ "mesh": mesh })).await;
    assert_eq!(told.body["mesh"], mesh);
    assert_eq!(place().await.status, StatusCode::BAD_GATEWAY);
    assert_eq!(sidecar.seen.lock().unwrap().len(), 1, "product was asked for at the sidecar");
}
