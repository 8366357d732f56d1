//! Answers of plugins in place of the upstream's.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};

use super::{
    run::{Failure, Run},
    state::Answer,
};

const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// An answer, and which plugin gave it.
#[derive(Debug)]
pub struct Answered {
    /// Which of the plugins.
    pub(super) at: usize,
    /// How many plugins it passes.
    pub(super) passes: usize,
    pub(super) answer: Box<Answer>,
    /// `shop/tag`.
    pub(super) label: Arc<str>,
}

impl Answered {
    /// For the access log: who answered, and why.
    pub fn detail(&self) -> String {
        let details = &self.answer.details;
        match details.is_empty() {
            true => format!("plugin {} answered", self.label),
            false => format!("plugin {} answered: {details}", self.label),
        }
    }
}

impl Run {
    /// Makes a response of a plugin's answer; the plugins before it see it like any other. `grpc`: as gRPC does.
    ///
    /// # Errors
    /// What the plugin answered is no HTTP.
    pub fn answer(&self, answered: Answered, grpc: bool) -> Result<Response<Vec<u8>>, Failure> {
        let Answered { at, passes, answer, label } = answered;
        self.responding.set(Some(passes));
        let code = u16::try_from(answer.status).ok().filter(|code| (200..=999).contains(code));
        let status = code.and_then(|code| StatusCode::from_u16(code).ok());
        let (Some(status), None) = (status, &answer.forbidden) else {
            self.places[at].count_failure();
            let what = answer.forbidden.as_deref().unwrap_or("gave a status that ends no request");
            return Err(Failure::of(&label, what));
        };
        let Answer { headers, body, grpc_status, .. } = *answer;
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        let kind = match grpc_status.filter(|_| grpc) {
            Some(code) => {
                *response.status_mut() = StatusCode::OK;
                let message = std::mem::take(response.body_mut());
                let message = percent_encode(&message, NON_ALPHANUMERIC).to_string();
                let message = HeaderValue::try_from(message);
                response.headers_mut().remove(header::CONTENT_TYPE);
                response.headers_mut().insert("grpc-status", HeaderValue::from(code));
                response.headers_mut().extend(message.ok().map(|text| (GRPC_MESSAGE, text)));
                HeaderValue::from_static("application/grpc")
            }
            None => HeaderValue::from_static("text/plain"),
        };
        if grpc_status.is_some_and(|_| grpc) || !response.body().is_empty() {
            response.headers_mut().entry(header::CONTENT_TYPE).or_insert(kind);
        }
        Ok(response)
    }
}
