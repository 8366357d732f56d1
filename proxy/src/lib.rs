//! x
pub mod cluster;
pub mod error;
pub mod filter;
pub mod http;
pub mod route;
pub mod telemetry;
