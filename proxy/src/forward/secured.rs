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

#[cfg(test)]
mod tests {
    use leno_api::model::{
        peer_authentication::TlsMode, service::Protocol, traffic_policy::Settings,
    };

    use super::*;
    use crate::{
        cluster::{Cluster, ClusterKey},
        telemetry::scope::ScopeLabels,
        tls::fixture,
    };

    fn inbound() -> Arc<Inbound> {
        let address = "127.0.0.1:9001".parse().unwrap();
        let cluster = Cluster {
            key: ClusterKey::Application(ObjectName::new("shop", "orders"), address),
            name: "inbound:9001".into(),
            destination: None,
            protocol: Protocol::Http,
            settings: Arc::new(Settings::default()),
            endpoints: Vec::new().into(),
            scope: Scope::new(ScopeLabels::default()),
            state: Arc::default(),
        };
        let port = InboundPort {
            destination: "shop/orders:80".into(),
            protocol: Protocol::Http,
            cluster: cluster.into(),
            address,
            mode: TlsMode::Strict,
            guards: None,
            plugins: None,
            limits: Box::default(),
        };
        let mut inbound = Inbound::default();
        inbound.by_destination.insert("shop/orders:80".into(), port.into());
        inbound.into()
    }

    fn secured(destination: Option<(ObjectName, u16)>) -> Secured {
        let id = fixture::id("shop", "users");
        let peer = Peer { principal: id.principal().into(), id, not_after: 0 };
        Secured::new(peer.into(), &fixture::id("shop", "orders"), destination, None)
    }

    #[test]
    fn the_port_is_found_once_for_each_configuration() {
        let secured = secured(Some((ObjectName::new("shop", "orders"), 80)));
        let first = inbound();
        let (port, scope) = secured.port(&first).unwrap();
        let proven = scope.labels().proven.clone().unwrap();
        assert_eq!(proven.source.as_deref(), Some("spiffe://cluster.local/ns/shop/sa/users"));
        let (again, same) = secured.port(&first).unwrap();
        assert!(Arc::ptr_eq(&port, &again) && Arc::ptr_eq(&scope, &same));
        let next = inbound();
        let (other, _) = secured.port(&next).unwrap();
        assert!(Arc::ptr_eq(&other, &next.by_destination["shop/orders:80"]));
        drop((port, again, first));
        assert!(secured.port(&Arc::default()).is_none(), "a port that is gone is gone");
    }

    #[test]
    fn a_name_of_nobody_is_no_port() {
        assert!(secured(None).port(&inbound()).is_none());
        let elsewhere = secured(Some((ObjectName::new("shop", "orders"), 81)));
        assert!(elsewhere.port(&inbound()).is_none());
    }

    #[test]
    fn the_application_is_told_in_envoys_form() {
        let certificate = secured(None).certificate.unwrap();
        assert_eq!(
            certificate,
            "By=spiffe://cluster.local/ns/shop/sa/orders;URI=spiffe://cluster.local/ns/shop/sa/users"
        );
    }
}
