//! How long a change takes from the API to every proxy: a control plane, a fleet of simulated proxies, and a
//! writer, all in one process.
//!
//! ```text
//! cargo run --release -p leno-control-plane --example fleet -- --proxies 100 --routes 1000
//! ```
//!
//! Every proxy has every route in scope and accepts whatever comes, at once. Routes are changed one by one
//! (`--changes`), and then as fast as the API takes them (`--flood`). Prints one JSON line.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{
        DeltaDiscoveryRequest,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use leno_api::{KINDS, wire};
use leno_control_plane::Settings;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/fleet/httproutes";
const SERVICES: &str = "/apis/leno.dev/v1alpha1/namespaces/fleet/services";
/// How long anything may take before the measurement is given up.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Parser)]
struct Arguments {
    #[arg(long, default_value_t = 100)]
    proxies: usize,
    #[arg(long, default_value_t = 1000)]
    routes: usize,
    /// Measured one by one
    #[arg(long, default_value_t = 200)]
    changes: usize,
    /// Written as fast as possible; measured is when all proxies have the last one
    #[arg(long, default_value_t = 1000)]
    flood: usize,
    /// Keep the resources here instead of in memory
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

/// A resource of the kind watched, as one proxy received it.
struct Arrival {
    name: String,
    stamp: Option<u64>,
    at: Instant,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    let temporary = tempfile::tempdir()?;
    let directory = arguments.data_dir.clone().unwrap_or_else(|| temporary.path().to_owned());
    let mut settings = Settings::ephemeral(directory);
    settings.memory = arguments.data_dir.is_none();
    let running = leno_control_plane::start(settings).await?;
    let mut api = Api::connect(running.addresses.api).await?;
    for number in 0..arguments.routes {
        api.create(SERVICES, &service(number)).await?;
        api.create(ROUTES, &route(number, 0)).await?;
    }
    let before = resident_kib();
    let received = Arc::new(AtomicU64::new(0));
    let (arrivals, mut arrived) = mpsc::channel(100_000);
    for number in 0..arguments.proxies {
        let arrivals = arrivals.clone();
        let proxy =
            proxy(running.addresses.xds, number, arguments.routes, arrivals, received.clone());
        tokio::spawn(async move {
            if let Err(error) = proxy.await {
                eprintln!("proxy {number}: {error}");
            }
        });
    }
    let started = Instant::now();
    drain(&mut arrived, arguments.proxies * arguments.routes).await?;
    let initial = started.elapsed();
    let resident = resident_kib().saturating_sub(before);
    tokio::time::sleep(Duration::from_secs(3)).await;

    let mut latencies = Vec::new();
    let mut firsts = Vec::new();
    for change in 1..=arguments.changes {
        let number = change % arguments.routes;
        let stamp = u64::try_from(change)?;
        let sent = Instant::now();
        api.replace(&format!("{ROUTES}/r{number}"), route(number, stamp)).await?;
        let mut missing = arguments.proxies;
        while missing > 0 {
            let arrival = next(&mut arrived).await?;
            if arrival.stamp == Some(stamp) && arrival.name == format!("fleet/r{number}") {
                if missing == arguments.proxies {
                    firsts.push(arrival.at - sent);
                }
                latencies.push(arrival.at - sent);
                missing -= 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let before_flood = received.load(Ordering::Relaxed);
    let (flood, settled) = flood(&mut api, &arguments, &mut arrived).await?;
    let result = json!({
        "proxies": arguments.proxies,
        "routes": arguments.routes,
        "initial_ms": milliseconds(initial),
        "resident_kib_per_proxy_both_ends": resident / u64::try_from(arguments.proxies.max(1))?,
        "change": {"first_proxy": summary(firsts), "every_proxy": summary(latencies)},
        "flood": {
            "changes": arguments.flood,
            "written_ms": milliseconds(flood),
            "last_change_everywhere_after_ms": milliseconds(settled),
            "resources_per_proxy": (received.load(Ordering::Relaxed) - before_flood)
                / u64::try_from(arguments.proxies.max(1))?,
        },
    });
    println!("{result}");
    running.stop().await;
    Ok(())
}

/// Changes one route again and again; answers how long the writing took, and how long after it the last
/// change was everywhere.
async fn flood(
    api: &mut Api,
    arguments: &Arguments,
    arrived: &mut mpsc::Receiver<Arrival>,
) -> Result<(Duration, Duration), Failure> {
    let started = Instant::now();
    let last = u64::try_from(arguments.changes + arguments.flood)?;
    let first = u64::try_from(arguments.changes)? + 1;
    for stamp in first..=last {
        api.replace(&format!("{ROUTES}/r0"), route(0, stamp)).await?;
    }
    let written = started.elapsed();
    let mut missing = arguments.proxies;
    let mut end = Instant::now();
    while arguments.flood > 0 && missing > 0 {
        let arrival = next(arrived).await?;
        if arrival.stamp == Some(last) {
            missing -= 1;
            end = end.max(arrival.at);
        }
    }
    Ok((written, end.saturating_duration_since(started + written)))
}

/// One simulated proxy: subscribes to every service, accepts everything, says what came when.
async fn proxy(
    address: SocketAddr,
    number: usize,
    services: usize,
    arrivals: mpsc::Sender<Arrival>,
    received: Arc<AtomicU64>,
) -> Result<(), Failure> {
    let mut client = AggregatedDiscoveryServiceClient::connect(format!("http://{address}")).await?;
    let (requests, queue) = mpsc::channel(64);
    let mut node = Some(Node { id: format!("fleet/p{number}"), ..Node::default() });
    let (service_kind, others): (Vec<_>, Vec<_>) =
        KINDS.iter().partition(|kind| kind.kind == "Service");
    for kind in others.into_iter().chain(service_kind) {
        let names = if kind.kind == "Service" {
            (0..services).map(|number| format!("fleet/s{number}")).collect()
        } else {
            vec![wire::WILDCARD.to_owned()]
        };
        let request = DeltaDiscoveryRequest {
            node: node.take(),
            type_url: wire::type_url(kind),
            resource_names_subscribe: names,
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(request).await?;
    }
    let responses = client.delta_aggregated_resources(ReceiverStream::new(queue)).await?;
    let mut responses = responses.into_inner();
    loop {
        let response = match responses.message().await {
            Ok(Some(response)) => response,
            Ok(None) => return Ok(()),
            // The end of the measurement.
            Err(status) if status.code() == tonic::Code::Unavailable => return Ok(()),
            Err(status) => return Err(status.into()),
        };
        let at = Instant::now();
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(ack).await?;
        if !response.type_url.ends_with("/HTTPRoute") {
            continue;
        }
        for resource in response.resources {
            received.fetch_add(1, Ordering::Relaxed);
            let body = resource.resource.map(|any| any.value).unwrap_or_default();
            let arrival = Arrival { name: resource.name, stamp: stamp(&body), at };
            arrivals.send(arrival).await?;
        }
    }
}

fn stamp(body: &[u8]) -> Option<u64> {
    let object: Value = serde_json::from_slice(body).ok()?;
    object.pointer("/metadata/annotations/stamp")?.as_str()?.parse().ok()
}

fn service(number: usize) -> Value {
    json!({
        "apiVersion": "leno.dev/v1alpha1", "kind": "Service",
        "metadata": {"name": format!("s{number}")}, "spec": {"ports": [{"port": 80}]},
    })
}

fn route(number: usize, stamp: u64) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": format!("r{number}"), "annotations": {"stamp": stamp.to_string()}},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": format!("s{number}")}],
            "rules": [{
                "matches": [{"path": {"type": "PathPrefix", "value": "/a"}}],
                "backendRefs": [{"name": format!("s{number}"), "port": 80}],
            }],
        },
    })
}

async fn next(arrived: &mut mpsc::Receiver<Arrival>) -> Result<Arrival, Failure> {
    timeout(PATIENCE, arrived.recv()).await?.ok_or_else(|| "all proxies are gone".into())
}

async fn drain(arrived: &mut mpsc::Receiver<Arrival>, count: usize) -> Result<(), Failure> {
    for _ in 0..count {
        next(arrived).await?;
    }
    Ok(())
}

fn summary(mut times: Vec<Duration>) -> Value {
    times.sort_unstable();
    let at = |share: f64| {
        let place = (times.len() as f64 * share) as usize;
        times.get(place.min(times.len().saturating_sub(1))).map(|time| milliseconds(*time))
    };
    json!({"p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0)})
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 1e2
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// One connection to the API, kept open.
struct Api {
    stream: BufStream<TcpStream>,
    headers: &'static str,
}

impl Api {
    async fn connect(address: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let headers = "host: localhost\r\ncontent-type: application/json\r\n";
        Ok(Self { stream: BufStream::new(stream), headers })
    }

    async fn create(&mut self, path: &str, object: &Value) -> Result<(), Failure> {
        self.call("POST", path, object).await
    }

    async fn replace(&mut self, path: &str, object: Value) -> Result<(), Failure> {
        self.call("PUT", path, &object).await
    }

    async fn call(&mut self, method: &str, path: &str, object: &Value) -> Result<(), Failure> {
        let body = object.to_string();
        let mut head = format!("{method} {path} HTTP/1.1\r\ncontent-length: {}\r\n", body.len());
        head += self.headers;
        self.stream.write_all(format!("{head}\r\n{body}").as_bytes()).await?;
        self.stream.flush().await?;
        let mut line = String::new();
        self.stream.read_line(&mut line).await?;
        let status = line.clone();
        let mut length = 0;
        while line.trim() != "" {
            line.clear();
            self.stream.read_line(&mut line).await?;
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).await?;
        if status.contains(" 200 ") || status.contains(" 201 ") {
            return Ok(());
        }
        Err(format!("{method} {path}: {status} {}", String::from_utf8_lossy(&answer)).into())
    }
}
