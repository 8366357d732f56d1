//! What people are told about the identity.

use std::time::Duration;

use rustls::pki_types::CertificateDer;
use serde::Serialize;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::schedule::Life;
use crate::tls::{Credentials, credentials::fingerprint};

/// Between two reminders in the log.
const REMIND_EVERY: Duration = Duration::from_mins(1);
const DAY_SECONDS: i64 = 86_400;

/// For `/certs`.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// `control-plane`, `files`, `workload-api`, or `none`.
    pub source: &'static str,
    /// Our SPIFFE ID; the rest is empty, too, while there is no certificate.
    pub id: Option<String>,
    /// Of the certificate, lower-case hex.
    pub serial: Option<String>,
    /// Unix seconds.
    pub not_before: Option<i64>,
    /// Unix seconds.
    pub not_after: Option<i64>,
    /// Whole days; negative when it has expired.
    pub days_until_expiration: Option<i64>,
    /// What is trusted.
    pub roots: Vec<Root>,
    /// Certificates obtained since the start, the first included.
    pub renewals: u64,
    /// Why the last attempt failed; empty when it did not.
    pub last_error: Option<String>,
}

/// One trusted root.
#[derive(Clone, Debug, Serialize)]
pub struct Root {
    /// SHA-256 of its DER, lower-case hex.
    pub fingerprint: String,
    /// Whose it says it is.
    pub subject: String,
    /// Unix seconds.
    pub not_after: i64,
}

/// What is known beside the credentials themselves.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Of the certificate in use.
    pub(super) life: Option<Life>,
    /// Fingerprint of the root under which it was issued, where the authority said so.
    pub(super) signer: Option<String>,
    /// The last trust bundle, and how many there have been.
    pub(super) bundle: Option<Bundle>,
    pub(super) bundles: u64,
    pub(super) renewals: u64,
    pub(super) last_error: Option<String>,
    reminded: Option<Duration>,
}

/// A trust bundle as it came.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) signer: String,
}

impl State {
    /// Whether it is time for a line in the log. A clock that was set back is no reason for silence.
    pub(super) fn remind(&mut self, now: Duration) -> bool {
        let recently = self.reminded.is_some_and(|at| now >= at && now - at < REMIND_EVERY);
        if !recently {
            self.reminded = Some(now);
        }
        !recently
    }
}

impl Status {
    pub(super) fn of(
        source: Option<&'static str>,
        credentials: Option<&Credentials>,
        state: &State,
        now: Duration,
    ) -> Self {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let not_after = credentials.map(Credentials::not_after);
        Self {
            source: source.unwrap_or("none"),
            id: credentials.map(|credentials| credentials.id().to_string()),
            serial: credentials.map(|credentials| credentials.serial().to_owned()),
            not_before: credentials.map(Credentials::not_before),
            not_after,
            days_until_expiration: not_after
                .map(|end| end.saturating_sub(now).div_euclid(DAY_SECONDS)),
            roots: credentials.map_or_else(Vec::new, roots),
            renewals: state.renewals,
            last_error: state.last_error.clone(),
        }
    }
}

fn roots(credentials: &Credentials) -> Vec<Root> {
    let root = |der: &CertificateDer<'_>| {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        Some(Root {
            fingerprint: fingerprint(der),
            subject: parsed.subject().to_string().escape_debug().to_string(),
            not_after: parsed.validity().not_after.timestamp(),
        })
    };
    credentials.roots().iter().filter_map(root).collect()
}
