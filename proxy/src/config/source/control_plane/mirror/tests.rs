//! What is asked for and what is claimed, message by message.

use super::*;

fn mirror(hosts: &[&str]) -> Mirror {
    let hosts = hosts.iter().map(ToString::to_string).collect();
    Mirror::new("shop".to_owned(), vec![ObjectName::new("shop", "declared")], hosts, Vec::new())
}

fn requests(mirror: &mut Mirror) -> Vec<DeltaDiscoveryRequest> {
    std::iter::from_fn(|| mirror.next_request()).collect()
}

fn ask(mirror: &mut Mirror, host: &str) {
    mirror.obey(Command::Subscribe { host: host.to_owned() });
}

fn absent(mirror: &mut Mirror, host: &str) {
    mirror.receive(DeltaDiscoveryResponse {
        type_url: wire::type_url(service_kind().unwrap()),
        removed_resources: vec![wire::service_alias("shop", host)],
        ..DeltaDiscoveryResponse::default()
    });
}

fn changes(mirror: &mut Mirror) -> Vec<Change> {
    let updates = std::iter::from_fn(|| mirror.next_update());
    let changes = updates.filter_map(|update| match update {
        Update::Changed(change) => Some(change),
        _ => None,
    });
    changes.collect()
}

#[test]
fn services_are_asked_for_last_and_what_is_unanswered_apart() {
    let mut mirror = mirror(&["known"]);
    ask(&mut mirror, "new");
    assert!(requests(&mut mirror).is_empty(), "there is no stream yet");
    mirror.connected();
    let hello = requests(&mut mirror);
    assert_eq!(hello.len(), KINDS.len() + 1);
    let (others, services) = hello.split_at(KINDS.len() - 1);
    assert!(others.iter().all(|request| request.resource_names_subscribe == ["*"]));
    assert_eq!(services[0].resource_names_subscribe, ["shop/declared", "host/shop/known"]);
    assert_eq!(services[1].resource_names_subscribe, ["host/shop/new"]);
    assert_eq!(services[0].type_url, services[1].type_url);
}

#[test]
fn a_host_asked_for_twice_is_one_subscription_and_what_is_known_is_said_again() {
    let mut mirror = mirror(&[]);
    mirror.connected();
    requests(&mut mirror);
    ask(&mut mirror, "x");
    ask(&mut mirror, "x");
    assert_eq!(requests(&mut mirror).len(), 1);
    absent(&mut mirror, "x");
    ask(&mut mirror, "x");
    assert!(requests(&mut mirror).is_empty());
    let changes = changes(&mut mirror);
    assert_eq!(changes.len(), 2);
    assert!(changes.iter().all(|change| change.absent_hosts == ["x"]));
}

#[test]
fn hosts_are_bounded_and_one_that_nobody_answers_to_makes_room() {
    let mut mirror = mirror(&[]);
    mirror.connected();
    for number in 0..MAX_HOSTS {
        ask(&mut mirror, &format!("h{number}"));
    }
    requests(&mut mirror);
    changes(&mut mirror);
    // All may yet be answered: there is no room.
    ask(&mut mirror, "more");
    assert_eq!(changes(&mut mirror)[0].absent_hosts, ["more"]);
    assert!(requests(&mut mirror).is_empty());
    absent(&mut mirror, "h7");
    changes(&mut mirror);
    ask(&mut mirror, "more");
    let asked = requests(&mut mirror);
    assert_eq!(asked[0].resource_names_unsubscribe, ["host/shop/h7"]);
    assert_eq!(asked[1].resource_names_subscribe, ["host/shop/more"]);
    assert_eq!(changes(&mut mirror)[0].forgotten_hosts, ["h7"]);
    ask(&mut mirror, &"x".repeat(MAX_HOST + 1));
    assert_eq!(changes(&mut mirror)[0].absent_hosts.len(), 1);
}

#[test]
fn a_verdict_after_the_stream_broke_counts_but_is_not_sent() {
    let mut mirror = mirror(&[]);
    mirror.connected();
    requests(&mut mirror);
    let body = r#"{"apiVersion": "leno.dev/v1alpha1", "kind": "Service",
        "metadata": {"name": "a", "namespace": "shop"}, "spec": {"ports": [{"port": 80}]}}"#;
    let any = envoy_types::pb::google::protobuf::Any {
        value: body.as_bytes().to_vec(),
        ..Default::default()
    };
    let resource = WireResource {
        name: "shop/a".to_owned(),
        version: "7".to_owned(),
        resource: Some(any),
        ..WireResource::default()
    };
    mirror.receive(DeltaDiscoveryResponse {
        type_url: wire::type_url(service_kind().unwrap()),
        resources: vec![resource],
        ..DeltaDiscoveryResponse::default()
    });
    let id = changes(&mut mirror)[0].id;
    mirror.disconnected();
    mirror.obey(Command::Verdict { id, rejected: Vec::new() });
    assert!(requests(&mut mirror).is_empty());
    mirror.connected();
    let claims: Vec<_> = requests(&mut mirror)
        .into_iter()
        .flat_map(|request| request.initial_resource_versions)
        .collect();
    assert_eq!(claims, [("shop/a".to_owned(), "7".to_owned())]);
    // Verdicts about nothing change nothing.
    mirror.obey(Command::Verdict { id, rejected: Vec::new() });
    mirror.obey(Command::Verdict { id: 0, rejected: Vec::new() });
    assert!(requests(&mut mirror).is_empty());
}

#[test]
fn what_has_become_otherwise_is_asked_for_again_and_claimed_no_more() {
    let mut mirror = mirror(&[]);
    let kind = KINDS.iter().find(|kind| kind.kind == "WasmPlugin").unwrap();
    let key = Key { kind, name: ObjectName::new("shop", "tag") };
    mirror.held.insert(key.clone(), "7".to_owned());
    mirror.obey(Command::Again { key: key.clone() });
    assert!(requests(&mut mirror).is_empty() && mirror.held.is_empty(), "there is no stream");
    mirror.connected();
    requests(&mut mirror);
    mirror.obey(Command::Again { key });
    let asked = requests(&mut mirror);
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].type_url, wire::type_url(kind));
    assert_eq!(asked[0].resource_names_subscribe, ["shop/tag"]);
}
