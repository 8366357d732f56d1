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
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use leno_wasm_host::{
    CallToken, Fault, GrpcCall, Headers, HttpCall, HttpCallResponse, Instance, Status, pairs::Pairs,
};
use rustc_hash::FxHashMap;
use tokio::{sync::mpsc, task::AbortHandle, time::timeout};

use self::grpc::{Closed, DEADLINE_EXCEEDED, INTERNAL, follow, framed_head};
use super::{
    callouts::{Callouts, Sending},
    head::{self, RequestHead},
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
/// Bytes of answers that an instance has not been given yet, of all its calls: each of a thousand may be as large as one
/// may be.
const MAX_UNREAD_BYTES: usize = 32 << 20;
/// What a field of a head takes beside its name and value.
const FIELD_BYTES: usize = 128;
/// Calls of one instance that are under way or ended by it a moment ago: what ended is dropped when the worker comes to it,
/// which it does not while the plugin's callback runs.
const MAX_TASKS: usize = 2_000;

/// The calls of one instance. They end with it.
pub(super) struct Calls {
    to: To,
    callouts: Option<Rc<dyn Callouts>>,
    on_trial: bool,
    open: FxHashMap<u32, Open>,
    /// Every task has a reference.
    tasks: Rc<()>,
    /// Bytes that wait for services.
    unsent: Room,
    /// Bytes of answers.
    unread: Room,
}

/// Room for bytes of all calls of an instance. Clones are the same room.
#[derive(Clone, Debug)]
struct Room {
    used: Arc<AtomicUsize>,
    most: usize,
}

/// A part of it, which is free again when this is dropped.
#[derive(Debug)]
struct Taken {
    room: Room,
    bytes: usize,
}

impl Room {
    fn new(most: usize) -> Self {
        Self { used: Arc::default(), most }
    }

    /// None of it yet.
    fn part(&self) -> Taken {
        Taken { room: self.clone(), bytes: 0 }
    }

    fn take(&self, bytes: usize) -> Result<Taken, Status> {
        let mut part = self.part();
        if part.resize(bytes) { Ok(part) } else { Err(Status::InternalFailure) }
    }
}

impl Taken {
    /// Takes so much in all; false, and nothing changes, if there is not as much.
    fn resize(&mut self, bytes: usize) -> bool {
        // Only the worker's thread adds.
        let others = self.room.used.load(Relaxed).saturating_sub(self.bytes);
        if bytes > self.bytes && others.saturating_add(bytes) > self.room.most {
            return false;
        }
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.room.used.fetch_add(more, Relaxed),
            None => self.room.used.fetch_sub(self.bytes - bytes, Relaxed),
        };
        self.bytes = bytes;
        true
    }

    fn grow(&mut self, by: usize) -> bool {
        self.resize(self.bytes.saturating_add(by))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.room.used.fetch_sub(self.bytes, Relaxed);
    }
}

/// Bytes for a service, counted as long as anything keeps them.
struct Counted {
    bytes: Vec<u8>,
    _taken: Taken,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
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
        Self::of(to, callouts.cloned(), false)
    }

    /// Takes calls and never answers.
    pub(super) fn on_trial() -> Self {
        Self::of(To { seat: Weak::new(), generation: 0 }, None, true)
    }

    fn of(to: To, callouts: Option<Rc<dyn Callouts>>, on_trial: bool) -> Self {
        Self {
            to,
            callouts,
            on_trial,
            open: FxHashMap::default(),
            tasks: Rc::default(),
            unsent: Room::new(MAX_UNSENT_BYTES),
            unread: Room::new(MAX_UNREAD_BYTES),
        }
    }

    /// For one more task, to be dropped with it.
    fn task(&self) -> Result<Rc<()>, Status> {
        if Rc::strong_count(&self.tasks) > MAX_TASKS {
            return Err(Status::InternalFailure);
        }
        Ok(self.tasks.clone())
    }

    /// Takes bytes over from the guest, if there is room for more.
    fn taken(&self, bytes: &[&[u8]]) -> Result<Bytes, Status> {
        let taken = self.unsent.take(bytes.iter().map(|bytes| bytes.len()).sum())?;
        Ok(Bytes::from_owner(Counted { bytes: bytes.concat(), _taken: taken }))
    }

    fn framed(&self, message: &[u8]) -> Result<Bytes, Status> {
        self.taken(&[&framed_head(message), message])
    }

    pub(super) fn http(&mut self, token: CallToken, call: &HttpCall<'_>) -> Result<(), Status> {
        if self.on_trial {
            return Ok(());
        }
        let upstream = std::str::from_utf8(call.upstream).map_err(|_| Status::BadArgument)?;
        let (task, mut answer_room) = (self.task()?, self.unread.part());
        let head = self.unsent.take(size_of(call.headers) + size_of(call.trailers))?;
        let trailers = trailers(call.trailers).ok_or(Status::BadArgument)?;
        let announced = announced(&trailers);
        let body = match call.body {
            [] if announced.is_none() => Body::Empty,
            body => body_with(self.taken(&[body])?, trailers),
        };
        let mut request = request(call.headers, body).ok_or(Status::BadArgument)?;
        if let Some(names) = announced {
            // With a length there is no place for trailers in HTTP/1.1, and none that its head has not named are sent.
            request.headers_mut().remove(header::CONTENT_LENGTH);
            request.headers_mut().insert(header::TRAILER, names);
        }
        let callouts = self.callouts.as_ref().ok_or(Status::BadArgument)?;
        let sending = callouts.send(upstream, request, false).ok_or(Status::BadArgument)?;
        let (to, limit) = (self.to.clone(), patience(call.timeout));
        let task = tokio::task::spawn_local(async move {
            let _task = task;
            let collected = collect(sending, head, &mut answer_room);
            let answer = match timeout(limit, collected).await {
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
        let (task, mut unread) = (self.task()?, self.unread.part());
        let names = call.service.len() + call.method.len() + call.upstream.len();
        let head = self.unsent.take(size_of(call.metadata) + names)?;
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
            let _task = task;
            let mut reply = None;
            let sending = Box::pin(async move {
                let answered = sending.await;
                drop(head);
                answered
            });
            let following = follow(&to, token, sending, &mut unread, unary.then_some(&mut reply));
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
            let task = self.tasks.clone();
            tokio::task::spawn_local(async move {
                _ = messages.send(Piece::End).await;
                drop(task);
            });
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

/// `head`: room for that of the request, needed no more when there is an answer. `room`: for the answer.
async fn collect(
    sending: Sending,
    head: Taken,
    room: &mut Taken,
) -> Result<HttpCallResponse, String> {
    let response: Response<Body> = sending.await.map_err(|error| error.to_string())?;
    drop(head);
    let full = || format!("answers to this plugin's calls have {MAX_UNREAD_BYTES} bytes already");
    let (parts, mut body) = response.into_parts();
    if !room.grow(size_of_map(&parts.headers)) {
        return Err(full());
    }
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
                if !room.grow(data.len()) {
                    return Err(full());
                }
            }
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                if !room.grow(size_of_map(&trailers)) {
                    return Err(full());
                }
                answer.trailers = list(&trailers);
            }
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

/// Bytes that a list takes.
fn size_of(list: Pairs<'_>) -> usize {
    list.iter().map(|(name, value)| name.len() + value.len() + FIELD_BYTES).sum()
}

fn size_of_map(headers: &HeaderMap) -> usize {
    let size = |(name, value): (&HeaderName, &HeaderValue)| {
        name.as_str().len() + value.len() + FIELD_BYTES
    };
    headers.iter().map(size).sum()
}

/// `None` for what HTTP forbids.
fn trailers(list: Pairs<'_>) -> Option<HeaderMap> {
    let (mut trailers, mut forbidden) = (HeaderMap::new(), None);
    for (name, value) in list.iter() {
        head::append(&mut trailers, &mut forbidden, None, &name.to_ascii_lowercase(), value);
    }
    forbidden.is_none().then_some(trailers)
}

/// What a head says of trailers, if there are any.
fn announced(trailers: &HeaderMap) -> Option<HeaderValue> {
    let names: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
    HeaderValue::try_from(names.join(", ")).ok().filter(|names| !names.is_empty())
}

fn body_with(bytes: Bytes, trailers: HeaderMap) -> Body {
    if trailers.is_empty() {
        return Body::Full(bytes);
    }
    let data = (!bytes.is_empty()).then(|| Frame::data(bytes));
    let frames = data.into_iter().chain([Frame::trailers(trailers)]).map(Ok);
    Body::other(StreamBody::new(futures_util::stream::iter(frames)))
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
mod tests;
