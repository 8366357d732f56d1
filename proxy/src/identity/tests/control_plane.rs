//! The control plane as a source, against an authority that does what a test tells it.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::SocketAddr,
    sync::Mutex,
    task::{Context, Poll},
};

use leno_api::{SYSTEM_NAMESPACE, model::ObjectName};
use rcgen::CertificateSigningRequestParams;
use rustls::{
    RootCertStore, ServerConfig, crypto::aws_lc_rs, pki_types::CertificateSigningRequestDer,
    server::WebPkiClientVerifier,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::Service,
    server::{Grpc, NamedService, UnaryService},
};
use tonic_prost::ProstCodec;

use super::{
    super::control_plane::{
        Options,
        proto::{IssueRequest, IssueResponse},
    },
    server::{Served, Shown, serve},
    *,
};
use crate::tls::{credentials::fingerprint, verify::Leaf};

const CONTROL_PLANE: &str = "spiffe://cluster.local/ns/leno-system/sa/control-plane";
const DAY: i64 = 86_400;

/// What came with a request.
#[derive(Clone, Debug)]
struct Call {
    token: Option<String>,
    certificate: Option<String>,
    csr: Vec<u8>,
    asked: IssueRequest,
}

type Answer = dyn Fn(&Call) -> Result<IssueResponse, Status> + Send + Sync;

struct Plane {
    address: SocketAddr,
    directory: TempDir,
    shared: Arc<Shared>,
}

struct Shared {
    calls: Mutex<Vec<Call>>,
    answer: Mutex<Arc<Answer>>,
    tls: Mutex<Arc<ServerConfig>>,
}

/// Issues what was asked for.
fn issue(root: &Authority, call: &Call, wanted: &Wanted) -> IssueResponse {
    let csr = CertificateSigningRequestDer::from(call.csr.clone());
    let key = CertificateSigningRequestParams::from_der(&csr).unwrap().public_key;
    IssueResponse {
        chain: vec![root.sign(wanted, &key).to_vec()],
        roots: vec![root.certificate.to_vec()],
        trust_domain: "cluster.local".to_owned(),
        signer: fingerprint(&root.certificate),
    }
}

fn honest(root: &Arc<Authority>, seconds: i64) -> Arc<Answer> {
    let root = root.clone();
    Arc::new(move |call| Ok(issue(&root, call, &wanted(&spiffe("orders"), seconds))))
}

/// A server that `uri` identifies, and that asks for certificates without insisting.
fn server_config(root: &Authority, uri: &str) -> Arc<ServerConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(root.certificate.clone()).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .allow_unauthenticated()
        .build()
        .unwrap();
    let (certificate, key) = root.issue(&wanted(uri, DAY));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

impl Plane {
    async fn start(root: &Arc<Authority>) -> Self {
        Self::with(root, honest(root, DAY)).await
    }

    async fn with(root: &Arc<Authority>, answer: Arc<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shared = Arc::new(Shared {
            calls: Mutex::default(),
            answer: Mutex::new(answer),
            tls: Mutex::new(server_config(root, CONTROL_PLANE)),
        });
        let address = listener.local_addr().unwrap();
        tokio::spawn(accept(listener, shared.clone()));
        let plane = Self { address, directory: TempDir::new().unwrap(), shared };
        plane.bundle(&[root]);
        plane.token("join-1");
        plane
    }

    fn bundle(&self, roots: &[&Authority]) {
        let pem = |root: &&Authority| pem(&root.certificate);
        std::fs::write(
            self.directory.path().join("root.pem"),
            roots.iter().map(pem).collect::<String>(),
        )
        .unwrap();
    }

    fn token(&self, token: &str) {
        std::fs::write(self.directory.path().join("token"), format!("{token}\n")).unwrap();
    }

    fn answer(&self, answer: Arc<Answer>) {
        *self.shared.answer.lock().unwrap() = answer;
    }

    fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().unwrap().clone()
    }

    fn options(&self) -> Options {
        Options {
            address: self.address.to_string(),
            ca_file: self.directory.path().join("root.pem"),
            token_file: Some(self.directory.path().join("token")),
            namespace: "shop".to_owned(),
            service_account: "orders".to_owned(),
            proxy: "shop/orders-1".to_owned(),
            ttl: Some(Duration::from_secs(3600)),
        }
    }

    /// The proxy's half.
    fn proxy(&self, families: &Families) -> Arc<Identity> {
        let (identity, task) = start(Source::ControlPlane(self.options()), families).unwrap();
        tokio::spawn(task);
        identity
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let connections = serve(Authorities(shared.clone()));
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (config, connections) = (shared.tls.lock().unwrap().clone(), connections.clone());
        tokio::spawn(async move {
            let Ok(io) = TlsAcceptor::from(config).accept(tcp).await else { return };
            let certificate = io.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let shown = certificate.map(|leaf| Leaf::read(leaf).unwrap().id.to_string());
            connections.send(Served { io, shown: Shown(shown) }).await.ok();
        });
    }
}

#[derive(Clone)]
struct Authorities(Arc<Shared>);

impl NamedService for Authorities {
    const NAME: &'static str = "leno.ca.v1.CertificateAuthority";
}

impl Service<http::Request<Body>> for Authorities {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = Issue(self.0.clone());
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::<IssueResponse, IssueRequest>::default());
            Ok(grpc.unary(method, request).await)
        })
    }
}

struct Issue(Arc<Shared>);

impl UnaryService<IssueRequest> for Issue {
    type Response = IssueResponse;
    type Future = Ready<Result<Response<IssueResponse>, Status>>;

    fn call(&mut self, request: Request<IssueRequest>) -> Self::Future {
        let token = request.metadata().get("authorization");
        let call = Call {
            token: token.map(|token| token.to_str().unwrap().to_owned()),
            certificate: request.extensions().get::<Shown>().unwrap().0.clone(),
            csr: request.get_ref().csr.clone(),
            asked: request.get_ref().clone(),
        };
        self.0.calls.lock().unwrap().push(call.clone());
        let answer = self.0.answer.lock().unwrap().clone();
        ready(answer(&call).map(Response::new))
    }
}

fn root() -> Arc<Authority> {
    Arc::new(Authority::new("root"))
}

async fn first(identity: &Identity) -> Arc<Credentials> {
    until("a certificate", || identity.current().is_some()).await;
    identity.current().unwrap()
}

async fn fails(identity: &Identity, message: &str) {
    until(message, || identity.status().last_error.is_some_and(|e| e.contains(message))).await;
}

fn bundle(trust_domain: &str, roots: &[&Authority], signer: &Authority) -> TrustBundle {
    TrustBundle {
        name: ObjectName::new(SYSTEM_NAMESPACE, "mesh"),
        trust_domain: TrustDomain::parse(trust_domain).unwrap(),
        roots: roots.iter().map(|root| root.certificate.to_vec().into()).collect(),
        signer: fingerprint(&signer.certificate),
    }
}

#[tokio::test]
async fn the_first_certificate_is_for_the_token_the_next_for_the_certificate() {
    let plane = Plane::start(&root()).await;
    let families = families();
    let identity = plane.proxy(&families);
    assert!(identity.is_expected());
    let mut changes = identity.subscribe();
    let before = first(&identity).await;
    assert_eq!(before.id().to_string(), spiffe("orders"));
    assert_eq!(*changes.borrow_and_update(), before.generation());
    assert_eq!(identity.trust_domain().unwrap().as_str(), "cluster.local");
    identity.renew();
    until("a second certificate", || identity.status().renewals == 2).await;
    let after = identity.current().unwrap();
    assert!(changes.has_changed().unwrap() && after.serial() != before.serial());
    let calls = plane.calls();
    let [by_token, by_certificate] = &calls[..] else { panic!("{calls:?}") };
    assert_eq!(by_token.token.as_deref(), Some("Bearer join-1"));
    assert_eq!(by_token.certificate, None);
    assert_eq!(
        (&by_certificate.token, &by_certificate.certificate),
        (&None, &Some(spiffe("orders")))
    );
    let asked = &by_token.asked;
    assert_eq!((&*asked.namespace, &*asked.service_account), ("shop", "orders"));
    assert_eq!((&*asked.proxy, asked.ttl_seconds), ("shop/orders-1", 3600));
    let key = |call: &Call| {
        let csr = CertificateSigningRequestDer::from(call.csr.clone());
        format!("{:?}", CertificateSigningRequestParams::from_der(&csr).unwrap().public_key)
    };
    assert_ne!(key(by_token), key(by_certificate), "a new key each time");
    assert_eq!(families.certificate_renewals.with_label_values(&["ok"]).get(), 2);
    assert_eq!(families.certificate_expiry.get(), after.not_after());
}

#[tokio::test]
async fn certificates_of_a_few_seconds_are_renewed_by_themselves() {
    let root = root();
    let plane = Plane::with(&root, honest(&root, 3)).await;
    let identity = plane.proxy(&families());
    until("three certificates", || identity.status().renewals >= 3).await;
    assert!(identity.current().unwrap().not_after() > unix_now());
}

#[tokio::test]
async fn a_missing_token_is_named_and_read_when_it_comes() {
    let plane = Plane::start(&root()).await;
    std::fs::remove_file(plane.directory.path().join("token")).unwrap();
    let families = families();
    let identity = plane.proxy(&families);
    fails(&identity, "cannot read the token file").await;
    assert!(identity.current().is_none() && plane.calls().is_empty());
    plane.token("late");
    first(&identity).await;
    assert_eq!(plane.calls()[0].token.as_deref(), Some("Bearer late"));
    assert_eq!(identity.status().last_error, None);
    assert!(families.certificate_renewals.with_label_values(&["error"]).get() > 0);
}

#[tokio::test]
async fn nobody_else_gets_the_token() {
    let root = root();
    let (other, namesake) = (Authority::new("other"), Authority::new("root"));
    for (authority, uri, message) in [
        (&*root, "spiffe://cluster.local/ns/leno-system/sa/imposter", "the peer is spiffe://"),
        (&*root, "spiffe://cluster.local/ns/shop/sa/control-plane", "the peer is spiffe://"),
        (&other, CONTROL_PLANE, "UnknownIssuer"),
        (&namesake, CONTROL_PLANE, "certificate"),
    ] {
        let plane = Plane::start(&root).await;
        *plane.shared.tls.lock().unwrap() = server_config(authority, uri);
        let identity = plane.proxy(&families());
        fails(&identity, message).await;
        assert!(plane.calls().is_empty(), "{uri}");
        let status = serde_json::to_string(&identity.status()).unwrap();
        assert!(!status.contains("join-1"), "{status}");
    }
}

#[tokio::test]
async fn the_mesh_that_was_believed_first_is_ours() {
    let root = root();
    let plane = Plane::start(&root).await;
    let identity = plane.proxy(&families());
    let before = first(&identity).await;
    let elsewhere = "spiffe://example.org/ns/leno-system/sa/control-plane";
    *plane.shared.tls.lock().unwrap() = server_config(&root, elsewhere);
    identity.renew();
    fails(&identity, "not of the trust domain cluster.local").await;
    assert_eq!(identity.current().unwrap().serial(), before.serial());
    assert_eq!(plane.calls().len(), 1);
}

#[tokio::test]
async fn answers_that_do_not_fit_are_refused_and_the_old_certificate_stays() {
    let root = root();
    let plane = Plane::start(&root).await;
    let identity = plane.proxy(&families());
    let before = first(&identity).await;
    let issuing = |change: fn(&Authority, &Call) -> IssueResponse| -> Arc<Answer> {
        let root = root.clone();
        Arc::new(move |call| Ok(change(&root, call)))
    };
    let rows: [(Arc<Answer>, &str); 8] = [
        (issuing(|root, call| issue(root, call, &wanted(&spiffe("users"), DAY))), "not spiffe://"),
        (
            issuing(|root, call| {
                let uri = "spiffe://example.org/ns/shop/sa/orders";
                let response = issue(root, call, &wanted(uri, DAY));
                IssueResponse { trust_domain: "example.org".to_owned(), ..response }
            }),
            "it is for example.org",
        ),
        (
            issuing(|root, call| {
                let (foreign, _) = root.issue(&wanted(&spiffe("orders"), DAY));
                let response = issue(root, call, &wanted(&spiffe("orders"), DAY));
                IssueResponse { chain: vec![foreign.to_vec()], ..response }
            }),
            "certificate and key",
        ),
        (
            issuing(|root, call| {
                let response = issue(root, call, &wanted(&spiffe("orders"), DAY));
                let roots = vec![Authority::new("other").certificate.to_vec()];
                IssueResponse { roots, ..response }
            }),
            "leads to none of its roots",
        ),
        (issuing(|root, call| issue(root, call, &wanted(&spiffe("orders"), -1))), "expired"),
        (
            issuing(|root, call| IssueResponse {
                chain: vec![b"garbage".to_vec()],
                ..issue(root, call, &wanted(&spiffe("orders"), DAY))
            }),
            "cannot be read",
        ),
        (issuing(|_, _| IssueResponse::default()), "is not a trust domain"),
        (Arc::new(|_| Err(Status::resource_exhausted("too often\n\u{1b}[31m"))), "too often\\n"),
    ];
    for (answer, message) in rows {
        plane.answer(answer);
        identity.renew();
        fails(&identity, message).await;
        assert_eq!(identity.current().unwrap().serial(), before.serial(), "{message}");
    }
    plane.answer(honest(&root, DAY));
    identity.renew();
    until("a second certificate", || identity.status().renewals == 2).await;
}

#[tokio::test]
async fn a_token_helps_where_the_certificate_is_not_believed_any_more() {
    let root = root();
    let plane = Plane::start(&root).await;
    let identity = plane.proxy(&families());
    first(&identity).await;
    let issuer = root.clone();
    plane.answer(Arc::new(move |call| match call.certificate {
        Some(_) => Err(Status::unauthenticated("this certificate was revoked")),
        None => Ok(issue(&issuer, call, &wanted(&spiffe("orders"), DAY))),
    }));
    identity.renew();
    until("a second certificate", || identity.status().renewals == 2).await;
    let proofs: Vec<_> = plane.calls().iter().map(|call| call.token.is_some()).collect();
    assert_eq!(proofs, [true, false, true]);
}

#[tokio::test]
async fn a_control_plane_that_is_away_takes_nothing_with_it() {
    let root = root();
    let plane = Plane::start(&root).await;
    let identity = plane.proxy(&families());
    let before = first(&identity).await;
    // Somebody who does not speak TLS sits at the address now: the same to the proxy as nobody.
    plane.answer(Arc::new(|_| Err(Status::unavailable("going away"))));
    identity.renew();
    fails(&identity, "going away").await;
    assert_eq!(identity.current().unwrap().serial(), before.serial());
    assert!(identity.warning().is_none(), "there is time");
    let nowhere = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let options = Options { address: nowhere.to_string(), ..plane.options() };
    let (identity, task) = start(Source::ControlPlane(options), &families()).unwrap();
    tokio::spawn(task);
    fails(&identity, &format!("cannot reach the control plane at {nowhere}")).await;
}

#[tokio::test]
async fn new_roots_are_trusted_at_once_and_a_new_signer_renews() {
    let (root, next) = (root(), Arc::new(Authority::new("next")));
    let plane = Plane::start(&root).await;
    let identity = plane.proxy(&families());
    let before = first(&identity).await;
    let foreign = identity.trust(&bundle("example.org", &[&next], &next)).unwrap_err();
    assert!(foreign.contains("example.org") && foreign.contains("cluster.local"), "{foreign}");
    let mut broken = bundle("cluster.local", &[&root], &root);
    broken.roots = vec![vec![0x30, 0].into()];
    assert!(identity.trust(&broken).unwrap_err().contains("trusted root 1"));
    assert_eq!(identity.current().unwrap().generation(), before.generation());
    identity.trust(&bundle("cluster.local", &[&root], &root)).unwrap();
    assert_eq!(identity.current().unwrap().generation(), before.generation(), "nothing new");
    identity.trust(&bundle("cluster.local", &[&root, &next], &root)).unwrap();
    let added = identity.current().unwrap();
    assert_eq!((added.roots().len(), added.serial()), (2, before.serial()));
    assert_eq!(identity.status().roots.len(), 2);
    assert_eq!(plane.calls().len(), 1, "the certificate is still a good one");
    // The authority signs with the next root now.
    let both = vec![root.certificate.to_vec(), next.certificate.to_vec()];
    let issuer = next.clone();
    plane.answer(Arc::new(move |call| {
        let response = issue(&issuer, call, &wanted(&spiffe("orders"), DAY));
        Ok(IssueResponse { roots: both.clone(), ..response })
    }));
    identity.trust(&bundle("cluster.local", &[&root, &next], &next)).unwrap();
    until("a certificate of the next root", || identity.status().renewals == 2).await;
    let switched = identity.current().unwrap();
    assert_eq!(switched.roots().len(), 2);
    identity.trust(&bundle("cluster.local", &[&next], &next)).unwrap();
    let dropped = identity.current().unwrap();
    assert_eq!((dropped.roots().len(), dropped.serial()), (1, switched.serial()));
    assert!(dropped.check_path().is_ok());
    assert_eq!(plane.calls().len(), 2);
}

#[tokio::test]
async fn a_bundle_that_overtakes_a_certificate_counts() {
    let (root, next) = (root(), Authority::new("next"));
    let plane = Plane::start(&root).await;
    let identity = plane.proxy(&families());
    first(&identity).await;
    let newest = bundle("cluster.local", &[&root, &next], &root);
    let (issuer, trusting) = (root.clone(), identity.clone());
    plane.answer(Arc::new(move |call| {
        trusting.trust(&newest).unwrap();
        Ok(issue(&issuer, call, &wanted(&spiffe("orders"), DAY)))
    }));
    identity.renew();
    until("a second certificate", || identity.status().renewals == 2).await;
    assert_eq!(identity.current().unwrap().roots().len(), 2);
}

#[tokio::test]
async fn a_bootstrap_bundle_must_hold_roots() {
    let plane = Plane::start(&root()).await;
    let path = plane.directory.path().join("root.pem");
    let refused = || {
        let Err(error) = start(Source::ControlPlane(plane.options()), &families()) else {
            panic!("accepted")
        };
        error.to_string()
    };
    std::fs::write(&path, "not PEM").unwrap();
    assert!(refused().contains("holds no certificates"), "{}", refused());
    std::fs::remove_file(&path).unwrap();
    assert!(refused().contains("cannot be read"), "{}", refused());
}
