//! Bodies and trailers on their way through the plugins of an exchange. A plugin that holds a part gets more of it until
//! it lets go, up to a bound; what only passes is not copied.

use std::{
    cell::{Cell, RefCell},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use leno_api::model::wasm_plugin::PluginType;
use leno_wasm_host::{Action, ContextId, Fault, Instance};

use super::{
    host::ProxyHost,
    run::{Failure, Run, Side},
    seat::{Broken, MAX_HELD_IN_ALL},
};

pub(super) use self::{
    hands::{Released, give, let_go, release},
    pieces::{Piece, Pieces},
};

mod hands;
mod pieces;

/// Bytes of a body that a plugin may hold. Larger bodies are for streaming.
const MAX_HELD: usize = 1 << 20;

/// What one plugin does with a body.
#[derive(Debug, Default)]
pub(super) struct Lane {
    held: Cell<Held>,
    /// The last byte has come.
    ended: Cell<bool>,
    /// Since when nothing is missing but the plugin's word: it holds a head, or a part of a body that has come to its end.
    pub(super) due: Cell<Option<Instant>>,
    /// It dropped what it was shown.
    discarded: Cell<bool>,
    /// Bytes that it was shown once and does not want to see again.
    hidden: RefCell<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Held {
    #[default]
    Nothing,
    Body,
    Trailers,
}

/// What moves on from a plugin.
pub(super) struct Gone {
    pub(super) bytes: Bytes,
    pub(super) trailers: Option<Box<HeaderMap>>,
}

impl Run {
    /// Whether any plugin is told of this body.
    pub fn filters(&self, side: Side) -> bool {
        (self.kind == PluginType::Network || self.needs.body(side))
            && (0..self.passed(side)).any(|at| self.sees(at, side))
    }

    /// Takes the length away from a head whose body plugins may change: it is not known any more.
    pub fn unframe(&self, side: Side, headers: &mut HeaderMap) {
        if self.changes(side) {
            headers.remove(header::CONTENT_LENGTH);
        } else if headers.contains_key(header::CONTENT_LENGTH) {
            self.framed[side as usize].set(true);
        }
    }

    /// Whether plugins may change a body.
    pub fn changes(&self, side: Side) -> bool {
        let edits = |at| self.sees(at, side) && self.places[at].seat.needs.edits;
        self.needs.edits && (0..self.passed(side)).any(edits)
    }

    pub(super) fn sees(&self, at: usize, side: Side) -> bool {
        let place = &self.places[at];
        (place.seat.needs.body(side) || self.kind == PluginType::Network)
            && !place.bypassed.get()
            && place.context.get().is_some()
    }

    /// How many plugins a body passes: the first ones of the chain.
    fn passed(&self, side: Side) -> usize {
        let request = self.reached.get();
        match side {
            Side::Request => request,
            Side::Response => self.responding.get().unwrap_or(request),
        }
    }

    /// The plugin that sees a body first.
    pub(super) fn first(&self, side: Side) -> Option<usize> {
        let passed = self.passed(side);
        match side {
            Side::Request => Some(0).filter(|_| passed > 0),
            Side::Response => passed.checked_sub(1),
        }
    }

    /// The one that sees it after plugin `at`.
    pub(super) fn next(&self, side: Side, at: usize) -> Option<usize> {
        match side {
            Side::Request => Some(at + 1).filter(|next| *next < self.reached.get()),
            Side::Response => at.checked_sub(1),
        }
    }

    pub(super) fn lane(&self, side: Side, at: usize) -> &Lane {
        &self.places[at].lanes[side as usize]
    }

    /// The last byte has come.
    pub(super) fn has_come(&self, side: Side, at: usize) {
        self.lane(side, at).ended.set(true);
    }

    fn hold(&self, side: Side, at: usize, held: Held) {
        self.lane(side, at).held.set(held);
        self.has_held[side as usize].set(true);
    }

    fn let_go(&self, side: Side, at: usize) {
        let lane = self.lane(side, at);
        lane.held.set(Held::Nothing);
        lane.due.set(None);
        self.count_held(side, at, 0);
    }

    /// Counts what a plugin holds. Whether all of them may hold as much as they do then.
    fn count_held(&self, side: Side, at: usize, bytes: usize) -> bool {
        let before = self.state.marks[at].counted[side as usize].replace(bytes);
        before == bytes || self.places[at].seat.holds(before, bytes)
    }

    /// Nothing is held any more. What a plugin wrote into a body is counted even where that came to no hold.
    pub(super) fn let_all_go(&self) {
        for side in [Side::Request, Side::Response] {
            let counted = |at: &usize| self.state.marks[*at].counted[side as usize].get() > 0;
            (0..self.places.len()).filter(counted).for_each(|at| self.let_go(side, at));
        }
    }

    /// Something arrives at plugin `at`; past the last one it is ready.
    pub(super) fn push(
        &self,
        side: Side,
        at: Option<usize>,
        piece: Piece,
        ready: &mut Pieces,
    ) -> Result<(), Failure> {
        let Some(at) = at else {
            ready.push(piece);
            return Ok(());
        };
        if !self.sees(at, side) {
            return self.push(side, self.next(side, at), piece, ready);
        }
        match piece {
            Piece::Data(bytes, end) => self.data(side, at, bytes, end, ready),
            Piece::Trailers(trailers) => self.trailers(side, at, trailers, ready),
        }
    }

    fn data(
        &self,
        side: Side,
        at: usize,
        bytes: Bytes,
        end: bool,
        ready: &mut Pieces,
    ) -> Result<(), Failure> {
        match self.show(side, at, bytes, end)? {
            Some(gone) => self.pass(side, at, gone, end, ready),
            None => Ok(()),
        }
    }

    /// Shows a part of a body to plugin `at`. What moves on; `None` if it holds everything.
    pub(super) fn show(
        &self,
        side: Side,
        at: usize,
        bytes: Bytes,
        end: bool,
    ) -> Result<Option<Gone>, Failure> {
        let (place, lane) = (&self.places[at], self.lane(side, at));
        if end {
            lane.ended.set(true);
        }
        // What it has let go of so far is not what comes now.
        self.state.marks[at].continued[side as usize].set(false);
        // Where the plugin can call nothing that would look at it, and holds nothing before it, it stays here.
        let stays = !place.seat.needs.bodies && lane.held.get() == Held::Nothing;
        let spare = &place.seat.spare;
        let mut bytes = Some(bytes);
        let called = self.call(place, |instance, context| {
            let size = match &bytes {
                Some(bytes) if stays => bytes.len(),
                _ => give(instance, spare, context, side, &mut bytes),
            };
            let size = u32::try_from(size).unwrap_or(u32::MAX);
            let action = self.tell(side, instance, context, size, end)?;
            Ok(let_go(instance, spare, context, side, action, end, &mut bytes))
        });
        match called {
            Ok(released) => {
                self.check_effects(side, at)?;
                self.take(side, at, released)
            }
            Err(broken) => {
                self.failed(place, &broken)?;
                Ok(Some(self.left(side, at, bytes)))
            }
        }
    }

    /// Calls the callback for a part of a body.
    fn tell(
        &self,
        side: Side,
        instance: &mut Instance<ProxyHost>,
        context: ContextId,
        size: u32,
        end: bool,
    ) -> Result<Action, Fault> {
        match (self.kind, side) {
            (PluginType::Http, Side::Request) => instance.on_request_body(context, size, end),
            (PluginType::Http, Side::Response) => instance.on_response_body(context, size, end),
            (PluginType::Network, Side::Request) => instance.on_downstream_data(context, size, end),
            (PluginType::Network, Side::Response) => instance.on_upstream_data(context, size, end),
        }
    }

    /// Takes what a plugin let go of, and keeps account of what it holds.
    pub(super) fn take(
        &self,
        side: Side,
        at: usize,
        released: Released,
    ) -> Result<Option<Gone>, Failure> {
        let lane = self.lane(side, at);
        match released.action {
            Action::Continue => {
                self.let_go(side, at);
                return Ok(Some(self.gone(side, at, released.bytes, released.trailers)));
            }
            Action::PauseWithoutView => {
                lane.hidden.borrow_mut().extend_from_slice(&released.bytes);
            }
            Action::Pause => {}
            Action::Discard => lane.discarded.set(lane.discarded.get() || released.dropped),
        }
        self.keep(side, at, Held::Body, released.held)?;
        Ok(None)
    }

    /// A plugin has said that it holds a part: with what it has hidden so many bytes.
    fn keep(&self, side: Side, at: usize, part: Held, bytes: usize) -> Result<(), Failure> {
        let lane = self.lane(side, at);
        self.hold(side, at, part);
        if lane.ended.get() {
            lane.due.set(Some(Instant::now()));
        }
        let held = lane.hidden.borrow().len() + bytes;
        if held > MAX_HELD {
            let what = format!("held more than {MAX_HELD} bytes of a body");
            return Err(self.too_much(side, at, &what, StatusCode::PAYLOAD_TOO_LARGE));
        }
        if !self.count_held(side, at, held) {
            let what = format!("wanted to hold a body while plugins hold {MAX_HELD_IN_ALL} bytes");
            return Err(self.too_much(side, at, &what, StatusCode::SERVICE_UNAVAILABLE));
        }
        Ok(())
    }

    /// What a plugin lets go of, behind what it had hidden.
    fn gone(&self, side: Side, at: usize, bytes: Bytes, trailers: Option<Box<HeaderMap>>) -> Gone {
        let mut hidden = self.lane(side, at).hidden.take();
        if hidden.is_empty() {
            return Gone { bytes, trailers };
        }
        hidden.extend_from_slice(&bytes);
        Gone { bytes: hidden.into(), trailers }
    }

    fn trailers(
        &self,
        side: Side,
        at: usize,
        trailers: Box<HeaderMap>,
        ready: &mut Pieces,
    ) -> Result<(), Failure> {
        let count = super::head::count(&trailers);
        self.lane(side, at).ended.set(true);
        self.state.marks[at].continued[side as usize].set(false);
        let mut trailers = Some(trailers);
        let spare = &self.places[at].seat.spare;
        let called = self.call(&self.places[at], |instance, context| {
            if let Some(stream) = instance.stream_mut(context) {
                stream.contents(spare).trailers[side as usize] = trailers.take();
            }
            let action = match side {
                Side::Request => instance.on_request_trailers(context, count)?,
                Side::Response => instance.on_response_trailers(context, count)?,
            };
            Ok(release(instance, spare, context, side, action, true))
        });
        let released = match called {
            Ok(released) => released,
            Err(broken) => {
                self.failed(&self.places[at], &broken)?;
                self.go_on_without(side, at, ready)?;
                let Some(trailers) = trailers else { return Ok(()) };
                return self.push(side, self.next(side, at), Piece::Trailers(trailers), ready);
            }
        };
        self.check_effects(side, at)?;
        if released.action == Action::Continue {
            self.let_go(side, at);
            let gone = self.gone(side, at, released.bytes, released.trailers);
            return self.pass(side, at, gone, true, ready);
        }
        self.keep(side, at, Held::Trailers, released.held)
    }

    /// What a plugin let go of moves on.
    pub(super) fn pass(
        &self,
        side: Side,
        at: usize,
        Gone { bytes, trailers }: Gone,
        end: bool,
        ready: &mut Pieces,
    ) -> Result<(), Failure> {
        let next = self.next(side, at);
        let last = end && trailers.is_none();
        // Before anything goes on: a plugin that answers instead may drop what it likes.
        if self.framed[side as usize].get() && self.lane(side, at).discarded.take() {
            let what = "dropped a part of a body whose length was announced";
            return Err(self.too_much(side, at, what, StatusCode::INTERNAL_SERVER_ERROR));
        }
        if last || !bytes.is_empty() {
            self.push(side, next, Piece::Data(bytes, last), ready)?;
        }
        match trailers {
            Some(trailers) => self.push(side, next, Piece::Trailers(trailers), ready),
            None => Ok(()),
        }
    }

    /// A plugin broke that may be left out: what it had in hands moves on as it left it, and what it was not shown.
    fn go_on_without(&self, side: Side, at: usize, ready: &mut Pieces) -> Result<(), Failure> {
        let gone = self.left(side, at, None);
        self.pass(side, at, gone, self.lane(side, at).ended.get(), ready)
    }

    /// What is left of a plugin that broke, and behind it what it was not shown.
    pub(super) fn left(&self, side: Side, at: usize, unseen: Option<Bytes>) -> Gone {
        let mut lost = self.state.marks[at].lost.borrow_mut();
        let taken = lost.as_mut().map(|lost| {
            let bytes = lost.buffers[side as usize].take();
            (bytes, lost.trailers[side as usize].take())
        });
        drop(lost);
        let (bytes, trailers) = taken.unwrap_or_default();
        let bytes = match unseen {
            Some(unseen) if bytes.is_empty() => unseen,
            Some(unseen) => [bytes, unseen].concat().into(),
            None => bytes,
        };
        self.let_go(side, at);
        self.gone(side, at, bytes, trailers)
    }

    /// Looks which plugins let go since.
    pub(super) fn advance(&self, side: Side, ready: &mut Pieces) -> Result<(), Failure> {
        if !self.has_held[side as usize].get() {
            return Ok(());
        }
        let passed = self.passed(side);
        for step in 0..passed {
            let at = match side {
                Side::Request => step,
                Side::Response => passed - 1 - step,
            };
            if self.lane(side, at).held.get() == Held::Nothing {
                continue;
            }
            self.check_effects(side, at)?;
            let mark = &self.state.marks[at];
            if mark.lost.borrow().is_some() {
                self.failed(&self.places[at], &Broken::Lost)?;
                self.go_on_without(side, at, ready)?;
            } else if mark.continued[side as usize].take() {
                self.resume(side, at, ready)?;
            }
        }
        Ok(())
    }

    fn resume(&self, side: Side, at: usize, ready: &mut Pieces) -> Result<(), Failure> {
        self.let_go(side, at);
        let ended = self.lane(side, at).ended.get();
        let spare = &self.places[at].seat.spare;
        let released = self.call(&self.places[at], |instance, context| {
            Ok(release(instance, spare, context, side, Action::Continue, ended))
        });
        match released {
            Ok(released) => {
                let gone = self.gone(side, at, released.bytes, released.trailers);
                self.pass(side, at, gone, ended, ready)
            }
            Err(broken) => {
                self.failed(&self.places[at], &broken)?;
                self.go_on_without(side, at, ready)
            }
        }
    }

    /// Plugins have held a part for too long: the first of them, and with it what waits behind it.
    pub(super) fn give_up(&self, side: Side, ready: &mut Pieces) -> Result<(), Failure> {
        let holds = |at: &usize| self.lane(side, *at).held.get() != Held::Nothing;
        let passed = self.passed(side);
        let first = match side {
            Side::Request => (0..passed).find(holds),
            Side::Response => (0..passed).rev().find(holds),
        };
        let Some(at) = first else { return Ok(()) };
        self.held_for_too_long(at, "the rest of a body")?;
        self.resume(side, at, ready)
    }

    /// Counts those that hold a part among those that failed.
    pub(super) fn count_holders(&self, side: Side) {
        let holds = |at: &usize| self.lane(side, *at).held.get() != Held::Nothing;
        (0..self.passed(side)).filter(holds).for_each(|at| self.places[at].count_failure());
    }

    /// Whether a plugin holds a part.
    pub(super) fn holds(&self, side: Side) -> bool {
        self.has_held[side as usize].get()
            && (0..self.passed(side)).any(|at| self.lane(side, at).held.get() != Held::Nothing)
    }

    /// Whether a plugin ended it.
    pub(super) fn is_closed(&self) -> bool {
        self.marks().any(|mark| mark.closed.get())
    }

    /// A request can still be answered, by whoever waits for that; a response is under way and can only be cut.
    pub(super) fn check_effects(&self, side: Side, at: usize) -> Result<(), Failure> {
        let mark = &self.state.marks[at];
        if mark.closed.get() {
            return Err(self.closed(at));
        }
        let answered = mark.answer.borrow().is_some();
        match side {
            Side::Response if answered => {
                self.places[at].count_failure();
                let label = self.places[at].seat.label();
                Err(Failure::of(label, "answered while the response was under way"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn is_answered(&self) -> bool {
        self.marks().any(|mark| mark.answer.borrow().is_some())
    }

    /// Those of plugins that are not left out.
    fn marks(&self) -> impl Iterator<Item = &super::state::Mark> {
        let marks = self.state.marks.iter().zip(self.places.iter());
        marks.filter(|(_, place)| !place.bypassed.get()).map(|(mark, _)| mark)
    }

    fn too_much(&self, side: Side, at: usize, what: &str, status: StatusCode) -> Failure {
        self.places[at].count_failure();
        let mut failure = Failure::of(self.places[at].seat.label(), what);
        if side == Side::Request {
            failure.status = status;
        }
        failure
    }
}
