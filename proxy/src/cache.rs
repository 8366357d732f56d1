//! Answers from our own memory: RFC 9111.
//!
//! - [`policy`]: what the RFC says (pure).
//! - [`store`]: what is kept, within bounds; [`body`]: bytes that are read while they arrive.

pub mod body;
pub mod policy;
pub mod store;
