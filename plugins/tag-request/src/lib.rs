//! `tag-request`: adds headers with fixed texts, or with what the proxy knows of an exchange (its properties).
//!
//! `value.rs` turns the bytes of a property into text. A tag replaces what the caller sent by that name, unless
//! it is told otherwise: what is tagged can be believed.

pub mod configuration;
#[cfg(target_arch = "wasm32")]
mod filter;
pub mod value;
