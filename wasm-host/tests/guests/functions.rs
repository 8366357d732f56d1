//! Every function of `env.`: what it answers and what it does.

use leno_wasm_host::{PluginSettings, Shared, StreamType};

use crate::{
    embedder::text as lossy,
    script::{Guest, Int, Long, Number, Out, Script, list, number, status, text},
};

fn lines<const N: usize>(lines: [&str; N]) -> Vec<String> {
    lines.map(str::to_owned).to_vec()
}

#[test]
fn log_and_level() {
    let seen = Script::new()
        .call("proxy_log", &[Int(4), text("hello")])
        .call("proxy_log", &[Int(6), text("no such level")])
        .call("proxy_log", &[Int(2), Int(u32::MAX), Int(9)])
        .call("proxy_get_log_level", &[Number])
        .call("proxy_get_log_level", &[Int(u32::MAX)])
        .log();
    assert_eq!(seen, ["hello", "0", "2", "6", "0", &number(0), "6"]);
}

#[test]
fn a_line_is_cut_to_its_limit() {
    let mut settings = PluginSettings::default();
    settings.limits.log_line_bytes = 4;
    let script = Script::new().call("proxy_log", &[Int(2), text("123456")]);
    let seen = script.start_with(settings).unwrap().request_log();
    assert_eq!(seen, ["1234", "0"]);
}

#[test]
fn what_a_guest_writes_is_bounded() {
    let mut settings = PluginSettings::default();
    settings.limits.header_bytes = 10;
    settings.limits.buffer_bytes = 4;
    let answer = |body| [Int(403), text("why"), text(body), list(&[]), Int(u32::MAX)];
    let script = Script::new()
        .call("proxy_add_header_map_value", &[Int(0), text("name"), text("1")])
        .call("proxy_replace_header_map_value", &[Int(0), text("name"), text("2")])
        .call("proxy_add_header_map_value", &[Int(0), text("n"), text("")])
        .call("proxy_set_header_map_pairs", &[Int(0), list(&[("n", "v")])])
        .call("proxy_send_local_response", &answer("12345"))
        .call("proxy_send_local_response", &answer("1234"));
    let seen = script.start_with(settings).unwrap().request_log();
    assert_eq!(seen, [0, 0, 10, 10, 10, 0].map(status));
}

#[test]
fn time_and_timer() {
    let mut guest = Script::new()
        .call("proxy_get_current_time_nanoseconds", &[Number])
        .call("proxy_set_tick_period_milliseconds", &[Int(20)])
        .start();
    guest.request().1.unwrap();
    let seen = guest.lines();
    assert_eq!((&seen[0][..], &seen[2][..]), ("0", "0"));
    assert_ne!(seen[1], number(0));
    let period = guest.wishes.borrow_mut().tick.take();
    assert_eq!(period, Some(Some(std::time::Duration::from_millis(20))));
}

#[test]
fn the_timer_can_be_stopped() {
    let mut guest = Script::new().call("proxy_set_tick_period_milliseconds", &[Int(0)]).start();
    guest.request().1.unwrap();
    assert_eq!(guest.wishes.borrow_mut().tick.take(), Some(None));
}

#[test]
fn header_values() {
    let seen = Script::new()
        .call("proxy_get_header_map_value", &[Int(0), text("X-A"), Out])
        .call("proxy_get_header_map_value", &[Int(0), text("Host"), Out])
        .call("proxy_get_header_map_value", &[Int(0), text("none"), Out])
        .call("proxy_get_header_map_value", &[Int(2), text("x-a"), Out])
        .call("proxy_get_header_map_value", &[Int(8), text("x-a"), Out])
        .call("proxy_get_header_map_size", &[Int(0), Number])
        .call("proxy_get_header_map_size", &[Int(6), Number])
        .log();
    let size = ":path/p:authorityherex-a1".len() as u64;
    let expected = ["0", "1", "0", "here", "1", "2", "2", "0", &number(size), "2", &number(0)];
    assert_eq!(seen, expected);
}

#[test]
fn in_0_1_0_an_absent_value_is_empty() {
    let seen = Script::new()
        .abi("proxy_abi_version_0_1_0")
        .call("proxy_get_header_map_value", &[Int(0), text("none"), Out])
        .log();
    assert_eq!(seen, ["0", ""]);
}

#[test]
fn header_changes() {
    let mut guest = Script::new()
        .call("proxy_add_header_map_value", &[Int(0), text("X-B"), text("2")])
        .call("proxy_replace_header_map_value", &[Int(0), text("host"), text("there")])
        .call("proxy_remove_header_map_value", &[Int(0), text("X-A")])
        .call("proxy_remove_header_map_value", &[Int(0), text("none")])
        .call("proxy_add_header_map_value", &[Int(2), text("x"), text("y")])
        .call("proxy_get_header_map_pairs", &[Int(0), Out])
        .call("proxy_get_header_map_pairs", &[Int(3), Out])
        .call("proxy_get_header_map_pairs", &[Int(9), Out])
        .start();
    let (context, action) = guest.request();
    action.unwrap();
    let headers = [(":path", "/p"), (":authority", "there"), ("x-b", "2")];
    let bytes = leno_wasm_host::pairs::encode(
        headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())),
    );
    assert_eq!(guest.lines(), ["0", "0", "0", "0", "2", "0", &lossy(&bytes), "0", "", "2"]);
    let stream = guest.instance.stream(context).unwrap();
    assert_eq!(stream.maps[0].as_ref().unwrap().len(), 3);
}

#[test]
fn all_headers_at_once() {
    let mut guest = Script::new()
        .call("proxy_set_header_map_pairs", &[Int(0), text("no list at all")])
        .call("proxy_set_header_map_pairs", &[Int(2), list(&[("a", "b")])])
        .call("proxy_set_header_map_pairs", &[Int(0), list(&[(":path", "/new")])])
        .start();
    let (context, action) = guest.request();
    action.unwrap();
    assert_eq!(guest.lines(), ["2", "2", "0"]);
    let headers = guest.instance.stream(context).unwrap().maps[0].clone().unwrap();
    assert_eq!(headers, [(b":path".to_vec(), b"/new".to_vec())]);
}

#[test]
fn buffers() {
    let body = "proxy_on_request_body";
    let mut guest = Script::new()
        .call_in(body, "env", "proxy_get_buffer_bytes", &[Int(0), Int(1), Int(3), Out])
        .call_in(body, "env", "proxy_get_buffer_bytes", &[Int(0), Int(9), Int(3), Out])
        .call_in(body, "env", "proxy_get_buffer_bytes", &[Int(0), Int(1), Int(u32::MAX), Out])
        .call_in(body, "env", "proxy_get_buffer_bytes", &[Int(1), Int(0), Int(3), Out])
        .call_in(body, "env", "proxy_get_buffer_bytes", &[Int(4), Int(0), Int(3), Out])
        .call_in(body, "env", "proxy_get_buffer_bytes", &[Int(9), Int(0), Int(3), Out])
        .call_in(body, "env", "proxy_get_buffer_status", &[Int(0), Number, Int(40)])
        .call_in(body, "env", "proxy_set_buffer_bytes", &[Int(0), Int(0), Int(2), text("HE")])
        .call_in(body, "env", "proxy_set_buffer_bytes", &[Int(0), Int(5), Int(0), text("!")])
        .call_in(body, "env", "proxy_set_buffer_bytes", &[Int(0), Int(2), Int(1), text("?")])
        .call_in(body, "env", "proxy_set_buffer_bytes", &[Int(1), Int(0), Int(0), text("?")])
        .call_in(body, "env", "proxy_set_buffer_bytes", &[Int(6), Int(0), Int(0), text("?")])
        .start();
    let (context, action) = guest.request();
    action.unwrap();
    guest.instance.stream_mut(context).unwrap().buffers[0] = b"hello".to_vec();
    guest.instance.on_request_body(context, 5, false).unwrap();
    let expected =
        ["0", "ell", "0", "", "2", "0", "", "1", "2", "0", &number(5), "0", "0", "2", "2", "2"];
    assert_eq!(guest.lines(), expected);
    assert_eq!(guest.instance.stream(context).unwrap().buffers[0], b"HEllo!");
}

#[test]
fn configurations() {
    let settings = PluginSettings {
        configuration: b"plugin's".to_vec(),
        vm_configuration: b"machine's".to_vec(),
        ..PluginSettings::default()
    };
    let bytes = |buffer| [Int(buffer), Int(0), Int(99), Out];
    let (start, configure) = ("proxy_on_vm_start", "proxy_on_configure");
    let guest = Script::new()
        .call_in(start, "env", "proxy_get_buffer_bytes", &bytes(6))
        .call_in(start, "env", "proxy_get_buffer_bytes", &bytes(7))
        .call_in(start, "env", "proxy_get_configuration", &[Out])
        .call_in(configure, "env", "proxy_get_buffer_bytes", &bytes(7))
        .call_in(configure, "env", "proxy_get_configuration", &[Out])
        .start_with(settings)
        .unwrap();
    let expected = ["0", "machine's", "1", "0", "machine's", "0", "plugin's", "0", "plugin's"];
    assert_eq!(guest.lines(), expected);
}

#[test]
fn local_responses() {
    let headers = list(&[("x", "y")]);
    let send =
        |code: u32, grpc: u32| [Int(code), text("why"), text("body"), headers.clone(), Int(grpc)];
    let mut guest = Script::new()
        .call("proxy_send_local_response", &send(418, u32::MAX))
        .call("proxy_send_local_response", &send(419, 7))
        .start();
    let (context, action) = guest.request();
    action.unwrap();
    assert_eq!(guest.lines(), ["0", "0"]);
    let local = guest.instance.stream_mut(context).unwrap().local.take().unwrap();
    assert_eq!((local.status, &local.body[..], local.grpc_status), (418, &b"body"[..], None));
    assert_eq!(local.headers, [(b"x".to_vec(), b"y".to_vec())]);
}

#[test]
fn streams_are_closed() {
    let mut guest = Script::new()
        .call("proxy_close_stream", &[Int(4)])
        .call("proxy_close_stream", &[Int(1)])
        .start();
    let (context, action) = guest.request();
    action.unwrap();
    assert_eq!(guest.lines(), ["2", "0"]);
    let closed = guest.instance.stream(context).unwrap().closed;
    assert_eq!(closed, Some(StreamType::Response));
}

#[test]
fn shared_data() {
    let seen = Script::new()
        .call("proxy_get_shared_data", &[text("k"), Out, Number])
        .call("proxy_set_shared_data", &[text("k"), text("one"), Int(0)])
        .call("proxy_get_shared_data", &[text("k"), Out, Number])
        .call("proxy_set_shared_data", &[text("k"), text("two"), Int(9)])
        .call("proxy_set_shared_data", &[text("k"), text("two"), Int(1)])
        .log();
    let (none, one) = (number(0), number(1));
    assert_eq!(seen, ["1", &none, "0", "0", "one", &one, "8", "0"]);
}

#[test]
fn shared_data_is_deleted_and_expires() {
    let later = [&600_000_u64.to_le_bytes()[..], b"k"].concat();
    let now = [&0_u64.to_le_bytes()[..], b"k"].concat();
    let foreign = |name: &str, arguments: &[u8]| {
        [text(name), crate::script::Arg::Bytes(arguments.to_vec()), Out]
    };
    let (expire, delete) = ("leno_shared_data_expire", "leno_shared_data_delete");
    let seen = Script::new()
        .call("proxy_set_shared_data", &[text("k"), text("one"), Int(0)])
        .call("proxy_call_foreign_function", &foreign(expire, &later))
        .call("proxy_get_shared_data", &[text("k"), Out, Int(40)])
        .call("proxy_call_foreign_function", &foreign(expire, &now))
        .call("proxy_get_shared_data", &[text("k"), Out, Int(40)])
        .call("proxy_call_foreign_function", &foreign(expire, b"short"))
        .call("proxy_set_shared_data", &[text("k"), text("two"), Int(0)])
        .call("proxy_call_foreign_function", &foreign(delete, b"k"))
        .call("proxy_call_foreign_function", &foreign(delete, b"k"))
        .log();
    assert_eq!(seen, ["0", "0", "", "0", "one", "0", "", "1", "2", "0", "0", "", "1"]);
}

#[test]
fn shared_queues_across_plugins() {
    let shared = Shared::default();
    let settings = |vm_id: &str| PluginSettings {
        vm_id: vm_id.to_owned(),
        shared: shared.clone(),
        ..PluginSettings::default()
    };
    let mut consumer = Script::new()
        .call_in("proxy_on_configure", "env", "proxy_register_shared_queue", &[text("q"), Number])
        .call_in("proxy_on_queue_ready", "env", "proxy_dequeue_shared_queue", &[Int(1), Out])
        .start_with(settings("consumer"))
        .unwrap();
    let mut producer = Script::new()
        .call("proxy_resolve_shared_queue", &[text("consumer"), text("q"), Number])
        .call("proxy_resolve_shared_queue", &[text(""), text("q"), Number])
        .call("proxy_enqueue_shared_queue", &[Int(1), text("item")])
        .call("proxy_enqueue_shared_queue", &[Int(7), text("item")])
        .start_with(settings("producer"))
        .unwrap();
    producer.request().1.unwrap();
    let (none, one) = (number(0), number(1));
    assert_eq!(producer.lines(), ["0", &one, "1", &none, "0", "1"]);
    assert_eq!(consumer.lines(), ["0", &one]);
    let ready = std::mem::take(&mut *consumer.queues.0.lock().unwrap());
    assert_eq!(ready, [1]);
    consumer.instance.on_queue_ready(1).unwrap();
    consumer.instance.on_queue_ready(1).unwrap();
    assert_eq!(consumer.lines(), ["0", "item", "7"]);
}

#[test]
fn spaces_are_told_apart_by_vm_id_and_owner() {
    let shared = Shared::default();
    let start = |vm_id: &str, owner: &str, script: Script| {
        let settings = PluginSettings {
            vm_id: vm_id.to_owned(),
            owner: owner.to_owned(),
            shared: shared.clone(),
            ..PluginSettings::default()
        };
        let mut guest = script.start_with(settings).unwrap();
        guest.request().1.unwrap();
        guest.lines()
    };
    let write = |value: &str| {
        Script::new()
            .call("proxy_set_shared_data", &[text("k"), text(value), Int(0)])
            .call("proxy_register_shared_queue", &[text("q"), Number])
    };
    // All register a queue of the same name, and write the same key.
    let places = [("v", "shop"), ("w", "shop"), ("", "shop"), ("v", "other"), ("", "")];
    for (token, (vm_id, owner)) in (1..).zip(places) {
        let seen = start(vm_id, owner, write(&format!("{vm_id} of {owner}")));
        assert_eq!(seen, ["0", "0", &number(token)], "{vm_id} of {owner}");
    }
    // Another module in the same space has what the first one has there.
    let look = || {
        Script::new()
            .call("proxy_get_shared_data", &[text("k"), Out, Int(40)])
            .call("proxy_resolve_shared_queue", &[text(""), text("q"), Number])
            .call("proxy_resolve_shared_queue", &[text("v"), text("q"), Number])
            .call("proxy_resolve_shared_queue", &[text("shop/v"), text("q"), Number])
    };
    for (token, (vm_id, owner)) in (1..).zip(places) {
        let seen = start(vm_id, owner, look());
        let expected =
            ["0".to_owned(), format!("{vm_id} of {owner}"), "0".to_owned(), number(token)];
        assert_eq!(seen[..4], expected, "{vm_id} of {owner}");
        // Queues of another space are found by its name, those of another owner are not.
        let named = match owner {
            "shop" => ["0".to_owned(), number(1)],
            "other" => ["0".to_owned(), number(4)],
            _ => ["1".to_owned(), number(0)],
        };
        assert_eq!(seen[4..6], named, "{vm_id} of {owner}");
        assert_eq!(seen[6..], ["1".to_owned(), number(0)], "{vm_id} of {owner}");
    }
}

#[test]
fn metrics() {
    let shared = Shared::default();
    let settings = PluginSettings { shared: shared.clone(), ..PluginSettings::default() };
    let mut guest = Script::new()
        .call("proxy_define_metric", &[Int(0), text("requests"), Number])
        .call("proxy_define_metric", &[Int(0), text("requests"), Number])
        .call("proxy_define_metric", &[Int(3), text("requests"), Number])
        .call("proxy_increment_metric", &[Int(4), Long(3)])
        .call("proxy_increment_metric", &[Int(4), Long(-3)])
        .call("proxy_record_metric", &[Int(4), Long(2)])
        .call("proxy_get_metric", &[Int(4), Number])
        .call("proxy_get_metric", &[Int(5), Number])
        .call("proxy_record_metric", &[Int(0xfffc), Long(2)])
        .start_with(settings)
        .unwrap();
    guest.request().1.unwrap();
    let (none, four, five) = (number(0), number(4), number(5));
    let expected = ["0", &four, "0", &four, "2", &none, "0", "2", "0", "0", &five, "1", &none, "1"];
    assert_eq!(guest.lines(), expected);
    assert_eq!(shared.metrics.all()[0].name(), "requests");
}

#[test]
fn metrics_are_bounded() {
    let mut settings = PluginSettings::default();
    settings.limits.metrics = 1;
    let script = Script::new()
        .call("proxy_define_metric", &[Int(0), text("a"), Int(40)])
        .call("proxy_define_metric", &[Int(1), text("b"), Int(40)]);
    let seen = script.start_with(settings.clone()).unwrap().request_log();
    assert_eq!(seen, [status(0), status(10)]);
    // What it defined goes with it, and what is refused was never there.
    assert!(settings.shared.metrics.all().is_empty());
    let define = Script::new().call("proxy_define_metric", &[Int(1), text("c"), Int(40)]);
    let seen = define.start_with(settings).unwrap().request_log();
    assert_eq!(seen, [status(0)]);
}

#[test]
fn properties() {
    let settings = PluginSettings {
        name: "n".to_owned(),
        root_id: "r".to_owned(),
        vm_id: "v".to_owned(),
        ..PluginSettings::default()
    };
    let property = |path: &str| [text(path), Out];
    let mut guest = Script::new()
        .call("proxy_get_property", &property("plugin_name"))
        .call("proxy_get_property", &property("plugin_root_id"))
        .call("proxy_get_property", &property("plugin_vm_id"))
        .call("proxy_get_property", &property("of\0host"))
        .call("proxy_set_property", &[text("mine"), text("value")])
        .call("proxy_get_property", &property("mine"))
        .call_in("proxy_on_tick", "env", "proxy_get_property", &property("of\0host"))
        .call_in("proxy_on_tick", "env", "proxy_set_property", &[text("mine"), text("value")])
        .start_with(settings)
        .unwrap();
    guest.request().1.unwrap();
    let expected = lines(["0", "n", "0", "r", "0", "v", "1", "0", "0", "value"]);
    assert_eq!(guest.lines(), expected);
    guest.instance.on_tick().unwrap();
    assert_eq!(guest.lines(), ["0", "host's", "1"]);
}

/// A caller chooses how many headers there are, and must not make a plugin overrun that asks for all of them.
#[test]
fn a_map_of_many_names_takes_no_time() {
    let mut settings = PluginSettings::default();
    // Comparing each name with each takes seconds.
    settings.limits.deadline = std::time::Duration::from_secs(1);
    let mut guest = Script::new()
        .call("proxy_get_property", &[text("request\0headers"), Out])
        .start_with(settings)
        .unwrap();
    let names = (0..24_000).map(|number| (format!("x{number}").into_bytes(), b"1".to_vec()));
    let stream = crate::embedder::KitStream {
        maps: [Some(names.collect()), None, None, None],
        ..Default::default()
    };
    let (context, created) = guest.instance.create_context(stream);
    created.unwrap();
    guest.instance.on_request_headers(context, 24_000, false).unwrap();
}

#[test]
fn properties_that_follow_from_headers() {
    let property = |path: &str| [text(path), Out];
    let mut guest = Script::new()
        .call("proxy_add_header_map_value", &[Int(0), text("x-a"), text("2")])
        .call("proxy_replace_header_map_value", &[Int(0), text(":path"), text("/p?q=1?2")])
        .call("proxy_get_property", &property("request\0path"))
        .call("proxy_get_property", &property("request\0url_path"))
        .call("proxy_get_property", &property("request\0query"))
        .call("proxy_get_property", &property("request\0host"))
        .call("proxy_get_property", &property("request\0method"))
        .call("proxy_get_property", &property("request\0headers\0X-A"))
        .call("proxy_get_property", &property("request\0headers\0none"))
        .call("proxy_get_property", &property("response\0headers"))
        .call("proxy_get_property", &property("request"))
        .call("proxy_get_property", &property(""))
        .call("proxy_get_property", &property("request\0path\0more"))
        .start();
    guest.request().1.unwrap();
    let expected = [
        "0", "0", "0", "/p?q=1?2", "0", "/p", "0", "q=1?2", "0", "here", "1", "0", "1,2", "1", "0",
        "\0\0\0\0", "3", "3", "1",
    ];
    assert_eq!(guest.lines(), expected);
}

#[test]
fn foreign_functions() {
    let echo = [text("echo"), text("hi"), Out];
    let mut guest = Script::new()
        .call("proxy_call_foreign_function", &echo)
        .call("proxy_call_foreign_function", &[text("none"), text("hi"), Out])
        .call("proxy_call_foreign_function", &[text("clear_route_cache"), text(""), Out])
        .call("proxy_clear_route_cache", &[])
        .call_in("proxy_on_tick", "env", "proxy_call_foreign_function", &echo)
        .call_in(
            "proxy_on_foreign_function",
            "env",
            "proxy_get_buffer_bytes",
            &[Int(8), Int(0), Int(99), Out],
        )
        .start();
    guest.request().1.unwrap();
    assert_eq!(guest.lines(), ["0", "hi+stream", "1", "0", "", "0"]);
    guest.instance.on_tick().unwrap();
    assert_eq!(guest.lines(), ["0", "hi"]);
    guest.instance.on_foreign_function(3, b"arguments".to_vec()).unwrap();
    assert_eq!(guest.lines(), ["0", "arguments"]);
}

#[test]
fn what_em_plus_plus_imports_is_there() {
    let script = Script::new().call("pthread_equal", &[Int(3), Int(3)]);
    let import = "(import \"env\" \"emscripten_notify_memory_growth\" (func (param i32)))";
    let text = script.text().replacen("(module", &format!("(module {import}"), 1);
    let guest = Guest::start(&text, PluginSettings::default()).unwrap();
    assert_eq!(guest.request_log(), ["1"]);
}
