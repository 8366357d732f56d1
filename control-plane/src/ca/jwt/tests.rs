use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use serde_json::json;

use super::*;

const NOW: i64 = 1_800_000_000;
const EXPECTED: Expected<'_> = Expected { issuer: "kubernetes", audience: "leno", now: NOW };

/// An issuer with one P-256 key.
struct Signer {
    id: &'static str,
    key: KeyPair,
}

impl Signer {
    fn new(id: &'static str) -> Self {
        Self { id, key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap() }
    }

    fn jwk(&self) -> Value {
        let point = self.key.der_bytes();
        let part = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
        json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.id,
            "x": part(1..33), "y": part(33..65)})
    }

    fn keys(&self) -> Keys {
        Keys::read(json!({"keys": [self.jwk()]}).to_string().as_bytes()).unwrap()
    }

    fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.id.into()), ..Header::new(Algorithm::ES256) };
        encode(&header, claims, &EncodingKey::from_ec_der(self.key.serialized_der())).unwrap()
    }
}

fn claims() -> Value {
    json!({
        "iss": "kubernetes", "aud": ["leno", "other"], "sub": "system:serviceaccount:shop:orders",
        "exp": NOW + 600, "nbf": NOW - 600, "iat": NOW - 600,
        "kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "orders", "uid": "1"}},
    })
}

fn changed(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

/// A token with any header and no sound signature.
fn forged(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{}", part(header), part(claims), URL_SAFE_NO_PAD.encode(signature))
}

#[test]
fn a_service_account_token_proves_its_account() {
    let signer = Signer::new("a");
    let account = signer.keys().check(signer.sign(&claims()).as_bytes(), EXPECTED).unwrap();
    let expected = Account { namespace: "shop".into(), service_account: "orders".into() };
    assert_eq!(account, expected);
    for claims in [without("kubernetes.io"), without("nbf"), changed("aud", json!("leno"))] {
        let checked = signer.keys().check(signer.sign(&claims).as_bytes(), EXPECTED);
        assert_eq!(checked.unwrap(), expected);
    }
}

#[test]
fn each_wrong_claim_is_named() {
    let signer = Signer::new("a");
    let keys = signer.keys();
    for (claims, expected) in [
        (changed("iss", json!("other")), BadToken::Issuer),
        (changed("iss", json!(["kubernetes"])), BadToken::Claim("iss")),
        (without("iss"), BadToken::Claim("iss")),
        (changed("aud", json!("other")), BadToken::Audience),
        (changed("aud", json!([])), BadToken::Audience),
        (changed("aud", json!([["leno"]])), BadToken::Audience),
        (without("aud"), BadToken::Claim("aud")),
        (changed("exp", json!(NOW - 60)), BadToken::Expired(60)),
        (changed("exp", json!(NOW - 3600)), BadToken::Expired(3600)),
        (changed("exp", json!("tomorrow")), BadToken::Claim("exp")),
        (without("exp"), BadToken::Claim("exp")),
        (changed("nbf", json!(NOW + 3600)), BadToken::NotYet(3600)),
        (changed("nbf", json!("now")), BadToken::Claim("nbf")),
        (changed("exp", json!(i64::MIN)), BadToken::Expired(i64::MAX)),
        (without("sub"), BadToken::Claim("sub")),
        (changed("sub", json!("orders")), BadToken::Subject),
        (changed("sub", json!("system:serviceaccount:shop:orders:x")), BadToken::Subject),
        (changed("sub", json!("system:serviceaccount:bank:orders")), BadToken::Contradiction),
        (changed("sub", json!("system:serviceaccount:shop:cash")), BadToken::Contradiction),
    ] {
        let refused = keys.check(signer.sign(&claims).as_bytes(), EXPECTED).unwrap_err();
        assert_eq!(refused, expected, "{claims}");
    }
}

#[test]
fn clocks_may_differ_by_a_minute_and_no_more() {
    let signer = Signer::new("a");
    let keys = signer.keys();
    let check = |claims: Value| keys.check(signer.sign(&claims).as_bytes(), EXPECTED).is_ok();
    assert!(check(changed("exp", json!(NOW - 59))));
    assert!(!check(changed("exp", json!(NOW - 60))));
    assert!(check(changed("nbf", json!(NOW + 60))));
    assert!(!check(changed("nbf", json!(NOW + 61))));
    assert!(check(changed("exp", json!(NOW as f64 + 0.5))), "a fraction is allowed");
}

#[test]
fn the_token_does_not_choose_how_it_is_checked() {
    let signer = Signer::new("a");
    let keys = signer.keys();
    for none in ["none", "None", "NONE", "nOnE"] {
        let token = forged(&json!({"alg": none, "kid": "a"}), &claims(), b"");
        assert_eq!(keys.check(token.as_bytes(), EXPECTED), Err(BadToken::Malformed), "{none}");
    }
    // The public key as the secret of an HMAC.
    let secret = signer.key.public_key_pem();
    let header = Header { kid: Some("a".into()), ..Header::new(Algorithm::HS256) };
    let token = encode(&header, &claims(), &EncodingKey::from_secret(secret.as_bytes())).unwrap();
    assert_eq!(keys.check(token.as_bytes(), EXPECTED), Err(BadToken::Algorithm));
    for algorithm in ["ES384", "RS256", "EdDSA"] {
        let token = forged(&json!({"alg": algorithm, "kid": "a"}), &claims(), &[0; 64]);
        assert_eq!(keys.check(token.as_bytes(), EXPECTED), Err(BadToken::Algorithm));
    }
    let token = forged(&json!({"alg": "ES256", "kid": "a"}), &claims(), &[0; 64]);
    assert_eq!(keys.check(token.as_bytes(), EXPECTED), Err(BadToken::Signature));
}

#[test]
fn keys_are_found_by_name() {
    let (one, two) = (Signer::new("one"), Signer::new("two"));
    let unknown = one.keys().check(two.sign(&claims()).as_bytes(), EXPECTED).unwrap_err();
    assert_eq!(unknown, BadToken::UnknownKey(Some("two".into())));
    let text = json!({"keys": [one.jwk(), two.jwk()]}).to_string();
    let both = Keys::read(text.as_bytes()).unwrap();
    both.check(two.sign(&claims()).as_bytes(), EXPECTED).unwrap();
    // Signed by another than it says.
    let mut liar = Signer::new("one");
    liar.key = two.key;
    let refused = both.check(liar.sign(&claims()).as_bytes(), EXPECTED);
    assert_eq!(refused, Err(BadToken::Signature));
    let nameless = encode(
        &Header::new(Algorithm::ES256),
        &claims(),
        &EncodingKey::from_ec_der(one.key.serialized_der()),
    );
    let nameless = nameless.unwrap();
    let refused = both.check(nameless.as_bytes(), EXPECTED).unwrap_err();
    assert_eq!(refused, BadToken::UnknownKey(None), "which of the two?");
    one.keys().check(nameless.as_bytes(), EXPECTED).unwrap();
}

#[test]
fn a_token_of_a_megabyte_is_not_looked_at() {
    let signer = Signer::new("a");
    let large = signer.sign(&changed("padding", json!("x".repeat(1 << 20))));
    let refused = signer.keys().check(large.as_bytes(), EXPECTED).unwrap_err();
    assert_eq!(refused, BadToken::TooLarge(large.len()));
}

#[test]
fn garbage_is_no_token() {
    let keys = Signer::new("a").keys();
    for garbage in ["", ".", "..", "a.b.c", "leno_0123", "{}.{}.{}", "e30.e30.e30"] {
        let refused = keys.check(garbage.as_bytes(), EXPECTED);
        assert_eq!(refused, Err(BadToken::Malformed), "{garbage}");
    }
    assert_eq!(keys.check(&[0xff; 100], EXPECTED), Err(BadToken::Malformed));
}

#[test]
fn only_keys_for_signatures_are_kept() {
    let signer = Signer::new("a");
    let read = |keys: Value| Keys::read(json!({ "keys": keys }).to_string().as_bytes());
    let with = |name: &str, value: Value| {
        let mut key = signer.jwk();
        key[name] = value;
        key
    };
    assert!(read(json!([{"kty": "oct", "kid": "a", "k": "c2VjcmV0"}])).is_err(), "symmetric");
    assert!(read(json!([with("use", json!("enc"))])).is_err());
    assert!(read(json!([with("alg", json!("HS256"))])).is_err());
    assert!(read(json!([with("crv", json!("secp256k1"))])).is_err());
    assert!(read(json!([])).is_err());
    assert!(Keys::read(b"{}").is_err());
    assert!(Keys::read(b"<html>").is_err());
    assert!(Keys::read(&vec![b' '; MAX_KEYS_BYTES + 1]).is_err());
    assert!(read(Value::Array(vec![signer.jwk(); MAX_KEYS + 1])).is_err());
    let mixed = json!([{"kty": "later"}, {"kty": "oct", "k": "c2VjcmV0"}, signer.jwk()]);
    assert_eq!(read(mixed).unwrap().0.len(), 1);
}

#[test]
fn extensions_that_must_be_known_are_refused() {
    let signer = Signer::new("a");
    let key = EncodingKey::from_ec_der(signer.key.serialized_der());
    for crit in [vec!["exp".to_owned()], vec![]] {
        let header =
            Header { kid: Some("a".into()), crit: Some(crit), ..Header::new(Algorithm::ES256) };
        let token = encode(&header, &claims(), &key).unwrap();
        assert_eq!(signer.keys().check(token.as_bytes(), EXPECTED), Err(BadToken::Critical));
    }
}
