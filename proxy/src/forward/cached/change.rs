//! What a request may change at the origin, and what is void here then (RFC 9111 section 4.4).

use std::sync::Arc;

use http::{Method, Request, Response, Uri, header};

use crate::{cache::policy::invalidation, snapshot::Snapshot};

/// A request with a method that is not safe.
#[derive(Debug)]
pub(in crate::forward) struct Change {
    service: Arc<str>,
    authority: Box<str>,
    method: Method,
    target: Uri,
}

impl Change {
    /// On `service`, the port that the caller addresses. `None` for what changes nothing.
    pub(in crate::forward) fn of<B>(service: &Arc<str>, request: &Request<B>) -> Option<Box<Self>> {
        if request.method().is_safe() {
            return None;
        }
        Some(Box::new(Self {
            service: service.clone(),
            authority: authority_of(request).into(),
            method: request.method().clone(),
            target: request.uri().clone(),
        }))
    }

    /// Makes void what is kept, by whatever policy, for what the response says has changed.
    pub(in crate::forward) fn takes_effect<B>(&self, snapshot: &Snapshot, response: &Response<B>) {
        if !invalidation::is_change(&self.method, response.status()) {
            return;
        }
        for path in invalidation::void(&self.authority, &self.target, response.headers()) {
            for cache in snapshot.caches.values() {
                cache.remove(&self.service, &path);
            }
        }
    }
}

/// Whom a request is for.
pub(super) fn authority_of<B>(request: &Request<B>) -> &str {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = request.uri().authority().map(|authority| authority.as_str());
    authority.or(host).unwrap_or_default()
}
