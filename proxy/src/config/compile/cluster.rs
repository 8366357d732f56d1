//! Clusters of a service: one per port.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use http::HeaderValue;
use leno_api::model::{
    ObjectName,
    identity::SpiffeId,
    peer_authentication::TlsMode,
    service::{Service, ServicePort},
    workload::Workload,
};

use super::{Clusters, Inputs, Own};
use crate::{
    cluster::{
        Calling, Cluster, ClusterKey, Endpoint, Security, State, Unproven, endpoints::Endpoints,
    },
    telemetry::scope::{Scope, ScopeLabels},
    tls::client::Target,
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
    let known: HashMap<_, &Arc<Endpoint>> = old
        .into_iter()
        .flat_map(|old| old.endpoints.iter())
        .filter_map(|endpoint| Some((endpoint.place()?, endpoint)))
        .collect();
    let mut endpoints = Vec::new();
    let whole = whole(service, port, inputs);
    let part = |workload: &&Arc<Workload>| {
        workload.weight > 0 && service.subset.as_ref().is_none_or(|subset| subset.has(workload))
    };
    let workloads = whole.iter().flat_map(|(whole, _)| inputs.workloads_of(&whole.name));
    let mut expected = None;
    for (workload, (whole, port)) in workloads.filter(part).zip(whole.iter().cycle()) {
        let Some((at, via_sidecar)) = reached_at(workload, whole, port) else { continue };
        let security = security(workload, (whole, port), inputs, own, &mut expected);
        let place = (&workload.name, SocketAddr::new(workload.address, at));
        let known = known.get(&place).copied();
        let vitals = known.and_then(|known| known.known_vitals().cloned());
        let (workload, calling) = (workload.clone(), calling.clone());
        let new = Endpoint::new(workload, calling, at, via_sidecar, security, vitals);
        let kept = known.filter(|known| known.is_same(&new));
        endpoints.push(kept.map_or(new, Arc::clone));
    }
    let settings = inputs.settings_of(&service.name, &port.name);
    let zone = own.zone.as_deref();
    let endpoints = Endpoints::new(endpoints, &settings, zone, old.map(|old| &old.endpoints));
    let unreached = || ScopeLabels {
        reporter: "source",
        source: calling.source.clone(),
        service: Some(calling.service.clone()),
        ..ScopeLabels::default()
    };
    Arc::new(Cluster {
        key: key.clone(),
        name: key.to_string().into(),
        destination: whole.and_then(|(whole, port)| {
            HeaderValue::from_str(&format!("{}:{}", whole.name, port.port)).ok()
        }),
        protocol: port.protocol,
        settings,
        endpoints,
        scope: old.map_or_else(|| Scope::new(unreached()), |old| old.scope.clone()),
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

/// How connections to `workload` for that port are secured. `last` is whom the endpoint before this one had to be:
/// mostly the same, and kept once.
fn security(
    workload: &Workload,
    (service, port): (&Service, &ServicePort),
    inputs: &Inputs,
    own: &Own,
    last: &mut Option<SpiffeId>,
) -> Security {
    let due = own.proof.expected && workload.sidecar_port.is_some() && workload.sidecar_tls;
    if !due || inputs.tls_mode(workload, service, port) == Some(TlsMode::Disable) {
        return Security::Plain;
    }
    let Some(trust_domain) = &own.proof.trust_domain else {
        return Security::Unavailable(Unproven::NoCertificate);
    };
    let (namespace, account) = (&workload.name.namespace, &workload.service_account);
    let is_same = |id: &SpiffeId| id.namespace == *namespace && *id.service_account == **account;
    let same = last.take().filter(is_same);
    let expected = same.unwrap_or_else(|| SpiffeId::new(trust_domain, namespace, account));
    *last = Some(expected.clone());
    leno_api::destination::server_name(&service.name, port.port)
        .and_then(|name| Target::new(&name, expected))
        .map_or(Security::Unavailable(Unproven::LongName), |target| Security::Mutual(target.into()))
}
