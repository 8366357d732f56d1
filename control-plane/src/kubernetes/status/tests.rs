use super::*;

const NOW: &str = "2026-11-21T12:00:00Z";
const BEFORE: &str = "2026-11-20T12:00:00Z";

fn key(group: &str, plural: &str) -> Key {
    Key::new(group, plural, "shop", "orders")
}

fn reported(live: &str) -> Value {
    let condition = |kind, status| {
        json!({"type": kind, "status": status, "reason": "R", "message": "m",
               "observedGeneration": 2, "lastTransitionTime": NOW})
    };
    json!({"observedGeneration": 2, "proxies": {"live": 1},
           "conditions": [condition("Accepted", "True"), condition("Live", live)]})
}

fn seen(parents: Value, status: Value) -> Seen {
    Seen { generation: 2, parents, status, ..Seen::default() }
}

#[test]
fn our_own_kinds_have_the_status_that_our_api_shows() {
    let key = key("leno.dev", "trafficpolicies");
    let live = reported("True");
    let wanted = |status, reported| wanted(&key, &seen(Value::Null, status), reported, None, NOW);
    assert_eq!(wanted(Value::Null, None), None, "nothing is known yet");
    assert_eq!(wanted(Value::Null, Some(&live)), Some(reported("True")));
    assert_eq!(wanted(reported("True"), Some(&live)), None, "it stands there already");
}

#[test]
fn what_cannot_be_used_says_why_and_since_when() {
    let key = key("leno.dev", "trafficpolicies");
    let first = wanted(
        &key,
        &seen(Value::Null, Value::Null),
        Some(&reported("True")),
        Some("spec.x: no"),
        BEFORE,
    );
    let first = first.unwrap();
    let accepted = &first["conditions"][0];
    assert_eq!(
        (&accepted["status"], &accepted["message"]),
        (&"False".into(), &"spec.x: no".into())
    );
    assert_eq!(accepted["lastTransitionTime"], BEFORE);
    // Another reason, the same verdict: since then.
    let next =
        wanted(&key, &seen(Value::Null, first.clone()), None, Some("spec.y: no"), NOW).unwrap();
    assert_eq!(next["conditions"][0]["lastTransitionTime"], BEFORE);
    assert_eq!(wanted(&key, &seen(Value::Null, first), None, Some("spec.x: no"), NOW), None);
}

#[test]
fn a_route_says_it_for_each_service_among_its_parents() {
    let key = key("gateway.networking.k8s.io", "httproutes");
    let parents = json!([
        {"name": "edge"},
        {"group": "", "kind": "Service", "name": "orders", "port": 80},
        {"group": "", "kind": "Service", "name": "users", "namespace": "other"},
    ]);
    let theirs = json!({"controllerName": "example.com/edge", "parentRef": {"name": "edge"}});
    let status = json!({"parents": [theirs]});
    let first =
        wanted(&key, &seen(parents.clone(), status), Some(&reported("False")), None, BEFORE);
    let first = first.unwrap();
    let entries = first["parents"].as_array().unwrap();
    assert_eq!(entries.len(), 3);
    assert_eq!(entries[0], theirs, "what is others' stays");
    let expected =
        json!({"group": "", "kind": "Service", "name": "orders", "namespace": "shop", "port": 80});
    assert_eq!(entries[1]["parentRef"], expected);
    assert_eq!(entries[2]["parentRef"]["namespace"], "other");
    assert_eq!(entries[1]["controllerName"], CONTROLLER);
    assert_eq!(first.get("conditions"), None, "Gateway API has no such field");
    let next =
        wanted(&key, &seen(parents.clone(), first.clone()), Some(&reported("True")), None, NOW);
    let conditions = &next.unwrap()["parents"][1]["conditions"];
    assert_eq!(conditions[0]["lastTransitionTime"], BEFORE);
    assert_eq!(conditions[1]["lastTransitionTime"], NOW);
    assert_eq!(
        wanted(&key, &seen(parents.clone(), first.clone()), Some(&reported("False")), None, NOW),
        None
    );
    // Another controller puts its own last: no reason to write anything.
    let mut moved = first.clone();
    moved["parents"].as_array_mut().unwrap().rotate_left(1);
    let again =
        wanted(&key, &seen(parents.clone(), moved.clone()), Some(&reported("False")), None, NOW);
    assert_eq!(again, None);
    let changed =
        wanted(&key, &seen(parents.clone(), moved), Some(&reported("True")), None, NOW).unwrap();
    assert_eq!(changed["parents"][0]["conditions"][1]["status"], "True");
    assert_eq!(changed["parents"][2], theirs, "each stays in its place");
    // A parent that is gone takes its entry along.
    let one = json!([{"group": "", "kind": "Service", "name": "users", "namespace": "other"}]);
    let left = wanted(&key, &seen(one, first), Some(&reported("False")), None, NOW).unwrap();
    assert_eq!(left["parents"].as_array().unwrap().len(), 2);
}

#[test]
fn what_is_odd_about_references_is_said_in_gateway_apis_words() {
    let key = key("gateway.networking.k8s.io", "httproutes");
    let service = |name: &str| json!({"group": "", "kind": "Service", "name": name});
    let parents = json!([service("orders"), service("ordres")]);
    let own = |findings: Value| {
        let mut own = reported("True");
        own["findings"] = findings;
        own
    };
    let conditions_of = |findings: Value| -> Vec<Vec<(String, String)>> {
        let seen = seen(parents.clone(), Value::Null);
        let status = wanted(&key, &seen, Some(&own(findings)), None, NOW).unwrap();
        let word = |condition: &Value, field: &str| condition[field].as_str().unwrap().to_owned();
        let of = |entry: &Value| {
            let all = entry["conditions"].as_array().unwrap().iter();
            all.map(|one| (word(one, "type"), word(one, "reason"))).collect()
        };
        status["parents"].as_array().unwrap().iter().map(of).collect()
    };
    let has = |found: &[(String, String)], kind: &str, reason: &str| {
        found.contains(&(kind.to_owned(), reason.to_owned()))
    };
    let fine = conditions_of(json!([]));
    assert!(fine.iter().all(|found| has(found, "ResolvedRefs", "ResolvedRefs")), "{fine:?}");
    assert!(fine.iter().all(|found| has(found, "Accepted", "R")), "{fine:?}");
    let odd = conditions_of(json!([
        {"path": "spec.parentRefs[1]", "message": "there is no Service shop/ordres"},
        {"path": "spec.rules[0].backendRefs[0]", "message": "there is no Service shop/gone"},
    ]));
    assert!(
        has(&odd[0], "Accepted", "R") && has(&odd[1], "Accepted", "NoMatchingParent"),
        "{odd:?}"
    );
    assert!(odd.iter().all(|found| has(found, "ResolvedRefs", "BackendNotFound")), "{odd:?}");
}
