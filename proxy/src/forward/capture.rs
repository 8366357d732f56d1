//! Connections that the kernel has led to us: where they were going, and what becomes of those to whom the mesh does not know.

use std::{
    cell::OnceCell,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::StatusCode;
use leno_api::model::{service::Protocol, traffic_policy::Settings};

use super::worker::{Downstream, Shared, Worker};
use crate::{
    cluster::{Cluster, ClusterKey, Endpoint, State, connect, dialled::Dialled},
    error::{Error, Flag},
    snapshot::Service,
    telemetry::{
        record::Direction,
        scope::{Party, Scope, ScopeLabels},
    },
};

/// Far places answer later than neighbours do, and there is no other endpoint to try.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// After a question that the control plane did not answer, for how long nobody waits for answers. They still count when
/// they come.
const UNANSWERED: Duration = Duration::from_secs(5);

/// What the proxy knows where connections are led through it.
#[derive(Debug)]
pub struct Capture {
    /// Whether what the mesh does not know is refused.
    refuse_unknown: bool,
    /// Our own listeners' ports.
    listeners: Vec<u16>,
    /// Whom connections are counted for that nobody is known to answer, by direction.
    outbound: Arc<Scope>,
    inbound: Arc<Scope>,
    /// Our own connections.
    pub dialled: Arc<Dialled>,
    /// Until when nobody waits for the control plane, in milliseconds since the process began.
    unanswered: AtomicU64,
    /// Whether somebody was told that our own connections come back.
    told: AtomicBool,
}

/// A connection that was led to us.
#[derive(Debug)]
pub struct Captured {
    /// Where it was going.
    pub original: SocketAddr,
    /// The same as a cluster, once somebody goes there. It ends with the connection, and with it what is kept open.
    passthrough: OnceCell<Arc<Cluster>>,
}

impl Captured {
    /// A connection that was going to `original`.
    pub fn new(original: SocketAddr) -> Self {
        Self { original, passthrough: OnceCell::new() }
    }
}

/// Why a captured connection goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Astray {
    /// It was meant for one of our own listeners.
    OwnListener,
    /// It is one of our own.
    Loop,
    /// It came from elsewhere for an address that means something on the sender's machine or link only.
    LocalAddress,
}

impl Astray {
    /// As metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OwnListener => "own_listener",
            Self::Loop => "loop",
            Self::LocalAddress => "local_address",
        }
    }
}

impl Capture {
    /// With these listeners; `own` is who we are, for metrics.
    pub fn new(refuse_unknown: bool, listeners: Vec<u16>, own: &Party, now: Instant) -> Self {
        let nobody = || Some((Arc::from(""), Arc::from("passthrough")));
        let outbound = ScopeLabels {
            reporter: "source",
            source: own.clone(),
            service: nobody(),
            ..ScopeLabels::default()
        };
        let inbound = ScopeLabels {
            reporter: "destination",
            source: Party::default(),
            destination: own.clone(),
            ..outbound.clone()
        };
        Self {
            refuse_unknown,
            listeners,
            outbound: Scope::new(outbound),
            inbound: Scope::new(inbound),
            dialled: Arc::new(Dialled::new(now)),
            unanswered: AtomicU64::new(0),
            told: AtomicBool::new(false),
        }
    }

    /// Whether a connection from `peer` to `original` must not go there. From outside `original` is one of our own
    /// addresses in any case; what our application calls is only if it is the caller's, too.
    pub fn astray(
        &self,
        direction: Direction,
        peer: SocketAddr,
        original: SocketAddr,
    ) -> Option<Astray> {
        let (from, to) = (peer.ip().to_canonical(), original.ip().to_canonical());
        let here = direction == Direction::Inbound || from == to || to.is_loopback();
        if here && self.listeners.contains(&original.port()) {
            return Some(Astray::OwnListener);
        }
        // Who listens there wants to be heard by nobody else; and no route leads here for the second, where clouds have
        // what tells machines who they are.
        if direction == Direction::Inbound && is_local(to) {
            return Some(Astray::LocalAddress);
        }
        let ours = match direction {
            Direction::Inbound => from == connect::application_source(from),
            Direction::Outbound => self.dialled.is_ours(peer, original, Instant::now()),
        };
        if ours && !self.told.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "our own connection to {original} was led back to us: the rules must except the user or group as which \
                 this proxy runs (`leno redirect install --user`)"
            );
        }
        ours.then_some(Astray::Loop)
    }

    fn scope(&self, direction: Direction) -> Arc<Scope> {
        match direction {
            Direction::Outbound => self.outbound.clone(),
            Direction::Inbound => self.inbound.clone(),
        }
    }
}

/// Whether `address` (canonical) means this machine for everybody, or one on the same link only. Link-local addresses of
/// IPv6 every interface has: neighbours may call declared ports by them.
fn is_local(address: IpAddr) -> bool {
    address.is_loopback() || matches!(address, IpAddr::V4(v4) if v4.is_link_local())
}

/// The service that answers to `host`, which may be an address; asked for when it is not known. `None` when nobody
/// answers to it, or the control plane does not say.
pub async fn find(worker: &Worker, host: &str) -> Option<Arc<Service>> {
    let snapshot = worker.snapshot();
    if let Some(service) = snapshot.service(host) {
        return Some(service.clone());
    }
    let shared = &worker.shared;
    let (published, limit) = (&shared.published, shared.on_demand_timeout);
    if snapshot.absent.contains(host) || !published.want(host) || is_silent(shared) {
        return None;
    }
    match tokio::time::timeout(limit, published.arrival(host)).await {
        Ok(snapshot) => snapshot.service(host).cloned(),
        Err(_) => {
            tracing::warn!(
                "the control plane does not say who answers to `{host}`: taken for nobody"
            );
            note_silence(shared);
            None
        }
    }
}

/// The service at `address`, as far as that is known now; if it is not, it is asked for.
pub fn known_at(worker: &Worker, address: IpAddr) -> Option<Arc<Service>> {
    let (host, snapshot) = (address.to_canonical().to_string(), worker.snapshot());
    let found = snapshot.service(&host).cloned();
    if found.is_none() && !snapshot.absent.contains(&host) {
        worker.shared.published.want(&host);
    }
    found
}

fn is_silent(shared: &Shared) -> bool {
    shared.capture.as_ref().is_some_and(|capture| {
        Duration::from_millis(capture.unanswered.load(Ordering::Relaxed)) > shared.now()
    })
}

fn note_silence(shared: &Shared) {
    if let Some(capture) = &shared.capture {
        let until = u64::try_from((shared.now() + UNANSWERED).as_millis()).unwrap_or(u64::MAX);
        capture.unanswered.store(until, Ordering::Relaxed);
    }
}

/// Where a captured connection was going, `original`, as a cluster of that one address: the same for all that is sent
/// on the connection.
///
/// # Errors
/// NR when such connections are refused.
pub fn passthrough(
    shared: &Shared,
    downstream: &Downstream,
    original: SocketAddr,
) -> Result<Arc<Cluster>, Error> {
    let direction = downstream.direction;
    let (Some(capture), Some(captured)) = (&shared.capture, downstream.captured()) else {
        return Err(unknown(original));
    };
    if direction == Direction::Outbound && capture.refuse_unknown {
        return Err(unknown(original));
    }
    let make = || Arc::new(cluster(original, direction, capture.scope(direction)));
    Ok(captured.passthrough.get_or_init(make).clone())
}

fn unknown(original: SocketAddr) -> Error {
    let detail =
        format!("the mesh knows nobody at {original}, and what it does not know is refused");
    Error::ours(StatusCode::NOT_FOUND, Flag::NR, detail)
}

fn cluster(original: SocketAddr, direction: Direction, scope: Arc<Scope>) -> Cluster {
    let endpoint = match direction {
        Direction::Outbound => Endpoint::outside(original, scope.clone()),
        Direction::Inbound => Endpoint::own("".into(), original, scope.clone()),
    };
    let key = ClusterKey::Passthrough(original);
    Cluster {
        name: key.to_string().into(),
        key,
        destination: None,
        protocol: Protocol::Auto,
        settings: Settings { connect_timeout: CONNECT_TIMEOUT, ..Settings::default() }.into(),
        endpoints: vec![endpoint].into(),
        scope,
        state: Arc::new(State::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn nothing_is_led_to_our_own_listeners_or_from_ourselves() {
        let own = Party::default();
        let capture = Capture::new(false, vec![15001, 15006], &own, Instant::now());
        let (inbound, outbound) = (Direction::Inbound, Direction::Outbound);
        for (direction, peer, original, expected) in [
            (inbound, "10.0.0.9:1", "10.0.0.1:15001", Some(Astray::OwnListener)),
            (inbound, "10.0.0.9:1", "[fd00::1]:15006", Some(Astray::OwnListener)),
            (inbound, "10.0.0.9:1", "10.0.0.1:9001", None),
            (inbound, "127.0.0.6:1", "10.0.0.1:9001", Some(Astray::Loop)),
            (inbound, "[::6]:1", "[fd00::1]:9001", Some(Astray::Loop)),
            (inbound, "10.0.0.9:1", "127.0.0.1:9001", Some(Astray::LocalAddress)),
            (inbound, "10.0.0.9:1", "127.1.2.3:9001", Some(Astray::LocalAddress)),
            (inbound, "[fd00::9]:1", "[::1]:9001", Some(Astray::LocalAddress)),
            (inbound, "10.0.0.9:1", "[::ffff:127.0.0.1]:9001", Some(Astray::LocalAddress)),
            (inbound, "10.0.0.9:1", "169.254.169.254:80", Some(Astray::LocalAddress)),
            (inbound, "10.0.0.9:1", "[::ffff:169.254.1.1]:80", Some(Astray::LocalAddress)),
            (inbound, "10.0.0.9:1", "127.0.0.1:15001", Some(Astray::OwnListener)),
            (inbound, "[fe80::9]:1", "[fe80::1]:9001", None),
            (outbound, "10.0.0.1:1", "169.254.169.254:80", None),
            (outbound, "10.0.0.1:1", "10.0.0.1:15006", Some(Astray::OwnListener)),
            (outbound, "10.0.0.1:1", "127.0.0.6:15001", Some(Astray::OwnListener)),
            // The sidecar of somebody else.
            (outbound, "10.0.0.1:1", "10.0.0.2:15006", None),
            (outbound, "10.0.0.1:1", "10.0.0.2:80", None),
        ] {
            let found = capture.astray(direction, at(peer), at(original));
            assert_eq!(found, expected, "{direction:?} {peer} {original}");
        }
        capture.dialled.note(at("10.0.0.1:1"), at("10.0.0.2:80"), Instant::now());
        let found = capture.astray(outbound, at("10.0.0.1:1"), at("10.0.0.2:80"));
        assert_eq!(found, Some(Astray::Loop));
    }
}
