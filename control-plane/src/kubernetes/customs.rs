//! What Kubernetes last said of users' objects, and of which a status may be due: between the mirror and the writer.

use std::{
    collections::{HashMap, HashSet, VecDeque},
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
    /// One after another, so that one that cannot be written delays the others but never keeps them from their turn.
    due: VecDeque<Key>,
    /// What `due` has.
    queued: HashSet<Key>,
}

impl Inner {
    /// At the end, unless it waits already.
    fn queue(&mut self, key: Key) -> bool {
        let new = self.queued.insert(key.clone());
        if new {
            self.due.push_back(key);
        }
        new
    }
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
        inner.queue(key);
        drop(inner);
        self.changed.notify_one();
    }

    pub(super) fn remove(&self, key: &Key) {
        // Where it is due it is passed over.
        self.inner().objects.remove(key);
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
        if inner.objects.contains_key(key) && inner.queue(key.clone()) {
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// All of them may be due: somebody else wrote them until now.
    pub(super) fn mark_all(&self) {
        let mut inner = self.inner();
        let all: Vec<Key> = inner.objects.keys().cloned().collect();
        for key in all {
            inner.queue(key);
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// The one that may be due for longest.
    pub(super) fn next(&self) -> Option<(Key, Custom)> {
        let mut inner = self.inner();
        while let Some(key) = inner.due.pop_front() {
            inner.queued.remove(&key);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new("leno.dev", "trafficpolicies", "shop", name)
    }

    fn customs(names: &[&str]) -> Customs {
        let customs = Customs::default();
        for name in names {
            customs.put(key(name), Seen::default(), None, true);
        }
        customs
    }

    fn next(customs: &Customs) -> Option<String> {
        customs.next().map(|(key, _)| key.name.to_string())
    }

    #[test]
    fn what_cannot_be_written_lets_the_others_go_first() {
        let customs = customs(&["a", "b", "c"]);
        let mut order = Vec::new();
        for _ in 0..6 {
            let name = next(&customs).unwrap();
            if name == "a" {
                customs.mark(&key("a"));
            }
            order.push(name);
        }
        assert_eq!(order, ["a", "b", "c", "a", "a", "a"]);
    }

    #[test]
    fn each_waits_once_and_what_is_gone_is_passed_over() {
        let customs = customs(&["a", "b", "c"]);
        customs.mark(&key("a"));
        customs.mark(&key("stranger"));
        customs.mark_all();
        customs.remove(&key("b"));
        assert_eq!(next(&customs).as_deref(), Some("a"));
        assert_eq!(next(&customs).as_deref(), Some("c"));
        assert_eq!(next(&customs), None);
        customs.put(key("b"), Seen::default(), None, true);
        assert_eq!(next(&customs).as_deref(), Some("b"), "there again, due again");
    }
}
