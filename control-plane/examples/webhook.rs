//! How long the injection webhook takes: a control plane and callers in one process, over TLS as the API server calls.
//!
//! ```text
//! cargo run --release -p leno-control-plane --example webhook -- --requests 20000 --callers 4
//! ```
//!
//! Each caller keeps a connection and asks for one pod after the other. Prints one JSON line: milliseconds from a
//! request's first byte to its answer's last.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use leno_control_plane::Settings;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream},
    net::TcpStream,
    task::JoinSet,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Parser)]
struct Args {
    /// Pods altogether
    #[arg(long, default_value_t = 20_000)]
    requests: usize,
    /// Connections at a time
    #[arg(long, default_value_t = 4)]
    callers: usize,
    /// Containers in each pod
    #[arg(long, default_value_t = 3)]
    containers: usize,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(args))
}

async fn run(args: Args) -> Result<(), Failure> {
    let directory = PathBuf::from(format!("/tmp/leno-webhook-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let mut settings = Settings::ephemeral(directory.clone());
    settings.webhook = Some(([127, 0, 0, 1], 0).into());
    let running = leno_control_plane::start(settings).await?;
    let address = running.addresses.webhook.ok_or("the webhook is off")?;
    let config = client(&std::fs::read(&running.roots)?)?;
    let body: Arc<str> = review(args.containers).into();
    let mut callers = JoinSet::new();
    let began = Instant::now();
    for _ in 0..args.callers {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::IpAddress(address.ip().into());
        let stream = TlsConnector::from(config.clone()).connect(name, stream).await?;
        callers.spawn(call(stream, body.clone(), args.requests / args.callers));
    }
    let mut times = Vec::new();
    while let Some(called) = callers.join_next().await {
        times.extend(called??);
    }
    let seconds = began.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |share: f64| {
        let index = (times.len() as f64 * share) as usize;
        times.get(index.min(times.len().saturating_sub(1))).map_or(0.0, |t| t.as_secs_f64() * 1e3)
    };
    let line = json!({
        "requests": times.len(), "perSecond": (times.len() as f64 / seconds).round(),
        "bodyBytes": body.len(), "p50Ms": at(0.5), "p99Ms": at(0.99), "maxMs": at(1.0),
    });
    println!("{line}");
    running.stop().await;
    std::fs::remove_dir_all(directory)?;
    Ok(())
}

async fn call(
    stream: TlsStream<TcpStream>,
    body: Arc<str>,
    requests: usize,
) -> Result<Vec<Duration>, Failure> {
    let mut stream = BufStream::new(stream);
    let mut times = Vec::with_capacity(requests);
    for _ in 0..requests {
        let began = Instant::now();
        let head = format!(
            "POST /inject HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        stream.flush().await?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            if line == "\r\n" {
                break;
            }
            if let Some(found) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = found.trim().parse()?;
            }
        }
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).await?;
        times.push(began.elapsed());
        if !answer.windows(9).any(|window| window == b"JSONPatch") {
            return Err(format!("no patch: {}", String::from_utf8_lossy(&answer)).into());
        }
    }
    Ok(times)
}

fn client(pem: &[u8]) -> Result<Arc<ClientConfig>, Failure> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(pem) {
        roots.add(root?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn review(containers: usize) -> String {
    let container = |at: usize| {
        json!({
            "name": format!("app-{at}"), "image": "registry.example/app:1",
            "ports": [{"name": "http", "containerPort": 8080 + at}],
            "env": (0..20).map(|at| json!({"name": format!("NAME_{at}"), "value": "a value"})).collect::<Vec<_>>(),
            "livenessProbe": {"httpGet": {"path": "/live", "port": "http"}},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}},
        })
    };
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "app-", "labels": {"app": "app"}},
        "spec": {"containers": (0..containers).map(container).collect::<Vec<_>>()},
    });
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "0df28fbd-5f5f-11e8-bc74-36e6bb280816", "operation": "CREATE", "namespace": "shop",
            "kind": {"group": "", "version": "v1", "kind": "Pod"}, "object": pod,
        },
    })
    .to_string()
}
