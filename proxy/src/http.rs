//! HTTP as bytes on connections: heads made safe, bodies that are watched, and the only files that name hyper.

mod aside;
pub mod body;
pub mod client;
pub mod fetch;
mod framing;
pub mod head;
mod head_budget;
pub mod http1;
pub mod http2;
mod parking;
pub mod replay;
pub mod server;
pub mod unread;
pub mod upgrade;
mod watched;
