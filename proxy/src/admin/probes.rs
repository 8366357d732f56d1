//! Probes of the application, asked here by the kubelet and passed on: it has no certificate of the mesh, and an
//! application behind strict TLS would send it away. Only what injection has declared is asked, nothing that the
//! request names.
//!
//! - `unverified.rs`: TLS to an application whose certificate nobody checks, as the kubelet does not

mod unverified;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use rustls::{ClientConfig, pki_types::ServerName};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    cluster::probe::{health_request, judge_grpc},
    http::{
        body::{Body, Incoming},
        client::{self, Sender},
    },
};

/// Probes that a pod can declare; Kubernetes has three of each container.
const MAX_PROBES: usize = 256;
/// A probe may take this long: Kubernetes has no bound, and a request here is held for it.
const MAX_SECONDS: u64 = 300;
/// Bytes of an answer that are read for the reason of a failure.
const MAX_ANSWER: usize = 1024;

/// What can be probed, by path.
#[derive(Debug)]
pub struct Probes {
    targets: HashMap<String, Target>,
    application: IpAddr,
    source: Option<IpAddr>,
    tls: Arc<ClientConfig>,
}

/// Why probes cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not what injection writes.
    #[error("{0}")]
    Malformed(#[from] serde_json::Error),
    /// More than a pod has.
    #[error("there are {0} probes, at most {MAX_PROBES} can be")]
    TooMany(usize),
    /// A field that HTTP cannot carry.
    #[error("{path}: the field `{name}` is not one of HTTP")]
    Field {
        /// Of which probe.
        path: String,
        /// Which.
        name: String,
    },
    /// TLS cannot be set up at all.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// One probe, as injection writes it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    port: u16,
    timeout_seconds: u64,
    #[serde(flatten)]
    ask: Ask,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
enum Ask {
    HttpGet { path: String, scheme: Scheme, headers: Vec<Field> },
    TcpSocket,
    Grpc { service: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Scheme {
    Http,
    Https,
}

#[derive(Debug, Deserialize)]
struct Field {
    name: String,
    value: String,
}

impl Probes {
    /// Reads what injection has declared (`--probes`). The application is asked at `application`, from `source` where
    /// the rules must know that it is we who ask.
    ///
    /// # Errors
    /// [`Error`] says which probe cannot be used.
    pub fn read(text: &str, application: IpAddr, source: Option<IpAddr>) -> Result<Self, Error> {
        let targets: HashMap<String, Target> = serde_json::from_str(text)?;
        if targets.len() > MAX_PROBES {
            return Err(Error::TooMany(targets.len()));
        }
        for (path, target) in &targets {
            let Ask::HttpGet { headers, .. } = &target.ask else { continue };
            if let Err(name) = fields(headers) {
                return Err(Error::Field { path: path.clone(), name: name.to_owned() });
            }
        }
        Ok(Self { targets, application, source, tls: unverified::config()? })
    }

    /// Asks what is declared for `path`, in the name of `agent`.
    ///
    /// # Errors
    /// The status for the kubelet and why: 404 for what is not declared, 503 for an application that is not well.
    pub async fn ask(
        &self,
        path: &str,
        agent: Option<&HeaderValue>,
    ) -> Result<(), (StatusCode, String)> {
        let Some(target) = self.targets.get(path) else {
            return Err((StatusCode::NOT_FOUND, format!("no probe is declared for {path}")));
        };
        let limit = Duration::from_secs(target.timeout_seconds.clamp(1, MAX_SECONDS));
        let asked = timeout(limit, self.probe(target, agent)).await;
        let asked = asked.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")));
        asked.map_err(|reason| (StatusCode::SERVICE_UNAVAILABLE, reason))
    }

    async fn probe(&self, target: &Target, agent: Option<&HeaderValue>) -> Result<(), String> {
        let address = SocketAddr::new(self.application, target.port);
        let stream = self.connect(address).await;
        let stream = stream.map_err(|error| format!("connecting to {address}: {error}"))?;
        match &target.ask {
            Ask::TcpSocket => Ok(()),
            Ask::Grpc { service } => grpc(stream, address, service).await,
            Ask::HttpGet { path, scheme, headers } => {
                let request = request(address, path, headers, agent)?;
                if *scheme == Scheme::Http {
                    return get(stream, request).await;
                }
                let name = ServerName::IpAddress(self.application.into());
                let connector = TlsConnector::from(self.tls.clone());
                let stream = connector.connect(name, stream).await;
                get(stream.map_err(|error| format!("TLS with {address}: {error}"))?, request).await
            }
        }
    }

    async fn connect(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        let Some(source) = self.source else { return TcpStream::connect(address).await };
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.bind(SocketAddr::new(source, 0))?;
        socket.connect(address).await
    }
}

async fn grpc(stream: TcpStream, address: SocketAddr, service: &str) -> Result<(), String> {
    let request = health_request(&address.to_string(), service);
    let request = request.ok_or("the probe cannot be put into a request")?;
    let sender = client::http2(stream, || {}).await.map_err(|error| error.to_string())?;
    let sent = Sender::Http2(sender).send(request).await;
    judge_grpc(sent.map_err(|error| error.detail)?).await
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Body>,
) -> Result<(), String> {
    let mut sender = client::http1(stream);
    let response = sender.send(request).await.map_err(|error| error.detail)?;
    let status = response.status();
    // As the kubelet judges. It would follow redirects; that somebody answers with one is life enough.
    if status.is_success() || status.is_redirection() {
        return Ok(());
    }
    Err(format!("answered {}{}", status.as_u16(), reason(response.into_body()).await))
}

async fn reason(body: Incoming) -> String {
    let body = Limited::new(body, MAX_ANSWER).collect().await;
    let bytes = body.map(|body| body.to_bytes()).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    match text.trim() {
        "" => String::new(),
        text => format!(": {}", text.chars().map(plain).collect::<String>()),
    }
}

fn request(
    address: SocketAddr,
    path: &str,
    headers: &[Field],
    agent: Option<&HeaderValue>,
) -> Result<Request<Body>, String> {
    let mut request =
        Request::get(target(path)).body(Body::Empty).map_err(|error| error.to_string())?;
    let mut given =
        fields(headers).map_err(|name| format!("the field `{name}` is not one of HTTP"))?;
    given.insert(header::CONNECTION, HeaderValue::from_static("close"));
    if !given.contains_key(header::HOST) {
        let host = HeaderValue::try_from(address.to_string()).map_err(|error| error.to_string())?;
        given.insert(header::HOST, host);
    }
    if let Some(agent) = agent.filter(|_| !given.contains_key(header::USER_AGENT)) {
        given.insert(header::USER_AGENT, agent.clone());
    }
    *request.headers_mut() = given;
    Ok(request)
}

/// What stands in the request line. Kubernetes takes any text for a path.
fn target(path: &str) -> String {
    const ALLOWED: &str = "/?&=%-._~!$'()*+,;:@[]";
    let mut target = if path.starts_with('/') { String::new() } else { "/".to_owned() };
    for byte in path.bytes() {
        match char::from(byte) {
            letter if letter.is_ascii_alphanumeric() || ALLOWED.contains(letter) => {
                target.push(letter)
            }
            _ => target.push_str(&format!("%{byte:02X}")),
        }
    }
    target
}

/// The fields of a request; the name of one that is none.
fn fields(headers: &[Field]) -> Result<HeaderMap, &str> {
    let mut fields = HeaderMap::new();
    for Field { name, value } in headers {
        let wrong = |_| name.as_str();
        let key = HeaderName::try_from(name.as_str()).map_err(|_| name.as_str())?;
        fields.append(key, HeaderValue::try_from(value.as_str()).map_err(wrong)?);
    }
    Ok(fields)
}

#[cfg(test)]
mod tests;
