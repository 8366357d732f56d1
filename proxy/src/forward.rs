//! Drives an exchange through everything, once: `begin -> run -> finish`.
//!
//! - [`exchange`]: the one way in and out. Every error becomes a response here, every exchange is recorded here.
//! - `outbound`, `inbound`: to whom it goes, from our own application and to it.
//! - [`guard`]: whether a caller of our application may; [`limits`]: and how much.
//! - [`fault`]: failing on purpose.
//! - `attempt`: tries upstream; [`retry`] says whether there is another (pure), [`allowance`] whether the worker still
//!   has one to spend, `deadline` until when. [`quantile`]: after which time most are answered (pure).
//! - [`admission`]: when a request gets in to the application beside us; [`limiter`]: the side thread's part of it.
//! - [`budget`]: how many retries there may be beside the requests (pure).
//! - [`concurrency`]: how much the application beside us is given at once (pure).
//! - `response`: the way back; the record moves into the body and ends with it.
//! - [`outcome`]: one classification of everything that can go wrong (pure).
//! - [`observed`]: what a worker sees of endpoints (pure); [`sampler`]: what the side thread decides from it.
//! - `simulation`: all machines of resilience together, in tests: what they promise.
//! - [`secured`]: what mutual TLS has proven of a downstream connection.
//! - `plugins`: what Wasm plugins do to an exchange; [`callouts`]: what they send to services themselves.
//! - [`tunnel`]: bytes instead of HTTP; [`capture`]: connections that the kernel has led to us.

pub mod admission;
mod affinity;
pub mod allowance;
mod attempt;
pub mod budget;
mod cached;
pub mod callouts;
pub mod capture;
pub mod concurrency;
mod deadline;
pub mod exchange;
pub mod fault;
pub mod guard;
mod inbound;
pub mod limiter;
pub mod limits;
mod mirror;
pub mod observed;
mod outbound;
pub mod outcome;
pub mod plugins;
pub mod quantile;
mod response;
pub mod retry;
pub mod sampler;
pub mod secured;
#[cfg(test)]
mod simulation;
pub mod tunnel;
pub mod worker;
