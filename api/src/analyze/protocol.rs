//! Policies about requests for ports on which there are none: Leno does not look into the bytes of a `tcp` port.

use std::collections::HashMap;

use super::Finding;
use crate::{
    Resource,
    model::{
        Model, ObjectName,
        service::{Protocol, Service},
        traffic_policy::{HashKey, Settings, Target},
    },
};

/// Targets where the policy, or a part of it, has no effect because of what is spoken there.
pub(super) fn find_unfit(
    resources: &[Resource],
    services: &HashMap<ObjectName, &Service>,
    found: &mut Vec<Finding>,
) {
    for resource in resources {
        let (targets, lost): (Vec<&Target>, _) = match &resource.model {
            Model::TrafficPolicy(policy) => {
                (policy.targets.iter().collect(), needs_requests(&policy.settings))
            }
            Model::RateLimitPolicy(policy) => {
                (policy.targets.iter().collect(), vec!["spec.limits"])
            }
            Model::FaultPolicy(policy) => (policy.targets.iter().collect(), vec!["spec.rules"]),
            Model::CachePolicy(policy) => (policy.services().collect(), vec!["spec.targetRefs"]),
            _ => continue,
        };
        for target in targets {
            let Some(service) = services.get(&target.service) else { continue };
            let Some(ports) = bytes_only(service, target) else { continue };
            for path in &lost {
                let message = format!(
                    "is about requests, and {ports} of Service {} takes plain bytes (tcp), so it has no effect there",
                    service.name
                );
                found.push(Finding { key: resource.key(), path: (*path).to_owned(), message });
            }
        }
    }
}

/// What is said of requests and cannot be done with connections.
fn needs_requests(settings: &Settings) -> Vec<&'static str> {
    let keys = settings.balancer.keys();
    let hashes = !keys.is_empty() && !keys.contains(&HashKey::SourceIp);
    let parts = [
        ("spec.balancer", hashes),
        ("spec.timeouts.request", !settings.request_timeout.is_zero()),
        ("spec.timeouts.attempt", !settings.attempt_timeout.is_zero()),
        ("spec.breaker.slowCalls", settings.circuit.slow_calls.is_some()),
        ("spec.hedging", settings.hedging.is_some()),
        ("spec.adaptiveConcurrency", settings.adaptive_concurrency.is_some()),
    ];
    parts.into_iter().filter(|(_, set)| *set).map(|(path, _)| path).collect()
}

/// What is meant by `target`, where nothing of it is more than bytes: "port `db`", "every port".
fn bytes_only(service: &Service, target: &Target) -> Option<String> {
    let meant = |name: &str| target.section.as_deref().is_none_or(|section| section == name);
    let mut ports = service.ports.iter().filter(|port| meant(&port.name)).peekable();
    ports.peek()?;
    ports.all(|port| port.protocol == Protocol::Tcp).then(|| match &target.section {
        Some(section) => format!("port `{section}`"),
        None => "every port".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{Resource, analyze};

    fn findings(kind: &str, section: Option<&str>, fields: &[(&str, Value)]) -> Vec<String> {
        let mut target = json!({"kind": "Service", "name": "orders"});
        if let Some(section) = section {
            target["sectionName"] = json!(section);
        }
        let mut spec = json!({"targetRefs": [target]});
        for (field, value) in fields {
            spec[*field] = value.clone();
        }
        let object = |kind: &str, spec: Value| json!({"apiVersion": "leno.dev/v1alpha1", "kind": kind, "metadata": {"name": "orders"}, "spec": spec});
        let ports = json!([
            {"name": "db", "port": 5432, "protocol": "tcp"}, {"name": "http", "port": 80},
        ]);
        let objects = [object("Service", json!({"ports": ports})), object(kind, spec)];
        let resources = objects.map(|object| Resource::from_json(object).unwrap());
        let found = analyze::findings(&resources);
        found.into_iter().map(|finding| format!("{}: {}", finding.path, finding.message)).collect()
    }

    #[test]
    fn what_is_about_requests_does_nothing_on_a_port_of_bytes() {
        let limits = [("limits", json!([{"name": "a", "requests": 1, "per": "1s"}]))];
        let rules = [("rules", json!([{"delay": "1s"}]))];
        let message = "is about requests, and port `db` of Service default/orders takes plain bytes (tcp), so it has \
                       no effect there";
        let found = findings("RateLimitPolicy", Some("db"), &limits);
        assert_eq!(found, [format!("spec.limits: {message}")]);
        let found = findings("FaultPolicy", Some("db"), &rules);
        assert_eq!(found, [format!("spec.rules: {message}")]);
        for section in [None, Some("http")] {
            assert_eq!(findings("RateLimitPolicy", section, &limits), Vec::<String>::new());
            assert_eq!(findings("FaultPolicy", section, &rules), Vec::<String>::new());
        }
    }

    #[test]
    fn of_a_traffic_policy_the_part_is_named() {
        let hash =
            |key: &str, value: Value| ("balancer", json!({"maglev": {"hashOn": [{key: value}]}}));
        let rows: [(_, &[&str]); 5] = [
            (vec![], &[]),
            (vec![hash("sourceIp", json!({})), ("breaker", json!({"errorRate": {}}))], &[]),
            (vec![hash("header", json!({"name": "x"}))], &["spec.balancer"]),
            (
                vec![
                    ("hedging", json!({"p95": {}})),
                    ("timeouts", json!({"idle": "1s", "request": "1s"})),
                ],
                &["spec.timeouts.request", "spec.hedging"],
            ),
            (
                vec![("adaptiveConcurrency", json!({})), ("breaker", json!({"slowCalls": {}}))],
                &["spec.breaker.slowCalls", "spec.adaptiveConcurrency"],
            ),
        ];
        for (fields, paths) in rows {
            let found = findings("TrafficPolicy", Some("db"), &fields);
            let found: Vec<_> = found.iter().filter_map(|text| text.split(':').next()).collect();
            assert_eq!(found, paths, "{fields:?}");
            assert!(findings("TrafficPolicy", Some("http"), &fields).is_empty());
        }
    }
}
