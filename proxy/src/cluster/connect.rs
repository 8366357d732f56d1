//! Making upstream connections.

use std::{net::SocketAddr, time::Duration};

use http::StatusCode;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::error::{Error, Flag, Retry};

/// Connects within `timeout`.
///
/// # Errors
/// UF, safe to retry elsewhere: nothing was sent.
pub async fn tcp(address: SocketAddr, timeout: Duration) -> Result<TcpStream, Error> {
    let failed = |detail: String| {
        Error::upstream(StatusCode::SERVICE_UNAVAILABLE, Flag::UF, Retry::Safe, detail)
    };
    match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            prepare(&stream)
                .map_err(|error| failed(format!("connecting to {address}: {error}")))?;
            Ok(stream)
        }
        Ok(Err(error)) => Err(failed(format!("connecting to {address}: {error}"))),
        Err(_) => Err(failed(format!("connecting to {address}: no answer within {timeout:?}"))),
    }
}

/// What every connection of a proxy needs, in either direction: no waiting for more bytes (a small request would wait for
/// the peer's delayed acknowledgement), and notice within a minute of a peer that vanished without a word.
pub fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    let alive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&alive)
}
