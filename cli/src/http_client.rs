//! An HTTP/1.1 client: one connection per request, every wait bounded. For people's commands, not for load.
//!
//! `https://` servers are held to the roots of `trust.rs`. A bearer token leaves this machine only in TLS.

use std::{error::Error as _, io, net::SocketAddr, time::Duration};

use http::{
    HeaderValue, Request, Response,
    header::{AUTHORIZATION, HOST},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

mod trust;

pub use trust::{Trust, TrustError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For an answer to begin, and again for it to be complete.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A list of 100,000 resources of 1 KiB, and then some.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// A server to ask.
#[derive(Clone, Debug)]
pub struct HttpClient {
    authority: String,
    security: Security,
}

#[derive(Clone, Debug)]
enum Security {
    Plain,
    Tls { trust: Trust, name: ServerName<'static> },
}

/// What a request is sent over.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Why there is no answer. What the answer says is not judged here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{address}` is not an address of a server: {reason}")]
    Address { address: String, reason: &'static str },
    #[error("cannot reach {authority}: {}", in_words(source))]
    Connect { authority: String, source: io::Error },
    #[error("cannot reach {authority}: no connection within {CONNECT_TIMEOUT:?}")]
    ConnectTimeout { authority: String },
    #[error("{authority} did not answer within {ANSWER_TIMEOUT:?}")]
    AnswerTimeout { authority: String },
    #[error("{authority} ended the exchange early: {reason}")]
    Broken { authority: String, reason: String },
    #[error("{authority} cannot be trusted: {reason}")]
    Untrusted { authority: String, reason: String },
    #[error(
        "{authority} is not on this machine, and a token is not sent there in the clear: use https:// and --ca-file"
    )]
    TokenInClear { authority: String },
}

impl Error {
    /// Nobody listens there, as opposed to somebody who answers badly.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::ConnectTimeout { .. })
    }
}

impl HttpClient {
    /// `address` is `http://host:port` or just `host:port`.
    pub fn new(address: &str) -> Result<Self, Error> {
        match address.starts_with("https://") {
            true => Err(wrong(address, "only http:// is spoken")),
            false => Self::with_trust(address, None),
        }
    }

    /// As [`new`](Self::new), and `https://host:port` where `trust` says who may certify it.
    pub fn with_trust(address: &str, trust: Option<Trust>) -> Result<Self, Error> {
        let Some(rest) = address.strip_prefix("https://") else {
            let rest = address.strip_prefix("http://").unwrap_or(address);
            let authority = authority(rest, HTTP_PORT).map_err(|reason| wrong(address, reason))?;
            return Ok(Self { authority: authority.to_string(), security: Security::Plain });
        };
        let authority = authority(rest, HTTPS_PORT).map_err(|reason| wrong(address, reason))?;
        let trust = trust.ok_or_else(|| wrong(address, "its certificate is checked with the roots of the mesh, so set --ca-file (LENO_CA_FILE): root.pem in the control plane's data directory"))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| wrong(address, "no certificate can be for that name"))?;
        Ok(Self { authority: authority.to_string(), security: Security::Tls { trust, name } })
    }

    /// `https://host:port`.
    pub fn url(&self) -> String {
        match self.security {
            Security::Plain => format!("http://{}", self.authority),
            Security::Tls { .. } => format!("https://{}", self.authority),
        }
    }

    /// Who may certify the server; `None` for one without TLS.
    pub fn trust(&self) -> Option<&Trust> {
        match &self.security {
            Security::Plain => None,
            Security::Tls { trust, .. } => Some(trust),
        }
    }

    /// Sends `request` (its URI being just path and query) and reads the whole answer.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, Error> {
        let (head, body) = self.open(request).await?.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect();
        let body = timeout(ANSWER_TIMEOUT, body).await.map_err(|_| self.too_late())?;
        let body = body.map_err(|error| self.broken(&error.to_string()))?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }

    /// As [`send`](Self::send), under the name `host` rather than that of the server: through a proxy.
    pub async fn send_for(
        &self,
        host: &'static str,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, Error> {
        request.headers_mut().insert(HOST, HeaderValue::from_static(host));
        self.send(request).await
    }

    /// Sends `request` and hands over the answer once it has begun.
    pub async fn open(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Error> {
        if !request.headers().contains_key(HOST) {
            let host = HeaderValue::from_str(&self.authority)
                .map_err(|_| self.broken("its name does not fit into a header"))?;
            request.headers_mut().insert(HOST, host);
        }
        let secret = request.headers().contains_key(AUTHORIZATION);
        let stream = self.connect(secret).await?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) =
            handshake.await.map_err(|error| self.broken(&in_full(&error)))?;
        // Ends by itself: with the answer, or when it is dropped. Its errors reach the sender.
        tokio::spawn(connection);
        let answer = timeout(ANSWER_TIMEOUT, sender.send_request(request)).await;
        answer.map_err(|_| self.too_late())?.map_err(|error| self.broken(&in_full(&error)))
    }

    /// The certificate that the server shows, in DER, once it is found good; `None` of a server without TLS.
    pub async fn certificate(&self) -> Result<Option<CertificateDer<'static>>, Error> {
        let Security::Tls { trust, name } = &self.security else { return Ok(None) };
        let stream = self.secured(self.reached(false).await?, trust, name).await?;
        let (_, session) = stream.get_ref();
        Ok(session.peer_certificates().and_then(|chain| chain.first()).cloned())
    }

    async fn connect(&self, secret: bool) -> Result<Box<dyn Stream>, Error> {
        let stream = self.reached(secret).await?;
        match &self.security {
            Security::Plain => Ok(Box::new(stream)),
            Security::Tls { trust, name } => Ok(Box::new(self.secured(stream, trust, name).await?)),
        }
    }

    async fn reached(&self, secret: bool) -> Result<TcpStream, Error> {
        let too_late = |_| Error::ConnectTimeout { authority: self.authority.clone() };
        timeout(CONNECT_TIMEOUT, self.dial(secret)).await.map_err(too_late)?
    }

    async fn secured(
        &self,
        stream: TcpStream,
        trust: &Trust,
        name: &ServerName<'static>,
    ) -> Result<TlsStream<TcpStream>, Error> {
        let untrusted = |reason| Error::Untrusted { authority: self.authority.clone(), reason };
        let connector = TlsConnector::from(trust.config());
        let handshake = timeout(CONNECT_TIMEOUT, connector.connect(name.clone(), stream)).await;
        let too_late = |_| untrusted(format!("no TLS handshake within {CONNECT_TIMEOUT:?}"));
        handshake.map_err(too_late)?.map_err(|error| match trust.objection(&error) {
            Some(reason) => untrusted(reason),
            None => self.broken(&in_words(&error)),
        })
    }

    async fn dial(&self, secret: bool) -> Result<TcpStream, Error> {
        let failed = |source| Error::Connect { authority: self.authority.clone(), source };
        let found: Vec<_> = lookup_host(&self.authority).await.map_err(failed)?.collect();
        if secret && matches!(self.security, Security::Plain) && !all_on_this_machine(&found) {
            return Err(Error::TokenInClear { authority: self.authority.clone() });
        }
        let stream = TcpStream::connect(found.as_slice()).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        Ok(stream)
    }

    fn too_late(&self) -> Error {
        Error::AnswerTimeout { authority: self.authority.clone() }
    }

    fn broken(&self, reason: &str) -> Error {
        Error::Broken { authority: self.authority.clone(), reason: reason.to_owned() }
    }
}

fn wrong(address: &str, reason: &'static str) -> Error {
    Error::Address { address: address.to_owned(), reason }
}

/// Reads what follows the scheme: host and port, nothing else.
fn authority(text: &str, default_port: u16) -> Result<http::uri::Authority, &'static str> {
    const EXPECTED: &str = "expected http://HOST:PORT or https://HOST:PORT";
    let text = text.strip_suffix('/').unwrap_or(text);
    if text.contains('/') {
        return Err("a path is not part of it");
    }
    let authority: http::uri::Authority = text.parse().map_err(|_| EXPECTED)?;
    if authority.host().is_empty() || authority.as_str().contains('@') {
        return Err(EXPECTED);
    }
    match (authority.port_u16(), authority.as_str().len() - authority.host().len()) {
        (Some(_), _) => Ok(authority),
        (None, 0) => format!("{authority}:{default_port}").parse().map_err(|_| EXPECTED),
        (None, _) => Err("the port is 1 to 65535"),
    }
}

fn all_on_this_machine(addresses: &[SocketAddr]) -> bool {
    addresses.iter().all(|address| address.ip().to_canonical().is_loopback())
}

/// Without the number of the operating system's error, which helps nobody.
fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        _ => error.to_string(),
    }
}

/// hyper says what failed in the error and why in its sources.
fn in_full(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
