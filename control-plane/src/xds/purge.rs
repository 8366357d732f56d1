//! `leno.cache.v1.Purges`: proxies hear what their caches are to forget.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::Stream;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::server::{Discovery, MAX_STREAMS, caller};
use crate::{
    access::{Caller, Member},
    purge::{self, Holder, Subscriber, What},
    transport::Peer,
};
use proto::{FromProxy, Hello, Order, Position, from_proxy::Message, order};

/// The wire: generated from `api/proto/cache.proto`.
pub mod proto {
    #![expect(clippy::allow_attributes_without_reason, reason = "generated")]
    tonic::include_proto!("leno.cache.v1");
}

/// The largest message: a name and some numbers.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024;
/// Of a proxy's name.
const MAX_NAME: usize = 512;
/// How long a stream may stay open without its first message.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// How long a proxy may take to hear why its stream ends.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Orders that wait for the transport; what comes after them stays in the log.
const ORDERS_AHEAD: usize = 2;

type Orders = mpsc::Sender<Result<Order, Status>>;

/// The service; one for all connections.
pub struct Service {
    shared: Arc<Discovery>,
    streams: Arc<Semaphore>,
    /// Held by every stream: the other end learns when the last one has ended.
    open: mpsc::Sender<()>,
}

impl Service {
    /// `open` is held as long as there are streams.
    pub fn new(shared: Arc<Discovery>, open: mpsc::Sender<()>) -> Self {
        Self { shared, streams: Arc::new(Semaphore::new(MAX_STREAMS)), open }
    }
}

#[tonic::async_trait]
impl proto::purges_server::Purges for Service {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<Order, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<Streaming<FromProxy>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let caller = caller(&self.shared, &request).await?;
        if let Some(peer) = request.extensions().get::<Peer>() {
            peer.admission.grant();
        }
        let permit = self.streams.clone().try_acquire_owned().map_err(|_| {
            let message =
                format!("this control plane serves {MAX_STREAMS} streams of purges already");
            Status::resource_exhausted(message)
        })?;
        let (orders, receiver) = mpsc::channel(ORDERS_AHEAD);
        let (shared, open, messages) =
            (self.shared.clone(), self.open.clone(), request.into_inner());
        tokio::spawn(async move {
            if let Err(status) = run(&shared, &caller, messages, &orders).await {
                // Fails when the proxy is gone already, or takes nothing any more.
                timeout(LAST_WORD, orders.send(Err(status))).await.ok();
            }
            drop((permit, shared, open));
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Runs a stream to its end.
async fn run(
    shared: &Discovery,
    caller: &Caller,
    mut messages: Streaming<FromProxy>,
    orders: &Orders,
) -> Result<(), Status> {
    let first = timeout(FIRST_MESSAGE, messages.message()).await.map_err(|_| {
        Status::deadline_exceeded(format!("no message within {} s", FIRST_MESSAGE.as_secs()))
    })?;
    let Ok(Some(first)) = first else { return Ok(()) };
    let Some(Message::Hello(hello)) = first.message else {
        return Err(Status::invalid_argument("the first message must be `hello`"));
    };
    let subscriber = enter(shared, caller, hello)?;
    shared.metrics.purge_streams.inc();
    let ended = follow(shared, subscriber, messages, orders).await;
    shared.metrics.purge_streams.dec();
    ended
}

fn enter(shared: &Discovery, caller: &Caller, hello: Hello) -> Result<Subscriber, Status> {
    if hello.proxy.is_empty() || hello.proxy.len() > MAX_NAME {
        let message = format!("hello.proxy: must have 1 to {MAX_NAME} bytes");
        return Err(Status::invalid_argument(message));
    }
    // As on its other stream: a name is worth no more than who says it.
    let member = Member::new(hello.proxy, caller, shared.authority.trust_domain());
    let holder = Holder { member, instance: hello.instance };
    let position =
        hello.position.map(|Position { epoch, sequence }| purge::Position { epoch, sequence });
    Ok(shared.purges.open(holder, position))
}

async fn follow(
    shared: &Discovery,
    mut subscriber: Subscriber,
    mut messages: Streaming<FromProxy>,
    orders: &Orders,
) -> Result<(), Status> {
    let mut stop = shared.stop.clone();
    let mut next = None;
    loop {
        tokio::select! {
            order = subscriber.next(), if next.is_none() => next = Some(order),
            permit = orders.reserve(), if next.is_some() => {
                let Ok(permit) = permit else { return Ok(()) };
                if let Some(order) = next.take() {
                    permit.send(Ok(encode(order)));
                }
            }
            message = messages.message() => match message {
                Ok(Some(message)) => take_up(&mut subscriber, message)?,
                Ok(None) => {
                    subscriber.finish();
                    return Ok(());
                }
                // It broke: the proxy is expected back.
                Err(_) => return Ok(()),
            },
            _ = stop.wait_for(|stop| *stop) => {
                return Err(Status::unavailable("the control plane is shutting down"));
            }
        }
    }
}

fn take_up(subscriber: &mut Subscriber, message: FromProxy) -> Result<(), Status> {
    match message.message {
        Some(Message::Report(report)) => subscriber
            .report(report.sequence, report.removed)
            .map_err(|untold| Status::invalid_argument(untold.to_string())),
        Some(Message::Hello(_)) => {
            Err(Status::invalid_argument("`hello` is for the first message"))
        }
        // From a proxy that is newer than we are.
        None => Ok(()),
    }
}

fn encode(order: purge::Order) -> Order {
    let purge::Position { epoch, sequence } = order.position;
    let position = Some(Position { epoch, sequence });
    let Some(purge) = order.purge else {
        return Order { position, service: String::new(), what: Some(order::What::All(true)) };
    };
    let what = match &purge.what {
        What::All => order::What::All(true),
        What::Path(path) => order::What::Path(path.clone()),
        What::Prefix(prefix) => order::What::Prefix(prefix.clone()),
        What::Tag(tag) => order::What::Tag(tag.clone()),
    };
    Order { position, service: purge.service.clone(), what: Some(what) }
}
