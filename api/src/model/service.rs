//! `Service`.

use std::collections::BTreeSet;

use serde_json::Value;

pub use crate::spec::service::Protocol;
use crate::{
    Metadata, Path,
    invalid::Problems,
    model::{Host, Model, ObjectName, backend::port_number, name::check_label},
    resource::read,
    spec::service as raw,
};

const MAX_PORTS: usize = 64;
const MAX_HOSTS: usize = 64;

/// A name that callers use.
#[derive(Clone, Debug)]
pub struct Service {
    /// Which one.
    pub name: ObjectName,
    /// Names beside `<name>.<namespace>`; wildcards possible.
    pub hosts: Vec<Host>,
    /// At least one; names and numbers are unique.
    pub ports: Vec<ServicePort>,
}

/// A port as callers see it.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// Unique within the service.
    pub name: String,
    /// Number.
    pub port: u16,
    /// What is spoken there.
    pub protocol: Protocol,
}

impl Service {
    /// The port with this number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.port == number)
    }

    /// The port a reference means: the named number, or the only one there is.
    pub fn resolve_port(&self, number: Option<u16>) -> Option<&ServicePort> {
        match number {
            Some(number) => self.port(number),
            None if self.ports.len() == 1 => self.ports.first(),
            None => None,
        }
    }

    /// Whether `host` (lower case, without port), said by a caller in `namespace`, means this service. The
    /// names are `hosts`, `<name>.<namespace>` with Kubernetes' suffixes, and `<name>` within the namespace.
    pub fn answers_to(&self, host: &str, namespace: &str) -> bool {
        let own = host == &*self.name.name && namespace == &*self.name.namespace;
        own || self.is_qualified(host)
            || self.hosts.iter().any(|named| {
                named.matches(host) && (host.contains('.') || namespace == &*self.name.namespace)
            })
    }

    fn is_qualified(&self, host: &str) -> bool {
        let rest = host
            .strip_prefix(&*self.name.name)
            .and_then(|rest| rest.strip_prefix('.'))
            .and_then(|rest| rest.strip_prefix(&*self.name.namespace));
        matches!(rest, Some("" | ".svc" | ".svc.cluster.local"))
    }
}

pub(crate) fn parse(spec: Value, metadata: &Metadata, problems: &mut Problems) -> Option<Model> {
    let at = Path::root("spec");
    let raw: raw::ServiceSpec = read(&at, spec, problems)?;
    let hosts_at = at.field("hosts");
    if raw.hosts.len() > MAX_HOSTS {
        problems.add(
            hosts_at,
            format!("has {} entries; at most {MAX_HOSTS} are allowed", raw.hosts.len()),
        );
    }
    let hosts = raw.hosts.iter().enumerate();
    let hosts = hosts
        .filter_map(|(i, host)| problems.take(&hosts_at.index(i), Host::parse(host)))
        .collect();
    let ports = parse_ports(&at.field("ports"), raw.ports, problems);
    let service = Service { name: ObjectName::of(metadata), hosts, ports };
    Some(Model::Service(service.into()))
}

fn parse_ports(
    at: &Path<'_>,
    raw: Vec<raw::ServicePort>,
    problems: &mut Problems,
) -> Vec<ServicePort> {
    if raw.is_empty() || raw.len() > MAX_PORTS {
        problems.add(at, format!("must have 1 to {MAX_PORTS} entries"));
    }
    let several = raw.len() > 1;
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    let mut ports = Vec::with_capacity(raw.len().min(MAX_PORTS));
    for (i, raw) in raw.into_iter().enumerate() {
        let here = at.index(i);
        let number = port_number(&here.field("port"), raw.port, problems);
        let name = match raw.name {
            Some(name) => problems.take(&here.field("name"), check_label(&name)).map(|()| name),
            None if several => {
                problems.add(here.field("name"), "is needed when a service has more than one port");
                None
            }
            None => Some("default".to_owned()),
        };
        let (Some(port), Some(name)) = (number, name) else { continue };
        if !names.insert(name.clone()) {
            problems.add(here.field("name"), format!("`{name}` is used twice"));
        }
        if !numbers.insert(port) {
            problems.add(here.field("port"), format!("{port} is used twice"));
        }
        ports.push(ServicePort { name, port, protocol: raw.protocol });
    }
    ports
}
