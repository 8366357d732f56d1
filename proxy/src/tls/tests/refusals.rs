//! The matrix of bad certificates, in both directions, and bytes that are no handshake.

use rcgen::KeyUsagePurpose;
use rustls::{ClientConnection, crypto::aws_lc_rs::kx_group::SECP384R1, version::TLS12};

use super::{
    super::fixture::{LIFE, NOW, Wanted, self_signed},
    *,
};

const OWN: &str = "spiffe://cluster.local/ns/shop/sa/orders";

/// What a peer shows, and what it is refused for; `None` where it is accepted.
fn matrix(root: &Authority) -> Vec<(&'static str, Chain, Option<Reason>)> {
    let own = || Wanted::id(OWN);
    let uris =
        |uris: &[&str]| Wanted { uris: uris.iter().map(|&uri| uri.to_owned()).collect(), ..own() };
    let chain = |(certificate, key)| (vec![certificate], key);
    let issued = |wanted: &Wanted| chain(root.issue(wanted));
    let namesake = Authority::new("root");
    let mut unasked = issued(&own());
    unasked.0.push(root.certificate.clone());
    vec![
        ("as it should be", issued(&own()), None),
        ("with the root in the chain", unasked, None),
        ("a clock that is ahead", issued(&Wanted { not_before: NOW + 30, ..own() }), None),
        (
            "the same, for a few seconds",
            issued(&Wanted { not_before: NOW + 5, not_after: NOW + 8, ..own() }),
            None,
        ),
        ("expired", issued(&Wanted { not_after: NOW - 1, ..own() }), Some(Reason::Expired)),
        (
            "not yet valid",
            issued(&Wanted { not_before: NOW + 90, not_after: NOW + LIFE, ..own() }),
            Some(Reason::NotYetValid),
        ),
        (
            "a clock an hour ahead",
            issued(&Wanted { not_before: NOW + 3600, not_after: NOW + 7200, ..own() }),
            Some(Reason::NotYetValid),
        ),
        (
            "another trust domain",
            issued(&uris(&["spiffe://example.org/ns/shop/sa/orders"])),
            Some(Reason::WrongTrustDomain),
        ),
        (
            "two identities",
            issued(&uris(&[OWN, "spiffe://cluster.local/ns/shop/sa/users"])),
            Some(Reason::BadSan),
        ),
        (
            "a name only",
            issued(&Wanted { dns: vec!["80.orders.shop.leno".to_owned()], ..uris(&[]) }),
            Some(Reason::BadSan),
        ),
        ("nothing at all", issued(&uris(&[])), Some(Reason::BadSan)),
        (
            "NUL in the identity",
            issued(&uris(&["spiffe://cluster.local/ns/shop/sa/orders\0.example"])),
            Some(Reason::BadSan),
        ),
        ("another form", issued(&uris(&["spiffe://cluster.local/orders"])), Some(Reason::BadSan)),
        ("self-signed", chain(self_signed(&own())), Some(Reason::UnknownAuthority)),
        (
            "of an authority of the same name",
            chain(namesake.issue(&own())),
            Some(Reason::UnknownAuthority),
        ),
        (
            "of another authority",
            chain(Authority::new("other").issue(&own())),
            Some(Reason::UnknownAuthority),
        ),
        (
            "an authority's",
            issued(&Wanted { authority: true, ..own() }),
            Some(Reason::AuthorityAsLeaf),
        ),
        (
            "one that may sign certificates",
            issued(&Wanted {
                usages: vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign],
                ..own()
            }),
            Some(Reason::AuthorityAsLeaf),
        ),
    ]
}

#[tokio::test]
async fn servers_refuse_what_clients_should_not_show() {
    let (root, clock) = (Authority::new("root"), Clock::new());
    let server = root.credentials("shop", "orders", &clock);
    for (case, shown, refused) in matrix(&root) {
        let client = client_showing(Some(shown), &root);
        let (accepted, read) = accept_from(&server, client).await;
        let reason = accepted.err().map(|failure| failure.reason);
        assert_eq!(reason, refused, "{case}");
        // The refusal is an alert: the client knows that it was one, and not why.
        let read = read.map_err(|failure| failure.reason);
        assert_eq!(read, refused.map_or(Ok(b'!'), |_| Err(Reason::Refused)), "{case}");
    }
}

#[tokio::test]
async fn clients_refuse_what_servers_should_not_show() {
    let (root, clock) = (Authority::new("root"), Clock::new());
    let client = root.credentials("shop", "users", &clock);
    for (case, shown, refused) in matrix(&root) {
        let (connected, read) = connect_to(&client, raw_server(&[&TLS13], shown)).await;
        let reason = connected.err().map(|failure| failure.reason);
        assert_eq!(reason, refused, "{case}");
        let read = read.map_err(|failure| failure.reason);
        assert_eq!(read, refused.map_or(Ok(b'!'), |_| Err(Reason::Refused)), "{case}");
    }
}

#[tokio::test]
async fn clients_refuse_everybody_but_the_one_they_meant() {
    let (root, clock) = (Authority::new("root"), Clock::new());
    let client = root.credentials("shop", "users", &clock);
    for (namespace, account) in [("shop", "payments"), ("other", "orders"), ("shop", "users")] {
        let server = root.credentials(namespace, account, &clock);
        let met = meet(&server, &client, &orders()).await;
        let failure = met.connected.unwrap_err();
        assert_eq!(failure.reason, Reason::WrongIdentity);
        let text = failure.text;
        assert!(text.contains(account) && text.contains("shop/sa/orders"), "{text}");
        assert_eq!(met.accepted.unwrap_err().reason, Reason::Refused);
    }
}

#[tokio::test]
async fn servers_want_a_certificate() {
    let (root, clock) = (Authority::new("root"), Clock::new());
    let server = root.credentials("shop", "orders", &clock);
    let (accepted, read) = accept_from(&server, client_showing(None, &root)).await;
    assert_eq!(accepted.unwrap_err().reason, Reason::NoCertificate);
    assert_eq!(read.unwrap_err().reason, Reason::Refused);
}

#[tokio::test]
async fn a_stolen_certificate_without_its_key_is_worth_nothing() {
    let (root, clock) = (Authority::new("root"), Clock::new());
    let server = root.credentials("shop", "orders", &clock);
    let (stolen, _) = root.issue(&Wanted::id("spiffe://cluster.local/ns/shop/sa/users"));
    let (_, other) = root.issue(&Wanted::id("spiffe://cluster.local/ns/shop/sa/thief"));
    let key = provider().key_provider.load_private_key(other).unwrap();
    let mut client = client_showing(None, &root);
    let pair = rustls::sign::CertifiedKey::new(vec![stolen], key);
    client.client_auth_cert_resolver =
        Arc::new(rustls::sign::SingleCertAndKey::from(Arc::new(pair)));
    let (accepted, _) = accept_from(&server, client).await;
    assert_eq!(accepted.unwrap_err().reason, Reason::UnknownAuthority);
}

#[tokio::test]
async fn only_tls_1_3_with_ciphers_of_ours() {
    let (root, clock) = (Authority::new("root"), Clock::new());
    let server = root.credentials("shop", "orders", &clock);
    let own = || {
        let (certificate, key) = root.issue(&Wanted::id(OWN));
        (vec![certificate], key)
    };
    let default = rustls::crypto::aws_lc_rs::default_provider;
    let alpn = [Inside::Http2.alpn()];
    let old = raw_client(Arc::new(default()), &[&TLS12], Some(own()), &alpn, &root);
    let (accepted, read) = accept_from(&server, old).await;
    assert_eq!(accepted.unwrap_err().reason, Reason::ProtocolVersion);
    assert_eq!(read.unwrap_err().reason, Reason::ProtocolVersion);
    let other = CryptoProvider { kx_groups: vec![SECP384R1], ..default() };
    let other = raw_client(Arc::new(other), &[&TLS13], Some(own()), &alpn, &root);
    let (accepted, _) = accept_from(&server, other).await;
    assert_eq!(accepted.unwrap_err().reason, Reason::NoCipher);
    let client = root.credentials("shop", "users", &clock);
    let (connected, _) = connect_to(&client, raw_server(&[&TLS12], own())).await;
    assert_eq!(connected.unwrap_err().reason, Reason::ProtocolVersion);
}

#[tokio::test]
async fn clients_must_say_what_is_inside() {
    let (root, clock) = (Authority::new("root"), Clock::new());
    let server = root.credentials("shop", "orders", &clock);
    for alpn in [&[][..], &[&b"h2"[..]], &[b"http/1.1", b"h2"]] {
        let (certificate, key) = root.issue(&Wanted::id(OWN));
        let own = Some((vec![certificate], key));
        let client = raw_client(provider(), &[&TLS13], own, alpn, &root);
        let (accepted, _) = accept_from(&server, client).await;
        assert_eq!(accepted.unwrap_err().reason, Reason::NoApplicationProtocol);
    }
}

/// The first bytes that a client of ours would send.
fn hello(root: &Authority) -> Vec<u8> {
    let config = client_showing(None, root);
    let name = ServerName::try_from(NAME).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

async fn send(server: &Credentials, bytes: &[u8]) -> Failure {
    let (mut near, far) = sockets().await;
    let sending = async {
        near.write_all(bytes).await.ok();
        near.shutdown().await.ok();
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.ok();
    };
    let both = async { tokio::join!(server::accept(far, server), sending) };
    timeout(PATIENCE, both).await.unwrap().0.unwrap_err()
}

#[tokio::test]
async fn bytes_that_are_no_handshake() {
    let (root, clock) = (Authority::new("root"), Clock::new());
    let server = root.credentials("shop", "orders", &clock);
    let hello = hello(&root);
    assert!(hello.len() < 400, "{} bytes: is there a hybrid key share?", hello.len());
    // Offsets: record header 5, message header 4, version 2, random 32, session id 33, length of suites 2.
    let suites = 5 + 4 + 2 + 32 + 33 + 2;
    assert_eq!(hello[suites..suites + 2], [0x13, 0x01], "AES-128-GCM first");
    let mut no_cipher = hello.clone();
    for at in [suites, suites + 2, suites + 4] {
        no_cipher[at..at + 2].copy_from_slice(&[0x13, 0x04]);
    }
    let mut too_long = vec![0x16, 3, 1, 0x48, 0x01];
    too_long.resize(5 + 0x4801, 1);
    // A handshake message of 16 MB, one full record after the other.
    let mut endless = Vec::new();
    for _ in 0..8 {
        endless.extend([0x16, 3, 1, 0x40, 0]);
        endless.extend([1, 0xff, 0xff, 0xff].iter().cycle().take(0x4000));
    }
    let half = hello[..hello.len() / 2].to_vec();
    let twice = [hello.clone(), hello.clone()].concat();
    for (case, bytes, reason) in [
        ("no common cipher", no_cipher, Reason::NoCipher),
        ("a record over 16 KiB", too_long, Reason::Handshake),
        ("a message that never ends", endless, Reason::Handshake),
        ("plain HTTP", b"GET / HTTP/1.1\r\nhost: orders\r\n\r\n".to_vec(), Reason::Handshake),
        ("noise", (0..4096_u32).map(|i| (i * 167 % 251) as u8).collect(), Reason::Handshake),
        ("another hello within the handshake", twice, Reason::Handshake),
        ("nothing", Vec::new(), Reason::Closed),
        ("half a hello", half, Reason::Closed),
    ] {
        let failure = send(&server, &bytes).await;
        assert_eq!(failure.reason, reason, "{case}: {failure}");
    }
}
