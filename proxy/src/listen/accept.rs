//! The accept loop of one worker and listener.

use std::{
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::net::{TcpListener, TcpStream};

use super::{bind, connection, original_dst};
use crate::{
    cluster::connect,
    forward::worker::{Counted, Downstream, Shared, Worker},
    telemetry::record::Direction,
};

/// After an error that will not go away by trying at once (no file descriptors, no memory).
const BACKOFF: Duration = Duration::from_millis(50);

/// Counts a listener that is open.
struct Listening(Arc<Shared>);

impl Listening {
    fn begin(shared: &Arc<Shared>) -> Self {
        shared.listening.fetch_add(1, Ordering::Relaxed);
        Self(shared.clone())
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // After the connections that it has taken in were counted.
        self.0.listening.fetch_sub(1, Ordering::Release);
    }
}

/// Accepts until the proxy drains.
pub async fn run(worker: Rc<Worker>, listener: TcpListener, direction: Direction) {
    let _listening = Listening::begin(&worker.shared);
    let mut drain = worker.shared.drain.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            stopped = drain.wait_for(|draining| *draining) => {
                if stopped.is_ok() {
                    return accept_waiting(&worker, listener, direction);
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

/// Takes what the kernel has let in already, and may have sent its request: closing the listener would cut it off.
fn accept_waiting(worker: &Rc<Worker>, listener: TcpListener, direction: Direction) {
    // Without the runtime, which may not have heard yet that somebody waits.
    let Ok(listener) = listener.into_std() else { return };
    for _ in 0..bind::BACKLOG {
        let (stream, address) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // One that is gone again says nothing about those behind it.
            Err(_) => continue,
        };
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        if let Ok(stream) = stream {
            begin(worker, stream, address, direction);
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
