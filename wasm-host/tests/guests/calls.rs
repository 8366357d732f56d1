//! HTTP and gRPC calls, and how their answers come.

use leno_wasm_host::{CallToken, HttpCallResponse, PluginSettings};

use crate::script::{Guest, Int, Number, Out, Script, list, number, status, text};

#[test]
fn http_calls_and_their_answers() {
    let headers = list(&[(":method", "GET"), (":path", "/"), (":authority", "a")]);
    let call = |upstream: &str, headers, timeout| {
        [text(upstream), headers, text("body"), list(&[]), Int(timeout), Number]
    };
    let answer = "proxy_on_http_call_response";
    let mut guest = Script::new()
        .call("proxy_http_call", &call("callout", headers.clone(), 10))
        .call("proxy_http_call", &call("nowhere", headers.clone(), 10))
        .call("proxy_http_call", &call("callout", list(&[(":path", "/")]), 10))
        .call("proxy_http_call", &call("callout", headers, u32::MAX))
        .call_in(answer, "env", "proxy_get_header_map_value", &[Int(6), text(":Status"), Out])
        .call_in(answer, "env", "proxy_get_header_map_value", &[Int(7), text("t"), Out])
        .call_in(answer, "env", "proxy_get_header_map_size", &[Int(6), Number])
        .call_in(answer, "env", "proxy_add_header_map_value", &[Int(6), text("a"), text("b")])
        .call_in(answer, "env", "proxy_get_buffer_bytes", &[Int(4), Int(0), Int(9), Out])
        .call_in(answer, "env", "proxy_get_status", &[Number, Out])
        .start();
    let (_, action) = guest.request();
    action.unwrap();
    let (none, four) = (number(0), number(4));
    assert_eq!(guest.lines(), ["0", &four, "2", &none, "2", &none, "2", &none]);
    let calls = std::mem::take(&mut guest.wishes.borrow_mut().calls);
    assert_eq!(calls.len(), 1);
    assert_eq!((calls[0].headers.len(), &calls[0].body[..]), (3, &b"body"[..]));
    assert_eq!(calls[0].timeout, std::time::Duration::from_millis(10));
    let response = HttpCallResponse {
        headers: vec![(b":status".to_vec(), b"200".to_vec())],
        body: b"answer".to_vec(),
        trailers: vec![(b"t".to_vec(), b"u".to_vec())],
    };
    let token = calls[0].token;
    guest.instance.on_http_call_response(token, response.clone()).unwrap();
    let expected =
        ["0", "200", "0", "u", "0", &number(10), "2", "0", "answer", "0", "", &number(0)];
    assert_eq!(guest.lines(), expected);
    guest.instance.on_http_call_response(token, response).unwrap();
    assert!(guest.lines().is_empty(), "a call is answered once");
}

#[test]
fn grpc_calls() {
    let mut guest = grpc_script().start();
    let (_, action) = guest.request();
    action.unwrap();
    let (unary, stream) = (1 << 2 | 1, 3 << 2 | 2);
    let expected = [
        "0",
        &number(unary),
        "4",
        &number(0),
        "0",
        &number(stream),
        "0",
        "1",
        "2",
        "0",
        "1",
        "1",
        "2",
        "0",
    ];
    assert_eq!(guest.lines(), expected);
    let grpc = std::mem::take(&mut guest.wishes.borrow_mut().grpc);
    let told: Vec<_> = grpc.iter().map(|(token, what)| (token.number(), &what[..])).collect();
    let expected = [
        (unary as u32, "call s/m [\"k\"] hi 7ms"),
        (stream as u32, "stream s/m [\"k\"]  0ns"),
        (stream as u32, "send one true"),
        (stream as u32, "end false"),
        (unary as u32, "end true"),
    ];
    assert_eq!(told, expected);
    grpc_answers(&mut guest, grpc[1].0);
}

fn grpc_script() -> Script {
    let names = |upstream: &str| [text(upstream), text("s"), text("m"), list(&[("k", "v")])];
    let unary = |upstream| [&names(upstream)[..], &[text("hi"), Int(7), Number]].concat();
    let (unary_token, stream_token) = (1 << 2 | 1, 3 << 2 | 2);
    let script = Script::new()
        .call("proxy_grpc_call", &unary("grpc"))
        .call("proxy_grpc_call", &unary("nowhere"))
        .call("proxy_grpc_stream", &[&names("grpc")[..], &[Number]].concat())
        .call("proxy_grpc_send", &[Int(stream_token), text("one"), Int(1)])
        .call("proxy_grpc_send", &[Int(99 << 2 | 2), text("one"), Int(1)])
        .call("proxy_grpc_send", &[Int(unary_token), text("one"), Int(1)])
        .call("proxy_grpc_close", &[Int(stream_token)])
        .call("proxy_grpc_close", &[Int(99 << 2 | 1)])
        .call("proxy_grpc_cancel", &[Int(99 << 2 | 2)])
        .call("proxy_grpc_cancel", &[Int(4)])
        .call("proxy_grpc_cancel", &[Int(unary_token)]);
    let value = |map: u32| [Int(map), text("m"), Out];
    script
        .call_in(
            "proxy_on_grpc_receive_initial_metadata",
            "env",
            "proxy_get_header_map_value",
            &value(4),
        )
        .call_in(
            "proxy_on_grpc_receive_trailing_metadata",
            "env",
            "proxy_get_header_map_value",
            &value(5),
        )
        .call_in(
            "proxy_on_grpc_receive",
            "env",
            "proxy_get_buffer_bytes",
            &[Int(5), Int(0), Int(9), Out],
        )
        .call_in("proxy_on_grpc_close", "env", "proxy_get_status", &[Number, Out])
}

fn grpc_answers(guest: &mut Guest, token: CallToken) {
    let metadata = || vec![(b"m".to_vec(), b"value".to_vec())];
    guest.instance.on_grpc_initial_metadata(token, metadata()).unwrap();
    guest.instance.on_grpc_message(token, b"reply".to_vec()).unwrap();
    guest.instance.on_grpc_trailing_metadata(token, metadata()).unwrap();
    guest.instance.on_grpc_close(token, 5, b"not found".to_vec()).unwrap();
    let expected = ["0", "value", "0", "reply", "0", "value", "0", "not found", &number(5)];
    assert_eq!(guest.lines(), expected);
    guest.instance.on_grpc_message(token, b"late".to_vec()).unwrap();
    assert!(guest.lines().is_empty(), "nothing is told after the end");
}

#[test]
fn calls_are_bounded() {
    let mut settings = PluginSettings::default();
    settings.limits.calls = 1;
    let headers = list(&[(":method", "GET"), (":path", "/"), (":authority", "a")]);
    let call = [text("callout"), headers, text(""), list(&[]), Int(1), Int(40)];
    let script = Script::new().call("proxy_http_call", &call).call("proxy_http_call", &call);
    let seen = script.start_with(settings).unwrap().request_log();
    assert_eq!(seen, [status(0), status(10)]);
}
