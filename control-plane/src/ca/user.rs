//! The user's root, issuing certificate and key: three PEM files that are read again when they change.

use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{
    Error, UserFiles,
    files::{self, FileError},
    root::{self, Root, Trust},
};

/// Intermediates between a leaf and the root; webpki follows no more than six.
const MAX_PATH: usize = 7;

/// What the files held when they were read.
#[derive(Clone, PartialEq, Eq)]
pub struct Contents {
    root: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Contents {
    /// # Errors
    /// When a file cannot be read, or the key can be read by others.
    pub fn read(files: &UserFiles) -> Result<Self, FileError> {
        Ok(Self {
            root: files::read(&files.root)?,
            certificate: files::read(&files.certificate)?,
            key: files::read_private(&files.key)?,
        })
    }

    /// # Errors
    /// When they are garbage or do not belong together; says which file it is.
    pub fn trust(&self, files: &UserFiles, now: i64) -> Result<Trust, Error> {
        let damaged = |path: &std::path::Path, reason: String| Error::Damaged {
            path: path.to_owned(),
            reason,
        };
        let in_root = |reason| damaged(&files.root, reason);
        let ders = certificates(&self.root).map_err(in_root)?.into_iter();
        let roots = ders.map(Root::read).collect::<Result<_, _>>().map_err(in_root)?;
        let in_path = |reason| damaged(&files.certificate, reason);
        let path = certificates(&self.certificate).map_err(in_path)?;
        let key = root::key_pair(&self.key).map_err(|reason| damaged(&files.key, reason))?;
        Trust::assemble(roots, path, key, now).map_err(in_path)
    }
}

fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let found = found.map_err(|error| format!("not PEM: {error}"))?;
    match found.len() {
        0 => Err("no certificate in PEM".into()),
        1..=MAX_PATH => Ok(found),
        count => Err(format!("{count} certificates, at most {MAX_PATH} are possible")),
    }
}
