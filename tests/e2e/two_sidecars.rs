//! The mesh's own hop: application, sidecar, sidecar, application.

use bytes::Bytes;
use http::Request;

use crate::{
    client::{self, Wire},
    http2::{ask, connect},
    mesh::{Mesh, Proxy, until},
    origin::{self, Origin},
};

/// A sidecar beside `application`, which serves `services`, each a name, its protocol and its application port's
/// address; and the sidecar of a caller.
async fn pair(services: &[(&str, &str, &Origin)]) -> (Proxy, Proxy) {
    let mut documents = String::new();
    for (name, protocol, _) in services {
        documents.push_str(&format!(
            "---\n{{apiVersion: leno.dev/v1alpha1, kind: Service, metadata: {{name: {name}, namespace: default}}, \
             spec: {{ports: [{{name: {name}, port: 80, protocol: {protocol}}}]}}}}\n"
        ));
    }
    let names: Vec<&str> = services.iter().map(|(name, ..)| *name).collect();
    let ports: Vec<String> = services
        .iter()
        .map(|(name, _, origin)| format!("{name}: {}", origin.address.port()))
        .collect();
    let workload = |sidecar: &str| {
        format!(
            "apiVersion: leno.dev/v1alpha1\nkind: Workload\nmetadata: {{name: callee, namespace: default}}\n\
             spec: {{services: [{}], address: 127.0.0.1, ports: {{{}}}{sidecar}}}\n",
            names.join(", "),
            ports.join(", ")
        )
    };
    let callee = Mesh::default()
        .yaml(&documents)
        .yaml(&workload(""))
        .arguments(&["--name", "callee"])
        .start()
        .await;
    let sidecar = format!(", sidecar: {{port: {}}}", callee.inbound.port());
    let caller = Mesh::default().yaml(&documents).yaml(&workload(&sidecar)).start().await;
    (caller, callee)
}

#[tokio::test]
async fn the_second_sidecar_knows_which_port_is_meant() {
    let (a, b) = (Origin::echo("a").await, Origin::echo_http2("b").await);
    let (caller, callee) = pair(&[("users", "http", &a), ("orders", "http2", &b)]).await;
    for (host, version) in
        [("users", "HTTP/1.1"), ("orders", "HTTP/2.0"), ("users.default:80", "HTTP/1.1")]
    {
        let seen = client::get(caller.outbound, host, "/x").await.echo();
        assert_eq!((&seen["path"], &seen["version"]), (&"/x".into(), &version.into()), "{host}");
        assert!(seen["headers"].get("x-leno-destination").is_none(), "{seen}");
        assert_eq!(seen["headers"]["x-forwarded-for"][0], "127.0.0.1");
    }
    let service = [("destination_service_name", "users"), ("destination_workload", "callee")];
    caller
        .counts("istio_requests_total", &[&service[..], &[("reporter", "source")]].concat(), 2.0)
        .await;
    callee
        .counts(
            "istio_requests_total",
            &[&service[..], &[("reporter", "destination")]].concat(),
            2.0,
        )
        .await;
    // The same request in both logs, under the same id.
    let (first, second) = (caller.access_log(1).await, callee.access_log(1).await);
    assert_eq!(first[0]["request_id"], second[0]["request_id"]);
    assert_eq!(
        (&first[0]["listener"], &second[0]["listener"]),
        (&"outbound".into(), &"inbound".into())
    );
}

/// An error of the second sidecar reaches the caller as what it is.
#[tokio::test]
async fn errors_pass_through() {
    let gone = Origin::raw(|_, _| async {}).await;
    let (caller, callee) = pair(&[("shop", "http", &gone)]).await;
    assert_eq!(client::get(caller.outbound, "shop", "/").await.status, 503);
    // Where the end came before the request was sent, it was tried as often as it may be.
    let (status, flags) = callee.last_outcome(1).await;
    assert!(status == 503 && ["UC", "UC,URX"].contains(&&*flags), "{status} {flags}");
    assert_eq!(caller.last_outcome(1).await, (503, "-".to_owned()), "an answer like any other");
}

#[tokio::test]
async fn bodies_stream_through_both() {
    let echo = Origin::echo_http2("a").await;
    let (caller, callee) = pair(&[("shop", "http2", &echo)]).await;
    let sender = connect(&caller).await;
    let body: &'static [u8] = Box::leak(vec![b'x'; 1 << 20].into_boxed_slice());
    let mut sender = sender.ready().await.unwrap();
    let request = Request::post("http://shop/").body(()).unwrap();
    let (response, mut stream) = sender.send_request(request, false).unwrap();
    for chunk in body.chunks(16_000) {
        stream.reserve_capacity(chunk.len());
        while stream.capacity() < chunk.len() {
            let more = std::future::poll_fn(|context| stream.poll_capacity(context));
            assert!(matches!(more.await, Some(Ok(_))));
        }
        stream.send_data(Bytes::from_static(chunk), false).unwrap();
    }
    stream.send_data(Bytes::new(), true).unwrap();
    let mut body_back = response.await.unwrap().into_body();
    while let Some(data) = body_back.data().await {
        body_back.flow_control().release_capacity(data.unwrap().len()).unwrap();
    }
    assert_eq!(echo.requests()[0]["body"].as_str().map(str::len), Some(1 << 20));
    for proxy in [&caller, &callee] {
        assert_eq!(proxy.access_log(1).await[0]["bytes_received"], 1 << 20);
    }
}

/// A caller's abort travels through both sidecars to the application.
#[tokio::test]
async fn aborts_pass_through() {
    let silent = Origin::raw(|mut stream, _| async move {
        origin::drain(&mut stream).await;
    })
    .await;
    let (caller, callee) = pair(&[("shop", "http", &silent)]).await;
    let mut wire = Wire::connect(caller.outbound).await;
    wire.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    until("the call", async || (silent.open() == 1).then_some(())).await;
    drop(wire);
    until("its end", async || (silent.open() == 0).then_some(())).await;
    caller.quiet("default/shop:80").await;
    callee.quiet(&format!("inbound:{}", silent.address.port())).await;
}

/// Empty frames of one caller must not be able to end the connection that all callers of an endpoint share.
#[tokio::test]
async fn empty_frames_do_not_travel() {
    let echo = Origin::echo_http2("a").await;
    let (caller, _callee) = pair(&[("shop", "http2", &echo)]).await;
    for _ in 0..3 {
        // Each within what its own connection allows.
        let mut raw = crate::frames::Raw::connect(&caller).await;
        raw.send(&crate::frames::post(1)).await;
        for _ in 0..80 {
            raw.send(&crate::frames::data(1, 0, [])).await;
        }
        raw.send(&crate::frames::data(1, crate::frames::END_STREAM, "end")).await;
        assert_eq!(raw.status(1).await, Some(200));
        let request = Request::get("http://shop/").body(()).unwrap();
        assert_eq!(ask(&connect(&caller).await, request, b"").await.status(), 200);
    }
    assert_eq!(echo.accepted(), 1, "the shared connection lives");
}

#[tokio::test]
async fn a_tcp_service_is_reached_through_both() {
    use tokio::io::AsyncWriteExt;
    let greets = Origin::raw(|mut stream, _| async move {
        stream.write_all(b"hello\n").await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await;
    let (caller, callee) = pair(&[("store", "tcp", &greets)]).await;
    let mut wire = Wire::connect(caller.outbound).await;
    wire.send("CONNECT store:80 HTTP/1.1\r\nHost: store:80\r\n\r\n").await;
    assert_eq!(wire.head().await.unwrap().status, 200);
    wire.send("bytes").await;
    wire.finish().await;
    assert_eq!(wire.rest().await, b"hello\nbytes");
    let labels = [("reporter", "destination"), ("destination_service_name", "store")];
    callee.counts("istio_tcp_received_bytes_total", &labels, 5.0).await;
}
