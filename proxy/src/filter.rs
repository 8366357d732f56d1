//! What happens to requests and responses on their way, beside being forwarded.

pub mod headers;
