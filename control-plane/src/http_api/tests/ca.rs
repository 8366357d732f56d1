//! The certificate authority by HTTP, and the kind that it alone writes.

use super::*;

const BUNDLES: &str = "/apis/leno.dev/v1alpha1/namespaces/leno-system/trustbundles";

#[tokio::test]
async fn what_the_authority_writes_nobody_else_does() {
    let store = Arc::new(MemoryStore::new());
    let server = Server::beside(store.clone(), store, false).await;
    let bundle = server.get(&format!("{BUNDLES}/mesh")).await.ok();
    let mut changed = bundle.clone();
    changed["spec"]["trustDomain"] = "evil.test".into();
    for field in ["resourceVersion", "managedFields"] {
        changed["metadata"].as_object_mut().unwrap().remove(field);
    }
    let item = format!("{BUNDLES}/mesh");
    let applied = format!("{item}?fieldManager=x&force=true");
    let answers = [
        server.post(BUNDLES, &changed).await,
        server.put(&item, &changed).await,
        server.patch(&item, MERGE, &json!({"spec": {"trustDomain": "evil.test"}})).await,
        server.patch(&applied, APPLY, &changed).await,
        server.delete(&item).await,
        server.delete(BUNDLES).await,
    ];
    for answer in answers {
        let message = answer.refused(405, "MethodNotAllowed");
        assert!(message.contains("kept by the certificate authority"), "{message}");
    }
    for query in ["?fieldManager=x&force=true", "?fieldManager=x&force=true&atomic=true"] {
        let batch = json!([service("beside"), changed]);
        let answer = server.post(&format!("{APPLY_MANY}{query}"), &batch).await.json();
        assert!(answer.to_string().contains("kept by the certificate authority"), "{answer}");
    }
    assert_eq!(server.get(&item).await.ok()["spec"], bundle["spec"]);
    let kinds = server.get("/apis/leno.dev/v1alpha1").await.ok();
    let kinds = kinds["resources"].as_array().unwrap();
    let verbs = |name| kinds.iter().find(|kind| kind["name"] == name).unwrap()["verbs"].clone();
    assert_eq!(verbs("trustbundles"), json!(["get", "list", "watch"]));
    assert!(verbs("services").as_array().unwrap().contains(&json!("delete")));
}

#[tokio::test]
async fn a_rotation_is_ordered_step_by_step() {
    let server = Server::start().await;
    let rotate = async |body: Value| server.post("/ca/rotation", &body).await;
    assert_eq!(server.get("/ca/status").await.ok()["step"], "idle");
    for wrong in [json!({}), json!({"action": "jump"}), json!({"action": "add", "fast": true})] {
        let message = rotate(wrong).await.refused(400, "BadRequest");
        assert!(message.contains("add|switch|drop|undo"), "{message}");
    }
    let message = rotate(json!({"action": "switch"})).await.refused(400, "BadRequest");
    assert!(message.contains("add one first"), "{message}");
    let status = rotate(json!({"action": "add"})).await.ok();
    assert_eq!((&status["step"], status["roots"].as_array().unwrap().len()), (&json!("added"), 2));
    let pem = server.get("/ca/bundle").await;
    let pem = String::from_utf8(pem.body).unwrap();
    assert_eq!(pem.matches("BEGIN CERTIFICATE").count(), 2, "{pem}");
    assert!(!pem.contains("PRIVATE"));
    assert_eq!(rotate(json!({"action": "undo"})).await.ok()["step"], "idle");
    assert_eq!(server.get("/ca/certificates").await.ok(), json!([]));
}
