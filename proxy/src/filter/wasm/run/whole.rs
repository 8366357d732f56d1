//! Responses that are here with all of their body: where one plugin sees them, it is asked about head and body in one call.

use bytes::Bytes;
use http::{Response, header};
use http_body::Body as _;
use leno_wasm_host::{Action, Responded};

use super::{Failure, Run, Side, Stopped};
use crate::{
    filter::wasm::{
        answer::Answered,
        body::{self, Released},
        filtered::Whole,
        seat::Broken,
        state::Returned,
    },
    http::body::Incoming,
};

/// How far plugins have seen a response.
#[derive(Debug)]
pub struct Shown {
    /// The answer that takes its place.
    pub answered: Option<Answered>,
    /// What became of its body, if that was shown, too.
    pub whole: Option<Result<Whole, Failure>>,
}

/// What a plugin said to head and body.
enum Said {
    /// It holds the head.
    Held,
    /// The head goes on. The body is still to be shown.
    Head(Option<Returned>),
    Both(Option<Returned>, Released),
}

const SIDE: Side = Side::Response;

impl Run {
    /// Shows a response's head to the plugins that have seen the request, backwards; and its body, if all of it is here
    /// and one plugin sees it.
    ///
    /// # Errors
    /// A plugin holds the head, or failed at it and may not be left out.
    pub fn response(&self, response: &mut Response<Incoming>) -> Result<Shown, Stopped> {
        if self.reached.get() == 1 && self.responding.get().is_none() && self.sees(0, SIDE) {
            let whole = response.body_mut().whole_mut().map(std::mem::take);
            if let Some(bytes) = whole {
                return self.respond(response, bytes);
            }
        }
        let end = response.body().is_end_stream();
        let answered = self.response_head(response, end)?;
        Ok(Shown { answered, whole: None })
    }

    fn respond(&self, response: &mut Response<Incoming>, bytes: Bytes) -> Result<Shown, Stopped> {
        self.responding.set(Some(1));
        let length = bytes.len();
        let mut bytes = Some(bytes);
        let (returned, body) = match self.ask_both(response, &mut bytes) {
            Ok(Said::Held) => {
                put_back(response, bytes);
                return Err(Stopped::Held(0));
            }
            Ok(Said::Head(returned)) => (returned, None),
            Ok(Said::Both(returned, released)) => (returned, Some(Ok(released))),
            Err(broken) => {
                (self.of_lost(0, |lost| lost.return_response(response)), Some(Err(broken)))
            }
        };
        // Whatever takes its place passes nobody any more.
        let answered = match self.head_goes_on(returned, body.as_ref()) {
            Ok(answered) => answered,
            Err(failure) => {
                self.responding.set(Some(0));
                drop(response.body_mut().take_whole());
                // All of the body was read, so that the connection it came by is as good as any.
                return Ok(Shown { answered: None, whole: Some(Err(failure)) });
            }
        };
        self.responded.set(answered.is_none());
        let Some(body) = body.filter(|_| answered.is_none()) else {
            put_back(response, bytes);
            return Ok(Shown { answered, whole: None });
        };
        drop(response.body_mut().take_whole());
        self.has_come(SIDE, 0);
        let gone = match body {
            Ok(released) => self.check_effects(SIDE, 0).and_then(|()| self.take(SIDE, 0, released)),
            Err(_) => Ok(Some(self.left(SIDE, 0, bytes))),
        };
        let whole = gone.and_then(|gone| self.whole_of(SIDE, 0, gone));
        if !matches!(&whole, Ok(Whole::Passed(bytes)) if bytes.len() == length) {
            response.headers_mut().remove(header::CONTENT_LENGTH);
        }
        Ok(Shown { answered, whole: Some(whole) })
    }

    /// Calls the plugin. Of `bytes` that stays here which it did not get, or gave back unseen.
    fn ask_both(
        &self,
        response: &mut Response<Incoming>,
        bytes: &mut Option<Bytes>,
    ) -> Result<Said, Broken> {
        let place = &self.places[0];
        let (needs, spare) = (place.seat.needs, &place.seat.spare);
        self.call(place, |instance, context| {
            let size = match bytes {
                Some(bytes) if !needs.bodies => bytes.len(),
                _ => body::give(instance, spare, context, SIDE, bytes),
            };
            let count = place.take_response(instance, context, response);
            let size = u32::try_from(size).unwrap_or(u32::MAX);
            let responded = instance.on_response(context, count, size)?;
            let head = match responded {
                Responded::Headers(action) => action,
                Responded::Body(_) => Action::Continue,
            };
            let returned =
                place.take_back(instance, context, head, |has| has.return_response(response));
            if let Responded::Body(action) = responded {
                place.seat.called_once_more();
                let released = body::let_go(instance, spare, context, SIDE, action, true, bytes);
                return Ok(Said::Both(returned, released));
            }
            if bytes.is_none() {
                let unseen = body::release(instance, spare, context, SIDE, Action::Continue, false);
                *bytes = Some(unseen.bytes);
            }
            Ok(match head {
                Action::Continue => Said::Head(returned),
                _ => Said::Held,
            })
        })
    }

    /// Judges what has become of the head. The answer that takes its place.
    fn head_goes_on(
        &self,
        returned: Option<Returned>,
        body: Option<&Result<Released, Broken>>,
    ) -> Result<Option<Answered>, Failure> {
        match body {
            None if self.state.marks[0].closed.get() => return Err(self.closed(0)),
            Some(Err(broken)) => self.failed(&self.places[0], broken)?,
            _ => {}
        }
        self.check_returned(0, returned)?;
        Ok(if body.is_none() { self.answer_of(0, 0) } else { None })
    }
}

/// The body is still to be shown.
fn put_back(response: &mut Response<Incoming>, bytes: Option<Bytes>) {
    if let (Some(whole), Some(bytes)) = (response.body_mut().whole_mut(), bytes) {
        *whole = bytes;
    }
}
