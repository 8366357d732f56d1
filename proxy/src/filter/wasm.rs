//! Wasm plugins: the only place that knows `leno_wasm_host`.
//!
//! - [`runtime`]: one per process; bytes become a [`Plugin`].
//! - [`plugin`]: one version of one `WasmPlugin` with its figures; a [`Chain`] is what applies at one place.

mod plugin;
mod runtime;

pub use self::{
    plugin::{Chain, Figures, Plugin, Slot, Unloaded},
    runtime::{LoadError, Runtime},
};
