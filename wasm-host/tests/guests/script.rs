//! Guests written on the spot: a row of calls of host functions, each followed by log lines that tell its
//! status and results.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    rc::Rc,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use leno_wasm_host::{
    Engine, EngineSettings, Fault, Instance, Limits, Module, Plugin, PluginSettings, StartError,
    pairs,
};

use crate::embedder::{KitHost, KitStream, Log, Queues, Wishes};

/// An argument of a host function.
#[derive(Clone)]
pub enum Arg {
    Int(u32),
    Long(i64),
    /// Address and length.
    Bytes(Vec<u8>),
    /// Where the host writes address and length; the bytes are logged.
    Out,
    /// Where the host writes a number; eight bytes are logged.
    Number,
}

pub fn text(text: &str) -> Arg {
    Arg::Bytes(text.as_bytes().to_vec())
}

pub fn list(list: &[(&str, &str)]) -> Arg {
    Arg::Bytes(pairs::encode(list.iter().map(|(k, v)| (k.as_bytes(), v.as_bytes()))))
}

pub use Arg::{Int, Long, Number, Out};

/// The log line for a status.
pub fn status(status: u8) -> String {
    char::from(b'0' + status).to_string()
}

/// The log line for a number.
pub fn number(number: u64) -> String {
    String::from_utf8_lossy(&number.to_le_bytes()).into_owned()
}

/// Callbacks with the calls in them.
#[derive(Clone, Default)]
pub struct Script {
    imports: BTreeMap<(String, String), (String, bool)>,
    data: Vec<u8>,
    callbacks: BTreeMap<String, String>,
    extra: String,
    abi: Option<&'static str>,
}

const OUT_ADDRESS: u32 = 16;
const OUT_LENGTH: u32 = 20;
const NUMBER: u32 = 24;
const STATUS: u32 = 32;
const DATA: usize = 1024;

/// The parameters and the result of callbacks.
fn signature(callback: &str) -> (usize, Option<u32>) {
    match callback {
        "proxy_on_vm_start" | "proxy_on_configure" => (2, Some(1)),
        "proxy_on_request_headers"
        | "proxy_on_request_body"
        | "proxy_on_response_headers"
        | "proxy_on_response_body"
        | "proxy_on_downstream_data"
        | "proxy_on_upstream_data" => (3, Some(0)),
        "proxy_on_request_trailers" | "proxy_on_response_trailers" => (2, Some(0)),
        "proxy_on_new_connection" => (1, Some(0)),
        "proxy_on_done" => (1, Some(1)),
        "proxy_on_log" | "proxy_on_delete" | "proxy_on_tick" => (1, None),
        "proxy_on_context_create"
        | "proxy_on_queue_ready"
        | "proxy_on_downstream_connection_close"
        | "proxy_on_upstream_connection_close" => (2, None),
        "proxy_on_http_call_response" => (5, None),
        "proxy_on_foreign_function"
        | "proxy_on_grpc_receive"
        | "proxy_on_grpc_receive_initial_metadata"
        | "proxy_on_grpc_receive_trailing_metadata"
        | "proxy_on_grpc_close" => (3, None),
        "_initialize" | "_start" => (0, None),
        other => panic!("no signature for {other}"),
    }
}

impl Script {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn abi(mut self, marker: &'static str) -> Self {
        self.abi = Some(marker);
        self
    }

    /// More of the module, as text.
    pub fn with(mut self, text: &str) -> Self {
        self.extra.push_str(text);
        self
    }

    /// Puts WebAssembly into a callback.
    pub fn raw(mut self, callback: &str, text: &str) -> Self {
        self.callbacks.entry(callback.to_owned()).or_default().push_str(text);
        self
    }

    /// A call of a function of `env` in `proxy_on_request_headers`.
    pub fn call(self, function: &str, arguments: &[Arg]) -> Self {
        self.call_in("proxy_on_request_headers", "env", function, arguments)
    }

    pub fn wasi(self, function: &str, arguments: &[Arg]) -> Self {
        self.call_in("proxy_on_request_headers", "wasi_snapshot_preview1", function, arguments)
    }

    pub fn call_in(
        mut self,
        callback: &str,
        module: &str,
        function: &str,
        arguments: &[Arg],
    ) -> Self {
        let (mut values, mut parameters) = (String::new(), String::new());
        for argument in arguments {
            let (numbers, kind) = match argument {
                Int(value) => (vec![i64::from(value.cast_signed())], "i32"),
                Long(value) => (vec![*value], "i64"),
                Out => (vec![OUT_ADDRESS.into(), OUT_LENGTH.into()], "i32"),
                Number => (vec![NUMBER.into()], "i32"),
                Arg::Bytes(bytes) => {
                    let at = DATA + self.data.len();
                    self.data.extend(bytes);
                    (vec![at as i64, bytes.len() as i64], "i32")
                }
            };
            for value in numbers {
                write!(values, "({kind}.const {value}) ").unwrap();
                write!(parameters, "{kind} ").unwrap();
            }
        }
        let import = (module.to_owned(), function.to_owned());
        self.imports.insert(import, (parameters, true));
        let out = arguments.iter().any(|argument| matches!(argument, Out));
        let number = arguments.iter().any(|argument| matches!(argument, Number));
        let body = self.callbacks.entry(callback.to_owned()).or_default();
        writeln!(
            body,
            "(i64.store (i32.const {NUMBER}) (i64.const 0))
             (i32.store8 (i32.const {STATUS})
               (i32.add (i32.const 48) (call ${module}.{function} {values})))
             (call $log (i32.const {STATUS}) (i32.const 1))"
        )
        .unwrap();
        if out {
            writeln!(
                body,
                "(if (i32.eq (i32.load8_u (i32.const {STATUS})) (i32.const 48)) (then
                   (call $log (i32.load (i32.const {OUT_ADDRESS})) (i32.load (i32.const {OUT_LENGTH})))))"
            )
            .unwrap();
        }
        if number {
            writeln!(body, "(call $log (i32.const {NUMBER}) (i32.const 8))").unwrap();
        }
        self
    }

    pub fn text(&self) -> String {
        let mut module = String::from("(module\n");
        for ((from, name), (parameters, result)) in &self.imports {
            let result = if *result { "(result i32)" } else { "" };
            writeln!(
                module,
                "(import \"{from}\" \"{name}\" (func ${from}.{name} (param {parameters}) {result}))"
            )
            .unwrap();
        }
        if !self.imports.contains_key(&("env".to_owned(), "proxy_log".to_owned())) {
            let import = "(import \"env\" \"proxy_log\" (func $env.proxy_log (param i32 i32 i32) (result i32)))";
            writeln!(module, "{import}").unwrap();
        }
        let marker = self.abi.unwrap_or("proxy_abi_version_0_2_1");
        let allocator = if self.extra.contains("proxy_on_memory_allocate") {
            ""
        } else {
            "(global $heap (mut i32) (i32.const 65536))
             (func (export \"proxy_on_memory_allocate\") (param $size i32) (result i32)
               (global.get $heap) (global.set $heap (i32.add (global.get $heap) (local.get $size))))"
        };
        let data: String = self.data.iter().map(|byte| format!("\\{byte:02x}")).collect();
        writeln!(
            module,
            "(memory (export \"memory\") 4)
             (func (export \"{marker}\"))
             {allocator}
             (data (i32.const {DATA}) \"{data}\")
             (func $log (param i32 i32)
               (drop (call $env.proxy_log (i32.const 2) (local.get 0) (local.get 1))))
             {}",
            self.extra
        )
        .unwrap();
        for (callback, body) in &self.callbacks {
            let (parameters, result) = signature(callback);
            let parameters = "i32 ".repeat(parameters);
            let (kind, value) = match result {
                Some(value) => ("(result i32)", format!("(i32.const {value})")),
                None => ("", String::new()),
            };
            let head = format!("(func (export \"{callback}\") (param {parameters}) {kind}");
            writeln!(module, "{head}\n{body}\n{value})").unwrap();
        }
        module + ")"
    }

    pub fn start(&self) -> Guest {
        self.start_with(PluginSettings::default()).unwrap()
    }

    pub fn start_with(&self, settings: PluginSettings) -> Result<Guest, StartError> {
        Guest::start(&self.text(), settings)
    }

    /// Starts the guest, sends it request headers and tells what it logged.
    pub fn log(&self) -> Vec<String> {
        self.start().request_log()
    }
}

/// A guest that runs.
pub struct Guest {
    pub instance: Instance<KitHost>,
    pub log: Log,
    pub wishes: Rc<std::cell::RefCell<Wishes>>,
    pub queues: Arc<Queues>,
}

pub fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::new(EngineSettings::default()).unwrap())
}

impl Guest {
    /// Where a test does not say how long a callback may run it is not about that, and must not fail
    /// because the machine is busy.
    pub fn start(text: &str, mut settings: PluginSettings) -> Result<Self, StartError> {
        if settings.limits.deadline == Limits::default().deadline {
            settings.limits.deadline = Duration::from_secs(60);
        }
        let bytes = wat::parse_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let module = Module::compile(engine(), &bytes)?;
        let plugin = Plugin::new(&module, settings)?;
        let (log, wishes, queues) = (Log::default(), Rc::default(), Arc::<Queues>::default());
        let host = KitHost {
            log: log.clone(),
            wishes: Rc::clone(&wishes),
            queues: queues.clone(),
            started: Instant::now(),
            seed: 1,
        };
        let instance = Instance::start(&plugin, host)?;
        Ok(Self { instance, log, wishes, queues })
    }

    /// A stream with a request of three headers.
    pub fn stream() -> KitStream {
        let pair = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let headers = vec![pair(":path", "/p"), pair(":authority", "here"), pair("x-a", "1")];
        KitStream { maps: [Some(headers), None, None, None], ..KitStream::default() }
    }

    pub fn request(
        &mut self,
    ) -> (leno_wasm_host::ContextId, Result<leno_wasm_host::Action, Fault>) {
        let (context, created) = self.instance.create_context(Self::stream());
        let seen = created.and_then(|()| self.instance.on_request_headers(context, 3, false));
        (context, seen)
    }

    pub fn request_log(mut self) -> Vec<String> {
        let (_, action) = self.request();
        action.unwrap();
        self.lines()
    }

    pub fn lines(&self) -> Vec<String> {
        self.log.take().into_iter().map(|(_, line)| line).collect()
    }
}
