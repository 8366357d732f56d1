//! A certificate from files that somebody else renews: cert-manager, a script, a person.
//!
//! They are read whole every few seconds and compared, since no notification covers all the ways in which files are
//! replaced (renamed, rewritten in place, a symlink to another directory as Kubernetes does it). Files of a change are never seen
//! all at once: what does not fit together is left alone until it does.

use std::{
    fs::File,
    future::Future,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject};

use super::{Identity, now};
use crate::tls::{
    self, Credentials, Material,
    verify::{Leaf, Refusal},
};

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Of each file: certificates and keys have a few KiB.
const MAX_BYTES: u64 = 1024 * 1024;
/// Permissions of group and others.
const NOT_OWNER: u32 = 0o077;

/// Which files.
#[derive(Clone, Debug)]
pub struct Files {
    /// PEM, leaf first.
    pub certificate: PathBuf,
    /// PEM; readable by its owner only.
    pub key: PathBuf,
    /// PEM: the roots to trust.
    pub roots: PathBuf,
}

/// Why they cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not there, not readable, too long.
    #[error("{path} cannot be read: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The key is everybody's.
    #[error("others can read the private key {path} (mode {mode:04o}): run `chmod 600 {path}`")]
    Permissions {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Not PEM, or without what it should hold.
    #[error("{path} holds no {what} in PEM form: {reason}")]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// From the parser, which never quotes the file.
        reason: String,
    },
    /// The leaf breaks a rule.
    #[error("{path}: {source}")]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// The rule.
        source: Box<Refusal>,
    },
    /// They do not fit together.
    #[error("{certificate} and {key}: {source}")]
    Mismatch {
        /// Which file.
        certificate: PathBuf,
        /// Which file.
        key: PathBuf,
        /// Why.
        source: Box<tls::Error>,
    },
    /// The certificate is of another authority.
    #[error("{certificate} leads to none of the roots in {roots}: {source}")]
    Path {
        /// Which file.
        certificate: PathBuf,
        /// Which file.
        roots: PathBuf,
        /// Why.
        source: Box<rustls::Error>,
    },
}

/// What the files hold.
#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    roots: Vec<u8>,
}

impl Files {
    /// Reads them now, and returns what follows them.
    pub(super) fn start(
        self,
        identity: Arc<Identity>,
    ) -> Result<impl Future<Output = ()> + Send + use<>, Error> {
        let contents = self.read()?;
        let credentials = self.credentials(&contents, None)?;
        identity.renewed(credentials, None);
        Ok(self.follow(identity, contents))
    }

    async fn follow(self, identity: Arc<Identity>, mut seen: Contents) {
        let mut failing = None;
        loop {
            identity.wait(now() + LOOK_EVERY).await;
            let contents = match self.read() {
                Ok(contents) if contents == seen => {
                    if failing.take().is_some() {
                        identity.recovered();
                    }
                    continue;
                }
                Ok(contents) => contents,
                Err(error) => {
                    fail_once(&identity, &mut failing, error.to_string());
                    continue;
                }
            };
            let previous = identity.current();
            match self.credentials(&contents, previous.as_deref()) {
                Ok(credentials) => {
                    identity.renewed(credentials, None);
                    (seen, failing) = (contents, None);
                }
                Err(error) => fail_once(&identity, &mut failing, error.to_string()),
            }
        }
    }

    fn read(&self) -> Result<Contents, Error> {
        Ok(Contents {
            certificate: read(&self.certificate, |_, _| Ok(()))?,
            key: read(&self.key, |path, file| {
                let metadata = file.metadata();
                let metadata =
                    metadata.map_err(|source| Error::Read { path: path.to_owned(), source })?;
                let mode = metadata.permissions().mode() & 0o7777;
                let path = path.to_owned();
                if mode & NOT_OWNER == 0 { Ok(()) } else { Err(Error::Permissions { path, mode }) }
            })?,
            roots: read(&self.roots, |_, _| Ok(()))?,
        })
    }

    fn credentials(
        &self,
        contents: &Contents,
        previous: Option<&Credentials>,
    ) -> Result<Credentials, Error> {
        let chain = certificates(&self.certificate, &contents.certificate)?;
        let roots = certificates(&self.roots, &contents.roots)?;
        let key = PrivateKeyDer::from_pem_slice(&contents.key).map_err(|error| Error::Pem {
            path: self.key.clone(),
            what: "private key",
            reason: reason(&error),
        })?;
        let leaf = chain.first().map_or(&[][..], |leaf| leaf);
        let leaf = Leaf::read(leaf).map_err(|source| Error::Certificate {
            path: self.certificate.clone(),
            source: source.into(),
        })?;
        let material = Material { chain, key, roots, trust_domain: leaf.id.trust_domain };
        let credentials =
            Credentials::new(material, previous).map_err(|source| Error::Mismatch {
                certificate: self.certificate.clone(),
                key: self.key.clone(),
                source: source.into(),
            })?;
        credentials.check_path().map_err(|source| Error::Path {
            certificate: self.certificate.clone(),
            roots: self.roots.clone(),
            source: source.into(),
        })?;
        Ok(credentials)
    }
}

/// A file that stays wrong is reported once.
fn fail_once(identity: &Identity, failing: &mut Option<String>, reason: String) {
    if failing.as_ref() != Some(&reason) {
        identity.failed(reason.clone());
        *failing = Some(reason);
    }
}

/// Reads a file after `check` has looked at the very file that is open.
fn read(path: &Path, check: impl Fn(&Path, &File) -> Result<(), Error>) -> Result<Vec<u8>, Error> {
    let wrong = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(wrong)?;
    check(path, &file)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(wrong)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(wrong(io::Error::other(format!("it has more than {MAX_BYTES} bytes"))));
    }
    Ok(bytes)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let wrong = |reason| Error::Pem { path: path.to_owned(), what: "certificate", reason };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| wrong(reason(&error)))?;
    if found.is_empty() { Err(wrong("there is none".to_owned())) } else { Ok(found) }
}

/// Without what the file holds: some of the parser's errors quote the line that they do not understand.
fn reason(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section does not end".to_owned(),
        pem::Error::IllegalSectionStart { .. } => "a section does not begin properly".to_owned(),
        pem::Error::Base64Decode(_) => "a section is not base64".to_owned(),
        pem::Error::SectionTooLarge => "a section is too long".to_owned(),
        pem::Error::NoItemsFound => "there is none".to_owned(),
        _ => "it cannot be read".to_owned(),
    }
}
