//! With a paused clock: tokio advances it when nothing else is to be done.

use serde_json::json;

use super::*;
use crate::store::MemoryStore;

const TTL: Duration = Duration::from_secs(15);

fn workload(name: &str) -> Value {
    json!({"apiVersion": "leno.dev/v1alpha1", "kind": "Workload",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"services": ["orders"], "address": "127.0.0.1", "ports": {"http": 9001}}})
}

fn key(name: &str) -> Key {
    Key::new(GROUP, PLURAL, "shop", name)
}

fn start(store: &Arc<dyn Store>) -> Arc<Registry> {
    let registry = Registry::new(store.clone());
    tokio::spawn(registry.clone().run());
    registry
}

fn store() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new())
}

async fn after(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn a_registered_workload_stays_while_renewed_and_goes_when_its_lease_lapses() {
    let store = store();
    let registry = start(&store);
    assert_eq!(registry.register(workload("a"), TTL, None).await.unwrap(), key("a"));
    let object = store.get(&key("a")).unwrap().json().unwrap();
    assert_eq!(object["metadata"]["annotations"][LEASE_ANNOTATION], "15s");
    assert_eq!(object["metadata"]["generation"], 1);
    for _ in 0..5 {
        after(Duration::from_secs(10)).await;
        registry.renew(&key("a")).unwrap();
    }
    after(TTL - Duration::from_millis(10)).await;
    assert!(store.get(&key("a")).is_some());
    after(Duration::from_millis(20)).await;
    assert!(store.get(&key("a")).is_none());
    assert!(matches!(registry.renew(&key("a")), Err(Error::NotLeased(_))));
    assert_eq!(registry.leased(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_workload_written_with_the_annotation_gets_a_lease() {
    let store = store();
    let registry = start(&store);
    let mut object = workload("a");
    annotate(&mut object, TTL);
    store.put(key("a"), object.to_string().into(), Expect::Any).await.unwrap();
    registry.renew(&key("a")).unwrap();
    store.put(key("b"), object.to_string().into(), Expect::Any).await.unwrap();
    store.put(key("stays"), workload("stays").to_string().into(), Expect::Any).await.unwrap();
    after(TTL + Duration::from_millis(10)).await;
    assert!(store.get(&key("a")).is_none() && store.get(&key("b")).is_none());
    assert!(store.get(&key("stays")).is_some());
    assert!(matches!(registry.renew(&key("stays")), Err(Error::NotLeased(_))));
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_everyone_has_a_full_lease() {
    let store = store();
    let first = Registry::new(store.clone());
    first.register(workload("a"), TTL, None).await.unwrap();
    drop(first);
    after(TTL * 10).await;
    let second = start(&store);
    assert_eq!(second.leased(), 1);
    after(TTL - Duration::from_millis(10)).await;
    assert!(store.get(&key("a")).is_some());
    after(Duration::from_millis(20)).await;
    assert!(store.get(&key("a")).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_status_is_no_sign_of_life_and_does_not_hinder_removal() {
    let store = store();
    let registry = start(&store);
    registry.register(workload("a"), TTL, None).await.unwrap();
    for round in 0..14 {
        after(Duration::from_secs(1)).await;
        store.write_status(key("a"), 1, json!({"round": round})).await.unwrap();
    }
    after(Duration::from_millis(1010)).await;
    assert!(store.get(&key("a")).is_none());
}

#[tokio::test(start_paused = true)]
async fn goodbye_removes_at_once() {
    let store = store();
    let registry = start(&store);
    registry.register(workload("a"), TTL, None).await.unwrap();
    registry.deregister(&key("a"), None).await.unwrap();
    assert!(store.get(&key("a")).is_none());
    assert!(registry.deregister(&key("a"), None).await.is_err());
    store.put(key("hand"), workload("hand").to_string().into(), Expect::Any).await.unwrap();
    assert!(registry.deregister(&key("hand"), None).await.is_err());
    assert!(store.get(&key("hand")).is_some());
}

#[tokio::test(start_paused = true)]
async fn registering_again_writes_only_what_changed() {
    let store = store();
    let registry = start(&store);
    registry.register(workload("a"), TTL, None).await.unwrap();
    store.write_status(key("a"), 1, json!({"live": 1})).await.unwrap();
    after(Duration::from_secs(5)).await;
    registry.register(workload("a"), TTL, None).await.unwrap();
    assert_eq!(store.revision(), 2);
    let mut moved = workload("a");
    moved["spec"]["address"] = json!("127.0.0.2");
    registry.register(moved, TTL, None).await.unwrap();
    let stored = store.get(&key("a")).unwrap().json().unwrap();
    assert_eq!(stored["metadata"]["generation"], 2);
    assert_eq!(stored["status"]["live"], 1);
    after(Duration::from_secs(14)).await;
    assert!(store.get(&key("a")).is_some(), "registering is a renewal");
}

#[tokio::test]
async fn what_cannot_be_registered_is_refused_with_its_reason() {
    let store = store();
    let registry = Registry::new(store.clone());
    let mut unknown = workload("a");
    unknown["spec"]["adress"] = json!("x");
    let error = registry.register(unknown, TTL, None).await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)) && error.to_string().contains("adress"), "{error}");
    let service = json!({"apiVersion": "leno.dev/v1alpha1", "kind": "Service",
        "metadata": {"name": "a", "namespace": "shop"}, "spec": {"ports": [{"port": 80}]}});
    assert!(matches!(registry.register(service, TTL, None).await, Err(Error::NotAWorkload(_))));
    for ttl in [Duration::ZERO, MAX_LEASE * 2] {
        assert!(matches!(
            registry.register(workload("a"), ttl, None).await,
            Err(Error::BadLease(_))
        ));
    }
    store.put(key("a"), workload("a").to_string().into(), Expect::Any).await.unwrap();
    assert!(matches!(
        registry.register(workload("a"), TTL, None).await,
        Err(Error::WrittenByHand(_))
    ));
    assert!(registry.register(json!([]), TTL, None).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_fell_behind_catches_up() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::with_history(2, usize::MAX));
    let registry = Registry::new(store.clone());
    let mut object = workload("x");
    annotate(&mut object, TTL);
    for name in ["a", "b", "c", "d"] {
        store.put(key(name), object.to_string().into(), Expect::Any).await.unwrap();
    }
    tokio::spawn(registry.clone().run());
    after(Duration::from_secs(2)).await;
    assert_eq!(registry.leased(), 4);
    after(TTL + Duration::from_secs(2)).await;
    assert!(store.list(&Selection::all()).items.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_process_that_did_not_run_removes_nobody_for_that() {
    let store = store();
    let registry = start(&store);
    registry.register(workload("a"), TTL, None).await.unwrap();
    after(Duration::from_secs(5)).await;
    // The clock jumps without the driver having run: as after SIGSTOP, or a suspended machine.
    tokio::time::advance(Duration::from_secs(3600)).await;
    after(Duration::from_secs(5)).await;
    registry.renew(&key("a")).expect("it was removed for our own absence");
    after(TTL + Duration::from_secs(1)).await;
    assert!(store.get(&key("a")).is_none(), "from then on it counts again");
}

#[tokio::test(start_paused = true)]
async fn a_workload_of_another_account_is_neither_taken_over_nor_removed() {
    let store = store();
    let registry = start(&store);
    let of = |account: &str| {
        let mut object = workload("a");
        object["spec"]["serviceAccount"] = account.into();
        object
    };
    registry.register(of("web"), TTL, Some("web")).await.unwrap();
    let taken = registry.register(of("orders"), TTL, Some("orders")).await.unwrap_err();
    assert!(
        matches!(taken, Error::OtherAccount { ref account, .. } if account == "web"),
        "{taken}"
    );
    let removed = registry.deregister(&key("a"), Some("orders")).await;
    assert!(matches!(removed, Err(Error::OtherAccount { .. })));
    assert_eq!(account_of(&store.get(&key("a")).unwrap().json().unwrap()), "web");
    registry.register(of("web"), TTL, Some("web")).await.unwrap();
    // Its owner gone, the name is free; and an administrator may always.
    registry.deregister(&key("a"), Some("web")).await.unwrap();
    registry.register(of("orders"), TTL, Some("orders")).await.unwrap();
    registry.register(of("web"), TTL, None).await.unwrap();
    // Without an account it is of the default one.
    registry.register(workload("b"), TTL, Some("default")).await.unwrap();
    assert!(registry.check_account(&key("b"), Some("web")).is_err());
    registry.check_account(&key("b"), Some("default")).unwrap();
    registry.check_account(&key("none"), Some("web")).unwrap();
}
