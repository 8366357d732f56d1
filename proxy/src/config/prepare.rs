//! What must be fetched and compiled before it can be in force: plugins. Neither keeps anything else from going live.
//!
//! ```text
//! WasmPlugin ─▶ offer ─▶ task: module (store | file | http | oci) ─▶ compile, start, configure ─▶ take ─▶ slot
//! ```
//!
//! Each plugin has one slot: the version that is live, and beside it perhaps one on trial. A new version of the resource
//! takes the place of the old one as a whole, once its module has started; until then, and when it cannot, the last
//! good one stays. Where there is none, the slot says why, and the failure policy holds.
//!
//! - `module.rs`: bytes from wherever they are; `oci.rs`: from registries; `store.rs`: kept on disk
//! - `task.rs`: tries until there is a plugin, and again when its file changes
//! - `roster.rs`: what others may know of plugins

mod module;
mod oci;
mod roster;
mod store;
mod task;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use leno_api::model::{
    ObjectName,
    wasm_plugin::{Canary, WasmPlugin},
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};

use self::{module::Modules, store::Store, task::Task};
pub use self::{
    roster::{Figures, Roster, Row, Running},
    task::Done,
};
use super::{
    canary::{self, Decision, Sample},
    pack::Meaning,
    text::Text,
};
use crate::filter::wasm::{Plugin, Runtime, Slot, Unloaded};

/// Largest module, as the runtime allows: the largest Go plugins have 20 MiB.
const MAX_MODULE_BYTES: usize = 64 << 20;
/// For all of a module: 64 MiB at 10 Mbit/s.
const MODULE_TIME_LIMIT: Duration = Duration::from_secs(60);
/// Plugins of one proxy. Each worker has an instance of each, of several mappings of memory, and Linux gives a process
/// 65,530 of those: beyond them nothing gets memory any more, not only plugins.
const MAX_PLUGINS: usize = 1_000;
const TOO_MANY: &str = "a proxy runs at most 1000 plugins; remove some, or say by targetRefs or selector whom this one \
                        is for, and apply it again";
/// What tasks have to say, waiting for the configuration task; then they wait.
const MAX_DONE: usize = 64;

/// What is compiled into snapshots.
pub type Slots = BTreeMap<ObjectName, Slot>;

/// A resource and the text it was read from.
pub type Written = (Meaning, Text);

/// Takes care of every plugin.
#[derive(Debug)]
pub struct Preparer {
    folder: Option<PathBuf>,
    /// Made for the first plugin: who uses none pays nothing.
    engine: Option<Result<Engine, String>>,
    entries: BTreeMap<ObjectName, Entry>,
    slots: Slots,
    roster: Arc<Roster>,
    done: mpsc::Sender<Done>,
    results: mpsc::Receiver<Done>,
    last_id: u64,
}

/// What all tasks have in common.
#[derive(Clone, Debug)]
struct Engine {
    runtime: Arc<Runtime>,
    modules: Arc<Modules>,
    /// One module is compiled at a time: that takes every core there is, and they are for traffic.
    compiling: Arc<Semaphore>,
    /// And one is started from native code that is at hand, which takes milliseconds: it need not wait for a compiler.
    starting: Arc<Semaphore>,
}

#[derive(Debug)]
struct Entry {
    /// Tells this offer from those before it.
    id: u64,
    offered: Written,
    spec: Arc<WasmPlugin>,
    state: State,
    /// The last good version: of what is offered, or of what was before.
    live: Option<Arc<Plugin>>,
    task: Option<JoinHandle<()>>,
}

/// What has become of what is offered.
#[derive(Debug)]
enum State {
    Loading,
    Live,
    Failed(String),
    Trial { plugin: Arc<Plugin>, began: Duration, rule: Canary },
    TakenBack { version: String, reason: String },
}

/// What a step means for the configuration.
#[derive(Debug)]
pub struct Outcome {
    /// Which plugin.
    pub name: ObjectName,
    /// The resource that is in force from now on; `None` when it is the one that was, with another slot.
    pub insert: Option<Written>,
}

impl Preparer {
    /// `folder`: where modules are kept; `None` for nowhere.
    pub fn new(folder: Option<PathBuf>) -> Self {
        let (done, results) = mpsc::channel(MAX_DONE);
        Self {
            folder,
            engine: None,
            entries: BTreeMap::new(),
            slots: Slots::new(),
            roster: Arc::default(),
            done,
            results,
            last_id: 0,
        }
    }

    /// What others may know of plugins.
    pub fn roster(&self) -> &Arc<Roster> {
        &self.roster
    }

    /// What is compiled into snapshots.
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Whether versions are on trial, so that [`Self::judge`] is due now and then.
    pub fn is_trying(&self) -> bool {
        self.entries.values().any(|entry| matches!(entry.state, State::Trial { .. }))
    }

    /// Waits for what a task has to say.
    pub async fn next(&mut self) -> Option<Done> {
        self.results.recv().await
    }

    /// What has become of a plugin as it was offered last; `None` while that is not known.
    pub fn verdict(&self, name: &ObjectName) -> Option<Result<(), String>> {
        match &self.entries.get(name)?.state {
            State::Loading => None,
            State::Live | State::Trial { .. } => Some(Ok(())),
            State::Failed(reason) | State::TakenBack { reason, .. } => Some(Err(reason.clone())),
        }
    }

    /// Takes a plugin up, and gives it back when it is in force at once: the first version, which has nothing before it
    /// that could stay, and one that differs in nothing that would have to be loaded.
    pub fn offer(&mut self, spec: &Arc<WasmPlugin>, written: Written) -> Option<Written> {
        let name = &spec.name;
        if self.entries.get(name).is_some_and(|entry| entry.offered.1 == written.1) {
            return None;
        }
        self.last_id += 1;
        let id = self.last_id;
        let live = self.entries.remove(name).and_then(|mut old| old.live.take());
        let same = live
            .as_ref()
            .zip(spec.sha256)
            .is_some_and(|(live, digest)| live.version() == Runtime::version_of(digest, spec));
        let (state, task) = match (same, self.engine()) {
            (true, _) => (State::Live, None),
            _ if live.is_none() && self.running() >= MAX_PLUGINS => {
                (State::Failed(TOO_MANY.to_owned()), None)
            }
            (false, Ok(engine)) => {
                let (spec, live, done) = (spec.clone(), live.clone(), self.done.clone());
                let task = Task { id, spec, live, engine, done };
                (State::Loading, Some(tokio::task::spawn_local(task.run())))
            }
            (false, Err(reason)) => (State::Failed(reason), None),
        };
        let at_once = (same || live.is_none()).then(|| written.clone());
        let entry = Entry { id, offered: written, spec: spec.clone(), state, live, task };
        self.slots.insert(name.clone(), entry.slot());
        self.roster.set(entry.row());
        self.entries.insert(name.clone(), entry);
        at_once
    }

    /// Plugins that run, or will.
    fn running(&self) -> usize {
        let runs = |entry: &&Entry| entry.live.is_some() || entry.task.is_some();
        self.entries.values().filter(runs).count()
    }

    /// Forgets a plugin.
    pub fn remove(&mut self, name: &ObjectName) {
        if self.entries.remove(name).is_some() {
            self.slots.remove(name);
            self.roster.unset(name);
        }
    }

    /// Takes up what a task says, `now` being the time since the start. `None` when it concerns nobody.
    pub fn take(&mut self, done: Done, now: Duration) -> Option<Outcome> {
        let entry = self.entries.get_mut(&done.name).filter(|entry| entry.id == done.id)?;
        let insert = entry.take(done.result, now)?;
        self.slots.insert(done.name.clone(), entry.slot());
        self.roster.set(entry.row());
        Some(Outcome { name: done.name, insert })
    }

    /// Decides on the versions that are on trial.
    pub fn judge(&mut self, now: Duration) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for (name, entry) in &mut self.entries {
            let Some(insert) = entry.judge(now) else { continue };
            self.slots.insert(name.clone(), entry.slot());
            self.roster.set(entry.row());
            outcomes.push(Outcome { name: name.clone(), insert });
        }
        outcomes
    }

    fn engine(&mut self) -> Result<Engine, String> {
        let folder = &self.folder;
        let made = self.engine.get_or_insert_with(|| {
            let runtime = Arc::new(Runtime::new(folder.clone())?);
            let modules = Arc::new(Modules::new(Store::new(folder.clone())));
            let [compiling, starting] = [(); 2].map(|()| Arc::new(Semaphore::new(1)));
            Ok(Engine { runtime, modules, compiling, starting })
        });
        if let Ok(engine) = made {
            self.roster.runs(&engine.runtime);
        }
        made.clone().map_err(|reason| format!("this machine cannot run plugins: {reason}"))
    }
}

impl Entry {
    /// What follows from a result: nothing, another slot, or what is offered in force.
    fn take(
        &mut self,
        result: Result<Arc<Plugin>, String>,
        now: Duration,
    ) -> Option<Option<Written>> {
        let name = &self.spec.name;
        let plugin = match result {
            Ok(plugin) => plugin,
            Err(reason) => {
                tracing::error!("plugin {name}: {reason}");
                self.state = State::Failed(reason);
                return Some(None);
            }
        };
        if let State::TakenBack { version, .. } = &self.state
            && *version == plugin.version()
        {
            return None;
        }
        match (&self.live, self.spec.canary) {
            (Some(live), Some(rule)) if live.version() != plugin.version() => {
                let (percent, version) = (rule.percent, plugin.version());
                tracing::info!(
                    "plugin {name}: {version} is on trial with {percent} % of exchanges"
                );
                self.state = State::Trial { plugin, began: now, rule };
                Some(None)
            }
            _ => Some(Some(self.promote(plugin))),
        }
    }

    fn judge(&mut self, now: Duration) -> Option<Option<Written>> {
        let State::Trial { plugin, began, rule } = &self.state else { return None };
        let figures = Figures::of(plugin);
        // What breaks by itself breaks for whoever comes.
        let failures = figures.failures.saturating_add(figures.own_faults);
        let sample = Sample { exchanges: figures.exchanges, failures };
        match canary::judge(rule, now.saturating_sub(*began), sample) {
            Decision::Watch => None,
            Decision::Promote => {
                let plugin = plugin.clone();
                Some(Some(self.promote(plugin)))
            }
            Decision::TakeBack => {
                let version = plugin.version().to_owned();
                let reason = format!(
                    "{version} was taken back: it failed in {} of {} exchanges, more than {} %",
                    sample.failures, sample.exchanges, rule.max_failure_percent
                );
                tracing::error!("plugin {}: {reason}", self.spec.name);
                self.state = State::TakenBack { version, reason };
                Some(None)
            }
        }
    }

    fn promote(&mut self, plugin: Arc<Plugin>) -> Written {
        tracing::info!("plugin {}: {} is live", self.spec.name, plugin.version());
        self.live = Some(plugin);
        self.state = State::Live;
        self.offered.clone()
    }

    fn slot(&self) -> Slot {
        let current = self.live.clone().ok_or_else(|| {
            Arc::new(Unloaded {
                label: self.spec.name.to_string().into(),
                reason: match &self.state {
                    State::Failed(reason) => format!("not loaded yet: {reason}"),
                    _ => "not loaded yet: it is being fetched and compiled".to_owned(),
                },
                failure: self.spec.failure,
                kind: self.spec.kind,
            })
        });
        let canary = match &self.state {
            State::Trial { plugin, rule, .. } => Some((plugin.clone(), rule.percent)),
            _ => None,
        };
        Slot { current, canary, phase: self.spec.phase }
    }

    fn row(&self) -> Row {
        let (state, reason) = match &self.state {
            State::Loading => ("loading", None),
            State::Live => ("live", None),
            State::Failed(reason) => ("failed", Some(reason.clone())),
            State::Trial { .. } => ("trial", None),
            State::TakenBack { reason, .. } => ("taken back", Some(reason.clone())),
        };
        let canary = self.slot().canary;
        Row { spec: self.spec.clone(), state, reason, live: self.live.clone(), canary }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests;
