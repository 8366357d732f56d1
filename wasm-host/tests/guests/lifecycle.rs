//! The start of a plugin, its capabilities, its end.

use std::collections::BTreeSet;

use leno_wasm_host::{AbiVersion, ContextId, FaultKind, Module, PluginSettings, StartError};

use crate::script::{Int, Number, Out, Script, engine, number, status, text};

#[test]
fn the_order_of_the_start() {
    let say = |what: char| {
        format!(
            "(i32.store8 (i32.const 40) (i32.const {})) (call $log (i32.const 40) (i32.const 1))",
            what as u32
        )
    };
    let guest = Script::new()
        .raw("_initialize", &say('i'))
        .raw("_start", &say('!'))
        .with(&format!(
            "(func (export \"main\") (param i32 i32) (result i32) {} (i32.const 0))",
            say('m')
        ))
        .raw("proxy_on_context_create", &say('c'))
        .raw("proxy_on_vm_start", &say('v'))
        .raw("proxy_on_configure", &say('f'))
        .start();
    assert_eq!(guest.lines().concat(), "imcvf");
    let guest = Script::new().raw("_start", &say('s')).raw("proxy_on_vm_start", &say('v')).start();
    assert_eq!(guest.lines().concat(), "sv");
}

#[test]
fn while_it_starts_only_logging_is_allowed() {
    let start = "_initialize";
    let guest = Script::new()
        .call_in(start, "env", "proxy_get_property", &[text("plugin_name"), Out])
        .call_in(start, "env", "proxy_set_shared_data", &[text("k"), text("v"), Int(0)])
        .call_in(start, "env", "proxy_get_log_level", &[Number])
        .call_in(start, "wasi_snapshot_preview1", "sched_yield", &[])
        .start();
    assert_eq!(guest.lines(), [status(10), status(10), status(0), number(0), status(0)]);
}

#[test]
fn a_start_section_may_log() {
    let text = Script::new()
        .call_in("_initialize", "env", "proxy_log", &[Int(2), text("from the start section")])
        .text();
    let text = text.replace("(export \"_initialize\")", "$section").replacen(
        "(memory ",
        "(start $section) (memory ",
        1,
    );
    let guest = crate::script::Guest::start(&text, PluginSettings::default()).unwrap();
    assert_eq!(guest.lines(), ["from the start section", "0"]);
}

#[test]
fn a_plugin_may_refuse() {
    let refuse = |callback: &str| {
        let script = Script::new().raw(callback, "(return (i32.const 0))");
        script.start_with(PluginSettings::default()).err()
    };
    assert!(matches!(refuse("proxy_on_vm_start"), Some(StartError::VmStartRefused)));
    assert!(matches!(refuse("proxy_on_configure"), Some(StartError::ConfigurationRefused)));
}

#[test]
fn a_plugin_may_break_while_it_starts() {
    for callback in
        ["_initialize", "proxy_on_context_create", "proxy_on_vm_start", "proxy_on_configure"]
    {
        let script = Script::new().raw(callback, "(unreachable)");
        match script.start_with(PluginSettings::default()) {
            Err(StartError::Fault(fault)) => {
                assert_eq!((fault.kind, fault.callback), (FaultKind::Trap, callback));
            }
            other => panic!("{callback}: {:?}", other.err()),
        }
    }
}

#[test]
fn capabilities() {
    let allowed = ["proxy_on_request_headers", "proxy_log", "proxy_get_header_map_value"];
    let settings = PluginSettings {
        capabilities: Some(allowed.map(str::to_owned).into_iter().collect::<BTreeSet<_>>()),
        ..PluginSettings::default()
    };
    let mut guest = Script::new()
        .call("proxy_get_header_map_value", &[Int(0), text("x-a"), Out])
        .call("proxy_add_header_map_value", &[Int(0), text("x-b"), text("2")])
        .wasi("sched_yield", &[])
        .raw("proxy_on_configure", "(unreachable)")
        .raw("proxy_on_tick", "(unreachable)")
        .start_with(settings)
        .unwrap();
    guest.request().1.unwrap();
    assert_eq!(guest.lines(), ["0", "1", &status(10), &status(76)]);
    guest.instance.on_tick().unwrap();
}

#[test]
fn callbacks_that_are_not_exported_do_nothing() {
    let mut guest = Script::new().start();
    let (context, action) = guest.request();
    action.unwrap();
    guest.instance.on_response_headers(context, 0, true).unwrap();
    guest.instance.on_tick().unwrap();
    guest.instance.on_queue_ready(1).unwrap();
    guest.instance.finish(context).1.unwrap();
    assert_eq!(guest.instance.shut_down(), Ok(true));
}

#[test]
fn headers_of_0_1_0_have_no_end() {
    let text = Script::new()
        .abi("proxy_abi_version_0_1_0")
        .with(
            "(func (export \"proxy_on_request_headers\") (param i32 i32) (result i32)
               (i32.store (i32.const 40) (local.get 1))
               (call $log (i32.const 40) (i32.const 1)) (i32.const 1))",
        )
        .text();
    let mut guest = crate::script::Guest::start(&text, PluginSettings::default()).unwrap();
    assert_eq!(guest.request().1, Ok(leno_wasm_host::Action::Pause));
    assert_eq!(guest.lines(), ["\u{3}"]);
    let module = Module::compile(engine(), &wat::parse_str(&text).unwrap()).unwrap();
    assert_eq!(module.abi(), AbiVersion::V0_1_0);
}

#[test]
fn contexts_are_numbered_in_a_row() {
    let mut guest = Script::new().start();
    assert_eq!(ContextId::ROOT.number(), 1);
    for expected in 2..5 {
        assert_eq!(guest.request().0.number(), expected);
    }
    assert_eq!(guest.instance.contexts(), 3);
    assert!(guest.instance.memory_bytes() >= 4 * 65_536);
}

#[test]
fn what_is_common_to_threads_may_be() {
    fn common<T: Send + Sync>() {}
    // The host of these tests is not: an instance stays with its thread.
    common::<leno_wasm_host::Plugin<crate::embedder::KitHost>>();
    common::<leno_wasm_host::Engine>();
    common::<leno_wasm_host::Shared>();
    common::<Module>();
}
