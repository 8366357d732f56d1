//! x
pub mod cluster;
pub mod config;
pub mod error;
pub mod filter;
pub mod forward;
pub mod http;
pub mod route;
pub mod snapshot;
pub mod telemetry;
