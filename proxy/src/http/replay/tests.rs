use std::{future::poll_fn, task::ready};

use proptest::prelude::*;
use tokio::sync::mpsc;

use super::{Piece as Kind, *};
use crate::http::body::Piece;

/// A body that a test writes.
fn source() -> (mpsc::Sender<Piece>, Body) {
    let (sender, receiver) = mpsc::channel(4096);
    (sender, Body::Copy(receiver))
}

fn send(sender: &mpsc::Sender<Piece>, text: &str) {
    sender.try_send(Piece::Data(Bytes::copy_from_slice(text.as_bytes()))).unwrap();
}

fn replay(limit: usize) -> (mpsc::Sender<Piece>, Rc<Replay>, Rc<Progress>) {
    let (sender, body) = source();
    let progress = Rc::<Progress>::default();
    (sender, Replay::new(body, limit, progress.clone()), progress)
}

/// What a body gives without waiting, and whether it then is pending, broken or over.
#[derive(Debug, PartialEq, Eq)]
enum Then {
    Waits,
    Breaks,
    Ends,
}

fn read(body: &mut Body) -> (String, Then) {
    let mut context = Context::from_waker(Waker::noop());
    let mut text = String::new();
    loop {
        match Pin::new(&mut *body).poll_frame(&mut context) {
            Poll::Pending => return (text, Then::Waits),
            Poll::Ready(None) => return (text, Then::Ends),
            Poll::Ready(Some(Err(_))) => return (text, Then::Breaks),
            Poll::Ready(Some(Ok(frame))) => {
                text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
            }
        }
    }
}

fn got(text: &str, then: Then) -> (String, Then) {
    (text.to_owned(), then)
}

#[test]
fn the_next_attempt_gets_what_was_sent_and_what_is_still_to_come() {
    let (sender, replay, _) = replay(100);
    let (_, mut first) = replay.begin().unwrap();
    send(&sender, "one ");
    send(&sender, "two ");
    assert_eq!(read(&mut first), got("one two ", Then::Waits));
    let (_, mut second) = replay.begin().unwrap();
    send(&sender, "three");
    sender.try_send(Piece::End).unwrap();
    assert_eq!(read(&mut first), got("", Then::Breaks), "it must not take from the second");
    assert_eq!(read(&mut second), got("one two three", Then::Ends));
    assert!(replay.is_complete() && replay.is_delivered(2) && !replay.is_delivered(1));
    // Once complete, several can read it at once.
    let (_, mut third) = replay.begin().unwrap();
    let (_, mut fourth) = replay.begin().unwrap();
    assert_eq!(read(&mut third), got("one two three", Then::Ends));
    assert_eq!(read(&mut fourth), got("one two three", Then::Ends));
}

/// Its attempt was answered early, and its connection stood still while the next one took the rest of the body.
#[test]
fn who_was_left_behind_never_takes_what_is_missing_for_the_end() {
    for (limit, settled) in [(10, false), (100, true)] {
        let (sender, replay, _) = replay(limit);
        let (_, mut first) = replay.begin().unwrap();
        send(&sender, "head ");
        assert_eq!(read(&mut first), got("head ", Then::Waits));
        let (number, mut second) = replay.begin().unwrap();
        assert_eq!(read(&mut second), got("head ", Then::Waits));
        if settled {
            replay.settle(number);
        }
        send(&sender, "and much more");
        sender.try_send(Piece::End).unwrap();
        assert_eq!(read(&mut second), got("and much more", Then::Ends));
        assert!(!first.is_end_stream(), "{limit}");
        assert_eq!(read(&mut first), got("", Then::Breaks), "{limit}");
        assert!(second.is_end_stream() && replay.is_delivered(2) && !replay.is_delivered(1));
    }
}

#[test]
fn between_two_attempts_nothing_is_lost_for_the_next() {
    let (sender, replay, _) = replay(10);
    let (_, mut first) = replay.begin().unwrap();
    send(&sender, "head ");
    assert_eq!(read(&mut first), got("head ", Then::Waits));
    assert!(replay.is_whole());
    replay.pause();
    send(&sender, "and much more");
    sender.try_send(Piece::End).unwrap();
    assert_eq!(read(&mut first), got("", Then::Breaks));
    let (number, mut second) = replay.begin().unwrap();
    assert_eq!(read(&mut second), got("head and much more", Then::Ends));
    assert!(replay.is_delivered(number));
}

#[test]
fn beyond_the_limit_it_streams_on_and_cannot_be_sent_again() {
    let (sender, replay, _) = replay(5);
    let (_, mut first) = replay.begin().unwrap();
    send(&sender, "12345");
    assert_eq!(read(&mut first), got("12345", Then::Waits));
    assert!(replay.is_whole());
    send(&sender, "6");
    send(&sender, "7");
    assert_eq!(read(&mut first), got("67", Then::Waits));
    assert!(!replay.is_whole() && replay.begin().is_none());
    assert!(replay.kept.borrow().pieces.is_empty(), "nothing is held any more");
    sender.try_send(Piece::End).unwrap();
    assert_eq!(read(&mut first), got("", Then::Ends));
    assert!(replay.is_delivered(1));
}

#[test]
fn many_small_pieces_are_too_many() {
    let (sender, replay, _) = replay(1 << 20);
    let (_, mut first) = replay.begin().unwrap();
    (0..MAX_PIECES).for_each(|_| send(&sender, "x"));
    assert_eq!(read(&mut first).0.len(), MAX_PIECES);
    assert!(replay.is_whole());
    send(&sender, "x");
    read(&mut first);
    assert!(!replay.is_whole());
}

#[test]
fn the_answered_attempt_alone_gets_the_rest_and_nothing_is_kept() {
    let (sender, replay, progress) = replay(100);
    let (_, mut first) = replay.begin().unwrap();
    send(&sender, "one ");
    assert_eq!(read(&mut first), got("one ", Then::Waits));
    let (number, mut second) = replay.begin().unwrap();
    replay.settle(number);
    assert!(replay.begin().is_none());
    send(&sender, "two");
    sender.try_send(Piece::End).unwrap();
    assert_eq!(read(&mut first).1, Then::Breaks);
    assert!(!progress.is_sent());
    assert_eq!(read(&mut second), got("one two", Then::Ends));
    assert!(replay.is_delivered(number));
    assert!(replay.kept.borrow().pieces.iter().all(|piece| match piece {
        Kind::Data(data) => data.is_empty(),
        Kind::Trailers(_) => false,
    }));
}

#[test]
fn a_body_that_breaks_breaks_all_attempts() {
    let (sender, replay, _) = replay(100);
    let (_, mut first) = replay.begin().unwrap();
    send(&sender, "one ");
    drop(sender);
    assert_eq!(read(&mut first), got("one ", Then::Breaks));
    assert!(replay.begin().is_none());
}

#[test]
fn trailers_come_again() {
    let trailers = HeaderMap::from_iter([(
        http::HeaderName::from_static("checksum"),
        http::HeaderValue::from_static("1"),
    )]);
    let (_, replay, _) = replay(100);
    replay.kept.borrow_mut().add(&Frame::trailers(trailers.clone()));
    replay.kept.borrow_mut().ended = true;
    for _ in 0..2 {
        let (_, mut body) = replay.begin().unwrap();
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut context) else {
            panic!("no trailers");
        };
        assert_eq!(frame.trailers_ref(), Some(&trailers));
    }
}

/// Whoever waits is woken when the body goes to another attempt, and when more comes.
#[tokio::test]
async fn nobody_waits_for_ever() {
    let (sender, replay, _) = replay(100);
    let (_, mut first) = replay.begin().unwrap();
    let waiting = async {
        // What was kept it may still get.
        poll_fn(|context| {
            loop {
                match ready!(Pin::new(&mut first).poll_frame(context)) {
                    Some(Ok(_)) => {}
                    end => return Poll::Ready(end.is_some_and(|frame| frame.is_err())),
                }
            }
        })
        .await
    };
    let moving_on = async {
        tokio::task::yield_now().await;
        let (_, mut second) = replay.begin().unwrap();
        send(&sender, "x");
        poll_fn(|context| Pin::new(&mut second).poll_frame(context)).await.unwrap().is_ok()
    };
    assert_eq!(tokio::join!(waiting, moving_on), (true, true));
}

proptest! {
    /// However attempts follow one another, each that ends well got the whole body.
    #[test]
    fn whoever_gets_to_the_end_got_everything(
        pieces in proptest::collection::vec("[a-z]{0,8}", 0..30),
        restarts in proptest::collection::vec(0usize..30, 0..6),
        limit in 0usize..200,
    ) {
        let (sender, replay, _) = replay(limit);
        let whole: String = pieces.concat();
        let (_, mut current) = replay.begin().unwrap();
        let mut read_so_far = String::new();
        for (at, piece) in pieces.iter().enumerate() {
            send(&sender, piece);
            if restarts.contains(&at) && let Some((_, next)) = replay.begin() {
                (current, read_so_far) = (next, String::new());
            }
            if at % 2 == 0 {
                let (more, then) = read(&mut current);
                prop_assert_eq!(then, Then::Waits);
                read_so_far.push_str(&more);
            }
            let kept = replay.kept.borrow();
            prop_assert!(kept.bytes <= limit || kept.pieces.is_empty());
        }
        sender.try_send(Piece::End).unwrap();
        let (more, then) = read(&mut current);
        prop_assert_eq!(then, Then::Ends);
        prop_assert_eq!(read_so_far + &more, whole);
    }
}
