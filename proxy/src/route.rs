//! Which rule a request falls under, and which share of it goes where. Pure.

pub mod rewrite;
pub mod split;
pub mod table;
