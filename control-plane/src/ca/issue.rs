//! Signing request and proven identity in, certificate out. Pure over keys: time and serial are arguments.

use std::{fmt, time::Duration};

use leno_api::model::identity::SpiffeId;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::{CertificateDer, DnsName};
use x509_parser::{
    certification_request::X509CertificationRequest,
    cri_attributes::ParsedCriAttribute,
    extensions::{GeneralName, ParsedExtension},
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION,
        OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA, OID_SIG_ED25519,
    },
    prelude::FromDer,
    public_key::PublicKey,
    x509,
};

/// Largest signing request that is looked at: one with a key of 8192 bits has less than 3 KiB.
pub const MAX_CSR_BYTES: usize = 16 * 1024;
/// Certificates are valid from this much before they are made, for proxies whose clocks are behind.
pub const SKEW: Duration = Duration::from_secs(60);
/// The shortest life of a certificate: renewal at two thirds of it must have time for a second try.
pub const MIN_TTL: Duration = Duration::from_secs(10);
/// Bits of an RSA key: below are broken soon, above cost seconds to check.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Why a signing request is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadRequest {
    #[error("the signing request has {0} bytes, at most {MAX_CSR_BYTES} are accepted")]
    TooLarge(usize),
    #[error("the signing request is not PKCS #10 in DER")]
    Malformed,
    #[error("{0} bytes follow the signing request")]
    Trailing(usize),
    #[error("the signing request is not signed with the key that it is for")]
    Signature,
    #[error("the signing request has {0}: use a P-256, P-384 or Ed25519 key")]
    Key(&'static str),
    #[error("the signing request asks for {0}: a certificate has one SPIFFE ID and nothing else")]
    Name(&'static str),
    #[error("the signing request asks for the identity {0:?}, which is none: {1}")]
    Identity(String, String),
}

/// Somebody else's identity.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the {whose} {requested}, but what was proven is {proven}")]
pub struct Foreign {
    whose: &'static str,
    requested: String,
    proven: String,
}

/// Why a certificate cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CannotSign {
    #[error(
        "the issuing certificate ends in {0} s, too soon to issue anything under it: rotate the root, or replace the certificate files"
    )]
    IssuerEnds(i64),
    #[error("{0} cannot be written into a certificate: {1}")]
    Name(String, String),
    #[error("signing failed: {0}")]
    Signing(String),
}

/// A checked signing request: its sender holds the private key.
#[derive(Debug)]
pub struct Request {
    pub key: SubjectPublicKeyInfo,
    /// The identity it names, where it does.
    pub identity: Option<SpiffeId>,
}

/// An issuing certificate with its key.
pub struct Signer {
    issuer: Issuer<'static, KeyPair>,
    /// What is delivered after the leaf: intermediates, never the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// SHA-256 of the root under which its certificates are, lower-case hex.
    pub root: String,
    /// Unix seconds: the earliest end of any certificate of the path.
    pub not_after: i64,
}

/// What is decided for one certificate outside of it.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Random.
    pub serial: u128,
    /// Unix seconds.
    pub now: i64,
    pub ttl: Duration,
}

/// A new certificate.
#[derive(Debug, Clone)]
pub struct Leaf {
    pub der: CertificateDer<'static>,
    /// Lower-case hex, 32 digits.
    pub serial: String,
    /// Unix seconds.
    pub not_before: i64,
    pub not_after: i64,
}

impl Request {
    /// Checks a signing request (PKCS #10, RFC 2986) of a stranger.
    ///
    /// # Errors
    /// [`BadRequest`] says what it is refused for.
    pub fn read(der: &[u8]) -> Result<Self, BadRequest> {
        if der.len() > MAX_CSR_BYTES {
            return Err(BadRequest::TooLarge(der.len()));
        }
        let parsed = X509CertificationRequest::from_der(der);
        let (rest, csr) = parsed.map_err(|_| BadRequest::Malformed)?;
        if !rest.is_empty() {
            return Err(BadRequest::Trailing(rest.len()));
        }
        let spki = &csr.certification_request_info.subject_pki;
        check_key(spki)?;
        check_digest(&csr)?;
        csr.verify_signature().map_err(|_| BadRequest::Signature)?;
        let key = SubjectPublicKeyInfo::from_der(spki.raw);
        let key = key.map_err(|_| BadRequest::Key("a key of an unusual form"))?;
        Ok(Self { key, identity: requested_identity(&csr)? })
    }

    /// Whether what is asked for is what was proven.
    ///
    /// # Errors
    /// Where namespace, service account or the identity in the signing request are somebody else's.
    pub fn check_identity(
        &self,
        proven: &SpiffeId,
        namespace: &str,
        service_account: &str,
    ) -> Result<(), Foreign> {
        let foreign = |whose, requested: String| {
            Err(Foreign { whose, requested, proven: proven.to_string() })
        };
        if (&*proven.namespace, &*proven.service_account) != (namespace, service_account) {
            let requested = format!("ns/{namespace:?}/sa/{service_account:?}");
            return foreign("call asks for", requested);
        }
        match &self.identity {
            Some(identity) if identity != proven => {
                foreign("signing request names", identity.to_string())
            }
            _ => Ok(()),
        }
    }
}

impl Signer {
    /// `issuing` is the certificate of `key`; that the two belong together is for the caller to prove.
    ///
    /// # Errors
    /// Where the certificate cannot be read.
    pub fn new(
        issuing: &CertificateDer<'_>,
        key: KeyPair,
        chain: Vec<CertificateDer<'static>>,
        root: String,
        not_after: i64,
    ) -> Result<Self, rcgen::Error> {
        Ok(Self { issuer: Issuer::from_ca_cert_der(issuing, key)?, chain, root, not_after })
    }

    /// An X.509-SVID: the one URI, no subject, so that the alternative name is critical (SPIFFE X509-SVID section
    /// 4.1, RFC 5280 section 4.2.1.6).
    ///
    /// # Errors
    /// [`CannotSign`]: the issuer is at its end, or its key failed.
    pub fn svid(
        &self,
        key: &impl PublicKeyData,
        id: &SpiffeId,
        terms: Terms,
    ) -> Result<Leaf, CannotSign> {
        self.leaf(key, vec![uri(id)?], terms)
    }

    /// A certificate of our own ports: the SPIFFE ID and the names under which they are called.
    ///
    /// # Errors
    /// As [`Signer::svid`]; and where one of `hosts` is neither a DNS name nor an IP address.
    pub fn server(
        &self,
        key: &impl PublicKeyData,
        id: &SpiffeId,
        hosts: &[String],
        terms: Terms,
    ) -> Result<Leaf, CannotSign> {
        let mut names = vec![uri(id)?];
        for host in hosts {
            names.push(host_name(host)?);
        }
        self.leaf(key, names, terms)
    }

    fn leaf(
        &self,
        key: &impl PublicKeyData,
        names: Vec<SanType>,
        Terms { serial, now, ttl }: Terms,
    ) -> Result<Leaf, CannotSign> {
        let left = self.not_after - now;
        if left < seconds(MIN_TTL) {
            return Err(CannotSign::IssuerEnds(left.max(0)));
        }
        let (not_before, not_after) = (now - seconds(SKEW), now + seconds(ttl).min(left));
        // The top bits make every serial a positive number of 16 bytes (RFC 5280 section 4.1.2.2).
        let serial = (serial >> 2) | (1 << 126);
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from_slice(&serial.to_be_bytes()));
        params.distinguished_name = DistinguishedName::new();
        set_validity(&mut params, not_before, not_after);
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(key, &self.issuer);
        let der = signed.map_err(|error| CannotSign::Signing(error.to_string()))?.into();
        Ok(Leaf { der, serial: format!("{serial:032x}"), not_before, not_after })
    }
}

/// Without the key.
impl fmt::Debug for Signer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = out.debug_struct("Signer");
        fields.field("root", &self.root).field("not_after", &self.not_after);
        fields.finish_non_exhaustive()
    }
}

/// Whole seconds; a duration of more than the age of the universe is as long as can be.
pub fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// In Unix seconds; what lies before 1970 becomes 1970.
pub fn set_validity(params: &mut CertificateParams, not_before: i64, not_after: i64) {
    let since = |unix: i64| Duration::from_secs(u64::try_from(unix).unwrap_or(0));
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since(not_before);
    params.not_after = epoch + since(not_after);
}

fn check_key(spki: &x509::SubjectPublicKeyInfo<'_>) -> Result<(), BadRequest> {
    let algorithm = &spki.algorithm;
    let kind = &algorithm.algorithm;
    if *kind == OID_SIG_ED25519 {
        return Ok(());
    }
    if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
        let known = curve.is_some_and(|oid| oid == OID_EC_P256 || oid == OID_NIST_EC_P384);
        return if known { Ok(()) } else { Err(BadRequest::Key("a key on another curve")) };
    }
    if *kind == OID_PKCS1_RSAENCRYPTION {
        return match spki.parsed() {
            Ok(PublicKey::RSA(key)) if RSA_BITS.contains(&bits(key.modulus)) => Ok(()),
            Ok(PublicKey::RSA(_)) => Err(BadRequest::Key("an RSA key outside 2048 to 8192 bits")),
            _ => Err(BadRequest::Key("an RSA key that cannot be read")),
        };
    }
    Err(BadRequest::Key("a key of another kind"))
}

fn bits(modulus: &[u8]) -> usize {
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let first = modulus.get(zeros).map_or(8, |byte| byte.leading_zeros() as usize);
    (modulus.len() - zeros) * 8 - first.min((modulus.len() - zeros) * 8)
}

fn check_digest(csr: &X509CertificationRequest<'_>) -> Result<(), BadRequest> {
    let algorithm = &csr.signature_algorithm.algorithm;
    if *algorithm == OID_PKCS1_SHA1WITHRSA || *algorithm == OID_SHA1_WITH_RSA {
        return Err(BadRequest::Key("a signature with SHA-1"));
    }
    Ok(())
}

fn requested_identity(csr: &X509CertificationRequest<'_>) -> Result<Option<SpiffeId>, BadRequest> {
    let attributes = csr.certification_request_info.iter_attributes();
    let requested = attributes.filter_map(|attribute| match attribute.parsed_attribute() {
        ParsedCriAttribute::ExtensionRequest(requested) => Some(&requested.extensions),
        _ => None,
    });
    let mut identity = None;
    for extension in requested.flatten() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    if identity.replace(one_uri(name)?).is_some() {
                        return Err(BadRequest::Name("several names"));
                    }
                }
            }
            ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                return Err(BadRequest::Name("the right to issue certificates"));
            }
            ParsedExtension::ParseError { .. } => return Err(BadRequest::Malformed),
            // Usages and the like: the certificate has ours.
            _ => {}
        }
    }
    Ok(identity)
}

fn one_uri(name: &GeneralName<'_>) -> Result<SpiffeId, BadRequest> {
    match name {
        GeneralName::URI(uri) => SpiffeId::parse(uri)
            .map_err(|reason| BadRequest::Identity(uri.chars().take(300).collect(), reason)),
        GeneralName::DNSName(_) => Err(BadRequest::Name("a DNS name")),
        GeneralName::IPAddress(_) => Err(BadRequest::Name("an IP address")),
        _ => Err(BadRequest::Name("a name that is no URI")),
    }
}

fn uri(id: &SpiffeId) -> Result<SanType, CannotSign> {
    let text = id.to_string();
    let uri = text.as_str().try_into();
    Ok(SanType::URI(
        uri.map_err(|error: rcgen::Error| CannotSign::Name(text.clone(), error.to_string()))?,
    ))
}

fn host_name(host: &str) -> Result<SanType, CannotSign> {
    if let Ok(address) = host.parse() {
        return Ok(SanType::IpAddress(address));
    }
    let failed = |reason: String| CannotSign::Name(host.to_owned(), reason);
    DnsName::try_from(host).map_err(|error| failed(error.to_string()))?;
    let name = host.try_into().map_err(|error: rcgen::Error| failed(error.to_string()))?;
    Ok(SanType::DnsName(name))
}

#[cfg(test)]
mod tests;
