//! What can be seen from outside: metric families, access records, trace context.

pub mod access_log;
pub mod metrics;
pub mod record;
pub mod scope;
pub mod trace;
