//! Callbacks that are called in one go are what they would be one by one.

use std::{collections::BTreeSet, time::Duration};

use leno_wasm_host::{Action, FaultKind, PluginSettings};

use crate::script::{Guest, Int, Out, Script, status, text};

const BEGIN: [&str; 2] = ["proxy_on_context_create", "proxy_on_request_headers"];
const FINISH: [&str; 3] = ["proxy_on_log", "proxy_on_done", "proxy_on_delete"];

/// With all callbacks that can be called in one go.
fn all() -> Script {
    BEGIN.iter().chain(&FINISH).fold(Script::new(), |script, callback| script.raw(callback, ""))
}

/// Runs one stream from its first callback to its last.
fn run(guest: &mut Guest) -> Result<(), leno_wasm_host::Fault> {
    let (context, action) = guest.instance.begin(Guest::stream(), 3, false);
    let (stream, finished) = match action {
        Ok(_) => guest.instance.finish(context),
        Err(fault) => (guest.instance.abandon(context), Err(fault)),
    };
    assert!(stream.is_some(), "the stream is given back");
    finished
}

#[test]
fn a_fault_names_the_callback_that_broke() {
    // The root context is created by the same callback, and must be.
    let of_stream = "(if (i32.gt_u (local.get 0) (i32.const 1)) (then (unreachable)))";
    for broken in BEGIN.iter().chain(&FINISH) {
        let mut guest = all().raw(broken, of_stream).start();
        let fault = run(&mut guest).unwrap_err();
        assert_eq!((fault.kind, fault.callback), (FaultKind::Trap, *broken), "{fault}");
        assert_eq!(fault.backtrace.len(), 1, "functions of the guest only: {:?}", fault.backtrace);
        assert!(guest.instance.is_broken());
        let again = run(&mut guest).unwrap_err();
        assert_eq!(again.kind, FaultKind::Poisoned);
    }
}

#[test]
fn each_of_them_may_run_into_the_deadline() {
    for broken in FINISH {
        let mut settings = PluginSettings::default();
        settings.limits.deadline = Duration::from_millis(5);
        let script = all().raw(broken, "(loop $again (br $again))");
        let fault = run(&mut script.start_with(settings).unwrap()).unwrap_err();
        assert_eq!((fault.kind, fault.callback), (FaultKind::Deadline, broken));
    }
}

/// Callbacks that may be called; host functions may be called all.
fn allowing(callbacks: &[&str]) -> PluginSettings {
    let functions = [
        "proxy_log",
        "proxy_get_header_map_value",
        "proxy_add_header_map_value",
        "proxy_set_effective_context",
    ];
    let allowed: BTreeSet<String> =
        callbacks.iter().chain(&functions).map(|name| (*name).to_owned()).collect();
    PluginSettings { capabilities: Some(allowed), ..PluginSettings::default() }
}

/// What a guest logs whose callbacks all look at the stream: at headers, and by the root's eyes.
fn seen(settings: PluginSettings) -> Vec<String> {
    let mut script = Script::new();
    for callback in BEGIN.iter().chain(&FINISH) {
        script = script
            .raw(callback, "(if (i32.gt_u (local.get 0) (i32.const 1)) (then")
            .call_in(callback, "env", "proxy_get_header_map_value", &[Int(0), text("x-a"), Out])
            .call_in(callback, "env", "proxy_add_header_map_value", &[Int(0), text("b"), text("2")])
            .call_in(callback, "env", "proxy_set_effective_context", &[Int(1)])
            .call_in(callback, "env", "proxy_get_header_map_value", &[Int(0), text("x-a"), Out])
            .raw(callback, "))");
    }
    let mut guest = script.start_with(settings).unwrap();
    run(&mut guest).unwrap();
    guest.lines()
}

#[test]
fn host_functions_find_what_they_would_find_one_by_one() {
    let together = seen(PluginSettings::default());
    assert_eq!(together.len(), 5 * 4 + 2, "{together:?}");
    // Where one callback is missing, the others are called one by one.
    assert_eq!(together[4..], seen(allowing(&[&BEGIN[1..], &FINISH].concat())));
    // Create: no headers. Request headers: all of it. Log: only reading. Done, delete: nothing.
    let bad = status(2);
    assert_eq!(together[..2], [bad.clone(), bad.clone()]);
    assert_eq!(together[4..7], [status(0), "1".to_owned(), status(0)]);
    assert_eq!(together[9..12], [status(0), "1".to_owned(), bad.clone()]);
    assert_eq!(together[14..16], [bad.clone(), bad.clone()]);
    assert_eq!(together[18..20], [bad.clone(), bad]);
}

#[test]
fn what_done_returns_means_nothing() {
    let script = all().raw("proxy_on_done", "(return (i32.const 0))").call_in(
        "proxy_on_delete",
        "env",
        "proxy_done",
        &[],
    );
    let mut guest = script.start();
    run(&mut guest).unwrap();
    assert_eq!(guest.lines(), [status(1)], "deleted, and nothing waits for it");
    assert!(!guest.instance.waits_for_done());
}

#[test]
fn a_pause_in_one_go_is_a_pause() {
    let mut guest = all().raw(BEGIN[1], "(return (i32.const 1))").start();
    let (context, action) = guest.instance.begin(Guest::stream(), 3, false);
    assert_eq!(action, Ok(Action::Pause));
    guest.instance.finish(context).1.unwrap();
    let script = all().call("proxy_continue_request", &[]).raw(BEGIN[1], "(return (i32.const 1))");
    let (_, action) = script.start().instance.begin(Guest::stream(), 3, false);
    assert_eq!(action, Ok(Action::Continue), "it went on within the callback");
}

#[test]
fn what_is_not_allowed_is_not_called() {
    for forbidden in BEGIN.iter().chain(&FINISH) {
        let mut allowed = [&BEGIN[..], &FINISH].concat();
        allowed.retain(|callback| callback != forbidden);
        let script = all().raw(forbidden, "(unreachable)");
        let mut guest = script.start_with(allowing(&allowed)).unwrap();
        run(&mut guest).unwrap();
    }
}
