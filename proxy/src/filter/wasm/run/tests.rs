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
    http::{
        body::{Body, BodyError, Incoming},
        http1::Download,
    },
};

mod blame;

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

/// What becomes of `hello` in a response, and what is left of it where it was.
fn respond(run: &Run) -> (Result<Shown, Stopped>, Response<Incoming>) {
    let mut response = Response::new(Incoming::Http1(Download::of_whole("hello".into())));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("5"));
    (run.response(&mut response), response)
}

#[tokio::test]
async fn head_and_body_of_a_response_are_shown_together() {
    #[derive(Debug, PartialEq)]
    enum Found {
        Passed(&'static str),
        HeldBody,
        HeldHead,
        Failed,
    }
    use FailurePolicy::{Closed, Open};
    use Found::{Failed, HeldBody, HeldHead, Passed};
    const WRITE: &str = "(drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 0)
        (i32.const 0)))";
    let write = "(import \"env\" \"proxy_set_buffer_bytes\" (func $write
        (param i32 i32 i32 i32 i32) (result i32)))";
    let add = "(import \"env\" \"proxy_add_header_map_value\" (func $add
        (param i32 i32 i32 i32 i32) (result i32)))";
    let cut_then_trap = format!("{WRITE} (unreachable)");
    for (imports, head, body, failure, expected) in [
        ("", "", "", Closed, Passed("hello")),
        (add, "", "", Closed, Passed("hello")),
        (write, "", "", Closed, Passed("hello")),
        (write, "", WRITE, Closed, Passed("ello")),
        ("", "(return (i32.const 1))", "(unreachable)", Closed, HeldHead),
        (add, "(return (i32.const 1))", "(unreachable)", Closed, HeldHead),
        (write, "(return (i32.const 1))", "(unreachable)", Closed, HeldHead),
        ("", "", "(return (i32.const 1))", Closed, HeldBody),
        (write, "", "(return (i32.const 1))", Closed, HeldBody),
        ("", "(unreachable)", "", Closed, Failed),
        ("", "(unreachable)", "", Open, Passed("hello")),
        ("", "", "(unreachable)", Closed, Failed),
        (write, "", "(unreachable)", Open, Passed("hello")),
        (write, "", &cut_then_trap, Open, Passed("ello")),
    ] {
        let text = format!(
            "(module {imports}
               (memory (export \"memory\") 1)
               (func (export \"proxy_abi_version_0_2_1\"))
               (func (export \"proxy_on_memory_allocate\") (param i32) (result i32) (i32.const 4096))
               (func (export \"proxy_on_response_headers\") (param i32 i32 i32) (result i32)
                 {head} (i32.const 0))
               (func (export \"proxy_on_response_body\") (param i32 i32 i32) (result i32)
                 {body} (i32.const 0)))"
        );
        let case = format!("{imports} {head} {body} {failure:?}");
        let (seats, plugin) = (seats(), plugin(&wat::parse_str(text).unwrap(), failure));
        let run = begin(&seats, vec![slot(&plugin)]);
        run.patience.set(SHORT);
        ask(&run).await.1.unwrap();
        let (shown, mut response) = respond(&run);
        let left = response.body_mut().take_whole();
        match (shown, expected) {
            (Ok(Shown { answered: None, whole: Some(Ok(Whole::Passed(bytes))) }), Passed(text)) => {
                assert_eq!((bytes, left), (text.into(), None), "{case}");
                let length = response.headers().contains_key(header::CONTENT_LENGTH);
                assert_eq!(length, text == "hello", "{case}");
                assert!(run.has_responded(), "{case}");
            }
            (Ok(Shown { whole: Some(Ok(Whole::Held(held))), .. }), HeldBody) => {
                let rest = run.rest(Side::Response, held, None, None);
                let ended = rest.collect().await.map(|_| ());
                assert!(matches!(ended, Err(BodyError::Plugin)), "{case}: {ended:?}");
            }
            (Err(Stopped::Held(0)), HeldHead) => {
                assert_eq!(left, Some("hello".into()), "{case}");
                assert!(!run.has_responded(), "{case}");
            }
            (Ok(Shown { answered: None, whole: Some(Err(_)) }), Failed) => {
                assert_eq!((run.responding.get(), left), (Some(0), None), "{case}");
                assert!(!run.has_responded(), "{case}");
            }
            (shown, expected) => panic!("{case}: {shown:?} instead of {expected:?}"),
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

/// A guest of these imports of `env`, with its other parts.
fn module(imports: &[(&str, usize)], parts: &str) -> Vec<u8> {
    let imports: String = imports
        .iter()
        .map(|(name, parameters)| {
            let parameters = "i32 ".repeat(*parameters);
            format!("(import \"env\" \"{name}\" (func ${name} (param {parameters}) (result i32)))")
        })
        .collect();
    let text = format!(
        "(module {imports}
           (memory (export \"memory\") 1)
           (data (i32.const 0) \"new body\")
           (func (export \"proxy_abi_version_0_2_1\"))
           (func (export \"proxy_on_memory_allocate\") (param i32) (result i32) (i32.const 4096))
           {parts})"
    );
    wat::parse_str(text).unwrap()
}

/// A callback of three parameters.
fn callback(name: &str, body: &str) -> String {
    format!("(func (export \"{name}\") (param i32 i32 i32) (result i32) {body})")
}

fn tick(run: &Run) -> Result<(), Broken> {
    let seat = run.places[0].seat.clone();
    seat.call_again(seat.generation(), None, 1, leno_wasm_host::Instance::on_tick)
}

fn failures(plugin: &Plugin) -> u64 {
    plugin.figures().failures.load(std::sync::atomic::Ordering::Relaxed)
}

#[tokio::test]
async fn who_holds_for_ever_and_may_be_left_out_is_left_out() {
    let (seats, plugin) = (seats(), plugin(&guest(1, 0, ""), FailurePolicy::Open));
    let run = begin(&seats, vec![slot(&plugin)]);
    run.patience.set(SHORT);
    let (request, passed) = ask(&run).await;
    assert!(matches!(passed, Ok(Passed::On { .. })), "{passed:?}");
    assert!(request.headers().contains_key("x"), "what it had in hands is back");
    assert!(!run.filters(Side::Request), "and it gets no more");
    assert_eq!(failures(&plugin), 1);
}

#[tokio::test]
async fn who_holds_a_body_for_ever_and_may_be_left_out_is_left_out() {
    let plugins = [(); 2].map(|()| plugin(&guest(0, 1, ""), FailurePolicy::Open));
    let seats = seats();
    let run = begin(&seats, plugins.iter().map(slot).collect());
    run.patience.set(SHORT);
    ask(&run).await.1.unwrap();
    let body = run.body(Side::Request, Body::Full("hello".into()), None, None);
    assert_eq!(body.collect().await.unwrap().to_bytes(), "hello");
    assert_eq!(plugins.map(|plugin| failures(&plugin)), [1, 1]);
}

#[tokio::test]
async fn whatever_goes_wrong_in_an_exchange_is_counted_once() {
    const HEADER: (&str, usize) = ("proxy_add_header_map_value", 5);
    const ANSWER: (&str, usize) = ("proxy_send_local_response", 8);
    const CLOSE: (&str, usize) = ("proxy_close_stream", 1);
    // Of 99.
    let answer = "(drop (call $proxy_send_local_response (i32.const 99) (i32.const 0) (i32.const 0)
        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))";
    // The name has a space in it.
    let forbidden = "(drop (call $proxy_add_header_map_value (i32.const 0) (i32.const 0)
        (i32.const 8) (i32.const 0) (i32.const 3)))";
    let close = "(drop (call $proxy_close_stream (i32.const 0)))";
    let head = |body: &str| callback("proxy_on_request_headers", &format!("{body} (i32.const 0)"));
    let passes = head("");
    let body = |body: &str| callback("proxy_on_request_body", &format!("{body} (i32.const 1)"));
    let log = "(func (export \"proxy_on_log\") (param i32) (unreachable))";
    for (what, imports, parts) in [
        ("what HTTP forbids", HEADER, head(forbidden)),
        ("an answer that is none", ANSWER, head(answer)),
        ("the stream closed", CLOSE, head(close)),
        ("the stream closed in a body", CLOSE, passes.clone() + &body(close)),
        ("too much held", CLOSE, passes.clone() + &body("")),
        ("a trap in a body", CLOSE, passes.clone() + &body("(unreachable)")),
        ("a trap when all is over", CLOSE, passes.clone() + log),
    ] {
        let (seats, plugin) = (seats(), plugin(&module(&[imports], &parts), FailurePolicy::Closed));
        let run = begin(&seats, vec![slot(&plugin)]);
        match ask(&run).await.1 {
            Ok(Passed::Answered(answered)) => drop(run.answer(answered, false).unwrap_err()),
            Ok(Passed::On { .. }) => {
                let large = vec![b'x'; (1 << 20) + 1].into();
                drop(run.whole(Side::Request, large));
            }
            Err(_) => {}
        }
        run.finish();
        assert_eq!(failures(&plugin), 1, "{what}");
    }
}

#[tokio::test]
async fn an_answer_into_a_response_that_is_under_way_is_a_failure() {
    let answers =
        "(drop (call $proxy_send_local_response (i32.const 200) (i32.const 0) (i32.const 0)
        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1))) (i32.const 1)";
    let parts = callback("proxy_on_request_headers", "(i32.const 0)")
        + &callback("proxy_on_response_body", answers);
    let bytes = module(&[("proxy_send_local_response", 8)], &parts);
    let (seats, plugin) = (seats(), plugin(&bytes, FailurePolicy::Closed));
    let run = begin(&seats, vec![slot(&plugin)]);
    ask(&run).await.1.unwrap();
    assert!(run.whole(Side::Response, "hello".into()).is_err());
    assert_eq!(failures(&plugin), 1);
}

#[tokio::test]
async fn what_breaks_in_nobodys_behalf_is_counted_too() {
    use std::sync::atomic::Ordering::Relaxed;
    let parts = callback("proxy_on_request_headers", "(i32.const 0)")
        + "(func (export \"proxy_on_tick\") (param i32) (unreachable))";
    let (seats, plugin) = (seats(), plugin(&module(&[], &parts), FailurePolicy::Closed));
    let run = begin(&seats, vec![slot(&plugin)]);
    ask(&run).await.1.unwrap();
    assert!(tick(&run).is_err());
    run.finish();
    assert_eq!((failures(&plugin), plugin.figures().own_faults.load(Relaxed)), (0, 1));
}

/// What a plugin that is left out has wanted before it broke must not come into force later.
#[tokio::test]
async fn who_is_left_out_answers_and_closes_no_more() {
    use futures_util::FutureExt as _;
    let acts = [
        ("proxy_close_stream", 1, "(i32.const 0)".to_owned()),
        ("proxy_send_local_response", 8, "(i32.const 200)".to_owned() + &"(i32.const 0)".repeat(7)),
    ];
    for (function, parameters, arguments) in acts {
        let act = format!("(drop (call ${function} {arguments})) (unreachable)");
        let parts = callback("proxy_on_request_headers", &act);
        let bytes = module(&[(function, parameters)], &parts);
        let (seats, plugin) = (seats(), plugin(&bytes, FailurePolicy::Open));
        let run = begin(&seats, vec![slot(&plugin)]);
        let passed = ask(&run).await.1;
        assert!(matches!(passed, Ok(Passed::On { .. })), "{function}: {passed:?}");
        let interrupted = run.interrupted().now_or_never();
        assert!(interrupted.is_none(), "{function}: {interrupted:?}");
        assert!(!run.is_answered() && !run.is_closed(), "{function}");
    }
}

/// Takes bodies whole, and lets a timer put another one in their place.
fn replacing() -> Vec<u8> {
    let parts = "(global $held (mut i32) (i32.const 0))".to_owned()
        + &callback("proxy_on_request_headers", "(global.set $held (local.get 0)) (i32.const 0)")
        + &callback(
            "proxy_on_request_body",
            "(drop (call $proxy_set_buffer_bytes (i32.const 0) (i32.const 0) (local.get 1)
               (i32.const 0) (i32.const 0))) (i32.const 1)",
        )
        + "(func (export \"proxy_on_tick\") (param i32)
             (drop (call $proxy_set_effective_context (global.get $held)))
             (if (call $proxy_set_buffer_bytes (i32.const 0) (i32.const 1000000) (i32.const 0)
               (i32.const 0) (i32.const 8)) (then (unreachable)))
             (drop (call $proxy_continue_stream (i32.const 0))))";
    let imports = [
        ("proxy_set_buffer_bytes", 5),
        ("proxy_set_effective_context", 1),
        ("proxy_continue_stream", 1),
    ];
    module(&imports, &parts)
}

#[tokio::test]
async fn a_body_that_was_taken_whole_gets_another_in_its_place() {
    let (seats, plugin) = (seats(), plugin(&replacing(), FailurePolicy::Closed));
    let run = begin(&seats, vec![slot(&plugin)]);
    ask(&run).await.1.unwrap();
    let Ok(Whole::Held(held)) = run.whole(Side::Request, "hello".into()) else {
        panic!("it holds all of it")
    };
    tick(&run).unwrap();
    let rest = run.rest(Side::Request, held, None, None);
    assert_eq!(rest.collect().await.unwrap().to_bytes(), "new body");
}

#[tokio::test]
async fn what_timers_put_into_bodies_is_counted_as_held() {
    use std::sync::atomic::Ordering::Relaxed;
    let (seats, plugin) = (seats(), plugin(&replacing(), FailurePolicy::Closed));
    let begin = async || {
        let run = begin(&seats, vec![slot(&plugin)]);
        ask(&run).await.1.unwrap();
        assert!(matches!(run.whole(Side::Request, "hello".into()), Ok(Whole::Held(_))));
        run
    };
    let held = || plugin.figures().held_bytes.load(Relaxed);
    let run = begin().await;
    assert_eq!(held(), 0);
    tick(&run).unwrap();
    assert_eq!(held(), 8);
    drop(run);
    assert_eq!(held(), 0);
    let run = begin().await;
    run.places[0].seat.holds(0, MAX_HELD_IN_ALL - 7);
    assert!(tick(&run).is_err(), "there is room for seven bytes only");
}

#[tokio::test]
async fn who_has_let_go_before_more_came_holds_what_came() {
    // The first holds the end of a body, the second all of it.
    let (first, second) = (
        plugin(&guest_with(0, "(local.get 2)", ""), FailurePolicy::Closed),
        plugin(&guest(0, 1, ""), FailurePolicy::Closed),
    );
    let seats = seats();
    let run = begin(&seats, vec![slot(&first), slot(&second)]);
    ask(&run).await.1.unwrap();
    let mut ready = Pieces::default();
    for (bytes, end) in [("a", false), ("b", true)] {
        run.push(Side::Request, Some(0), Piece::Data(bytes.into(), end), &mut ready).unwrap();
    }
    for mark in run.state.marks.iter() {
        mark.continued[0].set(true);
    }
    run.advance(Side::Request, &mut ready).unwrap();
    assert!(ready.is_empty() && run.holds(Side::Request), "it was shown more, and paused");
    run.state.marks[1].continued[0].set(true);
    run.advance(Side::Request, &mut ready).unwrap();
    assert!(matches!(ready.pop(), Some(Piece::Data(bytes, true)) if bytes == "ab"));
    assert!(ready.is_empty());
}

#[tokio::test]
async fn a_timer_that_is_set_again_and_again_is_one() {
    use leno_wasm_host::Host as _;
    let work = async {
        let (seats, plugin) = (seats(), plugin(&guest(0, 0, ""), FailurePolicy::Closed));
        let run = begin(&seats, vec![slot(&plugin)]);
        ask(&run).await.1.unwrap();
        let seat = run.places[0].seat.clone();
        let timers = seat.call_again(seat.generation(), None, 1, |instance| {
            let host = instance.host_mut();
            (1..1_000).for_each(|period| host.set_tick_period(Some(Duration::from_secs(period))));
            host.set_tick_period(None);
            host.set_tick_period(Some(Duration::from_secs(1)));
            Ok(host.timers())
        });
        assert_eq!(timers.unwrap(), 1);
    };
    tokio::task::LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_plugin_that_nobody_uses_may_finish_what_it_has_begun() {
    use std::sync::atomic::Ordering::Relaxed;
    let parts = callback("proxy_on_request_headers", "(i32.const 0)")
        + "(func (export \"proxy_on_done\") (param i32) (result i32) (i32.const 0))
           (func (export \"proxy_on_tick\") (param i32) (drop (call $proxy_done)))";
    let bytes = module(&[("proxy_done", 0)], &parts);
    let (seats, plugin) = (seats(), plugin(&bytes, FailurePolicy::Closed));
    let run = begin(&seats, vec![slot(&plugin)]);
    ask(&run).await.1.unwrap();
    let seat = Rc::downgrade(&run.places[0].seat);
    let figures = plugin.figures().clone();
    drop((run, plugin));
    for _ in 0..3 {
        seats.sweep();
        assert_eq!(figures.instances.load(Relaxed), 1, "it is not done");
    }
    let last = seat.upgrade().unwrap();
    last.call_again(last.generation(), None, 1, leno_wasm_host::Instance::on_tick).unwrap();
    drop(last);
    seats.sweep();
    assert_eq!(figures.instances.load(Relaxed), 0);
    assert!(seat.upgrade().is_none());
}
