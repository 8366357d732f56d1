//! One exchange on its way through the plugins, as a proxy would drive it.

use leno_wasm_host::{Action, ContextId, Headers};

use crate::{
    case::{Client, Request},
    embedder::{KitStream, Local, text},
    proxy::{Event, Proxy},
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    Request,
    Response,
}

/// What travels.
pub enum Item {
    Head(Headers, bool),
    Data(Vec<u8>, bool),
    Trailers(Headers),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Head,
    Body,
    Trailers,
}

/// One plugin's place in one direction.
#[derive(Default)]
pub struct Lane {
    held: Option<Held>,
    head_held: bool,
    head_ends: bool,
    /// What came while the head was held, and nothing of it was shown.
    pending: Vec<u8>,
    pending_end: bool,
    pending_trailers: Option<Headers>,
    /// Bytes that were shown once and are not to be shown again.
    hidden: Vec<u8>,
    ended: bool,
}

#[derive(Default)]
pub struct Exchange {
    pub request: Request,
    /// For each plugin: the context, in which generation of its instance.
    pub contexts: Vec<Option<(ContextId, u32)>>,
    pub bypassed: Vec<bool>,
    pub lanes: [Vec<Lane>; 2],
    pub unread: std::collections::VecDeque<Vec<u8>>,
    pub client: Client,
    pub client_body: Vec<u8>,
    pub answered: bool,
    pub done: bool,
    /// What has reached the upstream.
    pub upstream_head: Option<Headers>,
    pub upstream_body: Vec<u8>,
    pub upstream_trailers: Headers,
    pub upstream_ended: bool,
    pub upstream_sent: bool,
    pub request_head: Headers,
    pub response_head: Option<Headers>,
    /// What a plugin had when it broke, failing open.
    pub rescued: Option<KitStream>,
}

fn maps(direction: Direction) -> (usize, usize) {
    match direction {
        Direction::Request => (0, 1),
        Direction::Response => (2, 3),
    }
}

pub fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a [u8]> {
    headers.iter().find(|(key, _)| key == name.as_bytes()).map(|(_, value)| &value[..])
}

fn pair(name: &str, value: &str) -> (Vec<u8>, Vec<u8>) {
    (name.as_bytes().to_vec(), value.as_bytes().to_vec())
}

impl Proxy<'_> {
    /// Something arrives at plugin `at` of a direction; past the last one it leaves the proxy.
    pub fn push(&mut self, x: usize, direction: Direction, at: Option<usize>, item: Item) {
        let exchange = &self.exchanges[x];
        if exchange.done || (direction == Direction::Request && exchange.answered) {
            return;
        }
        let Some(at) = at.filter(|at| *at < self.filters.len()) else {
            return match direction {
                Direction::Request => self.reach_upstream(x, item),
                Direction::Response => self.reach_client(x, item),
            };
        };
        if self.exchanges[x].bypassed[at] || !self.ensure_context(x, at) {
            return self.push_on(x, direction, at, item);
        }
        match item {
            Item::Head(headers, end) => self.head(x, direction, at, headers, end),
            Item::Data(bytes, end) => self.data(x, direction, at, bytes, end),
            Item::Trailers(headers) => self.trailers(x, direction, at, headers),
        }
    }

    fn push_on(&mut self, x: usize, direction: Direction, at: usize, item: Item) {
        let next = match direction {
            Direction::Request => Some(at + 1),
            Direction::Response => at.checked_sub(1),
        };
        self.push(x, direction, next, item);
    }

    fn lane(&mut self, x: usize, direction: Direction, at: usize) -> &mut Lane {
        &mut self.exchanges[x].lanes[direction as usize][at]
    }

    fn head(&mut self, x: usize, direction: Direction, at: usize, headers: Headers, end: bool) {
        let count = headers.len() as u32;
        let (map, _) = maps(direction);
        self.with_stream(x, at, |stream| stream.maps[map] = Some(headers));
        let action = self.call(x, at, direction, |instance, context| match direction {
            Direction::Request => instance.on_request_headers(context, count, end),
            Direction::Response => instance.on_response_headers(context, count, end),
        });
        match action {
            None => {}
            Some(Action::Continue) => self.forward_head(x, direction, at, end),
            Some(_) => {
                let lane = self.lane(x, direction, at);
                lane.held = Some(Held::Head);
                lane.head_held = true;
                lane.head_ends = end;
            }
        }
    }

    fn forward_head(&mut self, x: usize, direction: Direction, at: usize, end: bool) {
        let (map, _) = maps(direction);
        let headers = self.with_stream(x, at, |stream| stream.maps[map].clone());
        self.lane(x, direction, at).head_held = false;
        self.push_on(x, direction, at, Item::Head(headers.flatten().unwrap_or_default(), end));
    }

    fn data(&mut self, x: usize, direction: Direction, at: usize, bytes: Vec<u8>, end: bool) {
        let stop_iteration = self.case.allow_on_headers_stop_iteration;
        let lane = self.lane(x, direction, at);
        if lane.held == Some(Held::Head) && !stop_iteration {
            lane.pending.extend(bytes);
            lane.pending_end |= end;
            return;
        }
        lane.ended |= end;
        let buffer = direction as usize;
        let size = self.with_stream(x, at, |stream| {
            stream.buffers[buffer].extend(bytes);
            stream.buffers[buffer].len() as u32
        });
        let Some(size) = size else { return };
        let action = self.call(x, at, direction, |instance, context| match direction {
            Direction::Request => instance.on_request_body(context, size, end),
            Direction::Response => instance.on_response_body(context, size, end),
        });
        match action {
            None => return,
            Some(Action::Continue) => return self.release(x, direction, at, end),
            Some(Action::Pause) => {}
            Some(Action::PauseWithoutView) => {
                let seen = self.take_buffer(x, direction, at);
                self.lane(x, direction, at).hidden.extend(seen);
            }
            Some(Action::Discard) => {
                self.take_buffer(x, direction, at);
            }
        }
        self.lane(x, direction, at).held = Some(Held::Body);
        self.check_limit(x, direction, at);
    }

    fn take_buffer(&mut self, x: usize, direction: Direction, at: usize) -> Vec<u8> {
        let buffer = direction as usize;
        let taken = self.with_stream(x, at, |stream| std::mem::take(&mut stream.buffers[buffer]));
        taken.unwrap_or_default()
    }

    /// What is buffered has a limit: 413 to a request, the end of a response.
    fn check_limit(&mut self, x: usize, direction: Direction, at: usize) {
        let buffer = direction as usize;
        let held = self.with_stream(x, at, |stream| stream.buffers[buffer].len()).unwrap_or(0);
        if self.case.buffer_limit.is_none_or(|limit| held <= limit) {
            return;
        }
        match direction {
            Direction::Request => self.own_answer(x, 413, "Payload Too Large", Some(at)),
            Direction::Response => self.cut(x),
        }
    }

    /// Everything that a plugin held of a body goes on, a held head first.
    fn release(&mut self, x: usize, direction: Direction, at: usize, end: bool) {
        if self.lane(x, direction, at).head_held {
            let ends = self.lane(x, direction, at).head_ends;
            self.forward_head(x, direction, at, ends);
        }
        let visible = self.take_buffer(x, direction, at);
        let lane = self.lane(x, direction, at);
        lane.held = None;
        let mut bytes = std::mem::take(&mut lane.hidden);
        bytes.extend(visible);
        let (_, trailers) = maps(direction);
        let added = end
            .then(|| self.with_stream(x, at, |stream| stream.maps[trailers].clone()).flatten())
            .flatten();
        match added {
            Some(added) => {
                self.push_on(x, direction, at, Item::Data(bytes, false));
                self.push_on(x, direction, at, Item::Trailers(added));
            }
            None => self.push_on(x, direction, at, Item::Data(bytes, end)),
        }
    }

    fn trailers(&mut self, x: usize, direction: Direction, at: usize, headers: Headers) {
        if self.lane(x, direction, at).held == Some(Held::Head) {
            self.lane(x, direction, at).pending_trailers = Some(headers);
            return;
        }
        let count = headers.len() as u32;
        let (_, map) = maps(direction);
        self.with_stream(x, at, |stream| stream.maps[map] = Some(headers));
        let action = self.call(x, at, direction, |instance, context| match direction {
            Direction::Request => instance.on_request_trailers(context, count),
            Direction::Response => instance.on_response_trailers(context, count),
        });
        match action {
            None => {}
            Some(Action::Continue) => self.forward_trailers(x, direction, at),
            Some(_) => self.lane(x, direction, at).held = Some(Held::Trailers),
        }
    }

    fn forward_trailers(&mut self, x: usize, direction: Direction, at: usize) {
        let (_, map) = maps(direction);
        self.release(x, direction, at, false);
        let headers = self.with_stream(x, at, |stream| stream.maps[map].clone()).flatten();
        self.push_on(x, direction, at, Item::Trailers(headers.unwrap_or_default()));
    }

    /// `proxy_continue_stream` from elsewhere.
    pub fn resume(&mut self, x: usize, direction: Direction, at: usize) {
        match self.lane(x, direction, at).held.take() {
            None => {}
            Some(Held::Trailers) => self.forward_trailers(x, direction, at),
            Some(Held::Body) => {
                let end = self.lane(x, direction, at).ended;
                self.release(x, direction, at, end);
            }
            Some(Held::Head) => {
                let ends = self.lane(x, direction, at).head_ends;
                self.forward_head(x, direction, at, ends);
                let lane = self.lane(x, direction, at);
                let bytes = std::mem::take(&mut lane.pending);
                let end = lane.pending_end;
                let trailers = lane.pending_trailers.take();
                if !bytes.is_empty() || end {
                    self.push(x, direction, Some(at), Item::Data(bytes, end));
                }
                if let Some(trailers) = trailers {
                    self.push(x, direction, Some(at), Item::Trailers(trailers));
                }
                if direction == Direction::Request {
                    self.read_client(x);
                }
            }
        }
    }

    /// Reads what the client sent, until a plugin holds more than the limit.
    pub fn read_client(&mut self, x: usize) {
        while !self.exchanges[x].done {
            let lane = self.exchanges[x].lanes[0].first();
            let full = lane.is_some_and(|lane| {
                lane.held == Some(Held::Head)
                    && self.case.buffer_limit.is_some_and(|limit| lane.pending.len() > limit)
            });
            if full {
                return;
            }
            let Some(part) = self.exchanges[x].unread.pop_front() else { return };
            let end = part.is_empty();
            self.push(x, Direction::Request, Some(0), Item::Data(part, end));
        }
    }

    /// An answer of a plugin, or of the proxy in its place.
    pub fn answer_locally(&mut self, x: usize, local: Local, from: Option<usize>) {
        if self.exchanges[x].client.status.is_some() {
            return self.cut(x);
        }
        let grpc = header(&self.exchanges[x].request_head, "content-type")
            .is_some_and(|kind| kind.starts_with(b"application/grpc"));
        let mut headers = vec![pair(":status", &local.status.to_string())];
        headers.extend(
            local
                .headers
                .into_iter()
                .filter(|(name, _)| !matches!(&name[..], b":status" | b"content-length"))
                .map(|(name, value)| (name.to_ascii_lowercase(), value)),
        );
        let mut body = local.body;
        if let Some(status) = local.grpc_status.filter(|_| grpc) {
            headers.retain(|(name, _)| name != b"content-type");
            headers.push(pair("content-type", "application/grpc"));
            headers.push(pair("grpc-status", &status.to_string()));
            headers.push((b"grpc-message".to_vec(), std::mem::take(&mut body)));
        } else if !body.is_empty() {
            headers.push(pair("content-length", &body.len().to_string()));
            if header(&headers, "content-type").is_none() {
                headers.push(pair("content-type", "text/plain"));
            }
        }
        let bodiless =
            body.is_empty() || self.exchanges[x].request.method.as_deref() == Some("HEAD");
        self.exchanges[x].answered = true;
        self.push(x, Direction::Response, from, Item::Head(headers, bodiless));
        if !bodiless {
            self.push(x, Direction::Response, from, Item::Data(body, true));
        }
    }

    pub fn own_answer(&mut self, x: usize, status: u32, body: &str, from: Option<usize>) {
        let body = body.as_bytes().to_vec();
        let local = Local { status, headers: Vec::new(), body, grpc_status: None };
        self.answer_locally(x, local, from);
    }

    fn reach_upstream(&mut self, x: usize, item: Item) {
        let last = self.filters.len().checked_sub(1);
        let exchange = &mut self.exchanges[x];
        match item {
            Item::Head(headers, end) => {
                if header(&headers, ":path").is_none() {
                    return self.own_answer(x, 404, "", last);
                }
                exchange.upstream_head = Some(headers);
                exchange.upstream_ended = end;
                self.schedule(0, Event::Upstream(x));
            }
            Item::Data(bytes, end) => {
                exchange.upstream_body.extend(bytes);
                exchange.upstream_ended |= end;
                self.schedule(0, Event::Upstream(x));
            }
            Item::Trailers(headers) => {
                exchange.upstream_trailers = headers;
                exchange.upstream_ended = true;
                self.schedule(0, Event::Upstream(x));
            }
        }
    }

    fn reach_client(&mut self, x: usize, item: Item) {
        let exchange = &mut self.exchanges[x];
        match item {
            Item::Head(mut headers, end) => {
                let status = header(&headers, ":status").map(text).and_then(|s| s.parse().ok());
                if status.is_none() {
                    let body = b"missing required header: :status".to_vec();
                    headers = vec![pair(":status", "502"), pair("content-type", "text/plain")];
                    exchange.response_head = Some(headers);
                    exchange.client.status = Some(502);
                    exchange.client_body = body;
                    return self.finish(x, "complete");
                }
                exchange.client.status = status;
                exchange.response_head = Some(headers);
                if end {
                    self.finish(x, "complete");
                }
            }
            Item::Data(bytes, end) => {
                exchange.client_body.extend(bytes);
                if end {
                    self.finish(x, "complete");
                }
            }
            Item::Trailers(headers) => {
                let framed = exchange
                    .response_head
                    .as_ref()
                    .is_some_and(|head| header(head, "content-length").is_some());
                let headers = if framed { Vec::new() } else { headers };
                exchange.client.trailers =
                    headers.iter().map(|(name, value)| (text(name), text(value))).collect();
                self.finish(x, "complete");
            }
        }
    }

    /// The connection is closed under the client.
    pub fn cut(&mut self, x: usize) {
        self.finish(x, "closed-early");
    }

    /// Runs something on a plugin's stream, if it still has one.
    pub fn with_stream<R>(
        &mut self,
        x: usize,
        at: usize,
        run: impl FnOnce(&mut KitStream) -> R,
    ) -> Option<R> {
        if let Some(stream) = &mut self.exchanges[x].rescued {
            return Some(run(stream));
        }
        let (context, generation) = self.exchanges[x].contexts[at]?;
        let filter = &mut self.filters[at];
        let instance = filter.instance.as_mut().filter(|_| filter.generation == generation)?;
        instance.stream_mut(context).map(run)
    }
}
