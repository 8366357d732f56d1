//! The configuration task: takes changes, compiles, publishes, keeps the last good state, answers questions.

mod plugins;
mod retire;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use leno_api::{
    Key,
    model::{Model, ObjectName},
};
use leno_daemon::background;
use rustc_hash::FxHashSet;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinError,
    time::Instant,
};

use self::plugins::{Held, JUDGE_EVERY, plugin};
use super::{
    compile::{self, Own, Proof},
    inputs::{Dirty, Inputs},
    last_good,
    prepare::{Preparer, Roster},
    source::{Change, Item, Update},
    text::Text,
};
use crate::{
    cache::remote::Remote,
    identity::Identity,
    snapshot::{Published, Snapshot},
    telemetry::metrics::Families,
};

/// Hosts remembered as absent; then all are forgotten, and asked for again.
const MAX_ABSENT: usize = 10_000;
/// The state on disk is at most this old.
const SAVE_AFTER: Duration = Duration::from_secs(1);
/// After a write that failed: a disk that is full may not be for long.
const SAVE_AGAIN: Duration = Duration::from_secs(30);

/// A question to the configuration task.
pub type Question = oneshot::Sender<Value>;

/// The configuration task's state.
#[derive(Debug)]
pub struct Applier {
    published: Arc<Published>,
    families: Arc<Families>,
    identity: Arc<Identity>,
    inputs: Inputs,
    rejected: BTreeMap<String, String>,
    /// Hosts asked for, by whether a service answers to them. Both are bounded by the source.
    asked: BTreeSet<String>,
    absent: Arc<FxHashSet<String>>,
    /// Whether hosts must be asked for before they are known (a control plane), or all are (a file).
    on_demand: bool,
    own: Own,
    own_name: Option<ObjectName>,
    /// Whether it was said that there is no such workload.
    own_missed: bool,
    connection: Option<Result<(), String>>,
    changed_at: SystemTime,
    unsaved_since: Option<Instant>,
    last_good: Option<PathBuf>,
    preparer: Preparer,
    /// An answer to the source that waits for plugins.
    held: Option<Held>,
    /// What the source was told of each plugin: that it is live, or why not.
    told: BTreeMap<ObjectName, Result<(), String>>,
    /// When it last heard of another reason why one is not.
    reworded: BTreeMap<ObjectName, Instant>,
    again: Option<mpsc::Sender<Key>>,
    started: Instant,
}

impl Applier {
    /// Nothing yet. `own_name` is the workload beside which the proxy stands; `last_good` is where the state is kept.
    pub fn new(
        published: Arc<Published>,
        families: Arc<Families>,
        identity: Arc<Identity>,
        own: Own,
        own_name: Option<ObjectName>,
        on_demand: bool,
        last_good: Option<PathBuf>,
    ) -> Self {
        let proof = proof(&identity);
        Self {
            published,
            families,
            identity,
            inputs: Inputs::default(),
            rejected: BTreeMap::new(),
            asked: BTreeSet::new(),
            absent: Arc::default(),
            on_demand,
            own: Own { proof, ..own },
            own_name,
            own_missed: false,
            connection: None,
            changed_at: SystemTime::UNIX_EPOCH,
            unsaved_since: None,
            last_good,
            preparer: Preparer::new(None),
            held: None,
            told: BTreeMap::new(),
            reworded: BTreeMap::new(),
            again: None,
            started: Instant::now(),
        }
    }

    /// Modules of plugins are kept in `folder`.
    pub fn keep_modules(self, folder: Option<PathBuf>) -> Self {
        Self { preparer: Preparer::new(folder), ..self }
    }

    /// What others may know of plugins.
    pub fn roster(&self) -> &Arc<Roster> {
        self.preparer.roster()
    }

    /// Runs until the source has ended and nobody can ask any more.
    pub async fn run(
        mut self,
        mut updates: mpsc::Receiver<Update>,
        mut questions: mpsc::Receiver<Question>,
    ) {
        let mut saving: Option<Saving> = None;
        let mut certificates = self.identity.subscribe();
        loop {
            // Also before the first wait: there may have been a change since the start.
            self.prove();
            let save_at = self.unsaved_since.map(|since| since + SAVE_AFTER);
            let judge_at = self.preparer.is_trying().then(|| Instant::now() + JUDGE_EVERY);
            let release_at = self.held.as_ref().map(|held| held.until);
            tokio::select! {
                update = updates.recv() => match update {
                    Some(update) => self.take(update),
                    None => break,
                },
                Some(question) = questions.recv() => {
                    // Whoever asked may have gone; then nobody needs the answer.
                    let _ = question.send(self.dump());
                }
                // A slow disk must not keep changes from traffic.
                () = sleep_until(save_at), if saving.is_none() => saving = self.save(),
                written = saved(&mut saving) => {
                    if !written {
                        self.unsaved_since.get_or_insert_with(|| Instant::now() + SAVE_AGAIN);
                    }
                }
                Ok(()) = certificates.changed() => {}
                Some(done) = self.preparer.next() => self.prepared(done),
                () = sleep_until(judge_at) => self.judge(),
                () = sleep_until(release_at) => self.release(),
            }
        }
        // One after the other: they write to the same file.
        if saving.is_some() {
            saved(&mut saving).await;
        }
        saving = self.save();
        if saving.is_some() {
            saved(&mut saving).await;
        }
    }

    /// Hosts that our application calls.
    pub fn hosts(&self) -> Vec<String> {
        self.asked.iter().cloned().collect()
    }

    /// Takes one update.
    pub fn take(&mut self, update: Update) {
        match update {
            Update::Changed(change) => self.change(change),
            Update::Connected => {
                tracing::info!("connected to the control plane");
                self.families.control_plane_connected.set(1);
                self.connection = Some(Ok(()));
            }
            Update::Disconnected(reason) => {
                if !matches!(self.connection, Some(Err(_))) {
                    tracing::warn!(
                        "the control plane cannot be reached ({reason}); going on with what is known"
                    );
                }
                self.families.control_plane_connected.set(0);
                self.connection = Some(Err(reason));
            }
        }
    }

    /// Takes up what can be proven now. Most certificates say the same as the one before.
    fn prove(&mut self) {
        let proof = proof(&self.identity);
        if self.own.proof == proof {
            return;
        }
        self.own.proof = proof;
        if self.published.load().loaded {
            let clusters = self.inputs.services().keys().cloned().collect();
            self.publish(&mut Dirty { clusters, inbound: true, ..Dirty::default() });
        }
    }

    fn change(&mut self, change: Change) {
        self.release();
        let mut dirty = Dirty::default();
        for key in change.removed {
            self.inputs.remove(&key, &mut dirty);
            self.rejected.remove(&key.to_string());
            if key.kind.kind == "AuthorizationPolicy" {
                self.families.forget_policy(&key.name.to_string());
            }
            if key.kind.kind == "WasmPlugin" {
                self.preparer.remove(&key.name);
                self.told.remove(&key.name);
                self.reworded.remove(&key.name);
            }
            if key.kind.kind == "FaultPolicy" {
                self.families.resilience.limiting.forget_faults(&key.name.to_string());
            }
        }
        let (mut refused, mut plugins) = (Vec::new(), Vec::new());
        let brought = change.upserts.len();
        for Item { mut resource, mut json, .. } in change.upserts {
            if !self.rejected.is_empty() {
                self.rejected.remove(&resource.key().to_string());
            }
            if let Model::TrustBundle(bundle) = &resource.model {
                // Before the change is acknowledged: a rotation goes on when everybody trusts the new root.
                if let Err(reason) = self.identity.trust(bundle) {
                    tracing::error!("{} is rejected: {reason}", resource.key());
                    refused.push((resource.key(), reason));
                    continue;
                }
                self.unsaved_since.get_or_insert_with(Instant::now);
            }
            if let Some(spec) = plugin(&resource.model).cloned() {
                plugins.push(resource.key());
                match self.offer(&spec, (resource, json)) {
                    Some(written) => (resource, json) = written,
                    None => continue,
                }
            }
            self.inputs.insert(resource, json, &mut dirty);
        }
        // The first one that brings everything, or as much again as there was.
        if 2 * brought > self.inputs.len() {
            self.inputs.pack();
        }
        let file_was_good = !change.rejected.iter().any(|(name, _)| name.starts_with("File "));
        if file_was_good {
            self.rejected.retain(|name, _| !name.starts_with("File "));
        }
        self.rejected.extend(change.rejected);
        let told = refused.iter().map(|(key, reason)| (key.to_string(), reason.clone()));
        self.rejected.extend(told);
        self.count_rejected();
        let hosts_changed = self.note_hosts(change.hosts);
        dirty.hosts |= hosts_changed;
        let loaded = self.published.load().loaded;
        if !dirty.is_empty() || !loaded {
            self.publish(&mut dirty);
        }
        match change.live {
            Some(live) => self.answer(live, refused, plugins),
            // Known from before: the source claims that it is live, until it hears otherwise.
            None => self.told.extend(plugins.into_iter().map(|key| (key.name, Ok(())))),
        }
    }

    /// Takes up which hosts are known; says whether that changed anything.
    fn note_hosts(&mut self, hosts: Vec<(String, Option<bool>)>) -> bool {
        if hosts.is_empty() {
            return false;
        }
        let mut absent = (*self.absent).clone();
        let mut changed = false;
        for (host, answer) in hosts {
            let (present, gone) = (answer == Some(true), answer == Some(false));
            changed |= match present {
                true => self.asked.insert(host.clone()),
                false => self.asked.remove(&host),
            };
            if gone && absent.len() >= MAX_ABSENT {
                absent.clear();
            }
            changed |= if gone { absent.insert(host) } else { absent.remove(&host) };
        }
        if changed {
            self.absent = Arc::new(absent);
        }
        changed
    }

    /// Takes up what our own workload is now: plugins choose workloads by their labels, and every cluster may depend on
    /// where it is.
    fn notice_own(&mut self, dirty: &mut Dirty) {
        let Some(name) = &self.own_name else { return };
        let Some(workload) = self.inputs.workload(name) else {
            // From a control plane it may be on its way; of a file this is all.
            if !self.on_demand && !self.own_missed {
                tracing::warn!(
                    "the file has no Workload {name} (--name): what comes to the inbound port is refused"
                );
            }
            self.own_missed = true;
            return;
        };
        self.own_missed = false;
        if self.own.workload.as_ref().is_some_and(|own| Arc::ptr_eq(own, workload)) {
            return;
        }
        self.own.workload = Some(workload.clone());
        for plugin in self.inputs.plugins().keys() {
            self.inputs.touch_plugin(plugin, dirty);
        }
        if let Some(zone) = workload.zone.as_deref()
            && self.own.zone.as_deref() != Some(zone)
        {
            self.own.zone = Some(zone.into());
            dirty.clusters.extend(self.inputs.services().keys().cloned());
        }
    }

    fn publish(&mut self, dirty: &mut Dirty) {
        self.notice_own(dirty);
        let previous = self.published.load();
        let known = match self.on_demand {
            true => compile::Known::Asked(&self.asked),
            false => compile::Known::Everything,
        };
        let snapshot = compile::compile(
            &previous,
            &self.inputs,
            dirty,
            &self.own,
            self.preparer.slots(),
            known,
        );
        let snapshot = Arc::new(Snapshot { absent: self.absent.clone(), ..snapshot });
        self.published.publish(snapshot.clone());
        snapshot.caches.values().filter_map(|cache| cache.remote()).for_each(Remote::start);
        self.retire(&previous, &snapshot);
        self.changed_at = SystemTime::now();
        let seconds =
            self.changed_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.families.config_changed.set(i64::try_from(seconds).unwrap_or(i64::MAX));
        self.families.generation.set(i64::try_from(snapshot.generation).unwrap_or(i64::MAX));
        self.unsaved_since.get_or_insert_with(Instant::now);
        tracing::debug!(generation = snapshot.generation, "configuration in force");
    }

    fn count_rejected(&self) {
        self.families.rejected.reset();
        for name in self.rejected.keys() {
            let kind = name.split(' ').next().unwrap_or("Unknown");
            self.families.rejected.with_label_values(&[kind]).inc();
        }
    }

    /// Begins to write what has changed since it was last written.
    fn save(&mut self) -> Option<Saving> {
        self.unsaved_since.take()?;
        let path = self.last_good.clone()?;
        let texts: Vec<Text> = self.inputs.texts().cloned().collect();
        let hosts = self.hosts();
        // Ten thousand resources take a while, and requests and the next change none of it.
        Some(Box::pin(background::run("save", move || last_good::save(&path, &hosts, &texts))))
    }

    /// Everything, for people.
    fn dump(&self) -> Value {
        let snapshot = self.published.load();
        let resources: Vec<Value> = self.inputs.texts().filter_map(|text| text.value()).collect();
        let source = match &self.connection {
            None => json!({"kind": "file"}),
            Some(Ok(())) => json!({"kind": "control plane", "connected": true}),
            Some(Err(reason)) => {
                json!({"kind": "control plane", "connected": false, "reason": reason})
            }
        };
        let rejected: Vec<Value> = self
            .rejected
            .iter()
            .map(|(name, reason)| json!({"resource": name, "reason": reason}))
            .collect();
        let models: BTreeMap<&str, usize> =
            self.inputs.models().fold(BTreeMap::new(), |mut counts, (info, model)| {
                let kind = match model {
                    Model::HttpRoute(route) => route.kind,
                    _ => info.kind,
                };
                *counts.entry(kind).or_default() += 1;
                counts
            });
        json!({
            "generation": snapshot.generation,
            "source": source,
            "counts": models,
            "services": describe_services(&snapshot),
            "absent": &*snapshot.absent,
            "rejected": rejected,
            "resources": resources,
        })
    }
}

/// What `identity` lets us prove.
fn proof(identity: &Identity) -> Proof {
    Proof {
        expected: identity.is_expected(),
        trust_domain: identity.trust_domain(),
        id: identity.current().map(|credentials| credentials.id().to_string().into()),
    }
}

fn describe_services(snapshot: &Snapshot) -> Value {
    let mut hosts: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    for (host, at) in &snapshot.hosts.exact {
        hosts.entry(*at).or_default().push(host);
    }
    let services = snapshot.services.iter().zip(0u32..).map(|(service, at)| {
        let mut names = hosts.remove(&at).unwrap_or_default();
        names.sort_unstable();
        let ports = service.ports.iter().map(|port| {
            let mut routes: Vec<Value> = Vec::new();
            for rule in port.routes.rules() {
                let backends: Vec<Value> = rule.backends.iter().map(|(weight, backend)| {
                    json!({"backend": &*backend.name, "weight": weight, "missing": backend.cluster.is_none()})
                }).collect();
                routes.push(json!({
                    "route": &*rule.route, "rule": rule.name, "match": rule.matches, "backends": backends,
                    "redirect": rule.redirect.is_some(), "mirrors": rule.mirrors.len(),
                }));
            }
            json!({"port": port.number, "name": port.name, "protocol": port.protocol, "routes": routes})
        });
        json!({"name": service.name.to_string(), "hosts": names, "ports": ports.collect::<Vec<_>>()})
    });
    services.collect()
}

/// A write under way.
type Saving = Pin<Box<dyn Future<Output = Result<Result<(), last_good::Error>, JoinError>> + Send>>;

/// Waits for a write to end, where there is one; for ever where there is none to wait for. Whether it succeeded.
async fn saved(saving: &mut Option<Saving>) -> bool {
    let Some(writing) = saving else { return std::future::pending().await };
    let written = writing.await;
    *saving = None;
    match &written {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::error!("{error}; a restart without control plane would begin with older state")
        }
        Err(error) => tracing::error!("saving the last good configuration: {error}"),
    }
    matches!(written, Ok(Ok(())))
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
