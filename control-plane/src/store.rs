//! Every object of the mesh, with one revision counter and a history to watch.
//!
//! ```text
//! callers ─▶ Store ─┬─▶ memory    (tests, demo)
//!                   └─▶ embedded  (redb; one writer thread, group commit, fsync before the answer)
//!                         both keep a ledger (pure: decide, apply) and hand out watches from it
//! ```
//!
//! The meaning is etcd's. Every transaction that changes something takes the next revision; an
//! object remembers the revision that created it and the one that last wrote it; a watch starts
//! after a revision and sees every later change once and in order, or is told that its revision
//! is too old. Readers are served from memory and see only what is durable.
//!
//! - `ledger.rs`: what a transaction does, decided without I/O; the bounded history
//! - `feed.rs`: the shared ledger and the watches reading from it
//! - `memory.rs`, `embedded.rs`: the two stores

mod embedded;
mod feed;
mod ledger;
mod memory;
#[cfg(test)]
mod tests;

use std::{fmt, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::Value;

pub use self::{
    embedded::EmbeddedStore,
    feed::{Batch, Watch},
    memory::MemoryStore,
};

/// Largest value that a store accepts, in bytes. Above the API's body limit (1 MiB), since the
/// server adds ownership records and status to what a user sent.
pub const MAX_VALUE_BYTES: usize = 4 * 1024 * 1024;
/// Most objects that a store holds.
pub const MAX_OBJECTS: usize = 200_000;
/// Most operations in one transaction.
pub const MAX_OPERATIONS: usize = 5_000;
/// How many changes the history keeps for watches.
pub const HISTORY_EVENTS: usize = 10_000;
/// How many bytes of objects the history keeps for watches.
pub const HISTORY_BYTES: usize = 64 * 1024 * 1024;

/// The place of an object: group and plural of its kind, namespace, name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub group: Arc<str>,
    pub plural: Arc<str>,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// An object as it stands at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub key: Key,
    /// The object as JSON, without `metadata.resourceVersion`: that is `modified`.
    pub value: Bytes,
    /// The revision that created the object.
    pub created: u64,
    /// The revision that last wrote it, its status included: `metadata.resourceVersion`.
    pub modified: u64,
    /// The revision that last wrote anything but its status: what proxies go by.
    pub content: u64,
}

/// Which objects a list or a watch is about. Empty means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Group and plural.
    pub kind: Option<(Arc<str>, Arc<str>)>,
    /// Applies only together with `kind`, or on its own to objects of every kind.
    pub namespace: Option<Arc<str>>,
}

/// What a list found, and the revision at which that was so: watch from there.
#[derive(Debug, Clone)]
pub struct Listing {
    pub items: Vec<Arc<Stored>>,
    pub revision: u64,
}

/// What must hold of an object for a write to go ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    MustNotExist,
    /// It exists and was last written at this revision.
    Exactly(u64),
    /// It exists, at whatever revision.
    Exists,
    Any,
}

/// One change within a transaction.
#[derive(Debug, Clone)]
pub enum Operation {
    Put {
        key: Key,
        value: Bytes,
        expect: Expect,
    },
    /// Deleting what is not there changes nothing, unless `expect` says that it must be there.
    Delete {
        key: Key,
        expect: Expect,
    },
    /// Replaces `status` and nothing else, provided the object still is of this `generation`.
    /// Otherwise, and where `status` is the same already, nothing happens: a status about an
    /// older specification must not be shown beside a newer one.
    Status {
        key: Key,
        generation: u64,
        status: Value,
    },
}

/// Changes that happen together or not at all, at one revision.
pub type Transaction = Vec<Operation>;

/// What a transaction did.
#[derive(Debug, Clone)]
pub struct Committed {
    /// The store's revision after the transaction; unchanged where nothing had to be written.
    pub revision: u64,
    /// Per operation: the object written, or the one deleted; `None` where nothing changed.
    pub objects: Vec<Option<Arc<Stored>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Created,
    Updated,
    /// Only `status` changed: of no interest to whoever computes configuration.
    StatusWritten,
    Deleted,
}

/// One change, as watches see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub revision: u64,
    pub change: Change,
    /// The object after the change; for a deletion, as it last was.
    pub object: Arc<Stored>,
    /// The object before the change, for an update.
    pub previous: Option<Arc<Stored>>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{key} was changed meanwhile: expected {}, found {}", Expected(*.expected), Found(*.found))]
    Conflict {
        /// Which operation of the transaction.
        operation: usize,
        key: Key,
        expected: Expect,
        found: Option<u64>,
    },
    #[error(
        "revision {requested} is too old, the history starts after revision {oldest}: list again and watch from there"
    )]
    TooOld { requested: u64, oldest: u64 },
    #[error(
        "revision {requested} does not exist yet, the store is at {current}: was its data directory replaced? List again and watch from there"
    )]
    NotYet { requested: u64, current: u64 },
    #[error("{key} is {size} bytes, more than the {MAX_VALUE_BYTES} a store accepts")]
    ValueTooLarge { key: Key, size: usize },
    #[error("the store holds {MAX_OBJECTS} objects, the most it accepts: delete some first")]
    Full,
    #[error("{count} changes in one transaction, at most {MAX_OPERATIONS} are possible: split it")]
    TransactionTooLarge { count: usize },
    #[error("{key} in the store is not a JSON object: {reason}")]
    NotJson { key: Key, reason: String },
    #[error(
        "cannot write to {path}: {reason}. Nothing of this request was stored; free disk space or check the disk, then restart the control plane"
    )]
    Disk { path: PathBuf, reason: String },
    #[error("the store is shutting down")]
    Closed,
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Why the store's file cannot be used. The file is left as it is in every case.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "cannot use {path} as the data directory: {reason}. Create it or choose another with --data-dir"
    )]
    Directory { path: PathBuf, reason: String },
    #[error(
        "another control plane is using {path}: stop it, or choose another directory with --data-dir"
    )]
    InUse { path: PathBuf },
    #[error(
        "{path} is damaged ({reason}). It was left as it is: restore it from a backup, or move it away to start with an empty store and apply your resources again"
    )]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "{path} was written by a newer Leno (store format {found}, this one reads up to {known}). It was left as it is: run that newer version, or choose another directory with --data-dir"
    )]
    Newer { path: PathBuf, found: u64, known: u64 },
    #[error("cannot open {path}: {reason}. Check its owner and permissions")]
    Io { path: PathBuf, reason: String },
}

/// The objects of the mesh. Reads answer from memory at once; writes answer when they are durable.
pub trait Store: Send + Sync {
    /// The revision of the last change.
    fn revision(&self) -> u64;

    fn get(&self, key: &Key) -> Option<Arc<Stored>>;

    /// Objects in key order, all of the same moment.
    fn list(&self, selection: &Selection) -> Listing;

    /// Carries out all operations at the next revision, or none.
    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Committed, Error>>;

    /// Every change after revision `from`.
    ///
    /// # Errors
    /// [`Error::TooOld`] where the history no longer reaches back that far, [`Error::NotYet`]
    /// where the revision lies in the future.
    fn watch(&self, from: u64, selection: Selection) -> Result<Watch, Error>;

    /// Forgets the history up to and including this revision.
    fn compact(&self, through: u64) -> BoxFuture<'_, Result<(), Error>>;

    /// Writes one object and answers with what is stored then.
    fn put(
        &self,
        key: Key,
        value: Bytes,
        expect: Expect,
    ) -> BoxFuture<'_, Result<Committed, Error>> {
        self.commit(vec![Operation::Put { key, value, expect }])
    }

    fn delete(&self, key: Key, expect: Expect) -> BoxFuture<'_, Result<Committed, Error>> {
        self.commit(vec![Operation::Delete { key, expect }])
    }

    /// Writes the `status` of one object; see [`Operation::Status`].
    fn write_status(
        &self,
        key: Key,
        generation: u64,
        status: Value,
    ) -> BoxFuture<'_, Result<Committed, Error>> {
        self.commit(vec![Operation::Status { key, generation, status }])
    }
}

impl Key {
    pub fn new(group: &str, plural: &str, namespace: &str, name: &str) -> Self {
        Self {
            group: group.into(),
            plural: plural.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.plural, self.namespace)?;
        if !self.namespace.is_empty() {
            out.write_str("/")?;
        }
        out.write_str(&self.name)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{self}", self.group)
    }
}

impl Stored {
    /// The object as JSON, with `metadata.resourceVersion`.
    pub fn json(&self) -> Result<Value, Error> {
        self.json_at(self.modified)
    }

    /// The object as JSON with the given `metadata.resourceVersion`: an event about a deletion
    /// carries the revision of the deletion.
    pub fn json_at(&self, revision: u64) -> Result<Value, Error> {
        let mut object = ledger::parse(&self.key, &self.value)?;
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".into(), revision.to_string().into());
        }
        Ok(Value::Object(object))
    }
}

impl Selection {
    pub fn all() -> Self {
        Self::default()
    }

    pub fn kind(group: &str, plural: &str) -> Self {
        Self { kind: Some((group.into(), plural.into())), namespace: None }
    }

    #[must_use]
    pub fn within(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    pub fn matches(&self, key: &Key) -> bool {
        let kind = self.kind.as_ref();
        kind.is_none_or(|(group, plural)| *group == key.group && *plural == key.plural)
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
    }
}

impl Expect {
    /// Whether the expectation holds of an object last written at `found`.
    pub fn holds(self, found: Option<u64>) -> bool {
        match self {
            Self::Any => true,
            Self::Exists => found.is_some(),
            Self::MustNotExist => found.is_none(),
            Self::Exactly(revision) => found == Some(revision),
        }
    }
}

struct Expected(Expect);
struct Found(Option<u64>);

impl fmt::Display for Expected {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Expect::Any => out.write_str("anything"),
            Expect::Exists => out.write_str("that it exists"),
            Expect::MustNotExist => out.write_str("that it does not exist"),
            Expect::Exactly(revision) => write!(out, "resourceVersion {revision}"),
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => out.write_str("no such object"),
            Some(revision) => write!(out, "resourceVersion {revision}"),
        }
    }
}
