//! Notifications, over plain TCP: a JSON object per line in, an answer per line out.
//!
//! ```text
//! > {"event":"order placed","order":"order-1-7"}
//! < {"ok":true,"id":12,"instance":"notification-1","version":"v1"}
//! ```
//!
//! The client may half-close after its last line and still gets every answer. The last events are
//! shown at `GET /events` of the control port.

use crate::instance::{Instance, Turn};
use axum::routing::get;
use axum::{Json, Router, extract};
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const KEPT_EVENTS: usize = 100;
const MAX_LINE_BYTES: usize = 16 * 1024;
const MAX_CONNECTIONS: usize = 1_024;
/// A client that neither sends a line nor reads its answer for so long is gone.
const IDLE: Duration = Duration::from_secs(300);
/// Out of file descriptors, accept fails at once again and again; this keeps it from spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub struct Inbox {
    instance: Arc<Instance>,
    events: Mutex<Events>,
}

#[derive(Default)]
struct Events {
    count: u64,
    last: VecDeque<Value>,
}

impl Inbox {
    pub fn new(instance: Arc<Instance>) -> Arc<Self> {
        Arc::new(Self { instance, events: Mutex::default() })
    }

    fn events(&self) -> MutexGuard<'_, Events> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, event: Map<String, Value>) -> u64 {
        let mut events = self.events();
        events.count += 1;
        if events.last.len() == KEPT_EVENTS {
            events.last.pop_front();
        }
        let id = events.count;
        events.last.push_back(json!({ "id": id, "event": event }));
        id
    }

    fn answer(&self, line: &[u8], turn: &Turn) -> Value {
        match serde_json::from_slice(line) {
            Ok(event) => json!({
                "ok": true,
                "id": self.keep(event),
                "instance": self.instance.name,
                "version": turn.version,
            }),
            Err(error) => refusal(&format!("a line must be a JSON object: {error}")),
        }
    }
}

/// What notification adds to its control port.
pub fn router(inbox: Arc<Inbox>) -> Router {
    let events = |extract::State(inbox): extract::State<Arc<Inbox>>| async move {
        Json(inbox.events().last.clone())
    };
    Router::new().route("/events", get(events)).with_state(inbox)
}

/// Accepts until stopped, then lets open connections answer what they have read.
pub async fn serve(listener: TcpListener, inbox: Arc<Inbox>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, inbox.clone(), stop.clone()));
                }
                Err(error) => {
                    tracing::warn!("cannot accept: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, inbox: Arc<Inbox>, stop: CancellationToken) {
    if let Err(error) = converse(stream, &inbox, &stop).await {
        tracing::debug!("connection ended: {error}");
    }
}

async fn converse(
    mut stream: TcpStream,
    inbox: &Inbox,
    stop: &CancellationToken,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut bounded = (&mut reader).take(MAX_LINE_BYTES as u64 + 1);
        tokio::select! {
            read = timeout(IDLE, bounded.read_until(b'\n', &mut line)) => { read??; }
            () = stop.cancelled() => return Ok(()),
        }
        if line.is_empty() {
            return writer.shutdown().await; // end of file: the client has sent all it had
        }
        let turn = inbox.instance.turn();
        sleep(turn.delay).await;
        inbox.instance.count(&turn);
        if turn.fails {
            return Ok(());
        }
        let too_long = line.len() > MAX_LINE_BYTES;
        let answer = match too_long {
            true => refusal(&format!("a line must have at most {MAX_LINE_BYTES} bytes")),
            false => inbox.answer(&line, &turn),
        };
        timeout(IDLE, writer.write_all(format!("{answer}\n").as_bytes())).await??;
        if too_long {
            return writer.shutdown().await; // where the next line begins nobody knows
        }
    }
}

fn refusal(error: &str) -> Value {
    json!({ "ok": false, "error": error })
}
