//! Issuers with real keys, for tests.

use std::sync::OnceLock;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, crypto, jwk::Jwk};
use serde_json::{Value, json};

use super::verify::{Expected, KeySet, Token, Unverified};

/// Somebody who signs.
pub struct Issuer {
    key: EncodingKey,
    algorithm: Algorithm,
    /// The public key, with its `kid` if it has one, without `alg`.
    pub jwk: Value,
}

impl Issuer {
    /// With a key of its own.
    pub fn new(algorithm: Algorithm, id: &str) -> Self {
        let pair = |algorithm| rcgen::KeyPair::generate_for(algorithm).unwrap().serialize_der();
        if algorithm == Algorithm::EdDSA {
            return Self::edwards(id);
        }
        let key = match algorithm {
            Algorithm::ES256 => EncodingKey::from_ec_der(&pair(&rcgen::PKCS_ECDSA_P256_SHA256)),
            Algorithm::ES384 => EncodingKey::from_ec_der(&pair(&rcgen::PKCS_ECDSA_P384_SHA384)),
            _ => {
                // The same for all: making one takes a while. PKCS #1 stands in PKCS #8 after 26 bytes.
                static RSA: OnceLock<Vec<u8>> = OnceLock::new();
                let der = RSA.get_or_init(|| pair(&rcgen::PKCS_RSA_SHA256));
                EncodingKey::from_rsa_der(&der[26..])
            }
        };
        let jwk = Jwk::from_encoding_key(&key, algorithm).unwrap();
        let mut jwk = serde_json::to_value(jwk).unwrap();
        jwk.as_object_mut().unwrap().remove("alg");
        Self::named(Self { key, algorithm, jwk }, id)
    }

    fn edwards(id: &str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let key = EncodingKey::from_ed_der(&pair.serialize_der());
        let public = URL_SAFE_NO_PAD.encode(pair.public_key_raw());
        let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": public});
        Self::named(Self { key, algorithm: Algorithm::EdDSA, jwk }, id)
    }

    fn named(mut self, id: &str) -> Self {
        if !id.is_empty() {
            self.jwk["kid"] = id.into();
        }
        self
    }

    /// A token with these claims, whose header says what it should.
    pub fn sign(&self, claims: &Value) -> String {
        let name = serde_json::to_value(self.algorithm).unwrap();
        let mut header = json!({"alg": name, "typ": "JWT"});
        if let Some(id) = self.jwk.get("kid") {
            header["kid"] = id.clone();
        }
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    /// Signs whatever header and payload are.
    pub fn sign_text(&self, header: &str, payload: &str) -> String {
        let signed = [header, payload].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
        let signature = crypto::sign(signed.as_bytes(), &self.key, self.algorithm).unwrap();
        format!("{signed}.{signature}")
    }
}

/// The JWKS of some issuers.
pub fn jwks<'a>(issuers: impl IntoIterator<Item = &'a Issuer>) -> Value {
    json!({"keys": issuers.into_iter().map(|issuer| &issuer.jwk).collect::<Vec<_>>()})
}

/// A verified token with these claims, `iss` among them.
pub fn token(claims: &Value) -> Token {
    static ISSUER: OnceLock<Issuer> = OnceLock::new();
    let issuer = ISSUER.get_or_init(|| Issuer::new(Algorithm::ES256, "k"));
    let text = issuer.sign(claims);
    let unverified = Unverified::parse(&text).unwrap();
    let expected =
        Expected { issuer: unverified.issuer().into(), audiences: Box::new([]), leeway: 0 };
    unverified.verify(&expected, &KeySet::from_value(&jwks([issuer])).unwrap(), 0).unwrap()
}
