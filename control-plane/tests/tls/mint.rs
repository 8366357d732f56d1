//! A certificate authority of the user's own, which in these tests also signs what no authority should.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use leno_control_plane::Settings;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::client::Held;

pub struct Mint {
    root: rcgen::Certificate,
    intermediate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
    key: String,
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Mint {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let root = authority("root").self_signed(&key).unwrap();
        let root_issuer = Issuer::new(authority("root"), key);
        let key = KeyPair::generate().unwrap();
        let params = authority("intermediate");
        let intermediate = params.signed_by(&key, &root_issuer).unwrap();
        let text = key.serialize_pem();
        Self { root, intermediate, issuer: Issuer::new(params, key), key: text }
    }

    /// Lets a control plane issue with it.
    pub fn install(&self, directory: &Path, settings: &mut Settings) {
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            Some(path)
        };
        settings.ca_root = write("user-root.pem", &self.root.pem());
        settings.ca_certificate = write("user-certificate.pem", &self.intermediate.pem());
        settings.ca_key = write("user-key.pem", &self.key);
    }

    pub fn root(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    /// A leaf with these URI names, and whatever else is done to it.
    pub fn leaf(&self, uris: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Held {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
        params.subject_alt_names = names.collect();
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Held {
            chain: vec![leaf.der().clone(), self.intermediate.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        }
    }
}
