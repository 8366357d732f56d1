use std::net::Ipv4Addr;

use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::LocalSet,
};
use tokio_rustls::TlsAcceptor;

use super::*;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn probes(target: serde_json::Value) -> Probes {
    let text = json!({"/probe/app/live": target}).to_string();
    Probes::read(&text, LOCAL, Some(LOCAL)).unwrap()
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

async fn ask(probes: &Probes) -> Result<(), (StatusCode, String)> {
    let agent = HeaderValue::from_static("kube-probe/1.32");
    probes.ask("/probe/app/live", Some(&agent)).await
}

/// However many ask, and whoever of them goes away, the application is asked once at a time.
#[tokio::test]
async fn a_question_under_way_is_shared() {
    let (listener, port) = listener().await;
    let probes = probes(json!({
        "kind": "httpGet", "port": port, "timeoutSeconds": 60, "path": "/", "scheme": "HTTP", "headers": [],
    }));
    let ask = || probes.ask("/probe/app/live", None);
    let test = async {
        let mut first = Box::pin(ask());
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            outcome = first.as_mut() => panic!("nobody has answered: {outcome:?}"),
        };
        let (mut stream, _) = accepted.unwrap();
        drop(first);
        let served = answer(&mut stream, "500 Oh");
        let (second, third, _) = tokio::join!(ask(), ask(), served);
        let failed = Err((StatusCode::SERVICE_UNAVAILABLE, "answered 500".to_owned()));
        assert_eq!((&second, &third), (&failed, &failed));
        // What is over is asked again, and nobody else was connected to meanwhile.
        let again = async { answer(&mut listener.accept().await.unwrap().0, "200 OK").await };
        assert_eq!(tokio::join!(ask(), again).0, Ok(()));
    };
    LocalSet::new().run_until(test).await;
}

/// Answers one request with `status` and says what it was.
async fn answer(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), status: &str) -> String {
    let head = head(stream).await;
    let response = format!("HTTP/1.1 {status}\r\nContent-Length: 4\r\n\r\nwell");
    stream.write_all(response.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    head
}

async fn http(status: &str) -> (Result<(), (StatusCode, String)>, String) {
    let (listener, port) = listener().await;
    let probes = probes(json!({
        "kind": "httpGet", "port": port, "timeoutSeconds": 60, "path": "healthz?deep=ä b", "scheme": "HTTP",
        "headers": [{"name": "X-Probe", "value": "1"}],
    }));
    let served = async { answer(&mut listener.accept().await.unwrap().0, status).await };
    LocalSet::new().run_until(async { tokio::join!(ask(&probes), served) }).await
}

#[tokio::test]
async fn an_answer_is_judged_as_the_kubelet_does() {
    let (asked, head) = http("200 OK").await;
    assert_eq!(asked, Ok(()));
    assert!(head.starts_with("GET /healthz?deep=%C3%A4%20b HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("x-probe: 1\r\n") && head.contains("user-agent: kube-probe/1.32\r\n"));
    assert_eq!(http("302 Found").await.0, Ok(()));
    // Not what it says of itself: anybody may ask.
    let failed = (StatusCode::SERVICE_UNAVAILABLE, "answered 500".to_owned());
    assert_eq!(http("500 Oh").await.0, Err(failed));
    assert!(http("404 Not Found").await.0.is_err());
}

#[tokio::test]
async fn any_certificate_will_do() {
    let own = rcgen::generate_simple_self_signed(["elsewhere.example".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(vec![own.cert.der().clone()], key)
    .unwrap();
    let (listener, port) = listener().await;
    let probes = probes(json!({
        "kind": "httpGet", "port": port, "timeoutSeconds": 60, "path": "/", "scheme": "HTTPS", "headers": [],
    }));
    let served = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
        answer(&mut stream, "204 No Content").await
    };
    let (asked, _) = LocalSet::new().run_until(async { tokio::join!(ask(&probes), served) }).await;
    assert_eq!(asked, Ok(()));
}

#[tokio::test]
async fn a_port_is_open_or_not() {
    let (listener, port) = listener().await;
    let probes = probes(json!({"kind": "tcpSocket", "port": port, "timeoutSeconds": 60}));
    let set = LocalSet::new();
    assert_eq!(set.run_until(ask(&probes)).await, Ok(()));
    drop(listener);
    let (status, reason) = set.run_until(ask(&probes)).await.unwrap_err();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(reason.contains(&format!("connecting to 127.0.0.1:{port}")), "{reason}");
}

/// What gRPC's own health service answers, with `status` in its one message.
async fn grpc(status: u8, service: &str) -> (Result<(), (StatusCode, String)>, Vec<u8>) {
    let (listener, port) = listener().await;
    let probes =
        probes(json!({"kind": "grpc", "port": port, "timeoutSeconds": 60, "service": service}));
    let served = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        let mut body = request.into_body();
        let reading = async {
            let asked = body.data().await.unwrap().unwrap().to_vec();
            let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
            stream.send_data(vec![0, 0, 0, 0, 2, 8, status].into(), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            stream.send_trailers(trailers).unwrap();
            asked
        };
        // The connection must be driven for anything to be sent.
        let driving = async { while connection.accept().await.is_some() {} };
        tokio::join!(reading, driving).0
    };
    LocalSet::new().run_until(async { tokio::join!(ask(&probes), served) }).await
}

#[tokio::test]
async fn the_health_service_of_grpc_is_asked() {
    let (asked, message) = grpc(1, "a.B").await;
    assert_eq!((asked, &message[..]), (Ok(()), &[0, 0, 0, 0, 5, 0x0a, 3, b'a', b'.', b'B'][..]));
    let (status, reason) = grpc(2, "").await.0.unwrap_err();
    assert_eq!((status, &*reason), (StatusCode::SERVICE_UNAVAILABLE, "says NOT_SERVING"));
}

#[tokio::test(start_paused = true)]
async fn silence_is_no_answer() {
    let (_listener, port) = listener().await;
    let probes = probes(json!({
        "kind": "httpGet", "port": port, "timeoutSeconds": 2, "path": "/", "scheme": "HTTP", "headers": [],
    }));
    let asked = LocalSet::new().run_until(ask(&probes)).await;
    let late = (StatusCode::SERVICE_UNAVAILABLE, "no answer within 2s".to_owned());
    assert_eq!(asked, Err(late));
}

#[tokio::test]
async fn nothing_else_can_be_reached() {
    let probes = probes(json!({"kind": "tcpSocket", "port": 1, "timeoutSeconds": 1}));
    for path in
        ["/probe/app/ready", "/probe/app/live/", "/probe/../app/live", "/probe/app/live?port=22"]
    {
        let refused = probes.ask(path, None).await.unwrap_err();
        assert_eq!(refused.0, StatusCode::NOT_FOUND, "{path}");
    }
}

#[test]
fn what_injection_did_not_write_is_refused() {
    let read = |text: &str| Probes::read(text, LOCAL, None).map(drop).unwrap_err().to_string();
    assert!(read("{").contains("EOF"));
    assert!(read(r#"{"/p": {"port": 0}}"#).contains("missing field"));
    assert!(
        read(r#"{"/p": {"kind": "exec", "port": 1, "timeoutSeconds": 1}}"#)
            .contains("unknown variant")
    );
    let field = json!({"/p": {
        "kind": "httpGet", "port": 1, "timeoutSeconds": 1, "path": "/", "scheme": "HTTP",
        "headers": [{"name": "a b", "value": ""}],
    }});
    assert_eq!(read(&field.to_string()), "/p: the field `a b` is not one of HTTP");
    let target = json!({"kind": "tcpSocket", "port": 1, "timeoutSeconds": 1});
    let many: serde_json::Map<_, _> =
        (0..=MAX_PROBES).map(|at| (format!("/probe/{at}/live"), target.clone())).collect();
    assert!(read(&serde_json::Value::Object(many).to_string()).contains("at most 256"));
}
