//! HTTP/2 with prior knowledge, and the translations between the versions (RFC 9113 section 8).

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, Response, Version};
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    client::{self, Wire},
    mesh::{Mesh, PATIENCE, Proxy},
    origin::Origin,
};

/// h2 ends a connection on which it holds a hundred small frames that nobody has read yet; these peers are patient.
const LENIENT: usize = 1 << 30;

/// The server's end of a connection.
pub async fn serve(stream: TcpStream) -> h2::server::Connection<TcpStream, Bytes> {
    h2::server::Builder::new().data_frame_budget(LENIENT).handshake(stream).await.unwrap()
}

/// A connection to the proxy.
pub async fn connect(proxy: &Proxy) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(proxy.outbound).await.unwrap();
    let (sender, connection) =
        h2::client::Builder::new().data_frame_budget(LENIENT).handshake(stream).await.unwrap();
    tokio::spawn(async move {
        // How it ends shows in the requests.
        let _ = connection.await;
    });
    sender
}

/// Sends one request and reads the whole response.
pub async fn ask(
    sender: &SendRequest<Bytes>,
    request: Request<()>,
    body: &'static [u8],
) -> Response<Vec<u8>> {
    let response = loop {
        let mut sender = sender.clone().ready().await.unwrap();
        let (response, mut stream) = sender.send_request(request.clone(), body.is_empty()).unwrap();
        if !body.is_empty() {
            stream.send_data(Bytes::from_static(body), true).unwrap();
        }
        match timeout(PATIENCE, response).await.expect("an answer") {
            // As clients do (RFC 9113 section 8.7).
            Err(error) if error.reason() == Some(h2::Reason::REFUSED_STREAM) => continue,
            response => break response.unwrap(),
        }
    };
    let (parts, mut incoming) = response.into_parts();
    let mut whole = Vec::new();
    while let Some(data) = timeout(PATIENCE, incoming.data()).await.expect("the body") {
        let data = data.unwrap();
        incoming.flow_control().release_capacity(data.len()).unwrap();
        whole.extend_from_slice(&data);
    }
    Response::from_parts(parts, whole)
}

fn get(path: &str) -> http::request::Builder {
    Request::get(format!("http://shop{path}")).version(Version::HTTP_2)
}

fn echo(response: &Response<Vec<u8>>) -> Value {
    serde_json::from_slice(response.body()).unwrap()
}

#[tokio::test]
async fn the_services_protocol_decides_what_is_spoken_upstream() {
    let (old, new) = (Origin::echo("http1").await, Origin::echo_http2("http2").await);
    let proxy = Mesh::default()
        .service("old", "http", &[old.address])
        .service("new", "http2", &[new.address])
        .start()
        .await;
    let sender = connect(&proxy).await;
    for (host, version) in [("old", "HTTP/1.1"), ("new", "HTTP/2.0")] {
        let request = Request::post(format!("http://{host}/p?q=1")).body(()).unwrap();
        let seen = echo(&ask(&sender, request, b"body").await);
        assert_eq!(seen["version"], version);
        assert_eq!((&seen["path"], &seen["body"]), (&"/p?q=1".into(), &"body".into()));
        let request =
            format!("POST /p?q=1 HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\n\r\nbody");
        let seen = client::ask(proxy.outbound, request).await.echo();
        assert_eq!(seen["version"], version);
        assert_eq!((&seen["path"], &seen["body"]), (&"/p?q=1".into(), &"body".into()));
    }
    assert_eq!(new.accepted(), 1, "one connection carries all calls");
}

#[tokio::test]
async fn an_auto_port_speaks_what_its_caller_speaks() {
    let (old, new) = (Origin::echo("http1").await, Origin::echo_http2("http2").await);
    let proxy = Mesh::default()
        .service("old", "auto", &[old.address])
        .service("new", "auto", &[new.address])
        .start()
        .await;
    assert_eq!(client::get(proxy.outbound, "old", "/").await.echo()["version"], "HTTP/1.1");
    let sender = connect(&proxy).await;
    let response = ask(&sender, Request::get("http://new/").body(()).unwrap(), b"").await;
    assert_eq!(echo(&response)["version"], "HTTP/2.0");
}

#[tokio::test]
async fn streams_of_one_connection_do_not_wait_for_each_other() {
    let slow_then_fast = Origin::raw(|mut stream, number| async move {
        // The first connection never answers; the others do.
        if crate::origin::read_request(&mut stream).await.is_some() && number > 1 {
            use tokio::io::AsyncWriteExt;
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        }
        crate::origin::drain(&mut stream).await;
    })
    .await;
    let proxy = Mesh::default().service("shop", "http", &[slow_then_fast.address]).start().await;
    let mut sender = connect(&proxy).await.ready().await.unwrap();
    let (waiting, _) = sender.send_request(get("/slow").body(()).unwrap(), true).unwrap();
    crate::mesh::until("the first call", async || (slow_then_fast.accepted() == 1).then_some(()))
        .await;
    assert_eq!(ask(&sender, get("/fast").body(()).unwrap(), b"").await.status(), 200);
    drop(waiting);
    proxy.quiet("default/shop:80").await;
}

#[tokio::test]
async fn heads_are_translated() {
    let old = Origin::echo("http1").await;
    let proxy = Mesh::default().service("shop", "http", &[old.address]).start().await;
    let sender = connect(&proxy).await;
    let request = get("/").header("cookie", "a=1").header("cookie", "b=2").header("te", "trailers");
    let response = ask(&sender, request.body(()).unwrap(), b"").await;
    assert_eq!(response.version(), Version::HTTP_2);
    let seen = &echo(&response)["headers"];
    assert_eq!(seen["cookie"], serde_json::json!(["a=1; b=2"]), "RFC 9113 section 8.2.3");
    assert_eq!(seen["host"], serde_json::json!(["shop"]));

    let response = "HTTP/1.1 200 OK\r\nConnection: x-hop\r\nx-hop: 1\r\nKeep-Alive: 5\r\n\
                    Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-end: 1\r\n\r\n";
    let origin = Origin::canned(response).await;
    let proxy = Mesh::default().service("shop", "http", &[origin.address]).start().await;
    let response = ask(&connect(&proxy).await, get("/").body(()).unwrap(), b"").await;
    assert_eq!(response.body(), b"ok");
    for name in ["connection", "x-hop", "keep-alive", "transfer-encoding"] {
        assert!(!response.headers().contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn many_calls_at_once_share_connections() {
    let new = Origin::echo_http2("http2").await;
    let proxy = Mesh::default().service("shop", "http2", &[new.address]).start().await;
    let sender = connect(&proxy).await;
    let mut calls = Vec::new();
    for turn in 0..500 {
        let sender = sender.clone();
        calls.push(tokio::spawn(async move {
            let response = ask(&sender, get(&format!("/{turn}")).body(()).unwrap(), b"").await;
            assert_eq!(echo(&response)["path"], format!("/{turn}"));
        }));
    }
    for call in calls {
        call.await.unwrap();
    }
    assert!(new.accepted() < 10, "{} connections", new.accepted());
    proxy.quiet("default/shop:80").await;
}

/// Of two hosts that differ nobody can tell which one a policy has seen (RFC 9113 section 8.3.1).
#[tokio::test]
async fn host_must_not_differ_from_authority() {
    let old = Origin::echo("http1").await;
    let proxy = Mesh::default().service("shop", "http", &[old.address]).start().await;
    let sender = connect(&proxy).await;
    for (host, status) in [("other", 400), ("shop", 200)] {
        let request = get("/").header("host", host).body(()).unwrap();
        assert_eq!(ask(&sender, request, b"").await.status(), status, "{host}");
    }
}

/// FAULTS 20: HTTP/2 sent where only HTTP/1.1 is expected upstream, and TLS to a plain port.
#[tokio::test]
async fn tls_on_a_plain_port_is_refused_at_once() {
    let old = Origin::echo("http1").await;
    let proxy = Mesh::default().service("shop", "http", &[old.address]).start().await;
    let mut wire = Wire::connect(proxy.outbound).await;
    wire.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await;
    assert!(wire.is_closed().await);
    let labels = [("listener", "outbound"), ("reason", "tls")];
    proxy.counts("leno_downstream_connections_refused_total", &labels, 1.0).await;
}

/// The length of what a GET would have brought (RFC 9110 section 9.3.2), through both translations.
#[tokio::test]
async fn head_states_a_length_without_a_body() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n";
    let origin = Origin::canned(head).await;
    let proxy = Mesh::default().service("shop", "http", &[origin.address]).start().await;
    let sender = connect(&proxy).await;
    for _ in 0..2 {
        let request = Request::head("http://shop/").body(()).unwrap();
        let response = ask(&sender, request, b"").await;
        assert_eq!((response.status().as_u16(), response.body().len()), (200, 0));
        assert_eq!(response.headers()["content-length"], "1234");
    }
    assert_eq!(origin.accepted(), 1);
}

/// An error of the proxy's own is one in HTTP/2, too, with nothing that belongs to HTTP/1.1.
#[tokio::test]
async fn errors_of_the_proxy_are_proper_http2() {
    let proxy = Mesh::default().service("empty", "http", &[]).start().await;
    let sender = connect(&proxy).await;
    for (host, status) in [("empty", 503), ("nowhere", 404)] {
        let request = Request::get(format!("http://{host}/")).body(()).unwrap();
        let response = ask(&sender, request, b"").await;
        assert_eq!(response.status(), status);
        assert!(!response.headers().contains_key("connection"));
        assert!(!response.body().is_empty());
    }
}
