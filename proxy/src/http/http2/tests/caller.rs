//! Towards callers: those that are silent, and those that take nothing.

use std::cell::RefCell;

use tokio::task::JoinHandle;

use super::*;
use crate::http::unread;

const HEAD_LIMIT: Duration = Duration::from_secs(60);
const SEND_LIMIT: Duration = Duration::from_secs(300);

type Requests = h2::client::SendRequest<Bytes>;

/// A caller that leaves `window` bytes of room for each answer, and is answered by `answer`.
async fn caller(
    window: u32,
    answer: impl Fn(Request<Incoming>) -> Answer + 'static,
) -> (Requests, JoinHandle<Ended>) {
    let (near, far, _) = connection();
    let served = tokio::task::spawn_local(async move {
        let builder = h2::server::Builder::new();
        server::serve(&builder, near, LIMIT, std::future::pending(), answer).await
    });
    let mut builder = h2::client::Builder::new();
    let builder = builder.initial_window_size(window);
    let (requests, connection) = builder.handshake(far).await.unwrap();
    tokio::task::spawn_local(connection);
    settled().await;
    (requests, served)
}

/// What a worker does now and then.
async fn swept() {
    let now = tokio::time::Instant::now();
    unread::sweep(now, SEND_LIMIT);
    unread::sweep(now + SEND_LIMIT, SEND_LIMIT);
    settled().await;
}

fn reason<T>(result: Result<T, h2::Error>) -> Option<Reason> {
    result.err().and_then(|error| error.reason())
}

/// However small it is, and whatever follows it: there must be room for the last of it.
#[tokio::test(start_paused = true)]
async fn small_answers_that_nobody_takes_are_reset() {
    let all = async {
        for (window, trailers) in [(0, true), (0, false), (1, true), (1, false), (99, true)] {
            let (mut requests, _served) = caller(window, move |_| {
                let trailers = trailers.then(HeaderMap::new);
                let body = Body::other(Message(Some(vec![7; 100].into()), trailers));
                Box::pin(async { Ok(Response::new(body)) })
            })
            .await;
            let (response, _) = requests.send_request(Request::new(()), true).unwrap();
            let mut body = response.await.unwrap().into_body();
            settled().await;
            swept().await;
            let end = poll_fn(|context| {
                while let std::task::Poll::Ready(Some(piece)) = body.poll_data(context) {
                    if let Err(error) = piece {
                        return Poll::Ready(Some(error));
                    }
                }
                Poll::Pending
            });
            let end = tokio::time::timeout(Duration::from_secs(1), end).await;
            let end = end.expect("the stream was not reset").unwrap();
            assert_eq!(end.reason(), Some(Reason::CANCEL), "{window} {trailers}");
        }
    };
    LocalSet::new().run_until(all).await;
}

/// With exactly the room that it takes an answer is whole; with a little at a time as well.
#[tokio::test(start_paused = true)]
async fn an_answer_goes_out_as_room_comes() {
    let all = async {
        for (window, length) in [(100, 100), (16, 100), (65_535, 200_000), (20_000, 200_000)] {
            let (mut requests, _served) = caller(window, move |_| {
                Box::pin(async move { Ok(Response::new(message(length))) })
            })
            .await;
            let (response, _) = requests.send_request(Request::new(()), true).unwrap();
            let mut body = response.await.unwrap().into_body();
            let mut got = 0;
            while got < length {
                let data = body.data().await.unwrap().unwrap();
                got += data.len();
                if got < length {
                    body.flow_control().release_capacity(data.len()).unwrap();
                }
            }
            assert_eq!(got, length);
            assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
            swept().await;
        }
    };
    LocalSet::new().run_until(all).await;
}

/// The caller still writes, and somebody still reads that.
#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_takes_is_reset_though_its_request_goes_on() {
    let all = async {
        let kept = Rc::<RefCell<Vec<Incoming>>>::default();
        let (mut requests, _served) = caller(10, move |request| {
            kept.borrow_mut().push(request.into_body());
            Box::pin(async { Ok(Response::new(message(100))) })
        })
        .await;
        let (response, mut upload) = requests.send_request(Request::new(()), false).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap().len(), 10);
        swept().await;
        let reset = poll_fn(|context| upload.poll_reset(context));
        let reset = tokio::time::timeout(Duration::from_secs(1), reset).await;
        assert_eq!(reset.expect("no reset").unwrap(), Reason::CANCEL);
        assert_eq!(reason(body.data().await.unwrap()), Some(Reason::CANCEL));
    };
    LocalSet::new().run_until(all).await;
}

/// As an HTTP/1.1 upstream may send it.
#[tokio::test(start_paused = true)]
async fn fields_of_the_connection_in_trailers_are_left_out() {
    let all = async {
        let (mut requests, _served) = caller(65_535, |_| {
            let fields = [("transfer-encoding", "x"), ("te", "gzip"), ("x-end", "1")];
            let fields = fields.map(|(name, value)| {
                (http::HeaderName::from_static(name), HeaderValue::from_static(value))
            });
            let body = Message(Some(Bytes::from_static(b"ok")), Some(HeaderMap::from_iter(fields)));
            Box::pin(async { Ok(Response::new(Body::other(body))) })
        })
        .await;
        let (response, _) = requests.send_request(Request::new(()), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "ok");
        let trailers = body.trailers().await.unwrap().unwrap();
        assert_eq!(trailers.keys().collect::<Vec<_>>(), ["x-end"]);
    };
    LocalSet::new().run_until(all).await;
}

/// An empty piece is nothing to tell of, and does not take the place of the first.
#[tokio::test(start_paused = true)]
async fn empty_pieces_are_left_out() {
    struct Pieces(Vec<&'static [u8]>);
    impl http_body::Body for Pieces {
        type Data = Bytes;
        type Error = BodyError;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            Poll::Ready(self.0.pop().map(|piece| Ok(Frame::data(Bytes::from_static(piece)))))
        }
    }
    let all = async {
        let (mut requests, _served) = caller(65_535, |_| {
            let body = Body::other(Pieces(vec![b"", b"b", b"", b"a", b"", b""]));
            Box::pin(async { Ok(Response::new(body)) })
        })
        .await;
        let (response, _) = requests.send_request(Request::new(()), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        let mut pieces = Vec::new();
        while let Some(piece) = body.data().await {
            pieces.push(piece.unwrap());
        }
        // The last one is its end.
        assert_eq!(pieces, ["a", "b", ""]);
    };
    LocalSet::new().run_until(all).await;
}

/// What the upstream refuses after its answer has begun was processed as far as the caller can see.
#[tokio::test(start_paused = true)]
async fn what_breaks_off_is_never_called_unprocessed() {
    struct Broken(Option<Bytes>);
    impl http_body::Body for Broken {
        type Data = Bytes;
        type Error = BodyError;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            let refused = || BodyError::Http2(Reason::REFUSED_STREAM.into());
            Poll::Ready(Some(self.0.take().map(Frame::data).ok_or_else(refused)))
        }
    }
    let all = async {
        let (mut requests, _served) = caller(65_535, |_| {
            let body = Body::other(Broken(Some(Bytes::from_static(b"half"))));
            Box::pin(async { Ok(Response::new(body)) })
        })
        .await;
        let (response, mut upload) = requests.send_request(Request::new(()), false).unwrap();
        // The head may have been dropped with the rest.
        drop(response);
        let reset = poll_fn(|context| upload.poll_reset(context)).await;
        assert_eq!(reset.unwrap(), Reason::INTERNAL_ERROR);
    };
    LocalSet::new().run_until(all).await;
}

/// Neither before its preface nor within it.
#[tokio::test(start_paused = true)]
async fn whoever_does_not_greet_is_not_waited_for() {
    for said in [0, 10] {
        let (near, mut far, _) = connection();
        far.write_all(&PREFACE[..said]).await.unwrap();
        let answer = |_: Request<Incoming>| Box::pin(std::future::pending()) as Answer;
        let builder = h2::server::Builder::new();
        let served = server::serve(&builder, near, HEAD_LIMIT, std::future::pending(), answer);
        let ended = tokio::time::timeout(HEAD_LIMIT + Duration::from_secs(1), served).await;
        assert_eq!(ended.unwrap(), Ended::TimedOut, "{said}");
    }
}

/// Whoever has greeted in time may be silent for as long as it answers pings.
#[tokio::test(start_paused = true)]
async fn whoever_has_greeted_may_be_silent() {
    let all = async {
        let (near, far, _) = connection();
        let served = tokio::task::spawn_local(async move {
            let answer = |_: Request<Incoming>| Box::pin(std::future::pending()) as Answer;
            let builder = h2::server::Builder::new();
            server::serve(&builder, near, HEAD_LIMIT, std::future::pending(), answer).await
        });
        let (_requests, connection) = h2::client::handshake(far).await.unwrap();
        tokio::task::spawn_local(connection);
        tokio::time::sleep(3 * HEAD_LIMIT).await;
        assert!(!served.is_finished());
    };
    LocalSet::new().run_until(all).await;
}
