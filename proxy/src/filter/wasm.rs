//! Wasm plugins: the only place that knows `leno_wasm_host`.
//!
//! ```text
//! bytes ── runtime ──▶ Plugin ── one of a Chain, in the snapshot
//!                         │ at first use on a worker
//!                       seat (its instance there) ◀── host: timers, queues, calls
//!                         │ for each exchange                    └─ callouts, which forward implements
//!                        run: heads ─ body: bodies ── stream: what the guest sees of it
//! ```
//!
//! - `runtime`: one per process; bytes become a [`Plugin`].
//! - `plugin`: one version of one `WasmPlugin` with its figures; a [`Chain`] is what applies at one place.
//! - `seat`: one worker's instance; thrown away when it breaks; `restart` says when there is another (pure).
//! - `tally` (pure): what the figures of all workers do not have yet.
//! - `place`: a plugin as one exchange finds it.
//! - `connection`: bytes that are not HTTP, for plugins that see those.
//! - `run`: heads on their way through a chain; `answer`: what takes their place; `body`, `filtered`: bodies. `state` is what they and the guest leave for each other.
//! - `log_budget` (pure): how much an instance may log.
//! - `pace`: how callbacks that no exchange waits for leave a worker to others.
//! - `head`, `buffer`, `kept` (pure), `field_names`, `property`: what a guest reads and writes.

mod answer;
mod body;
mod buffer;
mod callouts;
mod calls;
mod connection;
mod field_names;
mod filtered;
mod head;
mod host;
mod kept;
mod log_budget;
mod metrics;
mod pace;
mod place;
mod plugin;
mod property;
mod restart;
mod run;
mod runtime;
mod seat;
mod state;
mod stream;
mod tally;

pub use self::{
    answer::Answered,
    callouts::{Callouts, Sending},
    connection::Inspected,
    filtered::Whole,
    plugin::{Chain, Plugin, Slot, Unloaded},
    run::{Failure, Passed, Run, Shown, Side, Stopped},
    runtime::{LoadError, Runtime},
    seat::Seats,
    state::{Facts, Node, Outcome},
};
