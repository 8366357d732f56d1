//! gRPC: trailers, streams, cancellation, and errors that a gRPC client understands (FAULTS 28, 29).

use std::{net::SocketAddr, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use tokio::{net::TcpStream, sync::mpsc, time::timeout};

use crate::{
    http2::{connect, serve},
    mesh::{Mesh, PATIENCE, Proxy},
    origin::{self, Origin},
};

fn message(text: &str) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(text.len().try_into().unwrap());
    framed.put_slice(text.as_bytes());
    framed.freeze()
}

fn trailers(status: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    trailers.insert("grpc-message", HeaderValue::from_static("a%20b"));
    trailers.insert("x-extra-bin", HeaderValue::from_static("AAEC"));
    trailers
}

/// A gRPC server: echoes messages as they come, as long as they come, and says OK; but for some methods by whose name it
/// does something else.
pub async fn server(name: &'static str) -> (Origin, mpsc::UnboundedReceiver<&'static str>) {
    let (events, seen) = mpsc::unbounded_channel();
    let origin = Origin::raw(move |stream, _| {
        let events = events.clone();
        async move {
            let mut connection = serve(stream).await;
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(call(name, request, respond, events.clone()));
            }
        }
    })
    .await;
    (origin, seen)
}

async fn call(
    name: &'static str,
    request: Request<RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    events: mpsc::UnboundedSender<&'static str>,
) {
    let response =
        Response::builder().header("content-type", "application/grpc").header("x-origin", name);
    let (parts, mut incoming) = request.into_parts();
    let method = parts.uri.path().rsplit('/').next().unwrap().to_owned();
    match &*method {
        "Refuse" => {
            let mut response = response.body(()).unwrap();
            response.headers_mut().extend(trailers("5"));
            respond.send_response(response, true).unwrap();
        }
        "Never" => {
            let _ = events.send("called");
            std::future::poll_fn(|context| respond.poll_reset(context)).await.unwrap();
            let _ = events.send("cancelled");
        }
        _ => {
            let mut stream = respond.send_response(response.body(()).unwrap(), false).unwrap();
            while let Some(Ok(data)) = incoming.data().await {
                incoming.flow_control().release_capacity(data.len()).unwrap();
                if !data.is_empty() && method != "Empty" {
                    stream.send_data(data, false).unwrap();
                }
            }
            let status = if method == "Fails" { "9" } else { "0" };
            let _ = events.send("ended");
            stream.send_trailers(trailers(status)).unwrap();
        }
    }
}

struct Call {
    response: Response<RecvStream>,
    request: SendStream<Bytes>,
}

impl Call {
    async fn begin(sender: &SendRequest<Bytes>, host: &str, method: &str) -> Self {
        loop {
            let mut sender = sender.clone().ready().await.unwrap();
            let request = Request::post(format!("http://{host}/{method}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())
                .unwrap();
            let (response, mut request) = sender.send_request(request, false).unwrap();
            request.send_data(message("first"), false).unwrap();
            match timeout(PATIENCE, response).await.expect("a response") {
                Err(error) if error.reason() == Some(h2::Reason::REFUSED_STREAM) => continue,
                response => return Self { response: response.unwrap(), request },
            }
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        let body = self.response.body_mut();
        let data = timeout(PATIENCE, body.data()).await.expect("a message")?.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        Some(data)
    }

    async fn end(mut self) -> HeaderMap {
        self.request.send_data(Bytes::new(), true).unwrap();
        while self.next().await.is_some() {}
        let body = self.response.body_mut();
        timeout(PATIENCE, body.trailers()).await.unwrap().unwrap().unwrap_or_default()
    }
}

async fn before(address: SocketAddr) -> Proxy {
    Mesh::default().service("shop", "grpc", &[address]).start().await
}

#[tokio::test]
async fn messages_stream_both_ways_and_trailers_arrive() {
    let (server, _) = server("a").await;
    let proxy = before(server.address).await;
    let mut call = Call::begin(&connect(&proxy).await, "shop", "shop.v1.Orders/Watch").await;
    assert_eq!(call.next().await.unwrap(), message("first"));
    for turn in 0..50 {
        // Each answer comes before the next question: nothing is held back.
        let text = format!("turn {turn}");
        call.request.send_data(message(&text), false).unwrap();
        assert_eq!(call.next().await.unwrap(), message(&text));
    }
    let end = call.end().await;
    assert_eq!(end["grpc-status"], "0");
    assert_eq!(end["grpc-message"], "a%20b");
    assert_eq!(end["x-extra-bin"], "AAEC");
    let line = &proxy.access_log(1).await[0];
    assert_eq!(line["grpc_status"], 0);
    let labels = [("request_protocol", "grpc"), ("grpc_response_status", "0")];
    proxy.counts("istio_requests_total", &labels, 1.0).await;
}

#[tokio::test]
async fn trailers_only_stays_trailers_only() {
    let (server, _) = server("a").await;
    let proxy = before(server.address).await;
    let call = Call::begin(&connect(&proxy).await, "shop", "shop.v1.Orders/Refuse").await;
    assert!(call.response.body().is_end_stream());
    assert_eq!(call.response.headers()["grpc-status"], "5");
    assert_eq!(call.response.headers()["x-extra-bin"], "AAEC");
    assert_eq!(proxy.access_log(1).await[0]["grpc_status"], 5);
}

#[tokio::test]
async fn errors_of_the_proxy_are_grpc_statuses() {
    let silent = Origin::raw(|stream, _| async move {
        let mut connection = serve(stream).await;
        let mut held = Vec::new();
        while let Some(Ok(call)) = connection.accept().await {
            held.push(call);
        }
    })
    .await;
    let resets = Origin::raw(|stream, _| async move {
        let mut connection = serve(stream).await;
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            respond.send_reset(h2::Reason::INTERNAL_ERROR);
        }
    })
    .await;
    let html = Origin::raw(|stream, _| async move {
        let mut connection = serve(stream).await;
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let response = Response::builder().status(StatusCode::NOT_FOUND).body(()).unwrap();
            respond.send_response(response, true).unwrap();
        }
    })
    .await;
    let proxy = Mesh::default()
        .service("empty", "grpc", &[])
        .service("refused", "grpc", &[origin::nobody()])
        .service("silent", "grpc", &[silent.address])
        .policy("silent", "timeouts: {request: 50ms}")
        .service("resets", "grpc", &[resets.address])
        .service("gone", "grpc", &[])
        .http_route("gone", "- backendRefs: [{name: missing, port: 80}]")
        .service("html", "grpc", &[html.address])
        .start()
        .await;
    let sender = connect(&proxy).await;
    for (host, status) in [
        ("unknown.example", "12"),
        ("empty", "14"),
        ("refused", "14"),
        ("silent", "4"),
        ("resets", "14"),
        ("gone", "2"),
    ] {
        let call = Call::begin(&sender, host, "shop.v1.Orders/Get").await;
        let (headers, end) = (call.response.headers(), call.response.body().is_end_stream());
        assert_eq!(call.response.status(), 200, "{host}");
        assert_eq!(headers["grpc-status"], status, "{host}");
        assert_eq!(headers["content-type"], "application/grpc", "{host}");
        assert!(end && headers.contains_key("grpc-message"), "{host}");
    }
    // What the origin says is passed on as it is: clients map it themselves.
    let call = Call::begin(&sender, "html", "shop.v1.Orders/Get").await;
    assert_eq!(call.response.status(), 404);
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_upstream() {
    let (server, mut seen) = server("a").await;
    let proxy = before(server.address).await;
    let sender = connect(&proxy).await;
    let call = tokio::spawn(async move {
        Call::begin(&sender, "shop", "shop.v1.Orders/Never").await;
    });
    assert_eq!(timeout(PATIENCE, seen.recv()).await.unwrap(), Some("called"));
    call.abort();
    assert_eq!(timeout(PATIENCE, seen.recv()).await.unwrap(), Some("cancelled"));
    proxy.quiet("default/shop:80").await;
    assert_eq!(proxy.last_outcome(1).await.1, "DC");
}

#[tokio::test]
async fn a_thousand_streams_find_their_turn() {
    let (server, _) = server("a").await;
    let proxy = before(server.address).await;
    let sender = connect(&proxy).await;
    let mut calls = Vec::new();
    for turn in 0..1000 {
        let sender = sender.clone();
        calls.push(tokio::spawn(async move {
            let mut call = Call::begin(&sender, "shop", "shop.v1.Orders/Echo").await;
            assert_eq!(call.next().await.unwrap(), message("first"), "{turn}");
            assert_eq!(call.end().await["grpc-status"], "0", "{turn}");
        }));
    }
    for call in calls {
        call.await.unwrap();
    }
    assert!(server.accepted() < 20, "{} connections", server.accepted());
}

#[tokio::test]
async fn grpc_routes_choose_by_method_and_header() {
    let ((a, _), (b, _)) = (server("a").await, server("b").await);
    let proxy = Mesh::default()
        .service("shop", "grpc", &[a.address])
        .service("b", "grpc", &[b.address])
        .route(
            "GRPCRoute",
            "v1",
            "shop",
            "\
- matches: [{method: {service: shop.v1.Orders, method: Place}}]
  backendRefs: [{name: b, port: 80}]
- matches: [{method: {type: RegularExpression, service: 'shop\\.v1\\.Pay.*'}}]
  backendRefs: [{name: b, port: 80}]
- matches: [{method: {method: Anywhere}}]
  backendRefs: [{name: b, port: 80}]
- backendRefs: [{name: shop, port: 80}]",
        )
        .start()
        .await;
    let sender = connect(&proxy).await;
    for (method, expected) in [
        ("shop.v1.Orders/Place", "b"),
        ("shop.v1.Orders/Watch", "a"),
        ("shop.v1.Payments/Charge", "b"),
        ("shop_v1.Payments/Charge", "a"),
        ("other.Service/Anywhere", "b"),
    ] {
        let call = Call::begin(&sender, "shop", method).await;
        assert_eq!(call.response.headers()["x-origin"], expected, "{method}");
        assert_eq!(call.end().await["grpc-status"], "0");
    }
}

/// FAULTS 26: a server that says goodbye is asked nothing more; the calls move to a new connection.
#[tokio::test]
async fn goaway_moves_later_calls_to_a_new_connection() {
    let leaving = Origin::raw(|stream, _| async move {
        let mut connection = serve(stream).await;
        if let Some(Ok((request, respond))) = connection.accept().await {
            let (events, _) = mpsc::unbounded_channel();
            tokio::spawn(call("a", request, respond, events));
            connection.graceful_shutdown();
        }
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
        }
    })
    .await;
    let proxy = before(leaving.address).await;
    let sender = connect(&proxy).await;
    for turn in 0..10 {
        let call = Call::begin(&sender, "shop", "shop.v1.Orders/Echo").await;
        assert_eq!(call.end().await["grpc-status"], "0", "call {turn}");
        // The proxy has seen the goodbye once the connection is gone.
        crate::mesh::until("the goodbye", async || (leaving.open() == 0).then_some(())).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(leaving.accepted(), 10);
}

/// A connection to a server that has vanished without a word is given up; the next call makes another.
#[tokio::test]
async fn a_broken_connection_fails_its_calls_only() {
    let (healthy, _) = server("a").await;
    let address = healthy.address;
    let breaks = Origin::raw(move |mut stream, number| async move {
        if number == 1 {
            // Says nothing until called, then breaks off in the middle of a frame.
            let mut first = [0; 200];
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut first).await;
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"\0\0\x12\x04").await;
            return;
        }
        let mut onward = TcpStream::connect(address).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
    })
    .await;
    let proxy = before(breaks.address).await;
    let sender = connect(&proxy).await;
    let broken = Call::begin(&sender, "shop", "shop.v1.Orders/Echo").await;
    assert_eq!(broken.response.headers()["grpc-status"], "14");
    let call = Call::begin(&sender, "shop", "shop.v1.Orders/Echo").await;
    assert_eq!(call.end().await["grpc-status"], "0");
}
