use leno_wasm_host::pairs;

use super::{
    grpc::{FRAME_HEAD, frame_head},
    *,
};

#[test]
fn frames_are_read_as_they_are_written() {
    let frame = Calls::on_trial().framed(b"hello").unwrap();
    assert_eq!(frame.first_chunk().map(frame_head), Some((false, 5)));
    assert_eq!(&frame[FRAME_HEAD..], b"hello");
}

#[test]
fn what_waits_for_services_is_bounded() {
    let calls = Calls::on_trial();
    let bytes = vec![0; MAX_UNSENT_BYTES / 2];
    let (first, _second) = (calls.taken(&[&bytes]).unwrap(), calls.taken(&[&bytes]).unwrap());
    let part = first.slice(..1);
    assert_eq!(calls.taken(&[b"1"]), Err(Status::InternalFailure));
    drop(first);
    assert_eq!(calls.taken(&[b"1"]), Err(Status::InternalFailure), "a part keeps the whole");
    drop(part);
    assert_eq!(calls.taken(&[b"1"]).unwrap(), "1");
}

#[test]
fn what_has_come_is_bounded_as_long_as_it_is_kept() {
    let room = Room::new(100);
    let (mut one, mut other) = (room.part(), room.take(60).unwrap());
    assert!(one.grow(30) && one.grow(10) && !one.grow(1), "no more than there is");
    assert!(other.resize(20) && one.resize(80) && !other.resize(21));
    assert!(room.take(1).is_err());
    drop(one);
    assert_eq!(room.take(80).map(|taken| taken.bytes), Ok(80));
}

/// A service that takes requests and never answers.
struct Silent;

impl Callouts for Silent {
    fn send(&self, _: &str, request: Request<Body>, _: bool) -> Option<Sending> {
        Some(Box::pin(async move {
            std::future::pending::<()>().await;
            drop(request);
            Ok(Response::default())
        }))
    }
}

fn silent() -> Calls {
    let callouts: Rc<dyn Callouts> = Rc::new(Silent);
    Calls::new(Weak::new(), 0, Some(&callouts))
}

fn token(sequence: u32) -> CallToken {
    CallToken::from_number(sequence << 2)
}

#[tokio::test]
async fn heads_of_calls_under_way_are_bounded() {
    let long = "x".repeat(64 << 10);
    let head = [(":method", "GET"), (":path", "/"), (":authority", "users"), ("x", &*long)];
    let headers = pairs::encode(head.map(|(name, value)| (name.as_bytes(), value.as_bytes())));
    let nothing = pairs::encode([]);
    let call = HttpCall {
        upstream: b"users",
        headers: Pairs::parse(&headers).unwrap(),
        body: b"",
        trailers: Pairs::parse(&nothing).unwrap(),
        timeout: Duration::ZERO,
    };
    let work = async {
        let mut calls = silent();
        let sent = (1..1_000).take_while(|number| calls.http(token(*number), &call).is_ok());
        assert_eq!(sent.count(), MAX_UNSENT_BYTES / size_of(call.headers));
        calls.forget(token(1));
        tokio::task::yield_now().await;
        assert_eq!(calls.http(token(2_000), &call), Ok(()), "what has ended makes room");
    };
    tokio::task::LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn calls_that_end_at_once_are_bounded_until_they_are_dropped() {
    let nothing = pairs::encode([]);
    let call = GrpcCall {
        upstream: b"users",
        service: b"S",
        method: b"M",
        metadata: Pairs::parse(&nothing).unwrap(),
        message: b"",
        timeout: Duration::ZERO,
    };
    let work = async {
        let mut calls = silent();
        let begun = |calls: &mut Calls, number| {
            let begun = calls.grpc(token(number), &call, false).is_ok();
            calls.end(token(number), true);
            begun
        };
        let count = (1..10_000).take_while(|number| begun(&mut calls, *number)).count();
        assert_eq!(count, MAX_TASKS);
        tokio::task::yield_now().await;
        assert!(begun(&mut calls, 20_000));
    };
    tokio::task::LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn trailers_are_sent_with_or_without_a_body() {
    for (bytes, chunks) in [(&b"hello"[..], 2), (b"", 1)] {
        let list = pairs::encode([(&b"X-Sum"[..], &b"1"[..])]);
        let trailers = trailers(Pairs::parse(&list).unwrap()).unwrap();
        let mut body = body_with(Bytes::from_static(bytes), trailers);
        let mut frames = Vec::new();
        while let Some(frame) = body.frame().await {
            frames.push(frame.unwrap());
        }
        assert_eq!(frames.len(), chunks);
        assert_eq!(frames.last().unwrap().trailers_ref().unwrap()["x-sum"], "1");
    }
    let list = pairs::encode([(&b"x y"[..], &b"1"[..])]);
    assert!(trailers(Pairs::parse(&list).unwrap()).is_none());
}

#[test]
fn nobody_waits_longer_than_a_minute() {
    for (asked, waits) in [(0, 60), (1, 1), (60, 60), (61, 60), (u64::MAX, 60)] {
        let waits = Duration::from_secs(waits);
        assert_eq!(patience(Duration::from_secs(asked)), waits, "{asked}");
    }
}

#[test]
fn a_service_is_named_plainly_or_as_envoy_does() {
    assert_eq!(service_name(b"users.shop").as_deref(), Some("users.shop"));
    // GrpcService { envoy_grpc { cluster_name: "users" } }
    assert_eq!(service_name(b"\x0a\x07\x0a\x05users").as_deref(), Some("users"));
    assert_eq!(service_name(b"\xff\xfe"), None);
}

#[test]
fn what_http_forbids_is_not_sent() {
    let pairs = |list: &[(&str, &str)]| {
        let list = list.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        leno_wasm_host::pairs::encode(list)
    };
    let good = [(":method", "GET"), (":path", "/a"), (":authority", "users"), ("x", "1")];
    let list = pairs(&good);
    let request_of = |list: &[u8]| request(Pairs::parse(list).unwrap(), Body::Empty);
    let made = request_of(&list).unwrap();
    assert_eq!((made.uri().path(), &made.headers()["host"]), ("/a", &"users".parse().unwrap()));
    let bad = [&good[..], &[("x y", "1")]].concat();
    assert!(request_of(&pairs(&bad)).is_none());
    assert!(request_of(&pairs(&good[..1])).is_none());
}
