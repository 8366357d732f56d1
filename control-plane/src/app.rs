//! Puts the control plane together, starts it, and stops it.

mod error;

use std::{
    io::{ErrorKind, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use axum::{Router, http::header, response::IntoResponse, routing::get};
use leno_daemon::{
    exposition::{self, Process},
    files, logs,
    shutdown::Requests,
};
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinSet, spawn_blocking},
    time::timeout,
};

pub use self::error::Error;
use crate::{
    access::{Access, TokenFile},
    ca::{self, Authority},
    findings::Findings,
    http_api::{self, Api, Planes},
    inject::names,
    kubernetes::{self, Kubernetes},
    purge::Purges,
    push::Push,
    registry::Registry,
    settings::Settings,
    store::{EmbeddedStore, MemoryStore, Store},
    telemetry::Metrics,
    transport::Incoming,
    webhook::{self, Webhook},
    xds::server::{self, Discovery},
};

/// How long requests under way get to finish at the end. Watches do not finish by themselves.
const GRACE: Duration = Duration::from_secs(3);

/// Where a running control plane listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub api: SocketAddr,
    pub xds: SocketAddr,
    pub metrics: SocketAddr,
    /// Only where the webhook is on.
    pub webhook: Option<SocketAddr>,
}

/// A control plane at work in this process.
#[derive(Debug)]
pub struct Running {
    pub addresses: Addresses,
    /// The trusted roots, as PEM: what proxies and kubectl on this machine need to know.
    pub roots: PathBuf,
    stop: watch::Sender<bool>,
    tasks: JoinSet<Result<(), Error>>,
}

/// Runs the control plane as a process: logs to standard error, prints the addresses as one JSON line once
/// all of them can be reached, ends at SIGTERM or SIGINT (at the second one at once).
///
/// # Errors
/// [`Error`] says why it cannot start or go on.
pub async fn run(settings: Settings) -> Result<(), Error> {
    logs::check(&settings.log)?;
    match logs::init(&filter(&settings.log), settings.log_format.into()) {
        // Two roles in one process share one log.
        Ok(_) | Err(logs::Error::Twice) => {}
        Err(error) => return Err(error.into()),
    }
    files::raise_limit();
    let mut signals = Requests::listen().map_err(Error::Signals)?;
    let mut running = tokio::select! {
        running = start(settings) => running?,
        signal = signals.next() => {
            tracing::info!(signal, "stopping before everything was read");
            return Ok(());
        }
    };
    announce(&running).map_err(Error::Output)?;
    let asked = tokio::select! {
        signal = signals.next() => signal,
        ended = running.ended() => return Err(ended),
    };
    tracing::info!(signal = asked, "stopping");
    tokio::select! {
        () = running.stop() => {}
        signal = signals.next() => tracing::warn!(signal, "asked again: stopping at once"),
    }
    Ok(())
}

/// Starts the control plane in this process.
///
/// # Errors
/// [`Error`] says why it cannot start.
pub async fn start(settings: Settings) -> Result<Running, Error> {
    let api_listener = bind(settings.api, "the API", "--api").await?;
    let xds_listener = bind(settings.xds, "proxies", "--xds").await?;
    let metrics_listener = bind(settings.metrics, "metrics", "--metrics").await?;
    let webhook_listener = bind_webhook(&settings).await?;
    let addresses = Addresses {
        api: local(&api_listener, settings.api),
        xds: local(&xds_listener, settings.xds),
        metrics: local(&metrics_listener, settings.metrics),
        webhook: webhook_listener.as_ref().and_then(|listener| listener.local_addr().ok()),
    };
    let store = open_store(&settings).await?;
    let metrics = Arc::new(Metrics::new()?);
    let mut kubernetes = match kubernetes_settings(&settings) {
        Some(settings) => {
            Some(Kubernetes::start(settings, store.clone(), &metrics.registry).await?)
        }
        None => None,
    };
    if let Some(kubernetes) = &kubernetes {
        // Whoever connected before would be told that what is not read yet is not there.
        kubernetes.synced().await?;
    }
    let process = Process::register(&metrics.registry)?;
    let registry = Registry::new(store.clone());
    let findings = Findings::new(store.clone());
    let (push, push_task) = Push::new(store.clone(), findings.clone(), metrics.clone());
    let tokens = Arc::new(TokenFile::open(&settings.data_dir)?);
    let authority = Authority::open(authority(&settings), store.clone(), tokens.clone()).await?;
    let incoming = |listener, port| {
        Incoming::new(listener, port, authority.clone(), metrics.clone()).map_err(Error::Address)
    };
    if let Some(kubernetes) = &mut kubernetes {
        authority.review_by(kubernetes.reviewer());
        kubernetes.publish_roots();
    }
    let xds_incoming = incoming(xds_listener, server::PORT)?;
    let api_incoming = incoming(api_listener, http_api::PORT)?;
    let access = |address| Access::new(tokens.clone(), address, settings.require_token);
    let purges = Purges::new();
    let (stop, stopped) = watch::channel(false);
    let discovery = Discovery {
        push: push.clone(),
        purges: purges.clone(),
        registry: registry.clone(),
        access: access(addresses.xds),
        authority: authority.clone(),
        metrics: metrics.clone(),
        stop: stopped.clone(),
    };
    let hosts = settings.api_hosts.clone();
    let api_access = access(addresses.api);
    let planes = Planes { authority: authority.clone(), push, purges, findings: findings.clone() };
    let source = settings.kubernetes.then_some(http_api::KUBERNETES);
    let api = Api::reading(store, registry.clone(), api_access, hosts, planes, source);
    authority.register(&metrics.registry)?;
    let webhook = webhook_listener.map(|listener| {
        let options = webhook_options(&settings);
        Webhook::open(listener, options, authority.clone(), findings.clone(), &metrics.registry)
    });
    let webhook = webhook.transpose()?;
    if let (Some(kubernetes), Some(webhook)) = (&mut kubernetes, &webhook) {
        kubernetes.publish_webhook(webhook.bundle());
    }
    let exposition = exposition(metrics, process, Arc::downgrade(&registry));

    let mut tasks = JoinSet::new();
    tasks.spawn(endless(push_task.run()));
    tasks.spawn(endless(registry.run()));
    tasks.spawn(endless(authority.run()));
    if let Some(kubernetes) = kubernetes {
        tasks.spawn(endless(kubernetes.run()));
    }
    tasks.spawn(named("the xDS server", server::serve(xds_incoming, discovery)));
    tasks.spawn(endless(http_api::serve(api_incoming, api, stopped.clone())));
    if let Some(webhook) = webhook {
        tasks.spawn(endless(webhook.run(stopped.clone())));
    }
    tasks.spawn(named("the metrics server", http(metrics_listener, exposition, stopped)));
    Ok(Running { addresses, roots: settings.data_dir.join(ca::ROOT_FILE), stop, tasks })
}

/// What the authority is to be, by our own settings.
fn authority(settings: &Settings) -> ca::Settings {
    let files = (&settings.ca_root, &settings.ca_certificate, &settings.ca_key);
    let user = match files {
        (Some(root), Some(certificate), Some(key)) => {
            let (root, certificate, key) = (root.clone(), certificate.clone(), key.clone());
            Some(ca::UserFiles { root, certificate, key })
        }
        _ => None,
    };
    let issuer = (&settings.join_jwks, &settings.join_issuer, &settings.join_audience);
    let jwt = match issuer {
        (Some(jwks), Some(issuer), Some(audience)) => {
            let (jwks, issuer, audience) = (jwks.clone(), issuer.clone(), audience.clone());
            Some(ca::JwtSettings { jwks, issuer, audience })
        }
        _ => None,
    };
    ca::Settings {
        data_dir: settings.data_dir.clone(),
        trust_domain: settings.trust_domain.clone(),
        ttl: settings.certificate_ttl,
        user,
        jwt,
        hosts: settings.api_hosts.clone(),
        bind: vec![settings.api.ip(), settings.xds.ip()],
    }
}

/// Where Kubernetes is, if it is the source of everything.
fn kubernetes_settings(settings: &Settings) -> Option<kubernetes::Settings> {
    settings.kubernetes.then(|| kubernetes::Settings {
        config: settings.kubernetes_config.clone(),
        namespaces: settings.kubernetes_namespaces.clone(),
        namespace: settings.kubernetes_namespace.clone(),
        identity: format!("leno-control-plane-{:016x}", rand::random::<u64>()),
    })
}

impl Running {
    /// Waits until a part of it ends, which none does by itself while things are well.
    pub async fn ended(&mut self) -> Error {
        let nothing = || Error::Ended { task: "the control plane", reason: "nothing runs".into() };
        match self.tasks.join_next().await {
            Some(Ok(Err(error))) => error,
            Some(Err(error)) => {
                Error::Ended { task: "a part of the control plane", reason: error.to_string() }
            }
            Some(Ok(Ok(()))) | None => nothing(),
        }
    }

    /// Ends every stream and request, within a few seconds.
    pub async fn stop(mut self) {
        // Fails only when nobody listens any more.
        self.stop.send(true).ok();
        // The servers first; the others only end with the store, which nobody then needs.
        let servers = async {
            for _ in 0..SERVERS + usize::from(self.addresses.webhook.is_some()) {
                self.tasks.join_next().await;
            }
        };
        if timeout(GRACE, servers).await.is_err() {
            tracing::info!("connections that were still open are closed");
        }
        self.tasks.shutdown().await;
    }
}

/// Of the tasks, those that end when asked, beside the webhook where it is on.
const SERVERS: usize = 3;

/// For what ends only with the store, which outlives it.
async fn endless(work: impl Future<Output = ()>) -> Result<(), Error> {
    work.await;
    Ok(())
}

async fn named<E: std::fmt::Display>(
    task: &'static str,
    work: impl Future<Output = Result<(), E>>,
) -> Result<(), Error> {
    match work.await {
        Ok(()) => Ok(()),
        Err(error) => Err(Error::Ended { task, reason: error.to_string() }),
    }
}

async fn bind(
    address: SocketAddr,
    purpose: &'static str,
    flag: &'static str,
) -> Result<TcpListener, Error> {
    let failed = |reason| Error::Bind { address, purpose, flag, reason };
    match TcpListener::bind(address).await {
        // Where a machine has no IPv6, any address of its is any IPv4 address.
        Err(error)
            if address.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != ErrorKind::AddrInUse =>
        {
            let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
            TcpListener::bind(any).await.map_err(failed)
        }
        bound => bound.map_err(failed),
    }
}

async fn bind_webhook(settings: &Settings) -> Result<Option<TcpListener>, Error> {
    match settings.webhook {
        Some(address) => bind(address, "the webhook", "--webhook").await.map(Some),
        None => Ok(None),
    }
}

/// The API server calls `SERVICE.NAMESPACE.svc`; where Leno is installed under other names, --api-host says so.
fn webhook_options(settings: &Settings) -> webhook::Options {
    let service = format!("{}.{}.svc", names::CONTROL_PLANE, settings.kubernetes_namespace);
    let bound = settings.webhook.map(|address| address.ip()).filter(|ip| !ip.is_unspecified());
    webhook::Options {
        hosts: bound.map(|ip| ip.to_string()).into_iter().chain([service]).collect(),
        client_ca: settings.webhook_client_ca.clone(),
        inject: settings.inject.clone(),
    }
}

fn local(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}

async fn open_store(settings: &Settings) -> Result<Arc<dyn Store>, Error> {
    // Kubernetes keeps what is to be kept.
    if settings.memory || settings.kubernetes {
        return Ok(Arc::new(MemoryStore::new()));
    }
    let directory = settings.data_dir.clone();
    let opened = spawn_blocking(move || EmbeddedStore::open(&directory)).await;
    let failed = |error: tokio::task::JoinError| Error::Ended {
        task: "the store",
        reason: error.to_string(),
    };
    Ok(Arc::new(opened.map_err(failed)??))
}

async fn http(
    listener: TcpListener,
    router: Router,
    mut stop: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let stopped = async move {
        stop.wait_for(|stop| *stop).await.ok();
    };
    axum::serve(listener, router).with_graceful_shutdown(stopped).await
}

/// `/metrics`, `/stats/prometheus` and `/ready`. Ready means reachable: it listens only once all is read.
/// Holds the registry weakly: a connection that stays open must not keep the store from closing.
fn exposition(metrics: Arc<Metrics>, process: Process, registry: Weak<Registry>) -> Router {
    let render = move || {
        process.read();
        let leased = registry.upgrade().map_or(0, |registry| registry.leased());
        metrics.leases.set(i64::try_from(leased).unwrap_or(i64::MAX));
        let text = exposition::render(&metrics.registry);
        async move {
            match text {
                Ok(text) => {
                    ([(header::CONTENT_TYPE, exposition::CONTENT_TYPE)], text).into_response()
                }
                Err(error) => {
                    tracing::error!(%error, "cannot render metrics");
                    axum::http::StatusCode::INTERNAL_SERVER_ERROR.into_response()
                }
            }
        }
    };
    Router::new()
        .route("/metrics", get(render.clone()))
        .route("/stats/prometheus", get(render))
        .route("/ready", get(|| async { "ready\n" }))
}

/// The client of Kubernetes has a line for each request that fails; what that means is said once, by whoever asked. Whoever
/// names the client in a filter of their own gets everything.
fn filter(wanted: &str) -> String {
    match wanted.contains("kube_client") {
        true => wanted.to_owned(),
        false => format!("kube_client::client::builder=off,{wanted}"),
    }
}

/// One line on standard output, for whoever started us.
fn announce(running: &Running) -> std::io::Result<()> {
    let Addresses { api, xds, metrics, webhook } = running.addresses;
    let mut line = json!({
        "api": api.to_string(), "xds": xds.to_string(), "metrics": metrics.to_string(),
        "ca": running.roots,
    });
    if let Some(webhook) = webhook {
        line["webhook"] = webhook.to_string().into();
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
