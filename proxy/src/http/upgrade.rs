//! Connections that stop being HTTP: `CONNECT` and `Upgrade`.

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::parking::Served;

/// A connection after its upgrade, as a byte stream.
pub type Stream = TokioIo<Upgraded>;

/// Ends a caller's connection so that it cannot take what it has for whole. TLS says so by itself, as it ends unannounced.
pub fn cut(stream: Stream) {
    if let Ok(parts) = stream.into_inner().downcast::<TokioIo<Served<TcpStream>>>() {
        // If it is closed already there is nothing to be done.
        let _ = parts.io.inner().inner().inner().set_zero_linger();
    }
}

/// The promise of a connection. It is kept once the response has been sent.
#[derive(Debug)]
pub struct Pending(OnUpgrade);

impl Pending {
    /// Takes the promise out of a request.
    pub fn of_request<B>(request: &mut http::Request<B>) -> Self {
        Self(hyper::upgrade::on(request))
    }

    /// Takes the promise out of a response.
    pub fn of_response<B>(response: &mut http::Response<B>) -> Self {
        Self(hyper::upgrade::on(response))
    }

    /// Waits for the connection.
    ///
    /// # Errors
    /// When the peer ended the connection instead.
    pub async fn stream(self) -> Result<Stream, hyper::Error> {
        self.0.await.map(TokioIo::new)
    }
}
