//! `AdmissionReview` (admission.k8s.io/v1) in, `AdmissionReview` out.
//!
//! Injection never keeps a pod from being made: where it cannot be done, the pod is let pass with a warning that says
//! why. Validation does keep a resource out, and says which field.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use leno_api::{Invalid, Resource};
use serde_json::{Map, Value, json};

use super::{Outcome, Settings, inject};

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// Kubernetes cuts longer warnings off, and says that they should not be longer.
const MAX_WARNING: usize = 256;
/// All warnings together are cut off at 4096 characters.
const MAX_WARNINGS: usize = 16;
const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// Something that is no `AdmissionReview`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadReview {
    /// Not JSON at all.
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    /// Another object.
    #[error("the body must be an AdmissionReview of {API_VERSION} with a request; it is {0}")]
    Other(String),
}

/// What was answered, for metrics and the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The pod got its sidecar.
    Injected,
    /// Nothing was to be done.
    Passed,
    /// No sidecar, although one was wanted.
    Failed,
    /// Found valid.
    Valid,
    /// Refused.
    Refused,
}

impl Answer {
    /// For labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Valid => "valid",
            Self::Refused => "refused",
        }
    }
}

/// The parts of a request that matter here.
struct Request<'a> {
    uid: &'a str,
    group: &'a str,
    kind: &'a str,
    operation: &'a str,
    sub_resource: &'a str,
    object: &'a Value,
}

/// Answers the mutating webhook: a pod that is made gets its sidecar, anything else passes.
///
/// # Errors
/// When `body` is no review: Kubernetes then does as its `failurePolicy` says.
pub fn mutate(body: &[u8], settings: &Settings) -> Result<(Value, Answer), BadReview> {
    let review = read(body)?;
    let request = request(&review)?;
    let pass = |warnings: Vec<String>, answer| Ok((allow(request.uid, warnings, None), answer));
    if (request.group, request.kind) != ("", "Pod") {
        let warning = format!(
            "leno: there is nothing to inject into a {}: let the webhook configuration send pods only",
            request.kind
        );
        return pass(vec![warning], Answer::Passed);
    }
    if request.operation != "CREATE" || !request.sub_resource.is_empty() {
        return pass(Vec::new(), Answer::Passed);
    }
    let before = named(request.object);
    let mut after = before.clone();
    let failed = |invalid: Invalid| {
        let problems = invalid.problems.iter();
        problems.map(|problem| format!("leno: no sidecar was injected: {problem}")).collect()
    };
    let verdicts = match inject(&mut after, settings) {
        Ok(verdicts) => verdicts,
        Err(invalid) => return pass(failed(invalid), Answer::Failed),
    };
    let mut warnings = Vec::new();
    for verdict in &verdicts {
        warnings.extend(verdict.warnings.iter().map(|warning| format!("leno: {warning}")));
        if let Outcome::LeftAlone(reason) = &verdict.outcome {
            warnings.push(format!("leno: no sidecar was injected: {reason}"));
        }
    }
    if before == after {
        return pass(warnings, Answer::Passed);
    }
    let patch = json_patch::diff(&before, &after);
    match serde_json::to_vec(&patch) {
        Ok(patch) => Ok((allow(request.uid, warnings, Some(&patch)), Answer::Injected)),
        Err(error) => pass(vec![format!("leno: no sidecar was injected: {error}")], Answer::Failed),
    }
}

/// Answers the validating webhook: what this mesh would not take is refused, with its fields. What is `odd` about the rest
/// is a warning.
///
/// # Errors
/// When `body` is no review.
pub fn validate(
    body: &[u8],
    odd: impl Fn(&Resource) -> Vec<String>,
) -> Result<(Value, Answer), BadReview> {
    let review = read(body)?;
    let request = request(&review)?;
    let written = ["CREATE", "UPDATE"].contains(&request.operation);
    if !written || !request.sub_resource.is_empty() {
        return Ok((allow(request.uid, Vec::new(), None), Answer::Passed));
    }
    // What is deleted is updated once more when its finalizers go; refused, it would stay for ever.
    let ends =
        request.object.pointer("/metadata/deletionTimestamp").is_some_and(|at| !at.is_null());
    if ends {
        return Ok((allow(request.uid, Vec::new(), None), Answer::Passed));
    }
    let group = request.object.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    let group = group.split_once('/').map_or("", |(group, _)| group);
    if ![GATEWAY_GROUP, "leno.dev"].contains(&group) {
        let warning =
            format!("leno: {} is not a kind of this mesh, and was not checked", request.kind);
        return Ok((allow(request.uid, vec![warning], None), Answer::Passed));
    }
    let is_ours = group != GATEWAY_GROUP || is_for_services(request.object);
    match Resource::from_json(request.object.clone()) {
        Ok(resource) => {
            let warnings = odd(&resource).into_iter().map(|odd| format!("leno: {odd}")).collect();
            Ok((allow(request.uid, warnings, None), Answer::Valid))
        }
        // Routes of gateways belong to others, who know fields that we do not.
        Err(_) if !is_ours => Ok((allow(request.uid, Vec::new(), None), Answer::Passed)),
        Err(invalid) => Ok((refuse(&request, &invalid), Answer::Refused)),
    }
}

fn read(body: &[u8]) -> Result<Map<String, Value>, BadReview> {
    let value: Value =
        serde_json::from_slice(body).map_err(|error| BadReview::NotJson(error.to_string()))?;
    let word = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    let (version, kind) = (word("apiVersion"), word("kind"));
    if (version, kind) != (API_VERSION, KIND) {
        return Err(BadReview::Other(shown(version, kind)));
    }
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err(BadReview::Other("no object".to_owned())),
    }
}

fn shown(version: &str, kind: &str) -> String {
    if kind.is_empty() && version.is_empty() {
        return "something without apiVersion and kind".to_owned();
    }
    let short = |text: &str| text.chars().take(64).collect::<String>();
    format!("a `{}` of `{}`", short(kind).escape_debug(), short(version).escape_debug())
}

fn request(review: &Map<String, Value>) -> Result<Request<'_>, BadReview> {
    let without = |what: &str| BadReview::Other(format!("an AdmissionReview without {what}"));
    let request = review.get("request").and_then(Value::as_object);
    let request = request.ok_or_else(|| without("request"))?;
    let word = |key: &str| request.get(key).and_then(Value::as_str).unwrap_or_default();
    let of_kind = |key: &str| {
        request.get("kind").and_then(|kind| kind.get(key)?.as_str()).unwrap_or_default()
    };
    if word("uid").is_empty() {
        return Err(without("request.uid"));
    }
    Ok(Request {
        uid: word("uid"),
        group: of_kind("group"),
        kind: of_kind("kind"),
        operation: word("operation"),
        sub_resource: word("subResource"),
        object: request.get("object").unwrap_or(&Value::Null),
    })
}

/// The pod as a document of its own: what is embedded may leave out what it is.
fn named(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.entry("apiVersion").or_insert_with(|| "v1".into());
        fields.entry("kind").or_insert_with(|| "Pod".into());
    }
    object
}

/// Whether a route has a service for its parent; others belong to gateways.
fn is_for_services(route: &Value) -> bool {
    let parents = route.pointer("/spec/parentRefs").and_then(Value::as_array);
    let Some(parents) = parents else { return false };
    let of = |parent: &Value| parent.get("kind").and_then(Value::as_str) == Some("Service");
    !parents.is_empty() && parents.iter().all(of)
}

fn allow(uid: &str, warnings: Vec<String>, patch: Option<&[u8]>) -> Value {
    let mut response = json!({"uid": uid, "allowed": true});
    if !warnings.is_empty() {
        let warnings = warnings.into_iter().take(MAX_WARNINGS);
        let cut = |text: String| text.chars().take(MAX_WARNING).collect::<String>();
        response["warnings"] = warnings.map(cut).collect();
    }
    if let Some(patch) = patch {
        response["patchType"] = "JSONPatch".into();
        response["patch"] = STANDARD.encode(patch).into();
    }
    json!({"apiVersion": API_VERSION, "kind": KIND, "response": response})
}

/// A refusal as Kubernetes' own: `kubectl` shows message and causes.
fn refuse(request: &Request<'_>, invalid: &Invalid) -> Value {
    let name = request.object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let causes: Vec<Value> = invalid
        .problems
        .iter()
        .map(|problem| {
            json!({"reason": "FieldValueInvalid", "field": problem.path, "message": problem.message})
        })
        .collect();
    let message = Refusal { kind: request.kind, name, invalid }.to_string();
    let details =
        json!({"group": request.group, "kind": request.kind, "name": name, "causes": causes});
    let status = json!({
        "status": "Failure", "code": 422, "reason": "Invalid", "message": message,
        "details": details,
    });
    let response = json!({"uid": request.uid, "allowed": false, "status": status});
    json!({"apiVersion": API_VERSION, "kind": KIND, "response": response})
}

struct Refusal<'a> {
    kind: &'a str,
    name: &'a str,
    invalid: &'a Invalid,
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} \"{}\" is invalid: {}", self.kind, self.name, self.invalid)
    }
}
