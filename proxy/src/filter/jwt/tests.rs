use std::time::Duration;

use jsonwebtoken::Algorithm;
use leno_api::{Resource, model::Model};
use serde_json::json;

use super::{
    signing::{Issuer, jwks},
    *,
};
use crate::http::fetch::{
    Fetcher,
    tests::{Server, ok},
};

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://issuer.example";

fn policy(rules: &[Value]) -> Arc<RequestAuthentication> {
    let resource = Resource::from_json(json!({
        "apiVersion": "leno.dev/v1alpha1",
        "kind": "RequestAuthentication",
        "metadata": {"name": "jwt", "namespace": "shop"},
        "spec": {"jwtRules": rules},
    }));
    match resource.unwrap().model {
        Model::RequestAuthentication(policy) => policy,
        other => panic!("{other:?}"),
    }
}

fn compile(rules: &[Value]) -> Jwt {
    Jwt::compile([&*policy(rules)], &KeyCache::new(Timing::default()))
}

/// A rule for [`ISSUER`] with further fields.
fn rule(issuer: &Issuer, more: &Value) -> Value {
    let mut rule = json!({"issuer": ISSUER, "jwks": jwks([issuer]).to_string()});
    rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    rule
}

fn key() -> Issuer {
    Issuer::new(Algorithm::ES256, "k")
}

fn claims(subject: &str) -> Value {
    json!({"iss": ISSUER, "sub": subject, "exp": NOW + 600})
}

fn request(uri: &str, headers: &[(&'static str, &str)]) -> Request<()> {
    let mut request = Request::get(uri).body(()).unwrap();
    for (name, value) in headers {
        request.headers_mut().append(*name, HeaderValue::from_str(value).unwrap());
    }
    request
}

/// The request principal, or why not.
fn check(jwt: &Jwt, request: &mut Request<()>) -> Result<Option<String>, Refused> {
    let token = jwt.authenticate(request, NOW, &Verified::default())?;
    Ok(token.map(|token| token.principal().unwrap().to_owned()))
}

fn bearer(text: &str) -> String {
    format!("Bearer {text}")
}

fn principal(subject: &str) -> Result<Option<String>, Refused> {
    Ok(Some(format!("{ISSUER}/{subject}")))
}

#[test]
fn a_token_passes_and_so_does_none() {
    let key = key();
    let jwt = compile(&[rule(&key, &json!({}))]);
    let good = key.sign(&claims("ann"));
    let stranger = key.sign(&json!({"iss": "https://other.example", "sub": "ann"}));
    let nameless = key.sign(&json!({"sub": "ann"}));
    let expired = key.sign(&json!({"iss": ISSUER, "sub": "ann", "exp": NOW - 3600}));
    let forged = Issuer::new(Algorithm::ES256, "k").sign(&claims("ann"));
    let none = || Ok(None);
    for (value, expected) in [
        (bearer(&good), principal("ann")),
        (format!("bearer  {good} "), principal("ann")),
        (format!("BEARER {good}"), principal("ann")),
        ("Basic YW5uOnNlY3JldA==".into(), none()),
        (good.clone(), none()),
        ("Bearer".into(), none()),
        ("Bearer ".into(), none()),
        (bearer("opaque"), Err(Refused::Malformed)),
        (bearer(&format!("{good},{good}")), Err(Refused::Malformed)),
        (bearer(&format!("{good} {good}")), Err(Refused::Malformed)),
        (bearer(&stranger), Err(Refused::Issuer)),
        (bearer(&nameless), Err(Refused::Issuer)),
        (bearer(&expired), Err(Refused::Expired)),
        (bearer(&forged), Err(Refused::Signature)),
        (bearer(&"x".repeat(1 << 20)), Err(Refused::TooLarge)),
    ] {
        let result = check(&jwt, &mut request("/", &[("authorization", &value)]));
        assert_eq!(result, expected, "{value:.100}");
    }
    assert_eq!(check(&jwt, &mut request("/", &[])), none());
    // A parameter nobody asked for is no token.
    assert_eq!(check(&jwt, &mut request("/?access_token=x", &[])), none());
}

#[test]
fn without_rules_nothing_is_a_token() {
    let jwt = compile(&[]);
    assert!(jwt.is_empty() && Jwt::default().is_empty());
    assert_eq!(check(&jwt, &mut request("/", &[("authorization", "Bearer x")])), Ok(None));
}

#[test]
fn every_token_must_be_valid_and_the_first_counts() {
    let key = key();
    let places = json!({"fromHeaders": [{"name": "x-jwt"}, {"name": "authorization", "prefix": "Bearer "}],
        "fromParams": ["token"]});
    let jwt = compile(&[rule(&key, &places)]);
    let [ann, bob] = ["ann", "bob"].map(|name| key.sign(&claims(name)));
    let both = [("x-jwt", &*bob), ("x-jwt", &*ann)];
    assert_eq!(check(&jwt, &mut request("/", &both)), principal("bob"));
    let uri = format!("/?token={ann}");
    assert_eq!(check(&jwt, &mut request(&uri, &[("x-jwt", &bob)])), principal("bob"));
    assert_eq!(check(&jwt, &mut request(&uri, &[])), principal("ann"));
    for bad in ["x-jwt", "authorization"] {
        let headers = [(bad, "Bearer x.y.z")];
        assert_eq!(check(&jwt, &mut request(&uri, &headers)), Err(Refused::Malformed), "{bad}");
    }
    let mut several = request("/", &[]);
    for count in 1..=5 {
        several.headers_mut().append("x-jwt", HeaderValue::from_str(&ann).unwrap());
        let expected = if count <= 4 { principal("ann") } else { Err(Refused::Malformed) };
        let mut copy = several.clone();
        assert_eq!(check(&jwt, &mut copy), expected, "{count} tokens");
    }
}

#[test]
fn several_issuers() {
    let (ours, theirs) = (key(), key());
    let other = "https://other.example";
    let their_rule = json!({"issuer": other, "jwks": jwks([&theirs]).to_string()});
    let jwt = compile(&[rule(&ours, &json!({})), their_rule]);
    let sign = |key: &Issuer, issuer: &str| bearer(&key.sign(&json!({"iss": issuer, "sub": "s"})));
    for (value, expected) in [
        (sign(&ours, ISSUER), principal("s")),
        (sign(&theirs, other), Ok(Some(format!("{other}/s")))),
        // One issuer must not speak for another.
        (sign(&ours, other), Err(Refused::Signature)),
        (sign(&theirs, ISSUER), Err(Refused::Signature)),
    ] {
        assert_eq!(check(&jwt, &mut request("/", &[("authorization", &value)])), expected);
    }
    // The same issuer twice, for different audiences: either will do.
    let for_audience = |name: &str| rule(&ours, &json!({"audiences": [name]}));
    let jwt = compile(&[for_audience("a"), for_audience("b")]);
    for (audience, expected) in [("a", true), ("b", true), ("c", false)] {
        let text = ours.sign(&json!({"iss": ISSUER, "sub": "s", "aud": audience}));
        let result = check(&jwt, &mut request("/", &[("authorization", &bearer(&text))]));
        assert_eq!(result, if expected { principal("s") } else { Err(Refused::Audience) });
    }
}

#[test]
fn tokens_are_taken_out_unless_they_are_to_be_forwarded() {
    let key = key();
    let text = key.sign(&claims("ann"));
    let places = |forward: bool| {
        json!({"fromHeaders": [{"name": "authorization", "prefix": "Bearer "}, {"name": "x-jwt"}],
            "fromParams": ["token"], "forwardOriginalToken": forward})
    };
    let uri = format!("http://orders/a%20b?x=1&token={text}&y=%26&%74oken={text}");
    let fresh = || {
        let value = bearer(&text);
        request(&uri, &[("authorization", "Basic eA=="), ("authorization", &value), ("x-jwt", "")])
    };
    let mut kept = fresh();
    kept.headers_mut().remove("x-jwt");
    let original = kept.clone();
    assert_eq!(check(&compile(&[rule(&key, &places(true))]), &mut kept), principal("ann"));
    assert_eq!((kept.uri(), kept.headers()), (original.uri(), original.headers()));
    let mut stripped = fresh();
    stripped.headers_mut().remove("x-jwt");
    let jwt = compile(&[rule(&key, &places(false))]);
    assert_eq!(check(&jwt, &mut stripped), principal("ann"));
    assert_eq!(stripped.uri(), "http://orders/a%20b?x=1&y=%26");
    let left: Vec<_> = stripped.headers().get_all("authorization").iter().collect();
    assert_eq!(left, ["Basic eA=="]);
    let mut only = request(&format!("/a?token={text}"), &[]);
    assert_eq!(check(&jwt, &mut only), principal("ann"));
    assert_eq!(only.uri(), "/a");
}

#[test]
fn what_is_refused_stays_as_it_came() {
    let key = key();
    let jwt = compile(&[rule(&key, &json!({"outputPayloadToHeader": "x-payload"}))]);
    let mut bad = request("/", &[("authorization", "Bearer x.y.z"), ("x-payload", "mine")]);
    let before = bad.headers().clone();
    assert_eq!(check(&jwt, &mut bad), Err(Refused::Malformed));
    assert_eq!(*bad.headers(), before);
}

#[test]
fn outputs_come_from_the_token_and_from_nobody_else() {
    let key = key();
    let jwt = compile(&[rule(
        &key,
        &json!({
            "outputPayloadToHeader": "x-payload",
            "outputClaimToHeaders": [
                {"header": "x-sub", "claim": "sub"}, {"header": "x-level", "claim": "a.level"},
                {"header": "x-admin", "claim": "admin"}, {"header": "x-list", "claim": "list"},
                {"header": "x-none", "claim": "none"}, {"header": "x-evil", "claim": "evil"},
                {"header": "x-dots", "claim": "a.b"},
            ],
        }),
    )]);
    let names =
        ["x-payload", "x-sub", "x-level", "x-admin", "x-list", "x-none", "x-evil", "x-dots"];
    let forged: Vec<_> =
        names.iter().flat_map(|name| [(*name, "forged"), (*name, "twice")]).collect();
    let forged = [&forged[..], &[("x_sub", "to CGI the same")]].concat();
    let mut without = request("/", &forged);
    assert_eq!(check(&jwt, &mut without), Ok(None));
    assert!(without.headers().is_empty(), "{:?}", without.headers());
    let text = key.sign(&json!({
        "iss": ISSUER, "sub": "jörg", "a": {"level": 3, "b": "path"}, "a.b": "name", "admin": false, "list": ["x"],
        "evil": "x\r\nx-admin: true",
    }));
    let mut with = request("/", &forged);
    with.headers_mut().insert("authorization", HeaderValue::from_str(&bearer(&text)).unwrap());
    jwt.authenticate(&mut with, NOW, &Verified::default()).unwrap().unwrap();
    let value = |name: &str| {
        let mut values = with.headers().get_all(name).iter();
        let value =
            values.next().map(|value| String::from_utf8(value.as_bytes().to_vec()).unwrap());
        assert_eq!(values.next(), None);
        value
    };
    let payload = text.split('.').nth(1).unwrap();
    let expected =
        [Some(payload), Some("jörg"), Some("3"), Some("false"), None, None, None, Some("name")];
    assert_eq!(names.map(value), expected.map(|value| value.map(str::to_owned)));
}

#[test]
fn the_longest_prefix_wins() {
    let key = key();
    let places = json!({"fromHeaders": [{"name": "x-t"}, {"name": "x-t", "prefix": "JWT "}]});
    let jwt = compile(&[rule(&key, &places)]);
    let text = key.sign(&claims("ann"));
    for value in [text.clone(), format!("jwt {text}")] {
        assert_eq!(check(&jwt, &mut request("/", &[("x-t", &value)])), principal("ann"));
    }
    assert_eq!(check(&jwt, &mut request("/", &[("x-t", "other")])), Err(Refused::Malformed));
}

#[test]
fn odd_parameters() {
    let key = key();
    let jwt = compile(&[rule(&key, &json!({"fromParams": ["token"]}))]);
    let text = key.sign(&claims("ann"));
    let dotted = text.replace('.', "%2E");
    for (uri, expected) in [
        (format!("/?token={dotted}"), principal("ann")),
        (format!("/?tok%65n={text}"), principal("ann")),
        ("/?token".into(), Ok(None)),
        ("/?token=".into(), Ok(None)),
        ("/?Token=x".into(), Ok(None)),
        ("/?xtoken=x&token2=x".into(), Ok(None)),
        ("/?token=%ff".into(), Err(Refused::Malformed)),
        ("/?token=x".into(), Err(Refused::Malformed)),
        (format!("/?{}", "token=x&".repeat(2000)), Err(Refused::Malformed)),
    ] {
        assert_eq!(check(&jwt, &mut request(&uri, &[])), expected, "{uri:.100}");
    }
}

#[test]
fn tokens_in_urls_are_not_for_logs() {
    let jwt =
        compile(&[rule(&key(), &json!({"fromParams": ["token"], "forwardOriginalToken": true}))]);
    let shown = |uri: &str| jwt.loggable(&uri.parse().unwrap()).map(|uri| uri.to_string());
    assert_eq!(shown("/a?x=1&token=secret&tok%65n=secret"), Some("/a?x=1".into()));
    assert_eq!(shown("http://orders/a?token=secret"), Some("http://orders/a".into()));
    for nothing in ["/a", "/a?", "/a?x=token", "/a?token=", "*"] {
        assert_eq!(shown(nothing), None, "{nothing}");
    }
}

#[test]
fn a_kept_token_is_worth_no_more_than_a_new_one() {
    let key = key();
    let spec = [rule(&key, &json!({"leeway": "0s", "forwardOriginalToken": true}))];
    let (jwt, verified) = (compile(&spec), Verified::default());
    let value =
        bearer(&key.sign(&json!({"iss": ISSUER, "sub": "ann", "exp": NOW + 10, "nbf": NOW})));
    let mut request = request("/", &[("authorization", &value)]);
    let mut at = |jwt: &Jwt, now| jwt.authenticate(&mut request, now, &verified);
    let first = at(&jwt, NOW).unwrap().unwrap();
    let second = at(&jwt, NOW + 9).unwrap().unwrap();
    assert!(Arc::ptr_eq(&first, &second), "verified once");
    assert_eq!(at(&jwt, NOW + 10).unwrap_err(), Refused::Expired);
    assert_eq!(at(&jwt, NOW - 1).unwrap_err(), Refused::NotYetValid);
    // Another configuration decides anew.
    let stricter = compile(&[rule(&key, &json!({"audiences": ["x"]}))]);
    assert_eq!(at(&stricter, NOW).unwrap_err(), Refused::Audience);
    let others = compile(&[rule(&Issuer::new(Algorithm::ES256, "k"), &json!({}))]);
    assert_eq!(at(&others, NOW).unwrap_err(), Refused::Signature);
}

#[test]
fn kept_tokens_are_bounded_and_the_used_ones_stay() {
    let token = Arc::new(signing::token(&claims("ann")));
    let keys = Arc::new(KeySet::empty());
    let (verified, other_keys) = (Verified::default(), Arc::new(KeySet::empty()));
    verified.keep(1, "used", &keys, &token);
    for number in 0..5000 {
        verified.keep(1, &number.to_string(), &keys, &token);
        assert!(verified.find(1, "used", &keys).is_some(), "{number}");
    }
    let kept = (0..5000).filter(|n: &u32| verified.find(1, &n.to_string(), &keys).is_some());
    assert!((512..=1024).contains(&kept.count()));
    assert!(verified.find(2, "used", &keys).is_none());
    assert!(verified.find(1, "used", &other_keys).is_none());
    let long = "x".repeat(4097);
    verified.keep(1, &long, &keys, &token);
    assert!(verified.find(1, &long, &keys).is_none());
    assert!(!format!("{verified:?}").contains("4999"));
}

#[test]
fn keys_that_cannot_be_used_refuse_their_issuer() {
    let key = key();
    let unusable = json!({"issuer": ISSUER, "jwks": r#"{"keys":[{"kty":"EC","crv":"P-521"}]}"#});
    let value = bearer(&key.sign(&claims("ann")));
    let mut request = request("/", &[("authorization", &value)]);
    assert_eq!(check(&compile(&[unusable]), &mut request), Err(Refused::NoKey));
    // More issuers than there is room for.
    let uri =
        |number: usize| json!({"issuer": ISSUER, "jwksUri": format!("http://127.0.0.1/{number}")});
    let cache = KeyCache::new(Timing::default());
    let full = policy(&(0..64).map(uri).collect::<Vec<_>>());
    let held = Jwt::compile([&*full], &cache);
    let over = policy(&[uri(64)]);
    assert_eq!(check(&Jwt::compile([&*over], &cache), &mut request), Err(Refused::NoKey));
    assert_eq!(check(&held, &mut request), Err(Refused::NoKey));
}

#[tokio::test]
async fn fetched_keys_before_and_after_a_rotation() {
    let timing = Timing { at_most: Duration::from_millis(1), ..Timing::default() };
    let [old, new] = ["old", "new"].map(|id| Issuer::new(Algorithm::ES256, id));
    let server = Server::start(ok(jwks([&old]).to_string())).await;
    let cache = KeyCache::new(timing);
    let spec = json!({"issuer": ISSUER, "jwksUri": server.url, "forwardOriginalToken": true});
    let jwt = Jwt::compile([&*policy(&[spec])], &cache);
    let verified = Verified::default();
    let call = |key: &Issuer| {
        let value = bearer(&key.sign(&claims("ann")));
        let mut request = request("/", &[("authorization", &value)]);
        jwt.authenticate(&mut request, NOW, &verified).err()
    };
    assert_eq!(call(&old), Some(Refused::NoKey), "not fetched yet");
    tokio::spawn(cache.run(Fetcher::default()));
    let becomes = async |key: &Issuer, expected: Option<Refused>| {
        let waiting = async {
            while call(key) != expected {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("never happened");
    };
    becomes(&old, None).await;
    assert_eq!(call(&new), Some(Refused::NoKey));
    server.answer(Some(ok(jwks([&old, &new]).to_string())));
    becomes(&new, None).await;
    // The old key leaves; its tokens go with it, verified before or not.
    let value = bearer(&old.sign(&claims("ann")));
    let mut kept = request("/", &[("authorization", &value)]);
    assert!(jwt.authenticate(&mut kept, NOW, &verified).is_ok());
    server.answer(Some(ok(jwks([&new]).to_string())));
    let third = Issuer::new(Algorithm::ES256, "third");
    becomes(&third, Some(Refused::NoKey)).await;
    becomes(&old, Some(Refused::NoKey)).await;
    assert_eq!(jwt.authenticate(&mut kept, NOW, &verified).err(), Some(Refused::NoKey));
    assert_eq!(call(&new), None);
}
