//! Why a handshake failed, under a name that can be counted, and in words for the log.

use std::{error::Error, fmt, io};

use rustls::{AlertDescription, CertificateError, PeerIncompatible};

use super::verify::Refusal;

/// A failed handshake.
#[derive(Clone, Debug)]
pub struct Failure {
    /// For metrics.
    pub reason: Reason,
    /// For the log: names whose certificate and which rule.
    pub text: String,
}

/// The kinds of failures: the values of the label `result`, hence a closed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The peer showed no certificate.
    NoCertificate,
    /// The peer's certificate, or one above it, has expired.
    Expired,
    /// The peer's certificate is not valid yet.
    NotYetValid,
    /// The peer belongs to another trust domain.
    WrongTrustDomain,
    /// The peer is not who should have been there.
    WrongIdentity,
    /// No path from the peer's certificate to a root that we trust.
    UnknownAuthority,
    /// The peer's certificate does not name exactly one SPIFFE ID.
    BadSan,
    /// The peer's certificate is an authority's.
    AuthorityAsLeaf,
    /// Anything else that is wrong with the peer's certificate.
    BadCertificate,
    /// The peer does not speak TLS 1.3.
    ProtocolVersion,
    /// No cipher or key exchange in common.
    NoCipher,
    /// The peer did not say what is inside.
    NoApplicationProtocol,
    /// The peer refused us; the text has its alert.
    Refused,
    /// The peer went away during the handshake.
    Closed,
    /// The handshake took too long.
    Timeout,
    /// Anything else: not TLS, or TLS that makes no sense.
    Handshake,
}

impl Reason {
    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::WrongTrustDomain => "wrong_trust_domain",
            Self::WrongIdentity => "wrong_identity",
            Self::UnknownAuthority => "unknown_ca",
            Self::BadSan => "bad_san",
            Self::AuthorityAsLeaf => "ca_as_leaf",
            Self::BadCertificate => "bad_certificate",
            Self::ProtocolVersion => "protocol_version",
            Self::NoCipher => "no_cipher",
            Self::NoApplicationProtocol => "no_application_protocol",
            Self::Refused => "refused",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::Handshake => "handshake",
        }
    }
}

impl Failure {
    /// With a text of its own.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }

    /// The handshake was not done within what the caller allows.
    pub fn timeout() -> Self {
        Self::new(Reason::Timeout, "the TLS handshake took too long")
    }

    /// What an error of a TLS stream means. Also for errors after the handshake: in TLS 1.3 the client is done before
    /// the server has looked at its certificate, so that a refusal comes as an alert in the first read.
    pub fn of_io(error: &io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(inner) = inner {
            return Self::from(inner);
        }
        let reason = match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Reason::Closed,
            io::ErrorKind::TimedOut => Reason::Timeout,
            _ => Reason::Handshake,
        };
        Self::new(reason, error.to_string())
    }
}

impl From<&rustls::Error> for Failure {
    fn from(error: &rustls::Error) -> Self {
        use rustls::Error as Tls;
        let reason = match error {
            Tls::InvalidCertificate(error) => return Self::of_certificate(error),
            Tls::NoCertificatesPresented => {
                return Self::new(Reason::NoCertificate, "the peer showed no certificate");
            }
            Tls::AlertReceived(alert) => return Self::of_alert(*alert),
            Tls::PeerIncompatible(incompatible) => of_incompatible(incompatible),
            Tls::NoApplicationProtocol => Reason::NoApplicationProtocol,
            _ => Reason::Handshake,
        };
        Self::new(reason, error.to_string())
    }
}

impl From<&Refusal> for Failure {
    fn from(refusal: &Refusal) -> Self {
        let reason = match refusal {
            Refusal::NoUri | Refusal::ManyUris(_) | Refusal::BadUri { .. } => Reason::BadSan,
            Refusal::Authority => Reason::AuthorityAsLeaf,
            Refusal::Malformed(_) | Refusal::KeyUsage => Reason::BadCertificate,
            Refusal::WrongTrustDomain { .. } => Reason::WrongTrustDomain,
            Refusal::WrongIdentity { .. } => Reason::WrongIdentity,
            Refusal::NotYetValid { .. } => Reason::NotYetValid,
            Refusal::Expired { .. } => Reason::Expired,
        };
        Self::new(reason, refusal.to_string())
    }
}

impl Failure {
    fn of_certificate(error: &CertificateError) -> Self {
        let reason = match error {
            CertificateError::Other(other) => match other.0.downcast_ref::<Refusal>() {
                Some(refusal) => return refusal.into(),
                None => Reason::BadCertificate,
            },
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Reason::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Reason::NotYetValid
            }
            // A bad signature is what a root of the same name with another key looks like.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                Reason::UnknownAuthority
            }
            _ => Reason::BadCertificate,
        };
        Self::new(reason, format!("the peer's certificate: {error}"))
    }

    fn of_alert(alert: AlertDescription) -> Self {
        let reason = match alert {
            AlertDescription::ProtocolVersion => Reason::ProtocolVersion,
            AlertDescription::NoApplicationProtocol => Reason::NoApplicationProtocol,
            _ => Reason::Refused,
        };
        Self::new(reason, format!("the peer refuses with the alert {alert:?}"))
    }
}

fn of_incompatible(incompatible: &PeerIncompatible) -> Reason {
    match incompatible {
        PeerIncompatible::NoCipherSuitesInCommon
        | PeerIncompatible::NoKxGroupsInCommon
        | PeerIncompatible::NoSignatureSchemesInCommon => Reason::NoCipher,
        PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
        | PeerIncompatible::SupportedVersionsExtensionRequired
        | PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::Tls13RequiredForQuic => Reason::ProtocolVersion,
        _ => Reason::Handshake,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Failure {}
