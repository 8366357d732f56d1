//! What changed for one proxy, and in which order it may be told.

use std::{collections::HashMap, sync::Arc};

use leno_api::{Key, KindInfo, model::ObjectName};

use super::{Item, Wish};

/// Changes of one proxy's scope, by state: a later change of the same object replaces the earlier one, so a
/// delta is never larger than the scope, however long it waits.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// What the proxy should have now of each object; `None` is nothing.
    pub items: HashMap<Key, Option<Arc<Item>>>,
    /// Which services answer to each wish now.
    pub answers: HashMap<Wish, Vec<ObjectName>>,
}

impl Delta {
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.answers.is_empty()
    }

    /// Takes up a later delta.
    pub fn merge(&mut self, later: Self) {
        if self.is_empty() {
            *self = later;
            return;
        }
        self.items.extend(later.items);
        self.answers.extend(later.answers);
    }
}

/// When objects of this kind are sent: referred before referring, so that no intermediate state refers to
/// what has not arrived. Removals go in the opposite order.
pub fn rank(kind: &KindInfo) -> u8 {
    match kind.kind {
        "Service" => 0,
        // Whom to trust, before the workloads that are to be trusted.
        "TrustBundle" => 1,
        "Workload" => 2,
        "HTTPRoute" => 4,
        "GRPCRoute" => 5,
        "TCPRoute" => 6,
        // Policies: after the services that they are about, before traffic is routed there.
        _ => 3,
    }
}

/// What a proxy made of one version of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub key: Key,
    pub version: Arc<str>,
    /// Live, or the reason why not.
    pub result: Result<(), String>,
}
