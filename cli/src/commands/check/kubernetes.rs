//! Whether a cluster can hold Leno, and whether it does. Asked through kubectl, which has the user's rights and knows the
//! cluster that is meant; judged by plain functions.

use std::process::Command;

use leno_api::KINDS;
use leno_control_plane::inject::names::{
    CONTROL_PLANE, ENABLED, INJECT_LABEL, PROXY_CONTAINER, ROOT_CONFIG_MAP, SYSTEM_NAMESPACE,
    WEBHOOK_CONFIGURATION,
};
use serde_json::Value;

use super::judge::{Finding, State};
use crate::install::crds;

/// The first with everything that is installed: `matchConditions` of webhooks.
const OLDEST: (u64, u64) = (1, 30);
const TIMEOUT: &str = "--request-timeout=10s";
const ROUTES: &str = "httproutes.gateway.networking.k8s.io";
/// What only an administrator of the cluster may make.
const RIGHTS: [&str; 5] = [
    "namespaces",
    "customresourcedefinitions.apiextensions.k8s.io",
    "clusterroles.rbac.authorization.k8s.io",
    "clusterrolebindings.rbac.authorization.k8s.io",
    "mutatingwebhookconfigurations.admissionregistration.k8s.io",
];

const NO_CLUSTER: &str =
    "install kubectl, and let it know the cluster: `kubectl cluster-info` must work";
const TOO_OLD: &str = "Leno needs Kubernetes 1.30 or later";
const NO_RIGHT: &str =
    "install as an administrator of the cluster: `kubectl auth can-i --list` says what you may do";
const NO_ROUTES: &str = "install Gateway API's definitions, or let Leno's do: `leno install --set gatewayApi.install=true`";
const NOT_INSTALLED: &str = "`leno install | kubectl apply --server-side -f -` installs it";
const NOT_AVAILABLE: &str = "`kubectl -n leno-system get pods` and `kubectl -n leno-system logs deployment/leno-control-plane` say why";
const NO_BUNDLE: &str = "the control plane writes it once it leads; its log says why it does not";
const NO_ROOTS: &str = "the control plane writes the ConfigMap leno-root into labelled namespaces; its log says why it does not";
const RESTART: &str =
    "pods get their sidecar when they are made: `kubectl rollout restart` what they belong to";

/// Before anything is installed.
pub fn before() -> Vec<Finding> {
    let version = match ask(&["version", "-o", "json"]) {
        Ok(version) => version,
        Err(reason) => return vec![unreachable(&reason)],
    };
    let mut findings = vec![cluster(&version)];
    findings.extend(RIGHTS.map(|resource| right(resource, may_create(resource))));
    findings.push(routes(&ask(&["get", "crd", ROUTES, "--ignore-not-found", "-o", "json"])));
    findings.extend(ask_deployment().ok().and_then(|found| installed(&found)));
    findings
}

/// What is installed.
pub fn after() -> Vec<Finding> {
    let deployment = match ask_deployment() {
        Ok(deployment) => deployment,
        Err(reason) => return vec![unreachable(&reason)],
    };
    let mut findings = vec![control_plane(&deployment)];
    findings.push(definitions(&ask(&["get", "crd", "-o", "json"])));
    for kind in ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"] {
        let found = ask(&["get", kind, WEBHOOK_CONFIGURATION, "--ignore-not-found", "-o", "json"]);
        findings.push(webhook(kind, &found));
    }
    let label = format!("{INJECT_LABEL}={ENABLED}");
    let namespaces = names(&ask(&["get", "namespaces", "-l", &label, "-o", "json"]));
    let field = format!("metadata.name={ROOT_CONFIG_MAP}");
    let roots = ask(&["get", "configmaps", "-A", "--field-selector", &field, "-o", "json"]);
    for namespace in namespaces {
        findings.extend(has_roots(&namespace, &roots));
        findings.push(pods(&namespace, &ask(&["get", "pods", "-n", &namespace, "-o", "json"])));
    }
    findings
}

fn ask_deployment() -> Result<Value, String> {
    let of = ["get", "deployment", CONTROL_PLANE, "-n", SYSTEM_NAMESPACE];
    ask(&[&of[..], &["--ignore-not-found", "-o", "json"]].concat())
}

/// What kubectl answers; null for what is not there.
fn ask(words: &[&str]) -> Result<Value, String> {
    let said = kubectl(words)?;
    if said.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&said)
        .map_err(|error| format!("what kubectl {} said cannot be read: {error}", words.join(" ")))
}

fn kubectl(words: &[&str]) -> Result<String, String> {
    let said = Command::new("kubectl")
        .args(words)
        .arg(TIMEOUT)
        .output()
        .map_err(|error| format!("kubectl cannot be run: {error}"))?;
    if said.status.success() {
        return Ok(String::from_utf8_lossy(&said.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&said.stderr);
    let last = errors.lines().rfind(|line| !line.trim().is_empty());
    Err(format!("kubectl {}: {}", words.join(" "), last.unwrap_or("failed without a word").trim()))
}

/// `kubectl auth can-i` says `no` and fails.
fn may_create(resource: &str) -> Result<bool, String> {
    match kubectl(&["auth", "can-i", "create", resource, "--all-namespaces"]) {
        Ok(said) => Ok(said.trim() == "yes"),
        Err(reason) if reason.ends_with("failed without a word") => Ok(false),
        Err(reason) => Err(reason),
    }
}

fn unreachable(reason: &str) -> Finding {
    Finding::new("cluster", State::Wrong, reason).or(NO_CLUSTER)
}

fn cluster(version: &Value) -> Finding {
    // Clouds write `30+`.
    let number = |field: &str| {
        let text = version["serverVersion"][field].as_str()?;
        text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().ok()
    };
    let Some(found) = number("major").zip(number("minor")) else {
        return unreachable("kubectl does not say which version the cluster has");
    };
    let state = if found >= OLDEST { State::Ok } else { State::Wrong };
    Finding::new("cluster", state, format!("Kubernetes {}.{}", found.0, found.1)).or(TOO_OLD)
}

fn right(resource: &str, may: Result<bool, String>) -> Finding {
    let what = format!("right to make {}", resource.split('.').next().unwrap_or(resource));
    match may {
        Ok(true) => Finding::new(what, State::Ok, "is there"),
        Ok(false) => Finding::new(what, State::Wrong, "is not there").or(NO_RIGHT),
        Err(reason) => Finding::new(what, State::Wrong, reason).or(NO_RIGHT),
    }
}

fn routes(found: &Result<Value, String>) -> Finding {
    let what = "Gateway API";
    match found {
        Err(reason) => Finding::new(what, State::Wrong, reason).or(NO_CLUSTER),
        Ok(Value::Null) => {
            let because = "there are no HTTPRoutes: traffic cannot be split or retried by route";
            Finding::new(what, State::Warning, because).or(NO_ROUTES)
        }
        Ok(definition) => {
            let versions = definition["spec"]["versions"].as_array().into_iter().flatten();
            let served = versions.filter(|version| version["served"] == true);
            match served.map(|version| &version["name"]).any(|name| name == "v1") {
                true => Finding::new(what, State::Ok, "HTTPRoute v1 is there"),
                false => {
                    Finding::new(what, State::Wrong, "HTTPRoute is not served as v1").or(NO_ROUTES)
                }
            }
        }
    }
}

/// Only said when there is one.
fn installed(deployment: &Value) -> Option<Finding> {
    let image = deployment.pointer("/spec/template/spec/containers/0/image")?.as_str()?;
    let because = format!("{image} is installed; installing again changes it to this version");
    Some(Finding::new("control plane", State::Ok, because))
}

fn control_plane(deployment: &Value) -> Finding {
    let what = "control plane";
    if deployment.is_null() {
        return Finding::new(what, State::Wrong, "is not installed").or(NOT_INSTALLED);
    }
    let number = |pointer: &str| deployment.pointer(pointer).and_then(Value::as_u64);
    let wanted = number("/spec/replicas").unwrap_or(1);
    let available = number("/status/availableReplicas").unwrap_or(0);
    let state = match available {
        0 => State::Wrong,
        _ if available < wanted => State::Warning,
        _ => State::Ok,
    };
    let because = format!("{available} of {wanted} replicas are available");
    Finding::new(what, state, because).or(NOT_AVAILABLE)
}

fn definitions(found: &Result<Value, String>) -> Finding {
    let what = "definitions";
    let list = match found {
        Ok(list) => list,
        Err(reason) => return Finding::new(what, State::Wrong, reason).or(NO_CLUSTER),
    };
    let established = |definition: &&Value| {
        let conditions = definition.pointer("/status/conditions").and_then(Value::as_array);
        conditions
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Established" && condition["status"] == "True")
    };
    let items = list["items"].as_array().into_iter().flatten();
    let there: Vec<_> = items
        .filter(established)
        .filter_map(|definition| definition.pointer("/metadata/name")?.as_str())
        .collect();
    let wanted = KINDS.iter().filter(|kind| kind.group == leno_api::LENO_GROUP && !kind.read_only);
    let names: Vec<_> = wanted.map(crds::name).collect();
    let missing: Vec<_> =
        names.iter().filter(|name| !there.contains(&name.as_str())).map(String::as_str).collect();
    match missing.is_empty() {
        true => Finding::new(what, State::Ok, format!("all {} are served", names.len())),
        false => {
            let because = format!("not served: {}", missing.join(", "));
            Finding::new(what, State::Wrong, because).or(NOT_INSTALLED)
        }
    }
}

fn webhook(what: &str, found: &Result<Value, String>) -> Finding {
    let configuration = match found {
        Err(reason) => return Finding::new(what, State::Wrong, reason).or(NO_CLUSTER),
        Ok(Value::Null) => {
            return Finding::new(what, State::Wrong, "is not there").or(NOT_INSTALLED);
        }
        Ok(configuration) => configuration,
    };
    let webhooks = configuration["webhooks"].as_array().into_iter().flatten();
    let blind = webhooks.filter(|webhook| {
        webhook.pointer("/clientConfig/caBundle").and_then(Value::as_str).is_none_or(str::is_empty)
    });
    match blind.count() {
        0 => Finding::new(what, State::Ok, "knows whom to trust"),
        count => {
            let because = format!("{count} of its webhooks do not know whom to trust (caBundle)");
            Finding::new(what, State::Wrong, because).or(NO_BUNDLE)
        }
    }
}

fn names(list: &Result<Value, String>) -> Vec<String> {
    let items = list.as_ref().ok().and_then(|list| list["items"].as_array());
    let names = items.into_iter().flatten().filter_map(|item| item.pointer("/metadata/name"));
    names.filter_map(|name| Some(name.as_str()?.to_owned())).collect()
}

fn has_roots(namespace: &str, roots: &Result<Value, String>) -> Option<Finding> {
    let items = roots.as_ref().ok()?["items"].as_array()?;
    let there = items.iter().any(|item| item["metadata"]["namespace"] == namespace);
    let because = "has no trusted roots: pods with a sidecar do not start";
    (!there)
        .then(|| Finding::new(format!("namespace {namespace}"), State::Wrong, because).or(NO_ROOTS))
}

fn pods(namespace: &str, found: &Result<Value, String>) -> Finding {
    let what = format!("pods of {namespace}");
    let list = match found {
        Ok(list) => list,
        Err(reason) => return Finding::new(what, State::Wrong, reason).or(NO_CLUSTER),
    };
    let has_sidecar = |pod: &&Value| {
        ["initContainers", "containers"].iter().any(|list| {
            let containers = pod["spec"][*list].as_array().into_iter().flatten();
            containers.into_iter().any(|container| container["name"] == PROXY_CONTAINER)
        })
    };
    let pods: Vec<_> = list["items"].as_array().into_iter().flatten().collect();
    let with = pods.iter().filter(|pod| has_sidecar(pod)).count();
    let because = format!("{with} of {} have a sidecar", pods.len());
    let state = if with == pods.len() { State::Ok } else { State::Warning };
    Finding::new(what, state, because).or(RESTART)
}

#[cfg(test)]
mod tests;
