//! Handshakes over real sockets: ours with ours, and ours with peers that do what none should.

mod refusals;
mod resumption;

use std::{sync::Arc, time::Duration};

use leno_api::model::ObjectName;
use rustls::{
    ClientConfig, ServerConfig, SupportedProtocolVersion,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    version::TLS13,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{
    client::Target,
    fixture::{Authority, Clock, id},
    *,
};

/// Nothing here waits for anything; on a busy machine even that takes a while.
const PATIENCE: Duration = Duration::from_secs(60);
const NAME: &str = "80.orders.shop.leno";

type Chain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (connected, accepted) = tokio::join!(connecting, listener.accept());
    let (near, far) = (connected.unwrap(), accepted.unwrap().0);
    // As our listeners and connectors have it; without, each handshake waits 40 ms for a delayed acknowledgement.
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

fn orders() -> Target {
    Target::new(NAME, id("shop", "orders")).unwrap()
}

/// What the two ends say of one handshake of ours with ours. The server sends a byte, so that the client has read the
/// ticket, or the alert, that comes before it.
struct Met {
    accepted: Result<server::Accepted<TcpStream>, Failure>,
    connected: Result<client::Stream<TcpStream>, Failure>,
}

impl Met {
    fn resumed(&self) -> (bool, bool) {
        let (accepted, connected) = (self.accepted.as_ref(), self.connected.as_ref());
        (accepted.unwrap().resumed, client::resumed(connected.unwrap()))
    }
}

async fn meet(server: &Credentials, client: &Credentials, target: &Target) -> Met {
    meet_with(server, client, target, Inside::Http2).await
}

async fn meet_with(
    server: &Credentials,
    client: &Credentials,
    target: &Target,
    inside: Inside,
) -> Met {
    let (near, far) = sockets().await;
    let accepting = async {
        let mut accepted = server::accept(far, server).await;
        if let Ok(accepted) = &mut accepted {
            accepted.stream.write_all(b"!").await.ok();
            accepted.stream.flush().await.ok();
        }
        accepted
    };
    let connecting = async {
        let mut stream = client::connect(near, client, target, inside).await?;
        match stream.read_u8().await {
            Ok(_) => Ok(stream),
            Err(error) => Err(Failure::of_io(&error)),
        }
    };
    let both = async { tokio::join!(accepting, connecting) };
    let (accepted, connected) = timeout(PATIENCE, both).await.unwrap();
    Met { accepted, connected }
}

/// A client that believes everything and shows what it is told to show.
fn raw_client(
    provider: Arc<CryptoProvider>,
    versions: &[&'static SupportedProtocolVersion],
    own: Option<Chain>,
    alpn: &[&[u8]],
    root: &Authority,
) -> ClientConfig {
    let mut anchors = rustls::RootCertStore::empty();
    anchors.add(root.certificate.clone()).unwrap();
    let verifier =
        path::ServerVerifier { anchors: Arc::new(anchors), rule: |_: &verify::Leaf, _| Ok(()) };
    let builder = ClientConfig::builder_with_details(provider, Clock::new())
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match own {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

fn client_showing(own: Option<Chain>, root: &Authority) -> ClientConfig {
    raw_client(provider(), &[&TLS13], own, &[Inside::Http2.alpn()], root)
}

/// Our server with such a client: what the server says, and what the client reads.
async fn accept_from(
    server: &Credentials,
    config: ClientConfig,
) -> (Result<server::Accepted<TcpStream>, Failure>, Result<u8, Failure>) {
    let (near, far) = sockets().await;
    let accepting = async {
        let mut accepted = server::accept(far, server).await;
        if let Ok(accepted) = &mut accepted {
            accepted.stream.write_all(b"!").await.ok();
            accepted.stream.flush().await.ok();
        }
        accepted
    };
    let connecting = async {
        let name = ServerName::try_from(NAME).unwrap();
        let connected = TlsConnector::from(Arc::new(config)).connect(name, near).await;
        let mut stream = connected.map_err(|error| Failure::of_io(&error))?;
        stream.read_u8().await.map_err(|error| Failure::of_io(&error))
    };
    let both = async { tokio::join!(accepting, connecting) };
    timeout(PATIENCE, both).await.unwrap()
}

/// A server that asks for no certificate and shows what it is told to show.
fn raw_server(versions: &[&'static SupportedProtocolVersion], own: Chain) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(own.0, own.1)
        .unwrap();
    config.alpn_protocols = vec![Inside::Http2.alpn().to_vec()];
    config
}

/// Our client with such a server: what the client says, and what the server reads.
async fn connect_to(
    client: &Credentials,
    config: ServerConfig,
) -> (Result<client::Stream<TcpStream>, Failure>, Result<u8, Failure>) {
    let (near, far) = sockets().await;
    let target = orders();
    let connecting = async {
        let mut connected = client::connect(near, client, &target, Inside::Http2).await;
        if let Ok(stream) = &mut connected {
            stream.write_all(b"!").await.ok();
            stream.flush().await.ok();
        }
        connected
    };
    let accepting = async {
        let accepted = TlsAcceptor::from(Arc::new(config)).accept(far).await;
        let mut stream = accepted.map_err(|error| Failure::of_io(&error))?;
        stream.read_u8().await.map_err(|error| Failure::of_io(&error))
    };
    let both = async { tokio::join!(connecting, accepting) };
    timeout(PATIENCE, both).await.unwrap()
}

#[tokio::test]
async fn both_ends_know_each_other_and_what_is_inside() {
    let (root, clock) = (Authority::new("root"), Clock::new());
    let server = root.credentials("shop", "orders", &clock);
    let client = root.credentials("shop", "users", &clock);
    for inside in Inside::ALL {
        let met = meet_with(&server, &client, &orders(), inside).await;
        let (accepted, connected) = (met.accepted.unwrap(), met.connected.unwrap());
        assert_eq!(accepted.peer.id, id("shop", "users"));
        assert_eq!(&*accepted.peer.principal, "cluster.local/ns/shop/sa/users");
        assert_eq!(accepted.peer.not_after, client.not_after());
        assert_eq!(accepted.inside, inside);
        assert_eq!(accepted.server_name.as_deref(), Some(NAME));
        assert_eq!(accepted.destination, Some((ObjectName::new("shop", "orders"), 80)));
        assert!(!accepted.resumed && !client::resumed(&connected));
        let (_, connection) = connected.get_ref();
        assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        let suite = connection.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(connection.tls13_tickets_received(), 1);
    }
}

#[test]
fn alpn_names_are_told_from_those_of_applications() {
    for inside in Inside::ALL {
        assert_eq!(Inside::of_alpn(inside.alpn()), Some(inside));
    }
    for other in [&b"h2"[..], b"http/1.1", b"", b"leno", b"leno-h2\0"] {
        assert_eq!(Inside::of_alpn(other), None);
    }
}

#[test]
fn targets_have_dns_names() {
    assert!(Target::new(NAME, id("shop", "orders")).is_some());
    for name in ["", "10.0.0.1", "::1", "a b", "80.orders.shop.leno\0"] {
        assert!(Target::new(name, id("shop", "orders")).is_none(), "{name:?}");
    }
}

#[test]
fn keys_are_not_shown() {
    let root = Authority::new("root");
    let material = root.material("shop", "orders");
    let key = material.key.secret_der().to_vec();
    let shown = format!("{material:?} {material:#?}");
    assert!(shown.contains("(not shown)"));
    let credentials = Credentials::with_clock(material, None, Clock::new()).unwrap();
    let shown = format!("{shown} {credentials:?} {:?}", orders());
    let digits = key[40..44].iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    assert!(!shown.contains(&digits), "{shown}");
}

#[test]
fn our_own_certificate_is_held_to_the_rules() {
    use fixture::{NOW, Wanted, self_signed};
    let (root, clock) = (Authority::new("root"), Clock::new());
    let orders = id("shop", "orders").to_string();
    let with = |material| Credentials::with_clock(material, None, clock.clone());
    let of = |wanted: Wanted| with(root.material_of(&wanted)).map(drop);
    assert!(of(Wanted::id(&orders)).is_ok());
    let expired = Wanted { not_after: NOW - 1, ..Wanted::id(&orders) };
    assert!(matches!(of(expired), Err(Error::Certificate(verify::Refusal::Expired { .. }))));
    let nameless = Wanted { uris: Vec::new(), ..Wanted::id(&orders) };
    assert!(matches!(of(nameless), Err(Error::Certificate(verify::Refusal::NoUri))));
    let foreign = Wanted::id("spiffe://example.org/ns/shop/sa/orders");
    assert!(matches!(
        of(foreign),
        Err(Error::Certificate(verify::Refusal::WrongTrustDomain { .. }))
    ));
    let mut material = root.material("shop", "orders");
    material.key = root.material("shop", "orders").key;
    assert!(matches!(with(material), Err(Error::Key(_))), "somebody else's key");
    let mut material = root.material("shop", "orders");
    material.roots.clear();
    assert!(matches!(with(material), Err(Error::NoRoots)));
    let mut material = root.material("shop", "orders");
    material.roots.push(b"garbage".to_vec().into());
    assert!(matches!(with(material), Err(Error::Root { number: 2, .. })));
    let mut material = root.material("shop", "orders");
    material.chain.clear();
    assert!(matches!(with(material), Err(Error::NoCertificate)));
    let mut material = root.material("shop", "orders");
    material.roots = vec![Authority::new("another").certificate];
    assert!(with(material).unwrap().check_path().is_err());
    assert!(with(root.material("shop", "orders")).unwrap().check_path().is_ok());
    let (chain, key) = self_signed(&Wanted::id(&orders));
    let roots = vec![root.certificate.clone()];
    let trust_domain = fixture::trust_domain();
    let material = Material { chain: vec![chain], key, roots, trust_domain };
    assert!(with(material).unwrap().check_path().is_err());
}

/// Hands over one byte at a time.
struct Drip<IO>(IO);

impl<IO: AsyncRead + Unpin> AsyncRead for Drip<IO> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        let mut one = [0];
        let mut small = tokio::io::ReadBuf::new(&mut one);
        let polled = std::pin::Pin::new(&mut self.0).poll_read(context, &mut small);
        buffer.put_slice(small.filled());
        polled
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Drip<IO> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        let end = bytes.len().min(1);
        std::pin::Pin::new(&mut self.0).poll_write(context, &bytes[..end])
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

#[tokio::test]
async fn handshakes_may_come_in_single_bytes() {
    let (root, clock) = (Authority::new("root"), Clock::new());
    let server = root.credentials("shop", "orders", &clock);
    let client = root.credentials("shop", "users", &clock);
    let (near, far) = sockets().await;
    let target = orders();
    let (accepted, connected) = timeout(PATIENCE, async {
        tokio::join!(
            server::accept(Drip(far), &server),
            client::connect(Drip(near), &client, &target, Inside::Tcp)
        )
    })
    .await
    .unwrap();
    let (mut accepted, mut connected) = (accepted.unwrap(), connected.unwrap());
    assert_eq!(accepted.peer.id, id("shop", "users"));
    connected.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    accepted.stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
}
