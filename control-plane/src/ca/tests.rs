//! The authority as a whole: over its service, its store and its files.

mod rotating;
mod serving;
mod user;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, UnixTime};
use tempfile::TempDir;
use tonic::{Code, Request, Response};

use super::{
    proto::{IssueRequest, IssueResponse, certificate_authority_server::CertificateAuthority},
    server::Service,
    *,
};
use crate::{
    access::{NewToken, Role, TokenFile},
    store::{MemoryStore, Store},
};

const ID: &str = "spiffe://cluster.local/ns/shop/sa/orders";

struct Mesh {
    directory: TempDir,
    store: Arc<dyn Store>,
    tokens: Arc<TokenFile>,
    authority: Arc<Authority>,
}

/// No proxy is connected.
struct Nobody;

impl Fleet for Nobody {
    fn connected(&self) -> Vec<Member> {
        Vec::new()
    }

    fn have_bundle(&self, _generation: u64) -> Vec<Member> {
        Vec::new()
    }
}

/// One call to the authority.
struct Call {
    request: IssueRequest,
    peer: Peer,
    bearer: Option<String>,
}

fn settings(directory: &Path) -> Settings {
    Settings {
        data_dir: directory.to_owned(),
        trust_domain: TrustDomain::parse("cluster.local").unwrap(),
        ttl: Duration::from_secs(3600),
        user: None,
        jwt: None,
        hosts: vec!["mesh.example.com".into()],
        bind: vec![[0, 0, 0, 0].into(), [192, 0, 2, 7].into()],
    }
}

impl Mesh {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let directory = TempDir::new().unwrap();
        let mut settings = settings(directory.path());
        change(&mut settings);
        Self::open(directory, Arc::new(MemoryStore::new()), settings).await
    }

    async fn open(directory: TempDir, store: Arc<dyn Store>, settings: Settings) -> Self {
        let tokens = Arc::new(TokenFile::open(directory.path()).unwrap());
        let authority = Authority::open(settings, store.clone(), tokens.clone()).await.unwrap();
        Self { directory, store, tokens, authority }
    }

    async fn restarted(self) -> Self {
        let settings = self.authority.settings.clone();
        Self::open(self.directory, self.store, settings).await
    }

    fn token(&self, change: impl FnOnce(&mut NewToken<'_>)) -> String {
        let mut new = NewToken {
            name: "join",
            role: Role::Workload,
            namespace: Some("shop"),
            service_account: Some("orders"),
            expires: None,
            once: false,
        };
        change(&mut new);
        self.tokens.issue(new).unwrap()
    }

    async fn call(&self, call: Call) -> Result<IssueResponse, tonic::Status> {
        let mut request = Request::new(call.request);
        if let Some(bearer) = call.bearer {
            let header = format!("Bearer {bearer}").parse().unwrap();
            request.metadata_mut().insert("authorization", header);
        }
        request.extensions_mut().insert(call.peer);
        Service::new(self.authority.clone()).issue(request).await.map(Response::into_inner)
    }

    async fn refused(&self, call: Call, code: Code, says: &str) {
        let refused = self.call(call).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(says), "{says}: {}", refused.message());
    }

    fn audit(&self) -> String {
        ["audit.log", "refused.log"]
            .map(|name| fs::read_to_string(self.directory.path().join("ca").join(name)).unwrap())
            .concat()
    }
}

impl Call {
    fn new(bearer: Option<&str>) -> Self {
        let request = IssueRequest {
            csr: csr(&KeyPair::generate().unwrap(), vec![]),
            namespace: "shop".into(),
            service_account: "orders".into(),
            proxy: "orders-1.shop".into(),
            ttl_seconds: 0,
        };
        let remote = "192.0.2.1:4711".parse().unwrap();
        let peer = Peer { tls: true, ..Peer::plain(remote) };
        Self { request, peer, bearer: bearer.map(ToOwned::to_owned) }
    }

    fn with(mut self, change: impl FnOnce(&mut IssueRequest)) -> Self {
        change(&mut self.request);
        self
    }

    /// Over a connection with a certificate of this identity that ends in so many seconds.
    fn shown(mut self, mesh: &Mesh, id: &str, left: i64) -> Self {
        let id = SpiffeId::parse(id).unwrap();
        let terms = issue::Terms { serial: 7, now: now() + left - 10, ttl: MIN_TTL };
        let leaf = mesh.authority.trust().signer.svid(&KeyPair::generate().unwrap(), &id, terms);
        let chain = [leaf.unwrap().der];
        self.peer = mesh.authority.connection(self.peer.remote, Some(&chain)).unwrap();
        self
    }
}

fn csr(key: &KeyPair, names: Vec<SanType>) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params.serialize_request(key).unwrap().der().to_vec()
}

fn chain(response: &IssueResponse) -> Vec<CertificateDer<'static>> {
    response.chain.iter().map(|der| CertificateDer::from(der.clone())).collect()
}

/// Whether TLS would accept the chain under these roots now.
fn verifies(response: &IssueResponse, roots: &[Vec<u8>]) -> bool {
    let mut store = rustls::RootCertStore::empty();
    for root in roots {
        store.add(root.clone().into()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider);
    let chain = chain(response);
    let verifier = verifier.build().unwrap();
    verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()).is_ok()
}

#[tokio::test]
async fn a_join_token_gets_the_certificate_of_its_account() {
    let mesh = Mesh::new().await;
    let token = mesh.token(|_| {});
    let response = mesh.call(Call::new(Some(&token))).await.unwrap();
    assert!(verifies(&response, &response.roots));
    assert_eq!(response.trust_domain, "cluster.local");
    assert_eq!(response.chain.len(), 1, "without the root");
    assert_eq!(response.signer, root::fingerprint(&response.roots[0]));
    let id = mesh.authority.peer(&chain(&response)).unwrap();
    assert_eq!(id.to_string(), ID);

    let [certificate] = &mesh.authority.certificates()[..] else { panic!("one certificate") };
    assert_eq!((certificate.proxy.as_str(), certificate.spiffe_id.as_str()), ("orders-1.shop", ID));
    assert_eq!(certificate.signer, response.signer);
    assert!((3599..=3601).contains(&(certificate.not_after - now())));
    let shown = serde_json::to_value(certificate).unwrap();
    assert!(shown["notAfter"].as_str().unwrap().ends_with('Z'), "{shown}");
    let line: serde_json::Value = serde_json::from_str(mesh.audit().trim()).unwrap();
    assert_eq!(line["event"], "issued");
    assert_eq!(line["certificate"]["serial"], certificate.serial);
    assert_eq!(line["proof"], "join token \"join\"");
    assert!(!mesh.audit().contains(&token));
}

#[tokio::test]
async fn a_token_without_an_account_is_for_the_default_one() {
    let mesh = Mesh::new().await;
    let token = mesh.token(|new| new.service_account = None);
    mesh.refused(Call::new(Some(&token)), Code::PermissionDenied, "sa/default").await;
    let default = |request: &mut IssueRequest| request.service_account = "default".into();
    mesh.call(Call::new(Some(&token)).with(default)).await.unwrap();
}

#[tokio::test]
async fn somebody_elses_identity_is_refused() {
    let mesh = Mesh::new().await;
    let token = mesh.token(|_| {});
    let call = || Call::new(Some(&token));
    let denied = Code::PermissionDenied;
    mesh.refused(call().with(|r| r.namespace = "bank".into()), denied, ID).await;
    mesh.refused(call().with(|r| r.service_account = "cash".into()), denied, ID).await;
    let cash = SanType::URI("spiffe://cluster.local/ns/shop/sa/cash".try_into().unwrap());
    let request = csr(&KeyPair::generate().unwrap(), vec![cash]);
    mesh.refused(call().with(|r| r.csr = request), denied, "signing request names").await;
    let own = mesh.token(|new| {
        new.namespace = Some("leno-system");
        new.service_account = Some("control-plane");
    });
    let ours = Call::new(Some(&own)).with(|request| {
        request.namespace = "leno-system".into();
        request.service_account = "control-plane".into();
    });
    mesh.refused(ours, denied, "own identity").await;
    let admin = mesh.token(|new| {
        (new.role, new.namespace, new.service_account) = (Role::Admin, None, None);
    });
    mesh.refused(Call::new(Some(&admin)), denied, "role workload").await;
    assert!(mesh.authority.certificates().is_empty());
    assert_eq!(mesh.audit().matches("\"refused\"").count(), 5);
}

#[tokio::test]
async fn without_proof_there_is_nothing() {
    let mesh = Mesh::new().await;
    let none = Code::Unauthenticated;
    mesh.refused(Call::new(None), none, "no proof").await;
    mesh.refused(Call::new(Some("leno_made_up")), none, "not known").await;
    mesh.refused(Call::new(Some("a.b.c")), none, "--join-jwks").await;
    mesh.refused(Call::new(Some(&"a.".repeat(1 << 19))), none, "at most").await;
    let expired = mesh.token(|new| new.expires = Some(1));
    mesh.refused(Call::new(Some(&expired)), none, "expired").await;
    let mut plain = Call::new(Some(&mesh.token(|_| {})));
    plain.peer.tls = false;
    mesh.refused(plain, none, "TLS").await;
    let refused = mesh.authority.metrics.refused.with_label_values(&["proof"]);
    assert_eq!(refused.get(), 6);
}

#[tokio::test]
async fn a_token_of_one_use_gets_one_certificate() {
    let mesh = Mesh::new().await;
    let token = mesh.token(|new| new.once = true);
    // What is refused for other reasons does not use it up.
    let garbage = Call::new(Some(&token)).with(|request| request.csr.clear());
    mesh.refused(garbage, Code::InvalidArgument, "PKCS #10").await;
    mesh.call(Call::new(Some(&token))).await.unwrap();
    mesh.refused(Call::new(Some(&token)), Code::Unauthenticated, "has been used").await;
    let mesh = mesh.restarted().await;
    mesh.refused(Call::new(Some(&token)), Code::Unauthenticated, "has been used").await;
    let contested = mesh.token(|new| new.once = true);
    let calls = (0..8).map(|_| mesh.call(Call::new(Some(&contested))));
    let won = futures_util::future::join_all(calls).await;
    assert_eq!(won.iter().filter(|call| call.is_ok()).count(), 1);
}

#[tokio::test]
async fn a_certificate_renews_itself_and_nobody_else() {
    let mesh = Mesh::new().await;
    mesh.call(Call::new(None).shown(&mesh, ID, 10)).await.unwrap();
    let other = "spiffe://cluster.local/ns/shop/sa/cash";
    let denied = Code::PermissionDenied;
    mesh.refused(Call::new(None).shown(&mesh, other, 10), denied, "renews that identity").await;
    let ended = Call::new(None).shown(&mesh, ID, 0);
    mesh.refused(ended, Code::Unauthenticated, "has ended").await;
    let mut endless = Call::new(None).shown(&mesh, ID, 10);
    endless.peer.not_after = None;
    mesh.refused(endless, Code::Unauthenticated, "has ended").await;
    // A certificate that is no use does not stand in the way of a token, and a good one saves it.
    let once = mesh.token(|new| new.once = true);
    mesh.call(Call::new(Some(&once)).shown(&mesh, ID, 10)).await.unwrap();
    mesh.call(Call::new(Some(&once)).shown(&mesh, ID, -3600)).await.unwrap();
    let used = Call::new(Some(&once)).shown(&mesh, other, 10);
    mesh.refused(used, Code::Unauthenticated, "has been used").await;
}

#[tokio::test]
async fn a_proxy_may_ask_for_less_life_and_never_for_more() {
    let mesh = Mesh::new().await;
    for (asked, given) in [(0, 3600), (60, 60), (1, 10), (u32::MAX, 3600)] {
        let proxy = format!("proxy {asked}");
        let call = Call::new(Some(&mesh.token(|_| {}))).with(|request| {
            request.ttl_seconds = asked;
            request.proxy = proxy.clone();
        });
        mesh.call(call).await.unwrap();
        let all = mesh.authority.certificates();
        let one = all.iter().find(|one| one.proxy == proxy).unwrap();
        assert_eq!(one.not_after - one.not_before - 60, given, "{asked}");
    }
}

#[tokio::test]
async fn proxies_have_names() {
    let mesh = Mesh::new().await;
    let token = mesh.token(|_| {});
    for name in [String::new(), "x".repeat(254), "a\nb".into()] {
        let call = Call::new(Some(&token)).with(|request| request.proxy = name);
        mesh.refused(call, Code::InvalidArgument, "proxy").await;
    }
}

#[tokio::test]
async fn a_proxy_that_asks_without_end_is_told_to_wait() {
    let mesh = Mesh::new().await;
    let token = mesh.token(|_| {});
    let key = KeyPair::generate().unwrap();
    let request = csr(&key, vec![]);
    let call = |n: usize| {
        let request = request.clone();
        Call::new(Some(&token)).with(|r| (r.csr, r.proxy) = (request, format!("p{n}")))
    };
    let mut answers = Vec::new();
    for _ in 0..30 {
        answers.push(mesh.call(call(0)).await);
    }
    let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(!refused.is_empty());
    assert!(refused.iter().all(|refused| refused.code() == Code::ResourceExhausted));
    mesh.call(call(1)).await.unwrap();
}

#[tokio::test]
async fn nothing_is_issued_that_is_not_written_down() {
    let mesh = Mesh::new().await;
    let token = mesh.token(|_| {});
    mesh.call(Call::new(Some(&token))).await.unwrap();
    // The log is full, and cannot be put aside.
    let log = mesh.directory.path().join("ca/audit.log");
    fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(16 << 20).unwrap();
    let mesh = mesh.restarted().await;
    for number in [3, 4] {
        fs::create_dir_all(log.with_extension(format!("log.{number}")).join("x")).unwrap();
    }
    mesh.refused(Call::new(Some(&token)), Code::Unavailable, "audit log").await;
}

#[tokio::test]
async fn a_restart_keeps_root_and_knowledge() {
    let mesh = Mesh::new().await;
    let before = mesh.call(Call::new(Some(&mesh.token(|_| {})))).await.unwrap();
    let (pem, known) = (mesh.authority.bundle_pem(), mesh.authority.certificates());
    let mesh = mesh.restarted().await;
    assert_eq!(mesh.authority.bundle_pem(), pem);
    assert_eq!(mesh.authority.certificates(), known);
    let after = mesh.call(Call::new(Some(&mesh.token(|_| {})))).await.unwrap();
    assert!(verifies(&before, &after.roots) && verifies(&after, &before.roots));
}

#[tokio::test]
async fn keys_are_private_and_the_roots_are_not() {
    let mesh = Mesh::new().await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let directory = mesh.directory.path();
    assert_eq!(mode(&directory.join("ca")), 0o700);
    assert_eq!(mode(&directory.join(ROOT_FILE)), 0o644);
    let pem = fs::read_to_string(directory.join(ROOT_FILE)).unwrap();
    assert_eq!(pem, mesh.authority.bundle_pem());
    for entry in fs::read_dir(directory.join("ca")).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
    fs::write(directory.join(ROOT_FILE), "garbage").unwrap();
    mesh.authority.tick().await;
    assert_eq!(fs::read_to_string(directory.join(ROOT_FILE)).unwrap(), pem);
}

#[tokio::test]
async fn impossible_settings_are_refused() {
    let directory = TempDir::new().unwrap();
    let tokens = Arc::new(TokenFile::open(directory.path()).unwrap());
    let open = |change: fn(&mut Settings)| {
        let mut settings = settings(directory.path());
        change(&mut settings);
        Authority::open(settings, Arc::new(MemoryStore::new()), tokens.clone())
    };
    for ttl in [9, 31 * 24 * 3600] {
        let ttl = Duration::from_secs(ttl);
        let mut settings = settings(directory.path());
        settings.ttl = ttl;
        let opened = Authority::open(settings, Arc::new(MemoryStore::new()), tokens.clone()).await;
        assert!(matches!(opened.err(), Some(Error::Ttl(_))));
    }
    let host = open(|settings| settings.hosts = vec!["no host".into()]).await.err().unwrap();
    assert!(host.to_string().contains("no host"), "{host}");
    let jwks = JwtSettings {
        jwks: "http://example.com/".into(),
        issuer: "i".into(),
        audience: "a".into(),
    };
    let mut with_jwt = settings(directory.path());
    with_jwt.jwt = Some(jwks);
    let opened = Authority::open(with_jwt, Arc::new(MemoryStore::new()), tokens.clone()).await;
    assert!(matches!(opened.err(), Some(Error::Jwks(_))));
}

/// P-256 issuing is expected to take about 100 µs; what it takes is printed.
#[tokio::test]
async fn one_certificate_costs_little() {
    let mesh = Mesh::new().await;
    let request = csr(&KeyPair::generate().unwrap(), vec![]);
    let trust = mesh.authority.trust();
    let id = SpiffeId::parse(ID).unwrap();
    let start = Instant::now();
    let mut serials = std::collections::HashSet::new();
    for _ in 0..200 {
        let request = issue::Request::read(&request).unwrap();
        let terms = issue::Terms { serial: rand::random(), now: now(), ttl: MIN_TTL };
        serials.insert(trust.signer.svid(&request.key, &id, terms).unwrap().serial);
    }
    println!("{:?} each", start.elapsed() / 200);
    assert_eq!(serials.len(), 200, "each has its own serial");
}

#[tokio::test]
async fn a_connection_that_outlives_its_root_renews_nothing() {
    let mesh = Mesh::new().await;
    let call = Call::new(None).shown(&mesh, ID, 10);
    let peer = call.peer.clone();
    assert!(mesh.authority.is_current(&peer));
    for action in [Rotation::Add, Rotation::Switch, Rotation::Drop] {
        mesh.authority.rotate(action, true, &Nobody).await.unwrap();
    }
    assert!(!mesh.authority.is_current(&peer));
    mesh.refused(call, Code::Unauthenticated, "no longer trusted").await;
    let forged = Call::new(None).shown(&mesh, ID, 10);
    let forged = Call { peer: Peer { chain: peer.chain, ..forged.peer }, ..forged };
    mesh.refused(forged, Code::Unauthenticated, "no longer trusted").await;
}

#[tokio::test]
async fn a_service_account_token_gets_the_certificate_of_its_account() {
    let directory = TempDir::new().unwrap();
    let key = KeyPair::generate().unwrap();
    let point = rcgen::PublicKeyData::der_bytes(&key);
    let part = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
    let jwk = serde_json::json!({"kty": "EC", "crv": "P-256", "kid": "1", "x": part(1..33), "y": part(33..65)});
    let path = directory.path().join("keys.json");
    fs::write(&path, serde_json::json!({"keys": [jwk]}).to_string()).unwrap();
    let mut settings = settings(directory.path());
    let (jwks, issuer, audience) = (path.to_str().unwrap().into(), "k8s".into(), "leno".into());
    settings.jwt = Some(JwtSettings { jwks, issuer, audience });
    let mesh = Mesh::open(directory, Arc::new(MemoryStore::new()), settings).await;
    let token = |subject: &str, end: i64| {
        let claims = serde_json::json!({"iss": "k8s", "aud": ["leno"], "sub": subject, "exp": end});
        let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
        let key = jsonwebtoken::EncodingKey::from_ec_der(key.serialized_der());
        jsonwebtoken::encode(&header, &claims, &key).unwrap()
    };
    let end = now() + 60;
    let orders = token("system:serviceaccount:shop:orders", end);
    let response = mesh.call(Call::new(Some(&orders))).await.unwrap();
    assert_eq!(mesh.authority.peer(&chain(&response)).unwrap().to_string(), ID);
    assert!(mesh.audit().contains("JWT of shop/orders") && !mesh.audit().contains(&orders));
    let cash = token("system:serviceaccount:shop:cash", end);
    mesh.refused(Call::new(Some(&cash)), Code::PermissionDenied, "sa/cash").await;
    let late = token("system:serviceaccount:shop:orders", now() - 3600);
    mesh.refused(Call::new(Some(&late)), Code::Unauthenticated, "expired").await;
    let strange = token("system:serviceaccount:shop:../x", end);
    mesh.refused(Call::new(Some(&strange)), Code::Unauthenticated, "cannot be").await;
    let large = format!("{orders}{}", "x".repeat(1 << 20));
    mesh.refused(Call::new(Some(&large)), Code::Unauthenticated, "at most").await;
}
