//! The port that the Kubernetes API server asks about pods and resources before they are made: admission webhooks.
//!
//! ```text
//! API server ══ TLS ══▶ serve.rs ─▶ /inject   ─▶ inject::review::mutate   (pure)
//!                                ╰▶ /validate ─▶ inject::review::validate (pure)
//! ```
//!
//! - `certificate.rs`: the port's certificate, issued by our own authority and renewed with its others; the roots by
//!   which the API server knows it ([`Webhook::bundle`]: `caBundle` of the webhook configurations)
//! - `serve.rs`: connections and requests, bounded
//! - `metrics.rs`

mod certificate;
mod metrics;
mod serve;

use std::{path::PathBuf, sync::Arc};

use tokio::{net::TcpListener, sync::watch};

use self::{certificate::Certificates, metrics::Metrics};
use crate::{ca::Authority, findings::Findings, inject};

/// What the port is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names under which it is called, beside those of our other ports.
    pub hosts: Vec<String>,
    /// Roots of callers' certificates; without them nobody is asked for one.
    pub client_ca: Option<PathBuf>,
    /// What sidecars are like.
    pub inject: inject::Settings,
}

/// Why the port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file of `--webhook-client-ca`.
    #[error(
        "{path}: {reason}. It must have the certificates, as PEM, of who certifies the API server's client certificate"
    )]
    ClientCa {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No certificate for the port.
    #[error("the webhook's certificate cannot be made: {0}")]
    Certificate(String),
    /// Metrics; only when a name is registered twice.
    #[error("cannot set up metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// The port, ready to be served.
#[derive(Debug)]
pub struct Webhook {
    listener: TcpListener,
    certificates: Certificates,
    shared: Arc<serve::Shared>,
}

impl Webhook {
    /// Makes the port's certificate.
    ///
    /// # Errors
    /// [`Error`] says what cannot be used.
    pub fn open(
        listener: TcpListener,
        options: Options,
        authority: Arc<Authority>,
        findings: Arc<Findings>,
        registry: &prometheus::Registry,
    ) -> Result<Self, Error> {
        let metrics = Metrics::register(registry)?;
        let proof = options.client_ca.is_some();
        let expiry = metrics.expiry.clone();
        let certificates = Certificates::new(authority, options.hosts, options.client_ca, expiry)?;
        let settings = options.inject;
        let shared = Arc::new(serve::Shared { settings, findings, metrics, proof });
        Ok(Self { listener, certificates, shared })
    }

    /// The roots by which callers know this port, as PEM, and every change of them.
    pub fn bundle(&self) -> watch::Receiver<Arc<str>> {
        self.certificates.bundle()
    }

    /// Serves until told to stop, and renews the certificate meanwhile.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let Self { listener, certificates, shared } = self;
        let config = certificates.config();
        tokio::select! {
            () = serve::run(listener, config, shared, stop) => {}
            () = certificates.run() => {}
        }
    }
}
