//! Who answered a call, told in two headers; and the headers that a call passes on.

use crate::failure::Failure;
use crate::{Label, Service};
use axum::extract::FromRequestParts;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::convert::Infallible;

pub const INSTANCE: HeaderName = HeaderName::from_static("x-shop-instance");
pub const VERSION: HeaderName = HeaderName::from_static("x-shop-version");

/// What became of a request in caches on its way.
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// One call that helped to serve an order, and the instance which answered it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Hop {
    pub call: String,
    pub service: Service,
    pub instance: Label,
    pub version: Label,
    /// The instance answered it earlier: the sidecar had kept the answer, or another caller had just asked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cached: bool,
}

impl Hop {
    /// Reads who answered from the headers (or gRPC metadata) of the answer.
    pub fn read(service: Service, call: String, headers: &HeaderMap) -> Result<Self, Failure> {
        let label =
            |name: HeaderName| -> Option<Label> { headers.get(name)?.to_str().ok()?.parse().ok() };
        match (label(INSTANCE), label(VERSION)) {
            (Some(instance), Some(version)) => {
                Ok(Self { call, service, instance, version, cached: is_cached(headers) })
            }
            _ => Err(Failure::upstream(
                service,
                format!("{call} was answered without a valid {INSTANCE} and {VERSION}"),
            )),
        }
    }
}

/// Whether a cache says so (RFC 9211).
fn is_cached(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(CACHE_STATUS).iter().filter_map(|value| value.to_str().ok());
    lines
        .flat_map(|line| line.split([';', ',']))
        .any(|word| matches!(word.trim(), "hit" | "collapsed"))
}

/// The headers by which a mesh ties the calls of one request together. A sidecar cannot know which
/// outgoing call belongs to which incoming one, so passing these on is left to the application.
#[derive(Clone, Debug)]
pub struct Trace(HeaderMap);

const PASSED_ON: [HeaderName; 3] = [
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("x-request-id"),
];

impl Trace {
    fn of(incoming: &HeaderMap) -> Self {
        let mut passed_on = HeaderMap::new();
        for name in PASSED_ON {
            for value in incoming.get_all(&name) {
                passed_on.append(&name, HeaderValue::clone(value));
            }
        }
        Self(passed_on)
    }

    pub fn headers(&self) -> HeaderMap {
        self.0.clone()
    }
}

impl<S: Sync> FromRequestParts<S> for Trace {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.headers))
    }
}
