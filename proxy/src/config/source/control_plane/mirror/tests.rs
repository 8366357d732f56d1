//! What is asked for and what is claimed, message by message.

use envoy_types::pb::google::protobuf::value::Kind;

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

#[test]
fn what_plugins_run_is_told_when_it_changes_and_on_every_stream() {
    let mut mirror = mirror(&[]);
    let run = |mirror: &mut Mirror, plugins: &[(&str, &str)]| {
        let running = |version: &str| Running {
            version: version.to_owned(),
            digest: "ab".to_owned(),
            trial: None,
        };
        let plugins = plugins
            .iter()
            .map(|(name, version)| (ObjectName::new("shop", name), running(version)))
            .collect();
        mirror.obey(Command::Running { plugins });
    };
    // The names in a request that asks for nothing, and whether something runs.
    let told = |request: &DeltaDiscoveryRequest| {
        assert!(request.resource_names_subscribe.is_empty() && request.response_nonce.is_empty());
        let mut fields = request.node.clone().unwrap().metadata.unwrap().fields;
        let plugins = fields.remove(wire::node::PLUGINS).unwrap().kind.unwrap();
        let Kind::StructValue(plugins) = plugins else { panic!("{plugins:?}") };
        let runs = |kind| !matches!(kind, Some(Kind::NullValue(_)));
        let told = plugins.fields.into_iter().map(|(name, value)| (name, runs(value.kind)));
        told.collect::<BTreeMap<_, _>>()
    };
    let expected = |plugins: &[(&str, bool)]| {
        plugins.iter().map(|(name, runs)| ((*name).to_owned(), *runs)).collect::<BTreeMap<_, _>>()
    };
    run(&mut mirror, &[("a", "1"), ("b", "1")]);
    assert!(requests(&mut mirror).is_empty(), "there is no stream yet");
    for _ in 0..2 {
        mirror.connected();
        let hello = requests(&mut mirror);
        let last = hello.last().unwrap();
        assert_eq!(told(last), expected(&[("shop/a", true), ("shop/b", true)]));
        mirror.disconnected();
    }
    mirror.connected();
    requests(&mut mirror);
    run(&mut mirror, &[("a", "1"), ("b", "1")]);
    assert!(requests(&mut mirror).is_empty(), "nothing new");
    run(&mut mirror, &[("a", "2"), ("c", "1")]);
    let news = requests(&mut mirror);
    let changed = expected(&[("shop/a", true), ("shop/b", false), ("shop/c", true)]);
    assert_eq!((news.len(), told(&news[0])), (1, changed));
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    let long = "ä".repeat(MAX_REASON);
    assert_eq!(one_line(&long), "ä".repeat(MAX_REASON / 2));
    assert_eq!(one_line(&format!("x{long}")).len(), MAX_REASON - 1);
    assert_eq!(one_line("a\nb"), "a b");
}
