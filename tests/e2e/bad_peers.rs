//! Peers that prove nothing, or not what they should, on both sides of a sidecar (FAULTS 20, 31, 42).

use std::{sync::Arc, time::Duration};

use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
use rustls::{
    ClientConfig, ClientConnection, NamedGroup, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::ServerName,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

use crate::{
    certificates::{self, Authority, Issued, uri},
    client::{self, Wire},
    mesh::{Mesh, PATIENCE, Proxy, until},
    mtls::{Pair, pair},
    origin::{self, Origin},
};

const CALLER: &str = "spiffe://cluster.local/ns/default/sa/caller";
const NAME: &str = "80.shop.default.leno";
const HANDSHAKES: &str = "leno_tls_handshakes_total";
const REFUSED: &str = "leno_downstream_connections_refused_total";
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n";
const HOUR: Duration = Duration::from_secs(3600);

/// Certificates that nobody may believe, each with the name under which its refusal is counted. `own` is who it would
/// have to be.
fn bad_certificates(authority: &Authority, own: &str) -> Vec<(&'static str, &'static str, Issued)> {
    let now = std::time::SystemTime::now();
    let issue = |change: &dyn Fn(&mut rcgen::CertificateParams)| {
        authority.issue_as(own, |params| change(params))
    };
    vec![
        ("expired", "expired", issue(&|it| it.not_after = (now - Duration::from_secs(2)).into())),
        ("an hour ahead", "not_yet_valid", issue(&|it| it.not_before = (now + HOUR / 2).into())),
        (
            "another trust domain",
            "wrong_trust_domain",
            authority.issue_to(&own.replace("cluster.local", "cluster.locale")),
        ),
        (
            "two URIs",
            "bad_san",
            issue(&|it| it.subject_alt_names.push(uri("spiffe://cluster.local/ns/a/sa/b"))),
        ),
        ("the same URI twice", "bad_san", issue(&|it| it.subject_alt_names.push(uri(own)))),
        (
            "a DNS name only",
            "bad_san",
            issue(&|it| {
                it.subject_alt_names = vec![SanType::DnsName(NAME.try_into().unwrap())];
            }),
        ),
        ("no names at all", "bad_san", issue(&|it| it.subject_alt_names = Vec::new())),
        ("a URI of the web", "bad_san", authority.issue_to(&own.replace("spiffe", "https"))),
        ("a longer path", "bad_san", authority.issue_to(&format!("{own}/admin"))),
        ("dots in the path", "bad_san", authority.issue_to(&own.replace("/sa/", "/sa/x/../"))),
        ("an escape in the path", "bad_san", authority.issue_to(&format!("{own}%00"))),
        ("itself", "unknown_ca", Issued::by_itself(own)),
        ("another root of the same name", "unknown_ca", Authority::new().issue_to(own)),
        (
            "an authority",
            "ca_as_leaf",
            issue(&|it| {
                it.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
                it.key_usages.push(KeyUsagePurpose::KeyCertSign);
            }),
        ),
        (
            "the right to sign others",
            "ca_as_leaf",
            issue(&|it| it.key_usages.push(KeyUsagePurpose::KeyCertSign)),
        ),
        (
            "a key that may not sign",
            "bad_certificate",
            issue(&|it| it.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
        ),
        (
            "a key for e-mail",
            "bad_certificate",
            issue(&|it| it.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection]),
        ),
    ]
}

async fn count(proxy: &Proxy, side: &str, result: &str) -> f64 {
    proxy.metric(HANDSHAKES, &[("side", side), ("result", result)]).await.unwrap_or(0.0)
}

/// Waits until handshakes that ended like this are one more than `before`.
async fn one_more(proxy: &Proxy, side: &str, result: &str, before: f64, what: &str) {
    until(&format!("{what} to be counted as {result}"), async || {
        (count(proxy, side, result).await == before + 1.0).then_some(())
    })
    .await;
}

/// What a client gets that asks for something after its handshake.
async fn ask(stream: std::io::Result<TlsStream<TcpStream>>) -> Option<String> {
    let mut stream = stream.ok()?;
    // In TLS 1.3 the client's part is over before the server has judged it.
    let _ = stream.write_all(GET).await;
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer");
    // An answer that ends without a farewell is one.
    (read.is_ok() || !answer.is_empty()).then(|| String::from_utf8(answer).unwrap())
}

/// How much it took off what the process holds, roughly.
fn assert_no_growth(proxy: &Proxy, before: u64) {
    const ALLOWED: u64 = 8 << 20;
    let after = proxy.resident();
    assert!(after < before + ALLOWED, "from {before} to {after} bytes");
}

#[tokio::test]
async fn callers_that_prove_nothing_reach_nobody() {
    let shop = Origin::echo("shop").await;
    let Pair { caller, callee, authority } = pair(&[("shop", "http", &shop)], &[]).await;
    let mut rows: Vec<_> = bad_certificates(&authority, CALLER)
        .into_iter()
        .map(|(what, label, issued)| (what, label, Some(issued)))
        .collect();
    rows.push(("nothing", "no_certificate", None));
    let mut held = 0;
    for round in 0..4 {
        for (what, label, issued) in &rows {
            let before = count(&callee, "server", label).await;
            let tried =
                certificates::connect(callee.inbound, NAME, "leno-http/1.1", issued.as_ref()).await;
            assert_eq!(ask(tried).await, None, "{what}");
            one_more(&callee, "server", label, before, what).await;
        }
        if round == 0 {
            held = callee.resident();
        }
    }
    assert_no_growth(&callee, held);
    let each = f64::from(u32::try_from(4 * rows.len()).unwrap());
    let labels = [("listener", "inbound"), ("reason", "handshake")];
    callee.counts(REFUSED, &labels, each).await;
    assert!(shop.requests().is_empty() && shop.accepted() == 0);
    // Clocks may differ by a minute.
    let ahead = authority.issue_as(CALLER, |it| {
        it.not_before = (std::time::SystemTime::now() + Duration::from_secs(40)).into();
    });
    let tried = certificates::connect(callee.inbound, NAME, "leno-http/1.1", Some(&ahead)).await;
    assert!(ask(tried).await.unwrap().starts_with("HTTP/1.1 200"));
    caller.serves("shop").await;
}

/// A client with a good certificate whose TLS is `change`d.
fn odd_config(issued: &Issued, change: impl FnOnce(&mut CryptoProvider)) -> ClientConfig {
    let mut provider = aws_lc_rs::default_provider();
    change(&mut provider);
    let versions: &[_] = match provider.cipher_suites.iter().any(|suite| suite.tls13().is_some()) {
        true => &[&rustls::version::TLS13],
        false => &[&rustls::version::TLS12],
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(certificates::believer())
        .with_client_auth_cert(vec![issued.certificate.der().clone()], issued.private_key())
        .unwrap();
    config.alpn_protocols = vec![b"leno-http/1.1".to_vec()];
    config
}

#[tokio::test]
async fn callers_that_speak_otherwise_are_refused() {
    let shop = Origin::echo("shop").await;
    let Pair { caller, callee, authority } = pair(&[("shop", "http", &shop)], &[]).await;
    let issued = authority.issue("caller");
    let old = odd_config(&issued, |provider| {
        provider.cipher_suites.retain(|suite| suite.tls13().is_none());
    });
    let curve = odd_config(&issued, |provider| {
        provider.kx_groups.retain(|group| group.name() == NamedGroup::secp384r1);
    });
    let foreign = certificates::config("h2", Some(&issued));
    let silent = certificates::config("", Some(&issued));
    for (what, label, config) in [
        ("TLS 1.2", "protocol_version", old),
        ("another curve", "no_cipher", curve),
        ("another protocol", "no_application_protocol", foreign),
        ("no protocol", "no_application_protocol", silent),
    ] {
        let before = count(&callee, "server", label).await;
        let stream = TcpStream::connect(callee.inbound).await.unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from(NAME).unwrap();
        let tried = timeout(PATIENCE, connector.connect(name, stream)).await.unwrap();
        assert_eq!(ask(tried).await, None, "{what}");
        one_more(&callee, "server", label, before, what).await;
    }
    assert_eq!(shop.accepted(), 0);
    caller.serves("shop").await;
}

fn hello(config: ClientConfig, name: &str) -> Vec<u8> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// The hello with the only cipher replaced by one that the mesh does not speak (AES-CCM).
fn with_ccm(mut hello: Vec<u8>) -> Vec<u8> {
    // Record header, handshake header, version and random come before the session ID (RFC 8446 section 4.1.2).
    let session = 5 + 4 + 2 + 32;
    let suites = session + 1 + usize::from(hello[session]);
    let length = usize::from(u16::from_be_bytes([hello[suites], hello[suites + 1]]));
    for at in (suites + 2..suites + 2 + length).step_by(2) {
        if hello[at] == 0x13 {
            hello[at + 1] = 0x04;
        }
    }
    hello
}

fn replaced(bytes: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let at = bytes.windows(old.len()).position(|window| window == old).unwrap();
    [&bytes[..at], new, &bytes[at + old.len()..]].concat()
}

/// TLS by the byte: what cannot be a hello, or what comes after one.
#[tokio::test]
async fn bytes_that_are_not_tls_are_refused() {
    let shop = Origin::echo("shop").await;
    let Pair { caller, callee, authority } = pair(&[("shop", "http", &shop)], &[]).await;
    let issued = authority.issue("caller");
    let good = hello(certificates::config("leno-http/1.1", Some(&issued)), NAME);
    let after = |garbage: &[u8]| [&good, garbage].concat();
    let record = |kind: u8, length: u16, fill: u8| {
        let head = [&[kind, 3, 3][..], &length.to_be_bytes()].concat();
        [head, vec![fill; length.into()]].concat()
    };
    let rows = [
        ("no cipher in common", "no_cipher", with_ccm(good.clone())),
        ("text after the hello", "handshake", after(b"GET / HTTP/1.1\r\n\r\n")),
        ("a record that nobody encrypted", "handshake", after(&record(0x17, 64, 7))),
        ("an oversized record", "handshake", after(&record(0x17, 0x5000, 7))),
        ("an oversized first record", "handshake", record(0x16, 0x5000, 1)),
        (
            "an endless hello",
            "handshake",
            [b"\x16\x03\x01\x40\0\x01\xff\xff\xff".to_vec(), record(0x16, 0x4000, 1)].concat(),
        ),
        ("two hellos", "handshake", after(&good)),
        ("an alert", "refused", after(b"\x15\x03\x03\0\x02\x02\x28")),
        ("an empty record", "handshake", b"\x16\x03\x01\0\0".to_vec()),
        ("noise", "handshake", b"\x16\x03\x01\x02\0\xde\xad\xbe\xef".repeat(60)),
        (
            "odd bytes in the server name",
            "handshake",
            replaced(&good, NAME.as_bytes(), b"80.sh\0p\x1b\r\n\"faul.leno"),
        ),
        ("SSL 2", "-", b"\x80\x2e\x01\0\x02".to_vec()),
    ];
    for (what, label, bytes) in rows {
        let refused = [("listener", "inbound")];
        let before = count(&callee, "server", label).await;
        let all = callee.metric(REFUSED, &refused).await.unwrap_or(0.0);
        let mut wire = Wire::connect(callee.inbound).await;
        wire.try_send(bytes).await;
        let _ = wire.finish().await;
        // What is told is TLS: the flight that was on its way, an alert, nothing.
        let told = wire.rest().await;
        assert!(told.is_empty() || [0x15, 0x16].contains(&told[0]), "{what}: {told:?}");
        if label != "-" {
            one_more(&callee, "server", label, before, what).await;
        }
        until(what, async || {
            (callee.metric(REFUSED, &refused).await == Some(all + 1.0)).then_some(())
        })
        .await;
    }
    let before = count(&callee, "server", "closed").await;
    let mut wire = Wire::connect(callee.inbound).await;
    wire.send(&good[..100]).await;
    drop(wire);
    one_more(&callee, "server", "closed", before, "half a hello").await;
    assert_eq!(shop.accepted(), 0);
    assert!(!callee.errors().contains('\x1b'), "{}", callee.errors());
    caller.serves("shop").await;
}

/// Names that lead nowhere are answered in HTTP, to whoever has a certificate.
#[tokio::test]
async fn server_names_of_nobody() {
    let shop = Origin::echo("shop").await;
    let Pair { callee, authority, .. } = pair(&[("shop", "http", &shop)], &[]).await;
    let issued = authority.issue("caller");
    let longest = format!(
        "80.{}.{}.{}.{}.leno",
        "a".repeat(63),
        "b".repeat(63),
        "c".repeat(63),
        "d".repeat(53)
    );
    assert_eq!(longest.len(), 253);
    for (name, status) in [
        // Without any: an address is no server name (RFC 6066 section 3).
        ("127.0.0.1", "404"),
        (&*longest, "404"),
        ("80.shop.other.leno", "404"),
        ("080.shop.default.leno", "404"),
        ("65536.shop.default.leno", "404"),
        ("80.shop.default.svc.cluster.local", "404"),
        ("shop", "404"),
        ("80.SHOP.default.leno", "200"),
    ] {
        let tried = certificates::connect(callee.inbound, name, "leno-http/1.1", Some(&issued));
        let answer = ask(tried.await).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{name}: {answer}");
        let told = answer.contains("127.0.0.1:") || answer.contains("spiffe:");
        assert!(status == "200" || !told, "{answer}");
    }
    assert_eq!(shop.requests().len(), 1);
}

/// From another address of this machine.
async fn from_elsewhere(address: std::net::SocketAddr) -> Wire {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
    let stream = timeout(PATIENCE, socket.connect(address)).await.unwrap().unwrap();
    Wire { stream, unread: Vec::new() }
}

/// Ten thousand half-open handshakes, as far as the files of this process reach: they hold little and not for long, and
/// whoever is honest gets in between.
#[tokio::test]
async fn half_open_handshakes_keep_nobody_out() {
    const FLOOD: usize = 3000;
    let shop = Origin::echo("shop").await;
    let Pair { caller, callee, authority } = pair(&[("shop", "http", &shop)], &[]).await;
    let issued = authority.issue("caller");
    caller.serves("shop").await;
    let before = callee.resident();
    let good = hello(certificates::config("leno-http/1.1", Some(&issued)), NAME);
    let mut held = Vec::new();
    for at in 0..FLOOD {
        let mut wire = from_elsewhere(callee.inbound).await;
        // Some stop early, some in the middle, some say nothing after the whole hello.
        let end = [6, 100, good.len()][at % 3];
        wire.try_send(&good[..end]).await;
        held.push(wire);
        if at % 100 == 99 {
            let tried = certificates::connect(callee.inbound, NAME, "leno-http/1.1", Some(&issued));
            let answer = ask(tried.await).await;
            assert!(answer.is_some_and(|it| it.starts_with("HTTP/1.1 200")), "after {at}");
        }
    }
    assert!(callee.resident() < before + (64 << 20), "{} bytes", callee.resident() - before);
    // Nobody keeps them: by the time limit, or for others.
    for wire in &mut held {
        while wire.more().await {}
    }
    let kept_out = [("listener", "inbound"), ("reason", "handshake_limit")];
    let refused = callee.metric(REFUSED, &kept_out).await.unwrap_or(0.0);
    assert!(refused > 0.0);
    let timed_out = count(&callee, "server", "timeout").await;
    assert!(timed_out > 0.0);
    let flood = f64::from(u32::try_from(FLOOD).unwrap());
    callee.counts(REFUSED, &[("listener", "inbound")], flood).await;
    caller.serves("shop").await;
}

/// A server that has been told what to show. Requests that reach it are counted by its origin.
async fn posing(config: ServerConfig) -> Origin {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Origin::raw(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut request = [0; 1];
            if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                let _ =
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen").await;
            }
        }
    })
    .await
}

fn server_config(
    issued: &Issued,
    alpn: &str,
    change: impl FnOnce(&mut CryptoProvider),
) -> ServerConfig {
    let mut provider = aws_lc_rs::default_provider();
    change(&mut provider);
    let versions: &[_] = match provider.cipher_suites.iter().any(|suite| suite.tls13().is_some()) {
        true => &[&rustls::version::TLS13],
        false => &[&rustls::version::TLS12],
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![issued.certificate.der().clone()], issued.private_key())
        .unwrap();
    config.alpn_protocols =
        if alpn.is_empty() { Vec::new() } else { vec![alpn.as_bytes().to_vec()] };
    config
}

async fn saying(bytes: Vec<u8>) -> Origin {
    Origin::raw(move |mut stream, _| {
        let bytes = bytes.clone();
        async move {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            origin::drain(&mut stream).await;
        }
    })
    .await
}

/// Whoever poses as the workload that is called gets no request, and the caller learns nothing but that it failed.
#[tokio::test]
async fn servers_that_prove_nothing_are_told_nothing() {
    const CALLEE: &str = "spiffe://cluster.local/ns/default/sa/callee";
    const ALPN: &str = "leno-http/1.1";
    let authority = Authority::new();
    let mut rows = Vec::new();
    for (what, label, issued) in bad_certificates(&authority, CALLEE) {
        rows.push((what, label, posing(server_config(&issued, ALPN, |_| {})).await));
    }
    let right = authority.issue("callee");
    let named = |own: &str| server_config(&authority.issue_to(own), ALPN, |_| {});
    let other = named(&CALLEE.replace("callee", "other"));
    rows.push(("somebody else", "wrong_identity", posing(other).await));
    let elsewhere = named(&CALLEE.replace("/default/", "/other/"));
    rows.push(("another namespace", "wrong_identity", posing(elsewhere).await));
    let old = server_config(&right, ALPN, |it| it.cipher_suites.retain(|it| it.tls13().is_none()));
    rows.push(("TLS 1.2", "protocol_version", posing(old).await));
    let curve = server_config(&right, ALPN, |it| {
        it.kx_groups.retain(|group| group.name() == NamedGroup::secp384r1);
    });
    rows.push(("another curve", "refused", posing(curve).await));
    let foreign = posing(server_config(&right, "h2", |_| {})).await;
    rows.push(("another protocol", "no_application_protocol", foreign));
    let silent = posing(server_config(&right, "", |_| {})).await;
    rows.push(("no protocol", "no_application_protocol", silent));
    for (what, label, bytes) in [
        ("plain HTTP", "handshake", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen".to_vec()),
        (
            "an oversized record",
            "handshake",
            [b"\x16\x03\x03\x50\0".to_vec(), vec![2; 0x5000]].concat(),
        ),
        ("an alert", "refused", b"\x15\x03\x03\0\x02\x02\x28".to_vec()),
        ("nothing", "closed", Vec::new()),
    ] {
        rows.push((what, label, saying(bytes).await));
    }
    let mute = Origin::raw(|mut stream, _| async move {
        origin::drain(&mut stream).await;
    })
    .await;
    rows.push(("silence", "timeout", mute));
    let mut mesh = Mesh::default();
    for (at, (.., origin)) in rows.iter().enumerate() {
        mesh = mesh
            .yaml(&format!(
                "apiVersion: leno.dev/v1alpha1\nkind: Service\nmetadata: {{name: s{at}, namespace: default}}\n\
                 spec: {{ports: [{{name: main, port: 80, protocol: http}}]}}"
            ))
            .yaml(&format!(
                "apiVersion: leno.dev/v1alpha1\nkind: Workload\nmetadata: {{name: w{at}, namespace: default}}\n\
                 spec: {{services: [s{at}], address: 127.0.0.1, serviceAccount: callee, ports: {{main: 1}}, \
                 sidecar: {{port: {}, mutualTls: true}}}}",
                origin.address.port()
            ));
    }
    let honest = posing(server_config(&right, ALPN, |_| {})).await;
    let caller = mesh
        .service("plain", "http", &[honest.address])
        .identity(&authority, "caller")
        .start()
        .await;
    for (at, (what, label, _)) in rows.iter().enumerate() {
        let before = count(&caller, "client", label).await;
        let answer = client::get(caller.outbound, &format!("s{at}"), "/secret").await;
        let expected = (503, "upstream connect failed (UF)\n".to_owned());
        assert_eq!((answer.status, answer.text()), expected, "{what}");
        until(what, async || (count(&caller, "client", label).await > before).then_some(())).await;
    }
    let log = caller.access_log(rows.len()).await;
    for ((what, label, _), line) in rows.iter().zip(&log) {
        let detail = line["response_code_details"].as_str().unwrap();
        let flags = line["response_flags"].as_str().unwrap();
        assert!(flags.starts_with("UF") && detail.contains(*label), "{what}: {flags} {detail}");
    }
    // Plain text to a port that speaks TLS is no HTTP, and says so.
    let answer = client::get(caller.outbound, "plain", "/").await;
    assert!([502, 503].contains(&answer.status) && !answer.text().contains("stolen"));
}
