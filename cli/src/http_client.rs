//! A plain HTTP/1.1 client: one connection per request, every wait bounded. For people's commands, not for load.

use std::{error::Error as _, io, time::Duration};

use http::{HeaderValue, Request, Response, header::HOST};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For an answer to begin, and again for it to be complete.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A list of 100,000 resources of 1 KiB, and then some.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;
const DEFAULT_PORT: u16 = 80;

/// A server to ask.
#[derive(Clone, Debug)]
pub struct HttpClient {
    authority: String,
}

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
        let wrong = |reason| Error::Address { address: address.to_owned(), reason };
        if address.starts_with("https://") {
            return Err(wrong("only http:// is spoken"));
        }
        let rest = address.strip_prefix("http://").unwrap_or(address);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('/') {
            return Err(wrong("a path is not part of it"));
        }
        let authority: http::uri::Authority =
            rest.parse().map_err(|_| wrong("expected http://HOST:PORT"))?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(wrong("expected http://HOST:PORT"));
        }
        let authority =
            match (authority.port_u16(), authority.as_str().len() - authority.host().len()) {
                (Some(_), _) => authority.to_string(),
                (None, 0) => format!("{authority}:{DEFAULT_PORT}"),
                (None, _) => return Err(wrong("the port is 1 to 65535")),
            };
        Ok(Self { authority })
    }

    /// `host:port`.
    pub fn authority(&self) -> &str {
        &self.authority
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
        let stream = self.connect().await?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) =
            handshake.await.map_err(|error| self.broken(&in_full(&error)))?;
        // Ends by itself: with the answer, or when it is dropped. Its errors reach the sender.
        tokio::spawn(connection);
        let answer = timeout(ANSWER_TIMEOUT, sender.send_request(request)).await;
        answer.map_err(|_| self.too_late())?.map_err(|error| self.broken(&in_full(&error)))
    }

    async fn connect(&self) -> Result<TcpStream, Error> {
        let authority = || self.authority.clone();
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(&self.authority))
            .await
            .map_err(|_| Error::ConnectTimeout { authority: authority() })?
            .map_err(|source| Error::Connect { authority: authority(), source })?;
        stream
            .set_nodelay(true)
            .map_err(|source| Error::Connect { authority: authority(), source })?;
        Ok(stream)
    }

    fn too_late(&self) -> Error {
        Error::AnswerTimeout { authority: self.authority.clone() }
    }

    fn broken(&self, reason: &str) -> Error {
        Error::Broken { authority: self.authority.clone(), reason: reason.to_owned() }
    }
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
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_strictly() {
        let authority =
            |address| HttpClient::new(address).map(|client| client.authority().to_owned()).ok();
        assert_eq!(authority("http://127.0.0.1:15010"), Some("127.0.0.1:15010".to_owned()));
        assert_eq!(authority("http://mesh:15010/"), Some("mesh:15010".to_owned()));
        assert_eq!(authority("[::1]:15000"), Some("[::1]:15000".to_owned()));
        assert_eq!(authority("mesh"), Some("mesh:80".to_owned()));
        for wrong in ["", "https://mesh", "http://mesh/api", "a b", "u@h:1", "h:99999", "ftp://x"] {
            assert_eq!(authority(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_said_in_words() {
        let port = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        let client = HttpClient::new(&format!("127.0.0.1:{port}")).unwrap();
        let request = Request::get("/").body(Full::default()).unwrap();
        let error = client.send(request).await.unwrap_err();
        assert!(error.is_unreachable());
        assert_eq!(error.to_string(), format!("cannot reach 127.0.0.1:{port}: connection refused"));
    }
}
