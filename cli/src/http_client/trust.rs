//! Who may certify an `https://` server: the roots in a file of PEM certificates, usually the mesh's own.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    CertificateError, ClientConfig, Error as TlsError, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

/// Roots, read again whenever their file changes: the control plane keeps its own file current while it replaces its
/// root, and a command that stays for long lives through that.
#[derive(Clone, Debug)]
pub struct Trust(Arc<Inner>);

/// Why roots cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("the roots in {} cannot be read: {source} (--ca-file)", file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("{from} is not a list of certificates in PEM: {reason}")]
    Malformed { from: String, reason: String },
}

#[derive(Debug)]
struct Inner {
    file: PathBuf,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    pem: Vec<u8>,
    /// Trusted beside what the file says.
    more: Vec<CertificateDer<'static>>,
    config: Arc<ClientConfig>,
}

impl Trust {
    pub fn load(file: &Path) -> Result<Self, TrustError> {
        let pem =
            fs::read(file).map_err(|source| TrustError::Read { file: file.to_owned(), source })?;
        let config = config(file, &pem, &[])?;
        let kept = Mutex::new(Kept { pem, more: Vec::new(), config });
        Ok(Self(Arc::new(Inner { file: file.to_owned(), kept })))
    }

    pub fn file(&self) -> &Path {
        &self.0.file
    }

    /// Trusts the roots in `pem`, too, until the program ends: of a server that was trusted when it named them.
    pub fn also(&self, from: &str, pem: &[u8]) -> Result<(), TrustError> {
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let more = certificates(from, pem)?;
        kept.config = config(&self.0.file, &kept.pem, &more)?;
        kept.more = more;
        Ok(())
    }

    /// Whether the file has just the certificates in `pem`.
    pub fn is_exactly(&self, from: &str, pem: &[u8]) -> Result<bool, TrustError> {
        self.config();
        let kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let own = certificates(&self.0.file.display().to_string(), &kept.pem)?;
        let other = certificates(from, pem)?;
        Ok(own.iter().all(|root| other.contains(root))
            && other.iter().all(|root| own.contains(root)))
    }

    pub(super) fn config(&self) -> Arc<ClientConfig> {
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // A file that is gone or half written changes nothing: what was read before still holds.
        if let Ok(pem) = fs::read(&self.0.file)
            && pem != kept.pem
            && let Ok(config) = config(&self.0.file, &pem, &kept.more)
        {
            (kept.pem, kept.config) = (pem, config);
        }
        kept.config.clone()
    }

    /// Why the handshake failed, as far as it is about trust.
    pub(super) fn objection(&self, error: &io::Error) -> Option<String> {
        let error = error.get_ref()?.downcast_ref::<TlsError>()?;
        let reason = match error {
            TlsError::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            ) => format!(
                "none of the roots in {} has signed its certificate; `leno ca bundle` or the file root.pem in the \
                 control plane's data directory has those of today",
                self.0.file.display()
            ),
            TlsError::InvalidCertificate(reason) => format!("{reason}"),
            TlsError::InvalidMessage(_) => "it does not speak TLS".to_owned(),
            other => other.to_string(),
        };
        Some(reason)
    }
}

fn config(
    file: &Path,
    pem: &[u8],
    more: &[CertificateDer<'static>],
) -> Result<Arc<ClientConfig>, TrustError> {
    let from = file.display().to_string();
    let malformed = |reason: String| TrustError::Malformed { from: from.clone(), reason };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&from, pem)?.into_iter().chain(more.iter().cloned()) {
        roots.add(certificate).map_err(|error| malformed(error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| malformed(error.to_string()))?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(from: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let malformed = |reason| TrustError::Malformed { from: from.to_owned(), reason };
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| malformed(error.to_string()))?;
    match found.is_empty() {
        true => Err(malformed("there is none in it".to_owned())),
        false => Ok(found),
    }
}
