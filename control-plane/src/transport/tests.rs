//! Over real sockets, by clients that know nothing but bytes.

use std::{net::SocketAddr, path::Path, time::Duration};

use leno_api::model::identity::TrustDomain;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    accept::MAX_HALF_OPEN,
    connection::{ADMISSION_TIMEOUT, OPENING_BYTES, OPENING_TIMEOUT},
    *,
};
use crate::{
    access::TokenFile,
    ca,
    store::{MemoryStore, Store},
};

const PATIENCE: Duration = Duration::from_secs(20);
const PORT: Port = Port { purpose: "tests", most: 4096 };

/// An authority for whatever has to have one.
pub(crate) async fn authority(
    directory: &Path,
    store: Arc<dyn Store>,
    tokens: Arc<TokenFile>,
) -> Arc<Authority> {
    let settings = ca::Settings {
        data_dir: directory.to_owned(),
        trust_domain: TrustDomain::default(),
        ttl: Duration::from_secs(3600),
        user: None,
        jwt: None,
        hosts: Vec::new(),
        bind: Vec::new(),
    };
    Authority::open(settings, store, tokens).await.unwrap()
}

struct Server {
    address: SocketAddr,
    incoming: Incoming,
    metrics: Arc<Metrics>,
    authority: Arc<Authority>,
    _directory: TempDir,
}

impl Server {
    async fn start(port: Port) -> Self {
        let directory = TempDir::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tokens = Arc::new(TokenFile::open(directory.path()).unwrap());
        let authority = authority(directory.path(), Arc::new(MemoryStore::new()), tokens).await;
        let metrics = Arc::new(Metrics::new().unwrap());
        let incoming = Incoming::new(listener, port, authority.clone(), metrics.clone()).unwrap();
        Self { address, incoming, metrics, authority, _directory: directory }
    }

    async fn next(&mut self) -> Connection {
        timeout(PATIENCE, self.incoming.next()).await.expect("no connection").unwrap()
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    fn count(&self, result: &str) -> u64 {
        self.metrics.handshakes.with_label_values(&[result]).get()
    }

    fn connector(&self) -> tokio_rustls::TlsConnector {
        use rustls::pki_types::{CertificateDer, pem::PemObject};
        let mut roots = rustls::RootCertStore::empty();
        let pem = self.authority.bundle_pem();
        for root in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            roots.add(root.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        Arc::new(builder.with_root_certificates(roots).with_no_client_auth()).into()
    }

    async fn handshake(&self) {
        let name = "localhost".try_into().unwrap();
        self.connector().connect(name, self.connect().await).await.unwrap();
    }
}

/// Until the other side has closed it.
async fn closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // A reset is an end as well.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("still open");
}

#[tokio::test]
async fn plain_and_encrypted_connections_are_told_apart() {
    let mut server = Server::start(PORT).await;
    let mut plain = server.connect().await;
    plain.write_all(b"GET").await.unwrap();
    let mut connection = server.next().await;
    assert_eq!(*connection.peer(), Peer::plain(plain.local_addr().unwrap()));
    let mut text = [0; 3];
    connection.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"GET", "nothing of it is lost");

    let name = "localhost".try_into().unwrap();
    let mut client = server.connector().connect(name, server.connect().await).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    let mut connection = server.next().await;
    assert!(connection.peer().tls && connection.peer().identity.is_none());
    let mut text = [0; 5];
    connection.read_exact(&mut text).await.unwrap();
    assert_eq!((&text, server.count("ok")), (b"hello", 1));
}

#[tokio::test]
async fn a_hello_in_single_bytes_is_a_hello() {
    let mut server = Server::start(PORT).await;
    // Whatever the client writes reaches the server a byte at a time.
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (mut from_client, mut to_client) = tokio::io::split(far);
    let (mut from_server, mut to_server) = server.connect().await.into_split();
    tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    tokio::spawn(async move {
        while let Ok(byte) = from_client.read_u8().await {
            to_server.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    let name = "localhost".try_into().unwrap();
    let connector = server.connector();
    let client = tokio::spawn(async move { connector.connect(name, near).await.unwrap() });
    assert!(server.next().await.peer().tls);
    timeout(PATIENCE, client).await.unwrap().unwrap();
}

#[tokio::test]
async fn garbage_is_refused_and_the_next_one_served() {
    let mut server = Server::start(PORT).await;
    let oversized = [&[0x16, 3, 1, 0xff, 0xff][..], &[0; 70_000]].concat();
    for garbage in [&b"\x16\x03\x01\x00\x04\xff\xff\xff\xff"[..], &oversized] {
        let mut stream = server.connect().await;
        // It may be closed before all of it has left.
        let _ = stream.write_all(garbage).await;
        closed(&mut stream).await;
    }
    // One that says nothing and goes is no news.
    drop(server.connect().await);
    server.handshake().await;
    assert!(server.next().await.peer().tls);
    assert_eq!((server.count("protocol"), server.count("ok")), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_runs_out_of_time() {
    let server = Server::start(PORT).await;
    for said in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = server.connect().await;
        stream.write_all(said).await.unwrap();
        closed(&mut stream).await;
    }
    assert_eq!(server.count("timeout"), 3);
}

#[tokio::test(start_paused = true)]
async fn one_that_has_begun_to_be_served_may_say_too_little_only_for_a_while() {
    let mut server = Server::start(PORT).await;
    let said = vec![b'x'; OPENING_BYTES - 1];
    let mut client = server.connect().await;
    client.write_all(&said).await.unwrap();
    let mut text = Vec::new();
    let error = server.next().await.read_to_end(&mut text).await.unwrap_err();
    assert_eq!((error.kind(), text), (std::io::ErrorKind::TimedOut, said));
    // Once it has, silence is nothing to the transport.
    let mut client = server.connect().await;
    client.write_all(&[b'x'; OPENING_BYTES]).await.unwrap();
    let mut connection = server.next().await;
    connection.peer().admission.grant();
    connection.read_exact(&mut [0; OPENING_BYTES]).await.unwrap();
    assert!(timeout(OPENING_TIMEOUT * 10, connection.read_u8()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn who_proves_nothing_does_not_stay() {
    let mut server = Server::start(PORT).await;
    let mut client = server.connect().await;
    client.write_all(&[b'x'; OPENING_BYTES]).await.unwrap();
    let mut connection = server.next().await;
    // However much it has to say.
    let talking = tokio::spawn(async move {
        while client.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut said = Vec::new();
    let ended = timeout(ADMISSION_TIMEOUT * 2, connection.read_to_end(&mut said)).await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    assert!(said.len() > OPENING_BYTES);
    talking.abort();
}

#[tokio::test]
async fn half_open_connections_are_bounded_and_others_get_through_again() {
    leno_daemon::files::raise_limit();
    let mut server = Server::start(PORT).await;
    let mut silent = Vec::new();
    for _ in 0..MAX_HALF_OPEN {
        silent.push(server.connect().await);
    }
    closed(&mut server.connect().await).await;
    assert_eq!(server.count("busy"), 1);
    drop(silent);
    // The places are free as soon as the acceptor has seen that they are gone.
    let name: rustls::pki_types::ServerName<'static> = "localhost".try_into().unwrap();
    let connector = server.connector();
    timeout(PATIENCE, async {
        while connector.connect(name.clone(), server.connect().await).await.is_err() {}
    })
    .await
    .expect("nobody gets through any more");
    assert!(server.next().await.peer().tls);
}

#[tokio::test]
async fn more_connections_than_there_may_be_wait_for_others_to_end() {
    let mut server = Server::start(Port { purpose: "tests", most: 1 }).await;
    let (mut first, mut second) = (server.connect().await, server.connect().await);
    first.write_all(b"x").await.unwrap();
    second.write_all(b"x").await.unwrap();
    let connection = server.next().await;
    let waiting = timeout(Duration::from_millis(50), server.incoming.next()).await;
    assert!(waiting.is_err(), "there may be one only");
    drop(connection);
    assert_eq!(server.next().await.peer().remote, second.local_addr().unwrap());
}

#[tokio::test]
async fn an_identity_lasts_as_long_as_the_trust_in_its_certificate() {
    let directory = TempDir::new().unwrap();
    let tokens = Arc::new(TokenFile::open(directory.path()).unwrap());
    let authority = authority(directory.path(), Arc::new(MemoryStore::new()), tokens).await;
    let id = SpiffeId::new(&TrustDomain::default(), "shop", "orders");
    let plain = Peer::plain(SocketAddr::from(([127, 0, 0, 1], 1)));
    assert!(matches!(identity(None, &authority), Ok(None)));
    assert!(matches!(identity(Some(&plain), &authority), Ok(None)));
    // Whatever is said beside it, the certificate itself must be good: none is here.
    let shown = Peer { tls: true, identity: Some(id), not_after: Some(i64::MAX), ..plain };
    assert!(identity(Some(&shown), &authority).is_err());
}
