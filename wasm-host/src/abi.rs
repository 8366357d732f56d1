//! The numbers of the Proxy-Wasm ABI as types: versions, statuses, maps, buffers, actions, levels.
//!
//! Numbers come from the guest as `u32`; `from_guest` is where an unknown one is found.

/// The version of the ABI that a module was built for, told by the name of a function it exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AbiVersion {
    /// `proxy_abi_version_0_1_0`
    V0_1_0,
    /// `proxy_abi_version_0_2_0`
    V0_2_0,
    /// `proxy_abi_version_0_2_1`
    V0_2_1,
}

impl AbiVersion {
    /// Every version with its marker export, the newest first.
    pub const MARKERS: [(&'static str, Self); 3] = [
        ("proxy_abi_version_0_2_1", Self::V0_2_1),
        ("proxy_abi_version_0_2_0", Self::V0_2_0),
        ("proxy_abi_version_0_1_0", Self::V0_1_0),
    ];
}

/// What a host function answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// The key, token, buffer or map does not exist.
    NotFound = 1,
    /// An argument is out of its range, or not allowed in this phase.
    BadArgument = 2,
    /// A value cannot be expressed as bytes.
    SerializationFailure = 3,
    /// Bytes cannot be read as what they should be.
    ParseFailure = 4,
    /// A pointer, or a pointer with its length, is outside of the guest's memory.
    InvalidMemoryAccess = 6,
    /// The queue is empty.
    Empty = 7,
    /// Somebody else changed the value since it was read.
    CasMismatch = 8,
    /// The host cannot do it now; also what a capability that was not granted answers.
    InternalFailure = 10,
    /// This host does not know the function.
    Unimplemented = 12,
}

/// Which list of headers a host function means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapType {
    /// Headers of the request, with `:method`, `:path`, `:authority`, `:scheme`.
    RequestHeaders = 0,
    /// Trailers of the request.
    RequestTrailers = 1,
    /// Headers of the response, with `:status`.
    ResponseHeaders = 2,
    /// Trailers of the response.
    ResponseTrailers = 3,
    /// Initial metadata of the gRPC call that is being answered.
    GrpcInitialMetadata = 4,
    /// Trailing metadata of the gRPC call that is being answered.
    GrpcTrailingMetadata = 5,
    /// Headers of the answer to an HTTP call.
    HttpCallHeaders = 6,
    /// Trailers of the answer to an HTTP call.
    HttpCallTrailers = 7,
}

impl MapType {
    const ALL: [Self; 8] = [
        Self::RequestHeaders,
        Self::RequestTrailers,
        Self::ResponseHeaders,
        Self::ResponseTrailers,
        Self::GrpcInitialMetadata,
        Self::GrpcTrailingMetadata,
        Self::HttpCallHeaders,
        Self::HttpCallTrailers,
    ];

    pub(crate) fn from_guest(number: u32) -> Result<Self, Status> {
        Self::ALL.get(number as usize).copied().ok_or(Status::BadArgument)
    }

    /// Whether the map belongs to a stream; the others belong to the answer of a call.
    pub(crate) fn of_stream(self) -> bool {
        (self as u32) < Self::GrpcInitialMetadata as u32
    }
}

/// Which bytes a host function means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum BufferType {
    /// Body of the request.
    RequestBody = 0,
    /// Body of the response.
    ResponseBody = 1,
    /// Bytes from the downstream of a TCP connection.
    DownstreamData = 2,
    /// Bytes from the upstream of a TCP connection.
    UpstreamData = 3,
    /// Body of the answer to an HTTP call.
    HttpCallBody = 4,
    /// A message of a gRPC call.
    GrpcMessage = 5,
    /// The configuration of the virtual machine.
    VmConfiguration = 6,
    /// The configuration of the plugin.
    PluginConfiguration = 7,
    /// Arguments of a foreign function that the host calls.
    ForeignArguments = 8,
}

impl BufferType {
    const ALL: [Self; 9] = [
        Self::RequestBody,
        Self::ResponseBody,
        Self::DownstreamData,
        Self::UpstreamData,
        Self::HttpCallBody,
        Self::GrpcMessage,
        Self::VmConfiguration,
        Self::PluginConfiguration,
        Self::ForeignArguments,
    ];

    pub(crate) fn from_guest(number: u32) -> Result<Self, Status> {
        Self::ALL.get(number as usize).copied().ok_or(Status::BadArgument)
    }

    pub(crate) fn of_stream(self) -> bool {
        (self as u32) < Self::HttpCallBody as u32
    }
}

/// Which direction of a stream a host function means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum StreamType {
    /// The HTTP request.
    Request = 0,
    /// The HTTP response.
    Response = 1,
    /// The downstream of a TCP connection.
    Downstream = 2,
    /// The upstream of a TCP connection.
    Upstream = 3,
}

impl StreamType {
    const ALL: [Self; 4] = [Self::Request, Self::Response, Self::Downstream, Self::Upstream];

    pub(crate) fn from_guest(number: u32) -> Result<Self, Status> {
        Self::ALL.get(number as usize).copied().ok_or(Status::BadArgument)
    }
}

/// What a callback on headers, a body, trailers or data tells the host to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Go on: headers pass, what was held of a body is sent.
    Continue,
    /// Hold. Of a body: keep what came, and show all of it to the next callback.
    Pause,
    /// Bodies and data only: hold what came, but show the next callback only what is new.
    PauseWithoutView,
    /// Bodies and data only: forget what came and hold the stream.
    Discard,
}

impl Action {
    /// Headers and trailers: 0 and 2 go on, everything else stops, as plugins find it elsewhere.
    pub(crate) fn of_headers(number: u32) -> Self {
        if matches!(number, 0 | 2) { Self::Continue } else { Self::Pause }
    }

    /// Bodies and data: 3 and every number that the ABI does not name drop the bytes.
    pub(crate) fn of_data(number: u32) -> Self {
        match number {
            0 => Self::Continue,
            1 => Self::Pause,
            2 => Self::PauseWithoutView,
            _ => Self::Discard,
        }
    }
}

/// Severity of a line that a plugin logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum LogLevel {
    /// 0
    Trace = 0,
    /// 1
    Debug = 1,
    /// 2
    Info = 2,
    /// 3
    Warn = 3,
    /// 4
    Error = 4,
    /// 5
    Critical = 5,
}

impl LogLevel {
    const ALL: [Self; 6] =
        [Self::Trace, Self::Debug, Self::Info, Self::Warn, Self::Error, Self::Critical];

    pub(crate) fn from_guest(number: u32) -> Result<Self, Status> {
        Self::ALL.get(number as usize).copied().ok_or(Status::BadArgument)
    }
}

/// Who closed a TCP connection, as the callbacks on closing tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ClosedBy {
    /// Not known.
    Unknown = 0,
    /// This side.
    Local = 1,
    /// The peer.
    Remote = 2,
}

/// What a metric of a plugin measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum MetricKind {
    /// Only grows.
    Counter = 0,
    /// Goes up and down.
    Gauge = 1,
    /// A distribution of values.
    Histogram = 2,
}

impl MetricKind {
    pub(crate) fn from_guest(number: u32) -> Result<Self, Status> {
        match number {
            0 => Ok(Self::Counter),
            1 => Ok(Self::Gauge),
            2 => Ok(Self::Histogram),
            _ => Err(Status::BadArgument),
        }
    }
}

/// One stream (an HTTP exchange or a TCP connection) or the root of a plugin, as the guest names it.
///
/// Numbers are given out once per instance; 1 is the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContextId(pub(crate) u32);

impl ContextId {
    /// The context of the plugin itself, to which timers, queues and answers of calls go.
    pub const ROOT: Self = Self(1);

    /// The number that the guest sees.
    pub fn number(self) -> u32 {
        self.0
    }
}

/// One call of a plugin to a service, as the guest names it. The low two bits say of what kind it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallToken(pub(crate) u32);

/// The kinds of calls to services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// `proxy_http_call`
    Http,
    /// `proxy_grpc_call`: one message each way.
    GrpcUnary,
    /// `proxy_grpc_stream`
    GrpcStream,
}

impl CallToken {
    pub(crate) fn new(sequence: u32, kind: CallKind) -> Self {
        Self(sequence << 2 | kind as u32)
    }

    /// The call that the guest sees by a number.
    pub fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// The number that the guest sees.
    pub fn number(self) -> u32 {
        self.0
    }

    /// What kind of call the number belongs to; none for a number that no call has.
    pub fn kind(self) -> Option<CallKind> {
        match self.0 & 3 {
            0 => Some(CallKind::Http),
            1 => Some(CallKind::GrpcUnary),
            2 => Some(CallKind::GrpcStream),
            _ => None,
        }
    }
}
