//! Where the pods are in each kind of workload.

use leno_api::Invalid;
use serde_json::Value;

use super::manifest::{Fields, join};

/// Lists in lists; `kubectl` makes none.
const MAX_NESTING: usize = 4;

/// A pod, or what pods are made of.
#[derive(Debug)]
pub(super) struct Template<'a> {
    /// `Deployment shop/orders`.
    pub workload: String,
    /// Whether its pods are to end by themselves.
    pub ends: bool,
    /// Where it stands: `spec.template`; empty for a pod.
    pub path: String,
    /// `metadata` and `spec` are in here.
    pub fields: &'a mut Fields,
}

impl Template<'_> {
    /// A place in it.
    pub fn at(&self, key: &str) -> String {
        join(&self.path, key)
    }
}

/// Calls `work` with each template of `document`.
///
/// # Errors
/// The first of `work`, and what is not as its kind must be.
pub(super) fn each(
    document: &mut Value,
    work: &mut dyn FnMut(Template<'_>) -> Result<(), Invalid>,
) -> Result<(), Invalid> {
    visit(document, "", 0, work)
}

fn visit(
    document: &mut Value,
    path: &str,
    depth: usize,
    work: &mut dyn FnMut(Template<'_>) -> Result<(), Invalid>,
) -> Result<(), Invalid> {
    let Value::Object(fields) = document else {
        return Err(Invalid::one(path, "must be an object with apiVersion and kind"));
    };
    let kind = fields.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    let version = fields.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    // Others may use the same words: Knative has a `Service`, CRDs have a `Job`.
    let core = ["v1", "apps/v1", "batch/v1"].contains(&version);
    if core && (kind == "List" || kind.ends_with("List") && fields.contains_key("items")) {
        return visit_items(fields, path, depth, work);
    }
    let inner: &[&str] = match (version, kind.as_str()) {
        ("v1", "Pod") => &[],
        ("v1", "ReplicationController" | "PodTemplate")
        | ("apps/v1", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch/v1", "Job") => match kind.as_str() {
            "PodTemplate" => &["template"],
            _ => &["spec", "template"],
        },
        ("batch/v1", "CronJob") => &["spec", "jobTemplate", "spec", "template"],
        _ => return Ok(()),
    };
    let workload = described(&kind, fields);
    let ends = matches!(kind.as_str(), "Job" | "CronJob");
    let mut at = path.to_owned();
    let mut fields = fields;
    for key in inner {
        at = join(&at, key);
        fields = match fields.get_mut(*key) {
            Some(Value::Object(inner)) => inner,
            Some(Value::Null) | None => return Err(Invalid::one(&at, "is missing")),
            Some(_) => return Err(Invalid::one(&at, "must be an object")),
        };
    }
    work(Template { workload, ends, path: at, fields })
}

fn visit_items(
    fields: &mut Fields,
    path: &str,
    depth: usize,
    work: &mut dyn FnMut(Template<'_>) -> Result<(), Invalid>,
) -> Result<(), Invalid> {
    let place = join(path, "items");
    if depth == MAX_NESTING {
        return Err(Invalid::one(place, "lists are nested too deeply"));
    }
    match fields.get_mut("items") {
        Some(Value::Array(items)) => items
            .iter_mut()
            .enumerate()
            .try_for_each(|(at, item)| visit(item, &format!("{place}[{at}]"), depth + 1, work)),
        Some(Value::Null) | None => Ok(()),
        Some(_) => Err(Invalid::one(place, "must be a list")),
    }
}

/// `Deployment shop/orders`; pods that a controller makes have no name yet.
fn described(kind: &str, fields: &Fields) -> String {
    let of = |key: &str| fields.get("metadata").and_then(|metadata| metadata.get(key)?.as_str());
    let name = of("name").map(str::to_owned);
    let name = name.or_else(|| of("generateName").map(|prefix| format!("{prefix}*")));
    let name = name.unwrap_or_else(|| "without a name".to_owned());
    match of("namespace") {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}
