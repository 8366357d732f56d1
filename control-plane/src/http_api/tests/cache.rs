//! Purges by HTTP.

use super::*;
use crate::{
    access::{Member, NewToken, Role},
    plan::{Identity, Wish},
    purge::{Holder, Subscriber},
    push::Connection,
};
use leno_api::model::ObjectName;

const PURGE: &str = "/cache/purge";

/// A proxy that calls a service and has caches.
struct Proxy {
    _connection: Connection,
    orders: Subscriber,
}

async fn mesh() -> Server {
    let store = Arc::new(MemoryStore::new());
    let server = Server::beside(store.clone(), store, false).await;
    server.post(SERVICES, &service("a")).await.ok();
    server.post(SERVICES, &service("b")).await.ok();
    server
}

impl Proxy {
    async fn start(server: &Server, name: &str, calls: &str) -> Self {
        let member = Member::from(name);
        let identity = Identity { namespace: "shop".into(), workload: None };
        let connection = server.api.push.connect(member.clone(), identity).await.unwrap();
        let wish = Wish::Name(ObjectName::new("shop", calls));
        connection.subscribe(1, vec![wish], Vec::new()).await.unwrap();
        while connection.changed().await.answered < 1 {}
        let holder = Holder { member, instance: 1 };
        let mut orders = server.api.purges.open(holder, None);
        let first = orders.next().await.position.sequence;
        orders.report(first, 0).unwrap();
        Self { _connection: connection, orders }
    }

    /// Carries out the next order, and says what it was.
    async fn obey(&mut self, removed: u64) -> String {
        let order = tokio::time::timeout(PATIENCE, self.orders.next()).await.unwrap();
        self.orders.report(order.position.sequence, removed).unwrap();
        let purge = order.purge.unwrap();
        format!("{} {:?}", purge.service, purge.what)
    }
}

#[tokio::test]
async fn a_purge_is_confirmed_by_those_who_call_the_service() {
    let server = mesh().await;
    let mut first = Proxy::start(&server, "shop/first", "a").await;
    let mut second = Proxy::start(&server, "shop/second", "a").await;
    let mut other = Proxy::start(&server, "shop/other", "b").await;
    let order = json!({"service": "shop/a:80", "path": "/x?y=1", "timeout": "20s"});
    let (answer, ordered, again, elsewhere) =
        tokio::join!(server.post(PURGE, &order), first.obey(3), second.obey(4), other.obey(100));
    let done = json!({"proxies": 2, "confirmed": 2, "removed": 7, "waiting": []});
    assert_eq!(answer.ok(), done);
    assert_eq!(ordered, "shop/a:80 Path(\"/x?y=1\")");
    assert_eq!((&again, &elsewhere), (&ordered, &ordered), "everybody hears of it");

    for (fields, expected) in [
        (json!({}), "shop/a All"),
        (json!({"prefix": "/"}), "shop/a Prefix(\"/\")"),
        (json!({"tag": "product-7"}), "shop/a Tag(\"product-7\")"),
    ] {
        let mut order = fields;
        order["service"] = "shop/a".into();
        order["timeout"] = "0s".into();
        let waiting = json!({
            "proxies": 2, "confirmed": 0, "removed": 0, "waiting": ["shop/first", "shop/second"],
        });
        assert_eq!(server.post(PURGE, &order).await.ok(), waiting);
        assert_eq!(first.obey(0).await, expected);
    }
    // Whoever is away is waited for; whoever has no caches any more is not.
    drop(first.orders);
    second.orders.finish();
    let order = json!({"service": "shop/a", "timeout": "1ms"});
    let answer = server.post(PURGE, &order).await.ok();
    let waiting = json!({"proxies": 1, "confirmed": 0, "removed": 0, "waiting": ["shop/first"]});
    assert_eq!(answer, waiting);
}

#[tokio::test]
async fn an_order_that_cannot_be_meant_names_its_field() {
    let server = mesh().await;
    let long = format!("/{}", "x".repeat(4096));
    let rows = [
        (json!({}), "service: is missing"),
        (json!("shop/a"), "send {\"service\""),
        (json!({"service": "shop/a", "url": "/x"}), "unknown field `url`"),
        (json!({"service": "a"}), "service: \"a\" must be"),
        (json!({"service": "shop/a:"}), "service: \"shop/a:\" must be"),
        (json!({"service": "shop/a:0"}), "service: \"shop/a:0\" must be"),
        (json!({"service": "shop/a:65536"}), "service: "),
        (json!({"service": "shop/A"}), "service: "),
        (json!({"service": "shop/a", "path": "x"}), "path: \"x\" must begin with `/`"),
        (json!({"service": "shop/a", "path": "/a b"}), "path: "),
        (json!({"service": "shop/a", "path": long}), "path: "),
        (json!({"service": "shop/a", "prefix": "/#"}), "prefix: "),
        (json!({"service": "shop/a", "tag": ""}), "tag: "),
        (json!({"service": "shop/a", "tag": "a\nb"}), "tag: "),
        (json!({"service": "shop/a", "tag": "a", "path": "/"}), "path, prefix, tag: only one"),
        (json!({"service": "shop/a", "timeout": "5"}), "timeout: `5` is not a duration"),
        (json!({"service": "shop/a", "timeout": "21s"}), "timeout: must be 0s to 20s"),
    ];
    for (order, expected) in rows {
        let message = server.post(PURGE, &order).await.refused(400, "BadRequest");
        assert!(message.contains(expected), "{order}: {message}");
    }
    for missing in ["shop/none", "other/a", "shop/a:81"] {
        let message =
            server.post(PURGE, &json!({"service": missing})).await.refused(404, "NotFound");
        assert!(message.contains(missing) && message.contains("services"), "{message}");
    }
    server.get(PURGE).await.refused(405, "MethodNotAllowed");
}

#[tokio::test]
async fn whoever_may_write_policies_may_purge() {
    let store = Arc::new(MemoryStore::new());
    let server = Server::beside(store.clone(), store, true).await;
    let tokens = TokenFile::open(server.directory.path()).unwrap();
    let token = |role, namespace| {
        let new = NewToken {
            name: "someone",
            role,
            namespace,
            service_account: None,
            expires: None,
            once: false,
        };
        format!("Bearer {}", tokens.issue(new).unwrap())
    };
    let admin = token(Role::Admin, None);
    let call = |token: &str| {
        let order = json!({"service": "shop/none"});
        server.call("POST", PURGE).header("Authorization", token).with(JSON, &order)
    };
    call(&admin).send().await.refused(404, "NotFound");
    for denied in [token(Role::Viewer, None), token(Role::Workload, Some("shop"))] {
        let message = call(&denied).send().await.refused(403, "Forbidden");
        assert!(message.contains("write cachepolicies in namespace \"shop\""), "{message}");
    }
    server.post(PURGE, &json!({"service": "shop/none"})).await.refused(401, "Unauthorized");
}
