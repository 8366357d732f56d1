//! What Kubernetes last said of users' objects, and of which a status may be due: between the mirror and the writer.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use leno_api::{KindInfo, model::ObjectName};
use tokio::sync::Notify;

use super::watch::Seen;
use crate::store::Key;

#[derive(Debug, Default)]
pub(super) struct Customs {
    inner: Mutex<Inner>,
    /// Something is due.
    pub(super) changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    objects: HashMap<Key, Custom>,
    due: BTreeSet<Key>,
}

#[derive(Debug, Clone)]
pub(super) struct Custom {
    pub(super) seen: Seen,
    /// Why the control plane cannot use it.
    pub(super) refusal: Option<String>,
}

impl Customs {
    /// Kubernetes has this object. What is not ours gets no status from us, unless it had one.
    pub(super) fn put(&self, key: Key, seen: Seen, refusal: Option<String>, ours: bool) {
        let mut inner = self.inner();
        if !ours {
            inner.objects.remove(&key);
            return;
        }
        inner.objects.insert(key.clone(), Custom { seen, refusal });
        inner.due.insert(key);
        drop(inner);
        self.changed.notify_one();
    }

    pub(super) fn remove(&self, key: &Key) {
        let mut inner = self.inner();
        inner.objects.remove(key);
        inner.due.remove(key);
    }

    /// A list is complete: the rest is gone.
    pub(super) fn retain(
        &self,
        kind: &KindInfo,
        namespace: Option<&str>,
        there: &HashSet<ObjectName>,
    ) {
        let mut inner = self.inner();
        inner.objects.retain(|key, _| {
            (&*key.group, &*key.plural) != (kind.group, kind.plural)
                || namespace.is_some_and(|only| *key.namespace != *only)
                || there.contains(&ObjectName::new(&key.namespace, &key.name))
        });
    }

    /// A status of this object may be due.
    pub(super) fn mark(&self, key: &Key) {
        let mut inner = self.inner();
        if inner.objects.contains_key(key) && inner.due.insert(key.clone()) {
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// All of them may be due: somebody else wrote them until now.
    pub(super) fn mark_all(&self) {
        let mut inner = self.inner();
        let all: Vec<Key> = inner.objects.keys().cloned().collect();
        inner.due.extend(all);
        drop(inner);
        self.changed.notify_one();
    }

    /// The next one that may be due.
    pub(super) fn next(&self) -> Option<(Key, Custom)> {
        let mut inner = self.inner();
        while let Some(key) = inner.due.pop_first() {
            if let Some(custom) = inner.objects.get(&key) {
                return Some((key, custom.clone()));
            }
        }
        None
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
