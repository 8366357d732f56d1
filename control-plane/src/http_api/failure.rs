//! Every error, as the `Status` object that Kubernetes clients understand.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header::RETRY_AFTER};
use leno_api::{Invalid, KindInfo, Problem};
use serde_json::{Value, json};

use crate::{
    access::Denied,
    objects::{self, Conflict, PatchError},
    registry, store,
    transport::CertificateEnded,
};

/// Seconds after which an overloaded server may be tried again.
const RETRY_SECONDS: u32 = 1;

#[derive(Debug)]
pub(super) struct Failure {
    code: StatusCode,
    /// The machine's word for it, one of Kubernetes' `StatusReason`s.
    reason: &'static str,
    message: String,
    /// `StatusDetails`: name, group, kind, causes.
    details: Value,
}

impl Failure {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null }
    }

    pub(super) fn code(&self) -> StatusCode {
        self.code
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    pub(super) fn no_such_path() -> Self {
        let message = "the server has no such path; `kubectl api-resources` lists what there is";
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    pub(super) fn method_not_allowed() -> Self {
        let message = "this cannot be done here: the method is not allowed for this path";
        Self::not_possible(message)
    }

    pub(super) fn not_possible(message: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    pub(super) fn not_acceptable(accept: &str, offered: &str) -> Self {
        let message = format!("cannot answer as {accept}; this is served as {offered}");
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    pub(super) fn unsupported_media_type(found: &str, supported: &str) -> Self {
        let message = format!("cannot read a body of type {found:?}; send {supported}");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    pub(super) fn body_too_large(limit: usize) -> Self {
        let message =
            format!("the request body is larger than {limit} bytes, the most accepted here");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
    }

    pub(super) fn body_timeout(seconds: u64) -> Self {
        let message = format!("the request body did not arrive within {seconds} s");
        Self::new(StatusCode::REQUEST_TIMEOUT, "Timeout", message)
    }

    pub(super) fn busy(message: impl Into<String>) -> Self {
        let mut failure = Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message);
        failure.details = json!({"retryAfterSeconds": RETRY_SECONDS});
        failure
    }

    pub(super) fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// A read was to be at least as new as a revision that does not exist yet.
    pub(super) fn not_yet(requested: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {requested}, current: {current}");
        let mut failure = Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message);
        let cause =
            json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
        failure.details = json!({"causes": [cause], "retryAfterSeconds": RETRY_SECONDS});
        failure
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    pub(super) fn not_found(kind: &KindInfo, name: &str) -> Self {
        let message = format!("{}.{} {name:?} not found", kind.plural, kind.group);
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(kind.group, kind.plural, name)
    }

    pub(super) fn already_exists(kind: &KindInfo, name: &str) -> Self {
        let message = format!("{}.{} {name:?} already exists", kind.plural, kind.group);
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message).about(
            kind.group,
            kind.plural,
            name,
        )
    }

    /// Somebody wrote in between.
    pub(super) fn conflict(kind: &KindInfo, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {}.{} {name:?}: {why}; please apply your changes to the latest version and try again",
            kind.plural, kind.group
        );
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(kind.group, kind.plural, name)
    }

    /// It will be possible when others have come as far.
    pub(super) fn not_ready(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "Conflict", message)
    }

    pub(super) fn invalid(kind: &KindInfo, name: &str, invalid: &Invalid) -> Self {
        let message = format!("{}.{} {name:?} is invalid: {invalid}", kind.kind, kind.group);
        let mut failure = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
            .about(kind.group, kind.kind, name);
        failure.details["causes"] = invalid.problems.iter().map(cause).collect();
        failure
    }

    /// Server-side apply met other owners; kubectl recognises the causes.
    fn apply_conflict(
        kind: &KindInfo,
        name: &str,
        conflicts: &[Conflict],
        message: String,
    ) -> Self {
        let mut failure = Self::new(StatusCode::CONFLICT, "Conflict", message).about(
            kind.group,
            kind.plural,
            name,
        );
        let cause = |conflict: &Conflict| json!({"reason": "FieldManagerConflict", "message": conflict.message(), "field": conflict.field});
        failure.details["causes"] = conflicts.iter().map(cause).collect();
        failure
    }

    pub(super) fn objects(kind: &KindInfo, name: &str, error: &objects::Error) -> Self {
        match error {
            objects::Error::Conflicts(conflicts) => {
                Self::apply_conflict(kind, name, conflicts, error.to_string())
            }
            objects::Error::Invalid { path, message } => {
                Self::invalid(kind, name, &Invalid::one(path, message))
            }
        }
    }

    pub(super) fn patch(kind: &KindInfo, name: &str, error: &PatchError) -> Self {
        match error {
            PatchError::Malformed(_) | PatchError::NotAnObject => {
                Self::bad_request(error.to_string())
            }
            PatchError::TooLarge | PatchError::TooMany { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", error.to_string())
            }
            PatchError::Failed(_) => {
                Self::invalid(kind, name, &Invalid::one("", error.to_string()))
            }
        }
    }

    /// Of several objects, of which each was refused for reasons of its own: as the first one, with
    /// the causes of all.
    pub(super) fn of_many(failures: Vec<(usize, Self)>) -> Self {
        let mut causes = Vec::new();
        let mut first = None;
        for (index, failure) in failures {
            let own = failure.details.get("causes").and_then(Value::as_array);
            match own {
                Some(own) if !own.is_empty() => causes.extend(own.iter().map(|c| at(index, c))),
                _ => causes.push(json!({"reason": failure.reason, "message": failure.message, "field": format!("[{index}]")})),
            }
            first.get_or_insert(failure);
        }
        let Some(first) = first else { return Self::internal("nothing failed") };
        let message = format!("nothing was applied: {}", first.message);
        Self { message, details: json!({"causes": causes}), ..first }
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        self.details = json!({"name": name, "group": group, "kind": kind});
        self
    }

    /// The `Status` object.
    pub(super) fn to_json(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code.as_u16(),
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}

fn cause(problem: &Problem) -> Value {
    json!({"reason": "FieldValueInvalid", "message": problem.message, "field": problem.path})
}

/// A cause within the object at a place of a list.
fn at(index: usize, cause: &Value) -> Value {
    let field = cause.get("field").and_then(Value::as_str).unwrap_or_default();
    let field = field.trim_start_matches('.');
    let dot = if field.is_empty() { "" } else { "." };
    let mut cause = cause.clone();
    cause["field"] = format!("[{index}]{dot}{field}").into();
    cause
}

/// What a successful deletion answers with.
pub(super) fn success(kind: &KindInfo, name: &str, uid: Option<&Value>) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": {"name": name, "group": kind.group, "kind": kind.plural, "uid": uid},
    })
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = (self.code, Json(self.to_json())).into_response();
        let headers = response.headers_mut();
        if self.details.get("retryAfterSeconds").is_some() {
            headers.insert(RETRY_AFTER, HeaderValue::from(RETRY_SECONDS));
        }
        if self.code == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"leno\"");
            headers.insert(http::header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        use store::Error;
        let message = error.to_string();
        match error {
            Error::Conflict { .. } => Self::new(StatusCode::CONFLICT, "Conflict", message),
            Error::TooOld { .. } | Error::NotYet { .. } => Self::expired(message),
            Error::ValueTooLarge { .. } | Error::TransactionTooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
            }
            Error::Full => Self::forbidden(message),
            Error::Closed => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
            }
            Error::NotJson { .. } | Error::Disk { .. } | Error::Open(_) => {
                tracing::error!(error = message, "the store failed a request");
                Self::internal(message)
            }
        }
    }
}

impl From<Denied> for Failure {
    fn from(denied: Denied) -> Self {
        let message = denied.to_string();
        match denied {
            Denied::NotAllowed { .. } => Self::forbidden(message),
            Denied::Tokens(_) => {
                tracing::error!(error = message, "callers cannot be told apart");
                Self::internal(message)
            }
            _ => Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", message),
        }
    }
}

impl From<CertificateEnded> for Failure {
    fn from(ended: CertificateEnded) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", ended.to_string())
    }
}

impl From<registry::Error> for Failure {
    fn from(error: registry::Error) -> Self {
        match error {
            registry::Error::NotLeased(_) => {
                Self::new(StatusCode::NOT_FOUND, "NotFound", error.to_string())
            }
            registry::Error::Store(error) => error.into(),
            other => Self::bad_request(other.to_string()),
        }
    }
}
