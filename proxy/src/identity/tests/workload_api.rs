//! A SPIFFE Workload API on a Unix socket. Its messages are written out here: the `spiffe` crate keeps its own to itself.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::{Ready, ready},
    path::Path,
    sync::Mutex,
    task::{Context, Poll},
};

use tempfile::TempDir;
use tokio::{net::UnixListener, sync::broadcast};
use tokio_stream::{Stream, StreamExt, wrappers::BroadcastStream};
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::Service,
    server::{Grpc, NamedService, ServerStreamingService},
};
use tonic_prost::ProstCodec;

use super::{
    server::{Served, Shown, serve},
    *,
};

#[derive(Clone, PartialEq, prost::Message)]
struct SvidRequest {}

/// `X509SVIDResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct SvidResponse {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<Svid>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    crl: Vec<Vec<u8>>,
    #[prost(map = "string, bytes", tag = "3")]
    federated_bundles: HashMap<String, Vec<u8>>,
}

/// `X509SVID`.
#[derive(Clone, PartialEq, prost::Message)]
struct Svid {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    x509_svid: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    x509_svid_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
    #[prost(string, tag = "5")]
    hint: String,
}

#[derive(Clone)]
enum Update {
    Send(SvidResponse),
    End,
}

struct Agent {
    directory: TempDir,
    shared: Arc<Shared>,
}

struct Shared {
    current: Mutex<Result<SvidResponse, Status>>,
    updates: broadcast::Sender<Update>,
    streams: Mutex<u32>,
}

fn response(root: &Authority, uri: &str) -> SvidResponse {
    let material = root.material_of(&wanted(uri, 3600));
    let svid = Svid {
        spiffe_id: uri.to_owned(),
        x509_svid: material.chain[0].to_vec(),
        x509_svid_key: material.key.secret_der().to_vec(),
        bundle: root.certificate.to_vec(),
        hint: String::new(),
    };
    SvidResponse { svids: vec![svid], ..SvidResponse::default() }
}

impl Agent {
    fn start(current: Result<SvidResponse, Status>) -> Self {
        let directory = TempDir::new().unwrap();
        let listener = UnixListener::bind(directory.path().join("agent.sock")).unwrap();
        let shared = Arc::new(Shared {
            current: Mutex::new(current),
            updates: broadcast::channel(8).0,
            streams: Mutex::new(0),
        });
        let connections = serve(Api(shared.clone()));
        tokio::spawn(async move {
            loop {
                let (io, _) = listener.accept().await.unwrap();
                connections.send(Served { io, shown: Shown(None) }).await.ok();
            }
        });
        Self { directory, shared }
    }

    fn proxy(&self) -> Arc<Identity> {
        proxy(&self.directory.path().join("agent.sock"))
    }

    fn set(&self, current: Result<SvidResponse, Status>) {
        *self.shared.current.lock().unwrap() = current;
    }

    fn streams(&self) -> u32 {
        *self.shared.streams.lock().unwrap()
    }
}

fn proxy(socket: &Path) -> Arc<Identity> {
    let source = Source::WorkloadApi { socket: socket.to_owned() };
    let (identity, task) = start(source, &families()).unwrap();
    tokio::spawn(task);
    identity
}

#[derive(Clone)]
struct Api(Arc<Shared>);

impl NamedService for Api {
    const NAME: &'static str = "SpiffeWorkloadAPI";
}

impl Service<http::Request<Body>> for Api {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        assert_eq!(request.uri().path(), "/SpiffeWorkloadAPI/FetchX509SVID");
        assert_eq!(request.headers()["workload.spiffe.io"], "true");
        let method = Fetch(self.0.clone());
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::<SvidResponse, SvidRequest>::default());
            Ok(grpc.server_streaming(method, request).await)
        })
    }
}

struct Fetch(Arc<Shared>);

impl ServerStreamingService<SvidRequest> for Fetch {
    type Response = SvidResponse;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<SvidResponse, Status>> + Send>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: Request<SvidRequest>) -> Self::Future {
        *self.0.streams.lock().unwrap() += 1;
        let updates = BroadcastStream::new(self.0.updates.subscribe());
        let first = match self.0.current.lock().unwrap().clone() {
            Ok(first) => first,
            Err(status) => return ready(Err(status)),
        };
        let updates = updates.map_while(|update| match update {
            Ok(Update::Send(response)) => Some(Ok(response)),
            Ok(Update::End) | Err(_) => None,
        });
        let stream: Self::ResponseStream = Box::pin(tokio_stream::once(Ok(first)).chain(updates));
        ready(Ok(Response::new(stream)))
    }
}

fn account(identity: &Identity) -> Option<String> {
    identity.current().map(|credentials| credentials.id().service_account.to_string())
}

async fn becomes(identity: &Identity, wanted: &str) {
    until(wanted, || account(identity).as_deref() == Some(wanted)).await;
}

async fn fails(identity: &Identity, message: &str) {
    until(message, || identity.status().last_error.is_some_and(|e| e.contains(message))).await;
}

#[tokio::test]
async fn what_the_agent_sends_is_used() {
    let root = Authority::new("root");
    let agent = Agent::start(Ok(response(&root, &spiffe("orders"))));
    let identity = agent.proxy();
    becomes(&identity, "orders").await;
    assert_eq!(identity.trust_domain().unwrap().as_str(), "cluster.local");
    assert!(identity.current().unwrap().check_path().is_ok());
    let update = response(&root, &spiffe("users"));
    agent.shared.updates.send(Update::Send(update)).ok();
    becomes(&identity, "users").await;
    assert_eq!(agent.streams(), 1);
    // A stream that ends is opened again, and begins with what is current.
    agent.set(Ok(response(&root, &spiffe("payments"))));
    agent.shared.updates.send(Update::End).ok();
    becomes(&identity, "payments").await;
    assert_eq!(agent.streams(), 2);
    agent.set(Ok(response(&root, &spiffe("orders"))));
    identity.renew();
    becomes(&identity, "orders").await;
    assert_eq!(identity.status().last_error, None);
}

#[tokio::test]
async fn what_cannot_be_used_changes_nothing() {
    let root = Authority::new("root");
    let agent = Agent::start(Ok(response(&root, &spiffe("orders"))));
    let identity = agent.proxy();
    becomes(&identity, "orders").await;
    let serial = identity.current().unwrap().serial().to_owned();
    // An identity of a form that this mesh does not use.
    let foreign = response(&root, "spiffe://cluster.local/orders");
    agent.shared.updates.send(Update::Send(foreign)).ok();
    fails(&identity, "is not an identity").await;
    // Bytes: the library ends the stream for it, and so do we.
    let mut garbage = response(&root, &spiffe("users"));
    garbage.svids[0].x509_svid = b"garbage".to_vec();
    let before = identity.status().last_error;
    agent.shared.updates.send(Update::Send(garbage)).ok();
    until("another error", || identity.status().last_error != before).await;
    agent.set(Err(Status::permission_denied("no identity issued")));
    identity.renew();
    fails(&identity, "no identity issued").await;
    assert_eq!(identity.current().unwrap().serial(), serial);
}

#[tokio::test]
async fn an_agent_that_comes_later_is_found() {
    let directory = TempDir::new().unwrap();
    let identity = proxy(&directory.path().join("agent.sock"));
    fails(&identity, "agent.sock").await;
    assert!(identity.is_expected() && identity.current().is_none());
}
