//! A Proxy-Wasm host: runs plugins of the ABI versions 0.1.0, 0.2.0 and 0.2.1 on wasmtime, so that no
//! plugin can hurt the process that runs it. It knows nothing of proxies: who embeds it brings the
//! streams, and the tests of a plugin's author are such an embedder too.
//!
//! ```text
//! Engine ─ compile ─▶ Module ─ settings, limits ─▶ Plugin ─ start ─▶ Instance ─▶ a context for each stream
//! ```
//!
//! - [`Engine`], [`Module`]: compiling off the path, native code cached on disk by digest.
//! - [`Plugin`]: a module linked with its configuration; common to all threads.
//! - [`Instance`]: one for each worker. Its methods are the callbacks; each runs to its end, at most for
//!   [`Limits::deadline`]. What a guest does wrong comes back as a [`Fault`], and the instance is to be dropped.
//! - [`Host`] and [`Stream`]: what the embedder provides.
//! - [`Shared`]: data, queues and metrics that plugins have in common.
//! - [`pairs`]: the format of header lists.
//!
//! What differs from other hosts, and what was measured, is in the crate's README.

mod abi;
mod embedder;
mod engine;
mod fault;
mod guest;
mod host_functions;
mod instance;
mod limits;
mod module;
pub mod pairs;
mod plugin;
mod properties;
mod shared;
mod state;
mod wasi;

pub use self::{
    abi::{
        AbiVersion, Action, BufferType, CallKind, CallToken, ClosedBy, ContextId, LogLevel,
        MapType, MetricKind, Status, StreamType,
    },
    embedder::{
        BufferEdit, GrpcCall, Host, HttpCall, HttpCallResponse, LocalResponse, QueueListener,
        Stream,
    },
    engine::{Allocation, Engine, EngineError, EngineSettings},
    fault::{Fault, FaultKind},
    host_functions::FOREIGN_FUNCTIONS,
    instance::{Instance, Responded, StartError},
    limits::Limits,
    module::{CacheError, Digest, LoadError, Module, WeakModule},
    plugin::{Plugin, PluginSettings},
    shared::{
        DataLimits, Histogram, Metric, MetricValue, Metrics, QueueLimits, Shared, SharedData,
        SharedQueues,
    },
    state::Headers,
};
