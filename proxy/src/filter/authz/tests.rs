use http::{HeaderMap, HeaderValue};
use leno_api::{
    Resource,
    model::{Model, identity::SpiffeId},
};
use serde_json::{Value, json};

use super::*;
use crate::filter::jwt::signing;

mod properties;

/// A policy as users write it; its name is `shop/<name>`.
fn policy(name: &str, spec: &Value) -> Arc<AuthorizationPolicy> {
    let resource = Resource::from_json(json!({
        "apiVersion": "leno.dev/v1alpha1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": spec,
    }));
    match resource.unwrap().model {
        Model::AuthorizationPolicy(policy) => policy,
        other => panic!("{other:?}"),
    }
}

fn policies(specs: &[Value]) -> Policies {
    let named = specs.iter().enumerate().map(|(at, spec)| policy(&format!("p{at}"), spec));
    Policies::compile(named)
}

/// A caller, what it sends, and with which token.
#[derive(Debug)]
struct Call {
    peer: Option<(SpiffeId, String)>,
    source: &'static str,
    destination: &'static str,
    sni: Option<&'static str>,
    /// Method, host, port, path.
    http: Option<(&'static str, &'static str, Option<u16>, &'static str)>,
    headers: HeaderMap,
    token: Option<Token>,
}

impl Call {
    fn tcp(peer: &str) -> Self {
        let id = SpiffeId::parse(&format!("spiffe://{peer}")).ok();
        Self {
            peer: id.map(|id| (id, peer.to_owned())),
            source: "10.1.2.3",
            destination: "10.9.9.9:9000",
            sni: None,
            http: None,
            headers: HeaderMap::new(),
            token: None,
        }
    }

    fn http(peer: &str, method: &'static str, path: &'static str) -> Self {
        Self { http: Some((method, "orders.shop", None, path)), ..Self::tcp(peer) }
    }

    fn at(self, host: &'static str, port: Option<u16>) -> Self {
        let (method, _, _, path) = self.http.unwrap();
        Self { http: Some((method, host, port, path)), ..self }
    }

    fn with(mut self, name: &'static str, values: &[&'static str]) -> Self {
        for value in values {
            self.headers.append(name, HeaderValue::from_static(value));
        }
        self
    }

    fn token(self, claims: &Value) -> Self {
        Self { token: Some(signing::token(claims)), ..self }
    }

    fn decide(&self, policies: &Policies) -> Verdict {
        policies.decide(&Facts {
            peer: self.peer.as_ref().map(|(id, principal)| Peer { id, principal }),
            source: self.source.parse().unwrap(),
            destination: self.destination.parse().unwrap(),
            sni: self.sni,
            http: self.http.map(|(method, host, port, path)| HttpFacts {
                method,
                host,
                port,
                path,
                headers: &self.headers,
            }),
            token: self.token.as_ref(),
        })
    }

    fn is_allowed(&self, specs: &[Value]) -> bool {
        matches!(self.decide(&policies(specs)), Verdict::Allowed { .. })
    }
}

const CURL: &str = "cluster.local/ns/default/sa/curl";
const DEV: &str = "cluster.local/ns/dev/sa/any";
const WEB: &str = "cluster.local/ns/shop/sa/web";
const PLAIN: &str = "";

fn get(peer: &str) -> Call {
    Call::http(peer, "GET", "/")
}

/// <https://istio.io/latest/docs/concepts/security/#authorization-policies>
#[test]
fn istios_first_example() {
    let spec = json!({"action": "ALLOW", "rules": [{
        "from": [
            {"source": {"principals": ["cluster.local/ns/default/sa/curl"]}},
            {"source": {"namespaces": ["dev"]}},
        ],
        "to": [{"operation": {"methods": ["GET"]}}],
        "when": [{"key": "request.auth.claims[iss]", "values": ["https://accounts.google.com"]}],
    }]});
    let google = json!({"iss": "https://accounts.google.com", "sub": "ann"});
    let other = json!({"iss": "https://accounts.example", "sub": "ann"});
    for (call, allowed) in [
        (get(CURL).token(&google), true),
        (get(DEV).token(&google), true),
        (get(WEB).token(&google), false),
        (get(PLAIN).token(&google), false),
        (get(CURL).token(&other), false),
        (get(CURL), false),
        (Call::http(CURL, "POST", "/").token(&google), false),
        (Call::http(CURL, "get", "/").token(&google), false),
        (Call::tcp(CURL), false),
    ] {
        assert_eq!(call.is_allowed(std::slice::from_ref(&spec)), allowed);
    }
}

#[test]
fn allow_nothing_allow_all_deny_all() {
    let nothing = json!({});
    let all = json!({"action": "ALLOW", "rules": [{}]});
    let none = json!({"action": "DENY", "rules": [{}]});
    let audit = json!({"action": "AUDIT", "rules": [{}]});
    for call in [get(CURL), get(PLAIN), Call::tcp(CURL), Call::tcp(PLAIN)] {
        let is_allowed =
            |specs: &[&Value]| call.is_allowed(&specs.iter().copied().cloned().collect::<Vec<_>>());
        assert!(is_allowed(&[]));
        assert!(!is_allowed(&[&nothing]));
        assert!(is_allowed(&[&all]));
        assert!(is_allowed(&[&nothing, &all]));
        assert!(!is_allowed(&[&none]));
        assert!(!is_allowed(&[&all, &none]));
        assert!(is_allowed(&[&json!({"action": "DENY"})]));
        assert!(is_allowed(&[&audit]));
        assert!(!is_allowed(&[&audit, &nothing]));
        assert!(!is_allowed(&[&audit, &none]));
    }
}

#[test]
fn verdicts_name_the_policy() {
    let deny =
        json!({"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/admin*"]}}]}]});
    let allow = json!({"rules": [{"from": [{"source": {"namespaces": ["shop"]}}]}]});
    let audit =
        json!({"action": "AUDIT", "rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]});
    let compiled = policies(&[allow.clone(), deny, audit]);
    let denied = |policy: &str, why| Verdict::Denied { policy: policy.into(), why };
    let admin = Call::http(WEB, "GET", "/admin/x").decide(&compiled);
    assert_eq!(admin, denied("shop/p1", "a DENY policy matches"));
    assert_eq!(get(DEV).decide(&compiled), denied("shop/p0", "no ALLOW policy matches"));
    let audited = Some("shop/p2".into());
    assert_eq!(get(WEB).decide(&compiled), Verdict::Allowed { audited });
    let posted = Call::http(WEB, "POST", "/").decide(&compiled);
    assert_eq!(posted, Verdict::Allowed { audited: None });
    let two = policies(&[allow.clone(), allow]);
    assert_eq!(get(DEV).decide(&two), denied("2 ALLOW policies", "no ALLOW policy matches"));
    assert!(!two.is_empty() && policies(&[]).is_empty() && Policies::default().is_empty());
}

/// <https://istio.io/latest/docs/tasks/security/authorization/authz-tcp/>
#[test]
fn of_tcp_nothing_is_known_about_http() {
    let ports = json!({"rules": [{"to": [{"operation": {"ports": ["9000", "9001"]}}]}]});
    let methods = |action| {
        json!({"action": action, "rules": [
            {"to": [{"operation": {"methods": ["GET"], "ports": ["9000"]}}]},
        ]})
    };
    let call = |destination| Call { destination, ..Call::tcp(CURL) };
    assert!(call("10.9.9.9:9000").is_allowed(std::slice::from_ref(&ports)));
    assert!(call("10.9.9.9:9001").is_allowed(std::slice::from_ref(&ports)));
    assert!(!call("10.9.9.9:9002").is_allowed(&[ports]));
    assert!(!call("10.9.9.9:9000").is_allowed(&[methods("ALLOW")]));
    assert!(!call("10.9.9.9:9000").is_allowed(&[methods("DENY")]));
    assert!(call("10.9.9.9:9001").is_allowed(&[methods("DENY")]));
    let audit = policies(&[methods("AUDIT")]);
    assert_eq!(call("10.9.9.9:9000").decide(&audit), Verdict::Allowed { audited: None });
    for about_http in [
        json!({"to": [{"operation": {"paths": ["/x"]}}]}),
        json!({"to": [{"operation": {"notPaths": ["/x"]}}]}),
        json!({"to": [{"operation": {"hosts": ["x"]}}]}),
        json!({"to": [{"operation": {"notMethods": ["GET"]}}]}),
        json!({"from": [{"source": {"requestPrincipals": ["*"]}}]}),
        json!({"from": [{"source": {"notRequestPrincipals": ["*"]}}]}),
        json!({"when": [{"key": "request.headers[x-a]", "values": ["1"]}]}),
        json!({"when": [{"key": "request.headers[x-a]", "notValues": ["1"]}]}),
        json!({"when": [{"key": "request.auth.principal", "values": ["*"]}]}),
        json!({"when": [{"key": "request.auth.audiences", "values": ["x"]}]}),
        json!({"when": [{"key": "request.auth.presenter", "notValues": ["x"]}]}),
        json!({"when": [{"key": "request.auth.claims[a]", "values": ["x"]}]}),
        // One entry that could match does not save the rule.
        json!({"to": [{"operation": {"ports": ["9000"]}}, {"operation": {"paths": ["/x"]}}]}),
    ] {
        for action in ["ALLOW", "DENY"] {
            let spec = json!({"action": action, "rules": [about_http]});
            assert!(!Call::tcp(CURL).is_allowed(std::slice::from_ref(&spec)), "{spec}");
        }
    }
    // What is not about HTTP still counts.
    let other = json!({"action": "DENY", "rules": [{
        "from": [{"source": {"namespaces": ["dev"]}}],
        "to": [{"operation": {"paths": ["/x"]}}],
    }]});
    assert!(Call::tcp(CURL).is_allowed(std::slice::from_ref(&other)));
    assert!(!Call::tcp(DEV).is_allowed(&[other]));
}

#[test]
fn who_has_no_identity() {
    let source = |action: &str, field: &str, value: &str| json!({"action": action, "rules": [{"from": [{"source": {field: [value]}}]}]});
    for call in [get(PLAIN), Call::tcp(PLAIN)] {
        for (field, value) in [("principals", "*"), ("principals", WEB), ("namespaces", "*")] {
            assert!(!call.is_allowed(&[source("ALLOW", field, value)]));
            assert!(call.is_allowed(&[source("DENY", field, value)]));
        }
        for (field, value) in
            [("notPrincipals", "*"), ("notPrincipals", WEB), ("notNamespaces", "shop")]
        {
            assert!(call.is_allowed(&[source("ALLOW", field, value)]));
            assert!(!call.is_allowed(&[source("DENY", field, value)]));
        }
    }
    assert!(get(WEB).is_allowed(&[source("DENY", "notPrincipals", "*")]));
    assert!(get(WEB).is_allowed(&[source("DENY", "notNamespaces", "shop")]));
    assert!(!get(DEV).is_allowed(&[source("DENY", "notNamespaces", "shop")]));
    assert!(get(WEB).is_allowed(&[source("ALLOW", "principals", &format!("spiffe://{WEB}"))]));
    assert!(get(WEB).is_allowed(&[source("ALLOW", "serviceAccounts", "shop/web")]));
    assert!(!get(DEV).is_allowed(&[source("ALLOW", "serviceAccounts", "shop/any")]));
    // A dot is a dot (CVE-2026-39350).
    let dotted = get("cluster.local/ns/shop/sa/axb");
    assert!(!dotted.is_allowed(&[source("ALLOW", "principals", "cluster.local/ns/shop/sa/a.b")]));
}

#[test]
fn who_has_no_token() {
    let needs = json!({"action": "DENY", "rules": [{"from": [{"source": {"notRequestPrincipals": ["*"]}}]}]});
    let allows =
        json!({"rules": [{"from": [{"source": {"requestPrincipals": ["https://a.example/*"]}}]}]});
    let ann = json!({"iss": "https://a.example", "sub": "ann"});
    let nobody = json!({"iss": "https://a.example"});
    for (call, allowed) in
        [(get(WEB).token(&ann), true), (get(WEB).token(&nobody), false), (get(WEB), false)]
    {
        assert_eq!(call.is_allowed(std::slice::from_ref(&needs)), allowed);
        assert_eq!(call.is_allowed(std::slice::from_ref(&allows)), allowed);
    }
}

#[test]
fn operations() {
    let rows = [
        (json!({"paths": ["/a/*"]}), Call::http(WEB, "GET", "/a/b"), true),
        (json!({"paths": ["/a/*"]}), Call::http(WEB, "GET", "/a"), false),
        (json!({"paths": ["/a/*"]}), Call::http(WEB, "GET", "/A/b"), false),
        (json!({"paths": ["*/info"]}), Call::http(WEB, "GET", "/x/info"), true),
        (json!({"paths": ["*/info"]}), Call::http(WEB, "GET", "/info/x"), false),
        (json!({"paths": ["/u/{*}/o"]}), Call::http(WEB, "GET", "/u/7/o"), true),
        (json!({"paths": ["/u/{*}/o"]}), Call::http(WEB, "GET", "/u/7/8/o"), false),
        (json!({"notPaths": ["/a*"]}), Call::http(WEB, "GET", "/b"), true),
        (json!({"notPaths": ["/a*"]}), Call::http(WEB, "GET", "/ab"), false),
        (json!({"paths": ["/a*"], "notPaths": ["/ab"]}), Call::http(WEB, "GET", "/ab"), false),
        (json!({"paths": ["/a*"], "methods": ["PUT"]}), Call::http(WEB, "GET", "/ab"), false),
        (json!({"methods": ["*"]}), get(WEB), true),
        (json!({"ports": ["9000"]}), get(WEB), true),
        (json!({"ports": ["900"]}), get(WEB), false),
        (json!({"notPorts": ["9000"]}), get(WEB), false),
        (json!({"hosts": ["Orders.Shop"]}), get(WEB), true),
        (json!({"hosts": ["orders.shop"]}), get(WEB).at("orders.shop", Some(8080)), true),
        (json!({"hosts": ["*.shop"]}), get(WEB).at("orders.shop", Some(8080)), true),
        (json!({"hosts": ["orders.shop:*"]}), get(WEB).at("orders.shop", Some(8080)), true),
        (json!({"hosts": ["orders.shop:*"]}), get(WEB), false),
        (json!({"hosts": ["orders.shop:8080"]}), get(WEB).at("orders.shop", Some(8081)), false),
        (json!({"hosts": ["[::1]"]}), get(WEB).at("::1", Some(80)), true),
        (json!({"hosts": ["[::1]:80"]}), get(WEB).at("::1", Some(80)), true),
        (json!({"notHosts": ["orders.shop"]}), get(WEB).at("orders.shop", Some(8080)), false),
        (json!({"notHosts": ["orders.shop"]}), get(WEB).at("users.shop", None), true),
    ];
    for (operation, call, matches) in rows {
        let spec =
            |action| json!({"action": action, "rules": [{"to": [{"operation": operation}]}]});
        assert_eq!(call.is_allowed(&[spec("ALLOW")]), matches, "{operation}");
        assert_eq!(!call.is_allowed(&[spec("DENY")]), matches, "{operation}");
    }
}

#[test]
fn conditions() {
    let claims = json!({
        "iss": "i", "sub": "s", "aud": ["x", "y"], "azp": "web", "scope": "read write", "admin": true,
        "level": 3, "realm": {"roles": ["a", "b"], "o": {}}, "groups": ["g 1", 7],
    });
    let rows = [
        ("source.ip", json!(["10.1.0.0/16"]), true),
        ("source.ip", json!(["10.2.0.0/16"]), false),
        ("destination.ip", json!(["10.9.9.9"]), true),
        ("destination.port", json!(["9000"]), true),
        ("destination.port", json!(["80"]), false),
        ("source.namespace", json!(["shop"]), true),
        ("source.principal", json!(["*/sa/web"]), true),
        ("connection.sni", json!(["9000.orders.shop.leno"]), true),
        ("connection.sni", json!(["*.shop.leno"]), true),
        ("connection.sni", json!(["orders"]), false),
        ("request.auth.principal", json!(["i/s"]), true),
        ("request.auth.audiences", json!(["y"]), true),
        ("request.auth.audiences", json!(["z"]), false),
        ("request.auth.presenter", json!(["web"]), true),
        ("request.auth.claims[scope]", json!(["write"]), true),
        ("request.auth.claims[scope]", json!(["read write"]), true),
        ("request.auth.claims[scope]", json!(["rea"]), false),
        ("request.auth.claims[admin]", json!(["true"]), true),
        ("request.auth.claims[level]", json!(["3"]), true),
        ("request.auth.claims[realm][roles]", json!(["b"]), true),
        ("request.auth.claims[realm][roles]", json!(["c"]), false),
        ("request.auth.claims[realm]", json!(["*"]), false),
        ("request.auth.claims[realm][o]", json!(["*"]), false),
        ("request.auth.claims[groups]", json!(["g 1"]), true),
        ("request.auth.claims[groups]", json!(["1"]), false),
        ("request.auth.claims[missing]", json!(["*"]), false),
        ("request.headers[X-A]", json!(["1"]), true),
        ("request.headers[x-a]", json!(["2"]), false),
        ("request.headers[x-b]", json!(["*"]), false),
    ];
    let call = Call { sni: Some("9000.ORDERS.shop.leno"), ..get(WEB).with("x-a", &["1"]) };
    let call = call.token(&claims);
    for (key, values, matches) in rows {
        for (field, expected) in [("values", matches), ("notValues", !matches)] {
            let spec = |action| json!({"action": action, "rules": [{"when": [{"key": key, field: values}]}]});
            assert_eq!(call.is_allowed(&[spec("ALLOW")]), expected, "{key} {field} {values}");
            assert_eq!(!call.is_allowed(&[spec("DENY")]), expected, "{key} {field} {values}");
        }
    }
}

#[test]
fn a_header_that_occurs_several_times_allows_nothing_it_should_not() {
    let spec = |action: &str, field: &str, value: &str| {
        let when = json!([{"key": "request.headers[x-role]", field: [value]}]);
        json!({"action": action, "rules": [{"when": when}]})
    };
    let call = |values: &[&'static str]| get(WEB).with("x-role", values);
    for (values, field, value, allow, deny) in [
        (&["user", "admin"][..], "values", "admin", false, true),
        (&["admin", "user"], "values", "admin", false, true),
        (&["admin", "user"], "values", "admin,user", false, true),
        (&["admin", "user"], "values", "adm*", false, true),
        (&["admin1", "admin2"], "values", "adm*", true, true),
        (&["a", "b"], "values", "*", true, true),
        (&["a", "b"], "values", "c", false, false),
        (&["a", "b"], "notValues", "a", false, true),
        (&["a", "b"], "notValues", "a,b", false, true),
        (&["a", "b"], "notValues", "c", true, true),
        (&["a", "a"], "notValues", "a*", false, false),
        (&[], "values", "*", false, false),
        (&[], "notValues", "a", true, true),
        (&[""], "values", "*", false, false),
    ] {
        let call = call(values);
        assert_eq!(
            call.is_allowed(&[spec("ALLOW", field, value)]),
            allow,
            "{values:?} {field} {value}"
        );
        assert_eq!(
            !call.is_allowed(&[spec("DENY", field, value)]),
            deny,
            "{values:?} {field} {value}"
        );
    }
    // Bytes that are no text allow nothing, and do not hide what denies.
    let mut odd = get(WEB);
    odd.headers.insert("x-role", HeaderValue::from_bytes(b"admin\xff").unwrap());
    assert!(!odd.is_allowed(&[spec("ALLOW", "values", "admin*")]));
    assert!(!odd.is_allowed(&[spec("ALLOW", "notValues", "user")]));
    assert!(!odd.is_allowed(&[spec("DENY", "values", "admin*")]));
    assert!(!odd.is_allowed(&[spec("DENY", "notValues", "admin")]));
}

#[test]
fn addresses() {
    let spec =
        |field: &str, value: &str| json!({"rules": [{"from": [{"source": {field: [value]}}]}]});
    let from = |source| Call { source, ..get(WEB) };
    assert!(from("10.1.2.3").is_allowed(&[spec("ipBlocks", "10.0.0.0/8")]));
    assert!(from("::ffff:10.1.2.3").is_allowed(&[spec("ipBlocks", "10.0.0.0/8")]));
    assert!(!from("11.1.2.3").is_allowed(&[spec("ipBlocks", "10.0.0.0/8")]));
    assert!(!from("::ffff:10.1.2.3").is_allowed(&[spec("notIpBlocks", "10.0.0.0/8")]));
    // A header does not change where somebody is.
    let forwarded = from("11.1.2.3").with("x-forwarded-for", &["10.1.2.3"]);
    assert!(!forwarded.is_allowed(&[spec("ipBlocks", "10.0.0.0/8")]));
}
