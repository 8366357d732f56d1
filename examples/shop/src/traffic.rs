//! Customers who never stop ordering; counts what comes back.
//!
//! Open loop: orders leave at their times whether or not earlier ones were answered, and latency is
//! measured from the time an order was due, so a stalled mesh shows in the figures rather than
//! pausing them. `traffic/latency.rs` has the histogram.

use crate::failure::with_causes;
use crate::upstream::http_client;
use crate::{Hop, Label, Service};
use axum::body::Body;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

mod latency;

pub use latency::Latency;

const ORDER: &str = "order";
/// Who orders, for quotas.
const CUSTOMER: &str = "x-customer";
/// They take turns: none of them orders often.
const CUSTOMERS: u64 = 1_000;
const MAX_IN_FLIGHT: usize = 256;
/// The rate at which the sender's clock no longer keeps up: 100,000 orders a second.
const MIN_PERIOD: Duration = Duration::from_micros(10);
/// Longer than a machine that is busy otherwise makes anybody wait.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Reasons and instances are named by answers, so each table has an end.
const MAX_NAMES: usize = 256;

/// Orders leaving at a fixed rate until stopped. Dropping it stops them too.
pub struct Traffic {
    shared: Arc<Shared>,
    stop: CancellationToken,
    sender: JoinHandle<()>,
}

/// What the traffic saw until now.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Orders sent, answered or not.
    pub sent: u64,
    /// Orders answered 201.
    pub ok: u64,
    /// Orders not sent, because too many were waiting for their answers.
    pub skipped: u64,
    /// Orders that failed, by reason: `"502 product"` is an answer naming a service, `"503 mesh"`
    /// one that names none, `"connection"` and `"timeout"` are no answer at all.
    pub failed: BTreeMap<String, u64>,
    /// The failure seen last, in full.
    pub last_failure: Option<String>,
    /// How many calls each instance answered for the orders that were placed.
    pub served_by: BTreeMap<Server, u64>,
    /// How many more calls of theirs no instance had to answer: a sidecar had the answer.
    pub cached: u64,
    /// From when an order was due until its answer was complete, whatever it was.
    pub latency: Latency,
}

/// An instance as it reported itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    pub service: Service,
    pub instance: Label,
    pub version: Label,
}

impl Traffic {
    /// Orders at `address`, as a rule the outbound port of a sidecar, under the name `order`.
    /// At most 100,000 a second. To be called inside a tokio runtime.
    pub fn start(address: SocketAddr, rate_per_second: NonZeroU32) -> Self {
        let shared = Arc::new(Shared {
            client: http_client(),
            address,
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            snapshot: Mutex::default(),
            under_way: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let period = (Duration::from_secs(1) / rate_per_second.get()).max(MIN_PERIOD);
        let sender = tokio::spawn(send(shared.clone(), period, stop.clone()));
        Self { shared, stop, sender }
    }

    pub fn snapshot(&self) -> Snapshot {
        self.shared.snapshot().clone()
    }

    /// Waits until every order that has been sent by now is answered, or given up.
    pub async fn settle(&self) {
        let sent = self.snapshot().sent;
        while self.shared.oldest().is_some_and(|oldest| oldest <= sent) {
            sleep(POLL).await;
        }
    }

    /// Sends no more, waits for the answers still due, and tells the final figures.
    pub async fn stop(mut self) -> Snapshot {
        self.stop.cancel();
        if let Err(error) = (&mut self.sender).await {
            tracing::error!("the traffic ended early: {error}");
        }
        self.snapshot()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Snapshot {
    /// What happened after `earlier`, for figures per interval.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            sent: self.sent.saturating_sub(earlier.sent),
            ok: self.ok.saturating_sub(earlier.ok),
            skipped: self.skipped.saturating_sub(earlier.skipped),
            failed: subtract(&self.failed, &earlier.failed),
            last_failure: self.last_failure.clone(),
            served_by: subtract(&self.served_by, &earlier.served_by),
            cached: self.cached.saturating_sub(earlier.cached),
            latency: self.latency.since(&earlier.latency),
        }
    }

    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    fn record(&mut self, outcome: Result<Vec<Hop>, Mishap>, latency: Duration) {
        self.latency.record(latency);
        match outcome {
            Ok(hops) => {
                self.ok += 1;
                for Hop { service, instance, version, cached, .. } in hops {
                    if cached {
                        self.cached += 1;
                        continue;
                    }
                    count(&mut self.served_by, Server { service, instance, version });
                }
            }
            Err(mishap) => {
                count(&mut self.failed, mishap.reason);
                self.last_failure = Some(mishap.detail);
            }
        }
    }
}

struct Shared {
    client: Client<HttpConnector, Body>,
    address: SocketAddr,
    in_flight: Arc<Semaphore>,
    snapshot: Mutex<Snapshot>,
    /// The orders that are not answered yet, as they were counted when they were sent.
    under_way: Mutex<BTreeSet<u64>>,
}

/// Why an order failed: in a word for counting, and in full.
struct Mishap {
    reason: String,
    detail: String,
}

async fn send(shared: Arc<Shared>, period: Duration, stop: CancellationToken) {
    // A late tick is made up for at once: that keeps the rate, and is what makes the loop open.
    let mut ticks = interval(period);
    let mut orders = JoinSet::new();
    for nth in 0.. {
        let due = tokio::select! {
            () = stop.cancelled() => break,
            due = ticks.tick() => due,
        };
        while orders.try_join_next().is_some() {}
        match shared.in_flight.clone().try_acquire_owned() {
            Ok(permit) => {
                let number = shared.begin();
                let shared = shared.clone();
                orders.spawn(async move {
                    shared.order(nth, due).await;
                    shared.under_way().remove(&number);
                    drop(permit);
                });
            }
            Err(_) => shared.snapshot().skipped += 1,
        }
    }
    while orders.join_next().await.is_some() {}
}

impl Shared {
    fn snapshot(&self) -> MutexGuard<'_, Snapshot> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn under_way(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn oldest(&self) -> Option<u64> {
        self.under_way().first().copied()
    }

    /// Counts an order as sent: which one it is.
    fn begin(&self) -> u64 {
        let mut snapshot = self.snapshot();
        snapshot.sent += 1;
        // Not a moment between the two: whoever has seen the count finds the order.
        self.under_way().insert(snapshot.sent);
        snapshot.sent
    }

    async fn order(&self, nth: u64, due: Instant) {
        let outcome = timeout(REQUEST_TIMEOUT, self.place(nth)).await.unwrap_or_else(|_| {
            Err(Mishap::new("timeout", format!("no answer within {REQUEST_TIMEOUT:?}")))
        });
        self.snapshot().record(outcome, due.elapsed());
    }

    async fn place(&self, nth: u64) -> Result<Vec<Hop>, Mishap> {
        let lost = |error: &dyn std::error::Error| Mishap::new("connection", with_causes(error));
        let request = Request::post(format!("http://{}/orders", self.address))
            .header(HOST, ORDER)
            .header(CONTENT_TYPE, "application/json")
            .header(CUSTOMER, format!("c{}", nth % CUSTOMERS))
            .body(Body::from(basket(nth)))
            .map_err(|error| lost(&error))?;
        let answer = self.client.request(request).await.map_err(|error| lost(&error))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| lost(error.as_ref()))?.to_bytes();
        read(head.status, &body)
    }
}

/// Every user in turn orders something else.
fn basket(nth: u64) -> String {
    let user = format!("u{}", nth % 5 + 1);
    let product = format!("p{}", nth % 4 + 1);
    json!({ "user": user, "items": [{ "product": product, "quantity": nth % 3 + 1 }] }).to_string()
}

fn read(status: StatusCode, body: &Bytes) -> Result<Vec<Hop>, Mishap> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Placed {
        served_by: Vec<Hop>,
    }
    #[derive(serde::Deserialize)]
    struct Blame {
        service: Service,
    }
    if status == StatusCode::CREATED {
        let placed: Placed = serde_json::from_slice(body)
            .map_err(|error| Mishap::new("unreadable", with_causes(&error)))?;
        return Ok(placed.served_by);
    }
    let blamed = match serde_json::from_slice(body) {
        Ok(Blame { service }) => service.to_string(),
        Err(_) => "mesh".to_owned(),
    };
    let reason = format!("{} {blamed}", status.as_u16());
    Err(Mishap::new(reason, format!("{status}: {}", String::from_utf8_lossy(body).trim())))
}

impl Mishap {
    fn new(reason: impl Into<String>, detail: String) -> Self {
        Self { reason: reason.into(), detail }
    }
}

/// Counts up, but takes no new names once the table is full: they are logged instead.
fn count<K: Ord + std::fmt::Debug>(table: &mut BTreeMap<K, u64>, key: K) {
    if table.len() < MAX_NAMES || table.contains_key(&key) {
        *table.entry(key).or_default() += 1;
    } else {
        tracing::warn!("more than {MAX_NAMES} different names, {key:?} is not counted");
    }
}

fn subtract<K: Ord + Clone>(now: &BTreeMap<K, u64>, then: &BTreeMap<K, u64>) -> BTreeMap<K, u64> {
    now.iter()
        .map(|(key, count)| (key.clone(), count - then.get(key).copied().unwrap_or_default()))
        .filter(|(_, count)| *count > 0)
        .collect()
}
