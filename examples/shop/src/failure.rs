//! Errors as customers see them: a status, the service to blame, a sentence.

use crate::Service;
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::json;

#[derive(Debug)]
pub struct Failure {
    pub status: StatusCode,
    pub service: Service,
    pub message: String,
}

impl Failure {
    pub fn new(status: StatusCode, service: Service, message: impl Into<String>) -> Self {
        Self { status, service, message: message.into() }
    }

    /// A request that reads well but cannot be done.
    pub fn unprocessable(service: Service, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, service, message)
    }

    /// A request that does not even read well.
    pub fn unreadable(service: Service, rejection: &JsonRejection) -> Self {
        Self::new(rejection.status(), service, rejection.body_text())
    }

    /// Another service, or the way to it, let us down.
    pub fn upstream(service: Service, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, service, message)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = json!({ "error": self.message, "service": self.service });
        (self.status, Json(body)).into_response()
    }
}

/// An error with all its causes, which libraries like to keep to themselves.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
