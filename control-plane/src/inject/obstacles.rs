//! What a sidecar cannot stand beside.

use leno_api::Invalid;
use serde_json::Value;

use super::{
    manifest::{Fields, boolean, join, object, objects},
    names,
    workload::Template,
};

/// Containers beside which the sidecar stands, and those that run before them.
pub(super) const LISTS: [&str; 2] = ["initContainers", "containers"];
/// What the kubelet does at the start and the end of a container, and how it asks the application itself.
const HOOKS: [&str; 2] = ["postStart", "preStop"];
const HOOK_CALLS: [&str; 2] = ["httpGet", "tcpSocket"];
/// Istio's sidecar.
const ISTIO_PROXY: &str = "istio-proxy";

/// Why a pod is better left alone, if it is.
///
/// # Errors
/// When the pod is not as a pod must be.
pub(super) fn unfit(template: &Template<'_>) -> Result<Option<String>, Invalid> {
    let path = template.at("spec");
    let spec = spec(template)?;
    if boolean(spec, "hostNetwork", &path)? == Some(true) {
        let reason = "it uses its node's network (hostNetwork), where the rules for the sidecar would be the node's";
        return Ok(Some(reason.to_owned()));
    }
    let system = object(spec, "os", &path)?.and_then(|os| os.get("name")).and_then(Value::as_str);
    let selector = object(spec, "nodeSelector", &path)?;
    let selected = selector.and_then(|labels| labels.get("kubernetes.io/os")?.as_str());
    if [system, selected].contains(&Some("windows")) {
        return Ok(Some("it runs on Windows, for which there is no sidecar".to_owned()));
    }
    for key in LISTS {
        for (_, container) in objects(spec, key, &path)? {
            if container.get("name").and_then(Value::as_str) == Some(ISTIO_PROXY) {
                return Ok(Some(format!(
                    "it has the sidecar of Istio (container {ISTIO_PROXY}): take that out first"
                )));
            }
        }
    }
    Ok(None)
}

/// Refuses what a sidecar cannot work with.
///
/// # Errors
/// Everything that is in the way, each with its place and what to do.
pub(super) fn check(template: &Template<'_>) -> Result<(), Invalid> {
    let path = template.at("spec");
    let spec = spec(template)?;
    if objects(spec, "containers", &path)?.is_empty() {
        return Err(Invalid::one(join(&path, "containers"), "there must be at least one"));
    }
    let mut problems = Vec::new();
    let mut found = |at: String, message: String| {
        problems.extend(Invalid::one(at, message).problems);
    };
    users(object(spec, "securityContext", &path)?, &join(&path, "securityContext"), &mut found);
    for key in LISTS {
        for (at, container) in objects(spec, key, &path)? {
            one(container, &at, &mut found)?;
        }
    }
    for (at, volume) in objects(spec, "volumes", &path)? {
        let name = volume.get("name").and_then(Value::as_str).unwrap_or_default();
        if [names::TOKEN_VOLUME, names::ROOT_VOLUME, names::STATE_VOLUME].contains(&name) {
            found(join(&at, "name"), format!("`{name}` is a volume of the sidecar: rename yours"));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Invalid { problems }) }
}

/// Calls of the kubelet that come to the sidecar like anybody's, without a certificate of the mesh.
///
/// # Errors
/// When the pod is not as a pod must be.
pub(super) fn hooks(template: &Template<'_>) -> Result<Vec<String>, Invalid> {
    let mut warnings = Vec::new();
    let path = template.at("spec");
    for key in LISTS {
        for (at, container) in objects(spec(template)?, key, &path)? {
            let Some(lifecycle) = object(container, "lifecycle", &at)? else { continue };
            let at = join(&at, "lifecycle");
            for hook in HOOKS {
                let Some(asked) = object(lifecycle, hook, &at)? else { continue };
                let calls = HOOK_CALLS.into_iter().filter(|call| asked.contains_key(*call));
                warnings.extend(calls.map(|call| {
                    format!(
                        "{}: the kubelet calls without a certificate and is sent away where only the mesh may call: use exec, or {}",
                        join(&join(&at, hook), call),
                        names::EXCLUDE_INBOUND_PORTS
                    )
                }));
            }
        }
    }
    Ok(warnings)
}

fn one(
    container: &Fields,
    path: &str,
    found: &mut dyn FnMut(String, String),
) -> Result<(), Invalid> {
    let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
    if [names::PROXY_CONTAINER, names::REDIRECT_CONTAINER].contains(&name) {
        let message = format!(
            "`{name}` is the name of a container of ours, but nothing says that we put it here (annotation {}): rename yours, or take out what was added by hand",
            names::INJECTED
        );
        found(join(path, "name"), message);
    }
    users(object(container, "securityContext", path)?, &join(path, "securityContext"), found);
    for (at, port) in objects(container, "ports", path)? {
        let number = port.get("containerPort").and_then(Value::as_u64);
        let taken = number.and_then(|number| u16::try_from(number).ok());
        if let Some(port) = taken.filter(|port| names::OWN_PORTS.contains(port)) {
            let message = format!(
                "{port} is a port of the sidecar: let the application listen on another one (the sidecar's are {:?})",
                names::OWN_PORTS
            );
            found(join(&at, "containerPort"), message);
        }
    }
    Ok(())
}

/// The rules tell the sidecar's connections by user and group: an application with the same would pass them.
fn users(context: Option<&Fields>, path: &str, found: &mut dyn FnMut(String, String)) {
    let Some(context) = context else { return };
    for (key, own) in [("runAsUser", names::PROXY_USER), ("runAsGroup", names::PROXY_GROUP)] {
        if context.get(key).and_then(Value::as_u64) == Some(u64::from(own)) {
            let message = format!(
                "{own} is what the sidecar runs as, whose connections are not captured: choose another id"
            );
            found(join(path, key), message);
        }
    }
}

pub(super) fn spec<'a>(template: &'a Template<'_>) -> Result<&'a Fields, Invalid> {
    let missing = || Invalid::one(template.at("spec"), "is missing");
    object(template.fields, "spec", &template.path)?.ok_or_else(missing)
}
