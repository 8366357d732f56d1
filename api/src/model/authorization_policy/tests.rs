use serde_json::{Value, json};

use super::*;
use crate::Resource;

fn read_spec(spec: Value) -> Result<AuthorizationPolicy, String> {
    let object = json!({
        "apiVersion": "leno.dev/v1alpha1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": spec,
    });
    match Resource::from_json(object).map_err(|invalid| invalid.to_string())?.model {
        Model::AuthorizationPolicy(policy) => Ok((*policy).clone()),
        other => panic!("{other:?}"),
    }
}

fn rule(rule: Value) -> Result<Rule, String> {
    read_spec(json!({"rules": [rule]})).map(|mut policy| policy.rules.swap_remove(0))
}

fn exact(text: &str) -> Pattern {
    Pattern::Exact(text.to_owned())
}

/// The policy at the head of Istio's documentation, but for its apiVersion.
#[test]
fn reads_istios_example() {
    let policy = read_spec(json!({
        "action": "ALLOW",
        "rules": [{
            "from": [
                {"source": {"principals": ["cluster.local/ns/default/sa/curl"]}},
                {"source": {"namespaces": ["test"]}},
            ],
            "to": [{"operation": {"methods": ["GET"], "paths": ["/info*"]}}, {"operation": {"methods": ["POST"], "paths": ["/data"]}}],
            "when": [{"key": "request.auth.claims[iss]", "values": ["https://accounts.google.com"]}],
        }],
    }))
    .unwrap();
    let only = |pattern| Patterns { any_of: vec![pattern], none_of: vec![] };
    let source = |source: Source| source;
    let expected = Rule {
        from: vec![
            source(Source {
                principals: only(exact("cluster.local/ns/default/sa/curl")),
                ..Source::default()
            }),
            source(Source { namespaces: only(exact("test")), ..Source::default() }),
        ],
        to: vec![
            Operation {
                methods: only(exact("GET")),
                paths: only(Pattern::Prefix("/info".to_owned())),
                ..Operation::default()
            },
            Operation {
                methods: only(exact("POST")),
                paths: only(exact("/data")),
                ..Operation::default()
            },
        ],
        when: vec![Condition {
            key: ConditionKey::Claim(vec!["iss".to_owned()]),
            values: only(exact("https://accounts.google.com")),
            blocks: Blocks::default(),
        }],
    };
    assert_eq!((policy.action, policy.applies), (Action::Allow, Applies::Namespace));
    assert_eq!(policy.rules, [expected]);
}

#[test]
fn nothing_said_and_everything_allowed_differ() {
    let nothing = read_spec(json!({})).unwrap();
    assert_eq!((nothing.action, nothing.rules), (Action::Allow, vec![]));
    let everything = Rule { from: vec![], to: vec![], when: vec![] };
    assert_eq!(rule(json!({})), Ok(everything));
    assert_eq!(read_spec(json!({"action": "DENY"})).unwrap().action, Action::Deny);
    assert_eq!(read_spec(json!({"action": "AUDIT"})).unwrap().action, Action::Audit);
}

#[test]
fn reads_every_field_and_its_opposite() {
    let source = json!({
        "principals": ["spiffe://cluster.local/ns/a/sa/b"], "notPrincipals": ["*/sa/c"],
        "requestPrincipals": ["*"], "notRequestPrincipals": ["issuer/eve"],
        "namespaces": ["a*"], "notNamespaces": ["ab"],
        "ipBlocks": ["10.0.0.0/8"], "notIpBlocks": ["::ffff:10.1.0.0/112"],
    });
    let operation = json!({
        "hosts": ["Orders"], "notHosts": ["*.example.com"], "ports": ["080"], "notPorts": ["81"],
        "methods": ["GET"], "notMethods": ["P*"], "paths": ["/a/{*}"], "notPaths": ["/a/b"],
    });
    let rule =
        rule(json!({"from": [{"source": source}], "to": [{"operation": operation}]})).unwrap();
    let patterns =
        |any: Pattern, none: Pattern| Patterns { any_of: vec![any], none_of: vec![none] };
    let (prefix, suffix) = (
        |text: &str| Pattern::Prefix(text.to_owned()),
        |text: &str| Pattern::Suffix(text.to_owned()),
    );
    let [source] = &rule.from[..] else { panic!("{rule:?}") };
    assert_eq!(source.principals, patterns(exact("cluster.local/ns/a/sa/b"), suffix("/sa/c")));
    assert_eq!(source.request_principals, patterns(Pattern::Present, exact("issuer/eve")));
    assert_eq!(source.namespaces, patterns(prefix("a"), exact("ab")));
    assert!(source.ip_blocks.matches("10.2.0.1".parse().unwrap()));
    assert!(!source.ip_blocks.matches("10.1.0.1".parse().unwrap()));
    let [operation] = &rule.to[..] else { panic!("{rule:?}") };
    assert_eq!(operation.hosts, patterns(exact("orders"), suffix(".example.com")));
    assert_eq!(operation.ports, patterns(exact("80"), exact("81")));
    assert_eq!(operation.methods, patterns(exact("GET"), prefix("P")));
    assert!(operation.paths.matches(Some("/a/c")) && !operation.paths.matches(Some("/a/b")));
}

#[test]
fn service_accounts_are_principals_of_any_trust_domain() {
    let source = json!({"serviceAccounts": ["orders", "other/users"], "notServiceAccounts": ["x"]});
    let rule = rule(json!({"from": [{"source": source}]})).unwrap();
    let principals = &rule.from[0].principals;
    assert!(principals.matches(Some("cluster.local/ns/shop/sa/orders")));
    assert!(principals.matches(Some("example.org/ns/other/sa/users")));
    assert!(!principals.matches(Some("cluster.local/ns/other/sa/orders")));
    assert!(!principals.matches(Some("cluster.local/ns/shop/sa/my-orders")));
    assert_eq!(principals.none_of, [Pattern::Suffix("/ns/shop/sa/x".to_owned())]);
}

#[test]
fn reads_istios_keys() {
    let claim =
        |path: &[&str]| ConditionKey::Claim(path.iter().map(|part| (*part).to_owned()).collect());
    let rows = [
        ("request.headers[X-User]", ConditionKey::Header("x-user".to_owned())),
        ("source.ip", ConditionKey::SourceIp),
        ("source.namespace", ConditionKey::SourceNamespace),
        ("source.principal", ConditionKey::SourcePrincipal),
        ("request.auth.principal", ConditionKey::RequestPrincipal),
        ("request.auth.audiences", ConditionKey::RequestAudiences),
        ("request.auth.presenter", ConditionKey::RequestPresenter),
        ("request.auth.claims[iss]", claim(&["iss"])),
        ("request.auth.claims[realm][roles]", claim(&["realm", "roles"])),
        ("request.auth.claims[https://example.com/role]", claim(&["https://example.com/role"])),
        ("destination.ip", ConditionKey::DestinationIp),
        ("destination.port", ConditionKey::DestinationPort),
        ("connection.sni", ConditionKey::Sni),
    ];
    for (text, key) in rows {
        assert_eq!(ConditionKey::parse(text), Ok(key));
    }
    for text in [
        "",
        "source",
        "source.ip ",
        "Source.ip",
        "remote.ip",
        "request.headers",
        "request.headers[]",
        "request.headers[a][b]",
        "request.headers[a b]",
        "request.headers[:path]",
        "request.headersx[a]",
        "request.auth.claims",
        "request.auth.claims[]",
        "request.auth.claims[a",
        "request.auth.claims[a]b]",
        "request.auth.claims[a]x[b]",
        "request.auth.claims[[a]]",
        "request.auth.claims[a][b][c][d][e][f][g][h][i]",
    ] {
        assert!(ConditionKey::parse(text).is_err(), "{text}: {:?}", ConditionKey::parse(text));
    }
}

#[test]
fn the_key_decides_how_values_are_read() {
    let when = |key: &str, values: Value| {
        rule(json!({"when": [{"key": key, "values": values}]}))
            .map(|mut rule| rule.when.swap_remove(0))
    };
    let address = when("source.ip", json!(["10.0.0.0/8"])).unwrap();
    assert!(address.values.is_empty() && address.blocks.matches("10.9.9.9".parse().unwrap()));
    assert!(!address.blocks.matches("11.0.0.1".parse().unwrap()));
    let principal = when("source.principal", json!(["spiffe://cluster.local/ns/a/sa/b"])).unwrap();
    assert!(
        principal.values.matches(Some("cluster.local/ns/a/sa/b")) && principal.blocks.is_empty()
    );
    assert!(when("connection.sni", json!(["A.b"])).unwrap().values.matches(Some("a.b")));
    assert!(when("request.headers[accept]", json!(["*/*"])).is_ok());
    let refused = |key, values, message: &str| {
        let error: String = when(key, values).unwrap_err();
        assert!(error.contains(message), "{key}: {error}");
    };
    refused(
        "source.ip",
        json!(["orders"]),
        "spec.rules[0].when[0].values[0]: `orders` is not a block",
    );
    refused("destination.ip", json!(["10.0.0.0/33"]), "values[0]: `10.0.0.0/33` is not a block");
    refused("destination.port", json!(["http"]), "values[0]: `http` is not a port");
    refused("remote.ip", json!(["10.0.0.1"]), "spec.rules[0].when[0].key: unknown key `remote.ip`");
    refused("source.ip", json!([]), "spec.rules[0].when[0].values: is empty");
    let error = rule(json!({"when": [{"key": "source.ip"}]})).unwrap_err();
    assert!(error.contains("spec.rules[0].when[0]: needs values or notValues"), "{error}");
}

#[test]
fn each_broken_rule_is_named_with_its_place() {
    let from = |source: Value| json!({"from": [{"source": source}]});
    let to = |operation: Value| json!({"to": [{"operation": operation}]});
    let rows = [
        (json!({"from": []}), "spec.rules[0].from: is empty"),
        (json!({"to": []}), "spec.rules[0].to: is empty"),
        (json!({"when": []}), "spec.rules[0].when: is empty"),
        (json!({"form": []}), "unknown field `form`"),
        (from(json!({})), "spec.rules[0].from[0].source: asks nothing"),
        (to(json!({})), "spec.rules[0].to[0].operation: asks nothing"),
        (from(json!({"principals": []})), "spec.rules[0].from[0].source.principals: is empty"),
        (from(json!({"principals": [""]})), "source.principals[0]: is empty"),
        (from(json!({"notPrincipals": ["a*b"]})), "source.notPrincipals[0]: `a*b`"),
        (from(json!({"ipBlocks": ["10.0.0.0/40"]})), "source.ipBlocks[0]: `10.0.0.0/40`"),
        (from(json!({"remoteIpBlocks": ["10.0.0.0/8"]})), "unknown field `remoteIpBlocks`"),
        (from(json!({"serviceAccounts": ["a/b/c"]})), "source.serviceAccounts[0]: `a/b/c`"),
        (from(json!({"serviceAccounts": ["a"], "namespaces": ["b"]})), "exclude each other"),
        (to(json!({"ports": ["http"]})), "operation.ports[0]: `http` is not a port"),
        (to(json!({"methods": ["get"]})), "operation.methods[0]: `get` is not a method"),
        (to(json!({"paths": ["v1"]})), "operation.paths[0]: `v1` must begin with"),
        (to(json!({"notPaths": ["/v1?a"]})), "operation.notPaths[0]: `/v1?a`"),
        (to(json!({"hosts": ["a".repeat(513)]})), "operation.hosts[0]: has 513 bytes"),
        (to(json!({"hosts": vec!["a"; 65]})), "operation.hosts: has 65 entries"),
        (
            json!({"from": vec![json!({"source": {"namespaces": ["a"]}}); 65]}),
            "rules[0].from: has 65",
        ),
    ];
    for (broken, message) in rows {
        let error = rule(broken.clone()).unwrap_err();
        assert!(error.contains(message), "{broken}: {error}");
    }
    let error = read_spec(json!({"rules": vec![json!({}); 65]})).unwrap_err();
    assert!(error.contains("spec.rules: has 65 entries; 0 to 64"), "{error}");
    assert_eq!(read_spec(json!({"rules": vec![json!({}); 64]})).unwrap().rules.len(), 64);
    let error = read_spec(json!({"action": "CUSTOM"})).unwrap_err();
    assert!(error.contains("spec.action: unknown variant `CUSTOM`"), "{error}");
}
