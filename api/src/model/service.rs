//! `Service`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use serde_json::Value;

pub use crate::spec::service::Protocol;
use crate::{
    Metadata, Path,
    invalid::Problems,
    model::{
        Host, Model, ObjectName,
        backend::port_number,
        name::{check_label, check_label_pair, check_subdomain},
        workload::Workload,
    },
    resource::read,
    spec::service as raw,
};

const MAX_PORTS: usize = 64;
const MAX_HOSTS: usize = 64;
const MAX_LABELS: usize = 16;
const MAX_ADDRESSES: usize = 64;

/// A name that callers use.
#[derive(Clone, Debug)]
pub struct Service {
    /// Which one.
    pub name: ObjectName,
    /// Names beside `<name>.<namespace>`; wildcards possible.
    pub hosts: Vec<Host>,
    /// At least one; names and numbers are unique.
    pub ports: Vec<ServicePort>,
    /// Virtual addresses, each once. Callers in any namespace mean this service by them.
    pub addresses: Vec<IpAddr>,
    /// Of what it is a part. On the heap, since most are none.
    pub subset: Option<Box<Subset>>,
}

/// Those workloads of a service that have some labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subset {
    /// Whose; of the same namespace, never the service itself.
    pub of: ObjectName,
    /// At least one; a workload must have all of them.
    pub labels: BTreeMap<String, String>,
}

impl Subset {
    /// Whether `workload`, one of the whole service's, is in it.
    pub fn has(&self, workload: &Workload) -> bool {
        self.labels.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
    }
}

/// Says which services are parts of others.
pub trait Subsets {
    /// Of what `service` is a part, and which.
    fn subset(&self, service: &ObjectName) -> Option<&Subset>;
}

impl Subsets for BTreeMap<ObjectName, Arc<Service>> {
    fn subset(&self, service: &ObjectName) -> Option<&Subset> {
        self.get(service)?.subset.as_deref()
    }
}

impl Subsets for HashMap<ObjectName, &Service> {
    fn subset(&self, service: &ObjectName) -> Option<&Subset> {
        self.get(service)?.subset.as_deref()
    }
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
    /// names are `hosts`, `<name>.<namespace>` with Kubernetes' suffixes, `<name>` within the namespace, and `addresses`.
    pub fn answers_to(&self, host: &str, namespace: &str) -> bool {
        let own = host == &*self.name.name && namespace == &*self.name.namespace;
        own || self.is_qualified(host)
            || self.is_at(host)
            || self.hosts.iter().any(|named| {
                named.matches(host) && (host.contains('.') || namespace == &*self.name.namespace)
            })
    }

    /// Whether a caller of its own namespace may mean this service by a name that `hostname` stands for.
    pub fn may_answer_to(&self, hostname: &Host) -> bool {
        let Some(suffix) = hostname.as_str().strip_prefix('*') else {
            return self.answers_to(hostname.as_str(), &self.name.namespace);
        };
        let ObjectName { namespace, name } = &self.name;
        let own = ["", ".svc", ".svc.cluster.local"];
        own.iter().any(|end| hostname.matches(&format!("{name}.{namespace}{end}")))
            || self.hosts.iter().any(|host| match host.as_str().strip_prefix('*') {
                Some(other) => suffix.ends_with(other) || other.ends_with(suffix),
                None => hostname.matches(host.as_str()),
            })
    }

    fn is_at(&self, host: &str) -> bool {
        // Few have any, and most hosts are names.
        !self.addresses.is_empty()
            && host.parse().is_ok_and(|address: IpAddr| self.addresses.contains(&address))
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
    let addresses = parse_addresses(&at.field("addresses"), &raw.addresses, problems);
    let name = ObjectName::of(metadata);
    let subset =
        raw.subset.map(|raw| parse_subset(&at.field("subset"), raw, &name, problems).into());
    Some(Model::Service(Service { name, hosts, ports, addresses, subset }.into()))
}

fn parse_addresses(at: &Path<'_>, raw: &[String], problems: &mut Problems) -> Vec<IpAddr> {
    if raw.len() > MAX_ADDRESSES {
        let count = raw.len();
        problems.add(at, format!("has {count} entries; at most {MAX_ADDRESSES} are allowed"));
    }
    let mut addresses = Vec::with_capacity(raw.len().min(MAX_ADDRESSES));
    for (i, text) in raw.iter().enumerate() {
        match parse_address(text) {
            Ok(address) if addresses.contains(&address) => {
                problems.add(at.index(i), format!("`{text}` is used twice"));
            }
            Ok(address) => addresses.push(address),
            Err(why) => problems.add(at.index(i), format!("`{text}` {why}")),
        }
    }
    addresses
}

fn parse_address(text: &str) -> Result<IpAddr, &'static str> {
    let address: IpAddr = text.parse().map_err(|_| "is not an IP address")?;
    match address.to_canonical() {
        address if address.is_unspecified() || address.is_multicast() => {
            Err("is not the address of anything one can connect to")
        }
        address if address.is_loopback() => {
            Err("is each caller's own; connections to it do not leave the machine")
        }
        address => Ok(address),
    }
}

fn parse_subset(
    at: &Path<'_>,
    raw: raw::Subset,
    own: &ObjectName,
    problems: &mut Problems,
) -> Subset {
    let of = ObjectName::new(&own.namespace, &raw.of);
    problems.take(&at.field("of"), check_subdomain(&raw.of));
    if of == *own {
        problems.add(at.field("of"), "must be another service: a service is no part of itself");
    }
    let here = at.field("matchLabels");
    if raw.match_labels.is_empty() || raw.match_labels.len() > MAX_LABELS {
        problems.add(here, format!("must have 1 to {MAX_LABELS} entries"));
    }
    for (key, value) in &raw.match_labels {
        problems.take(&here.field(key), check_label_pair(key, value));
    }
    Subset { of, labels: raw.match_labels }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{Resource, model::Model};

    fn parse(subset: &serde_json::Value) -> Result<Resource, String> {
        let service = json!({
            "apiVersion": "leno.dev/v1alpha1", "kind": "Service",
            "metadata": {"name": "orders-v2", "namespace": "shop"},
            "spec": {"ports": [{"port": 80}], "subset": subset},
        });
        Resource::from_json(service).map_err(|error| error.to_string())
    }

    #[test]
    fn addresses_are_virtual_ones() {
        let parse = |addresses: &serde_json::Value| {
            let service = json!({
                "apiVersion": "leno.dev/v1alpha1", "kind": "Service",
                "metadata": {"name": "orders", "namespace": "shop"},
                "spec": {"ports": [{"port": 80}], "addresses": addresses},
            });
            Resource::from_json(service).map_err(|error| error.to_string())
        };
        let Model::Service(service) = parse(&json!(["10.96.0.7", "FD00:0::7"])).unwrap().model
        else {
            unreachable!()
        };
        for host in ["10.96.0.7", "fd00::7"] {
            assert!(service.answers_to(host, "elsewhere"), "{host}");
        }
        assert!(!service.answers_to("10.96.0.8", "shop"));
        for (addresses, part) in [
            (json!(["orders"]), "spec.addresses[0]: `orders` is not an IP address"),
            (json!(["10.0.0.1", "::ffff:10.0.0.1"]), "spec.addresses[1]"),
            (json!(["127.0.0.1"]), "spec.addresses[0]"),
            (json!(["0.0.0.0"]), "spec.addresses[0]"),
            (json!(["224.0.0.1"]), "spec.addresses[0]"),
            (json!(vec!["10.0.0.1"; 65]), "at most 64"),
        ] {
            let error = parse(&addresses).unwrap_err();
            assert!(error.contains(part), "{addresses}: {error}");
        }
    }

    #[test]
    fn a_hostname_may_stand_for_names_of_the_service() {
        let service = json!({
            "apiVersion": "leno.dev/v1alpha1", "kind": "Service",
            "metadata": {"name": "orders", "namespace": "shop"},
            "spec": {"ports": [{"port": 80}], "hosts": ["o.example.com", "*.a.example.com"]},
        });
        let Model::Service(service) = Resource::from_json(service).unwrap().model else {
            unreachable!()
        };
        for (hostname, expected) in [
            ("orders", true),
            ("orders.shop", true),
            ("orders.shop.svc.cluster.local", true),
            ("O.example.com", true),
            ("x.a.example.com", true),
            ("*.example.com", true),
            ("*.b.a.example.com", true),
            ("*.shop", true),
            ("users.shop", false),
            ("p.example.com", false),
            ("*.example.org", false),
        ] {
            let hostname = crate::model::Host::parse(hostname).unwrap();
            assert_eq!(service.may_answer_to(&hostname), expected, "{hostname}");
        }
    }

    #[test]
    fn a_subset_is_of_another_service_by_labels() {
        let good = json!({"of": "orders", "matchLabels": {"version": "v2", "tier": "a"}});
        let Model::Service(service) = parse(&good).unwrap().model else { unreachable!() };
        let subset = service.subset.as_ref().unwrap();
        assert_eq!(subset.of.to_string(), "shop/orders");
        let has = |labels: serde_json::Value| {
            let workload = json!({
                "apiVersion": "leno.dev/v1alpha1", "kind": "Workload",
                "metadata": {"name": "orders-1", "namespace": "shop", "labels": labels},
                "spec": {"services": ["orders"], "address": "10.0.0.1", "ports": {"default": 80}},
            });
            let Model::Workload(workload) = Resource::from_json(workload).unwrap().model else {
                unreachable!()
            };
            subset.has(&workload)
        };
        assert!(has(json!({"version": "v2", "tier": "a", "x": "y"})));
        assert!(!has(json!({"version": "v2"})) && !has(json!({"version": "v1", "tier": "a"})));
        assert!(!has(json!({})));
    }

    #[test]
    fn what_is_no_subset_is_told_so() {
        let table = [
            (json!({"of": "orders-v2", "matchLabels": {"a": "b"}}), "spec.subset.of"),
            (json!({"of": "Orders/x", "matchLabels": {"a": "b"}}), "spec.subset.of"),
            (json!({"of": "orders", "matchLabels": {}}), "spec.subset.matchLabels"),
            (json!({"of": "orders", "matchLabels": {"a b": "c"}}), "spec.subset.matchLabels"),
            (json!({"of": "orders"}), "matchLabels"),
            (json!({"of": "orders", "matchLabels": {"a": "b"}, "port": 1}), "port"),
        ];
        for (subset, place) in table {
            let error = parse(&subset).unwrap_err();
            assert!(error.contains(place), "{subset}: {error}");
        }
    }
}
