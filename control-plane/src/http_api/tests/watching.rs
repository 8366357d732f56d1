//! Watches: order, resumption, selectors, ends.

use super::*;

fn event(what: &str, name: &str, revision: u64) -> Option<(String, String, String)> {
    Some((what.into(), name.into(), revision.to_string()))
}

#[tokio::test]
async fn a_watch_tells_what_is_there_and_then_every_change() {
    let server = Server::start().await;
    server.post(SERVICES, &service("a")).await.ok();
    server.post(SERVICES, &service("b")).await.ok();
    let mut lines = server.call("GET", format!("{SERVICES}?watch=1")).lines().await;
    assert_eq!(lines.event().await, event("ADDED", "a", 1));
    assert_eq!(lines.event().await, event("ADDED", "b", 2));
    server.patch(&format!("{SERVICES}/a"), MERGE, &json!({"spec": {"hosts": ["x"]}})).await.ok();
    server.post(WORKLOADS, &workload("unseen")).await.ok();
    server.delete(&format!("{SERVICES}/a")).await.ok();
    assert_eq!(lines.event().await, event("MODIFIED", "a", 3));
    assert_eq!(lines.event().await, event("DELETED", "a", 5));
}

#[tokio::test]
async fn a_watch_goes_on_after_a_revision_or_is_told_that_it_is_too_old() {
    let server = Server::start().await;
    for name in ["a", "b", "c"] {
        server.post(SERVICES, &service(name)).await.ok();
    }
    let watch = |revision: &str| format!("{SERVICES}?watch=true&resourceVersion={revision}");
    let mut lines = server.call("GET", watch("1")).lines().await;
    assert_eq!(lines.event().await, event("ADDED", "b", 2));
    assert_eq!(lines.event().await, event("ADDED", "c", 3));
    server.store.compact(2).await.unwrap();
    server.get(&watch("1")).await.refused(410, "Expired");
    server.get(&watch("99")).await.refused(410, "Expired");
    server.get(&watch("x")).await.refused(400, "BadRequest");
    let mut lines = server.call("GET", watch("2")).lines().await;
    assert_eq!(lines.event().await, event("ADDED", "c", 3));
}

#[tokio::test]
async fn a_selector_turns_changes_into_coming_and_going() {
    let server = Server::start().await;
    let path = format!("{SERVICES}?watch=1&labelSelector=team%3Da&resourceVersion=0");
    let mut lines = server.call("GET", path).lines().await;
    let label = |team: &str| json!({"metadata": {"labels": {"team": team}}});
    server.post(SERVICES, &service("x")).await.ok();
    let path = format!("{SERVICES}/x");
    server.patch(&path, MERGE, &label("a")).await.ok();
    server.patch(&path, MERGE, &json!({"spec": {"hosts": ["x"]}})).await.ok();
    server.patch(&path, MERGE, &label("b")).await.ok();
    server.patch(&path, MERGE, &label("a")).await.ok();
    server.delete(&path).await.ok();
    for (what, revision) in
        [("ADDED", 2), ("MODIFIED", 3), ("DELETED", 4), ("ADDED", 5), ("DELETED", 6)]
    {
        assert_eq!(lines.event().await, event(what, "x", revision));
    }
}

#[tokio::test]
async fn bookmarks_and_the_end_come_when_asked_for() {
    let server = Server::start().await;
    server.post(SERVICES, &service("a")).await.ok();
    server.post(WORKLOADS, &workload("w")).await.ok();
    let query = "watch=1&allowWatchBookmarks=true&timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let mut lines = server.call("GET", format!("{SERVICES}?{query}")).lines().await;
    assert_eq!(lines.event().await, event("ADDED", "a", 1));
    let bookmark: Value = serde_json::from_str(&lines.line().await.unwrap()).unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(lines.event().await, event("BOOKMARK", "", 2), "the last line says how far it came");
    assert_eq!(lines.event().await, None);
}

#[tokio::test]
async fn a_watch_that_falls_behind_is_told_so() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::with_history(3, usize::MAX));
    let server = Server::with(store, false).await;
    server.post(SERVICES, &service("a")).await.ok();
    let path = format!("{SERVICES}?watch=1&resourceVersion=1");
    let mut lines = server.call("GET", path).lines().await;
    // All in one go, so that the watch cannot keep up.
    let operations = (0..10).map(|n| crate::store::Operation::Put {
        key: Key::new("leno.dev", "services", "shop", &format!("n{n}")),
        value: service(&format!("n{n}")).to_string().into(),
        expect: crate::store::Expect::Any,
    });
    server.store.commit(operations.collect()).await.unwrap();
    let error: Value = serde_json::from_str(&lines.line().await.unwrap()).unwrap();
    assert_eq!((&error["type"], &error["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(lines.line().await, None);
}

#[tokio::test]
async fn a_watch_can_be_a_table() {
    let server = Server::start().await;
    server.post(SERVICES, &service("a")).await.ok();
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let call = server.call("GET", format!("{SERVICES}?watch=1")).header("Accept", accept);
    let event: Value = serde_json::from_str(&call.lines().await.line().await.unwrap()).unwrap();
    assert_eq!(event["object"]["kind"], "Table");
    assert_eq!(event["object"]["rows"][0]["cells"][0], "a");
}

#[tokio::test]
async fn the_number_of_watches_is_bounded() {
    let server = Server::start().await;
    let all = server.api.watches.clone().acquire_many_owned(MAX_WATCHES as u32).await.unwrap();
    let path = format!("{SERVICES}?watch=1");
    let answer = server.get(&path).await;
    answer.refused(429, "TooManyRequests");
    assert!(answer.head.contains("retry-after: 1"), "{}", answer.head);
    drop(all);
    let lines = server.call("GET", path).lines().await;
    assert_eq!(server.api.watches.available_permits(), MAX_WATCHES - 1);
    drop(lines);
}

#[tokio::test]
async fn a_server_that_stops_ends_its_watches_and_finishes_what_is_under_way() {
    let server = Server::start().await;
    let mut lines = server.call("GET", format!("{SERVICES}?watch=1")).lines().await;
    // A request whose body is still on its way.
    let object = service("late").to_string();
    let head = format!(
        "POST {SERVICES} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {JSON}\r\n\
         Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        object.len()
    );
    let mut late = TcpStream::connect(server.address).await.unwrap();
    late.write_all(head.as_bytes()).await.unwrap();
    // It has begun: the body is asked for.
    let mut interim = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
    tokio::time::timeout(PATIENCE, late.read_exact(&mut interim)).await.unwrap().unwrap();
    assert!(interim.starts_with(b"HTTP/1.1 100 "), "{}", interim.escape_ascii());
    server.stop.send_replace(true);
    assert_eq!(lines.line().await, None);
    late.write_all(object.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    late.read_to_end(&mut answer).await.unwrap();
    assert_eq!(Answer::read(answer).code, 201);
    tokio::time::timeout(PATIENCE, server.serving).await.expect("it goes on").unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}
