//! The single writer: owns what is known, plans each change, and leaves each proxy what changed for it.
//!
//! ```text
//! store's watch ──╮                        ╭─▶ mailbox per proxy ─▶ its stream
//! streams' wishes ┼─▶ task ─▶ Planner ─▶ ──┤
//! streams' verdicts╯            ╰─ Tally ──╯─▶ status of each resource, back to the store
//! ```
//!
//! The first change goes out at once; those that follow within [`WINDOW`] go out together. A mailbox holds
//! state, not messages: a proxy that reads slowly costs no more than its scope and always gets the latest.
//!
//! - `task.rs`: the loop
//! - `mailbox.rs`: what waits for one proxy
//! - `tally.rs`: who runs what, and when to say so (pure)
//! - `report.rs`: the status as people read it, written to the store

mod mailbox;
mod report;
mod tally;
mod task;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use leno_api::Key;
use tokio::sync::{mpsc, oneshot};

pub use self::{
    mailbox::{Mailbox, Pending},
    task::Task,
};
use crate::{
    access::Member,
    findings::Findings,
    plan::{Identity, ProxyId, Verdict, Wish},
    store::Store,
    telemetry::Metrics,
};

/// Changes that come within this time of the last push wait for its end and go out together.
pub const WINDOW: Duration = Duration::from_millis(3);
/// Commands of streams that may wait for the task; a stream that has more to say waits itself.
const COMMANDS: usize = 1024;

#[derive(Debug, thiserror::Error)]
#[error("the control plane is shutting down")]
pub struct Stopped;

/// Where streams meet the single writer.
#[derive(Debug)]
pub struct Push {
    commands: mpsc::Sender<Command>,
    /// Of its own, so that leaving never waits. Holds at most one entry per connected proxy.
    gone: mpsc::UnboundedSender<ProxyId>,
    next: AtomicU64,
}

#[derive(Debug)]
enum Command {
    Connect { id: ProxyId, member: Member, identity: Identity, mailbox: Arc<Mailbox> },
    Subscribe { id: ProxyId, sequence: u64, add: Vec<Wish>, remove: Vec<Wish> },
    Verdicts { id: ProxyId, verdicts: Vec<Verdict> },
    Running { id: ProxyId, running: Vec<(Key, Option<Running>)> },
    Holders { key: Key, answer: oneshot::Sender<Holders> },
    InScope { key: Key, answer: oneshot::Sender<BTreeSet<Member>> },
}

/// What a proxy runs of an object that is code: a plugin.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Running {
    /// Of the code with its settings.
    pub version: String,
    /// SHA-256 of the code, in hexadecimal digits.
    pub digest: String,
    /// A version on trial beside it.
    pub trial: Option<String>,
}

/// Who runs an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// Every proxy with a stream, whether or not it has the object in scope.
    pub connected: BTreeSet<Member>,
    /// Those that accepted the object in this generation, on every stream that they have: replicas may share a name,
    /// and a stream that broke unseen is missed within seconds.
    pub live: BTreeSet<Member>,
    /// The generation that is planned now; 0 where there is no such object.
    pub generation: u64,
}

/// One proxy's place in the push; leaving it (drop) ends it.
#[derive(Debug)]
pub struct Connection {
    id: ProxyId,
    mailbox: Arc<Mailbox>,
    commands: mpsc::Sender<Command>,
    gone: mpsc::UnboundedSender<ProxyId>,
}

impl Push {
    /// Reads the whole store; the task must then be run for anything to move.
    pub fn new(
        store: Arc<dyn Store>,
        findings: Arc<Findings>,
        metrics: Arc<Metrics>,
    ) -> (Arc<Self>, Task) {
        let (commands, command_queue) = mpsc::channel(COMMANDS);
        let (gone, gone_queue) = mpsc::unbounded_channel();
        let task = Task::new(store, findings, metrics, command_queue, gone_queue);
        (Arc::new(Self { commands, gone, next: AtomicU64::new(1) }), task)
    }

    /// Enters a proxy.
    ///
    /// # Errors
    /// At shutdown.
    pub async fn connect(&self, member: Member, identity: Identity) -> Result<Connection, Stopped> {
        let id = ProxyId(self.next.fetch_add(1, Ordering::Relaxed));
        let mailbox = Arc::new(Mailbox::default());
        let command = Command::Connect { id, member, identity, mailbox: mailbox.clone() };
        self.commands.send(command).await.map_err(|_| Stopped)?;
        let (commands, gone) = (self.commands.clone(), self.gone.clone());
        Ok(Connection { id, mailbox, commands, gone })
    }
}

impl Push {
    /// Who runs an object now.
    ///
    /// # Errors
    /// At shutdown.
    pub async fn holders(&self, key: Key) -> Result<Holders, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::Holders { key, answer }).await.map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
    }

    /// The proxies that have an object in scope, whatever they made of it.
    ///
    /// # Errors
    /// At shutdown.
    pub async fn in_scope(&self, key: Key) -> Result<BTreeSet<Member>, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::InScope { key, answer }).await.map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
    }
}

impl Connection {
    /// Changes what the proxy asks for. [`Pending::answered`] reaches `sequence` once that is planned.
    ///
    /// # Errors
    /// At shutdown.
    pub async fn subscribe(
        &self,
        sequence: u64,
        add: Vec<Wish>,
        remove: Vec<Wish>,
    ) -> Result<(), Stopped> {
        let command = Command::Subscribe { id: self.id, sequence, add, remove };
        self.commands.send(command).await.map_err(|_| Stopped)
    }

    /// Says what the proxy made of what it was sent.
    ///
    /// # Errors
    /// At shutdown.
    pub async fn report(&self, verdicts: Vec<Verdict>) -> Result<(), Stopped> {
        if verdicts.is_empty() {
            return Ok(());
        }
        let command = Command::Verdicts { id: self.id, verdicts };
        self.commands.send(command).await.map_err(|_| Stopped)
    }

    /// Says which versions the proxy runs of objects that are code, where that changed; `None`: none any more.
    ///
    /// # Errors
    /// At shutdown.
    pub async fn runs(&self, running: Vec<(Key, Option<Running>)>) -> Result<(), Stopped> {
        if running.is_empty() {
            return Ok(());
        }
        self.commands.send(Command::Running { id: self.id, running }).await.map_err(|_| Stopped)
    }

    /// What has changed for the proxy; waits until something has. Safe to cancel.
    pub async fn changed(&self) -> Pending {
        self.mailbox.changed().await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Fails only when the task has ended, and then there is nothing to leave.
        self.gone.send(self.id).ok();
    }
}
