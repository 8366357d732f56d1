use std::{fs, path::Path, sync::atomic::Ordering::Relaxed};

use leno_api::{Resource, model::Model};
use serde_json::{Value, json};
use tokio::{task::LocalSet, time::timeout};

use super::*;
use crate::http::fetch::tests::{Server, ok};

const PATIENCE: Duration = Duration::from_secs(120);

/// A module that does nothing; `marker` makes it another one. Its configuration may not be `bad`, and it says so.
fn module(marker: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
            (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
            (memory (export "memory") 1) (data (i32.const 0) "{marker}")
            (data (i32.const 64) "not this one")
            (func (export "proxy_abi_version_0_2_1"))
            (func (export "malloc") (param i32) (result i32) (i32.const 1024))
            (func (export "proxy_on_configure") (param i32 i32) (result i32)
                (if (i32.eq (local.get 1) (i32.const 3))
                    (then (drop (call $log (i32.const 4) (i32.const 64) (i32.const 12)))))
                (i32.ne (local.get 1) (i32.const 3))))"#
    );
    wat::parse_str(text).unwrap()
}

fn offered(spec: Value) -> (Arc<WasmPlugin>, Written) {
    let object = json!({
        "apiVersion": "leno.dev/v1alpha1", "kind": "WasmPlugin",
        "metadata": {"name": "tag", "namespace": "shop"}, "spec": spec,
    });
    let text = object.to_string().as_str().into();
    let resource = Resource::from_json(object).unwrap();
    match &resource.model {
        Model::WasmPlugin(plugin) => (plugin.clone(), (resource.clone().into(), text)),
        other => panic!("{other:?}"),
    }
}

struct Bench {
    preparer: Preparer,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { preparer: Preparer::new(Some(folder.path().join("kept"))), folder }
    }

    fn write(&self, name: &str, module: &[u8]) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, module).unwrap();
        format!("file://{}", path.display())
    }

    /// Offers a plugin; whether it is in force at once.
    fn offer(&mut self, spec: Value) -> bool {
        let (plugin, written) = offered(spec);
        self.preparer.offer(&plugin, written).is_some()
    }

    /// What comes of the next thing that a task says: whether the resource is in force now.
    async fn step(&mut self, now: u64) -> bool {
        let done = timeout(PATIENCE, self.preparer.next()).await.expect("a result").unwrap();
        let outcome = self.preparer.take(done, Duration::from_secs(now));
        outcome.expect("it concerns somebody").insert.is_some()
    }

    fn slot(&self) -> &Slot {
        &self.preparer.slots()[&name()]
    }

    fn live(&self) -> Arc<Plugin> {
        self.slot().current.clone().unwrap()
    }

    fn verdict(&self) -> Option<Result<(), String>> {
        self.preparer.verdict(&name())
    }

    fn state(&self) -> &'static str {
        self.preparer.roster().rows()[0].state
    }
}

fn name() -> ObjectName {
    ObjectName::new("shop", "tag")
}

async fn local(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn the_first_version_has_a_place_before_it_is_there() {
    local(async {
        let mut bench = Bench::new();
        let url = bench.write("a.wasm", &module("a"));
        assert!(bench.offer(json!({"url": url, "failurePolicy": "Open"})));
        let unloaded = bench.slot().current.clone().unwrap_err();
        assert_eq!((&*unloaded.label, bench.verdict()), ("shop/tag", None));
        assert!(unloaded.reason.contains("not loaded yet"));
        assert_eq!(bench.preparer.roster().awaited().first().map(String::as_str), Some("shop/tag"));
        assert!(bench.step(0).await);
        assert_eq!((bench.verdict(), bench.state()), (Some(Ok(())), "live"));
        assert!(bench.slot().canary.is_none() && !bench.live().version().is_empty());
        assert!(bench.preparer.roster().awaited().is_empty());
        bench.preparer.remove(&name());
        assert!(bench.preparer.slots().is_empty() && bench.verdict().is_none());
        assert!(bench.preparer.roster().rows().is_empty());
    })
    .await;
}

#[tokio::test]
async fn thousands_of_plugins_are_taken_up_to_a_bound() {
    local(async {
        let mut preparer = Preparer::new(None);
        let mut offer = |number: usize| {
            let object = json!({
                "apiVersion": "leno.dev/v1alpha1", "kind": "WasmPlugin",
                "metadata": {"name": format!("p{number}"), "namespace": "shop"},
                "spec": {"url": "file:///nowhere.wasm"},
            });
            let text = object.to_string().as_str().into();
            let resource = Resource::from_json(object).unwrap();
            let Model::WasmPlugin(spec) = resource.model.clone() else { panic!() };
            preparer.offer(&spec, (resource.into(), text));
            preparer.verdict(&spec.name)
        };
        for number in 0..10_000 {
            let verdict = offer(number);
            match verdict {
                None => assert!(number < MAX_PLUGINS, "{number}"),
                Some(refused) => {
                    assert!(number >= MAX_PLUGINS, "{number}");
                    assert!(refused.unwrap_err().contains("at most 1000 plugins"));
                }
            }
        }
        assert_eq!(preparer.roster().rows().len(), 10_000);
        assert_eq!(preparer.slots().len(), 10_000);
        let first = ObjectName::new("shop", "p0");
        preparer.remove(&first);
        assert_eq!(preparer.roster().rows().len(), 9_999);
    })
    .await;
}

#[tokio::test]
async fn the_last_good_version_stays_until_the_next_one_has_started() {
    local(async {
        let mut bench = Bench::new();
        let (good, broken) =
            (bench.write("a.wasm", &module("a")), bench.write("b.wasm", b"no module"));
        bench.offer(json!({"url": good}));
        bench.step(0).await;
        let first = bench.live();
        for (spec, reason) in [
            (json!({"url": broken}), "not a valid WebAssembly module"),
            (json!({"url": good, "pluginConfig": "bad"}), "its log: not this one"),
            (
                json!({"url": "file:///nowhere/at/all.wasm"}),
                "cannot be fetched from file:///nowhere",
            ),
        ] {
            assert!(!bench.offer(spec.clone()), "{spec}");
            assert!(Arc::ptr_eq(&bench.live(), &first), "while it is loaded");
            assert!(!bench.step(0).await, "{spec}");
            assert!(Arc::ptr_eq(&bench.live(), &first) && bench.state() == "failed");
            let error = bench.verdict().unwrap().unwrap_err();
            assert!(error.contains(reason), "{spec}: {error}");
        }
        assert!(!bench.offer(json!({"url": bench.write("c.wasm", &module("c"))})));
        assert!(bench.step(0).await);
        assert_ne!(bench.live().version(), first.version());
        assert_eq!((bench.verdict(), bench.state()), (Some(Ok(())), "live"));
    })
    .await;
}

#[tokio::test]
async fn what_need_not_be_loaded_again_is_the_same_plugin() {
    local(async {
        let mut bench = Bench::new();
        let url = bench.write("a.wasm", &module("a"));
        let sha256 = store::hex(&store::digest_of(&module("a")));
        bench.offer(json!({"url": url, "sha256": sha256}));
        bench.step(0).await;
        let first = bench.live();
        // Known by its digest: at once.
        assert!(bench.offer(json!({"url": url, "sha256": sha256, "priority": 7})));
        assert!(Arc::ptr_eq(&bench.live(), &first) && bench.verdict() == Some(Ok(())));
        // Otherwise once it has been looked at.
        assert!(!bench.offer(json!({"url": url, "phase": "STATS"})));
        assert!(bench.step(0).await);
        assert!(Arc::ptr_eq(&bench.live(), &first));
        // The same words again are nothing new.
        assert!(!bench.offer(json!({"url": url, "phase": "STATS"})));
        assert_eq!(bench.verdict(), Some(Ok(())));
        // Other settings are another version of it.
        assert!(!bench.offer(json!({"url": url, "sha256": sha256, "pluginConfig": "more"})));
        assert!(bench.step(0).await);
        assert_ne!(bench.live().version(), first.version());
    })
    .await;
}

fn on_trial(url: &str) -> Value {
    let canary =
        json!({"percent": 20, "maxFailurePercent": 5, "minimumRequests": 10, "window": "60s"});
    json!({"url": url, "canary": canary})
}

#[tokio::test]
async fn a_version_on_trial_is_promoted_when_it_was_good_for_long_enough() {
    local(async {
        let mut bench = Bench::new();
        let (old, new) = (bench.write("a.wasm", &module("a")), bench.write("b.wasm", &module("b")));
        // The first one is on trial against nothing.
        bench.offer(on_trial(&old));
        assert!(bench.step(0).await);
        let first = bench.live();
        bench.offer(on_trial(&new));
        assert!(!bench.step(100).await, "the old resource is in force");
        let (canary, percent) = bench.slot().canary.clone().unwrap();
        assert!(Arc::ptr_eq(&bench.live(), &first) && percent == 20);
        assert_eq!((bench.state(), bench.verdict()), ("trial", Some(Ok(()))));
        assert!(bench.preparer.is_trying());
        canary.figures().exchanges.store(100, Relaxed);
        canary.figures().failures.store(5, Relaxed);
        assert!(bench.preparer.judge(Duration::from_secs(159)).is_empty());
        let outcomes = bench.preparer.judge(Duration::from_secs(160));
        assert!(outcomes.len() == 1 && outcomes[0].insert.is_some());
        assert!(Arc::ptr_eq(&bench.live(), &canary) && bench.slot().canary.is_none());
        assert!(!bench.preparer.is_trying());
    })
    .await;
}

#[tokio::test]
async fn a_version_on_trial_that_fails_too_often_is_taken_back() {
    local(async {
        let mut bench = Bench::new();
        let (old, new) = (bench.write("a.wasm", &module("a")), bench.write("b.wasm", &module("b")));
        bench.offer(on_trial(&old));
        bench.step(0).await;
        let first = bench.live();
        bench.offer(on_trial(&new));
        bench.step(100).await;
        let (canary, _) = bench.slot().canary.clone().unwrap();
        canary.figures().exchanges.store(20, Relaxed);
        canary.figures().failures.store(1, Relaxed);
        assert!(bench.preparer.judge(Duration::from_secs(100)).is_empty(), "as many as allowed");
        // It breaks by itself, too.
        canary.figures().own_faults.store(1, Relaxed);
        let outcomes = bench.preparer.judge(Duration::from_secs(100));
        assert!(outcomes.len() == 1 && outcomes[0].insert.is_none());
        assert!(Arc::ptr_eq(&bench.live(), &first) && bench.slot().canary.is_none());
        let error = bench.verdict().unwrap().unwrap_err();
        assert!(error.contains("was taken back: it failed in 2 of 20 exchanges"), "{error}");
        assert_eq!(bench.state(), "taken back");
        // The same words again do not try it again.
        assert!(!bench.offer(on_trial(&new)));
        assert!(bench.verdict().unwrap().is_err() && !bench.preparer.is_trying());
    })
    .await;
}

#[tokio::test]
async fn a_file_that_changes_is_loaded_again() {
    local(async {
        let mut bench = Bench::new();
        let url = bench.write("a.wasm", &module("a"));
        bench.offer(json!({"url": url}));
        bench.step(0).await;
        let first = bench.live();
        bench.write("a.wasm", b"half of a mod");
        bench.step(0).await;
        assert!(Arc::ptr_eq(&bench.live(), &first) && bench.verdict().unwrap().is_err());
        bench.write("a.wasm", &module("another"));
        bench.step(0).await;
        assert!(!Arc::ptr_eq(&bench.live(), &first) && bench.verdict() == Some(Ok(())));
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_fetched_is_tried_again() {
    local(async {
        let mut bench = Bench::new();
        let server = Server::start("HTTP/1.1 503 Later\r\ncontent-length: 0\r\n\r\n").await;
        let sha256 = store::hex(&store::digest_of(&module("a")));
        let url = format!("{}/a.wasm", server.url);
        bench.offer(json!({"url": url, "sha256": sha256}));
        bench.step(0).await;
        let unloaded = bench.slot().current.clone().unwrap_err();
        assert!(unloaded.reason.contains("answered with 503"), "{}", unloaded.reason);
        server.answer(Some(ok(module("a"))));
        bench.step(0).await;
        assert_eq!(bench.verdict(), Some(Ok(())));
        assert!(bench.slot().current.is_ok());
    })
    .await;
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().unwrap() == extension).collect()
}

fn entries(folder: &Path, extension: &str) -> usize {
    files(folder, extension).len()
}

fn remove(folder: &Path, extension: &str) {
    files(folder, extension).into_iter().for_each(|path| fs::remove_file(path).unwrap());
}

#[tokio::test]
async fn a_restart_needs_nobody_who_gave_the_modules_out() {
    local(async {
        let mut bench = Bench::new();
        let server = Server::start(ok(module("a"))).await;
        let sha256 = store::hex(&store::digest_of(&module("a")));
        let spec = json!({"url": format!("{}/a.wasm", server.url), "sha256": sha256});
        bench.offer(spec.clone());
        bench.step(0).await;
        let kept = bench.folder.path().join("kept");
        assert_eq!((entries(&kept, "wasm"), entries(&kept, "cwasm")), (1, 1));
        server.answer(None);
        bench.preparer = Preparer::new(Some(kept.clone()));
        bench.offer(spec.clone());
        bench.step(0).await;
        assert_eq!((bench.verdict(), server.hits()), (Some(Ok(())), 1));
        // Either of the two is enough: native code, or the module.
        for lost in ["cwasm", "wasm"] {
            remove(&kept, lost);
            bench.preparer = Preparer::new(Some(kept.clone()));
            bench.offer(spec.clone());
            bench.step(0).await;
            assert_eq!((bench.verdict(), server.hits()), (Some(Ok(())), 1), "without .{lost}");
        }
    })
    .await;
}
