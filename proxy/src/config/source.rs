//! Where resources come from: a file, or a control plane. Both speak to the configuration task in [`Update`]s.

pub mod control_plane;
pub mod file;

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesOrdered};
use leno_api::Key;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

pub use super::pack::{Item, Packer};
use super::prepare::Roster;
use control_plane::{Command, Link};

/// Updates waiting for the configuration task; a source that is faster waits.
pub const MAX_WAITING: usize = 16;

/// The least time between two reports of what plugins run: what changes more often is told together.
const REPORT_PLUGINS_EVERY: Duration = Duration::from_secs(1);

/// What a source tells the configuration task.
#[derive(Debug)]
pub enum Update {
    /// Resources that came, changed or went.
    Changed(Change),
    /// The control plane can be reached.
    Connected,
    /// The control plane cannot be reached; the reason is for people.
    Disconnected(String),
}

/// One change: it is put in force as a whole.
#[derive(Debug, Default)]
pub struct Change {
    /// New or newer.
    pub upserts: Vec<Item>,
    /// Gone.
    pub removed: Vec<Key>,
    /// Hosts (lower case) and whether a service answers to them now; `None`: to be asked for again.
    pub hosts: Vec<(String, Option<bool>)>,
    /// Resources that cannot be used, with the reason. Their last good version stays.
    pub rejected: Vec<(Name, String)>,
    /// Told when the change is in force, and what of it is not, with the reason.
    pub live: Option<oneshot::Sender<Vec<(Key, String)>>>,
}

/// What a resource that could not be read is called: `HTTPRoute shop/orders`, as far as it is known.
pub type Name = String;

/// What the proxy asks of the control plane.
#[derive(Debug)]
pub struct Wishes {
    /// Hosts that callers want.
    pub hosts: mpsc::Receiver<String>,
    /// Resources of which something else has become than was said.
    pub again: mpsc::Receiver<Key>,
    /// What plugins run, which it is told.
    pub plugins: Arc<Roster>,
}

/// Stands between the control plane's link and the configuration task: hands changes over, acknowledges them once they
/// are in force, passes on what is wished for, and says goodbye when the proxy is `stopped`. A change that waits for
/// its plugins does not keep the next one from being handed over.
pub async fn follow(
    mut link: Link,
    updates: mpsc::Sender<Update>,
    mut wishes: Wishes,
    mut stopped: watch::Receiver<bool>,
) {
    // In order: the verdict on a newer version of a resource is the later one.
    let mut verdicts = FuturesOrdered::new();
    let (mut running, mut report_at) = (wishes.plugins.subscribe(), Instant::now());
    // Of what was known at the start nobody has been told yet.
    running.mark_changed();
    loop {
        let reporting = async {
            sleep_until(report_at).await;
            running.changed().await
        };
        let command = tokio::select! {
            update = link.updates.recv() => {
                let Some(update) = update else { return };
                match hand_over(update, &updates).await {
                    Handed::Gone => return,
                    Handed::Changed(id, live) => {
                        verdicts.push_back(async move { (id, live.await) });
                        continue;
                    }
                    Handed::Nothing => continue,
                }
            }
            Some((id, verdict)) = verdicts.next() => match verdict {
                Ok(rejected) => Command::Verdict { id, rejected },
                Err(_) => return,
            },
            Some(host) = wishes.hosts.recv() => Command::Subscribe { host },
            Some(key) = wishes.again.recv() => Command::Again { key },
            Ok(()) = reporting => {
                report_at = Instant::now() + REPORT_PLUGINS_EVERY;
                Command::Running { plugins: wishes.plugins.running() }
            }
            // Also when nobody can stop us any more: then the proxy is ending.
            _ = stopped.wait_for(|stopped| *stopped) => {
                let _ = link.commands.send(Command::Goodbye).await;
                // The link ends once the goodbye has been sent.
                while link.updates.recv().await.is_some() {}
                return;
            }
        };
        if link.commands.send(command).await.is_err() {
            return;
        }
    }
}

enum Handed {
    Nothing,
    Changed(u64, oneshot::Receiver<Vec<(Key, String)>>),
    Gone,
}

async fn hand_over(update: control_plane::Update, updates: &mpsc::Sender<Update>) -> Handed {
    let (update, live) = match update {
        control_plane::Update::Connected => (Update::Connected, None),
        control_plane::Update::Disconnected { reason } => (Update::Disconnected(reason), None),
        control_plane::Update::Changed(change) => {
            let (live, is_live) = oneshot::channel();
            let id = change.id;
            let said =
                |hosts: Vec<String>, answer| hosts.into_iter().map(move |host| (host, answer));
            let hosts = said(change.present_hosts, Some(true))
                .chain(said(change.absent_hosts, Some(false)))
                .chain(said(change.forgotten_hosts, None));
            let rejected =
                change.invalid.into_iter().map(|(key, reason)| (key.to_string(), reason));
            let change = Change {
                upserts: change.upserts,
                removed: change.removed,
                hosts: hosts.collect(),
                rejected: rejected.collect(),
                live: Some(live),
            };
            (Update::Changed(change), Some((id, is_live)))
        }
    };
    if updates.send(update).await.is_err() {
        return Handed::Gone;
    }
    match live {
        None => Handed::Nothing,
        Some((id, live)) => Handed::Changed(id, live),
    }
}
