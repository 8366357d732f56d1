//! The endpoints for operators, with Envoy's names and meaning. Loopback only unless told otherwise; nothing is changed
//! by GET, and requests that a web page could make on somebody's behalf are refused.

mod attempts;
pub mod caches;
mod concurrency;
mod gate;
mod health;
mod limiting;
mod pages;
pub mod probes;
pub mod server;
