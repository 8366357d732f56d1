//! Ports of our own application.

use std::{collections::hash_map::Entry, net::SocketAddr, sync::Arc};

use leno_api::model::{
    ObjectName,
    applies::Applies,
    peer_authentication::TlsMode,
    service::{Protocol, Service, ServicePort},
    traffic_policy::Settings,
    workload::Workload,
};
use rustc_hash::FxHashMap;

use super::{Clusters, Inputs, Own, Slots, limits, plugins};
use crate::{
    cluster::{Cluster, ClusterKey, Endpoint, State},
    filter::{authz::Policies, jwt::Jwt},
    snapshot::{Guards, Inbound, InboundPort, Undeclared},
    telemetry::scope::{Scope, ScopeLabels},
};

/// A service that our own workload serves, and the parts of it that the workload is in: callers reach those as the whole.
pub(super) struct Served<'a> {
    service: &'a Service,
    parts: Vec<&'a Service>,
}

impl<'a> Served<'a> {
    pub(super) fn all(&self) -> impl Iterator<Item = &'a Service> {
        [self.service].into_iter().chain(self.parts.iter().copied())
    }
}

/// Every port of every service that our own workload serves. Clusters that are no longer needed are removed.
pub(super) fn build(
    previous: &Inbound,
    inputs: &Inputs,
    own: &Own,
    slots: &Slots,
    clusters: &mut Clusters,
) -> Inbound {
    let mut inbound = Inbound::default();
    let mut ports: Vec<Arc<InboundPort>> = Vec::new();
    let mut used = Vec::new();
    // Nobody proves anything to a proxy that can prove nothing; a policy that asks for it holds all the same.
    let default = if own.proof.expected { TlsMode::Strict } else { TlsMode::Disable };
    if let Some(workload) = &own.workload {
        for service in workload.services.iter().filter_map(|name| inputs.services().get(name)) {
            let parts = inputs.parts_of(&service.name, workload).map(|part| &**part);
            let served = Served { service, parts: parts.collect() };
            for service in served.all() {
                limits::hold(&mut inbound.limits, &previous.limits, inputs, service);
            }
            for port in &service.ports {
                let Some(number) = workload.app_port(&service.name.name, &port.name) else {
                    continue;
                };
                let address = SocketAddr::new(own.application, number);
                let key = ClusterKey::Application(service.name.clone(), address);
                let cluster = match clusters.get(&key).filter(|_| used.contains(&key)) {
                    // Another port of the service leads to the same place; the first decides.
                    Some(same) => same.clone(),
                    None => application(clusters, (&served, address), port, inputs, own),
                };
                used.push(key);
                let destination: Arc<str> = format!("{}:{}", service.name, port.port).into();
                let mode = inputs.tls_mode(workload, service, port).unwrap_or(default);
                let old = previous.by_destination.get(&*destination);
                let reached = Some((&service.name, &*port.name));
                let old = old.and_then(|old| old.guards.as_ref());
                let guards = guards(old, inputs, own, workload, (reached, number));
                let protocol = port.protocol;
                let at = (&**service, port, number);
                let plugins = plugins::inbound(inputs, slots, workload, at);
                let limits = limits::of(inputs, &served, port, &inbound.limits);
                let built = InboundPort {
                    destination,
                    protocol,
                    cluster,
                    address,
                    mode,
                    guards,
                    limits,
                    plugins,
                };
                ports.push(register(&mut inbound, service, port.port, built, own));
            }
        }
    }
    inbound.by_port = by_port(&ports);
    inbound.undeclared = own
        .workload
        .as_ref()
        .map(|workload| undeclared(previous.undeclared.as_ref(), inputs, own, workload, default));
    clusters.retain(|key, _| !matches!(key, ClusterKey::Application(..)) || used.contains(key));
    inbound.only_http = only(&ports, |port| port.protocol != Protocol::Tcp);
    inbound.only_tcp = only(&ports, |port| matches!(port.protocol, Protocol::Tcp | Protocol::Auto));
    inbound.tls = own.proof.expected || ports.iter().any(|port| port.mode != TlsMode::Disable);
    inbound.only_tls = !ports.is_empty() && ports.iter().all(|port| port.mode == TlsMode::Strict);
    inbound
}

fn register(
    inbound: &mut Inbound,
    service: &Service,
    number: u16,
    port: InboundPort,
    own: &Own,
) -> Arc<InboundPort> {
    let port = Arc::new(port);
    inbound.by_destination.insert((*port.destination).into(), port.clone());
    let (name, namespace) = (&service.name.name, &service.name.namespace);
    let own_name = (**namespace == *own.namespace).then(|| name.to_string());
    let qualified =
        ["", ".svc", ".svc.cluster.local"].map(|suffix| format!("{name}.{namespace}{suffix}"));
    let listed = service
        .hosts
        .iter()
        .filter(|host| !host.is_wildcard())
        .map(|host| host.as_str().to_owned());
    for host in own_name.into_iter().chain(qualified).chain(listed) {
        inbound.by_host.entry((host.into(), number)).or_insert_with(|| port.clone());
    }
    port
}

/// The one port (by the application's address) for which `condition` holds, if it is one only.
fn only(
    ports: &[Arc<InboundPort>],
    condition: impl Fn(&InboundPort) -> bool,
) -> Option<Arc<InboundPort>> {
    let mut fitting = ports.iter().filter(|port| condition(port));
    let first = fitting.next()?;
    fitting.all(|port| port.address == first.address).then(|| first.clone())
}

/// Ports by their number: of several that lead to the same place the one that takes least, else the first.
fn by_port(ports: &[Arc<InboundPort>]) -> FxHashMap<u16, Arc<InboundPort>> {
    let mut found: FxHashMap<u16, Arc<InboundPort>> = FxHashMap::default();
    for port in ports {
        match found.entry(port.address.port()) {
            Entry::Vacant(place) => _ = place.insert(port.clone()),
            Entry::Occupied(mut place) => {
                if port.mode == TlsMode::Strict && place.get().mode != TlsMode::Strict {
                    place.insert(port.clone());
                }
            }
        }
    }
    found
}

/// What holds at ports that no service has: policies for the workload, its namespace or the mesh.
fn undeclared(
    old: Option<&Undeclared>,
    inputs: &Inputs,
    own: &Own,
    workload: &Workload,
    default: TlsMode,
) -> Undeclared {
    // No application has a port 0: this is what is said of none in particular.
    let mode = |port| inputs.tls_mode_undeclared(workload, port).unwrap_or(default);
    let ports = inputs.tls_mode_ports(&workload.name.namespace);
    let old = old.and_then(|old| old.guards.as_ref());
    Undeclared {
        mode: mode(0),
        modes: ports.map(|port| (port, mode(port))).collect(),
        guards: guards(old, inputs, own, workload, (None, 0)),
    }
}

/// What the policies for a port of our application, `reached` under a service port or under none, make of it.
fn guards(
    old: Option<&Arc<Guards>>,
    inputs: &Inputs,
    own: &Own,
    workload: &Workload,
    (reached, number): (Option<(&ObjectName, &str)>, u16),
) -> Option<Arc<Guards>> {
    let namespace = &workload.name.namespace;
    let covers = |policy: &ObjectName, applies: &Applies| {
        applies.covers_port(&policy.namespace, workload, reached, number, inputs.services())
    };
    let authz = inputs.authorization_policies(namespace);
    let authz: Vec<_> =
        authz.filter(|policy| covers(&policy.name, &policy.applies)).cloned().collect();
    let jwt = inputs.request_authentications(namespace);
    let jwt: Vec<_> = jwt.filter(|policy| covers(&policy.name, &policy.applies)).cloned().collect();
    if authz.is_empty() && jwt.is_empty() {
        return None;
    }
    let kept = old.filter(|old| is_same(&old.policies.0, &jwt) && is_same(&old.policies.1, &authz));
    Some(kept.cloned().unwrap_or_else(|| {
        Arc::new(Guards {
            jwt: Jwt::compile(jwt.iter().map(|policy| &**policy), &own.issuer_keys),
            authz: Policies::compile(authz.iter().cloned()),
            policies: (jwt, authz),
        })
    }))
}

fn is_same<T>(one: &[Arc<T>], other: &[Arc<T>]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| Arc::ptr_eq(one, other))
}

/// The application's port at an address, as an instance of a service that is reached under `port`.
fn application(
    clusters: &mut Clusters,
    (served, address): (&Served<'_>, SocketAddr),
    port: &ServicePort,
    inputs: &Inputs,
    own: &Own,
) -> Arc<Cluster> {
    let service = served.service;
    let labels = ScopeLabels {
        reporter: "destination",
        destination: own.party.clone(),
        service: Some((service.name.namespace.clone(), service.name.name.clone())),
        destination_zone: own
            .workload
            .as_ref()
            .and_then(|workload| workload.zone.as_deref())
            .unwrap_or_default()
            .into(),
        ..ScopeLabels::default()
    };
    let key = ClusterKey::Application(service.name.clone(), address);
    let settings = Arc::new(own_settings(&served_settings(inputs, served, port)));
    let old = clusters.get(&key).filter(|old| *old.scope.labels() == labels);
    if let Some(same) = old
        && same.protocol == port.protocol
        && same.settings == settings
    {
        return same.clone();
    }
    let cluster = Arc::new(match old {
        // What is known of the application, and who works at it, stays.
        Some(old) => Cluster {
            name: old.name.clone(),
            key: key.clone(),
            destination: None,
            protocol: port.protocol,
            settings,
            endpoints: old.endpoints.iter().cloned().collect::<Vec<_>>().into(),
            scope: old.scope.clone(),
            state: old.state.clone(),
        },
        None => {
            let scope = Scope::new(labels);
            let endpoint = Endpoint::own(own.party.workload.clone(), address, scope.clone());
            Cluster {
                name: key.to_string().into(),
                key: key.clone(),
                destination: None,
                protocol: port.protocol,
                settings,
                endpoints: vec![endpoint].into(),
                scope,
                state: Arc::new(State::default()),
            }
        }
    });
    clusters.insert(key, cluster.clone());
    cluster
}

/// What is said of the port: of the service, or of the first part of it for which adaptive concurrency is asked. Other
/// settings for a part are for callers, and must not take from the application what protects it.
fn served_settings(inputs: &Inputs, served: &Served<'_>, port: &ServicePort) -> Arc<Settings> {
    let of = |service: &Service| inputs.settings_of(&service.name, &port.name);
    let mut parts = served.parts.iter().map(|part| of(part));
    let adaptive = parts.find(|settings| settings.adaptive_concurrency.is_some());
    adaptive.unwrap_or_else(|| of(served.service))
}

/// What of a policy concerns the sidecar that serves: how much the application is given at once (and the path of its
/// health checks, which go first), and how long a connection may take to be made or be idle. The rest is for callers;
/// here only the process is protected.
fn own_settings(policy: &Settings) -> Settings {
    Settings {
        adaptive_concurrency: policy.adaptive_concurrency.clone(),
        health_check: policy.health_check.clone(),
        connect_timeout: policy.connect_timeout,
        idle_timeout: policy.idle_timeout,
        max_connections: 65_536,
        max_pending: 65_536,
        ..Settings::default()
    }
}
