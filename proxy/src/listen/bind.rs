//! Binding listeners.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections the kernel keeps for us until we accept them.
pub(super) const BACKLOG: i32 = 1024;

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
        drop(listen(address, false, false).map_err(failed)?);
    }
    let first = listen(address, true, false).map_err(failed)?;
    let bound = first.local_addr().map_err(failed)?;
    let mut listeners = vec![first];
    for _ in 1..workers {
        listeners.push(listen(bound, true, false).map_err(failed)?);
    }
    Ok(listeners)
}

/// The same over IPv6 beside a listener that is bound to an IPv4 `address` already: the kernel leads there what was meant for
/// IPv6. `None` where the machine has no IPv6.
///
/// # Errors
/// When the address cannot be had.
pub fn bind_beside(
    name: &'static str,
    address: SocketAddr,
    workers: usize,
) -> Result<Option<Vec<std::net::TcpListener>>, Error> {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv6Addr::UNSPECIFIED,
        IpAddr::V4(ip) if ip.is_loopback() => Ipv6Addr::LOCALHOST,
        _ => return Ok(None),
    };
    let address = SocketAddr::new(ip.into(), address.port());
    let failed = |source| Error { name, address, source };
    match listen(address, false, true) {
        Ok(looked) => drop(looked),
        Err(error) if is_without_ipv6(&error) => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    let bound = (0..workers).map(|_| listen(address, true, true).map_err(failed));
    bound.collect::<Result<_, _>>().map(Some)
}

fn is_without_ipv6(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    error.kind() == io::ErrorKind::AddrNotAvailable
        || code == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

fn listen(address: SocketAddr, shared: bool, only_v6: bool) -> io::Result<std::net::TcpListener> {
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    // A service on the IPv6 wildcard answers IPv4 callers, too.
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(only_v6)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_is_beside_ipv4() {
        for (address, beside) in [("127.0.0.1:0", "::1"), ("0.0.0.0:0", "::")] {
            let first = bind("inbound", address.parse().unwrap(), 1).unwrap();
            let bound = first[0].local_addr().unwrap();
            // A machine may be without IPv6.
            let Some(listeners) = bind_beside("inbound", bound, 2).unwrap() else { continue };
            for listener in &listeners {
                let found = listener.local_addr().unwrap();
                assert_eq!(
                    (found.ip().to_string(), found.port()),
                    (beside.to_owned(), bound.port())
                );
            }
            assert_eq!(listeners.len(), 2);
            assert!(bind_beside("inbound", bound, 1).is_err(), "it is taken now");
        }
        assert!(bind_beside("inbound", "[::]:0".parse().unwrap(), 1).unwrap().is_none());
    }

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
