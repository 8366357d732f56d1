//! Connections of the API server, bounded in number, time and size.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::State,
    response::{IntoResponse, Response},
    routing::post,
};
use http::{Request, StatusCode, header};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use leno_api::Resource;
use rustls::ServerConfig;
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tonic::codegen::Service;

use super::metrics::Metrics;
use crate::{
    findings::Findings,
    inject::{
        self, names,
        review::{self, Answer, BadReview},
    },
    transport::conversation::{HEAD_TIMEOUT, builder, told},
};

/// Connections at a time: each API server keeps a few.
const MAX_CONNECTIONS: usize = 256;
/// Until the handshake is done. API servers are near.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// For a request's body. API servers are near, they wait 30 s at most for the answer, and a body on its way keeps one of
/// the few places of [`MAX_READING`] from others.
const BODY_TIMEOUT: Duration = Duration::from_secs(2);
/// For what is under way on a connection that is told to end, after which it is cut.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// A review holds an object twice at most, and Kubernetes takes objects up to 3 MiB.
pub(super) const MAX_BODY: usize = 8 * 1024 * 1024;
/// Reviews that are read at the same time, which bounds what bodies hold in memory. Others wait.
const MAX_READING: usize = 16;
/// After an accept that failed, for want of file descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What requests need.
#[derive(Debug)]
pub(super) struct Shared {
    pub settings: inject::Settings,
    pub findings: Arc<Findings>,
    pub metrics: Metrics,
    /// Callers must show a certificate.
    pub proof: bool,
}

/// Whether the caller has shown a certificate that was verified.
#[derive(Clone, Copy, Debug)]
struct Proven(bool);

/// Serves until told to stop; what is under way is finished.
pub(super) async fn run(
    listener: TcpListener,
    config: watch::Receiver<Arc<ServerConfig>>,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
) {
    let router = router(shared);
    let builder = Arc::new(builder());
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut open = JoinSet::new();
    loop {
        let accept = async {
            let permit = permits.clone().acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accept => accepted,
            () = told(&mut stop) => break,
            Some(_) = open.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                // As it is now: certificates change while we run.
                let config = config.borrow().clone();
                let served =
                    converse(builder.clone(), stream, config, router.clone(), stop.clone());
                open.spawn(async move {
                    served.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the webhook could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

async fn converse(
    builder: Arc<Builder<TokioExecutor>>,
    stream: TcpStream,
    config: Arc<ServerConfig>,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    // Answers are small and must not wait for acknowledgements.
    stream.set_nodelay(true).ok();
    let stream = match timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake with the webhook failed");
            return;
        }
        Err(_) => return,
    };
    let proven = stream.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty());
    let (asked, mut requests) = watch::channel(());
    let service = TowerToHyperService::new(Known { router, proven: Proven(proven), asked });
    let conversation = builder.serve_connection(TokioIo::new(stream), service);
    let mut conversation = std::pin::pin!(conversation);
    let ended = tokio::select! {
        ended = conversation.as_mut() => Some(ended),
        () = told(&mut stop) => None,
        () = idle(&mut requests) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            conversation.as_mut().graceful_shutdown();
            // Whoever does not read the answers must not keep the connection, nor us.
            timeout(END_TIMEOUT, conversation).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection to the webhook ended early");
    }
}

/// Comes back when no request has come for long: API servers open another connection when they need it. HTTP/2
/// connections would stay open for ever: pings are answered.
async fn idle(requests: &mut watch::Receiver<()>) {
    while let Ok(Ok(())) = timeout(HEAD_TIMEOUT, requests.changed()).await {}
}

/// The router for one connection: every request says whether its sender has shown who it is.
#[derive(Clone)]
struct Known {
    router: Router,
    proven: Proven,
    /// Told of each request.
    asked: watch::Sender<()>,
}

impl<B> Service<Request<B>> for Known
where
    Router: Service<Request<B>>,
{
    type Response = <Router as Service<Request<B>>>::Response;
    type Error = <Router as Service<Request<B>>>::Error;
    type Future = <Router as Service<Request<B>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::<Request<B>>::poll_ready(&mut self.router, context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        request.extensions_mut().insert(self.proven);
        self.asked.send_replace(());
        self.router.call(request)
    }
}

#[derive(Clone)]
struct Asked {
    shared: Arc<Shared>,
    reading: Arc<Semaphore>,
}

fn router(shared: Arc<Shared>) -> Router {
    let unknown = || async {
        let (inject, validate) = (names::INJECT_PATH, names::VALIDATE_PATH);
        (StatusCode::NOT_FOUND, format!("there are POST {inject} and POST {validate}\n"))
    };
    let asked = Asked { shared, reading: Arc::new(Semaphore::new(MAX_READING)) };
    Router::new()
        .route(names::INJECT_PATH, post(mutate))
        .route(names::VALIDATE_PATH, post(validate))
        .fallback(unknown)
        .with_state(asked)
}

async fn mutate(State(asked): State<Asked>, request: Request<Body>) -> Response {
    let work = |body: &[u8]| review::mutate(body, &asked.shared.settings);
    answer(&asked, "inject", request, work).await
}

async fn validate(State(asked): State<Asked>, request: Request<Body>) -> Response {
    let odd = |resource: &Resource| {
        let said = asked.shared.findings.about(&[resource]).pop().unwrap_or_default();
        said.into_iter().map(|(path, message)| format!("{path}: {message}")).collect()
    };
    let work = |body: &[u8]| review::validate(body, odd);
    answer(&asked, "validate", request, work).await
}

async fn answer(
    asked: &Asked,
    webhook: &'static str,
    request: Request<Body>,
    work: impl FnOnce(&[u8]) -> Result<(Value, Answer), BadReview>,
) -> Response {
    let shared = &asked.shared;
    let counted =
        |result: &str| shared.metrics.requests.with_label_values(&[webhook, result]).inc();
    let refused = |status: StatusCode, message: String| {
        counted("bad");
        (status, message + "\n").into_response()
    };
    let proven = request.extensions().get::<Proven>().is_some_and(|proven| proven.0);
    if shared.proof && !proven {
        let message = "callers must show a client certificate (--webhook-client-ca): give the API server one with --admission-control-config-file";
        return refused(StatusCode::UNAUTHORIZED, message.to_owned());
    }
    // Fails only when it was closed, which nobody does.
    let _reading = asked.reading.acquire().await;
    let body = match read(request).await {
        Ok(body) => body,
        Err((status, message)) => return refused(status, message),
    };
    let began = Instant::now();
    let (answer, what) = match work(&body) {
        Ok(answered) => answered,
        Err(error) => return refused(StatusCode::BAD_REQUEST, error.to_string()),
    };
    shared.metrics.seconds.with_label_values(&[webhook]).observe(began.elapsed().as_secs_f64());
    counted(what.as_str());
    if what == Answer::Failed {
        tracing::warn!(warnings = %answer["response"]["warnings"], "a pod got no sidecar");
    }
    ([(header::CONTENT_TYPE, "application/json")], answer.to_string()).into_response()
}

async fn read(request: Request<Body>) -> Result<Bytes, (StatusCode, String)> {
    match timeout(BODY_TIMEOUT, to_bytes(request.into_body(), MAX_BODY)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) => {
            let message =
                format!("the review cannot be read ({error}); it may have {MAX_BODY} bytes");
            Err((StatusCode::PAYLOAD_TOO_LARGE, message))
        }
        Err(_) => {
            let message = format!("the review did not arrive within {} s", BODY_TIMEOUT.as_secs());
            Err((StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}
