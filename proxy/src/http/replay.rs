//! A request's body that can be sent more than once. What passes on its way to the first attempt is kept, up to a limit,
//! as long as another attempt may come; nothing is copied and nothing waits. The next attempt gets what was kept, and
//! then what is still to come.

use std::{
    cell::RefCell,
    fmt,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::body::{Body, BodyError, Progress};

/// Kept pieces of a body at most, however small they are: each takes memory of its own beside its bytes.
const MAX_PIECES: usize = 1024;

/// A body with what is kept of it.
pub struct Replay {
    kept: RefCell<Kept>,
    progress: Rc<Progress>,
}

/// One attempt's view of the body.
pub struct Reader {
    replay: Rc<Replay>,
    number: u32,
    next: usize,
}

struct Kept {
    source: Body,
    pieces: Vec<Piece>,
    /// Bytes in `pieces`.
    bytes: usize,
    limit: usize,
    /// Whether `pieces` begin with the body's first byte and have everything that came since.
    whole: bool,
    /// Whether what comes is kept.
    keep: bool,
    /// Whether the source has nothing more.
    ended: bool,
    /// The one that gets what is still to come.
    current: u32,
    /// Who waits for it.
    waiting: Option<Waker>,
    /// Which readers got everything, one bit each.
    delivered: u64,
    /// The reader whose attempt was answered.
    settled: Option<u32>,
}

enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay").finish_non_exhaustive()
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Replay {
    /// Keeps up to `limit` bytes of `source`. `progress` is told when the attempt that was answered has got all of it.
    pub fn new(source: Body, limit: usize, progress: Rc<Progress>) -> Rc<Self> {
        progress.set_sent(false);
        let kept = Kept {
            source,
            pieces: Vec::new(),
            bytes: 0,
            limit,
            whole: true,
            keep: true,
            ended: false,
            current: 0,
            waiting: None,
            delivered: 0,
            settled: None,
        };
        Rc::new(Self { kept: RefCell::new(kept), progress })
    }

    /// The body for another attempt, and its number; `None` when its beginning is gone. Readers before it get what was
    /// kept but nothing more.
    pub fn begin(self: &Rc<Self>) -> Option<(u32, Body)> {
        let (number, waiting) = {
            let mut kept = self.kept.borrow_mut();
            if !kept.whole {
                return None;
            }
            kept.current += 1;
            (kept.current, kept.waiting.take())
        };
        if let Some(waker) = waiting {
            // So that it learns that nothing more comes.
            waker.wake();
        }
        Some((number, Body::Replayed(Reader { replay: self.clone(), number, next: 0 })))
    }

    /// Another attempt will follow: until it begins nobody gets more than was kept. Otherwise the connection of one that
    /// was answered early would go on reading, and what it reads may be too much to be kept.
    pub fn pause(&self) {
        let mut kept = self.kept.borrow_mut();
        kept.current += 1;
        let waiting = kept.waiting.take();
        drop(kept);
        if let Some(waker) = waiting {
            waker.wake();
        }
    }

    /// Whether all that has come so far can be sent again.
    pub fn is_whole(&self) -> bool {
        self.kept.borrow().whole
    }

    /// Whether all of the body has come, and can be sent again.
    pub fn is_complete(&self) -> bool {
        let kept = self.kept.borrow();
        kept.whole && kept.ended
    }

    /// Whether reader `number` got everything.
    pub fn is_delivered(&self, number: u32) -> bool {
        self.kept.borrow().has_delivered(number)
    }

    /// There will be no other attempt: reader `number` alone gets what is still to come, and nothing is kept for later.
    pub fn settle(&self, number: u32) {
        let mut kept = self.kept.borrow_mut();
        (kept.keep, kept.whole) = (false, false);
        kept.current = number;
        kept.settled = Some(number);
        self.progress.set_sent(kept.has_delivered(number));
        let waiting = kept.waiting.take();
        drop(kept);
        if let Some(waker) = waiting {
            waker.wake();
        }
    }
}

impl Kept {
    fn has_delivered(&self, number: u32) -> bool {
        self.delivered & bit(number) != 0
    }

    /// Whether reader `number`, which has had `at` of the pieces, has had everything. Once nothing is kept that is known
    /// of the current reader alone: to an earlier one, which may have stood still all the while, what is missing must
    /// not look like the end.
    fn is_at_end(&self, number: u32, at: usize) -> bool {
        let all_is_here = self.keep || number == self.current;
        self.ended && all_is_here && at >= self.pieces.len()
    }

    /// What was kept at `at`, for reader `number`.
    fn kept_for(&mut self, number: u32, at: usize) -> Option<Result<Frame<Bytes>, BodyError>> {
        let (keep, current) = (self.keep, self.current);
        let piece = self.pieces.get_mut(at)?;
        if keep {
            return Some(Ok(match piece {
                Piece::Data(data) => Frame::data(data.clone()),
                Piece::Trailers(trailers) => Frame::trailers(trailers.clone()),
            }));
        }
        if number != current {
            return Some(Err(BodyError::CopyCut));
        }
        Some(Ok(match piece {
            Piece::Data(data) => Frame::data(std::mem::take(data)),
            Piece::Trailers(trailers) => Frame::trailers(std::mem::take(trailers)),
        }))
    }

    /// Keeps `frame` where there is room, else nothing any more. Whether it did.
    fn add(&mut self, frame: &Frame<Bytes>) -> bool {
        if !self.keep {
            return false;
        }
        let (piece, bytes) = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => (Piece::Data(data.clone()), data.len()),
            (None, Some(trailers)) => {
                let length = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
                    name.as_str().len() + value.len()
                };
                (Piece::Trailers(trailers.clone()), trailers.iter().map(length).sum())
            }
            (None, None) => return false,
        };
        if self.bytes + bytes > self.limit || self.pieces.len() == MAX_PIECES {
            // Whoever reads from the source has had all that was kept.
            (self.keep, self.whole, self.pieces) = (false, false, Vec::new());
            return false;
        }
        self.bytes += bytes;
        self.pieces.push(piece);
        true
    }
}

impl HttpBody for Reader {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let mut kept = this.replay.kept.borrow_mut();
        if let Some(frame) = kept.kept_for(this.number, this.next) {
            this.next += 1;
            if kept.ended && this.next == kept.pieces.len() {
                this.replay.delivered(&mut kept, this.number);
            }
            return Poll::Ready(Some(frame));
        }
        if kept.is_at_end(this.number, this.next) {
            this.replay.delivered(&mut kept, this.number);
            return Poll::Ready(None);
        }
        if this.number != kept.current {
            return Poll::Ready(Some(Err(BodyError::CopyCut)));
        }
        match Pin::new(&mut kept.source).poll_frame(context) {
            Poll::Pending => {
                kept.waiting = Some(context.waker().clone());
                Poll::Pending
            }
            Poll::Ready(Some(Ok(frame))) => {
                this.next += usize::from(kept.add(&frame));
                if kept.source.is_end_stream() {
                    kept.ended = true;
                    this.replay.delivered(&mut kept, this.number);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                kept.ended = true;
                this.replay.delivered(&mut kept, this.number);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                (kept.keep, kept.whole) = (false, false);
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.replay.kept.borrow().is_at_end(self.number, self.next)
    }

    fn size_hint(&self) -> SizeHint {
        let kept = self.replay.kept.borrow();
        let rest = kept.pieces.iter().skip(self.next);
        let ahead: u64 = rest
            .map(|piece| match piece {
                Piece::Data(data) => data.len() as u64,
                Piece::Trailers(_) => 0,
            })
            .sum();
        let source = kept.source.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = source.upper() {
            hint.set_upper(upper.saturating_add(ahead));
        }
        hint.set_lower(source.lower().saturating_add(ahead));
        hint
    }
}

impl Replay {
    fn delivered(&self, kept: &mut Kept, number: u32) {
        kept.delivered |= bit(number);
        if kept.settled == Some(number) {
            self.progress.set_sent(true);
        }
    }
}

/// No exchange has that many attempts; if one had, its connections would not be used again.
fn bit(number: u32) -> u64 {
    1u64.checked_shl(number).unwrap_or(0)
}

#[cfg(test)]
mod tests;
