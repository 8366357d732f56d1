//! Keeps the `caBundle` of our webhook configurations right, so that the API server trusts the certificate that our
//! webhook shows. Written by the leader.

use std::{pin::Pin, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::{Stream, StreamExt, stream};
use kube::{
    Api, Client,
    api::{DynamicObject, PostParams},
    core::ApiResource,
    runtime::{WatchStreamExt, watcher},
};
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{chain, metrics::Metrics};
use crate::inject::names;

/// How often what failed is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How long one write may take.
const PATIENCE: Duration = Duration::from_secs(10);
const KINDS: [(&str, &str); 2] = [
    ("MutatingWebhookConfiguration", "mutatingwebhookconfigurations"),
    ("ValidatingWebhookConfiguration", "validatingwebhookconfigurations"),
];

type Events = Pin<Box<dyn Stream<Item = ()> + Send>>;

pub(super) struct Webhooks {
    pub(super) client: Client,
    pub(super) metrics: Metrics,
    pub(super) leads: watch::Receiver<bool>,
    /// What signs the webhook's certificate, as PEM; empty while there is no webhook.
    pub(super) bundle: watch::Receiver<Arc<str>>,
}

impl Webhooks {
    /// Runs until whoever makes the bundle has ended.
    pub(super) async fn run(mut self) {
        let mut events = stream::select_all(KINDS.map(|kind| self.watch(kind)));
        let mut tick = interval(RETRY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut due = true;
        loop {
            tokio::select! {
                event = events.next() => if event.is_none() { return } else { due = true },
                changed = self.bundle.changed() => if changed.is_err() { return } else { due = true },
                changed = self.leads.changed() => if changed.is_err() { return } else { due = true },
                _ = tick.tick() => {}
            }
            if due && *self.leads.borrow() {
                due = !self.write_all().await;
            }
        }
    }

    fn api(&self, (kind, plural): (&str, &str)) -> Api<DynamicObject> {
        let resource = ApiResource {
            group: "admissionregistration.k8s.io".to_owned(),
            version: "v1".to_owned(),
            api_version: "admissionregistration.k8s.io/v1".to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        };
        Api::all_with(self.client.clone(), &resource)
    }

    fn watch(&self, kind: (&str, &str)) -> Events {
        let config = watcher::Config::default()
            .fields(&format!("metadata.name={}", names::WEBHOOK_CONFIGURATION));
        let watched = watcher::watcher(self.api(kind), config).default_backoff();
        Box::pin(watched.filter_map(|event| async move { event.ok().map(|_| ()) }))
    }

    /// Whether all that there are have the bundle now.
    async fn write_all(&self) -> bool {
        let bundle = self.bundle.borrow().clone();
        if bundle.is_empty() {
            return true;
        }
        let mut all = true;
        for kind in KINDS {
            let written = timeout(PATIENCE, self.write(kind, &bundle)).await;
            let written = written
                .unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())));
            match written {
                Ok(false) => continue,
                Ok(true) => {}
                Err(reason) => {
                    all = false;
                    tracing::warn!(
                        kind = kind.0,
                        reason,
                        "the caBundle of our webhook cannot be written: pods are admitted without a sidecar or not at all, as its failurePolicy says; it is tried again"
                    );
                }
            }
            let result = if all { "ok" } else { "failed" };
            self.metrics.config_maps.with_label_values(&[result]).inc();
        }
        all
    }

    /// Whether anything had to be written.
    async fn write(&self, kind: (&str, &str), bundle: &str) -> Result<bool, String> {
        let api = self.api(kind);
        let failed = |error: kube::Error| chain(&error);
        let found = api.get_opt(names::WEBHOOK_CONFIGURATION).await.map_err(failed)?;
        let Some(mut object) = found else { return Ok(false) };
        if !set_bundle(&mut object.data, bundle) {
            return Ok(false);
        }
        // With the resourceVersion that was read: another's change is not undone.
        api.replace(names::WEBHOOK_CONFIGURATION, &PostParams::default(), &object)
            .await
            .map_err(failed)?;
        Ok(true)
    }
}

/// Puts the bundle into every webhook of ours; whether that changes anything. Pure.
fn set_bundle(configuration: &mut Value, bundle: &str) -> bool {
    let wanted = Value::String(STANDARD.encode(bundle));
    let webhooks = configuration.get_mut("webhooks").and_then(Value::as_array_mut);
    let mut changed = false;
    for webhook in webhooks.into_iter().flatten() {
        let client = webhook.get_mut("clientConfig").and_then(Value::as_object_mut);
        let Some(client) = client else { continue };
        let service = client.get("service").and_then(|service| service.get("name"));
        if service.and_then(Value::as_str) != Some(names::CONTROL_PLANE) {
            continue;
        }
        changed |= client.insert("caBundle".into(), wanted.clone()).as_ref() != Some(&wanted);
    }
    changed
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_our_own_webhooks_get_the_bundle_and_only_once() {
        let mut object = json!({"webhooks": [
            {"name": "a", "clientConfig": {"service": {"name": names::CONTROL_PLANE, "path": "/inject"}}},
            {"name": "b", "clientConfig": {"url": "https://example.com", "caBundle": "b2xk"}},
            {"name": "c"},
        ]});
        assert!(set_bundle(&mut object, "PEM"));
        assert_eq!(object["webhooks"][0]["clientConfig"]["caBundle"], "UEVN");
        assert_eq!(object["webhooks"][1]["clientConfig"]["caBundle"], "b2xk");
        assert!(!set_bundle(&mut object, "PEM"), "nothing to write");
        assert!(set_bundle(&mut object, "NEW"));
        assert!(!set_bundle(&mut json!({}), "PEM"));
    }
}
