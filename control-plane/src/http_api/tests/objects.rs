//! Creating, reading, replacing, patching, deleting; lists; refusals.

use super::*;

#[tokio::test]
async fn an_object_is_created_read_replaced_and_deleted() {
    let server = Server::start().await;
    let created = server.post(SERVICES, &service("orders")).await;
    assert_eq!(created.code, 201);
    let object = created.json();
    assert_eq!(object["metadata"]["resourceVersion"], "1");
    assert_eq!(object["metadata"]["generation"], 1);
    assert_eq!(object["metadata"]["managedFields"][0]["manager"], "test");
    assert!(object["metadata"]["creationTimestamp"].as_str().unwrap().ends_with('Z'));
    let path = format!("{SERVICES}/orders");
    assert_eq!(server.get(&path).await.ok(), object);
    assert_eq!(server.get(&format!("{path}/status")).await.ok(), object);
    server.post(SERVICES, &service("orders")).await.refused(409, "AlreadyExists");

    let mut changed = object.clone();
    changed["spec"]["hosts"] = json!(["orders"]);
    let replaced = server.put(&path, &changed).await.ok();
    assert_eq!(replaced["metadata"]["generation"], 2);
    assert_eq!(replaced["metadata"]["uid"], object["metadata"]["uid"]);
    let message = server.put(&path, &changed).await.refused(409, "Conflict");
    assert!(message.contains("the object has been modified"), "{message}");
    assert_eq!(server.get(&path).await.ok(), replaced, "nothing is lost");
    assert_eq!(server.put(&path, &service("orders")).await.ok()["metadata"]["generation"], 3);

    let deleted = server.delete(&path).await.ok();
    assert_eq!(
        (&deleted["status"], &deleted["details"]["uid"]),
        (&json!("Success"), &object["metadata"]["uid"])
    );
    let message = server.get(&path).await.refused(404, "NotFound");
    assert_eq!(message, "services.leno.dev \"orders\" not found");
    server.delete(&path).await.refused(404, "NotFound");
    server.put(&path, &service("orders")).await.refused(404, "NotFound");
}

#[tokio::test]
async fn of_concurrent_changes_none_is_lost() {
    let server = Arc::new(Server::start().await);
    server.post(SERVICES, &service("orders")).await.ok();
    let patches = (0..6).map(|number| {
        let server = server.clone();
        tokio::spawn(async move {
            let patch = json!({"metadata": {"labels": {format!("l{number}"): "x"}}});
            server.patch(&format!("{SERVICES}/orders"), MERGE, &patch).await.code
        })
    });
    for patch in patches.collect::<Vec<_>>() {
        assert_eq!(patch.await.unwrap(), 200);
    }
    let labels = server.stored("services", "orders").unwrap()["metadata"]["labels"].clone();
    assert_eq!(labels.as_object().unwrap().len(), 6);
}

#[tokio::test]
async fn patches_of_each_kind_change_what_they_say() {
    let server = Server::start().await;
    server.post(SERVICES, &service("orders")).await.ok();
    let path = format!("{SERVICES}/orders");
    let merged = server.patch(&path, MERGE, &json!({"spec": {"hosts": ["a"]}})).await.ok();
    assert_eq!(merged["spec"]["hosts"], json!(["a"]));
    let strategic = "application/strategic-merge-patch+json";
    let merged = server.patch(&path, strategic, &json!({"spec": {"hosts": null}})).await.ok();
    assert_eq!(merged["spec"], service("orders")["spec"]);
    let operations = json!([{"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}]);
    let patched = server.patch(&path, "application/json-patch+json", &operations).await.ok();
    assert_eq!(patched["metadata"]["labels"]["a"], "b");
    let same = server.patch(&path, MERGE, &json!({"metadata": {"labels": {"a": "b"}}})).await.ok();
    assert_eq!(same, patched, "what changes nothing writes nothing");

    let test = json!([{"op": "test", "path": "/spec/ports", "value": []}]);
    server.patch(&path, "application/json-patch+json", &test).await.refused(422, "Invalid");
    server.patch(&path, "application/json-patch+json", &json!({})).await.refused(400, "BadRequest");
    server.patch(&path, JSON, &json!({})).await.refused(415, "UnsupportedMediaType");
    let stale = json!({"metadata": {"resourceVersion": "1"}});
    server.patch(&path, MERGE, &stale).await.refused(409, "Conflict");
    let renamed = json!({"metadata": {"name": "other"}});
    server.patch(&path, MERGE, &renamed).await.refused(400, "BadRequest");
    server.patch(&format!("{SERVICES}/none"), MERGE, &json!({})).await.refused(404, "NotFound");
}

#[tokio::test]
async fn what_is_invalid_is_refused_with_every_place() {
    let server = Server::start().await;
    let mut object = service("orders");
    object["spec"]["ports"][0] = json!({"port": 0, "protocol": "http"});
    object["spec"]["hosts"] = json!(["ok", "not a host"]);
    let answer = server.post(SERVICES, &object).await;
    let message = answer.refused(422, "Invalid");
    assert!(message.starts_with("Service.leno.dev \"orders\" is invalid: "), "{message}");
    let causes = answer.json()["details"]["causes"].clone();
    let fields: Vec<_> =
        causes.as_array().unwrap().iter().map(|cause| cause["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["spec.hosts[1]", "spec.ports[0].port"]);

    let mut unknown = service("orders");
    unknown["spec"]["prots"] = json!([]);
    for validation in ["", "?fieldValidation=Ignore", "?fieldValidation=Strict"] {
        let answer = server.post(&format!("{SERVICES}{validation}"), &unknown).await;
        assert!(answer.refused(422, "Invalid").contains("prots"), "{validation}");
    }
    let mut other = service("orders");
    other["kind"] = json!("Workload");
    assert!(server.post(SERVICES, &other).await.refused(400, "BadRequest").contains("kind"));
    let mut elsewhere = service("orders");
    elsewhere["metadata"]["namespace"] = json!("other");
    server.post(SERVICES, &elsewhere).await.refused(400, "BadRequest");
    server.post(SERVICES, &json!({"metadata": {}})).await.refused(400, "BadRequest");
    server.post(SERVICES, &json!([])).await.refused(400, "BadRequest");
    assert_eq!(server.store.revision(), 0);
}

#[tokio::test]
async fn bad_bodies_are_refused_and_say_why() {
    let server = Server::start().await;
    let twice = r#"{"kind": "Service", "kind": "Service"}"#;
    let message = server
        .call("POST", SERVICES)
        .with_text(JSON, twice)
        .send()
        .await
        .refused(400, "BadRequest");
    assert!(message.contains("\"kind\" stands twice"), "{message}");
    let cut = server.call("POST", SERVICES).with_text(JSON, "{\"kind\":").send().await;
    cut.refused(400, "BadRequest");
    let large = "x".repeat(MAX_BODY_BYTES + 1);
    let answer = server.call("POST", SERVICES).with_text(JSON, &large).send().await;
    answer.refused(413, "RequestEntityTooLarge");
    let form = server
        .call("POST", SERVICES)
        .with_text("application/x-www-form-urlencoded", "a=b")
        .send()
        .await;
    form.refused(415, "UnsupportedMediaType");
    let yaml = "apiVersion: leno.dev/v1alpha1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n";
    assert_eq!(
        server.call("POST", SERVICES).with_text("application/yaml", yaml).send().await.code,
        201
    );
}

#[tokio::test]
async fn nulls_mean_not_set_and_names_are_made_up_on_request() {
    let server = Server::start().await;
    let mut object = service("orders");
    object["metadata"]["creationTimestamp"] = Value::Null;
    object["metadata"]["labels"] = Value::Null;
    object["status"] = json!({"live": 7});
    let stored = server.post(SERVICES, &object).await.ok();
    assert!(stored.get("status").is_none() && stored["metadata"].get("labels").is_none());
    let mut generated = service("");
    generated["metadata"] = json!({"generateName": "orders-"});
    let (one, two) = (
        server.post(SERVICES, &generated).await.ok(),
        server.post(SERVICES, &generated).await.ok(),
    );
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_owned();
    assert!(name(&one).starts_with("orders-") && name(&one).len() == 12);
    assert_ne!(name(&one), name(&two));
}

#[tokio::test]
async fn a_dry_run_says_what_would_be_and_writes_nothing() {
    let server = Server::start().await;
    let created = server.post(&format!("{SERVICES}?dryRun=All"), &service("a")).await;
    assert_eq!(created.code, 201);
    assert_eq!(created.json()["metadata"]["generation"], 1);
    server.post(SERVICES, &service("a")).await.ok();
    let path = format!("{SERVICES}/a?dryRun=All");
    let patched = server.patch(&path, MERGE, &json!({"spec": {"hosts": ["b"]}})).await.ok();
    assert_eq!(
        (&patched["metadata"]["generation"], &patched["metadata"]["resourceVersion"]),
        (&json!(2), &json!("1"))
    );
    server.delete(&path).await.ok();
    let body = json!({"dryRun": ["All"]});
    server.call("DELETE", format!("{SERVICES}/a")).with(JSON, &body).send().await.ok();
    server
        .post(&format!("{SERVICES}?dryRun=All"), &service("a"))
        .await
        .refused(409, "AlreadyExists");
    server.post(&format!("{SERVICES}?dryRun=Some"), &service("b")).await.refused(400, "BadRequest");
    assert_eq!(server.store.revision(), 1);
}

#[tokio::test]
async fn lists_are_selected_paged_and_rendered() {
    let server = Server::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        let mut object = service(name);
        object["metadata"]["labels"] = json!({"vowel": (name == "a" || name == "e").to_string()});
        server.post(SERVICES, &object).await.ok();
    }
    let mut elsewhere = service("z");
    elsewhere["metadata"] = json!({"name": "z"});
    server.post(&SERVICES.replace("shop", "other"), &elsewhere).await.ok();
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap().iter();
        items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let all = server.get("/apis/leno.dev/v1alpha1/services").await.ok();
    assert_eq!(
        (&all["kind"], &all["metadata"]["resourceVersion"]),
        (&json!("ServiceList"), &json!("6"))
    );
    assert_eq!(names(&all), ["z", "a", "b", "c", "d", "e"]);
    let vowels = server.get(&format!("{SERVICES}?labelSelector=vowel%3Dtrue")).await.ok();
    assert_eq!(names(&vowels), ["a", "e"]);
    let one = server.get(&format!("{SERVICES}?fieldSelector=metadata.name%3Dc")).await.ok();
    assert_eq!(names(&one), ["c"]);
    server.get(&format!("{SERVICES}?fieldSelector=spec.x%3Dc")).await.refused(400, "BadRequest");

    let mut found = Vec::new();
    let mut path = format!("{SERVICES}?limit=2");
    loop {
        let page = server.get(&path).await.ok();
        assert_eq!(page["metadata"]["resourceVersion"], "6");
        found.extend(names(&page));
        let Some(next) = page["metadata"]["continue"].as_str() else { break };
        path = format!("{SERVICES}?limit=2&continue={next}");
        // What is written between two pages is told by a watch from the list's revision.
        let revision = server.store.revision();
        server
            .patch(
                &format!("{SERVICES}/a"),
                MERGE,
                &json!({"metadata": {"labels": {"n": revision.to_string()}}}),
            )
            .await
            .ok();
    }
    assert_eq!(found, ["a", "b", "c", "d", "e"]);
    server.get(&format!("{SERVICES}?continue=nonsense")).await.refused(400, "BadRequest");
    server.store.compact(u64::MAX).await.unwrap();
    server.get(&path).await.refused(410, "Expired");
    server.get(&format!("{SERVICES}?resourceVersion=999")).await.refused(504, "Timeout");
    server
        .get(&format!("{SERVICES}?resourceVersion=2&resourceVersionMatch=Exact"))
        .await
        .refused(410, "Expired");
    server.get(&format!("{SERVICES}?resourceVersion=x")).await.refused(400, "BadRequest");

    let table = server
        .call("GET", SERVICES)
        .header("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table = table.send().await.ok();
    assert_eq!((&table["kind"], &table["rows"][1]["cells"][0]), (&json!("Table"), &json!("b")));
    let metadata = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let metadata = server.call("GET", SERVICES).header("Accept", metadata).send().await.ok();
    assert_eq!(metadata["items"][0]["kind"], "PartialObjectMetadata");
    assert!(metadata["items"][0].get("spec").is_none());
    let protobuf =
        server.call("GET", SERVICES).header("Accept", "application/vnd.kubernetes.protobuf");
    protobuf.send().await.refused(406, "NotAcceptable");
}

#[tokio::test]
async fn deletions_respect_preconditions_and_finalizers() {
    let server = Server::start().await;
    let object = server.post(SERVICES, &service("a")).await.ok();
    let path = format!("{SERVICES}/a");
    for wrong in [json!({"uid": "other"}), json!({"resourceVersion": "77"})] {
        let call =
            server.call("DELETE", path.as_str()).with(JSON, &json!({"preconditions": wrong}));
        call.send().await.refused(409, "Conflict");
    }
    let finalizers = json!({"metadata": {"finalizers": ["example.org/wait"]}});
    server.patch(&path, MERGE, &finalizers).await.ok();
    let right = json!({"preconditions": {"uid": object["metadata"]["uid"]}});
    let marked = server.call("DELETE", path.as_str()).with(JSON, &right).send().await.ok();
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    assert!(server.stored("services", "a").is_some());
    server.patch(&path, MERGE, &json!({"metadata": {"finalizers": null}})).await.ok();
    assert!(server.stored("services", "a").is_none(), "it goes with its last finalizer");

    for name in ["x", "y", "z"] {
        let mut object = service(name);
        object["metadata"]["labels"] = json!({"keep": (name == "z").to_string()});
        server.post(SERVICES, &object).await.ok();
    }
    let deleted = server.delete(&format!("{SERVICES}?labelSelector=keep%3Dfalse")).await.ok();
    assert_eq!(deleted["items"].as_array().unwrap().len(), 2);
    assert!(server.stored("services", "x").is_none() && server.stored("services", "z").is_some());
}

#[tokio::test]
async fn status_is_read_by_users_and_written_by_the_control_plane() {
    let server = Server::start().await;
    let object = server.post(SERVICES, &service("a")).await.ok();
    let key = Key::new("leno.dev", "services", "shop", "a");
    server.store.write_status(key, 1, json!({"live": 3})).await.unwrap();
    let path = format!("{SERVICES}/a");
    let mut mine = service("a");
    mine["status"] = json!({"live": 99});
    mine["spec"]["hosts"] = json!(["b"]);
    assert_eq!(server.put(&path, &mine).await.ok()["status"]["live"], 3);
    let patch = json!({"status": {"live": 99}});
    assert_eq!(server.patch(&path, MERGE, &patch).await.ok()["status"]["live"], 3);
    let status = format!("{path}/status");
    server.put(&status, &object).await.refused(405, "MethodNotAllowed");
    server.patch(&status, MERGE, &patch).await.refused(405, "MethodNotAllowed");
    assert_eq!(server.get(&status).await.ok()["status"]["live"], 3);
}

#[tokio::test]
async fn references_to_nothing_and_collisions_are_warned_of() {
    let server = Server::start().await;
    let answer = server.post(ROUTES, &route("one", "orders-v2")).await;
    assert_eq!(answer.code, 201, "a dangling reference is no error");
    let warnings = answer.warnings().join("\n");
    assert!(
        warnings.contains("299 - \"spec.parentRefs[0]: there is no Service shop/orders"),
        "{warnings}"
    );
    assert!(
        warnings.contains("spec.rules[0].backendRefs[0]: there is no Service shop/orders-v2"),
        "{warnings}"
    );
    server.post(SERVICES, &service("orders")).await.ok();
    server.post(SERVICES, &service("orders-v2")).await.ok();
    let fine = server
        .patch(&format!("{ROUTES}/one"), MERGE, &json!({"metadata": {"labels": {"a": "b"}}}))
        .await;
    assert!(fine.warnings().is_empty(), "{:?}", fine.warnings());
    let second = server.post(ROUTES, &route("two", "orders")).await;
    assert!(
        second.warnings()[0].contains("HTTPRoute shop/one is older"),
        "{:?}",
        second.warnings()
    );
    server.delete(&format!("{ROUTES}/one")).await.ok();
    let alone = server
        .patch(&format!("{ROUTES}/two"), MERGE, &json!({"metadata": {"labels": {"a": "b"}}}))
        .await;
    assert!(alone.warnings().is_empty(), "{:?}", alone.warnings());
}

#[tokio::test]
async fn who_asks_for_tokens_where_nobody_reads_any_is_warned() {
    const POLICIES: &str = "/apis/leno.dev/v1alpha1/namespaces/shop/authorizationpolicies";
    const READERS: &str = "/apis/leno.dev/v1alpha1/namespaces/shop/requestauthentications";
    let server = Server::start().await;
    let object = |kind: &str, spec: Value| json!({"apiVersion": "leno.dev/v1alpha1", "kind": kind, "metadata": {"name": "a", "namespace": "shop"}, "spec": spec});
    let rules = json!([{"from": [{"source": {"requestPrincipals": ["*"]}}]}]);
    let warned =
        server.post(POLICIES, &object("AuthorizationPolicy", json!({"rules": rules}))).await;
    assert!(
        warned.warnings()[0].contains("spec.rules[0]: asks for a token"),
        "{:?}",
        warned.warnings()
    );
    let tokens = json!({"jwtRules": [{"issuer": "i", "jwksUri": "https://i/k"}]});
    server.post(READERS, &object("RequestAuthentication", tokens)).await.ok();
    let labels = |value: &str| json!({"metadata": {"labels": {"a": value}}});
    let fine = server.patch(&format!("{POLICIES}/a"), MERGE, &labels("b")).await;
    assert!(fine.warnings().is_empty(), "{:?}", fine.warnings());
    server.delete(&format!("{READERS}/a")).await.ok();
    let again = server.patch(&format!("{POLICIES}/a"), MERGE, &labels("c")).await;
    assert_eq!(again.warnings().len(), 1, "{:?}", again.warnings());
}

#[tokio::test]
async fn discovery_names_every_kind() {
    let server = Server::start().await;
    let groups = server.get("/apis").await.ok();
    let names: Vec<_> =
        groups["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["gateway.networking.k8s.io", "leno.dev"]);
    assert_eq!(groups["groups"][0]["preferredVersion"]["version"], "v1");
    let all: Vec<String> =
        leno_api::KINDS.iter().map(|kind| format!("{}/{}", kind.group, kind.plural)).collect();
    let mut listed = Vec::new();
    for group in names {
        for version in
            server.get(&format!("/apis/{group}")).await.ok()["versions"].as_array().unwrap()
        {
            let path = format!("/apis/{}", version["groupVersion"].as_str().unwrap());
            for resource in server.get(&path).await.ok()["resources"].as_array().unwrap() {
                listed.push(format!("{group}/{}", resource["name"].as_str().unwrap()));
            }
        }
    }
    assert!(all.iter().all(|kind| listed.contains(kind)), "{listed:?}");
    assert!(listed.contains(&"leno.dev/workloads/lease".to_owned()));

    let accept =
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let aggregated = server.call("GET", "/apis").header("Accept", accept).send().await;
    assert!(aggregated.head.contains("as=APIGroupDiscoveryList"), "{}", aggregated.head);
    assert_eq!(aggregated.ok()["items"][1]["versions"][0]["resources"][0]["resource"], "services");
    for path in
        ["/apis/nix", "/apis/leno.dev/v9", "/apis/leno.dev/v1alpha1/nix", "/nix", "/openapi/v3/nix"]
    {
        server.get(path).await.refused(404, "NotFound");
    }
    server.call("PATCH", "/apis").send().await.refused(405, "MethodNotAllowed");
    server.post("/api/v1/namespaces", &json!({})).await.refused(405, "MethodNotAllowed");
    let namespaces = server.get("/api/v1/namespaces").await.ok();
    assert_eq!(namespaces["items"][0]["metadata"]["name"], "default");
    for path in ["/livez", "/readyz", "/healthz", "/version"] {
        assert_eq!(server.get(path).await.code, 200, "{path}");
    }
}

#[tokio::test]
async fn every_kind_is_described_with_plain_types() {
    let server = Server::start().await;
    let index = server.get("/openapi/v3").await.ok();
    for kind in leno_api::KINDS {
        let path = format!("apis/{}/{}", kind.group, kind.version);
        let url = index["paths"][path.as_str()]["serverRelativeURL"].as_str().unwrap();
        let document = server.get(url).await.ok();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let own = schemas
            .values()
            .find(|schema| schema["x-kubernetes-group-version-kind"][0]["kind"] == kind.kind);
        let spec = &own.unwrap()["properties"]["spec"];
        assert_eq!(spec["type"], "object", "{}", kind.kind);
        assert!(spec["properties"].as_object().is_some_and(|fields| !fields.is_empty()));
        let item = format!("/{path}/namespaces/{{namespace}}/{}/{{name}}", kind.plural);
        let parameters = &document["paths"][item.as_str()]["patch"]["parameters"];
        assert!(parameters.to_string().contains("fieldValidation"), "kubectl looks for it");
    }
    let document = server.get("/openapi/v3/apis/leno.dev/v1alpha1").await.ok();
    let protocol = document.pointer("/components/schemas/dev.leno.v1alpha1.Service/properties/spec/properties/ports/items/properties/protocol");
    assert_eq!(protocol.unwrap()["type"], "string");
    assert_eq!(server.get("/openapi/v2").await.ok()["swagger"], "2.0");
}
