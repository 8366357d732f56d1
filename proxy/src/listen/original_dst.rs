//! Where a connection was going before the kernel led it to us.

use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

/// The destination that the caller of `stream` meant, if the kernel has translated it (`SO_ORIGINAL_DST`,
/// `IP6T_SO_ORIGINAL_DST`); `None` for a connection that was made to us.
pub fn of(stream: &TcpStream) -> Option<SocketAddr> {
    let local = stream.local_addr().ok()?;
    let socket = SockRef::from(stream);
    let found = match local.ip().to_canonical().is_ipv4() {
        true => socket.original_dst_v4(),
        false => socket.original_dst_v6(),
    };
    // Where nothing is translated the kernel knows of no such connection, or has no such option.
    let original = found.ok()?.as_socket()?;
    (canonical(original) != canonical(local)).then(|| canonical(original))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn what_was_made_to_us_was_going_nowhere_else() {
        for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            // A machine may be without IPv6.
            let Ok(listener) = TcpListener::bind(address).await else { continue };
            let port = listener.local_addr().unwrap().port();
            let host = if address.starts_with("127") { "127.0.0.1" } else { "::1" };
            let _caller = TcpStream::connect((host, port)).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            assert_eq!(super::of(&stream), None, "{address}");
        }
    }
}
