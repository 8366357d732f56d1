//! A Proxy-Wasm plugin. What decides is plain Rust and is tested as such; only `filter.rs` knows the proxy.

pub mod configuration;
#[cfg(target_arch = "wasm32")]
mod filter;
pub mod policy;
