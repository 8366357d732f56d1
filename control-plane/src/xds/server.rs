//! What proxies call: `envoy.service.discovery.v3.AggregatedDiscoveryService`, with the certificate authority, the
//! quotas and the purges beside it.

mod stream;

#[cfg(any(test, fuzzing))]
pub(crate) use self::stream::session_request;

use std::{convert::Infallible, pin::Pin, sync::Arc, time::Duration};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::{
        AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
    },
};
use futures_util::{Stream, stream as streams};
use leno_api::wire::TOKEN_HEADER;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

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
/// The largest request; the largest there is names what a reconnecting proxy has.
const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024;
/// Streams per connection: a proxy needs one.
const MAX_STREAMS_PER_CONNECTION: u32 = 16;
/// A peer that answers no ping within these is dead.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Responses that wait for the transport; what comes after them stays state.
const RESPONSES_AHEAD: usize = 2;

type ResponseStream = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

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
    let service =
        AggregatedDiscoveryServiceServer::new(service).max_decoding_message_size(MAX_REQUEST_BYTES);
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

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;
    type DeltaAggregatedResourcesStream = ResponseStream;

    async fn stream_aggregated_resources(
        &self,
        _request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented(
            "Leno speaks incremental xDS only: call DeltaAggregatedResources (api_type: DELTA_GRPC)",
        ))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<ResponseStream>, Status> {
        let caller = caller(&self.shared, &request).await?;
        if let Some(peer) = request.extensions().get::<Peer>() {
            peer.admission.grant();
        }
        let permit = self.permit()?;
        let (responses, receiver) = mpsc::channel(RESPONSES_AHEAD);
        let shared = self.shared.clone();
        let requests = request.into_inner();
        let open = self.open.clone();
        tokio::spawn(async move {
            stream::run(&shared, &caller, requests, &responses).await;
            drop((permit, shared, open));
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
