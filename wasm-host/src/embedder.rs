//! What the embedder provides: a [`Host`] for each instance, a [`Stream`] for each exchange or
//! connection. The crate checks pointers, numbers and phases before it calls any of this.
//!
//! Everything is called synchronously from within a guest's callback and on its time: nothing here may
//! block. What waits (calls, timers, paused streams) is started here and comes back later through a
//! method of [`crate::Instance`]. A `Host` or `Stream` cannot reach the instance that calls it; leave a
//! note in your own state (a flag, a queue, a waker) and act on it when the callback returned.

use std::{borrow::Cow, sync::Arc, time::Duration};

use crate::{
    abi::{BufferType, CallToken, LogLevel, MapType, Status, StreamType},
    pairs::Pairs,
};

/// What an instance needs from around it.
pub trait Host: 'static {
    /// What a stream of this embedder is.
    type Stream: Stream;

    /// A line that the plugin, or this crate about the plugin, wants logged. `message` is at most
    /// [`crate::Limits::log_line_bytes`] long and need not be UTF-8.
    fn log(&mut self, level: LogLevel, message: &[u8]);

    /// The least severe level that is worth logging.
    fn log_level(&self) -> LogLevel;

    /// The wall clock, in nanoseconds since 1970.
    fn now(&mut self) -> u64;

    /// A clock that never goes back, in nanoseconds since any moment.
    fn monotonic(&mut self) -> u64;

    /// Fills `target` with random bytes, fit for keys.
    fn random(&mut self, target: &mut [u8]);

    /// The plugin wants [`crate::Instance::on_tick`] called every `period`, or no more.
    fn set_tick_period(&mut self, period: Option<Duration>);

    /// Starts an HTTP call. Its answer goes to [`crate::Instance::on_http_call_response`].
    /// The stream for which it is made may end first.
    ///
    /// # Errors
    /// [`Status::BadArgument`] for an upstream that does not exist; [`Status::InternalFailure`] if the
    /// call cannot be started.
    fn http_call(&mut self, token: CallToken, call: HttpCall<'_>) -> Result<(), Status>;

    /// Starts a gRPC call with one message. Answers go to `on_grpc_…` of [`crate::Instance`].
    ///
    /// # Errors
    /// [`Status::ParseFailure`] for an upstream that does not exist, as plugins know it elsewhere.
    fn grpc_call(&mut self, token: CallToken, call: GrpcCall<'_>) -> Result<(), Status>;

    /// Starts a gRPC stream; `message` and `timeout` of `call` are empty.
    ///
    /// # Errors
    /// As [`Host::grpc_call`].
    fn grpc_stream(&mut self, token: CallToken, call: GrpcCall<'_>) -> Result<(), Status>;

    /// Sends a message on a gRPC stream that is open; `end` closes this side.
    ///
    /// # Errors
    /// [`Status::BadArgument`] if this side is closed, [`Status::InternalFailure`] if too much waits.
    fn grpc_send(&mut self, token: CallToken, message: &[u8], end: bool) -> Result<(), Status>;

    /// Ends a gRPC call or stream: `cancel` abandons it, otherwise only this side is closed.
    fn grpc_end(&mut self, token: CallToken, cancel: bool);

    /// What a property has for a value outside of streams. `path` is the guest's: segments, joined by
    /// zero bytes. `plugin_name`, `plugin_root_id` and `plugin_vm_id` are answered before.
    ///
    /// # Errors
    /// As [`Stream::property`].
    fn property(&self, path: &[u8]) -> Result<Cow<'_, [u8]>, Status>;

    /// Calls a function that is outside of the ABI. `stream` is the one in whose behalf, if any.
    /// Those that this crate has ([`crate::FOREIGN_FUNCTIONS`]) are not asked for.
    ///
    /// # Errors
    /// [`Status::NotFound`] for one that does not exist; others as the function defines them.
    fn call_foreign_function(
        &mut self,
        stream: Option<&mut Self::Stream>,
        name: &[u8],
        arguments: &[u8],
    ) -> Result<Vec<u8>, Status>;

    /// Whether a guest may make a buffer of a stream longer by so many bytes: one that is paused, outside of its own
    /// callbacks, after which the embedder looks at what is held anyway. There may be thousands of them.
    fn may_grow(&mut self, _stream: &Self::Stream, _buffer: BufferType, _by: usize) -> bool {
        true
    }

    /// Whom to tell that something was put into a queue that the plugin registered. Queues keep no reference: with the
    /// last one, which is the host's, it is told no more, and the one that registered before it is told in its place.
    fn queue_listener(&self) -> Arc<dyn QueueListener>;
}

/// Told from any thread that a queue has something. It must not block: it sends the news to where the
/// instance lives, and [`crate::Instance::on_queue_ready`] is called there.
pub trait QueueListener: Send + Sync {
    /// Something was put into `queue`.
    fn ready(&self, queue: u32);
}

/// One HTTP exchange or one TCP connection, as the guest reaches it. It lives inside of the instance
/// from [`crate::Instance::create_context`] to [`crate::Instance::finish`], so that a timer or the
/// answer of a call can reach a stream that waits.
///
/// Which map or buffer is open in which phase is this crate's business: a method here is called only
/// when the ABI allows it.
pub trait Stream: 'static {
    /// Whether the stream has this map at all. Trailers that a guest may add while it sees the end of
    /// a body count as there. After the stream ended: whether there ever was such a map.
    fn has_map(&self, map: MapType) -> bool;

    /// The first value of a header. `name` is lower case; the host of a request is `:authority`.
    fn header(&self, map: MapType, name: &[u8]) -> Option<&[u8]>;

    /// Calls `visit` with every header in order, pseudo headers first.
    fn visit_headers(&self, map: MapType, visit: &mut dyn FnMut(&[u8], &[u8]));

    /// Replaces all headers, pseudo headers too.
    fn set_headers(&mut self, map: MapType, headers: Pairs<'_>);

    /// Adds a value. `name` is lower case. What HTTP forbids in names and values must not be sent; the
    /// ABI has no way to tell the guest so.
    fn add_header(&mut self, map: MapType, name: &[u8], value: &[u8]);

    /// Replaces all values by one, or adds it.
    fn replace_header(&mut self, map: MapType, name: &[u8], value: &[u8]);

    /// Removes all values; does nothing if there is none.
    fn remove_header(&mut self, map: MapType, name: &[u8]);

    /// How many bytes a buffer has now.
    fn buffer_length(&self, buffer: BufferType) -> usize;

    /// Copies bytes of a buffer, from `start`, into the guest. There are that many.
    fn copy_buffer(&self, buffer: BufferType, start: usize, target: &mut [u8]);

    /// Changes a buffer. Framing is the embedder's: a body that was changed has no `content-length`
    /// that says otherwise.
    fn edit_buffer(&mut self, buffer: BufferType, edit: BufferEdit<'_>);

    /// Answers the request from here. Called at most once in a stream, and never once its end was told.
    fn send_local_response(&mut self, response: LocalResponse<'_>);

    /// Goes on with what was paused. Also called when nothing is paused, and from within the callback
    /// that is about to pause: then it wins.
    fn continue_stream(&mut self, direction: StreamType);

    /// Ends the stream at once.
    fn close_stream(&mut self, direction: StreamType);

    /// The value of a property that does not follow from headers: those that do (`request.path`,
    /// `request.headers.x`, `response.headers` and their like), the plugin's names and whole objects
    /// are answered before. `path` is the guest's: segments, joined by zero bytes. Bytes are: strings as they are, integers as `i64` little endian, booleans
    /// as one byte, times and durations as `i64` nanoseconds, maps as pairs.
    ///
    /// # Errors
    /// [`Status::NotFound`] if there is none, [`Status::SerializationFailure`] if it is an object.
    fn property(&self, path: &[u8]) -> Result<Cow<'_, [u8]>, Status>;

    /// Keeps a value for this and other plugins of the stream.
    ///
    /// # Errors
    /// [`Status::InternalFailure`] if there are too many.
    fn set_property(&mut self, path: &[u8], value: &[u8]) -> Result<(), Status>;

    /// Forgets which route was chosen (`proxy_clear_route_cache` of 0.1.0, and the foreign function).
    fn clear_route_cache(&mut self);
}

/// How a guest changes a buffer. Middles cannot be changed; plugins know that from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferEdit<'a> {
    /// Drops the first bytes (never more than there are) and puts others in front.
    Front {
        /// How many are dropped.
        dropped: usize,
        /// What comes in front of the rest.
        bytes: &'a [u8],
    },
    /// Puts bytes behind the last.
    Append(&'a [u8]),
}

/// An answer that a plugin gives instead of the upstream.
#[derive(Clone, Copy, Debug)]
pub struct LocalResponse<'a> {
    /// The status code, as the guest gave it: need not be one that HTTP knows.
    pub status: u32,
    /// For logs.
    pub details: &'a [u8],
    /// The body.
    pub body: &'a [u8],
    /// More headers. `:status` and `content-length` among them are not to be used.
    pub headers: Pairs<'a>,
    /// Status of gRPC, for requests of gRPC.
    pub grpc_status: Option<u32>,
}

/// `proxy_http_call`
#[derive(Clone, Copy, Debug)]
pub struct HttpCall<'a> {
    /// The name of the service, as the guest gave it.
    pub upstream: &'a [u8],
    /// Headers; `:method`, `:path` and `:authority` are among them.
    pub headers: Pairs<'a>,
    /// The body.
    pub body: &'a [u8],
    /// Trailers.
    pub trailers: Pairs<'a>,
    /// After which time the answer is an error.
    pub timeout: Duration,
}

/// `proxy_grpc_call`, `proxy_grpc_stream`
#[derive(Clone, Copy, Debug)]
pub struct GrpcCall<'a> {
    /// The name of the service, or a serialised `GrpcService`, as the guest gave it.
    pub upstream: &'a [u8],
    /// The gRPC service, as in `package.Service`.
    pub service: &'a [u8],
    /// The method.
    pub method: &'a [u8],
    /// Initial metadata.
    pub metadata: Pairs<'a>,
    /// The message of a unary call.
    pub message: &'a [u8],
    /// After which time a unary call fails; zero: never.
    pub timeout: Duration,
}

/// The answer to an HTTP call, or what the embedder says in its place (504 after the timeout, 503 if the
/// connection failed: plugins expect these).
#[derive(Clone, Debug, Default)]
pub struct HttpCallResponse {
    /// Headers with `:status`.
    pub headers: Vec<(Vec<u8>, Vec<u8>)>,
    /// The body.
    pub body: Vec<u8>,
    /// Trailers.
    pub trailers: Vec<(Vec<u8>, Vec<u8>)>,
}
