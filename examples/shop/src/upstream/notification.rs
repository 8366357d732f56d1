//! Calls to notification: plain TCP, through the mesh by way of an HTTP CONNECT.

use super::{Answered, CONNECT_TIMEOUT, Way};
use crate::failure::Failure;
use crate::hop::{Hop, Trace};
use crate::{Label, Service};
use axum::body::Body;
use http::Request;
use http::header::HOST;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const MAX_ANSWER_BYTES: u64 = 16 * 1024;

pub struct Notifications(Way);

/// What notification answers to each line.
#[derive(serde::Deserialize)]
struct Accepted {
    id: u64,
    instance: Label,
    version: Label,
}

impl Notifications {
    pub(super) fn new(way: Way) -> Self {
        Self(way)
    }

    /// Publishes an event; the answer is its number.
    pub async fn publish(&self, event: &Value, trace: &Trace) -> Result<Answered<u64>, Failure> {
        self.0.call(self.publish_patiently(event, trace)).await
    }

    async fn publish_patiently(
        &self,
        event: &Value,
        trace: &Trace,
    ) -> Result<Answered<u64>, Failure> {
        let unreachable = |error: io::Error| self.0.unreachable(&error);
        let stream = self.connect().await.map_err(unreachable)?;
        let answer = match self.0.through_mesh {
            true => exchange(self.tunnel(stream, trace).await?, event).await,
            false => exchange(stream, event).await,
        };
        self.read(&answer.map_err(unreachable)?)
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let stream =
            timeout(CONNECT_TIMEOUT, TcpStream::connect(self.0.connect.as_str())).await??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Asks the sidecar for a tunnel to the service: what is sent after a 200 goes there as it is.
    async fn tunnel(
        &self,
        stream: TcpStream,
        trace: &Trace,
    ) -> Result<impl AsyncRead + AsyncWrite + Unpin, Failure> {
        let unreachable = |error: hyper::Error| self.0.unreachable(&error);
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
        tokio::spawn(connection.with_upgrades());
        let request = self.connect_request(trace).map_err(|error| self.0.unreachable(&error))?;
        let answer = sender.send_request(request).await.map_err(unreachable)?;
        if !answer.status().is_success() {
            let message = format!("CONNECT {} was answered {}", self.0.name, answer.status());
            return Err(Failure::upstream(Service::Notification, message));
        }
        Ok(TokioIo::new(hyper::upgrade::on(answer).await.map_err(unreachable)?))
    }

    fn connect_request(&self, trace: &Trace) -> Result<Request<Body>, http::Error> {
        let name = self.0.name.as_str();
        let mut request = Request::connect(name).header(HOST, name).body(Body::empty())?;
        request.headers_mut().extend(trace.headers());
        Ok(request)
    }

    fn read(&self, answer: &[u8]) -> Result<Answered<u64>, Failure> {
        let Accepted { id, instance, version } =
            serde_json::from_slice(answer).map_err(|error| {
                let got = String::from_utf8_lossy(answer);
                let message = format!("notification answered {:?}: {error}", got.trim());
                Failure::upstream(Service::Notification, message)
            })?;
        let call = "publish".to_owned();
        let hop = Hop { call, service: Service::Notification, instance, version, cached: false };
        Ok(Answered { value: id, hop })
    }
}

/// Sends one line, half-closes, and reads the answer to the end.
async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    event: &Value,
) -> io::Result<Vec<u8>> {
    stream.write_all(format!("{event}\n").as_bytes()).await?;
    stream.shutdown().await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await?;
    if answer.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed without an answer"));
    }
    Ok(answer)
}
