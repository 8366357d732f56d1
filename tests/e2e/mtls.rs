//! The mesh's own hop under mutual TLS: every protocol, every mode, and who may.

use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    certificates::{self, Authority},
    client::{self, Wire},
    http2,
    mesh::{Mesh, PATIENCE, Proxy, until},
    origin::{self, Origin},
};

const CALLER: &str = "spiffe://cluster.local/ns/default/sa/caller";
const CALLEE: &str = "spiffe://cluster.local/ns/default/sa/callee";

/// A sidecar beside an application and the sidecar of a caller, both with certificates.
pub struct Pair {
    pub caller: Proxy,
    pub callee: Proxy,
    pub authority: Authority,
}

/// The application serves `services`, each a name, its protocol and its port's address. `policies` are known to both.
pub async fn pair(services: &[(&str, &str, &Origin)], policies: &[&str]) -> Pair {
    pair_as(services, policies, "callee").await
}

/// The same, where the callee has the certificate of `account`.
async fn pair_as(services: &[(&str, &str, &Origin)], policies: &[&str], account: &str) -> Pair {
    let authority = Authority::new();
    let callee = side(services, policies, None)
        .arguments(&["--name", "callee"])
        .identity(&authority, account)
        .start()
        .await;
    let caller = side(services, policies, Some(&callee)).identity(&authority, "caller");
    Pair { caller: caller.start().await, callee, authority }
}

pub fn side(services: &[(&str, &str, &Origin)], policies: &[&str], callee: Option<&Proxy>) -> Mesh {
    let mut mesh = Mesh::default();
    for (name, protocol, _) in services {
        mesh = mesh.yaml(&format!(
            "apiVersion: leno.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
             spec: {{ports: [{{name: {name}, port: 80, protocol: {protocol}}}]}}"
        ));
    }
    let names: Vec<&str> = services.iter().map(|(name, ..)| *name).collect();
    let ports: Vec<String> = services
        .iter()
        .map(|(name, _, origin)| format!("{name}: {}", origin.address.port()))
        .collect();
    let sidecar = callee.map_or_else(String::new, |callee| {
        format!(", sidecar: {{port: {}, mutualTls: true}}", callee.inbound.port())
    });
    mesh = mesh.yaml(&format!(
        "apiVersion: leno.dev/v1alpha1\nkind: Workload\nmetadata: {{name: callee, namespace: default}}\n\
         spec: {{services: [{}], address: 127.0.0.1, serviceAccount: callee, ports: {{{}}}{sidecar}}}",
        names.join(", "),
        ports.join(", ")
    ));
    policies.iter().fold(mesh, |mesh, policy| mesh.yaml(policy))
}

pub fn mode(mode: &str) -> String {
    format!(
        "apiVersion: leno.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{name: mode, namespace: default}}\n\
         spec: {{mtls: {{mode: {mode}}}}}"
    )
}

pub fn authorization(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: leno.dev/v1alpha1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: default}}\nspec: {spec}"
    )
}

pub async fn echo_bytes(greeting: &'static [u8]) -> Origin {
    Origin::raw(move |mut stream, _| async move {
        stream.write_all(greeting).await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

pub async fn tunnel(outbound: std::net::SocketAddr, host: &str) -> Wire {
    let mut wire = Wire::connect(outbound).await;
    wire.send(format!("CONNECT {host}:80 HTTP/1.1\r\nHost: {host}:80\r\n\r\n")).await;
    assert_eq!(wire.head().await.unwrap().status, 200);
    wire
}

pub async fn refused(proxy: &Proxy, reason: &str, count: f64) {
    let labels = [("listener", "inbound"), ("reason", reason)];
    proxy.counts("leno_downstream_connections_refused_total", &labels, count).await;
}

#[tokio::test]
async fn http_is_carried_and_both_ends_are_known() {
    let (a, b) = (Origin::echo("a").await, Origin::echo_http2("b").await);
    let Pair { caller, callee, .. } =
        pair(&[("users", "http", &a), ("orders", "http2", &b)], &[]).await;
    for (host, version) in [("users", "HTTP/1.1"), ("orders", "HTTP/2.0")] {
        for _ in 0..3 {
            // What the application says about certificates and destinations is nobody's business.
            let fields = "x-forwarded-client-cert: By=me;URI=spiffe://forged\r\n\
                          x-leno-destination: default/users:80\r\n";
            let answer = client::get_with(caller.outbound, host, "/x", fields).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let seen = answer.echo();
            assert_eq!((&seen["version"], &seen["path"]), (&version.into(), &"/x".into()));
            let headers = &seen["headers"];
            let certificate = format!("By={CALLEE};URI={CALLER}");
            assert_eq!(headers["x-forwarded-client-cert"], serde_json::json!([certificate]));
            assert!(headers.get("x-leno-destination").is_none(), "{seen}");
            assert_eq!(headers["x-forwarded-for"][0], "127.0.0.1");
        }
    }
    let ends = [
        ("destination_service_name", "orders"),
        ("source_principal", CALLER),
        ("destination_principal", CALLEE),
        ("connection_security_policy", "mutual_tls"),
    ];
    for (proxy, reporter) in [(&caller, "source"), (&callee, "destination")] {
        let labels = [&ends[..], &[("reporter", reporter)]].concat();
        proxy.counts("istio_requests_total", &labels, 3.0).await;
    }
    let (out, inward) = (&caller.access_log(6).await[0], &callee.access_log(6).await[0]);
    assert_eq!(out["upstream_peer"], CALLEE.strip_prefix("spiffe://").unwrap());
    assert_eq!((&out["tls"], &out["upstream_tls"]), (&false.into(), &true.into()));
    assert_eq!(inward["downstream_peer"], CALLER.strip_prefix("spiffe://").unwrap());
    assert_eq!((&inward["tls"], &inward["upstream_tls"]), (&true.into(), &false.into()));
    let shown = caller.cluster("default/orders:80").await;
    assert_eq!(shown["endpoints"][0]["tls"], "mutual");
    assert!(callee.page("/listeners").await.contains("STRICT"));
    assert_eq!(callee.json("/certs").await["id"], CALLEE);
    // New connections of the same caller are resumed, not proven anew.
    let handshakes = caller.metric("leno_tls_handshakes_total", &[("side", "client")]).await;
    assert!(handshakes.is_some_and(|count| count >= 2.0), "{handshakes:?}");
}

#[tokio::test]
async fn grpc_streams_and_keeps_its_trailers() {
    let origin = Origin::raw(|stream, _| async move {
        let mut connection = http2::serve(stream).await;
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                let response = http::Response::builder().header("content-type", "application/grpc");
                let mut stream = respond.send_response(response.body(()).unwrap(), false).unwrap();
                let mut body = request.into_body();
                while let Some(Ok(data)) = body.data().await {
                    body.flow_control().release_capacity(data.len()).unwrap();
                    stream.send_data(data, false).unwrap();
                }
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                stream.send_trailers(trailers).unwrap();
            });
        }
    })
    .await;
    let Pair { caller, callee: _callee, .. } = pair(&[("shop", "grpc", &origin)], &[]).await;
    let mut sender = http2::connect(&caller).await.ready().await.unwrap();
    let request = Request::post("http://shop/a.B/C")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let (response, mut request) = sender.send_request(request.body(()).unwrap(), false).unwrap();
    request.send_data(bytes::Bytes::from_static(b"\0\0\0\0\x02hi"), false).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), &b"\0\0\0\0\x02hi"[..]);
    request.send_data(bytes::Bytes::new(), true).unwrap();
    while body.data().await.is_some() {}
    assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
}

/// The server name says which of several opaque ports is meant.
#[tokio::test]
async fn opaque_ports_are_told_apart() {
    let (store, cache) = (echo_bytes(b"store\n").await, echo_bytes(b"cache\n").await);
    let Pair { caller, callee, .. } =
        pair(&[("store", "tcp", &store), ("cache", "tcp", &cache)], &[]).await;
    for host in ["store", "cache", "store"] {
        let mut wire = tunnel(caller.outbound, host).await;
        wire.send("bytes").await;
        wire.finish().await;
        assert_eq!(wire.rest().await, format!("{host}\nbytes").as_bytes());
    }
    let labels = [("destination_service_name", "store"), ("source_principal", CALLER)];
    callee.counts("istio_tcp_connections_closed_total", &labels, 2.0).await;
}

#[tokio::test]
async fn an_upgrade_passes() {
    let chat = Origin::raw(|mut stream, _| async move {
        if origin::read_request(&mut stream).await.is_some() {
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                           Upgrade: websocket\r\n\r\nwelcome";
            stream.write_all(answer).await.unwrap();
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        }
    })
    .await;
    let Pair { caller, callee, .. } = pair(&[("shop", "http", &chat)], &[]).await;
    let mut wire = Wire::connect(caller.outbound).await;
    wire.send(
        "GET /chat HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    )
    .await;
    assert_eq!(wire.head().await.unwrap().status, 101);
    assert_eq!(wire.exactly(7).await.unwrap(), b"welcome");
    wire.send(b"\x81\x02hi").await;
    assert_eq!(wire.exactly(4).await.unwrap(), b"\x81\x02hi");
    wire.finish().await;
    assert!(wire.is_closed().await);
    assert_eq!(callee.last_outcome(1).await, (101, "-".to_owned()));
}

#[tokio::test]
async fn strict_refuses_plain() {
    let (echo, bytes) = (Origin::echo("a").await, echo_bytes(b"").await);
    let Pair { caller, callee, .. } =
        pair(&[("shop", "http", &echo), ("store", "tcp", &bytes)], &[]).await;
    caller.serves("shop").await;
    for opening in
        ["GET / HTTP/1.1\r\nHost: shop\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\0\0"]
    {
        let mut wire = Wire::connect(callee.inbound).await;
        wire.send(opening).await;
        assert!(wire.is_closed().await);
    }
    refused(&callee, "plaintext_refused", 3.0).await;
    assert_eq!((echo.requests().len(), bytes.accepted()), (1, 0));
}

/// Where ports differ it is found out per request.
#[tokio::test]
async fn strict_beside_permissive_is_told_by_request() {
    let (open, closed) = (Origin::echo("open").await, Origin::echo("closed").await);
    let policy = format!(
        "apiVersion: leno.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{name: a, namespace: default}}\n\
         spec: {{portLevelMtls: {{'{}': {{mode: PERMISSIVE}}}}}}",
        open.address.port()
    );
    let Pair { caller, callee, .. } =
        pair(&[("open", "http", &open), ("closed", "http", &closed)], &[&policy]).await;
    let mut wire = Wire::connect(callee.inbound).await;
    let denied = wire.ask("GET / HTTP/1.1\r\nHost: closed\r\n\r\n").await;
    assert_eq!((denied.status, denied.text().as_str()), (403, "access denied\n"));
    let taken = wire.ask("GET / HTTP/1.1\r\nHost: open\r\n\r\n").await;
    assert_eq!(taken.status, 200);
    assert!(taken.echo()["headers"].get("x-forwarded-client-cert").is_none());
    let line = &callee.access_log(1).await[0];
    assert_eq!(line["response_flags"], "AD");
    assert_eq!(line["response_code_details"], "this port takes mutual TLS only");
    for host in ["open", "closed"] {
        caller.serves(host).await;
    }
    assert_eq!(closed.requests().len(), 1);
}

#[tokio::test]
async fn permissive_takes_both() {
    let (echo, bytes) = (Origin::echo("a").await, echo_bytes(b"").await);
    let Pair { caller, callee, .. } =
        pair(&[("shop", "http", &echo), ("store", "tcp", &bytes)], &[&mode("PERMISSIVE")]).await;
    caller.serves("shop").await;
    let mut wire = tunnel(caller.outbound, "store").await;
    wire.send("under TLS").await;
    assert_eq!(wire.exactly(9).await.unwrap(), b"under TLS");
    let plain = client::get(callee.inbound, "shop", "/").await.echo();
    assert!(plain["headers"].get("x-forwarded-client-cert").is_none(), "{plain}");
    let mut wire = Wire::connect(callee.inbound).await;
    wire.send("\0plain").await;
    assert_eq!(wire.exactly(6).await.unwrap(), b"\0plain");
    let both = |policy| [("reporter", "destination"), ("connection_security_policy", policy)];
    for policy in ["mutual_tls", "none"] {
        callee.counts("istio_requests_total", &both(policy), 1.0).await;
        callee.counts("istio_tcp_connections_opened_total", &both(policy), 1.0).await;
    }
}

/// Applications that speak first are heard by callers that wait for them, with TLS and without.
#[tokio::test]
async fn servers_may_speak_first() {
    let greets = echo_bytes(b"220 ready\n").await;
    for protocol in ["tcp", "auto"] {
        let services = [("store", protocol, &greets)];
        let Pair { caller, callee, .. } = pair(&services, &[&mode("PERMISSIVE")]).await;
        let mut wires =
            [tunnel(caller.outbound, "store").await, Wire::connect(callee.inbound).await];
        for wire in &mut wires {
            assert_eq!(wire.exactly(10).await.unwrap(), b"220 ready\n", "{protocol}");
        }
    }
}

fn hello(alpn: &str) -> Vec<u8> {
    let config = std::sync::Arc::new(certificates::config(alpn, None));
    let name = "80.store.default.leno".try_into().unwrap();
    let mut connection = rustls::ClientConnection::new(config, name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// TLS that the application speaks itself is its own affair, also where it comes in pieces.
#[tokio::test]
async fn the_applications_own_tls_passes_unopened() {
    let bytes = echo_bytes(b"").await;
    for (protocol, mode_in_force) in
        [("tcp", "PERMISSIVE"), ("auto", "PERMISSIVE"), ("auto", "DISABLE")]
    {
        let Pair { callee, .. } =
            pair(&[("store", protocol, &bytes)], &[&mode(mode_in_force)]).await;
        for alpn in ["h2", ""] {
            let hello = hello(alpn);
            let mut wire = Wire::connect(callee.inbound).await;
            let (first, rest) = hello.split_at(100);
            wire.send(first).await;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            wire.send(rest).await;
            assert_eq!(wire.exactly(hello.len()).await.unwrap(), hello, "{protocol} {alpn}");
        }
    }
}

#[tokio::test]
async fn disabled_ports_are_spoken_to_in_plain() {
    let (echo, bytes) = (Origin::echo("a").await, echo_bytes(b"").await);
    let services = [("shop", "http", &echo), ("store", "auto", &bytes)];
    let Pair { caller, callee, authority } = pair(&services, &[&mode("DISABLE")]).await;
    caller.serves("shop").await;
    let line = &callee.access_log(1).await[0];
    assert_eq!((&line["tls"], &line["response_code"]), (&false.into(), &200.into()));
    let issued = authority.issue("caller");
    let name = "80.shop.default.leno";
    let tried = certificates::connect(callee.inbound, name, "leno-http/1.1", Some(&issued)).await;
    let closed = match tried {
        Err(_) => true,
        Ok(mut stream) => !stream.read(&mut [0]).await.is_ok_and(|read| read > 0),
    };
    assert!(closed);
    refused(&callee, "tls", 1.0).await;
}

#[tokio::test]
async fn only_the_expected_identity_is_spoken_to() {
    let echo = Origin::echo("a").await;
    let Pair { caller, callee, .. } = pair_as(&[("shop", "http", &echo)], &[], "impostor").await;
    let answer = client::get(caller.outbound, "shop", "/").await;
    assert_eq!((answer.status, answer.text().as_str()), (503, "upstream connect failed (UF)\n"));
    let detail = caller.access_log(1).await[0]["response_code_details"].clone();
    assert!(detail.as_str().unwrap().contains("wrong_identity"), "{detail}");
    let labels = [("side", "client"), ("result", "wrong_identity")];
    assert!(caller.metric("leno_tls_handshakes_total", &labels).await.is_some());
    assert!(callee.metric("leno_tls_handshakes_total", &[("side", "server")]).await.is_some());
    assert_eq!(echo.requests().len(), 0);
}

/// The callee's refusal comes after the caller's handshake, and is a failed connection all the same.
#[tokio::test]
async fn a_caller_of_another_root_is_refused() {
    let (a, b, bytes) =
        (Origin::echo("a").await, Origin::echo_http2("b").await, echo_bytes(b"x").await);
    let services = [("users", "http", &a), ("orders", "http2", &b), ("store", "tcp", &bytes)];
    let (ours, theirs) = (Authority::new(), Authority::new());
    let callee = side(&services, &[], None)
        .arguments(&["--name", "callee"])
        .identity(&ours, "callee")
        .start()
        .await;
    let flags = theirs.flags_trusting("caller", &theirs.issue("caller"), &[&ours]);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let caller = side(&services, &[], Some(&callee)).arguments(&flags).start().await;
    for (at, host) in ["users", "orders"].into_iter().enumerate() {
        let answer = client::get(caller.outbound, host, "/").await;
        let detail = caller.access_log(at + 1).await[at]["response_code_details"].clone();
        assert!(detail.as_str().unwrap().contains("TLS"), "{detail}");
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (503, "upstream connect failed (UF)\n")
        );
    }
    assert!(tunnel(caller.outbound, "store").await.is_closed().await);
    let labels = [("side", "server"), ("result", "unknown_ca")];
    assert!(callee.metric("leno_tls_handshakes_total", &labels).await.is_some_and(|n| n >= 3.0));
    assert_eq!((a.accepted(), b.accepted(), bytes.accepted()), (0, 0, 0));
}

#[tokio::test]
async fn names_of_nobody_lead_nowhere() {
    let (echo, bytes) = (Origin::echo("a").await, echo_bytes(b"").await);
    let services = [("shop", "http", &echo), ("store", "tcp", &bytes)];
    let Pair { callee, authority, .. } = pair(&services, &[]).await;
    let issued = authority.issue("caller");
    for name in ["80.other.default.leno", "81.shop.default.leno", "shop"] {
        let http = certificates::connect(callee.inbound, name, "leno-http/1.1", Some(&issued));
        let mut http = http.await.unwrap();
        // Neither Host nor header makes up for it.
        let request = "GET / HTTP/1.1\r\nHost: shop\r\nx-leno-destination: default/shop:80\r\n\
                       Connection: close\r\n\r\n";
        http.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        http.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404"), "{name}: {answer}");
        let tcp = certificates::connect(callee.inbound, name, "leno-tcp", Some(&issued)).await;
        let read = tokio::time::timeout(PATIENCE, tcp.unwrap().read(&mut [0])).await.unwrap();
        assert!(!read.is_ok_and(|read| read > 0), "{name}");
    }
    refused(&callee, "no_port", 3.0).await;
    assert_eq!((echo.requests().len(), bytes.accepted()), (0, 0));
}

/// Bytes for a port that speaks HTTP are HTTP: what is decided by request cannot be tunnelled past.
#[tokio::test]
async fn a_tunnel_to_an_http_port_is_read_as_http() {
    let echo = Origin::echo("a").await;
    let deny = authorization(
        "no-deletes",
        "{action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}",
    );
    let Pair { caller, callee: _callee, .. } = pair(&[("shop", "http", &echo)], &[&deny]).await;
    let mut wire = tunnel(caller.outbound, "shop").await;
    assert_eq!(wire.ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.status, 200);
    assert_eq!(wire.ask("DELETE / HTTP/1.1\r\nHost: shop\r\n\r\n").await.status, 403);
}

#[tokio::test]
async fn policies_decide_who_may() {
    let (echo, bytes) = (Origin::echo("a").await, echo_bytes(b"in\n").await);
    let from = |account: &str| {
        format!("{{source: {{principals: [cluster.local/ns/default/sa/{account}]}}}}")
    };
    let target = |service: &str| format!("targetRefs: [{{kind: Service, name: {service}}}]");
    let policies = [
        authorization(
            "readers",
            &format!(
                "{{{}, action: ALLOW, rules: [{{from: [{}], to: [{{operation: {{methods: [GET]}}}}]}}]}}",
                target("shop"),
                from("caller")
            ),
        ),
        authorization(
            "no-admin",
            // Where nothing can be said of paths it would deny everything.
            &format!(
                "{{{}, action: DENY, rules: [{{to: [{{operation: {{paths: [/admin*]}}}}]}}]}}",
                target("shop")
            ),
        ),
        authorization(
            "watch",
            &format!(
                "{{{}, action: AUDIT, rules: [{{to: [{{operation: {{paths: [/watched]}}}}]}}]}}",
                target("shop")
            ),
        ),
        authorization(
            "nobody",
            &format!(
                "{{{}, action: ALLOW, rules: [{{from: [{}]}}]}}",
                target("store"),
                from("other")
            ),
        ),
    ];
    let policies: Vec<&str> = policies.iter().map(String::as_str).collect();
    let services = [("shop", "http", &echo), ("store", "auto", &bytes)];
    let Pair { caller, callee, authority } = pair(&services, &policies).await;
    let ask = async |request: &str| client::ask(caller.outbound, request).await;
    assert_eq!(ask("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.status, 200);
    assert_eq!(ask("GET /watched HTTP/1.1\r\nHost: shop\r\n\r\n").await.status, 200);
    for request in [
        "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\n\r\n",
        "GET /admin/x HTTP/1.1\r\nHost: shop\r\n\r\n",
        "GET /x/../admin HTTP/1.1\r\nHost: shop\r\n\r\n",
        "GET /admin HTTP/1.1\r\nHost: shop\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    ] {
        let answer = ask(request).await;
        assert_eq!((answer.status, answer.text().as_str()), (403, "access denied\n"), "{request}");
    }
    let log = callee.access_log(6).await;
    assert_eq!(log[1]["audit"], "default/watch");
    let detail = log[3]["response_code_details"].as_str().unwrap();
    assert!(detail.contains("default/no-admin"), "{detail}");
    callee.counts("leno_authorization_denied_total", &[("policy", "default/readers")], 1.0).await;
    callee.counts("leno_authorization_audited_total", &[], 1.0).await;
    // Opaque connections are closed.
    let mut wire = tunnel(caller.outbound, "store").await;
    assert!(wire.is_closed().await);
    refused(&callee, "AD", 1.0).await;
    let other = authority.issue("other");
    let name = "80.store.default.leno";
    let mut stream =
        certificates::connect(callee.inbound, name, "leno-tcp", Some(&other)).await.unwrap();
    let mut greeting = [0; 3];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"in\n");
}

/// A token that is there must be good, and what policies say of it is asked for. The inline key is the one of RFC 7517.
#[tokio::test]
async fn tokens_are_checked_before_policies() {
    const TOKENS: &str = "apiVersion: leno.dev/v1alpha1\nkind: RequestAuthentication\n\
        metadata: {name: tokens, namespace: default}\n\
        spec: {jwtRules: [{issuer: me, jwks: '{\"keys\": [{\"kty\": \"EC\", \"crv\": \"P-256\", \"kid\": \"a\", \
        \"x\": \"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4\", \
        \"y\": \"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM\"}]}'}]}";
    let echo = Origin::echo("a").await;
    let ask_for = authorization(
        "with-token",
        "{action: ALLOW, rules: [{from: [{source: {requestPrincipals: ['*']}}]}, \
         {to: [{operation: {paths: [/open]}}]}]}",
    );
    let services = [("shop", "http", &echo)];
    let Pair { caller, callee, .. } = pair(&services, &[TOKENS, &ask_for]).await;
    let token = "authorization: Bearer eyJhbGciOiJub25lIn0.eyJpc3MiOiJtZSJ9.\r\n";
    for (path, fields, status) in
        [("/open", "", 200), ("/closed", "", 403), ("/open", token, 401), ("/closed", token, 401)]
    {
        let answer = client::get_with(caller.outbound, "shop", path, fields).await;
        assert_eq!(answer.status, status, "{path} {fields}");
        let challenge = answer.header("www-authenticate");
        assert_eq!(challenge.is_some_and(|text| text.starts_with("Bearer")), status == 401);
        assert!(!answer.text().contains("eyJ"));
    }
    let log = callee.access_log(4).await;
    assert_eq!(
        (&log[2]["response_flags"], &log[1]["response_flags"]),
        (&"AU".into(), &"AD".into())
    );
    assert!(!log[2].to_string().contains("eyJ"), "{}", log[2]);
    callee.counts("leno_tokens_refused_total", &[], 2.0).await;
    // gRPC is told in its own words.
    let grpc = "content-type: application/grpc\r\n";
    for (fields, status) in [(grpc.to_owned(), "7"), (format!("{grpc}{token}"), "16")] {
        let answer = client::get_with(caller.outbound, "shop", "/closed", &fields).await;
        assert_eq!((answer.status, answer.header("grpc-status")), (200, Some(status)));
    }
}

#[tokio::test]
async fn a_hello_in_single_bytes_is_waited_for() {
    let echo = Origin::echo("a").await;
    let Pair { callee, authority, .. } = pair(&[("shop", "http", &echo)], &[]).await;
    let issued = authority.issue("caller");
    let config = std::sync::Arc::new(certificates::config("leno-http/1.1", Some(&issued)));
    let name = "80.shop.default.leno".try_into().unwrap();
    let stream = tokio::net::TcpStream::connect(callee.inbound).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let drip = Drip(stream);
    let connector = tokio_rustls::TlsConnector::from(config);
    let mut stream =
        tokio::time::timeout(PATIENCE, connector.connect(name, drip)).await.unwrap().unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// A proxy that expects a certificate says nothing in plain before it has one.
#[tokio::test]
async fn without_a_certificate_there_is_no_plain_text() {
    let echo = Origin::echo("a").await;
    let services = [("shop", "http", &echo)];
    let authority = Authority::new();
    let callee = side(&services, &[], None)
        .arguments(&["--name", "callee"])
        .identity(&authority, "callee")
        .start()
        .await;
    let nowhere = ["--workload-api", "/nonexistent/spire.sock"];
    let caller = side(&services, &[], Some(&callee)).arguments(&nowhere).start().await;
    let answer = client::get(caller.outbound, "shop", "/").await;
    assert_eq!((answer.status, answer.text().as_str()), (503, "upstream connect failed (UF)\n"));
    let detail = caller.access_log(1).await[0]["response_code_details"].clone();
    assert!(detail.as_str().unwrap().contains("no certificate yet"), "{detail}");
    let ready = client::get(caller.admin, &caller.admin.to_string(), "/ready").await;
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("no certificate yet"), "{}", ready.text());
    let beside = side(&services, &[], None).arguments(&["--name", "callee"]).arguments(&nowhere);
    let beside = beside.start().await;
    assert!(client_is_refused(&beside, &authority).await);
    let mut wire = Wire::connect(beside.inbound).await;
    wire.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    assert!(wire.is_closed().await);
    assert_eq!(echo.requests().len(), 0);
}

async fn client_is_refused(proxy: &Proxy, authority: &Authority) -> bool {
    let issued = authority.issue("caller");
    let name = "80.shop.default.leno";
    certificates::connect(proxy.inbound, name, "leno-http/1.1", Some(&issued)).await.is_err()
}

/// A change of the mode takes hold of connections that are open already.
#[tokio::test]
async fn modes_change_while_traffic_flows() {
    let echo = Origin::echo("a").await;
    let services = [("shop", "http", &echo), ("admin", "http", &echo)];
    let Pair { caller, callee, .. } = pair(&services, &[&mode("PERMISSIVE")]).await;
    let mut plain = Wire::connect(callee.inbound).await;
    let request = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n";
    assert_eq!(plain.ask(request).await.status, 200);
    let strict = side(&services, &[&mode("STRICT")], None);
    callee.rewrite(strict.text());
    until("the new mode", async || {
        callee.page("/listeners").await.contains("STRICT").then_some(())
    })
    .await;
    assert_eq!(plain.ask(request).await.status, 403);
    caller.serves("shop").await;
}

/// Writes one byte at a time.
struct Drip(tokio::net::TcpStream);

impl tokio::io::AsyncRead for Drip {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl tokio::io::AsyncWrite for Drip {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(context, &bytes[..bytes.len().min(1)])
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(context)
    }
}
