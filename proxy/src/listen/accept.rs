//! The accept loop of one worker and listener.

use std::{net::SocketAddr, rc::Rc, time::Duration};

use tokio::net::{TcpListener, TcpStream};

use super::{connection, original_dst};
use crate::{
    cluster::connect,
    forward::worker::{Counted, Downstream, Shared, Worker},
    telemetry::record::Direction,
};

/// After an error that will not go away by trying at once (no file descriptors, no memory).
const BACKOFF: Duration = Duration::from_millis(50);

/// Accepts until the proxy drains.
pub async fn run(worker: Rc<Worker>, listener: TcpListener, direction: Direction) {
    let mut drain = worker.shared.drain.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            stopped = drain.wait_for(|draining| *draining) => {
                if stopped.is_ok() {
                    return;
                }
                // Nobody can ask us to drain any more.
                listener.accept().await
            }
        };
        match accepted {
            Ok((stream, address)) => begin(&worker, stream, address, direction),
            Err(error) => {
                refused(&worker.shared, direction, "accept");
                tracing::warn!("accepting on {}: {error}", direction.as_str());
                tokio::time::sleep(BACKOFF).await;
            }
        }
    }
}

fn begin(worker: &Rc<Worker>, stream: TcpStream, address: SocketAddr, direction: Direction) {
    let Some(counted) = Counted::take(&worker.shared, direction) else {
        refused(&worker.shared, direction, "limit");
        // A reset tells the caller at once, and costs no state here.
        let _ = stream.set_zero_linger();
        return;
    };
    if let Err(error) = connect::prepare(&stream) {
        tracing::debug!("{address}: {error}");
        return;
    }
    let captured = worker.shared.capture.as_ref().and_then(|_| original_dst::of(&stream));
    let worker = worker.clone();
    let counted = Rc::new(counted.captured(captured));
    let downstream = Downstream { address, direction, counted, secured: None };
    tokio::task::spawn_local(async move {
        connection::serve(&worker, stream, downstream).await;
    });
}

/// Counts a connection that was refused or broken off.
pub(super) fn refused(shared: &Shared, direction: Direction, reason: &str) {
    shared.families.connections_refused.with_label_values(&[direction.as_str(), reason]).inc();
}
