//! For tests: an authority that issues what it is asked for, also what no real one would.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use leno_api::model::identity::{SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd, string::Ia5String,
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime},
    time_provider::TimeProvider,
};

use super::{Credentials, Material};

/// 2027-01-15; all fixtures live around it.
pub const NOW: i64 = 1_800_000_000;
/// Of leaf certificates that say nothing else.
pub const LIFE: i64 = 3600;

/// A clock that stands still until it is told otherwise.
#[derive(Debug)]
pub struct Clock(AtomicI64);

impl Clock {
    /// At [`NOW`].
    pub fn new() -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(NOW)))
    }

    /// Sets it, in Unix seconds.
    pub fn set(&self, seconds: i64) {
        self.0.store(seconds, Ordering::SeqCst);
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = self.0.load(Ordering::SeqCst).try_into().unwrap();
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// A root.
pub struct Authority {
    /// Of itself.
    pub certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate is to say.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub uris: Vec<String>,
    pub dns: Vec<String>,
    pub not_before: i64,
    pub not_after: i64,
    pub authority: bool,
    pub usages: Vec<KeyUsagePurpose>,
}

impl Wanted {
    /// As a real authority would issue it, valid at [`NOW`].
    pub fn id(uri: &str) -> Self {
        Self {
            uris: vec![uri.to_owned()],
            dns: Vec::new(),
            not_before: NOW - 60,
            not_after: NOW + LIFE,
            authority: false,
            usages: vec![KeyUsagePurpose::DigitalSignature],
        }
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let text = |text: &String| Ia5String::try_from(text.clone()).unwrap();
        let uris = self.uris.iter().map(|uri| SanType::URI(text(uri)));
        let names = self.dns.iter().map(|name| SanType::DnsName(text(name)));
        params.subject_alt_names = uris.chain(names).collect();
        params.not_before = date_time_ymd(1970, 1, 1) + since_epoch(self.not_before);
        params.not_after = date_time_ymd(1970, 1, 1) + since_epoch(self.not_after);
        params.key_usages.clone_from(&self.usages);
        params.is_ca = match self.authority {
            true => IsCa::Ca(BasicConstraints::Unconstrained),
            false => IsCa::ExplicitNoCa,
        };
        params
    }
}

/// After the epoch: rcgen's type for a time has no name here.
fn since_epoch(unix_seconds: i64) -> Duration {
    Duration::from_secs(unix_seconds.try_into().unwrap())
}

impl Authority {
    /// With a key and a name of its own, valid for ten years around [`NOW`].
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = date_time_ymd(1970, 1, 1) + since_epoch(NOW - 157_680_000);
        params.not_after = date_time_ymd(1970, 1, 1) + since_epoch(NOW + 157_680_000);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// Issues a certificate, and the key for it.
    pub fn issue(&self, wanted: &Wanted) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let certificate = wanted.params().signed_by(&key, &self.issuer).unwrap().der().clone();
        (certificate, der(&key))
    }

    /// Issues to somebody else's key.
    pub fn sign(
        &self,
        wanted: &Wanted,
        key: &impl rcgen::PublicKeyData,
    ) -> CertificateDer<'static> {
        wanted.params().signed_by(key, &self.issuer).unwrap().der().clone()
    }

    /// Material for `spiffe://cluster.local/ns/<namespace>/sa/<account>` that trusts this authority.
    pub fn material(&self, namespace: &str, account: &str) -> Material {
        self.material_of(&Wanted::id(&id(namespace, account).to_string()))
    }

    /// The same with another certificate.
    pub fn material_of(&self, wanted: &Wanted) -> Material {
        let (certificate, key) = self.issue(wanted);
        Material {
            chain: vec![certificate],
            key,
            roots: vec![self.certificate.clone()],
            trust_domain: trust_domain(),
        }
    }

    /// Credentials from [`Authority::material`] with a clock.
    pub fn credentials(&self, namespace: &str, account: &str, clock: &Arc<Clock>) -> Credentials {
        Credentials::with_clock(self.material(namespace, account), None, clock.clone()).unwrap()
    }
}

/// A certificate that nobody but its holder has signed.
pub fn self_signed(wanted: &Wanted) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    (wanted.params().self_signed(&key).unwrap().der().clone(), der(&key))
}

fn der(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

/// `cluster.local`.
pub fn trust_domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

/// In [`trust_domain`].
pub fn id(namespace: &str, account: &str) -> SpiffeId {
    SpiffeId::new(&trust_domain(), namespace, account)
}
