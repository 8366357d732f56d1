//! Towards upstreams: which of their exchanges count, and who waits for which.

use tokio::sync::mpsc;

use super::*;
use crate::http::body::Piece;

type Peer = h2::server::Connection<DuplexStream, Bytes>;

/// A connection to a peer that takes so many exchanges at once.
async fn limited_to(streams: u32) -> (Http2, Peer, oneshot::Receiver<()>) {
    let (near, far, _) = connection();
    let (ended, end) = oneshot::channel();
    let on_end = || ended.send(()).unwrap_or_default();
    let connection = client::connect(&h2::client::Builder::new(), near, on_end).await.unwrap();
    let mut builder = h2::server::Builder::new();
    let mut peer = builder.max_concurrent_streams(streams).handshake(far).await.unwrap();
    // It has said how many.
    let _ = tokio::time::timeout(Duration::from_millis(1), peer.accept()).await;
    (connection, peer, end)
}

/// The next exchange, and the connection goes on.
async fn accepted(peer: &mut Peer) -> (Request<h2::RecvStream>, h2::server::SendResponse<Bytes>) {
    let next = tokio::time::timeout(Duration::from_secs(60), peer.accept()).await;
    next.expect("no exchange came").unwrap().unwrap()
}

/// Gives it its turns; nothing new comes.
async fn goes_on(peer: &mut Peer) {
    let new = tokio::time::timeout(Duration::from_millis(1), peer.accept()).await;
    assert!(new.is_err(), "another exchange: {new:?}");
}

/// Lets what is spawned have its turns until `until`.
async fn runs_for(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// A body that somebody else writes.
fn written() -> (mpsc::Sender<Piece>, Body) {
    let (pieces, body) = mpsc::channel(4);
    (pieces, Body::Copy(body))
}

/// Its network is gone: whoever calls gives up before anybody looks.
#[tokio::test(start_paused = true)]
async fn a_dead_peer_is_noticed_though_nobody_waits_for_long() {
    let all = async {
        let (near, _far, _) = connection();
        let (ended, mut end) = oneshot::channel();
        let on_end = || ended.send(()).unwrap();
        let connection = client::connect(&h2::client::Builder::new(), near, on_end).await.unwrap();
        for _ in 0..6 {
            runs_for(2).await;
            let call = answered(connection.begin(post(Body::Empty)));
            let _ = tokio::time::timeout(Duration::from_secs(5), call).await;
            runs_for(3).await;
        }
        assert_eq!(end.try_recv(), Ok(()));
        assert!(connection.is_closed());
    };
    LocalSet::new().run_until(all).await;
}

/// What is left of a connection is not kept by a peer that takes nothing, not even its end, whatever it says.
#[tokio::test(start_paused = true)]
async fn a_connection_that_is_given_up_ends_though_its_peer_reads_nothing() {
    let all = async {
        let (near, mut far) = tokio::io::duplex(64);
        let near = Counting(near, Rc::default());
        let (ended, end) = oneshot::channel();
        let on_end = || ended.send(()).unwrap();
        let connection = client::connect(&h2::client::Builder::new(), near, on_end).await.unwrap();
        tokio::task::spawn_local(async move {
            // SETTINGS, and again and again a window update.
            far.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
            while far.write_all(&[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1]).await.is_ok() {
                runs_for(5).await;
            }
        });
        let call = answered(connection.begin(post(message(1024))));
        tokio::time::timeout(Duration::from_secs(1), call).await.unwrap_err();
        drop(connection);
        tokio::time::timeout(Duration::from_secs(70), end).await.unwrap().unwrap();
    };
    LocalSet::new().run_until(all).await;
}

/// A peer that says goodbye lets those go elsewhere for which it had no room, and answers those that it has.
#[tokio::test(start_paused = true)]
async fn a_goodbye_releases_whoever_waits() {
    let all = async {
        let (connection, mut peer, _end) = limited_to(1).await;
        let first = tokio::task::spawn_local(answered(connection.begin(post(Body::Empty))));
        let (_, mut respond) = accepted(&mut peer).await;
        let waiting = [(); 2]
            .map(|()| tokio::task::spawn_local(answered(connection.begin(post(Body::Empty)))));
        goes_on(&mut peer).await;
        peer.graceful_shutdown();
        goes_on(&mut peer).await;
        for waiting in waiting {
            let answer = tokio::time::timeout(Duration::from_secs(1), waiting).await;
            let answer = answer.expect("the request was not released").unwrap();
            assert_eq!(answer.unwrap_err(), Failure::NotSent);
        }
        assert!(!first.is_finished());
        respond.send_response(Response::new(()), true).unwrap();
        tokio::task::spawn_local(async move { while peer.accept().await.is_some() {} });
        assert!(first.await.unwrap().is_ok());
    };
    LocalSet::new().run_until(all).await;
}

/// Whoever came first is sent first, and nobody who comes later takes its room.
#[tokio::test(start_paused = true)]
async fn whoever_waits_is_served_in_order() {
    let all = async {
        let (connection, mut peer, _end) = limited_to(1).await;
        let begin = |name: &str| {
            let request = Request::get(format!("http://a/{name}")).body(Body::Empty).unwrap();
            tokio::task::spawn_local(answered(connection.begin(request)))
        };
        let first = begin("1");
        let (_, mut respond) = accepted(&mut peer).await;
        let waiting = [begin("2"), begin("given-up"), begin("3")];
        goes_on(&mut peer).await;
        waiting[1].abort();
        respond.send_response(Response::new(()), true).unwrap();
        goes_on(&mut peer).await;
        // The room is there as soon as the answer is dropped; this one asks in that very moment.
        drop(first.await.unwrap().unwrap());
        let late = begin("4");
        let [second, _, third] = waiting;
        for (name, begun) in [("/2", second), ("/3", third), ("/4", late)] {
            let (request, mut respond) = accepted(&mut peer).await;
            assert_eq!(request.uri().path(), name);
            respond.send_response(Response::new(()), true).unwrap();
            goes_on(&mut peer).await;
            // Its room is there once the answer is dropped.
            drop(begun.await.unwrap().unwrap());
        }
    };
    LocalSet::new().run_until(all).await;
}

/// An exchange is under way until its request has ended, too: what the peer has no room for is not sent.
#[tokio::test(start_paused = true)]
async fn a_request_that_outlives_its_answer_takes_room() {
    let all = async {
        let (connection, mut peer, _end) = limited_to(1).await;
        let (pieces, body) = written();
        let first = tokio::task::spawn_local(answered(connection.begin(post(body))));
        let (request, mut respond) = accepted(&mut peer).await;
        respond.send_response(Response::new(()), true).unwrap();
        goes_on(&mut peer).await;
        drop(first.await.unwrap().unwrap());
        let second = tokio::task::spawn_local(answered(connection.begin(post(Body::Empty))));
        let third = tokio::task::spawn_local(answered(connection.begin(post(Body::Empty))));
        goes_on(&mut peer).await;
        drop(pieces);
        let _rest = request;
        let (_, _second) = accepted(&mut peer).await;
        drop(peer);
        assert_eq!(second.await.unwrap().unwrap_err(), Failure::Closed);
        assert_eq!(third.await.unwrap().unwrap_err(), Failure::NotSent);
    };
    LocalSet::new().run_until(all).await;
}

/// And its peer is pinged: one that is gone does not hold it for ever.
#[tokio::test(start_paused = true)]
async fn a_request_that_outlives_its_answer_ends_with_a_dead_peer() {
    let all = async {
        let (connection, mut peer, end) = limited_to(1).await;
        let (pieces, body) = written();
        let first = tokio::task::spawn_local(answered(connection.begin(post(body))));
        let (_request, mut respond) = accepted(&mut peer).await;
        respond.send_response(Response::new(()), true).unwrap();
        goes_on(&mut peer).await;
        drop(first.await.unwrap().unwrap());
        // From here on the peer has no turn any more.
        pieces.send(Piece::Data(vec![1; 100_000].into())).await.unwrap();
        tokio::time::timeout(Duration::from_secs(70), pieces.closed()).await.unwrap();
        end.await.unwrap();
    };
    LocalSet::new().run_until(all).await;
}

/// As an HTTP/1.1 caller may send it.
#[tokio::test(start_paused = true)]
async fn fields_of_the_connection_in_trailers_are_left_out() {
    let all = async {
        let (connection, mut peer, _end) = limited_to(1).await;
        let fields = [("keep-alive", "x"), ("connection", "x-own"), ("x-own", "1"), ("x-end", "1")];
        let fields = fields.map(|(name, value)| {
            (http::HeaderName::from_static(name), HeaderValue::from_static(value))
        });
        let body = Message(Some(Bytes::from_static(b"ask")), Some(HeaderMap::from_iter(fields)));
        let call = tokio::task::spawn_local(answered(connection.begin(post(Body::other(body)))));
        let (request, mut respond) = accepted(&mut peer).await;
        tokio::task::spawn_local(async move { while peer.accept().await.is_some() {} });
        let mut body = request.into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "ask");
        let trailers = tokio::time::timeout(Duration::from_secs(1), body.trailers()).await;
        let trailers = trailers.expect("the request did not end").unwrap().unwrap();
        assert_eq!(trailers.keys().collect::<Vec<_>>(), ["x-end"]);
        respond.send_response(Response::new(()), true).unwrap();
        call.await.unwrap().unwrap();
    };
    LocalSet::new().run_until(all).await;
}
