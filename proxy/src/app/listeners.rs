//! Where the proxy listens.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{Error, system};
use crate::{
    admin::server::Surface, bootstrap::Options, listen::bind, telemetry::record::Direction,
};

/// Listening sockets.
pub(super) struct Bound {
    /// For each worker those that it serves.
    pub(super) workers: Vec<Vec<(std::net::TcpListener, Direction)>>,
    /// For operators and machines, with what each may see.
    pub(super) admin: Vec<(Surface, std::net::TcpListener)>,
    /// For people and other programs.
    pub(super) addresses: Vec<(&'static str, SocketAddr)>,
}

impl Bound {
    pub(super) fn inbound_address(&self) -> Option<SocketAddr> {
        self.addresses.iter().find(|(name, _)| *name == "inbound").map(|(_, address)| *address)
    }
}

/// Binds everything that `options` ask for.
pub(super) fn bind_all(options: &Options) -> Result<Bound, Error> {
    let count = options.worker_count();
    let mut workers: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
    let mut addresses = Vec::new();
    for (name, wanted, direction) in [
        ("outbound", options.outbound, Direction::Outbound),
        ("inbound", options.inbound, Direction::Inbound),
    ] {
        let listeners = bind::bind(name, wanted, count)?;
        let address = address_of(listeners.first())?;
        addresses.push((name, address));
        let beside = match options.capture {
            true => bind::bind_beside(name, address, count)?,
            false => None,
        };
        for listeners in [Some(listeners), beside].into_iter().flatten() {
            let each = workers.iter_mut().zip(listeners);
            each.for_each(|(worker, listener)| worker.push((listener, direction)));
        }
    }
    let mut admin = Vec::new();
    for (name, wanted, surface) in [
        ("admin", Some(options.admin), Surface::Operators),
        ("ready", options.ready, Surface::Readiness),
        ("metrics", options.metrics, Surface::Metrics),
    ] {
        let Some(wanted) = wanted else { continue };
        let listener = bind_any(name, wanted)?.pop().ok_or_else(unbound)?;
        addresses.push((name, address_of(Some(&listener))?));
        admin.push((surface, listener));
    }
    Ok(Bound { workers, admin, addresses })
}

/// Where a machine has no IPv6, any address of its is any IPv4 address.
fn bind_any(
    name: &'static str,
    wanted: SocketAddr,
) -> Result<Vec<std::net::TcpListener>, bind::Error> {
    match bind::bind(name, wanted, 1) {
        Err(error)
            if wanted.ip() == Ipv6Addr::UNSPECIFIED
                && error.source.kind() != io::ErrorKind::AddrInUse =>
        {
            bind::bind(name, SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), wanted.port()), 1)
        }
        bound => bound,
    }
}

fn address_of(listener: Option<&std::net::TcpListener>) -> Result<SocketAddr, Error> {
    listener.ok_or_else(unbound)?.local_addr().map_err(system("a bound address"))
}

fn unbound() -> Error {
    Error::System { what: "a listener", source: io::Error::other("was not bound") }
}
