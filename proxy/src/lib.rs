//! The sidecar, in the order in which a request passes:
//!
//! ```text
//! request   accept ─▶ tls ─▶ codec ─▶ filters ─▶ route ─▶ balance ─▶ connect ─▶ upstream
//!           listen    tls    http     filter     route    ╰───── cluster ─────╯
//!                                     └────── forward (drives it all, once) ──┘
//! config    source (file | control plane) ─▶ inputs ─▶ compile (pure) ─▶ Snapshot ─▶ swap ─▶ ACK / NACK
//!           plugins ─▶ prepare (fetch, compile, start) ─▶ slot ──╯
//! ```
//!
//! A module names only modules of an earlier line (tests/arch.rs):
//! `error | telemetry, http | tls, route, filter | cluster, identity | snapshot | forward, config | listen, admin, bootstrap | app, hooks`.

mod admin;
mod app;
mod bootstrap;
mod cache;
mod cluster;
mod config;
mod error;
mod filter;
mod forward;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod hooks;
mod http;
mod identity;
mod listen;
mod route;
mod snapshot;
mod telemetry;
mod tls;

pub use app::{Error, run};
pub use bootstrap::{AccessLog, Options};
