//! `Workload`.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use serde_json::Value;

use crate::{
    Metadata, Path,
    invalid::Problems,
    model::{
        Model, ObjectName,
        backend::port_number,
        name::{check_label, check_subdomain},
    },
    resource::read,
    spec::workload as raw,
};

/// Annotation with which a workload is kept only as long as it is renewed: `leno.dev/lease: 15s`.
pub const LEASE_ANNOTATION: &str = "leno.dev/lease";
const MAX_WEIGHT: i64 = 1000;
const MAX_SERVICES: usize = 64;

/// One running instance. What instances of a service usually have in common can be shared between them
/// ([`Workload::share`]): a proxy may know ten thousand.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Which one.
    pub name: ObjectName,
    /// The services it serves.
    pub services: Arc<[ObjectName]>,
    /// Where it listens.
    pub address: IpAddr,
    /// The application's ports by the name of the service port.
    pub ports: Arc<BTreeMap<String, u16>>,
    /// Inbound port of the sidecar beside it.
    pub sidecar_port: Option<u16>,
    /// Whether that sidecar takes mutual TLS.
    pub sidecar_tls: bool,
    /// Identity.
    pub service_account: String,
    /// Failure domain.
    pub zone: Option<String>,
    /// 0 to 1,000; 0 takes no traffic.
    pub weight: u32,
    /// For subsets and metrics.
    pub labels: Arc<BTreeMap<String, String>>,
}

impl Workload {
    /// Takes over from `sibling` what both say alike, so that it is kept once.
    pub fn share(&mut self, sibling: &Self) {
        if self.name.namespace == sibling.name.namespace {
            self.name.namespace = sibling.name.namespace.clone();
        }
        if self.services == sibling.services {
            self.services = sibling.services.clone();
        }
        if self.ports == sibling.ports {
            self.ports = sibling.ports.clone();
        }
        if self.labels == sibling.labels {
            self.labels = sibling.labels.clone();
        }
    }

    /// The application's port behind the service port `name`: the one of that name, or the only one there is.
    pub fn app_port(&self, name: &str) -> Option<u16> {
        let only =
            || (self.ports.len() == 1).then(|| self.ports.values().next().copied()).flatten();
        self.ports.get(name).copied().or_else(only)
    }
}

pub(crate) fn parse(spec: Value, metadata: &Metadata, problems: &mut Problems) -> Option<Model> {
    let at = Path::root("spec");
    let raw: raw::WorkloadSpec = read(&at, spec, problems)?;
    let name = ObjectName::of(metadata);
    let address = raw.address.parse::<IpAddr>().map_err(|_| {
        format!(
            "`{}` is not an IP address; a workload is one instance, so name its address",
            raw.address
        )
    });
    let address = problems.take(&at.field("address"), address);
    let services_at = at.field("services");
    if raw.services.len() > MAX_SERVICES {
        problems.add(services_at, format!("at most {MAX_SERVICES} are allowed"));
    }
    let mut services = Vec::new();
    for (i, service) in raw.services.iter().enumerate() {
        if problems.take(&services_at.index(i), check_subdomain(service)).is_some() {
            let namespace = name.namespace.clone();
            services.push(ObjectName { namespace, name: service.as_str().into() });
        }
    }
    let ports = parse_ports(&at.field("ports"), &raw.ports, problems);
    let sidecar_at = at.field("sidecar");
    let sidecar_tls = raw.sidecar.as_ref().is_some_and(|sidecar| sidecar.mutual_tls);
    let sidecar_port = raw
        .sidecar
        .and_then(|sidecar| port_number(&sidecar_at.field("port"), sidecar.port, problems));
    let service_account = raw.service_account.unwrap_or_else(|| "default".to_owned());
    problems.take(&at.field("serviceAccount"), check_subdomain(&service_account));
    let weight = raw.weight.unwrap_or(1);
    if !(0..=MAX_WEIGHT).contains(&weight) {
        problems.add(at.field("weight"), format!("must be 0 to {MAX_WEIGHT}"));
    }
    Some(Model::Workload(
        Workload {
            services: services.into(),
            address: address?,
            ports: ports.into(),
            sidecar_port,
            sidecar_tls,
            service_account,
            zone: raw.zone,
            weight: u32::try_from(weight).unwrap_or(0),
            labels: metadata.labels.clone().into(),
            name,
        }
        .into(),
    ))
}

fn parse_ports(
    at: &Path<'_>,
    raw: &BTreeMap<String, i64>,
    problems: &mut Problems,
) -> BTreeMap<String, u16> {
    let mut ports = BTreeMap::new();
    for (name, number) in raw {
        let here = at.field(name);
        if problems.take(&here, check_label(name)).is_none() {
            continue;
        }
        if let Some(number) = port_number(&here, *number, problems) {
            ports.insert(name.clone(), number);
        }
    }
    ports
}
