//! Binding listeners.

use std::{io, net::SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections the kernel keeps for us until we accept them.
const BACKLOG: i32 = 1024;

/// Why a listener cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({name}): {source}{}", hint(source))]
pub struct Error {
    /// `outbound`, `inbound` or `admin`.
    pub name: &'static str,
    /// Where.
    pub address: SocketAddr,
    /// Why not.
    pub source: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another process has this port: choose another one, or 0 for any"
        }
        io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need privileges",
        _ => "",
    }
}

/// One listening socket per worker, all on the same port (`SO_REUSEPORT`): the kernel spreads connections over them
/// without a lock between workers. Port 0 is resolved by the first.
///
/// # Errors
/// When the address cannot be had. A second process on the same port is refused, although the option would allow it.
pub fn bind(
    name: &'static str,
    address: SocketAddr,
    workers: usize,
) -> Result<Vec<std::net::TcpListener>, Error> {
    let failed = |source| Error { name, address, source };
    if address.port() != 0 {
        // With SO_REUSEPORT a foreign process of the same user would silently share our traffic: look first.
        drop(listen(address, false).map_err(failed)?);
    }
    let first = listen(address, true).map_err(failed)?;
    let bound = first.local_addr().map_err(failed)?;
    let mut listeners = vec![first];
    for _ in 1..workers {
        listeners.push(listen(bound, true).map_err(failed)?);
    }
    Ok(listeners)
}

fn listen(address: SocketAddr, shared: bool) -> io::Result<std::net::TcpListener> {
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    // A service on the IPv6 wildcard answers IPv4 callers, too.
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_a_port_and_others_are_told() {
        let listeners = bind("outbound", "127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let ports: Vec<_> =
            listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        assert!(ports[0] > 0 && ports.iter().all(|port| *port == ports[0]));
        let taken =
            bind("outbound", listeners[0].local_addr().unwrap(), 1).unwrap_err().to_string();
        assert!(taken.contains("outbound") && taken.contains("choose another one"), "{taken}");
    }
}
