//! The one place every HTTP and gRPC answer passes: late, refused, stamped, counted.

use crate::failure::Failure;
use crate::hop::{INSTANCE, VERSION};
use crate::instance::{Instance, Turn};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use std::sync::Arc;

/// Probes feel the faults like everybody else, but do not blur the counts.
const HEALTH: &str = "/health";

pub async fn answer(
    State(instance): State<Arc<Instance>>,
    request: Request,
    next: Next,
) -> Response {
    let turn = instance.turn();
    let counted = request.uri().path() != HEALTH;
    tokio::time::sleep(turn.delay).await;
    let mut response = match turn.fails {
        true if is_grpc(request.headers()) => tonic::Status::unavailable(REFUSAL).into_http(),
        true => refusal(&instance),
        false => next.run(request).await,
    };
    stamp(response.headers_mut(), &instance, &turn);
    if counted {
        instance.count(&turn);
    }
    response
}

pub async fn health() -> &'static str {
    "ok\n"
}

const REFUSAL: &str = "told by the control port to fail";

fn refusal(instance: &Instance) -> Response {
    Failure::new(StatusCode::SERVICE_UNAVAILABLE, instance.service, REFUSAL).into_response()
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

fn stamp(headers: &mut HeaderMap, instance: &Instance, turn: &Turn) {
    for (name, label) in [(INSTANCE, &instance.name), (VERSION, &turn.version)] {
        if let Ok(value) = HeaderValue::from_str(label.as_str()) {
            headers.insert(name, value);
        }
    }
}
