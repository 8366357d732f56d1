//! Calls to user: HTTP/1.1 and JSON.

use super::{Answered, Way, http_client};
use crate::failure::Failure;
use crate::hop::{Hop, INSTANCE, Trace};
use crate::user::User;
use crate::{Label, Service};
use axum::body::Body;
use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;

const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// How much of an unexpected answer is worth repeating in an error.
const MAX_QUOTED_BYTES: usize = 200;

pub struct Users {
    way: Way,
    client: Client<HttpConnector, Body>,
}

impl Users {
    pub(super) fn new(way: Way) -> Self {
        Self { way, client: http_client() }
    }

    pub async fn find(&self, id: &Label, trace: &Trace) -> Result<Answered<User>, Failure> {
        let path = format!("/users/{id}");
        let (status, headers, body) = self.way.call(self.get(&path, trace)).await?;
        match status {
            StatusCode::OK => {
                let value = serde_json::from_slice(&body).map_err(|error| {
                    Failure::upstream(Service::User, format!("user answered nonsense: {error}"))
                })?;
                let hop = Hop::read(Service::User, format!("GET {path}"), &headers)?;
                Ok(Answered { value, hop })
            }
            // Only user itself knows; a proxy's 404 says that it knows no such service.
            StatusCode::NOT_FOUND if headers.contains_key(INSTANCE) => {
                Err(Failure::unprocessable(Service::User, format!("there is no user {id}")))
            }
            status => Err(unexpected(status, &body)),
        }
    }

    async fn get(
        &self,
        path: &str,
        trace: &Trace,
    ) -> Result<(StatusCode, HeaderMap, Bytes), Failure> {
        let unreachable = |error: &dyn std::error::Error| self.way.unreachable(error);
        let mut request = Request::get(format!("http://{}{path}", self.way.connect))
            .header(HOST, self.way.name.as_str())
            .body(Body::empty())
            .map_err(|error| unreachable(&error))?;
        request.headers_mut().extend(trace.headers());
        let answer = self.client.request(request).await.map_err(|error| unreachable(&error))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| unreachable(error.as_ref()))?.to_bytes();
        Ok((head.status, head.headers, body))
    }
}

fn unexpected(status: StatusCode, body: &[u8]) -> Failure {
    let quoted = String::from_utf8_lossy(body.get(..MAX_QUOTED_BYTES).unwrap_or(body));
    let message = format!("user answered {status}: {}", quoted.trim());
    match status {
        StatusCode::GATEWAY_TIMEOUT => Failure::new(status, Service::User, message),
        _ => Failure::upstream(Service::User, message),
    }
}
