//! What proxies call: `envoy.service.discovery.v3.AggregatedDiscoveryService`, with the certificate authority, the
//! quotas and the purges beside it.

mod messages;
mod stream;

#[cfg(any(test, fuzzing))]
pub(crate) use self::stream::session_request;

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::SERVICE_NAME;
use futures_util::{future::BoxFuture, stream as streams};
use http::{HeaderValue, header};
use leno_api::wire::TOKEN_HEADER;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tonic::{
    Request, Status, body::Body, codegen, metadata::GRPC_CONTENT_TYPE, server::NamedService,
    transport::Server,
};

use self::messages::{Requests, Responses};

use super::{
    purge::{self, proto::purges_server::PurgesServer},
    quota::{self, Quotas, proto::quota_server::QuotaServer},
};
use crate::{
    access::{Access, Caller, Denied, Role, bearer},
    ca::{Authority, NotReviewed},
    purge::Purges,
    push::Push,
    registry::Registry,
    telemetry::Metrics,
    transport::{self, Incoming, Peer, Port},
};

/// For [`Incoming`]: as many as there may be streams; each proxy needs one, another where it has global limits, and one
/// more where it has caches.
pub const PORT: Port = Port { purpose: "proxies", most: 3 * MAX_STREAMS };
/// Streams open at the same time.
pub const MAX_STREAMS: usize = 10_000;
/// Streams per connection: a proxy needs one.
const MAX_STREAMS_PER_CONNECTION: u32 = 16;
/// A peer that answers no ping within these is dead.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Responses that wait for the transport; what comes after them stays state.
const RESPONSES_AHEAD: usize = 2;

/// What every stream needs.
pub struct Discovery {
    pub push: Arc<Push>,
    pub purges: Arc<Purges>,
    pub registry: Arc<Registry>,
    pub access: Access,
    pub authority: Arc<Authority>,
    pub metrics: Arc<Metrics>,
    /// True once streams are to end.
    pub stop: watch::Receiver<bool>,
}

/// The gRPC service; one for all connections.
#[derive(Clone)]
struct Service {
    shared: Arc<Discovery>,
    streams: Arc<Semaphore>,
    /// Held by every stream: the other end learns when the last one has ended.
    open: mpsc::Sender<()>,
}

/// Serves until `stop` says so, then ends every stream and returns.
///
/// # Errors
/// When the transport fails as a whole.
pub async fn serve(incoming: Incoming, shared: Discovery) -> Result<(), tonic::transport::Error> {
    // Every connection as it comes; none of them can fail the others.
    let incoming = streams::unfold(incoming, |mut incoming| async {
        let connection = incoming.next().await?;
        Some((Ok::<_, Infallible>(connection), incoming))
    });
    let mut stop = shared.stop.clone();
    let authority = shared.authority.clone().service();
    let (open, mut all_ended) = mpsc::channel(1);
    let streams = Arc::new(Semaphore::new(MAX_STREAMS));
    let shared = Arc::new(shared);
    let quotas = QuotaServer::new(Quotas::new(shared.clone()))
        .max_decoding_message_size(quota::MAX_REQUEST_BYTES);
    let purges = purge::Service::new(shared.clone(), open.clone());
    let purges = PurgesServer::new(purges).max_decoding_message_size(purge::MAX_MESSAGE_BYTES);
    let service = Service { shared, streams, open };
    let served = Server::builder()
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .max_concurrent_streams(Some(MAX_STREAMS_PER_CONNECTION))
        .add_service(service)
        .add_service(authority)
        .add_service(quotas)
        .add_service(purges)
        .serve_with_incoming_shutdown(incoming, async move {
            // An error means that whoever could say stop is gone, which says the same.
            stop.wait_for(|stop| *stop).await.ok();
        })
        .await;
    // Nothing is ever sent there.
    all_ended.recv().await;
    served
}

fn refuse(shared: &Discovery, reason: &str, status: Status) -> Status {
    shared.metrics.streams_refused.with_label_values(&[reason]).inc();
    status
}

/// Whoever has shown a certificate is who it names, whatever else they send.
pub(super) async fn caller<T>(shared: &Discovery, request: &Request<T>) -> Result<Caller, Status> {
    let peer = request.extensions().get::<Peer>().cloned();
    let header = request.metadata().get(TOKEN_HEADER).map(|value| value.as_bytes().to_vec());
    identified(shared, peer.as_ref(), header.as_deref()).await
}

/// As [`caller`]; apart from the request, whose stream need not be shared between threads.
async fn identified(
    shared: &Discovery,
    peer: Option<&Peer>,
    header: Option<&[u8]>,
) -> Result<Caller, Status> {
    let refuse = |status| refuse(shared, "denied", status);
    let shown = transport::identity(peer, &shared.authority);
    let shown = shown.map_err(|ended| refuse(Status::unauthenticated(ended.to_string())))?;
    if let Some(id) = shown {
        return Ok(Caller::workload(id));
    }
    let caller = shared.access.caller(header);
    if let (Err(Denied::Unknown(_)), Some(token)) = (&caller, header.and_then(bearer))
        && let Some(reviewed) = shared.authority.reviewed(token).await
    {
        return match reviewed {
            Ok(id) => Ok(Caller::workload(&id)),
            Err(error @ NotReviewed::Unavailable) => Err(Status::unavailable(error.to_string())),
            Err(error) => Err(refuse(Status::unauthenticated(error.to_string()))),
        };
    }
    let caller = caller.map_err(|denied| {
        let hint = match denied {
            Denied::OnlyForACertificate(_) => {
                ": get the certificate with it, then connect with that"
            }
            _ => "",
        };
        refuse(Status::unauthenticated(format!("{denied}{hint}")))
    })?;
    if caller.role == Role::Viewer {
        let message = format!("{caller} is not a proxy: use a token of the role workload or admin");
        return Err(refuse(Status::permission_denied(message)));
    }
    Ok(caller)
}

impl Service {
    fn permit(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.streams.clone().try_acquire_owned().map_err(|_| {
            let message = format!("this control plane serves {MAX_STREAMS} streams already");
            refuse(&self.shared, "limit", Status::resource_exhausted(message))
        })
    }
}

impl NamedService for Service {
    const NAME: &'static str = SERVICE_NAME;
}

/// By hand: what is generated buffers as tonic does, see [`messages`].
impl codegen::Service<http::Request<Body>> for Service {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        let status = match request.uri().path().rsplit('/').next() {
            Some("DeltaAggregatedResources") => {
                let followed = service.follow(request);
                return Box::pin(async { Ok(followed.await.unwrap_or_else(Status::into_http)) });
            }
            Some("StreamAggregatedResources") => Status::unimplemented(
                "Leno speaks incremental xDS only: call DeltaAggregatedResources (api_type: DELTA_GRPC)",
            ),
            _ => Status::unimplemented("there is no such method"),
        };
        Box::pin(async { Ok(status.into_http()) })
    }
}

impl Service {
    /// Opens a proxy's stream.
    async fn follow(self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let (head, body) = request.into_parts();
        let encoding = head.headers.get("grpc-encoding");
        if encoding.is_some_and(|encoding| encoding != "identity") {
            return Err(Status::unimplemented("messages are taken uncompressed only"));
        }
        let peer = head.extensions.get::<Peer>();
        let token = head.headers.get(TOKEN_HEADER).map(HeaderValue::as_bytes);
        let caller = identified(&self.shared, peer, token).await?;
        if let Some(peer) = peer {
            peer.admission.grant();
        }
        let permit = self.permit()?;
        let (responses, receiver) = mpsc::channel(RESPONSES_AHEAD);
        let requests = Requests::new(body);
        let Self { shared, open, .. } = self;
        tokio::spawn(async move {
            stream::run(&shared, &caller, requests, &responses).await;
            drop((permit, shared, open));
        });
        let mut response = http::Response::new(Body::new(Responses::new(receiver)));
        response.headers_mut().insert(header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
        Ok(response)
    }
}
