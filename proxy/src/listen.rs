//! Downstream connections: bound, accepted, told apart, served.

pub mod accept;
pub mod bind;
pub mod connection;
mod handshake;
mod hello;
pub mod sniff;
