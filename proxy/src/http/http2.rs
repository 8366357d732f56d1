//! HTTP/2, on h2 itself: `client` to upstreams, `server` for callers; `upload` and `received` are bodies on their way out
//! and in, `batched` puts writes together, `alive` notices peers that are gone, `duplex` is a stream that has become a
//! tunnel, `queue` holds those who wait for room.

mod alive;
mod batched;
pub(super) mod client;
mod duplex;
mod queue;
mod received;
pub(super) mod server;
mod upload;

pub(super) use self::duplex::Promised;
pub use self::{client::Http2, duplex::Duplex, received::Received};

#[cfg(test)]
mod tests;
