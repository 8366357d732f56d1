//! Kubernetes as the source of truth: what it has is mirrored into the store, what proxies make of it is written back.
//!
//! ```text
//! API server ─▶ watch (one per kind) ─▶ facts ─▶ world, mapping (pure) ─▶ mirror ─▶ store ─▶ push ...
//!      ▲ ▲ ▲                                                                └─▶ customs ◀─╯ statuses
//!      │ │ ╰─ writer (statuses) ◀────────────────────────────────────────────────╯
//!      │ ╰─── roots, webhooks (whom to trust)        all three: as the leader only
//!      ╰───── leader (Lease), election (pure)        token_review: asked by the authority and by xDS
//! ```
//!
//! - `facts.rs`, `mapping.rs`, `world.rs`: what Kubernetes' objects mean; pure
//! - `watch.rs`: follows one kind; `mirror.rs`: the single writer of what comes from Kubernetes
//! - `customs.rs`, `status.rs` (pure), `writer.rs`: statuses back
//! - `election.rs` (pure), `leader.rs`: which replica writes
//! - `roots.rs`, `webhooks.rs`: the ConfigMaps and the webhook's `caBundle`
//! - `token_review.rs`: whose a token is

mod customs;
mod election;
mod facts;
mod leader;
mod mapping;
mod metrics;
mod mirror;
mod roots;
mod status;
mod token_review;
mod watch;
mod webhooks;
mod world;
mod writer;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use leno_api::{LENO_GROUP, SYSTEM_NAMESPACE};
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch as channel},
    task::JoinSet,
    time::sleep,
};

use self::{
    customs::Customs, leader::Leader, metrics::Metrics, mirror::Mirror, roots::Roots,
    token_review::Reviews, watch::Scope, webhooks::Webhooks, world::Source, writer::Writer,
};
use crate::{
    ca::Reviewer,
    store::{self, Selection, Store},
};

/// Under which name we write to Kubernetes.
const MANAGER: &str = "leno-control-plane";
/// Events that wait for the mirror; a watch that has more to say waits itself.
const EVENTS: usize = 1024;
/// A connection on which nothing comes for this long is broken; longer than a watch is asked to last (290 s).
const SILENCE: Duration = Duration::from_secs(330);
/// How long to wait before the store is watched anew.
const RETRY: Duration = Duration::from_secs(1);

/// Where Kubernetes is, and what of it is ours.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A kubeconfig; what the pod's environment or `KUBECONFIG` says where left out.
    pub config: Option<PathBuf>,
    /// Only these namespaces; all where empty.
    pub namespaces: Vec<String>,
    /// Where the control plane itself is: its Lease is there.
    pub namespace: String,
    /// Tells replicas apart.
    pub identity: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot tell where Kubernetes is: {0}. Run in a pod with a service account, or name a kubeconfig with --kubernetes-config"
    )]
    Config(String),
    #[error("cannot make a client for Kubernetes: {0}")]
    Client(#[source] kube::Error),
    #[error("cannot set up metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error(
        "what mirrors Kubernetes has ended before everything was read; the log says why. Start the control plane again"
    )]
    Ended,
}

/// A connection to Kubernetes at work. Dropping it ends all of it.
pub struct Kubernetes {
    client: Client,
    settings: Settings,
    metrics: Metrics,
    tasks: JoinSet<()>,
    synced: channel::Receiver<bool>,
    leads: channel::Receiver<bool>,
    meshed: channel::Receiver<BTreeSet<Arc<str>>>,
    store: Arc<dyn Store>,
}

impl Kubernetes {
    /// Begins to mirror Kubernetes into the store.
    ///
    /// # Errors
    /// Where it cannot be told how to reach it. That nobody answers is no error: it is waited for.
    pub async fn start(
        settings: Settings,
        store: Arc<dyn Store>,
        registry: &prometheus::Registry,
    ) -> Result<Self, Error> {
        let metrics = Metrics::new(registry)?;
        let mut config = config(&settings).await?;
        config.read_timeout = Some(SILENCE);
        let client = Client::try_from(config).map_err(Error::Client)?;
        let scopes = scopes(&settings.namespaces);
        let (synced_sender, synced) = channel::channel(false);
        let (leads_sender, leads) = channel::channel(false);
        let (meshed_sender, meshed) = channel::channel(BTreeSet::new());
        let customs = Arc::new(Customs::default());
        let (events, queue) = mpsc::channel(EVENTS);
        let mirror = Mirror::new(
            store.clone(),
            customs.clone(),
            metrics.clone(),
            &scopes,
            synced_sender,
            meshed_sender,
        );
        let identity = settings.identity.clone();
        let leader = Leader::new(
            client.clone(),
            &settings.namespace,
            identity,
            metrics.clone(),
            leads_sender,
        );
        let writer = Writer {
            client: client.clone(),
            store: store.clone(),
            customs,
            metrics: metrics.clone(),
            leads: leads.clone(),
        };
        let mut tasks = JoinSet::new();
        for scope in scopes {
            tasks.spawn(watch::follow(client.clone(), scope, events.clone()));
        }
        tasks.spawn(mirror.run(queue));
        tasks.spawn(leader.run());
        tasks.spawn(writer.run());
        Ok(Self { client, settings, metrics, tasks, synced, leads, meshed, store })
    }

    /// Waits until everything that can be read has been. Until then nobody must be told that something is not there.
    ///
    /// # Errors
    /// [`Error::Ended`] where it never will have been.
    pub async fn synced(&self) -> Result<(), Error> {
        all_read(self.synced.clone()).await
    }

    /// Proves whose a service-account token is.
    pub fn reviewer(&self) -> Arc<dyn Reviewer> {
        Arc::new(Reviews::new(self.client.clone(), self.metrics.clone()))
    }

    /// Keeps the trusted roots in every namespace that needs them, from now on.
    pub fn publish_roots(&mut self) {
        let (sender, bundle) = channel::channel(String::new());
        self.tasks.spawn(follow_roots(self.store.clone(), sender));
        let roots = Roots {
            client: self.client.clone(),
            metrics: self.metrics.clone(),
            namespaces: self.settings.namespaces.clone(),
            leads: self.leads.clone(),
            meshed: self.meshed.clone(),
            bundle,
        };
        self.tasks.spawn(roots.run());
    }

    /// Keeps what signs our webhook's certificate (PEM) in our webhook configurations, from now on.
    pub fn publish_webhook(&mut self, bundle: channel::Receiver<Arc<str>>) {
        let webhooks = Webhooks {
            client: self.client.clone(),
            metrics: self.metrics.clone(),
            leads: self.leads.clone(),
            bundle,
        };
        self.tasks.spawn(webhooks.run());
    }

    /// Runs until the store has closed; a panic in one of its parts ends it, too.
    pub async fn run(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a part of the Kubernetes source has ended");
                return;
            }
        }
    }
}

async fn config(settings: &Settings) -> Result<Config, Error> {
    let bad = |error: &dyn std::fmt::Display| Error::Config(error.to_string());
    let Some(path) = &settings.config else {
        return Config::infer().await.map_err(|error| bad(&error));
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| bad(&error))?;
    let options = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| bad(&error))
}

/// The error with its causes: "connection refused" is only in the last.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Until the mirror says so, or has ended.
async fn all_read(mut synced: channel::Receiver<bool>) -> Result<(), Error> {
    synced.wait_for(|synced| *synced).await.map(|_| ()).map_err(|_| Error::Ended)
}

/// Namespaces themselves cannot be watched by whoever has rights in some of them only.
fn scopes(namespaces: &[String]) -> Vec<Scope> {
    if namespaces.is_empty() {
        return Source::all().map(|source| Scope { source, namespace: None }).collect();
    }
    let inside = Source::all().filter(|source| !matches!(source, Source::Namespaces));
    let scopes = inside.flat_map(|source| {
        namespaces.iter().map(move |name| Scope { source, namespace: Some(name.clone()) })
    });
    scopes.collect()
}

/// The roots that the authority has published, as they change; until the store closes.
async fn follow_roots(store: Arc<dyn Store>, bundle: channel::Sender<String>) {
    let selection = Selection::kind(LENO_GROUP, "trustbundles").within(SYSTEM_NAMESPACE);
    loop {
        let listing = store.list(&selection);
        let roots: Vec<String> = listing.items.iter().flat_map(|stored| roots_in(stored)).collect();
        bundle.send_if_modified(|before| {
            let now = roots.concat();
            let changed = *before != now;
            *before = now;
            changed
        });
        let mut watch = match store.watch(listing.revision, selection.clone()) {
            Ok(watch) => watch,
            Err(store::Error::Closed) => return,
            Err(_) => {
                sleep(RETRY).await;
                continue;
            }
        };
        if let Err(store::Error::Closed) = watch.next().await {
            return;
        }
    }
}

fn roots_in(stored: &store::Stored) -> Vec<String> {
    let object = stored.json().unwrap_or_default();
    let roots = object.pointer("/spec/roots").and_then(Value::as_array);
    let roots = roots.into_iter().flatten().filter_map(Value::as_str);
    roots.map(|pem| format!("{}\n", pem.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_mirror_that_ends_before_everything_is_read_is_not_waited_for() {
        let (sender, synced) = channel::channel(false);
        drop(sender);
        assert!(matches!(all_read(synced).await, Err(Error::Ended)));
        let (sender, synced) = channel::channel(false);
        sender.send_replace(true);
        drop(sender);
        assert!(all_read(synced).await.is_ok(), "everything was read before it ended");
    }
}
