//! Answers from our own memory: RFC 9111.

pub mod policy;
