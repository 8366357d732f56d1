//! Who this proxy is: asks for a certificate, renews it, publishes it together with the roots to trust.
//!
//! ```text
//! control plane | files | SPIFFE Workload API ─▶ task on the side thread ─▶ Identity ─▶ handshakes (lock-free)
//!                                     TrustBundle (configuration) ─▶ trust ─╯
//! ```
//!
//! The old certificate stays until there is a better one. What goes wrong is in the status, the log, the metrics and, when
//! little of the certificate's life is left, in the readiness answer; the key is in none of them.
//!
//! - `schedule.rs`: when to renew, to try again, to warn
//! - `control_plane.rs`: own key, signing request; also the TLS connection to the control plane
//! - `files.rs`: certificate, key and roots that somebody else puts there
//! - `workload_api.rs`: SPIRE and its like

pub mod control_plane;
pub mod files;
mod schedule;
mod status;
mod workload_api;

pub use files::Files;
pub use status::Status;

use std::{
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use leno_api::model::{identity::TrustDomain, trust_bundle::TrustBundle};
use prometheus::{IntCounterVec, IntGauge};
use rustls::pki_types::CertificateDer;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use crate::{
    telemetry::metrics::Families,
    tls::{self, Credentials},
};
use schedule::Life;
use status::State;

/// The wall clock is looked at this often: it may be set, and machines sleep.
const TICK: Duration = Duration::from_secs(30);

/// Where the certificate comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Our own certificate authority.
    ControlPlane(control_plane::Options),
    /// Files that are read again when they change.
    Files(Files),
    /// A SPIFFE Workload API.
    WorkloadApi {
        /// Path of its Unix socket, also as `unix:/path`.
        socket: PathBuf,
    },
}

/// Why there is no identity; all of it is found at start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The files cannot be used.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// The bootstrap bundle cannot be used.
    #[error(transparent)]
    Bootstrap(#[from] control_plane::BootstrapError),
}

/// The identity of this proxy, shared by everything that needs it.
#[derive(Debug)]
pub struct Identity {
    source: Option<&'static str>,
    current: ArcSwapOption<Credentials>,
    changes: watch::Sender<u64>,
    /// The control plane's, once one was believed: no other is from then on.
    pinned: OnceLock<TrustDomain>,
    state: Mutex<State>,
    wake: Notify,
    renewal_asked: AtomicBool,
    metrics: Option<Metrics>,
}

#[derive(Debug)]
struct Metrics {
    expiry: IntGauge,
    renewals: IntCounterVec,
}

/// To be run on the side thread; never ends.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The identity from `source`, and the task that keeps it fresh. Files are read at once; other sources answer later.
///
/// # Errors
/// When files that were named cannot be used.
pub fn start(source: Source, families: &Families) -> Result<(Arc<Identity>, Task), Error> {
    let name = match source {
        Source::ControlPlane(_) => "control-plane",
        Source::Files(_) => "files",
        Source::WorkloadApi { .. } => "workload-api",
    };
    let metrics = Metrics {
        expiry: families.certificate_expiry.clone(),
        renewals: families.certificate_renewals.clone(),
    };
    let identity = Arc::new(Identity::new(Some(name), Some(metrics)));
    let task: Task = match source {
        Source::ControlPlane(options) => {
            options.check()?;
            Box::pin(control_plane::run(identity.clone(), options))
        }
        Source::Files(files) => Box::pin(files.start(identity.clone())?),
        Source::WorkloadApi { socket } => Box::pin(workload_api::run(identity.clone(), socket)),
    };
    Ok((identity, task))
}

impl Identity {
    fn new(source: Option<&'static str>, metrics: Option<Metrics>) -> Self {
        Self {
            source,
            current: ArcSwapOption::empty(),
            changes: watch::channel(0).0,
            pinned: OnceLock::new(),
            state: Mutex::default(),
            wake: Notify::new(),
            renewal_asked: AtomicBool::new(false),
            metrics,
        }
    }

    /// Of a proxy that was given no source: it has no identity, and never will.
    pub fn none() -> Arc<Self> {
        Arc::new(Self::new(None, None))
    }

    /// Whether there is a source. If so, the proxy must not speak plain where a certificate is expected of it, also
    /// not before there is one.
    pub fn is_expected(&self) -> bool {
        self.source.is_some()
    }

    /// What to do handshakes with now. Lock-free.
    pub fn current(&self) -> Option<Arc<Credentials>> {
        self.current.load_full()
    }

    /// The generation of the credentials in use; 0 before there are any.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The mesh we belong to, as soon as that is known.
    pub fn trust_domain(&self) -> Option<TrustDomain> {
        let current = self.current();
        let of_current = current.map(|credentials| credentials.trust_domain().clone());
        of_current.or_else(|| self.pinned.get().cloned())
    }

    /// Trusts what the mesh trusts from now on. Only where the control plane is the source: otherwise the roots come with
    /// the certificate.
    ///
    /// # Errors
    /// Why it cannot be used; what was trusted before stays. Whoever sent it must be told: a rotation waits until everybody
    /// has the new root.
    pub fn trust(&self, bundle: &TrustBundle) -> Result<(), String> {
        if self.source != Some("control-plane") {
            return Ok(());
        }
        if let Some(own) = self.trust_domain().filter(|own| *own != bundle.trust_domain) {
            let theirs = &bundle.trust_domain;
            return Err(format!("it is of trust domain {theirs}, and this proxy belongs to {own}"));
        }
        let mut state = self.state();
        let roots: Vec<_> =
            bundle.roots.iter().map(|root| CertificateDer::from(root.to_vec())).collect();
        if let Some(current) = self.current()
            && let Some(credentials) =
                retrusted(&current, roots.clone()).map_err(|error| error.to_string())?
        {
            tracing::info!("{} roots are trusted", credentials.roots().len());
            self.publish(credentials);
        }
        state.bundle = Some(status::Bundle { roots, signer: bundle.signer.clone() });
        state.bundles += 1;
        drop(state);
        if self.is_signer_outdated() {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Asks for a new certificate now.
    pub fn renew(&self) {
        self.renewal_asked.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// For people.
    pub fn status(&self) -> Status {
        Status::of(self.source, self.current().as_deref(), &self.state(), now())
    }

    /// What to shout about: the certificate is about to expire, or has. `None` when all is well, or nothing is expected.
    pub fn warning(&self) -> Option<String> {
        let life = self.state().life?;
        let now = now();
        if !life.is_ending(now) {
            return None;
        }
        let left = life.not_after.saturating_sub(now).as_secs();
        let state = self.state();
        let why = state.last_error.as_deref().unwrap_or("its renewal is due");
        Some(match left {
            0 => format!("the certificate has expired: {why}"),
            _ => format!("the certificate expires in {left} s: {why}"),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the mesh issues certificates under another root than that of ours.
    fn is_signer_outdated(&self) -> bool {
        let state = self.state();
        let wanted = state.bundle.as_ref().map(|bundle| &bundle.signer);
        wanted.zip(state.signer.as_ref()).is_some_and(|(wanted, ours)| wanted != ours)
    }

    /// A new certificate is there. `signer` is the root under which it was issued, where that is known.
    fn renewed(&self, credentials: Credentials, signer: Option<String>) {
        let mut state = self.state();
        state.life = Some(Life::new(now(), credentials.not_after()));
        state.signer = signer;
        state.renewals += 1;
        state.last_error = None;
        tracing::info!(
            id = %credentials.id(), serial = credentials.serial(), not_after = credentials.not_after(),
            "a new certificate is in use"
        );
        self.publish(credentials);
        drop(state);
        self.count("ok");
    }

    /// There is none; the old one stays.
    fn failed(&self, reason: String) {
        let mut state = self.state();
        let left = state.life.map(|life| life.not_after.saturating_sub(now()).as_secs());
        // The same again and again is said once; the reminders go on.
        match left {
            _ if state.last_error.as_ref() == Some(&reason) => tracing::debug!("{reason}"),
            Some(left) => {
                tracing::warn!("no new certificate ({left} s left of the old one): {reason}");
            }
            None => tracing::warn!("no certificate yet: {reason}"),
        }
        state.last_error = Some(reason);
        drop(state);
        self.count("error");
    }

    /// What was wrong is not any more, and what is in use is still the right thing.
    fn recovered(&self) {
        self.state().last_error = None;
    }

    fn count(&self, result: &str) {
        if let Some(metrics) = &self.metrics {
            metrics.renewals.with_label_values(&[result]).inc();
        }
    }

    /// Called with the state held, so that what is published last is what was made last.
    fn publish(&self, credentials: Credentials) {
        if let Some(metrics) = &self.metrics {
            metrics.expiry.set(credentials.not_after());
        }
        let generation = credentials.generation();
        self.current.store(Some(Arc::new(credentials)));
        self.changes.send_replace(generation);
    }

    /// Logs, at most once a minute, that the certificate is about to expire.
    fn remind(&self) {
        let Some(warning) = self.warning() else { return };
        if self.state().remind(now()) {
            tracing::error!("{warning}");
        }
    }

    /// Waits until `due` or until somebody asks for a renewal, by the wall clock, and shouts meanwhile where needed.
    async fn wait(&self, due: Duration) -> Woken {
        let mut last = now();
        loop {
            self.remind();
            if self.renewal_asked.swap(false, Ordering::Relaxed) {
                return Woken::Asked;
            }
            let now = now();
            // A clock that was set back makes `due` a moment of another time.
            if now >= due || now + TICK < last {
                return Woken::Due;
            }
            last = now;
            let woken = timeout((due - now).min(TICK), self.wake.notified()).await.is_ok();
            if woken && self.is_signer_outdated() {
                return Woken::Due;
            }
        }
    }
}

/// Why a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    /// It is time.
    Due,
    /// Somebody wants it now.
    Asked,
}

/// The same certificate with other roots; nothing where they are the same.
fn retrusted(
    current: &Credentials,
    roots: Vec<CertificateDer<'static>>,
) -> Result<Option<Credentials>, tls::Error> {
    let credentials = current.with_roots(roots)?;
    let same = credentials.root_fingerprints() == current.root_fingerprints();
    Ok((!same).then_some(credentials))
}

/// Since the Unix epoch; nothing before it is meant seriously.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests;
