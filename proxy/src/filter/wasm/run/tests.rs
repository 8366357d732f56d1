use std::{sync::Arc, time::Instant};

use http::{HeaderMap, HeaderValue, header};
use http_body_util::BodyExt as _;
use leno_api::model::{
    ObjectName,
    applies::Applies,
    wasm_plugin::{Limits, Source, WasmPlugin},
};
use leno_wasm_host::{Digest, Fault, FaultKind};

use super::*;
use crate::{
    filter::wasm::{
        Node, Plugin, Runtime, Slot, Unloaded,
        body::{Piece, Pieces},
        filtered::Whole,
        seat::MAX_HELD_IN_ALL,
        state::tests::facts,
    },
    http::body::{Body, BodyError},
};

/// Instead of a minute.
const SHORT: Duration = Duration::from_millis(10);

/// A guest that answers callbacks with these numbers: heads, then bodies. `body` runs with each request's head.
fn guest(heads: u32, bodies: u32, body: &str) -> Vec<u8> {
    guest_with(heads, &format!("(i32.const {bodies})"), body)
}

fn guest_with(heads: u32, bodies: &str, body: &str) -> Vec<u8> {
    let text = format!(
        "(module
           (import \"env\" \"proxy_get_property\" (func $property (param i32 i32 i32 i32) (result i32)))
           (memory (export \"memory\") 1)
           (func (export \"proxy_abi_version_0_2_1\"))
           (func (export \"proxy_on_memory_allocate\") (param i32) (result i32) (i32.const 4096))
           (func (export \"proxy_on_request_headers\") (param i32 i32 i32) (result i32)
             {body} (i32.const {heads}))
           (func (export \"proxy_on_response_headers\") (param i32 i32 i32) (result i32) (i32.const 0))
           (func (export \"proxy_on_request_body\") (param i32 i32 i32) (result i32)
             {bodies}))"
    );
    wat::parse_str(text).unwrap()
}

fn plugin(bytes: &[u8], failure: FailurePolicy) -> Arc<Plugin> {
    let spec = WasmPlugin {
        name: ObjectName::new("shop", "tag"),
        created: String::new(),
        applies: Applies::Namespace,
        source: Source::File("/tag.wasm".into()),
        sha256: None,
        phase: Phase::Unspecified,
        priority: 0,
        matches: Vec::new(),
        kind: PluginType::Http,
        plugin_name: String::new(),
        configuration: Arc::default(),
        environment: Vec::new(),
        vm_id: String::new(),
        limits: Limits {
            memory_bytes: 1 << 20,
            deadline: Duration::from_secs(1),
            start_deadline: Duration::from_secs(1),
        },
        failure,
        capabilities: None,
        canary: None,
    };
    let runtime = Runtime::new(None).unwrap();
    runtime.load("shop/tag", *Digest::of(bytes).bytes(), bytes, &spec).unwrap()
}

fn slot(plugin: &Arc<Plugin>) -> Slot {
    Slot { current: Ok(plugin.clone()), canary: None, phase: Phase::Unspecified }
}

fn begin(seats: &Seats, slots: Vec<Slot>) -> Rc<Run> {
    Run::begin(seats, &Chain::new(slots), facts, || 0).unwrap()
}

fn seats() -> Seats {
    Seats::new(Instant::now(), Node::default())
}

async fn ask(run: &Run) -> (Request<()>, Result<Passed, Failure>) {
    let mut request = Request::new(());
    request.headers_mut().insert("x", HeaderValue::from_static("1"));
    let passed = show(run, Phase::Unspecified, &mut request, false).await;
    (request, passed)
}

async fn show(
    run: &Run,
    phase: Phase,
    request: &mut Request<()>,
    end: bool,
) -> Result<Passed, Failure> {
    match run.request_head(phase, request, end) {
        Ok(passed) => Ok(passed),
        Err(Stopped::Failed(failure)) => Err(failure),
        Err(Stopped::Held(at)) => run.held_request_head(at, phase, request, end).await,
    }
}

fn contexts(run: &Run) -> usize {
    let place = &run.places[0];
    let seat = place.seat.clone();
    let count = seat.call_again(seat.generation(), None, 1, |instance| Ok(instance.contexts()));
    count.unwrap()
}

#[tokio::test]
async fn who_holds_a_head_for_ever_does_not_hold_the_exchange() {
    let (seats, plugin) = (seats(), plugin(&guest(1, 0, ""), FailurePolicy::Closed));
    let run = begin(&seats, vec![slot(&plugin)]);
    run.patience.set(SHORT);
    let (_, passed) = ask(&run).await;
    let failure = passed.unwrap_err();
    assert_eq!(failure.status, StatusCode::GATEWAY_TIMEOUT);
    assert!(failure.detail.contains("shop/tag"), "{}", failure.detail);
    assert_eq!(contexts(&run), 1);
    run.finish();
    assert_eq!(contexts(&run), 0);
}

#[tokio::test]
async fn who_holds_a_body_for_ever_does_not_hold_the_exchange() {
    let (seats, plugin) = (seats(), plugin(&guest(0, 1, ""), FailurePolicy::Closed));
    let run = begin(&seats, vec![slot(&plugin)]);
    run.patience.set(SHORT);
    ask(&run).await.1.unwrap();
    let body = run.body(Side::Request, Body::Full("hello".into()), None, None);
    let ended = body.collect().await.map(|_| ());
    assert!(matches!(ended, Err(BodyError::Plugin)), "{ended:?}");
    assert_eq!(run.interrupted().await.unwrap_err().status, StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test]
async fn a_whole_body_passes_at_once_or_is_held() {
    let (passes, holds) = (guest(0, 0, ""), guest(0, 1, ""));
    let breaks = guest_with(0, "(unreachable)", "");
    for (bytes, failure, expected) in [
        (&passes, FailurePolicy::Closed, Some(true)),
        (&holds, FailurePolicy::Closed, Some(false)),
        (&breaks, FailurePolicy::Open, Some(true)),
        (&breaks, FailurePolicy::Closed, None),
    ] {
        let (seats, plugin) = (seats(), plugin(bytes, failure));
        let run = begin(&seats, vec![slot(&plugin)]);
        run.patience.set(SHORT);
        ask(&run).await.1.unwrap();
        match (run.whole(Side::Request, "hello".into()), expected) {
            (Ok(Whole::Passed(bytes)), Some(true)) => assert_eq!(bytes, "hello"),
            (Ok(Whole::Held(held)), Some(false)) => {
                let rest = run.rest(Side::Request, held, None, None);
                let ended = rest.collect().await.map(|_| ());
                assert!(matches!(ended, Err(BodyError::Plugin)), "{ended:?}");
            }
            (Err(failed), None) => assert_eq!(failed.status, StatusCode::INTERNAL_SERVER_ERROR),
            (found, _) => panic!("{found:?} instead of {expected:?}"),
        }
    }
}

#[tokio::test]
async fn each_of_several_that_are_held_gets_its_own_back() {
    let (seats, plugin) = (seats(), plugin(&guest(1, 0, ""), FailurePolicy::Open));
    let runs: Vec<_> = (0..3).map(|_| begin(&seats, vec![slot(&plugin)])).collect();
    let mut requests: Vec<_> = (0..3_u8).map(Request::new).collect();
    for (number, (run, request)) in runs.iter().zip(&mut requests).enumerate() {
        request.headers_mut().insert("x", HeaderValue::from(number));
        let held = run.request_head(Phase::Unspecified, request, true);
        assert!(matches!(held, Err(Stopped::Held(0))), "{held:?}");
        assert!(request.headers().is_empty(), "the plugin has it");
    }
    // The instance breaks: what it had in hands comes back, and the policy lets it pass.
    let seat = runs[0].places[0].seat.clone();
    let fault = Fault {
        kind: FaultKind::Trap,
        callback: "proxy_on_tick",
        message: String::new(),
        backtrace: Vec::new(),
    };
    let broken = seat.call_again::<()>(seat.generation(), None, 1, |_| Err(fault));
    assert!(matches!(broken, Err(Broken::Fault(_))), "{broken:?}");
    for (number, (run, request)) in runs.iter().zip(&mut requests).enumerate() {
        let passed = run.held_request_head(0, Phase::Unspecified, request, true).await;
        assert!(matches!(passed, Ok(Passed::On { .. })), "{passed:?}");
        assert_eq!(request.headers()["x"], number.to_string().as_str());
    }
}

#[tokio::test]
async fn what_all_plugins_of_a_worker_hold_is_bounded() {
    use std::sync::atomic::Ordering::Relaxed;
    let (seats, plugin) = (seats(), plugin(&guest(0, 1, ""), FailurePolicy::Closed));
    let push = |run: &Run| {
        let piece = Piece::Data("hello".into(), false);
        run.push(Side::Request, Some(0), piece, &mut Pieces::default())
    };
    let run = begin(&seats, vec![slot(&plugin)]);
    ask(&run).await.1.unwrap();
    push(&run).unwrap();
    let held = || plugin.figures().held_bytes.load(Relaxed);
    assert_eq!(held(), 5);
    let seat = run.places[0].seat.clone();
    assert!(seat.holds(0, MAX_HELD_IN_ALL - 5));
    assert_eq!(push(&run).unwrap_err().status, StatusCode::SERVICE_UNAVAILABLE);
    drop(run);
    assert!(seat.holds(MAX_HELD_IN_ALL - 5, 0) && held() == 0);
    let run = begin(&seats, vec![slot(&plugin)]);
    ask(&run).await.1.unwrap();
    push(&run).unwrap();
}

#[tokio::test]
async fn an_exchange_that_is_given_up_leaves_nothing_in_the_instance() {
    let (seats, plugin) = (seats(), plugin(&guest(1, 0, ""), FailurePolicy::Closed));
    let other = begin(&seats, vec![slot(&plugin)]);
    for _ in 0..100 {
        let run = begin(&seats, vec![slot(&plugin)]);
        let held = tokio::time::timeout(Duration::ZERO, ask(&run)).await;
        assert!(held.is_err());
        drop(run);
    }
    assert_eq!(contexts(&other), 0);
}

#[tokio::test]
async fn a_broken_plugin_pauses_and_its_policy_holds() {
    let trap = guest(0, 0, "(unreachable)");
    for (failure, passes) in [(FailurePolicy::Closed, false), (FailurePolicy::Open, true)] {
        let (seats, plugin) = (seats(), plugin(&trap, failure));
        for times in 0..3 {
            let run = begin(&seats, vec![slot(&plugin)]);
            let (request, passed) = ask(&run).await;
            assert_eq!(passed.is_ok(), passes, "{times}");
            assert!(request.headers().contains_key("x"), "what it had in hands is back");
        }
        let figures = plugin.figures();
        use std::sync::atomic::Ordering::Relaxed;
        assert_eq!(figures.traps.load(Relaxed), 1, "it is not started while it pauses");
        assert_eq!(figures.instances.load(Relaxed), 0);
        assert_eq!(figures.memory_bytes.load(Relaxed), 0);
    }
}

#[tokio::test]
async fn a_plugin_that_nobody_uses_ends() {
    use std::sync::atomic::Ordering::Relaxed;
    let (seats, plugin) = (seats(), plugin(&guest(0, 0, ""), FailurePolicy::Closed));
    let run = begin(&seats, vec![slot(&plugin)]);
    ask(&run).await.1.unwrap();
    let figures = plugin.figures().clone();
    drop(plugin);
    seats.sweep();
    assert_eq!(figures.instances.load(Relaxed), 1, "an exchange is under way on it");
    drop(run);
    seats.sweep();
    assert_eq!(figures.instances.load(Relaxed), 0);
}

#[tokio::test]
async fn a_plugin_that_is_not_there_yet_has_its_policy() {
    let unloaded = |failure| {
        let unloaded = Unloaded {
            label: "shop/tag".into(),
            reason: "not loaded yet".to_owned(),
            failure,
            kind: PluginType::Http,
        };
        Slot { current: Err(Arc::new(unloaded)), canary: None, phase: Phase::Authz }
    };
    let seats = seats();
    let chain = Chain::new(vec![unloaded(FailurePolicy::Open)]);
    assert!(Run::begin(&seats, &chain, facts, || 0).is_none());
    let run = begin(&seats, vec![unloaded(FailurePolicy::Closed)]);
    let mut request = Request::new(());
    let early = show(&run, Phase::Authn, &mut request, true).await;
    assert!(matches!(early, Ok(Passed::On { retargeted: false })));
    assert!(show(&run, Phase::Authz, &mut request, true).await.is_err());
}

#[test]
fn lengths_stay_where_nothing_can_change_them() {
    let (seats, plugin) = (seats(), plugin(&guest(0, 0, ""), FailurePolicy::Closed));
    let run = begin(&seats, vec![slot(&plugin)]);
    run.reached.set(1);
    run.places[0].context.set(Some((1, ContextId::ROOT)));
    assert!(run.filters(Side::Request) && !run.filters(Side::Response));
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("5"));
    run.unframe(Side::Request, &mut headers);
    assert!(headers.contains_key(header::CONTENT_LENGTH));
}

#[test]
fn a_share_of_exchanges_is_for_the_version_on_trial() {
    let (current, canary) = (
        plugin(&guest(0, 0, ""), FailurePolicy::Closed),
        plugin(&guest(1, 0, ""), FailurePolicy::Closed),
    );
    let slot = Slot { canary: Some((canary.clone(), 10)), ..slot(&current) };
    let chosen = (0..100).filter(|lot| Arc::ptr_eq(slot.choose(|| *lot).unwrap(), &canary));
    assert_eq!(chosen.count(), 10);
}

/// Holds a request while it asks `users` by gRPC: a message lets it go on, an error is an answer.
const ASKING: &str = "(module
    (import \"env\" \"proxy_grpc_call\" (func $call
        (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
    (import \"env\" \"proxy_set_effective_context\" (func $choose (param i32) (result i32)))
    (import \"env\" \"proxy_continue_stream\" (func $continue (param i32) (result i32)))
    (import \"env\" \"proxy_send_local_response\" (func $answer
        (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
    (memory (export \"memory\") 1)
    (data (i32.const 0) \"usersServiceMethodmessage\")
    (global $held (mut i32) (i32.const 0))
    (func (export \"proxy_abi_version_0_2_1\"))
    (func (export \"proxy_on_memory_allocate\") (param i32) (result i32) (i32.const 4096))
    (func (export \"proxy_on_request_headers\") (param i32 i32 i32) (result i32)
      (global.set $held (local.get 0))
      (drop (call $call (i32.const 0) (i32.const 5) (i32.const 5) (i32.const 7) (i32.const 12)
        (i32.const 6) (i32.const 0) (i32.const 0) (i32.const 18) (i32.const 7) (i32.const 1000)
        (i32.const 512)))
      (i32.const 1))
    (func (export \"proxy_on_grpc_receive\") (param i32 i32 i32)
      (drop (call $choose (global.get $held)))
      (drop (call $continue (i32.const 0))))
    (func (export \"proxy_on_grpc_close\") (param i32 i32 i32)
      (drop (call $choose (global.get $held)))
      (drop (call $answer (i32.const 403) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
        (i32.const 0) (i32.const 0) (i32.const -1)))))";

/// A service `users` that answers every call of gRPC with these frames.
struct Users(fn() -> Vec<http_body::Frame<bytes::Bytes>>);

impl crate::filter::wasm::Callouts for Users {
    fn send(
        &self,
        upstream: &str,
        request: Request<Body>,
        http2: bool,
    ) -> Option<crate::filter::wasm::Sending> {
        assert!(http2 && upstream == "users");
        assert_eq!(request.uri().path(), "/Service/Method");
        assert_eq!(request.headers()["te"], "trailers");
        let frames = self.0().into_iter().map(Ok::<_, BodyError>);
        Some(Box::pin(async move {
            let sent = request.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(&sent[..], b"\0\0\0\0\x07message");
            let frames = futures_util::stream::iter(frames);
            Ok(Response::new(Body::other(http_body_util::StreamBody::new(frames))))
        }))
    }
}

fn status(code: &'static str) -> http_body::Frame<bytes::Bytes> {
    let trailers = [("grpc-status", code)];
    let field =
        |(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value));
    http_body::Frame::trailers(trailers.map(field).into_iter().collect())
}

#[tokio::test]
async fn a_call_of_grpc_is_answered_by_its_message_or_by_its_status() {
    use http_body::Frame;
    type Frames = fn() -> Vec<Frame<bytes::Bytes>>;
    let good: Frames = || {
        let parts = [&b"\0\0\0"[..], b"\0\x02o", b"k"];
        let mut frames: Vec<_> = parts.map(|part| Frame::data(part.into())).into();
        frames.push(status("0"));
        frames
    };
    let cases: [(Frames, bool); 4] = [
        (good, true),
        (|| vec![status("5")], false),
        (|| vec![Frame::data(bytes::Bytes::from_static(b"\x01\0\0\0\x02ok"))], false),
        (Vec::new, false),
    ];
    let work = async {
        for (frames, passes) in cases {
            let seats = seats();
            seats.call_by(Rc::new(Users(frames)));
            let bytes = wat::parse_str(ASKING).unwrap();
            let plugin = plugin(&bytes, FailurePolicy::Closed);
            for _ in 0..3 {
                let run = begin(&seats, vec![slot(&plugin)]);
                let passed = ask(&run).await.1.unwrap();
                assert_eq!(matches!(passed, Passed::On { .. }), passes);
            }
        }
    };
    tokio::task::LocalSet::new().run_until(work).await;
}
