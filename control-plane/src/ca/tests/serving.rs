//! The TLS of our own ports, by real handshakes.

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::*;

type Shown = Option<(Vec<CertificateDer<'static>>, KeyPair)>;

fn client(roots: &str, shown: Shown) -> ClientConfig {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store);
    let mut config = match shown {
        None => config.with_no_client_auth(),
        Some((chain, key)) => {
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
            config.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// A whole handshake and a byte each way: in TLS 1.3 the server's verdict on a client comes after the handshake.
async fn shake(
    mesh: &Mesh,
    config: ClientConfig,
    host: &str,
) -> Option<(client::TlsStream<tokio::io::DuplexStream>, server::TlsStream<tokio::io::DuplexStream>)>
{
    let (ours, theirs) = duplex(1 << 16);
    let acceptor = TlsAcceptor::from(mesh.authority.server().borrow().clone());
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let accepted = async {
        let mut stream = acceptor.accept(ours).await.ok()?;
        stream.write_all(b"x").await.ok()?;
        stream.flush().await.ok()?;
        Some(stream)
    };
    let connected = async {
        let mut stream = connector.connect(name, theirs).await.ok()?;
        (stream.read_u8().await.ok()? == b'x').then_some(stream)
    };
    let (accepted, connected) = tokio::join!(accepted, connected);
    Some((connected?, accepted?))
}

fn identity(under: &Mesh, names: Option<Vec<SanType>>) -> Shown {
    let key = KeyPair::generate().unwrap();
    let trust = under.authority.trust();
    let mut params = CertificateParams::default();
    issue::set_validity(&mut params, now() - 60, now() + 60);
    match names {
        None => {
            let id = SpiffeId::parse(ID).unwrap();
            let terms = issue::Terms { serial: 7, now: now(), ttl: MIN_TTL };
            let leaf = trust.signer.svid(&key, &id, terms).unwrap();
            Some((vec![leaf.der], key))
        }
        Some(names) => {
            params.subject_alt_names = names;
            let directory = under.directory.path().join("ca");
            let file = |end: &str| {
                let mut all = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
                fs::read_to_string(all.find(|path| path.to_str().unwrap().ends_with(end)).unwrap())
            };
            let root = KeyPair::from_pem(&file(".key").unwrap()).unwrap();
            let issuer = rcgen::Issuer::from_ca_cert_der(&trust.roots[0].der, root).unwrap();
            Some((vec![params.signed_by(&key, &issuer).unwrap().into()], key))
        }
    }
}

#[tokio::test]
async fn callers_without_a_certificate_are_served_under_every_name_of_ours() {
    let mesh = Mesh::new().await;
    let roots = mesh.authority.bundle_pem();
    for host in ["localhost", "127.0.0.1", "::1", "mesh.example.com", "192.0.2.7"] {
        let (client, server) = shake(&mesh, client(&roots, None), host).await.unwrap();
        assert_eq!(server.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        assert!(server.get_ref().1.peer_certificates().is_none());
        let shown = client.get_ref().1.peer_certificates().unwrap();
        let id = mesh.authority.peer(shown).unwrap();
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/leno-system/sa/control-plane");
    }
    assert!(shake(&mesh, client(&roots, None), "elsewhere.example.com").await.is_none());
    let other = Mesh::new().await.authority.bundle_pem();
    assert!(shake(&mesh, client(&other, None), "localhost").await.is_none());
}

#[tokio::test]
async fn a_client_is_who_its_certificate_says() {
    let mesh = Mesh::new().await;
    let roots = mesh.authority.bundle_pem();
    let shown = identity(&mesh, None);
    let (_client, server) = shake(&mesh, client(&roots, shown), "localhost").await.unwrap();
    let remote = "192.0.2.1:1".parse().unwrap();
    let peer = mesh.authority.connection(remote, server.get_ref().1.peer_certificates()).unwrap();
    assert_eq!(peer.identity.as_ref().unwrap().to_string(), ID);
    assert!(peer.tls && peer.not_after.is_some_and(|end| (5..=10).contains(&(end - now()))));
    let anonymous = mesh.authority.connection(remote, None).unwrap();
    assert_eq!(anonymous, Peer { tls: true, ..Peer::plain(remote) });
    assert!(mesh.authority.is_current(&peer) && !mesh.authority.is_current(&anonymous));

    let stranger = Mesh::new().await;
    let shown = identity(&stranger, None);
    assert!(shake(&mesh, client(&roots, shown), "localhost").await.is_none(), "another root");
}

#[tokio::test]
async fn certificates_that_name_nobody_are_refused() {
    let mesh = Mesh::new().await;
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let dns = SanType::DnsName("orders.shop".try_into().unwrap());
    let other = TrustDomain::parse("other").unwrap();
    let expected = mesh.authority.trust_domain().clone();
    for (names, refused) in [
        (vec![dns], PeerError::NotOneUri(0)),
        (vec![uri(ID), uri("spiffe://cluster.local/ns/shop/sa/b")], PeerError::NotOneUri(2)),
        (
            vec![uri("spiffe://other/ns/shop/sa/orders")],
            PeerError::OtherTrustDomain { found: other, expected },
        ),
    ] {
        let (chain, _) = identity(&mesh, Some(names)).unwrap();
        assert_eq!(mesh.authority.peer(&chain).unwrap_err(), refused);
    }
    let (chain, _) = identity(&mesh, Some(vec![uri("https://x/")])).unwrap();
    assert!(matches!(mesh.authority.peer(&chain), Err(PeerError::BadIdentity(_))));
    assert_eq!(mesh.authority.peer(&[]), Err(PeerError::Malformed));
    let garbage = CertificateDer::from(vec![0x30, 0x03, 1, 2, 3]);
    assert_eq!(mesh.authority.peer(&[garbage]), Err(PeerError::Malformed));
}

#[tokio::test]
async fn a_root_that_was_dropped_lets_nobody_in() {
    let mesh = Mesh::new().await;
    let old = identity(&mesh, None);
    let (chain, key) = old.unwrap();
    let again = |key: &KeyPair| KeyPair::try_from(key.serialize_der()).unwrap();
    let nobody = Nobody;
    for (action, let_in) in
        [(Rotation::Add, true), (Rotation::Switch, true), (Rotation::Drop, false)]
    {
        mesh.authority.rotate(action, true, &nobody).await.unwrap();
        let shown = Some((chain.clone(), again(&key)));
        let config = client(&mesh.authority.bundle_pem(), shown);
        assert_eq!(shake(&mesh, config, "localhost").await.is_some(), let_in, "{action:?}");
    }
}

#[tokio::test]
async fn our_certificate_is_renewed_in_time_and_after_the_clock_went_back() {
    let mesh = Mesh::with(|settings| settings.ttl = MIN_TTL).await;
    let trust = mesh.authority.trust();
    let id = SpiffeId::parse(ID).unwrap();
    let made = now();
    let serving = crate::ca::serving::Serving::new(&trust, &id, &[], MIN_TTL, made).unwrap();
    for (time, due) in [(0, false), (5, false), (6, true), (100, true), (-60, false), (-61, true)] {
        assert_eq!(serving.is_due(made + time), due, "{time}");
    }
    let mut server = mesh.authority.server();
    mesh.authority.tick().await;
    assert!(!server.has_changed().unwrap(), "not before it is due");
    server.borrow_and_update();
    mesh.authority.changing.lock().await.serving.renew = now();
    mesh.authority.tick().await;
    assert!(server.has_changed().unwrap());
}
