use leno_api::KINDS;

use super::*;
use crate::kubernetes::facts::{Behind, SliceFacts};

fn name(text: &str) -> ObjectName {
    ObjectName::parse(text).unwrap()
}

fn kind(name: &str) -> &'static KindInfo {
    KINDS.iter().find(|kind| kind.kind == name).unwrap()
}

fn read_service(spec: Value) -> ServiceFacts {
    ServiceFacts::read(Identity::default(), &json!({"spec": spec})).unwrap()
}

/// What a service becomes, and that our own parser takes it.
fn mapped(spec: Value) -> Option<Value> {
    let object = service(&name("shop/orders"), &read_service(spec))?;
    Resource::from_json(object.clone()).unwrap_or_else(|invalid| panic!("{invalid}: {object}"));
    Some(object["spec"].clone())
}

#[test]
fn a_port_speaks_what_it_says_or_is_called() {
    for (port, protocol) in [
        (json!({"name": "http", "port": 80}), "http"),
        (json!({"name": "http-admin", "port": 80}), "http"),
        (json!({"name": "http2-x", "port": 80}), "http2"),
        (json!({"name": "grpc-api", "port": 80}), "grpc"),
        (json!({"name": "tcp", "port": 80}), "tcp"),
        (json!({"name": "https", "port": 443}), "tcp"),
        (json!({"name": "tls-x", "port": 443}), "tcp"),
        (json!({"name": "mysql", "port": 3306}), "tcp"),
        (json!({"name": "web", "port": 80}), "auto"),
        (json!({"port": 80}), "auto"),
        (json!({"name": "httpish", "port": 80}), "auto"),
        // What is said comes before the name; what says nothing that is known does not.
        (json!({"name": "http", "port": 80, "appProtocol": "grpc"}), "grpc"),
        (json!({"name": "web", "port": 80, "appProtocol": "kubernetes.io/h2c"}), "http2"),
        (json!({"name": "web", "port": 80, "appProtocol": "kubernetes.io/ws"}), "http"),
        (json!({"name": "web", "port": 80, "appProtocol": "HTTPS"}), "tcp"),
        (json!({"name": "http", "port": 80, "appProtocol": "example.com/odd"}), "http"),
    ] {
        let spec = mapped(json!({"ports": [port]})).unwrap();
        assert_eq!(spec["ports"][0]["protocol"], protocol, "{port}");
    }
}

#[test]
fn a_service_has_its_tcp_ports_and_its_addresses() {
    let spec = mapped(json!({
        "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"],
        "ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"},
                  {"name": "dns", "port": 53, "protocol": "UDP"}],
    }))
    .unwrap();
    assert_eq!(spec["ports"], json!([{"name": "http", "port": 80, "protocol": "http"}]));
    assert_eq!(spec["addresses"], json!(["10.96.0.7", "fd00::7"]));
    for headless in [json!("None"), json!(""), Value::Null] {
        let spec = mapped(json!({"clusterIP": headless, "ports": [{"port": 80}]})).unwrap();
        assert_eq!(spec.get("addresses"), None);
        assert_eq!(spec["ports"][0]["name"], "default");
    }
}

#[test]
fn what_callers_cannot_use_is_no_service() {
    for spec in [
        json!({"type": "ExternalName", "externalName": "db.example.com", "ports": [{"port": 1}]}),
        json!({"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}),
        json!({"clusterIP": "10.0.0.1"}),
        json!({"ports": null}),
    ] {
        assert_eq!(mapped(spec.clone()), None, "{spec}");
    }
    let odd = ServiceFacts::read(Identity::default(), &json!({"spec": {"ports": 7}}));
    assert!(odd.unwrap_err().contains("invalid type"));
}

fn pod(status: Value) -> PodFacts {
    let body = json!({
        "spec": {"serviceAccountName": "orders", "containers": [{"name": "app"}]},
        "status": status,
    });
    let labels = [("version".to_owned(), "v2".to_owned())].into();
    let identity =
        Identity { uid: Some("u1".into()), created: Some("2026-01-01T00:00:00Z".into()), labels };
    PodFacts::read(identity, false, false, &body).unwrap()
}

fn slice(service: &str, endpoint: Value, ports: Value) -> SliceFacts {
    let labels = [("kubernetes.io/service-name".to_owned(), service.to_owned())].into();
    let identity = Identity { labels, ..Identity::default() };
    let body = json!({"addressType": "IPv4", "endpoints": [endpoint], "ports": ports});
    SliceFacts::read("shop", &identity, &body).unwrap()
}

fn memberships(slices: &[SliceFacts]) -> Vec<Membership<'_>> {
    let all = slices.iter().flat_map(|slice| slice.endpoints.iter().map(move |end| (slice, end)));
    let all = all.map(|(slice, endpoint)| Membership {
        service: &slice.service,
        ports: &slice.ports,
        ready: endpoint.ready,
        zone: endpoint.zone.as_ref(),
    });
    all.collect()
}

fn target() -> Value {
    json!({"addresses": ["10.0.0.7"], "targetRef": {"kind": "Pod", "name": "orders-1"}})
}

fn with(conditions: Value) -> Value {
    let mut endpoint = target();
    endpoint["conditions"] = conditions;
    endpoint
}

fn placed(pod: &PodFacts, slices: &[SliceFacts]) -> Option<Value> {
    let object = workload(&name("shop/orders-1"), pod, &memberships(slices))?;
    Resource::from_json(object.clone()).unwrap_or_else(|invalid| panic!("{invalid}: {object}"));
    Some(object)
}

#[test]
fn a_pod_behind_a_service_is_a_workload_of_its_name() {
    let mut endpoint = target();
    endpoint["zone"] = "eu-1a".into();
    let slices = [slice("orders", endpoint, json!([{"name": "http", "port": 9001}]))];
    let object = placed(&pod(json!({"phase": "Running", "podIP": "10.0.0.7"})), &slices).unwrap();
    let expected = json!({
        "services": ["orders"], "address": "10.0.0.7", "ports": {"http": 9001},
        "serviceAccount": "orders", "zone": "eu-1a",
    });
    assert_eq!(object["spec"], expected);
    let metadata = &object["metadata"];
    assert_eq!(metadata["labels"], json!({"version": "v2"}));
    assert_eq!((&metadata["name"], &metadata["uid"]), (&"orders-1".into(), &"u1".into()));
    // The zone as it was said before it had a field.
    let mut endpoint = target();
    endpoint["topology"] = json!({"topology.kubernetes.io/zone": "b"});
    let slices = [slice("orders", endpoint, json!([{"port": 9001}]))];
    let object = placed(&pod(json!({"podIP": "10.0.0.7"})), &slices).unwrap();
    assert_eq!(object["spec"]["zone"], "b");
    assert_eq!(object["spec"]["ports"], json!({"default": 9001}));
}

#[test]
fn traffic_goes_to_what_is_ready_and_stays() {
    let ports = || json!([{"name": "http", "port": 9001}]);
    for (conditions, takes) in [
        (Value::Null, true),
        (json!({}), true),
        (json!({"ready": true}), true),
        (json!({"ready": null}), true),
        (json!({"ready": false}), false),
        (json!({"ready": false, "serving": true, "terminating": true}), false),
        // With publishNotReadyAddresses a pod on its way out is called ready.
        (json!({"ready": true, "terminating": true}), false),
    ] {
        let slices = [slice("orders", with(conditions.clone()), ports())];
        let object = placed(&pod(json!({"podIP": "10.0.0.7"})), &slices).unwrap();
        let weight = object["spec"].get("weight");
        assert_eq!(weight, (!takes).then_some(&json!(0)), "{conditions}");
    }
    let slices = [slice("orders", target(), ports())];
    let mut leaving = pod(json!({"podIP": "10.0.0.7"}));
    leaving.terminating = true;
    assert_eq!(placed(&leaving, &slices).unwrap()["spec"]["weight"], 0);
}

#[test]
fn a_pod_that_cannot_be_reached_is_no_workload() {
    let slices = [slice("orders", target(), json!([{"port": 9001}]))];
    for status in [
        json!({}),
        json!({"phase": "Pending", "podIP": ""}),
        json!({"phase": "Succeeded", "podIP": "10.0.0.7"}),
        json!({"phase": "Failed", "podIP": "10.0.0.7"}),
    ] {
        assert_eq!(placed(&pod(status.clone()), &slices), None, "{status}");
    }
    assert_eq!(placed(&pod(json!({"podIP": "10.0.0.7"})), &[]), None, "of no service, no sidecar");
}

#[test]
fn a_sidecar_is_known_by_its_container_or_by_what_injection_wrote() {
    let read = |annotated, spec| {
        let body = json!({"spec": spec, "status": {"podIP": "10.0.0.7"}});
        PodFacts::read(Identity::default(), annotated, false, &body).unwrap()
    };
    let app = json!([{"name": "app"}]);
    for (pod, sidecar) in [
        (read(false, json!({"containers": app})), false),
        (read(true, json!({"containers": app})), true),
        (read(false, json!({"containers": [{"name": "app"}, {"name": "leno-proxy"}]})), true),
        (read(false, json!({"containers": app, "initContainers": [{"name": "leno-proxy"}]})), true),
        (read(false, json!({"containers": app, "initContainers": [{"name": "x"}]})), false),
    ] {
        assert_eq!(pod.sidecar, sidecar);
        // With a sidecar it has policies even where nobody calls it.
        let object = placed(&pod, &[]);
        assert_eq!(object.is_some(), sidecar);
        if let Some(object) = object {
            assert_eq!(object["spec"]["sidecar"], json!({"port": 15006, "mutualTls": true}));
            assert_eq!(object["spec"]["services"], json!([]));
            assert_eq!(object["spec"]["serviceAccount"], "default");
        }
    }
}

#[test]
fn services_that_share_a_pod_keep_their_ports_apart() {
    let slices = [
        slice(
            "orders",
            target(),
            json!([{"name": "http", "port": 8080}, {"name": "m", "port": 1}]),
        ),
        slice(
            "orders-admin",
            target(),
            json!([{"name": "http", "port": 9090}, {"name": "m", "port": 1}]),
        ),
    ];
    let object = placed(&pod(json!({"podIP": "10.0.0.7"})), &slices).unwrap();
    let expected = json!({"orders.http": 8080, "orders-admin.http": 9090, "m": 1});
    assert_eq!(object["spec"]["ports"], expected);
    assert_eq!(object["spec"]["services"], json!(["orders", "orders-admin"]));
}

#[test]
fn an_endpoint_without_a_pod_is_a_workload_of_its_address() {
    let slices = [slice("db", json!({"addresses": ["192.0.2.9"]}), json!([{"port": 5432}]))];
    let address = "192.0.2.9".parse().unwrap();
    let object = outsider("shop", address, &memberships(&slices)).unwrap();
    assert!(Resource::from_json(object.clone()).is_ok(), "{object}");
    assert_eq!(object["metadata"]["name"], "db.192-0-2-9");
    assert_eq!(object["spec"]["ports"], json!({"default": 5432}));
    let six = outsider_name("shop", "db", "2001:db8::1".parse().unwrap());
    assert_eq!(&*six.name, "db.2001-db8-0-0-0-0-0-1");
    // Names are no instances.
    let labels = [("kubernetes.io/service-name".to_owned(), "db".to_owned())].into();
    let identity = Identity { labels, ..Identity::default() };
    let body = json!({"addressType": "FQDN", "endpoints": [{"addresses": ["db.example.com"]}]});
    assert_eq!(SliceFacts::read("shop", &identity, &body).unwrap(), SliceFacts::default());
}

#[test]
fn a_slice_speaks_for_pods_of_its_own_namespace_only() {
    let endpoint = |namespace: Value| {
        json!({"addresses": ["10.0.0.7"],
               "targetRef": {"kind": "Pod", "name": "orders-1", "namespace": namespace}})
    };
    let ports = || json!([{"port": 9001}]);
    for own in [Value::Null, "shop".into()] {
        let facts = slice("orders", endpoint(own), ports());
        assert_eq!(facts.endpoints[0].behind, Behind::Pod(name("shop/orders-1")));
    }
    // Not its address either: whose that is, is known.
    assert_eq!(slice("orders", endpoint("other".into()), ports()).endpoints, []);
    let node = json!({"addresses": ["10.0.0.7"], "targetRef": {"kind": "Node", "name": "n1"}});
    let address = "10.0.0.7".parse().unwrap();
    assert_eq!(slice("orders", node, ports()).endpoints[0].behind, Behind::Address(address));
}

#[test]
fn what_people_write_stays_as_it_is() {
    let body = json!({
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "orders"}],
                 "rules": [{"backendRefs": [{"name": "orders", "port": 80}]}]},
        "status": {"parents": []},
    });
    let annotations: BTreeMap<String, String> =
        [(LAST_APPLIED, "{}"), (LEASE_ANNOTATION, "15s"), ("team", "a")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
    let metadata = Metadata {
        uid: Some("u1"),
        generation: Some(3),
        annotations: Some(&annotations),
        ..Metadata::default()
    };
    let read = custom(kind("HTTPRoute"), &name("shop/orders"), &metadata, &body);
    let Reading::Valid(object) = read else { panic!("{read:?}") };
    assert_eq!(object["spec"], body["spec"]);
    assert_eq!(object["metadata"]["generation"], 3);
    assert_eq!(object["metadata"]["annotations"], json!({"team": "a"}));
    assert_eq!(object.get("status"), None);
}

#[test]
fn a_route_of_a_gateway_alone_is_not_ours_and_a_wrong_one_is_invalid() {
    let read = |kind_name: &str, body: Value| {
        custom(kind(kind_name), &name("shop/x"), &Metadata::default(), &body)
    };
    let gateway = json!({"spec": {"parentRefs": [{"name": "edge"}], "rules": []}});
    assert!(matches!(read("HTTPRoute", gateway), Reading::NotOurs));
    assert!(matches!(read("TCPRoute", json!({"spec": {}})), Reading::NotOurs));
    let parent = json!([{"group": "", "kind": "Service", "name": "orders"}]);
    let wrong = json!({"spec": {"parentRefs": parent, "rules": [{"backendRefs": 7}]}});
    assert!(matches!(read("HTTPRoute", wrong), Reading::Invalid(_)));
    for body in [json!({}), json!({"spec": {"typo": 1}}), json!({"spec": {}, "extra": 1})] {
        assert!(matches!(read("TrafficPolicy", body.clone()), Reading::Invalid(_)), "{body}");
    }
}
