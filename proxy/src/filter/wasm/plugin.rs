//! What applies where: plugins in their order, each with its figures.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

use leno_api::model::wasm_plugin::{FailurePolicy, Phase, PluginType};

use super::{host::ProxyHost, run::Side};

/// One version of one `WasmPlugin`: a module with its settings, and what all workers count of it.
pub struct Plugin {
    pub(super) label: Arc<str>,
    pub(super) version: Box<str>,
    pub(super) linked: leno_wasm_host::Plugin<ProxyHost>,
    pub(super) kind: PluginType,
    pub(super) failure: FailurePolicy,
    pub(super) needs: Needs,
    pub(super) figures: Arc<Figures>,
    /// Unique in this process: workers find their instances by it.
    pub(super) id: u64,
}

/// What a module makes use of, so that nothing is done for it that it cannot see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// It is told of request bodies, or their trailers.
    pub(super) request_body: bool,
    /// It is told of response bodies, or their trailers.
    pub(super) response_body: bool,
    /// It can change what it is told of.
    pub(super) edits: bool,
    /// It can read or change heads and trailers.
    pub(super) heads: bool,
    /// It can read or change bodies.
    pub(super) bodies: bool,
    /// It can read headers when the exchange is over, or in the other direction.
    pub(super) reads: bool,
    /// It can answer a request, or end it, also when that has gone on.
    pub(super) interrupts: bool,
    /// It can write log lines, which say whose request it was.
    pub(super) logs: bool,
}

impl Needs {
    /// Whether it is told of bodies, or their trailers.
    pub(super) fn body(self, side: Side) -> bool {
        match side {
            Side::Request => self.request_body,
            Side::Response => self.response_body,
        }
    }

    /// What one of both needs.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            request_body: self.request_body | other.request_body,
            response_body: self.response_body | other.response_body,
            edits: self.edits | other.edits,
            heads: self.heads | other.heads,
            bodies: self.bodies | other.bodies,
            reads: self.reads | other.reads,
            interrupts: self.interrupts | other.interrupts,
            logs: self.logs | other.logs,
        }
    }
}

/// What one version of a plugin has done, in all workers.
#[derive(Debug, Default)]
pub struct Figures {
    /// Exchanges and connections that it saw.
    pub exchanges: AtomicU64,
    /// Those in which it failed: it broke or could not be asked, held it for too long, wanted what cannot be done. They got
    /// its failure policy, unless they were over already.
    pub failures: AtomicU64,
    /// Faults in nobody's behalf, of timers, queues, answers to calls, by which no exchange was lost.
    pub own_faults: AtomicU64,
    /// Calls into it.
    pub calls: AtomicU64,
    /// Time spent in them, as some of them are timed.
    pub nanoseconds: AtomicU64,
    /// Faults but overruns: traps, exits, memory or stack that ran out.
    pub traps: AtomicU64,
    /// Calls that ran longer than the deadline.
    pub overruns: AtomicU64,
    /// Instances that took the place of one that broke.
    pub restarts: AtomicU64,
    /// Instances now.
    pub instances: AtomicI64,
    /// Bytes of their memories now.
    pub memory_bytes: AtomicI64,
    /// Bytes of bodies that it holds now.
    pub held_bytes: AtomicI64,
}

/// The plugins that apply at one place.
#[derive(Debug, Default)]
pub struct Chain {
    slots: Box<[Slot]>,
}

/// One plugin's place in a chain.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The version that is live, or why there is none.
    pub current: Result<Arc<Plugin>, Arc<Unloaded>>,
    /// A version on trial, and which share of exchanges it gets, in percent.
    pub canary: Option<(Arc<Plugin>, u8)>,
    /// When it is asked.
    pub phase: Phase,
}

/// A plugin of which no version can run yet. What it would have seen gets its failure policy.
#[derive(Debug)]
pub struct Unloaded {
    /// `shop/tag`.
    pub label: Arc<str>,
    /// For the log and the body of the answer: `not loaded yet: fetching ...`.
    pub reason: String,
    /// Whether exchanges go on without it.
    pub failure: FailurePolicy,
    /// Whether it would see HTTP exchanges or connections.
    pub kind: PluginType,
}

impl Plugin {
    /// The first digits of the module's digest and of the settings'.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The SHA-256 of its module, in hexadecimal digits.
    pub fn digest(&self) -> String {
        self.linked.module().digest().to_string()
    }

    /// What it has done.
    pub fn figures(&self) -> &Arc<Figures> {
        &self.figures
    }
}

impl Figures {
    /// Counts exchanges or connections, and the time that calls took together.
    pub(super) fn add(&self, exchanges: u64, calls: u64, nanoseconds: u64) {
        for (counter, more) in
            [(&self.exchanges, exchanges), (&self.calls, calls), (&self.nanoseconds, nanoseconds)]
        {
            counter.fetch_add(more, Relaxed);
        }
    }
}

impl Slot {
    /// The version that an exchange gets; `lot` is any number.
    pub(super) fn choose(&self, lot: impl Fn() -> u64) -> Result<&Arc<Plugin>, &Arc<Unloaded>> {
        match &self.canary {
            Some((canary, percent)) if lot() % 100 < u64::from(*percent) => Ok(canary),
            _ => self.current.as_ref(),
        }
    }

    /// Whether it sees HTTP exchanges or connections.
    pub(super) fn kind(&self) -> PluginType {
        match &self.current {
            Ok(plugin) => plugin.kind,
            Err(unloaded) => unloaded.kind,
        }
    }
}

impl Chain {
    /// The slots must be in the order in which plugins are asked: by phase, then by priority.
    pub fn new(slots: Vec<Slot>) -> Self {
        Self { slots: slots.into() }
    }

    /// The slots, in order.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }
}

impl fmt::Debug for Plugin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Plugin")
            .field("label", &self.label)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}
