//! Connections of the API: bounded in how long a head may take, and in how they end.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use axum::Router;
use http::Request;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{sync::watch, task::JoinSet};
use tonic::codegen::Service;

use super::{Api, router};
use crate::transport::{
    Connection, Incoming, Peer, Port,
    conversation::{builder, told},
};

/// For [`Incoming`]: kubectl and watches keep a connection each.
pub const PORT: Port = Port { purpose: "the API", most: 8192 };

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
