//! What others may know of plugins: the admin port, metrics, readiness.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use leno_api::model::{
    ObjectName,
    wasm_plugin::{FailurePolicy, PluginType, WasmPlugin},
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    filter::wasm::{Plugin, Runtime},
    telemetry::metrics::plugins::{Sample, Shown},
};

/// All plugins, as they are now.
#[derive(Debug, Default)]
pub struct Roster {
    rows: Mutex<BTreeMap<ObjectName, Row>>,
    /// Told of every change of a row.
    changes: watch::Sender<()>,
    runtime: OnceLock<Arc<Runtime>>,
    /// Whether every plugin that was there at the start has once been loaded, or has failed.
    settled: AtomicBool,
}

/// One plugin.
#[derive(Clone, Debug)]
pub struct Row {
    /// As it was offered last.
    pub spec: Arc<WasmPlugin>,
    /// What became of that: `loading`, `live`, `failed`, `trial`, `taken back`.
    pub state: &'static str,
    /// Why it is not live.
    pub reason: Option<String>,
    /// The last good version.
    pub live: Option<Arc<Plugin>>,
    /// The version on trial, and its share of exchanges in percent.
    pub canary: Option<(Arc<Plugin>, u8)>,
}

/// Which versions of a plugin run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// The live one.
    pub version: String,
    /// The SHA-256 of its module, in hexadecimal digits.
    pub digest: String,
    /// The one on trial beside it.
    pub trial: Option<String>,
}

/// What a version has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Exchanges and connections it was to see.
    pub exchanges: u64,
    /// Those in which it failed: it trapped, took too long, held it for too long, wanted what cannot be done, or was not
    /// there to be asked.
    pub failures: u64,
    /// Faults of timers, queues and answers to calls, which are no exchange's.
    pub own_faults: u64,
    /// Calls into it.
    pub calls: u64,
    /// Time spent in them.
    pub nanoseconds: u64,
    /// Faults but overruns.
    pub traps: u64,
    /// Calls that ran longer than the deadline.
    pub overruns: u64,
    /// Instances that took the place of one that broke.
    pub restarts: u64,
    /// Instances now.
    pub instances: i64,
    /// Bytes of their memories now.
    pub memory_bytes: i64,
    /// Bytes of bodies that they hold.
    pub held_bytes: i64,
}

impl Figures {
    /// Those of a version now.
    pub fn of(plugin: &Plugin) -> Self {
        let figures = plugin.figures();
        Self {
            exchanges: figures.exchanges.load(Relaxed),
            failures: figures.failures.load(Relaxed),
            own_faults: figures.own_faults.load(Relaxed),
            calls: figures.calls.load(Relaxed),
            nanoseconds: figures.nanoseconds.load(Relaxed),
            traps: figures.traps.load(Relaxed),
            overruns: figures.overruns.load(Relaxed),
            restarts: figures.restarts.load(Relaxed),
            instances: figures.instances.load(Relaxed),
            memory_bytes: figures.memory_bytes.load(Relaxed),
            held_bytes: figures.held_bytes.load(Relaxed),
        }
    }

    fn json(&self) -> Value {
        json!({
            "exchanges": self.exchanges, "failures": self.failures, "calls": self.calls,
            "milliseconds": self.nanoseconds as f64 / 1e6, "traps": self.traps,
            "overruns": self.overruns, "restarts": self.restarts, "instances": self.instances,
            "memoryBytes": self.memory_bytes,
            "heldBodyBytes": self.held_bytes,
        })
    }
}

impl Roster {
    /// All plugins, by name.
    pub fn rows(&self) -> Vec<Row> {
        self.lock().values().cloned().collect()
    }

    /// Which versions run here.
    pub fn running(&self) -> BTreeMap<ObjectName, Running> {
        let rows = self.lock();
        let running = rows.iter().filter_map(|(name, row)| Some((name.clone(), row.running()?)));
        running.collect()
    }

    /// Wakes when [`Self::running`] may be something else.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// What runs them, once there was one.
    pub fn runtime(&self) -> Option<&Arc<Runtime>> {
        self.runtime.get()
    }

    /// The plugins that the proxy still waits for before it is ready for the first time.
    pub fn awaited(&self) -> BTreeSet<String> {
        if self.settled.load(Relaxed) {
            return BTreeSet::new();
        }
        let rows = self.rows();
        let loading = rows.iter().filter(|row| row.state == "loading" && row.live.is_none());
        let awaited: BTreeSet<_> = loading.map(|row| row.spec.name.to_string()).collect();
        if awaited.is_empty() {
            self.settled.store(true, Relaxed);
        }
        awaited
    }

    /// For Prometheus.
    pub fn shown(&self) -> Shown {
        let rows = self.rows();
        let mut samples = Vec::new();
        for row in rows.iter() {
            let name = row.spec.name.to_string();
            samples.extend(row.live.iter().map(|plugin| sample(&name, plugin, false)));
            samples.extend(row.canary.iter().map(|(plugin, _)| sample(&name, plugin, true)));
        }
        let defined = self.runtime().map(|runtime| runtime.defined()).unwrap_or_default();
        let failed = rows.iter().filter(|row| row.reason.is_some()).count();
        Shown { samples, defined, failed }
    }

    /// For people.
    pub fn json(&self) -> Value {
        Value::Array(self.rows().iter().map(Row::json).collect())
    }

    /// One at a time: there may be thousands.
    pub(super) fn set(&self, row: Row) {
        self.lock().insert(row.spec.name.clone(), row);
        self.changes.send_replace(());
    }

    pub(super) fn unset(&self, name: &ObjectName) {
        self.lock().remove(name);
        self.changes.send_replace(());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ObjectName, Row>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn runs(&self, runtime: &Arc<Runtime>) {
        self.runtime.get_or_init(|| runtime.clone());
    }
}

fn sample(name: &str, plugin: &Plugin, canary: bool) -> Sample {
    let figures = Figures::of(plugin);
    Sample {
        plugin: name.to_owned(),
        version: plugin.version().to_owned(),
        canary,
        exchanges: figures.exchanges,
        failures: figures.failures,
        calls: figures.calls,
        seconds: figures.nanoseconds as f64 / 1e9,
        traps: figures.traps,
        overruns: figures.overruns,
        restarts: figures.restarts,
        instances: figures.instances,
        memory_bytes: figures.memory_bytes,
        held_bytes: figures.held_bytes,
    }
}

impl Row {
    fn running(&self) -> Option<Running> {
        let live = self.live.as_ref()?;
        let trial = self.canary.as_ref().map(|(plugin, _)| plugin.version().to_owned());
        Some(Running { version: live.version().to_owned(), digest: live.digest(), trial })
    }

    fn json(&self) -> Value {
        let spec = &self.spec;
        let figures = self.live.as_deref().map(Figures::of).unwrap_or_default();
        let mut row = json!({
            "name": spec.name.to_string(),
            "version": self.live.as_ref().map(|plugin| plugin.version()),
            "state": self.state,
            "url": spec.source.url(),
            "phase": spec.phase.as_str(),
            "priority": spec.priority,
            "type": match spec.kind { PluginType::Http => "HTTP", PluginType::Network => "NETWORK" },
            "failurePolicy": match spec.failure {
                FailurePolicy::Closed => "Closed",
                FailurePolicy::Open => "Open",
            },
            "where": self.places(),
            "figures": figures.json(),
        });
        if let Some(reason) = &self.reason {
            row["reason"] = reason.as_str().into();
        }
        if let Some((plugin, percent)) = &self.canary {
            row["canary"] = json!({
                "version": plugin.version(), "percent": percent,
                "figures": Figures::of(plugin).json(),
            });
        }
        row
    }

    /// `SERVER 80,8080; CLIENT`.
    fn places(&self) -> String {
        let one = |sides: &leno_api::model::wasm_plugin::Match| {
            let side = match (sides.server, sides.client) {
                (true, true) => "CLIENT_AND_SERVER",
                (false, true) => "CLIENT",
                _ => "SERVER",
            };
            let ports: Vec<_> = sides.ports.iter().map(ToString::to_string).collect();
            if ports.is_empty() { side.to_owned() } else { format!("{side} {}", ports.join(",")) }
        };
        self.spec.matches.iter().map(one).collect::<Vec<_>>().join("; ")
    }
}
