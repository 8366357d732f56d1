//! What the xDS server says to proxies that are odd, over real sockets.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must fail")]

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::protobuf::{Struct, Value, value::Kind},
};
use leno_api::{KINDS, wire};
use leno_control_plane::{Running, Settings};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

const PATIENCE: Duration = Duration::from_secs(60);

async fn start() -> (Running, TempDir) {
    let directory = TempDir::new().unwrap();
    let settings = Settings::ephemeral(directory.path().into());
    (leno_control_plane::start(settings).await.unwrap(), directory)
}

struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Stream {
    async fn open(address: SocketAddr) -> Self {
        Self::on(Self::connect(address).await).await
    }

    async fn connect(address: SocketAddr) -> AggregatedDiscoveryServiceClient<Channel> {
        AggregatedDiscoveryServiceClient::connect(format!("http://{address}")).await.unwrap()
    }

    async fn on(mut client: AggregatedDiscoveryServiceClient<Channel>) -> Self {
        let (requests, queue) = mpsc::channel(16);
        let responses = client.delta_aggregated_resources(ReceiverStream::new(queue)).await;
        Self { requests, responses: responses.unwrap().into_inner() }
    }

    async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    async fn next(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        timeout(PATIENCE, self.responses.message()).await.expect("in time")
    }

    /// The status with which the stream ends.
    async fn refused(mut self) -> Status {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended without a reason"),
                Err(status) => return status,
            }
        }
    }
}

fn node(fields: &[(&str, Kind)]) -> Option<Node> {
    let value = |kind: &Kind| Value { kind: Some(kind.clone()) };
    let fields = fields.iter().map(|(name, kind)| ((*name).to_owned(), value(kind))).collect();
    Some(Node { id: "p1".to_owned(), metadata: Some(Struct { fields }), ..Node::default() })
}

fn subscribe(kind: &str, names: &[&str]) -> DeltaDiscoveryRequest {
    let kind = KINDS.iter().find(|info| info.kind == kind).unwrap();
    DeltaDiscoveryRequest {
        node: node(&[]),
        type_url: wire::type_url(kind),
        resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_the_world_protocol_is_declined_with_a_hint() {
    let (running, _directory) = start().await;
    let mut client = Stream::connect(running.addresses.xds).await;
    let request = tokio_stream::once(DiscoveryRequest::default());
    let status = client.stream_aggregated_resources(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("DELTA_GRPC"), "{status}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_does_not_introduce_itself_is_told_what_is_missing() {
    let (running, _directory) = start().await;
    let text = |text: &str| Kind::StringValue(text.to_owned());
    let many: Vec<String> = (0..10_001).map(|number| format!("shop/s{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let nobody = DeltaDiscoveryRequest { node: None, ..subscribe("Service", &["*"]) };
    let odd = DeltaDiscoveryRequest {
        node: node(&[("workload", text("{}"))]),
        ..subscribe("Service", &["*"])
    };
    let rows = [
        (nobody, Code::InvalidArgument, "`node` is missing"),
        (odd, Code::InvalidArgument, "not a valid Workload"),
        (subscribe("Service", &many), Code::ResourceExhausted, "more than 10000 names"),
    ];
    for (request, code, message) in rows {
        let stream = Stream::open(running.addresses.xds).await;
        stream.send(request).await;
        let status = stream.refused().await;
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(message), "{status}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_beyond_the_limit_ends_that_stream_alone() {
    let (running, _directory) = start().await;
    let client = Stream::connect(running.addresses.xds).await;
    let mut good = Stream::on(client.clone()).await;
    good.send(subscribe("Service", &["shop/none"])).await;
    assert_eq!(good.next().await.unwrap().unwrap().removed_resources, ["shop/none"]);
    let mut bad = Stream::on(client).await;
    let mut request = subscribe("Service", &[]);
    request.resource_names_subscribe = vec!["x".repeat(5 * 1024 * 1024)];
    bad.send(request).await;
    // The server may not even say why: what counts is that it ends.
    while let Ok(Some(_)) = bad.next().await {}
    good.send(subscribe("Service", &["shop/other"])).await;
    assert_eq!(good.next().await.unwrap().unwrap().removed_resources, ["shop/other"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_no_reason_to_stop() {
    let (running, _directory) = start().await;
    let mut stream = Stream::open(running.addresses.xds).await;
    stream.send(subscribe("Workload", &["*", "*", "", "a/b/c", "shop/x", "shop/x"])).await;
    let mut unknown = subscribe("Service", &["*"]);
    unknown.type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned();
    stream.send(unknown).await;
    let mut stale = subscribe("Service", &["*"]);
    stale.response_nonce = "12345".to_owned();
    stale.initial_resource_versions = HashMap::from([("?".to_owned(), "1".to_owned())]);
    stale.resource_names_unsubscribe = vec!["shop/never".to_owned(), "?".to_owned()];
    stream.send(stale).await;
    stream.send(subscribe("Service", &["host/shop/UPPER", "junk", "shop/none", "shop/none"])).await;
    let response = stream.next().await.unwrap().unwrap();
    assert_eq!(response.removed_resources, ["host/shop/UPPER", "junk", "shop/none"]);
    let text = metrics(running.addresses.metrics).await;
    for wanted in [
        "leno_xds_connected_proxies 1",
        "leno_xds_protocol_errors_total{what=\"bad_name\"} 2",
        "leno_xds_protocol_errors_total{what=\"unknown_nonce\"} 1",
        "leno_xds_protocol_errors_total{what=\"unknown_type\"} 1",
        "leno_xds_responses_total{kind=\"Service\"} 1",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_not_http2_harms_nobody() {
    let (running, _directory) = start().await;
    let mut odd = TcpStream::connect(running.addresses.xds).await.unwrap();
    odd.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, odd.read_to_end(&mut answer)).await.unwrap().ok();
    let mut stream = Stream::open(running.addresses.xds).await;
    stream.send(subscribe("Service", &["shop/none"])).await;
    assert!(stream.next().await.unwrap().is_some());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_end_streams_are_told_and_nothing_waits_for_them() {
    // Whoever waits for streams gives up after three seconds, each time; a machine that stands still does not.
    let mut took = Vec::new();
    for _ in 0..10 {
        let (running, _directory) = start().await;
        let stream = Stream::open(running.addresses.xds).await;
        stream.send(subscribe("Service", &["*"])).await;
        let asked = tokio::time::Instant::now();
        let (status, ()) = tokio::join!(stream.refused(), running.stop());
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        took.push(asked.elapsed());
        if took.last() < Some(&Duration::from_secs(2)) {
            return;
        }
    }
    panic!("{took:?}");
}

async fn metrics(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = b"GET /stats/prometheus HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    text
}
