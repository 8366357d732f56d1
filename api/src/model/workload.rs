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

/// One running instance. A proxy may know ten thousand: what those of a service mostly have in common is kept apart, so
/// that it can be shared between them ([`Workload::share`]).
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Which one.
    pub name: ObjectName,
    /// Where it listens.
    pub address: IpAddr,
    /// All that is not its own.
    pub shape: Arc<Shape>,
}

/// What instances of a service mostly say alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// The services it serves.
    pub services: Arc<[ObjectName]>,
    /// The application's ports by the name of the service port, or by `<service>.<port>` where services that it serves
    /// mean different ones by the same name.
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

impl std::ops::Deref for Workload {
    type Target = Shape;

    fn deref(&self) -> &Shape {
        &self.shape
    }
}

impl Workload {
    /// Takes over from `sibling` what both say alike, so that it is kept once.
    pub fn share(&mut self, sibling: &Self) {
        if self.name.namespace == sibling.name.namespace {
            self.name.namespace = sibling.name.namespace.clone();
        }
        if self.shape == sibling.shape {
            self.shape = sibling.shape.clone();
            return;
        }
        let shape = Arc::make_mut(&mut self.shape);
        if shape.services == sibling.services {
            shape.services = sibling.services.clone();
        }
        if shape.ports == sibling.ports {
            shape.ports = sibling.ports.clone();
        }
        if shape.labels == sibling.labels {
            shape.labels = sibling.labels.clone();
        }
    }

    /// The application's port behind the port `name` of `service`: the one that is named for that service
    /// (`<service>.<name>`), else the one of that name, else the only one there is.
    pub fn app_port(&self, service: &str, name: &str) -> Option<u16> {
        self.ports.get(self.port_name(service, name)?).copied()
    }

    /// Under which name that port stands here.
    pub fn port_name(&self, service: &str, name: &str) -> Option<&String> {
        let mut names = self.ports.keys();
        let qualified = names.find(|key| key.rsplit_once('.') == Some((service, name)));
        let same = || self.ports.get_key_value(name).map(|(key, _)| key);
        let only = || self.ports.keys().next().filter(|_| self.ports.len() == 1);
        qualified.or_else(same).or_else(only)
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
            name,
            address: address?,
            shape: Arc::new(Shape {
                services: services.into(),
                ports: ports.into(),
                sidecar_port,
                sidecar_tls,
                service_account,
                zone: raw.zone,
                weight: u32::try_from(weight).unwrap_or(0),
                labels: metadata.labels.clone().into(),
            }),
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
        let (service, label) = name
            .rsplit_once('.')
            .map_or((None, &**name), |(service, label)| (Some(service), label));
        let named = service.map_or(Ok(()), check_subdomain).and_then(|()| check_label(label));
        if problems.take(&here, named).is_none() {
            continue;
        }
        if let Some(number) = port_number(&here, *number, problems) {
            ports.insert(name.clone(), number);
        }
    }
    ports
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::Resource;

    fn parse(ports: &Value) -> Result<Arc<Workload>, String> {
        let object = json!({
            "apiVersion": "leno.dev/v1alpha1", "kind": "Workload",
            "metadata": {"name": "orders-1", "namespace": "shop"},
            "spec": {"services": ["orders", "admin.orders"], "address": "10.0.0.1", "ports": ports},
        });
        let resource = Resource::from_json(object).map_err(|invalid| invalid.to_string())?;
        let Model::Workload(workload) = resource.model else { unreachable!() };
        Ok(workload)
    }

    #[test]
    fn services_may_mean_different_ports_by_one_name() {
        let ports = json!({"orders.http": 1, "admin.orders.http": 2, "http": 3, "grpc": 4});
        let workload = parse(&ports).unwrap();
        for (service, name, port) in [
            ("orders", "http", Some(1)),
            ("admin.orders", "http", Some(2)),
            ("other", "http", Some(3)),
            ("orders", "grpc", Some(4)),
            ("orders", "tcp", None),
        ] {
            assert_eq!(workload.app_port(service, name), port, "{service} {name}");
        }
        let only = parse(&json!({"http": 7})).unwrap();
        assert_eq!(only.app_port("orders", "whatever"), Some(7));
    }

    #[test]
    fn instances_share_what_they_say_alike() {
        let (one, other) = (parse(&json!({"http": 1})), parse(&json!({"http": 1})));
        let (one, mut other) = (one.unwrap(), (*other.unwrap()).clone());
        assert!(!Arc::ptr_eq(&one.shape, &other.shape));
        other.share(&one);
        assert!(Arc::ptr_eq(&one.shape, &other.shape));
        let mut another = (*parse(&json!({"http": 2})).unwrap()).clone();
        another.share(&one);
        assert!(Arc::ptr_eq(&one.services, &another.services), "part of it");
        assert_eq!((one.ports["http"], another.ports["http"]), (1, 2));
    }

    #[test]
    fn a_port_has_a_name() {
        for name in ["a b", ".http", "orders.", "Orders.http", "orders..http", ""] {
            assert!(parse(&json!({name: 1})).unwrap_err().contains("spec.ports"), "{name}");
        }
    }
}
