//! Serving the admin port, on the side thread: a slow reader here touches no request.

use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use leno_api::model::ObjectName;
use leno_daemon::{exposition, logs::Logs};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, oneshot, watch},
};

use super::{
    caches, gate, pages,
    probes::{MAX_SECONDS, Probes},
};
use crate::{
    config::{apply::Question, prepare::Roster},
    filter::jwt::KeyCache,
    forward::worker::Shared,
    http::{
        body::{Body, Incoming},
        server::{self, Limits},
    },
};

/// Connections at once to the operators' port; they are few, and on this machine.
const MAX_CONNECTIONS: usize = 64;
/// The same for the ports that everybody reaches: nobody must be able to hold so many for so long that kubelets and scrapers
/// are not heard. Each holds some 10 KB.
const MAX_OPEN_CONNECTIONS: usize = 1024;
/// Heads here are small.
const LIMITS: Limits = Limits {
    head_bytes: 16 * 1024,
    head_fields: 64,
    head_timeout: Duration::from_secs(10),
    streams: 16,
    // These connections end in any case.
    send_timeout: OPEN_CONNECTION,
};
/// Of those whom everybody reaches: who asks sends at once.
const OPEN_LIMITS: Limits = Limits { head_timeout: Duration::from_secs(2), ..LIMITS };
/// For the whole of such a connection, whose caller may not read its answer: the longest probe, and some time to
/// say how it went.
const OPEN_CONNECTION: Duration = Duration::from_secs(MAX_SECONDS + 30);

/// What the endpoints show and do.
#[derive(Debug)]
pub struct Admin {
    /// The workers' shared state.
    pub shared: Arc<Shared>,
    /// Keys of those who issue tokens to callers.
    pub issuer_keys: Arc<KeyCache>,
    /// Plugins.
    pub plugins: Arc<Roster>,
    /// Bound addresses by listener.
    pub addresses: Vec<(&'static str, SocketAddr)>,
    /// To the configuration task.
    pub questions: mpsc::Sender<Question>,
    /// Absent where somebody else owns the process's logging.
    pub logs: Option<Logs>,
    /// Figures of the process.
    pub process: exposition::Process,
    /// Asks the proxy to drain (false) or to end at once (true).
    pub stop: mpsc::Sender<bool>,
    /// When the proxy started.
    pub started: Instant,
    /// Told to say that it is not ready, although it is.
    pub failing: Cell<bool>,
    /// Probes of the application.
    pub probes: Option<Probes>,
    /// Services as one of whose workloads we tell the control plane to be there: they are called as soon as it knows.
    pub registered: Vec<ObjectName>,
}

/// What a port shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// Everything; for this machine.
    Operators,
    /// Readiness and the application's probes; for the kubelet.
    Readiness,
    /// Metrics; for scrapers.
    Metrics,
}

/// Serves until the process ends.
pub async fn run(admin: Rc<Admin>, listener: TcpListener, surface: Surface) {
    let permits = Arc::new(Semaphore::new(match surface {
        Surface::Operators => MAX_CONNECTIONS,
        Surface::Readiness | Surface::Metrics => MAX_OPEN_CONNECTIONS,
    }));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let admin = admin.clone();
                tokio::task::spawn_local(async move {
                    match surface {
                        Surface::Operators => serve(admin, stream, surface, LIMITS).await,
                        Surface::Readiness | Surface::Metrics => {
                            let serving = serve(admin, stream, surface, OPEN_LIMITS);
                            // Whoever takes longer is cut off.
                            let _ = tokio::time::timeout(OPEN_CONNECTION, serving).await;
                        }
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!("accepting on admin: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve(admin: Rc<Admin>, stream: TcpStream, surface: Surface, limits: Limits) {
    // Readiness and metrics are wanted most while the proxy drains: this port does not.
    let (_keep, never) = watch::channel(false);
    server::serve_http1(stream, limits, never, move |request| {
        let admin = admin.clone();
        Box::pin(async move {
            Ok(match surface {
                Surface::Operators => admin.answer(request).await,
                Surface::Readiness => last(admin.answer_kubelet(request).await),
                Surface::Metrics => last(admin.answer_scraper(request)),
            })
        })
    })
    .await;
}

impl Admin {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if let Err((status, message)) = gate::check(request.method(), request.headers()) {
            return text(status, format!("{message}\n"));
        }
        let query = request.uri().query().unwrap_or_default();
        let as_json = query.split('&').any(|pair| pair == "format=json");
        match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, path) => self.show(path, as_json).await,
            (_, "/logging") => self.set_logging(query),
            (_, "/certs/renew") => self.renew(),
            (_, "/healthcheck/fail") => self.set_failing(true),
            (_, "/healthcheck/ok") => self.set_failing(false),
            (_, "/drain_listeners") => self.stop(false, "draining").await,
            (_, "/quitquitquit") => self.stop(true, "ending").await,
            (_, path) => not_found(path),
        }
    }

    async fn show(&self, path: &str, as_json: bool) -> Response<Body> {
        let shared = &*self.shared;
        match path {
            "/" | "/help" => text(StatusCode::OK, pages::HELP.to_owned()),
            "/ready" => self.ready(),
            "/stats/prometheus" | "/metrics" => self.metrics(),
            "/config_dump" => self.config_dump().await,
            "/clusters" if as_json => json(&pages::clusters(shared)),
            "/clusters" => text(StatusCode::OK, pages::clusters_text(shared)),
            "/plugins" => json(&serde_json::json!({ "plugins": self.plugins.json() })),
            "/cache" => match caches::figures(&shared.published).await {
                Ok(figures) if as_json => json(&caches::page(&figures)),
                Ok(figures) => text(StatusCode::OK, caches::lines(&figures)),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
            "/issuers" => serialized(&self.issuer_keys.status()),
            "/listeners" if as_json => json(&pages::listeners(&self.addresses, shared)),
            "/listeners" => {
                let line = |(name, address): &(&str, SocketAddr)| format!("{name}::{address}\n");
                let bound: String = self.addresses.iter().map(line).collect();
                text(StatusCode::OK, bound + &pages::ports_text(shared))
            }
            "/certs" => serialized(&shared.identity.status()),
            "/server_info" => json(&serde_json::json!({
                "version": env!("CARGO_PKG_VERSION"),
                "uptime_seconds": self.started.elapsed().as_secs(),
                "state": if *shared.drain.borrow() { "DRAINING" } else { "LIVE" },
            })),
            "/logging" => text(
                StatusCode::OK,
                format!("{}\n", self.logs.as_ref().map(Logs::current).unwrap_or_default()),
            ),
            "/drain_listeners" | "/quitquitquit" | "/certs/renew" | "/healthcheck/fail"
            | "/healthcheck/ok" => text(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{path} changes something: use POST\n"),
            ),
            _ => not_found(path),
        }
    }

    /// What anybody who reaches the pod may ask: nothing is changed, and nothing is said of others.
    async fn answer_kubelet(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        match (request.method(), &self.probes) {
            (&Method::GET | &Method::HEAD, _) if path == "/ready" => self.ready(),
            (&Method::GET | &Method::HEAD, Some(probes)) => {
                let agent = request.headers().get(header::USER_AGENT);
                match probes.ask(path, agent).await {
                    Ok(()) => text(StatusCode::OK, "ok\n".to_owned()),
                    Err((status, reason)) => text(status, format!("{reason}\n")),
                }
            }
            _ => {
                text(StatusCode::NOT_FOUND, "there is GET /ready, and declared probes\n".to_owned())
            }
        }
    }

    fn answer_scraper(&self, request: Request<Incoming>) -> Response<Body> {
        match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/stats/prometheus" | "/metrics") => self.metrics(),
            _ => text(StatusCode::NOT_FOUND, "there is GET /metrics\n".to_owned()),
        }
    }

    fn set_failing(&self, failing: bool) -> Response<Body> {
        self.failing.set(failing);
        tracing::info!("told to be {}", if failing { "not ready" } else { "ready again" });
        text(StatusCode::OK, "OK\n".to_owned())
    }

    fn ready(&self) -> Response<Body> {
        if self.failing.get() {
            text(StatusCode::SERVICE_UNAVAILABLE, "FAILING: told so\n".to_owned())
        } else if *self.shared.drain.borrow() {
            text(StatusCode::SERVICE_UNAVAILABLE, "DRAINING\n".to_owned())
        } else if !self.shared.published.load().loaded {
            text(StatusCode::SERVICE_UNAVAILABLE, "INITIALIZING: no configuration yet\n".to_owned())
        } else if self.shared.identity.is_expected() && self.shared.identity.current().is_none() {
            text(StatusCode::SERVICE_UNAVAILABLE, "INITIALIZING: no certificate yet\n".to_owned())
        } else if let Some(plugin) = self.plugins.awaited().first() {
            let message = format!("INITIALIZING: plugin {plugin} is being loaded\n");
            text(StatusCode::SERVICE_UNAVAILABLE, message)
        } else if let Some(service) = self.not_served() {
            let message = format!(
                "INITIALIZING: no port of service {service} is served here yet; is there such a service in the mesh, with \
                 the ports of --app?\n"
            );
            text(StatusCode::SERVICE_UNAVAILABLE, message)
        } else {
            let warning = self.shared.identity.warning();
            let warning = warning.map(|warning| format!("warning: {warning}\n"));
            text(StatusCode::OK, format!("LIVE\n{}", warning.unwrap_or_default()))
        }
    }

    /// A service whose callers are sent here, and would be told that there is nothing.
    fn not_served(&self) -> Option<&ObjectName> {
        let snapshot = self.shared.published.load();
        let ports = &snapshot.inbound.by_destination;
        self.registered.iter().find(|service| {
            let start = format!("{service}:");
            !ports.keys().any(|port| port.starts_with(&start))
        })
    }

    /// Asks for a new certificate; how that goes is in `/certs`.
    fn renew(&self) -> Response<Body> {
        let identity = &self.shared.identity;
        if !identity.is_expected() {
            let message = "this proxy has no source of certificates: give it --ca-file, \
                           --tls-certificate or --workload-api\n";
            return text(StatusCode::CONFLICT, message.to_owned());
        }
        identity.renew();
        text(StatusCode::ACCEPTED, "a new certificate is asked for\n".to_owned())
    }

    fn metrics(&self) -> Response<Body> {
        self.process.read();
        match exposition::render(self.shared.families.registry()) {
            Ok(bytes) => {
                let mut response = Response::new(Body::Full(bytes.into()));
                let content_type = HeaderValue::from_static(exposition::CONTENT_TYPE);
                response.headers_mut().insert(header::CONTENT_TYPE, content_type);
                response
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    async fn config_dump(&self) -> Response<Body> {
        let (question, answer) = oneshot::channel();
        let asked = self.questions.send(question).await.is_ok();
        match answer.await {
            Ok(dump) if asked => json(&dump),
            _ => text(
                StatusCode::SERVICE_UNAVAILABLE,
                "the configuration task has ended\n".to_owned(),
            ),
        }
    }

    fn set_logging(&self, query: &str) -> Response<Body> {
        let filter = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("filter=").or(pair.strip_prefix("level=")));
        let Some((filter, logs)) = filter.zip(self.logs.as_ref()) else {
            return text(StatusCode::BAD_REQUEST, "say ?filter=info,leno_proxy=debug\n".to_owned());
        };
        let filter = percent_encoding::percent_decode_str(filter).decode_utf8_lossy();
        match logs.set(&filter) {
            Ok(()) => text(StatusCode::OK, format!("{}\n", logs.current())),
            Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        }
    }

    async fn stop(&self, now: bool, word: &str) -> Response<Body> {
        match self.stop.send(now).await {
            Ok(()) => text(StatusCode::OK, format!("{word}\n")),
            Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "already ending\n".to_owned()),
        }
    }
}

/// The connection ends with this answer: an idle one would keep its place from somebody else.
fn last(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn not_found(path: &str) -> Response<Body> {
    text(StatusCode::NOT_FOUND, format!("no endpoint {path}; there are:\n{}", pages::HELP))
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::Full(text.into()));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

fn json(value: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::Full(format!("{value:#}\n").into()));
    let content_type = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

fn serialized(value: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_value(value) {
        Ok(value) => json(&value),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}
