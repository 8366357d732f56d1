//! What is there to send, again and again.

use std::rc::Rc;

use http::Request;

use super::{form, lost};
use crate::{
    error::Error,
    http::{body::Body, replay::Replay},
};

/// A request on its way out.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) request: Request<Body>,
    /// Whether it says already who called.
    pub(super) introduced: bool,
    /// Its number among those that read the body, where that can be read again.
    pub(super) reader: u32,
}

/// The request of an exchange between its attempts.
#[derive(Debug)]
pub(super) struct Supply {
    /// What can be sent, or sent again.
    pub(super) kept: Option<Outgoing>,
    replay: Option<Rc<Replay>>,
}

impl Outgoing {
    /// A copy that may be sent later; `None` when the body cannot be sent twice. It gets its body from [`Supply::with_body`].
    pub(super) fn copy(&self) -> Option<Self> {
        matches!(self.request.body(), Body::Empty | Body::Replayed(_)).then(|| Self {
            request: form::with_body(&self.request, Body::Empty),
            introduced: self.introduced,
            reader: 0,
        })
    }
}

impl Supply {
    /// The first one; its body is read through `replay` where there is one.
    pub(super) fn new(request: Request<Body>, replay: Option<Rc<Replay>>) -> Self {
        Self { kept: Some(Outgoing { request, introduced: false, reader: 0 }), replay }
    }

    /// Gets the request ready for the next attempt.
    ///
    /// # Errors
    /// When it, or its body, is gone.
    pub(super) fn begin(&mut self) -> Result<(), Error> {
        let kept = self.kept.as_mut().ok_or_else(lost)?;
        if let Some(replay) = &self.replay {
            let (reader, body) = replay.begin().ok_or_else(lost)?;
            *kept.request.body_mut() = body;
            kept.reader = reader;
        }
        Ok(())
    }

    /// Gives a copy its body.
    pub(super) fn with_body(&self, mut outgoing: Outgoing) -> Option<Outgoing> {
        if let Some(replay) = &self.replay {
            let (reader, body) = replay.begin()?;
            *outgoing.request.body_mut() = body;
            outgoing.reader = reader;
        }
        Some(outgoing)
    }

    /// Whether there is all of a request to send.
    pub(super) fn is_whole(&self) -> bool {
        self.kept.is_some() && self.replay.as_ref().is_none_or(|replay| replay.is_whole())
    }

    /// Whether nothing of the request is still to come from the caller.
    pub(super) fn is_complete(&self) -> bool {
        self.replay.as_ref().is_none_or(|replay| replay.is_complete())
    }

    /// Whether the attempt with this number has sent everything.
    pub(super) fn is_delivered(&self, reader: u32) -> bool {
        self.replay.as_ref().is_none_or(|replay| replay.is_delivered(reader))
    }

    /// There will be another attempt: those before it get nothing more.
    pub(super) fn pause(&self) {
        if let Some(replay) = &self.replay {
            replay.pause();
        }
    }

    /// There will be no other attempt than the one with this number.
    pub(super) fn settle(&self, reader: u32) {
        if let Some(replay) = &self.replay {
            replay.settle(reader);
        }
    }
}
