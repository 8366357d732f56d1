//! What is open in which phase, and what pausing and continuing do.

use leno_wasm_host::{Action, ClosedBy, Status, StreamType};

use crate::embedder::KitStream;
use crate::script::{Guest, Int, Number, Out, Script, list, number, status, text};

const HEADERS: &str = "proxy_on_request_headers";

fn header_count(stream: &KitStream) -> usize {
    stream.maps[0].as_ref().map_or(0, Vec::len)
}

#[test]
fn actions_of_headers_and_bodies() {
    let returns = |callback: &str, value: u32| {
        Script::new().raw(callback, &format!("(return (i32.const {value}))")).start()
    };
    for (value, expected) in [
        (0, Action::Continue),
        (1, Action::Pause),
        (2, Action::Continue),
        (3, Action::Pause),
        (99, Action::Pause),
    ] {
        assert_eq!(returns(HEADERS, value).request().1, Ok(expected), "{value}");
    }
    for (value, expected) in [
        (0, Action::Continue),
        (1, Action::Pause),
        (2, Action::PauseWithoutView),
        (3, Action::Discard),
        (4, Action::Discard),
    ] {
        let mut guest = returns("proxy_on_request_body", value);
        let (context, _) = guest.request();
        assert_eq!(guest.instance.on_request_body(context, 0, true), Ok(expected), "{value}");
    }
}

#[test]
fn a_paused_stream_can_be_changed_and_continued_by_the_timer() {
    let tick = "proxy_on_tick";
    let add = [Int(0), text("x-late"), text("1")];
    let mut guest = Script::new()
        .raw(HEADERS, "(return (i32.const 1))")
        .call_in(tick, "env", "proxy_set_effective_context", &[Int(77)])
        .call_in(tick, "env", "proxy_set_effective_context", &[Int(2)])
        .call_in(tick, "env", "proxy_add_header_map_value", &add)
        .call_in(tick, "env", "proxy_continue_stream", &[Int(0)])
        .call_in(tick, "env", "proxy_add_header_map_value", &add)
        .call_in(tick, "env", "proxy_continue_stream", &[Int(0)])
        .start();
    let (context, action) = guest.request();
    assert_eq!(action, Ok(Action::Pause));
    guest.instance.on_tick().unwrap();
    assert_eq!(guest.lines(), ["2", "0", "0", "0", "2", "0"]);
    let stream = guest.instance.stream_mut(context).unwrap();
    assert!(std::mem::take(&mut stream.continued[StreamType::Request as usize]));
    assert_eq!(header_count(stream), 4);
    // Nothing is paused any more: continuing does nothing.
    guest.instance.on_tick().unwrap();
    assert!(!guest.instance.stream(context).unwrap().continued[0]);
}

#[test]
fn continuing_in_the_callback_wins() {
    let mut guest = Script::new()
        .call("proxy_continue_stream", &[Int(0)])
        .raw(HEADERS, "(return (i32.const 1))")
        .start();
    let (context, action) = guest.request();
    assert_eq!(action, Ok(Action::Continue));
    assert!(!guest.instance.stream(context).unwrap().continued[0], "it is told once");
}

#[test]
fn an_answer_ends_what_was_paused_and_can_be_paused_itself() {
    let answer = [Int(200), text(""), text(""), list(&[]), Int(u32::MAX)];
    let tick = "proxy_on_tick";
    let mut guest = Script::new()
        .call("proxy_send_local_response", &answer)
        .raw(HEADERS, "(return (i32.const 1))")
        .raw("proxy_on_response_headers", "(return (i32.const 1))")
        .call_in(tick, "env", "proxy_set_effective_context", &[Int(2)])
        .call_in(tick, "env", "proxy_continue_stream", &[Int(0)])
        .call_in(tick, "env", "proxy_continue_stream", &[Int(1)])
        .start();
    let (context, action) = guest.request();
    assert_eq!(action, Ok(Action::Pause));
    guest.instance.on_tick().unwrap();
    assert_eq!(guest.instance.stream(context).unwrap().continued, [false; 4]);
    guest.instance.stream_mut(context).unwrap().maps[2] = Some(Vec::new());
    assert_eq!(guest.instance.on_response_headers(context, 0, true), Ok(Action::Pause));
    guest.instance.on_tick().unwrap();
    let continued = guest.instance.stream(context).unwrap().continued;
    assert_eq!(continued, [false, true, false, false]);
}

#[test]
fn directions_that_cannot_be_continued() {
    let seen = Script::new()
        .call("proxy_continue_stream", &[Int(1)])
        .call("proxy_continue_stream", &[Int(3)])
        .call("proxy_continue_stream", &[Int(4)])
        .call("proxy_continue_request", &[])
        .call("proxy_continue_response", &[])
        .log();
    assert_eq!(seen, [status(0), status(12), status(2), status(0), status(0)]);
}

#[test]
fn maps_close_when_headers_have_passed() {
    let get = [Int(0), text("x-a"), Out];
    let mut guest = Script::new()
        .call_in("proxy_on_request_body", "env", "proxy_get_header_map_value", &get)
        .call_in("proxy_on_response_headers", "env", "proxy_get_header_map_value", &get)
        .call_in("proxy_on_log", "env", "proxy_get_header_map_value", &get)
        .call_in("proxy_on_log", "env", "proxy_get_header_map_size", &[Int(0), Int(40)])
        .call_in("proxy_on_log", "env", "proxy_remove_header_map_value", &[Int(0), text("x-a")])
        .call_in("proxy_on_done", "env", "proxy_get_header_map_value", &get)
        .start();
    let (context, action) = guest.request();
    action.unwrap();
    guest.instance.on_request_body(context, 0, false).unwrap();
    guest.instance.on_response_headers(context, 0, true).unwrap();
    let (stream, told) = guest.instance.finish(context);
    told.unwrap();
    assert_eq!(guest.lines(), ["2", "2", "0", "1", "2", "2", "2"]);
    assert_eq!(header_count(&stream.unwrap()), 3);
    assert_eq!(guest.instance.contexts(), 0);
}

#[test]
fn trailers_can_be_added_at_the_end_of_a_body() {
    let add = [Int(1), text("t"), text("u")];
    let mut guest = Script::new()
        .call_in("proxy_on_request_body", "env", "proxy_add_header_map_value", &add)
        .call_in(
            "proxy_on_request_trailers",
            "env",
            "proxy_get_header_map_value",
            &[Int(1), text("t"), Out],
        )
        .start();
    let (context, action) = guest.request();
    action.unwrap();
    guest.instance.on_request_body(context, 0, false).unwrap();
    guest.instance.on_request_body(context, 0, true).unwrap();
    guest.instance.on_request_trailers(context, 1).unwrap();
    assert_eq!(guest.lines(), ["2", "0", "0", "u"]);
}

#[test]
fn nothing_can_be_done_after_the_end() {
    let answer = [Int(200), text(""), text(""), list(&[]), Int(u32::MAX)];
    let mut script = Script::new();
    for callback in ["proxy_on_log", "proxy_on_done", "proxy_on_delete"] {
        script = script
            .call_in(callback, "env", "proxy_send_local_response", &answer)
            .call_in(callback, "env", "proxy_close_stream", &[Int(0)])
            .call_in(callback, "env", "proxy_continue_stream", &[Int(0)]);
    }
    let mut guest = script.start();
    let (context, action) = guest.request();
    action.unwrap();
    let (stream, told) = guest.instance.finish(context);
    told.unwrap();
    let stream = stream.unwrap();
    assert!(stream.local.is_none() && stream.closed.is_none() && !stream.continued[0]);
    let zeros = guest.lines().iter().filter(|line| *line == "0").count();
    assert_eq!(zeros, 9, "plugins do not expect an error there");
}

#[test]
fn done_has_something_to_say_only_at_the_root() {
    let mut guest = Script::new()
        .call("proxy_done", &[])
        .call_in("proxy_on_tick", "env", "proxy_done", &[])
        .raw("proxy_on_done", "(return (i32.const 0))")
        .start();
    guest.request().1.unwrap();
    assert_eq!(guest.lines(), ["1"]);
    assert_eq!(guest.instance.shut_down(), Ok(false));
    assert!(guest.instance.waits_for_done());
    guest.instance.on_tick().unwrap();
    assert_eq!(guest.lines(), ["0"]);
    assert!(!guest.instance.waits_for_done());
    guest.instance.delete_root().unwrap();
}

#[test]
fn connections() {
    let mut guest = Script::new()
        .call_in("proxy_on_new_connection", "env", "proxy_close_stream", &[Int(2)])
        .call_in(
            "proxy_on_downstream_data",
            "env",
            "proxy_get_buffer_bytes",
            &[Int(2), Int(0), Int(9), Out],
        )
        .call_in(
            "proxy_on_upstream_data",
            "env",
            "proxy_set_buffer_bytes",
            &[Int(3), Int(0), Int(0), text(">")],
        )
        .raw("proxy_on_downstream_connection_close", "(call $log (i32.const 32) (local.get 1))")
        .raw("proxy_on_upstream_connection_close", "(call $log (i32.const 32) (i32.const 0))")
        .call_in("proxy_on_log", "env", "proxy_get_header_map_value", &[Int(0), text(":path"), Out])
        .start();
    let (context, created) = guest.instance.create_context(Guest::stream());
    created.unwrap();
    guest.instance.on_new_connection(context).unwrap();
    guest.instance.stream_mut(context).unwrap().buffers[2] = b"down".to_vec();
    guest.instance.stream_mut(context).unwrap().buffers[3] = b"up".to_vec();
    guest.instance.on_downstream_data(context, 4, false).unwrap();
    guest.instance.on_upstream_data(context, 2, true).unwrap();
    guest.instance.on_downstream_close(context, ClosedBy::Local).unwrap();
    guest.instance.on_upstream_close(context, ClosedBy::Remote).unwrap();
    let (stream, told) = guest.instance.finish_connection(context);
    told.unwrap();
    assert_eq!(stream.unwrap().buffers[3], b">up");
    assert_eq!(guest.lines(), ["0", "0", "down", "0", "0", "", "2"]);
}

/// Every function with pointers answers 6 to those that are outside of the memory, and stays alive.
#[test]
fn wild_pointers() {
    let wild = || [Int(u32::MAX - 2), Int(9)];
    let good = |bytes: &str| text(bytes);
    let calls: Vec<(&str, Vec<crate::script::Arg>)> = vec![
        ("proxy_log", [&[Int(2)][..], &wild()].concat()),
        ("proxy_get_buffer_bytes", [&[Int(0), Int(0), Int(9)][..], &wild()].concat()),
        ("proxy_get_buffer_status", [&[Int(0)][..], &wild()].concat()),
        ("proxy_get_header_map_size", vec![Int(0), Int(u32::MAX)]),
        ("proxy_get_header_map_pairs", [&[Int(0)][..], &wild()].concat()),
        ("proxy_set_header_map_pairs", [&[Int(0)][..], &wild()].concat()),
        ("proxy_get_header_map_value", [&[Int(0)][..], &wild(), &[Out]].concat()),
        ("proxy_get_header_map_value", [&[Int(0), good("x-a")][..], &wild()].concat()),
        ("proxy_add_header_map_value", [&[Int(0)][..], &wild(), &wild()].concat()),
        ("proxy_replace_header_map_value", [&[Int(0), good("a")][..], &wild()].concat()),
        ("proxy_remove_header_map_value", [&[Int(0)][..], &wild()].concat()),
        ("proxy_get_property", [&wild()[..], &[Out]].concat()),
        ("proxy_get_property", [&[good("plugin_name")][..], &wild()].concat()),
        ("proxy_set_property", [&[good("a")][..], &wild()].concat()),
        ("proxy_get_status", vec![Int(u32::MAX), Out]),
        ("proxy_get_current_time_nanoseconds", vec![Int(u32::MAX)]),
        ("proxy_get_log_level", vec![Int(u32::MAX)]),
        ("proxy_set_shared_data", [&wild()[..], &wild(), &[Int(0)]].concat()),
        ("proxy_get_shared_data", [&wild()[..], &[Out, Number]].concat()),
        ("proxy_register_shared_queue", vec![good("q"), Int(u32::MAX)]),
        ("proxy_resolve_shared_queue", [&wild()[..], &[good("q"), Number]].concat()),
        ("proxy_define_metric", vec![Int(0), good("m"), Int(u32::MAX)]),
        ("proxy_call_foreign_function", [&wild()[..], &[good("a"), Out]].concat()),
        ("proxy_call_foreign_function", [&[good("echo"), good("a")][..], &wild()].concat()),
        (
            "proxy_send_local_response",
            [&[Int(200)][..], &wild(), &wild(), &wild(), &[Int(0)]].concat(),
        ),
        ("proxy_grpc_send", [&[Int(6)][..], &wild(), &[Int(0)]].concat()),
    ];
    for (function, arguments) in calls {
        let seen = Script::new().call(function, &arguments).log();
        assert_eq!(seen.first(), Some(&status(Status::InvalidMemoryAccess as u8)), "{function}");
    }
}

#[test]
fn a_wild_pointer_takes_nothing_out_of_a_queue() {
    let seen = Script::new()
        .call("proxy_register_shared_queue", &[text("q"), Number])
        .call("proxy_enqueue_shared_queue", &[Int(1), text("item")])
        .call("proxy_dequeue_shared_queue", &[Int(1), Int(u32::MAX), Int(u32::MAX)])
        .call("proxy_dequeue_shared_queue", &[Int(1), Out])
        .log();
    assert_eq!(seen, ["0", &number(1), "0", "6", "0", "item"]);
}
