//! Probes of the application, asked here by the kubelet and passed on: it has no certificate of the mesh, and an
//! application behind strict TLS would send it away. Only what injection has declared is asked, nothing that the
//! request names.
//!
//! - `unverified.rs`: TLS to an application whose certificate nobody checks, as the kubelet does not

mod unverified;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use rustls::{ClientConfig, pki_types::ServerName};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    cluster::{
        connect,
        probe::{health_request, judge_grpc},
    },
    http::{
        body::{Body, Incoming},
        client::{self, Sender},
    },
};

/// Probes that a pod can declare; Kubernetes has three of each container.
const MAX_PROBES: usize = 256;
/// A probe may take this long: Kubernetes has no bound, and a request here is held for it.
pub(super) const MAX_SECONDS: u64 = 300;
/// Bytes of an answer that are read and logged as the reason of a failure.
const MAX_ANSWER: usize = 1024;

/// What can be probed, by path.
#[derive(Debug)]
pub struct Probes {
    targets: HashMap<String, Arc<Target>>,
    way: Way,
}

/// How the application is reached.
#[derive(Clone, Debug)]
struct Way {
    application: IpAddr,
    source: Option<IpAddr>,
    tls: Arc<ClientConfig>,
}

/// What the application said: well, or the reason why it is not.
type Outcome = Result<(), String>;

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
    /// The question that was asked last, and its answer once there is one. Anybody who reaches the pod may ask, so that
    /// however many do, the application is asked once at a time; a kubelet among them hears what they hear.
    #[serde(skip)]
    asked: Mutex<Option<watch::Receiver<Option<Outcome>>>>,
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
        let targets: HashMap<String, Arc<Target>> =
            serde_json::from_str::<HashMap<String, Target>>(text)?
                .into_iter()
                .map(|(path, target)| (path, Arc::new(target)))
                .collect();
        if targets.len() > MAX_PROBES {
            return Err(Error::TooMany(targets.len()));
        }
        for (path, target) in &targets {
            let Ask::HttpGet { headers, .. } = &target.ask else { continue };
            if let Err(name) = fields(headers) {
                return Err(Error::Field { path: path.clone(), name: name.to_owned() });
            }
        }
        Ok(Self { targets, way: Way { application, source, tls: unverified::config()? } })
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
        let mut answer = self.asked(target, agent);
        let outcome = answer.wait_for(Option::is_some).await.ok().and_then(|told| told.clone());
        let outcome =
            outcome.unwrap_or_else(|| Err("the probe was not brought to its end".to_owned()));
        outcome.map_err(|reason| (StatusCode::SERVICE_UNAVAILABLE, reason))
    }

    /// Where the answer to a question to `target` will be: of the one that is under way, else of a new one. It does not
    /// end with whoever has asked first, as others may wait for it.
    fn asked(
        &self,
        target: &Arc<Target>,
        agent: Option<&HeaderValue>,
    ) -> watch::Receiver<Option<Outcome>> {
        let mut asked = target.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let is_under_way = |answer: &&watch::Receiver<Option<Outcome>>| {
            answer.borrow().is_none() && answer.has_changed().is_ok()
        };
        if let Some(answer) = asked.as_ref().filter(is_under_way) {
            return answer.clone();
        }
        let (tell, answer) = watch::channel(None);
        let (way, target, agent) = (self.way.clone(), target.clone(), agent.cloned());
        tokio::task::spawn_local(async move {
            let limit = Duration::from_secs(target.timeout_seconds.clamp(1, MAX_SECONDS));
            let probed = timeout(limit, way.probe(&target, agent.as_ref())).await;
            let late = |_| Err(format!("no answer within {limit:?}"));
            // Who has asked may be gone.
            let _ = tell.send(Some(probed.unwrap_or_else(late)));
        });
        *asked = Some(answer.clone());
        answer
    }
}

impl Way {
    async fn probe(&self, target: &Target, agent: Option<&HeaderValue>) -> Result<(), String> {
        let address = SocketAddr::new(self.application, target.port);
        let stream = connect::dial(self.source, address).await;
        let stream = stream.map_err(|error| format!("connecting to {address}: {error}"))?;
        match &target.ask {
            Ask::TcpSocket => {
                // Nothing was said, and a port in TIME_WAIT for every look would be a waste. If it is closed already
                // there is nothing to be done.
                let _ = stream.set_zero_linger();
                Ok(())
            }
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
}

async fn grpc(stream: TcpStream, address: SocketAddr, service: &str) -> Result<(), String> {
    let request = health_request(&address.to_string(), service);
    let request = request.ok_or("the probe cannot be put into a request")?;
    let sender = client::http2(stream, || {}).await.map_err(|error| error.to_string())?;
    let sent = Sender::Http2(sender).send(request).await;
    let judged = judge_grpc(sent.map_err(|error| error.detail)?).await;
    judged.map_err(|failure| {
        tracing::debug!("a probe: {failure}");
        // Words of the application follow, if there are any: they are for operators.
        failure.split(':').next().unwrap_or_default().to_owned()
    })
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
    // What it says of itself is for operators, not for everybody who asks here.
    let failure = format!("answered {}", status.as_u16());
    if tracing::enabled!(tracing::Level::DEBUG) {
        tracing::debug!("a probe {failure}{}", reason(response.into_body()).await);
    }
    Err(failure)
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
