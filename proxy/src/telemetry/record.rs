//! What is remembered of an exchange until it ends: one record, made at the start, written once.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use http::{HeaderValue, Method, Uri, Version};

use super::scope::Scope;
use crate::error::Flag;

/// One exchange, as logs and metrics see it.
#[derive(Debug)]
pub struct Record {
    /// When the request's head was complete.
    pub start: Instant,
    /// Which way it goes.
    pub direction: Direction,
    /// Address of the caller.
    pub downstream: SocketAddr,
    /// Kept only while an access log is written.
    pub line: Option<Box<RequestLine>>,
    /// Whether it is gRPC by its content type.
    pub grpc: bool,
    /// Of the answer; 0 while there is none.
    pub status: u16,
    /// `grpc-status`, where it is known.
    pub grpc_status: Option<u8>,
    /// Why the answer is not the upstream's, or is cut off.
    pub flag: Flag,
    /// What exactly.
    pub detail: Option<String>,
    /// The route's name: `HTTPRoute shop/orders`.
    pub route: Option<Arc<str>>,
    /// The cluster's name: `shop/orders:80`.
    pub cluster: Option<Arc<str>>,
    /// The endpoint that answered.
    pub upstream: Option<SocketAddr>,
    /// Who called, as proven by mutual TLS: `spiffe://cluster.local/ns/shop/sa/orders`. For the access log.
    pub downstream_peer: Option<Arc<str>>,
    /// Who answered, the same way.
    pub upstream_peer: Option<Arc<str>>,
    /// The AUDIT policy that matched.
    pub audit: Option<Arc<str>>,
    /// Whom to count it for.
    pub scope: Option<Arc<Scope>>,
    /// Attempts made.
    pub attempts: u32,
    /// Why there was no other, where one was asked for, with the letters for it.
    pub not_retried: Option<(&'static str, Option<&'static str>)>,
    /// What became of it in the cache; `None` where there is none.
    pub cache: Option<&'static str>,
    /// Body bytes from the caller.
    pub request_bytes: u64,
    /// Body bytes to the caller.
    pub response_bytes: u64,
}

/// Which way an exchange goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From our application to others.
    Outbound,
    /// From others to our application.
    Inbound,
}

impl Direction {
    /// As in logs and metrics, and as its listener is called.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// What the caller asked for, as received. Cheap to keep: it shares the head's buffer.
#[derive(Debug)]
pub struct RequestLine {
    /// As received.
    pub method: Method,
    /// As received.
    pub uri: Uri,
    /// As received.
    pub version: Version,
    /// `Host`, where there is one.
    pub host: Option<HeaderValue>,
    /// `user-agent`.
    pub user_agent: Option<HeaderValue>,
    /// `x-request-id`, as sent on.
    pub request_id: Option<HeaderValue>,
}

impl Record {
    /// The value of the `request_protocol` label.
    pub fn protocol(&self) -> &'static str {
        if self.grpc { "grpc" } else { "http" }
    }
}
