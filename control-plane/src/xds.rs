//! Incremental xDS: how proxies get what was planned for them.
//!
//! ```text
//! requests ─▶ server (one task per stream) ─▶ Session (pure) ─▶ wishes, verdicts ─▶ push
//! responses ◀─ server ◀─────────────────────── Session ◀──────── mailbox ◀───────── push
//! ```
//!
//! - `session.rs`: what has been asked for, sent, accepted and rejected on one stream; what is sent next
//! - `session/round.rs`: one consistent change as a row of responses, in an order that is safe
//! - `names.rs`: subscriptions as they are written on the wire
//! - `node.rs`: what a proxy says about itself
//! - `quota.rs`, `purge.rs`: beside xDS: shares of the limits that proxies have together; what their caches are to forget
//! - `server.rs`: the service; `server/stream.rs`: one stream, with its lease; `server/messages.rs`: gRPC's messages, of which
//!   nothing stays once they have passed

#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod names;
mod node;
mod purge;
mod quota;
pub mod server;
pub mod session;
