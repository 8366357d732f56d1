//! Connections of the API: bounded in number, in how long a head may take, and in how they end.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::sleep,
};

use super::{Api, router};

/// Most connections at the same time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 8192;
/// How long a request's head may take, and a connection may lie idle between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests at the same time on one HTTP/2 connection; kubectl uses a handful, watches included.
const MAX_STREAMS: u32 = 250;
/// How often a silent HTTP/2 peer is asked whether it is still there.
const PING_EVERY: Duration = Duration::from_secs(30);
/// After an accept that failed, for want of file descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until told to stop; then no further requests are taken, watches end, and what is under
/// way is finished. The caller decides how long to wait for that.
pub async fn serve(
    listener: TcpListener,
    api: Arc<Api>,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let router = router(api.clone());
    let builder = Arc::new(builder());
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &connections) => accepted,
            () = told(&mut stop) => break,
            Some(_) = open.join_next() => continue,
        };
        match accepted {
            Ok((stream, permit)) => {
                let connection = connection(builder.clone(), stream, router.clone(), stop.clone());
                open.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the API could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    api.end_watches();
    while open.join_next().await.is_some() {}
    Ok(())
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

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = connections.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    // Watches send many small pieces.
    stream.set_nodelay(true)?;
    Ok((stream, permit))
}

async fn connection(
    builder: Arc<Builder<TokioExecutor>>,
    stream: TcpStream,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let service = TowerToHyperService::new(router);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = told(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection to the API ended early");
    }
}
