//! What workloads listen at, beside the services that they serve; and parts of parts.

use std::collections::BTreeSet;

use super::{Finding, Services};
use crate::{
    Resource,
    model::{Model, service::Service, workload::Workload},
};

/// Ports of services that a workload has nothing for, ports of workloads that no service means, and parts of services
/// that are parts themselves.
pub(super) fn find_unserved(
    resources: &[Resource],
    services: &Services<'_>,
    found: &mut Vec<Finding>,
) {
    for resource in resources {
        let mut note = |path: String, message: String| {
            found.push(Finding { key: resource.key(), path, message });
        };
        match &resource.model {
            Model::Workload(workload) => {
                let served = workload.services.iter().enumerate();
                let served: Vec<_> =
                    served.filter_map(|(i, name)| Some((i, *services.get(name)?))).collect();
                for (i, service) in &served {
                    for message in without_port(workload, service) {
                        note(format!("spec.services[{i}]"), message);
                    }
                }
                // Of what is not there nobody knows the ports.
                if !served.is_empty() && served.len() == workload.services.len() {
                    for name in unused(workload, served.iter().map(|(_, service)| *service)) {
                        let message = "no service that it serves has a port of that name, so nobody is sent there";
                        note(format!("spec.ports.{name}"), message.to_owned());
                    }
                }
            }
            Model::Service(service) => {
                let Some(subset) = &service.subset else { continue };
                let whole = services.get(&subset.of);
                if whole.is_some_and(|whole| whole.subset.is_some()) {
                    let message = format!(
                        "Service {} is itself a part of another; nobody is sent there; name the whole",
                        subset.of
                    );
                    note("spec.subset.of".to_owned(), message);
                }
            }
            _ => {}
        }
    }
}

fn without_port(workload: &Workload, service: &Service) -> impl Iterator<Item = String> {
    let name = &service.name;
    let missing = service.ports.iter().filter(|port| {
        service.subset.is_none() && workload.app_port(&name.name, &port.name).is_none()
    });
    missing.map(move |port| {
        let port = &port.name;
        format!("has a port `{port}` for which spec.ports says nothing, so it is not served here; add `{port}`")
    })
}

/// Ports that are not found under any port of these services.
fn unused<'a>(
    workload: &Workload,
    services: impl Iterator<Item = &'a Service>,
) -> BTreeSet<&String> {
    let mut unused: BTreeSet<&String> = workload.ports.keys().collect();
    for service in services {
        for port in &service.ports {
            if let Some(name) = workload.port_name(&service.name.name, &port.name) {
                unused.remove(name);
            }
        }
    }
    unused
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{Resource, analyze};

    fn object(kind: &str, name: &str, spec: &Value) -> Resource {
        let object = json!({
            "apiVersion": "leno.dev/v1alpha1", "kind": kind, "spec": spec,
            "metadata": {"name": name, "namespace": "shop"},
        });
        Resource::from_json(object).unwrap()
    }

    fn findings(services: &Value, ports: &Value) -> Vec<String> {
        let both = json!({"ports": [{"name": "http", "port": 80}, {"name": "admin", "port": 81}]});
        let resources = [
            object("Service", "orders", &both),
            object("Service", "users", &json!({"ports": [{"name": "http", "port": 80}]})),
            object(
                "Workload",
                "w",
                &json!({"services": services, "address": "10.0.0.1", "ports": ports}),
            ),
        ];
        let found = analyze::findings(&resources);
        found.into_iter().map(|finding| format!("{} {}", finding.path, finding.message)).collect()
    }

    #[test]
    fn ports_of_services_and_of_workloads_belong_together() {
        let rows: [(Value, Value, &[&str]); 8] = [
            (json!(["users"]), json!({"http": 1}), &[]),
            // The only one there is serves under any name.
            (json!(["users"]), json!({"other": 1}), &[]),
            (json!(["orders"]), json!({"http": 1, "admin": 2}), &[]),
            (json!(["users"]), json!({"http": 1, "htpp": 2}), &["spec.ports.htpp no service"]),
            (
                json!(["orders"]),
                json!({"http": 1, "amdin": 2}),
                &["spec.services[0] has a port `admin`", "spec.ports.amdin no service"],
            ),
            (
                json!(["orders", "users"]),
                json!({"http": 1, "orders.admin": 2, "user.http": 3}),
                &["spec.ports.user.http no service"],
            ),
            // What that service has nobody knows.
            (
                json!(["users", "gone"]),
                json!({"http": 1, "x": 2}),
                &["spec.services[1] there is no"],
            ),
            (json!([]), json!({"http": 1, "x": 2}), &[]),
        ];
        for (services, ports, expected) in rows {
            let found = findings(&services, &ports);
            assert_eq!(found.len(), expected.len(), "{services} {ports}: {found:?}");
            for (found, start) in found.iter().zip(expected) {
                assert!(found.starts_with(start), "{services} {ports}: {found}");
            }
        }
    }

    #[test]
    fn a_part_of_a_part_is_nobody() {
        let part = |of: &str| json!({"ports": [{"name": "http", "port": 80}], "subset": {"of": of, "matchLabels": {"a": "b"}}});
        let whole = object("Service", "orders", &json!({"ports": [{"name": "http", "port": 80}]}));
        let (one, two) =
            (object("Service", "one", &part("orders")), object("Service", "two", &part("one")));
        let found = analyze::findings(&[whole, one, two]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((&*found[0].key.name.name, &*found[0].path), ("two", "spec.subset.of"));
        assert!(found[0].message.contains("Service shop/one is itself a part"));
    }
}
