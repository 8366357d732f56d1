use serde_json::json;

use super::*;
use crate::Resource;

const JWKS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"a","x":"x","y":"y"}]}"#;

fn read_spec(spec: Value) -> Result<RequestAuthentication, String> {
    let object = json!({
        "apiVersion": "leno.dev/v1alpha1",
        "kind": "RequestAuthentication",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": spec,
    });
    match Resource::from_json(object).map_err(|invalid| invalid.to_string())?.model {
        Model::RequestAuthentication(policy) => Ok((*policy).clone()),
        other => panic!("{other:?}"),
    }
}

/// A rule that is good but for `changes`.
fn rule(changes: Value) -> Result<JwtRule, String> {
    let mut rule = json!({"issuer": "https://issuer.example", "jwks": JWKS});
    for (field, value) in changes.as_object().unwrap() {
        rule[field] = value.clone();
        if value.is_null() {
            rule.as_object_mut().unwrap().remove(field);
        }
    }
    read_spec(json!({"jwtRules": [rule]})).map(|mut policy| policy.rules.swap_remove(0))
}

#[test]
fn the_defaults_are_a_bearer_token_of_any_audience() {
    let rule = rule(json!({})).unwrap();
    assert_eq!(rule.issuer, "https://issuer.example");
    assert_eq!(rule.from_headers, [("authorization".to_owned(), "Bearer ".to_owned())]);
    assert_eq!((rule.audiences, rule.from_params), (vec![], vec![]));
    assert_eq!((rule.forward_original, rule.leeway), (false, Duration::from_secs(60)));
    assert_eq!((rule.output_claim_to_headers, rule.output_payload_to_header), (vec![], None));
    assert_eq!(rule.keys, KeySource::Inline(serde_json::from_str(JWKS).unwrap()));
}

#[test]
fn reads_istios_fields() {
    let rule = rule(json!({
        "jwks": null,
        "jwksUri": "https://issuer.example:8443/keys?v=1",
        "audiences": ["orders", "users"],
        "fromHeaders": [{"name": "X-Token"}, {"name": "x-jwt", "prefix": "JWT "}],
        "fromParams": ["access_token"],
        "forwardOriginalToken": true,
        "outputPayloadToHeader": "X-Payload",
        "outputClaimToHeaders": [{"header": "X-User", "claim": "sub"}, {"header": "x-role", "claim": "realm.role"}],
        "leeway": "0s",
    }))
    .unwrap();
    let pairs = |list: &[(&str, &str)]| -> Vec<(String, String)> {
        list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    };
    assert_eq!(rule.keys, KeySource::Uri("https://issuer.example:8443/keys?v=1".to_owned()));
    assert_eq!(rule.audiences, ["orders", "users"]);
    assert_eq!(rule.from_headers, pairs(&[("x-token", ""), ("x-jwt", "JWT ")]));
    assert_eq!(rule.from_params, ["access_token"]);
    assert_eq!(rule.output_claim_to_headers, pairs(&[("x-user", "sub"), ("x-role", "realm.role")]));
    assert_eq!(rule.output_payload_to_header.as_deref(), Some("x-payload"));
    assert_eq!((rule.forward_original, rule.leeway), (true, Duration::ZERO));
}

#[test]
fn a_place_that_is_named_replaces_the_default() {
    let params = rule(json!({"fromParams": ["token"]})).unwrap();
    assert_eq!((params.from_headers, params.from_params), (vec![], vec!["token".to_owned()]));
}

#[test]
fn a_policy_without_rules_is_one() {
    assert_eq!(read_spec(json!({})).unwrap().rules, []);
}

#[test]
fn key_sets_hold_public_keys_only() {
    let keys = |count| json!({"keys": vec![json!({"kty": "RSA"}); count]}).to_string();
    assert!(rule(json!({"jwks": keys(32)})).is_ok());
    let rows = [
        (keys(0), "has 0 keys"),
        (keys(33), "has 33 keys"),
        (json!({"keys": {}}).to_string(), "is not a JWK set"),
        (json!([]).to_string(), "is not a JWK set"),
        (json!({"keys": [{"kid": "a"}]}).to_string(), "keys[0] has no `kty`"),
        (json!({"keys": ["RSA"]}).to_string(), "keys[0] has no `kty`"),
        (json!({"keys": [{"kty": 1}]}).to_string(), "keys[0] has no `kty`"),
        (json!({"keys": [{"kty": "oct", "k": "hush"}]}).to_string(), "keys[0] is a shared secret"),
        (
            json!({"keys": [{"kty": "RSA"}, {"kty": "EC", "d": "hush"}]}).to_string(),
            "keys[1] is a private key",
        ),
        ("{\"keys\": hush".to_owned(), "is not JSON (line 1"),
        (" ".repeat(MAX_JWKS + 1), "has 262145 bytes"),
    ];
    for (jwks, message) in rows {
        let error = rule(json!({"jwks": jwks})).unwrap_err();
        assert!(error.contains(&format!("spec.jwtRules[0].jwks: {message}")), "{error}");
        assert!(!error.contains("hush"), "{error}");
    }
}

#[test]
fn each_broken_rule_is_named_with_its_place() {
    let rows = [
        (json!({"jwks": null}), "spec.jwtRules[0]: needs exactly one of jwks and jwksUri"),
        (json!({"jwksUri": "https://a"}), "spec.jwtRules[0]: needs exactly one"),
        (
            json!({"jwks": null, "jwksUri": "ftp://a/b"}),
            "jwksUri: `ftp://a/b` must be an http or https",
        ),
        (json!({"jwks": null, "jwksUri": "/keys"}), "jwksUri: `/keys` must be an http or https"),
        (json!({"jwks": null, "jwksUri": "https://"}), "jwksUri: `https://` "),
        (json!({"jwks": null, "jwksUri": "https:///keys"}), "jwksUri: `https:///keys` "),
        (json!({"jwks": null, "jwksUri": "http://:80/keys"}), "jwksUri: `http://:80/keys` "),
        (json!({"jwks": null, "jwksUri": "https://u:p@a/b"}), "jwksUri: must not hold a user"),
        (json!({"jwks": null, "jwksUri": "https://a b/"}), "jwksUri: `https://a b/` is not a URL"),
        (json!({"issuer": ""}), "spec.jwtRules[0].issuer: is empty"),
        (json!({"issuer": "a".repeat(513)}), "spec.jwtRules[0].issuer: has 513 bytes"),
        (json!({"issuer": null}), "missing field `issuer`"),
        (json!({"audiences": []}), "spec.jwtRules[0].audiences: is empty"),
        (json!({"audiences": vec!["a"; 65]}), "spec.jwtRules[0].audiences: has 65 entries"),
        (json!({"fromHeaders": []}), "spec.jwtRules[0].fromHeaders: is empty"),
        (json!({"fromHeaders": [{"name": "a b"}]}), "fromHeaders[0].name: `a b` is not a header"),
        (
            json!({"fromHeaders": [{"name": ":path"}]}),
            "fromHeaders[0].name: `:path` is not a header",
        ),
        (json!({"fromParams": [""]}), "spec.jwtRules[0].fromParams[0]: is empty"),
        (json!({"outputPayloadToHeader": "Content-Length"}), "frames the message"),
        (
            json!({"outputPayloadToHeader": "Host"}),
            "outputPayloadToHeader: `host` is the proxy's own",
        ),
        (
            json!({"outputClaimToHeaders": [{"header": "x-leno-destination", "claim": "sub"}]}),
            "outputClaimToHeaders[0].header: `x-leno-destination` is the proxy's own",
        ),
        (
            json!({"outputClaimToHeaders": [{"header": "x-a", "claim": "a"}, {"header": "X-A", "claim": "b"}]}),
            "outputClaimToHeaders[1].header: `x-a` stands twice",
        ),
        (
            json!({"outputClaimToHeaders": [{"header": "x-a", "claim": "a..b"}]}),
            "outputClaimToHeaders[0].claim: `a..b` is not a claim",
        ),
        (json!({"leeway": "6m"}), "spec.jwtRules[0].leeway: must be at most 5m"),
        (json!({"leeway": "soon"}), "spec.jwtRules[0].leeway: `soon` is not a duration"),
        (json!({"jwk": "x"}), "unknown field `jwk`"),
    ];
    for (changes, message) in rows {
        let error = rule(changes.clone()).unwrap_err();
        assert!(error.contains(message), "{changes}: {error}");
    }
    let rule = json!({"issuer": "i", "jwks": JWKS});
    let error = read_spec(json!({"jwtRules": vec![rule; 65]})).unwrap_err();
    assert!(error.contains("spec.jwtRules: has 65 entries; 0 to 64"), "{error}");
}
