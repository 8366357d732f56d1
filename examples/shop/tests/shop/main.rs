//! The shop with real sockets on port 0: in this process without a mesh (`order`, `notification`,
//! `control`, `traffic`), through a stand-in for a sidecar (`mesh`), and as a process (`process`).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod catalogue;
mod control;
mod mesh;
mod notification;
mod order;
mod process;
mod setup;
mod traffic;
