//! What an instance keeps beside the guest's memory: contexts and their phases, open calls, the answer
//! that is being delivered. Host functions work on this.

use std::{sync::Arc, time::Duration};

use rustc_hash::FxHashMap;
use wasmtime::{Memory, TypedFunc};

use crate::{
    abi::{AbiVersion, BufferType, CallKind, CallToken, ContextId, MapType, Status, StreamType},
    embedder::{Host, Stream},
    instance::{deadline::Deadline, together::Running},
    limits::Limiter,
    pairs::PairsWriter,
    plugin::PluginSettings,
    shared::Metric,
};

use self::contexts::Contexts;

mod contexts;

/// A list of headers that the guest reads and the host owns.
pub type Headers = Vec<(Vec<u8>, Vec<u8>)>;

pub(crate) struct State<H: Host> {
    pub(crate) host: H,
    pub(crate) settings: Arc<PluginSettings>,
    /// Of shared data and queues.
    pub(crate) space: String,
    pub(crate) abi: AbiVersion,
    pub(crate) memory: Option<Memory>,
    pub(crate) allocator: Option<TypedFunc<u32, u32>>,
    /// The guest's allocator is running. It must not want memory from itself.
    pub(crate) allocating: bool,
    pub(crate) limiter: Limiter,
    pub(crate) streams: Contexts<StreamContext<H::Stream>>,
    /// The context of the callback that runs; 0 while the module starts.
    pub(crate) current: u32,
    /// Several callbacks run, one after the other.
    pub(crate) running: Option<Running>,
    /// What `proxy_set_effective_context` chose, until the callback ends.
    pub(crate) effective: Option<u32>,
    pub(crate) configuring: Option<BufferType>,
    pub(crate) answer: Answer,
    pub(crate) calls: Calls,
    /// How far the callback that runs is.
    pub(crate) deadline: Deadline,
    /// Half of what it may take.
    pub(crate) half_deadline: Duration,
    /// What the plugin defined, by kind.
    pub(crate) metrics: [Vec<Arc<Metric>>; 3],
    /// `proxy_on_done` of the root said that it is not done yet.
    pub(crate) waits_for_done: bool,
    pub(crate) scratch: Vec<u8>,
    pub(crate) pairs: PairsWriter,
}

/// The answer of a call, while the guest is told of it.
#[derive(Default)]
pub(crate) struct Answer {
    maps: [Option<Headers>; 4],
    pub(crate) body: Option<Vec<u8>>,
    pub(crate) message: Option<Vec<u8>>,
    pub(crate) foreign: Option<Vec<u8>>,
    /// What `proxy_get_status` tells.
    pub(crate) status: u32,
    pub(crate) status_message: Vec<u8>,
}

impl Answer {
    pub(crate) fn map(&self, map: MapType) -> Option<&Headers> {
        let first = MapType::GrpcInitialMetadata as usize;
        self.maps.get((map as usize).checked_sub(first)?)?.as_ref()
    }

    pub(crate) fn set_map(&mut self, map: MapType, headers: Headers) {
        let first = MapType::GrpcInitialMetadata as usize;
        let slot = (map as usize).checked_sub(first).and_then(|at| self.maps.get_mut(at));
        if let Some(slot) = slot {
            *slot = Some(headers);
        }
    }

    /// The callback is over: what it could read is gone. The status stays, as elsewhere.
    pub(crate) fn clear(&mut self) {
        self.maps = [None, None, None, None];
        self.body = None;
        self.message = None;
        self.foreign = None;
    }
}

/// Calls to services that are under way.
#[derive(Default)]
pub(crate) struct Calls {
    sequence: u32,
    open: FxHashMap<u32, ()>,
}

impl Calls {
    pub(crate) fn open(&mut self, kind: CallKind, limit: usize) -> Result<CallToken, Status> {
        if self.open.len() >= limit {
            return Err(Status::InternalFailure);
        }
        // 2^30 calls later numbers begin anew; the few that are still open then are skipped.
        loop {
            self.sequence = (self.sequence + 1) & (u32::MAX >> 2);
            let token = CallToken::new(self.sequence, kind);
            if self.sequence != 0 && self.open.insert(token.number(), ()).is_none() {
                return Ok(token);
            }
        }
    }

    /// Whether the call was open.
    pub(crate) fn close(&mut self, token: CallToken) -> bool {
        self.open.remove(&token.number()).is_some()
    }

    pub(crate) fn is_open(&self, token: CallToken) -> bool {
        self.open.contains_key(&token.number())
    }
}

/// A stream with what its phase allows.
pub(crate) struct StreamContext<S> {
    pub(crate) stream: S,
    open_maps: u8,
    open_buffers: u8,
    paused: u8,
    /// Directions that the guest continued from within a callback on them.
    continued: u8,
    /// The direction whose callback runs.
    running: Option<StreamType>,
    /// The guest answered the request itself.
    answered: bool,
    /// It had when the callback that runs began.
    answered_before: bool,
    /// `proxy_on_log` of an HTTP stream runs: everything can be read, nothing changed.
    pub(crate) logging: bool,
    /// The end was told: nothing can be done to the stream any more.
    pub(crate) ended: bool,
    /// Bytes that the guest wrote into headers and trailers.
    written: usize,
}

impl<S: Stream> StreamContext<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            open_maps: 0,
            open_buffers: 0,
            paused: 0,
            continued: 0,
            running: None,
            answered: false,
            answered_before: false,
            logging: false,
            ended: false,
            written: 0,
        }
    }

    /// Counts what the guest writes into headers.
    pub(crate) fn write(&mut self, bytes: usize, limit: usize) -> Result<(), Status> {
        self.written = self.written.saturating_add(bytes);
        if self.written > limit { Err(Status::InternalFailure) } else { Ok(()) }
    }

    pub(crate) fn map_is_open(&self, map: MapType) -> bool {
        self.open_maps & bit(map as u32) != 0 && self.stream.has_map(map)
    }

    pub(crate) fn buffer_is_open(&self, buffer: BufferType) -> bool {
        self.open_buffers & bit(buffer as u32) != 0
    }

    /// A callback on this direction begins.
    pub(crate) fn enter(&mut self, direction: StreamType, opens: Opens) {
        self.open_maps |= opens.map.map_or(0, |map| bit(map as u32));
        self.open_buffers |= opens.buffer.map_or(0, |buffer| bit(buffer as u32));
        self.running = Some(direction);
        self.answered_before = self.answered;
        self.continued &= !bit(direction as u32);
    }

    /// A callback ended. Whether it continued the direction itself.
    pub(crate) fn leave(&mut self, direction: StreamType, paused: bool) -> bool {
        self.running = None;
        let continued = self.continued & bit(direction as u32) != 0;
        let answered = self.answered && !self.answered_before;
        if paused && !continued && !answered {
            self.paused |= bit(direction as u32);
        } else {
            self.close(direction);
        }
        continued
    }

    /// Whether the guest may answer now: once, and not after the end. What was paused is over then; its
    /// own answer passes the guest as a response and can be paused as one.
    pub(crate) fn answer(&mut self) -> bool {
        if self.answered || self.ended {
            return false;
        }
        self.answered = true;
        self.paused = 0;
        true
    }

    /// `proxy_continue_stream`
    pub(crate) fn continue_stream(&mut self, direction: StreamType) {
        if self.running == Some(direction) {
            self.continued |= bit(direction as u32);
        } else if self.paused & bit(direction as u32) != 0 {
            self.close(direction);
            self.stream.continue_stream(direction);
        }
    }

    /// The stream ended: nothing is open any more.
    pub(crate) fn end(&mut self) {
        self.ended = true;
        self.open_maps = 0;
        self.open_buffers = 0;
        self.paused = 0;
    }

    fn close(&mut self, direction: StreamType) {
        self.paused &= !bit(direction as u32);
        self.open_buffers &= !bit(direction as u32);
        // Headers and trailers of a direction are two maps in a row.
        if matches!(direction, StreamType::Request | StreamType::Response) {
            self.open_maps &= !(0b11 << (direction as u32 * 2));
        }
    }
}

/// What a callback makes accessible.
#[derive(Clone, Copy, Default)]
pub(crate) struct Opens {
    pub(crate) map: Option<MapType>,
    pub(crate) buffer: Option<BufferType>,
}

/// Streams have fewer than eight maps and buffers; what is not a stream's has no bit.
fn bit(number: u32) -> u8 {
    1_u8.checked_shl(number).unwrap_or(0)
}

impl<H: Host> State<H> {
    pub(crate) fn new(
        host: H,
        settings: Arc<PluginSettings>,
        abi: AbiVersion,
        limiter: Limiter,
    ) -> Self {
        Self {
            host,
            space: settings.space(&settings.vm_id),
            settings,
            abi,
            memory: None,
            allocator: None,
            allocating: false,
            limiter,
            streams: Contexts::default(),
            current: 0,
            running: None,
            effective: None,
            configuring: None,
            answer: Answer::default(),
            calls: Calls::default(),
            deadline: Deadline::default(),
            half_deadline: Duration::ZERO,
            metrics: Default::default(),
            waits_for_done: false,
            scratch: Vec::new(),
            pairs: PairsWriter::default(),
        }
    }

    /// The stream that host functions act on: the callback's, or the one that the guest chose.
    pub(crate) fn stream(&mut self) -> Option<&mut StreamContext<H::Stream>> {
        self.streams.get_mut(self.effective.unwrap_or(self.current))
    }

    /// `proxy_set_effective_context`
    pub(crate) fn set_effective(&mut self, context: u32) -> Result<(), Status> {
        if context != ContextId::ROOT.number() && self.streams.get(context).is_none() {
            return Err(Status::BadArgument);
        }
        self.effective = Some(context);
        Ok(())
    }
}
