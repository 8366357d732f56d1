//! The store's file: opening, reading all of it, and writing a group of changes.
//!
//! ```text
//! meta     "format" | "revision" | "compacted" -> number
//! objects  (group, plural, namespace, name)    -> (created, modified, content, JSON)
//! events   (revision, place in transaction)    -> (change, key, the object now, and before)
//! ```
//!
//! A new file is made under another name and renamed when complete: under its own name an
//! incomplete or empty file can only be a damaged one, and is refused rather than filled.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use redb::{
    Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition,
    WriteTransaction,
};

use super::super::{Change, Event, Key, OpenError, Stored, ledger::Ledger};

/// Raised whenever an older Leno could not read what this one writes.
pub(super) const FORMAT: u64 = 1;
const FILE: &str = "leno.redb";
const UNFINISHED: &str = "leno.redb.new";
/// redb's page cache; the objects themselves are in memory anyway.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const OBJECTS: TableDefinition<RawKey, RawObject> = TableDefinition::new("objects");
const EVENTS: TableDefinition<(u64, u32), RawEvent> = TableDefinition::new("events");

type RawKey<'a> = (&'a str, &'a str, &'a str, &'a str);
type RawObject<'a> = (u64, u64, u64, &'a [u8]);
/// The object before the change has `created` 0 where there was none: revisions start at 1.
type RawEvent<'a> = (u8, RawKey<'a>, RawObject<'a>, RawObject<'a>);

pub(super) struct StoreFile {
    database: Database,
    path: PathBuf,
    /// Up to which revision events were removed from the file.
    compacted: u64,
}

impl StoreFile {
    pub(super) fn open(directory: &Path) -> Result<(Self, Ledger), OpenError> {
        prepare_directory(directory).map_err(|e| OpenError::Directory {
            path: directory.to_owned(),
            reason: e.to_string(),
        })?;
        let path = directory.join(FILE);
        if !path.try_exists().map_err(|e| io_error(&path, &e))? {
            create(directory, &path)?;
        }
        // redb reports most damage as errors but asserts some of its invariants; a damaged file
        // must not look like a bug.
        let opened = panic::catch_unwind(AssertUnwindSafe(|| open(&path)));
        let (database, ledger) = opened.unwrap_or_else(|cause| {
            let reason = panic_text(cause.as_ref());
            Err(OpenError::Damaged { path: path.clone(), reason })
        })?;
        let compacted = ledger.compacted();
        Ok((Self { database, path, compacted }, ledger))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a group of changes durable. `ledger` is the state after them.
    pub(super) fn write(&mut self, events: &[Arc<Event>], ledger: &Ledger) -> Result<(), String> {
        let written = panic::catch_unwind(AssertUnwindSafe(|| self.write_all(events, ledger)));
        match written {
            Ok(Ok(())) => {
                self.compacted = ledger.compacted();
                Ok(())
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(cause) => Err(panic_text(cause.as_ref())),
        }
    }

    fn write_all(&self, events: &[Arc<Event>], ledger: &Ledger) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        write_events(&transaction, events)?;
        if ledger.compacted() > self.compacted {
            let mut table = transaction.open_table(EVENTS)?;
            table.retain_in(..=(ledger.compacted(), u32::MAX), |_, _| false)?;
        }
        let mut meta = transaction.open_table(META)?;
        meta.insert("revision", ledger.revision())?;
        meta.insert("compacted", ledger.compacted())?;
        drop(meta);
        transaction.commit()?;
        Ok(())
    }
}

fn write_events(transaction: &WriteTransaction, events: &[Arc<Event>]) -> Result<(), redb::Error> {
    let mut objects = transaction.open_table(OBJECTS)?;
    let mut history = transaction.open_table(EVENTS)?;
    let mut place = (0, 0);
    for event in events {
        place =
            if place.0 == event.revision { (place.0, place.1 + 1) } else { (event.revision, 0) };
        let object = &event.object;
        match event.change {
            Change::Deleted => drop(objects.remove(raw_key(&object.key))?),
            _ => drop(objects.insert(raw_key(&object.key), raw_object(object))?),
        }
        let previous = event.previous.as_deref().map_or((0, 0, 0, &[][..]), raw_object);
        let raw = (raw_change(event.change), raw_key(&object.key), raw_object(object), previous);
        history.insert(place, raw)?;
    }
    Ok(())
}

fn prepare_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    // What an interrupted first start left behind was never in use.
    match fs::remove_file(directory.join(UNFINISHED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn create(directory: &Path, path: &Path) -> Result<(), OpenError> {
    let unfinished = directory.join(UNFINISHED);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)
        .map_err(|e| io_error(&unfinished, &e))?;
    initialise(file)
        .map_err(|e| OpenError::Io { path: unfinished.clone(), reason: e.to_string() })?;
    fs::rename(&unfinished, path).map_err(|e| io_error(path, &e))?;
    File::open(directory).and_then(|d| d.sync_all()).map_err(|e| io_error(directory, &e))
}

fn initialise(file: File) -> Result<(), redb::Error> {
    let database = Database::builder().create_file(file)?;
    let transaction = database.begin_write()?;
    transaction.open_table(OBJECTS)?;
    transaction.open_table(EVENTS)?;
    let mut meta = transaction.open_table(META)?;
    meta.insert("format", FORMAT)?;
    meta.insert("revision", 0)?;
    meta.insert("compacted", 0)?;
    drop(meta);
    transaction.commit()?;
    Ok(())
}

fn open(path: &Path) -> Result<(Database, Ledger), OpenError> {
    let length = fs::metadata(path).map_err(|e| io_error(path, &e))?.len();
    if length == 0 {
        return Err(damaged(path, "it is empty"));
    }
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(|e| io_error(path, &e))?;
    let database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .open(path)
        .map_err(|error| database_error(path, error))?;
    check_format(&database, path)?;
    let ledger = load(&database).map_err(|error| damaged(path, error))?;
    Ok((database, ledger))
}

fn check_format(database: &Database, path: &Path) -> Result<(), OpenError> {
    let format = || -> Result<Option<u64>, redb::Error> {
        let meta = database.begin_read()?.open_table(META)?;
        Ok(meta.get("format")?.map(|number| number.value()))
    };
    match format().map_err(|error| damaged(path, error))? {
        Some(FORMAT) => Ok(()),
        Some(found) if found > FORMAT => {
            Err(OpenError::Newer { path: path.to_owned(), found, known: FORMAT })
        }
        found => Err(damaged(path, format!("no known store format: {found:?}"))),
    }
}

fn load(database: &Database) -> Result<Ledger, redb::Error> {
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META)?;
    let number = |name: &str| -> Result<u64, redb::Error> {
        let missing = || redb::Error::Corrupted(format!("`{name}` is missing"));
        Ok(meta.get(name)?.ok_or_else(missing)?.value())
    };
    let mut objects = Vec::new();
    for entry in transaction.open_table(OBJECTS)?.iter()? {
        let (raw_key, raw_object) = entry?;
        objects.push(object(&key(raw_key.value()), raw_object.value()));
    }
    let mut events = Vec::new();
    for entry in transaction.open_table(EVENTS)?.iter()? {
        let (place, raw) = entry?;
        events.push(event(place.value().0, raw.value())?);
    }
    Ok(Ledger::restore(objects, number("revision")?, number("compacted")?, events))
}

fn raw_key(key: &Key) -> RawKey<'_> {
    (&key.group, &key.plural, &key.namespace, &key.name)
}

fn raw_object(object: &Stored) -> RawObject<'_> {
    (object.created, object.modified, object.content, &object.value)
}

fn raw_change(change: Change) -> u8 {
    match change {
        Change::Created => 1,
        Change::Updated => 2,
        Change::StatusWritten => 3,
        Change::Deleted => 4,
    }
}

fn key((group, plural, namespace, name): RawKey<'_>) -> Key {
    Key::new(group, plural, namespace, name)
}

fn object(key: &Key, (created, modified, content, value): RawObject<'_>) -> Stored {
    Stored { key: key.clone(), value: Bytes::copy_from_slice(value), created, modified, content }
}

fn event(
    revision: u64,
    (change, key_parts, now, before): RawEvent<'_>,
) -> Result<Event, redb::Error> {
    let change = match change {
        1 => Change::Created,
        2 => Change::Updated,
        3 => Change::StatusWritten,
        4 => Change::Deleted,
        other => return Err(redb::Error::Corrupted(format!("unknown change {other}"))),
    };
    let key = key(key_parts);
    let previous = (before.0 != 0).then(|| Arc::new(object(&key, before)));
    Ok(Event { revision, change, object: Arc::new(object(&key, now)), previous })
}

fn database_error(path: &Path, error: DatabaseError) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path: path.to_owned() },
        DatabaseError::UpgradeRequired(version) => {
            damaged(path, format!("written in redb's old file format {version}"))
        }
        DatabaseError::Storage(redb::StorageError::Io(error))
            if matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound
            ) =>
        {
            io_error(path, &error)
        }
        other => damaged(path, other),
    }
}

fn damaged(path: &Path, reason: impl ToString) -> OpenError {
    OpenError::Damaged { path: path.to_owned(), reason: reason.to_string() }
}

fn io_error(path: &Path, error: &io::Error) -> OpenError {
    OpenError::Io { path: path.to_owned(), reason: error.to_string() }
}

fn panic_text(cause: &(dyn std::any::Any + Send)) -> String {
    let text = cause.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| cause.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "the storage engine gave up".into())
}
