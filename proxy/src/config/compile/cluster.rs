//! Clusters of a service: one per port.

use std::{collections::HashMap, sync::Arc};

use http::HeaderValue;
use leno_api::model::{
    ObjectName,
    peer_authentication::TlsMode,
    service::{Service, ServicePort},
    workload::Workload,
};

use super::{Clusters, Inputs, Own};
use crate::cluster::{
    Calling, Cluster, ClusterKey, State,
    endpoints::{
        Endpoints,
        plan::{Place, Plan, Secured, Server},
    },
};

/// Replaces the clusters of `service` in `clusters` by what the inputs say now.
pub(super) fn rebuild(clusters: &mut Clusters, inputs: &Inputs, service: &ObjectName, own: &Own) {
    let first = ClusterKey::Service(service.clone(), 0);
    let last = ClusterKey::Service(service.clone(), u16::MAX);
    let old: Vec<_> = clusters.range(first..=last).map(|(key, _)| key.clone()).collect();
    let old: HashMap<_, _> =
        old.into_iter().filter_map(|key| clusters.remove_entry(&key)).collect();
    let Some(service) = inputs.services().get(service) else { return };
    for port in &service.ports {
        let key = ClusterKey::Service(service.name.clone(), port.port);
        let cluster = build(&key, service, port, inputs, own, old.get(&key));
        clusters.insert(key, cluster);
    }
}

fn build(
    key: &ClusterKey,
    service: &Service,
    port: &ServicePort,
    inputs: &Inputs,
    own: &Own,
    old: Option<&Arc<Cluster>>,
) -> Arc<Cluster> {
    let calling = Arc::new(Calling {
        source: own.party.clone(),
        service: (service.name.namespace.clone(), service.name.name.clone()),
        id: own.proof.id.clone(),
    });
    let whole = whole(service, port, inputs);
    let part = |workload: &&Arc<Workload>| {
        workload.weight > 0 && service.subset.as_ref().is_none_or(|subset| subset.has(workload))
    };
    let workloads = whole.iter().flat_map(|(whole, _)| inputs.workloads_of(&whole.name));
    let workloads = workloads.filter(part).zip(whole.iter().cycle());
    let places = workloads.filter_map(|(workload, (whole, port))| {
        let (at, via_sidecar) = reached_at(workload, whole, port)?;
        let secured = secured(workload, (whole, port), inputs, own);
        Some(Place { workload: workload.clone(), port: at, via_sidecar, secured })
    });
    let places: Box<[Place]> = places.collect();
    let settings = inputs.settings_of(&service.name, &port.name);
    let plan = Plan {
        calling: calling.clone(),
        server: whole.and_then(|whole| server(whole, &places, own)),
        places,
        settings: settings.clone(),
        zone: own.zone.clone(),
    };
    Arc::new(Cluster {
        key: key.clone(),
        name: key.to_string().into(),
        destination: whole.and_then(|(whole, port)| {
            HeaderValue::from_str(&format!("{}:{}", whole.name, port.port)).ok()
        }),
        protocol: port.protocol,
        settings,
        endpoints: Endpoints::planned(plan, old.map(|old| &old.endpoints)),
        calling: Some(calling),
        state: old.map_or_else(|| Arc::new(State::default()), |old| old.state.clone()),
    })
}

/// Whose workloads are called, and under which port: of a subset the whole service, as which they know themselves.
fn whole<'a>(
    service: &'a Service,
    port: &'a ServicePort,
    inputs: &'a Inputs,
) -> Option<(&'a Service, &'a ServicePort)> {
    let Some(subset) = &service.subset else { return Some((service, port)) };
    let whole = inputs.services().get(&subset.of).filter(|whole| whole.subset.is_none())?;
    let port = whole.ports.iter().find(|found| found.name == port.name)?;
    Some((whole, port))
}

/// The port to which callers connect, and whether it is the sidecar's: where there is none it is the application's.
fn reached_at(workload: &Workload, service: &Service, port: &ServicePort) -> Option<(u16, bool)> {
    let application = || workload.app_port(&service.name.name, &port.name);
    match workload.sidecar_port {
        Some(sidecar) => Some((sidecar, true)),
        None => Some((application()?, false)),
    }
}

/// How connections to `workload` for that port are secured.
fn secured(
    workload: &Workload,
    (service, port): (&Service, &ServicePort),
    inputs: &Inputs,
    own: &Own,
) -> Secured {
    let due = own.proof.expected && workload.sidecar_port.is_some() && workload.sidecar_tls;
    if !due || inputs.tls_mode(workload, service, port) == Some(TlsMode::Disable) {
        return Secured::Plain;
    }
    match own.proof.trust_domain {
        Some(_) => Secured::Mutual,
        None => Secured::Uncertified,
    }
}

/// What those of `places` that have mutual TLS are called there.
fn server(
    (service, port): (&Service, &ServicePort),
    places: &[Place],
    own: &Own,
) -> Option<Box<Server>> {
    if places.iter().all(|place| place.secured != Secured::Mutual) {
        return None;
    }
    let name = leno_api::destination::server_name(&service.name, port.port)?;
    let trust_domain = own.proof.trust_domain.clone()?;
    Some(Box::new(Server { name, trust_domain }))
}
