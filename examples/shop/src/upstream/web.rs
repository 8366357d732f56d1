//! HTTP/1.1 and JSON, as user and the catalogue speak it.

use super::{Answered, Way, http_client};
use crate::failure::Failure;
use crate::hop::{Hop, INSTANCE, Trace};
use axum::body::Body;
use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use serde::de::DeserializeOwned;

const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// How much of an unexpected answer is worth repeating in an error.
const MAX_QUOTED_BYTES: usize = 200;

pub struct Web {
    way: Way,
    client: Client<HttpConnector, Body>,
}

impl Web {
    pub fn new(way: Way) -> Self {
        Self { way, client: http_client() }
    }

    /// What is at `path`, and the headers with which it came. `missing` is for a 404 of the service itself.
    pub async fn read<T: DeserializeOwned>(
        &self,
        path: &str,
        trace: &Trace,
        missing: &str,
    ) -> Result<(Answered<T>, HeaderMap), Failure> {
        let service = self.way.service;
        let (status, headers, body) = self.way.call(self.get(path, trace)).await?;
        match status {
            StatusCode::OK => {
                let value = serde_json::from_slice(&body).map_err(|error| {
                    Failure::upstream(service, format!("{service} answered nonsense: {error}"))
                })?;
                let hop = Hop::read(service, format!("GET {path}"), &headers)?;
                Ok((Answered { value, hop }, headers))
            }
            // Only the service itself knows; a proxy's 404 says that it knows no such service.
            StatusCode::NOT_FOUND if headers.contains_key(INSTANCE) => {
                Err(Failure::unprocessable(service, missing))
            }
            status => Err(self.unexpected(status, &body)),
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

    fn unexpected(&self, status: StatusCode, body: &[u8]) -> Failure {
        let service = self.way.service;
        let quoted = String::from_utf8_lossy(body.get(..MAX_QUOTED_BYTES).unwrap_or(body));
        let message = format!("{service} answered {status}: {}", quoted.trim());
        match status {
            StatusCode::GATEWAY_TIMEOUT => Failure::new(status, service, message),
            _ => Failure::upstream(service, message),
        }
    }
}
