//! Calls of plugins by gRPC: one answer, or streams both ways.

use tokio::sync::mpsc;

use super::*;
use crate::grpc::server;

async fn with_grpc(more: &str) -> (Running, Origin, mpsc::UnboundedReceiver<&'static str>) {
    let (grpc, events) = server("grpc").await;
    let address = grpc.address;
    let running = Running::of(more, |mesh| mesh.service("grpc", "grpc", &[address])).await;
    (running, grpc, events)
}

#[tokio::test]
async fn an_answer_lets_a_paused_request_go_on() {
    let (running, _grpc, _events) = with_grpc("").await;
    let fields = "x-req-headers: grpc=Echo,1\r\n\
                  x-req-headers-message: add-req=x-said:yes,cont=0\r\nx-req-headers-end: local=503\r\n";
    let answer = running.get("/", fields).await;
    assert_eq!((answer.status, &answer.echo()["headers"]["x-said"][0]), (200, &"yes".into()));
    running.logged("=> 0 5 \"hello\"").await;
}

/// Whatever else becomes of a call ends it with a status, and is never taken for an answer.
#[tokio::test]
async fn a_call_that_fails_is_no_answer() {
    let (running, _grpc, mut events) = with_grpc("").await;
    for (method, status) in [("Fails", 9), ("Refuse", 5), ("Empty", 13), ("Never", 4)] {
        let fields = format!(
            "x-req-headers: grpc={method},1\r\n\
             x-req-headers-message: local=500\r\nx-req-headers-end: local=403\r\n"
        );
        let answer = running.get("/", &fields).await;
        assert_eq!(answer.status, 403, "{method}: {}", answer.text());
        let errors = running.proxy.errors();
        let closed = errors.lines().rfind(|line| line.contains("on_grpc_close(")).unwrap();
        assert!(closed.contains(&format!(", {status})")), "{method}: {closed}");
    }
    // Out of time, the service is told, too.
    while events.recv().await.unwrap() != "cancelled" {}
}

#[tokio::test]
async fn a_service_that_speaks_no_grpc_or_is_not_there_is_a_status_too() {
    let denying = Origin::raw(|stream, _| async move {
        let mut connection = crate::http2::serve(stream).await;
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let denied = http::Response::builder().status(403).body(()).unwrap();
            let _ = respond.send_response(denied, true);
        }
    })
    .await;
    for (address, status) in [(denying.address, 7), (crate::origin::nobody(), 14)] {
        let running = Running::of("", |mesh| mesh.service("grpc", "grpc", &[address])).await;
        let fields = "x-req-headers: grpc=Echo,1\r\nx-req-headers-end: cont=0\r\n";
        assert_eq!(running.get("/", fields).await.status, 200);
        running.logged(&format!(", {status})")).await;
        let streams = "x-req-headers: stream=Echo,1\r\nx-req-headers-end: cont=0\r\n";
        assert_eq!(running.get("/", streams).await.status, 200);
    }
}

#[tokio::test]
async fn messages_of_a_stream_go_both_ways_until_both_sides_have_ended() {
    let (running, _grpc, mut events) = with_grpc("").await;
    let ask = async |operations: &str| {
        let fields = format!("x-req-headers: {operations}\r\n");
        assert_eq!(running.get("/", &fields).await.status, 200, "{operations}");
    };
    ask("stream=Chat,send=first").await;
    running.logged("on_grpc_receive_initial_metadata(").await;
    running.logged("=> 0 5 \"first\"").await;
    // Of another request: the stream belongs to the plugin.
    ask("send=second").await;
    running.logged("=> 0 6 \"second\"").await;
    ask("send-last=third").await;
    running.logged("=> 0 5 \"third\"").await;
    running.logged("on_grpc_receive_trailing_metadata(").await;
    running.logged("on_grpc_close(").await;
    assert_eq!(events.recv().await, Some("ended"));
    let errors = running.proxy.errors();
    assert!(errors.lines().any(|line| line.contains("on_grpc_close(") && line.contains(", 0)")));
    // What has ended is not found.
    ask("send=late,close-stream").await;
    running.logged("op send=late => 1").await;
    running.logged("op close-stream => 1").await;
    // Closed without a message.
    ask("stream=Fails,close-stream").await;
    running.logged(", 9)").await;
}

#[tokio::test]
async fn a_stream_that_is_cancelled_is_not_heard_of_again() {
    let (running, _grpc, mut events) = with_grpc("").await;
    let fields = "x-req-headers: stream=Never\r\n";
    assert_eq!(running.get("/", fields).await.status, 200);
    assert_eq!(events.recv().await, Some("called"));
    assert_eq!(running.get("/", "x-req-headers: cancel-stream\r\n").await.status, 200);
    assert_eq!(events.recv().await, Some("cancelled"));
    assert!(!running.proxy.errors().contains("on_grpc_close("));
    // An answer that is only a head tells what there is in it.
    assert_eq!(running.get("/", "x-req-headers: stream=Refuse\r\n").await.status, 200);
    running.logged("on_grpc_receive_trailing_metadata(").await;
    running.logged(", 5)").await;
}

/// Streams that nobody ends are bounded, end with the instance, and hurt nobody.
#[tokio::test]
async fn a_plugin_that_leaks_streams_hurts_nobody() {
    let (running, grpc, mut events) = with_grpc("").await;
    assert_eq!(running.get("/", "x-req-headers: leak-streams=Never\r\n").await.status, 200);
    assert_eq!(events.recv().await, Some("called"));
    let again = "x-req-headers: stream=Never\r\n";
    assert_eq!(running.get("/", again).await.status, 200);
    running.logged("op stream=Never => 10").await;
    for _ in 0..20 {
        running.proxy.serves("plain").await;
    }
    let fault = "x-fault: unreachable\r\nx-fault-phase: req-headers\r\n";
    assert_eq!(running.get("/", fault).await.status, 500);
    while events.recv().await.unwrap() != "cancelled" {}
    drop(grpc);
    running.proxy.serves("plain").await;
}
