//! What counts as a plugin's failure, and what as held by it.

use std::sync::atomic::Ordering::Relaxed;

use super::*;

const APPEND: (&str, usize) = ("proxy_set_buffer_bytes", 5);

/// Puts so many bytes behind a request's body, of memory from its beginning.
fn append(bytes: usize) -> String {
    format!(
        "(drop (call $proxy_set_buffer_bytes (i32.const 0) (i32.const 1000000) (i32.const 0)
           (i32.const 0) (i32.const {bytes})))"
    )
}

fn trailers() -> Piece {
    Piece::Trailers(Box::new(HeaderMap::new()))
}

#[tokio::test]
async fn what_is_held_at_trailers_is_bounded_and_counted() {
    // Two steps, as one page of memory is 64 KiB: the body is paused, and grows where its trailers come.
    let grow = append(65_536).repeat(17);
    for (at_trailers, too_much, counted) in [(append(3), false, 8), (grow, true, 0)] {
        let parts = callback("proxy_on_request_headers", "(i32.const 0)")
            + &callback("proxy_on_request_body", "(i32.const 1)")
            + "(func (export \"proxy_on_request_trailers\") (param i32 i32) (result i32)"
            + &at_trailers
            + "(i32.const 1))";
        let (seats, plugin) = (seats(), plugin(&module(&[APPEND], &parts), FailurePolicy::Closed));
        let run = begin(&seats, vec![slot(&plugin)]);
        ask(&run).await.1.unwrap();
        let mut ready = Pieces::default();
        let data = Piece::Data("hello".into(), false);
        run.push(Side::Request, Some(0), data, &mut ready).unwrap();
        let pushed = run.push(Side::Request, Some(0), trailers(), &mut ready);
        assert_eq!(pushed.is_err(), too_much, "{pushed:?}");
        let held = || plugin.figures().held_bytes.load(Relaxed);
        if !too_much {
            assert_eq!(held(), counted);
        }
        drop(run);
        assert_eq!(held(), 0);
    }
}

#[tokio::test]
async fn what_was_written_before_a_failure_is_held_no_more() {
    let close = "(drop (call $proxy_close_stream (i32.const 0))) (i32.const 1)";
    let parts = callback("proxy_on_request_headers", "(i32.const 0)")
        + &callback("proxy_on_request_body", &(append(3) + close));
    let bytes = module(&[APPEND, ("proxy_close_stream", 1)], &parts);
    let (seats, plugin) = (seats(), plugin(&bytes, FailurePolicy::Closed));
    let run = begin(&seats, vec![slot(&plugin)]);
    ask(&run).await.1.unwrap();
    assert!(run.whole(Side::Request, "hello".into()).is_err());
    drop(run);
    assert_eq!(plugin.figures().held_bytes.load(Relaxed), 0);
}

/// The caller goes while a plugin has the request. `patience`: how long the plugin may have it.
async fn failures_of_abandoned(heads: u32, ended: bool, patience: Duration) -> u64 {
    use futures_util::FutureExt as _;
    let (seats, plugin) = (seats(), plugin(&guest(heads, 1, ""), FailurePolicy::Closed));
    let run = begin(&seats, vec![slot(&plugin)]);
    run.patience.set(patience);
    if heads == 1 {
        run.patience.set(PAUSE_LIMIT);
        assert!(ask(&run).now_or_never().is_none());
        run.patience.set(patience);
    } else {
        ask(&run).await.1.unwrap();
        let piece = Piece::Data("hello".into(), ended);
        run.push(Side::Request, Some(0), piece, &mut Pieces::default()).unwrap();
    }
    drop(run);
    failures(&plugin)
}

#[tokio::test]
async fn who_keeps_callers_waiting_until_they_go_has_failed() {
    let no_time = Duration::ZERO;
    for (heads, ended, patience, expected) in [
        (1, false, no_time, 1),
        (1, false, PAUSE_LIMIT, 0),
        (0, true, no_time, 1),
        (0, true, PAUSE_LIMIT, 0),
        // The rest of the body is missing, and the plugin may want it.
        (0, false, no_time, 0),
    ] {
        let found = failures_of_abandoned(heads, ended, patience).await;
        assert_eq!(found, expected, "{heads} {ended} {patience:?}");
    }
}

#[tokio::test]
async fn an_exchange_that_is_lost_by_a_fault_of_its_own_is_counted_once() {
    let parts = callback("proxy_on_request_headers", "(i32.const 1)")
        + "(func (export \"proxy_on_tick\") (param i32) (unreachable))";
    let (seats, plugin) = (seats(), plugin(&module(&[], &parts), FailurePolicy::Closed));
    let run = begin(&seats, vec![slot(&plugin)]);
    let mut request = Request::new(());
    let held = run.request_head(Phase::Unspecified, &mut request, true);
    assert!(matches!(held, Err(Stopped::Held(0))), "{held:?}");
    assert!(tick(&run).is_err());
    let own_faults = || plugin.figures().own_faults.load(Relaxed);
    assert_eq!((failures(&plugin), own_faults()), (0, 1));
    let failed = run.held_request_head(0, Phase::Unspecified, &mut request, true).await;
    assert!(failed.is_err(), "{failed:?}");
    assert_eq!((failures(&plugin), own_faults()), (1, 0));
}

#[tokio::test]
async fn what_has_a_length_is_not_made_shorter() {
    for framed in [true, false] {
        let (seats, plugin) = (seats(), plugin(&guest(0, 3, ""), FailurePolicy::Closed));
        let run = begin(&seats, vec![slot(&plugin)]);
        ask(&run).await.1.unwrap();
        let mut headers = HeaderMap::new();
        if framed {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("5"));
        }
        run.unframe(Side::Request, &mut headers);
        let (piece, mut ready) = (Piece::Data("hello".into(), true), Pieces::default());
        run.push(Side::Request, Some(0), piece, &mut ready).unwrap();
        assert_eq!(failures(&plugin), 0, "it may still answer instead");
        run.state.marks[0].continued[Side::Request as usize].set(true);
        let passed = run.advance(Side::Request, &mut ready);
        assert_eq!((passed.is_err(), failures(&plugin)), (framed, u64::from(framed)));
    }
}
