//! What happens to requests and responses on their way, beside being forwarded.

pub mod authz;
pub mod headers;
pub mod jwt;
pub mod rate_limit;
pub mod wasm;
