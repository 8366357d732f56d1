//! Why a connection is not served; counting and logging that.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{ca::PeerError, telemetry::Metrics};

/// The least time between two log lines for one reason: whoever connects without end fills no disk.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("{most} connections are half open already")]
    Busy { most: usize },
    #[error("neither a request nor a finished TLS handshake within {} s", limit.as_secs())]
    Timeout { limit: Duration },
    #[error(
        "it speaks plain text, and this port speaks TLS: call it with https:// and trust root.pem of the data directory"
    )]
    Plain,
    /// It said nothing at all: a port scanner, or a health check.
    #[error("it ended before it began")]
    Gone,
    #[error("its certificate is not accepted: {0}")]
    Certificate(rustls::Error),
    #[error("it does not accept our certificate or has none to show: {0}")]
    Alert(rustls::Error),
    #[error("the TLS handshake failed: {0}")]
    Protocol(rustls::Error),
    #[error("the TLS handshake broke off: {0}")]
    Broken(io::Error),
    #[error("its certificate names nobody of this mesh: {0}")]
    Identity(PeerError),
}

/// Keeps the account of one port.
pub(super) struct Refusals {
    purpose: &'static str,
    metrics: Arc<Metrics>,
    logged: Mutex<HashMap<&'static str, Instant>>,
}

impl Refusal {
    pub(super) fn handshake(error: io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner.cloned() {
            Some(
                error @ (rustls::Error::InvalidCertificate(_)
                | rustls::Error::InvalidCertRevocationList(_)),
            ) => Self::Certificate(error),
            Some(error @ rustls::Error::AlertReceived(_)) => Self::Alert(error),
            Some(error) => Self::Protocol(error),
            None => Self::Broken(error),
        }
    }

    /// As a metric's label.
    fn reason(&self) -> &'static str {
        match self {
            Self::Busy { .. } => "busy",
            Self::Timeout { .. } => "timeout",
            Self::Plain => "plain",
            Self::Gone => "gone",
            Self::Certificate(_) => "certificate",
            Self::Alert(_) => "alert",
            Self::Protocol(_) => "protocol",
            Self::Broken(_) => "broken",
            Self::Identity(_) => "identity",
        }
    }
}

impl Refusals {
    pub(super) fn new(purpose: &'static str, metrics: Arc<Metrics>) -> Self {
        Self { purpose, metrics, logged: Mutex::default() }
    }

    /// A handshake that went well.
    pub(super) fn accepted(&self) {
        self.metrics.handshakes.with_label_values(&["ok"]).inc();
    }

    /// Counts every refusal, and logs one of each kind now and then.
    pub(super) fn note(&self, remote: SocketAddr, refusal: &Refusal) {
        let reason = refusal.reason();
        if let Refusal::Gone = refusal {
            return;
        }
        self.metrics.handshakes.with_label_values(&[reason]).inc();
        if self.is_due(reason, Instant::now()) {
            let port = self.purpose;
            tracing::warn!(port, %remote, reason = %refusal, "a connection was closed");
        } else {
            tracing::debug!(port = self.purpose, %remote, reason = %refusal, "a connection was closed");
        }
    }

    fn is_due(&self, reason: &'static str, now: Instant) -> bool {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let quiet = |last: &Instant| now.saturating_duration_since(*last) < LOG_INTERVAL;
        if logged.get(reason).is_some_and(quiet) {
            return false;
        }
        logged.insert(reason, now);
        true
    }
}
