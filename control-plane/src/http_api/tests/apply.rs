//! Server-side apply over HTTP; the rules themselves are tested with `objects`.

use super::*;

fn path(query: &str) -> String {
    format!("{SERVICES}/orders?{query}")
}

#[tokio::test]
async fn apply_creates_merges_and_conflicts() {
    let server = Server::start().await;
    server.patch(&path(""), APPLY, &service("orders")).await.refused(400, "BadRequest");
    let created = server.patch(&path("fieldManager=ci"), APPLY, &service("orders")).await;
    assert_eq!(created.code, 201);
    let again = server.patch(&path("fieldManager=ci"), APPLY, &service("orders")).await;
    assert_eq!((again.code, again.json()), (200, created.json()));
    let yaml = "apiVersion: leno.dev/v1alpha1\nkind: Service\nmetadata: {name: orders}\nspec: {hosts: [a]}\n";
    let merged =
        server.call("PATCH", path("fieldManager=ops")).with_text(APPLY, yaml).send().await.ok();
    assert_eq!(merged["spec"], json!({"hosts": ["a"], "ports": [{"port": 80}]}));

    let mut other = service("orders");
    other["spec"]["ports"][0]["port"] = json!(81);
    let answer = server.patch(&path("fieldManager=ops"), APPLY, &other).await;
    let message = answer.refused(409, "Conflict");
    assert_eq!(
        message,
        "Apply failed with 1 conflict: conflict with \"ci\" using leno.dev/v1alpha1: .spec.ports"
    );
    let cause = &answer.json()["details"]["causes"][0];
    assert_eq!(
        (&cause["reason"], &cause["field"]),
        (&json!("FieldManagerConflict"), &json!(".spec.ports"))
    );
    let forced = server.patch(&path("fieldManager=ops&force=true"), APPLY, &other).await.ok();
    assert_eq!(forced["spec"], json!({"ports": [{"port": 81}]}), "and hosts are no longer stated");
}

#[tokio::test]
async fn apply_respects_a_stated_revision_and_validates_the_result() {
    let server = Server::start().await;
    let mut object = service("orders");
    object["metadata"]["resourceVersion"] = json!("1");
    server.patch(&path("fieldManager=ci"), APPLY, &object).await.refused(409, "Conflict");
    server.patch(&path("fieldManager=ci"), APPLY, &service("orders")).await.ok();
    object["metadata"]["resourceVersion"] = json!("77");
    server.patch(&path("fieldManager=ci"), APPLY, &object).await.refused(409, "Conflict");
    let empty = json!({"apiVersion": "leno.dev/v1alpha1", "kind": "Service", "metadata": {"name": "orders"}, "spec": {}});
    server.patch(&path("fieldManager=ci"), APPLY, &empty).await.refused(422, "Invalid");
    let mut wrong = service("orders");
    wrong["apiVersion"] = json!("leno.dev/v2");
    server.patch(&path("fieldManager=ci"), APPLY, &wrong).await.refused(400, "BadRequest");
    let dry =
        server.patch(&path("fieldManager=dry&dryRun=All"), APPLY, &service("orders")).await.ok();
    assert_eq!(dry["metadata"]["managedFields"].as_array().unwrap().len(), 2);
    assert_eq!(server.store.revision(), 1);
}
