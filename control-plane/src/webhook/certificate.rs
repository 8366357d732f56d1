//! The certificate of the webhook's port. The authority renews the one of our other ports in time, and with each new
//! root; whenever it does, this one is made anew, too.

use std::{path::PathBuf, sync::Arc, time::Duration};

use prometheus::IntGauge;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};
use tokio::{sync::watch, time::timeout};

use super::Error;
use crate::ca::Authority;

const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// After a certificate that could not be made.
const RETRY: Duration = Duration::from_secs(5);

/// Keeps the port's certificate.
pub(super) struct Certificates {
    authority: Arc<Authority>,
    hosts: Vec<String>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    config: watch::Sender<Arc<ServerConfig>>,
    bundle: watch::Sender<Arc<str>>,
    expiry: IntGauge,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

impl Certificates {
    pub fn new(
        authority: Arc<Authority>,
        hosts: Vec<String>,
        client_ca: Option<PathBuf>,
        expiry: IntGauge,
    ) -> Result<Self, Error> {
        let clients = client_ca.map(verifier).transpose()?;
        let config = server_config(&authority, &hosts, clients.as_ref(), &expiry);
        let config = config.map_err(Error::Certificate)?;
        let bundle = watch::Sender::new(authority.bundle_pem().into());
        let config = watch::Sender::new(config);
        Ok(Self { authority, hosts, clients, config, bundle, expiry })
    }

    pub fn config(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.config.subscribe()
    }

    pub fn bundle(&self) -> watch::Receiver<Arc<str>> {
        self.bundle.subscribe()
    }

    /// Renews; ends only with the authority.
    pub async fn run(self) {
        let mut authority = self.authority.server();
        // What changed between the making and now is seen by the first turn.
        let mut due = true;
        loop {
            due = due && !self.renew();
            let changed = match due {
                true => timeout(RETRY, authority.changed()).await.unwrap_or(Ok(())),
                false => authority.changed().await,
            };
            if changed.is_err() {
                return;
            }
            due = true;
        }
    }

    /// Whether there is a new one.
    fn renew(&self) -> bool {
        // The roots first: whoever checks must know the new one before it is shown.
        let bundle: Arc<str> = self.authority.bundle_pem().into();
        self.bundle.send_if_modified(|known| {
            let changed = *known != bundle;
            *known = bundle;
            changed
        });
        match server_config(&self.authority, &self.hosts, self.clients.as_ref(), &self.expiry) {
            Ok(config) => {
                self.config.send_replace(config);
                true
            }
            Err(reason) => {
                tracing::error!(reason, "the webhook keeps the certificate it has");
                false
            }
        }
    }
}

fn verifier(path: PathBuf) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let wrong = |reason: String| Error::ClientCa { path: path.clone(), reason };
    let text = std::fs::read(&path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| wrong(format!("is not PEM: {error}")))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("has no certificate".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    // Whoever shows none is told so in words, not by a broken handshake.
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .map_err(|error| wrong(error.to_string()))
}

fn server_config(
    authority: &Authority,
    hosts: &[String],
    clients: Option<&Arc<dyn ClientCertVerifier>>,
    expiry: &IntGauge,
) -> Result<Arc<ServerConfig>, String> {
    let own = authority.port_certificate(hosts).map_err(|error| error.to_string())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| error.to_string())?;
    let builder = match clients {
        Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
        None => builder.with_no_client_auth(),
    };
    let config = builder.with_single_cert(own.chain, own.key);
    let mut config = config.map_err(|error| error.to_string())?;
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    // The API server keeps its connections; resumed ones would show old certificates.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    expiry.set(own.not_after);
    Ok(Arc::new(config))
}
