//! Certificates as files, from an authority that issues what a test asks for; and a TLS client that checks nothing.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, string::Ia5String,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
};
use tempfile::TempDir;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::mesh::{Mesh, PATIENCE};

const HOUR: Duration = Duration::from_secs(3600);

/// A root, and the folder in which what it issues is kept.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: String,
    folder: TempDir,
}

/// A certificate with its key.
pub struct Issued {
    pub certificate: rcgen::Certificate,
    pub key: KeyPair,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "a root of the tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), root, folder: tempfile::tempdir().unwrap() }
    }

    /// One whose certificate and key are known, as PEM.
    pub fn of(root: String, key: &str) -> Self {
        let key = KeyPair::from_pem(key).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&root, key).unwrap();
        Self { issuer, root, folder: tempfile::tempdir().unwrap() }
    }

    /// A certificate for an account of the namespace `default`, valid for an hour.
    pub fn issue(&self, account: &str) -> Issued {
        self.issue_to(&format!("spiffe://cluster.local/ns/default/sa/{account}"))
    }

    /// The same for any URI.
    pub fn issue_to(&self, uri: &str) -> Issued {
        self.issue_as(uri, |_| {})
    }

    /// The same with something changed, for better or worse.
    pub fn issue_as(&self, uri: &str, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = params_for(uri);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Issued { certificate, key }
    }

    /// Flags with which a proxy has a certificate for `account`.
    pub fn flags(&self, account: &str) -> Vec<String> {
        self.flags_for(account, &self.issue(account))
    }

    /// The same with this one, in files of that name.
    pub fn flags_for(&self, name: &str, issued: &Issued) -> Vec<String> {
        self.flags_trusting(name, issued, &[])
    }

    /// The same, trusting others besides.
    pub fn flags_trusting(&self, name: &str, issued: &Issued, others: &[&Self]) -> Vec<String> {
        let roots = others.iter().fold(self.root.clone(), |roots, other| roots + &other.root);
        let write = |file: &str, text: &str| -> PathBuf {
            let path = self.folder.path().join(file);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            path
        };
        let files = [
            ("--tls-certificate", write(&format!("{name}.pem"), &issued.certificate.pem())),
            ("--tls-key", write(&format!("{name}.key"), &issued.key.serialize_pem())),
            ("--tls-roots", write("roots.pem", &roots)),
        ];
        let flag = |(flag, path): (&str, PathBuf)| [flag.to_owned(), path.display().to_string()];
        files.into_iter().flat_map(flag).collect()
    }
}

impl Issued {
    /// Signed by nobody but itself.
    pub fn by_itself(uri: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let certificate = params_for(uri).self_signed(&key).unwrap();
        Self { certificate, key }
    }

    /// The key as rustls wants it.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

/// A URI as subject alternative name.
pub fn uri(uri: &str) -> SanType {
    SanType::URI(Ia5String::try_from(uri).unwrap())
}

fn params_for(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(id)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let now = std::time::SystemTime::now();
    params.not_before = (now - Duration::from_secs(60)).into();
    params.not_after = (now + HOUR).into();
    params
}

impl Mesh {
    /// With a certificate for `account` from `authority`.
    pub fn identity(self, authority: &Authority, account: &str) -> Self {
        let flags = authority.flags(account);
        self.arguments(&flags.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

/// A TLS 1.3 connection that shows `issued`, if anything, and believes whatever it is shown.
pub async fn connect(
    address: std::net::SocketAddr,
    server_name: &str,
    alpn: &str,
    issued: Option<&Issued>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let connector = TlsConnector::from(Arc::new(config(alpn, issued)));
    let name = ServerName::try_from(server_name.to_owned()).unwrap();
    timeout(PATIENCE, connector.connect(name, stream)).await.expect("a handshake ends")
}

/// For such a connection.
pub fn config(alpn: &str, issued: Option<&Issued>) -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Believer(provider)));
    let mut config = match issued {
        None => builder.with_no_client_auth(),
        Some(issued) => {
            let chain = vec![issued.certificate.der().clone()];
            builder.with_client_auth_cert(chain, issued.private_key()).unwrap()
        }
    };
    config.alpn_protocols =
        if alpn.is_empty() { Vec::new() } else { vec![alpn.as_bytes().to_vec()] };
    config
}

/// Takes every server for who it says it is.
pub fn believer() -> Arc<dyn ServerCertVerifier> {
    Arc::new(Believer(Arc::new(aws_lc_rs::default_provider())))
}

#[derive(Debug)]
struct Believer(Arc<CryptoProvider>);

impl ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
