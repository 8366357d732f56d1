//! The callbacks for a response that came whole, called in one go, are what they would be one by one.

use std::time::Duration;

use leno_wasm_host::{Action, ContextId, FaultKind, PluginSettings, Responded};

use crate::script::{Arg, Guest, Int, Out, Script, status, text};

const HEADERS: &str = "proxy_on_response_headers";
const BODY: &str = "proxy_on_response_body";
const SEEN: &[u8] = b"hello";

fn both() -> Script {
    Script::new().raw(HEADERS, "").raw(BODY, "")
}

/// A stream to which a response came.
fn begun(guest: &mut Guest) -> ContextId {
    let mut stream = Guest::stream();
    stream.maps[2] = Some(vec![(b"x-a".to_vec(), b"1".to_vec())]);
    stream.buffers[1] = SEEN.to_vec();
    let (context, created) = guest.instance.create_context(stream);
    created.unwrap();
    context
}

fn respond(guest: &mut Guest) -> Result<Responded, leno_wasm_host::Fault> {
    let context = begun(guest);
    guest.instance.on_response(context, 1, 5)
}

#[test]
fn host_functions_find_what_they_would_find_one_by_one() {
    let mut script = both();
    for callback in [HEADERS, BODY] {
        script = script
            .call_in(callback, "env", "proxy_get_header_map_value", &[Int(2), text("x-a"), Out])
            .call_in(callback, "env", "proxy_get_buffer_bytes", &[Int(1), Int(0), Int(5), Out])
            .call_in(callback, "env", "proxy_add_header_map_value", &[Int(3), text("b"), text("2")])
            .call_in(callback, "env", "proxy_set_effective_context", &[Int(1)])
            .call_in(
                callback,
                "env",
                "proxy_add_header_map_value",
                &[Int(3), text("b"), text("2")],
            );
    }
    let mut together = script.start();
    assert_eq!(respond(&mut together), Ok(Responded::Body(Action::Continue)));
    let mut apart = script.start();
    let context = begun(&mut apart);
    assert_eq!(apart.instance.on_response_headers(context, 1, false), Ok(Action::Continue));
    assert_eq!(apart.instance.on_response_body(context, 5, true), Ok(Action::Continue));
    let found = together.lines();
    assert_eq!(found, apart.lines());
    // Headers: they, and no body. Body: that, trailers, and no headers.
    let (ok, bad) = (status(0), status(2));
    let of_headers = [ok.clone(), "1".into(), ok.clone(), String::new(), bad.clone(), ok.clone()];
    let of_body = [bad.clone(), ok.clone(), "hello".into(), ok.clone(), ok, bad.clone()];
    assert_eq!(found[..6], of_headers);
    assert_eq!(found[7..], of_body);
}

#[test]
fn after_headers_that_do_not_simply_go_on_the_embedder_decides() {
    for (returned, action) in [(1, Action::Pause), (2, Action::Continue), (7, Action::Pause)] {
        let script = both().raw(HEADERS, &format!("(return (i32.const {returned}))"));
        let mut guest = script.raw(BODY, "(unreachable)").start();
        assert_eq!(respond(&mut guest), Ok(Responded::Headers(action)), "{returned}");
    }
}

#[test]
fn what_was_done_to_the_stream_is_looked_at_before_the_body_is_shown() {
    let none = || text("");
    let answer: &[Arg] = &[Int(403), none(), none(), none(), Int(u32::MAX)];
    for (function, arguments) in
        [("proxy_send_local_response", answer), ("proxy_close_stream", &[Int(1)])]
    {
        let script = both().raw(BODY, "(unreachable)");
        let mut guest = script.call_in(HEADERS, "env", function, arguments).start();
        assert_eq!(respond(&mut guest), Ok(Responded::Headers(Action::Continue)), "{function}");
        // Nothing of it is left for the next stream.
        let mut guest = both().call_in(BODY, "env", function, arguments).start();
        for _ in 0..2 {
            assert_eq!(respond(&mut guest), Ok(Responded::Body(Action::Continue)), "{function}");
        }
    }
}

#[test]
fn a_body_can_be_held_after_headers_that_went_on() {
    let mut guest = both().raw(BODY, "(return (i32.const 1))").start();
    assert_eq!(respond(&mut guest), Ok(Responded::Body(Action::Pause)));
    // It went on within the callback.
    let script = both().call_in(BODY, "env", "proxy_continue_stream", &[Int(1)]);
    let mut guest = script.raw(BODY, "(return (i32.const 1))").start();
    assert_eq!(respond(&mut guest), Ok(Responded::Body(Action::Continue)));
}

#[test]
fn a_fault_names_the_callback_that_broke() {
    for broken in [HEADERS, BODY] {
        let mut guest = both().raw(broken, "(unreachable)").start();
        let fault = respond(&mut guest).unwrap_err();
        assert_eq!((fault.kind, fault.callback), (FaultKind::Trap, broken), "{fault}");
        assert_eq!(fault.backtrace.len(), 1, "functions of the guest only: {:?}", fault.backtrace);
        let context = ContextId::ROOT;
        let again = guest.instance.on_response(context, 1, 5).unwrap_err();
        assert_eq!(again.kind, FaultKind::Poisoned);
        let mut settings = PluginSettings::default();
        settings.limits.deadline = Duration::from_millis(5);
        let endless = both().raw(broken, "(loop $again (br $again))");
        let fault = respond(&mut endless.start_with(settings).unwrap()).unwrap_err();
        assert_eq!((fault.kind, fault.callback), (FaultKind::Deadline, broken));
    }
}

#[test]
fn where_a_callback_is_missing_the_body_is_left_to_be_shown() {
    for missing in [HEADERS, BODY] {
        let there = if missing == HEADERS { BODY } else { HEADERS };
        let mut guest = Script::new().raw(there, "").start();
        assert_eq!(respond(&mut guest), Ok(Responded::Headers(Action::Continue)));
    }
}
