//! A JWKS (RFC 7517): the keys under which an issuer signs, each pinned to the algorithms that fit it.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};

use super::{Refused, json};

/// Keys of one issuer. A set is searched from front to back for every token that is new.
pub const MAX_KEYS: usize = 64;
/// RSA moduli that the verifier takes: 2,048 to 8,192 bits.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;
/// Longer exponents only make verifying slow.
const MAX_EXPONENT_BYTES: usize = 4;

const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// Why a key set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    /// Not JSON, or ambiguous.
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Another shape.
    #[error("not a JWKS: there is no list `keys`")]
    Shape,
    /// Over [`MAX_KEYS`].
    #[error("{0} keys, at most {MAX_KEYS} are taken")]
    TooMany(usize),
    /// Nothing in it can verify a signature.
    #[error(
        "no usable key: RSA of 2,048 to 8,192 bits, P-256, P-384 and Ed25519 are, if they are for signatures"
    )]
    NoneUsable,
}

/// The keys of an issuer.
pub struct KeySet {
    keys: Box<[Key]>,
}

/// One public key.
pub struct Key {
    id: Option<Box<str>>,
    algorithms: Box<[Algorithm]>,
    key: DecodingKey,
}

impl KeySet {
    /// Reads a JWKS. Keys that cannot verify (of other kinds, for encryption, too short, symmetric) are passed over, as
    /// RFC 7517 section 5 wants it.
    ///
    /// # Errors
    /// When it is no JWKS or nothing in it can be used.
    pub fn parse(text: &[u8]) -> Result<Self, KeySetError> {
        Self::from_value(&json::parse(text)?)
    }

    /// As [`KeySet::parse`], of what has been read already.
    ///
    /// # Errors
    /// As [`KeySet::parse`].
    pub fn from_value(value: &Value) -> Result<Self, KeySetError> {
        let keys = value.get("keys").and_then(Value::as_array).ok_or(KeySetError::Shape)?;
        if keys.len() > MAX_KEYS {
            return Err(KeySetError::TooMany(keys.len()));
        }
        let usable = keys.iter().filter_map(|key| Key::read(key.as_object()?));
        let keys: Box<[Key]> = usable.collect();
        if keys.is_empty() { Err(KeySetError::NoneUsable) } else { Ok(Self { keys }) }
    }

    /// No keys: nothing is verified by it.
    pub fn empty() -> Self {
        Self { keys: Box::new([]) }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// The one key that a token with this `kid` and `alg` can have been signed with.
    ///
    /// # Errors
    /// [`Refused::NoKey`] when there is none, or more than one: trying keys until one fits is not choosing.
    /// [`Refused::Algorithm`] when the key that `kid` names is not for this algorithm.
    pub(super) fn select(&self, id: Option<&str>, algorithm: Algorithm) -> Result<&Key, Refused> {
        let named = |key: &&Key| id.is_none_or(|id| key.id.as_deref() == Some(id));
        let mut fitting =
            self.keys.iter().filter(named).filter(|key| key.algorithms.contains(&algorithm));
        match (fitting.next(), fitting.next()) {
            (Some(key), None) => Ok(key),
            (None, _) if id.is_some() && self.keys.iter().any(|key| named(&key)) => {
                Err(Refused::Algorithm)
            }
            _ => Err(Refused::NoKey),
        }
    }
}

impl Key {
    fn read(jwk: &Map<String, Value>) -> Option<Self> {
        if !is_for_signatures(jwk) {
            return None;
        }
        let (fits, key): (&[Algorithm], _) = match text(jwk, "kty")? {
            "RSA" => (RSA, rsa(jwk)?),
            "EC" => match text(jwk, "crv")? {
                "P-256" => (&[Algorithm::ES256], elliptic(jwk, 32)?),
                "P-384" => (&[Algorithm::ES384], elliptic(jwk, 48)?),
                _ => return None,
            },
            "OKP" if text(jwk, "crv")? == "Ed25519" => (&[Algorithm::EdDSA], edwards(jwk)?),
            // Symmetric keys (`oct`) above all: whoever can verify with one can sign with it.
            _ => return None,
        };
        let algorithms: Box<[Algorithm]> = match jwk.get("alg") {
            None => fits.into(),
            Some(name) => {
                let pinned = algorithm(name.as_str()?)?;
                Box::new([*fits.iter().find(|fits| **fits == pinned)?])
            }
        };
        let id = match jwk.get("kid") {
            None => None,
            Some(id) => Some(id.as_str()?.into()),
        };
        Some(Self { id, algorithms, key })
    }

    /// Whether `signature` (base64url) is this key's over `signed`.
    pub(super) fn has_signed(&self, signed: &str, signature: &str, algorithm: Algorithm) -> bool {
        let good = jsonwebtoken::crypto::verify(signature, signed.as_bytes(), &self.key, algorithm);
        matches!(good, Ok(true))
    }
}

/// The algorithm of that name; `None` for `none`, for symmetric ones, and for what nobody here can verify.
pub(super) fn algorithm(name: &str) -> Option<Algorithm> {
    Some(match name {
        "RS256" => Algorithm::RS256,
        "RS384" => Algorithm::RS384,
        "RS512" => Algorithm::RS512,
        "PS256" => Algorithm::PS256,
        "PS384" => Algorithm::PS384,
        "PS512" => Algorithm::PS512,
        "ES256" => Algorithm::ES256,
        "ES384" => Algorithm::ES384,
        // RFC 9864 gives `EdDSA` with this curve a name of its own.
        "EdDSA" | "Ed25519" => Algorithm::EdDSA,
        _ => return None,
    })
}

fn text<'a>(jwk: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    jwk.get(name)?.as_str()
}

/// RFC 7517 sections 4.2 and 4.3: a key may say what it is for.
fn is_for_signatures(jwk: &Map<String, Value>) -> bool {
    let verify = |operations: &Value| {
        operations.as_array().is_some_and(|list| list.iter().any(|name| name == "verify"))
    };
    jwk.get("use").is_none_or(|name| name == "sig") && jwk.get("key_ops").is_none_or(verify)
}

fn bytes(jwk: &Map<String, Value>, name: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text(jwk, name)?).ok()
}

fn rsa(jwk: &Map<String, Value>) -> Option<DecodingKey> {
    let (modulus, exponent) = (bytes(jwk, "n")?, bytes(jwk, "e")?);
    // Some write a sign byte that RFC 7518 section 6.3.1.1 does not want.
    let modulus = modulus.strip_prefix(&[0]).unwrap_or(&modulus);
    let good = RSA_BYTES.contains(&modulus.len())
        && modulus.first()? & 0x80 != 0
        && (1..=MAX_EXPONENT_BYTES).contains(&exponent.len());
    good.then(|| DecodingKey::from_rsa_raw_components(modulus, &exponent))
}

fn elliptic(jwk: &Map<String, Value>, length: usize) -> Option<DecodingKey> {
    // RFC 7518 section 6.2.1.2: coordinates have the full length of the field.
    let good = bytes(jwk, "x")?.len() == length && bytes(jwk, "y")?.len() == length;
    good.then(|| DecodingKey::from_ec_components(text(jwk, "x")?, text(jwk, "y")?).ok()).flatten()
}

fn edwards(jwk: &Map<String, Value>) -> Option<DecodingKey> {
    let public = bytes(jwk, "x")?;
    (public.len() == 32).then(|| DecodingKey::from_ed_der(&public))
}

impl fmt::Debug for KeySet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.keys.iter().map(|key| (&key.id, &key.algorithms));
        formatter.debug_list().entries(keys).finish()
    }
}
