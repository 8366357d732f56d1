//! Calls of plugins that are under way, and their answers.

mod grpc;

use std::{
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body_util::BodyExt as _;
use leno_wasm_host::{
    CallToken, Fault, GrpcCall, Headers, HttpCall, HttpCallResponse, Instance, Status, pairs::Pairs,
};
use rustc_hash::FxHashMap;
use tokio::{sync::mpsc, task::AbortHandle, time::timeout};

use self::grpc::{Closed, DEADLINE_EXCEEDED, INTERNAL, follow, framed_head};
use super::{
    callouts::{Callouts, Sending},
    head::RequestHead,
    host::ProxyHost,
    seat::Seat,
};
use crate::http::body::{Body, Piece};

/// Of one answer: it is handed over in one piece.
const MAX_ANSWER: usize = 1 << 20;
/// Also where the plugin asks for none, or for longer. Nobody waits longer for what a request needs.
const LONGEST: Duration = Duration::from_secs(60);
/// Messages of a stream that the service has not taken yet.
const MAX_UNSENT: usize = 64;
/// Bytes of one instance that services have not taken yet, of all its calls: there may be a thousand, to a service that
/// takes none.
const MAX_UNSENT_BYTES: usize = 16 << 20;
/// The calls of one instance. They end with it.
pub(super) struct Calls {
    to: To,
    callouts: Option<Rc<dyn Callouts>>,
    on_trial: bool,
    open: FxHashMap<u32, Open>,
    /// Bytes that wait for services.
    unsent: Arc<AtomicUsize>,
}

/// Bytes for a service, counted as long as anything keeps them.
struct Counted {
    bytes: Vec<u8>,
    unsent: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.unsent.fetch_sub(self.bytes.len(), Relaxed);
    }
}

/// Which instance is to be told.
#[derive(Clone)]
struct To {
    seat: Weak<Seat>,
    generation: u64,
}

struct Open {
    task: AbortHandle,
    /// What goes to the service, while this side is open.
    messages: Option<mpsc::Sender<Piece>>,
}

impl Calls {
    pub(super) fn new(
        seat: Weak<Seat>,
        generation: u64,
        callouts: Option<&Rc<dyn Callouts>>,
    ) -> Self {
        let to = To { seat, generation };
        Self {
            to,
            callouts: callouts.cloned(),
            on_trial: false,
            open: FxHashMap::default(),
            unsent: Arc::default(),
        }
    }

    /// Takes calls and never answers.
    pub(super) fn on_trial() -> Self {
        let to = To { seat: Weak::new(), generation: 0 };
        Self {
            to,
            callouts: None,
            on_trial: true,
            open: FxHashMap::default(),
            unsent: Arc::default(),
        }
    }

    /// Takes bytes over from the guest, if there is room for more.
    fn taken(&self, bytes: &[&[u8]]) -> Result<Bytes, Status> {
        let length = bytes.iter().map(|bytes| bytes.len()).sum::<usize>();
        // Only this thread adds.
        if self.unsent.load(Relaxed) + length > MAX_UNSENT_BYTES {
            return Err(Status::InternalFailure);
        }
        self.unsent.fetch_add(length, Relaxed);
        let counted = Counted { bytes: bytes.concat(), unsent: self.unsent.clone() };
        Ok(Bytes::from_owner(counted))
    }

    fn framed(&self, message: &[u8]) -> Result<Bytes, Status> {
        self.taken(&[&framed_head(message), message])
    }

    pub(super) fn http(&mut self, token: CallToken, call: &HttpCall<'_>) -> Result<(), Status> {
        if self.on_trial {
            return Ok(());
        }
        let upstream = std::str::from_utf8(call.upstream).map_err(|_| Status::BadArgument)?;
        let body = Body::Full(self.taken(&[call.body])?);
        let request = request(call.headers, body).ok_or(Status::BadArgument)?;
        let callouts = self.callouts.as_ref().ok_or(Status::BadArgument)?;
        let sending = callouts.send(upstream, request, false).ok_or(Status::BadArgument)?;
        let (to, limit) = (self.to.clone(), patience(call.timeout));
        let task = tokio::task::spawn_local(async move {
            let answer = match timeout(limit, collect(sending)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(reason)) => {
                    tracing::debug!("a plugin's call failed: {reason}");
                    own_answer("503", "upstream connect error or disconnect/reset before headers")
                }
                Err(_) => own_answer("504", "upstream request timeout"),
            };
            to.tell(|instance| {
                instance.host_mut().forget(token);
                instance.on_http_call_response(token, answer)
            });
        });
        self.open.insert(token.number(), Open { task: task.abort_handle(), messages: None });
        Ok(())
    }

    pub(super) fn grpc(
        &mut self,
        token: CallToken,
        call: &GrpcCall<'_>,
        unary: bool,
    ) -> Result<(), Status> {
        if self.on_trial {
            return Ok(());
        }
        let (messages, body) = match unary {
            true => (None, Body::Full(self.framed(call.message)?)),
            false => {
                let (sender, receiver) = mpsc::channel(MAX_UNSENT);
                (Some(sender), Body::Copy(receiver))
            }
        };
        let upstream = service_name(call.upstream).ok_or(Status::ParseFailure)?;
        let request = grpc_request(call, &upstream, body).ok_or(Status::BadArgument)?;
        let callouts = self.callouts.as_ref().ok_or(Status::ParseFailure)?;
        let sending = callouts.send(&upstream, request, true).ok_or(Status::ParseFailure)?;
        let to = self.to.clone();
        let limit = unary.then(|| patience(call.timeout));
        let task = tokio::task::spawn_local(async move {
            let mut reply = None;
            let following = follow(&to, token, sending, unary.then_some(&mut reply));
            let closed = match limit {
                None => following.await,
                Some(limit) => timeout(limit, following)
                    .await
                    .unwrap_or_else(|_| Closed::failed(DEADLINE_EXCEEDED, "deadline exceeded")),
            };
            to.tell(|instance| {
                instance.host_mut().forget(token);
                match (closed, reply) {
                    // Its one message says it all.
                    (Closed { status: 0, .. }, Some(reply)) => {
                        let told = instance.on_grpc_message(token, reply);
                        instance.close_call(token);
                        told
                    }
                    (Closed { status: 0, .. }, None) if unary => {
                        instance.on_grpc_close(token, INTERNAL, b"no message came".to_vec())
                    }
                    (Closed { status, message }, _) => {
                        instance.on_grpc_close(token, status, message)
                    }
                }
            });
        });
        self.open.insert(token.number(), Open { task: task.abort_handle(), messages });
        Ok(())
    }

    pub(super) fn send(
        &mut self,
        token: CallToken,
        message: &[u8],
        end: bool,
    ) -> Result<(), Status> {
        if self.on_trial {
            return Ok(());
        }
        let message = self.framed(message)?;
        let open = self.open.get_mut(&token.number()).ok_or(Status::BadArgument)?;
        let messages = open.messages.as_ref().ok_or(Status::BadArgument)?;
        let sent = messages.try_send(Piece::Data(message));
        sent.map_err(|_| Status::InternalFailure)?;
        if end {
            self.end(token, false);
        }
        Ok(())
    }

    pub(super) fn end(&mut self, token: CallToken, cancel: bool) {
        if cancel {
            self.forget(token);
        } else if let Some(open) = self.open.get_mut(&token.number())
            && let Some(messages) = open.messages.take()
        {
            // Behind whatever waits there.
            tokio::task::spawn_local(async move { _ = messages.send(Piece::End).await });
        }
    }

    /// The call is over, or nobody wants to know.
    pub(super) fn forget(&mut self, token: CallToken) {
        if let Some(open) = self.open.remove(&token.number()) {
            open.task.abort();
        }
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.open.values().for_each(|open| open.task.abort());
    }
}

impl To {
    /// Whether the instance is still there. What it does wrong is logged where it runs.
    fn tell(&self, call: impl FnOnce(&mut Instance<ProxyHost>) -> Result<(), Fault>) -> bool {
        let seat = self.seat.upgrade();
        seat.is_some_and(|seat| seat.call_again(self.generation, None, 1, call).is_ok())
    }
}

async fn collect(sending: Sending) -> Result<HttpCallResponse, String> {
    let response: Response<Body> = sending.await.map_err(|error| error.to_string())?;
    let (parts, mut body) = response.into_parts();
    let mut headers = vec![(b":status".to_vec(), parts.status.as_str().as_bytes().to_vec())];
    headers.extend(list(&parts.headers));
    let mut answer = HttpCallResponse { headers, ..HttpCallResponse::default() };
    while let Some(frame) = body.frame().await {
        match frame.map_err(|error| error.to_string())?.into_data() {
            Ok(data) => {
                answer.body.extend_from_slice(&data);
                if answer.body.len() > MAX_ANSWER {
                    return Err(format!("the answer is larger than {MAX_ANSWER} bytes"));
                }
            }
            Err(frame) => answer.trailers = list(&frame.into_trailers().unwrap_or_default()),
        }
    }
    Ok(answer)
}

fn patience(asked: Duration) -> Duration {
    if asked.is_zero() { LONGEST } else { asked.min(LONGEST) }
}

/// As plugins know it from elsewhere.
fn own_answer(status: &str, body: &str) -> HttpCallResponse {
    let length = body.len().to_string();
    let headers =
        [(":status", status), ("content-length", &length), ("content-type", "text/plain")];
    let bytes = |text: &str| text.as_bytes().to_vec();
    HttpCallResponse {
        headers: headers.iter().map(|(name, value)| (bytes(name), bytes(value))).collect(),
        body: bytes(body),
        trailers: Vec::new(),
    }
}

fn list(headers: &HeaderMap) -> Headers {
    let bytes = |(name, value): (&HeaderName, &HeaderValue)| {
        (name.as_str().as_bytes().to_vec(), value.as_bytes().to_vec())
    };
    headers.iter().map(bytes).collect()
}

/// `None` for what HTTP forbids.
fn request(headers: Pairs<'_>, body: Body) -> Option<Request<Body>> {
    let mut head = RequestHead::default();
    head.set_all(headers);
    if head.forbidden.is_some() {
        return None;
    }
    let mut request = Request::new(body);
    head.put(&mut request);
    Some(request)
}

fn grpc_request(call: &GrpcCall<'_>, upstream: &str, body: Body) -> Option<Request<Body>> {
    let mut head = RequestHead::default();
    for (name, value) in call.metadata.iter().filter(|(name, _)| name.first() != Some(&b':')) {
        head.add(&name.to_ascii_lowercase(), value);
    }
    head.replace(b":method", b"POST");
    head.replace(b":path", &[b"/", call.service, b"/", call.method].concat());
    head.replace(b":authority", upstream.as_bytes());
    head.replace(b"content-type", b"application/grpc");
    head.replace(b"te", b"trailers");
    if head.forbidden.is_some() {
        return None;
    }
    let mut request = Request::new(body);
    head.put(&mut request);
    request.headers_mut().remove(header::CONTENT_LENGTH);
    Some(request)
}

/// A name, or Envoy's `GrpcService` with the name of a cluster in it: C++ plugins send that.
fn service_name(upstream: &[u8]) -> Option<String> {
    use envoy_types::pb::envoy::config::core::v3::{GrpcService, grpc_service::TargetSpecifier};
    use prost::Message as _;
    match GrpcService::decode(upstream).ok().and_then(|service| service.target_specifier) {
        Some(TargetSpecifier::EnvoyGrpc(target)) => Some(target.cluster_name),
        Some(TargetSpecifier::GoogleGrpc(target)) => Some(target.target_uri),
        None => std::str::from_utf8(upstream).ok().map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        grpc::{FRAME_HEAD, frame_head},
        *,
    };

    #[test]
    fn frames_are_read_as_they_are_written() {
        let frame = Calls::on_trial().framed(b"hello").unwrap();
        assert_eq!(frame.first_chunk().map(frame_head), Some((false, 5)));
        assert_eq!(&frame[FRAME_HEAD..], b"hello");
    }

    #[test]
    fn what_waits_for_services_is_bounded() {
        let calls = Calls::on_trial();
        let bytes = vec![0; MAX_UNSENT_BYTES / 2];
        let (first, _second) = (calls.taken(&[&bytes]).unwrap(), calls.taken(&[&bytes]).unwrap());
        let part = first.slice(..1);
        assert_eq!(calls.taken(&[b"1"]), Err(Status::InternalFailure));
        drop(first);
        assert_eq!(calls.taken(&[b"1"]), Err(Status::InternalFailure), "a part keeps the whole");
        drop(part);
        assert_eq!(calls.taken(&[b"1"]).unwrap(), "1");
    }

    #[test]
    fn nobody_waits_longer_than_a_minute() {
        for (asked, waits) in [(0, 60), (1, 1), (60, 60), (61, 60), (u64::MAX, 60)] {
            let waits = Duration::from_secs(waits);
            assert_eq!(patience(Duration::from_secs(asked)), waits, "{asked}");
        }
    }

    #[test]
    fn a_service_is_named_plainly_or_as_envoy_does() {
        assert_eq!(service_name(b"users.shop").as_deref(), Some("users.shop"));
        // GrpcService { envoy_grpc { cluster_name: "users" } }
        assert_eq!(service_name(b"\x0a\x07\x0a\x05users").as_deref(), Some("users"));
        assert_eq!(service_name(b"\xff\xfe"), None);
    }

    #[test]
    fn what_http_forbids_is_not_sent() {
        let pairs = |list: &[(&str, &str)]| {
            let list = list.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
            leno_wasm_host::pairs::encode(list)
        };
        let good = [(":method", "GET"), (":path", "/a"), (":authority", "users"), ("x", "1")];
        let list = pairs(&good);
        let request_of = |list: &[u8]| request(Pairs::parse(list).unwrap(), Body::Empty);
        let made = request_of(&list).unwrap();
        assert_eq!((made.uri().path(), &made.headers()["host"]), ("/a", &"users".parse().unwrap()));
        let bad = [&good[..], &[("x y", "1")]].concat();
        assert!(request_of(&pairs(&bad)).is_none());
        assert!(request_of(&pairs(&good[..1])).is_none());
    }
}
