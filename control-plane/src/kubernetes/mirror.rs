//! Brings what the watches say into the store: the single writer of everything that comes from Kubernetes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use leno_api::model::ObjectName;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};

use super::{
    customs::Customs,
    mapping::Reading,
    metrics::Metrics,
    watch::{Event, Scope, Why},
    world::{self, Change, Fact, Source, World},
};
use crate::store::{self, Expect, Key, Operation, Store};

/// Events taken up before what follows from them is written.
const EVENTS_AT_ONCE: usize = 1000;
/// So often in a row must be said that a kind is not there or may not be read before it is done without: an API server
/// that starts says so of everything until it knows its definitions and roles. With the waits between, some 2 s.
const VERDICTS: u32 = 5;
/// Objects in one transaction; below the store's own limit.
const WRITES_AT_ONCE: usize = 500;

pub(super) struct Mirror {
    store: Arc<dyn Store>,
    customs: Arc<Customs>,
    metrics: Metrics,
    world: World,
    /// What is in the store because of us.
    mirrored: HashMap<Key, Mirrored>,
    pending: BTreeMap<Key, Option<Value>>,
    /// Scopes that were never listed yet.
    awaited: HashSet<(&'static str, Option<String>)>,
    /// How often in a row those were refused.
    refused: HashMap<(&'static str, Option<String>), u32>,
    /// Scopes that give nothing now, so that each is said once.
    silent: HashMap<(&'static str, Option<String>), Why>,
    /// By source, the objects that are left out, with the reason.
    left_out: HashMap<(&'static str, ObjectName), String>,
    synced: watch::Sender<bool>,
    meshed: watch::Sender<BTreeSet<Arc<str>>>,
}

/// As it was written last; not kept itself, since there may be ten thousand.
#[derive(Debug)]
struct Mirrored {
    /// Of the object as Kubernetes has it.
    digest: [u8; 32],
    generation: u64,
}

impl Mirror {
    pub(super) fn new(
        store: Arc<dyn Store>,
        customs: Arc<Customs>,
        metrics: Metrics,
        scopes: &[Scope],
        synced: watch::Sender<bool>,
        meshed: watch::Sender<BTreeSet<Arc<str>>>,
    ) -> Self {
        Self {
            store,
            customs,
            metrics,
            world: World::default(),
            mirrored: HashMap::new(),
            pending: BTreeMap::new(),
            awaited: scopes.iter().map(id).collect(),
            refused: HashMap::new(),
            silent: HashMap::new(),
            left_out: HashMap::new(),
            synced,
            meshed,
        }
    }

    /// Runs until the store closes or the watches end.
    pub(super) async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        while let Some(first) = events.recv().await {
            let mut pods = self.take_up(first);
            for _ in 1..EVENTS_AT_ONCE {
                let Ok(event) = events.try_recv() else { break };
                pods |= self.take_up(event);
            }
            if self.commit().await.is_err() {
                return;
            }
            if pods {
                let meshed = self.world.meshed();
                self.meshed.send_if_modified(|now| {
                    let changed = *now != meshed;
                    *now = meshed;
                    changed
                });
            }
            if self.awaited.is_empty() {
                self.synced.send_if_modified(|synced| !std::mem::replace(synced, true));
            }
        }
    }

    /// Whether pods or namespaces may have changed.
    fn take_up(&mut self, event: Event) -> bool {
        match event {
            Event::Put { source, name, fact, seen } => {
                self.spoken(source, &name, &fact);
                if let (Source::Custom(kind), Some(seen)) = (source, seen) {
                    let refusal = match &fact {
                        Fact::Custom(Reading::Invalid(invalid)) => Some(invalid.to_string()),
                        _ => None,
                    };
                    let ours = !matches!(fact, Fact::Custom(Reading::NotOurs));
                    self.customs.put(world::key(kind, &name), seen, refusal, ours);
                }
                let changes = self.world.put(source, name, fact);
                self.note(changes);
                matches!(source, Source::Pods | Source::Namespaces)
            }
            Event::Gone { source, name } => {
                self.gone(source, &name);
                matches!(source, Source::Pods | Source::Namespaces)
            }
            Event::Listed { scope, there } => {
                self.listed(&scope, &there);
                true
            }
            Event::Unreadable { source, name, reason } => {
                self.leave_out(source, &name, reason);
                false
            }
            Event::Failed { scope, why } => {
                self.failed(&scope, why);
                false
            }
        }
    }

    fn gone(&mut self, source: Source, name: &ObjectName) {
        if let Source::Custom(kind) = source {
            self.customs.remove(&world::key(kind, name));
        }
        self.used(source, name);
        let changes = self.world.remove(source, name);
        self.note(changes);
    }

    fn listed(&mut self, scope: &Scope, there: &HashSet<ObjectName>) {
        if let Some(why) = self.silent.remove(&id(scope)) {
            tracing::info!(kind = scope.source.label(), namespace = ?scope.namespace, ?why, "Kubernetes can be read again");
        }
        if let Source::Custom(kind) = scope.source {
            self.customs.retain(kind, scope.namespace.as_deref(), there);
        }
        let namespace = scope.namespace.as_deref();
        let changes = self.world.retain(scope.source, namespace, there);
        self.note(changes);
        let label = scope.source.label();
        let inside = |name: &ObjectName| namespace.is_none_or(|only| *name.namespace == *only);
        self.left_out
            .retain(|(kind, name), _| *kind != label || !inside(name) || there.contains(name));
        self.awaited.remove(&id(scope));
    }

    fn failed(&mut self, scope: &Scope, why: Why) {
        let kind = scope.source.label();
        self.metrics.watch_errors.with_label_values(&[kind]).inc();
        let without = can_be_done_without(scope.source, &why);
        if self.awaited.contains(&id(scope)) {
            let refused = self.refused.entry(id(scope)).or_default();
            *refused = if without { *refused + 1 } else { 0 };
            if *refused >= VERDICTS {
                self.awaited.remove(&id(scope));
            }
        }
        let known = self.silent.get(&id(scope)) == Some(&why);
        if known || why == Why::Gone {
            return;
        }
        let namespace = scope.namespace.as_deref().unwrap_or("(all)");
        let verdict = matches!(why, Why::Absent | Why::Forbidden(_));
        if self.awaited.contains(&id(scope)) && verdict && !without {
            tracing::error!(
                kind,
                namespace,
                ?why,
                "the control plane does not get ready before it has read this: without it proxies would be told that services and their pods are gone"
            );
        }
        match &why {
            Why::Absent if !matches!(scope.source, Source::Custom(_)) => tracing::error!(
                kind,
                namespace,
                "Kubernetes does not have this kind in any version that is known here: Kubernetes 1.17 or later is needed; it is looked for again"
            ),
            Why::Absent => tracing::info!(
                kind,
                namespace,
                "this kind is not installed in Kubernetes (`leno install` has our CRDs, Gateway API's come from its project); it is looked for again"
            ),
            Why::Forbidden(reason) => tracing::error!(
                kind,
                namespace,
                reason,
                "Kubernetes does not let us list and watch this: give our service account the rights that `leno install` prints; what was read before stays"
            ),
            Why::Gone | Why::Other(_) => tracing::warn!(
                kind,
                namespace,
                ?why,
                "Kubernetes cannot be read now; what was read before stays, and it is tried again"
            ),
        }
        self.silent.insert(id(scope), why);
    }

    /// Says once that an object cannot be used, and once that it can again.
    fn spoken(&mut self, source: Source, name: &ObjectName, fact: &Fact) {
        match fact {
            Fact::Custom(Reading::Invalid(invalid)) => {
                self.leave_out(source, name, invalid.to_string());
            }
            _ => self.used(source, name),
        }
    }

    fn leave_out(&mut self, source: Source, name: &ObjectName, reason: String) {
        let key = (source.label(), name.clone());
        if self.left_out.get(&key) == Some(&reason) {
            return;
        }
        tracing::warn!(kind = source.label(), %name, reason, "an object of Kubernetes cannot be used and is left out; its last good version stays, if there was one");
        self.left_out.insert(key, reason);
    }

    fn used(&mut self, source: Source, name: &ObjectName) {
        self.left_out.remove(&(source.label(), name.clone()));
    }

    fn note(&mut self, changes: Vec<Change>) {
        for Change { key, object } in changes {
            self.pending.insert(key, object);
        }
    }

    /// Writes what has changed.
    ///
    /// # Errors
    /// When the store has closed.
    async fn commit(&mut self) -> Result<(), store::Error> {
        for refusal in self.world.take_refusals() {
            let world::Refusal { key, reason } = refusal;
            tracing::warn!(object = %key, reason, "what follows from Kubernetes' objects is not valid and is left out; its last good version stays, if there was one");
        }
        let pending = std::mem::take(&mut self.pending);
        let mut operations = Vec::new();
        for (key, object) in pending {
            operations.extend(self.operation(key, object));
            if operations.len() == WRITES_AT_ONCE {
                self.write(std::mem::take(&mut operations)).await?;
            }
        }
        self.write(operations).await?;
        for source in Source::all() {
            let count = i64::try_from(self.world.count(source)).unwrap_or(i64::MAX);
            self.metrics.objects.with_label_values(&[source.label()]).set(count);
        }
        self.metrics.left_out.set(i64::try_from(self.left_out.len()).unwrap_or(i64::MAX));
        Ok(())
    }

    /// `None` where the store has it like that already.
    fn operation(&mut self, key: Key, object: Option<Value>) -> Option<Operation> {
        let Some(mut object) = object else {
            // What registered here itself is not ours to remove.
            self.mirrored.remove(&key)?;
            return Some(Operation::Delete { key, expect: Expect::Any });
        };
        let digest: [u8; 32] = Sha256::digest(object.to_string()).into();
        let before = self.mirrored.get(&key);
        if before.is_some_and(|before| before.digest == digest) {
            return None;
        }
        let own = object.pointer("/metadata/generation").and_then(Value::as_u64);
        // What is derived has no generation of its own: it rises with what it says.
        let generation = own.unwrap_or_else(|| before.map_or(1, |before| before.generation + 1));
        object["metadata"]["generation"] = generation.into();
        if let Some(status) = self.store.get(&key).and_then(|stored| status_of(&stored)) {
            object["status"] = status;
        }
        self.mirrored.insert(key.clone(), Mirrored { digest, generation });
        Some(Operation::Put { key, value: object.to_string().into(), expect: Expect::Any })
    }

    /// All together; where one of them cannot be, each alone.
    async fn write(&mut self, operations: Vec<Operation>) -> Result<(), store::Error> {
        if operations.is_empty() {
            return Ok(());
        }
        match self.store.commit(operations.clone()).await {
            Ok(_) => return Ok(()),
            Err(store::Error::Closed) => return Err(store::Error::Closed),
            Err(_) => {}
        }
        for operation in operations {
            match self.store.commit(vec![operation.clone()]).await {
                Ok(_) => {}
                Err(store::Error::Closed) => return Err(store::Error::Closed),
                Err(error) => {
                    tracing::error!(%error, "an object of Kubernetes cannot be kept and is left out");
                    // Said again, it is tried again.
                    if let Operation::Put { key, .. } = &operation {
                        self.mirrored.remove(key);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether everybody is told what there is although this was never read. A kind that is not installed, or that nobody
/// may read, must not hold up the rest; but without Kubernetes' own kinds all services would seem to be gone, which after
/// a restart would take from running proxies what they have.
fn can_be_done_without(source: Source, why: &Why) -> bool {
    matches!(source, Source::Custom(_)) && matches!(why, Why::Absent | Why::Forbidden(_))
}

fn status_of(stored: &store::Stored) -> Option<Value> {
    stored.json().ok()?.get_mut("status").map(Value::take)
}

fn id(scope: &Scope) -> (&'static str, Option<String>) {
    (scope.source.label(), scope.namespace.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_waits_for_kubernetes_own_kinds_whatever_is_wrong() {
        let refused = || Why::Forbidden("no".into());
        let other = || Why::Other("no".into());
        for source in Source::all() {
            let custom = matches!(source, Source::Custom(_));
            for (why, without) in
                [(Why::Absent, custom), (refused(), custom), (Why::Gone, false), (other(), false)]
            {
                assert_eq!(can_be_done_without(source, &why), without, "{source:?} {why:?}");
            }
        }
    }
}
