//! `leno plugin`: the template, the desk and the local proxy, with modules built by the very cargo that runs this.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use crate::process::{Lines, Said, leno};

/// A debug build of the host, on a machine that does other things: the deadlines of production are not for it.
const PATIENT: [&str; 2] = ["--deadline", "20s"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Where all of these build, so that what they have in common is built once.
fn target() -> PathBuf {
    root().join("plugins/target")
}

fn cargo(directory: &Path, arguments: &[&str]) {
    let done = Command::new(env!("CARGO"))
        .args(arguments)
        .args(["--quiet", "--locked"])
        .current_dir(directory)
        .env("CARGO_TARGET_DIR", target())
        .env_remove("RUSTFLAGS")
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

const WASM: [&str; 4] = ["build", "--release", "--target", "wasm32-wasip1"];

fn module(name: &str) -> String {
    let file = target().join("wasm32-wasip1/release").join(format!("{name}.wasm"));
    file.to_str().unwrap().to_owned()
}

/// One of the plugins that Leno comes with.
fn plugin(name: &str) -> String {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| cargo(&root().join("plugins"), &WASM));
    module(name)
}

/// Compiling takes seconds where the compiler itself is built without optimisation: once is enough.
fn cache() -> String {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli-modules").to_str().unwrap().to_owned()
}

fn on_the_desk(module: &str, requests: &Path, more: &[&str]) -> Said {
    let requests = requests.to_str().unwrap();
    let cache = cache();
    let arguments = ["plugin", "test", module, "--requests", requests, "--module-cache", &cache];
    let patient = if more.contains(&PATIENT[0]) { &[][..] } else { &PATIENT };
    leno(&[&arguments, patient, more].concat())
}

#[test]
fn the_plugins_do_what_their_requests_say() {
    for name in ["api-key", "caller-quota", "mask-json", "tag-request"] {
        let requests = root().join("plugins").join(name).join("requests.yaml");
        let said = on_the_desk(&plugin(&name.replace('-', "_")), &requests, &["--quiet"]);
        assert!(said.output.starts_with("all "), "{name}: {}{}", said.output, said.errors);
        assert_eq!(said.code, 0, "{name}");
    }
}

#[test]
fn what_a_plugin_does_is_told() {
    let requests = root().join("plugins/api-key/requests.yaml");
    let output = on_the_desk(&plugin("api_key"), &requests, &[]).good();
    for part in [
        "ABI 0.2.1",
        "request 1: no key",
        "answers 401 itself",
        "calls GET /keys/self of user.shop, at most 1.0 s",
        "the service answers 200",
        "- x-api-key: good",
        "+ x-caller: ada",
        "log warning: user.shop gave no verdict: status 500",
        "proxy_on_http_call_response",
        "MiB",
        "CALLBACK",
    ] {
        assert!(output.contains(part), "`{part}` is missing in {output}");
    }
}

#[test]
fn what_is_not_as_expected_fails() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("requests.yaml");
    let write = |text: &str| fs::write(&file, text).unwrap();
    let module = plugin("tag_request");

    write(
        "config: {request: [{name: x-a, value: b}]}\nrequests:\n\
           - expect: {status: 201, upstream: {headers: {x-a: c}}}\n\
           - expect: {status: 200}\n\
           refuses: [{config: {request: [{name: x-a, value: b}]}, log: x}]\n",
    );
    let said = on_the_desk(&module, &file, &["--quiet"]);
    assert_eq!(said.code, 1);
    for part in [
        "FAILED status: expected 201, got 200",
        "FAILED upstream header x-a: expected c, got b",
        "is not refused",
        "2 of 3 not as expected",
    ] {
        assert!(said.output.contains(part), "`{part}` is missing in {}", said.output);
    }

    let said = on_the_desk(&module, &file, &["--config", r#"{"request":1}"#]);
    assert_eq!(said.code, 1);
    assert!(said.output.contains("log error: pluginConfig is refused: request: "), "{said:?}");
    assert!(said.errors.contains("the plugin does not start: "), "{said:?}");

    write("requests:\n- request: {verb: GET}\n");
    let said = on_the_desk(&module, &file, &[]);
    assert!(said.errors.contains("requests.yaml:2: requests[0].request.verb: unknown"), "{said:?}");

    write("{}");
    let said = on_the_desk(file.to_str().unwrap(), &file, &[]);
    assert!(said.errors.contains("not a valid WebAssembly module"), "{said:?}");
}

/// The conformance kit's probe does what headers of the request say.
#[test]
fn a_plugin_that_breaks_costs_one_request() {
    cargo(&root().join("wasm-host/tests/kit/probe"), &WASM);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("requests.yaml");
    let fault =
        |kind| format!("request: {{headers: {{x-fault-phase: req-headers, x-fault: {kind}}}}}");
    let text = format!(
        "requests:\n- {}\n  expect: {{status: 500, fault: unreachable}}\n\
         - expect: {{status: 200}}\n\
         - {}\n  expect: {{status: 500, fault: deadline}}\n\
         - expect: {{status: 200}}\n\
         - {}\n  expect: {{status: 200}}\n\
         - request: {{headers: {{x-req-headers: '1'}}}}\n  expect: {{status: 504, fault: on hold}}\n\
         - request: {{method: POST, headers: {{x-req-body: '1'}}, body: [a, b]}}\n  \
           expect: {{status: 504, fault: on hold, upstream: {{reached: false}}}}\n\
         - request: {{method: POST, headers: {{x-req-body: '1', x-req-body-end: '0'}}, body: [a, b]}}\n  \
           expect: {{status: 200, upstream: {{body: ab}}}}\n",
        fault("unreachable"),
        fault("loop"),
        fault("panic")
    );
    fs::write(&file, text).unwrap();
    let said = on_the_desk(&module("probe"), &file, &["--deadline", "300ms"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.output.contains("1 of 8 not as expected"), "{}", said.output);
    assert!(
        said.output.contains("FAILED the plugin broke: proxy_on_request_headers"),
        "{}",
        said.output
    );
}

/// Timers, calls that are answered later, answers of both kinds, an answer out of a response.
#[test]
fn time_passes_on_the_desk() {
    cargo(&root().join("wasm-host/tests/kit/probe"), &WASM);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("requests.yaml");
    let text = "
services:
- {name: callout, when: {path: /late}, after: 2s}
- {name: callout, after: 5ms, answer: {status: 204, headers: {x-a: b}, trailers: {t: '1'}}}
- {name: nope, after: 50ms, answer: {body: a message}}
requests:
- name: a timer lets it go on
  request: {headers: {x-req-headers: 'tick=100,park=0,1'}}
  expect: {status: 200, upstream: {reached: true}, logs: [on_tick]}
- name: or answers
  request: {headers: {x-req-headers: 'park=403,1'}}
  expect: {status: 403, body: \"from tick\\n\", upstream: {reached: false}}
- name: a call is answered, and lets it go on
  request: {headers: {x-req-headers: 'call=/x,1', x-req-headers-callback: cont=0}}
  expect: {status: 200, calls: 1, logs: ['call :status \"204\"']}
- name: one that is late fails
  request: {headers: {x-req-headers: 'call=/late,1', x-req-headers-callback: cont=0}}
  expect: {status: 200, calls: 1, logs: ['call :status \"504\"']}
- name: an answer in place of the upstream's
  request: {headers: {x-resp-headers: local=418}}
  upstream: {status: 200, body: hello}
  expect: {status: 418, headers: {x-local: resp-headers}, upstream: {reached: true}}
- name: the end of a connection
  request: {headers: {x-req-headers: close=0}}
  expect: {headers: {':status': null}}
- name: what is asked of gRPC
  request: {headers: {x-req-headers: sweep}}
- name: is answered, also when the request is over
  after: 2s
  expect: {logs: ['on_grpc_receive(1, ', 'a message']}
";
    fs::write(&file, text).unwrap();
    let said = on_the_desk(&module("probe"), &file, &["--quiet"]);
    assert_eq!((said.output.as_str(), said.code), ("all 8 as expected\n", 0), "{}", said.errors);
}

#[test]
fn the_template_builds_and_tests_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("my-plugin");
    let shown = path.to_str().unwrap();
    let output = leno(&["plugin", "new", "my-plugin", "--path", shown]).good();
    assert!(output.contains("cargo test && leno plugin test"), "{output}");
    cargo(&path, &["test"]);
    let done = Command::new(env!("CARGO_BIN_EXE_leno"))
        .args(["plugin", "test", shown, "--module-cache", &cache()])
        .args(PATIENT)
        .env("CARGO", env!("CARGO"))
        .env("CARGO_TARGET_DIR", target())
        .env_remove("RUSTFLAGS")
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&done.stdout);
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{output}{errors}");
    assert!(output.contains("all 4 as expected"), "{output}");
}

/// Answers every request with a text, and says what it got.
fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || answer(stream));
        }
    });
    address
}

fn answer(mut stream: TcpStream) {
    let (mut got, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        got.extend_from_slice(&buffer[..count]);
        if got.ends_with(b"\r\n\r\n") {
            let body = String::from_utf8_lossy(&got).into_owned();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
            got.clear();
        }
    }
}

fn get(address: &str, host: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_local_proxy_runs_a_plugin() {
    let origin = origin().to_string();
    let any = "127.0.0.1:0";
    let config = r#"{"request":[{"name":"x-tagged","value":"yes"}]}"#;
    let module = plugin("tag_request");
    let cache = cache();
    let arguments = ["plugin", "run", &module, "--upstream", &origin, "--listen", any];
    let more = ["--admin", any, "--config", config, "--module-cache", &cache];
    let proxy = Lines::of(&[&arguments[..], &more].concat());
    assert!(proxy.next_line().contains(&origin));
    let addresses: serde_json::Value = serde_json::from_str(&proxy.next_line()).unwrap();
    let address = addresses["inbound"].as_str().unwrap();
    let answer = once_loaded(address, "x", "/a");
    assert!(answer.contains("x-tagged: yes"), "{answer}");
}

/// Until the module is compiled, its failure policy answers.
fn once_loaded(address: &str, host: &str, path: &str) -> String {
    once(address, (host, path), |answer| answer.starts_with("HTTP/1.1 200"))
}

fn once(address: &str, (host, path): (&str, &str), holds: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + Duration::from_secs(180);
    loop {
        let answer = get(address, host, path);
        if holds(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{answer}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// The shop's users, in a sidecar of their own, which calls them by both of the names for which there are plugins.
#[test]
fn the_shops_plugins_do_what_they_are_for() {
    plugin("mask_json");
    let any = "127.0.0.1:0";
    let shop = Lines::of(&["shop", "user", "--listen", any, "--control", any]);
    let addresses: serde_json::Value = serde_json::from_str(&shop.next_line()).unwrap();
    let port = addresses["listen"].as_str().unwrap().rsplit_once(':').unwrap().1.to_owned();
    let read = |file: &str| fs::read_to_string(root().join("examples/shop").join(file)).unwrap();
    let modules = target().join("wasm32-wasip1/release").display().to_string();
    let workload = format!(
        "apiVersion: leno.dev/v1alpha1\nkind: Workload\n\
         metadata: {{name: both, namespace: shop}}\n\
         spec: {{services: [user, order], address: 127.0.0.1, ports: {{http: {port}}}}}\n"
    );
    let parts = [
        read("mesh/services.yaml"),
        read("plugins/plugins.yaml").replace("file:///plugins", &format!("file://{modules}")),
        workload,
    ];
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mesh.yaml");
    fs::write(&file, parts.join("\n---\n")).unwrap();
    let file = file.to_str().unwrap();
    let names = ["proxy", "--config", file, "--name", "both", "--namespace", "shop"];
    let cache = cache();
    let more = ["--inbound", any, "--outbound", any, "--admin", any, "--module-cache", &cache];
    let proxy = Lines::of(&[&names[..], &more].concat());
    let addresses: serde_json::Value = serde_json::from_str(&proxy.next_line()).unwrap();
    let address = addresses["inbound"].as_str().unwrap();

    let user = once_loaded(address, "user", "/users/u1");
    assert!(user.contains(r#""id":"u1","name":"***""#), "{user}");

    // Until it is loaded, requests pass it by.
    let counted = |answer: &str| answer.contains("x-ratelimit-limit: 10\r\n");
    let order = once(address, ("order", "/users/u1"), counted);
    assert!(order.contains("Ada Lovelace"), "{order}");
    // Faster than 5 a second, sooner or later all are used up.
    let limited = (0..2_000)
        .map(|_| get(address, "order", "/users/u1"))
        .find(|answer| answer.starts_with("HTTP/1.1 429"));
    assert!(limited.unwrap().contains("retry-after: 1"));
}
