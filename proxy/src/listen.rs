//! Downstream connections: bound, accepted, told apart, served.

pub mod accept;
pub mod bind;
mod captured;
pub mod connection;
mod handshake;
mod hello;
mod original_dst;
pub mod sniff;
