//! How requests get in to the application beside us where its `TrafficPolicy` has `adaptiveConcurrency`: at once while
//! there is room, else after a moment in a queue, else not at all (503, flag UO, `Retry-After`).
//!
//! A request has its place from here to the head of its response: what comes after that is sent, not worked at, and a
//! stream of hours would keep a place for nothing. Upgrades and `CONNECT` are tunnels from then on; connections that
//! are not HTTP have no place at all.
//!
//! Every worker has its own gate with its own share of the limit. The side thread ([`super::limiter`]) finds the limit
//! and divides it by what each worker has to do.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{Arc, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use http::{Request, StatusCode};
use leno_api::model::traffic_policy::{AdaptiveConcurrency, PriorityLevel, Probe, Settings};
use rustc_hash::FxHashMap;
use tokio::sync::oneshot;

use super::{
    attempt::Received,
    concurrency::{
        gate::{Arrival, Gate, Next, Priority},
        queue::{Patience, Ticket},
    },
    exchange::Exchange,
    outcome,
};
use crate::{
    cluster::{
        Cluster, ClusterKey, State,
        admission::{Seat, add, nanoseconds},
        window::Kind,
    },
    error::{Error, Flag},
    http::body::{Body, Progress},
};

/// Every method of the standard health service.
const GRPC_HEALTH: &str = "/grpc.health.v1.Health/";
/// While somebody waits, a new share of the limit is looked for at least as often.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// One worker's gates, by application.
#[derive(Debug, Default)]
pub struct Doors(RefCell<FxHashMap<u64, Rc<Door>>>);

/// One worker's gate to one application, and who waits before it.
#[derive(Debug)]
struct Door {
    /// Gone when the application is.
    state: Weak<State>,
    seat: Arc<Seat>,
    gate: RefCell<Gate>,
    waiting: RefCell<FxHashMap<Ticket, oneshot::Sender<bool>>>,
    /// Whether somebody looks after those that wait.
    attended: Cell<bool>,
    started: Instant,
}

/// A place among those that the application works at, kept until dropped.
#[derive(Debug)]
pub(super) struct Place {
    door: Rc<Door>,
    since: Instant,
    /// Of the request's body: what its caller takes for sending it is not the application's time.
    progress: Option<Rc<Progress>>,
    /// Whether it still may count: health checks are no work and would make it look short.
    counts: bool,
}

/// Waits for a place, and gives it back if nobody takes it.
struct Waiter {
    door: Rc<Door>,
    ticket: Ticket,
    since: Instant,
    /// `true` is a place.
    told: oneshot::Receiver<bool>,
}

/// Waits until the application has room for `request`; `None` where it has no limit.
///
/// # Errors
/// When the request is refused: it would have to wait too long.
pub(super) async fn enter(
    exchange: &Exchange,
    cluster: &Cluster,
    request: &Request<Body>,
) -> Result<Option<Place>, Error> {
    let Some(limit) = &cluster.settings.adaptive_concurrency else { return Ok(None) };
    if !matches!(cluster.key, ClusterKey::Application(..)) {
        // It holds at the service's own sidecars.
        return Ok(None);
    }
    let priority = priority(&cluster.settings, limit, request);
    let door = exchange.worker.doors.find(cluster, exchange.worker.shared.started);
    if !door.arrive(limit, priority).await {
        add(&door.seat.dropped[priority as usize], 1);
        cluster.state.limits.reject();
        return Err(refused(&cluster.name, &door.seat, priority));
    }
    let (progress, counts) = (exchange.progress.clone(), priority != Priority::Health);
    Ok(Some(Place { door, since: Instant::now(), progress, counts }))
}

fn refused(name: &str, seat: &Seat, priority: Priority) -> Error {
    let limit = seat.limit.load(Ordering::Relaxed);
    let detail = format!(
        "{name}: the application has enough to do; this worker's share of the limit is {limit}, \
         the priority was {priority:?}"
    );
    Error::ours(StatusCode::SERVICE_UNAVAILABLE, Flag::UO, detail)
}

/// How much a request matters. Health checks are those of the standard gRPC service and of the path that the policy's
/// `healthCheck` asks for; what a caller could say of itself is not looked at.
fn priority(settings: &Settings, limit: &AdaptiveConcurrency, request: &Request<Body>) -> Priority {
    let path = request.uri().path();
    let probed = match settings.health_check.as_ref().map(|check| &check.probe) {
        Some(Probe::Http { path: probed, .. }) => path == probed.path(),
        _ => false,
    };
    if probed || path.starts_with(GRPC_HEALTH) {
        return Priority::Health;
    }
    match limit.level_of(path, request.headers()) {
        PriorityLevel::Critical => Priority::Critical,
        PriorityLevel::Normal => Priority::Normal,
        PriorityLevel::Sheddable => Priority::Sheddable,
    }
}

impl Doors {
    fn find(&self, cluster: &Cluster, started: Instant) -> Rc<Door> {
        let mut doors = self.0.borrow_mut();
        if let Some(door) = doors.get(&cluster.state.id) {
            return door.clone();
        }
        doors.retain(|_, door| door.state.strong_count() > 0);
        let door = Rc::new(Door::new(cluster, started));
        doors.insert(cluster.state.id, door.clone());
        door
    }
}

impl Door {
    fn new(cluster: &Cluster, started: Instant) -> Self {
        let admission = &cluster.state.admission;
        let seat = admission.sit_down();
        let initial = cluster.settings.adaptive_concurrency.as_ref().map_or(0, |it| it.initial);
        // Until the side thread divides it anew.
        let seats = u32::try_from(admission.seats().len()).unwrap_or(u32::MAX);
        let limit = admission.found.load().as_ref().map_or(initial, |found| found.limit) / seats;
        seat.limit.store(limit, Ordering::Relaxed);
        Self {
            state: Arc::downgrade(&cluster.state),
            gate: RefCell::new(Gate::new(limit)),
            seat,
            waiting: RefCell::default(),
            attended: Cell::new(false),
            started,
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether a request may run; it waits for that as long as that makes sense.
    async fn arrive(self: &Rc<Self>, limit: &AdaptiveConcurrency, priority: Priority) -> bool {
        let queue = limit.queue;
        let patience = Patience { target: queue.target, interval: queue.interval };
        let arrival = {
            let mut gate = self.gate.borrow_mut();
            gate.set_queue(queue.length as usize, patience);
            gate.set_limit(self.seat.limit.load(Ordering::Relaxed));
            gate.arrive(self.now(), priority)
        };
        let ticket = match arrival {
            Arrival::Refused => return false,
            Arrival::Run => {
                self.publish();
                return true;
            }
            Arrival::Wait { ticket, refused } => {
                refused.into_iter().for_each(|ticket| self.tell(ticket, false));
                ticket
            }
        };
        let (teller, told) = oneshot::channel();
        self.waiting.borrow_mut().insert(ticket, teller);
        let mut waiter = Waiter { door: self.clone(), ticket, since: Instant::now(), told };
        // A share that has grown may have room for it.
        self.advance();
        self.attend();
        matches!((&mut waiter.told).await, Ok(true))
    }

    /// Says whose turn it is to all whose it is.
    fn advance(&self) {
        self.gate.borrow_mut().set_limit(self.seat.limit.load(Ordering::Relaxed));
        loop {
            let next = self.gate.borrow_mut().next(self.now());
            match next {
                Some(Next::Run(ticket)) => self.tell(ticket, true),
                Some(Next::Refuse(ticket)) => self.tell(ticket, false),
                None => break,
            }
        }
        self.publish();
    }

    fn tell(&self, ticket: Ticket, runs: bool) {
        let teller = self.waiting.borrow_mut().remove(&ticket);
        let told = teller.map_or(Err(runs), |teller| teller.send(runs));
        if told == Err(true) {
            // Nobody is there any more to give the place back.
            self.gate.borrow_mut().leave();
        }
    }

    /// Sees to it that nobody waits too long, until nobody waits.
    fn attend(self: &Rc<Self>) {
        if self.attended.replace(true) {
            return;
        }
        let door = self.clone();
        tokio::task::spawn_local(async move {
            loop {
                let due = door.gate.borrow().due();
                let Some(due) = due else { break };
                let wait = due.saturating_sub(door.now()).min(LOOK_AGAIN);
                tokio::time::sleep(wait).await;
                door.advance();
            }
            door.attended.set(false);
        });
    }

    fn leave(&self) {
        self.gate.borrow_mut().leave();
        self.advance();
    }

    /// For the side thread.
    fn publish(&self) {
        let mut gate = self.gate.borrow_mut();
        let seat = &self.seat;
        let most = gate.take_most_running().max(seat.most_running.load(Ordering::Relaxed));
        seat.most_running.store(most, Ordering::Relaxed);
        seat.running.store(gate.running(), Ordering::Relaxed);
        seat.waiting.store(u32::try_from(gate.waiting()).unwrap_or(u32::MAX), Ordering::Relaxed);
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let door = &self.door;
        add(&door.seat.waited, 1);
        add(&door.seat.wait, nanoseconds(self.since.elapsed()));
        // What it was told and has read is no longer there: then it has its place, or none.
        if let Ok(runs) = self.told.try_recv() {
            // The caller went away in the moment in which it was its turn.
            if runs {
                door.leave();
            }
        } else if door.waiting.borrow_mut().remove(&self.ticket).is_some() {
            door.gate.borrow_mut().cancel(door.now(), self.ticket);
            door.publish();
        }
    }
}

impl Place {
    /// Takes in how long the application took. Failures may be quick, and say nothing about that; only timeouts do, where
    /// they are long: callers say how long they wait, and must not make the application look quicker than it is.
    pub(super) fn ended(mut self, attempted: Result<&Received, &Error>) {
        const DEADLINE_EXCEEDED: u8 = 4;
        let (late, good) = match attempted {
            Ok(received) => {
                let (status, headers) = (received.response.status(), received.response.headers());
                let grpc = outcome::grpc_status_of(headers);
                let late = status == StatusCode::GATEWAY_TIMEOUT || grpc == Some(DEADLINE_EXCEEDED);
                let refused = status == StatusCode::TOO_MANY_REQUESTS;
                let answer = outcome::of_answer(status, grpc, headers);
                (late, !refused && answer == Kind::Success)
            }
            Err(error) => (error.flag == Flag::UT, false),
        };
        if late {
            // As for a caller that went away.
            return;
        }
        if std::mem::take(&mut self.counts) && good {
            self.count(self.latency());
        }
    }

    fn latency(&self) -> Duration {
        let waited = self.progress.as_ref().map_or(Duration::ZERO, |progress| progress.waited());
        self.since.elapsed().saturating_sub(waited)
    }

    fn count(&self, latency: Duration) {
        add(&self.door.seat.answers, 1);
        add(&self.door.seat.latency, nanoseconds(latency));
    }
}

impl Drop for Place {
    /// Not told how it ended: the caller went away. Where it had waited for long, that is a timeout, and the only sign
    /// of an application that answers nobody in time.
    fn drop(&mut self) {
        let (latency, unloaded) = (self.latency(), &self.door.seat.unloaded);
        let unloaded = unloaded.load(Ordering::Relaxed);
        if self.counts && unloaded > 0 && nanoseconds(latency) > unloaded {
            self.count(latency);
        }
        self.door.leave();
    }
}

#[cfg(test)]
mod tests;
