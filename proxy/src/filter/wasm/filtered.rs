//! A body whose reader gets what plugins make of it.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body as _, Frame};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    body::{Gone, Piece, Pieces},
    run::{Failure, Run, Side},
    state::Waiting,
};
use crate::http::body::{Body, BodyError, End, Watch, dropped};

/// After so long others have their turn on the worker.
pub(super) const TURN: std::time::Duration = std::time::Duration::from_millis(1);

/// A body that passes plugins.
pub struct Filtered {
    source: Body,
    source_ended: bool,
    run: Rc<Run>,
    side: Side,
    ready: Pieces,
    ended: bool,
    watch: Option<Box<dyn Watch>>,
    /// For the whole body.
    deadline: Option<Instant>,
    /// Runs while nothing is missing but a plugin's word.
    patience: Option<Pin<Box<Sleep>>>,
}

/// What became of a body that was there as a whole.
#[derive(Debug)]
pub enum Whole {
    /// All of it goes on.
    Passed(Bytes),
    /// Plugins hold a part of it, or there is more than bytes.
    Held(Held),
}

/// What has passed of a body, while plugins hold the rest.
#[derive(Debug, Default)]
pub struct Held(Pieces);

impl Run {
    /// Lets a whole body pass the plugins: nothing has to be kept for the rest of it, as there is none.
    ///
    /// # Errors
    /// A plugin failed that may not be left out.
    pub fn whole(&self, side: Side, bytes: Bytes) -> Result<Whole, Failure> {
        let (mut passing, mut next) = (bytes, self.first(side));
        while let Some(at) = next {
            next = self.next(side, at);
            if !self.sees(at, side) {
                continue;
            }
            match self.show(side, at, passing, true)? {
                Some(Gone { bytes, trailers: None }) => passing = bytes,
                gone => return self.whole_of(side, at, gone),
            }
        }
        Ok(Whole::Passed(passing))
    }

    /// What becomes of a whole body of which this is what has gone on from plugin `at`; no other one sees mere bytes.
    pub(super) fn whole_of(
        &self,
        side: Side,
        at: usize,
        gone: Option<Gone>,
    ) -> Result<Whole, Failure> {
        let gone = match gone {
            None => return Ok(Whole::Held(Held::default())),
            Some(Gone { bytes, trailers: None }) => return Ok(Whole::Passed(bytes)),
            Some(gone) => gone,
        };
        let mut ready = Pieces::default();
        self.pass(side, at, gone, true, &mut ready)?;
        Ok(Whole::Held(Held(ready)))
    }

    /// What [`Run::whole`] left, as it comes.
    pub fn rest(
        self: &Rc<Self>,
        side: Side,
        Held(ready): Held,
        watch: Option<Box<dyn Watch>>,
        deadline: Option<Instant>,
    ) -> Body {
        let mut rest = Filtered::new(self, side, Body::Empty, watch, deadline);
        (rest.source_ended, rest.ready) = (true, ready);
        Body::other(rest).until(deadline)
    }

    /// Lets `body` pass the plugins. `watch` sees what comes out of them, `deadline` is for all of it.
    pub fn body(
        self: &Rc<Self>,
        side: Side,
        body: Body,
        watch: Option<Box<dyn Watch>>,
        deadline: Option<Instant>,
    ) -> Body {
        Body::other(Filtered::new(self, side, body, watch, deadline)).until(deadline)
    }
}

impl Filtered {
    fn new(
        run: &Rc<Run>,
        side: Side,
        source: Body,
        watch: Option<Box<dyn Watch>>,
        deadline: Option<Instant>,
    ) -> Self {
        Self {
            source,
            source_ended: false,
            run: run.clone(),
            side,
            ready: Pieces::default(),
            ended: false,
            watch,
            deadline,
            patience: None,
        }
    }

    fn finish(&mut self, end: End) {
        self.ended = true;
        if let Some(mut watch) = self.watch.take() {
            watch.end(end);
        }
    }

    fn fail(&mut self, failure: Failure) -> BodyError {
        tracing::debug!("{}", failure.detail);
        self.run.failure.borrow_mut().get_or_insert(failure);
        self.run.state.wake();
        self.finish(End::Plugin);
        BodyError::Plugin
    }

    /// Whom to wake when a plugin does something. Nobody does anything while this runs.
    fn wait(&self, context: &Context<'_>) {
        let waiting = match self.side {
            Side::Request => Waiting::Request,
            Side::Response => Waiting::Response,
        };
        self.run.state.wait(waiting, context.waker());
    }

    /// What comes out next, if it is there.
    fn pop(&mut self) -> Option<Option<Frame<Bytes>>> {
        loop {
            match self.ready.pop()? {
                Piece::Data(bytes, last) => {
                    if let Some(watch) = self.watch.as_mut().filter(|_| !bytes.is_empty()) {
                        watch.data(&bytes);
                    }
                    if last {
                        self.finish(End::Complete);
                    }
                    if !bytes.is_empty() {
                        return Some(Some(Frame::data(bytes)));
                    }
                    if last {
                        return Some(None);
                    }
                }
                Piece::Trailers(trailers) => {
                    if let Some(watch) = &mut self.watch {
                        watch.trailers(&trailers);
                    }
                    self.finish(End::Complete);
                    return Some(Some(Frame::trailers(*trailers)));
                }
            }
        }
    }

    /// Takes the next part from the source to the plugins.
    fn poll_source(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        let piece = match Pin::new(&mut self.source).poll_frame(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Err(error))) => {
                let end = match &error {
                    BodyError::TimedOut => End::TimedOut,
                    BodyError::Plugin => End::Plugin,
                    BodyError::Hyper(_)
                    | BodyError::Http2(_)
                    | BodyError::Upstream(_)
                    | BodyError::Cut
                    | BodyError::CopyCut => End::SenderFailed,
                };
                self.finish(end);
                return Poll::Ready(Err(error));
            }
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(bytes) => {
                    self.source_ended = self.source.is_end_stream();
                    Piece::Data(bytes, self.source_ended)
                }
                Err(frame) => {
                    self.source_ended = true;
                    Piece::Trailers(Box::new(frame.into_trailers().unwrap_or_default()))
                }
            },
            Poll::Ready(None) => {
                self.source_ended = true;
                Piece::Data(Bytes::new(), true)
            }
        };
        let first = self.run.first(self.side);
        let pushed = self.run.push(self.side, first, piece, &mut self.ready);
        Poll::Ready(pushed.map_err(|failure| self.fail(failure)))
    }

    /// Nothing is missing but a plugin's word. Ready when it has lost its right to give it.
    fn poll_patience(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        let limit = Instant::now() + self.run.patience.get();
        let limit = self.deadline.map_or(limit, |deadline| deadline.min(limit));
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep_until(limit)));
        if patience.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.patience = None;
        let given_up = match self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            true => {
                self.run.count_holders(self.side);
                let detail = "a plugin held the rest of a body for too long".to_owned();
                Err(Failure { status: StatusCode::GATEWAY_TIMEOUT, detail })
            }
            false => self.run.give_up(self.side, &mut self.ready),
        };
        Poll::Ready(given_up.map_err(|failure| self.fail(failure)))
    }
}

impl http_body::Body for Filtered {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let mut began = None;
        loop {
            if let Some(frame) = this.pop() {
                return Poll::Ready(frame.map(Ok));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            // Nobody reads this request any more: an answer has taken its place. Or it was answered before its end: what
            // plugins held is lost, and what comes would pass unseen.
            if this.side == Side::Request && (this.run.is_answered() || this.run.is_finished()) {
                this.finish(dropped());
                return Poll::Ready(Some(Err(BodyError::Plugin)));
            }
            if let Err(failure) = this.run.advance(this.side, &mut this.ready) {
                return Poll::Ready(Some(Err(this.fail(failure))));
            }
            if !this.ready.is_empty() {
                this.patience = None;
                continue;
            }
            if this.source_ended {
                this.wait(context);
                match this.poll_patience(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(())) => continue,
                    Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                }
            }
            match this.poll_source(context) {
                Poll::Pending => {
                    this.wait(context);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
            }
            // What keeps bytes is shown more and more of them, and each callback may run up to its deadline. The clock is
            // asked only where one has kept some.
            if this.ready.is_empty()
                && began.get_or_insert_with(std::time::Instant::now).elapsed() >= TURN
            {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.ready.is_empty()
    }
}

impl Drop for Filtered {
    fn drop(&mut self) {
        if !self.ended {
            self.finish(dropped());
        }
    }
}
