//! Who runs where: workloads that are registered under a lease, and removed when it lapses.
//!
//! ```text
//! sidecar's stream ──╮ register, renew, deregister
//! HTTP lease renewal ┴─▶ Registry ─▶ leases (pure, in memory) ─ lapsed ─▶ driver deletes from the store
//!                            │ writes                                        ▲
//!                            ╰─▶ store ── watch: a Workload with the annotation grants a lease ──╯
//! ```
//!
//! A registered workload is an ordinary `Workload` object with the annotation `leno.dev/lease`,
//! whoever wrote it. The object is durable, the lease is not: at start every leased workload
//! found in the store gets a full lease, so that restarting the control plane does not empty the
//! mesh.
//!
//! - `lease.rs`: grant, renew, lapse; pure, by a clock that is handed in
//! - `driver.rs`: the task that follows the store and deletes what lapsed

mod driver;
mod lease;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use leno_api::{
    Invalid, Resource,
    model::{Model, ObjectName, duration, workload::LEASE_ANNOTATION},
};
use serde_json::{Map, Value};
use tokio::{sync::Notify, time::Instant};

use self::lease::Leases;
use crate::{
    access::DEFAULT_ACCOUNT,
    objects::{self, Author, timestamp},
    store::{self, Expect, Key, Selection, Store, Stored},
};

/// Group and plural of the kind that this is about.
const GROUP: &str = "leno.dev";
const PLURAL: &str = "workloads";
/// Shorter leases would lapse by scheduling alone.
pub const MIN_LEASE: Duration = Duration::from_secs(1);
/// Longer ones are workloads written by hand.
pub const MAX_LEASE: Duration = Duration::from_secs(24 * 3600);
/// Who owns the fields of what is registered.
const MANAGER: &str = "leno-registry";
/// How often a registration is tried again when others write the same object.
const ATTEMPTS: usize = 5;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this workload cannot be registered: {0}")]
    Invalid(Invalid),
    #[error("{0} is not a Workload: only workloads are registered")]
    NotAWorkload(String),
    #[error("metadata.annotations[{LEASE_ANNOTATION}]: {0}")]
    BadLease(String),
    #[error(
        "{0} was written by hand (it has no {LEASE_ANNOTATION} annotation) and is not overwritten: delete it, or register under another name"
    )]
    WrittenByHand(Key),
    #[error("{0} has no lease to renew: register it again")]
    NotLeased(Key),
    #[error(
        "{key} is a workload of the service account {account:?}, which is still here: wait until its lease lapses, or use another name"
    )]
    OtherAccount { key: Key, account: String },
    #[error(transparent)]
    Objects(#[from] objects::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// The registered workloads. [`Registry::run`] must be running for leases to lapse.
pub struct Registry {
    store: Arc<dyn Store>,
    leases: Mutex<Leases>,
    /// Told when the next expiry may have moved.
    changed: Notify,
    /// The revision of the store up to which its workloads are known.
    known: u64,
}

impl Registry {
    /// Gives a full lease to each leased workload in the store.
    pub fn new(store: Arc<dyn Store>) -> Arc<Self> {
        let listing = store.list(&Selection::kind(GROUP, PLURAL));
        let registry = Self {
            store,
            leases: Mutex::new(Leases::default()),
            changed: Notify::new(),
            known: listing.revision,
        };
        listing.items.iter().for_each(|stored| registry.observe(stored));
        Arc::new(registry)
    }

    /// Deletes workloads whose lease has lapsed, until the store closes.
    pub async fn run(self: Arc<Self>) {
        driver::run(&self).await;
    }

    /// Writes a workload (a whole `Workload` object) under a lease, or the lease anew where it is
    /// there already. Whoever has only proven the service account `own` takes over no workload of another.
    pub async fn register(
        &self,
        mut workload: Value,
        ttl: Duration,
        own: Option<&str>,
    ) -> Result<Key, Error> {
        annotate(&mut workload, ttl);
        let lease = lease_of(&workload).map_err(Error::BadLease)?.unwrap_or(ttl);
        let resource = Resource::from_json(workload.clone()).map_err(Error::Invalid)?;
        let Model::Workload(model) = &resource.model else {
            return Err(Error::NotAWorkload(resource.key().to_string()));
        };
        let key = key(&model.name);
        name_fully(&mut workload, &key);
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.write(&key, &workload, own).await {
                Ok(content) => {
                    self.grant(&key, lease, content);
                    return Ok(key);
                }
                Err(Error::Store(store::Error::Conflict { .. })) if attempts < ATTEMPTS => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Extends a lease to its full length from now.
    pub fn renew(&self, key: &Key) -> Result<(), Error> {
        if self.leases().renew(key, now()) {
            return Ok(());
        }
        // Written a moment ago, and the driver has not seen it yet.
        if !self.leases().is_lapsing(key)
            && let Some(stored) = self.store.get(key)
            && let Some(ttl) = lease_of_stored(&stored)
        {
            self.grant(key, ttl, stored.content);
            return Ok(());
        }
        Err(Error::NotLeased(key.clone()))
    }

    /// Removes a registered workload at once: its process has said goodbye. Not one that by now is of another service
    /// account than `own`.
    pub async fn deregister(&self, key: &Key, own: Option<&str>) -> Result<(), Error> {
        match self.store.get(key) {
            Some(stored) if lease_of_stored(&stored).is_some() => check_account(&stored, own)?,
            _ => return Err(Error::NotLeased(key.clone())),
        }
        self.leases().release(key);
        self.store.delete(key.clone(), Expect::Any).await?;
        Ok(())
    }

    /// Whether a workload, where there is one, is of the service account `own`.
    ///
    /// # Errors
    /// [`Error::OtherAccount`]
    pub fn check_account(&self, key: &Key, own: Option<&str>) -> Result<(), Error> {
        self.store.get(key).map_or(Ok(()), |stored| check_account(&stored, own))
    }

    /// How many workloads are held by a lease.
    pub fn leased(&self) -> usize {
        self.leases().len()
    }

    async fn write(&self, key: &Key, workload: &Value, own: Option<&str>) -> Result<u64, Error> {
        let author = Author { manager: MANAGER.into(), now: timestamp::rfc3339(SystemTime::now()) };
        let Some(stored) = self.store.get(key) else {
            let object =
                objects::created(workload.clone(), &author, &objects::uid(rand::random()))?;
            return self.put(key, &object, Expect::MustNotExist).await;
        };
        if lease_of_stored(&stored).is_none() {
            return Err(Error::WrittenByHand(key.clone()));
        }
        check_account(&stored, own)?;
        let mut live = stored.json()?;
        objects::strip_revision(&mut live);
        let object = objects::updated(&live, workload.clone(), &author)?;
        if object == live {
            return Ok(stored.content);
        }
        self.put(key, &object, Expect::Exactly(stored.modified)).await
    }

    async fn put(&self, key: &Key, object: &Value, expect: Expect) -> Result<u64, Error> {
        let committed = self.store.put(key.clone(), object.to_string().into(), expect).await?;
        Ok(committed.revision)
    }

    /// Takes note of a workload in the store.
    fn observe(&self, stored: &Stored) {
        match lease_of_stored(stored) {
            Some(ttl) => self.grant(&stored.key, ttl, stored.content),
            // It was leased and now is to stay.
            None => self.leases().release(&stored.key),
        }
    }

    fn grant(&self, key: &Key, ttl: Duration, content: u64) {
        self.leases().grant(key, ttl, content, now());
        self.changed.notify_one();
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Under which a workload is stored.
pub fn key(workload: &ObjectName) -> Key {
    Key::new(GROUP, PLURAL, &workload.namespace, &workload.name)
}

/// How long an object may stay without renewal: `None` where it has no lease annotation.
pub fn lease_of(object: &Value) -> Result<Option<Duration>, String> {
    let annotations = object.get("metadata").and_then(|metadata| metadata.get("annotations"));
    let Some(lease) = annotations.and_then(|all| all.get(LEASE_ANNOTATION)) else {
        return Ok(None);
    };
    let ttl = duration::parse(lease.as_str().unwrap_or_default())?;
    if !(MIN_LEASE..=MAX_LEASE).contains(&ttl) {
        return Err(format!("a lease is {}s to {}s", MIN_LEASE.as_secs(), MAX_LEASE.as_secs()));
    }
    Ok(Some(ttl))
}

/// Whose identity a workload has.
pub fn account_of(object: &Value) -> &str {
    let account = object.get("spec").and_then(|spec| spec.get("serviceAccount"));
    account.and_then(Value::as_str).unwrap_or(DEFAULT_ACCOUNT)
}

fn check_account(stored: &Stored, own: Option<&str>) -> Result<(), Error> {
    let Some(own) = own else { return Ok(()) };
    let object = stored.json()?;
    let account = account_of(&object);
    if account == own {
        return Ok(());
    }
    Err(Error::OtherAccount { key: stored.key.clone(), account: account.to_owned() })
}

/// Of a stored object, which was checked before it was stored.
fn lease_of_stored(stored: &Stored) -> Option<Duration> {
    let object = stored.json().map_err(|error| error.to_string());
    match object.and_then(|object| lease_of(&object)) {
        Ok(lease) => lease,
        Err(reason) => {
            tracing::error!(workload = %stored.key, reason, "a stored lease cannot be read; the workload stays");
            None
        }
    }
}

fn annotate(workload: &mut Value, ttl: Duration) {
    let Some(workload) = workload.as_object_mut() else { return };
    let Some(metadata) = child(workload, "metadata") else { return };
    let Some(annotations) = child(metadata, "annotations") else { return };
    annotations.insert(LEASE_ANNOTATION.into(), format!("{}s", ttl.as_secs()).into());
}

fn child<'a>(object: &'a mut Map<String, Value>, name: &str) -> Option<&'a mut Map<String, Value>> {
    object.entry(name).or_insert_with(|| Map::new().into()).as_object_mut()
}

/// The namespace may have been left to its default.
fn name_fully(workload: &mut Value, key: &Key) {
    if let Some(metadata) = workload.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("namespace".into(), key.namespace.as_ref().into());
    }
}

/// Tokio's clock, so that tests can turn it by hand.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}
