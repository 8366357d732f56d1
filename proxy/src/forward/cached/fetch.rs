//! Asking the origin, and what its answer makes of what is kept.

use std::{sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode, header};
use http_body::Body as _;

use super::{
    Call, Question, answer,
    arrive::{self, Arriving, Returning},
    unix_now,
};
use crate::{
    cache::{
        body::StoredBody,
        candidate::{self, Answer},
        figures::Counters,
        fills::{Lead, Outcome},
        policy::{
            directives::{CAPABILITY, SURROGATE_CAPABILITY},
            freshness::Times,
            reuse,
            storing::NotStored,
            validation,
        },
        status::{STALE_IF_ERROR, Told},
        store::Stored,
    },
    cluster::Admitted,
    error::{Error, Fault, Flag, Retry},
    forward::{
        attempt::{self, Received},
        exchange::Exchange,
        plugins::Attempted,
        response::{self, Held},
    },
    http::body::{Body, Limits},
};

/// Upstream may pause so long within a body that is kept: whoever asked for it may be gone.
const IDLE: Duration = Duration::from_secs(60);

/// Why a response is not kept that another time would be.
const NO_ROOM: &str = "no-room";

impl Call {
    /// Asks the origin, tells others who wait for the same, and answers.
    pub(super) async fn fetch(
        &self,
        exchange: &mut Exchange,
        mut lead: Lead,
        mut question: Question,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        if let Some(stored) = self.ask_remote(&mut lead, &mut question, &request).await {
            return self.send_remote(exchange, lead, &request, stored).await;
        }
        loop {
            let mut asking = attempt::with_body(&request, Body::Empty);
            // Other callers' answers are made of the same one: what is asked for is all of it.
            asking.headers_mut().remove(header::RANGE);
            asking.headers_mut().append(SURROGATE_CAPABILITY, CAPABILITY);
            if !question.selected {
                // A date says nothing of which variant it is of: only tags do.
                question.known.retain(|stored| stored.headers.contains_key(header::ETAG));
            }
            let known: Vec<_> = question.known.iter().map(|stored| &stored.headers).collect();
            let conditional = validation::ask(asking.headers_mut(), &known, question.selected);
            let requested = unix_now();
            let rule = self.rule.as_deref();
            let fetched = exchange.fetch(self.cluster.clone(), rule, asking, None).await;
            let (admitted, received) = match fetched {
                Ok((admitted, Attempted::Received(received))) => (admitted, received),
                Ok((_, Attempted::Answered(response))) => {
                    lead.tell(Outcome::Own);
                    return Ok(response);
                }
                Err(error) => {
                    if error.fault == Fault::Upstream || error.flag == Flag::UH {
                        lead.tell(Outcome::Failed(error.clone()));
                    }
                    return self.instead_of(exchange, &question, &request, error, None).await;
                }
            };
            let times = Times { requested, received: unix_now() };
            let status = received.response.status();
            if status == StatusCode::NOT_MODIFIED && conditional {
                let headers = received.response.headers();
                // Who asked about one thing was answered about that one, whatever else the answer says.
                let one = question.known.len() == 1;
                let about =
                    |stored: &&Arc<Stored>| one || validation::is_about(headers, &stored.headers);
                match question.known.iter().find(about).cloned() {
                    Some(stored) => {
                        let fresh = (&stored, &received.response, times);
                        let freshened = self.freshen(exchange, lead, fresh, (&request, &question));
                        let own = validation::own_cookies(headers, &stored.headers);
                        received.discard(&admitted);
                        self.count_as(Counters::validated);
                        let told = self.kept(&question, Some(status));
                        let answer = self.send(exchange, &request, &freshened, told).await;
                        return answer.map(|mut answer| {
                            for cookie in own {
                                answer.headers_mut().append(header::SET_COOKIE, cookie);
                            }
                            answer
                        });
                    }
                    None => {
                        // About nothing that is here: what there is now has to be asked for without conditions.
                        question.known.clear();
                        received.discard(&admitted);
                        continue;
                    }
                }
            }
            if is_failure(status) && self.may_replace(&question).is_some() {
                let error = self.failed(status);
                lead.tell(Outcome::Failed(error.clone()));
                received.discard(&admitted);
                let status = Some(status);
                return self.instead_of(exchange, &question, &request, error, status).await;
            }
            self.count_as(Counters::miss);
            return self
                .take(exchange, lead, &question, &request, (admitted, received, times))
                .await;
        }
    }

    /// Keeps the response if it may be kept, and passes it on.
    pub(super) async fn take(
        &self,
        exchange: &mut Exchange,
        lead: Lead,
        question: &Question,
        request: &Request<Body>,
        (admitted, mut received, times): (Admitted, Received, Times),
    ) -> Result<Response<Body>, Error> {
        let stored = match self.candidate(exchange, request, &received.response, times) {
            Ok(stored) => Arc::new(stored),
            Err(reason) => {
                let status = received.response.status();
                if !is_failure(status) {
                    self.replace(&lead, question, reason);
                }
                self.release(exchange, &lead, status, reason);
                drop(lead);
                let told = Told::forwarded(question.why).because(reason);
                self.tell(exchange, told, &mut received.response);
                return exchange.pass_on(admitted, self.changes(), received, None).await;
            }
        };
        let Received { response, lease, connection, deadline } = received;
        let (head, body) = response.into_parts();
        let length = body.size_hint().exact();
        let held = Held { connection, cluster: admitted, lease };
        let limits = Limits { idle: IDLE, deadline, grpc: false };
        let ended = body.is_end_stream();
        let upstream = Body::passing(body, limits, Box::new(Returning(Some(held))));
        let get = *request.method() == Method::GET;
        let has_it = get && answer::has_it(request.headers(), &stored);
        let not_modified = has_it.then(|| validation::not_modified_fields(&stored.headers));
        let body = match ended {
            true => {
                drop(upstream);
                stored.body.finish(None);
                self.cache().keep(lead, stored);
                Body::Empty
            }
            false => {
                let cache = self.rules.cache.clone();
                arrive::begin(Arriving { cache, lead, stored, length }, upstream)
            }
        };
        let mut response = Response::from_parts(head, body);
        if let Some(fields) = not_modified {
            response = Response::new(Body::Empty);
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            *response.headers_mut() = fields;
        }
        let told = self.kept(question, None);
        self.tell(exchange, told, &mut response);
        response::send_own(exchange, self.changes(), response).await
    }

    /// The response as it is to be kept, with room for its body.
    pub(super) fn candidate<B: http_body::Body>(
        &self,
        exchange: &Exchange,
        request: &Request<Body>,
        response: &Response<B>,
        times: Times,
    ) -> Result<Stored, &'static str> {
        self.is_of_one_identity(exchange)?;
        let length = response.body().size_hint().exact();
        if length.is_some_and(|length| length > self.cache().policy().max_object_bytes) {
            return Err("too-large");
        }
        let answer = Answer { status: response.status(), headers: response.headers(), times };
        let body = Arc::new(StoredBody::arriving(self.cache().room().clone(), length));
        let policy = self.cache().policy();
        let stored = candidate::of(policy, self.question(request), answer, body)?;
        let head = stored.size_of_head() as u64;
        match self.cache().reserve(&stored.body, head + length.unwrap_or_default()) {
            true => Ok(stored),
            false => Err(NO_ROOM),
        }
    }

    pub(super) fn question<'a>(&'a self, request: &'a Request<Body>) -> candidate::Question<'a> {
        candidate::Question {
            method: request.method(),
            authority: &self.authority,
            target: request.uri(),
            headers: request.headers(),
            directives: &self.directives,
            identity: &self.identity,
            extra: &self.key.extra,
        }
    }

    /// A connection speaks for who we are when it is taken. If that has changed since the key was made, nobody knows for
    /// whom the answer is.
    fn is_of_one_identity(&self, exchange: &Exchange) -> Result<(), &'static str> {
        let now = exchange.worker.shared.identity.current();
        let same = now.map_or(self.identity.is_empty(), |now| **now.name() == *self.identity);
        same.then_some(()).ok_or("identity-changed")
    }

    /// Takes over what a 304 says of a stored response.
    fn freshen<B>(
        &self,
        exchange: &Exchange,
        lead: Lead,
        (old, not_modified, times): (&Arc<Stored>, &Response<B>, Times),
        (request, question): (&Request<Body>, &Question),
    ) -> Arc<Stored> {
        let mut headers = old.headers.clone();
        validation::update(&mut headers, not_modified.headers());
        let answer = Answer { status: old.status, headers: &headers, times };
        let policy = self.cache().policy();
        let candidate = self
            .is_of_one_identity(exchange)
            .and_then(|()| candidate::of(policy, self.question(request), answer, old.body.clone()));
        match candidate {
            Ok(new) => {
                let new = Arc::new(new);
                self.cache().keep(lead, new.clone());
                new
            }
            // It is confirmed for this caller, but what was confirmed may not be kept any more.
            Err(reason) => {
                self.replace(&lead, question, reason);
                lead.tell(Outcome::Own);
                old.clone()
            }
        }
    }

    /// The origin has another answer now for what this request selects, which is not kept: what was kept before would go
    /// on being served as long as it may be stale. Where it is this request alone that is not to be kept, nothing is said
    /// of others.
    fn replace(&self, lead: &Lead, question: &Question, reason: &str) {
        if [NO_ROOM, NotStored::RequestNoStore.as_str(), NotStored::Authorization.as_str()]
            .contains(&reason)
        {
            return;
        }
        if let Some(old) = question.known.first().filter(|_| question.selected) {
            self.cache().discard(lead.shelf(), old);
        }
    }

    /// What is done when the origin could not be asked, or answered with an error: a stale response is better than that.
    pub(super) async fn instead_of(
        &self,
        exchange: &mut Exchange,
        question: &Question,
        request: &Request<Body>,
        error: Error,
        status: Option<StatusCode>,
    ) -> Result<Response<Body>, Error> {
        let Some(stored) = self.may_replace(question) else {
            self.count_as(Counters::miss);
            return Err(error);
        };
        self.count_as(Counters::stale);
        let told = Told::Forwarded {
            why: question.why,
            status: status.map(|status| status.as_u16()),
            stored: false,
            collapsed: false,
            detail: Some(STALE_IF_ERROR),
        };
        self.send(exchange, request, stored, told).await
    }

    /// The stale response that may be used instead of an error.
    fn may_replace<'a>(&self, question: &'a Question) -> Option<&'a Arc<Stored>> {
        let stored = question.known.first().filter(|_| question.selected)?;
        let usable = reuse::decide_on_error(
            &self.directives,
            &stored.directives,
            &stored.freshness,
            self.windows(),
            unix_now(),
        );
        usable.then_some(stored)
    }

    /// What is said of a request whose response is kept.
    fn kept(&self, question: &Question, status: Option<StatusCode>) -> Told {
        let status = status.map(|status| status.as_u16());
        Told::Forwarded { why: question.why, status, stored: true, collapsed: false, detail: None }
    }

    /// What others hear of an answer with this status.
    fn failed(&self, status: StatusCode) -> Error {
        let detail = format!("{}: the origin answered {status}", self.rules.service);
        Error::upstream(status, Flag::None, Retry::Unsafe, detail)
    }

    /// Tells others that the response is not for them. An error they get, too: many requests must not make many of them.
    fn release(&self, exchange: &Exchange, lead: &Lead, status: StatusCode, reason: &str) {
        if is_failure(status) {
            lead.tell(Outcome::Failed(self.failed(status)));
        } else if reason == NO_ROOM {
            lead.tell(Outcome::NoRoom);
        } else {
            lead.tell(Outcome::Own);
            // What this caller wants says nothing of the next.
            if !self.directives.no_store {
                self.cache().set_apart(&self.fetch, exchange.worker.shared.now());
            }
        }
    }
}

/// RFC 5861 section 4.
fn is_failure(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}
