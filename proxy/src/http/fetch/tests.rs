use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::*;

/// A server that answers every connection with the same bytes.
pub struct Server {
    /// Without path.
    pub url: String,
    answer: Arc<Mutex<Option<Vec<u8>>>>,
    hits: Arc<AtomicUsize>,
    last_head: Arc<Mutex<String>>,
}

impl Server {
    pub async fn start(answer: impl Into<Vec<u8>>) -> Self {
        Self::start_with(answer, None).await
    }

    async fn start_with(answer: impl Into<Vec<u8>>, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https://localhost" } else { "http://127.0.0.1" };
        let server = Self {
            url: format!("{scheme}:{}", listener.local_addr().unwrap().port()),
            answer: Arc::new(Mutex::new(Some(answer.into()))),
            hits: Arc::default(),
            last_head: Arc::default(),
        };
        let (answer, hits) = (server.answer.clone(), server.hits.clone());
        let last_head = server.last_head.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answer = answer.lock().unwrap().clone();
                let (hits, last_head, tls) = (hits.clone(), last_head.clone(), tls.clone());
                // Each on its own: one that stays silent must not keep the next from being counted.
                tokio::spawn(async move {
                    hits.fetch_add(1, Ordering::SeqCst);
                    match tls {
                        None => serve(stream, answer, &last_head).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, answer, &last_head).await;
                            }
                        }
                    }
                });
            }
        });
        server
    }

    /// From now on it says something else; nothing at all with `None`.
    pub fn answer(&self, answer: Option<Vec<u8>>) {
        *self.answer.lock().unwrap() = answer;
    }

    pub fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }

    /// The last request, without its body.
    pub fn last_head(&self) -> String {
        self.last_head.lock().unwrap().clone()
    }

    fn uri(&self) -> Uri {
        format!("{}/keys?a=b", self.url).parse().unwrap()
    }
}

/// 200 with this body.
pub fn ok(body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: Option<Vec<u8>>,
    last_head: &Mutex<String>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    *last_head.lock().unwrap() = String::from_utf8(head).unwrap();
    match answer {
        // Whoever has had enough has gone.
        Some(answer) => {
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
        }
        None => std::future::pending().await,
    }
}

fn trusting(roots: RootCertStore) -> Fetcher {
    let tls = OnceCell::new_with(Some(client_config(roots).unwrap()));
    Fetcher { tls, ..Fetcher::default() }
}

async fn get(answer: impl Into<Vec<u8>>) -> Result<Bytes, FetchError> {
    let server = Server::start(answer).await;
    Fetcher::default().get(&server.uri()).await
}

#[tokio::test]
async fn gets_a_document() {
    let server = Server::start(ok("{}")).await;
    assert_eq!(Fetcher::default().get(&server.uri()).await.unwrap(), "{}");
    let head = server.last_head.lock().unwrap().to_ascii_lowercase();
    let host = server.url.strip_prefix("http://").unwrap();
    assert!(head.starts_with("get /keys?a=b http/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nhost: {host}\r\n")), "{head}");
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
    assert_eq!(get(chunked).await.unwrap(), "{}");
    assert_eq!(get("HTTP/1.0 200 OK\r\n\r\n{}").await.unwrap(), "{}");
}

#[tokio::test]
async fn names_what_went_wrong() {
    for (answer, reason) in [
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}", "answered with 404"),
        ("HTTP/1.1 204 No Content\r\n\r\n", "answered with 204"),
        ("HTTP/1.1 302 Found\r\n\r\n", "answered with 302"),
        ("HTTP/1.1 302 Found\r\nlocation: https://127.0.0.1/\r\n\r\n", "another scheme"),
        ("HTTP/1.1 302 Found\r\nlocation: ftp://127.0.0.1/\r\n\r\n", "another scheme"),
        ("HTTP/1.1 302 Found\r\nlocation: keys\r\n\r\n", "relative URL"),
        ("HTTP/1.1 302 Found\r\nlocation: /\r\n\r\n", "too many redirects"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{}", "HTTP: "),
        ("SSH-2.0-OpenSSH_9.9\r\n", "HTTP: "),
        ("", "HTTP: "),
    ] {
        let error = get(answer).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{answer}: {error}");
    }
}

#[tokio::test]
async fn follows_within_a_scheme() {
    let there = Server::start(ok("[]")).await;
    let redirect = format!("HTTP/1.1 307 T\r\nlocation: {}/x\r\n\r\n", there.url);
    assert_eq!(get(redirect).await.unwrap(), "[]");
    assert!(there.last_head.lock().unwrap().starts_with("GET /x HTTP/1.1"));
}

#[tokio::test]
async fn takes_a_mebibyte_and_no_more() {
    assert_eq!(get(ok(vec![b' '; MAX_BODY_BYTES])).await.unwrap().len(), MAX_BODY_BYTES);
    let huge = vec![b' '; MAX_BODY_BYTES + 1];
    assert!(matches!(get(ok(&huge)).await, Err(FetchError::TooLarge(_))));
    // Nor when the length is not known beforehand.
    let endless = [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &huge].concat();
    assert!(matches!(get(endless).await, Err(FetchError::TooLarge(_))));
    let head = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(200_000));
    assert!(matches!(get(head).await, Err(FetchError::Http(_))));
}

#[tokio::test]
async fn waits_only_so_long() {
    let limit = Duration::from_millis(50);
    let fetcher = Fetcher { time_limit: limit, ..Fetcher::default() };
    let server = Server::start("").await;
    server.answer(None);
    assert!(matches!(fetcher.get(&server.uri()).await, Err(FetchError::TooSlow(_))));
    // Accepts, never speaks TLS.
    let url = server.url.replace("http://", "https://").parse().unwrap();
    let fetcher = Fetcher { time_limit: limit, ..trusting(RootCertStore::empty()) };
    assert!(matches!(fetcher.get(&url).await, Err(FetchError::TooSlow(_))));
}

#[tokio::test]
async fn refuses_urls_that_are_none() {
    for url in ["/keys", "ftp://127.0.0.1/", "http://user:secret@127.0.0.1/", "http://u@127.0.0.1/"]
    {
        let error = Fetcher::default().get(&url.parse().unwrap()).await.unwrap_err();
        assert!(matches!(error, FetchError::Url(_)), "{url}: {error}");
        assert!(!error.to_string().contains("secret"));
    }
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let url = format!("http://{gone}/").parse().unwrap();
    assert!(matches!(Fetcher::default().get(&url).await, Err(FetchError::Connect(_))));
}

fn acceptor(
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> (TlsAcceptor, RootCertStore) {
    let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let certificate: CertificateDer<'static> = own.cert.into();
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), roots)
}

#[tokio::test]
async fn https_with_a_certificate_that_is_trusted_and_fits() {
    for version in [&version::TLS12, &version::TLS13] {
        let (acceptor, roots) = acceptor(&[version]);
        let server = Server::start_with(ok("{}"), Some(acceptor)).await;
        let fetcher = trusting(roots);
        assert_eq!(fetcher.get(&server.uri()).await.unwrap(), "{}");
        // The certificate is for localhost, not for its address.
        let other = server.uri().to_string().replace("localhost", "127.0.0.1").parse().unwrap();
        assert!(matches!(fetcher.get(&other).await, Err(FetchError::Tls(_))));
        let (_, strangers) = self::acceptor(&[version]);
        let error = trusting(strangers).get(&server.uri()).await.unwrap_err();
        assert!(matches!(error, FetchError::Tls(_)), "{error}");
    }
}

#[tokio::test]
async fn https_may_not_become_http() {
    let (acceptor, roots) = acceptor(&[&version::TLS13]);
    let redirect = "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\n\r\n";
    let server = Server::start_with(redirect, Some(acceptor)).await;
    let error = trusting(roots).get(&server.uri()).await.unwrap_err();
    assert!(error.to_string().contains("another scheme"), "{error}");
}

#[tokio::test]
async fn credentials_stay_with_the_host_they_are_for() {
    let there = Server::start(ok("[]")).await;
    let redirect = format!("HTTP/1.1 307 T\r\nlocation: {}/x\r\n\r\n", there.url);
    let here = Server::start(redirect).await;
    let secret = HeaderValue::from_static("Bearer secret");
    let wanted = Wanted {
        accept: "text/plain",
        authorization: Some(&secret),
        max_bytes: 2,
        time_limit: Duration::from_secs(5),
        redirects: 1,
    };
    let answer = Fetcher::default().ask(&here.uri(), &wanted).await.unwrap();
    assert_eq!(answer.body(), "[]");
    assert!(here.last_head().to_ascii_lowercase().contains("\r\nauthorization: bearer secret\r\n"));
    assert!(there.last_head().contains("\r\naccept: text/plain\r\n"));
    assert!(!there.last_head().contains("secret"));
    there.answer(Some(ok("[1]")));
    let error = Fetcher::default().ask(&there.uri(), &wanted).await.unwrap_err();
    assert!(matches!(error, FetchError::TooLarge(2)), "{error}");
    // What is no document comes back as it is, without its body.
    there.answer(Some(b"HTTP/1.1 401 U\r\nx: y\r\ncontent-length: 3\r\n\r\nabc".to_vec()));
    let answer = Fetcher::default().ask(&there.uri(), &wanted).await.unwrap();
    assert_eq!(
        (answer.status(), &answer.headers()["x"]),
        (StatusCode::UNAUTHORIZED, &"y".parse().unwrap())
    );
    assert!(answer.body().is_empty());
}
