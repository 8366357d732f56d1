//! A proxy without sockets and without a clock: it drives exchanges through plugins, with time as a number.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use leno_wasm_host::{
    Action, CallToken, ContextId, Fault, HttpCallResponse, Instance, Plugin, StartError,
};

use crate::{
    case::{Case, Client, Received, Request, expand},
    embedder::{KitHost, KitStream, Log, Queues, Wishes, text},
    exchange::{Direction, Exchange, Item, Lane},
    services,
};

pub enum Event {
    Start(usize),
    Client(usize, Vec<u8>),
    ClientTrailers(usize),
    GiveUp(usize),
    /// Something waits for the upstream.
    Upstream(usize),
    Origin(usize, Vec<Item>),
    OriginReset(usize),
    Tick(usize, u32),
    Answer(usize, CallToken, HttpCallResponse),
}

/// A plugin in the chain.
pub struct Filter {
    pub plugin: Plugin<KitHost>,
    pub instance: Option<Instance<KitHost>>,
    pub generation: u32,
    wishes: Rc<RefCell<Wishes>>,
    queues: Arc<Queues>,
    period: Option<Duration>,
    timer: u32,
}

pub struct Proxy<'a> {
    pub case: &'a Case,
    pub filters: Vec<Filter>,
    pub exchanges: Vec<Exchange>,
    pub origin: Vec<Received>,
    pub callouts: Vec<Received>,
    pub log: Log,
    pub faults: Vec<Fault>,
    pub now: u64,
    sequence: u64,
    pub events: BTreeMap<(u64, u64), Event>,
    started: Instant,
}

/// Bytes that are read from a client at once.
const READ: usize = 32_768;
/// Milliseconds after which a client gives up, where the case does not say.
const PATIENCE: f64 = 4.0;

impl<'a> Proxy<'a> {
    pub fn new(case: &'a Case, plugins: Vec<Plugin<KitHost>>) -> Self {
        let filters = plugins.into_iter().map(|plugin| Filter {
            plugin,
            instance: None,
            generation: 0,
            wishes: Rc::default(),
            queues: Arc::default(),
            period: None,
            timer: 0,
        });
        Self {
            case,
            filters: filters.collect(),
            exchanges: Vec::new(),
            origin: Vec::new(),
            callouts: Vec::new(),
            log: Log::default(),
            faults: Vec::new(),
            now: 0,
            sequence: 0,
            events: BTreeMap::new(),
            started: Instant::now(),
        }
    }

    pub fn start(&mut self) -> Result<(), StartError> {
        (0..self.filters.len()).try_for_each(|at| self.start_instance(at))
    }

    fn start_instance(&mut self, at: usize) -> Result<(), StartError> {
        let filter = &mut self.filters[at];
        if filter.instance.is_some() {
            return Ok(());
        }
        let host = KitHost {
            log: self.log.clone(),
            wishes: filter.wishes.clone(),
            queues: filter.queues.clone(),
            started: self.started,
            seed: 1,
        };
        filter.generation += 1;
        filter.instance = Some(Instance::start(&filter.plugin, host)?);
        self.grant_wishes();
        Ok(())
    }

    pub fn schedule(&mut self, after: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now + after, self.sequence), event);
    }

    /// Lets time pass, and everything happen that falls into it.
    pub fn run_for(&mut self, milliseconds: u64) {
        let end = self.now + milliseconds;
        self.settle();
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > end {
                break;
            }
            self.now = entry.key().0;
            let event = entry.remove();
            self.happen(event);
            self.settle();
        }
        self.now = end;
    }

    pub fn run_until_done(&mut self) {
        while self.exchanges.iter().any(|exchange| !exchange.done) {
            self.run_for(1);
        }
        self.run_for(0);
    }

    /// Sends a request, `after` milliseconds from now.
    pub fn request(&mut self, request: &Request, after: u64) -> usize {
        let count = self.filters.len();
        let lanes = || (0..count).map(|_| Lane::default()).collect();
        self.exchanges.push(Exchange {
            request: request.clone(),
            contexts: vec![None; count],
            bypassed: vec![false; count],
            lanes: [lanes(), lanes()],
            ..Exchange::default()
        });
        let x = self.exchanges.len() - 1;
        let patience = request.timeout_s.unwrap_or(PATIENCE) * 1_000.0;
        self.schedule(after, Event::Start(x));
        self.schedule(after + patience as u64, Event::GiveUp(x));
        let delay = request.chunk_delay_ms.unwrap_or(40);
        let chunks = request.chunks.as_deref().unwrap_or_default();
        let mut at = after;
        for chunk in chunks {
            at += delay;
            self.schedule(at, Event::Client(x, chunk.as_bytes().to_vec()));
        }
        if request.chunks.is_some() && request.trailers.is_empty() {
            self.schedule(at + 40, Event::Client(x, Vec::new()));
        } else if request.chunks.is_some() {
            self.schedule(at + 40, Event::ClientTrailers(x));
        }
        x
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Start(x) => self.begin(x),
            Event::Client(x, bytes) => {
                self.exchanges[x].unread.push_back(bytes);
                self.read_client(x);
            }
            Event::ClientTrailers(x) => {
                let trailers = &self.exchanges[x].request.trailers;
                let trailers = trailers.iter().map(|(name, value)| pair(name, value)).collect();
                self.push(x, Direction::Request, Some(0), Item::Trailers(trailers));
            }
            Event::GiveUp(x) => self.finish(x, "timeout"),
            Event::Upstream(x) => self.send_upstream(x),
            Event::Origin(x, items) => {
                let last = self.filters.len().checked_sub(1);
                for item in items {
                    self.push(x, Direction::Response, last, item);
                }
            }
            Event::OriginReset(x) => {
                self.own_answer(x, 503, services::NO_UPSTREAM, self.filters.len().checked_sub(1));
            }
            Event::Tick(at, timer) => self.tick(at, timer),
            Event::Answer(at, token, response) => {
                self.root_call(at, |instance| instance.on_http_call_response(token, response));
            }
        }
    }

    fn begin(&mut self, x: usize) {
        for at in 0..self.filters.len() {
            // A plugin that cannot start again counts as broken; no case has one.
            self.start_instance(at).unwrap();
        }
        let request = self.exchanges[x].request.clone();
        let mut headers = vec![pair(":authority", "test.local"), pair(":path", &request.path)];
        headers.push(pair(":method", request.method.as_deref().unwrap_or("GET")));
        headers.push(pair(":scheme", "http"));
        for (name, value) in &request.headers {
            headers.push(pair(&name.to_ascii_lowercase(), value));
        }
        headers.push(pair("user-agent", "oracle/1"));
        let body = request.body.as_deref().map(expand);
        if let Some(body) = &body {
            headers.push(pair("content-length", &body.len().to_string()));
        }
        headers.push(pair("x-forwarded-proto", "http"));
        self.exchanges[x].request_head = headers.clone();
        let end = body.is_none() && request.chunks.is_none();
        self.push(x, Direction::Request, Some(0), Item::Head(headers, end));
        if let Some(body) = body {
            let read = if self.case.buffer_limit.is_some() { READ } else { body.len().max(1) };
            let parts = body.chunks(read).map(<[u8]>::to_vec).chain([Vec::new()]);
            self.exchanges[x].unread.extend(parts);
            self.read_client(x);
        }
    }

    /// Gives the plugin its context, unless it has one. False if it has no instance any more.
    pub fn ensure_context(&mut self, x: usize, at: usize) -> bool {
        if let Some((_, generation)) = self.exchanges[x].contexts[at] {
            return self.filters[at].generation == generation
                && self.filters[at].instance.is_some();
        }
        let Some(instance) = &mut self.filters[at].instance else { return false };
        let (context, created) = instance.create_context(KitStream::default());
        self.exchanges[x].contexts[at] = Some((context, self.filters[at].generation));
        created.unwrap();
        true
    }

    /// Calls a plugin on a stream. `None`: the stream does not go on.
    pub fn call(
        &mut self,
        x: usize,
        at: usize,
        direction: Direction,
        call: impl FnOnce(&mut Instance<KitHost>, ContextId) -> Result<Action, Fault>,
    ) -> Option<Action> {
        let (context, _) = self.exchanges[x].contexts[at]?;
        let instance = self.filters[at].instance.as_mut()?;
        let result = call(instance, context);
        self.grant_wishes();
        match result {
            Ok(action) => {
                let next = match direction {
                    Direction::Request => Some(at),
                    Direction::Response => at.checked_sub(1),
                };
                (!self.apply_effects(x, at, next)).then_some(action)
            }
            Err(fault) => {
                self.broke(at, fault);
                // Failing open, what the plugin had in hands goes on as it left it.
                (self.case.fails_open() && !self.exchanges[x].done).then(|| {
                    self.exchanges[x].bypassed[at] = true;
                    Action::Continue
                })
            }
        }
    }

    /// An answer or an end that the plugin gave. Whether there was one.
    fn apply_effects(&mut self, x: usize, at: usize, next: Option<usize>) -> bool {
        let effects = self.with_stream(x, at, |stream| (stream.local.take(), stream.closed.take()));
        match effects {
            Some((Some(local), _)) => self.answer_locally(x, local, next),
            Some((None, Some(_))) => self.cut(x),
            _ => return false,
        }
        true
    }

    /// A plugin broke: its streams end or go on without it, and the next request starts it anew.
    fn broke(&mut self, at: usize, fault: Fault) {
        self.faults.push(fault);
        if self.case.fails_open() {
            self.copy_streams_out(at);
        }
        self.filters[at].instance = None;
        for x in 0..self.exchanges.len() {
            let affected = self.exchanges[x].contexts[at]
                .is_some_and(|(_, generation)| generation == self.filters[at].generation);
            if !affected || self.exchanges[x].done {
                continue;
            }
            if self.case.fails_open() {
                self.exchanges[x].bypassed[at] = true;
                continue;
            }
            if self.exchanges[x].client.status.is_some() {
                self.cut(x);
            } else {
                self.own_answer(x, 500, "", None);
            }
        }
    }

    /// The one stream that fails open in the cases has all its bytes with the plugin.
    fn copy_streams_out(&mut self, at: usize) {
        for x in 0..self.exchanges.len() {
            let Some((context, _)) = self.exchanges[x].contexts[at] else { continue };
            let stream =
                self.filters[at].instance.as_mut().and_then(|instance| instance.abandon(context));
            self.exchanges[x].rescued = stream;
        }
    }

    fn root_call(
        &mut self,
        at: usize,
        call: impl FnOnce(&mut Instance<KitHost>) -> Result<(), Fault>,
    ) {
        let Some(instance) = &mut self.filters[at].instance else { return };
        let result = call(instance);
        self.grant_wishes();
        if let Err(fault) = result {
            self.broke(at, fault);
        }
    }

    fn tick(&mut self, at: usize, timer: u32) {
        if self.filters[at].timer != timer {
            return;
        }
        self.root_call(at, Instance::on_tick);
        if let Some(period) = self.filters[at].period.filter(|_| self.filters[at].timer == timer) {
            self.schedule(period.as_millis() as u64, Event::Tick(at, timer));
        }
    }

    /// Starts what plugins asked for.
    fn grant_wishes(&mut self) {
        for at in 0..self.filters.len() {
            let Wishes { calls, tick, .. } = self.filters[at].wishes.take();
            for call in calls {
                self.call_service(at, call);
            }
            let Some(period) = tick else { continue };
            self.filters[at].period = period;
            self.filters[at].timer += 1;
            if let Some(period) = period {
                let timer = self.filters[at].timer;
                self.schedule(period.as_millis() as u64, Event::Tick(at, timer));
            }
        }
    }

    /// What callbacks of the root did to streams, and news of queues.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for x in 0..self.exchanges.len() {
                for at in 0..self.filters.len() {
                    moved |= self.settle_stream(x, at);
                }
            }
            for at in 0..self.filters.len() {
                let ready = std::mem::take(&mut *self.filters[at].queues.0.lock().unwrap());
                for queue in ready {
                    moved = true;
                    self.root_call(at, |instance| instance.on_queue_ready(queue));
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn settle_stream(&mut self, x: usize, at: usize) -> bool {
        if self.exchanges[x].done {
            return false;
        }
        if self.apply_effects(x, at, Some(at)) {
            return true;
        }
        let continued = self.with_stream(x, at, |stream| std::mem::take(&mut stream.continued));
        let continued = continued.unwrap_or_default();
        if continued[0] {
            self.resume(x, Direction::Request, at);
        }
        if continued[1] {
            self.resume(x, Direction::Response, at);
        }
        continued[0] || continued[1]
    }

    /// The exchange is over, whatever the reason: plugins are told.
    pub fn finish(&mut self, x: usize, end: &str) {
        if std::mem::replace(&mut self.exchanges[x].done, true) {
            return;
        }
        for at in 0..self.filters.len() {
            if self.exchanges[x].bypassed[at] || !self.ensure_context(x, at) {
                continue;
            }
            let head = self.exchanges[x].request_head.clone();
            let response = self.exchanges[x].response_head.clone();
            self.with_stream(x, at, |stream| {
                stream.maps[0].get_or_insert(head);
                stream.maps[2] = response.or(stream.maps[2].take());
            });
            let Some((context, _)) = self.exchanges[x].contexts[at] else { continue };
            let Some(instance) = &mut self.filters[at].instance else { continue };
            let (_, told) = instance.finish(context);
            self.exchanges[x].contexts[at] = None;
            self.grant_wishes();
            if let Err(fault) = told {
                self.broke(at, fault);
            }
        }
        let exchange = &mut self.exchanges[x];
        let bodiless = exchange.request.method.as_deref() == Some("HEAD");
        if bodiless || matches!(exchange.client.status, Some(204 | 304)) {
            exchange.client_body.clear();
        }
        exchange.contexts = vec![None; exchange.contexts.len()];
        let head = exchange.response_head.clone().filter(|_| exchange.client.status.is_some());
        exchange.client = Client {
            headers: head.as_ref().map(strings).unwrap_or_default(),
            body: text(&exchange.client_body),
            end: Some(end.to_owned()),
            ..std::mem::take(&mut exchange.client)
        };
    }
}

pub fn strings(headers: &leno_wasm_host::Headers) -> Vec<(String, String)> {
    headers.iter().map(|(name, value)| (text(name), text(value))).collect()
}

pub fn pair(name: &str, value: &str) -> (Vec<u8>, Vec<u8>) {
    (name.as_bytes().to_vec(), value.as_bytes().to_vec())
}
