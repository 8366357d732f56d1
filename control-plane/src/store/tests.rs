//! What every store must do, run against each of them; and the two compared on random histories.

use std::{sync::Arc, time::Duration};

use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

use super::*;

/// Runs a check against every kind of store.
async fn each(check: impl AsyncFn(Arc<dyn Store>)) {
    check(Arc::new(MemoryStore::new())).await;
    let directory = TempDir::new().unwrap();
    check(Arc::new(EmbeddedStore::open(directory.path()).unwrap())).await;
}

fn key(name: &str) -> Key {
    Key::new("leno.dev", "services", "shop", name)
}

fn value(text: &str) -> Bytes {
    Bytes::from(json!({"metadata": {"generation": 1}, "spec": text}).to_string())
}

#[tokio::test]
async fn an_object_remembers_when_it_was_created_and_last_written() {
    each(async |store| {
        assert_eq!(store.revision(), 0);
        let first = store.put(key("a"), value("1"), Expect::MustNotExist).await.unwrap();
        assert_eq!(first.revision, 1);
        store.put(key("b"), value("1"), Expect::Any).await.unwrap();
        store.put(key("a"), value("2"), Expect::Exactly(1)).await.unwrap();
        let stored = store.get(&key("a")).unwrap();
        assert_eq!((stored.created, stored.modified), (1, 3));
        assert_eq!(stored.json().unwrap()["metadata"]["resourceVersion"], "3");
        assert!(store.get(&key("c")).is_none());
    })
    .await;
}

#[tokio::test]
async fn a_stale_write_is_refused_and_changes_nothing() {
    each(async |store| {
        store.put(key("a"), value("1"), Expect::Any).await.unwrap();
        store.put(key("a"), value("2"), Expect::Any).await.unwrap();
        for (name, expect) in [
            ("a", Expect::Exactly(1)),
            ("a", Expect::MustNotExist),
            ("none", Expect::Exists),
            ("none", Expect::Exactly(2)),
        ] {
            let refused = store.put(key(name), value("x"), expect).await;
            assert!(matches!(refused, Err(Error::Conflict { .. })), "{name} {expect:?}");
            let refused = store.delete(key(name), expect).await;
            assert!(matches!(refused, Err(Error::Conflict { .. })), "{name} {expect:?}");
        }
        assert_eq!(store.revision(), 2);
        assert_eq!(store.get(&key("a")).unwrap().value, value("2"));
    })
    .await;
}

#[tokio::test]
async fn a_conflict_names_both_revisions() {
    let store = MemoryStore::new();
    store.put(key("a"), value("1"), Expect::Any).await.unwrap();
    let error = store.put(key("a"), value("2"), Expect::Exactly(7)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "services/shop/a was changed meanwhile: expected resourceVersion 7, found resourceVersion 1"
    );
}

#[tokio::test]
async fn a_transaction_happens_wholly_or_not_at_all() {
    each(async |store| {
        store.put(key("a"), value("1"), Expect::Any).await.unwrap();
        let put = |name: &str, expect| Operation::Put { key: key(name), value: value("2"), expect };
        let refused = store
            .commit(vec![
                put("b", Expect::Any),
                Operation::Delete { key: key("a"), expect: Expect::Any },
                put("a", Expect::Exactly(1)),
            ])
            .await;
        assert!(
            matches!(refused, Err(Error::Conflict { operation: 2, found: None, .. })),
            "the third operation sees what the second did: {refused:?}"
        );
        assert_eq!((store.revision(), store.list(&Selection::all()).items.len()), (1, 1));

        let done = store
            .commit(vec![
                put("b", Expect::MustNotExist),
                put("c", Expect::MustNotExist),
                Operation::Delete { key: key("a"), expect: Expect::Exactly(1) },
                Operation::Delete { key: key("nothing"), expect: Expect::Any },
            ])
            .await
            .unwrap();
        assert_eq!(done.revision, 2);
        assert_eq!(
            done.objects.iter().map(Option::is_some).collect::<Vec<_>>(),
            [true, true, true, false]
        );
        let listed = store.list(&Selection::all());
        assert_eq!(listed.items.iter().map(|o| o.modified).collect::<Vec<_>>(), [2, 2]);
    })
    .await;
}

#[tokio::test]
async fn a_list_is_sorted_and_keeps_to_its_kind_and_namespace() {
    each(async |store| {
        for (plural, namespace, name) in [
            ("services", "shop", "b"),
            ("services", "shop", "a"),
            ("services", "shop2", "a"),
            ("services", "sho", "a"),
            ("workloads", "shop", "a"),
            ("serv", "shop", "a"),
        ] {
            let key = Key::new("leno.dev", plural, namespace, name);
            store.put(key, value("1"), Expect::Any).await.unwrap();
        }
        let names = |selection: Selection| -> Vec<String> {
            store.list(&selection).items.iter().map(|o| o.key.to_string()).collect()
        };
        let services = Selection::kind("leno.dev", "services");
        assert_eq!(
            names(services.clone()),
            ["services/sho/a", "services/shop/a", "services/shop/b", "services/shop2/a"]
        );
        assert_eq!(names(services.within("shop")), ["services/shop/a", "services/shop/b"]);
        assert_eq!(names(Selection::all().within("shop")).len(), 4);
        assert_eq!(names(Selection::kind("", "services")).len(), 0);
        assert_eq!(names(Selection::all()).len(), 6);
    })
    .await;
}

#[tokio::test]
async fn a_watch_sees_every_change_once_in_order_with_what_was_before() {
    each(async |store| {
        store.put(key("a"), value("1"), Expect::Any).await.unwrap();
        let mut watch = store.watch(0, Selection::kind("leno.dev", "services")).unwrap();
        let other = Key::new("leno.dev", "workloads", "shop", "a");
        store.put(other, value("1"), Expect::Any).await.unwrap();
        store.put(key("a"), value("2"), Expect::Any).await.unwrap();
        store.delete(key("a"), Expect::Any).await.unwrap();
        let mut seen = Vec::new();
        while seen.len() < 3 {
            let batch = watch.next().await.unwrap();
            seen.extend(batch.events.iter().map(|event| {
                let before = event.previous.as_ref().map(|before| before.value.clone());
                (event.revision, event.change, event.object.value.clone(), before)
            }));
        }
        assert_eq!(
            seen,
            [
                (1, Change::Created, value("1"), None),
                (3, Change::Updated, value("2"), Some(value("1"))),
                (4, Change::Deleted, value("2"), None),
            ]
        );
        assert_eq!(watch.seen(), 4);
        assert!(watch.ready().unwrap().is_none());
    })
    .await;
}

#[tokio::test]
async fn a_waiting_watch_is_woken_by_a_write_and_ended_by_shutdown() {
    let directory = TempDir::new().unwrap();
    let embedded: Arc<dyn Store> = Arc::new(EmbeddedStore::open(directory.path()).unwrap());
    for store in [Arc::new(MemoryStore::new()) as Arc<dyn Store>, embedded] {
        let mut watch = store.watch(0, Selection::all()).unwrap();
        let waiting = tokio::spawn(async move {
            let first = watch.next().await.unwrap().revision;
            (first, watch.next().await)
        });
        tokio::task::yield_now().await;
        store.put(key("a"), value("1"), Expect::Any).await.unwrap();
        tokio::task::yield_now().await;
        drop(store);
        let ended = tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap().unwrap();
        assert_eq!(ended.0, 1);
        assert!(matches!(ended.1, Err(Error::Closed)));
    }
}

#[tokio::test]
async fn a_watch_from_a_forgotten_or_future_revision_is_refused() {
    each(async |store| {
        for text in ["1", "2", "3", "4"] {
            store.put(key("a"), value(text), Expect::Any).await.unwrap();
        }
        let mut slow = store.watch(0, Selection::all()).unwrap();
        store.compact(2).await.unwrap();
        let refused = store.watch(1, Selection::all());
        assert!(matches!(refused, Err(Error::TooOld { requested: 1, oldest: 2 })));
        assert!(matches!(slow.next().await, Err(Error::TooOld { .. })), "it fell behind");
        assert!(matches!(store.watch(5, Selection::all()), Err(Error::NotYet { current: 4, .. })));
        let mut watch = store.watch(2, Selection::all()).unwrap();
        let revisions =
            watch.next().await.unwrap().events.iter().map(|e| e.revision).collect::<Vec<_>>();
        assert_eq!(revisions, [3, 4]);
        store.compact(u64::MAX).await.unwrap();
        assert!(store.watch(4, Selection::all()).is_ok(), "from now on is always possible");
    })
    .await;
}

#[tokio::test]
async fn the_history_is_bounded_by_count_and_by_bytes() {
    let counted = MemoryStore::with_history(3, usize::MAX);
    let weighed = MemoryStore::with_history(usize::MAX, 10_000);
    for store in [&counted, &weighed] {
        for round in 0..10 {
            let filler = value(&"x".repeat(1_000 + round));
            store.put(key("a"), filler, Expect::Any).await.unwrap();
        }
        assert!(matches!(store.watch(0, Selection::all()), Err(Error::TooOld { .. })));
    }
    assert!(matches!(counted.watch(6, Selection::all()), Err(Error::TooOld { oldest: 7, .. })));
    assert!(counted.watch(7, Selection::all()).is_ok());
    assert!(weighed.watch(8, Selection::all()).is_ok());
}

#[tokio::test]
async fn large_histories_come_in_batches_of_whole_transactions() {
    let store = MemoryStore::new();
    for round in 0..40 {
        let operations = (0..30).map(|n| Operation::Put {
            key: key(&format!("{round}-{n}")),
            value: value("1"),
            expect: Expect::Any,
        });
        store.commit(operations.collect()).await.unwrap();
    }
    let mut watch = store.watch(0, Selection::all()).unwrap();
    let mut counts = Vec::new();
    while let Some(batch) = watch.ready().unwrap() {
        assert_eq!(batch.events.len() % 30, 0, "a transaction was torn");
        assert_eq!(batch.events.last().unwrap().revision, batch.revision);
        counts.push(batch.events.len());
    }
    assert_eq!(counts.iter().sum::<usize>(), 1200);
    assert!(counts.len() > 1);
}

#[tokio::test]
async fn status_is_written_for_the_generation_it_is_about() {
    each(async |store| {
        store.put(key("a"), value("1"), Expect::Any).await.unwrap();
        let live = json!({"live": 3});
        let stale = store.write_status(key("a"), 2, live.clone()).await.unwrap();
        assert_eq!((stale.revision, stale.objects[0].is_none()), (1, true));
        store.write_status(key("none"), 1, live.clone()).await.unwrap();
        let written = store.write_status(key("a"), 1, live.clone()).await.unwrap();
        assert_eq!(written.revision, 2);
        let again = store.write_status(key("a"), 1, live.clone()).await.unwrap();
        assert_eq!(again.revision, 2, "the same status again writes nothing");
        let object = store.get(&key("a")).unwrap().json().unwrap();
        assert_eq!((&object["spec"], &object["status"]), (&json!("1"), &live));
        assert_eq!(object["metadata"]["generation"], 1);
        let stored = store.get(&key("a")).unwrap();
        assert_eq!((stored.created, stored.modified, stored.content), (1, 2, 1));
        let batch = store.watch(1, Selection::all()).unwrap().next().await.unwrap();
        assert_eq!(batch.events[0].change, Change::StatusWritten);
    })
    .await;
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    each(async |store| {
        let large = Bytes::from(vec![b' '; MAX_VALUE_BYTES + 1]);
        let refused = store.put(key("a"), large, Expect::Any).await;
        assert!(matches!(refused, Err(Error::ValueTooLarge { .. })));
        let many = (0..=MAX_OPERATIONS)
            .map(|n| Operation::Delete { key: key(&n.to_string()), expect: Expect::Any });
        let refused = store.commit(many.collect()).await;
        assert!(matches!(refused, Err(Error::TransactionTooLarge { .. })));
        assert_eq!(store.revision(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_writers_who_expect_the_same_revision_one_wins() {
    each(async |store| {
        store.put(key("a"), value("0"), Expect::Any).await.unwrap();
        let writers = (0..64).map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                store.put(key("a"), value(&n.to_string()), Expect::Exactly(1)).await.is_ok()
            })
        });
        let mut winners = 0;
        for writer in writers.collect::<Vec<_>>() {
            winners += usize::from(writer.await.unwrap());
        }
        assert_eq!((winners, store.revision()), (1, 2));
    })
    .await;
}

/// A step of a random history: few names and revisions, so that they meet.
fn step() -> impl Strategy<Value = Transaction> {
    let expect = prop_oneof![
        4 => Just(Expect::Any),
        1 => Just(Expect::MustNotExist),
        1 => Just(Expect::Exists),
        2 => (0u64..12).prop_map(Expect::Exactly),
    ];
    let name = || (0u8..4).prop_map(|n| key(&n.to_string()));
    let operation = prop_oneof![
        4 => (name(), "[a-c]{1,3}", expect.clone())
            .prop_map(|(key, text, expect)| Operation::Put { key, value: value(&text), expect }),
        2 => (name(), expect).prop_map(|(key, expect)| Operation::Delete { key, expect }),
        1 => (name(), 0u64..2, 0u8..3).prop_map(|(key, generation, status)| {
            Operation::Status { key, generation, status: json!(status) }
        }),
    ];
    prop::collection::vec(operation, 1..4)
}

/// Everything that can be seen of a store, in a form that compares.
fn visible(store: &dyn Store) -> (u64, Vec<Arc<Stored>>, Vec<Arc<Event>>) {
    let listing = store.list(&Selection::all());
    let mut watch = store.watch(0, Selection::all()).unwrap();
    let mut events = Vec::new();
    while let Some(batch) = watch.ready().unwrap() {
        events.extend(batch.events);
    }
    (listing.revision, listing.items, events)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Both stores tell the same story, and the embedded one tells it again after a restart.
    #[test]
    fn memory_and_embedded_agree(history in prop::collection::vec(step(), 1..20), restart in 0usize..20) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let directory = TempDir::new().unwrap();
        let memory = MemoryStore::new();
        let mut embedded = EmbeddedStore::open(directory.path()).unwrap();
        for (index, transaction) in history.into_iter().enumerate() {
            if index == restart {
                drop(embedded);
                embedded = EmbeddedStore::open(directory.path()).unwrap();
            }
            let one = runtime.block_on(memory.commit(transaction.clone()));
            let two = runtime.block_on(embedded.commit(transaction));
            prop_assert_eq!(outcome(one), outcome(two));
        }
        prop_assert_eq!(visible(&memory), visible(&embedded));
        drop(embedded);
        let reopened = EmbeddedStore::open(directory.path()).unwrap();
        prop_assert_eq!(visible(&memory), visible(&reopened));
    }
}

type Outcome = Result<(u64, Vec<Option<Arc<Stored>>>), String>;

fn outcome(result: Result<Committed, Error>) -> Outcome {
    result.map(|done| (done.revision, done.objects)).map_err(|error| error.to_string())
}
