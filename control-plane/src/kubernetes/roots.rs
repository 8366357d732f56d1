//! Keeps the trusted roots where pods mount them: a ConfigMap in every namespace with sidecars. Written by the leader, and
//! again whenever somebody changes or deletes one.

use std::{
    collections::{BTreeSet, HashMap},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream::SelectAll};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{MANAGER, chain, metrics::Metrics};
use crate::inject::names;

/// How often what failed is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How long one write may take.
const PATIENCE: Duration = Duration::from_secs(10);

type Events = Pin<Box<dyn Stream<Item = watcher::Result<watcher::Event<ConfigMap>>> + Send>>;

pub(super) struct Roots {
    pub(super) client: Client,
    pub(super) metrics: Metrics,
    /// Where to look: all namespaces where empty.
    pub(super) namespaces: Vec<String>,
    pub(super) leads: watch::Receiver<bool>,
    /// Namespaces that need them.
    pub(super) meshed: watch::Receiver<BTreeSet<Arc<str>>>,
    /// The roots as PEM; empty while they are not known.
    pub(super) bundle: watch::Receiver<String>,
}

impl Roots {
    /// Never ends, unless whoever tells it what to do does.
    pub(super) async fn run(mut self) {
        let mut there: HashMap<String, String> = HashMap::new();
        let mut events = self.watch();
        let mut tick = interval(RETRY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut due = true;
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => due |= take_up(&mut there, event),
                    // Said by the watches of the objects themselves; what is known stays.
                    Some(Err(_)) => {}
                    None => return,
                },
                changed = self.meshed.changed() => if changed.is_err() { return } else { due = true },
                changed = self.bundle.changed() => if changed.is_err() { return } else { due = true },
                changed = self.leads.changed() => if changed.is_err() { return } else { due = true },
                _ = tick.tick() => {}
            }
            if due && *self.leads.borrow() {
                due = !self.write(&there).await;
            }
        }
    }

    fn watch(&self) -> SelectAll<Events> {
        let config =
            watcher::Config::default().fields(&format!("metadata.name={}", names::ROOT_CONFIG_MAP));
        let all = [Api::all(self.client.clone())];
        let some = self.namespaces.iter().map(|name| Api::namespaced(self.client.clone(), name));
        let apis: Vec<Api<ConfigMap>> =
            if self.namespaces.is_empty() { all.into() } else { some.collect() };
        let streams = apis
            .into_iter()
            .map(|api| Box::pin(watcher::watcher(api, config.clone()).default_backoff()) as Events);
        streams.collect()
    }

    /// Whether all are as they should be now.
    async fn write(&self, there: &HashMap<String, String>) -> bool {
        let bundle = self.bundle.borrow().clone();
        let namespaces = self.meshed.borrow().clone();
        if bundle.is_empty() {
            return false;
        }
        let wrong = namespaces.iter().filter(|namespace| there.get(&***namespace) != Some(&bundle));
        let mut all = true;
        for namespace in wrong {
            let written = self.write_one(namespace, &bundle).await;
            let result = if written.is_ok() { "ok" } else { "failed" };
            self.metrics.config_maps.with_label_values(&[result]).inc();
            if let Err(reason) = written {
                all = false;
                tracing::warn!(
                    %namespace,
                    reason,
                    "the trusted roots cannot be written to the ConfigMap {}: pods with a sidecar do not start there; it is tried again",
                    names::ROOT_CONFIG_MAP
                );
            }
        }
        all
    }

    async fn write_one(&self, namespace: &str, bundle: &str) -> Result<(), String> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": names::ROOT_CONFIG_MAP, "namespace": namespace},
            "data": {names::ROOT_KEY: bundle},
        });
        let parameters = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&object);
        let patched =
            timeout(PATIENCE, api.patch(names::ROOT_CONFIG_MAP, &parameters, &patch)).await;
        let patched = patched.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?;
        patched.map(|_| ()).map_err(|error| chain(&error))
    }
}

/// Whether anything is different now.
fn take_up(there: &mut HashMap<String, String>, event: watcher::Event<ConfigMap>) -> bool {
    match event {
        watcher::Event::Apply(map) | watcher::Event::InitApply(map) => {
            let namespace = map.namespace().unwrap_or_default();
            let roots = map.data.and_then(|mut data| data.remove(names::ROOT_KEY));
            let roots = roots.unwrap_or_default();
            there.insert(namespace, roots.clone()) != Some(roots)
        }
        watcher::Event::Delete(map) => there.remove(&map.namespace().unwrap_or_default()).is_some(),
        // What was deleted meanwhile is missed at worst until it is asked for again by a write that does nothing.
        watcher::Event::Init => {
            there.clear();
            false
        }
        watcher::Event::InitDone => true,
    }
}
