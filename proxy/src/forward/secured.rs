//! What mutual TLS has proven of a downstream connection, and what follows from it for every request on it.

use std::{
    cell::RefCell,
    sync::{Arc, Weak},
};

use http::HeaderValue;
use leno_api::model::{ObjectName, identity::SpiffeId};

use crate::{
    snapshot::{Inbound, InboundPort},
    telemetry::scope::Scope,
    tls::Peer,
};

/// A downstream connection under mutual TLS.
#[derive(Debug)]
pub struct Secured {
    /// Who calls.
    pub peer: Arc<Peer>,
    /// The caller as `spiffe://...`.
    pub id: Arc<str>,
    /// Who we have proven to be, the same way.
    pub own: Arc<str>,
    /// The port that the server name means, `shop/orders:80`; `None` where it has none of the mesh's form.
    pub destination: Option<Box<str>>,
    /// The TLS server name, if there was one.
    pub server_name: Option<Box<str>>,
    /// The caller as the application is told, in Envoy's form; `None` only if it could not be a header.
    pub certificate: Option<HeaderValue>,
    found: RefCell<Option<Found>>,
}

/// The last answer: it holds as long as the configuration does.
#[derive(Debug)]
struct Found {
    /// Weak, lest an idle connection keep what is no longer in force.
    inbound: Weak<Inbound>,
    port: Weak<InboundPort>,
    scope: Arc<Scope>,
}

impl Secured {
    /// A connection from `peer`, to whom we proved to be `own`.
    pub fn new(
        peer: Arc<Peer>,
        own: &SpiffeId,
        destination: Option<(ObjectName, u16)>,
        server_name: Option<String>,
    ) -> Self {
        let (id, own) = (peer.id.to_string(), own.to_string());
        Self {
            certificate: HeaderValue::try_from(format!("By={own};URI={id}")).ok(),
            peer,
            id: id.into(),
            own: own.into(),
            destination: destination.map(|(name, port)| format!("{name}:{port}").into()),
            server_name: server_name.map(String::into_boxed_str),
            found: RefCell::default(),
        }
    }

    /// The port that the caller means, and whom to count it for.
    pub fn port(&self, inbound: &Arc<Inbound>) -> Option<(Arc<InboundPort>, Arc<Scope>)> {
        let mut found = self.found.borrow_mut();
        if let Some(found) = &*found
            && std::ptr::eq(found.inbound.as_ptr(), Arc::as_ptr(inbound))
            && let Some(port) = found.port.upgrade()
        {
            return Some((port, found.scope.clone()));
        }
        let port = inbound.by_destination.get(self.destination.as_deref()?)?.clone();
        let cluster = &port.cluster;
        let scope = cluster.state.callers.scope(&cluster.scope, &self.id, &self.own);
        *found = Some(Found {
            inbound: Arc::downgrade(inbound),
            port: Arc::downgrade(&port),
            scope: scope.clone(),
        });
        Some((port, scope))
    }
}
