//! Many objects at once.

use super::*;

fn url(query: &str) -> String {
    format!("{}?fieldManager=leno&{query}", APPLY_MANY)
}

fn in_shop(mut object: Value) -> Value {
    object["metadata"]["namespace"] = json!("shop");
    object
}

#[tokio::test]
async fn all_are_applied_at_one_revision() {
    let server = Server::start().await;
    let objects = json!([
        service("orders"),
        in_shop(route("orders", "orders")),
        in_shop(workload("orders-1"))
    ]);
    let answer = server.post(&url("atomic=true"), &objects).await;
    let result = answer.ok();
    assert_eq!(server.store.revision(), 1);
    assert!(answer.warnings().is_empty(), "they are seen together: {:?}", answer.warnings());
    for at in 0..3 {
        assert_eq!(result["results"][at]["outcome"], "created");
        assert_eq!(result["items"][at]["metadata"]["resourceVersion"], "1");
    }
    let mut changed = objects.clone();
    changed[0]["spec"]["hosts"] = json!(["x"]);
    let result = server.post(&url("atomic=true"), &changed).await.ok();
    let outcomes: Vec<_> = (0..3).map(|at| result["results"][at]["outcome"].clone()).collect();
    assert_eq!(outcomes, ["configured", "unchanged", "unchanged"]);
    assert_eq!(result["items"][0]["metadata"]["resourceVersion"], "2");
    assert_eq!(result["items"][1]["metadata"]["resourceVersion"], "1");
}

#[tokio::test]
async fn one_that_is_wrong_keeps_all_back_or_only_itself() {
    let server = Server::start().await;
    let mut wrong = service("wrong");
    wrong["spec"]["ports"][0]["port"] = json!(0);
    let nameless = json!({"apiVersion": "leno.dev/v1alpha1", "kind": "Service"});
    let unknown = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}});
    let objects = json!([service("a"), wrong, nameless, unknown, service("a")]);
    let answer = server.post(&url("atomic=true"), &objects).await;
    let message = answer.refused(422, "Invalid");
    assert!(message.starts_with("nothing was applied: "), "{message}");
    let causes = answer.json()["details"]["causes"].clone();
    let fields: Vec<_> =
        causes.as_array().unwrap().iter().map(|c| c["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["[1].spec.ports[0].port", "[2]", "[3]", "[4]"]);
    assert_eq!(server.store.revision(), 0);

    let result = server.post(&url("atomic=false"), &objects).await.ok();
    let outcomes: Vec<_> = (0..5).map(|at| result["results"][at]["outcome"].clone()).collect();
    assert_eq!(outcomes, ["created", "failed", "failed", "failed", "failed"]);
    assert_eq!(result["items"][1]["reason"], "Invalid");
    assert!(server.stored("services", "a").is_some());
}

#[tokio::test]
async fn conflicts_keep_all_back_unless_forced_and_a_dry_run_writes_nothing() {
    let server = Server::start().await;
    server.post(SERVICES, &service("a")).await.ok();
    let mut mine = service("a");
    mine["spec"]["ports"][0]["port"] = json!(81);
    let objects = json!([service("b"), mine]);
    let answer = server.post(&url("atomic=true"), &objects).await;
    answer.refused(409, "Conflict");
    assert_eq!(answer.json()["details"]["causes"][0]["field"], "[1].spec.ports");
    let dry = server.post(&url("atomic=true&force=true&dryRun=All"), &objects).await.ok();
    assert_eq!(dry["items"][1]["spec"]["ports"][0]["port"], 81);
    assert_eq!(server.store.revision(), 1);
    server.post(&url("atomic=true&force=true"), &objects).await.ok();
    assert_eq!(server.stored("services", "a").unwrap()["spec"]["ports"][0]["port"], 81);
}

#[tokio::test]
async fn what_is_no_batch_is_refused() {
    let server = Server::start().await;
    server.post(&url(""), &service("a")).await.refused(400, "BadRequest");
    server.get(&url("")).await.refused(405, "MethodNotAllowed");
    let many = Value::from(vec![json!({}); crate::store::MAX_OPERATIONS + 1]);
    server.post(&url(""), &many).await.refused(400, "BadRequest");
    assert_eq!(server.post(&url("atomic=true"), &json!([])).await.ok()["items"], json!([]));
}
