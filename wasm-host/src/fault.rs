//! What it looks like when a guest breaks, for the one that called it.

use wasmtime::{Trap, WasmBacktrace};

use crate::instance::together;

/// A callback that did not end as it should. The instance is of no use afterwards: drop it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{callback}: {message}")]
pub struct Fault {
    /// What went wrong.
    pub kind: FaultKind,
    /// The export of the guest that was called.
    pub callback: &'static str,
    /// For people: what went wrong, and in which functions where the module names them.
    pub message: String,
    /// The functions of the guest that were running, the innermost first, as the module names them.
    pub backtrace: Vec<String>,
}

/// The ways in which a guest breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// It executed an instruction that cannot go on: `unreachable` (that is how `abort` and a panic
    /// end), an access out of bounds, a division by zero, a wrong indirect call.
    Trap,
    /// It ran longer than the deadline.
    Deadline,
    /// It called deeper than its stack allows.
    StackOverflow,
    /// It stopped after memory, or a table, was refused to it because of its limits.
    OutOfMemory,
    /// It called `proc_exit` with this code.
    Exit(u32),
    /// The embedder's own code panicked while the guest was calling it.
    HostPanic,
    /// The instance broke in an earlier call and must not be called again.
    Poisoned,
}

/// `proc_exit` of WASI, on its way through the guest's frames.
#[derive(Debug, thiserror::Error)]
#[error("proc_exit({0})")]
pub(crate) struct Exit(pub u32);

impl Fault {
    /// Tells what an error of the engine means. `refused_memory`: whether the limits refused memory
    /// during the call; running into `unreachable` after that is how guests say "out of memory".
    pub(crate) fn of(
        callback: &'static str,
        error: &wasmtime::Error,
        refused_memory: bool,
    ) -> Self {
        let backtrace = functions(error);
        let kind = kind_of(error, refused_memory);
        let cause = match kind {
            FaultKind::Deadline => "ran longer than its deadline".to_owned(),
            FaultKind::OutOfMemory => format!("stopped after its memory limit: {}", root(error)),
            _ => root(error),
        };
        let place = backtrace.first().map_or(String::new(), |name| format!(" in `{name}`"));
        Self { kind, callback, message: format!("{cause}{place}"), backtrace }
    }

    pub(crate) fn panic(callback: &'static str, payload: &(dyn std::any::Any + Send)) -> Self {
        let text = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        let message = format!("the embedder panicked: {text}");
        Self { kind: FaultKind::HostPanic, callback, message, backtrace: Vec::new() }
    }

    pub(crate) fn poisoned(callback: &'static str) -> Self {
        let message = "the instance broke in an earlier call".to_owned();
        Self { kind: FaultKind::Poisoned, callback, message, backtrace: Vec::new() }
    }
}

fn kind_of(error: &wasmtime::Error, refused_memory: bool) -> FaultKind {
    if let Some(exit) = error.downcast_ref::<Exit>() {
        return FaultKind::Exit(exit.0);
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => FaultKind::Deadline,
        Some(Trap::StackOverflow) => FaultKind::StackOverflow,
        _ if refused_memory => FaultKind::OutOfMemory,
        _ => FaultKind::Trap,
    }
}

fn root(error: &wasmtime::Error) -> String {
    match error.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    }
}

fn functions(error: &wasmtime::Error) -> Vec<String> {
    let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() else {
        return Vec::new();
    };
    let name = |frame: &wasmtime::FrameInfo| {
        frame.func_name().map_or_else(|| format!("function {}", frame.func_index()), str::to_owned)
    };
    let guest = |frame: &&wasmtime::FrameInfo| frame.module().name() != Some(together::NAME);
    backtrace.frames().iter().filter(guest).map(name).collect()
}
