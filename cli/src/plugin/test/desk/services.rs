//! Services that plugins call: what the script says that they answer.

use std::time::Duration;

use leno_wasm_host::{
    CallKind, CallToken, GrpcCall, Headers, HttpCall, HttpCallResponse, pairs::Pairs,
};

use super::{Reply, World};
use crate::plugin::test::{
    notes::{Note, text},
    script::{Failure, Service, When},
};

/// A call as services see it.
pub struct Call {
    upstream: String,
    method: String,
    path: String,
    headers: Headers,
    body: Vec<u8>,
}

pub fn owned(pairs: Pairs<'_>) -> Headers {
    pairs.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.to_vec())).collect()
}

impl Call {
    pub fn http(call: &HttpCall<'_>) -> Self {
        let of = |name: &[u8]| text(call.headers.first(name).unwrap_or_default());
        Self {
            upstream: text(call.upstream),
            method: of(b":method"),
            path: of(b":path"),
            headers: owned(call.headers),
            body: call.body.to_vec(),
        }
    }

    pub fn grpc(call: &GrpcCall<'_>) -> Self {
        Self {
            upstream: text(call.upstream),
            method: "POST".to_owned(),
            path: format!("/{}/{}", text(call.service), text(call.method)),
            headers: owned(call.metadata),
            body: call.message.to_vec(),
        }
    }
}

impl World {
    /// Makes a call. False: there is no such service.
    pub fn call(&mut self, call: &Call, token: CallToken, timeout: Duration) -> bool {
        self.calls += 1;
        let what = format!("{} {} of {}", call.method, call.path, call.upstream);
        let service = self
            .services
            .iter()
            .find(|service| service.name == call.upstream && service.when.fits(call));
        let Some(service) = service else {
            let reason = "the script has no service that answers it";
            self.notes.add(Note::Refused(format!("the call {what}: {reason}")));
            return false;
        };
        let (after, reply) = answer(service, token, timeout);
        self.answers.push((after, token, reply));
        self.notes.add(Note::Call { what, headers: call.headers.clone(), timeout });
        true
    }
}

impl When {
    fn fits(&self, call: &Call) -> bool {
        let header = |wanted: &(Vec<u8>, Vec<u8>)| call.headers.contains(wanted);
        self.method.as_ref().is_none_or(|method| *method == call.method)
            && self.path.as_ref().is_none_or(|path| *path == call.path)
            && self.headers.headers().iter().all(header)
            && self.body.as_ref().is_none_or(|body| body.fits(&call.body))
    }
}

/// What a plugin gets, and after which time. A failed HTTP call is an answer, too, as elsewhere.
fn answer(service: &Service, token: CallToken, timeout: Duration) -> (Duration, Reply) {
    let late = !timeout.is_zero() && service.after.0 > timeout;
    let failure = if late { Some(Failure::Timeout) } else { service.fails };
    let after = match failure {
        Some(Failure::Timeout) => timeout,
        _ => service.after.0,
    };
    if token.kind() == Some(CallKind::GrpcUnary) {
        /// DEADLINE_EXCEEDED and UNAVAILABLE of gRPC.
        const CODES: (u32, u32) = (4, 14);
        let status = match failure {
            None => service.grpc_status,
            Some(Failure::Timeout) => CODES.0,
            Some(Failure::Unreachable) => CODES.1,
        };
        let message = service.answer.body.portions().concat();
        return (after, Reply::Grpc { message, status });
    }
    let local = |status: &str, body: &str| HttpCallResponse {
        headers: vec![(b":status".to_vec(), status.as_bytes().to_vec())],
        body: body.as_bytes().to_vec(),
        trailers: Vec::new(),
    };
    let response = match failure {
        Some(Failure::Timeout) => local("504", "upstream request timeout"),
        Some(Failure::Unreachable) => local("503", "upstream connect error"),
        None => {
            let mut headers =
                vec![(b":status".to_vec(), service.answer.status.to_string().into_bytes())];
            headers.extend(service.answer.headers.headers());
            let body = service.answer.body.portions().concat();
            HttpCallResponse { headers, body, trailers: service.answer.trailers.headers() }
        }
    };
    (after, Reply::Http(response))
}
