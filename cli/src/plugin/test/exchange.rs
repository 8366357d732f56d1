//! One request on its way through the plugin and back, driven as the proxy does it.

use std::time::Duration;

use leno_wasm_host::{Action, ContextId, Fault, Headers, Instance};

use super::{
    desk::{Desk, DeskHost, DeskStream, Local, nanoseconds},
    notes::{Note, changes},
    script::{Answer, Request},
};

/// A request or a response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// With `:method`, `:status` and their like.
    pub headers: Headers,
    pub portions: Vec<Vec<u8>>,
    pub trailers: Headers,
}

/// What came of a request.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What reached the upstream.
    pub upstream: Option<Message>,
    /// What the caller got. None: the connection was closed on it.
    pub response: Option<Message>,
    pub calls: usize,
    pub notes: Vec<Note>,
    pub fault: Option<String>,
}

/// Why a message does not go on.
enum Stop {
    Local(Local),
    Closed,
    Fault(Fault),
    /// It is on hold, and nothing is under way that could change that.
    Stuck,
    TooLarge(Direction),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Request,
    Response,
}

/// How long a request may be on hold, by the desk's clock.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the proxy buffers of a body that a plugin holds, unless told otherwise.
const BUFFER_BYTES: usize = 1 << 20;

/// Sends a request through the plugin.
pub fn run(desk: &mut Desk, request: &Request, answer: &Answer) -> Outcome {
    desk.world().borrow_mut().calls = 0;
    let mut outcome = Outcome::default();
    let stream = DeskStream::new(desk.world().clone());
    let Some(instance) = desk.instance() else { return outcome };
    let (context, created) = instance.create_context(stream);
    let mut exchange = Exchange { desk, context };
    let result = match created {
        Ok(()) => exchange.drive(request, answer, &mut outcome),
        Err(fault) => Err(Stop::Fault(fault)),
    };
    outcome.response = exchange.answer(result, &mut outcome.fault);
    exchange.finish(&mut outcome.fault);
    let mut world = desk.world().borrow_mut();
    outcome.calls = world.calls;
    outcome.notes = world.notes.take();
    outcome
}

struct Exchange<'a> {
    desk: &'a mut Desk,
    context: ContextId,
}

impl Exchange<'_> {
    fn drive(
        &mut self,
        request: &Request,
        answer: &Answer,
        outcome: &mut Outcome,
    ) -> Result<Message, Stop> {
        let sent = match self.pass(Direction::Request, request.message()) {
            Ok(sent) => sent,
            // An answer of the plugin passes the plugin, too, as that of an upstream.
            Err(Stop::Local(local)) => {
                let message = local_message(local, request.is_grpc());
                return self.pass(Direction::Response, message);
            }
            Err(stop) => return Err(stop),
        };
        outcome.upstream = Some(self.framed(sent));
        let response = self.pass(Direction::Response, answer.message())?;
        Ok(self.framed(response))
    }

    /// A message goes through the plugin.
    fn pass(&mut self, direction: Direction, message: Message) -> Result<Message, Stop> {
        let mut passed = Message::default();
        let bodiless = message.portions.is_empty() && message.trailers.is_empty();
        self.head(direction, message.headers, bodiless)?;
        passed.headers = self.map(direction, false);
        if bodiless {
            return Ok(passed);
        }
        let mut hidden = Vec::new();
        for portion in message.portions {
            let released = self.portion(direction, portion, false, &mut hidden)?;
            passed.portions.extend(released);
        }
        if message.trailers.is_empty() {
            let released = self.portion(direction, Vec::new(), true, &mut hidden)?;
            passed.portions.extend(released);
        } else {
            self.trailers(direction, message.trailers)?;
            passed.portions.extend(self.release(direction, &mut hidden));
        }
        passed.trailers = self.map(direction, true);
        Ok(passed)
    }

    fn head(&mut self, direction: Direction, headers: Headers, end: bool) -> Result<(), Stop> {
        let count = length(headers.len());
        let action =
            self.change_map(direction, false, headers, |instance, context| match direction {
                Direction::Request => instance.on_request_headers(context, count, end),
                Direction::Response => instance.on_response_headers(context, count, end),
            })?;
        match action {
            Action::Continue => Ok(()),
            _ => self.wait(direction),
        }
    }

    fn trailers(&mut self, direction: Direction, headers: Headers) -> Result<(), Stop> {
        let count = length(headers.len());
        let action =
            self.change_map(direction, true, headers, |instance, context| match direction {
                Direction::Request => instance.on_request_trailers(context, count),
                Direction::Response => instance.on_response_trailers(context, count),
            })?;
        match action {
            Action::Continue => Ok(()),
            _ => self.wait(direction),
        }
    }

    /// Calls the plugin with headers or trailers, and notes what it changed.
    fn change_map(
        &mut self,
        direction: Direction,
        trailers: bool,
        headers: Headers,
        call: impl FnOnce(&mut Instance<DeskHost>, ContextId) -> Result<Action, Fault>,
    ) -> Result<Action, Stop> {
        let place = map_place(direction, trailers);
        if let Some(map) = self.stream().and_then(|stream| stream.maps.get_mut(place)) {
            *map = Some(headers);
        }
        self.call(callback(direction, if trailers { Part::Trailers } else { Part::Head }), call)
    }

    /// A portion of a body: what goes on of it and of those before it.
    fn portion(
        &mut self,
        direction: Direction,
        portion: Vec<u8>,
        end: bool,
        hidden: &mut Vec<u8>,
    ) -> Result<Option<Vec<u8>>, Stop> {
        let buffer = self.buffer(direction).map(|buffer| {
            buffer.extend(portion);
            buffer.len()
        });
        let size = buffer.unwrap_or(0);
        let name = callback(direction, Part::Body);
        let action = self.call(name, |instance, context| match direction {
            Direction::Request => instance.on_request_body(context, length(size), end),
            Direction::Response => instance.on_response_body(context, length(size), end),
        })?;
        match action {
            Action::Continue => return Ok(self.release(direction, hidden)),
            Action::Pause => {}
            Action::PauseWithoutView => {
                hidden.extend(self.buffer(direction).map(std::mem::take).unwrap_or_default());
            }
            Action::Discard => {
                self.buffer(direction).map(std::mem::take);
            }
        }
        if self.buffer(direction).map_or(0, |buffer| buffer.len()) + hidden.len() > BUFFER_BYTES {
            return Err(Stop::TooLarge(direction));
        }
        // An answer that came meanwhile may let the rest go on.
        let now = self.desk.world().borrow().now;
        while self.desk.next_until(now).map_err(Stop::Fault)? {}
        self.stopped()?;
        if self.continued(direction) {
            return Ok(self.release(direction, hidden));
        }
        if end {
            self.wait(direction)?;
            return Ok(self.release(direction, hidden));
        }
        Ok(None)
    }

    fn release(&mut self, direction: Direction, hidden: &mut Vec<u8>) -> Option<Vec<u8>> {
        let mut bytes = std::mem::take(hidden);
        bytes.extend(self.buffer(direction).map(std::mem::take).unwrap_or_default());
        (!bytes.is_empty()).then_some(bytes)
    }

    /// Calls the plugin, notes what it changed, and looks what it wants.
    fn call(
        &mut self,
        name: &'static str,
        call: impl FnOnce(&mut Instance<DeskHost>, ContextId) -> Result<Action, Fault>,
    ) -> Result<Action, Stop> {
        let context = self.context;
        let before = self.snapshot();
        let action = self.desk.call(name, |instance| call(instance, context));
        let action = action.unwrap_or(Ok(Action::Continue)).map_err(Stop::Fault)?;
        let wants = match action {
            Action::Continue => None,
            Action::Pause => Some("pause"),
            Action::PauseWithoutView => Some("pause, without seeing it again"),
            Action::Discard => Some("pause, and drop it"),
        };
        if let Some(wants) = wants {
            self.desk.world().borrow_mut().notes.wants(wants);
        }
        self.note_changes(before);
        self.stopped()?;
        Ok(action)
    }

    /// Waits until a direction goes on.
    fn wait(&mut self, direction: Direction) -> Result<(), Stop> {
        let end = self.desk.world().borrow().now.saturating_add(nanoseconds(PATIENCE));
        loop {
            self.stopped()?;
            if self.continued(direction) {
                return Ok(());
            }
            let before = self.snapshot();
            if !self.desk.next_until(end).map_err(Stop::Fault)? {
                return Err(Stop::Stuck);
            }
            self.note_changes(before);
        }
    }

    fn stopped(&mut self) -> Result<(), Stop> {
        let Some(stream) = self.stream() else { return Ok(()) };
        if let Some(local) = stream.local.take() {
            let note = Note::Local { status: local.status };
            self.note(note);
            return Err(Stop::Local(local));
        }
        if stream.closed { Err(Stop::Closed) } else { Ok(()) }
    }

    fn continued(&mut self, direction: Direction) -> bool {
        let flag = self.stream().and_then(|stream| stream.continued.get_mut(direction as usize));
        flag.is_some_and(std::mem::take)
    }

    /// What the caller gets.
    fn answer(
        &mut self,
        result: Result<Message, Stop>,
        fault: &mut Option<String>,
    ) -> Option<Message> {
        let (status, reason) = match result {
            Ok(message) => return Some(message),
            Err(Stop::Local(local)) => return Some(self.framed(local_message(local, false))),
            Err(Stop::Closed) => {
                self.note(Note::Proxy("closes the connection, as the plugin wants".to_owned()));
                return None;
            }
            Err(Stop::Fault(broken)) => {
                self.note(Note::Fault(broken.to_string()));
                *fault = Some(broken.to_string());
                ("500", "the plugin broke (failurePolicy Closed)")
            }
            Err(Stop::Stuck) => {
                *fault = Some("the request is on hold for ever".to_owned());
                ("504", "the plugin holds it, and nothing is under way that could change that")
            }
            Err(Stop::TooLarge(direction)) => {
                let status = if direction == Direction::Request { "413" } else { "500" };
                (status, "the plugin holds more of a body than is buffered")
            }
        };
        self.note(Note::Proxy(format!("answers {status}: {reason}")));
        let headers = vec![(b":status".to_vec(), status.as_bytes().to_vec())];
        Some(Message { headers, ..Message::default() })
    }

    /// A length that does not fit the body any more is not sent.
    fn framed(&mut self, mut message: Message) -> Message {
        let length: usize = message.portions.iter().map(Vec::len).sum();
        let wrong = |(name, value): &(Vec<u8>, Vec<u8>)| {
            name == b"content-length" && value != length.to_string().as_bytes()
        };
        if !message.portions.is_empty() && message.headers.iter().any(wrong) {
            message.headers.retain(|header| !wrong(header));
            let note = "drops the content-length, which does not fit the body";
            self.note(Note::Proxy(note.to_owned()));
        }
        message
    }

    /// Tells the plugin that it is over, unless it broke before.
    fn finish(&mut self, fault: &mut Option<String>) {
        let context = self.context;
        if self.desk.instance().is_none_or(|instance| instance.is_broken()) {
            return;
        }
        let told =
            self.desk.call("proxy_on_log, done, delete", |instance| instance.finish(context).1);
        if let Some(Err(broken)) = told {
            self.note(Note::Fault(broken.to_string()));
            fault.get_or_insert(broken.to_string());
        }
    }

    fn snapshot(&mut self) -> ([Headers; 4], [usize; 2]) {
        let Some(stream) = self.stream() else { return Default::default() };
        let maps = stream.maps.each_ref().map(|map| map.clone().unwrap_or_default());
        (maps, stream.buffers.each_ref().map(Vec::len))
    }

    fn note_changes(&mut self, (maps, buffers): ([Headers; 4], [usize; 2])) {
        let (maps_now, buffers_now) = self.snapshot();
        for (before, after) in maps.iter().zip(&maps_now) {
            let changed = changes(before, after);
            if !changed.is_empty() {
                self.note(Note::Headers(changed));
            }
        }
        for (before, after) in buffers.into_iter().zip(buffers_now) {
            if before != after {
                self.note(Note::Body { before, after });
            }
        }
    }

    fn note(&self, note: Note) {
        self.desk.world().borrow_mut().notes.add(note);
    }

    fn stream(&mut self) -> Option<&mut DeskStream> {
        let context = self.context;
        self.desk.instance()?.stream_mut(context)
    }

    fn buffer(&mut self, direction: Direction) -> Option<&mut Vec<u8>> {
        self.stream()?.buffers.get_mut(direction as usize)
    }

    fn map(&mut self, direction: Direction, trailers: bool) -> Headers {
        let place = map_place(direction, trailers);
        let map = self.stream().and_then(|stream| stream.maps.get(place).cloned().flatten());
        map.unwrap_or_default()
    }
}

enum Part {
    Head,
    Body,
    Trailers,
}

fn callback(direction: Direction, part: Part) -> &'static str {
    match (direction, part) {
        (Direction::Request, Part::Head) => "proxy_on_request_headers",
        (Direction::Request, Part::Body) => "proxy_on_request_body",
        (Direction::Request, Part::Trailers) => "proxy_on_request_trailers",
        (Direction::Response, Part::Head) => "proxy_on_response_headers",
        (Direction::Response, Part::Body) => "proxy_on_response_body",
        (Direction::Response, Part::Trailers) => "proxy_on_response_trailers",
    }
}

fn map_place(direction: Direction, trailers: bool) -> usize {
    direction as usize * 2 + usize::from(trailers)
}

fn length(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn pair(name: &str, value: &str) -> (Vec<u8>, Vec<u8>) {
    (name.as_bytes().to_vec(), value.as_bytes().to_vec())
}

/// The length is told where the whole body is known, as senders do.
fn with_length(mut headers: Headers, portions: &[Vec<u8>]) -> Headers {
    let told = headers.iter().any(|(name, _)| name == b"content-length");
    if let [body] = portions
        && !told
    {
        headers.push(pair("content-length", &body.len().to_string()));
    }
    headers
}

impl Request {
    fn message(&self) -> Message {
        let mut headers = vec![
            pair(":method", &self.method),
            pair(":path", &self.path),
            pair(":authority", &self.authority),
            pair(":scheme", &self.scheme),
        ];
        headers.extend(self.headers.headers());
        let portions = self.body.portions();
        let headers = with_length(headers, &portions);
        Message { headers, portions, trailers: self.trailers.headers() }
    }

    fn is_grpc(&self) -> bool {
        let grpc = |(name, value): &(Vec<u8>, Vec<u8>)| {
            name == b"content-type" && value.starts_with(b"application/grpc")
        };
        self.headers.headers().iter().any(grpc)
    }
}

impl Answer {
    fn message(&self) -> Message {
        let mut headers = vec![pair(":status", &self.status.to_string())];
        headers.extend(self.headers.headers());
        let portions = self.body.portions();
        let headers = with_length(headers, &portions);
        Message { headers, portions, trailers: self.trailers.headers() }
    }
}

/// An answer of the plugin, as the proxy sends it.
fn local_message(local: Local, grpc: bool) -> Message {
    let mut headers = vec![pair(":status", &local.status.to_string())];
    let given = local.headers.into_iter();
    headers.extend(given.filter(|(name, _)| !matches!(&name[..], b":status" | b"content-length")));
    if let Some(status) = local.grpc_status.filter(|_| grpc) {
        headers.retain(|(name, _)| name != b"content-type");
        headers.push(pair("content-type", "application/grpc"));
        headers.push(pair("grpc-status", &status.to_string()));
        headers.push((b"grpc-message".to_vec(), local.body));
        return Message { headers, ..Message::default() };
    }
    if local.body.is_empty() {
        return Message { headers, ..Message::default() };
    }
    headers.push(pair("content-length", &local.body.len().to_string()));
    if !headers.iter().any(|(name, _)| name == b"content-type") {
        headers.push(pair("content-type", "text/plain"));
    }
    Message { headers, portions: vec![local.body], trailers: Headers::new() }
}
