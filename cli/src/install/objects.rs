//! The control plane in Kubernetes: its rights, what it keeps, how it runs.

use leno_api::{GATEWAY_GROUP, KINDS, LENO_GROUP};
use leno_control_plane::inject::names::{
    API_PORT, CONTROL_PLANE, CONTROL_PLANE_IMAGE, CONTROL_PLANE_METRICS_PORT, DISABLED,
    INJECT_LABEL, ROOT_CONFIG_MAP, SYSTEM_NAMESPACE, WEBHOOK_CONFIGURATION, WEBHOOK_PORT, XDS_PORT,
};
use serde_json::{Value, json};

use super::{Object, Source, When};

/// Not root, and nobody whom an image's own files belong to.
const USER: u32 = 65532;
const DATA: &str = "/var/lib/leno";
const AUTHORITY: &str = "/etc/leno/ca";
/// What it puts into pods: variables that it reads, and settings.
pub const SIDECARS: [(&str, &str); 5] = [
    ("LENO_IMAGE_PREFIX", "<image.prefix>"),
    ("LENO_IMAGE_TAG", "<image.tag>"),
    ("LENO_NATIVE_SIDECAR", "<sidecar.native>"),
    ("LENO_REDIRECT", "<sidecar.redirect>"),
    ("LENO_SIDECAR_DRAIN", "<sidecar.drain>"),
];

/// The namespace, which Helm makes itself.
pub fn namespace() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": SYSTEM_NAMESPACE, "labels": {
            INJECT_LABEL: DISABLED,
            "pod-security.kubernetes.io/enforce": "restricted",
        }},
    })
}

pub fn all(source: &Source<'_>) -> Vec<Object> {
    let always = |file, manifest| Object { file, when: When::Always, manifest };
    let volume = Object {
        file: "deployment",
        when: When::Unset("ca.secret"),
        manifest: volume_claim(source),
    };
    vec![
        always("rbac", namespaced("v1", "ServiceAccount", json!({}))),
        always("rbac", cluster_role()),
        always("rbac", binding("ClusterRole", None)),
        always("rbac", role()),
        always("rbac", binding("Role", Some(SYSTEM_NAMESPACE))),
        volume,
        always("service", service()),
        always("deployment", deployment(source)),
        always("deployment", disruption_budget()),
    ]
}

fn labels() -> Value {
    json!({"app.kubernetes.io/name": CONTROL_PLANE, "app.kubernetes.io/part-of": "leno"})
}

fn namespaced(api_version: &str, kind: &str, more: Value) -> Value {
    let mut manifest = json!({
        "apiVersion": api_version, "kind": kind,
        "metadata": {"name": CONTROL_PLANE, "namespace": SYSTEM_NAMESPACE, "labels": labels()},
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        manifest[name] = value.clone();
    }
    manifest
}

/// What it must be able to do anywhere. What can be narrowed down to one name is.
fn cluster_role() -> Value {
    let plurals = |group: &str, suffix: &str| -> Vec<String> {
        let kinds = KINDS.iter().filter(|kind| kind.group == group && !kind.read_only);
        kinds.map(|kind| format!("{}{suffix}", kind.plural)).collect()
    };
    let rule = |group: &str, resources: Value, verbs: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    let mut rules = vec![
        rule("", json!(["namespaces", "pods", "services"]), &["get", "list", "watch"]),
        rule("discovery.k8s.io", json!(["endpointslices"]), &["get", "list", "watch"]),
        rule("authentication.k8s.io", json!(["tokenreviews"]), &["create"]),
        // A right to create cannot be bound to a name: there is none yet.
        rule("", json!(["configmaps"]), &["create"]),
    ];
    for group in [LENO_GROUP, GATEWAY_GROUP] {
        rules.push(rule(group, json!(plurals(group, "")), &["get", "list", "watch"]));
        rules.push(rule(group, json!(plurals(group, "/status")), &["get", "patch", "update"]));
    }
    let mut named = rule("", json!(["configmaps"]), &["get", "list", "watch", "patch", "update"]);
    named["resourceNames"] = json!([ROOT_CONFIG_MAP]);
    rules.push(named);
    let webhooks = json!(["mutatingwebhookconfigurations", "validatingwebhookconfigurations"]);
    let verbs = ["get", "list", "watch", "patch", "update"];
    let mut named = rule("admissionregistration.k8s.io", webhooks, &verbs);
    named["resourceNames"] = json!([WEBHOOK_CONFIGURATION]);
    rules.push(named);
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": CONTROL_PLANE, "labels": labels()},
        "rules": rules,
    })
}

/// The Lease by which one of several replicas writes.
fn role() -> Value {
    let rule = |verbs: &[&str], names: Value| json!({"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": verbs, "resourceNames": names});
    let rules = json!([
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
        rule(&["get", "list", "watch", "patch", "update"], json!([CONTROL_PLANE])),
    ]);
    namespaced("rbac.authorization.k8s.io/v1", "Role", json!({"rules": rules}))
}

fn binding(role: &str, namespace: Option<&str>) -> Value {
    let mut manifest = namespaced(
        "rbac.authorization.k8s.io/v1",
        &format!("{role}Binding"),
        json!({
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": CONTROL_PLANE},
            "subjects": [{"kind": "ServiceAccount", "name": CONTROL_PLANE, "namespace": SYSTEM_NAMESPACE}],
        }),
    );
    if namespace.is_none()
        && let Some(metadata) = manifest["metadata"].as_object_mut()
    {
        metadata.remove("namespace");
    }
    manifest
}

fn volume_claim(source: &Source<'_>) -> Value {
    let mut manifest = namespaced(
        "v1",
        "PersistentVolumeClaim",
        json!({"spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": source.value("storage.size")}},
            "storageClassName": source.value("storage.className"),
        }}),
    );
    // With the root's key every identity of the mesh would be gone.
    manifest["metadata"]["annotations"] = json!({"helm.sh/resource-policy": "keep"});
    manifest
}

/// The API for people is not among its ports: it is on the pod's loopback, where `kubectl port-forward` leads.
fn service() -> Value {
    // With the protocol, by which server-side apply tells ports apart: not every API server fills it in before.
    let port = |name: &str, port: u16| json!({"name": name, "port": port, "targetPort": name, "protocol": "TCP"});
    let ports = [
        port("grpc-xds", XDS_PORT),
        port("https-webhook", WEBHOOK_PORT),
        port("http-metrics", CONTROL_PLANE_METRICS_PORT),
    ];
    namespaced("v1", "Service", json!({"spec": {"selector": selector(), "ports": ports}}))
}

fn selector() -> Value {
    json!({"app.kubernetes.io/name": CONTROL_PLANE})
}

fn disruption_budget() -> Value {
    // Not `minAvailable`: with one replica no node could be drained.
    let spec = json!({"maxUnavailable": 1, "selector": {"matchLabels": selector()}});
    namespaced("policy/v1", "PodDisruptionBudget", json!({"spec": spec}))
}

fn deployment(source: &Source<'_>) -> Value {
    // The volume can be mounted once: the old one must be gone first. Proxies go on meanwhile.
    let strategy =
        source.choose("ca.secret", json!({"type": "RollingUpdate"}), json!({"type": "Recreate"}));
    let pod = json!({
        "serviceAccountName": CONTROL_PLANE,
        "imagePullSecrets": source.value("imagePullSecrets"),
        "nodeSelector": source.value("nodeSelector"),
        "tolerations": source.value("tolerations"),
        "terminationGracePeriodSeconds": 30,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            // With every start the keys on the volume would be opened to the group, and then refused.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container(source)],
        "volumes": volumes(source),
    });
    let labels = labels();
    let spec = json!({
        "replicas": source.value("replicas"),
        "strategy": strategy,
        "selector": {"matchLabels": selector()},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    });
    namespaced("apps/v1", "Deployment", json!({"spec": spec}))
}

fn container(source: &Source<'_>) -> Value {
    let port =
        |name: &str, port: u16| json!({"name": name, "containerPort": port, "protocol": "TCP"});
    let environment =
        SIDECARS.map(|(name, text)| json!({"name": name, "value": source.text(text)}));
    json!({
        "name": "control-plane",
        "image": source.text(&format!("<image.prefix>/{CONTROL_PLANE_IMAGE}:<image.tag>")),
        "imagePullPolicy": source.value("image.pullPolicy"),
        "args": arguments(source),
        "env": environment,
        "ports": [
            port("grpc-xds", XDS_PORT),
            port("https-webhook", WEBHOOK_PORT),
            port("http-metrics", CONTROL_PLANE_METRICS_PORT),
        ],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http-metrics"}, "periodSeconds": 5},
        // That it waits for Kubernetes is no reason to start it anew.
        "livenessProbe": {"tcpSocket": {"port": "http-metrics"}, "periodSeconds": 10, "failureThreshold": 6},
        "resources": source.value("resources"),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts(source),
    })
}

/// The flags of the control plane.
pub fn arguments(source: &Source<'_>) -> Value {
    let mut common = vec![
        "--kubernetes".to_owned(),
        // Both families, or the one that the cluster has.
        format!("--webhook=[::]:{WEBHOOK_PORT}"),
        format!("--xds=[::]:{XDS_PORT}"),
        format!("--metrics=[::]:{CONTROL_PLANE_METRICS_PORT}"),
        // Whoever may forward a port into this pod may do everything.
        format!("--api=127.0.0.1:{API_PORT}"),
        // A folder of its own in the volume, whose root belongs to somebody else.
        format!("--data-dir={DATA}/data"),
        format!("--api-host={CONTROL_PLANE}.{SYSTEM_NAMESPACE}.svc"),
        format!("--api-host={CONTROL_PLANE}.{SYSTEM_NAMESPACE}.svc.cluster.local"),
    ];
    common.extend(wished(source));
    let mut with = common.clone();
    with.extend([
        format!("--ca-root={AUTHORITY}/ca.crt"),
        format!("--ca-certificate={AUTHORITY}/tls.crt"),
        format!("--ca-key={AUTHORITY}/tls.key"),
    ]);
    source.choose("ca.secret", json!(with), json!(common))
}

/// Those of its flags that settings decide.
pub fn wished(source: &Source<'_>) -> [String; 4] {
    [
        "--trust-domain=<trustDomain>",
        "--certificate-ttl=<certificateTtl>",
        "--log=<log>",
        "--log-format=<logFormat>",
    ]
    .map(|text| source.text(text))
}

fn volumes(source: &Source<'_>) -> Value {
    let secret = json!({"name": "ca", "secret": {"secretName": source.text("<ca.secret>"), "defaultMode": 0o400}});
    source.choose(
        "ca.secret",
        json!([{"name": "data", "emptyDir": {}}, secret]),
        json!([{"name": "data", "persistentVolumeClaim": {"claimName": CONTROL_PLANE}}]),
    )
}

fn mounts(source: &Source<'_>) -> Value {
    let data = json!({"name": "data", "mountPath": DATA});
    let authority = json!({"name": "ca", "mountPath": AUTHORITY, "readOnly": true});
    source.choose("ca.secret", json!([data, authority]), json!([data]))
}
