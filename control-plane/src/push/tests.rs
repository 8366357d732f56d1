//! The tally by a hand-driven clock, the words of a status, and the task against a store.

use std::time::Instant;

use serde_json::{Value, json};

use super::{
    report::{analysed, status},
    tally::{INTERVAL, MAX_NAMED, MAX_TOLD_APART, Reason, Report, SETTLE, Tally},
    *,
};
use crate::{
    findings::Findings,
    plan::tests::{identity, item, key, named, route, service},
    store::{Expect, Key as StoreKey, MemoryStore, Operation},
};

fn verdict(version: &str, result: Result<(), String>) -> Verdict {
    Verdict { key: key("Service shop/a"), version: version.into(), result }
}

fn tally() -> (Tally, Arc<str>, Instant) {
    let (mut tally, now) = (Tally::default(), Instant::now());
    let item = item(service("shop/a", &[]), 1);
    tally.put(&item, now);
    assert_eq!(tally.take_due(now, 10, |_| 0).len(), 1);
    (tally, item.version.clone(), now)
}

#[test]
fn reports_wait_a_moment_and_come_at_most_once_a_second() {
    let (mut tally, version, start) = tally();
    let mut reports = Vec::new();
    for step in 0_u32..300 {
        let now = start + Duration::from_millis(10) * step;
        // Some proxy answers all the time.
        tally.verdict(ProxyId(step.into()), verdict(&version, Ok(())), now);
        let due = tally.take_due(now, 10, |_| 300);
        reports.extend(due.into_iter().map(|report| (now - start, report.live)));
    }
    assert_eq!(reports.len(), 2, "{reports:?}");
    assert!(reports[0].0 >= INTERVAL && reports[1].0 >= INTERVAL * 2, "{reports:?}");
    // Whatever came last is said in the end.
    let late = tally.take_due(start + INTERVAL * 4, 10, |_| 300);
    assert_eq!(late[0].live, 300);
    assert!(tally.take_due(start + INTERVAL * 9, 10, |_| 300).is_empty(), "nothing is said twice");
}

#[test]
fn only_verdicts_about_the_current_version_count() {
    let (mut tally, version, now) = tally();
    let (one, two) = (ProxyId(1), ProxyId(2));
    tally.verdict(one, verdict("0-0", Ok(())), now);
    assert!(tally.take_due(now + INTERVAL, 10, |_| 2).is_empty());
    tally.verdict(one, verdict(&version, Ok(())), now);
    tally.verdict(two, verdict(&version, Err("x".repeat(5000))), now);
    let report = tally.take_due(now + INTERVAL, 10, |_| 2).remove(0);
    assert_eq!((report.live, report.rejected, report.connected), (1, 1, 2));
    assert!(report.named[0].1.len() < 2000, "reasons are bounded");
    // A proxy may think again, or leave.
    tally.verdict(two, verdict(&version, Ok(())), now);
    tally.left(one, &key("Service shop/a"), now);
    let report = tally.take_due(now + INTERVAL * 3, 10, |_| 1).remove(0);
    assert_eq!((report.live, report.rejected), (1, 0));
    // A new version begins anew.
    tally.put(&item(service("shop/a", &["x"]), 2), now + SETTLE);
    let report = tally.take_due(now + INTERVAL * 9, 10, |_| 1).remove(0);
    assert_eq!((report.live, report.rejected), (0, 0));
}

#[test]
fn what_is_deleted_is_reported_no_more() {
    let (mut tally, version, now) = tally();
    tally.verdict(ProxyId(1), verdict(&version, Ok(())), now);
    tally.remove(&key("Service shop/a"));
    tally.verdict(ProxyId(2), verdict(&version, Ok(())), now);
    assert!(tally.take_due(now + INTERVAL * 9, 10, |_| 1).is_empty());
}

#[test]
fn a_status_names_a_bounded_number_of_proxies() {
    let (mut tally, version, now) = tally();
    for number in 0..100 {
        tally.verdict(ProxyId(number), verdict(&version, Err("no".into())), now);
    }
    let report = tally.take_due(now + INTERVAL, 10, |_| 100).remove(0);
    assert_eq!((report.rejected, report.named.len()), (100, MAX_NAMED));
    let reason = Reason { reason: "no".into(), proxies: 100, example: ProxyId(0) };
    assert_eq!(report.reasons, [reason]);
}

#[test]
fn the_reasons_of_most_are_told() {
    let (mut tally, version, now) = tally();
    for number in 0..10_u64 {
        // One proxy has the reason 0, two have 1, and so on.
        for proxy in 0..=number {
            let reason = format!("reason {number}");
            tally.verdict(ProxyId(number * 100 + proxy), verdict(&version, Err(reason)), now);
        }
    }
    let reasons = tally.take_due(now + INTERVAL, 10, |_| 55).remove(0).reasons;
    let found: Vec<_> = reasons.iter().map(|reason| (&*reason.reason, reason.proxies)).collect();
    assert_eq!(found[..2], [("reason 9", 10), ("reason 8", 9)]);
    assert_eq!((found.len(), reasons[0].example), (MAX_TOLD_APART, ProxyId(900)));
}

fn running(version: &str) -> Option<Arc<Running>> {
    Some(Arc::new(Running { version: version.into(), digest: "ab".into(), trial: None }))
}

#[test]
fn versions_are_counted_and_nothing_is_said_of_what_does_not_change() {
    let (mut tally, _, now) = tally();
    let key = key("Service shop/a");
    let found = |tally: &mut Tally, at: u32| {
        let reports = tally.take_due(now + INTERVAL * at, 10, |_| 9);
        let versions = reports.into_iter().flat_map(|report| report.versions);
        versions.map(|(running, count)| (running.version.clone(), count)).collect::<Vec<_>>()
    };
    for (proxy, version) in [(1, "a"), (2, "b"), (3, "b")] {
        tally.runs(ProxyId(proxy), &key, running(version), now);
    }
    assert_eq!(found(&mut tally, 1), [("b".to_owned(), 2), ("a".to_owned(), 1)]);
    tally.runs(ProxyId(3), &key, running("b"), now + INTERVAL * 2);
    tally.runs(ProxyId(4), &key, None, now + INTERVAL * 2);
    assert!(tally.take_due(now + INTERVAL * 9, 10, |_| 9).is_empty(), "nothing has changed");
    // A new version of the object does not change what runs; leaving does.
    tally.put(&item(service("shop/a", &["x"]), 2), now + INTERVAL * 10);
    assert_eq!(found(&mut tally, 10).len(), 2);
    tally.left(ProxyId(1), &key, now + INTERVAL * 11);
    tally.runs(ProxyId(2), &key, None, now + INTERVAL * 11);
    assert_eq!(found(&mut tally, 12), [("b".to_owned(), 1)]);
    (0..100).for_each(|proxy| {
        tally.runs(ProxyId(proxy), &key, running(&proxy.to_string()), now + INTERVAL * 13);
    });
    assert_eq!(found(&mut tally, 14).len(), MAX_TOLD_APART);
}

fn report() -> Report {
    Report {
        key: key("Service shop/a"),
        generation: 3,
        unusable: None,
        connected: 3,
        live: 3,
        rejected: 0,
        named: Vec::new(),
        reasons: Vec::new(),
        versions: Vec::new(),
    }
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    let conditions = status["conditions"].as_array().unwrap();
    conditions.iter().find(|condition| condition["type"] == kind).unwrap()
}

#[test]
fn the_words_of_a_status() {
    let names = [(ProxyId(7), "shop/p7".to_owned())].into();
    let rejected = vec![(ProxyId(7), "no such thing".to_owned())];
    let rows = [
        (report(), "True", "Live", "live on 3 of 3"),
        (Report { live: 1, ..report() }, "False", "Pending", "live on 1 of 3"),
        (Report { connected: 0, live: 0, ..report() }, "Unknown", "NotUsed", "no connected proxy"),
        (
            Report { live: 2, rejected: 1, named: rejected.clone(), ..report() },
            "False",
            "Rejected",
            "live on 2 of 3 connected proxies that use it, rejected by 1: no such thing",
        ),
        (Report { unusable: Some("odd".into()), ..report() }, "False", "Invalid", "not sent"),
    ];
    for (report, wanted, reason, message) in rows {
        let status = status(&report, &names, &[], Value::Null, "now");
        let live = condition(&status, "Live");
        assert_eq!((&live["status"], &live["reason"]), (&json!(wanted), &json!(reason)));
        assert!(live["message"].as_str().unwrap().contains(message), "{live}");
        let accepted = condition(&status, "Accepted")["status"] == "True";
        assert_eq!(accepted, report.unusable.is_none());
        assert_eq!(status["observedGeneration"], 3);
        let count = usize::from(!report.named.is_empty());
        assert_eq!(status["proxies"]["rejected"].as_array().unwrap().len(), count);
    }
}

#[test]
fn a_condition_keeps_its_time_while_it_stays_and_foreign_fields_stay() {
    let before = status(&report(), &[].into(), &[], json!({"foreign": 1}), "first");
    let same = status(&report(), &[].into(), &[], before, "second");
    assert_eq!(condition(&same, "Live")["lastTransitionTime"], "first");
    let pending = Report { live: 0, ..report() };
    let changed = status(&pending, &[].into(), &[], same, "third");
    assert_eq!(condition(&changed, "Live")["lastTransitionTime"], "third");
    assert_eq!(condition(&changed, "Accepted")["lastTransitionTime"], "first");
    assert_eq!(changed["foreign"], 1);
}

#[test]
fn what_is_odd_is_said_beside_what_is_live_and_taken_back() {
    let said = vec![("spec.parentRefs[0]".to_owned(), "there is no such service".to_owned())];
    let odd = status(&report(), &[].into(), &said, Value::Null, "first");
    let passed = condition(&odd, "PassedAnalysis");
    assert_eq!((&passed["status"], &passed["reason"]), (&json!("False"), &json!("Findings")));
    assert_eq!(passed["message"], "spec.parentRefs[0]: there is no such service");
    assert_eq!(odd["findings"][0]["path"], "spec.parentRefs[0]");

    let fine = analysed(&[], 3, odd.clone(), "second");
    let passed = condition(&fine, "PassedAnalysis");
    assert_eq!(
        (&passed["status"], &passed["lastTransitionTime"]),
        (&json!("True"), &json!("second"))
    );
    assert_eq!(fine["findings"], json!([]));
    assert_eq!(condition(&fine, "Live"), condition(&odd, "Live"));
    assert_eq!(fine["proxies"], odd["proxies"]);
    assert_eq!(analysed(&[], 4, odd.clone(), "second"), odd, "not yet reported about");
}

#[tokio::test(start_paused = true)]
async fn a_status_follows_what_others_do() {
    let store = Arc::new(MemoryStore::new());
    put(&store, "services", "a", &service("shop/a", &[])).await;
    put(&store, "httproutes", "r", &route("shop/r", &["shop/a"], &["gone"])).await;
    let _push = start(&store);
    let passed = async |wanted: &str| {
        loop {
            let object = store.get(&store_key("httproutes", "r")).unwrap().json().unwrap();
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let found = conditions.into_iter().find(|found| found["type"] == "PassedAnalysis");
            if found.is_some_and(|found| found["status"] == wanted) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let within = Duration::from_secs(60);
    tokio::time::timeout(within, passed("False")).await.unwrap();
    put(&store, "services", "gone", &service("shop/gone", &[])).await;
    tokio::time::timeout(within, passed("True")).await.unwrap();
}

fn store_key(plural: &str, name: &str) -> StoreKey {
    let group = if plural == "services" { "leno.dev" } else { "gateway.networking.k8s.io" };
    StoreKey::new(group, plural, "shop", name)
}

async fn put(store: &MemoryStore, plural: &str, name: &str, object: &Value) {
    let key = store_key(plural, name);
    store.put(key, object.to_string().into(), Expect::Any).await.unwrap();
}

fn start(store: &Arc<MemoryStore>) -> Arc<Push> {
    let (push, task) =
        Push::new(store.clone(), Findings::new(store.clone()), Arc::new(Metrics::new().unwrap()));
    tokio::spawn(task.run());
    push
}

/// What the proxy should have, after the next news.
async fn news(connection: &Connection) -> Vec<String> {
    let pending = connection.changed().await;
    let items = pending.delta.items.iter();
    let mut names: Vec<_> = items
        .map(|(key, item)| format!("{}{key}", if item.is_some() { "+" } else { "-" }))
        .collect();
    names.sort_unstable();
    names
}

#[tokio::test(start_paused = true)]
async fn changes_reach_the_proxies_concerned_and_bursts_go_out_together() {
    let store = Arc::new(MemoryStore::new());
    put(&store, "services", "a", &service("shop/a", &[])).await;
    put(&store, "services", "b", &service("shop/b", &[])).await;
    let push = start(&store);
    let one = push.connect("one".into(), identity("shop", None)).await.unwrap();
    let two = push.connect("two".into(), identity("shop", None)).await.unwrap();
    one.subscribe(1, vec![named("shop/a")], vec![]).await.unwrap();
    two.subscribe(1, vec![named("shop/b")], vec![]).await.unwrap();
    assert_eq!(news(&one).await, ["+Service shop/a"]);
    assert_eq!(news(&two).await, ["+Service shop/b"]);
    // The first change goes out at once, the others of the window in one.
    let begun = tokio::time::Instant::now();
    put(&store, "httproutes", "r", &route("shop/r", &["shop/a"], &["a"])).await;
    assert_eq!(news(&one).await, ["+HTTPRoute shop/r"]);
    assert!(begun.elapsed() < WINDOW);
    for _ in 0..100 {
        put(&store, "httproutes", "r", &route("shop/r", &["shop/a"], &["a"])).await;
    }
    put(&store, "services", "a", &service("shop/a", &["x"])).await;
    assert_eq!(news(&one).await, ["+HTTPRoute shop/r", "+Service shop/a"]);
    assert!(begun.elapsed() < WINDOW * 4, "{:?}", begun.elapsed());
    let quiet = tokio::time::timeout(Duration::from_secs(9), two.changed()).await;
    assert!(quiet.is_err(), "nothing of this concerns the other proxy");
}

#[tokio::test(start_paused = true)]
async fn a_subscription_that_changes_nothing_is_answered_all_the_same() {
    let push = start(&Arc::new(MemoryStore::new()));
    let one = push.connect("one".into(), identity("shop", None)).await.unwrap();
    for sequence in 1..4 {
        one.subscribe(sequence, vec![], vec![]).await.unwrap();
        let pending = one.changed().await;
        assert_eq!((pending.answered, pending.delta.is_empty()), (sequence, true));
    }
}

#[tokio::test(start_paused = true)]
async fn when_the_history_is_too_short_everything_is_read_anew() {
    let store = Arc::new(MemoryStore::with_history(4, 1 << 20));
    for name in ["a", "b", "gone"] {
        put(&store, "services", name, &service(&format!("shop/{name}"), &[])).await;
    }
    let push = start(&store);
    let one = push.connect("one".into(), identity("shop", None)).await.unwrap();
    let all = ["shop/a", "shop/b", "shop/gone"].map(named).to_vec();
    one.subscribe(1, all, vec![]).await.unwrap();
    assert_eq!(news(&one).await.len(), 3);
    // More in one go than the history holds, before the task has a chance to look.
    let mut transaction = vec![
        Operation::Delete { key: store_key("services", "gone"), expect: Expect::Any },
        Operation::Put {
            key: store_key("services", "a"),
            value: service("shop/a", &["x"]).to_string().into(),
            expect: Expect::Any,
        },
    ];
    for number in 0..20 {
        let object = service(&format!("shop/s{number}"), &[]).to_string();
        let key = store_key("services", &format!("s{number}"));
        transaction.push(Operation::Put { key, value: object.into(), expect: Expect::Any });
    }
    store.commit(transaction).await.unwrap();
    assert_eq!(news(&one).await, ["+Service shop/a", "-Service shop/gone"]);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_used_keeps_its_last_good_version_and_says_so() {
    let store = Arc::new(MemoryStore::new());
    put(&store, "services", "a", &service("shop/a", &[])).await;
    let push = start(&store);
    let one = push.connect("one".into(), identity("shop", None)).await.unwrap();
    one.subscribe(1, vec![named("shop/a")], vec![]).await.unwrap();
    assert_eq!(news(&one).await, ["+Service shop/a"]);
    let mut newer = service("shop/a", &[]);
    newer["spec"]["fromTheFuture"] = json!(true);
    newer["metadata"]["generation"] = json!(2);
    put(&store, "services", "a", &newer).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let quiet = tokio::time::timeout(Duration::from_secs(1), one.changed()).await;
    assert!(quiet.is_err());
    let stored = store.get(&store_key("services", "a")).unwrap().json().unwrap();
    let accepted = condition(&stored["status"], "Accepted");
    assert_eq!(accepted["status"], "False", "{stored}");
    assert!(accepted["message"].as_str().unwrap().contains("fromTheFuture"), "{accepted}");
    assert_eq!(stored["metadata"]["generation"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_never_looks_costs_no_more_than_its_scope() {
    let store = Arc::new(MemoryStore::new());
    let push = start(&store);
    let one = push.connect("one".into(), identity("shop", None)).await.unwrap();
    one.subscribe(1, vec![named("shop/a")], vec![]).await.unwrap();
    for round in 0..1000 {
        put(&store, "services", "a", &service("shop/a", &[&format!("h{round}")])).await;
        tokio::time::sleep(WINDOW).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let pending = one.changed().await;
    assert_eq!(pending.delta.items.len(), 1);
    let latest = pending.delta.items.into_values().next().unwrap().unwrap();
    assert!(String::from_utf8_lossy(&latest.body).contains("h999"));
}

#[tokio::test(start_paused = true)]
async fn who_has_an_object_is_known_by_name_and_generation() {
    let store = Arc::new(MemoryStore::new());
    put(&store, "services", "a", &service("shop/a", &[])).await;
    let push = start(&store);
    let key = key("Service shop/a");
    let one = push.connect("one".into(), identity("shop", None)).await.unwrap();
    let _two = push.connect("two".into(), identity("shop", None)).await.unwrap();
    one.subscribe(1, vec![named("shop/a")], vec![]).await.unwrap();
    let accept = async |connection: &Connection| {
        let items = connection.changed().await.delta.items;
        let item = items.into_values().flatten().next().unwrap();
        let verdict =
            Verdict { key: item.key.clone(), version: item.version.clone(), result: Ok(()) };
        connection.report(vec![verdict]).await.unwrap();
    };
    let names =
        |names: &[&str]| names.iter().map(|name| Member::from(*name)).collect::<BTreeSet<_>>();
    assert_eq!(push.holders(key.clone()).await.unwrap().live, names(&[]));
    accept(&one).await;
    let holders = push.holders(key.clone()).await.unwrap();
    assert_eq!((&holders.live, &holders.connected), (&names(&["one"]), &names(&["one", "two"])));
    assert_eq!(holders.generation, 1);
    // It comes back, or another one comes that calls itself like it: what one stream said says nothing of the other.
    let again = push.connect("one".into(), identity("shop", None)).await.unwrap();
    again.subscribe(1, vec![named("shop/a")], vec![]).await.unwrap();
    assert_eq!(push.holders(key.clone()).await.unwrap().live, names(&[]));
    accept(&again).await;
    assert_eq!(push.holders(key.clone()).await.unwrap().live, names(&["one"]));
    let domain = leno_api::model::identity::TrustDomain::default();
    let id = leno_api::model::identity::SpiffeId::new(&domain, "shop", "web");
    let proven = Member { name: "two".into(), id: Some(id) };
    let impostor = push.connect(proven.clone(), identity("shop", None)).await.unwrap();
    impostor.subscribe(1, vec![named("shop/a")], vec![]).await.unwrap();
    accept(&impostor).await;
    let holders = push.holders(key.clone()).await.unwrap();
    assert!(holders.live.contains(&proven) && !holders.live.contains(&Member::from("two")));
    drop((one, again, impostor));
    tokio::time::sleep(Duration::from_millis(1)).await;
    let holders = push.holders(key).await.unwrap();
    assert_eq!((holders.live, holders.connected), (names(&[]), names(&["two"])));
}
