//! Every way in which a guest breaks: an error for that call, an instance to drop, and nothing else.

use std::time::Duration;

use leno_wasm_host::{FaultKind, PluginSettings};

use crate::script::{Guest, Out, Script, text};

const HEADERS: &str = "proxy_on_request_headers";

/// Runs a guest that breaks when it sees a request.
fn breaks(guest: &mut Guest, kind: FaultKind) {
    let (context, action) = guest.request();
    let fault = action.unwrap_err();
    assert_eq!((fault.kind, fault.callback), (kind, HEADERS), "{fault}");
    assert!(guest.instance.is_broken());
    let again = guest.instance.on_request_body(context, 0, true).unwrap_err();
    assert_eq!(again.kind, FaultKind::Poisoned);
    assert_eq!(guest.instance.on_tick().unwrap_err().kind, FaultKind::Poisoned);
    assert_eq!(guest.request().1.unwrap_err().kind, FaultKind::Poisoned);
    assert!(guest.instance.abandon(context).is_some(), "the stream is given back");
}

fn limited(change: impl FnOnce(&mut PluginSettings)) -> PluginSettings {
    let mut settings = PluginSettings::default();
    change(&mut settings);
    settings
}

#[test]
fn traps() {
    for text in [
        "(unreachable)",
        "(drop (i32.load (i32.const -4)))",
        "(drop (i32.div_s (i32.const 1) (i32.const 0)))",
        "(drop (i32.trunc_f32_s (f32.const nan)))",
    ] {
        breaks(&mut Script::new().raw(HEADERS, text).start(), FaultKind::Trap);
    }
}

#[test]
fn a_wrong_indirect_call() {
    let script =
        Script::new().with("(table 1 funcref)").raw(HEADERS, "(call_indirect (i32.const 0))");
    breaks(&mut script.start(), FaultKind::Trap);
}

#[test]
fn a_fault_tells_the_functions() {
    let mut guest = Script::new()
        .with("(func $inner (unreachable)) (func $outer (call $inner))")
        .raw(HEADERS, "(call $outer)")
        .start();
    let fault = guest.request().1.unwrap_err();
    assert_eq!(fault.backtrace[..2], ["inner", "outer"]);
    assert!(fault.message.contains("unreachable") && fault.message.contains("`inner`"), "{fault}");
}

#[test]
fn endless_loops_end_at_the_deadline() {
    let settings = limited(|settings| settings.limits.deadline = Duration::from_millis(5));
    let script = Script::new().raw(HEADERS, "(loop $again (br $again))");
    breaks(&mut script.start_with(settings).unwrap(), FaultKind::Deadline);
}

#[test]
fn a_loop_of_host_calls_ends_too() {
    let settings = limited(|settings| settings.limits.deadline = Duration::from_millis(5));
    let script = Script::new()
        .raw(HEADERS, "(loop $again (call $log (i32.const 0) (i32.const 0)) (br $again))");
    breaks(&mut script.start_with(settings).unwrap(), FaultKind::Deadline);
}

#[test]
fn a_start_that_never_ends() {
    let settings = limited(|settings| settings.limits.start_deadline = Duration::from_millis(5));
    let script = Script::new().raw("_initialize", "(loop $again (br $again))");
    let error = script.start_with(settings).err().unwrap();
    assert!(error.to_string().contains("deadline"), "{error}");
}

#[test]
fn deep_recursion() {
    let script = Script::new()
        .with("(func $deep (param i64 i64) (call $deep (local.get 1) (local.get 0)) (call $log (i32.const 0) (i32.const 0)))")
        .raw(HEADERS, "(call $deep (i64.const 1) (i64.const 2))");
    breaks(&mut script.start(), FaultKind::StackOverflow);
}

#[test]
fn memory_is_capped() {
    let settings = limited(|settings| settings.limits.memory_bytes = 5 * 65_536);
    let script = Script::new().raw(
        HEADERS,
        "(if (i32.ne (memory.grow (i32.const 1)) (i32.const 4)) (then (unreachable)))
         (if (i32.ne (memory.grow (i32.const 1)) (i32.const -1)) (then (return (i32.const 0))))
         (unreachable)",
    );
    breaks(&mut script.start_with(settings).unwrap(), FaultKind::OutOfMemory);
}

#[test]
fn a_gigantic_memory_is_refused_at_the_start() {
    let settings = limited(|settings| settings.limits.memory_bytes = 65_536);
    let error = Script::new().start_with(settings).err().unwrap();
    assert!(error.to_string().contains("no instance"), "{error}");
}

#[test]
fn tables_are_capped() {
    let settings = limited(|settings| settings.limits.table_elements = 10);
    let script = Script::new().with("(table $t 8 funcref)").raw(
        HEADERS,
        "(if (i32.ne (table.grow $t (ref.null func) (i32.const 9)) (i32.const -1))
           (then (return (i32.const 0))))
         (unreachable)",
    );
    breaks(&mut script.start_with(settings).unwrap(), FaultKind::OutOfMemory);
}

#[test]
fn proc_exit_is_an_end() {
    let text = Script::new().raw(HEADERS, "(call $exit (i32.const 3))").text().replacen(
        "(module",
        "(module (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))",
        1,
    );
    let mut guest = Guest::start(&text, PluginSettings::default()).unwrap();
    breaks(&mut guest, FaultKind::Exit(3));
}

#[test]
fn a_panic_of_the_embedder_stays_here() {
    let script = Script::new().call("proxy_call_foreign_function", &[text("panic"), text(""), Out]);
    let mut guest = script.start();
    let fault = guest.request().1.unwrap_err();
    assert_eq!(fault.kind, FaultKind::HostPanic);
    assert!(fault.message.contains("in the embedder"), "{fault}");
    assert!(guest.instance.is_broken());
}

/// An allocator that the host calls on the guest's behalf.
fn with_allocator(body: &str) -> Script {
    Script::new()
        .with(&format!(
            "(func (export \"proxy_on_memory_allocate\") (param i32) (result i32) {body})"
        ))
        .call("proxy_get_property", &[text("plugin_name"), Out])
}

fn named() -> PluginSettings {
    limited(|settings| settings.name = "n".to_owned())
}

#[test]
fn allocators_that_break() {
    for (body, kind) in [
        ("(unreachable)", FaultKind::Trap),
        ("(loop $again (br $again)) (i32.const 0)", FaultKind::Deadline),
    ] {
        let mut settings = named();
        settings.limits.deadline = Duration::from_millis(5);
        breaks(&mut with_allocator(body).start_with(settings).unwrap(), kind);
    }
}

#[test]
fn allocators_that_lie() {
    for address in ["0", "-1", "0x3ffff", "0x7fffffff"] {
        let script = with_allocator(&format!("(i32.const {address})"));
        let seen = script.start_with(named()).unwrap().request_log();
        let last_byte = address == "0x3ffff";
        assert_eq!(seen[0], if last_byte { "0" } else { "6" }, "{address}");
    }
}

#[test]
fn an_allocator_cannot_change_what_is_being_copied() {
    let body = "(i32.store8 (i32.const 50) (i32.add (i32.const 48)
                  (call $env.proxy_set_shared_data (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0))))
                (call $log (i32.const 50) (i32.const 1)) (i32.const 65536)";
    let seen = with_allocator(body)
        .call("proxy_set_shared_data", &[text("k"), text("v"), crate::script::Int(0)])
        .start_with(named())
        .unwrap()
        .request_log();
    assert_eq!(seen, [":", "0", "n", "0"], "10 while it allocates, 0 afterwards");
}

#[test]
fn a_broken_instance_does_not_matter_to_another() {
    let script = Script::new()
        .raw(HEADERS, "(if (i32.eq (local.get 1) (i32.const 9)) (then (unreachable)))");
    let (mut one, mut other) = (script.start(), script.start());
    let (waiting, action) = other.request();
    action.unwrap();
    let (context, _) = one.instance.create_context(Guest::stream());
    one.instance.on_request_headers(context, 9, true).unwrap_err();
    drop(one);
    other.instance.on_request_body(waiting, 0, true).unwrap();
    other.request().1.unwrap();
}
