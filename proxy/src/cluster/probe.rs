//! One health check, made in the same way as traffic: over mutual TLS where that is due, and as ourselves, so that what
//! the other side's policies say of us holds for checks, too.

use std::{io, net::SocketAddr, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use leno_api::model::{
    service::Protocol,
    traffic_policy::{HealthCheck, Probe},
};
use tokio::{io::AsyncReadExt as _, time::timeout};

use crate::{
    cluster::{
        Cluster, ClusterKey, Endpoint,
        connect::{self, Connector, Stream},
    },
    error::Fault,
    http::{
        body::{Body, Incoming},
        client::{self, Sender},
    },
    tls::Inside,
};

/// Bytes of an answer that are read: a refusal's reason, or a message that says SERVING.
const MAX_ANSWER: usize = 4 * 1024;
/// Characters of an answer that are shown.
const MAX_SHOWN: usize = 120;
/// How long a sidecar has to close a connection whose application cannot be reached. Who stays is taken to be well.
const SETTLES: Duration = Duration::from_millis(200);
const AGENT: HeaderValue = HeaderValue::from_static("leno-health-check");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
/// `grpc.health.v1.HealthCheckResponse.SERVING`.
const SERVING: u64 = 1;

/// Why an endpoint did not pass, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It is not well, or did not say.
    Unwell(String),
    /// We could not ask, which is not its fault: there is no certificate yet.
    Unasked(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Unwell(why)
    }
}

/// Asks `endpoint` how it is.
///
/// # Errors
/// When it is not well, or could not be asked.
pub async fn probe(
    connector: &Connector,
    cluster: &Cluster,
    endpoint: &Endpoint,
    check: &HealthCheck,
) -> Result<(), Failure> {
    let ask = ask(connector, cluster, endpoint, check);
    let limit = check.timeout;
    let late = |_| Err(Failure::Unwell(format!("no answer within {limit:?}")));
    timeout(limit, ask).await.unwrap_or_else(late)
}

async fn ask(
    connector: &Connector,
    cluster: &Cluster,
    endpoint: &Endpoint,
    check: &HealthCheck,
) -> Result<(), Failure> {
    let inside = match &check.probe {
        Probe::Tcp => Inside::Tcp,
        Probe::Grpc { .. } => Inside::Http2,
        Probe::Http { .. } if speaks_http2(cluster) => Inside::Http2,
        Probe::Http { .. } => Inside::Http1,
    };
    let stream = open(connector, endpoint, inside, check).await?;
    let through_sidecar = endpoint.via_sidecar && check.port.is_none();
    if let Probe::Tcp = check.probe {
        if through_sidecar {
            stays_open(stream, check.timeout / 2).await?;
        }
        return Ok(());
    }
    let unfit = || "the check cannot be put into a request".to_owned();
    let mut request = request(cluster, check).ok_or_else(unfit)?;
    if let Some(destination) = &cluster.destination
        && through_sidecar
        && !endpoint.is_secured()
    {
        request.headers_mut().insert(connect::DESTINATION, destination.clone());
    }
    let refusal = stream.refusal();
    let mut sender = match inside {
        Inside::Http2 => client::http2(stream, || {}).await.map(Sender::Http2),
        Inside::Http1 | Inside::Tcp => Ok(client::http1(stream)),
    }
    .map_err(|error| error.to_string())?;
    let response = sender.send(request).await.map_err(|error| {
        let refused = refusal.as_ref().and_then(|refusal| refusal.get());
        refused.map_or(error.detail, |reason| format!("TLS: {reason}"))
    })?;
    Ok(match check.probe {
        Probe::Grpc { .. } => judge_grpc(response).await,
        Probe::Http { .. } | Probe::Tcp => judge_http(response, check, through_sidecar).await,
    }?)
}

/// To the port for requests as each endpoint asks for it, or to another one of the application itself.
async fn open(
    connector: &Connector,
    endpoint: &Endpoint,
    inside: Inside,
    check: &HealthCheck,
) -> Result<Stream, Failure> {
    let opened = match check.port {
        Some(port) => {
            let address = SocketAddr::new(endpoint.address().ip(), port);
            connect::tcp(address, check.timeout).await.map(Stream::Tcp)
        }
        None => connector.open(endpoint, inside, check.timeout).await,
    };
    opened.map_err(|error| match error.fault {
        Fault::Ours => Failure::Unasked(error.detail.into_owned()),
        Fault::Downstream | Fault::Upstream => Failure::Unwell(error.detail.into_owned()),
    })
}

fn speaks_http2(cluster: &Cluster) -> bool {
    matches!(cluster.protocol, Protocol::Http2 | Protocol::Grpc)
}

fn request(cluster: &Cluster, check: &HealthCheck) -> Option<Request<Body>> {
    let service = match &cluster.key {
        ClusterKey::Service(name, _) | ClusterKey::Application(name, _) => {
            format!("{}.{}", name.name, name.namespace)
        }
        ClusterKey::Passthrough(address) => address.to_string(),
    };
    match &check.probe {
        Probe::Tcp => None,
        Probe::Http { path, host, .. } => {
            let host = host.as_ref().map_or(&*service, |host| host.as_str());
            let request = Request::get(match speaks_http2(cluster) {
                true => format!("http://{host}{path}"),
                false => path.to_string(),
            });
            let request = match speaks_http2(cluster) {
                true => request,
                false => request.header(header::HOST, host).header(header::CONNECTION, "close"),
            };
            request.header(header::USER_AGENT, AGENT).body(Body::Empty).ok()
        }
        Probe::Grpc { service: asked } => health_request(&service, asked),
    }
}

/// The question of gRPC's health protocol about `service`, to whom `authority` names. `None` where that is no name.
pub fn health_request(authority: &str, service: &str) -> Option<Request<Body>> {
    Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, GRPC)
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, AGENT)
        .body(Body::Full(question(service)))
        .ok()
}

/// A sidecar takes any connection; one for an application that is not there it closes.
async fn stays_open(mut stream: Stream, limit: Duration) -> Result<(), String> {
    match timeout(SETTLES.min(limit), stream.read_u8()).await {
        Err(_) | Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err("its sidecar closed the connection: the application cannot be reached".to_owned())
        }
        Ok(Err(error)) => Err(format!("its sidecar broke the connection off: {error}")),
    }
}

async fn judge_http(
    response: Response<Incoming>,
    check: &HealthCheck,
    through_sidecar: bool,
) -> Result<(), String> {
    let status = response.status();
    if check.probe.accepts(status.as_u16()) {
        return Ok(());
    }
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let text = body.map(|body| shown(&body.to_bytes())).unwrap_or_default();
    let mut why = format!("answered {}", status.as_u16());
    if !text.is_empty() {
        why = format!("{why}: {text}");
    }
    if status == StatusCode::FORBIDDEN && through_sidecar {
        why.push_str(" (do the service's policies let this proxy in?)");
    }
    Err(why)
}

/// The first words of an answer, on one line.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    text.trim().chars().take(MAX_SHOWN).map(plain).collect()
}

/// What an answer of gRPC's health protocol says.
///
/// # Errors
/// When it is not well, and how.
pub async fn judge_grpc(response: Response<Incoming>) -> Result<(), String> {
    let status = response.status();
    if status != StatusCode::OK {
        return Err(format!("answered {}", status.as_u16()));
    }
    grpc_status(response.headers())?;
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|error| error.to_string())?;
    if let Some(trailers) = body.trailers() {
        grpc_status(trailers)?;
    }
    match serving(&body.to_bytes()) {
        Some(SERVING) => Ok(()),
        Some(0) => Err("says UNKNOWN".to_owned()),
        Some(2) => Err("says NOT_SERVING".to_owned()),
        Some(3) => Err("says SERVICE_UNKNOWN".to_owned()),
        Some(other) => Err(format!("says {other}, which is no status of grpc.health.v1")),
        None => Err("answered with something that is not a HealthCheckResponse".to_owned()),
    }
}

/// Only a status that is not OK is an error; most come at the end.
fn grpc_status(fields: &HeaderMap) -> Result<(), String> {
    let Some(status) = fields.get("grpc-status").and_then(|status| status.to_str().ok()) else {
        return Ok(());
    };
    let message = fields.get("grpc-message").map(|message| shown(message.as_bytes()));
    match (status, message) {
        ("0", _) => Ok(()),
        ("12", _) => Err("has no grpc.health.v1.Health (grpc-status 12)".to_owned()),
        (status, None) => Err(format!("grpc-status {}", shown(status.as_bytes()))),
        (status, Some(message)) => {
            Err(format!("grpc-status {}: {message}", shown(status.as_bytes())))
        }
    }
}

/// A framed `HealthCheckRequest { service }`.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        // Field 1, a string.
        message.put_u8(0x0a);
        put_varint(&mut message, service.len());
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put(message);
    framed.freeze()
}

fn put_varint(buffer: &mut BytesMut, mut number: usize) {
    while number >= 0x80 {
        buffer.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    buffer.put_u8(number as u8);
}

/// The status in a framed `HealthCheckResponse`; `None` where it is none.
fn serving(framed: &[u8]) -> Option<u64> {
    let (frame, rest) = framed.split_at_checked(5)?;
    let length = u32::from_be_bytes(frame.get(1..5)?.try_into().ok()?);
    let mut message = rest.get(..usize::try_from(length).ok()?)?;
    if frame.first() != Some(&0) {
        return None;
    }
    // A status of 0 is not written.
    let mut status = 0;
    while !message.is_empty() {
        match varint(&mut message)? {
            0x08 => status = varint(&mut message)?,
            key => skip(key, &mut message)?,
        }
    }
    Some(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Passes over a field that nobody knows.
fn skip(key: u64, bytes: &mut &[u8]) -> Option<()> {
    let length = match key & 7 {
        0 => return varint(bytes).map(drop),
        1 => 8,
        2 => usize::try_from(varint(bytes)?).ok()?,
        5 => 4,
        _ => return None,
    };
    *bytes = bytes.get(length..)?;
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn questions_are_those_of_the_protocol() {
        assert_eq!(question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(question("a.B")[..], [0, 0, 0, 0, 5, 0x0a, 3, b'a', b'.', b'B']);
        let long = question(&"x".repeat(300));
        assert_eq!(long[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 2]);
    }

    #[test]
    fn answers_are_read() {
        let table: [(&[u8], Option<u64>); 9] = [
            (&[0, 0, 0, 0, 2, 8, 1], Some(1)),
            (&[0, 0, 0, 0, 2, 8, 2], Some(2)),
            (&[0, 0, 0, 0, 0], Some(0)),
            // Fields of later versions: a string, a number, 8 and 4 bytes.
            (&[0, 0, 0, 0, 8, 0x12, 2, b'o', b'k', 0x18, 0x90, 1, 8], None),
            (&[0, 0, 0, 0, 9, 0x12, 2, b'o', b'k', 0x18, 0x90, 1, 8, 1], Some(1)),
            (&[0, 0, 0, 0, 9, 0x15, 1, 1, 1, 1, 8, 1, 8, 3], Some(3)),
            (&[1, 0, 0, 0, 2, 8, 1], None),
            (&[0, 0, 0, 0, 3, 8, 1], None),
            (&[], None),
        ];
        for (bytes, expected) in table {
            assert_eq!(serving(bytes), expected, "{bytes:?}");
        }
    }

    proptest! {
        /// Whatever an endpoint answers, it is read to an end.
        #[test]
        fn nonsense_is_no_answer(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = serving(&bytes);
            let mut framed = vec![0, 0, 0, 0, bytes.len() as u8];
            framed.extend(&bytes);
            let _ = serving(&framed);
            prop_assert!(shown(&bytes).chars().all(|letter| !letter.is_control()));
        }
    }
}
