//! Ports of our own application.

use std::{net::SocketAddr, sync::Arc};

use leno_api::model::{
    service::{Protocol, Service, ServicePort},
    traffic_policy::Settings,
};

use super::{Clusters, Inputs, Own};
use crate::{
    cluster::{Cluster, ClusterKey, Endpoint, State},
    snapshot::{Inbound, InboundPort},
    telemetry::metrics::{Party, Scope, ScopeLabels},
};

/// Every port of every service that our own workload serves. Clusters that are no longer needed are removed.
pub(super) fn build(inputs: &Inputs, own: &Own, clusters: &mut Clusters) -> Inbound {
    let mut inbound = Inbound::default();
    let mut ports: Vec<Arc<InboundPort>> = Vec::new();
    let mut used = Vec::new();
    if let Some(workload) = &own.workload {
        for service in workload.services.iter().filter_map(|name| inputs.services().get(name)) {
            for port in &service.ports {
                let Some(number) = workload.app_port(&port.name) else { continue };
                let address = SocketAddr::new(own.application, number);
                let cluster = application(clusters, address, service, port, own);
                used.push(cluster.key.clone());
                let destination: Arc<str> = format!("{}:{}", service.name, port.port).into();
                let built = InboundPort { destination, protocol: port.protocol, cluster, address };
                ports.push(register(&mut inbound, service, port.port, built, own));
            }
        }
    }
    clusters.retain(|key, _| !matches!(key, ClusterKey::Application(..)) || used.contains(key));
    inbound.only_http = only(&ports, |port| port.protocol != Protocol::Tcp);
    inbound.only_tcp = only(&ports, |port| matches!(port.protocol, Protocol::Tcp | Protocol::Auto));
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

fn application(
    clusters: &mut Clusters,
    address: SocketAddr,
    service: &Service,
    port: &ServicePort,
    own: &Own,
) -> Arc<Cluster> {
    let key = ClusterKey::Application(service.name.clone(), address);
    let labels = ScopeLabels {
        reporter: "destination",
        source: Party::default(),
        destination: own.party.clone(),
        service: Some((service.name.namespace.clone(), service.name.name.clone())),
        destination_zone: own
            .workload
            .as_ref()
            .and_then(|workload| workload.zone.clone())
            .unwrap_or_default(),
    };
    if let Some(same) = clusters.get(&key)
        && *same.scope.labels() == labels
        && same.protocol == port.protocol
    {
        return same.clone();
    }
    let scope = Scope::new(labels);
    let endpoint = Endpoint::new(own.party.workload.clone(), address, false, 1, scope.clone());
    // The application's own limits are for the policies of its callers; here only the process is protected.
    let settings = Settings { max_connections: 65_536, max_pending: 65_536, ..Settings::default() };
    let cluster = Arc::new(Cluster {
        name: key.to_string().into(),
        key: key.clone(),
        destination: None,
        protocol: port.protocol,
        settings,
        endpoints: Box::new([endpoint]),
        even: true,
        scope,
        state: Arc::new(State::default()),
    });
    clusters.insert(key, cluster.clone());
    cluster
}
