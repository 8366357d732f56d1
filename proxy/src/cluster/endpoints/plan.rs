//! Endpoints that nobody has called yet: what they are made of.

use std::sync::Arc;

use leno_api::model::{
    identity::{SpiffeId, TrustDomain},
    traffic_policy::Settings,
    workload::Workload,
};

use crate::{
    cluster::{Calling, Endpoint, Security, Unproven},
    tls::client::Target,
};

/// What the endpoints of a cluster are made of when the first of them is wanted. A proxy may know ten thousand and call
/// a few.
#[derive(Debug)]
pub struct Plan {
    /// Who calls them.
    pub calling: Arc<Calling>,
    /// In a stable order.
    pub places: Box<[Place]>,
    /// What those with mutual TLS are called there; `None` where the name is too long for TLS, or none has it.
    pub server: Option<Box<Server>>,
    /// The policy in force.
    pub settings: Arc<Settings>,
    /// Where the caller is.
    pub zone: Option<Arc<str>>,
}

/// Where requests can go.
#[derive(Debug)]
pub struct Place {
    /// Who is there.
    pub workload: Arc<Workload>,
    /// The sidecar's where there is one, the application's otherwise.
    pub port: u16,
    /// Whether a sidecar answers there.
    pub via_sidecar: bool,
    /// How connections to it are secured.
    pub secured: Secured,
}

/// How connections are secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secured {
    /// Not at all.
    Plain,
    /// Mutual TLS is due, but there was no certificate since the start.
    Uncertified,
    /// Mutual TLS.
    Mutual,
}

/// Who servers have to prove to be.
#[derive(Debug)]
pub struct Server {
    /// As part of which service: the name that TLS asks for.
    pub name: String,
    /// Everybody's.
    pub trust_domain: TrustDomain,
}

impl Plan {
    /// The endpoints. `known` is the one of before at a place; it stays where it is the same, and what was found out about
    /// it in any case.
    pub(super) fn make<'a>(
        &self,
        known: impl Fn(&Place) -> Option<&'a Arc<Endpoint>>,
    ) -> Vec<Arc<Endpoint>> {
        let mut expected = None;
        let make = |place: &Place| {
            let known = known(place);
            let vitals = known.and_then(|known| known.known_vitals().cloned());
            let security = self.security(place, &mut expected);
            let (workload, calling) = (place.workload.clone(), self.calling.clone());
            let (port, via_sidecar) = (place.port, place.via_sidecar);
            let new = Endpoint::new(workload, calling, port, via_sidecar, security, vitals);
            known.filter(|known| known.is_same(&new)).map_or(new, Arc::clone)
        };
        self.places.iter().map(make).collect()
    }

    /// How connections to `place` are secured. `last` is whom the endpoint before this one had to be: mostly the same, and
    /// kept once.
    fn security(&self, place: &Place, last: &mut Option<SpiffeId>) -> Security {
        match place.secured {
            Secured::Plain => return Security::Plain,
            Secured::Uncertified => return Security::Unavailable(Unproven::NoCertificate),
            Secured::Mutual => {}
        }
        let target = self.server.as_ref().and_then(|server| {
            let workload = &place.workload;
            let (namespace, account) = (&workload.name.namespace, &workload.service_account);
            let is_same =
                |id: &SpiffeId| id.namespace == *namespace && *id.service_account == **account;
            let new = || SpiffeId::new(&server.trust_domain, namespace, account);
            let expected = last.take().filter(is_same).unwrap_or_else(new);
            *last = Some(expected.clone());
            Target::new(&server.name, expected)
        });
        match target {
            Some(target) => Security::Mutual(target.into()),
            None => Security::Unavailable(Unproven::LongName),
        }
    }
}
