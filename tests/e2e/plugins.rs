//! Plugins in a running proxy. The guest is the probe of the conformance kit: what it does is said by headers of the
//! request (`x-req-headers: local=403`, `x-fault: loop`), and it logs every callback.

mod bodies;
mod calls;
mod connections;
mod enemies;
mod faults;
mod grpc;
mod lifecycle;
mod registries;
mod sharing;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::{
    client::{self, Wire},
    mesh::{Mesh, Proxy, until},
    origin::Origin,
};

/// The probe, built once with the very cargo that runs this test.
fn probe() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let manifest =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../wasm-host/tests/kit/probe/Cargo.toml");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("probe-abi021");
        let done = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--release", "--locked", "--target", "wasm32-wasip1"])
            .args(["--no-default-features", "--features", "abi021"])
            .arg("--manifest-path")
            .arg(manifest)
            .env("CARGO_TARGET_DIR", &target)
            .env_remove("RUSTFLAGS")
            .status()
            .unwrap();
        assert!(done.success(), "building the probe failed; rustup target add wasm32-wasip1");
        target.join("wasm32-wasip1/release/probe.wasm")
    })
}

/// A `WasmPlugin` that runs the probe for calls to `service`; `more` are further lines of its spec.
pub fn plugin(name: &str, service: &str, more: &str) -> String {
    plugin_of(probe(), name, service, more)
}

/// The same for another module.
fn plugin_of(module: &Path, name: &str, service: &str, more: &str) -> String {
    // Where the subject is another, a busy machine is not to look like a plugin that overruns.
    let patient = if more.contains("limits:") { "" } else { "limits: {deadline: 1s}\n" };
    let lines: String =
        more.lines().chain(patient.lines()).map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: leno.dev/v1alpha1\nkind: WasmPlugin\n\
         metadata: {{name: {name}, namespace: default}}\nspec:\n  \
         targetRefs: [{{group: '', kind: Service, name: {service}}}]\n  \
         match: [{{mode: CLIENT}}]\n  url: file://{}\n{lines}",
        module.display()
    )
}

/// Compiling takes seconds where the compiler itself is built without optimisation: once is enough for all tests.
pub fn cached(mesh: Mesh) -> Mesh {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2e-modules");
    mesh.arguments(&["--module-cache", cache.to_str().unwrap(), "--log", "info,plugin=trace"])
}

/// A proxy with an echo called `orders` behind a plugin, and one called `plain` behind none, up and running.
struct Running {
    proxy: Proxy,
    orders: Origin,
    /// Lives as long as the proxy may call it.
    _plain: Origin,
}

impl Running {
    async fn with(more: &str) -> Self {
        Self::of(more, |mesh| mesh).await
    }

    async fn of(more: &str, change: impl FnOnce(Mesh) -> Mesh) -> Self {
        let (orders, plain) = (Origin::echo("orders").await, Origin::echo("plain").await);
        let mesh = Mesh::default()
            .service("orders", "http", &[orders.address])
            .service("plain", "http", &[plain.address])
            .yaml(&plugin("probe", "orders", more));
        let proxy = cached(change(mesh)).start().await;
        until("the plugin to be loaded", async || {
            let answer = client::get(proxy.outbound, "orders", "/ready").await;
            (answer.status == 200).then_some(())
        })
        .await;
        Self { proxy, orders, _plain: plain }
    }

    /// One request to the service behind the plugin, with fields each ended by CRLF.
    async fn get(&self, path: &str, fields: &str) -> client::Answer {
        client::get_with(self.proxy.outbound, "orders", path, fields).await
    }

    /// One request with a body.
    async fn post(&self, fields: &str, body: &str) -> client::Answer {
        client::ask(self.proxy.outbound, post(fields, body)).await
    }

    /// A connection of a caller.
    async fn wire(&self) -> Wire {
        Wire::connect(self.proxy.outbound).await
    }

    /// Waits for a line of the probe.
    async fn logged(&self, line: &str) {
        let what = format!("the line `{line}`");
        until(&what, async || self.proxy.errors().contains(line).then_some(())).await;
    }
}

fn post(fields: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST /p HTTP/1.1\r\nHost: orders\r\nConnection: close\r\nContent-Length: {length}\r\n{fields}\r\n{body}"
    )
}

#[tokio::test]
async fn heads_pass_a_plugin_both_ways() {
    let running = Running::with("").await;
    let fields = "x-req-headers: add-req=x-added:1,rep-req=x-replaced|2,rem-req=x-removed\r\n\
                  x-removed: 1\r\nx-resp-headers: add-resp=x-back:3,rem-resp=x-origin\r\n";
    let answer = running.get("/a?b=c", fields).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = answer.echo();
    assert_eq!(seen["path"], "/a?b=c");
    assert_eq!(
        (&seen["headers"]["x-added"][0], &seen["headers"]["x-replaced"][0]),
        (&"1".into(), &"2".into())
    );
    assert!(seen["headers"].get("x-removed").is_none());
    assert_eq!((answer.header("x-back"), answer.header("x-origin")), (Some("3"), None));
    running.logged("on_log(").await;
    running.logged("resp :status 0 \"200\"").await;
    running.logged("on_delete(").await;
    // What has no plugin sees none.
    let plain = client::get_with(running.proxy.outbound, "plain", "/", fields).await;
    assert!(plain.echo()["headers"].get("x-added").is_none());
}

#[tokio::test]
async fn a_plugin_that_changes_path_or_host_changes_the_route() {
    let other = Origin::echo("other").await;
    let rules = "- matches: [{path: {type: PathPrefix, value: /other}}]\n  backendRefs: [{name: other, port: 80}]\n\
                 - backendRefs: [{name: orders, port: 80}]\n";
    let running = Running::of("", |mesh| {
        mesh.service("other", "http", &[other.address]).http_route("orders", rules)
    })
    .await;
    let answer = running.get("/a", "").await;
    assert_eq!(answer.echo()["origin"], "orders");
    let answer = running.get("/a", "x-req-headers: rep-req=:path|/x/../other/b\r\n").await;
    assert_eq!(
        (&answer.echo()["origin"], &answer.echo()["path"]),
        (&"other".into(), &"/other/b".into())
    );
    // What HTTP forbids is nobody's path.
    let answer = running.get("/a", "x-req-headers: rep-req=:path|a b\r\n").await;
    assert_eq!(answer.status, 500);
    let log = running.proxy.access_log_text(3).await;
    assert!(log.contains("\"WF\""), "{log}");
}

#[tokio::test]
async fn a_plugin_answers_in_place_of_the_service() {
    let running = Running::with("").await;
    let before = running.orders.requests().len();
    let answer =
        running.get("/", "x-req-headers: local=403\r\nx-resp-headers: add-resp=x-back:1\r\n").await;
    assert_eq!((answer.status, answer.text().as_str()), (403, "local body\n"));
    assert_eq!(answer.header("x-local"), Some("req-headers"));
    assert_eq!(answer.header("x-back"), Some("1"), "it passes the plugin as a response");
    assert_eq!(answer.header("content-type"), Some("text/probe"));
    assert_eq!(running.orders.requests().len(), before, "nothing was forwarded");
    let answer = running.get("/", "x-resp-headers: local=418\r\n").await;
    assert_eq!((answer.status, answer.text().as_str()), (418, "local body\n"));
    assert_eq!(answer.header("x-origin"), None);
    // From a body that has not been sent on yet.
    let answer = running.post("x-req-body: local=413\r\n", "hello").await;
    assert_eq!((answer.status, answer.text().as_str()), (413, "local body\n"));
    // Of statuses that end no request there is none.
    let answer = running.get("/", "x-req-headers: local=99\r\n").await;
    assert_eq!(answer.status, 500);
    running.proxy.serves("orders").await;
}

#[tokio::test]
async fn errors_of_the_proxy_pass_plugins_too() {
    let running = Running::of("", |mesh| {
        mesh.http_route(
            "orders",
            "- matches: [{path: {value: /ready}}]\n  backendRefs: [{name: orders, port: 80}]\n",
        )
    })
    .await;
    let answer = running.get("/x", "x-resp-headers: add-resp=x-back:1\r\n").await;
    assert_eq!((answer.status, answer.header("x-back")), (404, Some("1")));
    running.logged("on_log(").await;
}

#[tokio::test]
async fn plugins_run_forward_and_backward_in_order() {
    let running = Running::of("pluginConfig: first\npriority: 2\n", |mesh| {
        mesh.yaml(&plugin("second", "orders", "pluginConfig: second\npriority: 1\n"))
    })
    .await;
    until("both plugins to run", async || {
        let answer = running.get("/", "x-req-headers: add-req=x-twice:1\r\n").await;
        let twice = answer.echo()["headers"]["x-twice"].as_array().unwrap().len();
        (twice == 2).then_some(())
    })
    .await;
    until("both to log in order", async || {
        let errors = running.proxy.errors();
        let at = |label: &str, line: &str| {
            let lines: Vec<_> = errors.lines().collect();
            lines.iter().rposition(|text| text.contains(label) && text.contains(line))
        };
        let first = at("default/probe", "on_request_headers")?;
        let second = at("default/second", "on_request_headers")?;
        let back = at("default/second", "on_response_headers")?;
        let last = at("default/probe", "on_response_headers")?;
        (first < second && second < back && back < last).then_some(())
    })
    .await;
}
