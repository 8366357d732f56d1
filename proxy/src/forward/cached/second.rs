//! Asking the second tier, before the origin.

use std::sync::Arc;

use http::{Request, Response};

use super::{Call, Question, unix_now};
use crate::{
    cache::{
        body::StoredBody,
        candidate::{self, Answer},
        figures::Counters,
        fills::Lead,
        policy::{freshness::Times, reuse::Reuse},
        remote::codec::Entry,
        status::{Forward, Told},
        store::{Audience, Stored},
    },
    error::Error,
    forward::exchange::Exchange,
    http::body::Body,
};

impl Call {
    /// A response that others have left and that is an answer. One that only might still be good is something to ask the
    /// origin about, where nothing else is.
    pub(super) async fn ask_remote(
        &self,
        lead: &mut Lead,
        question: &mut Question,
        request: &Request<Body>,
    ) -> Option<Arc<Stored>> {
        let remote = self.cache().remote()?;
        if question.why == Forward::Request || self.directives.no_store {
            return None;
        }
        let found = remote.ask(&self.key, request.headers()).await;
        lead.note(found.seen);
        let stored = Arc::new(self.adopt(request, found.entry?)?);
        match self.reuse(&stored, unix_now()) {
            Reuse::Fresh | Reuse::Accepted => Some(stored),
            // Who leads fetches.
            Reuse::WhileRevalidate | Reuse::Validate(_) => {
                if !question.selected {
                    question.known.insert(0, stored);
                    question.selected = true;
                    question.why = Forward::Stale;
                }
                None
            }
        }
    }

    /// What others fetched, as if it came now: all that is decided about it is decided here again, but for its age.
    fn adopt(&self, request: &Request<Body>, entry: Entry) -> Option<Stored> {
        let Entry { status, headers, trailers, body, age, .. } = entry;
        let now = unix_now();
        let times = Times { requested: now, received: now };
        let answer = Answer { status, headers: &headers, times };
        let empty = Arc::new(StoredBody::default());
        let policy = self.cache().policy();
        let mut stored = candidate::of(policy, self.question(request), answer, empty).ok()?;
        if stored.audience != Audience::Everybody {
            return None;
        }
        stored.freshness.initial_age = age;
        let head = stored.size_of_head() as u64;
        let body = StoredBody::whole_in(self.cache().room(), &body, trailers, head)?;
        stored.body = Arc::new(body);
        Some(stored)
    }

    /// Keeps it here, too, and answers with it.
    pub(super) async fn send_remote(
        &self,
        exchange: &mut Exchange,
        lead: Lead,
        request: &Request<Body>,
        stored: Arc<Stored>,
    ) -> Result<Response<Body>, Error> {
        lead.keep(self.cache().store(), stored.clone());
        self.count_as(Counters::hit);
        let told = Told::hit(&stored.freshness, unix_now()).because("remote");
        self.send(exchange, request, &stored, told).await
    }
}
