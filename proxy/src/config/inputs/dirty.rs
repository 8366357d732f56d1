//! What of a configuration is to be built anew.

use std::{collections::BTreeMap, sync::Arc};

use leno_api::{
    Key,
    model::{ObjectName, http_route::HttpRoute},
};
use rustc_hash::{FxHashMap, FxHashSet};

/// Routes of one service, with what was there at the last compilation.
pub type RouteChanges = BTreeMap<Key, Option<Arc<HttpRoute>>>;

/// What changed since the last compilation.
#[derive(Clone, Debug, Default)]
pub struct Dirty {
    /// Services whose clusters are to be built anew.
    pub clusters: FxHashSet<ObjectName>,
    /// Services whose routes are to be built anew.
    pub routes: FxHashSet<ObjectName>,
    /// Of services none of whose other parts need that: the HTTP and gRPC routes that changed, as they were, if they were.
    pub single_routes: FxHashMap<ObjectName, RouteChanges>,
    /// Whether services came, went or changed their names.
    pub hosts: bool,
    /// Whether what callers of the own application may do has changed.
    pub inbound: bool,
    /// Whether services fail on purpose in another way.
    pub faults: bool,
    /// Whether it has changed what is kept of responses, or how much.
    pub caches: bool,
}

impl Dirty {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        let something = self.hosts || self.inbound || self.faults || self.caches;
        let services = self.clusters.is_empty() && self.routes.is_empty();
        !something && services && self.single_routes.is_empty()
    }
}
