//! When Kubernetes asks the control plane: for pods that are to get a sidecar, for resources that may be wrong.
//!
//! `caBundle` is not here: the control plane writes it, and again whenever it changes.

use leno_api::{GATEWAY_GROUP, KINDS, LENO_GROUP};
use leno_control_plane::inject::names::{
    CONTROL_PLANE, DISABLED, ENABLED, INJECT_LABEL, INJECT_PATH, SYSTEM_NAMESPACE, VALIDATE_PATH,
    WEBHOOK_CONFIGURATION, WEBHOOK_PORT,
};
use serde_json::{Value, json};

use super::{Object, Source, When};

const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

pub fn all(source: &Source<'_>) -> Vec<Object> {
    [mutating(source), validating(source)]
        .map(|manifest| Object { file: "webhooks", when: When::Always, manifest })
        .into()
}

fn configuration(kind: &str, webhooks: &[Value]) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
        "metadata": {"name": WEBHOOK_CONFIGURATION, "labels": {"app.kubernetes.io/part-of": "leno"}},
        "webhooks": webhooks,
    })
}

fn webhook(source: &Source<'_>, name: &str, path: &str, more: Value) -> Value {
    let mut webhook = json!({
        "name": name,
        "clientConfig": {"service": {
            "name": CONTROL_PLANE, "namespace": SYSTEM_NAMESPACE, "path": path, "port": WEBHOOK_PORT,
        }},
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": source.value("webhook.failurePolicy"),
        "timeoutSeconds": source.value("webhook.timeoutSeconds"),
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        webhook[name] = value.clone();
    }
    webhook
}

fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
    json!({"key": key, "operator": operator, "values": values})
}

/// Two, since a selector has no "or": namespaces with the label, and single pods with it elsewhere.
fn mutating(source: &Source<'_>) -> Value {
    // Without these, a control plane that is gone could keep itself and the cluster from starting.
    let outside =
        expression(NAMESPACE_NAME, "NotIn", &[SYSTEM_NAMESPACE, "kube-system", "kube-node-lease"]);
    let of = |namespaces: Value, pods: Value| {
        json!({
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"], "scope": "Namespaced"}],
            "namespaceSelector": {"matchExpressions": [namespaces, outside]},
            "objectSelector": {"matchExpressions": [pods]},
            // Other webhooks may add containers whose probes we would miss.
            "reinvocationPolicy": "IfNeeded",
        })
    };
    let namespaces = of(
        expression(INJECT_LABEL, "In", &[ENABLED]),
        expression(INJECT_LABEL, "NotIn", &[DISABLED]),
    );
    let pods = of(
        // Also where the namespace says otherwise: what a pod says of itself wins. Never both, or a pod is asked for twice.
        expression(INJECT_LABEL, "NotIn", &[ENABLED]),
        expression(INJECT_LABEL, "In", &[ENABLED]),
    );
    configuration(
        "MutatingWebhookConfiguration",
        &[
            webhook(source, "namespace.inject.leno.dev", INJECT_PATH, namespaces),
            webhook(source, "pod.inject.leno.dev", INJECT_PATH, pods),
        ],
    )
}

fn validating(source: &Source<'_>) -> Value {
    let of = |group: &str| {
        let kinds = KINDS.iter().filter(|kind| kind.group == group && !kind.read_only);
        let (mut resources, mut versions) = (Vec::new(), Vec::new());
        for kind in kinds {
            resources.push(kind.plural);
            if !versions.contains(&kind.version) {
                versions.push(kind.version);
            }
        }
        json!([{
            "apiGroups": [group], "apiVersions": versions, "operations": ["CREATE", "UPDATE"],
            "resources": resources, "scope": "Namespaced",
        }])
    };
    let own = json!({"rules": of(LENO_GROUP)});
    let routes = json!({
        "rules": of(GATEWAY_GROUP),
        // Routes of gateways are others' business, with fields that we refuse.
        "matchConditions": [{
            "name": "of-a-service",
            "expression": "has(object.spec.parentRefs) && object.spec.parentRefs.exists(parent, has(parent.kind) && parent.kind == 'Service')",
        }],
    });
    configuration(
        "ValidatingWebhookConfiguration",
        &[
            webhook(source, "validate.leno.dev", VALIDATE_PATH, own),
            webhook(source, "routes.validate.leno.dev", VALIDATE_PATH, routes),
        ],
    )
}
