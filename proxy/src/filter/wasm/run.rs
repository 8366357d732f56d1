//! One exchange on its way through the plugins of a chain: heads and answers. Bodies are in [`super::body`].
//!
//! What a plugin has in hands lives inside of its instance and comes back as soon as the plugin lets it go on. When the
//! instance breaks, all that it had comes back by [`super::state`], and the plugin's failure policy decides.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use http::{Request, Response, StatusCode};
use leno_api::model::wasm_plugin::{FailurePolicy, Phase, PluginType};
use leno_wasm_host::{Action, ContextId};

use super::{
    answer::Answered,
    head::{RequestHead, ResponseHead},
    place::{Place, places},
    plugin::Chain,
    seat::{Broken, Seats},
    state::{Contents, Facts, Outcome, State},
    stream::PluginStream,
};

mod held;

/// A plugin may hold an exchange this long. Whoever waits for an answer has timeouts of its own, much shorter.
const PAUSE_LIMIT: Duration = Duration::from_secs(60);

/// The plugins of one exchange.
pub struct Run {
    pub(super) state: Rc<State>,
    pub(super) kind: PluginType,
    pub(super) places: Box<[Place]>,
    /// Behind them there is one that cannot run yet, and must not be left out.
    pub(super) blocked: Option<(Phase, Failure)>,
    /// How many of them the request has come to.
    pub(super) reached: Cell<usize>,
    /// How many of those the response passes; known once there is one.
    pub(super) responding: Cell<Option<usize>>,
    /// All of them have seen its head.
    responded: Cell<bool>,
    /// Why the exchange cannot go on, found where only a body moves.
    pub(super) failure: RefCell<Option<Failure>>,
    finished: Cell<bool>,
    /// How long a plugin may hold it.
    pub(super) patience: Cell<Duration>,
}

/// Which way something moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// From the caller.
    Request,
    /// To the caller.
    Response,
}

/// Why plugins end an exchange.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What the caller is told, if it can be told.
    pub status: StatusCode,
    /// For logs: which plugin, and why.
    pub detail: String,
}

/// What became of a head that a plugin was shown.
enum Asked<H> {
    /// It goes on, or the answer takes its place.
    LetGo(H, Option<Answered>),
    /// The plugin has it.
    Holds,
    Failed(Failure),
}

/// What became of a head that was held.
pub(super) enum Resumed {
    Continued,
    Answered(Answered),
    /// The instance broke.
    Lost,
}

impl Run {
    /// For the plugins of a chain that see HTTP; `None` if there are none. `random` decides which exchanges are for
    /// versions on trial.
    pub fn begin(
        seats: &Seats,
        chain: &Chain,
        facts: impl FnOnce() -> Facts,
        random: impl Fn() -> u64,
    ) -> Option<Rc<Self>> {
        Self::of(PluginType::Http, seats, chain, facts, random)
    }

    pub(super) fn of(
        kind: PluginType,
        seats: &Seats,
        chain: &Chain,
        facts: impl FnOnce() -> Facts,
        random: impl Fn() -> u64,
    ) -> Option<Rc<Self>> {
        let (places, blocked) = places(seats, chain, kind, random);
        if places.is_empty() && blocked.is_none() {
            return None;
        }
        Some(Rc::new(Self {
            state: Rc::new(State::new(facts(), places.len())),
            kind,
            places,
            blocked,
            reached: Cell::new(0),
            responding: Cell::new(None),
            responded: Cell::new(false),
            failure: RefCell::default(),
            finished: Cell::new(false),
            patience: Cell::new(PAUSE_LIMIT),
        }))
    }

    /// Shows the request's head to the plugins up to and including a phase. `end`: it has no body. An answer takes the
    /// place of everything that would follow. Says too whether path or host were changed.
    ///
    /// # Errors
    /// A plugin failed that may not be left out.
    pub async fn request_head<B>(
        &self,
        up_to: Phase,
        request: &mut Request<B>,
        end: bool,
    ) -> Result<Passed, Failure> {
        let mut retargeted = false;
        while let Some(place) = self.places.get(self.reached.get())
            && place.phase <= up_to
        {
            let at = self.reached.get();
            self.reached.set(at + 1);
            let head = RequestHead::take(request);
            let answered = match self.ask_request(at, head, end) {
                Asked::LetGo(head, answered) => {
                    self.take_back(at, head, request, &mut retargeted)?;
                    answered
                }
                Asked::Failed(failure) => return Err(failure),
                // On the heap, as most plugins hold nothing and all exchanges would be larger.
                Asked::Holds => {
                    let (head, answered) = Box::pin(self.held_request(at)).await?;
                    self.take_back(at, head, request, &mut retargeted)?;
                    answered
                }
            };
            if let Some(answered) = answered {
                return Ok(Passed::Answered(answered));
            }
        }
        match &self.blocked {
            Some((phase, failure)) if *phase <= up_to => Err(failure.clone()),
            _ => Ok(Passed::On { retargeted }),
        }
    }

    /// Puts a head back that a plugin has let go of.
    fn take_back<B>(
        &self,
        at: usize,
        mut head: RequestHead,
        request: &mut Request<B>,
        retargeted: &mut bool,
    ) -> Result<(), Failure> {
        *retargeted |= head.retargeted;
        let forbidden = head.forbidden.take();
        head.put(request);
        forbidden.map_or(Ok(()), |what| self.excuse(&self.places[at], &what))
    }

    fn ask_request(&self, at: usize, head: RequestHead, end: bool) -> Asked<RequestHead> {
        let place = &self.places[at];
        let count = head.count();
        let contents = Contents { request: Some(head), ..Contents::default() };
        let stream = PluginStream::new(self.state.clone(), at, contents);
        let called = place.seat.call(&self.state, 2, |instance| {
            let (context, created) = instance.create_context(stream);
            place.context.set(Some((place.seat.generation(), context)));
            created?;
            let action = instance.on_request_headers(context, count, end)?;
            let stream = instance.stream_mut(context).filter(|_| action == Action::Continue);
            Ok(stream.and_then(|stream| stream.contents.request.take()))
        });
        place.plugin.figures.exchange();
        match called {
            Ok(Some(_)) if self.state.marks[at].closed.get() => Asked::Failed(self.closed(at)),
            Ok(Some(head)) => Asked::LetGo(head, self.answer_of(at, at + 1)),
            Ok(None) => Asked::Holds,
            Err(broken) => {
                let head = self.lost_head(at);
                match self.failed(place, &broken) {
                    Ok(()) => Asked::LetGo(head, None),
                    Err(failure) => Asked::Failed(failure),
                }
            }
        }
    }

    /// Shows the response's head to the plugins that have seen the request, backwards. `end`: it has no body.
    ///
    /// # Errors
    /// A plugin failed that may not be left out.
    pub async fn response_head<B>(
        &self,
        response: &mut Response<B>,
        end: bool,
    ) -> Result<Option<Answered>, Failure> {
        let passes = self.responding.get().unwrap_or_else(|| self.reached.get());
        self.responding.set(Some(passes));
        for at in (0..passes).rev() {
            let place = &self.places[at];
            if place.bypassed.get() || place.context.get().is_none() {
                continue;
            }
            let headers = std::mem::take(response.headers_mut());
            let head = ResponseHead::new(response.status(), headers);
            let asked = match self.ask_response(at, head, end) {
                Asked::LetGo(head, answered) => Ok((head, answered)),
                Asked::Failed(failure) => Err(failure),
                // As above.
                Asked::Holds => Box::pin(self.held_response(at)).await,
            };
            // Whatever takes its place is seen by those that come after.
            let failed = |_: &Failure| self.responding.set(Some(at));
            let (head, answered) = asked.inspect_err(failed)?;
            *response.status_mut() = head.status;
            *response.headers_mut() = head.headers;
            if let Some(what) = head.forbidden {
                self.excuse(place, &what).inspect_err(failed)?;
            }
            if answered.is_some() {
                return Ok(answered);
            }
        }
        self.responded.set(true);
        Ok(None)
    }

    fn ask_response(&self, at: usize, head: ResponseHead, end: bool) -> Asked<ResponseHead> {
        let place = &self.places[at];
        let count = head.count();
        let mut head = Some(head);
        let called = self.call(place, |instance, context| {
            if let Some(stream) = instance.stream_mut(context) {
                stream.contents.response = head.take();
            }
            let action = instance.on_response_headers(context, count, end)?;
            let stream = instance.stream_mut(context).filter(|_| action == Action::Continue);
            Ok(stream.and_then(|stream| stream.contents.response.take()))
        });
        match called {
            Ok(Some(_)) if self.state.marks[at].closed.get() => Asked::Failed(self.closed(at)),
            Ok(Some(head)) => Asked::LetGo(head, self.answer_of(at, at)),
            Ok(None) => Asked::Holds,
            Err(broken) => {
                let head = head.or_else(|| self.lost(at).response).unwrap_or_default();
                match self.failed(place, &broken) {
                    Ok(()) => Asked::LetGo(head, None),
                    Err(failure) => Asked::Failed(failure),
                }
            }
        }
    }

    /// Whether a plugin may still answer or end the request when its head has gone on. `end`: it has no body.
    pub fn may_interrupt(&self, end: bool) -> bool {
        self.places.iter().any(|place| place.plugin.needs.interrupts)
            || (!end && self.filters(Side::Request))
    }

    /// Whether all plugins that it passes have seen the head of the response.
    pub fn has_responded(&self) -> bool {
        self.responded.get()
    }

    /// Remembers the request as it goes on, for plugins that ask later.
    pub fn keep_request<B>(&self, request: &Request<B>) {
        if self.places.iter().any(|place| place.plugin.needs.reads) {
            let head = RequestHead {
                method: request.method().clone(),
                uri: request.uri().clone(),
                headers: request.headers().clone(),
                ..RequestHead::default()
            };
            // The first one counts: it is what was forwarded.
            drop(self.state.request.set(head));
        }
    }

    /// Remembers the response as it goes on.
    pub fn keep_response<B>(&self, response: &Response<B>) {
        if self.places.iter().any(|place| place.plugin.needs.reads) {
            let head = ResponseHead::new(response.status(), response.headers().clone());
            drop(self.state.response.set(head));
        }
    }

    /// Remembers how the exchange ended.
    pub fn conclude(&self, outcome: impl FnOnce() -> Outcome) {
        if self.places.iter().any(|place| place.plugin.needs.reads) {
            self.state.outcome.get_or_init(outcome);
        }
    }

    /// Tells the plugins that the exchange is over. Nothing moves any more.
    pub fn finish(&self) {
        if self.finished.replace(true) {
            return;
        }
        for place in &self.places {
            let Some((generation, context)) = place.context.take() else { continue };
            let told = place.seat.call_again(generation, Some(&self.state), 3, |instance| {
                let (stream, told) = match self.kind {
                    PluginType::Http => instance.finish(context),
                    PluginType::Network => self.close(instance, context),
                };
                if let Some(stream) = stream {
                    stream.release();
                }
                told
            });
            match told {
                Ok(()) => place.seat.measure(),
                // The exchange is over: nobody is left to fail, and the fault was logged.
                Err(broken) => tracing::debug!("plugin {}: {broken}", place.plugin.label),
            }
        }
    }

    /// Calls a plugin on its stream.
    pub(super) fn call<T>(
        &self,
        place: &Place,
        call: impl FnOnce(
            &mut leno_wasm_host::Instance<super::host::ProxyHost>,
            ContextId,
        ) -> Result<T, leno_wasm_host::Fault>,
    ) -> Result<T, Broken> {
        let (generation, context) = place.context.get().ok_or(Broken::Lost)?;
        let call = |instance: &mut _| call(instance, context);
        place.seat.call_again(generation, Some(&self.state), 1, call)
    }

    /// An answer that a plugin gave just now.
    pub(super) fn answer_of(&self, at: usize, passes: usize) -> Option<Answered> {
        let answer = self.state.marks[at].answer.take()?;
        Some(Answered { passes, answer, label: self.places[at].plugin.label.clone() })
    }

    /// What the failure policy says to a plugin that cannot be called.
    pub(super) fn failed(&self, place: &Place, broken: &Broken) -> Result<(), Failure> {
        if !place.bypassed.replace(true) {
            let failures = &place.plugin.figures.failures;
            failures.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        match place.plugin.failure {
            FailurePolicy::Open => Ok(()),
            FailurePolicy::Closed => {
                Err(Failure::of(&place.plugin.label, &format!("failed: {broken}")))
            }
        }
    }

    /// What it says to one that wants what HTTP forbids.
    fn excuse(&self, place: &Place, what: &str) -> Result<(), Failure> {
        match place.plugin.failure {
            FailurePolicy::Open => Ok(()),
            FailurePolicy::Closed => {
                Err(Failure::of(&place.plugin.label, &format!("{what}, which HTTP forbids")))
            }
        }
    }

    pub(super) fn closed(&self, at: usize) -> Failure {
        Failure::of(&self.places[at].plugin.label, "closed the stream")
    }

    /// What a broken instance had in hands.
    pub(super) fn lost(&self, at: usize) -> Contents {
        self.state.marks[at].lost.take().map(|contents| *contents).unwrap_or_default()
    }

    fn lost_head(&self, at: usize) -> RequestHead {
        self.lost(at).request.unwrap_or_default()
    }
}

/// What became of a request's head.
#[derive(Debug)]
pub enum Passed {
    /// It goes on.
    On {
        /// A plugin changed path or host.
        retargeted: bool,
    },
    /// A plugin answered.
    Answered(Answered),
}

impl Failure {
    pub(super) fn of(label: &str, what: &str) -> Self {
        let detail = format!("plugin {label} {what}");
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, detail }
    }
}

impl Drop for Run {
    /// Everybody who moved something of the exchange is done, or gave up.
    fn drop(&mut self) {
        self.finish();
    }
}

impl std::fmt::Debug for Run {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plugins = self.places.iter().map(|place| &place.plugin);
        formatter.debug_list().entries(plugins).finish()
    }
}

#[cfg(test)]
mod tests;
