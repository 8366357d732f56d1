use serde_json::json;

use super::*;
use crate::Resource;

fn object(spec: &Value) -> Value {
    json!({
        "apiVersion": "leno.dev/v1alpha1", "kind": "WasmPlugin", "spec": spec,
        "metadata": {"name": "tag", "namespace": "shop"},
    })
}

fn plugin(spec: &Value) -> Arc<WasmPlugin> {
    match Resource::from_json(object(spec)).unwrap().model {
        Model::WasmPlugin(plugin) => plugin,
        other => panic!("{other:?}"),
    }
}

/// No service is a part of another.
fn none() -> std::collections::BTreeMap<ObjectName, std::sync::Arc<crate::model::service::Service>>
{
    std::collections::BTreeMap::new()
}

fn workload(namespace: &str) -> Arc<Workload> {
    let object = json!({
        "apiVersion": "leno.dev/v1alpha1", "kind": "Workload",
        "metadata": {"name": "orders-1", "namespace": namespace, "labels": {"app": "orders"}},
        "spec": {"services": ["orders"], "address": "127.0.0.1", "ports": {"http": 9001}},
    });
    match Resource::from_json(object).unwrap().model {
        Model::Workload(workload) => workload,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_left_out_has_safe_defaults() {
    let plugin = plugin(&json!({"url": "file:///tag.wasm"}));
    assert_eq!((plugin.phase, plugin.priority), (Phase::Unspecified, 0));
    assert_eq!(plugin.matches, [Match { server: true, client: false, ports: vec![] }]);
    assert_eq!((plugin.kind, plugin.failure), (PluginType::Http, FailurePolicy::Closed));
    assert_eq!(plugin.limits.memory_bytes, 64 << 20);
    assert_eq!(plugin.limits.deadline, Duration::from_millis(50));
    assert_eq!(plugin.limits.start_deadline, Duration::from_secs(2));
    assert!(plugin.configuration.is_empty() && plugin.environment.is_empty());
    assert!(plugin.capabilities.is_none() && plugin.canary.is_none() && plugin.sha256.is_none());
}

#[test]
fn istio_spellings_mean_the_same() {
    let plugin = plugin(&json!({
        "url": "oci://ghcr.io/tag:v1", "phase": "UNSPECIFIED_PHASE", "type": "UNSPECIFIED_PLUGIN_TYPE",
        "failurePolicy": "FAIL_OPEN", "match": [{"mode": "CLIENT", "ports": [{"number": 80}]}],
        "vmConfig": {"env": [{"name": "A", "valueFrom": "INLINE", "value": "b"}], "vmId": "v"},
    }));
    assert_eq!((plugin.kind, plugin.failure), (PluginType::Http, FailurePolicy::Open));
    assert_eq!(plugin.matches, [Match { server: false, client: true, ports: vec![80] }]);
    assert_eq!(plugin.environment, [("A".to_owned(), "b".to_owned())]);
    assert_eq!(plugin.vm_id, "v");
}

#[test]
fn a_configuration_is_its_json_and_a_string_its_bare_text() {
    let configured = |config: Value| {
        let plugin = plugin(&json!({"url": "file:///a", "pluginConfig": config}));
        String::from_utf8(plugin.configuration.to_vec()).unwrap()
    };
    assert_eq!(configured(json!({"b": [1, "x"]})), r#"{"b":[1,"x"]}"#);
    assert_eq!(configured(json!("a \"b\"\n")), "a \"b\"\n");
    assert_eq!(configured(json!(null)), "");
    assert_eq!(configured(json!(7)), "7");
}

#[test]
fn broken_rules_are_named_with_their_path() {
    let file = "file:///a";
    let rows = [
        (json!({"url": "https://h/a"}), "spec.sha256", "is needed"),
        (json!({"url": "http://h/a"}), "spec.sha256", "is needed"),
        (json!({"url": file, "sha256": "ab"}), "spec.sha256", "64 hexadecimal"),
        (json!({"url": "https://me@h/a", "sha256": "0".repeat(64)}), "spec.url", "password"),
        (json!({}), "spec", "missing field `url`"),
        (json!({"url": file, "phase": "authn"}), "spec.phase", "unknown variant"),
        (json!({"url": file, "priority": 3_000_000_000_i64}), "spec.priority", "2147483647"),
        (json!({"url": file, "match": []}), "spec.match", "is empty"),
        (
            json!({"url": file, "match": [{"ports": [{"number": 0}]}]}),
            "spec.match[0].ports[0].number",
            "1 to 65535",
        ),
        (json!({"url": file, "pluginName": "x".repeat(257)}), "spec.pluginName", "at most 256"),
        (
            json!({"url": file, "vmConfig": {"env": [{"name": "A=B"}]}}),
            "spec.vmConfig.env[0].name",
            "without `=`",
        ),
        (
            json!({"url": file, "vmConfig": {"env": [{"name": "A"}, {"name": "A"}]}}),
            "spec.vmConfig.env[1].name",
            "is there already",
        ),
        (
            json!({"url": file, "vmConfig": {"env": [{"name": "A", "value": "x".repeat(4097)}]}}),
            "spec.vmConfig.env[0].value",
            "at most 4096",
        ),
        (
            json!({"url": file, "vmConfig": {"env": [{"name": "A", "valueFrom": "HOST"}]}}),
            "spec.vmConfig.env[0].valueFrom",
            "unknown variant",
        ),
        (
            json!({"url": file, "vmConfig": {"vmId": "x".repeat(257)}}),
            "spec.vmConfig.vmId",
            "at most 256",
        ),
        (json!({"url": file, "limits": {"memory": "64"}}), "spec.limits.memory", "1Mi to 1Gi"),
        (json!({"url": file, "limits": {"memory": "2Gi"}}), "spec.limits.memory", "1Mi to 1Gi"),
        (json!({"url": file, "limits": {"deadline": "0s"}}), "spec.limits.deadline", "1ms to 1s"),
        (
            json!({"url": file, "limits": {"startDeadline": "1m"}}),
            "spec.limits.startDeadline",
            "1ms to 30s",
        ),
        (json!({"url": file, "capabilities": ["proxy_lag"]}), "spec.capabilities", "`proxy_lag`"),
        (json!({"url": file, "capabilities": ["system"]}), "spec.capabilities", "`system`"),
        (json!({"url": file, "canary": {"percent": 100}}), "spec.canary.percent", "1 to 99"),
        (
            json!({"url": file, "canary": {"maxFailurePercent": 101}}),
            "spec.canary.maxFailurePercent",
            "0 to 100",
        ),
        (json!({"url": file, "canary": {"window": "1ms"}}), "spec.canary.window", "1s to 24h"),
        (
            json!({"url": file, "selector": {}, "targetRefs": []}),
            "spec.targetRefs",
            "exclude each other",
        ),
    ];
    for (spec, path, message) in rows {
        let problems = Resource::from_json(object(&spec)).expect_err(&spec.to_string()).problems;
        let hit = problems.iter().any(|p| p.path == path && p.message.contains(message));
        assert!(hit, "{spec}: {problems:#?}");
    }
}

#[test]
fn no_capabilities_are_not_all_of_them() {
    let plugin = plugin(&json!({"url": "file:///a", "capabilities": []}));
    assert_eq!(plugin.capabilities, Some(BTreeSet::new()));
}

#[test]
fn sides_and_ports_decide_what_a_plugin_sees() {
    let orders = ObjectName::new("shop", "orders");
    let (shop, other) = (workload("shop"), workload("other"));
    let sees = |scope: Value, mode: &str, ports: Value, number: u16, workload: &Workload| {
        let mut spec = json!({"url": "file:///a", "match": [{"mode": mode}]});
        if ports != json!(null) {
            spec["match"][0]["ports"] = ports;
        }
        spec.as_object_mut().unwrap().extend(scope.as_object().unwrap().clone());
        let plugin = plugin(&spec);
        let at = (&orders, "http", number);
        let namespace = &workload.name.namespace;
        (
            plugin.covers_server(workload, at, 9001, &none()),
            plugin.covers_client(namespace, Some(workload), at, &none()),
        )
    };
    let (all, service, section) = (
        json!({}),
        json!({"targetRefs": [{"kind": "Service", "name": "orders"}]}),
        json!({"targetRefs": [{"kind": "Service", "name": "orders", "sectionName": "grpc"}]}),
    );
    let labels = json!({"selector": {"matchLabels": {"app": "orders"}}});
    let ports = json!([{"number": 80}]);
    for (scope, mode, ports, number, workload, expected) in [
        (&all, "SERVER", json!(null), 80, &shop, (true, false)),
        (&all, "CLIENT", json!(null), 80, &shop, (false, true)),
        (&all, "CLIENT_AND_SERVER", json!(null), 80, &shop, (true, true)),
        (&all, "CLIENT_AND_SERVER", json!(null), 80, &other, (false, false)),
        (&all, "CLIENT_AND_SERVER", ports.clone(), 80, &shop, (true, true)),
        (&all, "CLIENT_AND_SERVER", ports, 81, &shop, (false, false)),
        (&labels, "CLIENT_AND_SERVER", json!(null), 80, &shop, (true, true)),
        (&labels, "CLIENT_AND_SERVER", json!(null), 80, &other, (false, false)),
        // Whoever calls the service, from wherever.
        (&service, "CLIENT_AND_SERVER", json!(null), 80, &shop, (true, true)),
        (&service, "CLIENT_AND_SERVER", json!(null), 80, &other, (false, true)),
        (&section, "CLIENT_AND_SERVER", json!(null), 80, &shop, (false, false)),
    ] {
        let seen = sees(scope.clone(), mode, ports, number, workload);
        assert_eq!(seen, expected, "{scope} {mode} {number} {}", workload.name);
    }
}

#[test]
fn a_proxy_without_a_workload_has_no_labels() {
    let orders = ObjectName::new("shop", "orders");
    let at = (&orders, "http", 80);
    let all = plugin(&json!({"url": "file:///a", "match": [{"mode": "CLIENT"}]}));
    assert!(
        all.covers_client("shop", None, at, &none())
            && !all.covers_client("other", None, at, &none())
    );
    let chosen = plugin(&json!({
        "url": "file:///a", "match": [{"mode": "CLIENT"}], "selector": {"matchLabels": {"app": "orders"}},
    }));
    assert!(!chosen.covers_client("shop", None, at, &none()));
}

#[test]
fn phase_then_priority_then_age_then_name_decide_the_order() {
    let plugin = |phase: &str, priority: i32, created: Option<&str>, name: &str| {
        let mut object = object(&json!({"url": "file:///a", "phase": phase, "priority": priority}));
        object["metadata"]["name"] = name.into();
        if let Some(created) = created {
            object["metadata"]["creationTimestamp"] = created.into();
        }
        match Resource::from_json(object).unwrap().model {
            Model::WasmPlugin(plugin) => plugin,
            other => panic!("{other:?}"),
        }
    };
    let (old, new) = (Some("2026-01-01T00:00:00Z"), Some("2026-02-01T00:00:00Z"));
    let mut plugins = [
        plugin("UNSPECIFIED_PHASE", 9, old, "a7"),
        plugin("STATS", 0, old, "a6"),
        plugin("AUTHZ", 0, None, "a5"),
        plugin("AUTHZ", 0, new, "a4"),
        plugin("AUTHZ", 0, old, "a3"),
        plugin("AUTHZ", 0, old, "a2"),
        plugin("AUTHZ", 1, new, "a1"),
        plugin("AUTHN", -5, new, "a0"),
    ];
    plugins.sort_by(|one, other| one.precedence().cmp(&other.precedence()));
    let names: Vec<_> = plugins.iter().map(|plugin| &*plugin.name.name).collect();
    assert_eq!(names, ["a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7"]);
}
