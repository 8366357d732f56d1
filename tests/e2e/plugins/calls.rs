//! Pauses, timers, and calls of plugins to services.

use super::*;

async fn with_callout(more: &str) -> (Running, Origin) {
    let callout = Origin::echo("callout").await;
    let address = callout.address;
    let running = Running::of(more, |mesh| mesh.service("callout", "http", &[address])).await;
    (running, callout)
}

#[tokio::test]
async fn a_call_to_a_service_lets_a_paused_request_go_on() {
    let (running, callout) = with_callout("").await;
    let fields = "x-req-headers: call=/check,1\r\n\
                  x-req-headers-callback: add-req=x-checked:1,cont=0\r\n";
    let answer = running.get("/", fields).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.echo()["headers"]["x-checked"][0], "1");
    let called = callout.requests();
    assert_eq!((called.len(), &called[0]["path"]), (1, &"/check".into()));
    assert_eq!(called[0]["headers"]["host"][0], "callout.test");
    running.logged("call :status \"200\"").await;
    // Its answer decides.
    let fields = "x-req-headers: call=/check,1\r\nx-req-headers-callback: local=401\r\n";
    assert_eq!(running.get("/", fields).await.status, 401);
    // On the way back as well, and with a body.
    let fields = "x-resp-headers: callpost=/after,1\r\nx-resp-headers-callback: add-resp=x-after:1,cont=1\r\n";
    let answer = running.get("/", fields).await;
    assert_eq!((answer.status, answer.header("x-after")), (200, Some("1")));
    assert_eq!(callout.requests().last().unwrap()["body"], "call body");
}

/// As any request of a caller: whoever has a call in each exchange must not pay a handshake for each.
#[tokio::test]
async fn calls_follow_each_other_on_one_connection() {
    let (running, callout) = with_callout("").await;
    // One worker, which has one pool of connections.
    let mut wire = running.wire().await;
    for call in ["call", "callpost", "call", "callpost"] {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: orders\r\nx-req-headers: {call}=/check,1\r\n\
             x-req-headers-callback: cont=0\r\n\r\n"
        );
        assert_eq!(wire.ask(request).await.status, 200, "{call}");
    }
    let requests = callout.requests();
    assert_eq!((requests.len(), callout.accepted()), (4, 1));
    assert_eq!(
        (&requests[1]["body"], &requests[1]["trailers"]["x-call-trailer"]),
        (&"call body".into(), &"t".into())
    );
}

#[tokio::test]
async fn a_service_that_does_not_answer_is_an_answer_too() {
    let silent = Origin::raw(|stream, _| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let running = Running::of("", |mesh| mesh.service("callout", "http", &[silent.address])).await;
    let fields = "x-req-headers: call=/check,1\r\nx-req-headers-callback: cont=0\r\n";
    assert_eq!(running.get("/", fields).await.status, 200);
    running.logged("call :status \"504\"").await;
}

#[tokio::test]
async fn a_service_that_cannot_be_reached_is_an_answer_too() {
    let nobody = crate::origin::nobody();
    let running = Running::of("", |mesh| mesh.service("callout", "http", &[nobody])).await;
    let fields = "x-req-headers: call=/check,1\r\nx-req-headers-callback: cont=0\r\n";
    assert_eq!(running.get("/", fields).await.status, 200);
    running.logged("call :status \"503\"").await;
}

#[tokio::test]
async fn a_service_that_nobody_knows_is_refused_at_once() {
    let running = Running::with("").await;
    assert_eq!(running.get("/", "x-req-headers: call=/check\r\n").await.status, 200);
    running.logged("op call=/check => 2").await;
}

#[tokio::test]
async fn a_timer_lets_requests_and_bodies_go_on() {
    let running = Running::with("pluginConfig: tick=20\n").await;
    for fields in ["x-req-headers: park=0,1\r\n", "x-resp-headers: park=1,1\r\n"] {
        assert_eq!(running.get("/", fields).await.status, 200, "{fields}");
    }
    let answer = running.get("/", "x-req-headers: park=403,1\r\n").await;
    assert_eq!((answer.status, answer.text().as_str()), (403, "from tick\n"));
    let answer = running.post("x-req-body: 1\r\nx-req-body-end: park=0,1\r\n", "hello").await;
    assert_eq!((answer.status, &answer.echo()["body"]), (200, &"hello".into()));
    let answer = running.get("/", "x-resp-body: 1\r\nx-resp-body-end: park=1,1\r\n").await;
    assert_eq!(answer.echo()["origin"], "orders");
    // Answered while its body is held.
    let answer = running.post("x-req-body: 1\r\nx-req-body-end: park=429,1\r\n", "hello").await;
    assert_eq!((answer.status, answer.text().as_str()), (429, "from tick\n"));
}

#[tokio::test]
async fn a_caller_that_goes_away_while_a_plugin_holds_its_request_is_told_of() {
    let running = Running::with("").await;
    for fields in ["x-req-headers: 1", "x-resp-headers: 1", "x-resp-body: 1"] {
        let before = running.proxy.errors().matches("on_delete(").count();
        let mut wire = running.wire().await;
        wire.send(format!("GET / HTTP/1.1\r\nHost: orders\r\n{fields}\r\n\r\n")).await;
        until("the plugin to have it", async || {
            let errors = running.proxy.errors();
            let callback = match fields {
                "x-req-headers: 1" => "on_request_headers(",
                "x-resp-headers: 1" => "on_response_headers(",
                _ => "on_response_body(",
            };
            let started = errors.matches("on_request_headers(").count() > before;
            (started && errors.rfind(callback) > errors.rfind("on_delete(")).then_some(())
        })
        .await;
        drop(wire);
        until("the plugin to be told", async || {
            (running.proxy.errors().matches("on_delete(").count() > before).then_some(())
        })
        .await;
    }
    running.proxy.serves("orders").await;
}

#[tokio::test]
async fn a_response_that_is_held_for_ever_ends_with_the_requests_timeout() {
    crate::mesh::at_any_pace(held_for_ever).await;
}

async fn held_for_ever(slower: u32) {
    let running = Running::of("", |mesh| {
        let timeouts = format!(
            "- matches: [{{path: {{type: PathPrefix, value: /slow}}}}]\n  timeouts: {{request: {}ms}}\n  \
             backendRefs: [{{name: orders, port: 80}}]\n- backendRefs: [{{name: orders, port: 80}}]\n",
            300 * slower
        );
        mesh.http_route("orders", &timeouts)
    })
    .await;
    let mut wire = running.wire().await;
    let request =
        "GET /slow HTTP/1.1\r\nHost: orders\r\nConnection: close\r\nx-resp-body: 1\r\n\r\n";
    wire.send(request).await;
    // The head is out: only the end can tell.
    assert!(wire.try_answer().await.is_err());
    let request = post("x-req-body: 1\r\n", "hello").replace("/p", "/slow");
    let answer = client::ask(running.proxy.outbound, request).await;
    assert_eq!(answer.status, 504, "{}", answer.text());
    running.proxy.serves("orders").await;
}
