//! Answers that their callers do not take. Where a peer leaves no room, nobody asks a body for its next piece: neither
//! its deadline nor anything else that the body itself might do comes about, and what is held upstream for it would be
//! held for as long as the peer likes. So each worker looks now and then, from outside, at all that are under way on it.

use std::{
    cell::RefCell,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;

use super::body::{Body, BodyError, drop_unread};

thread_local! {
    static ANSWERS: RefCell<Answers> = RefCell::default();
}

/// All that are under way on this thread.
#[derive(Debug, Default)]
struct Answers {
    places: Vec<Answer>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Answer {
    turn: Turn,
    deadline: Option<Instant>,
    /// Of whoever sends it, and ends it then: a connection of HTTP/1.1, or a stream of HTTP/2.
    sender: Option<Waker>,
}

/// Who is to do the next thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// We, or the upstream.
    Ours,
    /// The caller, who has to make room; since when, if somebody has looked in the meantime.
    Callers(Option<Instant>),
    /// Nobody any more: it is being ended.
    Over,
}

/// The place of an answer that is under way.
#[derive(Debug)]
pub(super) struct Place(usize);

/// A body that a caller is to take.
#[derive(Debug)]
pub(super) struct Taken {
    body: Body,
    place: Option<Place>,
}

/// Ends what is past its deadline, and what its caller has taken nothing of for `limit`. What waits for its upstream
/// minds its deadline itself.
pub fn sweep(now: Instant, limit: Duration) {
    let ended: Vec<Waker> = ANSWERS.with_borrow_mut(|answers| {
        let late = |answer: &mut Answer| {
            answer.is_late(now, limit).then(|| {
                answer.turn = Turn::Over;
                answer.sender.take()
            })
        };
        answers.places.iter_mut().filter_map(late).flatten().collect()
    });
    ended.into_iter().for_each(Waker::wake);
}

/// Whether the answer in this place is to end.
pub(super) fn is_over(place: usize) -> bool {
    ANSWERS.with_borrow(|answers| {
        answers.places.get(place).is_some_and(|answer| answer.turn == Turn::Over)
    })
}

impl Answer {
    fn is_late(&mut self, now: Instant, limit: Duration) -> bool {
        let Turn::Callers(since) = &mut self.turn else { return false };
        let since = *since.get_or_insert(now);
        let overdue = self.deadline.is_some_and(|deadline| deadline <= now);
        overdue || now.saturating_duration_since(since) >= limit
    }
}

impl Answers {
    fn add(&mut self, answer: Answer) -> Place {
        match self.free.pop() {
            Some(place) => {
                self.places[place] = answer;
                Place(place)
            }
            None => {
                self.places.push(answer);
                Place(self.places.len() - 1)
            }
        }
    }
}

impl Place {
    /// For an answer that is there: from now on it is for the caller to take it.
    fn of_answer(deadline: Option<Instant>, sender: Waker) -> Self {
        let answer = Answer { turn: Turn::Callers(None), deadline, sender: Some(sender) };
        ANSWERS.with_borrow_mut(|answers| answers.add(answer))
    }

    /// To ask [`is_over`].
    pub(super) fn number(&self) -> usize {
        self.0
    }

    fn set(&self, turn: Turn) {
        ANSWERS.with_borrow_mut(|answers| {
            let answer = &mut answers.places[self.0];
            if answer.turn != Turn::Over {
                answer.turn = turn;
            }
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let sender = ANSWERS.with_borrow_mut(|answers| {
            let none = Answer { turn: Turn::Ours, deadline: None, sender: None };
            let answer = std::mem::replace(&mut answers.places[self.0], none);
            answers.free.push(self.0);
            answer.sender
        });
        // Whose task goes with it might have a place of its own.
        drop(sender);
    }
}

impl Taken {
    /// Sent by the task of `context`, which is woken when it [`is_over`].
    pub(super) fn new(body: Body, context: &Context<'_>) -> Self {
        let answer = || Place::of_answer(body.deadline(), context.waker().clone());
        let place = is_held(&body).then(answer);
        Self { body, place }
    }

    pub(super) fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    /// Whether the caller takes nothing of it, so that it is to end.
    pub(super) fn is_over(&self) -> bool {
        self.place.as_ref().is_some_and(|place| is_over(place.0))
    }
}

/// Of one that is here as a whole nothing is held upstream.
fn is_held(body: &Body) -> bool {
    !matches!(body, Body::Empty | Body::Full(_))
}

impl HttpBody for Taken {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Some(place) = &self.place {
            place.set(if polled.is_pending() { Turn::Ours } else { Turn::Callers(None) });
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.is_over() {
            drop_unread(std::mem::take(&mut self.body));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use super::*;
    use crate::http::body::Piece;

    const LIMIT: Duration = Duration::from_secs(10);

    struct Woken(AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// An answer on a connection, whoever is woken for it, and where its pieces come from.
    fn answer() -> (Taken, Arc<Woken>, tokio::sync::mpsc::Sender<Piece>) {
        let (pieces, receiver) = tokio::sync::mpsc::channel(4);
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let waker = Waker::from(woken.clone());
        let context = Context::from_waker(&waker);
        (Taken::new(Body::Copy(receiver), &context), woken, pieces)
    }

    fn poll(taken: &mut Taken) -> bool {
        Pin::new(taken).poll_frame(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn what_nobody_takes_is_ended() {
        let (taken, woken, _pieces) = answer();
        let place = taken.place().unwrap().number();
        let begun = Instant::now();
        sweep(begun, LIMIT);
        sweep(begun + LIMIT / 2, LIMIT);
        assert!(!is_over(place) && !woken.0.load(Ordering::Relaxed));
        sweep(begun + LIMIT, LIMIT);
        assert!(is_over(place) && woken.0.load(Ordering::Relaxed));
        drop(taken);
        let (next, ..) = answer();
        assert_eq!(next.place().unwrap().number(), place);
        assert!(!is_over(place), "its place is another one's now");
    }

    #[test]
    fn what_is_taken_or_waited_for_goes_on() {
        let (mut taken, _, pieces) = answer();
        let place = taken.place().unwrap().number();
        let begun = Instant::now();
        sweep(begun, LIMIT);
        pieces.try_send(Piece::Data(Bytes::from_static(b"a"))).unwrap();
        assert!(poll(&mut taken));
        sweep(begun + LIMIT, LIMIT);
        assert!(!is_over(place), "it has taken something since");
        assert!(!poll(&mut taken));
        sweep(begun + 9 * LIMIT, LIMIT);
        sweep(begun + 99 * LIMIT, LIMIT);
        assert!(!is_over(place), "the upstream is silent");
    }

    #[test]
    fn a_deadline_is_kept_whatever_the_caller_takes() {
        let begun = Instant::now();
        let place = Place::of_answer(Some(begun + LIMIT / 2), Waker::noop().clone());
        sweep(begun, LIMIT);
        assert!(!is_over(place.number()));
        sweep(begun + LIMIT / 2, LIMIT);
        assert!(is_over(place.number()));
    }
}
