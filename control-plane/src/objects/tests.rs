use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn author(manager: &str) -> Author {
    Author { manager: manager.into(), now: "2026-11-21T08:30:00Z".into() }
}

fn service(spec: Value) -> Value {
    json!({"apiVersion": "leno.dev/v1alpha1", "kind": "Service",
        "metadata": {"name": "orders", "namespace": "shop"}, "spec": spec})
}

fn apply(live: Option<&Value>, spec: Value, manager: &str) -> Result<Value, Error> {
    applied(live, service(spec), &author(manager), false, "uid-1")
}

/// `manager operation -> fieldsV1`
fn owned(object: &Value, manager: &str, operation: &str) -> Value {
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    let own = entries.iter().find(|e| e["manager"] == manager && e["operation"] == operation);
    own.map_or(Value::Null, |entry| entry["fieldsV1"].clone())
}

#[test]
fn creation_gives_identity_and_ignores_what_only_the_server_sets() {
    let mut object = service(json!({"hosts": ["a"]}));
    object["status"] = json!({"live": 9});
    object["metadata"]["uid"] = json!("mine");
    object["metadata"]["generation"] = json!(7);
    object["metadata"]["resourceVersion"] = json!("7");
    let stored = created(object, &author("kubectl"), "uid-1").unwrap();
    assert_eq!(stored["metadata"]["uid"], "uid-1");
    assert_eq!(stored["metadata"]["generation"], 1);
    assert_eq!(stored["metadata"]["creationTimestamp"], "2026-11-21T08:30:00Z");
    assert!(stored.get("status").is_none() && stored["metadata"].get("resourceVersion").is_none());
    assert_eq!(owned(&stored, "kubectl", "Update"), json!({"f:spec": {"f:hosts": {}}}));
}

#[test]
fn the_generation_rises_with_the_spec_only() {
    let live = created(service(json!({"hosts": ["a"]})), &author("one"), "uid-1").unwrap();
    assert_eq!(updated(&live, live.clone(), &author("two")).unwrap(), live, "nothing changed");
    let mut labelled = live.clone();
    labelled["metadata"]["labels"] = json!({"team": "a"});
    labelled["status"] = json!({"live": 9});
    let labelled = updated(&live, labelled, &author("two")).unwrap();
    assert_eq!(labelled["metadata"]["generation"], 1);
    assert!(labelled.get("status").is_none(), "a user cannot write status");
    let mut changed = labelled.clone();
    changed["spec"]["hosts"] = json!(["b"]);
    let changed = updated(&labelled, changed, &author("two")).unwrap();
    assert_eq!(changed["metadata"]["generation"], 2);
    let fields = json!({"f:metadata": {"f:labels": {"f:team": {}}}, "f:spec": {"f:hosts": {}}});
    assert_eq!(owned(&changed, "two", "Update"), fields);
    assert_eq!(owned(&changed, "one", "Update"), Value::Null, "it owns nothing any more");
}

#[test]
fn an_update_keeps_identity_status_and_ownership() {
    let mut live = created(service(json!({"hosts": ["a"]})), &author("one"), "uid-1").unwrap();
    live["status"] = json!({"live": 2});
    let bare = service(json!({"hosts": ["b"]}));
    let stored = updated(&live, bare, &author("two")).unwrap();
    assert_eq!(stored["status"], json!({"live": 2}));
    assert_eq!(stored["metadata"]["uid"], "uid-1");
    assert_eq!(stored["metadata"]["creationTimestamp"], live["metadata"]["creationTimestamp"]);
}

#[test]
fn applying_again_changes_nothing() {
    let first = apply(None, json!({"hosts": ["a"], "timeouts": {"connect": "1s"}}), "ci").unwrap();
    let mut later = author("ci");
    later.now = "2027-01-01T00:00:00Z".into();
    let config = service(json!({"hosts": ["a"], "timeouts": {"connect": "1s"}}));
    assert_eq!(applied(Some(&first), config, &later, false, "uid-2").unwrap(), first);
}

#[test]
fn appliers_share_what_they_agree_on_and_conflict_on_the_rest() {
    let first = apply(None, json!({"hosts": ["a"], "balancer": {"random": {}}}), "ci").unwrap();
    let both = apply(Some(&first), json!({"hosts": ["a"], "zone": "a"}), "ops").unwrap();
    assert_eq!(both["spec"], json!({"hosts": ["a"], "balancer": {"random": {}}, "zone": "a"}));
    let error = apply(Some(&both), json!({"hosts": ["b"], "zone": "a"}), "ops").unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"ci\" using leno.dev/v1alpha1: .spec.hosts"
    );
    let config = service(json!({"hosts": ["b"], "zone": "a"}));
    let forced = applied(Some(&both), config, &author("ops"), true, "").unwrap();
    assert_eq!(forced["spec"]["hosts"], json!(["b"]));
    assert_eq!(owned(&forced, "ci", "Apply"), json!({"f:spec": {"f:balancer": {"f:random": {}}}}));
    assert_eq!(forced["metadata"]["generation"], 3);
}

#[test]
fn what_an_applier_no_longer_states_is_removed_unless_shared() {
    let first =
        apply(None, json!({"hosts": ["a"], "timeouts": {"connect": "1s", "idle": "2s"}}), "ci")
            .unwrap();
    let both = apply(Some(&first), json!({"hosts": ["a"]}), "ops").unwrap();
    let less = apply(Some(&both), json!({"timeouts": {"idle": "2s"}}), "ci").unwrap();
    assert_eq!(less["spec"], json!({"hosts": ["a"], "timeouts": {"idle": "2s"}}));
    let none = apply(Some(&less), json!({}), "ci").unwrap();
    assert_eq!(none["spec"], json!({"hosts": ["a"]}), "the emptied object goes too");
}

#[test]
fn an_update_takes_fields_from_appliers() {
    let live = apply(None, json!({"hosts": ["a"], "zone": "a"}), "ci").unwrap();
    let mut edited = live.clone();
    edited["spec"]["zone"] = json!("b");
    let edited = updated(&live, edited, &author("kubectl-edit")).unwrap();
    assert_eq!(owned(&edited, "ci", "Apply"), json!({"f:spec": {"f:hosts": {}}}));
    let error = apply(Some(&edited), json!({"hosts": ["a"], "zone": "a"}), "ci").unwrap_err();
    assert!(error.to_string().contains("kubectl-edit"), "{error}");
    let agreed = apply(Some(&edited), json!({"hosts": ["a"], "zone": "b"}), "ci").unwrap();
    assert_eq!(agreed["spec"]["zone"], "b");
}

#[test]
fn an_object_inside_an_empty_one_is_no_conflict_but_a_scalar_in_its_place_is() {
    let live = apply(None, json!({"balancer": {}}), "ci").unwrap();
    let filled = apply(Some(&live), json!({"balancer": {"random": {}}}), "ops").unwrap();
    assert_eq!(filled["spec"]["balancer"], json!({"random": {}}));
    assert!(apply(Some(&filled), json!({"balancer": "none"}), "third").is_err());
}

#[test]
fn ownership_can_be_rewritten_and_cleared_by_an_update() {
    let live = created(service(json!({"hosts": ["a"]})), &author("old"), "uid-1").unwrap();
    let mut moved = live.clone();
    moved["metadata"]["managedFields"][0]["manager"] = json!("new");
    moved["metadata"]["managedFields"][0]["operation"] = json!("Apply");
    let moved = updated(&live, moved, &author("kubectl")).unwrap();
    assert_eq!(owned(&moved, "new", "Apply"), json!({"f:spec": {"f:hosts": {}}}));
    let mut cleared = moved.clone();
    cleared["metadata"]["managedFields"] = json!([{}]);
    let cleared = updated(&moved, cleared, &author("kubectl")).unwrap();
    assert_eq!(cleared["metadata"]["managedFields"], json!([]));
    let error = apply(Some(&cleared), json!({"hosts": ["b"]}), "ci").unwrap_err();
    assert!(error.to_string().contains("before-first-apply"), "{error}");
    let mut wrong = moved.clone();
    wrong["metadata"]["managedFields"] = json!([{"manager": "x", "operation": "Steal"}]);
    assert!(matches!(updated(&moved, wrong, &author("x")), Err(Error::Invalid { .. })));
}

#[test]
fn the_number_of_managers_is_bounded() {
    let mut live = created(service(json!({})), &author("m"), "uid-1").unwrap();
    for number in 0..30 {
        let mut next = live.clone();
        next["spec"][format!("field{number}")] = json!(1);
        let mut author = author(&format!("manager-{number}"));
        author.now = format!("2026-11-21T08:30:{number:02}Z");
        live = updated(&live, next, &author).unwrap();
    }
    assert_eq!(live["metadata"]["managedFields"].as_array().unwrap().len(), 10);
    assert_ne!(owned(&live, "ancient-changes", "Update"), Value::Null);
    let mut appliers = Ok(live);
    for number in 0..101 {
        let spec = json!({"field0": 1});
        appliers = appliers.and_then(|live| apply(Some(&live), spec, &format!("applier-{number}")));
    }
    assert!(appliers.is_err());
}

#[test]
fn a_patch_cannot_grow_an_object_without_bound() {
    let mut object = json!({"a": ["x".repeat(1000)]});
    let double = json!({"op": "copy", "from": "/a", "path": "/a/-"});
    let error = json_patch(&mut object, Value::from(vec![double.clone(); 60])).unwrap_err();
    assert!(matches!(error, PatchError::TooLarge));
    let error = json_patch(&mut object, Value::from(vec![double; 101])).unwrap_err();
    assert!(matches!(error, PatchError::TooMany { most: 100, .. }));
    let mut object = json!({"a": 1});
    json_patch(&mut object, json!([{"op": "replace", "path": "/a", "value": 2}])).unwrap();
    merge_patch(&mut object, &json!({"b": 3, "a": null})).unwrap();
    assert_eq!(object, json!({"b": 3}));
    let failed = json_patch(&mut object, json!([{"op": "test", "path": "/b", "value": 4}]));
    assert!(matches!(failed, Err(PatchError::Failed(_))));
    assert!(matches!(json_patch(&mut object, json!({})), Err(PatchError::Malformed(_))));
    assert!(matches!(merge_patch(&mut object, &json!([])), Err(PatchError::NotAnObject)));
}

#[test]
fn a_uid_is_a_random_uuid() {
    assert_eq!(uid(0), "00000000-0000-4000-8000-000000000000");
    assert_eq!(uid(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
}

/// Small specs over few names, so that appliers meet.
fn spec() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        (0u8..3).prop_map(|n| json!(n)),
        prop::collection::vec(0u8..3, 0..3).prop_map(|list| json!(list)),
    ];
    let inner = prop::collection::btree_map("[a-c]", leaf, 0..3).prop_map(|map| json!(map));
    prop::collection::btree_map("[a-d]", inner, 0..4).prop_map(|map| json!(map))
}

proptest! {
    /// After a forced apply the object says what was applied, applying it again is a no-op, and
    /// without force nothing that another applier stated changes.
    #[test]
    fn apply_is_idempotent_and_respects_owners(steps in prop::collection::vec((0u8..3, spec(), any::<bool>()), 1..8)) {
        let mut live: Option<Value> = None;
        let mut stated: std::collections::HashMap<u8, Value> = Default::default();
        for (who, spec, force) in steps {
            let author = author(&format!("manager-{who}"));
            let result = applied(live.as_ref(), service(spec.clone()), &author, force, "uid");
            let Ok(object) = result else {
                prop_assert!(!force);
                continue;
            };
            let mut check = vec![spec.clone()];
            if !force {
                check.extend(stated.iter().filter(|(other, _)| **other != who).map(|(_, s)| s.clone()));
            } else {
                stated.clear();
            }
            for expected in check {
                for path in fields::FieldSet::of(&json!({"spec": expected})).iter() {
                    let wanted = json!({"spec": expected.clone()});
                    let wanted = fields::lookup(&wanted, path).cloned();
                    let found = fields::lookup(&object, path).cloned();
                    let both_objects = wanted.as_ref().is_some_and(Value::is_object) && found.as_ref().is_some_and(Value::is_object);
                    prop_assert!(wanted == found || both_objects, "{path:?}: {wanted:?} {found:?}");
                }
            }
            let again = applied(Some(&object), service(spec.clone()), &author, false, "uid").unwrap();
            prop_assert_eq!(&again, &object);
            stated.insert(who, spec);
            live = Some(object);
        }
    }
}
