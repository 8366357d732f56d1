//! Fuzz targets (`fuzz/`): whatever the bytes are, the host neither panics nor reads or writes where it must not.

use std::{rc::Rc, sync::OnceLock, time::Duration};

use leno_wasm_host::{
    ClosedBy, Engine, EngineSettings, Fault, FaultKind, HttpCallResponse, Instance, Module, Plugin,
    PluginSettings, pairs,
};

use crate::embedder::{KitHost, KitStream};

/// All functions of `env.` with their parameters (`i`: i32, `I`: i64).
pub const FUNCTIONS: &[(&str, &str)] = &[
    ("proxy_add_header_map_value", "iiiii"),
    ("proxy_call_foreign_function", "iiiiii"),
    ("proxy_clear_route_cache", ""),
    ("proxy_close_stream", "i"),
    ("proxy_continue_request", ""),
    ("proxy_continue_response", ""),
    ("proxy_continue_stream", "i"),
    ("proxy_define_metric", "iiii"),
    ("proxy_dequeue_shared_queue", "iii"),
    ("proxy_done", ""),
    ("proxy_enqueue_shared_queue", "iii"),
    ("proxy_get_buffer_bytes", "iiiii"),
    ("proxy_get_buffer_status", "iii"),
    ("proxy_get_configuration", "ii"),
    ("proxy_get_current_time_nanoseconds", "i"),
    ("proxy_get_header_map_pairs", "iii"),
    ("proxy_get_header_map_size", "ii"),
    ("proxy_get_header_map_value", "iiiii"),
    ("proxy_get_log_level", "i"),
    ("proxy_get_metric", "ii"),
    ("proxy_get_property", "iiii"),
    ("proxy_get_shared_data", "iiiii"),
    ("proxy_get_status", "iii"),
    ("proxy_grpc_call", "iiiiiiiiiiii"),
    ("proxy_grpc_cancel", "i"),
    ("proxy_grpc_close", "i"),
    ("proxy_grpc_send", "iiii"),
    ("proxy_grpc_stream", "iiiiiiiii"),
    ("proxy_http_call", "iiiiiiiiii"),
    ("proxy_increment_metric", "iI"),
    ("proxy_log", "iii"),
    ("proxy_record_metric", "iI"),
    ("proxy_register_shared_queue", "iii"),
    ("proxy_remove_header_map_value", "iii"),
    ("proxy_replace_header_map_value", "iiiii"),
    ("proxy_resolve_shared_queue", "iiiii"),
    ("proxy_send_local_response", "iiiiiiii"),
    ("proxy_set_buffer_bytes", "iiiii"),
    ("proxy_set_effective_context", "i"),
    ("proxy_set_header_map_pairs", "iii"),
    ("proxy_set_property", "iiii"),
    ("proxy_set_shared_data", "iiiii"),
    ("proxy_set_tick_period_milliseconds", "i"),
];

/// Lists of headers: what can be read is written as it was.
pub fn pairs(data: &[u8]) {
    let Ok(read) = pairs::Pairs::parse(data) else { return };
    assert_eq!(read.len(), read.iter().count());
    let written = pairs::encode(read.iter());
    // An empty list has two forms.
    assert!(written == data || read.is_empty(), "{data:?} became {written:?}");
}

/// Host functions with any arguments, in every phase, also while the host asks for memory: the bytes are a
/// program for a guest that calls what they say.
pub fn host_calls(data: &[u8]) {
    static MODULE: OnceLock<Module> = OnceLock::new();
    let module = MODULE.get_or_init(|| {
        let bytes = wat::parse_str(interpreter()).unwrap();
        Module::compile(engine(), &bytes).unwrap()
    });
    let configuration = data.get(..MAX_PROGRAM).unwrap_or(data).to_vec();
    let settings = PluginSettings { configuration, ..settings() };
    let plugin = Plugin::new(module, settings).unwrap();
    if let Ok(mut instance) = Instance::start(&plugin, host()) {
        no_panic(drive(&mut instance));
    }
}

/// Modules that are damaged, or none at all.
pub fn modules(data: &[u8]) {
    let Ok(module) = Module::compile(engine(), data) else { return };
    let Ok(plugin) = Plugin::<KitHost>::new(&module, settings()) else { return };
    if let Ok(mut instance) = Instance::start(&plugin, host()) {
        no_panic(drive(&mut instance));
    }
}

const MAX_PROGRAM: usize = 4096;

fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::new(EngineSettings::default()).unwrap())
}

fn settings() -> PluginSettings {
    let mut settings = PluginSettings::default();
    settings.limits.memory_bytes = 1 << 20;
    settings.limits.deadline = Duration::from_millis(20);
    settings.limits.start_deadline = Duration::from_millis(20);
    settings
}

fn host() -> KitHost {
    KitHost {
        log: Rc::default(),
        wishes: Rc::default(),
        queues: Default::default(),
        started: std::time::Instant::now(),
        seed: 1,
    }
}

/// The embedder of the tests panics when it is asked to.
fn no_panic(outcome: Result<(), Fault>) {
    if let Err(fault) = outcome {
        let asked = fault.message.contains("in the embedder");
        assert!(fault.kind != FaultKind::HostPanic || asked, "{fault}");
    }
}

/// Everything that can happen to a guest, as far as it gets.
fn drive(instance: &mut Instance<KitHost>) -> Result<(), Fault> {
    for _ in 0..2 {
        let header =
            |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let mut stream = KitStream::default();
        stream.maps[0] = Some(vec![header(":method", "GET"), header("x-a", "1")]);
        stream.maps[2] = Some(vec![header(":status", "200")]);
        stream.buffers[0] = b"a body".to_vec();
        stream.buffers[1] = b"another body".to_vec();
        let (context, created) = instance.create_context(stream);
        created?;
        instance.on_request_headers(context, 2, false)?;
        instance.on_request_body(context, 6, true)?;
        instance.on_tick()?;
        let calls = std::mem::take(&mut instance.host().wishes.borrow_mut().calls);
        for call in calls {
            instance.on_http_call_response(call.token, HttpCallResponse::default())?;
        }
        instance.on_response_headers(context, 1, false)?;
        instance.on_response_body(context, 12, true)?;
        instance.on_downstream_close(context, ClosedBy::Unknown)?;
        instance.finish(context).1?;
    }
    instance.shut_down()?;
    instance.delete_root()
}

/// A guest that reads a program as its configuration: a byte for which function to call, two for each argument.
fn interpreter() -> String {
    let mut imports = String::new();
    let mut calls = String::new();
    for (at, (name, parameters)) in FUNCTIONS.iter().enumerate() {
        let types: String =
            parameters.chars().map(|kind| if kind == 'I' { " i64" } else { " i32" }).collect();
        let arguments: String = parameters
            .chars()
            .map(|kind| match kind {
                'I' => "(i64.extend_i32_s (call $argument))",
                _ => "(call $argument)",
            })
            .collect();
        imports +=
            &format!("(import \"env\" \"{name}\" (func $f{at} (param{types}) (result i32)))\n");
        calls += &format!(
            "(if (i32.eq (local.get $which) (i32.const {at})) (then (drop (call $f{at} {arguments}))))\n"
        );
    }
    let callback = |name: &str, parameters: &str, result: &str| {
        let (kind, value) = match result {
            "" => ("", "".to_owned()),
            value => ("(result i32)", value.to_owned()),
        };
        format!("(func (export \"{name}\") (param {parameters}) {kind} (call $run) {value})\n")
    };
    let action = "(i32.and (call $argument) (i32.const 7))";
    let callbacks = [
        callback("proxy_on_context_create", "i32 i32", ""),
        callback("proxy_on_request_headers", "i32 i32 i32", action),
        callback("proxy_on_request_body", "i32 i32 i32", action),
        callback("proxy_on_response_headers", "i32 i32 i32", action),
        callback("proxy_on_response_body", "i32 i32 i32", action),
        callback("proxy_on_http_call_response", "i32 i32 i32 i32 i32", ""),
        callback("proxy_on_tick", "i32", ""),
        callback("proxy_on_downstream_connection_close", "i32 i32", ""),
        callback("proxy_on_log", "i32", ""),
        callback("proxy_on_done", "i32", "(i32.and (call $argument) (i32.const 1))"),
        callback("proxy_on_delete", "i32", ""),
    ]
    .concat();
    format!(
        r#"(module
{imports}
(memory (export "memory") 4)
(global $at (mut i32) (i32.const 0))
(global $end (mut i32) (i32.const 0))
(global $heap (mut i32) (i32.const 131072))
(global $allocating (mut i32) (i32.const 0))
(func (export "proxy_abi_version_0_2_1"))
;; Memory begins anew when there is no more; what is asked for may be larger than all of it. Every second time the
;; program goes on meanwhile.
(func (export "proxy_on_memory_allocate") (param $size i32) (result i32)
  (local $address i32)
  (local.set $address (global.get $heap))
  (global.set $heap (i32.add (local.get $address) (local.get $size)))
  (if (i32.gt_u (global.get $heap) (i32.const 262144))
    (then (global.set $heap (i32.const 131072))))
  (global.set $allocating (i32.xor (global.get $allocating) (i32.const 1)))
  (if (i32.and (global.get $allocating) (i32.ne (global.get $end) (i32.const 0))) (then (call $run)))
  (local.get $address))
(func $byte (result i32)
  (if (i32.ge_u (global.get $at) (global.get $end)) (then (return (i32.const 0))))
  (global.set $at (i32.add (global.get $at) (i32.const 1)))
  (i32.load8_u (i32.sub (global.get $at) (i32.const 1))))
;; Small numbers, addresses, the ends of memory and of numbers.
(func $argument (result i32)
  (local $kind i32) (local $value i32)
  (local.set $kind (call $byte))
  (local.set $value (call $byte))
  (if (i32.lt_u (local.get $kind) (i32.const 128)) (then (return (local.get $value))))
  (if (i32.lt_u (local.get $kind) (i32.const 192))
    (then (return (i32.add (global.get $at) (local.get $value)))))
  (if (i32.lt_u (local.get $kind) (i32.const 216))
    (then (return (i32.sub (i32.const 262144) (local.get $value)))))
  (if (i32.lt_u (local.get $kind) (i32.const 236))
    (then (return (i32.sub (i32.const 0) (local.get $value)))))
  (i32.sub (i32.const 0x80000010) (local.get $value)))
(func $call
  (local $which i32)
  (local.set $which (i32.rem_u (call $byte) (i32.const {count})))
{calls})
;; A few calls at a time, so that something is left for the callbacks to come.
(func $run
  (local $left i32)
  (local.set $left (i32.const 8))
  (loop $more
    (if (i32.ge_u (global.get $at) (global.get $end)) (then (return)))
    (call $call)
    (local.set $left (i32.sub (local.get $left) (i32.const 1)))
    (br_if $more (local.get $left))))
(func (export "proxy_on_configure") (param $root i32) (param $size i32) (result i32)
  (drop (call $f{buffer} (i32.const 7) (i32.const 0) (local.get $size) (i32.const 16) (i32.const 20)))
  (global.set $at (i32.load (i32.const 16)))
  (global.set $end (i32.add (global.get $at) (i32.load (i32.const 20))))
  (call $run)
  (i32.const 1))
{callbacks})"#,
        count = FUNCTIONS.len(),
        buffer = FUNCTIONS.iter().position(|(name, _)| *name == "proxy_get_buffer_bytes").unwrap(),
    )
}
