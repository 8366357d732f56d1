use std::{
    cell::Cell,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf},
    sync::oneshot,
    task::LocalSet,
};

use super::{client::Sending, *};
use crate::http::{
    body::{Body, BodyError, Incoming},
    client::Failure,
    server::{Answer, Ended},
};

mod caller;
mod upstream;

/// Longer than any test waits.
const LIMIT: Duration = Duration::from_secs(3600);

/// Counts the writes on one end of a connection.
struct Counting(DuplexStream, Rc<Cell<u32>>);

impl AsyncRead for Counting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counting {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.1.set(self.1.get() + 1);
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// A connection, and how often our end of it was written to.
fn connection() -> (Counting, DuplexStream, Rc<Cell<u32>>) {
    let (near, far) = tokio::io::duplex(1 << 20);
    let writes = Rc::<Cell<u32>>::default();
    (Counting(near, writes.clone()), far, writes)
}

/// A message and its trailers, all there at once.
struct Message(Option<Bytes>, Option<HeaderMap>);

impl http_body::Body for Message {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let data = self.0.take().map(Frame::data);
        Poll::Ready(data.or_else(|| self.1.take().map(Frame::trailers)).map(Ok))
    }
}

fn message(length: usize) -> Body {
    let status = (http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"));
    Body::other(Message(Some(vec![7; length].into()), Some(HeaderMap::from_iter([status]))))
}

fn post(body: Body) -> Request<Body> {
    Request::post("http://a/b.C/D").header("te", "trailers").body(body).unwrap()
}

async fn answered(mut sending: Sending) -> Result<Response<Received>, Failure> {
    poll_fn(|context| sending.poll_response(context)).await.map_err(|error| error.failure)
}

/// Everything that runs at once has had its turns.
async fn settled() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_with_its_trailers_is_one_write() {
    let all = async {
        let (near, far, writes) = connection();
        tokio::task::spawn_local(async move {
            let answer = |request: Request<Incoming>| {
                Box::pin(async move {
                    request.into_body().collect().await.unwrap();
                    Ok(Response::new(message(1024)))
                }) as Answer
            };
            let builder = h2::server::Builder::new();
            server::serve(&builder, near, LIMIT, std::future::pending(), answer).await
        });
        let (mut requests, connection) = h2::client::handshake(far).await.unwrap();
        tokio::task::spawn_local(connection);
        settled().await;
        for _ in 0..3 {
            let before = writes.get();
            let request = Request::post("http://a/b.C/D").body(()).unwrap();
            let (response, mut body) = requests.send_request(request, false).unwrap();
            body.send_data(Bytes::from_static(b"ask"), true).unwrap();
            let response = response.await.unwrap();
            assert!(response.headers().contains_key("date"));
            let mut body = response.into_body();
            assert_eq!(body.data().await.unwrap().unwrap().len(), 1024);
            assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
            settled().await;
            assert_eq!(writes.get() - before, 1);
        }
    };
    LocalSet::new().run_until(all).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_with_its_message_is_one_write() {
    let all = async {
        let (near, far, writes) = connection();
        let builder = h2::client::Builder::new();
        let connection = client::connect(&builder, near, || {}).await.unwrap();
        tokio::task::spawn_local(async move {
            let mut peer = h2::server::handshake(far).await.unwrap();
            while let Some(accepted) = peer.accept().await {
                let (request, mut respond) = accepted.unwrap();
                assert_eq!(request.headers().get("te").unwrap(), "trailers");
                respond.send_response(Response::new(()), true).unwrap();
            }
        });
        settled().await;
        for _ in 0..3 {
            let before = writes.get();
            let response = answered(connection.begin(post(message(1024)))).await.unwrap();
            assert!(response.body().is_end_stream());
            drop(response);
            settled().await;
            assert_eq!(writes.get() - before, 1);
        }
    };
    LocalSet::new().run_until(all).await;
}

/// What the peer has no room for is not sent, and can be sent elsewhere when the connection ends.
#[tokio::test(start_paused = true)]
async fn a_request_without_room_waits_and_comes_back() {
    let all = async {
        let (near, far, _) = connection();
        let (ended, end) = oneshot::channel();
        let builder = h2::client::Builder::new();
        let on_end = || ended.send(()).unwrap();
        let connection = client::connect(&builder, near, on_end).await.unwrap();
        let peer = tokio::task::spawn_local(async move {
            let mut builder = h2::server::Builder::new();
            let mut peer =
                builder.max_concurrent_streams(1).handshake::<_, Bytes>(far).await.unwrap();
            let mut seen = Vec::new();
            for _ in 0..2 {
                let (_, respond) = peer.accept().await.unwrap().unwrap();
                seen.push(respond);
                if seen.len() == 1 {
                    // The second one can only come when the first is over.
                    let early = tokio::time::timeout(Duration::from_secs(1), peer.accept()).await;
                    assert!(early.is_err(), "beyond the limit");
                    seen[0].send_response(Response::new(()), true).unwrap();
                }
            }
            // The last one is never answered, and the third never comes.
            tokio::time::timeout(Duration::from_secs(1), peer.accept()).await.unwrap_err();
        });
        settled().await;
        let first = connection.begin(post(Body::Empty));
        let first = async { answered(first).await.map(drop) };
        let second = answered(connection.begin(post(Body::Empty)));
        let mut third = connection.begin(post(Body::Empty));
        let third = poll_fn(|context| third.poll_response(context));
        let (first, second, third) = tokio::join!(first, second, third);
        assert!(first.is_ok());
        assert_eq!(second.unwrap_err(), Failure::Closed);
        let third = third.unwrap_err();
        assert_eq!((third.failure, third.request.is_some()), (Failure::NotSent, true));
        peer.await.unwrap();
        end.await.unwrap();
        assert!(connection.is_closed());
    };
    LocalSet::new().run_until(all).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_nobody_can_use_any_more_ends() {
    let all = async {
        let (near, far, _) = connection();
        let (ended, end) = oneshot::channel();
        let builder = h2::client::Builder::new();
        let on_end = || ended.send(()).unwrap();
        let connection = client::connect(&builder, near, on_end).await.unwrap();
        tokio::task::spawn_local(async move {
            let mut peer = h2::server::handshake(far).await.unwrap();
            while let Some(accepted) = peer.accept().await {
                let (_, mut respond) = accepted.unwrap();
                let mut body = respond.send_response(Response::new(()), false).unwrap();
                body.send_data(Bytes::from_static(b"whole"), true).unwrap();
            }
        });
        let response = answered(connection.begin(post(Body::Empty))).await.unwrap();
        drop(connection);
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.to_bytes(), "whole");
        end.await.unwrap();
    };
    LocalSet::new().run_until(all).await;
}

/// A peer that reads nothing holds up whoever sends, not our memory.
#[tokio::test(start_paused = true)]
async fn a_body_waits_for_its_receiver() {
    struct Endless(Rc<Cell<usize>>);
    impl http_body::Body for Endless {
        type Data = Bytes;
        type Error = BodyError;
        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            self.0.set(self.0.get() + 8192);
            Poll::Ready(Some(Ok(Frame::data(vec![1; 8192].into()))))
        }
    }
    let all = async {
        let (near, far, _) = connection();
        let builder = h2::client::Builder::new();
        let connection = client::connect(&builder, near, || {}).await.unwrap();
        let (told, asked) = oneshot::channel();
        tokio::task::spawn_local(async move {
            let mut peer = h2::server::handshake(far).await.unwrap();
            let (request, mut respond) = peer.accept().await.unwrap().unwrap();
            let reset = async move {
                let _body = request.into_body();
                tokio::time::sleep(Duration::from_secs(5)).await;
                respond.send_reset(Reason::REFUSED_STREAM);
                tokio::time::sleep(Duration::from_secs(5)).await;
            };
            tokio::select! { () = reset => {}, _ = peer.accept() => {} }
            let _ = told.send(());
        });
        let given = Rc::<Cell<usize>>::default();
        let sent = answered(connection.begin(post(Body::other(Endless(given.clone()))))).await;
        assert_eq!(sent.unwrap_err(), Failure::Refused);
        // The window that h2 gives unasked, and a piece that waits for room.
        assert!((65_535..=65_535 + 2 * 8192).contains(&given.get()), "{}", given.get());
        asked.await.unwrap();
    };
    LocalSet::new().run_until(all).await;
}

#[tokio::test(start_paused = true)]
async fn draining_ends_a_connection_when_its_streams_are_over() {
    let all = async {
        let (near, far, _) = connection();
        let (drain, drained) = oneshot::channel::<()>();
        let (go_on, wait) = oneshot::channel::<()>();
        let wait = Rc::new(Cell::new(Some(wait)));
        let served = tokio::task::spawn_local(async move {
            let answer = move |_: Request<Incoming>| {
                let wait = wait.take();
                Box::pin(async move {
                    wait.unwrap().await.unwrap();
                    Ok(Response::new(message(10)))
                }) as Answer
            };
            let drained = async { drained.await.unwrap() };
            server::serve(&h2::server::Builder::new(), near, LIMIT, drained, answer).await
        });
        let (mut requests, connection) = h2::client::handshake(far).await.unwrap();
        tokio::task::spawn_local(connection);
        let request = Request::get("http://a/").body(()).unwrap();
        let (response, _) = requests.send_request(request, true).unwrap();
        settled().await;
        drain.send(()).unwrap();
        settled().await;
        assert!(poll_fn(|context| requests.poll_ready(context)).await.is_err(), "no GOAWAY");
        go_on.send(()).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap().len(), 10);
        assert!(body.trailers().await.unwrap().is_some());
        drop((body, requests));
        assert_eq!(served.await.unwrap(), Ended::Clean);
    };
    LocalSet::new().run_until(all).await;
}

/// Whoever was just saying hello when draining began is answered, and told that it was the last time.
#[tokio::test(start_paused = true)]
async fn draining_lets_a_handshake_end() {
    let all = async {
        let (near, mut far, _) = connection();
        let (drain, drained) = oneshot::channel::<()>();
        let served = tokio::task::spawn_local(async move {
            let answer =
                |_: Request<Incoming>| Box::pin(async { Ok(Response::new(message(10))) }) as Answer;
            let drained = async { drained.await.unwrap() };
            server::serve(&h2::server::Builder::new(), near, LIMIT, drained, answer).await
        });
        far.write_all(&PREFACE[..10]).await.unwrap();
        settled().await;
        drain.send(()).unwrap();
        settled().await;
        assert!(!served.is_finished());
        far.write_all(&PREFACE[10..]).await.unwrap();
        // SETTINGS, and a request of the static table: GET http / without a body.
        far.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        far.write_all(&[0, 0, 6, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x84, 0x41, 1, b'a']).await.unwrap();
        let mut heard = Vec::new();
        // The farewell, and what asks for a round trip: this peer answers nothing, and goes.
        tokio::time::timeout(Duration::from_secs(1), far.read_to_end(&mut heard))
            .await
            .unwrap_err();
        let kinds: Vec<u8> = kinds(&heard);
        assert!(kinds.contains(&7), "no GOAWAY: {kinds:?}");
        assert!(kinds.contains(&0), "no answer: {kinds:?}");
        drop(far);
        served.await.unwrap();
    };
    LocalSet::new().run_until(all).await;
}

/// Whoever says nothing at all is not waited for.
#[tokio::test(start_paused = true)]
async fn draining_ends_a_handshake_that_stands_still() {
    let all = async {
        let (near, _far, _) = connection();
        let answer = |_: Request<Incoming>| Box::pin(std::future::pending()) as Answer;
        let drained = std::future::ready(());
        let served = server::serve(&h2::server::Builder::new(), near, LIMIT, drained, answer).await;
        assert_eq!(served, Ended::Clean);
    };
    LocalSet::new().run_until(all).await;
}

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The types of the frames in `bytes`.
fn kinds(mut bytes: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<9>() {
        kinds.push(head[3]);
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        bytes = &rest[length..];
    }
    kinds
}
