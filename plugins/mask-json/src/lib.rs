//! `mask-json`: replaces the values of configured fields in JSON responses, while they stream.
//!
//! `masker.rs` reads JSON byte by byte and keeps nothing but where it is, so that a response of any size
//! passes without being buffered. What is not JSON does not pass: a field that cannot be found
//! cannot be masked. `head.rs` decides by the response's head; `fields.rs` says which fields.

pub mod configuration;
pub mod fields;
#[cfg(target_arch = "wasm32")]
mod filter;
pub mod head;
pub mod masker;
