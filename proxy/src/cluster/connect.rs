//! Making upstream connections.

use std::{net::SocketAddr, time::Duration};

use http::StatusCode;
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
            // Without it a small request would wait for the peer's delayed acknowledgement.
            stream
                .set_nodelay(true)
                .map_err(|error| failed(format!("connecting to {address}: {error}")))?;
            Ok(stream)
        }
        Ok(Err(error)) => Err(failed(format!("connecting to {address}: {error}"))),
        Err(_) => Err(failed(format!("connecting to {address}: no answer within {timeout:?}"))),
    }
}
