//! `caller-quota`: so many requests in such a time for each caller, counted by all workers of a proxy together.
//!
//! `quota.rs` decides (the generic cell rate algorithm: one number for each caller, no windows with edges),
//! `ledger.rs` keeps the number in shared data by compare-and-swap.

pub mod configuration;
#[cfg(target_arch = "wasm32")]
mod filter;
pub mod ledger;
pub mod quota;
