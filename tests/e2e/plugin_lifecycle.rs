//! How plugins come, change and go: fetched, loaded, rejected alone, on trial, kept for a restart. The guests are made
//! on the spot: each adds its mark to a header of the request, or traps.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    client::{self, Answer, Wire},
    control_plane::ControlPlane,
    mesh::{Mesh, Proxy, until},
    origin::Origin,
};

const GROUP: &str = "leno.dev/v1alpha1";

/// A guest that adds `x-mark: <mark>` to requests. Only marks of four characters.
fn marks(mark: &str) -> Vec<u8> {
    assert_eq!(mark.len(), 4);
    guest(&format!(
        r#"(drop (call $add (i32.const 0) (i32.const 0) (i32.const 6) (i32.const 6) (i32.const 4)))
           (i32.const 0)) (data (i32.const 0) "x-mark{mark}""#
    ))
}

/// A guest that traps with every request.
fn traps() -> Vec<u8> {
    guest("unreachable")
}

fn guest(on_request_headers: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
            (import "env" "proxy_add_header_map_value"
                (func $add (param i32 i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (func (export "proxy_abi_version_0_2_1"))
            (func (export "malloc") (param i32) (result i32) (i32.const 1024))
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                {on_request_headers}))"#
    );
    wat::parse_str(text).unwrap()
}

/// A folder with modules.
struct Modules(TempDir);

impl Modules {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// There at once, as deployment tools do it. Its URL.
    fn put(&self, name: &str, module: &[u8]) -> String {
        let aside = self.0.path().join("aside");
        std::fs::write(&aside, module).unwrap();
        let path = self.0.path().join(name);
        std::fs::rename(aside, &path).unwrap();
        url(&path)
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn url(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// A plugin for calls to `orders`.
fn plugin(url: &str, more: &Value) -> Value {
    // The deadline is one of the clock: a machine that has no time for us must not look like a slow plugin.
    let mut spec = json!({
        "limits": {"deadline": "1s", "startDeadline": "30s"},
        "targetRefs": [{"kind": "Service", "name": "orders"}], "match": [{"mode": "CLIENT"}], "url": url,
    });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({
        "apiVersion": GROUP, "kind": "WasmPlugin", "spec": spec,
        "metadata": {"name": "mark", "namespace": "default"},
    })
}

/// A service called `orders`, and the plugin.
fn mesh(orders: &Origin, plugin: &Value) -> Mesh {
    Mesh::default().service("orders", "http", &[orders.address]).yaml(&plugin.to_string())
}

async fn get(proxy: &Proxy) -> Answer {
    client::get(proxy.outbound, "orders", "/").await
}

fn mark(answer: &Answer) -> Value {
    answer.echo()["headers"]["x-mark"][0].clone()
}

async fn marked(proxy: &Proxy, wanted: &str) {
    until(&format!("the mark {wanted}"), async || {
        let answer = get(proxy).await;
        (answer.status == 200 && mark(&answer) == wanted).then_some(())
    })
    .await;
}

/// What `/plugins` shows of the only one.
async fn shown(proxy: &Proxy) -> Value {
    proxy.json("/plugins").await["plugins"][0].clone()
}

async fn in_state(proxy: &Proxy, state: &str) -> Value {
    until(&format!("the state {state}"), async || {
        let shown = shown(proxy).await;
        (shown["state"] == state).then_some(shown)
    })
    .await
}

/// Changes the plugin at the control plane.
async fn patch(control_plane: &ControlPlane, plugin: &Value) {
    let path = format!("/apis/{GROUP}/namespaces/default/wasmplugins/mark");
    let current = control_plane.call("GET", &path, &Value::Null).await;
    let mut object: Value = serde_json::from_str(&current.text()).unwrap();
    object["spec"] = plugin["spec"].clone();
    let answer = control_plane.call("PUT", &path, &object).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// What the status of the plugin says about being live: reason and message.
async fn live(control_plane: &ControlPlane, reason: &str) -> String {
    let path = format!("/apis/{GROUP}/namespaces/default/wasmplugins/mark");
    until(&format!("the status {reason}"), async || {
        let answer = control_plane.call("GET", &path, &Value::Null).await;
        let object: Value = serde_json::from_str(&answer.text()).unwrap();
        let current = &object["metadata"]["generation"];
        let conditions = object["status"]["conditions"].as_array()?.clone();
        let live = conditions.into_iter().find(|condition| condition["type"] == "Live")?;
        (live["reason"] == reason && live["observedGeneration"] == *current)
            .then(|| live["message"].as_str().unwrap().to_owned())
    })
    .await
}

/// The status of the plugin, as soon as it says that one proxy runs this version and no other runs any.
async fn running(control_plane: &ControlPlane, version: &Value) -> Value {
    let path = format!("/apis/{GROUP}/namespaces/default/wasmplugins/mark");
    until(&format!("a status with {version}"), async || {
        let answer = control_plane.call("GET", &path, &Value::Null).await;
        let mut object: Value = serde_json::from_str(&answer.text()).unwrap();
        let status = object["status"].take();
        let versions = status["versions"].as_array()?;
        let runs = versions.len() == 1 && versions[0]["version"] == *version;
        (runs && versions[0]["proxies"] == 1).then_some(status)
    })
    .await
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": GROUP, "kind": "Service", "metadata": {"name": name},
        "spec": {"ports": [{"name": "main", "port": 80, "protocol": "http"}]},
    })
}

fn workload(service: &str, origin: &Origin) -> Value {
    json!({
        "apiVersion": GROUP, "kind": "Workload", "metadata": {"name": service},
        "spec": {
            "services": [service], "address": origin.address.ip(),
            "ports": {"main": origin.address.port()},
        },
    })
}

#[tokio::test]
async fn a_bad_module_is_rejected_alone_and_the_last_good_one_stays() {
    let (modules, orders) = (Modules::new(), Origin::echo("orders").await);
    let mut control_plane = ControlPlane::start(&[]).await;
    control_plane.create(GROUP, "services", service("orders")).await;
    control_plane.create(GROUP, "workloads", workload("orders", &orders)).await;
    let good = modules.put("good.wasm", &marks("good"));
    control_plane.create(GROUP, "wasmplugins", plugin(&good, &json!({}))).await;
    let proxy = Mesh::default().managed(&mut control_plane, "users").start().await;
    marked(&proxy, "good").await;
    assert_eq!(live(&control_plane, "Live").await, "live on 1 of 1 connected proxies that use it");
    let first = in_state(&proxy, "live").await["version"].clone();
    let status = running(&control_plane, &first).await;
    let digest = status["versions"][0]["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let (module, _) = first.as_str().unwrap().split_once('-').unwrap();
    assert!(digest.len() == 64 && digest.starts_with(module), "{status}");

    let broken = modules.put("broken.wasm", b"no module at all");
    patch(&control_plane, &plugin(&broken, &json!({"failurePolicy": "Closed"}))).await;
    let message = live(&control_plane, "Rejected").await;
    assert!(message.contains("not a valid WebAssembly module"), "{message}");
    let status = running(&control_plane, &first).await;
    let reasons = &status["proxies"]["reasons"];
    assert_eq!((reasons.as_array().unwrap().len(), &reasons[0]["proxies"]), (1, &json!(1)));
    assert!(reasons[0]["reason"].as_str().unwrap().contains("not a valid WebAssembly"), "{status}");
    // Everything else goes live, and what was good goes on.
    let others = Origin::echo("others").await;
    control_plane.create(GROUP, "services", service("others")).await;
    control_plane.create(GROUP, "workloads", workload("others", &others)).await;
    until("the other service", async || {
        let answer = client::get(proxy.outbound, "others", "/").await;
        (answer.status == 200).then_some(())
    })
    .await;
    assert_eq!(mark(&get(&proxy).await), "good");
    let row = in_state(&proxy, "failed").await;
    assert!(row["reason"].as_str().unwrap().contains("not a valid WebAssembly"), "{row}");
    proxy.counts("leno_plugins_failed", &[], 1.0).await;
    proxy.counts("leno_config_rejected_resources", &[("kind", "WasmPlugin")], 1.0).await;

    patch(&control_plane, &plugin(&modules.put("next.wasm", &marks("next")), &json!({}))).await;
    live(&control_plane, "Live").await;
    marked(&proxy, "next").await;
    proxy.counts("leno_plugins_failed", &[], 0.0).await;
    let row = in_state(&proxy, "live").await;
    running(&control_plane, &row["version"]).await;
    let version = row["version"].as_str().unwrap().to_owned();
    let labels = [("plugin", "default/mark"), ("version", &*version)];
    until("its calls to be counted", async || {
        let counted = proxy.metric("leno_plugin_calls_total", &labels).await > Some(0.0);
        let shown = shown(&proxy).await["figures"]["calls"].as_u64() > Some(0);
        (counted && shown).then_some(())
    })
    .await;
}

/// A module that cannot be had at once keeps nothing waiting; when it comes, the status says so.
#[tokio::test]
async fn a_module_that_comes_later_goes_live_later() {
    let (modules, orders) = (Modules::new(), Origin::echo("orders").await);
    let mut control_plane = ControlPlane::start(&[]).await;
    control_plane.create(GROUP, "services", service("orders")).await;
    control_plane.create(GROUP, "workloads", workload("orders", &orders)).await;
    let late = url(&modules.folder("late.wasm"));
    control_plane.create(GROUP, "wasmplugins", plugin(&late, &json!({}))).await;
    let proxy = Mesh::default().managed(&mut control_plane, "users").start().await;
    // Nothing that the plugin should have seen passes without it.
    let answer = until("the service", async || {
        let answer = get(&proxy).await;
        (answer.status != 404 && answer.status != 503).then_some(answer)
    })
    .await;
    assert_eq!(answer.status, 500, "{}", answer.text());
    let message = live(&control_plane, "Rejected").await;
    assert!(message.contains("cannot be fetched from file:///"), "{message}");
    modules.put("late.wasm", &marks("late"));
    marked(&proxy, "late").await;
    assert_eq!(live(&control_plane, "Live").await, "live on 1 of 1 connected proxies that use it");
}

#[tokio::test]
async fn what_is_not_loaded_gets_its_failure_policy() {
    let orders = Origin::echo("orders").await;
    for (policy, status) in [("Closed", 500), ("Open", 200)] {
        let spec = json!({"failurePolicy": policy});
        let proxy = mesh(&orders, &plugin("file:///nowhere/x.wasm", &spec)).start().await;
        let row = in_state(&proxy, "failed").await;
        assert!(row["reason"].as_str().unwrap().contains("No such file"), "{row}");
        assert_eq!(row["version"], Value::Null);
        let answer = get(&proxy).await;
        assert_eq!(answer.status, status, "{policy}: {}", answer.text());
        let (logged, flag) = proxy.last_outcome(1).await;
        let expected = if status == 500 { "WF" } else { "-" };
        assert_eq!((logged, &*flag), (status.into(), expected));
        // It failed for good: the proxy does not wait for it.
        assert_eq!(client::get(proxy.admin, "localhost", "/ready").await.status, 200);
    }
}

/// A hundred versions under load: no request fails, each has passed one version, and the last one stays.
#[tokio::test]
async fn a_hundred_swaps_cost_no_request() {
    const SWAPS: usize = 100;
    let (modules, orders) = (Modules::new(), Origin::echo("orders").await);
    let urls = [modules.put("a.wasm", &marks("even")), modules.put("b.wasm", &marks("odd-"))];
    let cache = modules.folder("cache");
    let version = |at: usize| {
        let spec = json!({"pluginConfig": {"version": at}});
        mesh(&orders, &plugin(&urls[at % 2], &spec))
    };
    let flags = ["--workers", "2", "--module-cache", cache.to_str().unwrap()];
    let proxy = version(0).arguments(&flags).start().await;
    marked(&proxy, "even").await;
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (stop, answered, address) = (stop.clone(), answered.clone(), proxy.outbound);
            tokio::spawn(async move {
                // One connection for the whole time.
                let mut wire = Wire::connect(address).await;
                while !stop.load(Ordering::Relaxed) {
                    let request =
                        "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 4\r\n\r\nbody";
                    let answer = wire.ask(request).await;
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    let marks = &answer.echo()["headers"]["x-mark"];
                    assert!(*marks == json!(["even"]) || *marks == json!(["odd-"]), "{marks}");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut last = shown(&proxy).await["version"].clone();
    for at in 1..=SWAPS {
        proxy.rewrite(version(at).text());
        last = until("the next version", async || {
            let now = shown(&proxy).await;
            (now["version"] != last && now["state"] == "live").then(|| now["version"].clone())
        })
        .await;
        let before = answered.load(Ordering::Relaxed);
        until("requests between two swaps", async || {
            (answered.load(Ordering::Relaxed) >= before + 4).then_some(())
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.expect("no request fails");
    }
    assert_eq!(mark(&get(&proxy).await), "even");
    // Old versions leave nothing behind: neither series nor instances.
    assert_eq!(
        proxy.page("/stats/prometheus").await.matches("leno_plugin_calls_total{").count(),
        1
    );
}

#[tokio::test]
async fn a_restart_needs_neither_the_control_plane_nor_the_modules_origin() {
    let (modules, orders) = (Modules::new(), Origin::echo("orders").await);
    let module = marks("kept");
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", module.len());
    let origin = Origin::canned([head.as_bytes(), &module].concat()).await;
    let control_plane = ControlPlane::start(&[]).await;
    control_plane.create(GROUP, "services", service("orders")).await;
    control_plane.create(GROUP, "workloads", workload("orders", &orders)).await;
    let sha256 = sha256(&module);
    let url = format!("http://{}/kept.wasm", origin.address);
    let plugin = plugin(&url, &json!({"sha256": sha256}));
    control_plane.create(GROUP, "wasmplugins", plugin).await;
    let state = modules.folder("state");
    let xds = control_plane.xds.to_string();
    let flags = ["--control-plane", &*xds, "--state-dir", state.to_str().unwrap()];
    let mut proxy = Mesh::default().arguments(&flags).start().await;
    marked(&proxy, "kept").await;
    assert_eq!(origin.accepted(), 1);
    proxy.signal(Signal::TERM);
    proxy.ended().await;
    drop((control_plane, origin));
    let proxy = Mesh::default().arguments(&flags).start().await;
    marked(&proxy, "kept").await;
}

#[tokio::test]
async fn a_version_on_trial_that_traps_is_taken_back() {
    let (modules, orders) = (Modules::new(), Origin::echo("orders").await);
    let good = plugin(&modules.put("good.wasm", &marks("good")), &json!({"failurePolicy": "Open"}));
    let proxy = mesh(&orders, &good).start().await;
    marked(&proxy, "good").await;
    let first = shown(&proxy).await["version"].clone();
    let trial = json!({
        "failurePolicy": "Open",
        "canary": {"percent": 50, "maxFailurePercent": 10, "minimumRequests": 10, "window": "1h"},
    });
    let bad = plugin(&modules.put("bad.wasm", &traps()), &trial);
    proxy.rewrite(mesh(&orders, &bad).text());
    let row = in_state(&proxy, "trial").await;
    assert_eq!((&row["version"], &row["canary"]["percent"]), (&first, &json!(50)));
    // Failing open, nobody notices but for the mark.
    let row = until("the old version to be all there is", async || {
        assert_eq!(get(&proxy).await.status, 200);
        let row = shown(&proxy).await;
        (row["state"] == "taken back").then_some(row)
    })
    .await;
    assert!(row["reason"].as_str().unwrap().contains("was taken back"), "{row}");
    assert_eq!(row["version"], first);
    for _ in 0..20 {
        assert_eq!(mark(&get(&proxy).await), "good");
    }
    let dump = proxy.json("/config_dump").await;
    assert!(dump["rejected"].to_string().contains("was taken back"), "{}", dump["rejected"]);
}

#[tokio::test]
async fn a_version_on_trial_that_does_well_is_promoted() {
    let (modules, orders) = (Modules::new(), Origin::echo("orders").await);
    let old = plugin(&modules.put("old.wasm", &marks("old-")), &json!({}));
    let proxy = mesh(&orders, &old).start().await;
    marked(&proxy, "old-").await;
    let trial = json!({"canary": {"percent": 50, "minimumRequests": 20, "window": "1s"}});
    let new = plugin(&modules.put("new.wasm", &marks("new-")), &trial);
    proxy.rewrite(mesh(&orders, &new).text());
    in_state(&proxy, "trial").await;
    let mut seen = std::collections::BTreeSet::new();
    until("its promotion", async || {
        let answer = get(&proxy).await;
        assert_eq!(answer.status, 200);
        seen.insert(mark(&answer).to_string());
        (shown(&proxy).await["state"] == "live").then_some(())
    })
    .await;
    assert_eq!(seen.len(), 2, "both were asked: {seen:?}");
    for _ in 0..20 {
        assert_eq!(mark(&get(&proxy).await), "new-");
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
