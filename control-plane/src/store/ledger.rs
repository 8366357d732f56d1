//! What the store is, without where it is kept: objects, revision, history.
//!
//! [`Ledger::decide`] says what a transaction would do and changes nothing; [`Ledger::apply`]
//! does it and cannot fail. Between the two a store makes the changes durable.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use serde_json::{Map, Value};

use super::{
    Change, Error, Event, Expect, HISTORY_BYTES, HISTORY_EVENTS, Key, Listing, MAX_OBJECTS,
    MAX_OPERATIONS, MAX_VALUE_BYTES, Operation, Selection, Stored,
};

/// What an event costs beside the objects it refers to; roughly its size in memory.
const EVENT_BYTES: usize = 256;

#[derive(Debug, Clone)]
pub(super) struct Ledger {
    objects: BTreeMap<Key, Arc<Stored>>,
    revision: u64,
    history: History,
}

/// What a transaction does: the events, and for each operation which event is its own.
#[derive(Debug)]
pub(super) struct Decision {
    pub(super) events: Vec<Arc<Event>>,
    pub(super) results: Vec<Option<usize>>,
}

#[derive(Debug, Clone)]
struct History {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// The last revision of which events were dropped: watches can start from here on.
    compacted: u64,
    max_events: usize,
    max_bytes: usize,
}

impl Ledger {
    pub(super) fn empty() -> Self {
        Self::with_history(HISTORY_EVENTS, HISTORY_BYTES)
    }

    pub(super) fn with_history(max_events: usize, max_bytes: usize) -> Self {
        let history =
            History { events: VecDeque::new(), bytes: 0, compacted: 0, max_events, max_bytes };
        Self { objects: BTreeMap::new(), revision: 0, history }
    }

    /// A ledger as it was left, from what a store kept of it.
    pub(super) fn restore(
        objects: impl IntoIterator<Item = Stored>,
        revision: u64,
        compacted: u64,
        events: impl IntoIterator<Item = Event>,
    ) -> Self {
        let mut ledger = Self::empty();
        ledger.objects =
            objects.into_iter().map(|object| (object.key.clone(), Arc::new(object))).collect();
        ledger.revision = revision;
        ledger.history.compacted = compacted;
        for event in events {
            ledger.history.push(Arc::new(event));
        }
        ledger
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn compacted(&self) -> u64 {
        self.history.compacted
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.objects.get(key).cloned()
    }

    pub(super) fn list(&self, selection: &Selection) -> Listing {
        let items = match &selection.kind {
            None => self.objects.values().filter(|o| selection.matches(&o.key)).cloned().collect(),
            Some((group, plural)) => {
                let first = Key {
                    group: group.clone(),
                    plural: plural.clone(),
                    namespace: selection.namespace.clone().unwrap_or_else(|| "".into()),
                    name: "".into(),
                };
                let tail = self.objects.range(first..).map(|(_, object)| object);
                tail.take_while(|o| selection.matches(&o.key)).cloned().collect()
            }
        };
        Listing { items, revision: self.revision }
    }

    pub(super) fn decide(&self, transaction: &[Operation]) -> Result<Decision, Error> {
        if transaction.len() > MAX_OPERATIONS {
            return Err(Error::TransactionTooLarge { count: transaction.len() });
        }
        let mut draft =
            Draft { ledger: self, events: Vec::new(), touched: BTreeMap::new(), added: 0 };
        let mut results = Vec::with_capacity(transaction.len());
        for (index, operation) in transaction.iter().enumerate() {
            let before = draft.events.len();
            draft.take(index, operation)?;
            results.push((draft.events.len() > before).then_some(before));
        }
        if draft.added > 0 && self.objects.len() + draft.added > MAX_OBJECTS {
            return Err(Error::Full);
        }
        Ok(Decision { events: draft.events, results })
    }

    /// Carries out what [`Self::decide`] said.
    pub(super) fn apply(&mut self, events: &[Arc<Event>]) {
        for event in events {
            self.revision = event.revision;
            let object = &event.object;
            match event.change {
                Change::Deleted => drop(self.objects.remove(&object.key)),
                _ => drop(self.objects.insert(object.key.clone(), object.clone())),
            }
            self.history.push(event.clone());
        }
    }

    pub(super) fn compact(&mut self, through: u64) {
        self.history.compact(through.min(self.revision));
    }

    /// Events after `from`, whole transactions, stopping once there are `limit`; and the
    /// revision up to which nothing is missing then.
    pub(super) fn events_after(
        &self,
        from: u64,
        limit: usize,
        selection: &Selection,
    ) -> Result<(Vec<Arc<Event>>, u64), Error> {
        self.watchable(from)?;
        let history = &self.history.events;
        let start = history.partition_point(|event| event.revision <= from);
        let mut found: Vec<Arc<Event>> = Vec::new();
        for event in history.range(start..) {
            if let Some(last) = found.last()
                && found.len() >= limit
                && event.revision > last.revision
            {
                let seen = event.revision - 1;
                return Ok((found, seen));
            }
            if selection.matches(&event.object.key) {
                found.push(event.clone());
            }
        }
        Ok((found, self.revision))
    }

    pub(super) fn watchable(&self, from: u64) -> Result<(), Error> {
        if from < self.history.compacted {
            return Err(Error::TooOld { requested: from, oldest: self.history.compacted });
        }
        if from > self.revision {
            return Err(Error::NotYet { requested: from, current: self.revision });
        }
        Ok(())
    }
}

/// A transaction being decided: later operations see what earlier ones did.
struct Draft<'a> {
    ledger: &'a Ledger,
    events: Vec<Arc<Event>>,
    touched: BTreeMap<Key, Option<Arc<Stored>>>,
    added: usize,
}

impl Draft<'_> {
    fn take(&mut self, index: usize, operation: &Operation) -> Result<(), Error> {
        match operation {
            Operation::Put { key, value, expect } => {
                let current = self.expected(index, key, *expect)?;
                self.write(key, value.clone(), current, Change::Updated)
            }
            Operation::Delete { key, expect } => {
                if let Some(current) = self.expected(index, key, *expect)? {
                    self.touched.insert(key.clone(), None);
                    self.record(Change::Deleted, current, None);
                }
                Ok(())
            }
            Operation::Status { key, generation, status } => {
                let Some(current) = self.current(key) else { return Ok(()) };
                let Some(value) = with_status(&current, *generation, status)? else {
                    return Ok(());
                };
                self.write(key, value, Some(current), Change::StatusWritten)
            }
        }
    }

    fn write(
        &mut self,
        key: &Key,
        value: Bytes,
        current: Option<Arc<Stored>>,
        change: Change,
    ) -> Result<(), Error> {
        if value.len() > MAX_VALUE_BYTES {
            return Err(Error::ValueTooLarge { key: key.clone(), size: value.len() });
        }
        let modified = self.ledger.revision + 1;
        let created = current.as_ref().map_or(modified, |current| current.created);
        let change = if current.is_some() { change } else { Change::Created };
        let content = match (&current, change) {
            (Some(current), Change::StatusWritten) => current.content,
            _ => modified,
        };
        let object = Arc::new(Stored { key: key.clone(), value, created, modified, content });
        self.touched.insert(key.clone(), Some(object.clone()));
        self.added += usize::from(current.is_none());
        self.record(change, object, current);
        Ok(())
    }

    fn record(&mut self, change: Change, object: Arc<Stored>, previous: Option<Arc<Stored>>) {
        let revision = self.ledger.revision + 1;
        self.events.push(Arc::new(Event { revision, change, object, previous }));
    }

    fn current(&self, key: &Key) -> Option<Arc<Stored>> {
        self.touched.get(key).cloned().unwrap_or_else(|| self.ledger.get(key))
    }

    fn expected(
        &self,
        operation: usize,
        key: &Key,
        expected: Expect,
    ) -> Result<Option<Arc<Stored>>, Error> {
        let current = self.current(key);
        let found = current.as_ref().map(|current| current.modified);
        if expected.holds(found) {
            return Ok(current);
        }
        Err(Error::Conflict { operation, key: key.clone(), expected, found })
    }
}

/// The object with another status; `None` where there is nothing to write.
fn with_status(current: &Stored, generation: u64, status: &Value) -> Result<Option<Bytes>, Error> {
    let mut object = parse(&current.key, &current.value)?;
    let written_for = object.get("metadata").and_then(|metadata| metadata.get("generation"));
    if written_for.and_then(Value::as_u64).unwrap_or(0) != generation
        || object.get("status") == Some(status)
    {
        return Ok(None);
    }
    object.insert("status".into(), status.clone());
    serialize(&current.key, &object).map(Some)
}

pub(super) fn parse(key: &Key, value: &[u8]) -> Result<Map<String, Value>, Error> {
    serde_json::from_slice(value)
        .map_err(|e| Error::NotJson { key: key.clone(), reason: e.to_string() })
}

fn serialize(key: &Key, object: &Map<String, Value>) -> Result<Bytes, Error> {
    let bytes = serde_json::to_vec(object)
        .map_err(|e| Error::NotJson { key: key.clone(), reason: e.to_string() })?;
    Ok(bytes.into())
}

impl History {
    fn push(&mut self, event: Arc<Event>) {
        self.bytes += cost(&event);
        self.events.push_back(event);
        while self.events.len() > self.max_events || self.bytes > self.max_bytes {
            let Some(oldest) = self.events.front() else { return };
            // The rest of a transaction goes with its first event: half of one is of no use.
            self.compact(oldest.revision);
        }
    }

    fn compact(&mut self, through: u64) {
        while let Some(event) = self.events.pop_front_if(|event| event.revision <= through) {
            self.bytes -= cost(&event);
        }
        self.compacted = self.compacted.max(through);
    }
}

fn cost(event: &Event) -> usize {
    let previous = event.previous.as_ref().map_or(0, |previous| previous.value.len());
    EVENT_BYTES + event.object.value.len() + previous
}
