//! What the plugins of one exchange or connection, their host and whoever drives it leave for each other.
//!
//! A plugin's stream lives inside of its instance and is reached only through it. What happens to the stream is noted
//! here and whoever waits is woken, so that a timer, the answer of a call or the end of a broken instance reaches an
//! exchange that is paused.

use std::{
    cell::{Cell, OnceCell, RefCell},
    net::SocketAddr,
    sync::Arc,
    task::Waker,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, Request, Response, Version};

use super::{
    buffer::Buffer,
    head::{RequestHead, ResponseHead},
    kept::Kept,
};
use crate::telemetry::record::Direction;

/// Values that plugins may keep in one exchange, and bytes of all of them: for signals to each other, not for data.
const MAX_PROPERTIES: usize = 100;
const MAX_PROPERTY_BYTES: usize = 64 * 1024;

/// What is known of an exchange or connection from outside. Cheap to make: plugins seldom ask.
#[derive(Clone, Debug)]
pub struct Facts {
    /// When it began.
    pub started: Instant,
    /// Which way it goes.
    pub direction: Direction,
    /// Unique among the connections that are open.
    pub connection: u64,
    /// The caller.
    pub source: SocketAddr,
    /// Where it arrived; `None` where that is not known.
    pub destination: Option<SocketAddr>,
    /// What mutual TLS has proven: the caller and us, as `spiffe://...`.
    pub proven: Option<(Arc<str>, Arc<str>)>,
    /// The TLS server name.
    pub server_name: Option<Box<str>>,
    /// What the caller speaks; `None` for what is not HTTP.
    pub version: Option<Version>,
    /// For logs.
    pub request_id: Option<HeaderValue>,
    /// Of the port: `shop/orders:80`.
    pub port: Arc<str>,
    /// Who we are.
    pub node: Arc<Node>,
}

/// Who this proxy is, as plugins ask.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Namespace of the workload.
    pub namespace: Arc<str>,
    /// Name of the workload.
    pub workload: Arc<str>,
    /// Label `version` of the workload.
    pub version: Arc<str>,
}

/// How an exchange ended, for `proxy_on_log`.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What the caller was told.
    pub status: u16,
    /// `grpc-status`, where it is known.
    pub grpc_status: Option<u8>,
    /// The flag of the access log.
    pub flag: &'static str,
    /// What exactly.
    pub detail: Option<String>,
    /// The endpoint that answered.
    pub upstream: Option<SocketAddr>,
    /// Attempts made.
    pub attempts: u32,
    /// Body bytes from the caller.
    pub request_bytes: u64,
    /// Body bytes to the caller.
    pub response_bytes: u64,
    /// From the first byte to the last.
    pub duration: Duration,
    /// The route's name.
    pub route: Option<Arc<str>>,
    /// The cluster's name.
    pub cluster: Option<Arc<str>>,
}

/// A plugin's answer in place of the upstream's.
#[derive(Clone, Debug)]
pub struct Answer {
    pub(super) status: u32,
    pub(super) details: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    pub(super) grpc_status: Option<u32>,
    pub(super) forbidden: Option<Box<str>>,
}

/// What a plugin has in hands of a stream. Heads are swapped in and out, and what is empty is used again for the next
/// stream: they are large, and there are four such moves in every exchange.
#[derive(Debug, Default)]
pub(super) struct Contents {
    request: RequestHead,
    response: ResponseHead,
    /// Whether it has the head of the request, and of the response.
    has: [bool; 2],
    /// Of the request and the response.
    pub(super) trailers: [Option<Box<HeaderMap>>; 2],
    /// Bodies of the request and the response, or what comes from downstream and upstream.
    pub(super) buffers: [Buffer; 2],
}

/// A head that a plugin has let go of.
#[derive(Debug, Default)]
pub(super) struct Returned {
    /// A plugin has set the path or the host.
    pub(super) retargeted: bool,
    /// The first thing that it set and HTTP forbids.
    pub(super) forbidden: Option<Box<str>>,
}

/// What happened to one plugin's stream.
#[derive(Debug, Default)]
pub(super) struct Mark {
    /// It goes on: request and response, or downstream and upstream.
    pub(super) continued: [Cell<bool>; 2],
    /// The plugin ended it.
    pub(super) closed: Cell<bool>,
    /// The plugin answered it.
    pub(super) answer: RefCell<Option<Box<Answer>>>,
    /// What a broken instance had in hands.
    pub(super) lost: RefCell<Option<Box<Contents>>>,
}

/// Who waits for something to happen.
#[derive(Clone, Copy, Debug)]
pub(super) enum Waiting {
    /// Who moves the request.
    Request,
    /// Who moves the response.
    Response,
    /// Who would give the request up for an answer.
    Answer,
}

/// Those of all plugins; most exchanges have one.
#[derive(Debug, Default)]
pub(super) struct Marks {
    first: Mark,
    others: Box<[Mark]>,
}

/// What all of them see.
#[derive(Debug)]
pub(super) struct State {
    /// Only where a plugin can ask for any of it.
    pub(super) facts: Option<Box<Facts>>,
    pub(super) marks: Marks,
    /// Heads as they went on, for those who ask later.
    pub(super) request: OnceCell<Kept>,
    pub(super) response: OnceCell<Kept>,
    pub(super) outcome: OnceCell<Box<Outcome>>,
    properties: RefCell<Vec<Property>>,
    wakers: RefCell<[Option<Waker>; 3]>,
}

type Property = (Box<[u8]>, Box<[u8]>);

impl Contents {
    /// The request's head, while the plugin has it.
    pub(super) fn request(&self) -> Option<&RequestHead> {
        self.has[0].then_some(&self.request)
    }

    /// The response's.
    pub(super) fn response(&self) -> Option<&ResponseHead> {
        self.has[1].then_some(&self.response)
    }

    pub(super) fn request_mut(&mut self) -> Option<&mut RequestHead> {
        self.has[0].then_some(&mut self.request)
    }

    pub(super) fn response_mut(&mut self) -> Option<&mut ResponseHead> {
        self.has[1].then_some(&mut self.response)
    }

    /// Takes the head out of a request. How many fields a plugin sees of it.
    pub(super) fn take_request<B>(&mut self, request: &mut Request<B>) -> u32 {
        self.request.swap(request);
        self.has[0] = true;
        self.request.count()
    }

    /// Puts it back; `None` if there is none here.
    pub(super) fn return_request<B>(&mut self, request: &mut Request<B>) -> Option<Returned> {
        if !std::mem::take(&mut self.has[0]) {
            return None;
        }
        self.request.swap(request);
        let head = &mut self.request;
        Some(Returned {
            retargeted: std::mem::take(&mut head.retargeted),
            forbidden: head.forbidden.take(),
        })
    }

    /// Takes the head out of a response. How many fields a plugin sees of it.
    pub(super) fn take_response<B>(&mut self, response: &mut Response<B>) -> u32 {
        self.response.enter(response);
        self.has[1] = true;
        self.response.count()
    }

    /// Puts it back; `None` if there is none here.
    pub(super) fn return_response<B>(&mut self, response: &mut Response<B>) -> Option<Returned> {
        if !std::mem::take(&mut self.has[1]) {
            return None;
        }
        self.response.leave(response);
        Some(Returned { retargeted: false, forbidden: self.response.forbidden.take() })
    }

    /// Whether nothing is left in it.
    pub(super) fn is_clear(&self) -> bool {
        self.has == [false; 2]
            && self.trailers.iter().all(Option::is_none)
            && self.buffers.iter().all(|buffer| buffer.len() == 0)
    }

    /// Forgets what is left in it, so that it can be another stream's.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.has[0]) {
            self.request = RequestHead::default();
        }
        if std::mem::take(&mut self.has[1]) {
            self.response = ResponseHead::default();
        }
        self.trailers = [None, None];
        self.buffers.iter_mut().for_each(Buffer::clear);
    }
}

impl Marks {
    fn new(plugins: usize) -> Self {
        let others = (1..plugins).map(|_| Mark::default()).collect();
        Self { first: Mark::default(), others }
    }

    pub(super) fn get(&self, at: usize) -> Option<&Mark> {
        match at.checked_sub(1) {
            None => Some(&self.first),
            Some(other) => self.others.get(other),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Mark> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl std::ops::Index<usize> for Marks {
    type Output = Mark;

    fn index(&self, at: usize) -> &Mark {
        match at.checked_sub(1) {
            None => &self.first,
            Some(other) => &self.others[other],
        }
    }
}

impl State {
    pub(super) fn new(facts: Option<Box<Facts>>, plugins: usize) -> Self {
        Self {
            facts,
            marks: Marks::new(plugins),
            request: OnceCell::new(),
            response: OnceCell::new(),
            outcome: OnceCell::new(),
            properties: RefCell::default(),
            wakers: RefCell::default(),
        }
    }

    /// Remembers whom to wake.
    pub(super) fn wait(&self, who: Waiting, waker: &Waker) {
        let mut wakers = self.wakers.borrow_mut();
        let slot = &mut wakers[who as usize];
        if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    /// Something happened.
    pub(super) fn wake(&self) {
        for waker in self.wakers.borrow_mut().iter_mut().filter_map(Option::take) {
            waker.wake();
        }
    }

    /// What plugins keep for each other.
    pub(super) fn kept(&self, path: &[u8]) -> Option<Vec<u8>> {
        let properties = self.properties.borrow();
        properties.iter().find(|(known, _)| **known == *path).map(|(_, value)| value.to_vec())
    }

    /// Keeps a value; false when there are too many.
    pub(super) fn keep(&self, path: &[u8], value: &[u8]) -> bool {
        let mut properties = self.properties.borrow_mut();
        properties.retain(|(known, _)| **known != *path);
        let used: usize = properties.iter().map(|(path, value)| path.len() + value.len()).sum();
        let fits = properties.len() < MAX_PROPERTIES
            && used + path.len() + value.len() <= MAX_PROPERTY_BYTES;
        if fits {
            properties.push((path.into(), value.into()));
        }
        fits
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Of an exchange that has just begun.
    pub(in crate::filter::wasm) fn facts() -> Facts {
        Facts {
            started: Instant::now(),
            direction: Direction::Inbound,
            connection: 1,
            source: SocketAddr::from(([127, 0, 0, 1], 1)),
            destination: None,
            proven: None,
            server_name: None,
            version: None,
            request_id: None,
            port: "shop/orders:80".into(),
            node: Arc::default(),
        }
    }

    fn state() -> State {
        State::new(Some(Box::new(facts())), 1)
    }

    #[test]
    fn what_plugins_keep_is_bounded() {
        let state = state();
        assert!(state.keep(b"a", b"1") && state.keep(b"a", b"2"));
        assert_eq!(state.kept(b"a").unwrap(), b"2");
        assert_eq!(state.kept(b"b"), None);
        assert!(!state.keep(b"big", &[0; MAX_PROPERTY_BYTES]));
        let kept = (0..200_u8).filter(|number| state.keep(&[b'x', *number], b"")).count();
        assert_eq!(kept, MAX_PROPERTIES - 1);
        assert_eq!(state.kept(b"a").unwrap(), b"2");
    }
}
