//! Exchanges whose answers may come from our own memory (`CachePolicy`): looked up, waited for, fetched and kept.
//!
//! - [`answer`]: responses made of what is kept; [`arrive`]: bodies that are kept while they are passed on.
//! - [`fetch`]: asking the origin, and what its answer makes of what is kept; [`second`]: asking what sidecars share first.

mod answer;
mod arrive;
mod change;
mod fetch;
mod second;

pub(super) use change::Change;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{Method, Request, Response, StatusCode, header};
use http_body::Body as _;

use super::{
    attempt::{Received, with_body},
    exchange::{Exchange, Routed},
    plugins::Attempted,
    response::{self, Changes},
};
use crate::{
    cache::{
        Cache, Rules,
        figures::Counters,
        fills::{Begun, Outcome},
        key::{self, Key},
        policy::{
            directives::{self, Directives},
            freshness::Times,
            reuse::{self, Reuse, Windows},
        },
        status::{Forward, Told},
        store::Stored,
    },
    cluster::Cluster,
    error::{Error, Flag},
    http::body::Body,
    snapshot::Rule,
};

/// So many fetches that turn out to be for other variants are waited for.
const MOST_VARIANTS: u32 = 3;
/// A fetch for which nobody waits takes no longer.
const ASIDE: Duration = Duration::from_secs(60);

/// A call under a policy.
#[derive(Clone, Debug)]
struct Call {
    rules: Arc<Rules>,
    cluster: Arc<Cluster>,
    rule: Option<Arc<Rule>>,
    backend: Option<usize>,
    authority: Box<str>,
    key: Key,
    /// For whose fetch others wait: those with credentials and those without do not know whether they may share.
    fetch: Key,
    identity: Arc<str>,
    directives: Directives,
    /// Nobody waits for it, so that it is counted for nobody.
    aside: bool,
}

/// What there is for a request.
enum Found {
    /// It is answered with this.
    Answer(Arc<Stored>, Reuse),
    /// The origin has to be asked.
    Ask(Question),
}

/// What the origin is asked for.
#[derive(Clone, Debug)]
struct Question {
    /// What is kept and might still be good: the first one is what the request selects, where `selected`.
    known: Vec<Arc<Stored>>,
    selected: bool,
    why: Forward,
}

/// A call that is not answered yet.
pub(super) struct Waiting {
    call: Call,
    request: Request<Body>,
    /// What the origin has to be asked, where that is known already.
    question: Option<Question>,
}

/// Answers a request on a port or by a rule with a policy, if nothing has to be waited for.
///
/// # Errors
/// Something has.
pub(super) fn answer_at_once(
    exchange: &mut Exchange,
    rules: Arc<Rules>,
    routed: Routed,
    request: Request<Body>,
) -> Result<Result<Response<Body>, Error>, Box<Waiting>> {
    let call = Call::of(exchange, rules, routed, &request);
    if exchange.plugins.is_some() || call.passes(&request).is_some() {
        return Err(Box::new(Waiting { call, request, question: None }));
    }
    let now = unix_now();
    match call.look(&request, now) {
        Found::Answer(stored, reuse) => {
            let response = call.hit(exchange, &request, &stored, reuse, now);
            Ok(response::send_own_at_once(exchange, call.changes(), response))
        }
        Found::Ask(question) => Err(Box::new(Waiting { call, request, question: Some(question) })),
    }
}

impl Waiting {
    /// Answers the request.
    pub(super) async fn answer(self, exchange: &mut Exchange) -> Result<Response<Body>, Error> {
        let Self { call, request, question } = self;
        match call.passes(&request) {
            Some(why) => call.pass(exchange, request, why).await,
            None => call.serve(exchange, request, question).await,
        }
    }
}

impl Call {
    fn of(exchange: &Exchange, rules: Arc<Rules>, routed: Routed, request: &Request<Body>) -> Self {
        let authority = change::authority_of(request);
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        let parts = rules.cache.parts();
        let cluster = &routed.cluster.name;
        let key = key::of(&rules.service, cluster, authority, target, request.headers(), parts);
        // Without identities everybody behind this proxy is one and the same.
        let identity = exchange.worker.shared.identity.current();
        let identity = identity.map_or_else(|| Arc::from(""), |identity| identity.name().clone());
        let fetch = match request.headers().contains_key(header::AUTHORIZATION) {
            true => key.for_credentials(),
            false => key.clone(),
        };
        Self {
            authority: authority.into(),
            key,
            fetch,
            identity,
            aside: false,
            directives: Directives::of_request(request.headers()),
            cluster: routed.cluster,
            rule: routed.rule,
            backend: routed.backend,
            rules,
        }
    }

    fn cache(&self) -> &Cache {
        &self.rules.cache
    }

    fn changes(&self) -> Changes<'_> {
        Changes::of(self.rule.as_deref(), self.backend)
    }

    /// Why the cache has nothing to do with a request.
    fn passes(&self, request: &Request<Body>) -> Option<Forward> {
        let policy = self.cache().policy();
        let headers = request.headers();
        match *request.method() {
            Method::GET if !policy.get => return Some(Forward::Bypass),
            Method::HEAD if !policy.head => return Some(Forward::Bypass),
            Method::GET | Method::HEAD => {}
            _ => return Some(Forward::Method),
        }
        let for_the_origin = headers.contains_key(header::IF_MATCH)
            || headers.contains_key(header::IF_UNMODIFIED_SINCE)
            || !matches!(request.body(), Body::Empty);
        for_the_origin.then_some(Forward::Bypass)
    }

    /// Sends a request that is not answered from the store; what it changes at the origin is void here.
    async fn pass(
        &self,
        exchange: &mut Exchange,
        request: Request<Body>,
        why: Forward,
    ) -> Result<Response<Body>, Error> {
        let change = Change::of(&self.rules.service, &request);
        let is_post = *request.method() == Method::POST;
        let post = (is_post && self.cache().expects_posts()).then(|| {
            // Another change meanwhile makes the answer to this one void.
            let fill = self.cache().begin_alone(&self.fetch, &self.identity);
            (with_body(&request, Body::Empty), fill)
        });
        let requested = unix_now();
        let rule = self.rule.as_deref();
        let fetched = exchange.fetch(self.cluster.clone(), rule, request, None).await;
        let (admitted, mut received) = match fetched? {
            (admitted, Attempted::Received(received)) => (admitted, received),
            (_, Attempted::Answered(response)) => return Ok(response),
        };
        if is_post {
            let named = received.response.headers().contains_key(header::CONTENT_LOCATION);
            self.cache().note_post(named);
        }
        let post = post.filter(|(_, fill)| match fill {
            Begun::Lead(lead) => !lead.is_void(),
            Begun::Join(_) => false,
        });
        if let Some(change) = change {
            change.takes_effect(&exchange.worker.snapshot(), &received.response);
        }
        if let Some((request, _)) = post.filter(|_| self.brings_what_get_would(exchange, &received))
            && let Begun::Lead(lead) = self.cache().begin_alone(&self.fetch, &self.identity)
        {
            let times = Times { requested, received: unix_now() };
            let question = Question { known: Vec::new(), selected: false, why };
            return self
                .take(exchange, lead, &question, &request, (admitted, received, times))
                .await;
        }
        self.tell(exchange, Told::forwarded(why), &mut received.response);
        exchange.pass_on(admitted, self.changes(), received, None).await
    }

    /// Whether the response to a POST may be worth keeping (RFC 9110 section 9.3.3); what exactly it says is looked at
    /// when it is kept. The request must be through: its connection is given back when the response is.
    fn brings_what_get_would(&self, exchange: &Exchange, received: &Received) -> bool {
        let sent = exchange.progress.as_ref().is_none_or(|progress| progress.is_sent());
        sent && received.response.headers().contains_key(header::CONTENT_LOCATION)
    }

    async fn serve(
        &self,
        exchange: &mut Exchange,
        request: Request<Body>,
        mut looked: Option<Question>,
    ) -> Result<Response<Body>, Error> {
        // What may not be kept is of no use to others.
        let mut alone = self.directives.no_store;
        let mut rounds = 0;
        let mut until = None;
        loop {
            let now = unix_now();
            let found = looked.take().map_or_else(|| self.look(&request, now), Found::Ask);
            let question = match found {
                Found::Answer(stored, reuse) => {
                    let response = self.hit(exchange, &request, &stored, reuse, now);
                    return response::send_own(exchange, self.changes(), response).await;
                }
                Found::Ask(question) => question,
            };
            if self.directives.only_if_cached {
                // RFC 9111 section 5.2.1.7.
                self.count(exchange);
                self.count_as(Counters::miss);
                let detail = "nothing is kept, and the caller wants nothing else";
                return Err(Error::ours(StatusCode::GATEWAY_TIMEOUT, Flag::None, detail));
            }
            if !question.fills(&request) {
                self.count_as(Counters::miss);
                return self.pass(exchange, request, question.why).await;
            }
            let begun = match alone {
                true => self.cache().begin_alone(&self.fetch, &self.identity),
                false => {
                    let now = exchange.worker.shared.now();
                    self.cache().begin(&self.fetch, &self.identity, request.headers(), now)
                }
            };
            let mut others = match begun {
                Begun::Lead(_) if self.was_kept_meanwhile(&question, &request) => continue,
                Begun::Lead(lead) => return self.fetch(exchange, lead, question, request).await,
                Begun::Join(others) => others,
            };
            // All of it together: however many go away of those who are waited for.
            let wait = self.cache().policy().collapse_wait;
            let until = *until.get_or_insert_with(|| tokio::time::Instant::now() + wait);
            let told = others.wait_for(|outcome| !matches!(outcome, Outcome::Pending));
            let outcome = match tokio::time::timeout_at(until, told).await {
                Ok(Ok(outcome)) => outcome.clone(),
                Ok(Err(_)) => Outcome::Abandoned,
                Err(_) => Outcome::Own,
            };
            match outcome {
                Outcome::Here(stored) if self.may_use(&stored, &request) => {
                    self.count_as(Counters::collapsed);
                    let told = Told::Forwarded {
                        why: question.why,
                        status: None,
                        stored: true,
                        collapsed: true,
                        detail: None,
                    };
                    return self.send(exchange, &request, &stored, told).await;
                }
                Outcome::Failed(error) => {
                    return self.instead_of(exchange, &question, &request, error, None).await;
                }
                // One after the other, as long as they wait: together they would be what makes room scarce.
                Outcome::Abandoned | Outcome::NoRoom | Outcome::Pending => {}
                // Another variant: others may want the same one as this request.
                Outcome::Here(stored) if !stored.selection.matches(request.headers()) => {
                    rounds += 1;
                    alone = rounds > MOST_VARIANTS;
                }
                Outcome::Here(stored) => {
                    if self.is_good_for_one(&stored) {
                        self.cache().set_apart(&self.fetch, exchange.worker.shared.now());
                    }
                    alone = true;
                }
                Outcome::Own => alone = true,
            }
        }
    }

    /// The answer to a request for which there is one.
    fn hit(
        &self,
        exchange: &mut Exchange,
        request: &Request<Body>,
        stored: &Arc<Stored>,
        reuse: Reuse,
        now: Duration,
    ) -> Response<Body> {
        if reuse == Reuse::WhileRevalidate {
            self.revalidate(exchange, stored, request);
        }
        match reuse {
            Reuse::Fresh => self.count_as(Counters::hit),
            _ => self.count_as(Counters::stale),
        }
        self.of_stored(exchange, request, stored, Told::hit(&stored.freshness, now), now)
    }

    /// What is kept for a request.
    fn look(&self, request: &Request<Body>, now: Duration) -> Found {
        let shelf = self.cache().store().look_up(&self.key.shelf).unwrap_or_default();
        let mut selected = shelf.select(&self.identity, &self.key.extra, request.headers());
        if let Some(stored) = selected.next() {
            let why = match self.reuse(stored, now) {
                Reuse::Validate(why) => why,
                reuse => return Found::Answer(stored.clone(), reuse),
            };
            let known = shelf.of_audience(&self.identity, &self.key.extra);
            let others = known.filter(|other| !Arc::ptr_eq(other, stored));
            let known = std::iter::once(stored).chain(others).cloned().collect();
            return Found::Ask(Question { known, selected: true, why: why.into() });
        }
        let known = shelf.of_audience(&self.identity, &self.key.extra).cloned();
        let known: Vec<_> = known.collect();
        let why = if known.is_empty() { Forward::UriMiss } else { Forward::VaryMiss };
        Found::Ask(Question { known, selected: false, why })
    }

    /// Whether another worker's fetch for the same came to its end between our look and our beginning.
    fn was_kept_meanwhile(&self, question: &Question, request: &Request<Body>) -> bool {
        !question.selected && matches!(self.look(request, unix_now()), Found::Answer(..))
    }

    fn reuse(&self, stored: &Stored, now: Duration) -> Reuse {
        let windows = self.windows();
        reuse::decide(&self.directives, &stored.directives, &stored.freshness, windows, now)
    }

    fn windows(&self) -> Windows {
        let policy = self.cache().policy();
        Windows { while_revalidate: policy.stale_while_revalidate, if_error: policy.stale_if_error }
    }

    /// Whether what another request fetched is this one's answer, too.
    fn may_use(&self, stored: &Stored, request: &Request<Body>) -> bool {
        stored.selection.matches(request.headers())
            && !matches!(self.reuse(stored, unix_now()), Reuse::Validate(_))
    }

    /// Whether every request has to ask about it: nobody gains by waiting for another's answer.
    fn is_good_for_one(&self, stored: &Stored) -> bool {
        let anybody = Directives::default();
        let (directives, freshness) = (&stored.directives, &stored.freshness);
        let reuse = reuse::decide(&anybody, directives, freshness, self.windows(), unix_now());
        matches!(reuse, Reuse::Validate(_))
    }

    /// Asks the origin about what was used although it is stale, unless somebody is doing that already.
    fn revalidate(&self, exchange: &Exchange, stored: &Arc<Stored>, request: &Request<Body>) {
        let Begun::Lead(lead) = self.cache().begin_aside(&self.fetch, &self.identity) else {
            return;
        };
        let question =
            Question { known: vec![stored.clone()], selected: true, why: Forward::Stale };
        let (call, mut aside) = (Self { aside: true, ..self.clone() }, exchange.aside());
        // Whatever of it this caller wanted, and however: all of it is asked for.
        let mut request = with_body(request, Body::Empty);
        *request.method_mut() = Method::GET;
        // The caller wanted nothing but what is kept; a cache behind us would take that for its answer.
        directives::without(request.headers_mut(), "only-if-cached");
        tokio::task::spawn_local(async move {
            let fetching = call.fetch(&mut aside, lead, question, request);
            match tokio::time::timeout(ASIDE, fetching).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::debug!("{}: {}", call.key.shelf, error.detail),
                Err(_) => tracing::debug!("{}: no answer within {ASIDE:?}", call.key.shelf),
            }
        });
    }

    /// Answers with what is kept, or is just arriving.
    async fn send(
        &self,
        exchange: &mut Exchange,
        request: &Request<Body>,
        stored: &Stored,
        told: Told,
    ) -> Result<Response<Body>, Error> {
        let response = self.of_stored(exchange, request, stored, told, unix_now());
        response::send_own(exchange, self.changes(), response).await
    }

    fn of_stored(
        &self,
        exchange: &mut Exchange,
        request: &Request<Body>,
        stored: &Stored,
        told: Told,
        now: Duration,
    ) -> Response<Body> {
        let mut response = answer::of(request, stored, now);
        if let Some(length) = response.body().size_hint().exact()
            && !self.aside
        {
            self.cache().counters().saved(length);
        }
        self.tell(exchange, told, &mut response);
        self.count(exchange);
        response
    }

    fn tell<B>(&self, exchange: &mut Exchange, told: Told, response: &mut Response<B>) {
        told.append(response.headers_mut());
        exchange.note(|record| record.cache = Some(told.word()));
    }

    /// Every request is counted as one thing.
    fn count_as(&self, what: fn(&Counters)) {
        if !self.aside {
            what(self.cache().counters());
        }
    }

    /// Counts the exchange for the service, where no endpoint of it was reached.
    fn count(&self, exchange: &mut Exchange) {
        exchange.count_for(&self.cluster);
        exchange.note_for_log(|record| record.cluster = Some(self.cluster.name.clone()));
    }
}

impl Question {
    /// Whether the answer to the whole question is worth having: not for a part of something large, and not for a head.
    fn fills(&self, request: &Request<Body>) -> bool {
        let part = request.headers().contains_key(header::RANGE) && !self.selected;
        *request.method() == Method::GET && !part
    }
}

/// The time since the Unix epoch: ages of responses are told in the time of the world.
fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
