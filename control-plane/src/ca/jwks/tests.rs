use std::sync::atomic::{AtomicUsize, Ordering};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

const NOW: i64 = 1_800_000_000;

fn document(keys: &[(&str, &KeyPair)]) -> String {
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let keys: Vec<_> = keys
        .iter()
        .map(|(id, key)| {
            let point = key.der_bytes();
            json!({"kty": "EC", "crv": "P-256", "kid": id, "x": part(&point[1..33]), "y": part(&point[33..])})
        })
        .collect();
    json!({ "keys": keys }).to_string()
}

fn token(id: &str, key: &KeyPair) -> Vec<u8> {
    let claims = json!({"iss": "i", "aud": "a", "exp": NOW + 60, "sub": "system:serviceaccount:shop:orders"});
    let header = Header { kid: Some(id.into()), ..Header::new(Algorithm::ES256) };
    encode(&header, &claims, &EncodingKey::from_ec_der(key.serialized_der())).unwrap().into_bytes()
}

fn issuer(jwks: &str) -> Result<Issuer, BadSource> {
    Issuer::new(&JwtSettings { jwks: jwks.into(), issuer: "i".into(), audience: "a".into() })
}

/// Answers every request with the same, counting them.
async fn answering(answer: String) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let mut request = [0; 4096];
            let _read = stream.read(&mut request).await;
            stream.write_all(answer.as_bytes()).await.ok();
        }
    });
    (port, count)
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

#[test]
fn places_of_keys() {
    for good in [
        "https://kubernetes.default.svc/openid/v1/jwks",
        "http://127.0.0.1:8001/openid/v1/jwks",
        "http://[::1]:80/keys",
        "http://localhost/keys",
    ] {
        assert!(matches!(Source::parse(good), Ok(Source::Url(..))), "{good}");
    }
    assert!(matches!(Source::parse("/etc/keys.json"), Ok(Source::File(_))));
    for bad in ["http://example.com/keys", "ftp://127.0.0.1/keys", "https://", "http://10.0.0.1/"] {
        assert!(matches!(Source::parse(bad), Err(BadSource::NotAPlace(_))), "{bad}");
    }
    for secret in ["https://user:hunter2@example.com/keys", "https://hunter2@example.com"] {
        let refused = Source::parse(secret).unwrap_err();
        assert!(matches!(refused, BadSource::Secret), "{refused}");
        assert!(!refused.to_string().contains("hunter2"));
    }
    assert!(Source::parse("https://example.com/keys?for=a@b").is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_file_is_read_again_for_a_new_key_but_not_all_the_time() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("keys.json");
    let [one, two, three] = [(); 3].map(|()| KeyPair::generate().unwrap());
    std::fs::write(&path, "garbage").unwrap();
    assert!(matches!(issuer(path.to_str().unwrap()), Err(BadSource::Damaged { .. })));
    std::fs::write(&path, document(&[("1", &one)])).unwrap();
    let issuer = issuer(path.to_str().unwrap()).unwrap();
    assert_eq!(issuer.check(&token("1", &one), NOW).await.unwrap().namespace, "shop");
    std::fs::write(&path, document(&[("1", &one), ("2", &two)])).unwrap();
    issuer.check(&token("2", &two), NOW).await.unwrap();
    std::fs::write(&path, document(&[("3", &three)])).unwrap();
    let unknown = issuer.check(&token("3", &three), NOW).await.unwrap_err();
    assert_eq!(unknown, Unproven::Bad(BadToken::UnknownKey(Some("3".into()))));
    tokio::time::advance(INTERVAL).await;
    issuer.check(&token("3", &three), NOW).await.unwrap();
    assert!(issuer.check(&token("1", &one), NOW).await.is_err(), "withdrawn");
    std::fs::write(&path, "garbage").unwrap();
    tokio::time::advance(REFRESH).await;
    issuer.read_again(REFRESH).await;
    issuer.check(&token("3", &three), NOW).await.unwrap();
}

#[tokio::test]
async fn keys_come_by_http_on_loopback() {
    let key = KeyPair::generate().unwrap();
    let (port, count) = answering(ok(&document(&[("1", &key)]))).await;
    let issuer = issuer(&format!("http://127.0.0.1:{port}/keys")).unwrap();
    for _ in 0..3 {
        issuer.check(&token("1", &key), NOW).await.unwrap();
    }
    for number in 0..20 {
        issuer.check(&token(&format!("made up {number}"), &key), NOW).await.unwrap_err();
    }
    assert_eq!(count.load(Ordering::SeqCst), 1, "strangers cannot make us ask");
}

#[tokio::test]
async fn a_bad_answer_proves_nothing() {
    let key = KeyPair::generate().unwrap();
    let redirect = "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n";
    for answer in [
        redirect.to_owned(),
        ok("<html>"),
        ok(&" ".repeat(MAX_KEYS_BYTES + 1)),
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}".into(),
        "nonsense\r\n\r\n".into(),
        String::new(),
    ] {
        let (port, _) = answering(answer.clone()).await;
        let issuer = issuer(&format!("http://127.0.0.1:{port}/keys")).unwrap();
        let refused = issuer.check(&token("1", &key), NOW).await.unwrap_err();
        assert_eq!(refused, Unproven::NoKeys, "{}", &answer[..answer.len().min(80)]);
    }
    let large = vec![b'x'; 1 << 20];
    let refused = issuer("http://127.0.0.1:1/").unwrap().check(&large, NOW).await.unwrap_err();
    assert_eq!(refused, Unproven::Bad(BadToken::TooLarge(1 << 20)));
}

#[tokio::test]
async fn https_checks_who_answers() {
    let key = KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("localhost:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = ok(&document(&[("1", &key)]));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = [0; 4096];
            let _read = stream.read(&mut request).await;
            stream.write_all(answer.as_bytes()).await.ok();
            stream.shutdown().await.ok();
        }
    });
    let url: Uri = format!("https://localhost:{port}/keys").parse().unwrap();
    let mut trusted = RootCertStore::empty();
    trusted.add(certificate.der().clone()).unwrap();
    let read = |roots: RootCertStore| Source::Url(url.clone(), Some(Arc::new(roots)));
    read(trusted).read().await.unwrap();
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let mut strange = RootCertStore::empty();
    strange.add(other.cert.der().clone()).unwrap();
    let refused = read(strange).read().await.err().unwrap();
    assert!(refused.starts_with("TLS"), "{refused}");
}
