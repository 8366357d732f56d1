//! Who may: tokens, roles, hosts, origins; and leases by HTTP.

use crate::access::{NewToken, Role};

use super::*;

async fn guarded() -> (Server, impl Fn(Role, Option<&str>) -> String) {
    let server = Server::with(Arc::new(MemoryStore::new()), true).await;
    let tokens = TokenFile::open(server.directory.path()).unwrap();
    let issue = move |role, namespace: Option<&str>| {
        let (name, service_account) = ("someone", None);
        let new = NewToken { name, role, namespace, service_account, expires: None, once: false };
        format!("Bearer {}", tokens.issue(new).unwrap())
    };
    (server, issue)
}

#[tokio::test]
async fn each_token_opens_what_its_role_says() {
    let (server, issue) = guarded().await;
    let answer = server.get(SERVICES).await;
    answer.refused(401, "Unauthorized");
    assert!(answer.head.contains("www-authenticate: Bearer"), "{}", answer.head);
    let wrong = server.call("GET", SERVICES).header("Authorization", "Bearer nonsense");
    wrong.send().await.refused(401, "Unauthorized");

    let (admin, viewer) = (issue(Role::Admin, None), issue(Role::Viewer, None));
    let create = |token: &str| {
        server.call("POST", SERVICES).header("Authorization", token).with(JSON, &service("a"))
    };
    create(&viewer).send().await.refused(403, "Forbidden");
    create(&admin).send().await.ok();
    server.call("GET", SERVICES).header("Authorization", &viewer).send().await.ok();
    let delete = server.call("DELETE", SERVICES).header("Authorization", &viewer);
    delete.send().await.refused(403, "Forbidden");
    let batch = server
        .call("POST", APPLY_MANY)
        .header("Authorization", &viewer)
        .with(JSON, &json!([service("b")]));
    assert_eq!(batch.send().await.ok()["items"][0]["reason"], "Forbidden");
}

#[tokio::test]
async fn a_workload_writes_itself_under_a_lease_and_nothing_else() {
    let (server, issue) = guarded().await;
    let token = issue(Role::Workload, Some("shop"));
    let call =
        |method, path: &str| server.call(method, path.to_owned()).header("Authorization", &token);
    call("POST", WORKLOADS).with(JSON, &workload("w")).send().await.refused(403, "Forbidden");
    let mut leased = workload("w");
    leased["metadata"]["annotations"] = json!({"leno.dev/lease": "30s"});
    call("POST", WORKLOADS).with(JSON, &leased).send().await.ok();
    call("PUT", &format!("{WORKLOADS}/w/lease")).send().await.ok();
    let elsewhere = WORKLOADS.replace("shop", "other");
    call("POST", &elsewhere).with(JSON, &leased).send().await.refused(403, "Forbidden");
    call("GET", SERVICES).send().await.refused(403, "Forbidden");
    call("GET", "/apis/leno.dev/v1alpha1/workloads").send().await.refused(403, "Forbidden");
    call("GET", "/apis").send().await.ok();
    call("DELETE", &format!("{WORKLOADS}/w")).send().await.ok();
}

#[tokio::test]
async fn a_workload_touches_nothing_of_others() {
    let (server, issue) = guarded().await;
    let (admin, shop) = (issue(Role::Admin, None), issue(Role::Workload, Some("shop")));
    let tokens = TokenFile::open(server.directory.path()).unwrap();
    let orders = NewToken {
        name: "orders",
        role: Role::Workload,
        namespace: Some("shop"),
        service_account: Some("orders"),
        expires: None,
        once: false,
    };
    let orders = format!("Bearer {}", tokens.issue(orders).unwrap());
    let leased = |name: &str, account: &str| {
        let mut object = workload(name);
        object["metadata"]["annotations"] = json!({"leno.dev/lease": "30s"});
        object["spec"]["serviceAccount"] = account.into();
        object
    };
    let call = |token: &str, method, path: &str| {
        server.call(method, path.to_owned()).header("Authorization", token)
    };
    for object in [workload("hand"), leased("web", "web"), leased("mine", "orders")] {
        call(&admin, "POST", WORKLOADS).with(JSON, &object).send().await.ok();
    }
    let before = [server.stored("workloads", "web"), server.stored("workloads", "hand")];
    // Neither what people wrote nor what is of another account: not by any verb, nor by claiming to be its owner.
    for (token, name) in [(&orders, "web"), (&orders, "hand"), (&shop, "hand")] {
        let path = format!("{WORKLOADS}/{name}");
        let taken = leased(name, "orders");
        call(token, "PUT", &path).with(JSON, &taken).send().await.refused(403, "Forbidden");
        let patch = json!({"metadata": taken["metadata"], "spec": {"serviceAccount": "orders"}});
        call(token, "PATCH", &path).with(MERGE, &patch).send().await.refused(403, "Forbidden");
        let apply = format!("{path}?fieldManager=x&force=true");
        call(token, "PATCH", &apply).with(APPLY, &taken).send().await.refused(403, "Forbidden");
        let many = call(token, "POST", APPLY_MANY).with(JSON, &json!([taken])).send().await;
        assert_eq!(many.ok()["items"][0]["reason"], "Forbidden");
        call(token, "PUT", &format!("{path}/lease")).send().await.refused(403, "Forbidden");
        call(token, "DELETE", &path).send().await.refused(403, "Forbidden");
        call(token, "DELETE", WORKLOADS).send().await.refused(403, "Forbidden");
    }
    let after = [server.stored("workloads", "web"), server.stored("workloads", "hand")];
    assert_eq!(after, before);
    // Its own it may; and a token without an account all that is leased in its namespace.
    call(&orders, "PUT", &format!("{WORKLOADS}/mine/lease")).send().await.ok();
    call(&orders, "DELETE", &format!("{WORKLOADS}/mine")).send().await.ok();
    call(&shop, "DELETE", &format!("{WORKLOADS}/web")).send().await.ok();
}

#[tokio::test]
async fn a_lease_is_renewed_where_there_is_one() {
    let server = Server::start().await;
    server.post(WORKLOADS, &workload("hand")).await.ok();
    let lease = |name: &str| format!("{WORKLOADS}/{name}/lease");
    server.call("PUT", lease("hand")).send().await.refused(404, "NotFound");
    server.call("PUT", lease("none")).send().await.refused(404, "NotFound");
    server.call("GET", lease("hand")).send().await.refused(405, "MethodNotAllowed");
    server.call("PUT", format!("{SERVICES}/x/lease")).send().await.refused(404, "NotFound");
    let mut leased = workload("leased");
    leased["metadata"]["annotations"] = json!({"leno.dev/lease": "1s"});
    server.post(WORKLOADS, &leased).await.ok();
    server.call("PUT", lease("leased")).send().await.ok();
    assert_eq!(server.registry.leased(), 1);
    for bad in ["soon", "0s", "1000h"] {
        leased["metadata"] = json!({"name": "bad", "annotations": {"leno.dev/lease": bad}});
        let answer = server.post(WORKLOADS, &leased).await;
        answer.refused(422, "Invalid");
        assert_eq!(
            answer.json()["details"]["causes"][0]["field"],
            "metadata.annotations[leno.dev/lease]"
        );
    }
    let mut waited = 0;
    while server.stored("workloads", "leased").is_some() {
        waited += 1;
        assert!(waited < 3_000, "a lease of one second did not lapse within a minute");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(server.stored("workloads", "hand").is_some());
}

#[tokio::test]
async fn foreign_hosts_and_pages_are_not_answered() {
    let server = Server::start().await;
    for host in ["evil.example", "evil.example:80", "localhost.evil.example"] {
        let call = server.call("GET", SERVICES).header("Host", host);
        assert!(call.send().await.refused(403, "Forbidden").contains("host"), "{host}");
    }
    for host in ["leno.example:15010", "127.0.0.1", "[::1]:1", "LOCALHOST"] {
        server.call("GET", SERVICES).header("Host", host).send().await.ok();
    }
    let call = server.call("POST", SERVICES).header("Origin", "https://evil.example");
    call.with(JSON, &service("a")).send().await.refused(403, "Forbidden");
    let own = server.call("GET", SERVICES).header("Origin", "http://localhost");
    own.send().await.ok();
}
