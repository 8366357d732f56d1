//! Bodies and trailers on their way through the plugins of an exchange. A plugin that holds a part gets more of it until
//! it lets go, up to a bound; what only passes is not copied.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use leno_api::model::wasm_plugin::PluginType;
use leno_wasm_host::{Action, ContextId, Instance};

use super::{
    host::ProxyHost,
    run::{Failure, Run, Side},
    seat::{Broken, MAX_HELD_IN_ALL},
    stream::Spare,
};

/// Bytes of a body that a plugin may hold. Larger bodies are for streaming.
const MAX_HELD: usize = 1 << 20;

/// What one plugin does with a body.
#[derive(Debug, Default)]
pub(super) struct Lane {
    held: Cell<Held>,
    /// The last byte has come.
    ended: Cell<bool>,
    /// Bytes that it was shown once and does not want to see again.
    hidden: RefCell<Vec<u8>>,
    /// Bytes that it holds, as they are counted for all.
    counted: Cell<usize>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Held {
    #[default]
    Nothing,
    Body,
    Trailers,
}

/// What moves.
#[derive(Debug)]
pub(super) enum Piece {
    /// Bytes, and whether they are the last.
    Data(Bytes, bool),
    Trailers(Box<HeaderMap>),
}

/// Pieces in their order. Mostly there is one at a time.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    first: Option<Piece>,
    others: VecDeque<Piece>,
}

impl Pieces {
    pub(super) fn push(&mut self, piece: Piece) {
        match &self.first {
            None => self.first = Some(piece),
            Some(_) => self.others.push_back(piece),
        }
    }

    pub(super) fn pop(&mut self) -> Option<Piece> {
        let first = self.first.take()?;
        if !self.others.is_empty() {
            self.first = self.others.pop_front();
        }
        Some(first)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// The bytes, if nothing else is here and nothing follows.
    pub(super) fn only(mut self) -> Result<Bytes, Self> {
        match self.first.take() {
            Some(Piece::Data(bytes, true)) if self.others.is_empty() => Ok(bytes),
            first => Err(Self { first, others: self.others }),
        }
    }
}

/// What a plugin let go of.
struct Released {
    action: Action,
    bytes: Bytes,
    trailers: Option<Box<HeaderMap>>,
    /// What it still holds.
    held: usize,
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
        }
    }

    /// Whether plugins may change a body.
    pub fn changes(&self, side: Side) -> bool {
        let edits = |at| self.sees(at, side) && self.places[at].seat.needs.edits;
        self.needs.edits && (0..self.passed(side)).any(edits)
    }

    fn sees(&self, at: usize, side: Side) -> bool {
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

    fn next(&self, side: Side, at: usize) -> Option<usize> {
        match side {
            Side::Request => Some(at + 1).filter(|next| *next < self.reached.get()),
            Side::Response => at.checked_sub(1),
        }
    }

    fn lane(&self, side: Side, at: usize) -> &Lane {
        &self.places[at].lanes[side as usize]
    }

    fn hold(&self, side: Side, at: usize, held: Held) {
        self.lane(side, at).held.set(held);
        self.has_held[side as usize].set(true);
    }

    fn let_go(&self, side: Side, at: usize) {
        self.lane(side, at).held.set(Held::Nothing);
        self.count_held(side, at, 0);
    }

    /// Counts what a plugin holds. Whether all of them may hold as much as they do then.
    fn count_held(&self, side: Side, at: usize, bytes: usize) -> bool {
        let before = self.lane(side, at).counted.replace(bytes);
        before == bytes || self.places[at].seat.holds(before, bytes)
    }

    /// Nothing is held any more.
    pub(super) fn let_all_go(&self) {
        for side in [Side::Request, Side::Response] {
            if self.has_held[side as usize].get() {
                (0..self.places.len()).for_each(|at| self.let_go(side, at));
            }
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
        if end {
            self.lane(side, at).ended.set(true);
        }
        let mut bytes = Some(bytes);
        let spare = &self.places[at].seat.spare;
        let called = self.call(&self.places[at], |instance, context| {
            let size = instance.stream_mut(context).map_or(0, |stream| {
                let buffer = &mut stream.contents(spare).buffers[side as usize];
                buffer.push(bytes.take().unwrap_or_default());
                u32::try_from(buffer.len()).unwrap_or(u32::MAX)
            });
            let action = match (self.kind, side) {
                (PluginType::Http, Side::Request) => {
                    instance.on_request_body(context, size, end)?
                }
                (PluginType::Http, Side::Response) => {
                    instance.on_response_body(context, size, end)?
                }
                (PluginType::Network, Side::Request) => {
                    instance.on_downstream_data(context, size, end)?
                }
                (PluginType::Network, Side::Response) => {
                    instance.on_upstream_data(context, size, end)?
                }
            };
            Ok(release(instance, spare, context, side, action, end))
        });
        let released = match called {
            Ok(released) => released,
            Err(broken) => {
                self.failed(&self.places[at], &broken)?;
                return self.go_on_without(side, at, bytes, ready);
            }
        };
        self.check_effects(side, at)?;
        let lane = self.lane(side, at);
        match released.action {
            Action::Continue => {
                self.let_go(side, at);
                return self.pass(side, at, released.bytes, released.trailers, end, ready);
            }
            Action::PauseWithoutView => {
                lane.hidden.borrow_mut().extend_from_slice(&released.bytes);
            }
            Action::Pause | Action::Discard => {}
        }
        self.hold(side, at, Held::Body);
        let held = lane.hidden.borrow().len() + released.held;
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

    fn trailers(
        &self,
        side: Side,
        at: usize,
        trailers: Box<HeaderMap>,
        ready: &mut Pieces,
    ) -> Result<(), Failure> {
        let count = super::head::count(&trailers);
        self.lane(side, at).ended.set(true);
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
                self.go_on_without(side, at, None, ready)?;
                let Some(trailers) = trailers else { return Ok(()) };
                return self.push(side, self.next(side, at), Piece::Trailers(trailers), ready);
            }
        };
        self.check_effects(side, at)?;
        if released.action == Action::Continue {
            self.let_go(side, at);
            return self.pass(side, at, released.bytes, released.trailers, true, ready);
        }
        self.hold(side, at, Held::Trailers);
        Ok(())
    }

    /// What a plugin let go of moves on, what it had hidden first.
    fn pass(
        &self,
        side: Side,
        at: usize,
        bytes: Bytes,
        trailers: Option<Box<HeaderMap>>,
        end: bool,
        ready: &mut Pieces,
    ) -> Result<(), Failure> {
        let mut hidden = self.lane(side, at).hidden.take();
        let bytes = match hidden.is_empty() {
            true => bytes,
            false => {
                hidden.extend_from_slice(&bytes);
                hidden.into()
            }
        };
        let next = self.next(side, at);
        let last = end && trailers.is_none();
        if last || !bytes.is_empty() {
            self.push(side, next, Piece::Data(bytes, last), ready)?;
        }
        match trailers {
            Some(trailers) => self.push(side, next, Piece::Trailers(trailers), ready),
            None => Ok(()),
        }
    }

    /// A plugin broke that may be left out: what it had in hands moves on as it left it, and what it was not shown.
    fn go_on_without(
        &self,
        side: Side,
        at: usize,
        unseen: Option<Bytes>,
        ready: &mut Pieces,
    ) -> Result<(), Failure> {
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
        self.pass(side, at, bytes, trailers, self.lane(side, at).ended.get(), ready)
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
                self.go_on_without(side, at, None, ready)?;
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
            Ok(released) => self.pass(side, at, released.bytes, released.trailers, ended, ready),
            Err(broken) => {
                self.failed(&self.places[at], &broken)?;
                self.go_on_without(side, at, None, ready)
            }
        }
    }

    /// Whether a plugin holds a part.
    pub(super) fn holds(&self, side: Side) -> bool {
        self.has_held[side as usize].get()
            && (0..self.passed(side)).any(|at| self.lane(side, at).held.get() != Held::Nothing)
    }

    /// Whether a plugin ended it.
    pub(super) fn is_closed(&self) -> bool {
        self.state.marks.iter().any(|mark| mark.closed.get())
    }

    /// A request can still be answered, by whoever waits for that; a response is under way and can only be cut.
    fn check_effects(&self, side: Side, at: usize) -> Result<(), Failure> {
        let mark = &self.state.marks[at];
        if mark.closed.get() {
            return Err(self.closed(at));
        }
        let answered = mark.answer.borrow().is_some();
        match side {
            Side::Response if answered => {
                let label = self.places[at].seat.label();
                Err(Failure::of(label, "answered while the response was under way"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn is_answered(&self) -> bool {
        self.state.marks.iter().any(|mark| mark.answer.borrow().is_some())
    }

    fn too_much(&self, side: Side, at: usize, what: &str, status: StatusCode) -> Failure {
        let mut failure = Failure::of(self.places[at].seat.label(), what);
        if side == Side::Request {
            failure.status = status;
        }
        failure
    }
}

/// Takes out of the stream what the plugin let go of.
fn release(
    instance: &mut Instance<ProxyHost>,
    spare: &Spare,
    context: ContextId,
    side: Side,
    action: Action,
    end: bool,
) -> Released {
    let mut released = Released { action, bytes: Bytes::new(), trailers: None, held: 0 };
    let Some(stream) = instance.stream_mut(context) else { return released };
    let contents = stream.contents(spare);
    let buffer = &mut contents.buffers[side as usize];
    match action {
        Action::Continue => {
            released.bytes = buffer.take();
            if end {
                let trailers = contents.trailers[side as usize].take();
                released.trailers = trailers.filter(|trailers| !trailers.is_empty());
            }
        }
        Action::Pause => released.held = buffer.len(),
        Action::PauseWithoutView => released.bytes = buffer.take(),
        Action::Discard => drop(buffer.take()),
    }
    stream.let_go(spare);
    released
}
