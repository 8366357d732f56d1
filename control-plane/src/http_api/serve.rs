//! Connections of the API: bounded in how long a head may take, and in how they end.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::Router;
use http::Request;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{sync::watch, task::JoinSet};
use tonic::codegen::Service;

use super::{Api, router};
use crate::transport::{Connection, Incoming, Peer, Port};

/// For [`Incoming`]: kubectl and watches keep a connection each.
pub const PORT: Port = Port { purpose: "the API", most: 8192 };
/// How long a request's head may take, and a connection may lie idle between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests at the same time on one HTTP/2 connection; kubectl uses a handful, watches included.
const MAX_STREAMS: u32 = 250;
/// How often a silent HTTP/2 peer is asked whether it is still there.
const PING_EVERY: Duration = Duration::from_secs(30);

/// Serves until told to stop; then no further requests are taken, watches end, and what is under
/// way is finished. The caller decides how long to wait for that.
pub async fn serve(mut incoming: Incoming, api: Arc<Api>, mut stop: watch::Receiver<bool>) {
    let router = router(api.clone());
    let builder = Arc::new(builder());
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = incoming.next() => accepted,
            () = told(&mut stop) => break,
            Some(_) = open.join_next() => continue,
        };
        let Some(connection) = accepted else { break };
        open.spawn(converse(builder.clone(), connection, router.clone(), stop.clone()));
    }
    drop(incoming);
    api.end_watches();
    while open.join_next().await.is_some() {}
}

/// Waits until a switch is turned on. A sender that is gone has turned it, too.
pub(super) async fn told(switch: &mut watch::Receiver<bool>) {
    switch.wait_for(|on| *on).await.ok();
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(PING_EVERY);
    builder
}

async fn converse(
    builder: Arc<Builder<TokioExecutor>>,
    connection: Connection,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let service = Known { router, peer: connection.peer().clone() };
    let service = TowerToHyperService::new(service);
    let conversation = builder.serve_connection(TokioIo::new(connection), service);
    let mut conversation = std::pin::pin!(conversation);
    let ended = tokio::select! {
        ended = conversation.as_mut() => ended,
        () = told(&mut stop) => {
            conversation.as_mut().graceful_shutdown();
            conversation.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection to the API ended early");
    }
}

/// The API for one connection: every request says who sent it.
#[derive(Clone)]
struct Known {
    router: Router,
    peer: Peer,
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
        request.extensions_mut().insert(self.peer.clone());
        self.router.call(request)
    }
}
