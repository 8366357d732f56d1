//! An online shop of four small services, to have something to put a mesh around.
//!
//! ```text
//!                      ╭─ HTTP/1.1, JSON ─▶ user           user.rs
//! customer ─▶ order ───┼─ HTTP/1.1, JSON ─▶ product        catalogue.rs
//!   HTTP     order.rs  ├─ HTTP/2, gRPC ───▶   the same     product.rs
//!                      ╰─ TCP, JSON lines ▶ notification   notification.rs
//! ```
//!
//! Read `order.rs` first: it is the only service that calls others. `upstream.rs` has its three
//! ways of calling, through the sidecar or directly. Around every service, the same few things:
//!
//! | file | what |
//! |---|---|
//! | `args.rs` | the command line |
//! | `server.rs` | bind, serve, stop gracefully |
//! | `instance.rs` | who this instance is and how it was told to behave |
//! | `answer.rs` | makes HTTP and gRPC answers behave so: slow, failing, stamped with name and version |
//! | `control.rs` | the port on which it is told |
//! | `failure.rs` | errors as customers see them |
//! | `hop.rs` | who answered a call; which headers travel along |
//! | `label.rs` | names and versions |
//! | `traffic.rs` | a customer who never stops ordering |

mod answer;
mod args;
mod catalogue;
mod control;
mod failure;
mod hop;
mod instance;
mod label;
mod notification;
mod order;
mod product;
mod server;
pub mod traffic;
mod upstream;
mod user;

pub use args::{Address, Args, Service};
pub use hop::Hop;
pub use label::Label;
pub use server::{Running, start};

/// What `protox` and `tonic-prost-build` make of `proto/shop/v1/products.proto`.
pub mod products {
    #![expect(
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        reason = "the code is generated"
    )]
    tonic::include_proto!("shop.v1");
}

use std::io::{self, Write};
use tokio::signal::unix::{SignalKind, signal};

/// Why an instance could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address} ({flag}): {source}; choose another port, or 0 for any")]
    Bind { flag: &'static str, address: std::net::SocketAddr, source: io::Error },
    #[error(
        "order does not know how to reach {service}: give --mesh ADDR or --{service}-addr ADDR"
    )]
    NoWay { service: Service },
    #[error("{address:?} does not make an address to call: {reason}")]
    Address { address: String, reason: String },
    #[error("cannot name the instance: {0}; give --instance NAME")]
    Instance(String),
    #[error("cannot listen for signals: {0}")]
    Signal(io::Error),
    #[error("cannot print the bound addresses on standard output: {0}")]
    Announce(io::Error),
}

/// Runs one instance until ctrl-c or SIGTERM, then finishes what it has begun.
///
/// Prints its bound addresses as one JSON line on standard output.
pub async fn run(args: Args) -> Result<(), Error> {
    // Before the announcement: who reads it may send a signal at once.
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signal)?;
    let running = start(args).await?;
    announce(&running).map_err(Error::Announce)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    running.stop().await;
    Ok(())
}

fn announce(running: &Running) -> io::Result<()> {
    let line = serde_json::to_string(running)?;
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}
