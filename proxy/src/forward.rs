//! Drives an exchange through everything, once: `begin -> run -> finish`.
//!
//! - [`exchange`]: the one way in and out. Every error becomes a response here, every exchange is recorded here.
//! - `outbound`, `inbound`: to whom it goes, from our own application and to it.
//! - [`guard`]: whether a caller of our application may.
//! - `attempt`: one try upstream; `retry` says whether there is another (pure).
//! - `response`: the way back; the record moves into the body and ends with it.
//! - [`outcome`]: one classification of everything that can go wrong (pure).
//! - [`observed`]: what a worker sees of endpoints (pure); [`sampler`]: what the side thread decides from it.
//! - [`secured`]: what mutual TLS has proven of a downstream connection.
//! - `plugins`: what Wasm plugins do to an exchange; [`callouts`]: what they send to services themselves.
//! - [`tunnel`]: bytes instead of HTTP.

mod attempt;
pub mod callouts;
pub mod exchange;
pub mod guard;
mod inbound;
mod mirror;
pub mod observed;
mod outbound;
pub mod outcome;
pub mod plugins;
mod response;
pub mod retry;
pub mod sampler;
pub mod secured;
pub mod tunnel;
pub mod worker;
