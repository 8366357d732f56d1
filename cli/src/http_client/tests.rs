use std::{fs, path::PathBuf, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use super::*;

type Root = CertifiedIssuer<'static, KeyPair>;

fn root() -> Root {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn acceptor(root: &Root, names: &[&str]) -> TlsAcceptor {
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, root).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// Answers one connection, if the caller trusts the certificate; what it was asked.
async fn serve(acceptor: TlsAcceptor) -> (SocketAddr, JoinHandle<Option<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.ok()?;
        let mut asked = [0; 1024];
        let read = stream.read(&mut asked).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
        stream.shutdown().await.unwrap();
        Some(String::from_utf8_lossy(&asked[..read]).into_owned())
    });
    (address, served)
}

fn file(directory: &tempfile::TempDir, root: &Root) -> PathBuf {
    let path = directory.path().join("root.pem");
    fs::write(&path, root.pem()).unwrap();
    path
}

fn request() -> Request<Full<Bytes>> {
    Request::get("/").header(AUTHORIZATION, "Bearer secret").body(Full::default()).unwrap()
}

#[test]
fn addresses_are_read_strictly() {
    let url = |address| HttpClient::new(address).ok().map(|client| client.url());
    for (address, expected) in [
        ("http://127.0.0.1:15010", "http://127.0.0.1:15010"),
        ("http://mesh:15010/", "http://mesh:15010"),
        ("[::1]:15000", "http://[::1]:15000"),
        ("mesh", "http://mesh:80"),
    ] {
        assert_eq!(url(address).as_deref(), Some(expected));
    }
    for wrong in ["", "https://mesh", "http://mesh/api", "a b", "u@h:1", "h:99999", "ftp://x"] {
        assert_eq!(url(wrong), None, "{wrong}");
    }
}

#[test]
fn https_needs_roots_and_says_which_flag_gives_them() {
    let error = HttpClient::with_trust("https://mesh:15010", None).unwrap_err().to_string();
    assert!(error.contains("`https://mesh:15010`") && error.contains("--ca-file"), "{error}");
    let directory = tempfile::tempdir().unwrap();
    let trust = Trust::load(&file(&directory, &root())).unwrap();
    for (address, url) in [
        ("https://mesh", "https://mesh:443"),
        ("https://[::1]:15010/", "https://[::1]:15010"),
        ("http://mesh", "http://mesh:80"),
    ] {
        assert_eq!(HttpClient::with_trust(address, Some(trust.clone())).unwrap().url(), url);
    }
}

#[test]
fn a_file_without_certificates_is_no_trust() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root.pem");
    let error = Trust::load(&path).unwrap_err().to_string();
    assert!(error.contains("root.pem") && error.contains("--ca-file"), "{error}");
    for text in ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        fs::write(&path, text).unwrap();
        assert!(matches!(Trust::load(&path), Err(TrustError::Malformed { .. })), "{text}");
    }
}

#[tokio::test]
async fn a_server_certified_by_a_root_of_ours_is_asked_by_name_or_address() {
    let directory = tempfile::tempdir().unwrap();
    let root = root();
    let trust = Trust::load(&file(&directory, &root)).unwrap();
    for (host, names) in [("127.0.0.1", "127.0.0.1"), ("localhost", "localhost")] {
        let (address, served) = serve(acceptor(&root, &[names])).await;
        let url = format!("https://{host}:{}", address.port());
        let client = HttpClient::with_trust(&url, Some(trust.clone())).unwrap();
        assert_eq!(client.send(request()).await.unwrap().body(), "hi");
        let asked = served.await.unwrap().unwrap();
        assert!(asked.contains("authorization: Bearer secret"), "{asked}");
    }
}

#[tokio::test]
async fn a_server_of_somebody_else_gets_no_request() {
    let directory = tempfile::tempdir().unwrap();
    let ours = root();
    let trust = Trust::load(&file(&directory, &ours)).unwrap();
    for (acceptor, reason) in [
        (acceptor(&root(), &["127.0.0.1"]), "none of the roots in "),
        (acceptor(&ours, &["elsewhere"]), "not valid for name \"127.0.0.1\""),
    ] {
        let (address, served) = serve(acceptor).await;
        let url = format!("https://{address}");
        let client = HttpClient::with_trust(&url, Some(trust.clone())).unwrap();
        let error = client.send(request()).await.unwrap_err();
        assert!(!error.is_unreachable());
        let start = format!("{address} cannot be trusted: ");
        assert!(error.to_string().starts_with(&start), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(served.await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_changed_file_is_noticed_and_a_broken_one_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (root(), root());
    let path = file(&directory, &old);
    let trust = Trust::load(&path).unwrap();
    let ask = async |root: &Root| {
        let (address, served) = serve(acceptor(root, &["127.0.0.1"])).await;
        let client = HttpClient::with_trust(&format!("https://{address}"), Some(trust.clone()));
        let answer = client.unwrap().send(request()).await;
        served.await.unwrap();
        answer.is_ok()
    };
    assert!(ask(&old).await && !ask(&new).await);
    fs::write(&path, "half of it").unwrap();
    assert!(ask(&old).await && !ask(&new).await);
    fs::write(&path, new.pem()).unwrap();
    assert!(!ask(&old).await && ask(&new).await);
    assert!(trust.is_exactly("x", new.pem().as_bytes()).unwrap());

    trust.also("x", old.pem().as_bytes()).unwrap();
    assert!(ask(&old).await && ask(&new).await);
    assert!(!trust.is_exactly("x", format!("{}{}", old.pem(), new.pem()).as_bytes()).unwrap());
}

#[tokio::test]
async fn a_token_does_not_leave_the_machine_in_the_clear() {
    // An address for documentation (RFC 5737): nothing is sent there.
    let client = HttpClient::new("http://192.0.2.1:15010").unwrap();
    let error = client.send(request()).await.unwrap_err();
    assert!(matches!(error, Error::TokenInClear { .. }), "{error}");
    assert!(error.to_string().contains("--ca-file"), "{error}");
}

#[tokio::test]
async fn nobody_there_is_said_in_words() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let client = HttpClient::new(&format!("127.0.0.1:{port}")).unwrap();
    let request = Request::get("/").body(Full::default()).unwrap();
    let error = client.send(request).await.unwrap_err();
    assert!(error.is_unreachable());
    assert_eq!(error.to_string(), format!("cannot reach 127.0.0.1:{port}: connection refused"));
}
