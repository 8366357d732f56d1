//! Purges, from the API of a real control plane to caches and back.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use leno_api::{Resource, model::cache_policy::CachePolicy};
use tokio::{sync::watch, task::JoinHandle};

use super::{super::purge, *};
use crate::{
    cache::{
        Cache,
        body::StoredBody,
        policy::{
            directives::Directives,
            freshness::{self, Times},
            variants::Selection,
        },
        store::{Audience, Stored},
    },
    snapshot::{Published, Snapshot},
};

/// A proxy with a cache: what it has subscribed to, and the task that listens for purges.
struct Caching {
    name: String,
    _proxy: super::Proxy,
    cache: Arc<Cache>,
    published: Arc<Published>,
    listening: JoinHandle<()>,
}

impl Caching {
    async fn start(plane: &Plane, name: &str) -> Self {
        let mut proxy = super::Proxy::start(plane.xds(), |options| {
            options.id = name.to_owned();
            options.services = vec![ObjectName::new("shop", "products")];
        });
        proxy.accepted().await;
        let cache = Arc::new(Cache::new(policy(), None));
        let (published, _) = Published::new(false);
        let listening = listen(plane.xds(), name, &published);
        let caching = Self { name: name.to_owned(), _proxy: proxy, cache, published, listening };
        caching.publish(true);
        caching
    }

    /// Listens anew, as another process would.
    fn listen_through(&mut self, address: SocketAddr) {
        self.listening.abort();
        self.listening = listen(address, &self.name, &self.published);
    }

    fn publish(&self, with_cache: bool) {
        let (name, cache) = (self.cache.policy().name.clone(), self.cache.clone());
        let caches: BTreeMap<_, _> = with_cache.then_some((name, cache)).into_iter().collect();
        let generation = self.published.load().generation + 1;
        let snapshot = Snapshot { generation, caches: Arc::new(caches), ..Snapshot::default() };
        self.published.publish(Arc::new(snapshot));
    }

    fn keep(&self, paths: &[&str]) {
        for path in paths {
            self.cache.store().keep(&format!("shop/products:80{path}").into(), stored(path));
        }
    }

    fn kept(&self) -> u64 {
        self.cache.figures(Duration::ZERO).urls
    }

    async fn kept_becomes(&self, urls: u64) {
        let asked = Clock::now();
        while self.kept() != urls {
            assert!(asked.elapsed() < PATIENCE, "{} are kept, not {urls}", self.kept());
            sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Caching {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

fn listen(address: SocketAddr, name: &str, published: &Arc<Published>) -> JoinHandle<()> {
    let options = purge::Options {
        address: address.to_string(),
        access: Access::Plain { token_file: None },
        proxy: name.to_owned(),
    };
    tokio::spawn(purge::run(options, published.clone()))
}

fn policy() -> Arc<CachePolicy> {
    let policy = json!({
        "apiVersion": "leno.dev/v1alpha1", "kind": "CachePolicy",
        "metadata": {"name": "catalogue", "namespace": "shop"},
        "spec": {"targetRefs": [{"kind": "Service", "name": "products"}]},
    });
    match Resource::from_json(policy).unwrap().model {
        Model::CachePolicy(policy) => policy,
        other => panic!("{other:?}"),
    }
}

/// Tagged with its path.
fn stored(path: &str) -> Arc<Stored> {
    let headers = HeaderMap::new();
    let (directives, target) = Directives::of_response(&headers);
    let times = Times { requested: Duration::ZERO, received: Duration::ZERO };
    let status = StatusCode::OK;
    Arc::new(Stored {
        audience: Audience::Everybody,
        extra: [].into(),
        selection: Selection::of(&headers, &headers).unwrap(),
        status,
        freshness: freshness::of_response(status, &headers, &directives, target, times, None),
        headers,
        directives,
        tags: [path.into()].into(),
        body: Arc::new(StoredBody::whole(Bytes::from_static(b"body"), None)),
    })
}

async fn order(plane: &Plane, fields: Value) -> Value {
    let mut order = json!({"service": "shop/products", "timeout": "20s"});
    order.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let (status, answer) = plane.call("POST", "/cache/purge", Some(&order)).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

fn done(proxies: u64, removed: u64) -> Value {
    json!({"proxies": proxies, "confirmed": proxies, "removed": removed, "waiting": []})
}

/// Waits until so many proxies hear of purges: what they had is gone then.
async fn heard_by(plane: &Plane, proxies: u64) {
    let asked = Clock::now();
    loop {
        let waited_for = order(plane, json!({"tag": "nobody-has-it"})).await;
        if waited_for == done(proxies, 0) {
            return;
        }
        assert!(asked.elapsed() < PATIENCE, "{waited_for}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn plane() -> Plane {
    let plane = Plane::start().await;
    plane.create(SERVICES, service("products")).await;
    plane
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_purged_is_gone_from_every_cache_and_counted() {
    let plane = plane().await;
    let (one, two) =
        (Caching::start(&plane, "shop/p1").await, Caching::start(&plane, "shop/p2").await);
    heard_by(&plane, 2).await;
    one.keep(&["/a", "/a?x=1", "/b/1", "/b/2", "/c"]);
    two.keep(&["/a", "/b/1"]);
    assert_eq!(order(&plane, json!({"path": "/a"})).await, done(2, 2));
    assert_eq!(order(&plane, json!({"prefix": "/b"})).await, done(2, 3));
    assert_eq!(order(&plane, json!({"tag": "/c"})).await, done(2, 1));
    assert_eq!((one.kept(), two.kept()), (1, 0));
    assert_eq!(order(&plane, json!({})).await, done(2, 1));
    assert_eq!((one.kept(), one.cache.figures(Duration::ZERO).purged), (0, 5));
    plane.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_away_hears_what_it_missed_and_nothing_else_goes() {
    let plane = plane().await;
    let caching = Caching::start(&plane, "shop/p1").await;
    heard_by(&plane, 1).await;
    caching.keep(&["/a", "/b"]);
    // The connection to the control plane passes through here, and is cut.
    let (through, target) = relay(plane.xds()).await;
    let mut behind = Caching::start(&plane, "shop/p2").await;
    behind.listen_through(through);
    heard_by(&plane, 2).await;
    behind.keep(&["/a", "/b"]);
    target.send_replace(None);
    let asked = Clock::now();
    let waiting = json!({"proxies": 2, "confirmed": 1, "removed": 1, "waiting": ["shop/p2"]});
    loop {
        // Until it is cut off the order arrives; then both have forgotten it, and it is kept again.
        caching.keep(&["/a"]);
        behind.keep(&["/a"]);
        let answer = order(&plane, json!({"path": "/a", "timeout": "300ms"})).await;
        if answer == waiting {
            break;
        }
        assert!(asked.elapsed() < PATIENCE, "{answer}");
    }
    assert_eq!(behind.kept(), 2, "it goes on with what it has");
    target.send_replace(Some(plane.xds()));
    behind.kept_becomes(1).await;
    assert_eq!(order(&plane, json!({"path": "/b"})).await, done(2, 2));
    plane.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_the_control_plane_everything_goes() {
    let plane = plane().await;
    let (through, target) = relay(plane.xds()).await;
    let mut caching = Caching::start(&plane, "shop/p1").await;
    caching.listen_through(through);
    heard_by(&plane, 1).await;
    caching.keep(&["/a", "/b"]);
    plane.running.stop().await;
    assert_eq!(caching.kept(), 2);
    let again = self::plane().await;
    target.send_replace(Some(again.xds()));
    caching.kept_becomes(0).await;
    again.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_proxies_with_caches_are_connected_and_waited_for() {
    let plane = plane().await;
    let caching = Caching::start(&plane, "shop/p1").await;
    heard_by(&plane, 1).await;
    caching.publish(false);
    heard_by(&plane, 0).await;
    // In between it hears of nothing, and afterwards of all that.
    caching.keep(&["/a", "/b"]);
    assert_eq!(order(&plane, json!({"path": "/a"})).await, done(0, 0));
    caching.publish(true);
    caching.kept_becomes(1).await;
    heard_by(&plane, 1).await;
    plane.running.stop().await;
}

/// Passes connections on to where it is told, or to nobody; those that are open end when that changes.
async fn relay(to: SocketAddr) -> (SocketAddr, watch::Sender<Option<SocketAddr>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (target, mut targets) = watch::channel(Some(to));
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let Some(to) = *targets.borrow_and_update() else { continue };
            let mut targets = targets.clone();
            tokio::spawn(async move {
                let Ok(mut far) = TcpStream::connect(to).await else { return };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = targets.changed() => {}
                }
            });
        }
    });
    (address, target)
}
