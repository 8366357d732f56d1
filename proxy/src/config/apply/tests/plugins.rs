//! Plugins become live later than what came with them.

use leno_api::Key;

use tokio::time::Instant;

use super::*;
use crate::{
    config::apply::plugins::REWORD_EVERY,
    http::fetch::tests::{Server, ok},
};

const EMPTY: &str = r#"(module (memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1"))
    (func (export "malloc") (param i32) (result i32) (i32.const 1024)))"#;

fn plugin(url: &str, module: &[u8]) -> Vec<Item> {
    use sha2::Digest;
    let sha256: String =
        sha2::Sha256::digest(module).iter().map(|byte| format!("{byte:02x}")).collect();
    let text = format!(
        "apiVersion: leno.dev/v1alpha1\nkind: WasmPlugin\nmetadata: {{name: tag, namespace: shop}}\n\
         spec: {{url: '{url}', sha256: {sha256}, match: [{{mode: CLIENT}}]}}\n"
    );
    let mut items = items(&text);
    // What tells one version of a resource from another.
    items[0].json = text.as_str().into();
    items
}

/// A running task and the ends of its channels.
struct Running {
    updates: mpsc::Sender<Update>,
    _questions: mpsc::Sender<Question>,
    again: mpsc::Receiver<Key>,
    published: Arc<Published>,
}

impl Running {
    fn start() -> Self {
        let (mut applier, published, _) = applier(Identity::none());
        let (sender, again) = mpsc::channel(4);
        applier.tell_again(sender);
        let (updates, incoming) = mpsc::channel(4);
        let (questions, asked) = mpsc::channel(1);
        tokio::task::spawn_local(applier.run(incoming, asked));
        Self { updates, _questions: questions, again, published }
    }

    async fn change(&self, upserts: Vec<Item>) -> oneshot::Receiver<Vec<(Key, String)>> {
        let (live, verdict) = oneshot::channel();
        let change = Change { upserts, live: Some(live), ..Change::default() };
        self.updates.send(Update::Changed(change)).await.unwrap();
        verdict
    }

    /// Whether the plugin that sees calls to `orders` is there; `None` while there is none.
    fn loaded(&self) -> Option<bool> {
        let snapshot = self.published.load();
        let chain = snapshot.service("orders")?.ports[0].plugins.clone()?;
        Some(chain.slots()[0].current.is_ok())
    }

    async fn until(&self, loaded: Option<bool>) {
        let mut generations = self.published.subscribe();
        let reached = async {
            while self.loaded() != loaded {
                generations.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.expect("the plugin's state");
    }
}

async fn verdict(receiver: oneshot::Receiver<Vec<(Key, String)>>) -> Vec<(Key, String)> {
    tokio::time::timeout(PATIENCE, receiver).await.expect("a verdict").unwrap()
}

#[tokio::test]
async fn a_plugin_keeps_nothing_else_from_going_live() {
    let test = async {
        let module = wat::parse_str(EMPTY).unwrap();
        // Says nothing at all, for now.
        let server = Server::start("").await;
        server.answer(None);
        let running = Running::start();
        let mut both = items(MESH);
        both.extend(plugin(&format!("{}/tag.wasm", server.url), &module));
        let mut first = running.change(both).await;
        running.until(Some(false)).await;
        assert!(first.try_recv().is_err(), "it is not known yet what becomes of the plugin");
        // Whatever comes next is not kept waiting; what is not known is said to be so.
        let second = running.change(items(&MESH.replace("port: 80", "port: 81"))).await;
        assert_eq!(verdict(second).await, []);
        let told = verdict(first).await;
        assert_eq!((told.len(), told[0].0.to_string()), (1, "WasmPlugin shop/tag".to_owned()));
        assert!(told[0].1.starts_with("not loaded yet"), "{told:?}");
    };
    LocalSet::new().run_until(test).await;
}

/// Everything runs, but for a plugin whose server has no module yet.
async fn answered_with_503(module: &[u8]) -> (Server, Running, Vec<Item>) {
    let server = Server::start("HTTP/1.1 503 Later\r\ncontent-length: 0\r\n\r\n").await;
    let running = Running::start();
    let offered = plugin(&format!("{}/tag.wasm", server.url), module);
    let mut both = items(MESH);
    both.extend(offered.clone());
    let told = verdict(running.change(both).await).await;
    assert!(told.len() == 1 && told[0].1.contains("answered with 503"), "{told:?}");
    (server, running, offered)
}

#[tokio::test]
async fn what_becomes_of_a_plugin_later_is_told_later() {
    let test = async {
        let module = wat::parse_str(EMPTY).unwrap();
        let (server, mut running, offered) = answered_with_503(&module).await;
        assert_eq!(running.loaded(), Some(false));
        server.answer(Some(ok(&module)));
        running.until(Some(true)).await;
        let again = tokio::time::timeout(PATIENCE, running.again.recv()).await.unwrap().unwrap();
        assert_eq!(again.to_string(), "WasmPlugin shop/tag");
        // The source sends it once more, and hears that it is live.
        assert_eq!(verdict(running.change(offered).await).await, []);
        assert!(running.again.try_recv().is_err());
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn another_reason_is_told_as_well() {
    let test = async {
        let module = wat::parse_str(EMPTY).unwrap();
        let (server, mut running, offered) = answered_with_503(&module).await;
        server.answer(Some(b"HTTP/1.1 404 Gone\r\ncontent-length: 0\r\n\r\n".to_vec()));
        let again = tokio::time::timeout(PATIENCE, running.again.recv()).await.unwrap().unwrap();
        assert_eq!(again.to_string(), "WasmPlugin shop/tag");
        let told = verdict(running.change(offered).await).await;
        assert!(told.len() == 1 && told[0].1.contains("answered with 404"), "{told:?}");
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn reasons_that_take_turns_are_told_once_in_a_while() {
    let test = async {
        let (mut applier, ..) = applier(Identity::none());
        let key = plugin("file:///nowhere/tag.wasm", b"")[0].resource.key();
        let (one, other) = (Err("one".to_owned()), Err("other".to_owned()));
        assert!(applier.is_news(&key, &one, &other) && !applier.is_news(&key, &one, &one));
        applier.reworded.insert(key.name.clone(), Instant::now());
        assert!(!applier.is_news(&key, &one, &other));
        assert!(applier.is_news(&key, &one, &Ok(())) && applier.is_news(&key, &Ok(()), &one));
        tokio::time::pause();
        tokio::time::advance(REWORD_EVERY).await;
        assert!(applier.is_news(&key, &one, &other));
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn what_was_live_before_a_restart_and_is_not_now_is_told() {
    let test = async {
        let (mut applier, ..) = applier(Identity::none());
        let (again, mut asked) = mpsc::channel(1);
        applier.tell_again(again);
        let offered = plugin("file:///nowhere/tag.wasm", b"");
        applier.take(Update::Changed(Change { upserts: offered, ..Change::default() }));
        let done = tokio::time::timeout(PATIENCE, applier.preparer.next()).await.unwrap().unwrap();
        assert!(asked.try_recv().is_err());
        applier.prepared(done);
        assert_eq!(asked.try_recv().unwrap().to_string(), "WasmPlugin shop/tag");
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn what_was_refused_stays_so_when_it_is_offered_again_in_the_same_words() {
    let test = async {
        let (mut applier, ..) = applier(Identity::none());
        let offered = plugin("file:///nowhere/tag.wasm", b"");
        let upsert = |items: &[Item]| {
            Update::Changed(Change { upserts: items.to_vec(), ..Change::default() })
        };
        applier.take(upsert(&offered));
        let done = tokio::time::timeout(PATIENCE, applier.preparer.next()).await.unwrap().unwrap();
        applier.prepared(done);
        let rejected = |applier: &Applier| applier.dump()["rejected"].to_string();
        assert!(rejected(&applier).contains("No such file"), "{}", rejected(&applier));
        applier.take(upsert(&offered));
        assert!(rejected(&applier).contains("No such file"), "{}", rejected(&applier));
        let removed = vec![offered[0].resource.key()];
        applier.take(Update::Changed(Change { removed, ..Change::default() }));
        assert_eq!(rejected(&applier), "[]");
    };
    LocalSet::new().run_until(test).await;
}
