//! The SPIFFE rules for a peer's certificate, on DER bytes and with the time as an argument: what remains to be
//! checked when rustls has built the path to a trusted root (X509-SVID, sections 2, 4 and 5).
//!
//! Everything a certificate says was written by whoever holds it, so texts from it are shortened and escaped before
//! they can reach a log.

use leno_api::model::identity::{SpiffeId, TrustDomain};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// A certificate may be this much ahead of our clock: clocks of different machines are not the same, and a certificate
/// is used within moments of being made. There is no such allowance at the other end: expired is expired.
pub const NOT_BEFORE_SKEW_SECONDS: i64 = 60;
/// What is quoted from a certificate in a message; a SPIFFE ID has up to 2,048 bytes.
const MAX_QUOTED: usize = 256;

/// What matters of an end-entity certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// From its one URI.
    pub id: SpiffeId,
    /// Unix seconds.
    pub not_before: i64,
    /// Unix seconds; still valid in this second.
    pub not_after: i64,
    /// Lower-case hex.
    pub serial: String,
}

/// Why a certificate is not accepted, although its signatures may be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not DER, or not an X.509 certificate.
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
    /// No URI among its names.
    #[error("the certificate has no URI among its subject alternative names, so no SPIFFE ID")]
    NoUri,
    /// More than one (X509-SVID 2).
    #[error(
        "the certificate has {0} URIs among its subject alternative names; exactly one is allowed"
    )]
    ManyUris(usize),
    /// Not a SPIFFE ID of the form this mesh uses.
    #[error("the certificate's URI {uri} is not an identity: {reason}")]
    BadUri {
        /// Escaped and shortened.
        uri: String,
        /// From the parser.
        reason: String,
    },
    /// It could sign others, so it is nobody's identity (X509-SVID 5.2).
    #[error("the certificate is that of a certificate authority, not of a workload")]
    Authority,
    /// Its key may not sign handshakes (X509-SVID 4.3).
    #[error("the certificate's key usage lacks digitalSignature")]
    KeyUsage,
    /// Of somebody else's mesh.
    #[error("{presented} is not of the trust domain {expected}")]
    WrongTrustDomain {
        /// Ours.
        expected: TrustDomain,
        /// The peer's.
        presented: SpiffeId,
    },
    /// Not the workload that was to be reached.
    #[error("the peer is {presented}, not {expected}")]
    WrongIdentity {
        /// Who should have been there.
        expected: SpiffeId,
        /// Who was.
        presented: SpiffeId,
    },
    /// Its time has not come.
    #[error("the certificate of {id} is not valid before {not_before} (now: {now}, Unix seconds)")]
    NotYetValid {
        /// Whose.
        id: SpiffeId,
        /// Unix seconds.
        not_before: i64,
        /// Unix seconds.
        now: i64,
    },
    /// Its time is over.
    #[error("the certificate of {id} expired at {not_after} (now: {now}, Unix seconds)")]
    Expired {
        /// Whose.
        id: SpiffeId,
        /// Unix seconds.
        not_after: i64,
        /// Unix seconds.
        now: i64,
    },
}

impl Leaf {
    /// Reads an end-entity certificate: exactly one URI, which is a SPIFFE ID; not a certificate authority.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn read(der: &[u8]) -> Result<Self, Refusal> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(malformed)?;
        if !rest.is_empty() {
            return Err(Refusal::Malformed(format!("{} bytes follow it", rest.len())));
        }
        check_usage(&certificate)?;
        let id = identity(&certificate)?;
        let validity = certificate.validity();
        Ok(Self {
            id,
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
            serial: certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }

    /// Whether it may be used now, by whom is expected: of the trust domain and, where one is named, of that identity.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn check(
        &self,
        trust_domain: &TrustDomain,
        expected: Option<&SpiffeId>,
        now: i64,
    ) -> Result<(), Refusal> {
        if self.id.trust_domain != *trust_domain {
            let (expected, presented) = (trust_domain.clone(), self.id.clone());
            return Err(Refusal::WrongTrustDomain { expected, presented });
        }
        if let Some(expected) = expected.filter(|expected| **expected != self.id) {
            let (expected, presented) = (expected.clone(), self.id.clone());
            return Err(Refusal::WrongIdentity { expected, presented });
        }
        if self.not_before > now.saturating_add(NOT_BEFORE_SKEW_SECONDS) {
            let (id, not_before) = (self.id.clone(), self.not_before);
            return Err(Refusal::NotYetValid { id, not_before, now });
        }
        if self.not_after < now {
            let (id, not_after) = (self.id.clone(), self.not_after);
            return Err(Refusal::Expired { id, not_after, now });
        }
        Ok(())
    }

    /// For which moment the path to the root is to be checked: now, or the first second of this certificate where that
    /// is ahead by no more than the clocks may differ. (Checking at `now` plus the allowance would refuse certificates
    /// that live for less than the allowance.)
    pub fn verification_time(&self, now: i64) -> i64 {
        if self.not_before <= now.saturating_add(NOT_BEFORE_SKEW_SECONDS) {
            now.max(self.not_before)
        } else {
            now
        }
    }
}

/// X509-SVID 4.1, 4.3 and 5.2: neither `CA:true` nor the right to sign certificates or revocation lists.
fn check_usage(certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
    let constraints = certificate.basic_constraints().map_err(malformed)?;
    let usage = certificate.key_usage().map_err(malformed)?;
    let is_authority = constraints.is_some_and(|found| found.value.ca);
    let Some(usage) = usage.map(|found| found.value) else {
        return if is_authority { Err(Refusal::Authority) } else { Ok(()) };
    };
    if is_authority || usage.key_cert_sign() || usage.crl_sign() {
        return Err(Refusal::Authority);
    }
    if usage.digital_signature() { Ok(()) } else { Err(Refusal::KeyUsage) }
}

fn identity(certificate: &X509Certificate<'_>) -> Result<SpiffeId, Refusal> {
    // An error also where the extension is there twice: whoever reads the other one sees another identity.
    let names = certificate.subject_alternative_name().map_err(malformed)?;
    let Some(names) = names else { return Err(Refusal::NoUri) };
    let mut uris = Vec::new();
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            // A name that we cannot read may be a URI to somebody else.
            GeneralName::Invalid(..) => {
                let reason = "one of its subject alternative names is not readable".to_owned();
                return Err(Refusal::Malformed(reason));
            }
            _ => {}
        }
    }
    match uris.as_slice() {
        [] => Err(Refusal::NoUri),
        // The whole text or nothing: a reader that stops at a NUL would see another identity (CVE-2026-47778).
        [uri] => SpiffeId::parse(uri)
            .map_err(|reason| Refusal::BadUri { uri: quoted(uri), reason: shortened(&reason) }),
        several => Err(Refusal::ManyUris(several.len())),
    }
}

fn malformed(error: impl std::fmt::Display) -> Refusal {
    Refusal::Malformed(shortened(&error.to_string()))
}

fn quoted(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_QUOTED);
    format!("{:?}", &text[..end])
}

/// Reasons may quote what they are about.
fn shortened(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_QUOTED);
    text[..end].escape_debug().to_string()
}

#[cfg(test)]
mod tests;
