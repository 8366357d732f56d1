//! What callbacks and host functions cost: `cargo run --release -p leno-wasm-host --example callbacks`.
//!
//! Every figure is the best of several rounds, since everything else on the machine only adds to it.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program for developers that prints figures, and ends when it cannot"
)]

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

use leno_wasm_host::{
    Allocation, BufferEdit, BufferType, CallToken, Digest, Engine, EngineSettings, GrpcCall, Host,
    HttpCall, Instance, LocalResponse, LogLevel, MapType, Module, Plugin, PluginSettings,
    QueueListener, Status, Stream, StreamType, pairs::Pairs,
};

const ROUNDS: u32 = 20;
const CALLS: u32 = 50_000;

fn main() {
    let modules = [
        ("no-op, headers of request and response", guest("")),
        ("  and 1 header added", guest(ADD)),
        ("  and 11 headers added", guest(&ADD.repeat(11))),
        ("  and 1 header read", guest(GET)),
        ("  and 11 headers read", guest(&GET.repeat(11))),
        ("  and all headers read", guest(PAIRS)),
        ("  and 10 KiB of configuration read", guest(BODY)),
    ];
    let engine = Engine::new(EngineSettings::default()).unwrap();
    println!(
        "six callbacks of a request (context, request headers, response headers, log, done, delete):"
    );
    for (name, text) in &modules {
        let module = Module::compile(&engine, &wat::parse_str(text).unwrap()).unwrap();
        println!("{:>8.0} ns  {name}", per_request(&module));
    }
    for (name, allocation) in [
        ("on demand", Allocation::OnDemand),
        ("pooled", Allocation::Pooled { instances: 64, memory_bytes: 64 << 20 }),
    ] {
        let engine =
            Engine::new(EngineSettings { allocation, ..EngineSettings::default() }).unwrap();
        let module = Module::compile(&engine, &wat::parse_str(&modules[0].1).unwrap()).unwrap();
        println!("{:>8.1} us  start and drop an instance, {name}", per_start(&module));
    }
    if let Some(path) = std::env::args().nth(1) {
        load(&engine, &std::fs::read(path).unwrap());
    }
}

/// Compiles and loads a real module: `... --example callbacks -- plugin.wasm`.
fn load(engine: &Engine, bytes: &[u8]) {
    let started = Instant::now();
    let module = Module::compile(engine, bytes).unwrap();
    println!("{:>8.1} ms  compile {} KiB", milliseconds(started), bytes.len() >> 10);
    let directory = tempfile::tempdir().unwrap();
    module.save(directory.path()).unwrap();
    let mut times = [0.0; ROUNDS as usize];
    for time in &mut times {
        let started = Instant::now();
        Module::load_cached(engine, directory.path(), module.digest()).unwrap().unwrap();
        *time = milliseconds(started);
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    println!("{median:>8.1} ms  load it from the cache (median; {:.1} at best)", times[0]);
    let started = Instant::now();
    std::hint::black_box(Digest::of(bytes));
    println!("{:>8.1} ms  its digest", milliseconds(started));
    println!("{:>8.1} us  start and drop an instance of it", per_start(&module));
    let instance = Instance::start(&plugin(&module), Desk).unwrap();
    let before = resident();
    let more: Vec<_> = (0..16).map(|_| Instance::start(&plugin(&module), Desk).unwrap()).collect();
    let each = (resident() - before) / more.len() as i64;
    println!(
        "{each:>8} KiB resident for each instance, of {} its memory",
        instance.memory_bytes() >> 10
    );
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn resident() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or("0 0");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn plugin(module: &Module) -> Plugin<Desk> {
    let vm_configuration = vec![b'a'; 10_240];
    Plugin::new(module, PluginSettings { vm_configuration, ..PluginSettings::default() }).unwrap()
}

fn per_request(module: &Module) -> f64 {
    let mut instance = Instance::start(&plugin(module), Desk).unwrap();
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        for _ in 0..CALLS {
            let (context, seen) = instance.begin(Exchange::default(), 10, false);
            seen.unwrap();
            instance.on_response_headers(context, 10, true).unwrap();
            let (_, told) = instance.finish(context);
            told.unwrap();
        }
        best = best.min(started.elapsed());
    }
    best.as_secs_f64() * 1e9 / f64::from(CALLS)
}

fn per_start(module: &Module) -> f64 {
    let plugin = plugin(module);
    let mut best = Duration::MAX;
    for _ in 0..200 {
        let started = Instant::now();
        drop(Instance::start(&plugin, Desk).unwrap());
        best = best.min(started.elapsed());
    }
    best.as_secs_f64() * 1e6
}

const ADD: &str =
    "(drop (call $add (i32.const 0) (i32.const 0) (i32.const 8) (i32.const 8) (i32.const 4)))";
const GET: &str =
    "(drop (call $get (i32.const 0) (i32.const 0) (i32.const 8) (i32.const 64) (i32.const 68)))";
const PAIRS: &str = "(drop (call $pairs (i32.const 0) (i32.const 64) (i32.const 68)))";
const BODY: &str = "(drop (call $bytes (i32.const 6) (i32.const 0) (i32.const 10240) (i32.const 64) (i32.const 68)))";

/// A plugin that does something in `proxy_on_request_headers`. Its allocator always gives the same memory.
fn guest(body: &str) -> String {
    let five = ["i32"; 5].join(" ");
    format!(
        "(module
           (import \"env\" \"proxy_add_header_map_value\" (func $add (param {five}) (result i32)))
           (import \"env\" \"proxy_get_header_map_value\" (func $get (param {five}) (result i32)))
           (import \"env\" \"proxy_get_header_map_pairs\" (func $pairs (param i32 i32 i32) (result i32)))
           (import \"env\" \"proxy_get_buffer_bytes\" (func $bytes (param {five}) (result i32)))
           (memory (export \"memory\") 2)
           (data (i32.const 0) \"x-header1234\")
           (func (export \"proxy_abi_version_0_2_1\"))
           (func (export \"proxy_on_memory_allocate\") (param i32) (result i32) (i32.const 4096))
           (func (export \"proxy_on_context_create\") (param i32 i32))
           (func (export \"proxy_on_request_headers\") (param i32 i32 i32) (result i32) {body} (i32.const 0))
           (func (export \"proxy_on_response_headers\") (param i32 i32 i32) (result i32) (i32.const 0))
           (func (export \"proxy_on_log\") (param i32))
           (func (export \"proxy_on_done\") (param i32) (result i32) (i32.const 1))
           (func (export \"proxy_on_delete\") (param i32))
           )"
    )
}

struct Desk;

struct Nobody;

impl QueueListener for Nobody {
    fn ready(&self, _: u32) {}
}

impl Host for Desk {
    type Stream = Exchange;

    fn log(&mut self, _: LogLevel, _: &[u8]) {}

    fn log_level(&self) -> LogLevel {
        LogLevel::Info
    }

    fn now(&mut self) -> u64 {
        1
    }

    fn monotonic(&mut self) -> u64 {
        1
    }

    fn random(&mut self, target: &mut [u8]) {
        target.fill(4);
    }

    fn set_tick_period(&mut self, _: Option<Duration>) {}

    fn http_call(&mut self, _: CallToken, _: HttpCall<'_>) -> Result<(), Status> {
        Err(Status::BadArgument)
    }

    fn grpc_call(&mut self, _: CallToken, _: GrpcCall<'_>) -> Result<(), Status> {
        Err(Status::ParseFailure)
    }

    fn grpc_stream(&mut self, _: CallToken, _: GrpcCall<'_>) -> Result<(), Status> {
        Err(Status::ParseFailure)
    }

    fn grpc_send(&mut self, _: CallToken, _: &[u8], _: bool) -> Result<(), Status> {
        Err(Status::BadArgument)
    }

    fn grpc_end(&mut self, _: CallToken, _: bool) {}

    fn property(&self, _: &[u8]) -> Result<Cow<'_, [u8]>, Status> {
        Err(Status::NotFound)
    }

    fn call_foreign_function(
        &mut self,
        _: Option<&mut Exchange>,
        _: &[u8],
        _: &[u8],
    ) -> Result<Vec<u8>, Status> {
        Err(Status::NotFound)
    }

    fn queue_listener(&self) -> Arc<dyn QueueListener> {
        Arc::new(Nobody)
    }
}

/// Counts what is added, so that the host's part is measured and not a map of headers.
#[derive(Default)]
struct Exchange {
    added: usize,
}

const HEADERS: [(&[u8], &[u8]); 10] = [
    (b":method", b"GET"),
    (b":path", b"/a/path/of/some/length?and=a&query=too"),
    (b":authority", b"service.namespace"),
    (b":scheme", b"http"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    (b"accept", b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    (b"accept-language", b"en-US,en;q=0.5"),
    (b"accept-encoding", b"gzip, deflate, br"),
    (b"x-header", b"1234"),
    (b"x-request-id", b"2b3f1c7e-0000-4000-8000-000000000000"),
];

impl Stream for Exchange {
    fn has_map(&self, _: MapType) -> bool {
        true
    }

    fn header(&self, _: MapType, name: &[u8]) -> Option<&[u8]> {
        HEADERS.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    fn visit_headers(&self, _: MapType, visit: &mut dyn FnMut(&[u8], &[u8])) {
        HEADERS.iter().for_each(|(name, value)| visit(name, value));
    }

    fn set_headers(&mut self, _: MapType, _: Pairs<'_>) {}

    fn add_header(&mut self, _: MapType, name: &[u8], value: &[u8]) {
        self.added += std::hint::black_box(name).len() + std::hint::black_box(value).len();
    }

    fn replace_header(&mut self, map: MapType, name: &[u8], value: &[u8]) {
        self.add_header(map, name, value);
    }

    fn remove_header(&mut self, _: MapType, _: &[u8]) {}

    fn buffer_length(&self, _: BufferType) -> usize {
        10_240
    }

    fn copy_buffer(&self, _: BufferType, _: usize, target: &mut [u8]) {
        target.fill(b'a');
    }

    fn edit_buffer(&mut self, _: BufferType, _: BufferEdit<'_>) {}

    fn send_local_response(&mut self, _: LocalResponse<'_>) {}

    fn continue_stream(&mut self, _: StreamType) {}

    fn close_stream(&mut self, _: StreamType) {}

    fn property(&self, _: &[u8]) -> Result<Cow<'_, [u8]>, Status> {
        Err(Status::NotFound)
    }

    fn set_property(&mut self, _: &[u8], _: &[u8]) -> Result<(), Status> {
        Ok(())
    }

    fn clear_route_cache(&mut self) {}
}
