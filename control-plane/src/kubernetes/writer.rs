//! Writes statuses back to Kubernetes: only what changed, only as the leader, and never faster than the API server should
//! have to bear.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
};
use leno_api::KINDS;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    MANAGER, chain,
    customs::{Custom, Customs},
    metrics::Metrics,
    status,
    watch::resource,
    world::{Source, is_route},
};
use crate::{
    objects::timestamp,
    store::{self, Change, Key, Selection, Store},
};

/// At most ten statuses a second.
const PACE: Duration = Duration::from_millis(100);
/// How long one write may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait after one has failed.
const RETRY: Duration = Duration::from_secs(2);
/// How long to wait before the store is watched anew.
const WATCH_RETRY: Duration = Duration::from_secs(1);

pub(super) struct Writer {
    pub(super) client: Client,
    pub(super) store: Arc<dyn Store>,
    pub(super) customs: Arc<Customs>,
    pub(super) metrics: Metrics,
    pub(super) leads: watch::Receiver<bool>,
}

impl Writer {
    /// Runs until the store closes.
    pub(super) async fn run(self) {
        tokio::select! {
            () = follow(self.store.as_ref(), &self.customs) => {}
            () = self.write_all() => {}
        }
    }

    async fn write_all(&self) {
        let mut leads = self.leads.clone();
        loop {
            // Whoever could say so is gone: so are we.
            if leads.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            self.customs.mark_all();
            tokio::select! {
                ended = leads.wait_for(|leads| !*leads) => if ended.is_err() { return },
                () = self.write_due() => {}
            }
        }
    }

    async fn write_due(&self) {
        loop {
            let Some((key, custom)) = self.customs.next() else {
                self.customs.changed.notified().await;
                continue;
            };
            let Some(status) = self.wanted(&key, &custom) else { continue };
            let result = self.write(&key, &custom, status).await;
            self.metrics
                .statuses
                .with_label_values(&[if result.is_ok() { "ok" } else { "failed" }])
                .inc();
            match result {
                Ok(()) => sleep(PACE).await,
                Err(reason) => {
                    tracing::warn!(object = %key, reason, "a status cannot be written to Kubernetes; it is tried again");
                    sleep(RETRY).await;
                    self.customs.mark(&key);
                }
            }
        }
    }

    fn wanted(&self, key: &Key, custom: &Custom) -> Option<Value> {
        let stored = self.store.get(key).and_then(|stored| stored.json().ok());
        let reported = stored.as_ref().and_then(|object| {
            let of = object.pointer("/metadata/generation").and_then(Value::as_u64);
            object.get("status").filter(|_| of == Some(custom.seen.generation))
        });
        let now = timestamp::rfc3339(SystemTime::now());
        status::wanted(key, &custom.seen, reported, custom.refusal.as_deref(), &now)
    }

    async fn write(&self, key: &Key, custom: &Custom, status: Value) -> Result<(), String> {
        let kind =
            KINDS.iter().find(|kind| (kind.group, kind.plural) == (&*key.group, &*key.plural));
        let kind = kind.ok_or("it is of no known kind")?;
        let resource = resource(Source::Custom(kind));
        let mut object = json!({
            "apiVersion": kind.api_version(), "kind": kind.kind,
            "metadata": {"name": &*key.name, "namespace": &*key.namespace},
            "status": status,
        });
        if is_route(key) {
            // Other controllers write into the same list: theirs must be what we saw.
            object["metadata"]["resourceVersion"] = custom.seen.resource_version.as_str().into();
        }
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &key.namespace, &resource);
        let parameters = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&object);
        let patched = timeout(PATIENCE, api.patch_status(&key.name, &parameters, &patch)).await;
        match patched.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))? {
            Ok(_) => Ok(()),
            // Gone, or changed meanwhile: the watch says what is to be done then.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(chain(&error)),
        }
    }
}

/// Marks whatever the push reports about; until the store closes.
async fn follow(store: &dyn Store, customs: &Customs) {
    loop {
        let mut watch = match store.watch(store.revision(), Selection::all()) {
            Ok(watch) => watch,
            Err(store::Error::Closed) => return,
            Err(_) => {
                sleep(WATCH_RETRY).await;
                continue;
            }
        };
        customs.mark_all();
        loop {
            match watch.next().await {
                Ok(batch) => {
                    let statuses =
                        batch.events.iter().filter(|event| event.change == Change::StatusWritten);
                    statuses.for_each(|event| customs.mark(&event.object.key));
                }
                Err(store::Error::Closed) => return,
                Err(_) => break,
            }
        }
    }
}
