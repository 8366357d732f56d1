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
use leno_wasm_host::ContextId;

use super::{
    answer::Answered,
    place::{List, Place, Places},
    plugin::{Chain, Needs},
    seat::{Broken, Seats},
    state::{Contents, Facts, Returned, State},
};

mod held;
mod remember;
mod whole;

pub use self::whole::Shown;

/// A plugin may hold an exchange this long. Whoever waits for an answer has timeouts of its own, much shorter.
const PAUSE_LIMIT: Duration = Duration::from_secs(60);

/// The plugins of one exchange.
pub struct Run {
    pub(super) state: Rc<State>,
    pub(super) kind: PluginType,
    pub(super) places: List,
    /// Behind them there is one that cannot run yet, and must not be left out.
    pub(super) blocked: Option<(Phase, Failure)>,
    /// What any of them needs.
    pub(super) needs: Needs,
    /// How many of them the request has come to.
    pub(super) reached: Cell<usize>,
    /// Some plugin has changed path or host, and nobody was told yet.
    retargeted: Cell<bool>,
    /// How many of those the response passes; known once there is one.
    pub(super) responding: Cell<Option<usize>>,
    /// All of them have seen its head.
    responded: Cell<bool>,
    /// Whether any of them has held a part of the request's body, and of the response's.
    pub(super) has_held: [Cell<bool>; 2],
    /// Whether their heads go on with a length that no plugin can change.
    pub(super) framed: [Cell<bool>; 2],
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

/// Why a head does not go on now.
#[derive(Debug)]
pub enum Stopped {
    /// A plugin has it, and where that is in its chain: for [`Run::held_request_head`] and [`Run::held_response_head`].
    Held(usize),
    /// A plugin failed that may not be left out.
    Failed(Failure),
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
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
        let Places { places, blocked, needs } = Places::of(seats, chain, kind, random);
        if places.is_empty() && blocked.is_none() {
            return None;
        }
        let facts = (needs.reads || needs.logs).then(|| Box::new(facts()));
        Some(Rc::new(Self {
            state: Rc::new(State::new(facts, places.len())),
            kind,
            places,
            blocked,
            needs,
            reached: Cell::new(0),
            retargeted: Cell::new(false),
            responding: Cell::new(None),
            responded: Cell::new(false),
            has_held: Default::default(),
            framed: Default::default(),
            failure: RefCell::default(),
            finished: Cell::new(false),
            patience: Cell::new(PAUSE_LIMIT),
        }))
    }

    /// Shows the request's head to the plugins up to and including a phase. `end`: it has no body. An answer takes the
    /// place of everything that would follow. Says too whether path or host were changed.
    ///
    /// # Errors
    /// A plugin holds it, or failed and may not be left out.
    pub fn request_head<B>(
        &self,
        up_to: Phase,
        request: &mut Request<B>,
        end: bool,
    ) -> Result<Passed, Stopped> {
        while let Some(place) = self.places.get(self.reached.get())
            && place.phase <= up_to
        {
            let at = self.reached.get();
            self.reached.set(at + 1);
            if let Some(answered) = self.ask_request(at, request, end)? {
                return Ok(Passed::Answered(answered));
            }
        }
        match &self.blocked {
            Some((phase, failure)) if *phase <= up_to => Err(failure.clone().into()),
            _ => Ok(Passed::On { retargeted: self.retargeted.take() }),
        }
    }

    /// Goes on with a request's head as soon as plugin `at` lets go of it.
    ///
    /// # Errors
    /// A plugin failed that may not be left out.
    pub async fn held_request_head<B>(
        &self,
        mut at: usize,
        up_to: Phase,
        request: &mut Request<B>,
        end: bool,
    ) -> Result<Passed, Failure> {
        loop {
            if let Some(answered) = self.held_request(at, request).await? {
                return Ok(Passed::Answered(answered));
            }
            match self.request_head(up_to, request, end) {
                Ok(passed) => return Ok(passed),
                Err(Stopped::Failed(failure)) => return Err(failure),
                Err(Stopped::Held(next)) => at = next,
            }
        }
    }

    /// Looks at what a plugin has done to a head that it has let go of.
    fn check_returned(&self, at: usize, returned: Option<Returned>) -> Result<(), Failure> {
        let Some(returned) = returned else { return Ok(()) };
        self.retargeted.set(self.retargeted.get() | returned.retargeted);
        match returned.forbidden {
            None => Ok(()),
            Some(what) => self.excuse(at, &what),
        }
    }

    fn ask_request<B>(
        &self,
        at: usize,
        request: &mut Request<B>,
        end: bool,
    ) -> Result<Option<Answered>, Stopped> {
        let place = &self.places[at];
        let mut stream = place.seat.stream(&self.state, at);
        let count = place.take_request(&mut stream, request);
        let called = place.seat.call(&self.state, 2, |instance| {
            let (context, action) = instance.begin(stream, count, end);
            place.context.set(Some((place.seat.generation(), context)));
            let action = action?;
            Ok(place.take_back(instance, context, action, |has| has.return_request(request)))
        });
        match called {
            Ok(Some(_)) if self.state.marks[at].closed.get() => Err(self.closed(at).into()),
            Ok(None) => Err(Stopped::Held(at)),
            Ok(returned) => {
                self.check_returned(at, returned)?;
                Ok(self.answer_of(at, at + 1))
            }
            Err(broken) => {
                let returned = self.of_lost(at, |lost| lost.return_request(request));
                self.failed(place, &broken)?;
                self.check_returned(at, returned)?;
                Ok(None)
            }
        }
    }

    /// Shows the response's head to the plugins that have seen the request, backwards. `end`: it has no body.
    ///
    /// # Errors
    /// A plugin holds it, or failed and may not be left out.
    pub fn response_head<B>(
        &self,
        response: &mut Response<B>,
        end: bool,
    ) -> Result<Option<Answered>, Stopped> {
        let passes = self.responding.get().unwrap_or_else(|| self.reached.get());
        self.responding.set(Some(passes));
        self.response_head_before(passes, response, end)
    }

    /// Goes on with a response's head as soon as plugin `at` lets go of it.
    ///
    /// # Errors
    /// A plugin failed that may not be left out.
    pub async fn held_response_head<B>(
        &self,
        mut at: usize,
        response: &mut Response<B>,
        end: bool,
    ) -> Result<Option<Answered>, Failure> {
        loop {
            let answered = self.held_response(at, response).await;
            let answered = answered.inspect_err(|_| self.responding.set(Some(at)))?;
            if answered.is_some() {
                return Ok(answered);
            }
            match self.response_head_before(at, response, end) {
                Ok(answered) => return Ok(answered),
                Err(Stopped::Failed(failure)) => return Err(failure),
                Err(Stopped::Held(next)) => at = next,
            }
        }
    }

    /// Shows it to the plugins before `end_at`.
    fn response_head_before<B>(
        &self,
        end_at: usize,
        response: &mut Response<B>,
        end: bool,
    ) -> Result<Option<Answered>, Stopped> {
        for at in (0..end_at).rev() {
            let place = &self.places[at];
            if place.bypassed.get() || place.context.get().is_none() {
                continue;
            }
            let asked = self.ask_response(at, response, end);
            let answered = asked.inspect_err(|stopped| {
                // Whatever takes its place is seen by those that come after.
                if matches!(stopped, Stopped::Failed(_)) {
                    self.responding.set(Some(at));
                }
            })?;
            if answered.is_some() {
                return Ok(answered);
            }
        }
        self.responded.set(true);
        Ok(None)
    }

    fn ask_response<B>(
        &self,
        at: usize,
        response: &mut Response<B>,
        end: bool,
    ) -> Result<Option<Answered>, Stopped> {
        let place = &self.places[at];
        let called = self.call(place, |instance, context| {
            let count = place.take_response(instance, context, response);
            let action = instance.on_response_headers(context, count, end)?;
            Ok(place.take_back(instance, context, action, |has| has.return_response(response)))
        });
        match called {
            Ok(Some(_)) if self.state.marks[at].closed.get() => Err(self.closed(at).into()),
            Ok(None) => Err(Stopped::Held(at)),
            Ok(returned) => {
                self.check_returned(at, returned)?;
                Ok(self.answer_of(at, at))
            }
            Err(broken) => {
                let returned = self.of_lost(at, |lost| lost.return_response(response));
                self.failed(place, &broken)?;
                self.check_returned(at, returned)?;
                Ok(None)
            }
        }
    }

    /// Whether a plugin may still answer or end the request when its head has gone on. `end`: it has no body.
    pub fn may_interrupt(&self, end: bool) -> bool {
        self.needs.interrupts || (!end && self.filters(Side::Request))
    }

    /// Whether all plugins that it passes have seen the head of the response.
    pub fn has_responded(&self) -> bool {
        self.responded.get()
    }

    /// Tells the plugins that the exchange is over. Nothing moves any more.
    pub fn finish(&self) {
        if self.finished.replace(true) {
            return;
        }
        for (at, place) in self.places.iter().enumerate() {
            let Some((generation, context)) = place.context.take() else { continue };
            if self.kept_waiting(at) {
                place.count_failure();
            }
            let told = place.seat.call_again(generation, Some(&self.state), 3, |instance| {
                let (stream, told) = match self.kind {
                    PluginType::Http => instance.finish(context),
                    PluginType::Network => self.close(instance, context),
                };
                if let Some(stream) = stream {
                    place.seat.release(stream);
                }
                told
            });
            match told {
                Ok(()) => place.seat.served(),
                // The exchange is over: nobody is left to get the policy, and the fault was logged.
                Err(broken) => {
                    if matches!(broken, Broken::Fault(_)) {
                        place.count_failure();
                    }
                    tracing::debug!("plugin {}: {broken}", place.seat.label());
                }
            }
        }
        // What is left of a request that was answered early waits for plugins that are gone.
        self.state.wake();
    }

    /// Whether the plugins have been told that the exchange is over.
    pub(super) fn is_finished(&self) -> bool {
        self.finished.get()
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
        // That is its word.
        self.places[at].lanes.iter().for_each(|lane| lane.due.set(None));
        Some(Answered { at, passes, answer, label: self.places[at].seat.label().clone() })
    }

    /// What the failure policy says to a plugin that cannot be called.
    pub(super) fn failed(&self, place: &Place, broken: &Broken) -> Result<(), Failure> {
        place.bypassed.set(true);
        place.count_failure();
        if let (Broken::Lost, Some((generation, _))) = (broken, place.context.get()) {
            place.seat.was_lost(generation);
        }
        match place.seat.failure {
            FailurePolicy::Open => Ok(()),
            FailurePolicy::Closed => {
                Err(Failure::of(place.seat.label(), &format!("failed: {broken}")))
            }
        }
    }

    /// What it says to one that wants what HTTP forbids.
    fn excuse(&self, at: usize, what: &str) -> Result<(), Failure> {
        let place = &self.places[at];
        place.count_failure();
        let seat = &place.seat;
        match seat.failure {
            FailurePolicy::Open => Ok(()),
            FailurePolicy::Closed => {
                Err(Failure::of(seat.label(), &format!("{what}, which HTTP forbids")))
            }
        }
    }

    /// What becomes of one that was ended by a plugin. That is its right with a connection; an exchange gets no answer of
    /// it, and one of ours.
    pub(super) fn closed(&self, at: usize) -> Failure {
        if self.kind == PluginType::Http {
            self.places[at].count_failure();
        }
        Failure::of(self.places[at].seat.label(), "closed the stream")
    }

    /// Takes a part of what a broken instance had in hands. Parts of bodies may be among the rest.
    pub(super) fn of_lost<T>(
        &self,
        at: usize,
        take: impl FnOnce(&mut Contents) -> Option<T>,
    ) -> Option<T> {
        self.state.marks[at].lost.borrow_mut().as_mut().and_then(|lost| take(lost))
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
        self.let_all_go();
    }
}

impl std::fmt::Debug for Run {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plugins = self.places.iter().map(|place| place.seat.label());
        formatter.debug_list().entries(plugins).finish()
    }
}

#[cfg(test)]
mod tests;
