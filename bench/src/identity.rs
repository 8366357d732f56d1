//! Certificates for hops under mutual TLS: a P-256 root, and a P-256 certificate with a SPIFFE ID
//! for everybody who takes part. All programs get the same ones.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tempfile::TempDir;

/// What every identity of a run begins with.
pub const PREFIX: &str = "spiffe://cluster.local/ns/bench/sa/";
/// Longer than any run, and what a mesh's certificates are valid for.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// Clocks of one machine do not differ; a certificate made this second may still be refused.
const SKEW: Duration = Duration::from_secs(60);

/// A root, and the directory with what it issued.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: TempDir,
    roots: PathBuf,
}

/// A certificate, as files for programs and in memory for the load generator.
#[derive(Debug)]
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Certificate and key in one file, for programs that want them so.
    pub both: PathBuf,
    pub roots: PathBuf,
    chain: Vec<CertificateDer<'static>>,
    private: PrivateKeyDer<'static>,
}

impl Authority {
    pub fn new() -> Result<Self> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("make a root's key")?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, "leno-bench");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = parameters.self_signed(&key).context("make a root")?;
        let directory = tempfile::Builder::new().prefix("leno-bench-").tempdir();
        let directory = directory.context("make a directory")?;
        let roots = directory.path().join("roots.pem");
        fs::write(&roots, root.pem()).with_context(|| format!("write {}", roots.display()))?;
        Ok(Authority { issuer: Issuer::new(parameters, key), directory, roots })
    }

    /// A certificate for the service account `account`.
    pub fn issue(&self, account: &str) -> Result<Arc<Identity>> {
        let id = format!("{PREFIX}{account}");
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("make a key")?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        let name = Ia5String::try_from(id.as_str()).context("a SPIFFE ID")?;
        parameters.subject_alt_names = vec![SanType::URI(name)];
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let now = SystemTime::now();
        parameters.not_before = (now - SKEW).into();
        parameters.not_after = (now + LIFE).into();
        let issued = parameters.signed_by(&key, &self.issuer).context("issue a certificate")?;
        let (certificate, private) = (issued.pem(), key.serialize_pem());
        Ok(Arc::new(Identity {
            certificate: self.write(&format!("{account}.pem"), &certificate)?,
            key: self.write(&format!("{account}.key"), &private)?,
            both: self.write(&format!("{account}.both.pem"), &(certificate + &private))?,
            roots: self.roots.clone(),
            chain: vec![issued.der().clone()],
            private: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        }))
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directory.path().join(name);
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let written =
            file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
        written.with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

impl Identity {
    /// For connections of the load generator. It offers one cipher suite and one key exchange, the
    /// ones that Leno's own hops have, so that every server does the same work; and it believes
    /// whatever certificate it is shown, so that it costs less than any server.
    pub fn client(&self, alpn: &[u8]) -> Result<ClientConfig> {
        let provider = Arc::new(CryptoProvider {
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![aws_lc_rs::kx_group::X25519],
            ..aws_lc_rs::default_provider()
        });
        let mut config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .context("ask for TLS 1.3")?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Believer(provider)))
            .with_client_auth_cert(self.chain.clone(), self.private.clone_key())
            .context("use a certificate")?;
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(config)
    }
}

#[derive(Debug)]
struct Believer(Arc<CryptoProvider>);

impl ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keys_are_for_their_owner_alone() {
        let authority = Authority::new().unwrap();
        let identity = authority.issue("caller").unwrap();
        for path in [&identity.key, &identity.both] {
            let mode = fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        }
        let shown = format!("{identity:?}");
        assert!(!shown.contains("PRIVATE"), "{shown}");
    }
}
