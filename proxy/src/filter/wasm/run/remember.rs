//! What is kept of an exchange for plugins that ask later.

use http::{Request, Response};

use super::Run;
use crate::filter::wasm::{head, kept::Kept, state::Outcome};

impl Run {
    /// Remembers the request as it goes on, for plugins that ask later.
    pub fn keep_request<B>(&self, request: &Request<B>) {
        if self.needs.reads {
            // The first one counts: it is what was forwarded.
            self.state.request.get_or_init(|| {
                let (method, uri, headers) = (request.method(), request.uri(), request.headers());
                Kept::of(|visit| head::visit_request(method, uri, headers, visit))
            });
        }
    }

    /// Remembers the response as it goes on.
    pub fn keep_response<B>(&self, response: &Response<B>) {
        if self.needs.reads {
            self.state.response.get_or_init(|| {
                let (status, headers) = (response.status(), response.headers());
                Kept::of(|visit| head::visit_response(status, headers, visit))
            });
        }
    }

    /// Remembers how the exchange ended.
    pub fn conclude(&self, outcome: impl FnOnce() -> Outcome) {
        if self.needs.reads {
            self.state.outcome.get_or_init(|| Box::new(outcome()));
        }
    }
}
