//! A control plane that talks nonsense: what is good of it is used, the rest is rejected by name, and
//! nothing breaks but the stream.

use std::pin::Pin;

use envoy_types::pb::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        Resource as WireResource,
        aggregated_discovery_service_server::{
            AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
        },
    },
    google::protobuf::Any,
};
use futures_util::Stream;
use leno_api::{KINDS, wire};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::{Proxy, service};

type Answers = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

/// One open stream, as the test plays it.
struct Played {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

struct Player {
    streams: Mutex<mpsc::Sender<Played>>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Player {
    type StreamAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;
    type DeltaAggregatedResourcesStream = Answers;

    async fn stream_aggregated_resources(
        &self,
        _request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let (responses, receiver) = mpsc::channel(8);
        let played = Played { requests: request.into_inner(), responses };
        self.streams.lock().await.send(played).await.unwrap();
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

async fn play() -> (std::net::SocketAddr, mpsc::Receiver<Played>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, streams) = mpsc::channel(8);
    let service = AggregatedDiscoveryServiceServer::new(Player { streams: Mutex::new(sender) });
    let server = Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (address, streams)
}

fn url(kind: &str) -> String {
    wire::type_url(KINDS.iter().find(|info| info.kind == kind).unwrap())
}

fn resource(name: &str, body: impl ToString) -> WireResource {
    let any = Any { type_url: url("Service"), value: body.to_string().into_bytes() };
    let (name, version) = (name.to_owned(), "1".to_owned());
    WireResource { name, version, resource: Some(any), ..WireResource::default() }
}

fn response(nonce: &str, resources: Vec<WireResource>) -> DeltaDiscoveryResponse {
    let (type_url, nonce) = (url("Service"), nonce.to_owned());
    DeltaDiscoveryResponse { type_url, nonce, resources, ..DeltaDiscoveryResponse::default() }
}

fn good(name: &str) -> serde_json::Value {
    let mut service = service(name);
    service["metadata"]["namespace"] = "shop".into();
    service
}

impl Played {
    async fn send(&self, response: DeltaDiscoveryResponse) {
        self.responses.send(Ok(response)).await.unwrap();
    }

    /// The answer to the response with this nonce.
    async fn answer(&mut self, nonce: &str) -> DeltaDiscoveryRequest {
        loop {
            let request = self.requests.message().await.unwrap().expect("open");
            if request.response_nonce == nonce {
                return request;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_good_is_used_and_the_rest_rejected_by_name() {
    let (address, mut streams) = play().await;
    let mut proxy = Proxy::start(address, |_| {});
    let mut played = streams.recv().await.unwrap();
    let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
    let mut unnamed = resource("shop/a", good("a"));
    unnamed.name = "no name".to_owned();
    let resources = vec![
        resource("shop/a", good("a")),
        resource("shop/a", good("a")),
        resource("shop/b", "{"),
        resource("shop/c", good("d")),
        resource("shop/e", deep),
        resource("shop/f", r#"{"apiVersion": "leno.dev/v1alpha1", "kind": "Service", "spec": {}}"#),
        unnamed,
        WireResource { resource: None, ..resource("shop/g", "") },
    ];
    played.send(response("n1", resources)).await;
    let change = proxy.change().await;
    assert_eq!(super::names(&change), ["Service shop/a", "Service shop/a"]);
    let invalid: Vec<_> = change.invalid.iter().map(|(key, _)| key.to_string()).collect();
    let bad =
        ["Service shop/b", "Service shop/c", "Service shop/e", "Service shop/f", "Service shop/g"];
    assert_eq!(invalid, bad);
    proxy.verdict(&change, &[]).await;
    let error = played.answer("n1").await.error_detail.unwrap().message;
    assert_eq!(error.lines().count(), bad.len() + 1, "{error}");
    for name in bad {
        assert!(
            error.lines().any(|line| line.starts_with(&format!("{name}: "))),
            "{name}: {error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_messages_are_answered_or_ignored() {
    let (address, mut streams) = play().await;
    let mut proxy = Proxy::start(address, |_| {});
    let mut played = streams.recv().await.unwrap();
    let mut foreign = response("n1", vec![resource("shop/a", good("a"))]);
    foreign.type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned();
    played.send(foreign).await;
    proxy.accepted().await;
    let error = played.answer("n1").await.error_detail.unwrap().message;
    assert!(error.contains("knows no type"), "{error}");
    played.send(response("n2", vec![])).await;
    proxy.accepted().await;
    assert_eq!(played.answer("n2").await.error_detail, None);
    let mut removals = response("n3", vec![]);
    removals.removed_resources =
        ["shop/never", "host/shop/never", "host/other/x", "", "a/b/c"].map(str::to_owned).to_vec();
    played.send(removals).await;
    let change = proxy.accepted().await;
    assert_eq!(super::removed(&change), ["Service shop/never"]);
    assert!(change.absent_hosts.is_empty(), "nobody asked");
    assert_eq!(played.answer("n3").await.error_detail, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_beyond_the_limit_breaks_the_stream_alone() {
    let (address, mut streams) = play().await;
    let mut proxy = Proxy::start(address, |_| {});
    let played = streams.recv().await.unwrap();
    proxy.connected().await;
    played.send(response("n1", vec![resource("shop/a", "x".repeat(20_000_000))])).await;
    let reason = proxy.disconnected().await;
    assert!(reason.contains("broke"), "{reason}");
    let mut again = streams.recv().await.unwrap();
    again.send(response("n1", vec![resource("shop/a", good("a"))])).await;
    assert_eq!(super::names(&proxy.accepted().await), ["Service shop/a"]);
    assert_eq!(again.answer("n1").await.error_detail, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_round_is_none() {
    let (address, mut streams) = play().await;
    let mut proxy = Proxy::start(address, |_| {});
    let played = streams.recv().await.unwrap();
    let mut half = response("n1", vec![resource("shop/a", good("a"))]);
    half.system_version_info = wire::system_version(1, true);
    played.send(half.clone()).await;
    drop(played);
    proxy.disconnected().await;
    // Not applied, hence not held: nothing is claimed on the next stream.
    let mut played = streams.recv().await.unwrap();
    for _ in KINDS {
        let request = played.requests.message().await.unwrap().unwrap();
        assert!(request.initial_resource_versions.is_empty(), "{request:?}");
    }
    played.send(half).await;
    played.send(response("n2", vec![resource("shop/b", good("b"))])).await;
    let change = proxy.accepted().await;
    assert_eq!(super::names(&change), ["Service shop/a", "Service shop/b"]);
    // Each response of the round is answered.
    assert_eq!(played.answer("n1").await.error_detail, None);
    assert_eq!(played.answer("n2").await.error_detail, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waited_for_its_verdict_when_the_stream_broke_is_claimed_on_the_next() {
    let (address, mut streams) = play().await;
    let mut proxy = Proxy::start(address, |_| {});
    let played = streams.recv().await.unwrap();
    played.send(response("n1", vec![resource("shop/a", good("a"))])).await;
    let change = proxy.change().await;
    drop(played);
    proxy.disconnected().await;
    let early = tokio::time::timeout(std::time::Duration::from_millis(500), streams.recv()).await;
    assert!(early.is_err(), "it came back before it knew what it has");
    proxy.verdict(&change, &[]).await;
    let mut played = streams.recv().await.unwrap();
    let mut claims = Vec::new();
    for _ in KINDS {
        let request = played.requests.message().await.unwrap().unwrap();
        claims.extend(request.initial_resource_versions);
    }
    assert_eq!(claims, [("shop/a".to_owned(), "1".to_owned())]);
}
