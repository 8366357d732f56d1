use http_body_util::BodyExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    sync::mpsc,
    task::LocalSet,
};

use super::*;
use crate::http::{
    body::{Incoming, Piece},
    client::{self, Sender},
};

fn pair() -> (Sender, DuplexStream) {
    let (near, far) = duplex(1024);
    (client::http1(near), far)
}

fn get() -> Request<Body> {
    Request::get("/a").header("host", "x").body(Body::Empty).unwrap()
}

/// Reads up to `end`.
async fn read_to(far: &mut DuplexStream, end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        text.push(far.read_u8().await.unwrap());
    }
    String::from_utf8(text).unwrap()
}

/// The answer to a GET, to which the peer says `answer` and then closes if it is to.
async fn ask(answer: &[u8], close: bool) -> (Sender, Result<Response<Incoming>, SendError>) {
    let (mut sender, mut far) = pair();
    let answer = answer.to_vec();
    let peer = async {
        read_to(&mut far, "\r\n\r\n").await;
        let _ = far.write_all(&answer).await;
        if close { None } else { Some(far) }
    };
    let (response, _far) = tokio::join!(sender.send(get()), peer);
    (sender, response)
}

async fn run<F: Future>(test: F) -> F::Output {
    LocalSet::new().run_until(Box::pin(test)).await
}

#[tokio::test]
async fn exchanges_follow_one_another() {
    run(async {
        let (mut sender, mut far) = pair();
        for turn in 0..3 {
            assert!(sender.is_ready());
            let peer = async {
                let head = read_to(&mut far, "\r\n\r\n").await;
                assert_eq!(head, "GET /a HTTP/1.1\r\nhost: x\r\n\r\n");
                far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc").await.unwrap();
            };
            let (response, ()) = tokio::join!(sender.send(get()), peer);
            let mut body = response.unwrap().into_body();
            match turn {
                // It came with its head: the connection is free at once.
                0 => assert_eq!(body.take_whole().unwrap(), "abc"),
                _ => assert_eq!(body.collect().await.unwrap().to_bytes(), "abc"),
            }
        }
        drop(far);
        assert!(sender.is_closed() && !sender.is_ready());
        let refused = sender.send(get()).await.unwrap_err();
        assert_eq!(refused.failure, Failure::NotSent);
        assert_eq!(refused.request.unwrap().uri(), "/a");
    })
    .await;
}

#[tokio::test]
async fn bodies_come_in_every_framing() {
    run(async {
        let long = "x".repeat(100_000);
        let length = format!("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{long}");
        let chunked = format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n{:x}\r\n{long}\r\n0\r\nt: u\r\n\r\n",
            long.len()
        );
        let close = format!("HTTP/1.0 200 OK\r\n\r\n{long}");
        for (answer, bytes, keeps) in
            [(length, 100_000, true), (chunked, 100_005, true), (close, 100_000, false)]
        {
            let (mut sender, mut far) = pair();
            let peer = async {
                read_to(&mut far, "\r\n\r\n").await;
                far.write_all(answer.as_bytes()).await.unwrap();
                (keeps).then_some(far)
            };
            let read = async {
                let response = sender.send(get()).await.unwrap();
                response.into_body().collect().await.unwrap()
            };
            let (body, _far) = tokio::join!(read, peer);
            assert_eq!(body.trailers().is_some(), bytes == 100_005);
            assert_eq!(body.to_bytes().len(), bytes);
            assert_eq!(sender.is_ready(), keeps);
        }
    })
    .await;
}

#[tokio::test]
async fn what_breaks_off_or_is_no_http_says_so() {
    run(async {
        for (answer, failure) in [
            ("", Failure::Closed),
            ("HTTP/1.1 200 OK\r\ncontent-le", Failure::Closed),
            ("HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", Failure::Malformed),
            ("220 mail.example ESMTP\r\n\r\n", Failure::Malformed),
        ] {
            let (sender, response) = ask(answer.as_bytes(), true).await;
            let failed = response.unwrap_err();
            assert_eq!((failed.failure, failed.request.is_none()), (failure, true), "{answer}");
            assert!(sender.is_closed());
        }
        for cut in [
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n",
        ] {
            let (sender, response) = ask(cut.as_bytes(), true).await;
            assert!(response.unwrap().into_body().collect().await.is_err(), "{cut}");
            assert!(sender.is_closed(), "{cut}");
        }
    })
    .await;
}

#[tokio::test]
async fn interim_responses_without_end_are_none() {
    run(async {
        let (mut sender, mut far) = pair();
        let peer = async {
            while far.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n").await.is_ok() {}
        };
        let asked = async {
            let failed = sender.send(get()).await.unwrap_err();
            drop(sender);
            failed.failure
        };
        assert_eq!(tokio::join!(asked, peer).0, Failure::Malformed);
    })
    .await;
}

#[tokio::test]
async fn nothing_is_taken_that_was_not_asked_for() {
    run(async {
        let two = b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        let (sender, response) = ask(two, false).await;
        assert_eq!(response.unwrap().status(), 204);
        assert!(sender.is_closed(), "the second answer is nobody's");
        let (sender, mut far) = pair();
        assert!(sender.is_ready());
        far.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
        assert!(!sender.is_ready() && sender.is_closed());
        let last = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let (sender, response) = ask(last, false).await;
        assert!(response.is_ok() && !sender.is_kept());
    })
    .await;
}

#[tokio::test]
async fn a_body_is_sent_while_its_answer_comes() {
    run(async {
        let (mut sender, mut far) = pair();
        let (pieces, receiver) = mpsc::channel(4);
        let post = Request::post("/").header("host", "x").body(Body::Copy(receiver)).unwrap();
        pieces.send(Piece::Data(Bytes::from_static(b"hello"))).await.unwrap();
        let peer = async {
            read_to(&mut far, "\r\n\r\n5\r\nhello\r\n").await;
            far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        };
        let (response, ()) = tokio::join!(sender.send(post), peer);
        // Nobody reads the answer meanwhile.
        let response = response.unwrap();
        assert!(!sender.is_ready(), "the request is under way");
        pieces.send(Piece::Data(Bytes::from_static(b"!"))).await.unwrap();
        pieces.send(Piece::End).await.unwrap();
        read_to(&mut far, "1\r\n!\r\n0\r\n\r\n").await;
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
        assert!(sender.ready().await && sender.is_ready());
    })
    .await;
}

#[tokio::test]
async fn a_body_that_fails_is_the_callers_doing() {
    run(async {
        let (mut sender, mut far) = pair();
        let (pieces, receiver) = mpsc::channel(4);
        let post = Request::post("/").header("host", "x").body(Body::Copy(receiver)).unwrap();
        let peer = async {
            read_to(&mut far, "\r\n\r\n").await;
            // Without an end.
            drop(pieces);
            far
        };
        let (response, mut far) = tokio::join!(sender.send(post), peer);
        assert_eq!(response.unwrap_err().failure, Failure::RequestBody);
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0, "nobody takes it for whole");
    })
    .await;
}
