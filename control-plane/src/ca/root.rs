//! Roots and what is issued under them: our own, made at first start and kept in the data directory, and the proof that
//! an issuing certificate, its key and its root belong together.
//!
//! `ca/state.json` says which roots there are (see `rotation`); `ca/root-<digits>.pem` and `.key` hold each.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use leno_api::{
    SYSTEM_NAMESPACE,
    model::identity::{SpiffeId, TrustDomain},
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
};
use sha2::{Digest, Sha256};
use x509_parser::parse_x509_certificate;

use super::{
    Error,
    files::{self, FileError, PRIVATE},
    issue::{self, Signer, Terms},
    pem,
    rotation::{RootId, State},
};

/// Most roots that can be trusted at a time, as in a `TrustBundle`.
pub const MAX_ROOTS: usize = 8;
/// How long our own roots live: ten years.
const LIFE: Duration = Duration::from_secs(3652 * 24 * 3600);
/// Our own roots are valid from an hour before they are made, for machines whose clocks are behind.
const BACKDATED: i64 = 3600;
/// Digits of the fingerprint in names of files and in a root's subject.
const SHORT: usize = 16;
const STATE: &str = "state.json";

/// A certificate that is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    pub der: CertificateDer<'static>,
    /// SHA-256, lower-case hex.
    pub fingerprint: RootId,
    pub subject: String,
    /// Unix seconds.
    pub not_before: i64,
    pub not_after: i64,
}

/// All that is trusted, and what signs.
#[derive(Debug)]
pub struct Trust {
    pub roots: Vec<Root>,
    pub signer: Signer,
    /// `None` where the roots are the user's files.
    pub rotation: Option<State>,
}

impl Root {
    /// # Errors
    /// Says why the certificate cannot be a root.
    pub fn read(der: CertificateDer<'static>) -> Result<Self, String> {
        let parsed = parse_x509_certificate(&der);
        let (rest, certificate) = parsed.map_err(|error| format!("no certificate: {error}"))?;
        if !rest.is_empty() {
            return Err("something follows the certificate".into());
        }
        let subject = certificate.subject().to_string();
        if !certificate.is_ca() {
            return Err(format!(
                "the certificate of {subject:?} may not issue others: it is no CA certificate"
            ));
        }
        let validity = certificate.validity();
        let (not_before, not_after) =
            (validity.not_before.timestamp(), validity.not_after.timestamp());
        let fingerprint = fingerprint(&der);
        Ok(Self { der, fingerprint, subject, not_before, not_after })
    }
}

impl Trust {
    /// Puts together what belongs together, and proves it: a certificate made for the purpose must verify under one of
    /// the roots. `path` begins with the issuing certificate, which may be a root itself; roots in it are left out.
    ///
    /// # Errors
    /// Says what does not fit.
    pub fn assemble(
        mut roots: Vec<Root>,
        path: Vec<CertificateDer<'static>>,
        key: KeyPair,
        now: i64,
    ) -> Result<Self, String> {
        // Bundles are put together by hand; the same root twice must not keep the others from every proxy.
        let mut known = BTreeSet::new();
        roots.retain(|root| known.insert(root.fingerprint.clone()));
        if roots.is_empty() || roots.len() > MAX_ROOTS {
            return Err(format!("{} roots, there must be 1 to {MAX_ROOTS}", roots.len()));
        }
        let issuing = path.first().ok_or("no issuing certificate")?.clone();
        let mut not_after = i64::MAX;
        for certificate in &path {
            not_after = not_after.min(Root::read(certificate.clone())?.not_after);
        }
        if public_key(&issuing)? != key.subject_public_key_info() {
            return Err("the private key is not the one of the issuing certificate".into());
        }
        let is_root = |der: &CertificateDer<'_>| roots.iter().any(|root| root.der == *der);
        let chain = path.into_iter().filter(|certificate| !is_root(certificate)).collect();
        let signer = Signer::new(&issuing, key, chain, String::new(), not_after);
        let mut signer = signer.map_err(|error| format!("issuing certificate: {error}"))?;
        let root = root_of(&signer, &roots, now)?;
        signer.root = root.fingerprint.clone();
        signer.not_after = signer.not_after.min(root.not_after);
        Ok(Self { roots, signer, rotation: None })
    }

    /// The trusted roots for verification.
    ///
    /// # Errors
    /// Where one of them cannot be used for it.
    pub fn store(&self) -> Result<Arc<RootCertStore>, rustls::Error> {
        let mut store = RootCertStore::empty();
        for root in &self.roots {
            store.add(root.der.clone())?;
        }
        Ok(Arc::new(store))
    }

    /// Whether a chain, leaf first, verifies at a time (Unix seconds).
    pub fn accepts(&self, chain: &[CertificateDer<'static>], now: i64) -> bool {
        let Some((leaf, rest)) = chain.split_first() else { return false };
        self.store().is_ok_and(|store| verify(leaf, rest, store, unix_time(now)).is_ok())
    }

    /// The trusted roots, as PEM.
    pub fn pem(&self) -> String {
        self.roots.iter().map(|root| pem("CERTIFICATE", &root.der)).collect()
    }
}

/// Our own roots on disk.
#[derive(Debug, Clone)]
pub struct Roots {
    directory: PathBuf,
    trust_domain: TrustDomain,
}

impl Roots {
    pub fn new(directory: &Path, trust_domain: &TrustDomain) -> Self {
        Self { directory: directory.to_owned(), trust_domain: trust_domain.clone() }
    }

    /// Where the rotation stands; at first start a root is made.
    ///
    /// # Errors
    /// When the state cannot be read, or is missing although there are several roots.
    pub fn state(&self, now: i64) -> Result<State, Error> {
        let path = self.directory.join(STATE);
        let text = match files::read(&path) {
            Err(_) if !path.exists() => return self.first_state(now),
            text => text?,
        };
        let state = serde_json::from_slice(&text).map_err(|error| Error::Damaged {
            path,
            reason: format!("{error}. Restore it from a backup"),
        })?;
        // Whoever was killed while it made a root has left a key behind that nobody will ever need.
        self.tidy(&state)?;
        Ok(state)
    }

    /// Keeps the state, and only the files that it needs.
    ///
    /// # Errors
    /// When it cannot be written; then the state before still holds.
    pub fn save(&self, state: &State) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(state).map_err(|error| Error::Damaged {
            path: self.directory.join(STATE),
            reason: error.to_string(),
        })?;
        files::write(&self.directory.join(STATE), &text, PRIVATE)?;
        self.tidy(state)?;
        Ok(())
    }

    /// Removes the files of all roots that a state does not need, half-written ones as well.
    fn tidy(&self, state: &State) -> Result<(), FileError> {
        for name in self.names()? {
            let Some((id, kind)) = name.strip_prefix("root-").and_then(|name| name.split_once('.'))
            else {
                continue;
            };
            if needs(state, id) && ["pem", "key"].contains(&kind) {
                continue;
            }
            let path = self.directory.join(&name);
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "a root that is no longer needed cannot be removed");
            }
        }
        Ok(())
    }

    /// Reads what a state needs.
    ///
    /// # Errors
    /// When a file is missing, exposed or damaged.
    pub fn trust(&self, state: State, now: i64) -> Result<Trust, Error> {
        let trusted = state.trusted().into_iter();
        let roots = trusted.map(|id| self.read(id)).collect::<Result<Vec<_>, _>>()?;
        let signer = state.signer();
        let path = self.file(signer, "key");
        let damaged = |reason: String| Error::Damaged { path: path.clone(), reason };
        let key = key_pair(&files::read_private(&path)?).map_err(damaged)?;
        let issuing = roots.iter().find(|root| root.fingerprint == signer);
        let issuing = issuing.map(|root| root.der.clone()).into_iter().collect();
        let trust = Trust::assemble(roots, issuing, key, now).map_err(damaged)?;
        Ok(Trust { rotation: Some(state), ..trust })
    }

    /// Makes a root and writes it; the state then must name it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn make(&self, now: i64) -> Result<RootId, Error> {
        let failed = |error: rcgen::Error| Error::MakeRoot(error.to_string());
        let key = KeyPair::generate().map_err(failed)?;
        let params = root_params(&self.trust_domain, now).map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        let id = fingerprint(certificate.der());
        let (key_pem, root_pem) = (key.serialize_pem(), pem("CERTIFICATE", certificate.der()));
        files::write(&self.file(&id, "key"), key_pem.as_bytes(), PRIVATE)?;
        files::write(&self.file(&id, "pem"), root_pem.as_bytes(), PRIVATE)?;
        Ok(id)
    }

    /// Without a state: nothing has been issued yet, or one root was made just before a crash, or the file was lost.
    fn first_state(&self, now: i64) -> Result<State, Error> {
        let id = match self.listed()?.as_slice() {
            [] => self.make(now)?,
            [id] => self.read_short(id)?.fingerprint,
            _ => {
                let reason = "it is missing, and there are several roots. Restore it from a backup, or move the directory away to begin with a new root".into();
                return Err(Error::Damaged { path: self.directory.join(STATE), reason });
            }
        };
        let state = State::new(id);
        self.save(&state)?;
        Ok(state)
    }

    /// Of each root whose certificate was written (the key comes before it).
    fn listed(&self) -> Result<Vec<String>, FileError> {
        let names = self.names()?.into_iter();
        let ids = names.filter_map(|name| {
            name.strip_prefix("root-")?.strip_suffix(".pem").map(ToOwned::to_owned)
        });
        Ok(ids.collect())
    }

    fn names(&self) -> Result<Vec<String>, FileError> {
        let failed = |error: io::Error| FileError::io("read", &self.directory, &error);
        let entries = fs::read_dir(&self.directory).map_err(failed)?;
        let names = entries.map(|entry| Ok(entry.map_err(failed)?.file_name()));
        // Ours are all of ASCII.
        let names = names.filter_map(|name| name.map(|name| name.into_string().ok()).transpose());
        names.collect()
    }

    fn read(&self, id: &str) -> Result<Root, Error> {
        let root = self.read_short(id)?;
        if root.fingerprint == id {
            return Ok(root);
        }
        let reason = format!("it holds another root than {id}");
        Err(Error::Damaged { path: self.file(id, "pem"), reason })
    }

    fn read_short(&self, id: &str) -> Result<Root, Error> {
        let path = self.file(id, "pem");
        let text = files::read(&path)?;
        let root = CertificateDer::from_pem_slice(&text)
            .map_err(|error| format!("no certificate in PEM: {error}"))
            .and_then(Root::read);
        root.map_err(|reason| Error::Damaged { path, reason })
    }

    fn file(&self, id: &str, kind: &str) -> PathBuf {
        let short = id.get(..SHORT).unwrap_or(id);
        self.directory.join(format!("root-{short}.{kind}"))
    }
}

fn needs(state: &State, short: &str) -> bool {
    state.kept().into_iter().any(|id| id.starts_with(short))
}

fn root_params(trust_domain: &TrustDomain, now: i64) -> Result<CertificateParams, rcgen::Error> {
    let serial = rand::random::<u128>() >> 2 | 1 << 126;
    let mut params = CertificateParams::default();
    // Names of its own for each root: a verifier finds issuers by name.
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Leno");
    name.push(DnType::CommonName, format!("Leno root {:08x}", serial & 0xffff_ffff));
    params.distinguished_name = name;
    params.serial_number = Some(SerialNumber::from_slice(&serial.to_be_bytes()));
    issue::set_validity(&mut params, now - BACKDATED, now + issue::seconds(LIFE));
    // A signing certificate names the trust domain (SPIFFE X509-SVID section 3.2).
    let uri = format!("spiffe://{trust_domain}");
    params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// Under which root the signer's certificates verify.
fn root_of<'a>(signer: &Signer, roots: &'a [Root], now: i64) -> Result<&'a Root, String> {
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let trust_domain = TrustDomain::parse("probe")?;
    let id = SpiffeId::new(&trust_domain, SYSTEM_NAMESPACE, "probe");
    let terms = Terms { serial: 1, now, ttl: issue::MIN_TTL };
    let leaf = signer.svid(&key, &id, terms).map_err(|error| error.to_string())?;
    let mut reason = String::new();
    for root in roots {
        let mut store = RootCertStore::empty();
        let added = store.add(root.der.clone());
        added.map_err(|error| format!("the root {:?} cannot be used: {error}", root.subject))?;
        match verify(&leaf.der, &signer.chain, Arc::new(store), unix_time(now)) {
            Ok(()) => return Ok(root),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(format!(
        "what it issues does not verify under any trusted root ({reason}): check that the issuing certificate and its intermediates lead to the root"
    ))
}

fn verify(
    leaf: &CertificateDer<'_>,
    chain: &[CertificateDer<'static>],
    roots: Arc<RootCertStore>,
    time: UnixTime,
) -> Result<(), Box<dyn std::error::Error>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build()?;
    verifier.verify_client_cert(leaf, chain, time)?;
    Ok(())
}

fn unix_time(unix: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(unix).unwrap_or(0)))
}

/// A private key in PEM: PKCS #8, SEC 1 or PKCS #1.
pub fn key_pair(text: &[u8]) -> Result<KeyPair, String> {
    let text = std::str::from_utf8(text).map_err(|_| "not PEM".to_owned())?;
    KeyPair::from_pem(text).map_err(|error| {
        format!("no private key that can be used ({error}): it must be PEM, not encrypted")
    })
}

fn public_key(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, String> {
    let parsed = parse_x509_certificate(certificate);
    let (_, certificate) = parsed.map_err(|error| format!("no certificate: {error}"))?;
    Ok(certificate.public_key().raw.to_vec())
}

/// SHA-256 in lower-case hex.
pub fn fingerprint(der: &[u8]) -> RootId {
    Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
