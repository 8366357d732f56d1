//! Cache policies as configuration: what is refused and where, what counts, what goes live.

use serde_json::{Value, json};

use crate::{
    client::{self, Answer},
    control_plane::ControlPlane,
    mesh::{Mesh, until},
    origin::Origin,
};

const GROUP: &str = "leno.dev/v1alpha1";
const GATEWAY: &str = "gateway.networking.k8s.io";
const POLICIES: &str = "/apis/leno.dev/v1alpha1/namespaces/default/cachepolicies";

fn policy(name: &str, target: &Value) -> Value {
    json!({
        "apiVersion": GROUP, "kind": "CachePolicy", "metadata": {"name": name},
        "spec": {"targetRefs": [target]},
    })
}

fn service() -> Value {
    json!({"kind": "Service", "name": "shop"})
}

fn route(rule: &str) -> Value {
    json!({"group": GATEWAY, "kind": "HTTPRoute", "name": "shop", "sectionName": rule})
}

async fn put_mesh(control_plane: &ControlPlane, shop: &Origin) {
    let ports = json!([{"name": "http", "port": 80, "protocol": "http"}]);
    let parent = json!({"group": "", "kind": "Service", "name": "shop"});
    let rule = json!({"name": "search", "backendRefs": [{"name": "shop", "port": 80}]});
    let address = shop.address;
    let workload = json!({
        "services": ["shop"], "address": address.ip(), "ports": {"http": address.port()},
    });
    for (api, plural, kind, spec) in [
        (GROUP, "services", "Service", json!({"ports": ports})),
        (GROUP, "workloads", "Workload", workload),
        (
            "gateway.networking.k8s.io/v1",
            "httproutes",
            "HTTPRoute",
            json!({"parentRefs": [parent], "rules": [rule]}),
        ),
    ] {
        let object =
            json!({"apiVersion": api, "kind": kind, "metadata": {"name": "shop"}, "spec": spec});
        control_plane.create(api, plural, object).await;
    }
}

/// What the control plane answers to a new policy.
async fn create(control_plane: &ControlPlane, policy: &Value) -> Answer {
    control_plane.call("POST", POLICIES, policy).await
}

/// What the status says about being live, once as many proxies use it.
async fn live(control_plane: &ControlPlane, name: &str, proxies: u64) -> String {
    until(&format!("{name} to be live on {proxies}"), async || {
        let answer = control_plane.call("GET", &format!("{POLICIES}/{name}"), &Value::Null).await;
        let object: Value = serde_json::from_str(&answer.text()).unwrap();
        let status = &object["status"];
        let live = status["conditions"].as_array()?.iter().find(|found| found["type"] == "Live")?;
        (status["proxies"]["live"] == proxies).then(|| live["message"].as_str().unwrap().to_owned())
    })
    .await
}

#[tokio::test]
async fn a_bad_field_is_named_with_its_place() {
    let rows = [
        ("maxBytes: 1Ki", "spec.maxBytes: must be 1Mi to 64Gi bytes"),
        ("maxBytes: 8Mi\n  maxObjectBytes: 2Mi", "an eighth of maxBytes, which is 1Mi"),
        ("defaultTTL: 1s", "spec.defaultTTL: unknown field `defaultTTL`"),
        ("key: {headers: [cookie]}", "spec.key.headers[0]: `cookie` cannot be a part of the key"),
        ("redis: {address: 'redis://redis:6379'}", "spec.redis.address: `redis://redis:6379`"),
    ];
    for (field, expected) in rows {
        let text = format!(
            "apiVersion: {GROUP}\nkind: CachePolicy\nmetadata: {{name: shop, namespace: default}}\nspec:\n  \
             targetRefs: [{{kind: Service, name: shop}}]\n  {field}\n"
        );
        let (status, errors) = Mesh::default().yaml(&text).fail().await;
        assert_eq!(status.code(), Some(1), "{errors}");
        assert!(errors.contains(expected) && errors.contains("mesh.yaml:"), "{errors}");
    }
}

#[tokio::test]
async fn the_control_plane_refuses_what_is_wrong_and_warns_of_what_does_not_count() {
    let shop = Origin::echo("shop").await;
    let control_plane = ControlPlane::start(&[]).await;
    put_mesh(&control_plane, &shop).await;
    let mut wrong = policy("wrong", &service());
    wrong["spec"]["collapse"] = json!({"wait": "1h"});
    let answer = create(&control_plane, &wrong).await;
    let text = answer.text();
    assert_eq!(answer.status, 422, "{text}");
    assert!(text.contains("spec.collapse.wait") && text.contains("must be 0s to 1m"), "{text}");

    for (name, target, warning) in [
        ("first", service(), None),
        ("second", service(), Some("CachePolicy default/first is older and already applies there")),
        ("rule", route("search"), None),
        ("typo", route("serach"), Some("HTTPRoute default/shop has no rule named `serach`")),
        ("nowhere", json!({"kind": "Service", "name": "nowhere"}), Some("there is no Service")),
    ] {
        let answer = create(&control_plane, &policy(name, &target)).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        let warnings = answer.headers_named("warning").join("\n");
        match warning {
            Some(expected) => {
                let place = warnings.contains("spec.targetRefs[0]");
                assert!(place && warnings.contains(expected), "{name}: {warnings}");
            }
            None => assert_eq!(warnings, "", "{name}"),
        }
    }
}

#[tokio::test]
async fn the_status_says_where_a_policy_is_live() {
    let shop = Origin::echo("shop").await;
    let mut control_plane = ControlPlane::start(&[]).await;
    put_mesh(&control_plane, &shop).await;
    for (name, target) in [("service", service()), ("rule", route("search"))] {
        let answer = create(&control_plane, &policy(name, &target)).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
    }
    let proxy = Mesh::default().managed(&mut control_plane, "users").start().await;
    until("the service", async || {
        let answer = client::get(proxy.outbound, "shop", "/").await;
        (answer.status == 200).then_some(())
    })
    .await;
    for name in ["service", "rule"] {
        let message = live(&control_plane, name, 1).await;
        assert_eq!(message, "live on 1 of 1 connected proxies that use it");
    }
    // What comes later reaches it, too.
    create(&control_plane, &policy("later", &route("search"))).await;
    assert_eq!(
        live(&control_plane, "later", 1).await,
        "live on 1 of 1 connected proxies that use it"
    );
}
