//! Configuration from the control plane, by incremental xDS.
//!
//! ```text
//! control plane ◀─ requests ── stream ◀─ Mirror (pure) ◀─ Command ── config task
//!               ── responses ─▶ stream ─▶ Mirror        ─▶ Update ──▶ config task
//! ```
//!
//! A round of responses becomes one [`Change`]; it is acknowledged when the config task says that it is live,
//! and what the task or the parser refused is named in the rejection. When the stream breaks, the proxy goes on
//! with what it has and comes back with jittered backoff, saying what it has, so that only differences travel.
//!
//! - `mirror.rs`: what is asked for, what is held in which version, which rounds wait for a verdict
//! - `stream.rs`: one connection, from its first request to its end
//! - `message.rs`: what requests look like
//! - [`quota`], [`purge`]: beside xDS: shares of the rate limits that proxies have together; what our caches are to forget

#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod message;
mod mirror;
pub mod purge;
pub mod quota;
mod stream;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use leno_api::{Key, model::ObjectName};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use self::{mirror::Mirror, stream::Ended};
use super::Item;
use crate::config::prepare::Running;
use crate::identity::{Identity, control_plane::Connector};

/// The first reconnect comes after at most this, each further one after at most twice as long.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// The longest wait between two attempts to connect.
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// Updates that wait for the config task before no more are read from the stream.
const UPDATES: usize = 8;
/// Commands that wait for the source.
const COMMANDS: usize = 256;

/// Where the control plane is, and who asks.
#[derive(Clone, Debug)]
pub struct Options {
    /// `127.0.0.1:15012`, or a name with a port.
    pub address: String,
    /// How it is spoken to.
    pub access: Access,
    /// What people know the proxy by.
    pub id: String,
    /// Where short host names are looked up.
    pub namespace: String,
    /// The proxy's own `Workload` as JSON, to be registered for as long as it is connected.
    pub workload: Option<serde_json::Value>,
    /// How long the workload stays when the connection breaks.
    pub lease: Duration,
    /// Services needed from the start.
    pub services: Vec<ObjectName>,
    /// From the last run: what is held already, with its versions.
    pub held: Vec<(Key, String)>,
    /// From the last run: hosts asked for.
    pub hosts: Vec<String>,
}

/// How the control plane is spoken to, and who it is told we are.
#[derive(Clone, Debug)]
pub enum Access {
    /// Plain, on this machine.
    Plain {
        /// Read anew for each connection, so that it can be rotated.
        token_file: Option<PathBuf>,
    },
    /// Over TLS with our certificate, which is waited for; the token is for the first certificate only.
    Secured {
        /// Where the certificate comes from.
        identity: Arc<Identity>,
        /// Makes the connections.
        connector: Connector,
    },
}

/// What the source tells the config task.
#[derive(Debug)]
pub enum Update {
    /// Something is different; answer with [`Command::Verdict`].
    Changed(Change),
    /// A stream is open; what follows brings us up to date.
    Connected,
    /// The stream broke, or could not be opened; the source goes on trying.
    Disconnected {
        /// For the log.
        reason: String,
    },
}

/// One consistent change.
#[derive(Debug, Default)]
pub struct Change {
    /// For the verdict.
    pub id: u64,
    /// New and changed resources, valid each by itself, with their versions; referred before referring.
    pub upserts: Vec<Item>,
    /// Resources that are gone, or no longer concern this proxy. Some may never have been here.
    pub removed: Vec<Key>,
    /// Resources that are not valid, with the reason: their last good version stays. Already on their way
    /// into the rejection; here for log and metrics.
    pub invalid: Vec<(Key, String)>,
    /// Hosts asked for to which services of this or an earlier change answer.
    pub present_hosts: Vec<String>,
    /// Hosts asked for to which no service answers.
    pub absent_hosts: Vec<String>,
    /// Hosts of which no more is known, since there are too many: to be asked for again at next use.
    pub forgotten_hosts: Vec<String>,
}

/// What the config task tells the source.
#[derive(Debug)]
pub enum Command {
    /// An application calls `host` (lower case, without port) for the first time. Every host is asked for,
    /// even if a service of that name is known: it may be known as a backend only, without its routes.
    Subscribe {
        /// As called.
        host: String,
    },
    /// A change is live, all but what is named.
    Verdict {
        /// Of the change.
        id: u64,
        /// What could not be made live, and why.
        rejected: Vec<(Key, String)>,
    },
    /// Something else has become of a resource than the verdict said: it is asked for again, so that the next verdict
    /// says what.
    Again {
        /// Which one.
        key: Key,
    },
    /// Which versions of plugins run here now. The control plane is told what of it is new to it.
    Running {
        /// All of them.
        plugins: BTreeMap<ObjectName, Running>,
    },
    /// The proxy is about to end: its workload is taken out at once. The source ends, too.
    Goodbye,
}

/// The config task's end.
#[derive(Debug)]
pub struct Link {
    /// Ends when the source has ended.
    pub updates: mpsc::Receiver<Update>,
    /// Dropping it ends the source, without a goodbye.
    pub commands: mpsc::Sender<Command>,
}

/// The source itself: to be run as one task.
#[derive(Debug)]
pub struct ControlPlaneSource {
    options: Options,
    mirror: Mirror,
    channels: Channels,
}

/// The source's end.
#[derive(Debug)]
struct Channels {
    updates: mpsc::Sender<Update>,
    commands: mpsc::Receiver<Command>,
}

impl ControlPlaneSource {
    /// A source and the link to it. Nothing happens before [`ControlPlaneSource::run`].
    pub fn new(options: Options) -> (Self, Link) {
        let (update_sender, updates) = mpsc::channel(UPDATES);
        let (commands, command_queue) = mpsc::channel(COMMANDS);
        let mirror = Mirror::new(
            options.namespace.clone(),
            options.services.clone(),
            options.hosts.clone(),
            options.held.clone(),
        );
        let channels = Channels { updates: update_sender, commands: command_queue };
        (Self { options, mirror, channels }, Link { updates, commands })
    }

    /// Connects, follows, reconnects, until the config task says goodbye or is gone.
    pub async fn run(mut self) {
        let mut failures = 0;
        loop {
            let ended =
                stream::follow(&self.options, &mut self.mirror, &mut self.channels, &mut failures)
                    .await;
            let reason = match ended {
                Ended::Over => return,
                Ended::Broken(reason) => reason,
            };
            self.mirror.disconnected();
            let update = Update::Disconnected { reason };
            let wait = backoff(failures, rand::random());
            failures = failures.saturating_add(1);
            if !self.wait(Instant::now() + wait, update).await {
                return;
            }
        }
    }

    /// Waits for the next attempt while the config task goes on talking; false when that is over. Not before
    /// the last verdict is in: what is live, or is about to be, must be claimed on the next stream, or nobody
    /// would ever take it away.
    async fn wait(&mut self, until: Instant, update: Update) -> bool {
        let mut update = Some(update);
        loop {
            let answers = self.mirror.has_updates();
            let idle = update.is_none() && !answers && self.mirror.is_judged();
            tokio::select! {
                () = sleep_until(until), if idle => return true,
                permit = self.channels.updates.reserve(), if update.is_some() || answers => {
                    let Ok(permit) = permit else { return false };
                    if let Some(next) = update.take().or_else(|| self.mirror.next_update()) {
                        permit.send(next);
                    }
                }
                command = self.channels.commands.recv() => match command {
                    Some(Command::Goodbye) | None => return false,
                    Some(command) => self.mirror.obey(command),
                },
            }
        }
    }
}

/// How long to wait after `failures` attempts in a row. `random` is in 0..1: half of the wait is by chance, so
/// that the proxies of a mesh do not come back all at once.
fn backoff(failures: u32, random: f64) -> Duration {
    let whole = FIRST_BACKOFF.saturating_mul(1 << failures.min(16)).min(MAX_BACKOFF);
    whole.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}
