//! Whom an exchange is counted for: the labels that do not change from one to the next.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use rustc_hash::FxHashMap;

use super::metrics::SeriesKey;

/// Names of the labels, in the order of [`ScopeLabels::values`].
pub(super) const SCOPE_LABELS: [&str; 14] = [
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_version",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_version",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "destination_zone",
    "connection_security_policy",
];
/// Callers of one port that have series of their own; all others share one. Service accounts are few, but whoever
/// may ask for certificates could invent them without end.
const MAX_CALLERS: usize = 256;

/// Values for the labels that do not change from request to request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ScopeLabels {
    /// `source` (outbound) or `destination` (inbound).
    pub reporter: &'static str,
    /// Name and namespace of the calling workload, and its version label.
    pub source: Party,
    /// The workload that answers.
    pub destination: Party,
    /// The service called.
    pub service: Option<(Arc<str>, Arc<str>)>,
    /// Where it runs.
    pub destination_zone: Arc<str>,
    /// Who is at the ends, as proven. `None` where the hop is plain.
    pub proven: Option<Proven>,
}

/// Identities at the ends of a hop under mutual TLS, as `spiffe://...`; `None` where it is not said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Proven {
    /// The caller.
    pub source: Option<Arc<str>>,
    /// Who answers.
    pub destination: Option<Arc<str>>,
}

/// One end of a call; empty parts are reported as `unknown`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Party {
    /// Name.
    pub workload: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Label `version`.
    pub version: Arc<str>,
}

/// The fixed part of a family of series: one per endpoint (or per service, where no endpoint was reached), and per
/// caller that is known.
#[derive(Debug)]
pub struct Scope {
    pub(super) id: u64,
    labels: ScopeLabels,
    used: Mutex<Used>,
}

/// The series of a scope.
#[derive(Debug, Default)]
pub(super) struct Used {
    /// Their variable labels, kept so that they can be removed with the endpoint.
    pub(super) keys: Vec<SeriesKey>,
    /// Whether they have been: what ends later adds no more.
    pub(super) gone: bool,
}

/// Scopes of the callers of one port, by the identities that they have proven.
#[derive(Debug, Default)]
pub struct Callers(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// All that came after there were too many share the one without a name.
    scopes: FxHashMap<Option<Arc<str>>, Arc<Scope>>,
    gone: bool,
}

impl Scope {
    /// A scope with an identity of its own.
    pub fn new(labels: ScopeLabels) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { id, labels, used: Mutex::default() })
    }

    /// The labels it was made with.
    pub fn labels(&self) -> &ScopeLabels {
        &self.labels
    }

    pub(super) fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Callers {
    /// The scope for `caller` (`spiffe://...`), which has called under TLS what is otherwise counted for `port`. `own`
    /// is who we proved to be. For the start of a connection: it takes a lock that all workers share.
    pub fn scope(&self, port: &Scope, caller: &Arc<str>, own: &Arc<str>) -> Arc<Scope> {
        let mut known = self.known();
        let name = Some(caller.clone());
        if let Some(scope) = known.scopes.get(&name) {
            return scope.clone();
        }
        let name = name.filter(|_| known.scopes.len() < MAX_CALLERS);
        let new = || {
            let proven = Some(Proven { source: name.clone(), destination: Some(own.clone()) });
            Scope::new(ScopeLabels { proven, ..port.labels.clone() })
        };
        if known.gone {
            let late = new();
            late.used().gone = true;
            return late;
        }
        known.scopes.entry(name.clone()).or_insert_with(new).clone()
    }

    /// Everybody so far.
    pub fn all(&self) -> Vec<Arc<Scope>> {
        self.known().scopes.values().cloned().collect()
    }

    /// Everybody so far, when the port is no more; whoever comes later is counted nowhere.
    pub fn retire(&self) -> Vec<Arc<Scope>> {
        let mut known = self.known();
        known.gone = true;
        known.scopes.drain().map(|(_, scope)| scope).collect()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ScopeLabels {
    pub(super) fn values(&self) -> [&str; SCOPE_LABELS.len()] {
        let known = |text| if str::is_empty(text) { "unknown" } else { text };
        let (namespace, name) =
            self.service.as_ref().map_or(("", ""), |(namespace, name)| (namespace, name));
        let proven = |end: fn(&Proven) -> &Option<Arc<str>>| {
            self.proven.as_ref().and_then(|proven| end(proven).as_deref()).unwrap_or("unknown")
        };
        [
            self.reporter,
            known(&self.source.workload),
            known(&self.source.namespace),
            proven(|proven| &proven.source),
            known(&self.source.version),
            known(&self.destination.workload),
            known(&self.destination.namespace),
            proven(|proven| &proven.destination),
            known(&self.destination.version),
            known(name),
            known(name),
            known(namespace),
            known(&self.destination_zone),
            if self.proven.is_some() { "mutual_tls" } else { "none" },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_have_series_of_their_own_up_to_a_bound() {
        let (callers, port) = (Callers::default(), Scope::new(ScopeLabels::default()));
        let own: Arc<str> = "spiffe://mesh/ns/shop/sa/orders".into();
        let scope =
            |number: usize| callers.scope(&port, &format!("spiffe://{number}").into(), &own);
        let first = scope(0);
        assert_eq!(first.labels().values()[3], "spiffe://0");
        assert_eq!(first.labels().values()[7], &*own);
        assert_eq!(first.labels().values()[13], "mutual_tls");
        for number in 1..MAX_CALLERS {
            assert!(!Arc::ptr_eq(&scope(number), &first));
        }
        let (late, later) = (scope(MAX_CALLERS), scope(MAX_CALLERS + 1));
        assert!(Arc::ptr_eq(&late, &later));
        assert_eq!(late.labels().values()[3], "unknown");
        assert!(Arc::ptr_eq(&scope(0), &first), "known ones keep theirs");
        assert_eq!(callers.retire().len(), MAX_CALLERS + 1);
        assert!(scope(0).used().gone && callers.retire().is_empty());
    }

    #[test]
    fn plain_hops_prove_nothing() {
        let labels = ScopeLabels { reporter: "source", ..ScopeLabels::default() };
        let values = labels.values();
        assert_eq!(
            (values[0], values[3], values[7], values[13]),
            ("source", "unknown", "unknown", "none")
        );
    }
}
