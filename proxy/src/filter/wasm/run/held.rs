//! Waiting for plugins: for what they hold, and for an answer in place of what has gone on.

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::Instant,
};

use http::{Request, Response, StatusCode};
use leno_api::model::wasm_plugin::FailurePolicy;
use leno_wasm_host::Action;

use super::{Failure, Resumed, Run, Side};
use crate::filter::wasm::{
    answer::Answered,
    seat::Broken,
    state::{Contents, Returned, Waiting},
};

/// Which part of the time that a plugin may hold an exchange is long: a second. A caller who gives up before it would have
/// left anyway; after it the plugin is why.
const LONG: u32 = 60;

impl Run {
    /// Puts a request's head back that a plugin holds, once it lets go of it.
    pub(super) async fn held_request<B>(
        &self,
        at: usize,
        request: &mut Request<B>,
    ) -> Result<Option<Answered>, Failure> {
        let resumed = self.held(at, Side::Request, at + 1).await?;
        let returned = match resumed {
            Resumed::Lost => self.of_lost(at, |lost| lost.return_request(request)),
            Resumed::Continued | Resumed::Answered(_) => {
                self.take_back(at, |contents| contents.return_request(request))
            }
        };
        self.check_returned(at, returned)?;
        Ok(resumed.answered())
    }

    /// The same of a response's.
    pub(super) async fn held_response<B>(
        &self,
        at: usize,
        response: &mut Response<B>,
    ) -> Result<Option<Answered>, Failure> {
        let resumed = self.held(at, Side::Response, at).await?;
        let returned = match resumed {
            Resumed::Lost => self.of_lost(at, |lost| lost.return_response(response)),
            Resumed::Continued | Resumed::Answered(_) => {
                self.take_back(at, |contents| contents.return_response(response))
            }
        };
        self.check_returned(at, returned)?;
        Ok(resumed.answered())
    }

    /// Waits until a plugin lets go of the head that it holds.
    pub(in crate::filter::wasm) async fn held(
        &self,
        at: usize,
        side: Side,
        passes: usize,
    ) -> Result<Resumed, Failure> {
        let place = &self.places[at];
        let due = &self.lane(side, at).due;
        due.set(Some(Instant::now()));
        let resumed = poll_fn(|context| self.poll_held(at, side, passes, context));
        let resumed = tokio::time::timeout(self.patience.get(), resumed).await;
        due.set(None);
        match resumed {
            Ok(Ok(Resumed::Lost)) => {
                self.failed(place, &Broken::Lost)?;
                Ok(Resumed::Lost)
            }
            Ok(resumed) => resumed,
            // Nothing of it has gone on yet: it can do so as the plugin has left it.
            Err(_) => self.held_for_too_long(at, "it").map(|()| Resumed::Continued),
        }
    }

    /// What the failure policy says to a plugin that does not let go.
    pub(in crate::filter::wasm) fn held_for_too_long(
        &self,
        at: usize,
        what: &str,
    ) -> Result<(), Failure> {
        let place = &self.places[at];
        place.count_failure();
        match place.seat.failure {
            FailurePolicy::Open => {
                place.bypassed.set(true);
                Ok(())
            }
            FailurePolicy::Closed => {
                let what = format!("held {what} for {:?}", self.patience.get());
                let failure = Failure::of(place.seat.label(), &what);
                Err(Failure { status: StatusCode::GATEWAY_TIMEOUT, ..failure })
            }
        }
    }

    /// Whether the exchange ends while plugin `at` keeps it waiting for longer than callers may be left to wait.
    pub(super) fn kept_waiting(&self, at: usize) -> bool {
        let limit = self.patience.get() / LONG;
        [Side::Request, Side::Response]
            .into_iter()
            .any(|side| self.lane(side, at).due.get().is_some_and(|since| since.elapsed() >= limit))
    }

    fn poll_held(
        &self,
        at: usize,
        side: Side,
        passes: usize,
        context: &mut Context<'_>,
    ) -> Poll<Result<Resumed, Failure>> {
        let mark = &self.state.marks[at];
        if mark.closed.get() {
            return Poll::Ready(Err(self.closed(at)));
        }
        if let Some(failure) = self.failure.take() {
            return Poll::Ready(Err(failure));
        }
        // Also where the instance has broken since: in another exchange, perhaps, and this one was refused before.
        if let Some(answered) = self.answer_of(at, passes) {
            return Poll::Ready(Ok(Resumed::Answered(answered)));
        }
        if mark.lost.borrow().is_some() {
            return Poll::Ready(Ok(Resumed::Lost));
        }
        if mark.continued[side as usize].take() {
            return Poll::Ready(Ok(Resumed::Continued));
        }
        let waiting = match side {
            Side::Request => Waiting::Request,
            Side::Response => Waiting::Response,
        };
        self.state.wait(waiting, context.waker());
        Poll::Pending
    }

    /// Waits until a plugin answers or ends a request whose head has gone on.
    pub async fn interrupted(&self) -> Result<Answered, Failure> {
        poll_fn(|context| {
            if let Some(failure) = self.failure.borrow().clone() {
                return Poll::Ready(Err(failure));
            }
            // What one that is left out has wanted, or wants now, counts no more.
            let heard = |at: &usize| !self.places[*at].bypassed.get();
            for at in (0..self.reached.get()).filter(heard) {
                if let Some(answered) = self.answer_of(at, at + 1) {
                    return Poll::Ready(Ok(answered));
                }
                if self.state.marks[at].closed.get() {
                    return Poll::Ready(Err(self.closed(at)));
                }
            }
            self.state.wait(Waiting::Answer, context.waker());
            Poll::Pending
        })
        .await
    }

    fn take_back(
        &self,
        at: usize,
        take: impl FnOnce(&mut Contents) -> Option<Returned>,
    ) -> Option<Returned> {
        let place = &self.places[at];
        let taken = self.call(place, |instance, context| {
            Ok(place.take_back(instance, context, Action::Continue, take))
        });
        taken.ok().flatten()
    }
}

impl Resumed {
    fn answered(self) -> Option<Answered> {
        match self {
            Self::Answered(answered) => Some(answered),
            Self::Continued | Self::Lost => None,
        }
    }
}
