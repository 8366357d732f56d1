//! The TLS of our own ports: a certificate of the control plane's identity, made in memory, and whom it lets in.

use std::{sync::Arc, time::Duration};

use leno_api::model::identity::SpiffeId;
use rcgen::KeyPair;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::{TLS12, TLS13},
};

use super::{
    Error,
    issue::{self, Terms},
    root::Trust,
};

/// What HTTP/2 and HTTP/1.1 are called in ALPN.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// A configuration and how long it is good.
#[derive(Debug)]
pub struct Serving {
    pub config: Arc<ServerConfig>,
    /// Unix seconds.
    pub made: i64,
    pub renew: i64,
    pub not_after: i64,
}

/// Key and certificate of one of our own ports.
#[derive(Debug)]
pub struct PortCertificate {
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    /// Unix seconds.
    pub not_after: i64,
}

impl PortCertificate {
    /// Makes both.
    ///
    /// # Errors
    /// When the signer is at its end, or a host is not a name.
    pub(super) fn new(
        trust: &Trust,
        id: &SpiffeId,
        hosts: &[String],
        ttl: Duration,
        now: i64,
    ) -> Result<Self, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Serving(error.to_string());
        let key = KeyPair::generate().map_err(|error| failed(&error))?;
        let terms = Terms { serial: rand::random(), now, ttl };
        let leaf = trust.signer.server(&key, id, hosts, terms).map_err(|error| failed(&error))?;
        let mut chain = vec![leaf.der];
        chain.extend(trust.signer.chain.iter().cloned());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(Self { chain, key, not_after: leaf.not_after })
    }
}

impl Serving {
    /// Makes key and certificate. Callers may show a certificate, and then one that verifies under the trusted roots.
    ///
    /// # Errors
    /// When the signer is at its end, or a host is not a name.
    pub fn new(
        trust: &Trust,
        id: &SpiffeId,
        hosts: &[String],
        ttl: Duration,
        now: i64,
    ) -> Result<Self, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Serving(error.to_string());
        let own = PortCertificate::new(trust, id, hosts, ttl, now)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let roots = trust.store().map_err(|error| failed(&error))?;
        let clients = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|error| failed(&error))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| failed(&error))?
            .with_client_cert_verifier(clients)
            .with_single_cert(own.chain, own.key)
            .map_err(|error| failed(&error))?;
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
        // A resumed session would bring back a client certificate that was verified long ago, and such connections are
        // few: proxies keep theirs.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let renew = now + (own.not_after - now) * 2 / 3;
        Ok(Self { config: Arc::new(config), made: now, renew, not_after: own.not_after })
    }

    /// At two thirds of its life, or when the clock went back to before it was valid.
    pub fn is_due(&self, now: i64) -> bool {
        now >= self.renew || now < self.made - issue::seconds(issue::SKEW)
    }
}
