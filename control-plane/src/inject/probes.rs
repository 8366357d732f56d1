//! Probes that go through the sidecar: the kubelet has no certificate of the mesh, and would be sent away by an
//! application that only takes callers who have one. The sidecar's own port is asked instead, and asks the application.

use leno_api::Invalid;
use serde_json::{Map, Value, json};

use super::{
    manifest::{Fields, join, list, object, objects, text},
    names, obstacles,
};

/// The sidecar's variable with what it is to ask.
pub(super) const PROBES: &str = "LENO_PROBES";

/// Field of a container, and what it is called in a path.
const KINDS: [(&str, &str); 3] =
    [("livenessProbe", "live"), ("readinessProbe", "ready"), ("startupProbe", "start")];
/// How a probe asks.
const ASKS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];

/// What was changed.
#[derive(Debug, Default)]
pub(super) struct Rewritten {
    /// For the sidecar: path to what is asked there.
    pub targets: Map<String, Value>,
    /// For uninjection: container to field to what stood there.
    pub originals: Map<String, Value>,
}

/// Leads the probes of one container through the sidecar. A probe that cannot be led stays as it is, with a warning.
///
/// # Errors
/// When the container is not as containers must be.
pub(super) fn rewrite(
    container: &mut Fields,
    path: &str,
    rewritten: &mut Rewritten,
    warnings: &mut Vec<String>,
) -> Result<(), Invalid> {
    let name = text(container, "name", path)?.unwrap_or_default().to_owned();
    for (field, word) in KINDS {
        let place = join(path, field);
        let Some(probe) = object(container, field, path)? else { continue };
        let asked = format!("/probe/{name}/{word}");
        if is_led(probe, &asked) {
            continue;
        }
        let Some(target) = target(container, probe, &place, warnings)? else { continue };
        let mut changed = probe.clone();
        let original = Value::Object(probe.clone());
        ASKS.iter().for_each(|ask| drop(changed.remove(*ask)));
        changed.insert("httpGet".to_owned(), json!({"path": asked, "port": names::READY_PORT}));
        container.insert(field.to_owned(), Value::Object(changed));
        rewritten.targets.insert(asked, target);
        let of = rewritten.originals.entry(name.clone()).or_insert_with(|| json!({}));
        of[field] = original;
    }
    Ok(())
}

/// Whether the probe goes through the sidecar already.
fn is_led(probe: &Fields, path: &str) -> bool {
    let of = |field| probe.get("httpGet").and_then(|ask| ask.get(field));
    of("path").and_then(Value::as_str) == Some(path)
        && of("port").and_then(Value::as_u64) == Some(names::READY_PORT.into())
}

/// Tells the sidecar of a pod that has one to answer these, too. Whether it has one.
pub(super) fn ask_for(spec: &mut Fields, targets: Map<String, Value>) -> bool {
    let sidecar = obstacles::LISTS.into_iter().find_map(|list| {
        let at = spec.get(list)?.as_array()?.iter().position(is_sidecar)?;
        Some((list, at))
    });
    let Some((list, at)) = sidecar else { return false };
    let Some(container) = spec.get_mut(list).and_then(|list| list.get_mut(at)) else {
        return false;
    };
    let Some(environment) = container.get_mut("env").and_then(Value::as_array_mut) else {
        return false;
    };
    let is_probes = |variable: &Value| variable.get("name").and_then(Value::as_str) == Some(PROBES);
    let before = environment.iter().position(is_probes).map(|at| environment.remove(at));
    // As Kubernetes reads it: `$$` stands for one.
    let text = before.as_ref().and_then(|variable| variable.get("value")?.as_str());
    let known = text.and_then(|text| serde_json::from_str(&text.replace("$$", "$")).ok());
    let mut all: Map<String, Value> = known.unwrap_or_default();
    all.extend(targets);
    let text = Value::Object(all).to_string().replace('$', "$$");
    environment.push(json!({"name": PROBES, "value": text}));
    true
}

fn is_sidecar(container: &Value) -> bool {
    container.get("name").and_then(Value::as_str) == Some(names::PROXY_CONTAINER)
}

/// What the sidecar is to ask. `None` for what is not asked over the network, or not of this pod.
fn target(
    container: &Fields,
    probe: &Fields,
    path: &str,
    warnings: &mut Vec<String>,
) -> Result<Option<Value>, Invalid> {
    let Some((kind, asked)) = asked(probe, path)? else { return Ok(None) };
    let place = join(path, kind);
    if let Some(host) = text(asked, "host", &place)?.filter(|host| !host.is_empty()) {
        warnings.push(format!("{place}.host: the probe goes to {host}, not through the sidecar"));
        return Ok(None);
    }
    let Some(port) = port(container, asked, &place)? else {
        warnings.push(format!(
            "{place}.port: no port of this container is called so; the probe is left as it is"
        ));
        return Ok(None);
    };
    let timeout = probe.get("timeoutSeconds").and_then(Value::as_u64).unwrap_or(1).max(1);
    let mut target = json!({"kind": kind, "port": port, "timeoutSeconds": timeout});
    match kind {
        "httpGet" => {
            target["path"] = text(asked, "path", &place)?.unwrap_or("/").into();
            target["scheme"] = text(asked, "scheme", &place)?.unwrap_or("HTTP").into();
            target["headers"] = list(asked, "httpHeaders", &place)?.into();
        }
        "grpc" => target["service"] = text(asked, "service", &place)?.unwrap_or_default().into(),
        _ => {}
    }
    Ok(Some(target))
}

fn asked<'a>(probe: &'a Fields, path: &str) -> Result<Option<(&'static str, &'a Fields)>, Invalid> {
    for kind in ASKS {
        if let Some(asked) = object(probe, kind, path)? {
            return Ok(Some((kind, asked)));
        }
    }
    Ok(None)
}

/// By number, or by the name that the container gave it.
fn port(container: &Fields, asked: &Fields, path: &str) -> Result<Option<u16>, Invalid> {
    let number = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
    match asked.get("port") {
        Some(Value::String(name)) => {
            let ports = objects(container, "ports", path)?;
            let named = ports
                .iter()
                .find(|(_, port)| port.get("name").and_then(Value::as_str) == Some(name));
            let named = named.and_then(|(_, port)| port.get("containerPort")).and_then(number);
            // Kubernetes takes a number in quotes for a number.
            Ok(named.or_else(|| name.parse().ok()))
        }
        Some(value) => Ok(number(value)),
        None => Ok(None),
    }
}
