//! A store in one file, by redb.
//!
//! ```text
//! commit ─▶ queue ─▶ writer thread: decide each against its own ledger, which runs ahead
//!                      ─▶ one redb transaction for all of them, fsync ─▶ publish to readers ─▶ answer
//! ```
//!
//! One fsync serves every transaction that waited meanwhile (group commit). Readers never see
//! what is not durable. Where the disk fails, all transactions of the group fail, and the writer
//! goes back to what readers see.

mod file;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use self::file::StoreFile;
use super::{
    Committed, Error, Event, Key, Listing, OpenError, Selection, Store, Stored, Transaction, Watch,
    feed::Feed, ledger::Ledger,
};

/// How many writes may wait for the writer; further callers wait before they enter.
const QUEUE: usize = 1024;
/// How many transactions share one fsync at most.
const GROUP: usize = 256;

pub struct EmbeddedStore {
    feed: Arc<Feed>,
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
}

enum Request {
    Commit { transaction: Transaction, answer: oneshot::Sender<Result<Committed, Error>> },
    Compact { through: u64, answer: oneshot::Sender<Result<(), Error>> },
}

impl EmbeddedStore {
    /// Opens the store in `directory`, creating both as needed. Blocks on the disk.
    ///
    /// # Errors
    /// [`OpenError`] says what is wrong with the directory or the file, and what to do; an
    /// existing file is never overwritten.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        let (file, ledger) = StoreFile::open(directory)?;
        let feed = Feed::new(ledger.clone());
        let (requests, queue) = mpsc::channel(QUEUE);
        let path = file.path().to_owned();
        let writer = Writer { file, ahead: ledger, feed: feed.clone() };
        let writer = thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run(queue))
            .map_err(|e| OpenError::Io { path, reason: e.to_string() })?;
        Ok(Self { feed, requests: Some(requests), writer: Some(writer) })
    }

    async fn send(&self, request: Request) -> Result<(), Error> {
        let requests = self.requests.as_ref().ok_or(Error::Closed)?;
        requests.send(request).await.map_err(|_| Error::Closed)
    }
}

impl Drop for EmbeddedStore {
    /// Lets the writer finish what it has accepted, so that the file is free for the next owner.
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer thread panicked; acknowledged writes are on disk");
        }
        self.feed.close();
    }
}

impl Store for EmbeddedStore {
    fn revision(&self) -> u64 {
        self.feed.read().revision()
    }

    fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.feed.read().get(key)
    }

    fn list(&self, selection: &Selection) -> Listing {
        self.feed.read().list(selection)
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Committed, Error>> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            self.send(Request::Commit { transaction, answer }).await?;
            answered.await.map_err(|_| Error::Closed)?
        })
    }

    fn watch(&self, from: u64, selection: Selection) -> Result<Watch, Error> {
        self.feed.watch(from, selection)
    }

    fn compact(&self, through: u64) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            self.send(Request::Compact { through, answer }).await?;
            answered.await.map_err(|_| Error::Closed)?
        })
    }
}

/// The only one who writes, on its own thread since redb blocks.
struct Writer {
    file: StoreFile,
    /// What the store will be once everything decided so far is durable.
    ahead: Ledger,
    feed: Arc<Feed>,
}

/// What one group has decided, waiting to become durable.
#[derive(Default)]
struct Group {
    events: Vec<Arc<Event>>,
    compact: Option<u64>,
    committed: Vec<(oneshot::Sender<Result<Committed, Error>>, Committed)>,
    compacted: Vec<oneshot::Sender<Result<(), Error>>>,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(request) = queue.blocking_recv() {
            let mut group = Group::default();
            self.decide(request, &mut group);
            for _ in 1..GROUP {
                let Ok(request) = queue.try_recv() else { break };
                self.decide(request, &mut group);
            }
            self.finish(group);
        }
    }

    /// Takes a request into the group, or refuses it at once.
    fn decide(&mut self, request: Request, group: &mut Group) {
        match request {
            Request::Commit { transaction, answer } => match self.ahead.decide(&transaction) {
                Ok(decision) => {
                    self.ahead.apply(&decision.events);
                    group.committed.push((answer, decision.committed(self.ahead.revision())));
                    group.events.extend(decision.events);
                }
                // Decided against writes of this very group, which may yet fail: then the caller
                // has lost a race against a write that did not happen, and may try again.
                Err(error) => drop(answer.send(Err(error))),
            },
            Request::Compact { through, answer } => {
                self.ahead.compact(through);
                group.compact = group.compact.max(Some(through));
                group.compacted.push(answer);
            }
        }
    }

    fn finish(&mut self, group: Group) {
        let unchanged = group.events.is_empty() && group.compact.is_none();
        if !unchanged && let Err(reason) = self.file.write(&group.events, &self.ahead) {
            tracing::error!(%reason, path = %self.file.path().display(), "the store cannot write");
            self.ahead = self.feed.read().clone();
            return group.refuse(self.file.path(), &reason);
        }
        if !unchanged {
            self.feed.change(|ledger| {
                ledger.apply(&group.events);
                if let Some(through) = group.compact {
                    ledger.compact(through);
                }
            });
        }
        // Whoever no longer waits for its answer has gone away: not our concern.
        for (answer, committed) in group.committed {
            drop(answer.send(Ok(committed)));
        }
        for answer in group.compacted {
            drop(answer.send(Ok(())));
        }
    }
}

impl Group {
    fn refuse(self, path: &Path, reason: &str) {
        let failure = || Error::Disk { path: PathBuf::from(path), reason: reason.to_owned() };
        for (answer, _) in self.committed {
            drop(answer.send(Err(failure())));
        }
        for answer in self.compacted {
            drop(answer.send(Err(failure())));
        }
    }
}
