//! Answers from our own memory: RFC 9111.
//!
//! - [`policy`]: what the RFC says (pure).
//! - [`store`]: what is kept, within bounds; [`body`]: bytes that are read while they arrive.
//! - [`purge`]: what people want forgotten; [`figures`]: how much it was of use.

pub mod body;
pub mod figures;
pub mod policy;
pub mod purge;
pub mod store;
