use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{key_set::KeySetError, *};
use crate::filter::jwt::signing::{Issuer, jwks};

const NOW: u64 = 1_800_000_000;
const ALL: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

fn expected() -> Expected {
    Expected {
        issuer: "https://issuer.example".into(),
        audiences: ["orders", "billing"].map(Into::into).into(),
        leeway: 60,
    }
}

fn claims() -> Value {
    json!({"iss": "https://issuer.example", "sub": "ann", "aud": "orders", "exp": NOW + 600})
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn verify(text: &str, keys: &Value) -> Result<Token, Refused> {
    let keys = KeySet::from_value(keys).unwrap();
    Unverified::parse(text)?.verify(&expected(), &keys, NOW)
}

#[test]
fn every_algorithm_verifies_with_its_own_key_only() {
    let issuers = ALL.map(|algorithm| Issuer::new(algorithm, &format!("{algorithm:?}")));
    let all = jwks(&issuers);
    for issuer in &issuers {
        let text = issuer.sign(&claims());
        let token = verify(&text, &all).unwrap();
        assert_eq!(token.principal(), Some("https://issuer.example/ann"));
        assert_eq!(
            (token.issuer.as_str(), token.audiences()),
            ("https://issuer.example", &["orders".to_owned()][..])
        );
        assert_eq!(Some(token.payload()), text.split('.').nth(1));
        let other = Issuer::new(Algorithm::ES256, "other");
        assert_eq!(verify(&text, &jwks([&other])).unwrap_err(), Refused::NoKey);
    }
}

#[test]
fn a_key_of_the_same_name_and_kind_does_not_do() {
    for algorithm in [Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA] {
        let text = Issuer::new(algorithm, "k").sign(&claims());
        let imposter = Issuer::new(algorithm, "k");
        assert_eq!(verify(&text, &jwks([&imposter])).unwrap_err(), Refused::Signature);
    }
}

#[test]
fn claims_and_times() {
    let issuer = Issuer::new(Algorithm::ES256, "k");
    let keys = jwks([&issuer]);
    let rows: &[(&str, Value, Option<Refused>)] = &[
        ("exp", json!(NOW - 59), None),
        ("exp", json!(NOW - 60), Some(Refused::Expired)),
        ("exp", json!(NOW - 3600), Some(Refused::Expired)),
        ("exp", json!(NOW as f64 - 59.5), None),
        ("exp", json!(0), Some(Refused::Expired)),
        ("exp", json!(u64::MAX), None),
        ("exp", json!(1e300), None),
        ("exp", json!(-1), Some(Refused::Malformed)),
        ("exp", json!("1900000000"), Some(Refused::Malformed)),
        ("exp", json!(null), Some(Refused::Malformed)),
        ("nbf", json!(NOW + 60), None),
        ("nbf", json!(NOW + 61), Some(Refused::NotYetValid)),
        ("nbf", json!(NOW + 3600), Some(Refused::NotYetValid)),
        ("nbf", json!([NOW]), Some(Refused::Malformed)),
        ("aud", json!("billing"), None),
        ("aud", json!(["x", "orders"]), None),
        ("aud", json!("users"), Some(Refused::Audience)),
        ("aud", json!("Orders"), Some(Refused::Audience)),
        ("aud", json!([]), Some(Refused::Audience)),
        ("aud", json!(["orders", 1]), Some(Refused::Malformed)),
        ("aud", json!({"orders": 1}), Some(Refused::Malformed)),
        ("iss", json!("https://issuer.example/"), Some(Refused::Issuer)),
        ("iss", json!("HTTPS://issuer.example"), Some(Refused::Issuer)),
        ("iss", json!(["https://issuer.example"]), Some(Refused::Malformed)),
        ("sub", json!(7), Some(Refused::Malformed)),
        ("groups", json!([{"deep": [1, 2]}]), None),
    ];
    for (name, value, refused) in rows {
        let result = verify(&issuer.sign(&with(name, value.clone())), &keys);
        assert_eq!(result.err(), *refused, "{name}: {value}");
    }
    for (name, refused) in
        [("exp", None), ("aud", Some(Refused::Audience)), ("iss", Some(Refused::Issuer))]
    {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(name);
        assert_eq!(verify(&issuer.sign(&claims), &keys).err(), refused, "without {name}");
    }
}

#[test]
fn without_audiences_any_will_do_and_without_subject_there_is_no_principal() {
    let issuer = Issuer::new(Algorithm::ES256, "k");
    let keys = KeySet::from_value(&jwks([&issuer])).unwrap();
    let expected = Expected { audiences: Box::new([]), ..expected() };
    for sub in [json!({}), json!({"sub": ""})] {
        let mut claims = json!({"iss": "https://issuer.example", "azp": "web", "a": {"b": "c"}});
        claims.as_object_mut().unwrap().extend(sub.as_object().unwrap().clone());
        let text = issuer.sign(&claims);
        let token = Unverified::parse(&text).unwrap().verify(&expected, &keys, NOW).unwrap();
        assert_eq!((token.principal(), token.presenter()), (None, Some("web")));
        assert_eq!(token.claim(&["a", "b"]), Some(&json!("c")));
        assert_eq!(token.claim(&["a", "b", "c"]), None);
        assert_eq!(token.claim::<&str>(&[]), None);
    }
}

#[test]
fn algorithms_that_prove_nothing_are_refused() {
    let issuer = Issuer::new(Algorithm::RS256, "k");
    let keys = jwks([&issuer]);
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let payload = encode(&claims().to_string());
    for name in [
        "none", "None", "NONE", "", "HS256", "HS384", "HS512", "ES512", "ES256K", "rs256",
        "RSA-OAEP",
    ] {
        let header = encode(&json!({"alg": name, "kid": "k"}).to_string());
        for signature in ["", "AAAA"] {
            let text = format!("{header}.{payload}.{signature}");
            assert_eq!(verify(&text, &keys).unwrap_err(), Refused::Algorithm, "{name}");
        }
    }
}

/// RFC 8725 section 2.1: the public key, known to all, taken for a shared secret.
#[test]
fn a_public_key_is_never_a_secret() {
    let issuer = Issuer::new(Algorithm::RS256, "k");
    let modulus = URL_SAFE_NO_PAD.decode(issuer.jwk["n"].as_str().unwrap()).unwrap();
    let jwk = issuer.jwk.to_string();
    for secret in [&modulus[..], jwk.as_bytes()] {
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","kid":"k"}"#);
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims().to_string()));
        let key = EncodingKey::from_secret(secret);
        let signature = crypto::sign(signed.as_bytes(), &key, Algorithm::HS256).unwrap();
        let text = format!("{signed}.{signature}");
        assert_eq!(verify(&text, &jwks([&issuer])).unwrap_err(), Refused::Algorithm);
    }
}

#[test]
fn the_algorithm_is_pinned_to_the_key() {
    let mut issuer = Issuer::new(Algorithm::RS256, "k");
    let text = issuer.sign(&claims());
    let other = issuer.sign_text(r#"{"alg":"ES256","kid":"k"}"#, &claims().to_string());
    assert_eq!(verify(&other, &jwks([&issuer])).unwrap_err(), Refused::Algorithm);
    issuer.jwk["alg"] = "RS256".into();
    assert!(verify(&text, &jwks([&issuer])).is_ok());
    let padded = Issuer::new(Algorithm::PS256, "k").sign(&claims());
    assert_eq!(verify(&padded, &jwks([&issuer])).unwrap_err(), Refused::Algorithm);
    // Says PSS, is PKCS #1: the same key, and yet.
    let mixed = issuer.sign_text(r#"{"alg":"PS256","kid":"p"}"#, &claims().to_string());
    let pss = Issuer::new(Algorithm::PS256, "p");
    assert_eq!(verify(&mixed, &jwks([&pss])).unwrap_err(), Refused::Signature);
}

#[test]
fn the_key_is_chosen_by_name_or_because_it_is_the_only_one() {
    let [a, b] = ["a", "b"].map(|id| Issuer::new(Algorithm::ES256, id));
    let nameless = Issuer::new(Algorithm::EdDSA, "");
    let keys = jwks([&a, &b, &nameless]);
    for issuer in [&a, &b, &nameless] {
        assert!(verify(&issuer.sign(&claims()), &keys).is_ok());
    }
    let unnamed = a.sign_text(r#"{"alg":"ES256"}"#, &claims().to_string());
    assert_eq!(verify(&unnamed, &keys).unwrap_err(), Refused::NoKey);
    assert!(verify(&unnamed, &jwks([&a, &nameless])).is_ok());
    for id in ["c", "", "A", "a "] {
        let header = json!({"alg": "ES256", "kid": id}).to_string();
        let text = a.sign_text(&header, &claims().to_string());
        assert_eq!(verify(&text, &keys).unwrap_err(), Refused::NoKey, "{id}");
    }
    let numbered = a.sign_text(r#"{"alg":"ES256","kid":1}"#, &claims().to_string());
    assert_eq!(verify(&numbered, &keys).unwrap_err(), Refused::Malformed);
    let twin = Issuer::new(Algorithm::ES256, "a");
    assert_eq!(verify(&a.sign(&claims()), &jwks([&a, &twin])).unwrap_err(), Refused::NoKey);
}

#[test]
fn a_key_in_the_token_is_not_looked_at() {
    let (issuer, attacker) =
        (Issuer::new(Algorithm::ES256, "k"), Issuer::new(Algorithm::ES256, "k"));
    let header =
        json!({"alg": "ES256", "kid": "k", "jwk": attacker.jwk, "jku": "http://127.0.0.1:1/"});
    let text = attacker.sign_text(&header.to_string(), &claims().to_string());
    assert_eq!(verify(&text, &jwks([&issuer])).unwrap_err(), Refused::Signature);
}

#[test]
fn what_is_no_token_is_malformed() {
    let issuer = Issuer::new(Algorithm::ES256, "k");
    let keys = jwks([&issuer]);
    let good = issuer.sign(&claims());
    let [header, payload, signature]: [&str; 3] =
        good.split('.').collect::<Vec<_>>().try_into().unwrap();
    let deep =
        format!(r#"{{"iss":"https://issuer.example","x":{}{}}}"#, "[".repeat(40), "]".repeat(40));
    let twice = r#"{"iss":"https://issuer.example","aud":"users","aud":"orders"}"#;
    let sign = |header: &str, payload: &str| issuer.sign_text(header, payload);
    let claims = claims().to_string();
    for text in [
        String::new(),
        ".".into(),
        "..".into(),
        "opaque".into(),
        format!("{header}.{payload}"),
        format!("{header}.{payload}.{signature}.{signature}"),
        format!("{header}.{payload}.{signature}.{signature}.{signature}"),
        format!(" {good}"),
        format!("{header}=.{payload}.{signature}"),
        format!("{header}.{payload}=.{signature}"),
        format!("{}.{payload}.{signature}", header.replace('J', "+")),
        format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode("[]")),
        format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode(b"\xff")),
        sign(r#"{"alg":"ES256","kid":"k","crit":["exp"]}"#, &claims),
        sign(r#"{"alg":"ES256","kid":"k","b64":false,"crit":["b64"]}"#, &claims),
        sign(r#"{"alg":"none","alg":"ES256","kid":"k"}"#, &claims),
        sign(r#"{"kid":"k"}"#, &claims),
        sign(r#"{"alg":["ES256"],"kid":"k"}"#, &claims),
        sign(r#"{"alg":"ES256","kid":"k"}"#, &deep),
        sign(r#"{"alg":"ES256","kid":"k"}"#, twice),
        sign(r#"{"alg":"ES256","kid":"k"}"#, &format!("{claims} {claims}")),
    ] {
        assert_eq!(verify(&text, &keys).err(), Some(Refused::Malformed), "{text}");
    }
    for text in [format!("{header}.{payload}."), format!("{header}.{payload}.{signature}A=")] {
        assert_eq!(verify(&text, &keys).err(), Some(Refused::Signature), "{text}");
    }
}

#[test]
fn a_token_of_a_megabyte_is_not_even_read() {
    let issuer = Issuer::new(Algorithm::ES256, "k");
    for (length, refused) in
        [(1 << 20, Some(Refused::TooLarge)), (17_000, Some(Refused::TooLarge)), (8_000, None)]
    {
        let text = issuer.sign(&with("filler", "x".repeat(length).into()));
        assert_eq!(verify(&text, &jwks([&issuer])).err(), refused, "{length}");
    }
    assert_eq!(Unverified::parse(&".".repeat(1 << 20)).err(), Some(Refused::TooLarge));
}

#[test]
fn key_sets() {
    let issuer = Issuer::new(Algorithm::RS256, "k");
    let n = issuer.jwk["n"].as_str().unwrap();
    let short = URL_SAFE_NO_PAD.encode([0xff; 128]);
    let edited = |name: &str, value: Value| {
        let mut jwk = issuer.jwk.clone();
        jwk[name] = value;
        json!({"keys": [jwk]})
    };
    assert_eq!(KeySet::from_value(&edited("use", json!("sig"))).unwrap().len(), 1);
    assert_eq!(KeySet::from_value(&edited("key_ops", json!(["verify"]))).unwrap().len(), 1);
    let signed = URL_SAFE_NO_PAD.decode(n).unwrap();
    let signed = URL_SAFE_NO_PAD.encode([&[0], &signed[..]].concat());
    assert_eq!(KeySet::from_value(&edited("n", json!(signed))).unwrap().len(), 1);
    for bad in [
        edited("use", json!("enc")),
        edited("key_ops", json!(["encrypt"])),
        edited("alg", json!("HS256")),
        edited("alg", json!("ES256")),
        edited("alg", json!("none")),
        edited("kty", json!("oct")),
        edited("kty", json!("EC")),
        edited("kid", json!(1)),
        edited("n", json!(short)),
        edited("n", json!(format!("{n}="))),
        edited("e", json!("")),
        json!({"keys": [{"kty": "oct", "k": "AAAA", "alg": "HS256"}]}),
        json!({"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}]}),
        json!({"keys": [{"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA"}]}),
        json!({"keys": [{"kty": "OKP", "crv": "Ed448", "x": "AA"}]}),
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AA"}]}),
        json!({"keys": []}),
        json!({"keys": {}}),
        json!({"keys": [1, null, "x"]}),
        json!([]),
    ] {
        assert!(KeySet::from_value(&bad).is_err(), "{bad}");
    }
    let many = |count| json!({"keys": vec![issuer.jwk.clone(); count]}).to_string();
    assert_eq!(KeySet::parse(many(64).as_bytes()).unwrap().len(), 64);
    assert!(matches!(KeySet::parse(many(65).as_bytes()), Err(KeySetError::TooMany(65))));
    assert!(matches!(KeySet::parse(b"<html>"), Err(KeySetError::Json(_))));
    // One bad key does not take the good ones along.
    let mixed = json!({"keys": [{"kty": "oct", "k": "AAAA"}, issuer.jwk]});
    assert_eq!(KeySet::from_value(&mixed).unwrap().len(), 1);
}

/// A key of the right length that is no point of the curve verifies nothing, and breaks nothing.
#[test]
fn a_key_off_its_curve_verifies_nothing() {
    let issuer = Issuer::new(Algorithm::ES256, "k");
    let zero = URL_SAFE_NO_PAD.encode([0; 32]);
    let keys = json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "k", "x": zero, "y": zero}]});
    assert_eq!(verify(&issuer.sign(&claims()), &keys).unwrap_err(), Refused::Signature);
}

#[test]
fn neither_tokens_nor_claims_show() {
    let issuer = Issuer::new(Algorithm::ES256, "k");
    let text = issuer.sign(&with("email", "ann@example.com".into()));
    let unverified = Unverified::parse(&text).unwrap();
    let shown = format!("{unverified:?}");
    let token = verify(&text, &jwks([&issuer])).unwrap();
    let shown = format!("{shown} {token:?}");
    for secret in ["ann", text.rsplit('.').next().unwrap(), token.payload()] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn one_changed_character_is_one_too_many(at in 0_usize..400, by in 1_u8..64) {
        const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let issuer = Issuer::new(Algorithm::EdDSA, "k");
        let mut text = issuer.sign(&claims()).into_bytes();
        let at = at % text.len();
        if let Some(place) = ALPHABET.iter().position(|byte| *byte == text[at]) {
            text[at] = ALPHABET[(place + usize::from(by)) % 64];
            let text = String::from_utf8(text).unwrap();
            prop_assert!(verify(&text, &jwks([&issuer])).is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_that_is_sent_breaks_the_reader(text in "[A-Za-z0-9_.={}\"-]{0,120}") {
        let issuer = Issuer::new(Algorithm::ES256, "k");
        prop_assert!(verify(&text, &jwks([&issuer])).is_err());
    }
}
