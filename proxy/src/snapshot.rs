//! The compiled configuration: immutable, shared by all workers, swapped as a whole.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{HeaderValue, uri::Authority};
use leno_api::model::{
    ObjectName,
    authorization_policy::AuthorizationPolicy,
    fault_policy::FaultPolicy,
    filter::{HeaderChanges, PathChange, Redirect},
    http_route::RouteRetry,
    peer_authentication::TlsMode,
    rate_limit_policy::RateLimitPolicy,
    request_authentication::RequestAuthentication,
    service::Protocol,
};
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::{mpsc, watch};

use crate::{
    cache::{Cache, Rules},
    cluster::{Cluster, ClusterKey},
    filter::{authz::Policies, jwt::Jwt, rate_limit::Limit, wasm::Chain},
    route::{split::Split, table::Table},
};

/// Hosts that callers asked for and nobody has looked up yet.
const MAX_WANTED: usize = 1024;

/// Everything that requests are decided by.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Rises with every change.
    pub generation: u64,
    /// Whether a configuration has arrived at all; until then the proxy is not ready.
    pub loaded: bool,
    /// Names callers use.
    pub hosts: Arc<Hosts>,
    /// Services in the order in which `hosts` numbers them.
    pub services: Vec<Arc<Service>>,
    /// Every cluster, for those that look at all of them.
    pub clusters: BTreeMap<ClusterKey, Arc<Cluster>>,
    /// What callers of our own application may reach.
    pub inbound: Arc<Inbound>,
    /// Which clusters fail on purpose, and how; mostly none.
    pub faults: Arc<FxHashMap<ClusterKey, Arc<FaultPolicy>>>,
    /// What is kept of responses, by the name of the policy under which it is.
    pub caches: Arc<BTreeMap<ObjectName, Arc<Cache>>>,
    /// Hosts that the control plane says nobody answers to.
    pub absent: Arc<FxHashSet<String>>,
}

/// Names of services as seen from the proxy's own namespace.
#[derive(Debug, Default)]
pub struct Hosts {
    /// Lower case, without port.
    pub exact: FxHashMap<Box<str>, u32>,
    /// Suffixes with their dot, longest first.
    pub wildcards: Vec<(Box<str>, u32)>,
}

/// A service as callers see it.
#[derive(Debug)]
pub struct Service {
    /// Which one.
    pub name: ObjectName,
    /// Never empty.
    pub ports: Vec<Port>,
}

/// A port of a service, with the routes of its callers.
#[derive(Debug)]
pub struct Port {
    /// As callers write it.
    pub number: u16,
    /// Its name.
    pub name: String,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Empty where no route applies: everything goes to `cluster`.
    pub routes: Table<Arc<Rule>>,
    /// Where connections go that are not HTTP; `None` without a TCPRoute.
    pub tcp: Option<Split<Backend>>,
    /// The service's own endpoints.
    pub cluster: Arc<Cluster>,
    /// Plugins that see every call to this port; `None` where there are none.
    pub plugins: Option<Arc<Chain>>,
    /// How responses are kept where no route says otherwise; `None` where they are not.
    pub cache: Option<Arc<Rules>>,
}

/// One rule of a route.
#[derive(Debug)]
pub struct Rule {
    /// `HTTPRoute shop/orders`.
    pub route: Arc<str>,
    /// As the user named it, or its number.
    pub name: String,
    /// For people: what it matches.
    pub matches: Vec<String>,
    /// Changes to the request.
    pub request_headers: Vec<HeaderChanges>,
    /// Changes to the response.
    pub response_headers: Vec<HeaderChanges>,
    /// Answers instead of forwarding.
    pub redirect: Option<Redirect>,
    /// New authority.
    pub authority: Option<(Authority, HeaderValue)>,
    /// New path.
    pub path: Option<PathChange>,
    /// Copies.
    pub mirrors: Vec<Mirror>,
    /// Where it goes.
    pub backends: Split<Backend>,
    /// For the whole exchange; `ZERO` is none, `None` leaves it to the cluster.
    pub request_timeout: Option<Duration>,
    /// For one attempt; `ZERO` is none, `None` leaves it to the cluster.
    pub attempt_timeout: Option<Duration>,
    /// What is sent again, beside what the cluster's policy says.
    pub retry: Option<RouteRetry>,
    /// How responses are kept, whether the route says so or the port; `None` where they are not.
    pub cache: Option<Arc<Rules>>,
}

/// A share of the traffic.
#[derive(Debug)]
pub struct Backend {
    /// `shop/orders:80` as the route names it.
    pub name: Arc<str>,
    /// `None` when there is no such service or port: this share is answered with 500.
    pub cluster: Option<Arc<Cluster>>,
    /// Changes to the request.
    pub request_headers: Vec<HeaderChanges>,
    /// Changes to the response.
    pub response_headers: Vec<HeaderChanges>,
}

/// Where copies go, and of how many requests.
#[derive(Debug)]
pub struct Mirror {
    /// Where.
    pub cluster: Arc<Cluster>,
    /// `numerator` of `denominator`.
    pub numerator: u32,
    /// At least 1.
    pub denominator: u32,
}

/// Ports of our own application.
#[derive(Debug, Default)]
pub struct Inbound {
    /// By `shop/orders:80`, as the calling sidecar names it.
    pub by_destination: FxHashMap<Box<str>, Arc<InboundPort>>,
    /// By host and port, as a caller without a sidecar names it.
    pub by_host: FxHashMap<(Box<str>, u16), Arc<InboundPort>>,
    /// By the application's own port, as a caller without a sidecar reaches it where connections are led through us.
    /// Where several ports of services lead there, the strictest.
    pub by_port: FxHashMap<u16, Arc<InboundPort>>,
    /// What holds at ports of the application that no service has; `None` while our own workload is not known.
    pub undeclared: Option<Undeclared>,
    /// The only port that speaks HTTP, when there is one only.
    pub only_http: Option<Arc<InboundPort>>,
    /// The only port that may speak something else, when there is one only.
    pub only_tcp: Option<Arc<InboundPort>>,
    /// Whether mutual TLS is taken at all.
    pub tls: bool,
    /// Whether every port takes nothing else.
    pub only_tls: bool,
    /// All rate limits of all ports.
    pub limits: BTreeMap<LimitId, HeldLimit>,
}

/// What holds at ports of the application that no service has.
#[derive(Clone, Debug)]
pub struct Undeclared {
    /// Which connections they take.
    pub mode: TlsMode,
    /// Those of which a policy says something else.
    pub modes: BTreeMap<u16, TlsMode>,
    /// Who may call; `None` where everybody may.
    pub guards: Option<Arc<Guards>>,
}

impl Undeclared {
    /// Which connections `port` takes.
    pub fn mode(&self, port: u16) -> TlsMode {
        self.modes.get(&port).copied().unwrap_or(self.mode)
    }
}

/// What identifies a rate limit: all ports of a service have one together, each service has its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LimitId {
    /// For which service.
    pub service: ObjectName,
    /// Of which policy.
    pub policy: ObjectName,
    /// Its name within the policy.
    pub name: Arc<str>,
}

/// A rate limit, and what it was compiled from.
#[derive(Clone, Debug)]
pub struct HeldLimit {
    /// As long as this is the same, so is the limit.
    pub source: Arc<RateLimitPolicy>,
    /// The limit with its counts, which outlive a change.
    pub limit: Arc<Limit>,
}

/// A port of our own application.
#[derive(Debug)]
pub struct InboundPort {
    /// `shop/orders:80`.
    pub destination: Arc<str>,
    /// What is spoken there.
    pub protocol: Protocol,
    /// With the application as its one endpoint.
    pub cluster: Arc<Cluster>,
    /// Where the application listens.
    pub address: SocketAddr,
    /// Which connections it takes.
    pub mode: TlsMode,
    /// Who may call; `None` where everybody may.
    pub guards: Option<Arc<Guards>>,
    /// Plugins that see what it gets; `None` where there are none.
    pub plugins: Option<Arc<Chain>>,
    /// How much it takes from whom.
    pub limits: Box<[Arc<Limit>]>,
}

/// Who may call a port of our own application. Carried over as long as the policies are the same: verified tokens
/// belong to the rule that accepted them.
#[derive(Debug)]
pub struct Guards {
    /// Who a request is from by its token.
    pub jwt: Jwt,
    /// Who may do what.
    pub authz: Policies,
    /// What they were compiled from.
    pub policies: (Vec<Arc<RequestAuthentication>>, Vec<Arc<AuthorizationPolicy>>),
}

impl Snapshot {
    /// The service that `host` (lower case, without port) means.
    pub fn service(&self, host: &str) -> Option<&Arc<Service>> {
        self.services.get(self.hosts.find(host)? as usize)
    }

    /// The clusters of the service to which `key` belongs, of the same kind.
    pub fn of_service(&self, key: &ClusterKey) -> impl Iterator<Item = &Arc<Cluster>> {
        let range = match key {
            ClusterKey::Service(name, _) => {
                let port = |port| ClusterKey::Service(name.clone(), port);
                port(0)..=port(u16::MAX)
            }
            ClusterKey::Application(name, _) => {
                let address = |ip: IpAddr, port| {
                    ClusterKey::Application(name.clone(), SocketAddr::new(ip, port))
                };
                address(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)
                    ..=address(IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)), u16::MAX)
            }
            // Of no service, and in no snapshot.
            ClusterKey::Passthrough(_) => key.clone()..=key.clone(),
        };
        self.clusters.range(range).map(|(_, cluster)| cluster)
    }
}

impl Hosts {
    /// The number of the service that `host` means.
    pub fn find(&self, host: &str) -> Option<u32> {
        let by_suffix = || {
            let fits = |(suffix, _): &&(Box<str>, u32)| {
                host.len() > suffix.len() && host.ends_with(&**suffix)
            };
            self.wildcards.iter().find(fits).map(|(_, at)| *at)
        };
        self.exact.get(host).copied().or_else(by_suffix)
    }
}

impl Service {
    /// The port that a request for `number` means. Without a number it is 80, else the only one, else the only one
    /// that speaks HTTP.
    pub fn port(&self, number: Option<u16>) -> Option<&Port> {
        let by_number = |number| self.ports.iter().find(|port| port.number == number);
        match number {
            Some(number) => by_number(number),
            None => by_number(80).or_else(|| {
                let mut http = self.ports.iter().filter(|port| port.protocol != Protocol::Tcp);
                http.next().filter(|_| http.next().is_none())
            }),
        }
    }
}

/// Where the current snapshot is found, and where workers ask for hosts that are not in it.
#[derive(Debug)]
pub struct Published {
    current: ArcSwap<Snapshot>,
    generation: watch::Sender<u64>,
    /// `None` when the source knows everything already (a file).
    wanted: Option<mpsc::Sender<String>>,
}

impl Published {
    /// An empty snapshot. The receiver hears of hosts that are asked for, when `on_demand`.
    pub fn new(on_demand: bool) -> (Arc<Self>, mpsc::Receiver<String>) {
        let (sender, receiver) = mpsc::channel(MAX_WANTED);
        let wanted = on_demand.then_some(sender);
        let published =
            Self { current: ArcSwap::default(), generation: watch::Sender::new(0), wanted };
        (Arc::new(published), receiver)
    }

    /// A reader for one worker: it reloads only when the pointer has changed.
    pub fn cache(self: &Arc<Self>) -> arc_swap::Cache<Handle, Arc<Snapshot>> {
        arc_swap::Cache::new(Handle(self.clone()))
    }

    /// The snapshot in force.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Puts `snapshot` in force.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        let generation = snapshot.generation;
        self.current.store(snapshot);
        self.generation.send_replace(generation);
    }

    /// Hears of every new generation.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Whether services are asked for when they are needed (a control plane), instead of all being there (a file).
    pub fn is_on_demand(&self) -> bool {
        self.wanted.is_some()
    }

    /// Waits until it is known which ports our application has, for at most `limit`. A sidecar that has just been
    /// registered is called before its own configuration has arrived.
    pub async fn inbound_known(&self, limit: Duration) {
        let mut generations = self.generation.subscribe();
        let known = async {
            while self.current.load().inbound.by_destination.is_empty() {
                if generations.changed().await.is_err() {
                    return;
                }
            }
        };
        // Without an application of ours there is nothing to know; then callers are told so.
        let _ = tokio::time::timeout(limit, known).await;
    }

    /// Waits until a snapshot says who answers to `host`, or that nobody does; whoever asked for it sets the limit.
    pub async fn arrival(&self, host: &str) -> Arc<Snapshot> {
        let mut generations = self.generation.subscribe();
        loop {
            // The answer may have come between the caller's snapshot and the question.
            let snapshot = self.load();
            if snapshot.service(host).is_some() || snapshot.absent.contains(host) {
                return snapshot;
            }
            if generations.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Asks for a host that is not in the snapshot. Says whether anybody can be asked.
    pub fn want(&self, host: &str) -> bool {
        // A full queue is as good as having asked: the caller waits and fails as it would for an absent host.
        self.wanted.as_ref().is_some_and(|wanted| {
            !matches!(wanted.try_send(host.to_owned()), Err(mpsc::error::TrySendError::Closed(_)))
        })
    }
}

/// Gives `arc_swap::Cache` access to the pointer inside [`Published`].
#[derive(Clone, Debug)]
pub struct Handle(Arc<Published>);

impl std::ops::Deref for Handle {
    type Target = ArcSwap<Snapshot>;

    fn deref(&self) -> &Self::Target {
        &self.0.current
    }
}
