//! One place requests can go.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use leno_api::model::{ObjectName, workload::Workload};

use super::{balance::Candidate, outlier::Factor, vitals::Vitals};
use crate::{
    telemetry::scope::{Party, Proven, Scope, ScopeLabels},
    tls::client::Target,
};

/// How connections to an endpoint are secured.
#[derive(Debug)]
pub enum Security {
    /// Not at all.
    Plain,
    /// Mutual TLS is due but cannot be had, and never is plain said instead.
    Unavailable(Unproven),
    /// Mutual TLS. On the heap, since most endpoints of a plain mesh need no room for it.
    Mutual(Box<Target>),
}

/// Why mutual TLS cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unproven {
    /// There was none since the start.
    NoCertificate,
    /// The name of the service does not fit into one that TLS knows.
    LongName,
}

impl Unproven {
    /// For logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoCertificate => "no certificate yet",
            Self::LongName => "the service's name is too long for TLS",
        }
    }
}

/// Who calls the endpoints of a cluster, for their metrics.
#[derive(Debug, PartialEq, Eq)]
pub struct Calling {
    /// Ourselves.
    pub source: Party,
    /// Namespace and name of the service that is called.
    pub service: (Arc<str>, Arc<str>),
    /// What we prove to be, `spiffe://...`.
    pub id: Option<Arc<str>>,
}

/// Whose an endpoint is.
#[derive(Debug)]
enum Whose {
    Workload(Arc<Workload>, Arc<Calling>),
    /// On the heap: there are few, and the others need no room for it.
    Other(Box<Other>),
}

#[derive(Debug)]
struct Other {
    /// Of the application beside us; nobody's that we know without one.
    own: Option<Arc<str>>,
    address: SocketAddr,
}

/// One place requests can go. A proxy may know ten thousand, and call a few of them.
#[derive(Debug)]
pub struct Endpoint {
    /// Unique in this process; pools are found by it.
    pub id: u64,
    whose: Whose,
    /// The sidecar's when `via_sidecar`, the application's otherwise.
    port: u16,
    /// Whether a sidecar answers there.
    pub via_sidecar: bool,
    /// Relative to its siblings; never 0 (such endpoints are left out).
    pub weight: u32,
    /// How connections to it are secured.
    pub security: Security,
    /// For metrics; made at the first call, since most of the endpoints that a proxy knows are never called.
    scope: OnceLock<Arc<Scope>>,
    /// How it does; made when somebody first asks, for the same reason.
    vitals: OnceLock<Arc<Vitals>>,
}

impl Security {
    /// Whether both ask for the same: the same identity, as part of the same service.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Plain, Self::Plain) => true,
            (Self::Unavailable(one), Self::Unavailable(other)) => one == other,
            (Self::Mutual(one), Self::Mutual(other)) => one.is_same(other),
            _ => false,
        }
    }
}

impl Endpoint {
    /// A new endpoint: `workload`, which `calling` reaches on `port`. `vitals` are those of the same instance where something is
    /// known of it.
    pub fn new(
        workload: Arc<Workload>,
        calling: Arc<Calling>,
        port: u16,
        via_sidecar: bool,
        security: Security,
        vitals: Option<Arc<Vitals>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: next_id(),
            port,
            via_sidecar,
            weight: workload.weight,
            whose: Whose::Workload(workload, calling),
            security,
            scope: OnceLock::new(),
            vitals: vitals.map_or_else(OnceLock::new, OnceLock::from),
        })
    }

    /// The application beside us, in plain; counted for `scope`.
    pub fn own(workload: Arc<str>, address: SocketAddr, scope: Arc<Scope>) -> Arc<Self> {
        Self::other(Some(workload), address, scope)
    }

    /// A place of which nothing but the address is known, in plain; counted for `scope`.
    pub fn outside(address: SocketAddr, scope: Arc<Scope>) -> Arc<Self> {
        Self::other(None, address, scope)
    }

    /// Whether it is the application beside us.
    pub fn is_own(&self) -> bool {
        matches!(&self.whose, Whose::Other(other) if other.own.is_some())
    }

    fn other(own: Option<Arc<str>>, address: SocketAddr, scope: Arc<Scope>) -> Arc<Self> {
        Arc::new(Self {
            id: next_id(),
            port: address.port(),
            via_sidecar: false,
            weight: 1,
            whose: Whose::Other(Other { own, address }.into()),
            security: Security::Plain,
            scope: scope.into(),
            vitals: OnceLock::new(),
        })
    }

    /// Where to connect.
    pub fn address(&self) -> SocketAddr {
        match &self.whose {
            Whose::Workload(workload, _) => SocketAddr::new(workload.address, self.port),
            Whose::Other(other) => other.address,
        }
    }

    /// Whose it is: `shop/orders-1`.
    pub fn workload(&self) -> String {
        match &self.whose {
            Whose::Workload(workload, _) => workload.name.to_string(),
            Whose::Other(other) => other.own.as_deref().unwrap_or_default().to_owned(),
        }
    }

    /// Whether requests are sent to `other` and counted for it in the same way.
    pub fn is_same(&self, other: &Self) -> bool {
        self.address() == other.address()
            && self.weight == other.weight
            && self.via_sidecar == other.via_sidecar
            && self.security.is_same(&other.security)
            && self.labels() == other.labels()
    }

    /// Its name and address, unique within its cluster; `None` for the application beside us.
    pub fn place(&self) -> Option<(&ObjectName, SocketAddr)> {
        match &self.whose {
            Whose::Workload(workload, _) => Some((&workload.name, self.address())),
            Whose::Other(_) => None,
        }
    }

    /// What it is counted as.
    pub fn labels(&self) -> ScopeLabels {
        match (self.scope.get(), &self.whose) {
            (Some(scope), _) => scope.labels().clone(),
            (None, Whose::Workload(workload, calling)) => labels(workload, calling, &self.security),
            (None, Whose::Other(_)) => ScopeLabels::default(),
        }
    }

    /// Whom an exchange with it is counted for.
    pub fn scope(&self) -> &Arc<Scope> {
        self.scope.get_or_init(|| Scope::new(self.labels()))
    }

    /// The same, or `heir` from now on, which takes its place, when nothing was counted yet.
    pub fn scope_or(&self, heir: &Arc<Scope>) -> &Arc<Scope> {
        self.scope.get_or_init(|| heir.clone())
    }

    /// Whether nothing is said to it in plain.
    pub fn is_secured(&self) -> bool {
        !matches!(self.security, Security::Plain)
    }

    /// Who has to be there, as `spiffe://...`; `None` where nobody proves anything.
    pub fn peer(&self) -> Option<&Arc<str>> {
        self.scope().labels().proven.as_ref()?.destination.as_ref()
    }

    /// The zone it is in, where that is known.
    pub fn zone(&self) -> Option<&str> {
        match &self.whose {
            Whose::Workload(workload, _) => workload.zone.as_deref(),
            Whose::Other(_) => None,
        }
    }

    /// How it does.
    pub fn vitals(&self) -> &Arc<Vitals> {
        self.vitals.get_or_init(Arc::default)
    }

    /// The same where something is known already: who only looks makes nothing.
    pub fn known_vitals(&self) -> Option<&Arc<Vitals>> {
        self.vitals.get()
    }

    /// Which share of what its weight says it gets.
    pub fn factor(&self) -> Factor {
        self.vitals.get().map_or(Factor::FULL, |vitals| vitals.factor())
    }

    /// Exchanges under way from this proxy.
    pub fn active(&self) -> u32 {
        self.vitals.get().map_or(0, |vitals| vitals.tally.active())
    }

    /// With `vitals` that another one had.
    #[cfg(test)]
    pub fn with_vitals(self: Arc<Self>, vitals: Arc<Vitals>) -> Arc<Self> {
        let known = self.vitals.set(vitals);
        assert!(known.is_ok(), "it has vitals of its own already");
        self
    }
}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn labels(workload: &Workload, calling: &Calling, security: &Security) -> ScopeLabels {
    ScopeLabels {
        reporter: "source",
        source: calling.source.clone(),
        destination: party(workload),
        service: Some(calling.service.clone()),
        destination_zone: workload.zone.as_deref().unwrap_or_default().into(),
        proven: proven(security, calling),
    }
}

fn proven(security: &Security, calling: &Calling) -> Option<Proven> {
    let destination = match security {
        Security::Plain => return None,
        Security::Unavailable(_) => None,
        Security::Mutual(target) => Some(target.expected().to_string().into()),
    };
    Some(Proven { source: calling.id.clone(), destination })
}

/// How a workload is named in metrics.
fn party(workload: &Workload) -> Party {
    Party {
        workload: workload.name.name.clone(),
        namespace: workload.name.namespace.clone(),
        version: workload.labels.get("version").map_or("", String::as_str).into(),
    }
}

impl Candidate for Arc<Endpoint> {
    fn weight(&self) -> u32 {
        self.weight
    }

    fn active(&self) -> u32 {
        Endpoint::active(self)
    }
}

#[cfg(test)]
mod tests {
    use leno_api::model::identity::{SpiffeId, TrustDomain};

    use super::*;

    /// A subset's endpoints are called by another name once it belongs to another service.
    #[test]
    fn whoever_is_called_by_another_name_is_another_endpoint() {
        let mutual = |name: &str, account: &str| {
            let domain = TrustDomain::parse("leno.local").unwrap();
            let expected = SpiffeId::new(&domain, "shop", account);
            Security::Mutual(Box::new(Target::new(name, expected).unwrap()))
        };
        let orders = mutual("p80.orders.shop.leno", "orders");
        assert!(orders.is_same(&mutual("p80.orders.shop.leno", "orders")));
        assert!(!orders.is_same(&mutual("p80.orders.shop.leno", "users")));
        assert!(!orders.is_same(&mutual("p81.orders.shop.leno", "orders")));
        assert!(!orders.is_same(&Security::Plain));
    }
}
