//! Bodies through plugins: what a plugin changes has the length it has.

use super::*;

#[tokio::test]
async fn a_body_that_was_changed_has_the_length_it_has() {
    let running = Running::with("").await;
    for (operation, expected) in [
        ("setbody=0:0:5:REPLACEDREPLACED", "REPLACEDREPLACED"),
        ("setbody=0:0:5:R", "R"),
        ("setbody=0:0:5:", ""),
        ("setbody=0:0:0:>", ">hello"),
        ("setbody=0:99:0:<", "hello<"),
    ] {
        // Until the end is there, the plugin holds what came.
        let fields = format!("x-req-body: 1\r\nx-req-body-end: {operation},0\r\n");
        let answer = running.post(&fields, "hello").await;
        assert_eq!((answer.status, &answer.echo()["body"]), (200, &expected.into()), "{operation}");
    }
    let seen = running.orders.requests();
    let methods: Vec<_> = seen.iter().map(|request| request["method"].clone()).collect();
    assert!(methods.iter().all(|method| method == "GET" || method == "POST"), "{methods:?}");
}

#[tokio::test]
async fn nothing_of_a_longer_body_is_the_next_request() {
    let running = Running::with("").await;
    let mut wire = running.wire().await;
    let request = |fields: &str, body: &str| {
        let length = body.len();
        format!(
            "POST /k HTTP/1.1\r\nHost: orders\r\nContent-Length: {length}\r\n{fields}\r\n{body}"
        )
    };
    let smuggled = "x-req-body-end: setbody=0:0:0:GET /admin HTTP/1.1\r\nx-req-body: 1\r\n";
    let count = running.orders.requests().len();
    for _ in 0..10 {
        let answer = wire.ask(request(smuggled, "0123456789")).await;
        assert_eq!(answer.echo()["body"], "GET /admin HTTP/1.10123456789");
        let answer = wire.ask(request("", "plain")).await;
        assert_eq!(answer.echo()["body"], "plain");
    }
    assert_eq!(running.orders.requests().len() - count, 20);
    assert!(running.orders.requests()[count..].iter().all(|seen| seen["path"] == "/k"));
}

#[tokio::test]
async fn responses_are_changed_too() {
    let running = Running::with("").await;
    let answer =
        running.get("/", "x-resp-body: 1\r\nx-resp-body-end: setbody=1:0:100000:short,0\r\n").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "short"));
    let fields = "x-resp-body: 1\r\nx-resp-body-end: setbody=1:0:0:longer,add-resp-trailer=t,0\r\n\
                  x-resp-headers: rep-resp=trailer|x-probe-trailer\r\nTE: trailers\r\n";
    let answer = running.get("/", fields).await;
    assert!(answer.text().starts_with("longer{"), "{}", answer.text());
    assert_eq!(answer.trailers, [("x-probe-trailer".to_owned(), "t".to_owned())]);
    // The same over a connection that is kept.
    let mut wire = running.wire().await;
    for _ in 0..3 {
        let fields = "x-resp-body: 1\r\nx-resp-body-end: setbody=1:0:0:more,0\r\n";
        let request = format!("GET / HTTP/1.1\r\nHost: orders\r\n{fields}\r\n");
        assert!(wire.ask(request).await.text().starts_with("more{"));
    }
}

#[tokio::test]
async fn chunks_and_trailers_pass() {
    let running = Running::with("").await;
    let mut wire = running.wire().await;
    let head = "POST /c HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\nTrailer: x-t\r\n";
    wire.send(format!("{head}x-req-body: setbody=0:0:0:>\r\n\r\n5\r\nhello\r\n")).await;
    wire.send("5\r\nworld\r\n0\r\nx-t: 1\r\n\r\n").await;
    let answer = wire.answer().await;
    let body = answer.echo()["body"].as_str().unwrap().to_owned();
    assert!(body == ">hello>world" || body == ">helloworld", "{body}");
    assert_eq!(answer.echo()["trailers"]["x-t"], "1");
    running.logged("on_request_trailers(").await;
}

#[tokio::test]
async fn what_a_plugin_may_hold_is_bounded() {
    let running = Running::with("").await;
    let body = "a".repeat(3 << 20);
    let mut wire = running.wire().await;
    let length = body.len();
    let head = format!(
        "POST /p HTTP/1.1\r\nHost: orders\r\nContent-Length: {length}\r\nx-req-body: 1\r\n\r\n"
    );
    wire.send(head).await;
    // The proxy stops reading when it has answered.
    let _ = wire.try_send(&body).await;
    assert_eq!(wire.answer().await.status, 413);
    // What only passes is not bounded.
    let answer = running.post("x-req-body: 0\r\n", &body).await;
    assert_eq!(answer.echo()["body"].as_str().unwrap().len(), length);
    // Dropped bytes are not there, and the exchange ends.
    let mut wire = running.wire().await;
    let head = "POST /c HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\n";
    wire.send(format!("{head}x-req-body: 3\r\nx-req-body-end: 0\r\n\r\n5\r\nhello\r\n")).await;
    running.logged("on_request_body(").await;
    wire.send("0\r\n\r\n").await;
    let answer = wire.answer().await;
    assert_eq!((answer.status, &answer.echo()["body"]), (200, &"".into()));
    running.proxy.serves("orders").await;
}

#[tokio::test]
async fn http2_is_framed_by_its_frames() {
    let origin = Origin::echo_http2("second").await;
    let running = Running::of("", |mesh| {
        mesh.service("second", "http2", &[origin.address]).yaml(&plugin("second", "second", ""))
    })
    .await;
    let fields = "x-req-body: 1\r\nx-req-body-end: setbody=0:0:5:REPLACEDREPLACED,0\r\n\
                  x-resp-body: 1\r\nx-resp-body-end: setbody=1:0:0:x,0\r\n";
    let request = post(fields, "hello").replace("Host: orders", "Host: second");
    let text = until("the plugin to be loaded", async || {
        let answer = client::ask(running.proxy.outbound, &request).await;
        (answer.status == 200).then(|| answer.text())
    })
    .await;
    assert!(text.starts_with("x{") && text.contains("REPLACEDREPLACED"), "{text}");
}
