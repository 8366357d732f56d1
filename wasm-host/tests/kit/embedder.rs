//! The smallest embedder that the kit needs: headers as vectors, bodies as bytes, effects as notes.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use leno_wasm_host::{
    BufferEdit, BufferType, CallToken, GrpcCall, Headers, Host, HttpCall, LocalResponse, LogLevel,
    MapType, QueueListener, Status, Stream, StreamType, pairs::Pairs,
};

/// Level and line.
pub type Log = Rc<RefCell<Vec<(String, String)>>>;

/// What a plugin asked of its host, until the proxy looks.
#[derive(Default)]
pub struct Wishes {
    pub calls: Vec<Call>,
    pub tick: Option<Option<Duration>>,
    /// What happened to gRPC calls, as text.
    pub grpc: Vec<(CallToken, String)>,
}

pub struct Call {
    pub token: CallToken,
    pub headers: Headers,
    pub body: Vec<u8>,
    pub timeout: Duration,
}

#[derive(Default)]
pub struct Queues(pub Mutex<Vec<u32>>);

impl QueueListener for Queues {
    fn ready(&self, queue: u32) {
        self.0.lock().unwrap().push(queue);
    }
}

pub struct KitHost {
    pub log: Log,
    pub wishes: Rc<RefCell<Wishes>>,
    pub queues: Arc<Queues>,
    pub started: Instant,
    pub seed: u64,
}

pub fn owned(pairs: Pairs<'_>) -> Headers {
    pairs.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Host for KitHost {
    type Stream = KitStream;

    fn log(&mut self, level: LogLevel, message: &[u8]) {
        let level = match level {
            LogLevel::Trace => "trace",
            LogLevel::Debug => "debug",
            LogLevel::Info => "info",
            LogLevel::Warn => "warning",
            LogLevel::Error => "error",
            LogLevel::Critical => "critical",
        };
        self.log.borrow_mut().push((level.to_owned(), text(message)));
    }

    fn log_level(&self) -> LogLevel {
        LogLevel::Trace
    }

    fn now(&mut self) -> u64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        u64::try_from(now.as_nanos()).unwrap()
    }

    fn monotonic(&mut self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap().max(1)
    }

    fn random(&mut self, target: &mut [u8]) {
        for byte in target {
            self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (self.seed >> 56) as u8;
        }
    }

    fn set_tick_period(&mut self, period: Option<Duration>) {
        self.wishes.borrow_mut().tick = Some(period);
    }

    fn http_call(&mut self, token: CallToken, call: HttpCall<'_>) -> Result<(), Status> {
        if call.upstream != b"callout" {
            return Err(Status::BadArgument);
        }
        self.wishes.borrow_mut().calls.push(Call {
            token,
            headers: owned(call.headers),
            body: call.body.to_vec(),
            timeout: call.timeout,
        });
        Ok(())
    }

    fn grpc_call(&mut self, token: CallToken, call: GrpcCall<'_>) -> Result<(), Status> {
        self.start_grpc(token, "call", &call)
    }

    fn grpc_stream(&mut self, token: CallToken, call: GrpcCall<'_>) -> Result<(), Status> {
        self.start_grpc(token, "stream", &call)
    }

    fn grpc_send(&mut self, token: CallToken, message: &[u8], end: bool) -> Result<(), Status> {
        self.wishes.borrow_mut().grpc.push((token, format!("send {} {end}", text(message))));
        Ok(())
    }

    fn grpc_end(&mut self, token: CallToken, cancel: bool) {
        self.wishes.borrow_mut().grpc.push((token, format!("end {cancel}")));
    }

    fn property(&self, path: &[u8]) -> Result<Cow<'_, [u8]>, Status> {
        match path {
            b"of\0host" => Ok(Cow::Borrowed(b"host's")),
            _ => Err(Status::NotFound),
        }
    }

    fn call_foreign_function(
        &mut self,
        stream: Option<&mut KitStream>,
        name: &[u8],
        arguments: &[u8],
    ) -> Result<Vec<u8>, Status> {
        match name {
            b"echo" => Ok([arguments, if stream.is_some() { b"+stream" } else { b"" }].concat()),
            b"panic" => panic!("in the embedder"),
            _ => Err(Status::NotFound),
        }
    }

    fn queue_listener(&self) -> Arc<dyn QueueListener> {
        self.queues.clone()
    }
}

impl KitHost {
    fn start_grpc(&self, token: CallToken, kind: &str, call: &GrpcCall<'_>) -> Result<(), Status> {
        if call.upstream != b"grpc" {
            return Err(Status::ParseFailure);
        }
        let [service, method, message] = [call.service, call.method, call.message].map(text);
        let metadata: Vec<_> = owned(call.metadata).iter().map(|(name, _)| text(name)).collect();
        let what = format!("{kind} {service}/{method} {metadata:?} {message} {:?}", call.timeout);
        self.wishes.borrow_mut().grpc.push((token, what));
        Ok(())
    }
}

#[derive(Clone)]
pub struct Local {
    pub status: u32,
    pub headers: Headers,
    pub body: Vec<u8>,
    pub grpc_status: Option<u32>,
}

#[derive(Default)]
pub struct KitStream {
    pub maps: [Option<Headers>; 4],
    pub buffers: [Vec<u8>; 4],
    pub local: Option<Local>,
    pub continued: [bool; 4],
    pub closed: Option<StreamType>,
    pub properties: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl KitStream {
    fn map(&self, map: MapType) -> &[(Vec<u8>, Vec<u8>)] {
        self.maps[map as usize].as_deref().unwrap_or_default()
    }

    fn map_mut(&mut self, map: MapType) -> &mut Headers {
        self.maps[map as usize].get_or_insert_default()
    }
}

impl Stream for KitStream {
    fn has_map(&self, map: MapType) -> bool {
        let trailers = matches!(map, MapType::RequestTrailers | MapType::ResponseTrailers);
        trailers || self.maps[map as usize].is_some()
    }

    fn header(&self, map: MapType, name: &[u8]) -> Option<&[u8]> {
        self.map(map).iter().find(|(key, _)| key == name).map(|(_, value)| &value[..])
    }

    fn visit_headers(&self, map: MapType, visit: &mut dyn FnMut(&[u8], &[u8])) {
        self.map(map).iter().for_each(|(name, value)| visit(name, value));
    }

    fn set_headers(&mut self, map: MapType, headers: Pairs<'_>) {
        *self.map_mut(map) = owned(headers);
    }

    fn add_header(&mut self, map: MapType, name: &[u8], value: &[u8]) {
        self.map_mut(map).push((name.to_vec(), value.to_vec()));
    }

    fn replace_header(&mut self, map: MapType, name: &[u8], value: &[u8]) {
        let headers = self.map_mut(map);
        let place = headers.iter().position(|(key, _)| key == name).unwrap_or(headers.len());
        headers.retain(|(key, _)| key != name);
        headers.insert(place.min(headers.len()), (name.to_vec(), value.to_vec()));
    }

    fn remove_header(&mut self, map: MapType, name: &[u8]) {
        self.map_mut(map).retain(|(key, _)| key != name);
    }

    fn buffer_length(&self, buffer: BufferType) -> usize {
        self.buffers[buffer as usize].len()
    }

    fn copy_buffer(&self, buffer: BufferType, start: usize, target: &mut [u8]) {
        target.copy_from_slice(&self.buffers[buffer as usize][start..start + target.len()]);
    }

    fn edit_buffer(&mut self, buffer: BufferType, edit: BufferEdit<'_>) {
        let bytes = &mut self.buffers[buffer as usize];
        match edit {
            BufferEdit::Front { dropped, bytes: new } => {
                bytes.splice(..dropped, new.iter().copied());
            }
            BufferEdit::Append(new) => bytes.extend_from_slice(new),
        }
    }

    fn send_local_response(&mut self, response: LocalResponse<'_>) {
        self.local = Some(Local {
            status: response.status,
            headers: owned(response.headers),
            body: response.body.to_vec(),
            grpc_status: response.grpc_status,
        });
    }

    fn continue_stream(&mut self, direction: StreamType) {
        self.continued[direction as usize] = true;
    }

    fn close_stream(&mut self, direction: StreamType) {
        self.closed = Some(direction);
    }

    fn property(&self, path: &[u8]) -> Result<Cow<'_, [u8]>, Status> {
        self.properties.get(path).map(|value| Cow::Borrowed(&value[..])).ok_or(Status::NotFound)
    }

    fn set_property(&mut self, path: &[u8], value: &[u8]) -> Result<(), Status> {
        self.properties.insert(path.to_vec(), value.to_vec());
        Ok(())
    }

    fn clear_route_cache(&mut self) {}
}
