//! One proxy's stream: its requests into the session, what is planned for it out of it, and its lease.

use std::time::{Duration, Instant};

use bytes::Bytes;
use envoy_types::pb::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource,
    },
    google::protobuf::Any,
};
use leno_api::wire;
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, timeout},
};
use tonic::Status;

use super::{
    Discovery,
    messages::{Broken, Requests, framed},
};
use crate::{
    access::{Caller, Member},
    push::{Connection, Pending},
    registry::{self, Registry},
    store,
    xds::{
        node::{self, BadNode, Introduction, Registration},
        session::{Effects, Oddity, Request, Response, Session, Violation},
    },
};

/// How long a stream may stay open without its first request.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// How long a proxy may take to hear why its stream ends.
const LAST_WORD: Duration = Duration::from_secs(1);
/// A lease is renewed this many times within its length.
const RENEWALS_PER_LEASE: u32 = 3;

/// Why a stream ended, other than by the proxy itself.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the control plane is shutting down")]
    Stopping,
    #[error("no request within {} s", FIRST_REQUEST.as_secs())]
    Silent,
    #[error(transparent)]
    Node(#[from] BadNode),
    #[error("{0}")]
    NotAllowed(String),
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error(transparent)]
    Violation(#[from] Violation),
    #[error("{}", .0.message())]
    Malformed(Status),
}

impl From<&Ended> for Status {
    fn from(ended: &Ended) -> Self {
        let message = ended.to_string();
        match ended {
            Ended::Stopping => Self::unavailable(message),
            Ended::Silent => Self::deadline_exceeded(message),
            Ended::Node(_) => Self::invalid_argument(message),
            Ended::NotAllowed(_) => Self::permission_denied(message),
            Ended::Registry(registry::Error::WrittenByHand(_)) => Self::already_exists(message),
            Ended::Registry(registry::Error::Store(_)) => Self::unavailable(message),
            Ended::Registry(registry::Error::OtherAccount { .. }) => {
                Self::permission_denied(message)
            }
            Ended::Registry(_) => Self::invalid_argument(message),
            Ended::Violation(_) => Self::resource_exhausted(message),
            Ended::Malformed(status) => status.clone(),
        }
    }
}

/// The registered workload behind a stream.
struct Lease {
    key: store::Key,
    workload: Value,
    length: Duration,
    /// The service account that its proxy has proven.
    own: Option<String>,
}

struct Stream<'a> {
    shared: &'a Discovery,
    name: String,
    session: Session,
    connection: Connection,
    lease: Option<Lease>,
    /// When the oldest change that is now being sent was planned.
    since: Option<Instant>,
}

/// Runs a stream to its end and tells the proxy why it ended.
pub(super) async fn run(
    shared: &Discovery,
    caller: &Caller,
    mut requests: Requests,
    responses: &mpsc::Sender<Result<Bytes, Status>>,
) {
    // Over in a moment, and larger than what is needed for weeks.
    let opened = Box::pin(open(shared, caller, &mut requests)).await;
    let ended = match opened {
        Ok(Some((stream, first))) => {
            shared.metrics.connected.inc();
            let name = stream.name.clone();
            tracing::info!(proxy = name, "connected");
            let ended = stream.run(first, &mut requests, responses).await;
            shared.metrics.connected.dec();
            let reason =
                ended.as_ref().map_or_else(|ended| ended.to_string(), |()| "closed".into());
            tracing::info!(proxy = name, reason, "disconnected");
            ended
        }
        Ok(None) => Ok(()),
        Err(ended) => {
            shared.metrics.streams_refused.with_label_values(&["node"]).inc();
            tracing::warn!(reason = %ended, "a stream was refused");
            Err(ended)
        }
    };
    if let Err(ended) = ended {
        // Fails when the proxy is gone already, or takes nothing any more: then it will see why not.
        timeout(LAST_WORD, responses.send(Err((&ended).into()))).await.ok();
    }
}

/// Reads the first request, registers the workload that it brings, and enters the proxy. `None` where it
/// left without a word.
async fn open<'a>(
    shared: &'a Discovery,
    caller: &Caller,
    requests: &mut Requests,
) -> Result<Option<(Box<Stream<'a>>, Box<DeltaDiscoveryRequest>)>, Ended> {
    let first = timeout(FIRST_REQUEST, requests.message()).await.map_err(|_| Ended::Silent)?;
    let first = match first {
        Ok(Some(first)) => first,
        Ok(None) | Err(Broken::Gone) => return Ok(None),
        Err(Broken::Malformed(status)) => return Err(Ended::Malformed(status)),
    };
    let introduction = node::introduction(first.node.as_ref())?;
    allow(caller, &introduction).map_err(Ended::NotAllowed)?;
    let own = caller.service_account.clone();
    let lease = match (introduction.workload, &introduction.identity.workload) {
        (Some(Registration { object, lease, .. }), _) => {
            Some(register(&shared.registry, object, lease, own).await?)
        }
        // Its name says beside which workload it stands, and so what it gets.
        (None, Some(name)) => {
            let key = registry::key(name);
            shared.registry.check_account(&key, own.as_deref())?;
            None
        }
        (None, None) => None,
    };
    let name = introduction.name;
    let member = Member::new(name.clone(), caller, shared.authority.trust_domain());
    let connection = shared.push.connect(member, introduction.identity).await;
    let connection = connection.map_err(|_| Ended::Stopping)?;
    let session = Session::default();
    let stream = Stream { shared, name, session, connection, lease, since: None };
    Ok(Some((Box::new(stream), first)))
}

/// A workload's token or certificate is good for one namespace, and for one service account if it names one.
fn allow(caller: &Caller, introduction: &Introduction) -> Result<(), String> {
    let namespace = &*introduction.identity.namespace;
    if !caller.speaks_for(namespace) {
        return Err(format!("{caller} may not speak for a proxy in namespace {namespace:?}"));
    }
    let registered = introduction.workload.as_ref().map(|workload| &*workload.service_account);
    let (Some(own), Some(registered)) = (caller.service_account.as_deref(), registered) else {
        return Ok(());
    };
    if own != registered {
        return Err(format!(
            "{caller} may not register a workload of the service account {registered:?}: only of {own:?}"
        ));
    }
    Ok(())
}

async fn register(
    registry: &Registry,
    workload: Value,
    length: Duration,
    own: Option<String>,
) -> Result<Lease, registry::Error> {
    let length = length.clamp(registry::MIN_LEASE, registry::MAX_LEASE);
    let key = registry.register(workload.clone(), length, own.as_deref()).await?;
    Ok(Lease { key, workload, length, own })
}

impl Stream<'_> {
    async fn run(
        mut self: Box<Self>,
        first: Box<DeltaDiscoveryRequest>,
        requests: &mut Requests,
        responses: &mpsc::Sender<Result<Bytes, Status>>,
    ) -> Result<(), Ended> {
        let mut stop = self.shared.stop.clone();
        let length = self.lease.as_ref().map_or(registry::MAX_LEASE, |lease| lease.length);
        let mut renewal = interval(length / RENEWALS_PER_LEASE);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Box::pin(self.take_up(*first)).await?;
        let mut next = self.session.next_response();
        loop {
            tokio::select! {
                permit = responses.reserve(), if next.is_some() => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some(response) = next.take() {
                        self.count_response(&response);
                        permit.send(framed(&encode(response)));
                    }
                }
                request = requests.message() => match request {
                    Ok(Some(request)) => {
                        if node::is_goodbye(request.node.as_ref()) {
                            Box::pin(self.leave()).await;
                            return Ok(());
                        }
                        Box::pin(self.take_up(*request)).await?;
                    }
                    // A broken stream and one that ended: the lease decides what becomes of the workload.
                    Ok(None) | Err(Broken::Gone) => return Ok(()),
                    Err(Broken::Malformed(status)) => {
                        self.count_protocol_error("malformed");
                        return Err(Ended::Malformed(status));
                    }
                },
                pending = self.connection.changed() => self.offer(pending).await?,
                _ = renewal.tick() => Box::pin(self.renew()).await,
                () = stopped(&mut stop) => return Err(Ended::Stopping),
            }
            if next.is_none() {
                next = self.session.next_response();
            }
        }
    }

    async fn take_up(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Ended> {
        let (running, useless) = node::running(request.node.as_ref());
        if useless > 0 {
            self.count_protocol_error("bad_report");
        }
        let effects = self.session.request(session_request(request));
        let effects = effects.inspect_err(|_| self.count_protocol_error("too_many_names"))?;
        self.count(&effects);
        if let Some(sequence) = effects.sequence {
            let told = self.connection.subscribe(sequence, effects.add, effects.remove).await;
            told.map_err(|_| Ended::Stopping)?;
        }
        self.connection.report(effects.verdicts).await.map_err(|_| Ended::Stopping)?;
        self.connection.runs(running).await.map_err(|_| Ended::Stopping)
    }

    async fn offer(&mut self, pending: Pending) -> Result<(), Ended> {
        self.since = self.since.or(pending.since);
        let verdicts = self.session.offer(pending.delta, pending.answered, pending.revision);
        self.connection.report(verdicts).await.map_err(|_| Ended::Stopping)
    }

    /// The stream is the lease: while it is open the workload stays, and comes back should it have lapsed
    /// (this process was stopped for a while) or been deleted.
    async fn renew(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        let registry = &self.shared.registry;
        if registry.renew(&lease.key).is_ok() {
            self.lease = Some(lease);
            return;
        }
        let (workload, own) = (lease.workload.clone(), lease.own.clone());
        match register(registry, workload, lease.length, own).await {
            Ok(lease) => self.lease = Some(lease),
            // Somebody has taken it into their own hands.
            Err(registry::Error::WrittenByHand(key)) => {
                tracing::info!(proxy = self.name, workload = %key, "its workload is now kept by hand");
            }
            Err(error) => {
                tracing::warn!(proxy = self.name, %error, "cannot register its workload; trying again");
                self.lease = Some(lease);
            }
        }
    }

    /// The proxy leaves for good: nobody is to be sent there any more.
    async fn leave(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        let removed = self.shared.registry.deregister(&lease.key, lease.own.as_deref()).await;
        if let Err(error) = removed {
            tracing::warn!(proxy = self.name, %error, "cannot remove its workload; the lease will");
        }
    }

    fn count_response(&mut self, response: &Response) {
        let metrics = &self.shared.metrics;
        metrics.responses.with_label_values(&[response.kind.kind]).inc();
        if !response.more
            && let Some(since) = self.since.take()
        {
            metrics.delivery_seconds.observe(since.elapsed().as_secs_f64());
        }
    }

    fn count(&self, effects: &Effects) {
        let metrics = &self.shared.metrics;
        match effects.answered {
            Some((_, true)) => metrics.acks.inc(),
            Some((kind, false)) => {
                metrics.nacks.with_label_values(&[kind.kind]).inc();
                for verdict in effects.verdicts.iter().filter(|verdict| verdict.result.is_err()) {
                    let reason = verdict.result.as_ref().err();
                    tracing::warn!(proxy = self.name, resource = %verdict.key, reason, "rejected");
                }
            }
            None => {}
        }
        for oddity in &effects.oddities {
            self.count_protocol_error(match oddity {
                Oddity::UnknownType => "unknown_type",
                Oddity::UnknownNonce => "unknown_nonce",
                Oddity::BadName => "bad_name",
            });
        }
    }

    fn count_protocol_error(&self, what: &str) {
        self.shared.metrics.protocol_errors.with_label_values(&[what]).inc();
    }
}

/// A request free of its transport.
pub(crate) fn session_request(request: DeltaDiscoveryRequest) -> Request {
    Request {
        type_url: request.type_url,
        subscribe: request.resource_names_subscribe,
        unsubscribe: request.resource_names_unsubscribe,
        initial_versions: request.initial_resource_versions,
        nonce: request.response_nonce,
        error: request.error_detail.map(|status| status.message),
    }
}

/// Waits until streams are to end. Whoever could say so being gone says the same.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    stop.wait_for(|stop| *stop).await.ok();
}

/// The bytes of a resource are shared by all streams up to here; this is the one copy per proxy.
fn encode(response: Response) -> DeltaDiscoveryResponse {
    let type_url = wire::type_url(response.kind);
    let resources = response.resources.into_iter().map(|sent| WireResource {
        name: sent.item.name.to_string(),
        version: sent.item.version.to_string(),
        aliases: sent.aliases,
        resource: Some(Any { type_url: type_url.clone(), value: sent.item.body.to_vec() }),
        ..WireResource::default()
    });
    DeltaDiscoveryResponse {
        resources: resources.collect(),
        removed_resources: response.removed,
        nonce: response.nonce.to_string(),
        system_version_info: wire::system_version(response.revision, response.more),
        type_url,
        ..DeltaDiscoveryResponse::default()
    }
}
